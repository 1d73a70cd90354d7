# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Evaluation of LangCell: tasks, the studies they use, metrics, baselines, and the table of results."""
