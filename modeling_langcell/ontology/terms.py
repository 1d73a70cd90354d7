# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Terms of the ontologies that `cellxgene-ontology-guide` ships, and their relations: the Cell Ontology for cell types,
and others for tissue, disease, stage, sex, ethnicity and assay.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from cellxgene_ontology_guide.ontology_parser import OntologyParser

from ..model.errors import InputError
from ..model.prompts import PROMPT_TEMPLATES, Text, fill_templates

logger = logging.getLogger(__name__)

#: Terms with almost no information: a cell, a eukaryotic cell, a nucleate cell, a cell with one nucleus, a motile cell,
#: an embryonic cell.
UNINFORMATIVE = frozenset({"CL:0000000", "CL:0000255", "CL:0002242", "CL:0000226", "CL:0000219", "CL:0002321"})

_TERM_ID = re.compile(r"^[A-Za-z]+:\d+$")

#: The mark of a species in a name that is not human: `(Mmus)`, `, mouse`, `(sensu Nematoda)`. Humans are vertebrates.
_OTHER_SPECIES = re.compile(
    r"\bMmus\b|\bMus musculus\b|\(sensu (?!Vertebrata)|\bmouse\b|^fungal |^insect |\bhemocyte\b|\bcnidocyte\b|^Kenyon "
)


@dataclass(frozen=True)
class Term:
    """
    A term of an ontology: a cell type, a tissue, a disease, an assay.

    Args:
        id: The ontology's prefix and a number: `CL:0000236`.
        name: The ontology's label.
        definition: One or more sentences; empty if the ontology has none.
        synonyms: Other names.
    """

    id: str
    name: str
    definition: str
    synonyms: tuple[str, ...]

    @property
    def description(self) -> str:
        """
        The default description of a cell type: `cell type: {name}. {definition}`.

        ```python
        >>> from modeling_langcell.ontology import find_term
        >>> find_term("NK cell").description[:60]
        'cell type: natural killer cell. A lymphocyte that can sponta'

        ```"""
        return self.texts()[0].text

    def texts(self, prompt_templates: Sequence[str] = PROMPT_TEMPLATES) -> tuple[Text, ...]:
        """Returns the texts that describe a cell type, made from prompt templates, each with its origin."""
        prompts = fill_templates(prompt_templates, self.name, self.definition, self.synonyms)
        return tuple(text._replace(origin=f"{text.origin} in the Cell Ontology, {release()}") for text in prompts)


@cache
def _parser() -> OntologyParser:
    return OntologyParser()


@cache
def get_term(term_id: str) -> Term:
    """
    Returns the term with this id, from any of the ontologies.

    Raises:
        InputError: No ontology has this id, or it is deprecated (the message names its replacement).
    """
    parser = _parser()
    if not _TERM_ID.match(term_id) or not parser.is_valid_term_id(term_id):
        raise InputError(f"{term_id!r} is not a term of an ontology: ids look like CL:0000236.")
    if parser.is_term_deprecated(term_id):
        replacement = parser.get_term_replacement(term_id)
        raise InputError(f"{term_id} is deprecated" + (f": use {replacement}." if replacement else "."))
    return Term(
        id=term_id,
        name=parser.get_term_label(term_id),
        definition=parser.get_term_description(term_id) or "",
        synonyms=tuple(parser.get_term_synonyms(term_id)),
    )


def is_term(term_id: str) -> bool:
    """Returns true for the id of a current term."""
    try:
        get_term(term_id)
    except InputError:
        return False
    return True


@cache
def all_terms() -> tuple[Term, ...]:
    """Returns all current terms of the Cell Ontology, in the order of their ids."""
    parser = _parser()
    ids = set(parser.get_term_label_to_id_map("CL").values())
    current = sorted(i for i in ids if i.startswith("CL:") and not parser.is_term_deprecated(i))
    logger.info(
        "%d terms of the Cell Ontology; %d deprecated or foreign ones are skipped.",
        len(current),
        len(ids) - len(current),
    )
    return tuple(map(get_term, current))


def release() -> str:
    """Returns the release of the Cell Ontology, a date."""
    return str(_parser().cxg_schema.supported_ontologies["CL"]["version"])


@cache
def ancestors(term_id: str) -> frozenset[str]:
    """
    Returns ids of all terms that a term is a kind (or part) of in its ontology, without itself; none for unknown ids.
    """
    if not is_term(term_id):
        return frozenset()
    ontology = term_id.partition(":")[0] + ":"
    return frozenset(i for i in _parser().get_term_ancestors(term_id) if i.startswith(ontology)) - {term_id}


