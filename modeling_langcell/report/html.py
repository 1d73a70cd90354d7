# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pages that need nothing beside them: style, script, data and pictures are inside, and no network is asked."""

import base64
import html
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from ..io.atomic import atomic_write
from ..model.errors import InputError, reason_of


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
    Writes a page, light or dark as its reader's screen is or as the reader chooses. It appears whole or not at all.

    Args:
        path: Its folder is made if need be.
        template: One of `templates/`.
        content: What it asks for: texts, which are escaped, or `Markup`. Every page has a `title`.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(path)
    try:
        atomic_write(path, _templates().get_template(template).render(content).encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}.") from error
    return path


def inline_image(png: bytes, alt: str) -> Markup:
    """A picture as HTML, all of it."""
    return Markup(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">')


__all__ = ["inline_image", "write_page"]
