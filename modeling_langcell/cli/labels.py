# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Candidate labels and descriptions from the command line and from files."""

import csv
import io
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..io.documents import parse_json, read_text
from ..io.printable import plain_text
from ..model.errors import InputError, reason_of
from ..ontology import Labels, descendants, given_descriptions, without_repeats
from ..ontology.names import id_of, is_id
from ..ontology.terms import ids_by_name

#: Labels; or labels with their descriptions, in any form that `as_description` reads.
Candidates = list[str] | dict[str, Any]

#: Most bytes of a file of labels.
_MAX_BYTES = 16 << 20
_SUFFIXES = (".json", ".tsv", ".csv", ".txt", ".gmt")
#: Endings of other files in which people keep labels.
_OTHER_FILES = (".xlsx", ".xls", ".ods", ".numbers", ".tab", ".docx", ".yaml", ".yml", ".md", ".gz")
_COLUMNS = ("label", "description", "markers", "absent")
#: Columns that `langcell labels` writes besides, and that are not read.
_IGNORED = ("id", "short_name")
#: Other names of columns, in small letters and digits alone.
_COLUMN_NAMES = {
    **dict.fromkeys(("labels", "celltype", "celltypes", "type", "name", "annotation", "term"), "label"),
    **dict.fromkeys(("descriptions", "definition"), "description"),
    **dict.fromkeys(("marker", "markergenes"), "markers"),
    **dict.fromkeys(("clid", "ontologyid", "cellontologyid", "ontologytermid", "celltypeontologytermid"), "id"),
    **dict.fromkeys(("", "unnamed0"), "id"),  # The numbers of rows, as pandas writes them.
}
#: A first line that tells Excel the separator.
_EXCELS_FIRST_LINE = re.compile(r'^"?sep=.?"?\s*\n', re.IGNORECASE)
#: What separates the columns of a table, by its suffix; the others count if its first line names columns with them.
_SEPARATORS = {".csv": ",;\t", ".tsv": "\t,;", ".txt": "\t,;"}


def read_candidates(labels: str | None, ontology_root: str | None, markers: Path | None = None) -> Candidates | None:
    """
    Returns the candidates that `--labels` or `--ontology-root` names, with the genes of `--markers`; None if none of
    them is given.

    Raises:
        InputError: Both are given, a file cannot be used, or the ontology does not know the term.
    """
    if labels is not None and ontology_root is not None:
        raise InputError("Give either --labels or --ontology-root, not both.")
    found: Candidates | None = None
    if ontology_root is not None:
        found = [term.name for term in descendants(ontology_root)]
    elif labels is not None:
        file = labels_file(labels)
        found = _checked(without_repeats(_split(labels) if file is None else _read_labels(file)))
    return found if markers is None else _with_markers(found, markers)


def _with_markers(candidates: Candidates | None, path: Path) -> Candidates:
    """
    Returns candidates with the genes of a file; without candidates, the file's labels.

    Raises:
        InputError: The file has no genes for a label, or genes for a label that is not a candidate.
    """
    genes = read_labels(path)
    if not isinstance(genes, dict) or not all(isinstance(one, dict) for one in genes.values()):
        raise InputError(f"{path} must hold genes for each label: see 'markers' in the guide, or give a .gmt file.")
    if candidates is None:
        return genes
    described = candidates if isinstance(candidates, dict) else dict.fromkeys(candidates, "")
    if unknown := [label for label in genes if label not in described]:
        shown = ", ".join(map(repr, unknown[:5]))
        raise InputError(f"{path} has genes for {shown}, which is not among the candidates: write both the same way.")
    found = {}
    for label, given in described.items():
        own = given if isinstance(given, dict) else {"description": given}
        found[label] = own | genes[label] if label in genes else given
    return found


