# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Runs the command as `python -m modeling_langcell.cli`."""

from .main import main

main()
