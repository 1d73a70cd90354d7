# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Every command that writes, on inputs of seconds: to be killed, and to run on a full disk."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import yaml

from tests.support import tiny
from tests.support.commands import start_python
from tests.support.hub_stand_in import TOKEN
from tests.support.paths import REPOSITORY

#: The command with chunks of a few cells.
LANGCELL = """
import sys
from modeling_langcell.annotation import predictor
from modeling_langcell.cli.main import main
predictor.CHUNK_SIZE = 8
sys.argv[0] = "langcell"
main()
"""
TRAIN = "import sys, train; sys.exit(train.main(sys.argv[1:]))"
#: Entries of records that differ from run to run.
_VOLATILE = {"seconds", "peak_gb", "machine", "command", "compute"}
#: The duration of a training in its card.
_HOURS = re.compile(rb"\d+\.\d\d h, ")
REPOSITORY_NAME = "tester/tiny"


@dataclass(frozen=True)
class SmallRun:
    """
    A command and where it writes.

    Args:
        name: Name of the command, and of what it writes.
        arguments: Returns its arguments for an output folder.
        program: The Python program that takes them.
        outputs: Names of what it writes into the output folder.
        prepare: Writes into the output folder what the command changes there.
        environment: Further variables.
    """

    name: str
    arguments: Callable[[Path], list[Any]]
    program: str = LANGCELL
    outputs: tuple[str, ...] = ("out",)
    prepare: Callable[[Path], Any] = lambda folder: None
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, folder: Path, temporary: Path, cwd: Path) -> Any:
        """Starts the command with an output folder and a folder for temporary files."""
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "OMP_NUM_THREADS": "1",
            "TMPDIR": str(temporary),
            "PYTHONPATH": str(REPOSITORY),
            **self.environment,
        }
        arguments = self.arguments(folder)
        return start_python("-c", self.program, *arguments, cwd=cwd, env=environment, start_new_session=True)


