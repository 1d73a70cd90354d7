# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Names and readers of the files in a checkpoint's folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..io import documents
from ..model.errors import InputError, reason_of

TRAINING, EVALUATION, ADAPTATION = "training.json", "evaluation.json", "adaptation.json"
PROCESSOR, TOKENIZER = "processor_config.json", "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
PEFT_CONFIG, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: The card, and a file for those of its sentences that no other file holds.
CARD, PROSE = "README.md", "card.yaml"


def read_json(path: Path) -> dict[str, Any]:
    """
    Returns the object in a JSON file; an empty one if there is no file.

    Raises:
        InputError: The file is damaged, or does not hold an object.
    """
    found = documents.read_json(path) if path.is_file() else {}
    if not isinstance(found, dict):
        raise InputError(f"{path} does not hold a JSON object.")
    return found


@contextmanager
def explaining_entries(source: object) -> Iterator[None]:
    """
    Turns the errors raised by missing or odd entries of JSON files into one message.

    Raises:
        InputError: The code inside the `with` found a file with the right name and entries that are not this package's.
    """
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        why = f" ({reason_of(error)})" if isinstance(error, (KeyError, ValueError)) else ""
        raise InputError(f"A JSON file in {source} does not have the form that this package writes{why}.") from error


__all__ = [
    "ADAPTATION",
    "CARD",
    "EVALUATION",
    "PEFT_CONFIG",
    "PEFT_WEIGHTS",
    "PROCESSOR",
    "PROSE",
    "TOKENIZER",
    "TOKENIZER_CONFIG",
    "TRAINING",
    "explaining_entries",
    "read_json",
]
