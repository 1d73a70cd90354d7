# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The help of the commands: examples that work, values that are listed, completion, and results for machines."""

import os
import re
import shlex

import anndata as ad
import pytest
from typer.main import get_group

from modeling_langcell.cli import app
from tests.support.commands import run_python

GROUP = get_group(app)
COMMANDS = sorted(GROUP.commands)


def examples_of(command: str) -> list[str]:
    title, *lines = GROUP.commands[command].epilog.split("\n\n")
    assert title == "Examples:"
    return lines


@pytest.fixture
def desk(shared, tmp_path, monkeypatch):
    """A folder with the files that the examples name; those that only their own commands read are empty."""
    monkeypatch.chdir(tmp_path)
    cells = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")[::2].copy()
    cells.obs["donor_id"] = cells.obs["my_label"] = cells.obs["cell_type"]
    for name in ("cells", "labelled", "blood", "lung"):
        cells.write_h5ad(f"{name}.h5ad")
    (tmp_path / "types.tsv").write_text("B cell\nmonocyte\n")
    for folder in ("studies", "parts", "runs/mine", "runs/results", "runs/adapter"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("tokens.pkl", "medians.pkl", "names.pkl", "vocab.txt", "config.yaml", "my-studies.yaml"):
        (tmp_path / name).touch()
    (tmp_path / "Homo_sapiens.gene_info.gz").touch()
    (tmp_path / "cells_langcell.h5ad").touch()
    return tmp_path


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_are_read_as_they_are_written(desk, command):
    """Every option exists, every value is one of its choices, and every file that an example reads may be there."""
    assert examples_of(command)
    for line in examples_of(command):
        if not line.startswith("langcell"):
            assert re.match("accelerate launch .* -m modeling_langcell.cli ", line)
            line = "langcell" + line.partition(" -m modeling_langcell.cli")[2]
        name, *arguments = shlex.split(line)[1:]
        assert name == command
        GROUP.commands[command].make_context(command, arguments)


@pytest.mark.long
@pytest.mark.parametrize("command", ["annotate", "embed", "describe", "labels", "search", "explain"])
def test_examples_for_cells_work(desk, run, command):
    if command == "explain":
        assert run("annotate", "cells.h5ad", "--labels", "types.tsv").exit_code == 0
    for line in examples_of(command):
        result = run(*shlex.split(line)[1:])
        assert result.exit_code == 0, result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_long_helps_are_in_groups(command):
    options = [param for param in GROUP.commands[command].params if param.param_type_name == "option"]
    alone = [param.name for param in options if param.rich_help_panel is None and param.name != "help"]
    assert len(options) < 10 or len(alone) <= 1, alone


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_results_for_machines(command):
    assert "--json" in {name for param in GROUP.commands[command].params for name in param.opts}


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("langcell ann", {"annotate"}),
        ("langcell annotate --coun", {"--counts"}),
        ("langcell annotate --counts l", {"log1p"}),
        ("langcell evaluate z", {"zero-shot"}),
        ("langcell adapt --head p", {"prototypes"}),
    ],
)
def test_a_shell_completes_commands_options_and_values(words, found):
    program = "import sys; sys.argv[0] = 'langcell'; from modeling_langcell.cli import app; app()"
    asked = {"_LANGCELL_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = run_python("-c", program, env=os.environ | asked)
    assert set(done.stdout.split()) == found, done.stderr


def test_settings_of_a_training_are_explained(run):
    result = run("pretrain", "--settings")
    assert result.exit_code == 0
    assert re.search(r"^ +learning_rate|steps, learning_rate", result.output, flags=re.MULTILINE)
    assert "Give a CONFIG: 'langcell pretrain --settings' explains" in run("pretrain").stderr
