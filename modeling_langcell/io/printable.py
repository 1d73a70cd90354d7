# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Text that is safe to show. Names may hold characters that move the cursor of a terminal, or end a line or a cell of a
table, and a spreadsheet runs what begins with a `=`.
"""

import re
import unicodedata

#: Control characters, formats such as the direction of writing, halves of surrogate pairs, and ends of lines.
_UNPRINTABLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})

#: The start of a cell, or a character that may separate cells, with blanks and quotes.
_START = r"""((?:^|[,;|])[\s"]*)"""
_FORMULA = "(?='*[=+@＝＋－＠-])"  # noqa: RUF001
_MARK, _MARKED = re.compile(_START + _FORMULA), re.compile(_START + "'" + _FORMULA)


def one_line(text: object) -> str:
    r"""
    Returns a text in which each character that is not shown by itself stands as its number, as JSON writes it.

    ```python
    >>> from modeling_langcell.io.printable import one_line
    >>> print(one_line("T cell\x1b[2J\nno error"))
    T cell\u001b[2J\nno error

    ```"""
    return "".join(_escaped(letter) if unicodedata.category(letter) in _UNPRINTABLE else letter for letter in str(text))


def _escaped(letter: str) -> str:
    if letter in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[letter]
    return f"\\u{ord(letter):04x}" if ord(letter) < 2**16 else f"\\U{ord(letter):08x}"


def text_cell(text: str) -> str:
    r"""
    Returns a text as a cell of a table: in one line, with a `'` before what would begin a formula.

    ```python
    >>> from modeling_langcell.io.printable import text_cell
    >>> print(text_cell("=1+1"), text_cell("CD8-positive, alpha-beta T cell"), text_cell("a;@b"))
    '=1+1 CD8-positive, alpha-beta T cell a;'@b

    ```"""
    return _MARK.sub(r"\1'", one_line(text))


def plain_text(cell: str) -> str:
    """Returns the text of a cell that `text_cell` made, without its marks."""
    return _MARKED.sub(r"\1", cell)


def markdown_cell(text: str) -> str:
    """Returns a text as a cell of a table in Markdown: in one line, without the character that ends a cell."""
    return one_line(" ".join(text.replace("|", "/").split()))


__all__ = ["markdown_cell", "one_line", "plain_text", "text_cell"]
