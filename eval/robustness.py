# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="func-returns-value, misc"
# Inputs are laid by expressions, several of which give nothing back.
"""
Hostile inputs, each given to the command in a process of its own, and what happened.

    python eval/robustness.py --json eval/results/robustness.json

What is wrong must end in one message and exit code 2: no traceback, no output, whole or in part, and nothing run of
what a file holds. What is only unusual must work.
"""

import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import typer

from modeling_langcell.eval.record import write_record
from modeling_langcell.shipped import MINI, locate

LABELS = "B cell;T cell;monocyte"


@dataclass(frozen=True)
class Attempt:
    """
    A hostile or unusual input.

    Args:
        about: What of the input is odd.
        what: How.
        lay: Lays the input into an empty folder, and says the arguments of `langcell`, with paths relative to it.
        works: Whether it is only unusual.
    """

    about: str
    what: str
    lay: Callable[[Path], Sequence[str]]
    works: bool = False


class Bench:
    """
    Real cells and a real checkpoint, to be damaged.

    Args:
        data: Folder with `validation/pbmc_kang_ctrl.h5ad`.
        reference: Folder with a small checkpoint in the published layout, its dictionaries and its words.
    """

    def __init__(self, data: Path, reference: Path):
        self.reference = reference
        self.cells = ad.read_h5ad(data / "validation" / "pbmc_kang_ctrl.h5ad")[:20].copy()
        self.cells.obs = self.cells.obs[["cell_type"]].copy()
        self.cells.uns.clear()

    def attempts(self) -> list[Attempt]:
        """All of them."""
        return [
            *self._files(),
            *self._counts(),
            *self._options(),
            *self._outputs(),
            *self._models(),
            *self._published(),
        ]

    # ------------------------------------------------------------------ files

    def _annotate(self, *options: str, cells: str = "cells.h5ad", labels: str = LABELS) -> list[str]:
        return ["annotate", cells, "--labels", labels, "--out", "out.h5ad", *options]

    def _with_cells(self, change: Callable[[ad.AnnData], Any], *options: str) -> Callable[[Path], Sequence[str]]:
        """Cells after a change, annotated."""

        def lay(folder: Path) -> Sequence[str]:
            adata = self.cells.copy()
            adata = changed if isinstance(changed := change(adata), ad.AnnData) else adata
            adata.write_h5ad(folder / "cells.h5ad")
            return self._annotate(*options)

        return lay

    def _with_file(self, change: Callable[[Path], Any]) -> Callable[[Path], Sequence[str]]:
        """A whole file after a change, annotated."""

        def lay(folder: Path) -> Sequence[str]:
            self.cells.write_h5ad(folder / "cells.h5ad")
            change(folder / "cells.h5ad")
            return self._annotate()

        return lay

    def _with_hdf5(self, change: Callable[[h5py.File], Any]) -> Callable[[Path], Sequence[str]]:
        def open_and_change(path: Path) -> None:
            with h5py.File(path, "r+") as file:
                change(file)

        return self._with_file(open_and_change)

    def _files(self) -> Iterator[Attempt]:
        def about(what: str, change: Callable[[Path], Any], works: bool = False) -> Attempt:
            return Attempt("file", what, self._with_file(change), works)

        yield about("is not there", Path.unlink)
        yield about("is a folder", lambda path: (path.unlink(), path.mkdir()))
        yield about("is empty", lambda path: path.write_bytes(b""))
        yield about("is text", lambda path: path.write_text("cell,gene\n1,2\n"))
        yield about("is random bytes", lambda path: path.write_bytes(np.random.default_rng(0).bytes(10_000)))
        for share in (0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99):
            yield about(
                f"is cut after {share:.0%}", lambda path, s=share: os.truncate(path, int(path.stat().st_size * s))
            )
        yield about("is a link to the file", lambda path: _link(path, "real.h5ad"), works=True)
        yield about("is a link to nothing", lambda path: (path.unlink(), path.symlink_to("nowhere.h5ad")))
        yield about("is a link to itself", lambda path: (path.unlink(), path.symlink_to(path.name)))
        hdf5: list[tuple[str, Callable[[h5py.File], Any]]] = [
            ("holds no X", lambda file: file.__delitem__("X")),
            ("holds no obs", lambda file: file.__delitem__("obs")),
            ("holds no var", lambda file: file.__delitem__("var")),
            ("has a column that ends before X's genes do", lambda file: _replace(
                file, "X/indices", file["X/indices"][:-1])),
            ("names genes that X has not", lambda file: _replace(
                file, "X/indices", np.where(np.arange(len(file["X/indices"])) == 5, 10**6, file["X/indices"][:]))),
            ("names a gene below 0", lambda file: _replace(
                file, "X/indices", np.where(np.arange(len(file["X/indices"])) == 5, -7, file["X/indices"][:]))),
            ("has rows that end before they begin", lambda file: _replace(
                file, "X/indptr", file["X/indptr"][:][::-1])),
            ("says another shape than it has", lambda file: file["X"].attrs.__setitem__("shape", [7, 3])),
            ("says that X is a dictionary", lambda file: file["X"].attrs.__setitem__("encoding-type", "dict")),
            ("links X to another file", lambda file: (
                file.__delitem__("X"), file.__setitem__("X", h5py.ExternalLink("elsewhere.h5", "/X")))),
            ("links X to itself", lambda file: (file.__delitem__("X"), file.__setitem__("X", h5py.SoftLink("/X")))),
        ]  # fmt: skip
        for what, change in hdf5:
            yield Attempt("file", what, self._with_hdf5(change))

    def _counts(self) -> Iterator[Attempt]:
        def value(number: float, dtype: Any = np.float32) -> Callable[[ad.AnnData], Any]:
            def change(adata: ad.AnnData) -> None:
                dense = adata.X.toarray().astype(dtype)
                dense[3, int(dense[3].argmax())] = number
                adata.X = dense

            return change

        def replaced(x: Callable[[Any], Any]) -> Callable[[ad.AnnData], Any]:
            return lambda adata: setattr(adata, "X", x(adata.X))

        refused: list[tuple[str, Callable[[ad.AnnData], Any]]] = [
            ("hold NaN", value(np.nan)),
            ("hold infinity", value(np.inf)),
            ("hold a number below 0", value(-1)),
            ("are fractions", replaced(lambda x: x * 0.37)),
            ("are complex", replaced(lambda x: x.toarray().astype(np.complex64))),
            ("are all 0", replaced(lambda x: x * 0)),
            ("are of no cell", lambda adata: adata[:0].copy()),
            ("are of no gene", lambda adata: adata[:, :0].copy()),
            ("are of genes without a name", lambda adata: _rename(adata, lambda gene: "")),
            ("are of genes called by number", lambda adata: _rename(adata, str)),
            ("are of a mouse", lambda adata: _rename(adata, "ENSMUSG{:011d}".format)),
        ]  # fmt: skip
        for what, change in refused:
            yield Attempt("counts", what, self._with_cells(change))
        works: list[tuple[str, Callable[[ad.AnnData], Any]]] = [
            ("are huge", value(1e30, np.float64)),
            ("are stored by genes (CSC)", replaced(sp.csc_matrix)),
            ("are dense 64-bit integers", replaced(lambda x: x.toarray().astype(np.int64))),
            ("are booleans", replaced(lambda x: x.toarray() > 0)),
            ("are of genes named twice", lambda adata: setattr(
                adata, "var_names", [adata.var_names[max(0, i - 1)] for i in range(adata.n_vars)])),
            ("are of cells named alike", lambda adata: setattr(adata, "obs_names", ["cell"] * adata.n_obs)),
            ("are of cells without a name", lambda adata: setattr(adata, "obs_names", [""] * adata.n_obs)),
            ("are of cells named in Greek and emoji", lambda adata: setattr(
                adata, "obs_names", [f"κύτταρο/🧬 {i}" for i in range(adata.n_obs)])),
            ("are of a single cell", lambda adata: adata[:1].copy()),
        ]  # fmt: skip
        for what, change in works:
            yield Attempt("counts", what, self._with_cells(change), works=True)

    # ------------------------------------------------------------------ options

    def _options(self) -> Iterator[Attempt]:
        keep = self._with_cells(lambda adata: None)

        def option(what: str, *options: str, labels: str = LABELS, works: bool = False) -> Attempt:
            def lay(folder: Path) -> Sequence[str]:
                keep(folder)
                return self._annotate(*options, labels=labels)

            return Attempt("option", what, lay, works)

        def labels(what: str, name: str, content: bytes) -> Attempt:
            def lay(folder: Path) -> Sequence[str]:
                keep(folder)
                (folder / name).write_bytes(content)
                return self._annotate(labels=name)

            return Attempt("labels", what, lay)

        yield option("an alpha of 2", "--alpha", "2")
        yield option("an alpha that is no number", "--alpha", "nan")
        yield option("an error rate that was not fitted", "--error-rate", "0.37")
        yield option("an error rate below 0", "--error-rate", "-1")
        yield option("an error rate for another alpha", "--error-rate", "0.1", "--alpha", "0.5")
        yield option("a shortlist of none", "--shortlist", "0")
        yield option("a shortlist in words", "--shortlist", "many")
        yield option("a budget of no genes", "--batch-tokens", "0")
        yield option("a device that is not there", "--device", "cuda:99")
        yield option("a device that nobody makes", "--device", "abacus")
        yield option("a precision that nobody has", "--dtype", "int3")
        yield option("a layer that is not there", "--layer", "counts")
        yield option("raw counts that are not there", "--use-raw")
        yield option("a gene column that is not there", "--gene-column", "symbols")
        yield option("counts of a kind that nobody knows", "--counts", "guess")
        yield option("clusters that are not there", "--cluster-key", "leiden")
        yield option("a reference that is not there", "--reference", "truth")
        yield option("a figure of a kind that nobody draws", "--figure", "figure.doc")
        yield option("labels and a root at once", "--ontology-root", "CL:0000542")
        yield option("no label", labels=" ; ")
        yield option("a label that nobody knows", labels="B cell;flurble")
        yield option("a label twice", labels="B cell;B cell")
        yield option("a label that is deprecated", labels="B cell;CL:0000003")
        yield option("a file of labels that is not there", labels="types.tsv")
        yield option("a path that leaves the folder", labels="../../../types.json")
        yield labels("a label that no table can have", "types.json", b'{".": "cell type: a", "B cell": ""}')
        yield labels("JSON that ends too early", "types.json", b'{"B cell": ')
        yield labels("JSON of numbers", "types.json", b"[1, 2]")
        yield labels("JSON nested a hundred thousand deep", "types.json", b"[" * 100_000)
        yield labels("bytes that are no text", "types.tsv", b"\xff\xfe\x00B")
        yield labels("an empty file", "types.txt", b"")

    def _outputs(self) -> Iterator[Attempt]:
        keep = self._with_cells(lambda adata: None)

        def output(what: str, out: str, lay_more: Callable[[Path], Any] = lambda folder: None) -> Attempt:
            def lay(folder: Path) -> Sequence[str]:
                keep(folder)
                lay_more(folder)
                return ["annotate", "cells.h5ad", "--labels", LABELS, "--out", out]

            return Attempt("output", what, lay)

        yield output("is a folder", "there", lambda folder: (folder / "there").mkdir())
        yield output("is below a file", "there/out.h5ad", lambda folder: (folder / "there").write_text(""))
        yield output("has a name that is too long", "a" * 300 + ".h5ad")
        yield output("is where nobody may write", "/proc/out.h5ad")
        yield output("is a full device", "/dev/full/out.h5ad")
        yield output(
            "has something of others where its parts would lie", "out.h5ad",
            lambda folder: ((folder / ".out.h5ad.unfinished").mkdir(), _touch(folder / ".out.h5ad.unfinished/mine")),
        )  # fmt: skip
        yield Attempt("output", "of embed is a folder", lambda folder: (
            keep(folder), (folder / "there").mkdir(), ["embed", "cells.h5ad", "--out", "there"])[-1])  # fmt: skip
        yield Attempt("output", "of search is where nobody may write", lambda folder: (
            keep(folder), ["search", "cells.h5ad", "B cell", "--out", "/proc/found.tsv"])[-1])  # fmt: skip
        yield Attempt("output", "of explain is where nobody may write", lambda folder: (
            keep(folder), ["explain", "cells.h5ad", "--labels", LABELS, "--out", "/proc/genes.tsv"])[-1])  # fmt: skip
        yield Attempt("output", "of calibrate exists", lambda folder: (
            keep(folder), (folder / "made").mkdir(), (folder / "made/mine").write_text(""),
            ["calibrate", "cells.h5ad", "--label-key", "cell_type", "--out", "made"])[-1])  # fmt: skip

    # ------------------------------------------------------------------ checkpoints

    def _models(self) -> Iterator[Attempt]:
        keep = self._with_cells(lambda adata: None)

        def model(what: str, change: Callable[[Path], Any]) -> Attempt:
            def lay(folder: Path) -> Sequence[str]:
                keep(folder)
                shutil.copytree(locate(MINI), folder / "model")
                change(folder / "model")
                return self._annotate("--model", "model")

            return Attempt("checkpoint", what, lay)

        def config(**changes: Any) -> Callable[[Path], Any]:
            def change(folder: Path) -> None:
                found = json.loads((folder / "config.json").read_text())
                (folder / "config.json").write_text(json.dumps(found | changes))

            return change

        def narrower(folder: Path) -> None:
            found = json.loads((folder / "config.json").read_text())
            found["cell_config"]["hidden_size"] = 128
            (folder / "config.json").write_text(json.dumps(found))

        weights = "model.safetensors"
        yield model("is empty", lambda folder: (shutil.rmtree(folder), folder.mkdir()))
        yield model("has no config", lambda folder: (folder / "config.json").unlink())
        yield model("has no weights", lambda folder: (folder / weights).unlink())
        yield model("has no processor", lambda folder: (folder / "processor_config.json").unlink())
        yield model("has no words", lambda folder: (folder / "tokenizer.json").unlink())
        yield model("has a config that ends too early", lambda folder: os.truncate(folder / "config.json", 200))
        yield model("has weights that end too early", lambda folder: os.truncate(folder / weights, 1_000_000))
        yield model("has weights of other shapes", narrower)
        yield model("is of another family", config(model_type="bert"))
        yield model("has a negative temperature", config(temperature=-1))
        yield model("has a damaged calibration", config(calibration={"temperature": "hot"}))
        yield model(
            "has a processor that ends too early", lambda folder: os.truncate(folder / "processor_config.json", 99)
        )
        yield model(
            "brings code of its own in place of weights",
            lambda folder: ((folder / weights).unlink(), _bomb(folder / "pytorch_model.bin")),
        )
        yield Attempt("checkpoint", "is a path that leaves the folder", lambda folder: (
            keep(folder), self._annotate("--model", "../../nowhere"))[-1])  # fmt: skip
        yield Attempt("checkpoint", "is an adapter of nothing", lambda folder: (
            keep(folder), (folder / "adapter").mkdir(), self._annotate("--adapter", "adapter"))[-1])  # fmt: skip

    def _published(self) -> Iterator[Attempt]:
        def published(what: str, change: Callable[[Path], Any]) -> Attempt:
            def lay(folder: Path) -> Sequence[str]:
                shutil.copytree(self.reference / "checkpoint", folder / "parts")
                for name in ("token_dictionary", "gene_median_dictionary", "gene_name_id_dict"):
                    shutil.copyfile(self.reference / "genes" / f"{name}.pkl", folder / f"{name}.pkl")
                shutil.copyfile(self.reference / "vocab.txt", folder / "vocab.txt")
                for path in folder.rglob("*"):
                    path.chmod(0o755)
                change(folder)
                options = {"token-dictionary": "token_dictionary.pkl", "gene-medians": "gene_median_dictionary.pkl"}
                options |= {"gene-names": "gene_name_id_dict.pkl", "text-vocab": "vocab.txt", "out": "converted"}
                return ["convert", "parts", *(word for name, path in options.items() for word in (f"--{name}", path))]

            return Attempt("published parts", what, lay)

        tokens = "token_dictionary.pkl"
        yield published("have a dictionary that runs a command", lambda folder: _bomb(folder / tokens))
        yield published("have weights that run a command", lambda folder: _bomb(folder / "parts/cell_proj.bin"))
        yield published("have a dictionary that ends too early", lambda folder: os.truncate(folder / tokens, 100))
        yield published("have an empty dictionary", lambda folder: (folder / tokens).write_bytes(b""))
        yield published("have a dictionary of a list", lambda folder: (folder / tokens).write_bytes(pickle.dumps([1])))
        yield published(
            "have a dictionary nested without end", lambda folder: (folder / tokens).write_bytes(b"(" * 10**6 + b"t.")
        )
        yield published("lack a part", lambda folder: (folder / "parts/ctm_head.bin").unlink())
        yield published("lack the words", lambda folder: (folder / "vocab.txt").unlink())
        yield published(
            "have a part that ends too early", lambda folder: os.truncate(folder / "parts/text_proj.bin", 300)
        )
        for seed in range(5):
            yield published(
                f"have a dictionary with forty bytes changed, {seed}", lambda folder, s=seed: _flip(folder / tokens, s)
            )


