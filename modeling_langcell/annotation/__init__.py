# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Annotation of cells: labels, confidence, consensus of clusters, search and explanations."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
