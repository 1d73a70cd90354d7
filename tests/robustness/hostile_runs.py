# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="func-returns-value, misc"
# Inputs are made by expressions, some of which return nothing.
"""Hostile runs: outputs that others use, what dead runs and launchers left, full disks, and paths that are no files."""

import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from modeling_langcell.checkpoint.builtin import MINI
from tests.robustness import hostile_outputs
from tests.robustness.hostile_inputs import Attempt, Change, HostileInputs

_LABELLED = ("cells.h5ad", "--label-key", "cell_type")
#: Commands that write, without their outputs.
COMMANDS: dict[str, Sequence[str]] = hostile_outputs.COMMANDS | {
    "adapt": ["adapt", *_LABELLED, "--head", "prototypes"],
    "calibrate": ["calibrate", *_LABELLED],
    "export": ["export", MINI],
    "corpus": ["corpus", "cells.h5ad", "--gene-info", "genes.gz", "--min-cells", "1"],
}
#: A name as an incomplete file or folder has it.
_RANDOM = "0123456789abcdef" * 2
#: What a launcher leaves in the environment of later commands.
_LEFT_BY_LAUNCHER = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "192.0.2.1", "MASTER_PORT": "9"}


def attempts(inputs: HostileInputs) -> list[Attempt]:
    """Returns all attempts."""
    return [
        *_locks(inputs),
        *_leftovers(inputs),
        *_launchers(inputs),
        *_corpora(inputs),
        *_limits(inputs),
        *_no_files(inputs),
    ]


def _out(command: str, name: str = "out") -> list[str]:
    """Returns a command with its output."""
    return [*COMMANDS[command], "--out", name]


def _genes(inputs: HostileInputs) -> Change:
    """Returns a function that puts the table of genes for `corpus` into a folder."""
    return lambda folder: (folder / "genes.gz").symlink_to((inputs.genes / "Homo_sapiens.gene_info.gz").resolve())


def _locks(inputs: HostileInputs) -> Iterator[Attempt]:
    """Outputs that a living process writes, and locks of dead ones."""
    for command in ("annotate", "embed", "adapt", "calibrate", "export", "corpus"):
        yield inputs.attempt(
            "runs", f"while another process writes the output of {command}", *_out(command),
            prepare=_genes(inputs), locked=".out.process-0",
        )  # fmt: skip
    yield inputs.attempt(
        "runs", "while another process writes the results of evaluate", "evaluate", "zero-shot", "--out", "out",
        prepare=lambda folder: (folder / "out").mkdir(), locked="out/.zero-shot.json.process-0",
    )  # fmt: skip
    yield inputs.attempt(
        "runs", "while the second process of a launch writes the output", *_out("annotate", "out.h5ad"),
        locked=".out.h5ad.process-1",
    )  # fmt: skip
    lock = ".out.h5ad.process-0"
    own = {"id": "1", "host": socket.gethostname(), "pid": os.getpid(), "command": "langcell"}
    dead: dict[str, bytes] = {
        "empty": b"",
        "damaged": b"\xff{",
        "of another kind": b"[1]",
        "of a number that another process has now": json.dumps(own).encode(),
        "of another machine": json.dumps(own | {"host": "elsewhere"}).encode(),
    }
    for what, content in dead.items():
        yield inputs.attempt(
            "runs", f"after a dead one whose lock is {what}", *_out("annotate", "out.h5ad"),
            prepare=lambda folder, content=content: (folder / lock).write_bytes(content),
            valid=True, removed=(lock,),
        )  # fmt: skip
    yield inputs.attempt(
        "runs", "after a dead launch of more processes", *_out("embed", "out.h5ad"), valid=True,
        prepare=lambda folder: [(folder / f".out.h5ad.process-{rank}").touch() for rank in range(4)],
        removed=tuple(f".out.h5ad.process-{rank}" for rank in range(4)),
    )  # fmt: skip
    others: dict[str, Change] = {
        "a folder": Path.mkdir,
        "a link to a file": lambda path: path.symlink_to("cells.h5ad"),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a named pipe": os.mkfifo,
        "a socket": _make_socket,
    }
    for what, make in others.items():
        yield inputs.attempt(
            "runs", f"with {what} in place of the lock", *_out("annotate", "out.h5ad"),
            prepare=lambda folder, make=make: make(folder / lock),
        )  # fmt: skip


