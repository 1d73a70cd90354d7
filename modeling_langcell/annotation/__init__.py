# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells in, annotated cells out: labels, confidence, clusters, search, explanations."""
