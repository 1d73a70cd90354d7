# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The texts that a cell type is described by, composed from templates."""

from collections.abc import Iterable, Sequence
from string import Formatter
from typing import NamedTuple

from .errors import InputError

#: What a wording can have in it, in braces.
FIELDS = ("name", "definition", "synonym")
#: How a type of cell is worded, unless a processor has other wordings.
PROMPT_TEMPLATES = ("cell type: {name}. {definition}",)
#: How it is worded where no wording can be filled: it has no definition, or no synonym.
NAME_ALONE = "cell type: {name}."
#: At most so many of a type's synonyms are worded; 99 of 100 types have no more.
SYNONYMS = 8


class Text(NamedTuple):
    """
    A text that a label is judged by.

    Args:
        text: What the model reads.
        origin: Where it comes from: what fills the wording, as `name and definition` or `synonym 'NK cell'`.
        template: How it is worded; empty for one that was given whole.
    """

    text: str
    origin: str
    template: str = ""


def word(
    prompt_templates: Iterable[str], name: str, definition: str = "", synonyms: Sequence[str] = ()
) -> tuple[Text, ...]:
    """
    The texts of a type of cell: prompts from templates, as CLIP has them (Radford et al., 2021, section 3.1.4).

    A wording with `{synonym}` gives a text for each synonym, the first `SYNONYMS` of them, and one that nothing fills
    gives none. A text that is there already is not repeated. Where no wording gives any, it is `NAME_ALONE`.

    Args:
        prompt_templates: As of `LangCellProcessor`.
        name, definition, synonyms: What fills the fields; the last two may be empty.

    Returns:
        One text or more, in the order of the wordings and the synonyms.

    ```python
    >>> from modeling_langcell.model.prompts import word
    >>> texts = word(["{name}: {definition}", "a {synonym}"], "B cell", synonyms=["B-cell", "B lymphocyte"])
    >>> [text.text for text in texts]
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
    return tuple(found.values()) or word((NAME_ALONE,), name)


def as_texts(label: str, texts: str | Sequence[str]) -> tuple[str, ...]:
    """
    A label's description, in one text or in several, as several; one that is there twice is kept once.

    Raises:
        InputError: No text, or an empty one.
    """
    found = (texts,) if isinstance(texts, str) else tuple(texts) if isinstance(texts, Sequence) else ()
    if not found or not all(isinstance(text, str) and text for text in found):
        raise InputError(f"Descriptions must be texts, or lists of texts; that of {label!r} is {texts!r}.")
    return tuple(dict.fromkeys(found))


def _fields(template: str) -> list[str]:
    return [field for _, field, _, _ in Formatter().parse(template) if field is not None]


def check_templates(prompt_templates: Sequence[str]) -> tuple[str, ...]:
    """
    Raises:
        InputError: They are not as `LangCellProcessor` describes them.
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
            raise InputError(f"The wording {template!r} must have one or more of {known} in it, and no other braces.")
    return tuple(prompt_templates)


__all__ = ["FIELDS", "NAME_ALONE", "PROMPT_TEMPLATES", "SYNONYMS", "Text", "as_texts", "check_templates", "word"]
