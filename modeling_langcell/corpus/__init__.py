# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training corpora: cells of many studies as ranked genes, with the ontology terms that describe each cell."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
