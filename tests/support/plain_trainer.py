# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Trains heads of a checkpoint with transformers' plain `Trainer`, in one process or in several under `torchrun`:
`plain_trainer.py CHECKPOINT OUT`. The main process writes what it found to `OUT/NAME.json`. With `losses` as a third
argument it saves losses and gradients of pre-training the tiny checkpoint instead.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from safetensors.torch import save_file
from transformers import AutoConfig, Trainer, TrainingArguments, set_seed

from modeling_langcell import (
    DataCollatorForMaskedGenes,
    LangCellForMaskedLM,
    LangCellForPreTraining,
    LangCellForSequenceClassification,
    LangCellProcessor,
)
from modeling_langcell.io.example import load_example
from tests.support import tiny

TEXTS = ["cell type : b cell", "cell type : natural killer cell", "cell type : monocyte .", "a lymphocyte"]
GENES = 64  # The longest cells.
NAMES = ("classification", "masked genes", "pre-training")
WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def joint_rows(processor: LangCellProcessor, cells: AnnData, **options: Any) -> list[dict[str, torch.Tensor]]:
    """Returns cells, of which each has its own description."""
    texts = [TEXTS[cell % len(TEXTS)] for cell in range(len(cells))]
    batch = processor(cells, texts, max_length=GENES, return_tensors="pt", **options)
    return [{name: tensor[cell] for name, tensor in batch.items()} for cell in range(len(cells))]


class Setting:
    """
    A model of a checkpoint with the data to train it on.

    Args:
        name: One of `NAMES`.
        checkpoint: Folder of the checkpoint.
        out: Folder for what the runs write.
        cells: 26 cells with log-transformed raw counts, by default random ones of the tiny checkpoint's genes.
    """

    def __init__(self, name: str, checkpoint: str | Path, out: Path, cells: AnnData | None = None):
        self.name, self.checkpoint, self.out = name, checkpoint, out
        processor = LangCellProcessor.from_pretrained(checkpoint)
        if cells is None:
            rows = joint_rows(processor, tiny.random_cells(26))
        else:
            rows = joint_rows(processor, cells, use_raw=True, counts="log1p")
        self.collator = None
        if name != "pre-training":
            rows = [{"input_ids": row["cell_input_ids"], "attention_mask": row["cell_attention_mask"]} for row in rows]
        if name == "classification":
            rows = [row | {"labels": cell % 3} for cell, row in enumerate(rows)]
        if name == "masked genes":
            self.collator = DataCollatorForMaskedGenes(processor.feature_extractor)
            lengths = [int(row["attention_mask"].sum()) for row in rows]
            rows = [{"input_ids": row["input_ids"][:length]} for row, length in zip(rows, lengths, strict=True)]
        self.training, self.held_out = rows[:16], rows[16:]

    def model(self) -> torch.nn.Module:
        config = AutoConfig.from_pretrained(self.checkpoint)
        config.cell_config.num_labels = 3
        for objective in ("masked_gene", "cell_cell", "cell_text", "matching"):
            setattr(config, f"{objective}_weight", 1.0)  # A checkpoint may have those of its last stage.
        model_class, config = {
            "classification": (LangCellForSequenceClassification, config.cell_config),
            "masked genes": (LangCellForMaskedLM, config.cell_config),
            "pre-training": (LangCellForPreTraining, config),
        }[self.name]
        set_seed(0)  # The checkpoint lacks the heads.
        return model_class.from_pretrained(self.checkpoint, config=config, dtype=torch.float32)

    def trainer(self, run: str, **options) -> Trainer:
        arguments = TrainingArguments(
            str(self.out / self.name / run),
            per_device_train_batch_size=4,
            per_device_eval_batch_size=4,
            max_steps=4,
            learning_rate=1e-2,
            eval_strategy="steps",
            eval_steps=2,
            save_steps=2,
            logging_steps=1,
            use_cpu=True,
            ddp_backend="gloo" if "LOCAL_RANK" in os.environ else None,
            report_to="none",
            disable_tqdm=True,
            **options,
        )
        return Trainer(
            self.model(),
            arguments,
            data_collator=self.collator,
            train_dataset=self.training,
            eval_dataset=self.held_out,
        )


