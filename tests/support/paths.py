# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Folders of the checkout that tests read."""

from pathlib import Path

#: The root of the checkout.
REPOSITORY = Path(__file__).resolve().parent.parent.parent
