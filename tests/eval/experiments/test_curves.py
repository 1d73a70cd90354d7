# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A run's curves become a picture and a record."""

import json

import pytest

from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.run import pretrain
from tests.support.commands import run_python
from tests.support.paths import REPOSITORY


@pytest.mark.long
def test_the_curves_of_a_run(settings, tmp_path):
    settings |= {"held_out": settings["corpus"], "evaluate_every": 2, "steps": 5}
    run = pretrain(PretrainingConfig(**settings))
    files = [tmp_path / "curves.json", tmp_path / "curves.png"]
    command = ("eval/experiments/curves.py", run, "--json", files[0], "--figure", files[1])
    said = run_python(*command, cwd=REPOSITORY, check=True).stdout
    report = json.loads(files[0].read_text())
    (curves,) = report["runs"].values()
    assert curves["steps"] == [2, 4, 5]
    assert all(len(curve) == 3 for curve in curves["curves"].values())
    assert curves["config"]["seed"] == 0
    assert f"masked-gene loss from {curves['curves']['masked_gene_loss'][0]:.3f}" in said
    assert files[1].read_bytes().startswith(b"\x89PNG")
