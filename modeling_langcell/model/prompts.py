# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Prompts: the texts that describe a cell type, made from prompt templates."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import Formatter
from typing import Any, NamedTuple

from .errors import InputError

#: Fields that a prompt template may have, in braces.
FIELDS = ("name", "definition", "synonym")
#: Default prompt templates of a processor.
PROMPT_TEMPLATES = ("cell type: {name}. {definition}",)
#: Template for cell types that can fill no other, because they have no definition or no synonym.
NAME_ALONE = "cell type: {name}."
#: Largest number of synonyms of a cell type that fill a template; 99 of 100 types have no more.
SYNONYMS = 8
#: Most characters of a label, a name or a gene, and of a text that describes one; the ontology's are far shorter.
LONGEST_NAME, LONGEST_TEXT = 1_000, 20_000
#: Null characters, and halves of surrogate pairs: no file can hold them.
_NOT_TEXT = re.compile("[\0\ud800-\udfff]")
#: Names that tables in `.h5ad` files cannot have.
_RESERVED = (".", "_index")


def require_text(text: Any, what: str, longest: int = LONGEST_TEXT) -> str:
    """
    Returns a text that a person gave, checked: there is something to read in it, and files can hold it.

    Args:
        text: The text.
        what: What it is, for messages: `The label`.
        longest: The most characters that it may have.

    Raises:
        InputError: It is not a text, too long, holds a character that is not text, or shows nothing.

    ```python
    >>> from modeling_langcell.model.prompts import require_text
    >>> require_text("B cell", "The label")
    'B cell'

    ```"""
    if not isinstance(text, str):
        raise InputError(f"{what} must be a text, not {text!r}.")
    if len(text) > longest:
        raise InputError(f"{what} {text[:40]!r}... has {len(text):,} characters: give at most {longest:,}.")
    if _NOT_TEXT.search(text):
        raise InputError(f"{what} {text!r} holds a character that is not text (zero, or half of a pair): remove it.")
    if not any(unicodedata.category(letter)[0] in "LNPS" for letter in text):
        raise InputError(f"{what} is {text!r}: the text is empty, or nothing in it can be seen.")
    return text


def check_labels(labels: Iterable[Any]) -> None:
    """
    Checks that labels are texts, and that each will have a column of its own in the tables of results.

    Raises:
        InputError: A label is not a text that can be shown and stored, or is given twice; or two labels differ only in
            what people and files do not tell apart.

    ```python
    >>> from modeling_langcell.model.prompts import check_labels
    >>> check_labels(["T cell", "B cell", "b  cell"])
    Traceback (most recent call last):
    ...
    modeling_langcell.model.errors.InputError: A table cannot have a column for each of 'B cell' and 'b  cell': ...

    ```"""
    first: dict[str, str] = {}
    for label in labels:
        if not isinstance(label, str):
            raise InputError(f"Labels must be texts, not {label!r}.")
        require_text(label, "The label", LONGEST_NAME)
        if label in _RESERVED:
            raise InputError(f"A table cannot have a column {label!r}: give the label another name.")
        other = first.get(spelling := _spelling(label))
        if other == label:
            raise InputError(f"The label {label!r} was given twice.")
        if other is not None:
            raise InputError(
                f"A table cannot have a column for each of {other!r} and {label!r}: they differ only in case, blanks, "
                "slashes, invisible characters or the way in which letters are written. Rename one, or leave it out."
            )
        first[spelling] = label


def _spelling(label: str) -> str:
    """Returns a label without the differences that people do not see and that file systems and tables do not keep."""
    text = unicodedata.normalize("NFKC", label).replace("/", "|")
    seen = (letter for letter in text if unicodedata.category(letter) != "Cf")
    return " ".join("".join(seen).split()).casefold()


class Text(NamedTuple):
    """
    A text that describes a label.

    Args:
        text: The text, as the model reads it.
        origin: The text's source: the fields that fill its template, as in `name and definition` or
            `synonym 'NK cell'`.
        template: The prompt template; empty for a text that needed none.
    """

    text: str
    origin: str
    template: str = ""


def fill_templates(
    prompt_templates: Iterable[str], name: str, definition: str = "", synonyms: Sequence[str] = ()
) -> tuple[Text, ...]:
    """
    Makes the prompts of a cell type from templates, as CLIP does (Radford et al., 2021, section 3.1.4).

    A template with `{synonym}` gives a text for each of the first `SYNONYMS` synonyms; a template whose fields are
    empty gives none. Repeated texts are kept once. If no template gives a text, `NAME_ALONE` is used.

    Args:
        prompt_templates: Templates, as described in `LangCellProcessor`.
        name, definition, synonyms: Values of the fields; the last two may be empty.

    Returns:
        One text or more, in the order of the templates and the synonyms.

    ```python
    >>> from modeling_langcell.model.prompts import fill_templates
    >>> prompts = fill_templates(["{name}: {definition}", "a {synonym}"], "B cell", synonyms=["B-cell", "B lymphocyte"])
    >>> [prompt.text for prompt in prompts]
    ['a B-cell', 'a B lymphocyte']

    ```"""
    found: dict[str, Text] = {}
    for template in prompt_templates:
        fields = _fields(template)
        if "definition" in fields and not definition:
            continue
        for synonym in synonyms[:SYNONYMS] if "synonym" in fields else ("",):
            text = template.format(name=name, definition=definition, synonym=synonym).strip()
            parts = [f"{field} {synonym!r}" if field == "synonym" else field for field in dict.fromkeys(fields)]
            found.setdefault(text, Text(text, " and ".join(parts), template))
    return tuple(found.values()) or fill_templates((NAME_ALONE,), name)


