# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Adapts checkpoints to labelled cells."""
