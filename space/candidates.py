# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The types of cells that a visitor picks from, types and describes."""

import re
from typing import Any

from limits import MOST_CANDIDATES

from modeling_langcell import InputError
from modeling_langcell.ontology import get_term, human_terms, usual_in
from modeling_langcell.ontology.catalogue import cell_types

#: Species that are named by terms of one atlas.
_SPECIES = re.compile(r"\((Mmus|Hsap|Mmul|Sscr)\)")


def type_choices() -> list[tuple[str, str]]:
    """
    Returns all types as pairs of what is shown, which typing searches, and their names. Those of the catalogue come
    first, under the names that people use, and those with short names, which are the most common, before others.
    """
    found = {}
    for one in sorted(cell_types().values(), key=lambda one: (len(one.short_name), one.short_name)):
        name = get_term(one.id).name
        known = one.short_name.casefold() in name.casefold()
        found[name] = name if known else f"{one.short_name} · {name}"
    others = sorted(term.name for term in human_terms() if not _SPECIES.search(term.name))
    return [*((shown, name) for name, shown in found.items()), *((name, name) for name in others if name not in found)]


def types_of(tissue: str) -> list[str]:
    """Returns the names of the catalogue's types for a tissue."""
    return [get_term(one.id).name for one in usual_in([tissue])]


def read_types(names: list[str] | None, described: str | None, marked: str | None) -> dict[str, Any] | None:
    """
    Returns the candidates of a visitor; None if there are none.

    Args:
        names: Names that were picked.
        described: Types in the visitor's own words, one `label: description` per line.
        marked: Markers of types, one `label: genes` per line; of picked and described types, too.

    Raises:
        InputError: A line is not of this form, a label is given twice, or there are too many candidates.
    """
    labels: dict[str, Any] = dict.fromkeys(map(str, names or []), "")
    for label, text in _lines(described, "a label with its description: write 'label: description'"):
        if label in labels:
            raise InputError(f"The label {label!r} was given twice: remove one of them.")
        labels[label] = text
    for label, genes in _lines(marked, "a label with its markers: write 'label: GENE, GENE'"):
        if isinstance(labels.get(label), dict):
            raise InputError(f"The label {label!r} has markers twice: put them in one line.")
        labels[label] = {"description": labels.get(label, ""), "markers": re.split(r"[\s,;]+", genes)}
    if len(labels) > MOST_CANDIDATES:
        raise InputError(f"{len(labels)} candidates are more than this app takes: name at most {MOST_CANDIDATES}.")
    return labels or None


def _lines(text: str | None, expected: str) -> list[tuple[str, str]]:
    found = []
    for line in filter(None, map(str.strip, (text or "").splitlines())):
        label, colon, rest = (part.strip() for part in line.partition(":"))
        if not (label and colon and rest):
            raise InputError(f"{line!r} is not {expected}.")
        found.append((label, rest))
    return found


__all__ = ["read_types", "type_choices", "types_of"]
