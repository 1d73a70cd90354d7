# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Losses and gradients of a step, as one of any number of processes computes them: `joint_batch.py CASES.json OUT`, under
`accelerate launch` or alone. Of every case the main process writes `OUT/NAME.safetensors`.
"""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from safetensors.torch import save_file

from modeling_langcell.batches import FrozenTexts, PretrainingBatches
from modeling_langcell.corpus import Corpus
from modeling_langcell.pretraining import choose_trained
from modeling_langcell.pretraining_config import PretrainingConfig
from modeling_langcell.tower_starts import start_model


def main(cases: str, out: str) -> None:
    accelerator = Accelerator(cpu=True)
    for name, settings in json.loads(Path(cases).read_text()).items():
        config = PretrainingConfig(**settings)
        corpus = Corpus(config.corpus)
        torch.manual_seed(0)
        model, processor = start_model(config, corpus.gene_vocabulary)
        choose_trained(model, config)
        share = (accelerator.process_index, accelerator.num_processes)
        batches = PretrainingBatches(corpus, processor, model, config, *share)
        frozen_texts = FrozenTexts(model, processor, config.max_tokens)
        prepared = accelerator.prepare(model)
        for step in range(2):  # DDP finds in the second step what the first left without a gradient.
            prepared.zero_grad()
            batch = batches[step]
            wordings = batch.pop("wordings", None)
            if wordings is not None and not config.train_text_tower:
                batch["text_pooled"] = frozen_texts(wordings)
            outputs = prepared(**batch, passes=config.passes)
            accelerator.backward(outputs.loss)
        found = {key: value.detach() for key, value in outputs.items() if key.endswith("loss")}
        found |= {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        if accelerator.is_main_process:
            save_file({key: value.contiguous().clone() for key, value in found.items()}, f"{out}/{name}.safetensors")
            print(f"{name}: {accelerator.num_processes} processes, {len(batch['cell_input_ids'])} cells here")
    accelerator.end_training()


if __name__ == "__main__":
    main(*sys.argv[1:])
