# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What the commands show: no name moves the cursor, colours the terminal, adds a line or is read as markup."""

import io
import json
import logging
import re
import sys
import warnings

import anndata as ad
import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from modeling_langcell import InputError
from modeling_langcell.cli import app
from modeling_langcell.cli.main import Commands, main
from modeling_langcell.cli.terminal import say
from modeling_langcell.io import progress
from tests.support.commands import run_python

EVIL = "\x1b[2J\x1b]52;c;eA==\x07\r\nError: forged\u202e\x9b1m"
MARKUP = "[red]x[/] [/nothing] [link=http://x]y"
CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def names_app():
    """Commands that show a name in every way in which a command shows something."""
    shows = typer.Typer(cls=Commands)
    shows.registered_callback = app.registered_callback

    @shows.command()
    def show(name: str, how: str = "say"):
        logger = logging.getLogger("modeling_langcell.io.h5ad" if how == "log" else "another.package")
        if how == "say":
            say(f"cell {name}")
        elif how in ("log", "foreign-log"):
            logger.addHandler(handler := logging.StreamHandler(sys.stderr))
            logger.warning("a file %s", name)
            logger.removeHandler(handler)
        elif how == "warn":
            print(warnings.formatwarning(UserWarning(name), UserWarning, "file.py", 1), file=sys.stderr)
        elif how == "refuse":
            raise InputError(f"{name} is wrong.")
        elif how == "os":
            raise OSError(2, "No such file", name)
        elif how == "usage":
            raise typer.BadParameter(name)

    return shows


@pytest.mark.parametrize("how", ["say", "log", "foreign-log", "warn", "refuse", "os", "usage"])
@pytest.mark.parametrize("name", [EVIL, MARKUP])
def test_a_name_is_shown_and_not_obeyed(names_app, how, name):
    result = CliRunner().invoke(names_app, ["--verbose", "show", "--how", how, "--", name])
    assert result.exit_code == (2 if how in ("refuse", "os", "usage") else 0), result.output
    assert not CONTROL.search(result.output)
    shown = " ".join(re.sub("[─│╭╮╰╯]+", " ", result.output).split())
    assert MARKUP in shown if name == MARKUP else "forged" in shown
    if how != "foreign-log":  # Messages of other packages may have several lines.
        assert not [line for line in result.output.splitlines() if line.startswith("Error: forged")]


@pytest.mark.parametrize(
    "arguments",
    [["annotate", f"{EVIL}.h5ad"], [EVIL], [f"--{EVIL}"], ["annotate", f"--{EVIL}"], ["annotate", "--counts", EVIL]],
)
@pytest.mark.parametrize("name", [EVIL, MARKUP])
def test_what_is_typed_is_shown_and_not_obeyed(run, arguments, name):
    result = run(*(argument.replace(EVIL, name) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert not CONTROL.search(result.output)


def test_logs_are_as_before_when_the_command_ends(names_app):
    before = logging.getLogRecordFactory(), warnings.formatwarning
    CliRunner().invoke(names_app, ["show", "a"])
    assert (logging.getLogRecordFactory(), warnings.formatwarning) == before


def test_a_progress_bar_reads_no_markup(monkeypatch):
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_terminal=True, width=99))
    with progress.progress_bar() as bar:
        bar.add_task(MARKUP, total=1)
        bar.refresh()
        assert MARKUP in bar.console.file.getvalue()


def test_a_fault_of_the_program_is_printable(monkeypatch, capsys):
    def fail():
        raise RuntimeError(EVIL)

    monkeypatch.setattr(sys.modules[main.__module__], "app", fail)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "RuntimeError" in shown
    assert not CONTROL.search(shown)


@pytest.mark.e2e
def test_names_of_cells_labels_and_genes(run, cells, tiny_checkpoint, tmp_path):
    """Real commands on cells whose every name is hostile; the annotated file keeps the names as they are."""
    name = f"={EVIL}".replace("\r", "")
    cells.obs_names = [f"{name}{number}" for number in range(cells.n_obs)]
    cells.obs["by"] = [f"{name}{number % 2}" for number in range(cells.n_obs)]
    cells.var["ensembl_id"] = cells.var["ensembl_id"].astype(str)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    (tmp_path / "types.json").write_text(json.dumps({name: "cell type: a.", f"{MARKUP}|=": "cell type: b."}))
    options = ["--model", tiny_checkpoint, "--labels", tmp_path / "types.json"]
    commands = [
        ["annotate", tmp_path / "cells.h5ad", *options, "--cluster-key", "by", "--out", tmp_path / "out.h5ad"],
        ["describe", *options],
        ["explain", tmp_path / "cells.h5ad", *options, "--out", tmp_path / "genes.tsv", "--figure", tmp_path / "g.png"],
        ["search", tmp_path / "cells.h5ad", "GENE1", "--model", tiny_checkpoint, "--out", tmp_path / "found.tsv"],
        ["annotate", tmp_path / "cells.h5ad", *options, "--reference", name],
        ["adapt", tmp_path / "cells.h5ad", "--label-key", "by", "--model", tiny_checkpoint, "--out", tmp_path / "a"],
    ]
    for command in commands:
        result = run(*command)
        assert result.exit_code in (0, 2), result.output
        assert not CONTROL.search(result.output), command
        assert not [line for line in result.output.splitlines() if line.startswith("Error: forged")]
    annotated = ad.read_h5ad(tmp_path / "out.h5ad")
    assert annotated.obs_names.tolist() == cells.obs_names.tolist()
    assert {name, f"{MARKUP}|="} == {*annotated.uns["langcell"]["labels"]}
    for table in ("genes.tsv", "found.tsv"):
        text = (tmp_path / table).read_text()
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", text)
        assert not re.search(r"(^|\t)[=+@]", text, flags=re.M)


@pytest.mark.e2e
def test_a_process_shows_a_hostile_name_safely(tmp_path):
    process = run_python("-m", "modeling_langcell.cli", "annotate", f"{tmp_path}/{EVIL}.h5ad")
    assert process.returncode == 2
    assert len(process.stderr.splitlines()) == 1
    assert not CONTROL.search(process.stderr)