class SmallRuns:
    """
    The inputs of all commands.

    Args:
        folder: An empty folder for them.
        home: Value of `HF_HOME`.
        hub: Address of a stand-in for the Hub, for `publish`.
    """

    def __init__(self, folder: Path, home: Path, hub: str):
        self.folder = folder
        self.hub = {"HF_ENDPOINT": hub, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
        self.checkpoint = tiny.make_checkpoint(folder / "tiny-langcell", tiny.make_processor(folder))
        self.studies = folder / "studies"
        self.studies.mkdir()
        tiny.make_studies(self.studies)
        self.cells = folder / "cells.h5ad"
        adata = tiny.random_cells(160)
        adata.obs["cell_type"] = np.array([*tiny.TYPES.values()])[np.arange(160) % 3]
        adata.write_h5ad(self.cells)
        self.labels = folder / "labels.json"
        self.labels.write_text(json.dumps({name: f"cell type : {name} ." for name in tiny.TYPES.values()}))
        study = {"what": "w", "in_training": False, "licence": "l", "citation": "c", "path": "cells.h5ad"}
        study["sha256"] = hashlib.sha256(self.cells.read_bytes()).hexdigest()
        self.registry = folder / "studies.yaml"
        self.registry.write_text(yaml.safe_dump({"mine": study}))
        self.settings = folder / "train.yaml"
        self.settings.write_text(
            yaml.safe_dump(
                tiny.training_settings(self.studies, folder / "unused")
                | {"steps": 15, "checkpoint_every": 3, "averaging": 0.9, "held_out": str(self.studies / "corpus")}
            )
        )

    def __iter__(self) -> Iterator[SmallRun]:
        model, device = ["--model", self.checkpoint], ["--device", "cpu"]
        named = ["--labels", self.labels, *model, *device]
        yield SmallRun(
            "annotate",
            lambda out: ["annotate", self.cells, *named, "--out", out / "out.h5ad"],
            outputs=("out.h5ad",),
        )
        yield SmallRun(
            "embed",
            lambda out: ["embed", self.cells, *model, *device, "--out", out / "out.h5ad"],
            outputs=("out.h5ad",),
        )
        learnt = ["--label-key", "cell_type", *model]
        yield SmallRun(
            "adapt", lambda out: ["adapt", self.cells, *learnt, *device, "--epochs", 4, "--labels", self.labels,
                                  "--out", out / "out"],
        )  # fmt: skip
        table = self.studies / "gene_info.gz"
        yield SmallRun(
            "corpus", lambda out: ["corpus", self.studies / "train", "--gene-info", table, "--min-cells", 1,
                                   "--chunk-cells", 4, "--out", out / "out"],
        )  # fmt: skip
        yield SmallRun("train", lambda out: [self.settings, f"output={out / 'out'}"], program=TRAIN)
        yield SmallRun(
            "evaluate",
            lambda out: ["evaluate", "zero-shot", *model, *device, "--data", self.folder, "--studies", self.registry,
                         "--study", "mine", "--method", "langcell", "--method", "random_weights", "--seeds", 2,
                         "--out", out / "out", "--report", out / "out.html"],
            outputs=("out", "out.html"),
        )  # fmt: skip
        yield SmallRun(
            "publish", lambda out: ["publish", self.checkpoint, "--repo-id", REPOSITORY_NAME], outputs=(),
            environment=self.hub,
        )  # fmt: skip

    def other_writers(self) -> Iterator[SmallRun]:
        """Yields the other commands that write."""
        model, device = ["--model", self.checkpoint], ["--device", "cpu"]
        named = ["--labels", self.labels, *model, *device]
        annotate = ["annotate", self.cells, *named, "--out", self.folder / "annotated.h5ad"]
        yield SmallRun(
            "report",
            lambda out: [*annotate, "--report", out / "out.html", "--report-genes", 0],
            outputs=("out.html",),
        )
        yield SmallRun("figure", lambda out: [*annotate, "--figure", out / "out.png"], outputs=("out.png",))
        yield SmallRun(
            "example", lambda out: ["annotate", "--example", "--out", out / "out.h5ad"], outputs=("out.h5ad",)
        )
        yield SmallRun(
            "search", lambda out: ["search", self.cells, "b cell", *model, *device, "--out", out / "out.tsv"],
            outputs=("out.tsv",),
        )  # fmt: skip
        yield SmallRun(
            "explain", lambda out: ["explain", self.cells, *named, "--out", out / "out.tsv"], outputs=("out.tsv",)
        )
        yield SmallRun("labels", lambda out: ["labels", "--out", out / "out.tsv"], outputs=("out.tsv",))
        learnt = ["--label-key", "cell_type", *model, *device, "--out"]
        yield SmallRun("calibrate", lambda out: ["calibrate", self.cells, *learnt, out / "out"])
        yield SmallRun("prototypes", lambda out: ["adapt", self.cells, "--head", "prototypes", *learnt, out / "out"])
        yield SmallRun("export", lambda out: ["export", self.checkpoint, "--out", out / "out"])
        yield SmallRun(
            "card", lambda out: ["card", out / "out"], outputs=("out",),
            prepare=lambda out: shutil.copytree(self.checkpoint, out / "out"),
        )  # fmt: skip


def listing(folder: Path) -> set[str]:
    """Returns the relative paths of all files in a folder, hidden ones included, without TensorBoard's logs."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*"))
    return {path for path in paths if "tfevents" not in path}


def contents(folder: Path) -> dict[str, Any]:
    """Returns what the files of a folder hold, by their paths, without what differs from run to run."""
    return {name: _content(folder / name) for name in sorted(listing(folder)) if (folder / name).is_file()}


def _content(path: Path) -> Any:
    if path.suffix == ".h5ad":
        with h5py.File(path) as file:
            found: dict[str, Any] = {}

            def visit(name: str, entry: Any) -> None:
                attributes = {key: np.asarray(value).tolist() for key, value in entry.attrs.items()}
                value = ad.io.read_elem(entry) if isinstance(entry, h5py.Dataset) else None
                # As text: a missing number is not equal to itself.
                found[name] = repr((attributes, None if value is None else np.asarray(value).tolist()))

            file.visititems(visit)
            return found
    if path.suffix == ".json":
        return _steady(json.loads(path.read_text()))
    content = path.read_bytes()
    return hashlib.sha256(_HOURS.sub(b"", content) if path.suffix == ".md" else content).hexdigest()


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(entry) for key, entry in value.items() if key not in _VOLATILE}
    return [_steady(entry) for entry in value] if isinstance(value, list) else value


__all__ = ["REPOSITORY_NAME", "SmallRun", "SmallRuns", "contents", "listing"]
