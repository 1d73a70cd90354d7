# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The commands that train: what they need besides the package itself. Their work is tested in the rooms."""

import subprocess
import sys

import pytest

WITHOUT_PEFT = """
import sys
sys.modules["peft"] = None  # Importing it fails.
from modeling_langcell.cli.main import main
main()
"""


@pytest.mark.long
def test_adapt_names_the_extra_that_is_missing(cells_file, tmp_path):
    command = ("adapt", cells_file, "--label-key", "known", "--out", tmp_path / "adapter")
    ran = subprocess.run([sys.executable, "-c", WITHOUT_PEFT, *map(str, command)], capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    assert ran.stderr == 'Error: No package peft: pip install "modeling-langcell[adapt]".\n'
    assert not (tmp_path / "adapter").exists()
