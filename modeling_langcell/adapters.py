# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What an adaptation leaves behind, and checkpoints loaded with it."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from .cards import ADAPTATION, CARD, Prose, read_json, render, require_no_code
from .feature_extraction_langcell import InputError, reason_of
from .fingerprints import weights_of_base
from .hub import fetch
from .modeling_langcell import LangCellForSequenceClassification, LangCellModel
from .processing_langcell import LangCellProcessor
from .shipped import locate, name_of

PROTOTYPES = "prototypes.safetensors"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"

#: Weights are read from files that hold numbers and nothing else, and code that a folder brings is not run.
_PLAIN: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
_WORDS = ("tokenizer.json", "vocab.txt")
_DAMAGED_JSON = "one of its JSON files is cut short, or damaged"
#: What others' messages mean.
_MEANINGS = {
    "model_type": f"its {CONFIG_NAME} is missing, or is of no model",
    "trust_remote_code": "it is of another family, and would run code of its own",
    "no file named model.safetensors": f"{SAFE_WEIGHTS_NAME} is missing",
    "Can't load (feature extractor|processor|image processor)": "processor_config.json is missing, or another model's",
    "not a valid JSON file": _DAMAGED_JSON,
    "ignore_mismatched_sizes": f"the weights are not of the shapes that {CONFIG_NAME} says",
    "deserializing header": f"{SAFE_WEIGHTS_NAME} is damaged",
}

Head = Literal["descriptions", "classes", "prototypes"]


@dataclass(frozen=True)
class Adaptation:
    """
    What a checkpoint was adapted to, and how: the file `adaptation.json` beside the weights.

    Args:
        head: What tells the labels apart: their `descriptions`, a classification head (`classes`), or `prototypes`.
        labels: Labels and their descriptions, in the order of the head's outputs; a description may be empty where
            there is a classification head.
        base: Checkpoint that was adapted.
        several: Whether a cell may have several labels.
        alpha: Weight of the similarity against the matching head.
        prototype_weight: Weight of the prototypes against the descriptions.
        cells: How many cells of each label were learnt from.
        settings: How it was made.
        versions: What it was made with.
        prototypes: `(labels, projection_dim)`; in a file of their own.
        base_weights: Hash of the weights of `base`: the same adapter on others says nothing.
        loaded_from: Folder or id; empty in memory.
    """

    head: Head
    labels: dict[str, str]
    base: str
    several: bool = False
    alpha: float = 1.0
    prototype_weight: float = 0.0
    cells: dict[str, int] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    prototypes: torch.Tensor | None = field(default=None, repr=False, compare=False)
    base_weights: str = ""
    loaded_from: str = ""

    @property
    def classes(self) -> dict[str, Any]:
        """What the config of `LangCellForSequenceClassification` says of the labels."""
        kind = "multi_label_classification" if self.several else "single_label_classification"
        names = dict(enumerate(self.labels))
        return {"id2label": names, "label2id": {name: i for i, name in names.items()}, "problem_type": kind}

    def save(self, folder: Path) -> None:
        """Writes `adaptation.json`, the prototypes if there are any, and the card."""
        said = {name: value for name, value in asdict(self).items() if name not in ("prototypes", "loaded_from")}
        (folder / ADAPTATION).write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        if self.prototypes is not None:
            save_file({"prototypes": self.prototypes.contiguous()}, folder / PROTOTYPES)
        (folder / CARD).write_text(render(folder, Prose()), encoding="utf-8")

    @classmethod
    def load(cls, source: str | Path, revision: str | None = None) -> "Adaptation | None":
        """
        From a folder or a Hub id; none where nothing was adapted.

        Raises:
            InputError: No such folder or repository, or a damaged file.
        """
        return cls._read(fetch(source, revision), source)

    @classmethod
    def _read(cls, folder: Path, source: str | Path) -> "Adaptation | None":
        """From the folder of what goes by the name `source`."""
        if not (folder / ADAPTATION).is_file():
            return None
        try:
            found = cls(**json.loads((folder / ADAPTATION).read_text(encoding="utf-8")))
            found._check()
            if found.head == "prototypes":
                if not (folder / PROTOTYPES).is_file():
                    raise InputError(f"{source} has no {PROTOTYPES}.")
                found = replace(found, prototypes=load_file(folder / PROTOTYPES)["prototypes"])
        except (TypeError, ValueError, KeyError, RecursionError, OSError, SafetensorError) as error:
            raise InputError(f"The adaptation in {source} cannot be read: {reason_of(error)}.") from error
        return replace(found, loaded_from=str(source))

    def _check(self) -> None:
        """
        Raises:
            TypeError: What was read has other types than the class says.
        """
        mappings = {"labels": str, "cells": int, "settings": object, "versions": str}
        right = (
            self.head in get_args(Head)
            and isinstance(self.base, str)
            and all(isinstance(number, (int, float)) for number in (self.alpha, self.prototype_weight))
            and all(
                isinstance(found := getattr(self, name), dict) and all(isinstance(one, kind) for one in found.values())
                for name, kind in mappings.items()
            )
        )
        if not right:
            raise TypeError("its entries are not of the kinds that langcell adapt writes")


