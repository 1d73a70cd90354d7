# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training corpora: cells of many studies as ranked genes, with the ontology terms that describe each cell."""