def kinds_below(term_id: str) -> int:
    """Returns the number of terms of the Cell Ontology that are a kind (or part) of a term, without itself."""
    return _kinds_below()[term_id]


@cache
def _kinds_below() -> Counter[str]:
    return Counter(above for term in all_terms() for above in ancestors(term.id))


@cache
def _children() -> dict[str, frozenset[str]]:
    """Returns ids of the terms directly below each term."""
    children: dict[str, set[str]] = {}
    for term in all_terms():
        for parent in _parser().get_term_parents(term.id):
            children.setdefault(parent, set()).add(term.id)
    return {parent: frozenset(ids) for parent, ids in children.items()}


def related(term_id: str, other_id: str) -> bool:
    """Returns true if two ids are the same, or one is a kind of the other: a cell may then be of both types."""
    return term_id == other_id or other_id in ancestors(term_id) or term_id in ancestors(other_id)


@cache
def siblings(term_id: str) -> frozenset[str]:
    """
    Returns ids of the terms that share a parent with a term and are neither above nor below it. A term whose parents
    are all `UNINFORMATIVE` has no siblings.
    """
    parents = set(_parser().get_term_parents(term_id)) - UNINFORMATIVE
    found = frozenset().union(*(_children()[parent] for parent in parents))
    return frozenset(i for i in found if not related(term_id, i))


def _steps_up(term_id: str) -> dict[str, int]:
    """Returns the steps, on the shortest path up, to each term that a term is a kind (or part) of; 0 to itself."""
    return _parser().get_term_ancestors_with_distances(term_id, include_self=True)


@cache
def depth(term_id: str) -> int:
    """Returns the steps, on the shortest path up, to an `UNINFORMATIVE` term."""
    return min((steps for above, steps in _steps_up(term_id).items() if above in UNINFORMATIVE), default=0)


@cache
def agreement(truth_id: str, other_id: str) -> float:
    """
    Returns the similarity of two terms of the Cell Ontology: 1 for the same term, 0 if they share only `UNINFORMATIVE`
    ancestors.

    The measure is that of Wu & Palmer (1994, "Verb semantics and lexical selection", ACL, pages 133-138): the maximum
    of `2 depth(c) / (2 depth(c) + steps(truth, c) + steps(other, c))` over all terms `c` that both are a kind (or part)
    of, including the terms themselves. Concepts there form a tree; in the Cell Ontology, where several paths lead up,
    steps and depths are those of the shortest, and depths are counted from `UNINFORMATIVE` terms. The measure is
    symmetric.

    Raises:
        InputError: One is not a current term of the Cell Ontology.

    ```python
    >>> from modeling_langcell.ontology import agreement
    >>> t_cell, lymphocyte, b_cell, neuron = "CL:0000084", "CL:0000542", "CL:0000236", "CL:0000540"
    >>> [round(agreement(t_cell, other), 2) for other in (t_cell, lymphocyte, b_cell, neuron)]
    [1.0, 0.8, 0.57, 0.0]

    ```"""
    for term_id in (truth_id, other_id):
        if not get_term(term_id).id.startswith("CL:"):
            raise InputError(f"{term_id} is not a term of the Cell Ontology, whose ids look like CL:0000236.")
    if truth_id == other_id:
        return 1.0
    truth, other = _steps_up(truth_id), _steps_up(other_id)
    return max(
        2 * depth(above) / (2 * depth(above) + truth[above] + other[above]) for above in truth.keys() & other.keys()
    )


def of_other_species(name: str) -> bool:
    """Returns true for the name of a type that only other species have: `(Mmus)`, `, mouse`, `(sensu Nematoda)`."""
    return _OTHER_SPECIES.search(name) is not None


@cache
def human_terms() -> tuple[Term, ...]:
    """Returns the current terms of the Cell Ontology that are not of another species, in the order of their ids."""
    return tuple(term for term in all_terms() if not of_other_species(term.name))


def below(term_id: str) -> tuple[Term, ...]:
    """Returns the terms of the Cell Ontology that are a kind (or part) of a term, without itself."""
    found = _parser().get_term_descendants(term_id)
    return tuple(get_term(i) for i in found if i.startswith("CL:") and i != term_id)


@cache
def ids_by_name(ontology: str) -> dict[str, str]:
    """Returns the ids of an ontology's terms (`CL`, `UBERON`) by their names."""
    return dict(_parser().get_term_label_to_id_map(ontology))


__all__ = [
    "UNINFORMATIVE",
    "Term",
    "agreement",
    "all_terms",
    "ancestors",
    "below",
    "depth",
    "get_term",
    "human_terms",
    "ids_by_name",
    "is_term",
    "kinds_below",
    "of_other_species",
    "related",
    "release",
    "siblings",
]
