# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Computes the losses and gradients of a step, in one process or several under `accelerate launch`:
`joint_batch.py CASES.json OUT HOW`. Each process has the whole model (`ddp`), or the model is split over them (`fsdp`).
The main process writes `OUT/NAME.safetensors` for each case.
"""

import json
import sys
from pathlib import Path

import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.fsdp import fully_shard

from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.dataset import FrozenTextEncoder, PretrainingBatches
from modeling_langcell.pretraining.initialization import initialize_model
from modeling_langcell.pretraining.optimization import freeze_parameters
from tests.support.paths import REPOSITORY


def split(model):
    """Splits the layers that our FSDP configuration names, as accelerate does on GPUs only."""
    path = REPOSITORY / "hub_configs" / "accelerate" / "fsdp.yaml"
    layers = yaml.safe_load(path.read_text())["fsdp_config"]["fsdp_transformer_layer_cls_to_wrap"].split(",")
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module)
    return fully_shard(model)


def main(cases: str, out: str, how: str) -> None:
    accelerator = Accelerator(cpu=True)
    for name, settings in json.loads(Path(cases).read_text()).items():
        config = PretrainingConfig(**settings)
        corpus = Corpus(config.corpus)
        torch.manual_seed(0)
        model, processor = initialize_model(config, corpus.gene_vocabulary)
        freeze_parameters(model, config)
        share = (accelerator.process_index, accelerator.num_processes)
        batches = PretrainingBatches(corpus, processor, model, config, *share)
        text_encoder = FrozenTextEncoder(model, processor, config.max_tokens)
        prepared = split(model) if how == "fsdp" else accelerator.prepare(model)
        for step in range(2):  # In the second step DDP fails if the first left a parameter without a gradient.
            prepared.zero_grad()
            batch = batches[step]
            texts = batch.pop("texts", None)
            assert batch["length_groups"] == config.length_groups
            if texts is not None and not config.train_text_tower:
                batch["text_pooled"] = text_encoder(texts)
            outputs = prepared(**batch)
            accelerator.backward(outputs.loss)
        found = {key: value.detach() for key, value in outputs.items() if key.endswith("loss")}
        gradients = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        found |= {key: grad.full_tensor() if how == "fsdp" else grad for key, grad in gradients.items()}
        if accelerator.is_main_process:
            save_file({key: value.contiguous().clone() for key, value in found.items()}, f"{out}/{name}.safetensors")
            print(f"{name}: {accelerator.num_processes} processes, {len(batch['cell_input_ids'])} cells here")
        # A reducer that outlives the group of processes can hang: see `PretrainingRun.release`.
        del outputs
        (prepared,) = accelerator.free_memory(prepared)
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
