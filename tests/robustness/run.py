# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Runs the command on hostile and unusual inputs, each in a process of its own, and records how it ends.

    python -m tests.robustness.run --json eval/results/robustness.json

A hostile input must end with one message and exit code 2: no traceback, no output, not even a part of one, nothing
written beside the folder, no file changed or lost that was there, and no code run that a file holds. An input that is
only unusual must work.
"""

import fcntl
import hashlib
import json
import os
import re
import shlex
import signal
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_langcell.eval.record import write_record
from tests.robustness.attempts import all_attempts
from tests.robustness.hostile_inputs import Attempt
from tests.support.commands import start_python
from tests.support.paths import REPOSITORY

_LONGEST = 100  # Letters of an argument that the table shows.
_SECONDS = 300
_LONG = 2**22  # Bytes.
#: The programs by their names, which the messages of `langcell` begin with.
_PROGRAMS = {
    "langcell": "import sys; from modeling_langcell.cli.main import main; sys.argv[0] = 'langcell'; main()",
    "train.py": "import sys; from train import main; sys.exit(main(sys.argv[1:]))",
}


def try_out(attempt: Attempt) -> dict[str, Any]:
    """Runs an attempt, and returns its row of the table: exit code, message, files left, and if all is as it should."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "place" / "work"
        folder.mkdir(parents=True)
        arguments = [str(argument) for argument in attempt.set_up(folder)]
        environment = os.environ | attempt.environment
        with _locked(folder, attempt.locked):
            before = _listing(folder)
            process = start_python(
                *("-c", _PROGRAMS[attempt.program], *arguments),
                cwd=folder,
                env=environment,
                largest=attempt.max_file_bytes,
            )
            limit = threading.Timer(_SECONDS, os.kill, (process.pid, signal.SIGKILL))
            limit.start()
            out, err = process.communicate()
            limit.cancel()
            after = _listing(folder)
        left = sorted(path for path, content in after.items() if before.get(path) != content)
    errors = [line for line in err.splitlines() if line.startswith("Error: ")]
    refused = process.returncode == 2 and (len(errors) == 1 or "Usage: " in err) and left == [*attempt.kept]
    worked = process.returncode == 0 and {path.split("/")[0] for path in left} == {*attempt.makes}
    as_it_should = (worked if attempt.valid else refused) and before.keys() - after.keys() == {*attempt.removed}
    # Paths of this machine mean nothing to readers.
    message = err.replace(f"{folder}/", "").replace(f"{REPOSITORY}/", "") if process.returncode else ""
    message = message.replace(str(Path.home()), "~")
    # A message about an option stands in a frame.
    message = message[message.index("Error: ") :] if errors and message else re.sub("[─│╭╮╰╯]+", " ", message)
    return {
        "about": attempt.about,
        "what": attempt.what,
        "command": shlex.join([attempt.program, *(_shortened(argument) for argument in arguments)]),
        "environment": attempt.environment,
        "largest_file": attempt.max_file_bytes,
        "exit": process.returncode,
        "message": _shortened(" ".join(message.split()), 600),
        "left": left,
        "should": "work" if attempt.valid else "be refused",
        "as_it_should": as_it_should and "Traceback" not in err + out,
    }


@contextmanager
def _locked(folder: Path, name: str | None) -> Iterator[None]:
    """Holds a lock in a folder as a process of another machine does."""
    if name is None:
        yield
        return
    with open(folder / name, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        json.dump({"id": "0", "host": "elsewhere", "pid": 1, "command": "langcell"}, lock)
        lock.flush()
        yield


def _shortened(text: str, longest: int = _LONGEST) -> str:
    return text if len(text) <= longest else f"{text[: longest - 20]}...{text[-17:]}"


def _listing(folder: Path) -> dict[str, str]:
    """Returns the paths in a folder and beside it, with what each holds."""
    return {os.path.relpath(path, folder): _content(path) for path in sorted(folder.parent.rglob("*"))}


def _content(path: Path) -> str:
    """Returns what tells whether a file was changed: a hash, or the size and time of one that takes long to read."""
    if path.is_symlink():
        return f"link to {os.readlink(path)}"
    if not path.is_file():
        return ""
    status = path.stat()
    if status.st_size > _LONG:
        return f"{status.st_size} bytes of {status.st_mtime_ns}"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the table.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with validation/ and genes/.")] = Path("../shared/data"),
    reference: Annotated[Path, typer.Option(help="Folder with a checkpoint in the published layout.")] = Path(
        "../shared/reference"
    ),
    only: Annotated[str, typer.Option(help="Run only the attempts whose name contains this text.")] = "",
    jobs: Annotated[int, typer.Option(help="Number of processes at the same time.", min=1)] = 2,
) -> None:
    """Try all hostile inputs, and exit with 1 if any ends in an unexpected way."""
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    attempts = [one for one in all_attempts(data, reference) if only in one.name]
    rows = []
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(try_out, attempts):
            rows.append(row)
            verdict = "" if row["as_it_should"] else "WRONG "
            typer.echo(f"{verdict}{row['about']} {row['what']}: {row['exit']} {row['message']}")
    wrong = sum(not row["as_it_should"] for row in rows)
    typer.echo(f"{len(rows)} inputs, {wrong} ended in an unexpected way.")
    write_record(json_file, {"inputs": len(rows), "wrong": wrong, "rows": rows})
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
