# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What training says of cells: descriptions composed for each batch of the term ids that the corpus keeps."""

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

#: What a description says: a term for each aspect that it speaks of. Two that say the same are the same description.
Said = tuple[tuple[str, str], ...]


@dataclass
class Descriptions:
    """
    The descriptions of some cells.

    Args:
        wordings: The distinct ones; after those of the cells come wrong ones, which none of the cells has.
        text_index: `(cells,)` row of each cell's own.
        ignored_pairs: `(cells, texts)` booleans, true where a text may be true of a cell without being its own.
    """

    wordings: list[str]
    text_index: np.ndarray
    ignored_pairs: np.ndarray


class Describer:
    """
    Describes cells by their type or, at times, by an ancestor of it: what is learnt of "lymphocyte" carries to types
    never seen. At times it speaks of other aspects too, in any order (LangCell, section 3.1).

    A text may be true of a cell without being the one drawn for it: another ancestor; a type or tissue that may be the
    cell's own where its label is coarse; anything of an aspect that is not known of the cell.

    Types that stand beside the cells' own in the ontology come as texts that no cell of the batch has: what sets a
    classical monocyte apart from a non-classical one is learnt though no cell of the latter was ever seen.

    Args:
        facts: `(cells, aspects)` term ids, of types that the ontology knows.
        config: The shares of what is drawn.
        fits: Whether the text tower reads a text to its end.
    """

    def __init__(self, facts: pd.DataFrame, config: PretrainingConfig, fits: Callable[[str], bool]):
        self.facts, self.config, self.fits = facts, config, fits
        self.ancestors = {term: _ancestors(term) for term in facts[TYPE].unique().tolist()}
        self.siblings = {term: sorted(ontology.siblings(term)) for term in self.ancestors}
        held = {aspect: facts[aspect].astype("category").cat for aspect in ASPECTS}
        self.values = {aspect: column.categories.tolist() for aspect, column in held.items()}
        self.codes = {aspect: column.codes.to_numpy() for aspect, column in held.items()}
        self._true_of: dict[tuple[str, str], np.ndarray] = {}

    def __call__(self, cells: np.ndarray, rng: np.random.Generator) -> Descriptions:
        """Describes cells, given by their rows of `facts`."""
        known: list[dict[Any, str]] = self.facts.iloc[cells].to_dict("records")
        own = [self._say(cell, rng) for cell in known]
        said = sorted(set(own))
        said += self._wrong([cell[TYPE] for cell in known], said, rng)
        text_index = np.array([said.index(one) for one in own])
        ignored_pairs = np.stack([self._may_be_true(one, cells) for one in said], axis=1)
        ignored_pairs[np.arange(len(cells)), text_index] = False
        return Descriptions([self._word(one, rng) for one in said], text_index, ignored_pairs)

    def _say(self, cell: dict[Any, str], rng: np.random.Generator) -> Said:
        term = cell[TYPE]
        if self.ancestors[term] and rng.random() < self.config.ancestor_share:
            term = str(rng.choice(self.ancestors[term]))
        said = [(TYPE, term)]
        if rng.random() < self.config.aspect_share:
            others = [aspect for aspect in ASPECTS if aspect != TYPE and _names(aspect, cell[aspect])]
            said += [(aspect, cell[aspect]) for aspect in others if rng.random() < 0.5]
        return tuple(said)

    def _wrong(self, own: list[str], said: list[Said], rng: np.random.Generator) -> list[Said]:
        """Types beside those of the cells, drawn among all that there are."""
        drawn = {((TYPE, str(rng.choice(self.siblings[term]))),) for term in own if self.siblings[term]}
        wrong = sorted(drawn - {*said})
        return [wrong[i] for i in rng.permutation(len(wrong))[: self.config.sibling_texts]]

    def _may_be_true(self, said: Said, cells: np.ndarray) -> np.ndarray:
        """`(cells,)` booleans."""
        return np.all([self._may_hold(*part)[self.codes[part[0]][cells]] for part in said], axis=0)

    def _may_hold(self, aspect: str, term: str) -> np.ndarray:
        """For each value that the cells have of an aspect: whether a cell with it may be what the term says."""
        if (aspect, term) not in self._true_of:
            self._true_of[aspect, term] = np.array(
                [not _names(aspect, value) or ontology.related(value, term) for value in self.values[aspect]]
            )
        return self._true_of[aspect, term]

    def _word(self, said: Said, rng: np.random.Generator) -> str:
        parts = [said[i] for i in rng.permutation(len(said))]
        by_name = [str(rng.choice(_names(*part))) for part in parts]
        whole = [
            _definition(*part) if rng.random() >= self.config.name_only_share and _definition(*part) else name
            for part, name in zip(parts, by_name, strict=True)
        ]
        text = "; ".join(whole)
        # A single aspect begins with its name: it may be cut. Of several none may be lost.
        return text if len(said) == 1 or self.fits(text) else "; ".join(by_name)


def type_wordings(types: Iterable[str]) -> list[str]:
    """All that can be said of types, by their ids: of each, and of its ancestors, all the wordings."""
    known = {term for term in types if ontology.is_term(term)}
    terms = known.union(*map(_ancestors, known))
    wordings = [(*_names(TYPE, term), _definition(TYPE, term)) for term in sorted(terms)]
    return [wording for of_term in wordings for wording in of_term if wording]


def _ancestors(term: str) -> list[str]:
    return sorted(ontology.ancestors(term) - ontology.UNINFORMATIVE)


@cache
def _names(aspect: str, value: str) -> tuple[str, ...]:
    """Short wordings: the aspect's name, and each name that a value has; none for what is unknown."""
    prefix = aspect.replace("_", " ") + ":"
    if ontology.is_term(value):
        term = ontology.get_term(value)
        return tuple(f"{prefix} {name}" for name in (term.name, *term.synonyms))
    return (f"{prefix} {value}",) if aspect == "suspension_type" and value in ("cell", "nucleus") else ()


def _definition(aspect: str, value: str) -> str:
    """The aspect's name, and that of a value with its definition; nothing where the ontology has none."""
    definition = ontology.get_term(value).definition if ontology.is_term(value) else ""
    return f"{_names(aspect, value)[0]}. {definition}" if definition else ""


__all__ = ["TYPE", "Describer", "Descriptions", "type_wordings"]
