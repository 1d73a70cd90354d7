# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Tests, in folders that mirror the package's rooms; `support/` has what they share."""

import os

# One thread a process: as many processes run at once as there are cores. Libraries read these when they are imported.
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_variable] = "1"

# Nobody watches: the command line does the same where it is not on a terminal, but after these libraries are imported.
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
