# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="func-returns-value, misc"
# Inputs are made by expressions, some of which return nothing.
"""Hostile outputs, names and texts: paths that would cost an input, and names that a terminal or a table would obey."""

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py

from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from tests.robustness.hostile_inputs import LABELS, Attempt, Change, HostileInputs, annotate

#: Escape codes, a line that looks like the command's own, and an order of letters that hides the end of a name.
EVIL = "\x1b[2J\x1b]0;x\x07\nError: forged\u202e"
COMMANDS: dict[str, Sequence[str]] = {
    "annotate": ["annotate", "cells.h5ad", "--labels", LABELS],
    "embed": ["embed", "cells.h5ad"],
    "search": ["search", "cells.h5ad", "B cell"],
    "explain": ["explain", "cells.h5ad", "--labels", LABELS],
    "labels": ["labels"],
}
#: Files of other kinds by their names.
OTHERS: dict[str, bytes] = {
    "notes": b"What I found\n\tthe first\n\tthe second, and the third\n",
    "picture": b"\xff\xd8\xff\xe0 a picture of another format",
    "archive": b"PK\x03\x04 an archive",
    "page": b"<!DOCTYPE html><title>mine</title>",
}


def attempts(inputs: HostileInputs) -> list[Attempt]:
    """Returns all attempts."""
    return [*_places(inputs), *_kinds(inputs), *_folders(inputs), *_names(inputs), *_texts(inputs)]


def _places(inputs: HostileInputs) -> Iterator[Attempt]:
    """Outputs that are an input, or another output."""

    def place(what: str, command: str, *options: str, change: Change = lambda folder: None) -> Attempt:
        return inputs.attempt("output", f"for {command} {what}", *COMMANDS[command], *options, prepare=change)

    links: dict[str, Change] = {
        "a link to": lambda folder: (folder / "other.html").symlink_to("cells.h5ad"),
        "a hard link to": lambda folder: os.link(folder / "cells.h5ad", folder / "other.html"),
        "a link to a link to": lambda folder: (
            (folder / "first").symlink_to("cells.h5ad"),
            (folder / "other.html").symlink_to("first"),
        ),
    }
    for how, change in links.items():
        yield place(f"(report) is {how} the input", "annotate", "--report", "other.html", change=change)
        yield place(f"is {how} the input", "search", "--out", "other.html", change=change)
    yield place("is the input", "search", "--out", "cells.h5ad")
    yield place("is the input", "explain", "--out", "./cells.h5ad")
    yield place("is the input by way of its folder", "explain", "--out", "../work/cells.h5ad")
    yield place("(figure) is the table", "explain", "--out", "genes.png", "--figure", "genes.png")
    yield place("(figure) lies in the table", "explain", "--out", "genes", "--figure", "genes/a.png")
    yield place("(report) is the annotated file", "annotate", "--out", "a.html", "--report", "./a.html")
    yield place("(report) differs from the annotated file in case", "annotate", "--out", "A.html", "--report", "a.HTML")
    yield place("(report) is the default output", "annotate", "--report", "cells_langcell.h5ad")
    yield place("(report) has the suffix of a table", "annotate", "--report", "report.tsv")
    yield place("(figure) has no suffix", "explain", "--out", "genes.tsv", "--figure", "genes")
    yield place("lies in the input", "search", "--out", "cells.h5ad/found.tsv")


def _kinds(inputs: HostileInputs) -> Iterator[Attempt]:
    """Outputs in place of files of another kind."""
    options = {
        "annotate": ("--out", "--report", "--figure"),
        "embed": ("--out",),
        "search": ("--out",),
        "explain": ("--out",),
        "labels": ("--out",),
    }
    suffixes = {"--report": ".html", "--figure": ".png", "--out": ""}
    for command, outputs in options.items():
        for option in outputs:
            for kind, content in OTHERS.items():
                if (option, kind) == ("--report", "page"):
                    continue
                name = f"mine{suffixes[option]}"
                write = lambda folder, name=name, content=content: (folder / name).write_bytes(content)  # noqa: E731
                what = f"for {command} ({option}) replaces a file of another kind: {kind}"
                yield inputs.attempt("output", what, *COMMANDS[command], option, name, prepare=write)

    def another_hdf5(folder: Path) -> None:
        with h5py.File(folder / "mine.h5mu", "w") as file:
            for group in ("mod", "obs", "var"):
                file.create_group(group)

    for command in ("annotate", "embed"):
        what = f"for {command} replaces an HDF5 file that is no .h5ad"
        yield inputs.attempt("output", what, *COMMANDS[command], "--out", "mine.h5mu", prepare=another_hdf5)


