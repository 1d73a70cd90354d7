# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Tests of the guide and the README. Every command and snippet of a page runs unchanged and in order, in a folder with the
files that the page names, and prints what the page shows. The guide builds without a warning, and its links work.
"""

import doctest
import gzip
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from modeling_langcell.cli.main import app
from modeling_langcell.conversion.published import read_gene_vocabulary
from modeling_langcell.ontology import kinds_below
from tests.support.census import write_census
from tests.support.commands import LANGCELL, link_cache, run_python
from tests.support.hub_stand_in import HubStandIn
from tests.support.paths import REPOSITORY

GUIDE = REPOSITORY / "docs"
PAGES = {"README.md": REPOSITORY / "README.md"}
PAGES |= {path.relative_to(GUIDE).as_posix(): path for path in sorted(GUIDE.rglob("*.md"))}

#: The only commands of the guide that are not run: the environment of the tests is installed already.
INSTALLS = ("pip install", "make demo", "make test")

_FENCE = re.compile(r'^```(\w*)(?: title="([^"]+)")?\n(.*?)^```$', flags=re.DOTALL | re.MULTILINE)
_ELSEWHERE = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//""")
_PICTURE = re.compile(r"!\[[^]]*\]\([^)]+\)\n\n(.*?)\n\n", flags=re.DOTALL)
_RELATIVE_LINK = re.compile(r"\]\((?!https?:|#|mailto:)([^)\s#]+)")


# ---------------------------------------------------------------------- reading a page


@dataclass
class Step:
    """Commands or a snippet, and the text that the page shows as the output of the last command."""

    kind: str
    content: str
    printed: str | None = None


def read_page(path: Path) -> tuple[list[Step], dict[str, str]]:
    """
    Reads the steps of a page, and the files that it shows, by name.

    A block is `sh` or `python`; or `text`, the output of the snippet or the last command before it (`...` stands for
    anything; a text that begins with `Error:` goes to stderr, and the command fails); or has a title, the name of a
    file with this content.
    """
    page = path.read_text()
    found = _FENCE.findall(page)
    assert page.count("```") == 2 * len(found), f"{path.name}: a block is indented or not closed"
    steps: list[Step] = []
    files: dict[str, str] = {}
    before = ""
    for kind, title, content in found:
        if title:
            files[title] = content
        elif kind == "text":
            assert before in ("sh", "python"), f"{path.name}: no command or snippet prints {content!r}"
            steps[-1].printed = content
        else:
            assert kind in ("sh", "python"), f"{path.name}: no test can run a block of {kind!r}"
            steps.append(Step(kind, content))
        before = "" if title else kind
    return steps, files


def commands(step: Step) -> list[list[str]]:
    """Splits the commands of a step into arguments; leaves out installations."""
    lines = step.content.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in lines if line and not line.startswith(INSTALLS)]


# ---------------------------------------------------------------------- running a page


@dataclass
class Session:
    """A folder in which a page is followed, the names that its snippets share, and its environment variables."""

    folder: Path
    shared: Path
    environment: dict[str, str] = field(default_factory=dict)
    names: dict[str, object] = field(default_factory=lambda: {"__name__": "__main__"})
    #: Files here that stand in for what the page reads from the network.
    copies: dict[str, str] = field(default_factory=dict)

    def cells(self, study: str) -> ad.AnnData:
        """Reads the shared cells of a study."""
        return ad.read_h5ad(self.shared / "data" / f"{study}.h5ad")

    def link(self, **files: str | Path) -> None:
        """Links files or folders, of the shared data or of any other place, into the folder."""
        for name, source in files.items():
            (self.folder / name).symlink_to(self.shared / source)

    def run(self, step: Step) -> None:
        """Runs a step, and compares its output with the page."""
        said = ""
        if step.kind == "python":
            said = self.snippet(step.content)
        else:
            found = commands(step)
            fails = (step.printed or "").startswith("Error:")
            for number, arguments in enumerate(found, 1):
                said = self.command(arguments, fails and number == len(found))
        if step.printed is not None:
            flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            same = doctest.OutputChecker().check_output(step.printed, said, flags)
            assert same, f"{step.content}\nThe page says:\n{step.printed}\nbut it prints:\n{said}"

    def snippet(self, content: str) -> str:
        """Returns the output of a snippet. Snippets of a page share their names, unless the page sets variables."""
        if self.environment:
            return self.process(["python", "-c", content], fails=False)
        with redirect_stdout(StringIO()) as printed:
            exec(compile(content, "<snippet>", "exec"), self.names)
        return printed.getvalue()

    def command(self, arguments: list[str], fails: bool) -> str:
        """
        Returns the output of a command; if it should fail, that on stderr, with exit code 2. `langcell` runs in this
        process, unless the page sets environment variables, which are read when packages are imported.
        """
        arguments = [self.copies.get(argument, argument) for argument in arguments]
        if arguments[0] != "langcell" or self.environment:
            return self.process(arguments, fails)
        called = CliRunner().invoke(app, arguments[1:], prog_name="langcell", catch_exceptions=False)
        return _output(arguments, fails, called.exit_code, called.stdout, called.stderr)

    def process(self, arguments: list[str], fails: bool) -> str:
        environment = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
        environment = os.environ | environment | self.environment
        if arguments[0] in _PYTHON:
            run = run_python(*_PYTHON[arguments[0]], *arguments[1:], env=environment, timeout=600)
        else:
            run = subprocess.run(arguments, env=environment, capture_output=True, text=True)
        return _output(arguments, fails, run.returncode, run.stdout, run.stderr)


