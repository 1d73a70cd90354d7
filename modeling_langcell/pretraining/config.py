# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The settings of a pre-training run: the fields of its YAML file."""

import math
from collections.abc import Sequence
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from ..io.documents import parse_yaml, read_yaml
from ..model.errors import InputError

#: Smallest allowed values, for the fields where that is not 0.
_MINIMA = dict.fromkeys(("batch_tokens", "length_groups", "accumulation", "evaluate_every", "held_out_cells"), 1)
_MINIMA |= {"max_genes": 2, "max_tokens": 2}
_SHARES = {"gene_dropout", "panel_share", "ancestor_share", "aspect_share", "name_only_share", "averaging"}
_SHARES |= {"text_whitening"}


@dataclass
class PretrainingConfig:
    """
    The settings of one pre-training run; the fields of its YAML file.

    Args:
        corpus: Folder of the corpus; `langcell corpus` builds one.
        output: Folder for the checkpoint.
        text_tower: BERT sentence encoder that initializes the text tower: a folder, a Hub id, or
            `package://NAME/FOLDER` for a folder of an installed Python package.
        cell_tower: Geneformer-style checkpoint that initializes the cell tower, a folder or a Hub id: a BERT over the
            corpus's genes in their order (`langcell corpus --vocabulary` takes Geneformer's). Random by default.
        start: LangCell checkpoint to continue from. It initializes both towers; `model` then changes its settings and
            its number of positions.
        model: Overrides for `LangCellConfig`: geometry, temperatures, masking, and the weights of the objectives. An
            objective of weight 0 is not computed, and parameters that only it would train are frozen. The geometry of
            an initialized tower comes from its checkpoint, except for the number of positions.
        train_text_tower: Train the text tower's own layers, not only its cross-attention. A frozen text tower
            encodes each text once per run.
        train_text_projection: Train the text projection, or keep its initial value: the principal components of the
            sentence encoder's states of the corpus's descriptions. A frozen projection leaves unseen types where
            language puts them.
        text_whitening: Strength, from 0 to 1, of whitening in that initial value: at 0 each component keeps its own
            spread, at 1 all have the same. Whitening gives differences between similar types more weight, relative to
            differences between lineages.
        train_cell_tower: Train the cell tower, or freeze it while the matching is trained.
        gene_names_from: NCBI `gene_info` table. Gene embeddings are initialized from the text encoder's states of each
            gene's symbol and full name; by default they are random.
        gene_average_start: Initialize the cell tower's last layer as an average over the genes instead of at random: a
            small tower then separates cells from the first steps on.
        max_genes: Maximum length of a cell, including `<cls>`. The saved processor truncates there too, or at the
            longer maximum of an earlier run: positions beyond it are not trained.
        gene_dropout: Upper bound of the random share of genes dropped from a cell each time it is drawn.
        panel_share: Share of the cells that keep only genes measured by another study of the corpus, drawn at random,
            so that the set of measured genes does not give the study away.
        rank_noise: Upper bound of the random spread of noise that is added to the logarithms of the ranks of a cell's
            genes each time it is drawn: studies count some genes better than others, so that rankings differ where
            cells do not.
        ancestor_share: Share of the cells that are described by an ancestor of their type.
        aspect_share: Share of the cells whose description mentions other aspects too (tissue, disease, assay, ...):
            each known aspect with a probability of one half.
        sibling_texts: Maximum number of extra descriptions in a batch that fit none of its cells: those of siblings
            of their types in the ontology.
        name_only_share: Share of the descriptions that are the type's name or a synonym without its definition.
        max_tokens: Maximum length of a description; the saved processor truncates there as with `max_genes`.
        balance: Exponent of a group's size in sampling, where a group is a type in a study: 1 draws all cells equally
            often, 0 draws all groups equally often.
        batch_tokens: Number of genes in a batch, over all processes. Cells are counted with at most `max_genes` genes,
            before any are dropped.
        length_groups: Number of groups of similar length in which a process reads its cells, to pad less.
        accumulation: Number of batches per step.
        steps, learning_rate, warmup_steps, schedule, weight_decay, max_gradient_norm: The optimization: AdamW with
            linear warm-up, then decay to zero. A run of 0 steps saves the initialized model for others to start from.
        averaging: Decay per step of a running average of the weights, which is saved in their place; 0 turns it off.
        precision: `no` or `bf16`.
        gradient_checkpointing: Recompute layers in the backward pass instead of storing them: less memory, more time.
        compile: Compile the towers with `torch.compile`.
        workers: Number of processes that prepare batches; 0 prepares them between the steps.
        checkpoint_every: Steps between checkpoints to resume from; 0 saves one only when the run is stopped.
        held_out: Corpus of different studies with the same genes (`langcell corpus --vocabulary`) to validate on.
        evaluate_every: Steps between validations.
        held_out_cells: Maximum number of cells to validate on, drawn once.
        push_to: Hub id of a repository to push the finished checkpoint to.
        saved_dtype: Data type of the saved weights; they load as float32 in any case.
        seed: Seed of all random draws.
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
    rank_noise: float = 0.0
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
            InputError: The file does not exist, or it has an unknown field or a value of the wrong kind.
        """
        if not Path(path).is_file():
            raise InputError(f"No configuration at {path}.")
        values = read_yaml(path) or {}
        if not isinstance(values, dict):
            raise InputError(f"{path} must map fields to values.")
        for override in overrides:
            _override(values, override)
        if "passes" in values:  # The former name of length_groups.
            values.setdefault("length_groups", values.pop("passes"))
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(map(str, values)) - set(known)):
            raise InputError(f"{path}: unknown field(s) {', '.join(unknown)}; known are {', '.join(known)}.")
        if missing := [name for name in ("corpus", "output") if not values.get(name)]:
            raise InputError(f"{path}: {' and '.join(missing)} must be set.")
        return cls(**{name: _checked(f"{path}: {name}", known[name], value) for name, value in values.items()})


def _override(values: dict[str, Any], override: str) -> None:
    """Applies an override `key=value`, or `parent.key=value`, to a mapping."""
    key, separator, value = override.partition("=")
    if not separator:
        raise InputError(f"{override!r} is not of the form key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise InputError(f"{override!r}: {parent} holds a value, not a mapping.")
    values[last] = parse_yaml(value, repr(override))


def _checked(name: str, known: Field, value: Any) -> Any:
    """
    Returns the value of a field.

    Raises:
        InputError: The value is of the wrong kind; the message begins with `name`.
    """
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
        number = float("nan" if isinstance(value, bool) else value)  # YAML reads 1e-3, without a point, as text.
    except (TypeError, ValueError):
        number = math.nan
    if known.type is float and not math.isfinite(number):
        raise InputError(f"{name} must be a number, not {value!r}.")
    if known.type is int and not number.is_integer():
        raise InputError(f"{name} must be a whole number, not {value!r}.")
    if number < (minimum := _MINIMA.get(known.name, 0)):
        raise InputError(f"{name} must be at least {minimum}, not {value!r}.")
    if number > 1 and known.name in _SHARES:
        raise InputError(f"{name} must be between 0 and 1, not {value!r}.")
    return int(number) if known.type is int else number


__all__ = ["PretrainingConfig"]
