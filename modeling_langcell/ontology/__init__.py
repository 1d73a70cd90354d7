# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cell types: the terms of the Cell Ontology, the names that people use for them, and how they are described."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