#: Python's arguments for commands of the guide.
_PYTHON = {"python": [], "langcell": [LANGCELL]}


def _output(arguments: list[str], fails: bool, code: int, out: str, err: str) -> str:
    assert code == (2 if fails else 0), (arguments, out[-2000:], err[-4000:])
    return err if fails else out


#: For each page, a function that lays its files and, after the `yield`, checks its results.
SETUPS: dict[str, Callable[[Session], Iterator[None]]] = {}


def page(name: str):
    """Registers the function that prepares a page."""

    def register(setup: Callable[[Session], Iterator[None]]) -> Callable[[Session], Iterator[None]]:
        SETUPS[name] = setup
        return setup

    return register


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.heavy] if name.startswith("pre-train") else []) for name in PAGES]
)
@pytest.mark.e2e
def test_page(name, shared, tmp_path, monkeypatch):
    steps, files = read_page(PAGES[name])
    if not any(step.kind == "python" or commands(step) for step in steps):
        return
    assert name in SETUPS, f"docs/{name} has commands or snippets: prepare its files here, with @page({name!r})"
    monkeypatch.chdir(tmp_path)
    for shown, content in files.items():
        Path(shown).write_text(content)
    session = Session(tmp_path, shared)
    session.link(**{"train.py": REPOSITORY / "train.py", "hub_configs": REPOSITORY / "hub_configs"})
    with contextmanager(SETUPS[name])(session):
        for step in steps:
            session.run(step)


def test_every_setup_belongs_to_a_page():
    assert SETUPS.keys() <= PAGES.keys()


# ---------------------------------------------------------------------- the pages

#: Two studies of blood that were not used to train langcell-mini; the second has 15 cells of each of 11 types.
BLOOD, SORTED_BLOOD = "validation/pbmc_kang_ctrl", "validation/zheng68k_subset_pbmc"

CENSUS = "s3://cellxgene-census-public-us-west-2/cell-census/2025-11-08/soma/census_data/homo_sapiens"


@page("pre-train-your-own.md")
def pre_train_your_own(session):
    files = {
        "blood.h5ad": "data/train/zheng_sorted_safe.h5ad",
        "marrow.h5ad": "data/train/marrow_vangalen2019_cd34sorted.h5ad",
        "lung.h5ad": "data/train/nsclc_zilionis_scgate.h5ad",
        "held-out.h5ad": "data/validation/zheng68k_subset_pbmc.h5ad",
        "Homo_sapiens.gene_info.gz": "data/genes/Homo_sapiens.gene_info.gz",
    }
    session.link(**files)
    cells = session.cells("train/zheng_sorted_safe")
    cells.obs = cells.obs.assign(tissue_general="blood", suspension_type="cell", dataset_id="another")
    cells.obs.loc[cells.obs_names[:100], "dataset_id"] = "ID"
    session.copies[CENSUS] = str(write_census(cells, session.folder / "census"))
    with hub_for(session) as hub:
        yield
        assert "model.safetensors" in hub.repositories["YOU/langcell-mine"]
    assert json.loads(Path("runs/census/manifest.json").read_text())["sources"][0]["kept"] == 400
    annotated = ad.read_h5ad("annotated.h5ad")
    assert set(annotated.obs["langcell_cell_type"]) <= {"B cell", "monocyte", "natural killer cell"}


