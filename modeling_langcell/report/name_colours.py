# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""One colour for each name, wherever it is on a page."""

import anndata as ad

from ..annotation.ontology_backoff import UNKNOWN
from ..annotation.records import label_colours
from ..io.colours import GREY, colours
from ..io.columns import CELL_TYPE

_COLOURED = 60  # There are no more.


class NameColours:
    """
    Gives every name a colour: labels that of the annotation, others the next one that is free.

    Args:
        annotated: Annotated cells.
    """

    def __init__(self, annotated: ad.AnnData):
        labels = annotated.obs[CELL_TYPE]
        found = set(labels.dropna().astype(str))
        by_label = zip(labels.cat.categories.astype(str), label_colours(annotated), strict=True)
        self._by_name = {name: colour for name, colour in by_label if name in found} | {UNKNOWN: GREY}
        self._free = [colour for colour in colours(_COLOURED) if colour not in self._by_name.values()]

    def __getitem__(self, name: str) -> str:
        if name not in self._by_name:
            self._by_name[name] = self._free.pop(0) if self._free else GREY
        return self._by_name[name]


__all__ = ["NameColours"]
