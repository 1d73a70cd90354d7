# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Reads and writes files of cells, and names the columns that an annotation adds."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
