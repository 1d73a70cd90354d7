# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Candidate labels: the term that each means, the texts that describe it, and the genes that mark it."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..model.errors import InputError
from ..model.prompts import PROMPT_TEMPLATES, Description, Text, as_description, check_labels, fill_templates
from .catalogue import cell_type
from .names import as_id, find_term, id_of, is_id, unknown_names
from .terms import Term, get_term

logger = logging.getLogger(__name__)

DESCRIPTION_PREFIX = "cell type:"
OWN_WORDS = "your own words"

#: A gene as people write it: one word in capitals or with a number, such as `LYZ` and `Cd79a`.
_GENE = re.compile(r"(?=\S*\d|[A-Z]{2})[A-Za-z][\w.-]+")

#: Labels, or a mapping from labels to descriptions in any form that `as_description` reads.
Labels = Iterable[str] | Mapping[str, Any]


@dataclass(frozen=True)
class Candidate:
    """
    A label with what describes it.

    Args:
        label: The label, exactly as given.
        term: The term of the Cell Ontology that the label means, if any.
        texts: The texts that the model reads, with their origin. The matching reads the first.
        markers: Names of genes that mark the cells; None where they are to be read from the texts.
        absent: Names of genes that the cells do not express.
        markers_from: The source of the genes.
    """

    label: str
    term: Term | None
    texts: tuple[Text, ...]
    markers: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()
    markers_from: str = ""

    @property
    def description(self) -> Description:
        """The texts and the genes, as the model is given them."""
        return Description(tuple(text.text for text in self.texts), self.markers, self.absent)


def candidates(
    labels: Labels,
    prompt_templates: Sequence[str] = PROMPT_TEMPLATES,
    *,
    with_markers: bool = True,
    accept_text: bool = False,
) -> list[Candidate]:
    """
    Looks up labels, and returns each with its term, the texts that describe it and the genes that mark it.

    Args:
        labels: Names that people use, or ids of the Cell Ontology, or texts that begin with `cell type:`, which are
            their own descriptions. Or a mapping from labels to descriptions, which are used unchanged: a text or
            several, or `{"description": ..., "markers": [...], "absent": [...]}`, of which any may be left out. Without
            a description the label is looked up in the ontology.
        prompt_templates: Templates for the texts that describe a term, as in `LangCellProcessor`.
        with_markers: Give types of the catalogue that have no genes of their own those of the catalogue.
        accept_text: Take a name that the ontology does not know as a text, with a caution in the log.

    Returns:
        Candidates in the order of the labels.

    Raises:
        InputError: Those of `given_descriptions`; or labels that no ontology knows and that have no description; the
            message names all of them.

    ```python
    >>> from modeling_langcell.ontology import candidates
    >>> (nk,) = candidates(["NK cells"], ["{name}", "a {synonym}"])
    >>> [(text.text, text.origin) for text in nk.texts]
    [('natural killer cell', 'name in the Cell Ontology, ...'), ('a NK cell', "synonym 'NK cell' in the Cell ...")]

    ```"""
    given = given_descriptions(labels)
    unknown = [label for label, own in given.items() if not own.texts and id_of(label) is None]
    for label in filter(as_id, unknown):
        find_term(label)  # It says whether the id is deprecated, and what replaces it.
    if unknown and not accept_text:
        raise unknown_names(unknown)
    if unknown:
        logger.warning("The Cell Ontology does not know %s: read as texts.", ", ".join(map(repr, unknown)))
    return [_describe(label, own, prompt_templates, with_markers) for label, own in given.items()]