def as_texts(label: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    """
    Returns a label's description, given as one text or several, as a tuple without repeated texts.

    Raises:
        InputError: No text, or one that `require_text` refuses.
    """
    found = (texts,) if isinstance(texts, str) else tuple(texts) if isinstance(texts, Sequence) else ()
    if not found or not all(isinstance(text, str) and text for text in found):
        raise InputError(f"Descriptions must be texts, or lists of texts; that of {label!r} is {texts!r}.")
    return tuple(dict.fromkeys(require_text(text, f"The description of {label!r}") for text in found))


@dataclass(frozen=True)
class Description:
    """
    What describes a label.

    Args:
        texts: The texts that the model reads; the matching reads the first. Empty where a label is to be looked up.
        markers: Names of genes that mark the cells; None where they are to be read from the texts.
        absent: Names of genes that the cells do not express.
    """

    texts: tuple[str, ...] = ()
    markers: tuple[str, ...] | None = None
    absent: tuple[str, ...] = ()


def as_description(label: str, given: Any) -> Description:
    """
    Returns a label's description from any form that it is given in: a text, several texts, a `Description`, or a
    mapping with `description` (one text or several), `markers` and `absent` (lists of genes), each of which may be left
    out. An empty text is no text. Lists say all: the genes that the texts name do not count beside them.

    Raises:
        InputError: A text or a gene is not a text, or the mapping has other keys.

    ```python
    >>> from modeling_langcell.model.prompts import as_description
    >>> as_description("beta", {"description": "cell type: beta cell.", "markers": ["INS", "IAPP"]})
    Description(texts=('cell type: beta cell.',), markers=('INS', 'IAPP'), absent=())

    ```"""
    if isinstance(given, Description):
        return given
    if not isinstance(given, Mapping):
        return Description() if given == "" else Description(as_texts(label, given))
    if unknown := [key for key in given if key not in ("description", "markers", "absent")]:
        raise InputError(f"The description of {label!r} has {unknown[0]!r}: its keys are description, markers, absent.")
    genes: dict[str, tuple[str, ...]] = {}
    for key in ("markers", "absent"):
        names = given.get(key) or ()
        if isinstance(names, str) or not all(isinstance(name, str) and name.strip() for name in names):
            raise InputError(f"{key} of {label!r} must be a list of genes such as ['INS', 'IAPP'], not {names!r}.")
        checked = (require_text(name, f"A gene in {key} of {label!r}", LONGEST_NAME).strip() for name in names)
        genes[key] = tuple(dict.fromkeys(checked))
    text = given.get("description") or ""
    has_lists = "markers" in given or "absent" in given
    return Description(
        () if text == "" else as_texts(label, text), genes["markers"] if has_lists else None, genes["absent"]
    )


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def check_templates(prompt_templates: Sequence[str]) -> tuple[str, ...]:
    """
    Returns prompt templates as a tuple.

    Raises:
        InputError: A template does not fit the description in `LangCellProcessor`.
    """
    if isinstance(prompt_templates, str) or not isinstance(prompt_templates, Sequence) or not prompt_templates:
        raise InputError(
            f"prompt_templates must be a list of one or more texts such as {PROMPT_TEMPLATES[0]!r}, "
            f"not {prompt_templates!r}."
        )
    for template in prompt_templates:
        try:
            parts = [part[1:] for part in Formatter().parse(template) if part[1] is not None]
        except (TypeError, ValueError):
            parts = []
        if not parts or any(field not in FIELDS or spec or conversion for field, spec, conversion in parts):
            known = ", ".join(f"{{{field}}}" for field in FIELDS)
            raise InputError(f"The prompt template {template!r} must have one or more of {known}, and no other braces.")
        require_text(template, "The prompt template")
    return tuple(prompt_templates)


__all__ = [
    "FIELDS",
    "LONGEST_NAME",
    "LONGEST_TEXT",
    "NAME_ALONE",
    "PROMPT_TEMPLATES",
    "SYNONYMS",
    "Description",
    "Text",
    "as_description",
    "as_texts",
    "check_labels",
    "check_templates",
    "fill_templates",
    "require_text",
]
