# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Messages of the package in the words of the page, which names fields instead of arguments."""

from typing import Any

from modeling_langcell import InputError
from modeling_langcell.model.errors import Remedy

#: The array X, unless the kind of the values is told from them and raw or a layer has the counts.
X = "X, or where the counts are"
LAYER = "layer "
#: The kinds of values, as the page and as the package names them.
VALUES = {
    "told from the values": "auto",
    "raw counts": "raw",
    "corrected counts (such as SoupX's)": "corrected",
    "counts scaled by cell (such as CPM)": "normalized",
    "log-transformed counts": "log1p",
}
TYPES, TISSUE, ARRAY, KIND, ERRORS = (
    "Types of cells",
    "Tissue",
    "Array with the counts",
    "Values in this array",
    "Accepted wrong answers per 100",
)
_FIELDS = {"labels": TYPES, "tissue": TISSUE, "layer": ARRAY, "use_raw": ARRAY, "counts": KIND, "error_rate": ERRORS}


def in_words(error: InputError) -> str:
    """Returns an error as the page says it. Advice on what the page has no field for is left out."""
    remedies = (_in_words(remedy) for remedy in error.remedies)
    return " ".join([error.message, *filter(None, remedies)])


def _in_words(remedy: Remedy) -> str | None:
    if "{option}" not in remedy.text:
        return remedy.text
    given = ((remedy.option, remedy.value), *remedy.also)
    if any(option not in _FIELDS for option, _ in given):
        return None
    named = " and ".join(_field(option, value) for option, value in given)
    text = remedy.text.replace("pass {option}", "choose {option}").replace("Pass {option}", "Choose {option}")
    return text.replace("{option}", named)


def _field(option: str, value: Any) -> str:
    if value is None:
        return f"'{_FIELDS[option]}'"
    if option == "layer":
        value = f"{LAYER}{value}"
    elif option == "use_raw":
        value = "raw.X"
    elif option == "counts":
        value = next(name for name, counts in VALUES.items() if counts == value)
    return f"'{value}' under '{_FIELDS[option]}'"


__all__ = ["ARRAY", "ERRORS", "KIND", "LAYER", "TISSUE", "TYPES", "VALUES", "X", "in_words"]
