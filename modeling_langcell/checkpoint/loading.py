# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What an adaptation leaves behind, and checkpoints loaded with it."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel, AutoProcessor, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from ..model.errors import InputError, reason_of
from ..model.modeling_langcell import LangCellForSequenceClassification, LangCellModel
from ..model.processing_langcell import LangCellProcessor
from .adaptation_record import PEFT_CONFIG, PEFT_WEIGHTS, PROTOTYPES, Adaptation
from .builtin import display_name, resolve_checkpoint
from .files import ADAPTATION, read_json, require_no_code
from .fingerprint import weights_of_base
from .repository import fetch

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
    checkpoint = resolve_checkpoint(checkpoint)
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
                f"{str(adapter)!r} was made from {adaptation.base!r}: {display_name(checkpoint)!r} has other weights."
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
    checkpoint = resolve_checkpoint(checkpoint)
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


__all__ = ["load_checkpoint", "load_classifier", "load_processor"]
