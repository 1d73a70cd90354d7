# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Terms of the ontologies that `cellxgene-ontology-guide` ships: the Cell Ontology for cell types, and others for tissue,
disease, stage, sex, ethnicity and assay. Finds the term that a name means, and the texts that describe it.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

from cellxgene_ontology_guide.ontology_parser import OntologyParser
from rapidfuzz import fuzz, process

from .model.errors import InputError
from .model.prompts import PROMPT_TEMPLATES, Text, as_texts, fill_templates

logger = logging.getLogger(__name__)

DESCRIPTION_PREFIX = "cell type:"

#: Terms with almost no information: a cell, a eukaryotic cell, a nucleate cell, a cell with one nucleus, a motile cell,
#: an embryonic cell.
UNINFORMATIVE = frozenset({"CL:0000000", "CL:0000255", "CL:0002242", "CL:0000226", "CL:0000219", "CL:0002321"})

_TERM_ID = re.compile(r"^[A-Za-z]+:\d+$")

#: The mark of a species in a name that is not human: `(Mmus)`, `, mouse`, `(sensu Nematoda)`. Humans are vertebrates
#: and primates.
_OTHER_SPECIES = re.compile(r"\((Mmus|Mus musculus|sensu (?!Vertebrata).*)\)|, mouse$")

#: Names of islet cells in studies of the pancreas; the Cell Ontology has them only together with the organ's name.
_ISLET_CELLS = {
    "alpha cell": "CL:0000171",
    "beta cell": "CL:0000169",
    "gamma cell": "CL:0002275",
    "delta cell": "CL:0000173",
    "epsilon cell": "CL:0005019",
}


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


def _normalized(name: str) -> str:
    """Removes spelling differences from a name: case, underscores and hyphens, plurals, `+` for positive."""
    words = re.sub(r"[\s_\-]+", " ", name.casefold().replace("+", " positive ").replace(",", " ")).split()
    return " ".join(
        word[:-1] if word in ("cells", "neurons") or (len(word) > 4 and word.endswith("cytes")) else word
        for word in words
    )


@cache
def _names() -> dict[str, str]:
    """
    Returns term ids by normalised names and unambiguous synonyms. A term of another species keeps only synonyms that
    name
    the species: a bare synonym, such as "alpha cell" for a mouse's retina, means something else for human cells.
    """
    names = {_normalized(term.name): term.id for term in all_terms()}
    synonyms: dict[str, set[str]] = {}
    for term in all_terms():
        of_humans = not _OTHER_SPECIES.search(term.name)
        for synonym in term.synonyms:
            if of_humans or _OTHER_SPECIES.search(synonym):
                synonyms.setdefault(_normalized(synonym), set()).add(term.id)
    unambiguous = {name: next(iter(ids)) for name, ids in synonyms.items() if len(ids) == 1}
    logger.info("%d synonyms of several terms are skipped.", len(synonyms) - len(unambiguous))
    return _ISLET_CELLS | unambiguous | names


def find_term(label: str) -> Term:
    """
    Returns the term that a `CL:` id, a name or a synonym means, regardless of case, hyphens and plural. A name without
    a species means a human cell.

    Raises:
        InputError: There is no such term; the message names the closest ones.

    ```python
    >>> from modeling_langcell.ontology import find_term
    >>> find_term("B cells").id, find_term("CL:0000623").name
    ('CL:0000236', 'natural killer cell')

    ```"""
    if label.startswith("CL:"):
        return get_term(label)
    if (term_id := _names().get(_normalized(label))) is not None:
        return get_term(term_id)
    closest = process.extract(_normalized(label), list(_names()), scorer=fuzz.token_set_ratio, limit=10)
    ids = list(dict.fromkeys(_names()[name] for name, *_ in closest))[:4]
    shown = ", ".join(f"{get_term(term_id).name!r} ({term_id})" for term_id in ids)
    raise InputError(
        f"The Cell Ontology does not know {label!r}. Closest: {shown}. Give one of these, or your own "
        "description: {" + repr(label) + ": 'cell type: ...'}."
    )