def _leftovers(inputs: HostileInputs) -> Iterator[Attempt]:
    """What killed runs left, and files of others with such names."""

    def unfinished(*names: str) -> Change:
        return lambda folder: _write(folder, *(f".out.h5ad.unfinished/{name}" for name in names))

    def after(what: str, *names: str, removed: bool = True) -> Attempt:
        gone = (".out.h5ad.unfinished", *(f".out.h5ad.unfinished/{name}" for name in names)) if removed else ()
        return inputs.attempt(
            "leftovers", what, *_out("annotate", "out.h5ad"), prepare=unfinished(*names), valid=removed, removed=gone
        )

    yield after("are parts without a plan", "00000000.safetensors", "00000007.safetensors")
    yield after("are parts with a damaged plan", "plan.json", "00000000.safetensors")
    yield after("are half of an output", "plan.json", "annotated.h5ad")
    yield after("are an incomplete plan", f".plan.json.{_RANDOM}", f".plan.json.{_RANDOM}.lock")
    yield after("are a part of another name", "plan.json", "0.safetensors", removed=False)
    yield after("are an incomplete file of another", f".notes.{_RANDOM}", removed=False)
    yield inputs.attempt(
        "leftovers", "are a file in place of the folder of parts", *_out("annotate", "out.h5ad"),
        prepare=lambda folder: _write(folder, ".out.h5ad.unfinished"),
    )  # fmt: skip
    tables = (f".out.{_RANDOM}", f".out.{_RANDOM}.lock")
    yield inputs.attempt(
        "leftovers", "are half of a table", *_out("labels"), prepare=lambda folder: _write(folder, *tables),
        valid=True, makes=("out",), removed=tables,
    )  # fmt: skip
    folders = (f".out.{_RANDOM}", f".out.{_RANDOM}/out", f".out.{_RANDOM}/out/config.json", f".out.{_RANDOM}.lock")
    yield inputs.attempt(
        "leftovers", "are half of a folder", *_out("export"), prepare=lambda folder: _write(folder, *folders[2:]),
        valid=True, makes=("out",), removed=folders,
    )  # fmt: skip
    for what, name in {
        "are a folder without a lock": f".out.{_RANDOM}/mine",
        "are a file with a shorter name": f".out.{_RANDOM[1:]}",
        "are a file with capital letters": f".out.{_RANDOM.upper()}",
        "are a file of another output": f".other.{_RANDOM}",
    }.items():
        yield inputs.attempt(
            "leftovers", f"{what}, which stay", *_out("labels"), prepare=lambda folder, name=name: _write(folder, name),
            valid=True, makes=("out",),
        )  # fmt: skip


def _launchers(inputs: HostileInputs) -> Iterator[Attempt]:
    """Environments that a launcher left or that nothing has set so."""
    wrong: dict[str, dict[str, str]] = {
        "a rank of no launch": {"RANK": "1"},
        "a rank beyond the processes": {"RANK": "7", "WORLD_SIZE": "2"},
        "a negative rank": {"RANK": "-1", "WORLD_SIZE": "2"},
        "a size that is a word": {"WORLD_SIZE": "two"},
        "a size of 0": {"WORLD_SIZE": "0"},
        "a huge rank": {"RANK": "9" * 30, "WORLD_SIZE": "9" * 31},
    }
    for what, environment in wrong.items():
        yield inputs.attempt("launch", f"for annotate with {what}", *_out("annotate"), environment=environment)
    for command in ("embed", "adapt"):
        yield inputs.attempt(
            "launch", f"for {command} with a rank of no launch", *_out(command), environment={"RANK": "1"}
        )
    yield inputs.attempt("launch", "for adapt with what a launcher left", *_out("adapt"), environment=_LEFT_BY_LAUNCHER)
    for command in ("search", "explain", "labels", "calibrate", "export", "corpus"):
        yield inputs.attempt(
            "launch", f"for {command}, which one process does, with what a launcher left", *_out(command),
            prepare=_genes(inputs), environment=_LEFT_BY_LAUNCHER, valid=True, makes=("out",),
        )  # fmt: skip