def load_checkpoint(
    checkpoint: str | Path | None = None,
    adapter: str | Path | None = None,
    *,
    dtype: str | torch.dtype = "float32",
    revision: str | None = None,
) -> tuple[LangCellModel | LangCellForSequenceClassification, LangCellProcessor, Adaptation | None]:
    """
    A model, its processor, and what it was adapted to.

    Args:
        checkpoint: Folder or Hub id of a LangCell checkpoint, adapted as a whole or not; by default the one that the
            adapter was made from.
        adapter: Folder or Hub id of an adapter or of prototypes. Adapters are merged into the weights.
        dtype: As `AutoModel.from_pretrained`.
        revision: Of the checkpoint.

    Raises:
        InputError: Nothing there that can be loaded, or an adapter that does not fit.
    """
    adaptation = None
    if adapter is not None:
        adapter_folder = fetch(adapter)
        adaptation = Adaptation._read(adapter_folder, adapter)
        if adaptation is None:
            raise InputError(f"{str(adapter)!r} holds no {ADAPTATION}: name what `langcell adapt` made.")
        if adaptation.head != "prototypes":
            for name in (PEFT_CONFIG, PEFT_WEIGHTS):
                if not (adapter_folder / name).is_file():
                    raise InputError(f"{str(adapter)!r} holds no {name}: it is not whole.")
        if (adapter_folder / CONFIG_NAME).is_file():
            raise InputError(f"{str(adapter)!r} is a whole checkpoint: name it as the model, without an adapter.")
        checkpoint = adaptation.base if checkpoint is None else checkpoint
    if checkpoint is None:
        raise InputError("Name a checkpoint, or an adapter.")
    checkpoint = locate(checkpoint)
    folder = _fetch_checkpoint(checkpoint, revision)
    if adapter is None:
        adaptation = Adaptation._read(folder, checkpoint)
    _require_own_files(folder, checkpoint)
    with _loading(checkpoint):
        if adaptation is not None and adaptation.head == "classes":
            model: PreTrainedModel = load_classifier(folder, adaptation, dtype=dtype)
        else:
            model, told = AutoModel.from_pretrained(folder, dtype=dtype, output_loading_info=True, **_PLAIN)
            if told["missing_keys"] and isinstance(model, LangCellModel):
                raise ValueError(f"the weights lack {', '.join(sorted(told['missing_keys'])[:3])}")
    with _loading(checkpoint):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(model, (LangCellModel, LangCellForSequenceClassification)):
        raise InputError(f"{str(checkpoint)!r} holds a {type(model).__name__}, not a LangCellModel.")
    _require_fit(model, processor, checkpoint)
    if adaptation is not None and isinstance(model, LangCellModel):
        model.config.calibration = None  # It is of other weights, or of other scores.
    if not Path(checkpoint).is_dir():
        # To others it is what the Hub calls it, and not a folder of this machine's cache.
        model.name_or_path = model.config.name_or_path = checkpoint
        model.config._commit_hash = folder.name
    if adaptation is not None and adaptation.prototypes is not None:
        shape, meant = tuple(adaptation.prototypes.shape), (len(adaptation.labels), model.config.projection_dim)
        if shape != meant or not adaptation.prototypes.isfinite().all():
            raise InputError(
                f"{PROTOTYPES} of {str(adapter or checkpoint)!r} must be {meant[0]} x {meant[1]} finite numbers."
            )
    if adapter is not None and adaptation is not None:
        if dtype in ("float32", torch.float32) and weights_of_base(model, adaptation.head) != adaptation.base_weights:
            raise InputError(
                f"{str(adapter)!r} was made from {adaptation.base!r}: {name_of(checkpoint)!r} has other weights."
            )
        if adaptation.head != "prototypes":
            model = _merge(model, adapter_folder, adapter)
    return model, processor, adaptation


def load_processor(checkpoint: str | Path, *, revision: str | None = None) -> LangCellProcessor:
    """
    The processor of a checkpoint, whose weights are not read; arguments as for `load_checkpoint`.

    Raises:
        InputError: Nothing there that can be loaded.
    """
    checkpoint = locate(checkpoint)
    folder = _fetch_checkpoint(checkpoint, revision)
    _require_own_files(folder, checkpoint)
    with _loading(checkpoint):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(processor, LangCellProcessor):
        raise InputError(f"{str(checkpoint)!r} holds the processor of another model, a {type(processor).__name__}.")
    return processor


