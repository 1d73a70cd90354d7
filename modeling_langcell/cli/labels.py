# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Candidate labels and descriptions from the command line and from files."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from ..model.errors import InputError, reason_of
from ..ontology import descendants

Candidates = list[str] | dict[str, str | list[str]]


def read_candidates(labels: str | None, ontology_root: str | None) -> Candidates | None:
    """
    Returns the candidates that `--labels` or `--ontology-root` names; None if neither is given.

    Raises:
        InputError: Both are given, the file cannot be used, or the ontology does not know the term.
    """
    if labels is not None and ontology_root is not None:
        raise InputError("Give either --labels or --ontology-root, not both.")
    if ontology_root is not None:
        return [term.name for term in descendants(ontology_root)]
    if labels is None:
        return None
    file = labels_file(labels)
    return _split(labels) if file is None else read_labels(file)


def require_candidates(candidates: Candidates | None) -> Candidates:
    """
    Returns the candidates.

    Raises:
        InputError: There are none.
    """
    if candidates is None:
        raise InputError("Give the candidates with --labels or --ontology-root.")
    return candidates


def labels_file(labels: str | None) -> Path | None:
    """Returns the file that `--labels` names; None if it holds the labels themselves."""
    return Path(labels) if labels is not None and Path(labels).suffix in (".json", ".tsv", ".txt") else None


def _split(labels: str) -> list[str]:
    # Names in the ontology contain commas ("CD8-positive, alpha-beta T cell"), so ';' is the separator if there is one.
    return [name.strip() for name in labels.split(";" if ";" in labels else ",") if name.strip()]


def read_labels(path: Path) -> Candidates:
    """
    Reads labels from a file: JSON (a list, or an object that maps labels to descriptions), or lines with a label,
    or with a label, a tab and a description. A label with several descriptions has a line for each.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "\0" in text:
            raise InputError(f"{path} is not text: it holds a zero byte.")
        if path.suffix == ".json":
            labels = _load_json(text, path)
            kinds, values = ((str, list), labels.values()) if isinstance(labels, dict) else (str, labels)
            if not isinstance(labels, (dict, list)) or not all(isinstance(value, kinds) for value in values):
                raise InputError(f"{path} must hold a list of labels, or an object that maps labels to descriptions.")
            return labels
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"The labels in {path} cannot be read: {reason_of(error)}.") from error
    found: dict[str, list[str]] = {}
    for line in filter(str.strip, text.splitlines()):
        label, _, description = (part.strip() for part in line.partition("\t"))
        found.setdefault(label, []).extend([description] if description else [])
    return {label: texts if len(texts) > 1 else "".join(texts) for label, texts in found.items()}


def _load_json(text: str, path: Path) -> Any:
    """Reads JSON, and refuses repeated labels and characters that no file can hold."""

    def refuse_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated = [name for name, number in Counter(name for name, _ in pairs).items() if number > 1]
        if repeated:
            raise InputError(f"{path} has the label {repeated[0]!r} twice.")
        return dict(pairs)

    # A label is not a number, and float reads numbers of any length.
    found = json.loads(text, object_pairs_hook=refuse_repeated, parse_int=float)
    content = json.dumps(found, ensure_ascii=False)
    if "\\u0000" in content or (not content.isascii() and re.search("[\ud800-\udfff]", content)):
        raise InputError(f"{path} holds a character that is not text (zero, or half of a surrogate pair): remove it.")
    return found


def read_descriptions(path: Path) -> dict[str, str]:
    """
    Reads labels with one description each, for an adaptation.

    Raises:
        InputError: Same as for `read_labels`; or a label has no description, or several descriptions.
    """
    labels = read_labels(path)
    if not isinstance(labels, dict):
        raise InputError(f"{path} holds labels without descriptions: write an object that maps labels to descriptions.")
    texts_by_label = {label: [text] if isinstance(text, str) else text for label, text in labels.items()}
    for label, texts in texts_by_label.items():
        if len(texts) != 1:
            raise InputError(f"{path} must hold one description per label for an adaptation: see {label!r}.")
    return {label: texts[0] for label, texts in texts_by_label.items()}


__all__ = ["Candidates", "labels_file", "read_candidates", "read_descriptions", "read_labels", "require_candidates"]