def train_and_resume(setting: Setting) -> dict:
    """Trains without interruption, then from the middle in a new process's state; returns what a test compares."""
    trainer = setting.trainer("whole", load_best_model_at_end=True)
    trainer.train()
    losses = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row]
    again = [trainer.evaluate()["eval_loss"] for _ in range(2)]
    predicted = trainer.predict(setting.held_out)
    shapes = [list(np.shape(part)) for part in _parts(predicted.predictions)]
    torch.manual_seed(99)
    resumed = setting.trainer("resumed")
    resumed.train(resume_from_checkpoint=str(setting.out / setting.name / "whole" / "checkpoint-2"))
    return {
        "processes": trainer.args.world_size,
        "losses": losses,
        "best": trainer.state.best_model_checkpoint,
        "again": again,
        "metrics": sorted(predicted.metrics),
        "predictions": shapes,
        "resumed": [row["eval_loss"] for row in resumed.state.log_history if "eval_loss" in row],
    }


def _parts(predictions) -> list:
    return list(predictions) if isinstance(predictions, tuple) else [predictions]


def joint_losses(checkpoint: Path, out: Path) -> None:
    """Saves the losses and gradients of twelve cells, of which each process has its share with its own texts."""
    processor = LangCellProcessor.from_pretrained(checkpoint)
    rows = joint_rows(processor, tiny.random_cells(12))
    process, processes = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if _joined() else (0, 1)
    own = rows[process * len(rows) // processes : (process + 1) * len(rows) // processes]
    cells = {name: torch.stack([row[name] for row in own]) for name in own[0]}
    texts = torch.stack([cells["input_ids"], cells["attention_mask"]], dim=1)
    distinct, text_index = texts.unique(dim=0, return_inverse=True)
    indexed = cells | {"input_ids": distinct[:, 0], "attention_mask": distinct[:, 1], "text_index": text_index}
    # Other padding in each process, and for each cell one text that is true of it too.
    indexed["input_ids"] = torch.nn.functional.pad(indexed["input_ids"], (0, process))
    indexed["attention_mask"] = torch.nn.functional.pad(indexed["attention_mask"], (0, process))
    is_lymphocyte = (distinct[:, 0] == tiny.WORDS.index("lymphocyte")).any(dim=1)
    indexed["ignored_pairs"] = is_lymphocyte.repeat(len(own), 1)
    config = AutoConfig.from_pretrained(checkpoint)
    for tower in (config.cell_config, config.text_config):
        for name, value in WITHOUT_DROPOUT.items():
            setattr(tower, name, value)
    config.masked_gene_weight = 0
    for name, batch in (("one text a cell", cells), ("own texts", indexed)):
        model = LangCellForPreTraining.from_pretrained(checkpoint, config=config).train()
        model.lm_head.requires_grad_(False)
        trained = torch.nn.parallel.DistributedDataParallel(model) if _joined() else model
        draws = torch.rand(len(rows), 2, generator=torch.Generator().manual_seed(0))
        outputs = trained(**batch, negative_draws=draws)
        outputs.loss.backward()
        found = {key: value.detach() for key, value in outputs.items() if key.endswith("loss")}
        found |= {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        assert len(outputs.logits_per_cell) == len(own)
        if process == 0:
            save_file({key: value.contiguous() for key, value in found.items()}, out / f"{name}.safetensors")
        del outputs, trained


def _joined() -> bool:
    return torch.distributed.is_initialized()


def main(checkpoint: str, out: str, what: str = "trained") -> None:
    torch.set_num_threads(1)
    if what == "losses":
        torch.distributed.init_process_group("gloo")
        joint_losses(Path(checkpoint), Path(out))
    else:
        cells = load_example()[:26]
        for name in NAMES:
            found = train_and_resume(Setting(name, checkpoint, Path(out), cells))
            if not _joined() or torch.distributed.get_rank() == 0:
                (Path(out) / f"{name}.json").write_text(json.dumps(found))
    if _joined():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