def _folders(inputs: HostileInputs) -> Iterator[Attempt]:
    """Folders in folders."""

    def model(folder: Path) -> None:
        shutil.copytree(resolve_checkpoint(MINI), folder / "model")

    def in_model(command: str, what: str, *arguments: str) -> Attempt:
        return inputs.attempt("output", f"for {command} {what}", command, *arguments, prepare=model)

    cells = ("cells.h5ad", "--model", "model")
    labelled = (*cells, "--label-key", "cell_type")
    yield in_model("annotate", "lies in the checkpoint", *cells, "--labels", LABELS, "--out", "model/out.h5ad")
    yield in_model("annotate", "(report) lies in the model", *cells, "--labels", LABELS, "--report", "model/a.html")
    yield in_model("embed", "lies in the checkpoint", *cells, "--out", "model/deep/out.h5ad")
    yield in_model("adapt", "lies in the checkpoint", *labelled, "--head", "prototypes", "--out", "model/adapter")
    yield in_model("calibrate", "lies in the checkpoint", *labelled, "--out", "model/calibrated")
    yield in_model("export", "lies in the checkpoint", "model", "--out", "model/encoder")
    yield in_model("export", "holds the checkpoint", "model", "--out", ".")
    yield in_model("evaluate", "lies in the checkpoint", "zero-shot", "--model", "model", "--out", "model/results")
    yield in_model("evaluate", "holds the studies", "zero-shot", "--data", ".", "--studies", "a/b.yaml", "--out", "a")

    def store(folder: Path) -> None:
        inputs.cells.write_zarr(folder / "cells.zarr")

    begin = ("annotate", "cells.zarr", "--labels", LABELS)
    yield inputs.attempt("output", "lies in a zarr store", *begin, "--out", "cells.zarr/out.h5ad", prepare=store)
    yield inputs.attempt("output", "(report) lies in a store", *begin, "--report", "cells.zarr/X/a.html", prepare=store)
    yield inputs.attempt("output", "is the zarr store", *begin, "--out", "cells.zarr", prepare=store)
    corpus = ["corpus", "studies", "--gene-info", "gene_info.gz"]

    def studies(folder: Path) -> None:
        shutil.copyfile(inputs.genes / "Homo_sapiens.gene_info.gz", folder / "gene_info.gz")
        (folder / "studies").mkdir()
        shutil.copyfile(folder / "cells.h5ad", folder / "studies/cells.h5ad")

    for what, out in (("is", "studies"), ("lies in", "studies/corpus"), ("holds", ".")):
        yield inputs.attempt("output", f"for corpus {what} the sources", *corpus, "--out", out, prepare=studies)

    def notes(folder: Path) -> None:
        model(folder)
        (folder / "model/README.md").write_text("# What I found\n")

    yield inputs.attempt("output", "for card replaces notes", "card", "model", prepare=notes)


