# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Descriptions of cells, composed for each batch from the term ids in the corpus (LangCell, section 3.1)."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from .. import ontology
from ..corpus.sources import ASPECTS
from .config import PretrainingConfig

TYPE = "cell_type"

#: The content of a description: pairs of an aspect and a term. Descriptions with the same content are one text.
Content = tuple[tuple[str, str], ...]


@dataclass
class Descriptions:
    """
    The descriptions of some cells.

    Args:
        texts: The distinct texts; those of the cells come first, then wrong ones that describe none of the cells.
        text_index: `(cells,)` row of each cell's own text.
        ignored_pairs: `(cells, texts)` true where a text may be true of a cell without being the cell's own.
    """

    texts: list[str]
    text_index: np.ndarray
    ignored_pairs: np.ndarray


class DescriptionSampler:
    """
    Draws descriptions of cells: by their type or an ancestor of it, so that training on "lymphocyte" carries over
    to unseen types; and sometimes with further aspects, in any order.

    A text may be true of a cell without being the one drawn for it: another ancestor; a type or tissue that may be the
    cell's own where its label is coarse; any value of an aspect that is unknown for the cell.

    Siblings of the cells' types in the ontology come as texts that describe no cell of the batch: the difference
    between classical and non-classical monocytes is learned even if the corpus has no cell of the latter.

    Args:
        facts: `(cells, aspects)` term ids; all types are known to the ontology.
        config: The shares of the kinds of descriptions.
        fits: Function that returns true if the text tower reads a text to its end.
    """

    def __init__(self, facts: pd.DataFrame, config: PretrainingConfig, fits: Callable[[str], bool]):
        self.facts, self.config, self.fits = facts, config, fits
        self.ancestors = {term: _ancestors(term) for term in facts[TYPE].unique().tolist()}
        self.siblings = {term: sorted(ontology.siblings(term)) for term in self.ancestors}
        columns = {aspect: facts[aspect].astype("category").cat for aspect in ASPECTS}
        self.values = {aspect: column.categories.tolist() for aspect, column in columns.items()}
        self.codes = {aspect: column.codes.to_numpy() for aspect, column in columns.items()}
        self._may_hold_cache: dict[tuple[str, str], np.ndarray] = {}

    def __call__(self, cells: np.ndarray, rng: np.random.Generator) -> Descriptions:
        """Describes cells, given by their rows of `facts`."""
        known: list[dict[Any, str]] = self.facts.iloc[cells].to_dict("records")
        own = [self._draw_content(cell, rng) for cell in known]
        contents = sorted(set(own))
        contents += self._draw_siblings([cell[TYPE] for cell in known], contents, rng)
        text_index = np.array([contents.index(content) for content in own])
        ignored_pairs = np.stack([self._may_be_true(content, cells) for content in contents], axis=1)
        ignored_pairs[np.arange(len(cells)), text_index] = False
        return Descriptions([self._write(content, rng) for content in contents], text_index, ignored_pairs)

    @property
    def type_texts(self) -> dict[str, str]:
        """The text of each type of the cells and, where these are drawn, of each of their ancestors, by id."""
        terms = set(self.ancestors)
        if self.config.ancestor_share:
            terms = terms.union(*self.ancestors.values())
        return {term: _definition(TYPE, term) or _names(TYPE, term)[0] for term in sorted(terms)}

    def _draw_content(self, cell: dict[Any, str], rng: np.random.Generator) -> Content:
        """Draws the aspects of a cell that its description mentions, and its type or an ancestor."""
        term = cell[TYPE]
        if self.ancestors[term] and rng.random() < self.config.ancestor_share:
            term = str(rng.choice(self.ancestors[term]))
        content = [(TYPE, term)]
        if rng.random() < self.config.aspect_share:
            others = [aspect for aspect in ASPECTS if aspect != TYPE and _names(aspect, cell[aspect])]
            content += [(aspect, cell[aspect]) for aspect in others if rng.random() < 0.5]
        return tuple(content)

    def _draw_siblings(self, types: list[str], contents: list[Content], rng: np.random.Generator) -> list[Content]:
        """Draws siblings of the cells' types that none of the contents mentions."""
        siblings = {((TYPE, str(rng.choice(self.siblings[term]))),) for term in types if self.siblings[term]}
        wrong = sorted(siblings - {*contents})
        return [wrong[i] for i in rng.permutation(len(wrong))[: self.config.sibling_texts]]

    def _may_be_true(self, content: Content, cells: np.ndarray) -> np.ndarray:
        """Returns `(cells,)` true where a content may be true of a cell."""
        return np.all([self._may_hold(*part)[self.codes[part[0]][cells]] for part in content], axis=0)

    def _may_hold(self, aspect: str, term: str) -> np.ndarray:
        """
        Returns booleans, one per value of an aspect in the corpus: true if a term may be true of a cell with this
        value.
        """
        if (aspect, term) not in self._may_hold_cache:
            self._may_hold_cache[aspect, term] = np.array(
                [not _names(aspect, value) or ontology.related(value, term) for value in self.values[aspect]]
            )
        return self._may_hold_cache[aspect, term]

    def _write(self, content: Content, rng: np.random.Generator) -> str:
        """Writes a content as a text: its parts in random order, by names alone or with definitions."""
        parts = [content[i] for i in rng.permutation(len(content))]
        by_name = [str(rng.choice(_names(*part))) for part in parts]
        sentences = [
            _definition(*part) if rng.random() >= self.config.name_only_share and _definition(*part) else name
            for part, name in zip(parts, by_name, strict=True)
        ]
        text = "; ".join(sentences)
        # A single aspect begins with its name, so truncation keeps that. With several aspects, none may be lost.
        return text if len(content) == 1 or self.fits(text) else "; ".join(by_name)


def all_type_texts(types: Iterable[str]) -> list[str]:
    """Returns all texts that can describe types, given by their ids, or their ancestors."""
    known = {term for term in types if ontology.is_term(term)}
    terms = known.union(*map(_ancestors, known))
    texts = [(*_names(TYPE, term), _definition(TYPE, term)) for term in sorted(terms)]
    return [text for texts_of_term in texts for text in texts_of_term if text]


def _ancestors(term: str) -> list[str]:
    return sorted(ontology.ancestors(term) - ontology.UNINFORMATIVE)


@cache
def _names(aspect: str, value: str) -> tuple[str, ...]:
    """Returns the texts that name a value of an aspect, one per name; none for an unknown value."""
    prefix = aspect.replace("_", " ") + ":"
    if ontology.is_term(value):
        term = ontology.get_term(value)
        return tuple(f"{prefix} {name}" for name in (term.name, *term.synonyms))
    return (f"{prefix} {value}",) if aspect == "suspension_type" and value in ("cell", "nucleus") else ()


def _definition(aspect: str, value: str) -> str:
    """Returns the text with a value's name and definition; empty if the ontology has no definition."""
    definition = ontology.get_term(value).definition if ontology.is_term(value) else ""
    return f"{_names(aspect, value)[0]}. {definition}" if definition else ""


__all__ = ["TYPE", "DescriptionSampler", "Descriptions", "all_type_texts"]
