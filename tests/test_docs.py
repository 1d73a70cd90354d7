# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The commands of the documentation, run as they stand on real cells, with a stand-in for the Hub."""

import hashlib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import anndata as ad

from .conftest import REPOSITORY
from .hub_stand_in import HubStandIn

FILES = {
    "blood.h5ad": "train/zheng_sorted_safe.h5ad",
    "marrow.h5ad": "train/marrow_vangalen2019_cd34sorted.h5ad",
    "lung.h5ad": "train/nsclc_zilionis_scgate.h5ad",
    "held-out.h5ad": "validation/zheng68k_subset_pbmc.h5ad",
    "Homo_sapiens.gene_info.gz": "genes/Homo_sapiens.gene_info.gz",
}


def blocks(page: Path, kind: str) -> list[str]:
    """What stands in a page's blocks of a language."""
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page's `sh` blocks, but for the installation, which the tests themselves rest on."""
    lines = "".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if not line.startswith("pip install")]


def follow(page: list[list[str]], folder: Path, **environment: str) -> None:
    """Runs commands in a folder, as from the repository's root."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(REPOSITORY)} | environment
    for name in ("train.py", "hub_configs"):
        (folder / name).symlink_to(REPOSITORY / name)
    for command in page:
        run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        assert run.returncode == 0, (command, run.stdout[-2000:], run.stderr[-4000:])


def test_pre_train_your_own(shared, tmp_path):
    for name, source in FILES.items():
        (tmp_path / name).symlink_to(shared / "data" / source)
    found = commands(REPOSITORY / "docs" / "pre-train-your-own.md")
    assert [command[0] for command in found] == ["langcell"] * 2 + ["python"] * 2 + ["accelerate", "python", "langcell"]
    with HubStandIn() as hub:
        hub_environment = {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_nobody", "HF_HUB_DISABLE_XET": "1"}
        follow(found, tmp_path, HF_HOME=str(tmp_path / "home"), **hub_environment)
        assert "model.safetensors" in hub.repositories["YOU/langcell-mine"]
    annotated = ad.read_h5ad(tmp_path / "annotated.h5ad")
    assert set(annotated.obs["langcell_cell_type"]) <= {"B cell", "monocyte", "natural killer cell"}


def test_adapt_to_your_data(shared, tmp_path):
    cells = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")
    names = ("B cell", "natural killer cell", "CD14-positive monocyte")
    cells = cells[cells.obs["cell_type"].isin(names)].copy()
    cells.obs["my_label"] = cells.obs["cell_type"].astype(str).map(dict(zip(names, "abc", strict=True)))
    (tmp_path / "my-labels.tsv").write_text(
        "".join(f"{mine}\t{name}\n" for mine, name in zip("abc", names, strict=True))
    )
    cells[::2].write_h5ad(tmp_path / "labelled.h5ad")
    cells[1::2].write_h5ad(tmp_path / "new.h5ad")
    page = REPOSITORY / "docs" / "adapt-to-your-data.md"
    (entry,) = blocks(page, "yaml")
    digest = hashlib.sha256((tmp_path / "labelled.h5ad").read_bytes()).hexdigest()
    (tmp_path / "my-studies.yaml").write_text(entry.replace("what sha256sum says of the file", digest))
    found = commands(page)
    asked = ["adapt", "annotate"] * 2 + ["adapt"] + ["adapt", "annotate"] + ["evaluate"]
    assert [command[1] for command in found] == asked
    (session,) = blocks(page, "python")
    given = 'import anndata as ad\nadata, new = ad.read_h5ad("labelled.h5ad"), ad.read_h5ad("new.h5ad")\n'
    right = 'assert (new.obs["langcell_cell_type"].astype(str) == new.obs["cell_type"].astype(str)).mean() > 0.8\n'
    follow([*found, [sys.executable, "-c", given + session + right]], tmp_path)
    assert "| mine | logistic_regression | 9 |" in (tmp_path / "runs" / "evaluation" / "few-shot.md").read_text()
    for name in ("annotated-quickly", "annotated", "classified"):
        annotated = ad.read_h5ad(tmp_path / f"{name}.h5ad")
        right = annotated.obs["langcell_cell_type"].astype(str) == annotated.obs["cell_type"].astype(str)
        assert right.mean() > 0.8, name
    assert "runs/adapter" in (tmp_path / "report.html").read_text()