def id_of(label: str) -> str | None:
    """
    Returns the id of the Cell Ontology's term that a label means, or None if it means no term or a deprecated one.
    """
    if label.startswith("CL:"):
        return label if is_term(label) else None
    return _names().get(_normalized(label))


@dataclass(frozen=True)
class Candidate:
    """
    A label with the texts that describe it.

    Args:
        label: The label, exactly as given.
        term: The term of the Cell Ontology that the label means, if any.
        texts: The texts that the model reads, with their origin. The matching reads the first.
    """

    label: str
    term: Term | None
    texts: tuple[Text, ...]


def candidates(
    labels: Iterable[str] | Mapping[str, str | Sequence[str]], prompt_templates: Sequence[str] = PROMPT_TEMPLATES
) -> list[Candidate]:
    """
    Looks up labels, and returns each with its term and the texts that describe it.

    Args:
        labels: Names, synonyms or ids of the Cell Ontology, or texts that begin with `cell type:`, which are their own
            descriptions; or a mapping from labels to descriptions, one or several each, used unchanged (an empty one
            is looked up in the ontology).
        prompt_templates: Templates for the texts that describe a term, as in `LangCellProcessor`.

    Returns:
        Candidates in the order of the labels.

    Raises:
        InputError: No labels, a label given twice, or a label that no ontology knows and that has no description.

    ```python
    >>> from modeling_langcell.ontology import candidates
    >>> (nk,) = candidates(["NK cells"], ["{name}", "a {synonym}"])
    >>> [(text.text, text.origin) for text in nk.texts]
    [('natural killer cell', 'name in the Cell Ontology, ...'), ('a NK cell', "synonym 'NK cell' in the Cell ...")]

    ```"""
    if isinstance(labels, str):
        raise InputError(f"Candidates must be several labels, not one text: [{labels!r}, ...].")
    pairs = labels.items() if isinstance(labels, Mapping) else [(label, "") for label in labels]
    found: dict[str, Candidate] = {}
    for label, description in pairs:
        if not isinstance(label, str):
            raise InputError(f"Labels must be texts, not {label!r}.")
        if label in found:
            raise InputError(f"The label {label!r} was given twice.")
        if description == "" and label.startswith(DESCRIPTION_PREFIX):
            description = label
        if description == "":
            term = find_term(label)
            found[label] = Candidate(label, term, term.texts(prompt_templates))
        else:
            own = tuple(Text(text, "your own words") for text in as_texts(label, description))
            term_id = id_of(label)
            found[label] = Candidate(label, None if term_id is None else get_term(term_id), own)
    if not found:
        raise InputError("No candidate labels were given.")
    return list(found.values())


def texts_of(
    labels: Iterable[str] | Mapping[str, str | Sequence[str]], prompt_templates: Sequence[str] = PROMPT_TEMPLATES
) -> dict[str, tuple[str, ...]]:
    """Returns all the texts that describe each label; arguments and errors are the same as for `candidates`."""
    found = candidates(labels, prompt_templates)
    return {candidate.label: tuple(text.text for text in candidate.texts) for candidate in found}


def describe(labels: Iterable[str] | Mapping[str, str | Sequence[str]]) -> dict[str, str]:
    """
    Returns one description for each label: name and definition of a term, regardless of a checkpoint's prompt
    templates; or the first of your own descriptions. Arguments and errors are the same as for `candidates`.
    """
    return {label: texts[0] for label, texts in texts_of(labels).items()}


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


def descendants(root: str) -> tuple[Term, ...]:
    """Returns the term with a name or id, and all terms below it: the candidates of `--ontology-root`."""
    root_id = find_term(root).id
    below = _parser().get_term_descendants(root_id)
    return (get_term(root_id), *(get_term(i) for i in below if i.startswith("CL:") and i != root_id))


__all__ = [
    "UNINFORMATIVE",
    "Candidate",
    "Term",
    "agreement",
    "all_terms",
    "ancestors",
    "candidates",
    "depth",
    "descendants",
    "describe",
    "find_term",
    "get_term",
    "id_of",
    "is_term",
    "kinds_below",
    "related",
    "release",
    "siblings",
    "texts_of",
]
