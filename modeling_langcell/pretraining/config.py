# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a pre-training run can be told: the fields of its YAML file."""

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml

from ..model.errors import InputError

#: The least that a number can be, where that is not 0.
_LEAST = dict.fromkeys(("batch_tokens", "length_groups", "accumulation", "evaluate_every", "held_out_cells"), 1)
_LEAST |= {"max_genes": 2, "max_tokens": 2}
_SHARES = {"gene_dropout", "panel_share", "ancestor_share", "aspect_share", "name_only_share", "averaging"}
_SHARES |= {"text_whitening"}


@dataclass
class PretrainingConfig:
    """
    One pre-training run; the fields of its YAML file.

    Args:
        corpus: Folder of the corpus; `langcell corpus` makes one.
        output: Folder for the checkpoint.
        text_tower: A BERT sentence encoder to start from: a folder, a Hub id, or `package://NAME/FOLDER` for one that
            an installed Python package carries.
        cell_tower: A Geneformer-style checkpoint to start from, a folder or a Hub id: BERT over the corpus's genes, in
            their order (`langcell corpus --vocabulary` takes Geneformer's). By default the tower starts anew.
        start: A LangCell checkpoint to go on from; then its towers are the start, and `model` changes its settings and
            the number of its positions.
        model: Overrides of `LangCellConfig`: geometry, temperatures, masking, and the weights of the objectives (an
            objective of weight 0 is not computed, and what only it would train is left alone). The geometry of a
            tower that has a start comes from there, but for the number of positions.
        train_text_tower: Train the text tower's own layers too, and not only its cross-attention. Frozen, it reads
            every wording once a run.
        train_text_projection: Train the projection of the texts, or keep its start: the principal components of what
            the sentence encoder makes of the corpus's descriptions. Kept, types never seen stay where language puts
            them.
        text_whitening: How far the components of that start are made alike: at 0 each keeps its own spread, at 1 all
            have the same. What sets near types apart then weighs more, beside what sets lineages apart.
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
        aspect_share: Share of the cells whose description speaks of other aspects too (tissue, disease, assay, ...):
            of each that is known, half of the time.
        sibling_texts: At most so many descriptions in a batch that are of none of its cells, but of types beside
            theirs in the ontology.
        name_only_share: Share of the descriptions that are the type's name or a synonym without its definition.
        max_tokens: Longest description; the saved processor cuts as with `max_genes`.
        balance: 1 draws cells as they come, 0 every type of every study equally often.
        batch_tokens: Genes of a batch, over all processes: as many cells as have no more of them, `max_genes` at most
            each, before some are left out.
        length_groups: In how many groups of similar length a process reads its cells, to pad less.
        accumulation: Batches a step.
        steps, learning_rate, warmup_steps, schedule, weight_decay, max_gradient_norm: The optimisation; AdamW with
            linear warm-up, then decay to nothing. A run of no steps saves what others can start from.
        averaging: Decay, a step, of a running average of the weights, which is what is saved; 0 saves the last ones.
        precision: `no` or `bf16`.
        gradient_checkpointing: Compute a layer again on the way back and do not keep it: less memory, more time.
        compile: Compile the towers with `torch.compile`.
        workers: Processes that prepare batches; 0 prepares them between the steps.
        checkpoint_every: Steps between checkpoints to go on from; 0 makes them only when told to stop.
        held_out: A corpus of other studies with the same genes (`langcell corpus --vocabulary`): how well the model
            does there is measured as it trains.
        evaluate_every: Steps between these measurements.
        held_out_cells: At most so many cells are measured, drawn once.
        push_to: Hub id of a repository to push the finished checkpoint to.
        saved_dtype: What the weights are saved in; they load as float32 whatever it is.
        seed: Of everything drawn.
    """

    corpus: str
    output: str
    text_tower: str | None = None
    cell_tower: str | None = None
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train_text_tower: bool = True
    train_text_projection: bool = True
    text_whitening: float = 0.0
    train_cell_tower: bool = True
    gene_names_from: str | None = None
    gene_average_start: bool = False
    max_genes: int = 512
    gene_dropout: float = 0.5
    panel_share: float = 0.0
    ancestor_share: float = 0.5
    aspect_share: float = 0.0
    sibling_texts: int = 0
    name_only_share: float = 0.5
    max_tokens: int = 64
    balance: float = 0.5
    batch_tokens: int = 32768
    length_groups: int = 4
    accumulation: int = 1
    steps: int = 1000
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    schedule: Literal["cosine", "linear"] = "cosine"
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    averaging: float = 0.0
    precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    workers: int = 0
    checkpoint_every: int = 100
    held_out: str | None = None
    evaluate_every: int = 100
    held_out_cells: int = 1000
    push_to: str | None = None
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
        try:
            values = yaml.safe_load(Path(path).read_text()) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read as YAML: {error}") from error
        if not isinstance(values, dict):
            raise InputError(f"{path} must map fields to values.")
        for override in overrides:
            _override(values, override)
        if "passes" in values:  # What it was called before.
            values.setdefault("length_groups", values.pop("passes"))
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(map(str, values)) - set(known)):
            raise InputError(f"{path}: unknown field(s) {', '.join(unknown)}; known are {', '.join(known)}.")
        if missing := [name for name in ("corpus", "output") if not values.get(name)]:
            raise InputError(f"{path}: {' and '.join(missing)} must be set.")
        return cls(**{name: _checked(f"{path}: {name}", known[name], value) for name, value in values.items()})


def _override(values: dict[str, Any], override: str) -> None:
    """Sets what `key=value` says, or `parent.key=value` in the parent's mapping."""
    key, separator, value = override.partition("=")
    if not separator:
        raise InputError(f"{override!r} is not of the form key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"{override!r}: {parent} holds a value, and nothing can be set in it.")
    try:
        values[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"{override!r}: its value cannot be read as YAML: {error}") from error


def _checked(name: str, known: Field, value: Any) -> Any:
    """The value of a field, if it is of the field's kind."""
    kind: Any = known.type
    if kind in (int, float):
        return _checked_number(name, known, value)
    if kind is bool and not isinstance(value, bool):
        raise InputError(f"{name} must be true or false, not {value!r}.")
    if get_origin(kind) is dict and not isinstance(value, dict):
        raise InputError(f"{name} must map settings to values, not be {value!r}.")
    if get_origin(kind) is Literal and value not in get_args(kind):
        raise InputError(f"{name} must be one of {', '.join(get_args(kind))}, not {value!r}.")
    optional = type(None) in get_args(kind)
    if (kind is str or optional) and not (isinstance(value, str) or (optional and value is None)):
        raise InputError(f"{name} must be a text, not {value!r}.")
    return value


def _checked_number(name: str, known: Field, value: Any) -> int | float:
    try:
        number = float("nan" if isinstance(value, bool) else value)  # YAML takes 1e-3, without a point, for a text.
    except (TypeError, ValueError):
        number = math.nan
    if known.type is float and not math.isfinite(number):
        raise InputError(f"{name} must be a number, not {value!r}.")
    if known.type is int and not number.is_integer():
        raise InputError(f"{name} must be a whole number, not {value!r}.")
    if number < (least := _LEAST.get(known.name, 0)):
        raise InputError(f"{name} must be at least {least}, not {value!r}.")
    if number > 1 and known.name in _SHARES:
        raise InputError(f"{name} must be between 0 and 1, not {value!r}.")
    return int(number) if known.type is int else number


__all__ = ["PretrainingConfig"]