@page("another-organism.md")
def another_organism(session):
    """The names of zebrafish are made up: each human gene of some cells gets an id, and its symbol in lower case."""
    cells = session.cells(BLOOD)
    has_id = cells.var["ensembl_id"].astype(str).str.startswith("ENSG")
    cells = cells[::4, np.flatnonzero(has_id)[:6000]][:200].copy()
    human, symbols = cells.var["ensembl_id"].astype(str), cells.var["symbol"].astype(str)
    ids = [f"ENSDARG{number:011d}" for number in range(cells.n_vars)]
    cells.var = pd.DataFrame({"symbol": symbols.str.lower().to_numpy()}, index=ids)
    cells.write_h5ad("zebrafish.h5ad")
    cells[::2].write_h5ad("held-out.h5ad")
    rows = zip(human, symbols, ids, symbols.str.lower(), strict=True)
    lines = [f"{gene}\t{symbol}\t{other}\t{name}\tortholog_one2one" for gene, symbol, other, name in rows]
    header = "Gene stable ID\tGene name\tZebrafish gene stable ID\tZebrafish gene name\tZebrafish homology type"
    Path("human_to_zebrafish.tsv").write_text("\n".join([header, *lines]) + "\n")
    pairs = zip(ids, symbols.str.lower(), strict=True)
    lines = [f"7955\t{symbol}\t-\tZFIN:1|Ensembl:{gene}\t{symbol} protein" for gene, symbol in pairs]
    with gzip.open("Danio_rerio.gene_info.gz", "wt") as table:
        table.write("\n".join(["#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription", *lines]) + "\n")
    yield
    for name in ("zebrafish", "held-out"):
        run = ad.read_h5ad(f"{name}_langcell.h5ad").uns["langcell"]
        assert run["input"]["organism"] == "zebrafish"
        assert run["input"]["genes_by_ensembl_id"] > 1500


@contextmanager
def hub_for(session: Session) -> Iterator[HubStandIn]:
    """Starts a stand-in for the Hub, in which the page's reader is logged in."""
    with HubStandIn() as hub:
        session.environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_of_nobody", "HF_HUB_DISABLE_XET": "1"}
        session.environment["HF_HOME"] = str(link_cache(session.folder / "home"))
        yield hub


@page("publish.md")
def publish(session):
    made_here = shutil.ignore_patterns("README.md", "evaluation.json")
    shutil.copytree(REPOSITORY / "hub_configs" / "langcell-mini", "runs/mine", ignore=made_here)
    cells = session.cells(SORTED_BLOOD)
    cells[cells.obs["cell_type"].isin(["B cell", "natural killer cell"])].write_h5ad("cells.h5ad")
    with hub_for(session) as hub:
        yield
        assert {"YOU/langcell-mine", "YOU/langcell-adapter"} == hub.repositories.keys()
        assert hub.repositories["YOU/langcell-mine"].tags.keys() == {"v1.0"}
        card = hub.repositories["YOU/langcell-mine"]["README.md"].decode()
    for said in ("Nothing else was tested.", "- blood", "pbmc68k_reduced | 0.5", 'model="YOU/langcell-mine"'):
        assert said in card
    for name in ("annotated", "adapted"):
        labels = ad.read_h5ad(f"{name}.h5ad").obs["langcell_cell_type"]
        assert (labels.astype(str) == cells.obs["cell_type"].astype(str).loc[labels.index]).mean() > 0.8


@page("adapt-to-your-data.md")
def adapt_to_your_data(session):
    cells = session.cells(SORTED_BLOOD)
    names = ("B cell", "natural killer cell", "CD14-positive monocyte")
    cells = cells[cells.obs["cell_type"].isin(names)].copy()
    cells.obs["my_label"] = cells.obs["cell_type"].astype(str).map(dict(zip(names, "abc", strict=True)))
    Path("my-labels.tsv").write_text("".join(f"{mine}\t{name}\n" for mine, name in zip("abc", names, strict=True)))
    cells[::2].write_h5ad("labelled.h5ad")
    cells[1::2].write_h5ad("new.h5ad")
    give_checksum("labelled.h5ad", "my-studies.yaml")
    yield
    assert "| mine | logistic_regression | 9 |" in Path("runs/evaluation/few-shot.md").read_text()
    found = {name: ad.read_h5ad(f"{name}.h5ad") for name in ("annotated-quickly", "annotated", "classified")}
    for name, annotated in (found | {"in Python": session.names["new"]}).items():
        right = annotated.obs["langcell_cell_type"].astype(str) == annotated.obs["cell_type"].astype(str)
        assert right.mean() > 0.8, name
    assert "runs/adapter" in Path("report.html").read_text()
    assert list(Path("runs/logs").rglob("events.out.tfevents.*"))
    assert Path("runs/by-two/adaptation.json").exists()