def given_descriptions(labels: Labels) -> dict[str, Description]:
    """
    Returns what each label is described by; an empty description where it is to be looked up. All labels and texts of
    people come through here, from Python as well as from files, before anything is done with them.

    Raises:
        InputError: No labels, or labels or descriptions that are not as they should be (`check_labels`,
            `as_description`); or descriptions that are ids, or lists of genes.
    """
    if isinstance(labels, str):
        raise InputError(f"Candidates must be several labels, not one text: [{labels!r}, ...].")
    if not isinstance(labels, Iterable):
        raise InputError(f"Candidates must be labels, or a mapping from labels to descriptions, not {labels!r}.")
    pairs = list(labels.items() if isinstance(labels, Mapping) else [(label, "") for label in labels])
    check_labels(label for label, _ in pairs)
    if not pairs:
        raise InputError("No candidate labels were given.")
    found = {
        label: as_description(label, label if label.startswith(DESCRIPTION_PREFIX) and given == "" else given)
        for label, given in pairs
    }
    for label, own in found.items():
        if text := next(filter(is_id, own.texts), None):
            raise InputError(
                f"{text!r} is the id of a type, not a description of {label!r}: leave it out, or give it as the label."
            )
        if len(own.texts) > 1 and all(map(_GENE.fullmatch, own.texts)):
            raise InputError(
                f"The texts of {label!r} look like genes. Give genes as {{{label!r}: {{'markers': "
                f"[{own.texts[0]!r}, ...]}}}}."
            )
    return found


def without_repeats(labels: Labels) -> Labels:
    """
    Leaves out labels that mean a type which an earlier one means, too: two names of one type would share its score.
    Labels with descriptions of their own stay.
    """
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        return labels  # Not labels, as `given_descriptions` says.
    described = dict(labels) if isinstance(labels, Mapping) else None
    names = list(labels)
    check_labels(names)
    looked_up = [name for name in names if described is None or described[name] in ("", {"description": ""})]
    again = same_types(looked_up)
    for name, first in again.items():
        logger.warning("%r is left out: it is the same type as %r.", name, first)
    kept = [name for name in names if name not in again]
    return kept if described is None else {name: described[name] for name in kept}


def same_types(names: Iterable[str]) -> dict[str, str]:
    """Returns the names that mean a type of the Cell Ontology which an earlier one means, too, each with that one."""
    first: dict[str, str] = {}
    found = {}
    for name in names:
        term_id = id_of(name)
        if term_id is not None and first.setdefault(term_id, name) != name:
            found[name] = first[term_id]
    return found


def _describe(label: str, own: Description, prompt_templates: Sequence[str], with_markers: bool) -> Candidate:
    """Completes a label's own description with those of the ontology and the catalogue."""
    term_id = id_of(label)
    term = None if term_id is None else get_term(term_id)
    if own.texts:
        texts = tuple(Text(text, OWN_WORDS) for text in own.texts)
    elif term is not None:
        texts = term.texts(prompt_templates)
    else:
        texts = tuple(text._replace(origin=OWN_WORDS) for text in fill_templates((), label))
    known = cell_type(term_id)
    if own.texts or own.markers is not None:
        return Candidate(label, term, texts, own.markers, own.absent, OWN_WORDS)
    if not with_markers:
        return Candidate(label, term, texts, ())
    if known is None:
        return Candidate(label, term, texts, None, (), "the Cell Ontology" if term is not None else OWN_WORDS)
    return Candidate(label, term, texts, known.markers, known.absent, "the catalogue of cell types")


def descriptions_of(
    labels: Labels, prompt_templates: Sequence[str] = PROMPT_TEMPLATES, **options: Any
) -> dict[str, Description]:
    """Returns what describes each label; arguments and errors are the same as for `candidates`."""
    return {one.label: one.description for one in candidates(labels, prompt_templates, **options)}


def texts_of(labels: Labels, prompt_templates: Sequence[str] = PROMPT_TEMPLATES) -> dict[str, tuple[str, ...]]:
    """Returns all the texts that describe each label; arguments and errors are the same as for `candidates`."""
    return {label: found.texts for label, found in descriptions_of(labels, prompt_templates).items()}


def describe(labels: Labels) -> dict[str, str]:
    """
    Returns one text for each label: name and definition of a term, regardless of a checkpoint's prompt templates; or
    the first of your own descriptions. Arguments and errors are the same as for `candidates`.
    """
    return {label: texts[0] for label, texts in texts_of(labels).items()}


__all__ = [
    "Candidate",
    "Labels",
    "candidates",
    "describe",
    "descriptions_of",
    "given_descriptions",
    "same_types",
    "texts_of",
    "without_repeats",
]
