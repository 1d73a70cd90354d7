# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The `langcell` command."""

from .main import app, main

__all__ = ["app", "main"]