def _fetch_checkpoint(checkpoint: str | Path, revision: str | None) -> Path:
    try:
        return fetch(checkpoint, revision)
    except InputError as error:
        raise InputError(f"No LangCell checkpoint could be loaded: {error}") from error


def _require_own_files(folder: Path, source: object) -> None:
    """
    Raises:
        InputError: A file is missing that transformers would do without, weights are said to lie somewhere else, or the
            config names code.
    """
    require_no_code(folder)
    if (folder / CONFIG_NAME).is_file() and not any((folder / name).is_file() for name in _WORDS):
        raise InputError(f"{str(source)!r} has no {_WORDS[0]}, the words of its texts: take a whole copy.")
    for index in folder.glob("*.index.json"):
        shards = read_json(index).get("weight_map")
        here = {path.name for path in folder.iterdir()}
        if not isinstance(shards, dict) or not here.issuperset(map(str, shards.values())):
            raise InputError(f"{source}: {index.name} must name files of this folder, and names others.")


def _require_fit(model: Any, processor: Any, source: object) -> None:
    """
    Raises:
        InputError: Weights that are no numbers, or a processor that is another family's or gives ids not the model's.
    """
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{str(source)!r}: {name} holds values that are no numbers, which would spread to all.")
    if not isinstance(processor, LangCellProcessor):
        raise InputError(f"{str(source)!r} holds the processor of another model, a {type(processor).__name__}.")
    config, joint = model.config, isinstance(model, LangCellModel)
    genes, extractor = config.cell_config if joint else config, processor.feature_extractor
    fits = [("genes", len(extractor), genes.vocab_size, extractor.max_length, genes.max_position_embeddings)]
    if joint:
        words, tokenizer = config.text_config, processor.tokenizer
        most = tokenizer.model_max_length
        fits.append(("words", len(tokenizer), words.vocab_size, most, words.max_position_embeddings))
    for what, known, embedded, longest, places in fits:
        if known != embedded or longest > places:
            raise InputError(
                f"{str(source)!r}: its processor gives {known:,} {what}, up to {longest:,.8g} at once, and its model "
                f"takes {embedded:,}, up to {places:,}: they are not of one checkpoint, or not whole."
            )


@contextmanager
def _loading(source: object) -> Iterator[None]:
    """What transformers, and what it rests on, raise for a folder that is damaged, or none of ours, in our words."""
    try:
        yield
    except Exception as error:
        said = str(error).strip()
        reason = next((meaning for mark, meaning in _MEANINGS.items() if re.search(mark, said)), reason_of(error))
        if isinstance(error, StrictDataclassError):  # It says first which validator it was.
            field = re.search(r"Field '(\w+)'", said)
            reason = f"{field[1]} is of the wrong kind" if field else said.splitlines()[-1].partition("Error: ")[2]
        elif isinstance(error, json.JSONDecodeError):
            reason = _DAMAGED_JSON
        elif isinstance(error, (AttributeError, TypeError, IndexError)):
            reason = "one of its JSON files says what none can"
        raise InputError(
            f"No LangCell checkpoint could be loaded from {str(source)!r}: {reason.rstrip('.')}."
        ) from error


def load_classifier(
    checkpoint: str | Path, adaptation: Adaptation, **options: Any
) -> LangCellForSequenceClassification:
    """The cell tower of a joint checkpoint with a head for the labels; new, unless the checkpoint has one."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # That the text tower is left out and the head is new needs no report.
    try:
        return LangCellForSequenceClassification.from_pretrained(
            checkpoint, use_safetensors=True, **options, **adaptation.classes
        )
    finally:
        logging.set_verbosity(verbosity)


def _merge(model: PreTrainedModel, folder: Path, adapter: str | Path) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError('Adapters need peft: pip install "modeling-langcell[adapt]".') from error
    try:
        with quiet_peft():
            warnings.filterwarnings("error", message="Found missing adapter keys")  # It would change nothing, silently.
            return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # peft says much that is for programmers, and of weights which ones there are.
        raise InputError(
            f"The adapter {str(adapter)!r} does not fit its checkpoint: {PEFT_CONFIG} or {PEFT_WEIGHTS} is damaged, or "
            "of another model. Take a whole copy, or adapt again."
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warning that peft calls a property of transformers by its old name."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def versions() -> dict[str, str]:
    """What an adaptation was made with."""
    return {name: version(name) for name in ("modeling-langcell", "torch", "transformers", "peft")}


__all__ = ["Adaptation", "load_checkpoint", "load_classifier", "load_processor"]