def _corpora(inputs: HostileInputs) -> Iterator[Attempt]:
    """Sources with hidden names, and folders that hold other things."""
    corpus = ["corpus", "sources", "--gene-info", "genes.gz", "--min-cells", "1", "--out", "out"]

    def sources(**content: str) -> Change:
        def prepare(folder: Path) -> None:
            _genes(inputs)(folder)
            (folder / "sources").mkdir()
            for name in content.values():
                if "._" in name:
                    (folder / "sources" / name).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(4000))
                else:
                    shutil.copyfile(folder / "cells.h5ad", folder / "sources" / name)

        return prepare

    made = {"valid": True, "makes": ("out",)}
    yield inputs.attempt("corpus", "of a hidden source alone", *corpus, prepare=sources(one=".a.h5ad"), **made)
    yield inputs.attempt(
        "corpus", "of a hidden source and another", *corpus, prepare=sources(one=".a.h5ad", two="b.h5ad"), **made
    )
    double = sources(one="a.h5ad", two="._a.h5ad")
    yield inputs.attempt("corpus", "of a source and its AppleDouble file", *corpus, prepare=double)
    yield inputs.attempt(
        "corpus", "of a source, its AppleDouble file skipped", *corpus, "--on-unfit", "skip", prepare=double, **made
    )
    for what, *names in (
        ("genes of another", "genes.json"),
        ("a hidden file", ".mine"),
        ("a shard", "shards/cells-000000.arrow"),
        ("an unfinished plan that is damaged", "unfinished/plan.json"),
        ("a manifest that is damaged", "manifest.json"),
    ):
        yield inputs.attempt(
            "corpus", f"in a folder with {what}", *_out("corpus"),
            prepare=lambda folder, names=names: (_genes(inputs)(folder), _write(folder / "out", *names)),
        )  # fmt: skip
    for command in ("adapt", "calibrate", "export"):
        yield inputs.attempt(
            "output", f"for {command} is a folder with a hidden file", *_out(command),
            prepare=lambda folder: _write(folder, "out/.mine"),
        )  # fmt: skip
        yield inputs.attempt(
            "output", f"for {command} is a link to nothing", *_out(command),
            prepare=lambda folder: (folder / "out").symlink_to("nowhere"),
        )  # fmt: skip


def _limits(inputs: HostileInputs) -> Iterator[Attempt]:
    """A limit on the size of files for the writers that have none yet."""
    for command in ("search", "explain", "labels"):
        yield inputs.attempt("output", f"for {command} is on a full disk", *_out(command), max_file_bytes=300)
    yield inputs.attempt(
        "output", "for corpus is on a full disk", *_out("corpus"), prepare=_genes(inputs), max_file_bytes=2_000,
        kept=("out", "out/unfinished", "out/unfinished/plan.json"),
    )  # fmt: skip


def _no_files(inputs: HostileInputs) -> Iterator[Attempt]:
    """Inputs and outputs that are no files, though they have names."""
    kinds: dict[str, Change] = {
        "a named pipe": os.mkfifo,
        "a socket": _make_socket,
        "a link to a device": lambda path: path.symlink_to("/dev/zero"),
        "a link to a process's memory": lambda path: path.symlink_to("/proc/self/mem"),
    }
    for what, make in kinds.items():
        yield inputs.attempt(
            "file", f"is {what}", *_out("annotate", "out.h5ad"),
            prepare=lambda folder, make=make: ((folder / "cells.h5ad").unlink(), make(folder / "cells.h5ad")),
        )  # fmt: skip
        yield inputs.attempt(
            "labels", f"are {what}", "annotate", "cells.h5ad", "--labels", "types.json", "--out", "out.h5ad",
            prepare=lambda folder, make=make: make(folder / "types.json"),
        )  # fmt: skip
    for command in ("annotate", "search", "labels", "export"):
        for what in ("a named pipe", "a socket"):
            yield inputs.attempt(
                "output", f"for {command} is {what}", *_out(command),
                prepare=lambda folder, make=kinds[what]: make(folder / "out"),
            )  # fmt: skip
    pipe = lambda name: lambda folder: (_genes(inputs)(folder), os.mkfifo(folder / name))  # noqa: E731
    yield inputs.attempt(
        "corpus", "with a named pipe for a gene table", "corpus", "cells.h5ad", "--gene-info", "pipe", "--out", "out",
        prepare=pipe("pipe"),
    )  # fmt: skip
    yield inputs.attempt(
        "corpus", "with a named pipe for sources", *_out("corpus"), "--sources", "s", prepare=pipe("s")
    )
    yield inputs.attempt(
        "evaluate", "with a named pipe for studies", "evaluate", "zero-shot", "--studies", "s", "--out", "out",
        prepare=pipe("s"),
    )  # fmt: skip


def _write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")


def _make_socket(path: Path) -> None:
    """Makes a socket; its name is relative, since the kernel allows only a hundred letters."""
    descriptor = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"/proc/self/fd/{descriptor}/{path.name}")
    os.close(descriptor)


__all__ = ["attempts"]