def labels_file(labels: str | None) -> Path | None:
    """
    Returns the file that `--labels` names; None if it holds the labels themselves.

    Raises:
        InputError: It is a file of another kind.
    """
    if labels is None:
        return None
    path = Path(labels)
    if path.suffix.lower() in _SUFFIXES:
        return path
    # A name with one of these endings, or a path, is meant as a file, whether it is there or not.
    if path.suffix.lower() in _OTHER_FILES or (os.sep in labels and os.path.isfile(path)):
        raise InputError(
            f"{path} cannot be read: a file of labels ends in {', '.join(_SUFFIXES[:-1])} or {_SUFFIXES[-1]}. Save a "
            "spreadsheet as CSV UTF-8 (.csv)."
        )
    return None


def _split(labels: str) -> list[str]:
    """Returns the labels of a text that names several."""
    # Names in the ontology contain commas ("CD8-positive, alpha-beta T cell"), so ';' is the separator if there is one.
    if labels.lstrip().startswith("["):
        return list(_checked_json(parse_json(labels, "--labels"), "--labels"))
    parts = [part.strip().strip("\"'") for part in labels.split(";" if ";" in labels else ",")]
    parts, names = [*filter(None, parts)], list[str]()
    while parts:
        # Commas that are part of a name in the ontology, beside others that separate.
        ends = range(len(parts), 1, -1) if ";" not in labels else ()
        end = next((end for end in ends if ", ".join(parts[:end]) in ids_by_name("CL")), 1)
        names.append(", ".join(parts[:end]))
        del parts[:end]
    return names


def _checked(found: Labels) -> Candidates:
    """Returns labels from the command line or a file, checked as those that are given in Python are checked."""
    given_descriptions(found)
    return dict(found) if isinstance(found, Mapping) else list(found)


def read_labels(path: Path) -> Candidates:
    """
    Reads labels from a file, and checks them as those that are given in Python are checked:

    - `.json`: a list of labels, or an object that maps labels to descriptions: a text, a list of texts, or an object
      with `description`, `markers` and `absent`;
    - `.tsv`, `.csv`, `.txt`: a table whose first line names its columns: `label`, and any of `description`, `markers`
      and `absent`, with genes separated by commas or blanks. Cells may be quoted, and columns separated by commas,
      semicolons or tabs, as spreadsheets write them;
    - `.gmt`: a label, a description, which is not read, and genes, separated by tabs;
    - any of these tables without such a first line: a label in each line or, in `.tsv` and `.txt`, a label, a tab and a
      description. A label with several descriptions has a line for each.

    Raises:
        InputError: The file cannot be read, or holds something else.
    """
    return _checked(_read_labels(path))


def _read_labels(path: Path) -> Candidates:
    if not (found := _parsed(path)):
        raise InputError(f"{path} holds no labels.")
    return found


def _parsed(path: Path) -> Candidates:
    suffix = path.suffix.lower()
    try:
        text = _EXCELS_FIRST_LINE.sub("", read_text(path, _MAX_BYTES))
        if "\0" in text:
            raise InputError(f"{path} is not text: it holds a zero byte.")
        if suffix == ".json":
            return _checked_json(parse_json(text, path), path)
        if suffix == ".gmt":
            return _read_gmt([line for line in text.splitlines() if line.strip() and not line.startswith("# ")], path)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text, suffix), strict=True)
        rows = [[plain_text(cell.strip()) for cell in row] for row in reader]
    except csv.Error as error:
        raise InputError(f"The labels in {path} cannot be read: {reason_of(error)}.") from error
    rows = [row for row in rows if any(row) and not row[0].startswith("# ")]
    if rows and (columns := _columns(rows[0])) is not None:
        return _read_table(columns, rows[1:], path)
    return _read_lines(rows, path)


def _columns(row: list[str]) -> list[str] | None:
    """Returns the columns that the first row of a table names; None if it names none."""
    names = [_COLUMN_NAMES.get(re.sub(r"[\W_]+", "", name), name) for name in map(str.casefold, row)]
    return None if set(_COLUMNS).isdisjoint(names) else names


