# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What LangCell is measured by: tasks, the studies they look at, metrics, baselines, and the table of results."""