def _names(inputs: HostileInputs) -> Iterator[Attempt]:
    """Names that a terminal or a table would obey."""

    def cells(change: Any) -> Change:
        return lambda folder: inputs.write_cells(folder, change)

    names = {
        "escape codes": EVIL,
        "markup": "[red]x[/] [/nothing] [link=http://x]",
        "formulas": "=HYPERLINK(1)",
        "mathematical markup": "$\\frac{x$ $_",
        "Greek and emoji": "κύτταρο 🧬",
    }
    for what, name in names.items():
        yield inputs.attempt(
            "names", f"of cells with {what}", *annotate("--cluster-key", "by"), valid=True,
            prepare=cells(lambda adata, name=name: (
                setattr(adata, "obs_names", [f"{name}{row}" for row in range(adata.n_obs)]),
                adata.obs.__setitem__("by", [name] * adata.n_obs),
            )),
        )  # fmt: skip
        yield inputs.attempt(
            "names", f"of labels with {what}", *annotate(labels="types.json"), valid=True,
            prepare=lambda folder, name=name: (folder / "types.json").write_text(
                json.dumps({name: "cell type: B cell.", "T cell": ""})),
        )  # fmt: skip
        yield inputs.attempt("names", f"of a file with {what}", "annotate", f"{name}.h5ad", "--labels", LABELS)
        yield inputs.attempt("names", f"of a column with {what}", *annotate("--reference", name))
        yield inputs.attempt("names", f"of a tissue with {what}", "annotate", "cells.h5ad", "--tissue", name)
        yield inputs.attempt("names", f"of a device with {what}", *annotate("--device", name))
        yield inputs.attempt("names", f"of a choice with {what}", *annotate("--counts", name))


def _texts(inputs: HostileInputs) -> Iterator[Attempt]:
    """Texts that cannot be shown, stored or told apart."""
    one_name = {
        "case": ("B cell", "b CELL"),
        "blanks": ("B cell", "B  cell"),
        "an invisible blank": ("B cell", "B\u200b cell"),
        "a joiner": ("B cell", "B\u2060 cell"),
        "composition": ("für", "fu\u0308r"),
        "width": ("CD8", "\uff23\uff248"),
        "slashes": ("a/b", "a|b"),
    }
    for what, pair in one_name.items():
        content = json.dumps(dict.fromkeys(pair, "cell type: mine."))
        for command in (annotate(labels="types.json"), ["describe", "--labels", "types.json"]):
            yield inputs.attempt(
                "texts", f"for {command[0]}: labels that differ in {what}", *command,
                prepare=lambda folder, content=content: (folder / "types.json").write_text(content),
            )  # fmt: skip
    unseen = {
        "blanks": "  ",
        "a zero-width blank": "\u200b",
        "a change of direction": "\u202e\u202c",
        "escape codes": "\x1b\x07",
        "an accent": "\u0301",
        "thirty thousand letters": "B" * 30_000,
        "half of a pair": "B\ud800",
        "a null character": "B\0",
    }
    for what, text in unseen.items():
        for place, labels in (("label", {text: "cell type: B cell."}), ("description", {"mine": text})):
            yield inputs.attempt(
                "texts", f"a {place} of {what}", *annotate(labels="types.json"),
                prepare=lambda folder, labels=labels: (folder / "types.json").write_text(json.dumps(labels)),
            )  # fmt: skip
        if "\0" not in text and "\ud800" not in text:
            yield inputs.attempt("texts", f"a query of {what}", "search", "cells.h5ad", text)
            yield inputs.attempt("texts", f"a tissue of {what}", "annotate", "cells.h5ad", "--tissue", text)
            yield inputs.attempt("texts", f"a root of {what}", "annotate", "cells.h5ad", "--ontology-root", text)
    for column in ("langcell_cell_type", "langcell_answer", "langcell_score"):
        yield inputs.attempt("texts", f"clusters in {column}", *annotate("--cluster-key", column))
        yield inputs.attempt("texts", f"a reference in {column}", *annotate("--reference", column))
    for name in ("both cases", "two blanks"):
        second = {"both cases": "b cell", "two blanks": "B  cell"}[name]
        yield inputs.attempt(
            "texts", f"types to learn in {name}", "adapt", "cells.h5ad", "--label-key", "by", "--out", "made",
            prepare=lambda folder, second=second: inputs.write_cells(
                folder, lambda adata: adata.obs.__setitem__("by", ["B cell", second] * (adata.n_obs // 2))),
        )  # fmt: skip


__all__ = ["attempts"]