@page("index.md")
@page("coming-from.md")
@page("search.md")
@page("explanations.md")
@page("transformers.md")
@page("install.md")
@page("prompt-templates.md")
def with_cells(session):
    session.link(**{"cells.h5ad": f"data/{BLOOD}.h5ad"})
    yield


@page("describe-a-cell-type.md")
def describe(session):
    gene_info = "Homo_sapiens.gene_info.gz"
    session.link(**{"cells.h5ad": f"data/{BLOOD}.h5ad", gene_info: f"data/genes/{gene_info}"})
    yield


@page("report.md")
def report(session):
    session.link(**{"cells.h5ad": f"data/{BLOOD}.h5ad"})
    Path("types.tsv").write_text("B cell\nmonocyte\nT cell\n")
    yield
    assert '<h2 id="genes">Driving genes</h2>' in Path("report.html").read_text()
    assert "not looked at" not in Path("from-python.html").read_text()


@page("annotate.md")
def annotate(session):
    session.link(**{"cells.h5ad": f"data/{BLOOD}.h5ad"})
    yield
    assert Path("figure.png").read_bytes().startswith(b"\x89PNG")
    assert len(ad.read_h5ad("by-file.h5ad").uns["langcell"]["labels"]) == 4
    assert "classical monocyte" in ad.read_h5ad("by-term.h5ad").uns["langcell"]["labels"]


@page("your-file.md")
def your_file(session):
    session.cells(BLOOD).write_zarr("cells.zarr")
    Path("types.tsv").write_text("B cell\nT cell\nmonocyte\n")
    yield


@page("confidence.md")
def confidence(session):
    cells = session.cells(BLOOD)
    cells.write_h5ad("cells.h5ad")
    cells[::3].write_h5ad("labelled.h5ad")
    yield
    default, specific = (
        ad.read_h5ad(name).obs["langcell_answer_id"].map(kinds_below, na_action="ignore").astype(int).sum()
        for name in ("annotated.h5ad", "specific.h5ad")
    )
    assert specific < default, "a higher error rate gives more specific answers"
    assert "langcell_answer_id" in ad.read_h5ad("by-mine.h5ad").obs


@page("clusters.md")
def clusters(session):
    cells = session.cells(BLOOD)
    cells.obs["leiden"] = cells.obs["author_cell_type"].cat.codes.astype(str)
    cells.write_h5ad("cells.h5ad")
    yield
    made = ad.read_h5ad("clustered.h5ad").obs
    assert made.groupby("langcell_cluster")["langcell_cluster_label"].nunique().eq(1).all()
    assert "smoothing" in ad.read_h5ad("smoothed.h5ad").uns["langcell"]


@page("large-studies.md")
def large_studies(session):
    session.link(**{"study.h5ad": f"data/{SORTED_BLOOD}.h5ad"})
    session.cells(SORTED_BLOOD)[:20].write_h5ad("few.h5ad")
    yield
    by_one, by_two = (ad.read_h5ad(f"{name}.h5ad") for name in ("annotated", "by-two"))
    assert by_one.obs.equals(by_two.obs)
    assert ad.read_h5ad("few-annotated.h5ad").obs["langcell_proven"].dtype == bool
    assert ad.read_h5ad("in-half.h5ad").uns["langcell"]["dtype"] == "bfloat16"


@page("faq.md")
def questions(session):
    import scanpy as sc

    cells = session.cells(BLOOD)
    cells.obs["cluster"] = cells.obs["author_cell_type"]
    cells.write_h5ad("cells.h5ad")
    some = cells[:300].copy()
    named = {name: some.copy() for name in ("symbols-only", "mouse")}
    for name, renamed in named.items():
        renamed.var_names = some.var["symbol"].str.capitalize() if name == "mouse" else some.var["symbol"]
        renamed.var = renamed.var[[]]
        renamed.write_h5ad(f"{name}.h5ad")
    some.layers["counts"] = some.X.copy()
    sc.pp.normalize_total(some, target_sum=1e4)
    sc.pp.log1p(some)
    some.write_h5ad("normalised.h5ad")
    del some.layers["counts"]
    some.X = some.X.toarray() - some.X.mean(axis=0).A1
    some.write_h5ad("scaled.h5ad")
    yield
    labels = ad.read_h5ad("cells_langcell.h5ad").uns["langcell"]["labels"]
    assert "interferon-stimulated B cell" in labels


