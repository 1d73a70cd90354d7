# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Corpora for pre-training: many studies as ranked genes and the terms that describe each cell."""
