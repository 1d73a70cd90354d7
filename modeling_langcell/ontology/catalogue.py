# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The catalogue of human cell types: the names that people use for them, where they are usual, and their markers."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from ..model.errors import InputError
from ..model.prompts import LONGEST_NAME, require_text
from .terms import ancestors, get_term, ids_by_name

#: The table. `eval/experiments/marker_support.py` writes the support of its markers.
TABLE = Path(__file__).with_name("cell_types.tsv")

#: A tissue of the table that stands for all tissues.
EVERYWHERE = "everywhere"


@dataclass(frozen=True)
class CellType:
    """
    A human cell type of the catalogue.

    Args:
        id: Id of the Cell Ontology.
        short_name: Name for plots, at most 24 characters.
        names: Everyday names and abbreviations, beside those of the Cell Ontology.
        tissues: Names of the tissues in which the type is usual, as Uberon has them; `everywhere` for all. Empty for
            types that are too broad or too special to be a candidate without being named, and for those whose kinds, or
            another name for the same cells, are candidates: "T cell" would win where no kind of it stands out.
        markers: Symbols of the genes that mark the type, the best first.
        absent: Symbols of genes that the type does not express, in contrast to similar types.
        support: For each marker, the number of studies whose cells of the type express it highly, and the number of
            published lists that name it for the type or a type above.
    """

    id: str
    short_name: str
    names: tuple[str, ...]
    tissues: tuple[str, ...]
    markers: tuple[str, ...]
    absent: tuple[str, ...]
    support: dict[str, tuple[int, int]]


@cache
def cell_types() -> dict[str, CellType]:
    """Returns the types of the catalogue by their ids."""
    with TABLE.open(encoding="utf-8", newline="") as lines:
        return {row["id"]: _read_row(row) for row in csv.DictReader(lines, delimiter="\t")}


def _read_row(row: dict[str, str]) -> CellType:
    support = {}
    for marker in row["markers"].split():
        symbol, _, numbers = marker.partition(":")
        n_studies, _, n_lists = numbers.partition("/")
        support[symbol] = int(n_studies or 0), int(n_lists or 0)
    names, tissues = (tuple(filter(None, map(str.strip, row[key].split(";")))) for key in ("names", "tissues"))
    return CellType(row["id"], row["short_name"], names, tissues, tuple(support), tuple(row["absent"].split()), support)


def cell_type(term_id: str | None) -> CellType | None:
    """Returns the catalogue's entry for an id of the Cell Ontology; None if there is none."""
    return None if term_id is None else cell_types().get(term_id)


@cache
def tissues() -> tuple[str, ...]:
    """Returns the names of the tissues that have types of their own in the catalogue, as Uberon has them."""
    return tuple(sorted({tissue for one in cell_types().values() for tissue in one.tissues} - {EVERYWHERE}))


def usual_in(names: Sequence[str] = ()) -> tuple[CellType, ...]:
    """
    Returns the types that are usual in some tissues, or in any tissue if none is named.

    Args:
        names: Names or ids of tissues in Uberon. A type is usual in an organ if it is usual in a part of it, and in a
            part if it is usual in the organ.

    Raises:
        InputError: No such tissue, or no type of the catalogue is usual there.
    """
    if not names:
        return tuple(one for one in cell_types().values() if one.tissues)
    wanted = {find_tissue(name) for name in names}
    around = wanted.union(*map(ancestors, wanted))
    places = {tissue: ids_by_name("UBERON")[tissue] for tissue in tissues()}
    meant = {tissue for tissue, place in places.items() if place in around or wanted & ancestors(place)} | {EVERYWHERE}
    found = tuple(one for one in cell_types().values() if not meant.isdisjoint(one.tissues))
    if all(EVERYWHERE in one.tissues for one in found):
        raise InputError(f"The catalogue has no cell types of {' and '.join(names)}: name a larger part of the body.")
    return found


def tissue_masks(types: Sequence[CellType]) -> dict[str, np.ndarray]:
    """
    Returns `(types,)` true for the types that are usual in a tissue, by the names of the tissues. A tissue whose types
    are all usual in a larger one, as those of the spinal cord in the brain, is left out.
    """
    usual = {tissue: {one.id for one in usual_in([tissue])} for tissue in tissues()}
    order = sorted(usual, key=lambda tissue: (-len(usual[tissue]), tissue))
    kept: list[str] = []
    for tissue in order:
        if not any(usual[tissue] <= usual[larger] for larger in kept):
            kept.append(tissue)
    return {tissue: np.array([one.id in usual[tissue] for one in types]) for tissue in kept}


def find_tissue(name: str) -> str:
    """
    Returns the Uberon id that a tissue's name or id means.

    Raises:
        InputError: There is no such tissue.
    """
    require_text(name, "The name of a tissue", LONGEST_NAME)
    if name.startswith("UBERON:"):
        return get_term(name).id
    names = ids_by_name("UBERON")
    if (found := names.get(name.strip().casefold())) is None:
        raise InputError(f"Uberon has no tissue {name!r}. The catalogue has types of {', '.join(tissues())}.")
    return found


__all__ = [
    "EVERYWHERE",
    "TABLE",
    "CellType",
    "cell_type",
    "cell_types",
    "find_tissue",
    "tissue_masks",
    "tissues",
    "usual_in",
]
