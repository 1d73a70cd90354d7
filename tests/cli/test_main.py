# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The command itself: how fast it answers, how it ends, and what it logs."""

import logging
import os
import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

import modeling_langcell as langcell
from modeling_langcell.cli import app
from modeling_langcell.cli.main import Commands
from tests.support.commands import run_python

HEAVY = {
    *("torch", "transformers", "huggingface_hub", "anndata", "pandas"),
    *("scanpy", "sklearn", "numba", "matplotlib"),
}

#: Runs a command, and prints the heavy modules that it imported on the last line.
PROGRAM = f"""
import sys
from modeling_langcell.cli import app
sys.argv[0] = "langcell"
try:
    app()
finally:
    print(*sorted({HEAVY!r} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "shown"),
    [
        ("--help", 0, "Annotate single cells by free text"),
        ("--version", 0, f"langcell {langcell.__version__}"),
        ("annotate --help", 0, "--ontology-root"),
        ("evaluate --help", 0, "Number of random seeds."),
        ("annotate --dtyp float32", 2, "--dtyp"),
        ("annotate --dtype int4", 2, "'float32'"),
        ("anotate", 2, "annotate"),
        ("annotate nowhere.h5ad --labels a;b", 2, "Error: No file nowhere.h5ad."),
        ("calibrate nowhere.h5ad --label-key a --out b", 2, "Error: No file nowhere.h5ad."),
    ],
)
def test_light_answers_import_nothing_heavy(arguments, code, shown):
    """In a process of its own, because imports are tested."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments.split()], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    assert shown in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == ""


def test_annotating_imports_nothing_that_it_can_do_without(cells_file, tiny_checkpoint, tmp_path):
    """Its other options need packages that take seconds to import."""
    options = ["--model", tiny_checkpoint, "--labels", "B cell;T cell", "--out", tmp_path / "o.h5ad"]
    command = map(str, [sys.executable, "-c", PROGRAM, "annotate", cells_file, *options])
    done = subprocess.run([*command], check=True, capture_output=True, text=True)
    assert {*done.stdout.splitlines()[-1].split()} == HEAVY - {"scanpy", "sklearn", "numba", "matplotlib"}


@pytest.mark.parametrize("command", [[], ["annotate"], ["corpus"], ["evaluate"], ["publish"]])
def test_help_of_each_module(run, command):
    result = run(*command, "--help")
    assert result.exit_code == 0, result.output
    assert "Usage: " in result.stdout


def test_without_a_command_there_is_help():
    done = run_python("-m", "modeling_langcell.cli")
    assert done.returncode == 2
    assert "Make a checkpoint" in done.stdout + done.stderr


def test_bad_input_ends_a_process_with_2_and_without_traceback(tmp_path):
    process = run_python("-m", "modeling_langcell.cli", "annotate", tmp_path / "no.h5ad", "--labels", "B cell")
    assert process.returncode == 2
    assert "No file" in process.stderr
    assert "Traceback" not in process.stderr
    assert not process.stdout


class TestVerbose:
    """The package's log, printed by a command that only logs."""

    @pytest.fixture
    def app_that_logs(self):
        logs = typer.Typer(cls=Commands)
        logs.registered_callback = app.registered_callback

        @logs.command()
        def log(value: str = ""):
            logger = logging.getLogger("modeling_langcell.annotation.chunk_store")
            logger.debug("too much")
            logger.info("a chunk is done")
            logger.warning("a chunk is damaged")
            typer.echo(f"done{value}")

        return logs

    @pytest.mark.parametrize(
        "arguments", [["--verbose", "log"], ["log", "--verbose"], ["log", "--verbose", "--value", "!"]]
    )
    def test_prints_what_is_logged(self, app_that_logs, arguments):
        result = CliRunner().invoke(app_that_logs, arguments)
        assert result.exit_code == 0, result.output
        assert result.stdout == ("done!\n" if "!" in arguments else "done\n")
        info, warning = result.stderr.splitlines()
        assert info.endswith(" INFO modeling_langcell.annotation.chunk_store: a chunk is done")
        assert warning.endswith(" WARNING modeling_langcell.annotation.chunk_store: a chunk is damaged")

    def test_ends_with_the_command(self, app_that_logs):
        logger = logging.getLogger("modeling_langcell")
        before = logger.level, [*logger.handlers]
        CliRunner().invoke(app_that_logs, ["--verbose", "log"])
        assert (logger.level, logger.handlers) == before

    def test_nothing_is_printed_without_it(self, app_that_logs):
        result = CliRunner().invoke(app_that_logs, ["log"])
        assert result.stdout == "done\n"
        assert result.stderr == ""

    def test_a_value_that_looks_like_it(self, app_that_logs):
        """After `--` there are no options."""
        result = CliRunner().invoke(app_that_logs, ["log", "--", "--verbose"])
        assert result.exit_code == 2

    def test_the_library_is_quiet(self):
        program = "import logging, modeling_langcell; logging.getLogger('modeling_langcell.io').warning('unheard')"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ})
        assert done.stdout + done.stderr == ""


def test_the_command_looks_for_unreachable_objects_rarely():
    """Up to a fifth of the time of importing torch and transformers goes into it otherwise."""
    lines = ["import atexit, gc", "atexit.register(lambda: print(gc.get_threshold()[0]))"]
    lines += ["from modeling_langcell.cli import main", "main()"]
    command = [sys.executable, "-c", "\n".join(lines), "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert int(done.stdout.splitlines()[-1]) == 10_000, done.stderr
