# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Checks of a checkpoint's folder before a library reads it.

transformers, PEFT and tokenizers trust what they read: they apply an adapter that lies beside the weights, load kernels
from the Hub, build as many layers as a config says, and match any regular expression. What is checked here are the
files that they read; what the entries mean to this package is checked where they are used.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME

from ..model.errors import InputError
from .files import PEFT_CONFIG, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG, read_json

#: JSON files that the libraries read beside weights.
_READ = (
    *(CONFIG_NAME, PROCESSOR, TOKENIZER, TOKENIZER_CONFIG, "preprocessor_config.json", "generation_config.json"),
    *("special_tokens_map.json", "added_tokens.json", "model.safetensors.index.json"),
)
#: Entries of a config with which transformers would read other files, or convert weights by other libraries.
_FOREIGN = ("quantization_config", "transformers_weights", "fusion_config", "distributed_config", "pruned_heads")
#: The highest values of a config's sizes. A config within them is built without memory, on torch's meta device, in
#: seconds; if the weights are large enough for it is then known.
_HIGHEST = {"num_hidden_layers": 256, "num_labels": 100_000}
_HIGHEST_SIZE = 10_000_000
_TOKENIZER_CLASSES = ("BertTokenizer", "BertTokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend", None)
#: The parts of a BERT tokenizer. Others would match the regular expressions that they bring.
_TOKENIZER_PARTS: dict[str, tuple[str | None, ...]] = {
    "model": ("WordPiece",),
    "normalizer": ("BertNormalizer", None),
    "pre_tokenizer": ("BertPreTokenizer", None),
    "post_processor": ("TemplateProcessing", "BertProcessing", None),
    "decoder": ("WordPiece", None),
}
_LONGEST_POST_PROCESSOR, _LONGEST_WORD, _LONGEST_PADDING = 10_000, 1_000, 10_000


def require_harmless(folder: Path, source: object) -> None:
    """
    Checks the files of a checkpoint that the libraries read, without its weights.

    Args:
        folder: The folder, of a LangCell or of a BERT that a training starts from.
        source: Folder or Hub id as the user named it, for messages.

    Raises:
        InputError: A file is damaged, lies elsewhere, or has entries with which a library would run code, read other
            files, hang, or take all memory.
    """
    if (folder / PEFT_CONFIG).is_file() and (folder / CONFIG_NAME).is_file():
        raise InputError(
            f"{source} holds an adapter ({PEFT_CONFIG}) beside the model, which transformers would apply without a "
            "word: move the adapter's files to a folder of their own, or remove them."
        )
    _require_own_files(folder)
    found = {name: read_json(folder / name) for name in _READ}
    require_no_code(found[CONFIG_NAME], folder / CONFIG_NAME)
    _require_sizes(found[CONFIG_NAME], folder / CONFIG_NAME)
    if found[TOKENIZER]:
        _require_bert_tokenizer(found[TOKENIZER], folder / TOKENIZER)
    settings, path = found[TOKENIZER_CONFIG], folder / TOKENIZER_CONFIG
    if settings.get("tokenizer_class") not in _TOKENIZER_CLASSES:
        raise InputError(f"{path} names {settings['tokenizer_class']!r}, not a BERT tokenizer: use an intact copy.")
    if settings.get("pad_to_multiple_of") is not None:
        raise InputError(f"{path} pads texts (pad_to_multiple_of), which takes memory for nothing: remove the entry.")


def require_no_code(config: dict[str, Any], source: object) -> None:
    """
    Checks that a config names no code from elsewhere. transformers would download such a kernel from the Hub and run it
    without asking.

    Args:
        config: The content of `config.json`.
        source: The file or the checkpoint, for the message.

    Raises:
        InputError: The config names such code.
    """

    def kernels(found: Any) -> Iterator[str]:
        for name, value in found.items() if isinstance(found, dict) else ():
            yield from kernels(value)
            if name.endswith("_implementation") and "/" in str(value):
                yield f"{name}: {value}"

    for named in kernels(config):
        raise InputError(f"{source} names code from elsewhere ({named}): remove the entry, the model does not need it.")


def _require_own_files(folder: Path) -> None:
    """Checks that the files of a folder are no links to others, except those of the Hub's cache to its blobs."""
    inside = folder.resolve()
    homes = (inside, inside.parent.parent / "blobs") if inside.parent.name == "snapshots" else (inside,)
    for path in folder.iterdir():
        read = path.suffix in (".json", ".safetensors", ".txt", ".bin")
        if read and path.is_symlink() and path.resolve().parent not in homes:
            raise InputError(f"{path} is a link to a file outside the folder: use a copy of that file.")


def _require_sizes(config: dict[str, Any], path: Path) -> None:
    """Checks the entries of a config and of its towers."""
    parts = [config, *(value for name, value in config.items() if name.endswith("_config"))]
    for name, value in (entry for part in parts if isinstance(part, dict) for entry in part.items()):
        if name in _FOREIGN and value:
            raise InputError(f"{path}: {name} is not for a LangCell: remove the entry.")
        highest = _HIGHEST.get(name, _HIGHEST_SIZE)
        if isinstance(value, (int, float)) and abs(value) > highest:
            raise InputError(f"{path}: {name} is above {highest:,}: use an intact copy.")


def _require_bert_tokenizer(tokenizer: dict[str, Any], path: Path) -> None:
    """Checks that a tokenizer is that of a BERT."""

    def require(condition: bool, fault: str) -> None:
        if not condition:
            raise InputError(f"{path} is not the tokenizer of a BERT: {fault}. Use an intact copy.")

    parts: dict[str, Any] = {name: tokenizer.get(name) or {} for name in _TOKENIZER_PARTS}
    for name, kinds in _TOKENIZER_PARTS.items():
        require(isinstance(parts[name], dict), f"its {name} is no object")
        require((kind := parts[name].get("type")) in kinds, f"its {name} is of the type {kind!r}")
    words: Any = parts["model"].get("vocab")
    added = tokenizer.get("added_tokens") or []
    require(isinstance(words, dict) and isinstance(added, list), "it has no vocabulary")
    ids = [*words.values(), *(one.get("id") if isinstance(one, dict) else None for one in added)]
    numbered = all(type(one) is int and 0 <= one < len(ids) for one in ids)
    require(numbered, "its ids are not the numbers of its words")
    longest = parts["model"].get("max_input_chars_per_word", 0)
    require(isinstance(longest, int) and longest <= _LONGEST_WORD, f"its words have more than {_LONGEST_WORD} letters")
    require(len(json.dumps(parts["post_processor"])) <= _LONGEST_POST_PROCESSOR, "its post_processor is too long")
    padding = tokenizer.get("padding") or {}
    require(isinstance(padding, dict) and padding.get("pad_to_multiple_of") is None, "it pads to multiples")
    strategy = padding.get("strategy", "BatchLongest")
    length = strategy.get("Fixed") if isinstance(strategy, dict) else 0
    require(type(length) is int and length <= _LONGEST_PADDING, f"it pads texts to more than {_LONGEST_PADDING}")


__all__ = ["require_harmless", "require_no_code"]
