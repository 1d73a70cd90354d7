# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Fixtures of the tests of the command line."""

import pytest
from typer.testing import CliRunner

from modeling_langcell.cli import app


@pytest.fixture
def run():
    runner = CliRunner()

    def invoke(*arguments):
        return runner.invoke(app, [str(argument) for argument in arguments])

    return invoke


@pytest.fixture
def cells_file(cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.obs["known"] = ["B cell", "natural killer cell"] * (cells.n_obs // 2)
    cells.write_h5ad(path)
    return path
