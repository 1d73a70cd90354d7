# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What is released: the wheel and the sdist, what is in them, and that they run where nothing else is."""

import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import zipfile
from contextlib import suppress
from email import message_from_bytes
from pathlib import Path

import anndata as ad
import httpx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import modeling_langcell
from modeling_langcell.io.example import LABEL_COLUMN, MAIN_TYPE_COLUMN, load_example
from tests.support.paths import REPOSITORY

VERSION = modeling_langcell.__version__
PROJECT = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
#: Of the example's types those that langcell-mini finds.
LABELS = "B cell;natural killer cell;CD14-positive monocyte"
NOT_RELEASED = shutil.ignore_patterns(
    ".git", ".venv*", ".*_cache", "__pycache__", "*.egg-info", "build", "dist", "runs"
)


def alone(command: list, folder: Path) -> subprocess.CompletedProcess:
    """Runs a command in a folder, with nothing of this process's Python or of the checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LANGCELL"))}
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def build(source: Path, out: Path, what: str) -> Path:
    built = alone([sys.executable, "-m", "build", "--no-isolation", f"--{what}", "--outdir", out, source], out.parent)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.iterdir()
    return path


def content(wheel: Path) -> dict[str, int]:
    """Name and checksum of every file."""
    with zipfile.ZipFile(wheel) as archive:
        return {member.filename: member.CRC for member in archive.infolist()}


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    # Of a copy: what setuptools leaves in a checkout would come along the next time.
    source = tmp_path_factory.mktemp("source") / "langcell"
    shutil.copytree(REPOSITORY, source, ignore=NOT_RELEASED)
    return build(source, tmp_path_factory.mktemp("sdist"), "sdist")


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    source = tmp_path_factory.mktemp("source") / "langcell"
    shutil.copytree(REPOSITORY, source, ignore=NOT_RELEASED)
    return build(source, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def scripts(wheel, tmp_path_factory):
    """The `bin` of an environment that holds the wheel and what it asks for; no package index skips, or fails in CI."""
    folder = tmp_path_factory.mktemp("empty") / "environment"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    (torch,) = re.findall(r"^TORCH \?= (.+)$", (REPOSITORY / "Makefile").read_text(encoding="utf-8"), re.M)
    pip = [folder / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check"]
    installed = alone([*pip, torch], folder)
    if installed.returncode:
        reason = f"no package index to install {torch} from: {installed.stderr.strip()[-300:]}"
        if os.environ.get("LANGCELL_REQUIRE_INDEX"):
            pytest.fail(reason)
        pytest.skip(reason)
    installed = alone([*pip, wheel], folder)
    assert installed.returncode == 0, installed.stderr
    yield folder / "bin"
    shutil.rmtree(folder)


@pytest.fixture
def empty(tmp_path) -> Path:
    folder = tmp_path / "empty"
    folder.mkdir()
    return folder


class TestVersion:
    def test_stands_in_one_place(self, wheel):
        assert 'dynamic = ["version"]' in PROJECT
        with zipfile.ZipFile(wheel) as archive:
            metadata = message_from_bytes(archive.read(f"modeling_langcell-{VERSION}.dist-info/METADATA"))
        assert metadata["Version"] == VERSION
        files = [REPOSITORY / "train.py", *(REPOSITORY / "modeling_langcell").glob("*.py")]
        assert [path.name for path in files if "__version__ =" in path.read_text(encoding="utf-8")] == ["__init__.py"]

    def test_heads_the_changelog(self):
        changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
        assert re.search(r"^## \[(.+?)\] - (Unreleased|\d{4}-\d\d-\d\d)$", changelog, re.M)[1] == VERSION


class TestConstraints:
    USED = PROJECT.split("[project]")[1].split("\ndocs = ")[0]
    BOUNDS = dict(re.findall(r'"([\w-]+)(?:\[.+?\])?>=([\w.]+)"', USED))

    @staticmethod
    def pins(name: str) -> list[tuple[str, str]]:
        text = (REPOSITORY / "constraints" / f"{name}.txt").read_text(encoding="utf-8")
        return re.findall(r"^([\w-]+)==([\w.]+)", text, re.M)

    def test_lowest_is_every_lower_bound(self):
        def same(version):
            return re.sub(r"(\.0)+$", "", version)

        bounds = {name: same(version) for name, version in self.BOUNDS.items()}
        assert {name: same(version) for name, version in self.pins("lowest")} == bounds

    def test_newest_is_of_the_same_packages(self):
        assert {name for name, _ in self.pins("newest")} == set(self.BOUNDS)


@pytest.mark.e2e
class TestContent:
    def test_of_the_wheel(self, wheel):
        names = content(wheel)
        shipped = {path.name for path in (REPOSITORY / "hub_configs" / "langcell-mini").iterdir() if path.is_file()}
        assert "model.safetensors" in shipped
        for name in (
            "py.typed",
            *(f"hub_configs/langcell-mini/{name}" for name in shipped),
            *("hub_configs/langcell-base/config.json", "model_cards/template.md"),
            *("eval/studies.yaml", "eval/tasks/zero_shot.py", "eval/tasks/example_pathways.gmt"),
            "eval/metrics/cell_annotation/cell_annotation.py",
        ):
            assert f"modeling_langcell/{name}" in names
        for name in ("licenses/LICENSE", "licenses/NOTICE", "entry_points.txt"):
            assert f"modeling_langcell-{VERSION}.dist-info/{name}" in names
        tops = {name.split("/")[0] for name in names}
        assert tops == {"modeling_langcell", f"modeling_langcell-{VERSION}.dist-info"}, "no tests, no top-level eval"
        assert not [name for name in names if "results" in name or "tests" in name]

    def test_of_the_sdist(self, unpacked):
        for name in (
            *(
                "LICENSE",
                "NOTICE",
                "README.md",
                "CHANGELOG.md",
                "CITATION.cff",
                "CONTRIBUTING.md",
                "Makefile",
                "train.py",
                "mkdocs.yml",
            ),
            *("tests/conftest.py", "docs/index.md", "docs/demo.png", "constraints/lowest.txt", ".ci/run"),
            *("hub_configs/pretraining/mini-stage1.yaml", "hub_configs/accelerate/ddp.yaml", "model_cards/template.md"),
            *("eval/benchmarks/throughput.py", "eval/studies.yaml", "eval/results/zero-shot.json"),
        ):
            assert (unpacked / name).is_file(), name
        assert not (unpacked / "eval" / "results" / "cells").exists()
        assert not (unpacked / "runs").exists()
        assert not list(unpacked.rglob("__pycache__"))

    def test_a_wheel_of_the_sdist_is_the_same(self, wheel, unpacked, tmp_path):
        (tmp_path / "wheel").mkdir()
        assert content(build(unpacked, tmp_path / "wheel", "wheel")) == content(wheel)


@pytest.mark.e2e
class TestWheelAlone:
    """In an environment that holds nothing else, and in an empty folder."""

    def test_is_what_runs(self, scripts, empty):
        assert alone([scripts / "langcell", "--version"], empty).stdout == f"langcell {VERSION}\n"
        said = alone([scripts / "python", "-c", "import modeling_langcell as m; print(m.__file__)"], empty).stdout
        assert Path(said.strip()).is_relative_to(scripts.parent)

    def test_annotates_the_example(self, scripts, empty):
        files = ("--out", "o.h5ad", "--figure", "f.png", "--report", "r.html")
        ran = alone([scripts / "langcell", "annotate", "--example", *files], empty)
        assert ran.returncode == 0, ran.stderr
        annotated = ad.read_h5ad(empty / "o.h5ad")
        assert annotated.n_obs == 700
        found, known = (annotated.obs[column].astype(str) for column in ("langcell_cell_type", MAIN_TYPE_COLUMN))
        assert (found == known).mean() > 0.8
        assert {path.name for path in empty.iterdir()} == {"o.h5ad", "f.png", "r.html"}

    def test_annotates_a_file(self, scripts, empty):
        example = load_example()
        example = example[example.obs[LABEL_COLUMN].isin(LABELS.split(";"))]
        counts = sp.csr_matrix(np.ceil(np.expm1(example.raw.X.toarray())), dtype=np.float32)
        known = pd.DataFrame({"known": example.obs[LABEL_COLUMN].astype(str)})
        ad.AnnData(counts, obs=known, var=example.raw.var[[]]).write_h5ad(empty / "some.h5ad")
        ran = alone([scripts / "langcell", "annotate", "some.h5ad", "--labels", LABELS], empty)
        assert ran.returncode == 0, ran.stderr
        annotated = ad.read_h5ad(empty / "some_langcell.h5ad").obs
        assert (annotated["langcell_cell_type"].astype(str) == annotated["known"].astype(str)).mean() > 0.9

    @pytest.mark.parametrize(
        ("command", "extra"),
        [
            ("adapt some.h5ad --label-key known --out adapter", "adapt"),
            ("corpus some.h5ad --gene-info genes --out corpus", "train"),
            ("evaluate zero-shot", "adapt,eval"),
        ],
    )
    def test_says_which_extra_is_missing(self, scripts, empty, command, extra):
        (empty / "some.h5ad").touch()
        ran = alone([scripts / "langcell", *command.split()], empty)
        assert ran.returncode == 2, ran.stderr
        assert f'pip install "modeling-langcell[{extra}]"' in ran.stderr
        assert "Traceback" not in ran.stderr


@pytest.mark.e2e
@pytest.mark.heavy
def test_a_space_installs_and_runs_from_its_own_files(scripts, empty):
    """`requirements.txt` of the folder is installed where nothing but the package is, and the app answers."""
    space = empty / "space"
    made = alone([sys.executable, REPOSITORY / "space" / "bundle.py", space], empty)
    assert made.returncode == 0, made.stderr
    assert [path.name for path in space.glob("modeling_langcell*")] == [f"modeling_langcell-{VERSION}-py3-none-any.whl"]
    assert "sdk: docker" in (space / "README.md").read_text()
    docker = (space / "Dockerfile").read_text()
    assert "pip install --no-cache-dir -r requirements.txt" in docker
    assert 'CMD ["python", "app.py"]' in docker
    installed = alone([scripts / "pip", "install", "--quiet", "--no-cache-dir", "-r", "requirements.txt"], space)
    assert installed.returncode == 0, installed.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    variables |= {"SPACE_ID": "YOU/NAME", "HOST": "127.0.0.1", "PORT": str(port)}
    app = subprocess.Popen([scripts / "python", "app.py"], cwd=space, env=variables)
    try:
        for _ in range(600):
            with suppress(httpx.HTTPError):
                page = httpx.get(f"http://127.0.0.1:{port}/")
                break
            time.sleep(0.2)
            assert app.poll() is None
        assert page.status_code == 200
        assert "Find cells by text" in page.text
    finally:
        app.terminate()
        app.wait()
