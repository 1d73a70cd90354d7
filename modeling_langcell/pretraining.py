# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training: its configuration, and the loop on Accelerate."""

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import get_cosine_schedule_with_warmup

from .batches import CellTextBatches, FrozenTexts
from .corpus import Corpus
from .feature_extraction_langcell import InputError
from .modeling_langcell import LangCellForPreTraining, LangCellModel
from .processing_langcell import LangCellProcessor
from .tower_starts import start_model, start_text_projection


@dataclass
class PretrainingConfig:
    """
    One pre-training run; the fields of its YAML file.

    Args:
        corpus: Folder of the corpus; `langcell corpus` makes one.
        output: Folder for the checkpoint.
        text_tower: A BERT sentence encoder to start from: a folder, a Hub id, or `package://NAME/FOLDER` for one that
            an installed Python package carries.
        start: A LangCell checkpoint to go on from; then its towers are the start, and `model` changes its settings.
        model: Overrides of `LangCellConfig`; the text tower's geometry comes from `text_tower`.
        train_text_tower: Train the text tower's own layers too, and not only its cross-attention. Frozen, it reads
            every wording once a run.
        train_text_projection: Train the projection of the texts, or keep its start: the principal components of what
            the sentence encoder makes of the corpus's descriptions. Kept, types never seen stay where language puts
            them.
        train_cell_tower: Train the cell tower, or keep it as it is while the matching is learnt.
        gene_names_from: NCBI `gene_info` table: gene embeddings start from what the text tower makes of each gene's
            symbol and full name. By default they start at random.
        gene_average_start: Start the cell tower's last layer as an average over the genes, and not as noise: a small
            tower then tells cells apart from its first steps on.
        max_genes: Longest cell, `<cls>` included. The processor that is saved cuts there too (or where an earlier run
            did, if later): positions beyond learn nothing.
        gene_dropout: A random share of a cell's genes, up to this, is left out each time it is seen.
        panel_share: Share of the cells that are seen with only those of their genes that another study of the corpus,
            drawn at random, has measured: which genes a matrix has must not tell the study.
        ancestor_share: Share of the cells that are described by an ancestor of their type.
        sibling_texts: At most so many descriptions in a batch that are of none of its cells, but of types beside
            theirs in the ontology.
        name_only_share: Share of the descriptions that are the type's name or a synonym without its definition.
        max_tokens: Longest description; the saved processor cuts as with `max_genes`.
        balance: 1 draws cells as they come, 0 every type of every study equally often.
        averaging: Decay, a step, of a running average of the weights, which is what is saved; 0 saves the last ones.
        batch_size, steps, learning_rate, warmup_steps, weight_decay, max_gradient_norm: The optimisation; AdamW with
            linear warm-up and cosine decay.
        precision: `no` or `bf16`.
        saved_dtype: What the weights are saved in; they load as float32 whatever it is.
        seed: Of everything drawn.
    """

    corpus: str
    output: str
    text_tower: str | None = None
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train_text_tower: bool = True
    train_text_projection: bool = True
    train_cell_tower: bool = True
    gene_names_from: str | None = None
    gene_average_start: bool = False
    max_genes: int = 512
    gene_dropout: float = 0.5
    panel_share: float = 0.0
    ancestor_share: float = 0.5
    sibling_texts: int = 0
    name_only_share: float = 0.5
    max_tokens: int = 64
    balance: float = 0.5
    averaging: float = 0.0
    batch_size: int = 64
    steps: int = 1000
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    precision: str = "no"
    saved_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: int = 0

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "PretrainingConfig":
        """
        Reads a YAML file and `key=value` overrides (`model.temperature=0.07` reaches into `model`).

        Raises:
            InputError: No such file, a field that does not exist, or a value of the wrong kind.
        """
        if not Path(path).is_file():
            raise InputError(f"No configuration at {path}.")
        values = yaml.safe_load(Path(path).read_text()) or {}
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise InputError(f"{override!r} is not of the form key=value.")
            *parents, last = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = yaml.safe_load(value)
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise InputError(f"{path}: unknown field(s) {', '.join(unknown)}; known are {', '.join(known)}.")
        if missing := [name for name in ("corpus", "output") if not values.get(name)]:
            raise InputError(f"{path}: {' and '.join(missing)} must be set.")
        config = cls(**values)
        for name, f in known.items():
            value = getattr(config, name)
            if f.type in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise InputError(f"{path}: {name} must be a number, not {value!r}.")
        return config


