# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training: four objectives in two stages, in one process or many."""
