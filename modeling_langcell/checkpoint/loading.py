# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Loads checkpoints, and the adapters made from them."""

import json
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModel, AutoProcessor, PreTrainedConfig, PreTrainedModel
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, logging

from ..model.configuration_langcell import LangCellConfig
from ..model.errors import InputError, reason_of
from ..model.modeling_langcell import LangCellCellModel, LangCellForSequenceClassification, LangCellModel
from ..model.processing_langcell import LangCellProcessor
from .adaptation_record import PROTOTYPES, Adaptation
from .adapters import require_own_adapter
from .builtin import display_name, resolve_checkpoint
from .config import build_model
from .files import ADAPTATION, PEFT_CONFIG, PEFT_WEIGHTS, PROCESSOR, TOKENIZER
from .fingerprint import weights_of_base
from .repository import fetch
from .screening import require_harmless
from .weights import require_weights_for

#: Weights are read only from safetensors, and no code in the folder is run.
_PLAIN: dict[str, Any] = {"use_safetensors": True, "trust_remote_code": False}
_DAMAGED_JSON = "one of its JSON files is truncated or damaged"
#: Explanations of messages from transformers and safetensors.
_MEANINGS = {
    "model_type": f"its {CONFIG_NAME} is missing, or names no model",
    "trust_remote_code": "it belongs to a different model family, and would run its own code",
    "no file named model.safetensors": f"{SAFE_WEIGHTS_NAME} is missing",
    "Can't load (feature extractor|processor|image processor)": f"{PROCESSOR} is missing, or of a different model",
    "not a valid JSON file": _DAMAGED_JSON,
    "ignore_mismatched_sizes": f"the weights do not have the shapes that {CONFIG_NAME} gives",
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
    Loads a model, its processor, and the record of its adaptation if there is one.

    Args:
        checkpoint: Folder or Hub id of a LangCell checkpoint, fully adapted or not; by default the one that the
            adapter was made from.
        adapter: Folder or Hub id of an adapter or of prototypes. Adapters are merged into the weights.
        dtype: Type of the weights, the same as for `AutoModel.from_pretrained`.
        revision: Revision of the checkpoint on the Hub.

    Raises:
        InputError: The checkpoint cannot be loaded, or the adapter does not fit it.
    """
    adaptation = None
    if adapter is not None:
        adapter_folder = fetch(adapter)
        adaptation = _read_adapter(adapter_folder, adapter)
        checkpoint = adaptation.base if checkpoint is None else checkpoint
    if checkpoint is None:
        raise InputError("Give a checkpoint, an adapter, or both.")
    checkpoint = resolve_checkpoint(checkpoint)
    folder = _fetch_checkpoint(checkpoint, revision)
    if adapter is None:
        adaptation = Adaptation.read(folder, checkpoint)
    model: Any = load_model(folder, adaptation, source=checkpoint, dtype=dtype)
    processor = _read_processor(folder, checkpoint)
    if not isinstance(model, (LangCellModel, LangCellForSequenceClassification)):
        raise InputError(f"{str(checkpoint)!r} holds a {type(model).__name__}, not a LangCellModel.")
    require_same_vocabularies(model.config, processor, checkpoint)
    if adaptation is not None and isinstance(model, LangCellModel):
        model.config.calibration = None  # It was fitted on different weights, or on different scores.
    if not Path(checkpoint).is_dir():
        # Records name the Hub id, not a folder in this machine's cache.
        model.name_or_path = model.config.name_or_path = checkpoint
        model.config._commit_hash = folder.name
    if adaptation is not None and adaptation.prototypes is not None:
        shape, expected = tuple(adaptation.prototypes.shape), (len(adaptation.labels), model.config.projection_dim)
        if shape != expected or not adaptation.prototypes.isfinite().all():
            raise InputError(
                f"{PROTOTYPES} of {str(adapter or checkpoint)!r} must be {expected[0]} x {expected[1]} finite numbers."
            )
    if adapter is not None and adaptation is not None:
        if dtype in ("float32", torch.float32) and weights_of_base(model, adaptation.head) != adaptation.base_weights:
            raise InputError(
                f"{str(adapter)!r} was made from {adaptation.base!r}, but {display_name(checkpoint)!r} has different "
                "weights."
            )
        if adaptation.head != "prototypes":
            model = _merge(model, adapter_folder, adapter)
    return model, processor, adaptation


def load_model(
    folder: Path, adaptation: Adaptation | None, *, source: str | Path, dtype: str | torch.dtype = "float32"
) -> PreTrainedModel:
    """
    Loads the model in a folder, without its processor and without merging an adapter.

    Args:
        folder: The folder.
        adaptation: Adaptation of the checkpoint, which decides the class of the model.
        source: Folder or Hub id as the user named it, for messages.
        dtype: Type of the weights.

    Raises:
        InputError: The model cannot be loaded, or its weights are not finite.
    """
    _require_harmless(folder, source)
    with _explaining(source), _without_bars():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        require_weights_for(partial(build_model, config), folder, repr(str(source)))
        if adaptation is not None and adaptation.head == "classes":
            model: PreTrainedModel = load_classifier(folder, adaptation, dtype=dtype)
        else:
            model, report = AutoModel.from_pretrained(folder, dtype=dtype, output_loading_info=True, **_PLAIN)
            if report["missing_keys"] and isinstance(model, (LangCellModel, LangCellCellModel)):
                raise ValueError(f"the weights lack {', '.join(sorted(report['missing_keys'])[:3])}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise InputError(f"{str(source)!r}: {name} holds values that are not finite.")
    return model


def load_processor(checkpoint: str | Path, *, revision: str | None = None) -> LangCellProcessor:
    """
    Loads the processor of a checkpoint without reading its weights. Arguments are the same as for `load_checkpoint`.

    Raises:
        InputError: The processor cannot be loaded.
    """
    checkpoint = resolve_checkpoint(checkpoint)
    folder = _fetch_checkpoint(checkpoint, revision)
    _require_harmless(folder, checkpoint)
    return _read_processor(folder, checkpoint)


def require_same_vocabularies(config: PreTrainedConfig, processor: LangCellProcessor, source: str | Path) -> None:
    """
    Checks that a processor gives the genes and word pieces that a model embeds, and no more than the model takes.

    Raises:
        InputError: The numbers of genes, of word pieces, or their limits differ.
    """
    joint, extractor = isinstance(config, LangCellConfig), processor.feature_extractor
    genes = config.cell_config if joint else config
    pairs = [("genes", len(extractor), genes.vocab_size, extractor.max_length, genes.max_position_embeddings)]
    if joint:
        words, tokenizer = config.text_config, processor.tokenizer
        longest = tokenizer.model_max_length
        pairs.append(("word pieces", len(tokenizer), words.vocab_size, longest, words.max_position_embeddings))
    for what, known, embedded, longest, positions in pairs:
        if known != embedded or longest > positions:
            raise InputError(
                f"{str(source)!r}: its processor gives {known:,} {what}, at most {longest:,.8g} at once, and its model "
                f"takes {embedded:,}, at most {positions:,}. They are of different checkpoints, or one is incomplete."
            )


def _fetch_checkpoint(checkpoint: str | Path, revision: str | None) -> Path:
    try:
        return fetch(checkpoint, revision)
    except InputError as error:
        raise InputError(f"No LangCell checkpoint could be loaded: {error}") from error


def _read_adapter(folder: Path, source: str | Path) -> Adaptation:
    """
    Reads the record of an adapter.

    Raises:
        InputError: The folder holds no adapter, an incomplete adapter, or a full checkpoint.
    """
    adaptation = Adaptation.read(folder, source)
    if adaptation is None:
        raise InputError(f"{str(source)!r} has no {ADAPTATION}: give a folder that `langcell adapt` made.")
    if adaptation.head != "prototypes":
        for name in (PEFT_CONFIG, PEFT_WEIGHTS):
            if not (folder / name).is_file():
                raise InputError(f"{str(source)!r} has no {name}: it is incomplete.")
        require_own_adapter(folder, repr(str(source)))
    if (folder / CONFIG_NAME).is_file():
        raise InputError(f"{str(source)!r} is a full checkpoint: give it as the model, without an adapter.")
    return adaptation


def _read_processor(folder: Path, source: str | Path) -> LangCellProcessor:
    with _explaining(source):
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
    if not isinstance(processor, LangCellProcessor):
        raise InputError(f"{str(source)!r} holds the processor of a different model, a {type(processor).__name__}.")
    return processor


def _require_harmless(folder: Path, source: str | Path) -> None:
    """
    Checks the folder of a LangCell before transformers reads it.

    Raises:
        InputError: The tokenizer is missing, or `require_harmless` refuses the folder.
    """
    require_harmless(folder, repr(str(source)))
    if (folder / CONFIG_NAME).is_file() and not any((folder / name).is_file() for name in (TOKENIZER, "vocab.txt")):
        raise InputError(f"{str(source)!r} has no {TOKENIZER}, the vocabulary for its texts: use a complete copy.")


@contextmanager
def _without_bars() -> Iterator[None]:
    """Silences transformers' progress bars: weights are loaded in a second, and the bar would stay in logs."""
    were_shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if were_shown:
            logging.enable_progress_bar()


@contextmanager
def _explaining(source: str | Path) -> Iterator[None]:
    """Turns any error that the libraries raise for a damaged or foreign folder into an `InputError` in plain words."""
    try:
        yield
    except Exception as error:
        original = str(error).strip()
        reason = next((meaning for mark, meaning in _MEANINGS.items() if re.search(mark, original)), reason_of(error))
        if isinstance(error, StrictDataclassError):  # Its first line only names the validator.
            field = re.search(r"Field '(\w+)'", original)
            reason = f"{field[1]} has the wrong type" if field else original.splitlines()[-1].partition("Error: ")[2]
        elif isinstance(error, json.JSONDecodeError):
            reason = _DAMAGED_JSON
        elif isinstance(error, (AttributeError, TypeError, IndexError)):
            reason = "one of its JSON files has entries of the wrong type"
        raise InputError(
            f"No LangCell checkpoint could be loaded from {str(source)!r}: {reason.rstrip('.')}."
        ) from error


def load_classifier(
    checkpoint: str | Path, adaptation: Adaptation, **options: Any
) -> LangCellForSequenceClassification:
    """Loads the cell tower with a classification head for the labels; the head is new unless the checkpoint has one."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # The text tower is left out and the head is new on purpose.
    try:
        return LangCellForSequenceClassification.from_pretrained(
            checkpoint, use_safetensors=True, **options, **adaptation.classes
        )
    finally:
        logging.set_verbosity(verbosity)


def _merge(model: PreTrainedModel, folder: Path, adapter: str | Path) -> Any:
    """Merges a PEFT adapter into the weights of its base."""
    try:
        from peft import PeftModel
    except ImportError as error:
        raise InputError('Adapters need peft: pip install "modeling-langcell[adapt]".') from error
    try:
        with quiet_peft():
            warnings.filterwarnings(
                "error", message="Found missing adapter keys"
            )  # Those weights would not be changed.
            return PeftModel.from_pretrained(model, str(folder)).merge_and_unload()
    except Exception as error:  # peft's messages list weights, or are for programmers.
        raise InputError(
            f"The adapter {str(adapter)!r} does not fit its checkpoint: {PEFT_CONFIG} or {PEFT_WEIGHTS} is damaged, or "
            "belongs to a different model. Use a complete copy, or adapt again."
        ) from error


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Hides a warning that comes from peft's use of a renamed property of transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


__all__ = [
    "load_checkpoint",
    "load_classifier",
    "load_model",
    "load_processor",
    "quiet_peft",
    "require_same_vocabularies",
]