# ---------------------------------------------------------------------- the loop


def pretrain(config: PretrainingConfig) -> Path:
    """
    Trains as `config` says. The folder `config.output` gets model and processor, `training.json` (configuration and
    versions of this run and of those it goes on from) and, line by line while it trains, `losses.jsonl`.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: No corpus, or one without labels, or starts that cannot be used.
    """
    corpus = Corpus(config.corpus)
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.precision)
    model, processor = start_model(config, corpus.gene_vocabulary)
    batches = CellTextBatches(corpus, processor, config)
    frozen_texts = FrozenTexts(model, processor, config.max_tokens)
    if config.start is None:
        model.text_model.eval()
        start_text_projection(model, frozen_texts(batches.wordings))
    model.text_projection.requires_grad_(config.train_text_projection)
    model.cell_model.requires_grad_(config.train_cell_tower)
    if not config.train_text_tower:
        for name, parameter in model.text_model.named_parameters():
            parameter.requires_grad_(".crossattention." in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(_decay_groups(trained, config.weight_decay), lr=config.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    model.train()
    if not config.train_text_tower:
        accelerator.unwrap_model(model).text_model.eval()  # A frozen encoder should read alike each time.

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging)) if config.averaging else None
    main = accelerator.is_main_process
    with (
        Progress(*columns, disable=not main) as progress,
        open(output / "losses.jsonl" if main else os.devnull, "w") as log,
    ):
        task = progress.add_task("Training", total=config.steps)
        started = time.monotonic()
        for step, batch in enumerate(islice(batches, config.steps), start=1):
            wordings = batch.pop("wordings")
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            if not config.train_text_tower:
                batch["text_pooled"] = frozen_texts(wordings)
            outputs = model(**batch)
            accelerator.backward(outputs.loss)
            norm = accelerator.clip_grad_norm_(trained, config.max_gradient_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if averaged is not None:
                averaged.update_parameters(model)
            losses = {key: value.item() for key, value in outputs.items() if key.endswith("loss")}
            if not math.isfinite(losses["loss"]):
                raise RuntimeError(f"The loss is {losses['loss']} at step {step}: lower learning_rate.")
            print(json.dumps({"step": step, **losses, "gradient_norm": float(norm)}), file=log, flush=True)
            rate = step * config.batch_size / (time.monotonic() - started)
            progress.update(task, advance=1, description=f"loss {losses['loss']:.3f}  {rate:.1f} cells/s")

    accelerator.wait_for_everyone()
    if main:
        _save(accelerator.unwrap_model(model if averaged is None else averaged.module), processor, config)
    return output


def _save(model: LangCellForPreTraining, processor: LangCellProcessor, config: PretrainingConfig) -> None:
    saved: LangCellModel = model
    if not model.config.masked_gene_weight:  # An untrained head is no part of a checkpoint.
        saved = LangCellModel(model.config)
        saved.load_state_dict(
            {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head.")}
        )
    saved.to(getattr(torch, config.saved_dtype)).save_pretrained(config.output)
    # Half precision saves space on disk; what loads computes in float32 unless it is told otherwise.
    for part in (saved.config, saved.config.cell_config, saved.config.text_config):
        part.dtype = torch.float32
    saved.config.save_pretrained(config.output)
    processor.save_pretrained(config.output)
    versions = {name: version(name) for name in ("modeling-langcell", "torch", "transformers", "accelerate")}
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    runs = [*_runs_before(config), {"config": settings, "versions": versions}]
    Path(config.output, "training.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def _runs_before(config: PretrainingConfig) -> list[dict[str, Any]]:
    """What is on record of how the checkpoint that a run starts from was trained."""
    record = Path(config.start or "", "training.json")
    return json.loads(record.read_text())["runs"] if config.start and record.is_file() else []


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and normalisations do not."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


__all__ = ["PretrainingConfig", "pretrain"]
