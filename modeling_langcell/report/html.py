# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Self-contained HTML pages: style, script, data and pictures are inside, and nothing is fetched."""

import base64
import html
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..io.file_kinds import PAGE
from ..io.replace import write_result


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def write_page(path: str | Path, template: str, **content: Any) -> Path:
    """
    Writes a page from a template. The page is light or dark according to the reader's settings or choice. It
    appears whole or not at all.

    Args:
        path: Path of the page; its folder is created if it does not exist.
        template: Name of a file in `templates/`.
        content: Values for the template: texts, which are escaped, or `Markup`. Every page has a `title`.

    Returns:
        The path.

    Raises:
        InputError: The page cannot be written, or would replace a file that is no page.
    """
    return write_result(path, _templates().get_template(template).render(content), PAGE)


def inline_image(png: bytes, alt: str) -> Markup:
    """Returns a picture as an HTML element that contains the PNG itself."""
    return Markup(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')


__all__ = ["inline_image", "write_page"]