def _separator(text: str, suffix: str) -> str:
    """Returns what separates the columns that a table's first line names, or else those of its kind."""
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("# ")), "")
    found = (one for one in _SEPARATORS[suffix] if _columns(next(csv.reader([first], delimiter=one))))
    return next(found, _SEPARATORS[suffix][0])


def _read_lines(rows: Iterable[list[str]], path: Path) -> dict[str, Any]:
    """Reads a table without a line that names its columns: labels, or labels and descriptions."""
    found: dict[str, list[str]] = {}
    widest = 1 if path.suffix.lower() == ".csv" else 2
    for row in rows:
        if len(row) > widest and any(row[widest:]):
            raise InputError(
                f"{path} has a line of {len(row)} columns, {row[0]!r}, ...: name the columns in a first line "
                f"({', '.join(_COLUMNS)}), and quote cells that contain the separator."
            )
        if ";" in row[0] and not any(row[1:]):
            raise InputError(
                f"{path} has the line {row[0]!r}: write one label in each line. If it is a label and its description, "
                "name the columns in a first line: label;description."
            )
        label, text = (*row, "")[:2]
        if text and is_id(label) and id_of(label) is not None and id_of(label) == id_of(text):
            label, text = text, ""  # An id beside its name, which is no description.
        found.setdefault(label, []).extend(filter(None, [text]))
    return {label: texts if len(texts) > 1 else "".join(texts) for label, texts in found.items()}


def _checked_json(labels: Any, path: object) -> Candidates:
    kinds, values = ((str, list, dict), labels.values()) if isinstance(labels, dict) else (str, labels)
    if not isinstance(labels, (dict, list)) or not all(isinstance(value, kinds) for value in values):
        raise InputError(f"{path} must hold a list of labels, or an object that maps labels to descriptions.")
    return labels


def _read_gmt(lines: Iterable[str], path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in lines:
        label, *rest = (part.strip() for part in line.split("\t"))
        genes = rest[1:]
        if not any(genes):
            raise InputError(f"{path} has no genes for {label!r}: a line is a label, a text and genes, with tabs.")
        _add(found, label, {"markers": list(filter(None, genes))}, path)
    return found


def _read_table(columns: list[str], rows: Iterable[list[str]], path: Path) -> dict[str, Any]:
    """Reads the rows of a table whose columns are named."""
    if "label" not in columns:
        raise InputError(f"{path} names its columns in the first line, but none of them is 'label'.")
    if repeated := [name for name in _COLUMNS if columns.count(name) > 1]:
        raise InputError(f"{path} has several columns of the {repeated[0]}: leave one.")
    if unknown := [name for name in columns if name not in (*_COLUMNS, *_IGNORED)]:
        raise InputError(
            f"{path} has a column {unknown[0]!r}: rename it to one of {', '.join(_COLUMNS)}, or leave it out."
        )
    found: dict[str, Any] = {}
    for row in rows:
        if any(row[len(columns) :]):
            raise InputError(
                f"{path} has a line of {len(row)} columns, {row[0]!r}, ..., but its first line names {len(columns)}: "
                "quote cells that contain the separator."
            )
        cells = dict(zip(columns, row, strict=False))
        given: dict[str, Any] = {"description": cells.get("description", "")}
        given |= {
            key: list(filter(None, re.split(r"[\s,;]+", cells[key]))) for key in ("markers", "absent") if cells.get(key)
        }
        _add(found, cells.get("label", ""), given, path)
    return found


def _add(found: dict[str, Any], label: str, given: dict[str, Any], path: Path) -> None:
    if label in found:
        raise InputError(f"{path} has the label {label!r} twice.")
    found[label] = given


def read_descriptions(path: Path) -> dict[str, Any]:
    """
    Reads labels with their descriptions, for an adaptation.

    Raises:
        InputError: Same as for `read_labels`; or the labels have no descriptions.
    """
    labels = read_labels(path)
    if not isinstance(labels, dict):
        raise InputError(f"{path} holds labels without descriptions: write an object that maps labels to descriptions.")
    return labels


__all__ = ["Candidates", "labels_file", "read_candidates", "read_descriptions", "read_labels"]