@page("convert.md")
def convert(session):
    lay_published_parts(session)
    shutil.copytree(session.shared / "reference" / "checkpoint", "BROKEN")
    weights = Path("BROKEN/cell_bert/pytorch_model.bin")
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:100_000])
    cells = session.cells(BLOOD)[:50]
    # The recorded checkpoint has invented genes.
    genes = read_gene_vocabulary(*DICTIONARIES)["ensembl_ids"]
    cells = cells[:, np.argsort(-cells.X.sum(axis=0).A1)[: len(genes)]].copy()
    cells.var_names = genes
    cells.var = cells.var[[]]
    cells.write_h5ad("cells.h5ad")
    yield
    assert not Path("another").exists()


DICTIONARIES = ("token_dictionary.pkl", "gene_median_dictionary.pkl", "gene_name_id_dict.pkl")


def lay_published_parts(session: Session) -> None:
    session.link(PARTS="reference/checkpoint", **{"vocab.txt": "reference/vocab.txt"})
    session.link(**{name: f"reference/genes/{name}" for name in DICTIONARIES})


@page("hostile-inputs.md")
def hostile_inputs(session):
    cells = session.cells(BLOOD)[:20]
    cells.write_h5ad("cut.h5ad")
    os.truncate("cut.h5ad", 100_000)
    cells.write_h5ad("damaged.h5ad")
    with h5py.File("damaged.h5ad", "r+") as file:
        file["X/indices"][0] = -1
    shutil.copytree(REPOSITORY / "hub_configs" / "langcell-mini", "no-words")
    Path("no-words/tokenizer.json").unlink()
    yield
    assert not Path("annotated.h5ad").exists()


@page("evaluate.md")
def evaluate(session):
    Path("DATA/validation").mkdir(parents=True)
    session.link(**{f"DATA/{SORTED_BLOOD}.h5ad": f"data/{SORTED_BLOOD}.h5ad", "cells.h5ad": f"data/{BLOOD}.h5ad"})
    give_checksum("cells.h5ad", "my-studies.yaml")
    yield
    assert "zheng68k_subset_pbmc" in Path("runs/evaluation.html").read_text()


@page("README.md")
def readme(session):
    cells = session.cells(BLOOD)[::3].copy()
    cells.write_h5ad("cells.h5ad")
    Path("types.tsv").write_text("B cell\nmine\tcell type: T cell. My own description.\n")
    yield
    assert Path("report.html").is_file()


def give_checksum(cells: str, studies: str) -> None:
    """Fills in the checksum that a page leaves to its reader."""
    digest = hashlib.sha256(Path(cells).read_bytes()).hexdigest()
    entry = Path(studies).read_text()
    assert "the output of sha256sum" in entry
    Path(studies).write_text(entry.replace("the output of sha256sum", digest))


# ---------------------------------------------------------------------- the guide as a whole


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Builds the guide; a warning is an error."""
    pytest.importorskip("mkdocstrings", reason="the guide is built on Python 3.11 or newer")
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(REPOSITORY / "mkdocs.yml")]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    run = subprocess.run([*build, "--site-dir", str(folder)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert "WARNING" not in run.stderr
    return folder


def test_the_guide_is_built_and_fetches_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for built in pages:
        assert not _ELSEWHERE.search(built.read_text()), built.relative_to(site)


def test_the_reference_has_what_the_package_offers(site):
    import modeling_langcell

    reference = "".join(path.read_text() for path in (site / "api").rglob("*.html"))
    missing = [name for name in modeling_langcell.__all__ if f".{name}" not in reference]
    assert not missing


@pytest.mark.parametrize("name", [*PAGES, "../CONTRIBUTING.md"])
def test_links_hold_in_the_repository(name):
    path = PAGES.get(name, GUIDE / name)
    broken = [link for link in _RELATIVE_LINK.findall(path.read_text()) if not (path.parent / link).exists()]
    assert not broken


def test_the_readme_is_read_in_minutes():
    readme = PAGES["README.md"].read_text()
    assert len(readme.splitlines()) <= 120
    assert len(readme.split()) <= 900


@pytest.mark.parametrize("name", PAGES)
def test_a_picture_has_its_command_next_to_it(name):
    page = PAGES[name].read_text() + "\n\n"
    captions = _PICTURE.findall(page)
    assert len(captions) == len(re.findall(r"!\[", page))
    for caption in captions:
        assert re.search(r"`(make demo|langcell \w|python eval/)", caption), caption