def _touch(path: Path) -> None:
    path.write_text("")


def _rename(adata: ad.AnnData, name: Callable[[int], str]) -> None:
    """Genes by number, and by nothing else."""
    adata.var = pd.DataFrame(index=[name(number) for number in range(adata.n_vars)])


def _link(path: Path, name: str) -> None:
    path.rename(path.with_name(name))
    path.symlink_to(name)


def _replace(file: h5py.File, name: str, values: np.ndarray) -> None:
    attributes = dict(file[name].attrs)
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-run",)


def _bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": _Bomb()}))


def _flip(path: Path, seed: int) -> None:
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 40):
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def try_out(attempt: Attempt) -> dict[str, Any]:
    """
    What happened: the exit code, the message, what was left in the folder, and whether that is as it should be.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        arguments = [str(argument) for argument in attempt.lay(folder)]
        before = _listing(folder)
        done = subprocess.run(
            [sys.executable, "-m", "modeling_langcell.cli", *arguments],
            cwd=folder, capture_output=True, text=True, errors="replace", timeout=300,
            env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
        left = sorted(_listing(folder) - before)
    said = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    if attempt.works:
        right = done.returncode == 0 and left == ["out.h5ad"]
    else:
        right = done.returncode == 2 and not left and (len(said) == 1 or "Usage: " in done.stderr)
    right &= "Traceback" not in done.stderr + done.stdout
    message = said[0] if said else " ".join(done.stderr.split())[-200:] if done.returncode else ""
    return {
        "about": attempt.about,
        "what": attempt.what,
        "command": arguments[0],
        "exit": done.returncode,
        "message": message.replace(name, "FOLDER"),
        "left": left,
        "as_it_should": right,
    }


def _listing(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the table.")] = None,
    data: Annotated[Path, typer.Option(help="Folder with validation/.")] = Path("../shared/data"),
    reference: Annotated[Path, typer.Option(help="Folder with the published layout.")] = Path("../shared/reference"),
    only: Annotated[str, typer.Option(help="Only what holds this text.")] = "",
    jobs: Annotated[int, typer.Option(help="Processes at once.", min=1)] = 2,
) -> None:
    """Try all hostile inputs out."""
    attempts = [one for one in Bench(data, reference).attempts() if only in f"{one.about} {one.what}"]
    rows = []
    with ThreadPoolExecutor(jobs) as pool:
        for row in pool.map(try_out, attempts):
            rows.append(row)
            typer.echo(
                f"{'' if row['as_it_should'] else 'WRONG '}{row['about']} {row['what']}: {row['exit']} {row['message']}"
            )
    wrong = sum(not row["as_it_should"] for row in rows)
    typer.echo(f"{len(rows)} inputs, {wrong} not as they should be.")
    write_record(json_file, {"inputs": len(rows), "wrong": wrong, "rows": rows})
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
