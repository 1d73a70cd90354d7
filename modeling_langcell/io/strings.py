# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Text with missing values, as pandas 3 keeps all text: anndata reads it, but writes it only if a setting allows it."""

from collections.abc import Iterator
from contextlib import contextmanager

import anndata as ad

_SETTING = "allow_write_nullable_strings"


@contextmanager
def writing_missing_text() -> Iterator[None]:
    """Lets anndata write text with missing values, which older files hold as well, for as long as this lasts."""
    if not hasattr(ad.settings, _SETTING):
        yield
        return
    with ad.settings.override(**{_SETTING: True}):
        yield


__all__ = ["writing_missing_text"]
