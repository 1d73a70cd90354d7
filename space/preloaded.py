# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Imported by the process from which those that work for visitors are forked, so that each has the checkpoint."""

import cells

cells.load()
