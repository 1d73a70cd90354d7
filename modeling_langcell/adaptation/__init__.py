# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checkpoints adapted to labelled cells."""
