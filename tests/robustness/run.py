# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Hostile inputs, each given to the command in a process of its own, and what happened.

    python -m tests.robustness.run --json eval/results/robustness.json

What is wrong must end in one message and exit code 2: no traceback, no output, whole or in part, nothing beside the
folder, and nothing run of what a file holds. What is only unusual must work.
"""

import os
import re
import shlex
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_langcell.eval.record import write_record
from tests.robustness.hostile_inputs import Attempt, Bench
from tests.support.commands import run_python

_LONGEST = 100  # Letters of an argument that are shown.


_SECONDS = 300  # A command that takes longer is killed, and the run ends.


def try_out(attempt: Attempt) -> dict[str, Any]:
    """
    What happened: the exit code, the message, what was left in the folder, and whether that is as it should be.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "place" / "work"
        folder.mkdir(parents=True)
        arguments = [str(argument) for argument in attempt.lay(folder)]
        before = _listing(folder)
        command = ("-m", "modeling_langcell.cli", *arguments)
        done = run_python(*command, cwd=folder, largest=attempt.largest, timeout=_SECONDS)
        left = sorted(_listing(folder) - before)
        out, err, code = done.stdout, done.stderr, done.returncode
    said = [line for line in err.splitlines() if line.startswith("Error: ")]
    refused = code == 2 and (len(said) == 1 or "Usage: " in err)
    right = code == 0 and left == ["out.h5ad"] if attempt.works else refused and left == [*attempt.leaves]
    right &= "Traceback" not in err + out
    # Paths of this machine say nothing to others.
    err = err.replace(f"{folder}/", "").replace(str(Path.home()), "~")
    message = err[err.index("Error: ") :] if said else re.sub("[─│╭╮╰╯]+", " ", err) if code else ""
    return {
        "about": attempt.about,
        "what": attempt.what,
        "command": shlex.join(["langcell", *(_short(argument) for argument in arguments)]),
        "largest_file": attempt.largest,
        "exit": code,
        "message": _short(" ".join(message.split()), 600),
        "left": left,
        "should": "work" if attempt.works else "be refused",
        "as_it_should": right,
    }


def _short(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 20]}...{text[-17:]}"


def _listing(folder: Path) -> set[str]:
    """What lies in a folder and beside it."""
    return {os.path.relpath(path, folder) for path in folder.parent.rglob("*")}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the table.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with validation/ and genes/.")] = Path("../shared/data"),
    reference: Annotated[Path, typer.Option(help="Folder with the published layout.")] = Path("../shared/reference"),
    only: Annotated[str, typer.Option(help="Only what holds this text.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 2,
) -> None:
    """Try all hostile inputs out."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    attempts = [one for one in Bench(data, reference).attempts() if only in f"{one.about} {one.what}"]
    rows = []
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(try_out, attempts):
            rows.append(row)
            verdict = "" if row["as_it_should"] else "WRONG "
            typer.echo(f"{verdict}{row['about']} {row['what']}: {row['exit']} {row['message']}")
    wrong = sum(not row["as_it_should"] for row in rows)
    typer.echo(f"{len(rows)} inputs, {wrong} not as they should be.")
    write_record(json_file, {"inputs": len(rows), "wrong": wrong, "rows": rows})
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
