# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="func-returns-value, misc"
# Inputs are laid by expressions, several of which give nothing back.
"""Hostile and unusual inputs of every command, each laid into a folder of its own."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
from safetensors.numpy import load_file, save_file

from modeling_langcell.checkpoint.adaptation_record import Head
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.checkpoint.fingerprint import weights_of_base
from modeling_langcell.checkpoint.loading import load_checkpoint

LABELS = "B cell;T cell;monocyte"
#: Bytes of the largest file where the disk is to be full.
FULL = 60_000

Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Attempt:
    """
    A hostile or unusual input.

    Args:
        about: What of the input is odd.
        what: How.
        lay: Lays the input into an empty folder, and says the arguments of `langcell`, with paths relative to it.
        works: Whether it is only unusual.
        largest: Bytes that a file may have, as on a disk that is full then.
        leaves: What is whole, and stays, although something else cannot be written.
    """

    about: str
    what: str
    lay: Callable[[Path], Sequence[str]]
    works: bool = False
    largest: int | None = None
    leaves: tuple[str, ...] = ()


class Bench:
    """
    Real cells and a real checkpoint, to be damaged.

    Args:
        data: Folder with `validation/pbmc_kang_ctrl.h5ad`.
        reference: Folder with a small checkpoint in the published layout, its dictionaries and its words.
    """

    def __init__(self, data: Path, reference: Path):
        self.reference, self.genes = reference, data / "genes"
        self.cells = ad.read_h5ad(data / "validation" / "pbmc_kang_ctrl.h5ad")[:20].copy()
        self.cells.obs = self.cells.obs[["cell_type"]].copy()
        self.cells.uns.clear()

    def base_weights(self, head: Head) -> str:
        """What an adapter of the shipped checkpoint says of its weights."""
        return weights_of_base(load_checkpoint(MINI)[0], head)

    def attempts(self) -> list[Attempt]:
        """All of them."""
        return [
            *self._files(),
            *self._counts(),
            *self._options(),
            *self._labels(),
            *self._outputs(),
            *self._models(),
            *self._adapters(),
            *self._published(),
            *self._labelled_cells(),
            *self._embedded_cells(),
            *self._repositories(),
            *self._corpora(),
            *self._evaluations(),
        ]

    # ------------------------------------------------------------------ what most begin with

    def _lay_cells(self, folder: Path, change: Callable[[ad.AnnData], Any] = lambda adata: None) -> None:
        adata = self.cells.copy()
        adata = changed if isinstance(changed := change(adata), ad.AnnData) else adata
        adata.write_h5ad(folder / "cells.h5ad")

    def _attempt(
        self, about: str, what: str, *arguments: str, prepare: Change = lambda folder: None, **facts: Any
    ) -> Attempt:
        """Good cells, something else that is odd, and a command."""

        def lay(folder: Path) -> Sequence[str]:
            self._lay_cells(folder)
            prepare(folder)
            return arguments

        return Attempt(about, what, lay, **facts)

    def _annotate(self, about: str, what: str, *options: str, labels: str = LABELS, **facts: Any) -> Attempt:
        return self._attempt(about, what, *annotate(*options, labels=labels), **facts)

    # ------------------------------------------------------------------ cells

    def _files(self) -> Iterator[Attempt]:
        def file(what: str, change: Change, works: bool = False) -> Attempt:
            return self._annotate("file", what, prepare=lambda folder: change(folder / "cells.h5ad"), works=works)

        yield file("is not there", Path.unlink)
        yield file("is a folder", lambda path: (path.unlink(), path.mkdir()))
        yield file("is empty", lambda path: path.write_bytes(b""))
        yield file("is text", lambda path: path.write_text("cell,gene\n1,2\n"))
        yield file("is random bytes", lambda path: path.write_bytes(np.random.default_rng(0).bytes(10_000)))
        for share in (0.01, 0.5, 0.99):
            yield file(
                f"is cut after {share:.0%}", lambda path, s=share: os.truncate(path, int(path.stat().st_size * s))
            )
        yield file("has a hole of zeros in its middle", lambda path: _overwrite(path, 0.3, bytes(20_000)))
        yield file(
            "is a link to the file",
            lambda path: (path.rename(path.with_name("real.h5ad")), path.symlink_to("real.h5ad")),
            works=True,
        )
        yield file("is a link to nothing", lambda path: (path.unlink(), path.symlink_to("nowhere.h5ad")))
        yield file("is a link to itself", lambda path: (path.unlink(), path.symlink_to(path.name)))
        yield self._attempt("file", "has a name that is too long", *annotate(cells="a" * 300 + ".h5ad"))
        hdf5: list[tuple[str, Callable[[h5py.File], Any]]] = [
            ("holds no X", lambda file: file.__delitem__("X")),
            ("holds no obs", lambda file: file.__delitem__("obs")),
            ("holds no var", lambda file: file.__delitem__("var")),
            ("holds fewer gene numbers than values", lambda file: _edit(file, "X/indices", lambda old: old[:-1])),
            ("names a gene beyond the last", lambda file: _edit(file, "X/indices", lambda old: np.r_[10**6, old[1:]])),
            ("names a gene below 0", lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]])),
            ("has rows that end before they begin", lambda file: _edit(file, "X/indptr", lambda old: old[::-1])),
            ("says another shape than it has", lambda file: file["X"].attrs.__setitem__("shape", [7, 3])),
            ("says that X is a dictionary", lambda file: file["X"].attrs.__setitem__("encoding-type", "dict")),
            ("holds text for counts", lambda file: _edit(file, "X/data", lambda old: old.astype("S9"))),
            ("names fewer cells than it has", lambda file: _edit(file, "obs/_index", lambda old: old[:-1])),
            ("has cell types that no category is", lambda file: _edit(
                file, "obs/cell_type/codes", lambda old: old + 99)),
            ("links X to another file", lambda file: (
                file.__delitem__("X"), file.__setitem__("X", h5py.ExternalLink("../elsewhere.h5", "/X")))),
            ("has obs read from another file's bytes", lambda file: file["obs"].create_dataset(
                "leak", (9,), "u1", external=[("../secret.txt", 0, 9)])),
            ("has obs read from another HDF5 file", lambda file: file["obs"].create_virtual_dataset(
                "leak", _virtual("../secret.h5", (20,)))),
            ("links X to itself", lambda file: (file.__delitem__("X"), file.__setitem__("X", h5py.SoftLink("/X")))),
        ]  # fmt: skip
        for what, change in hdf5:
            yield file(what, lambda path, change=change: _in_hdf5(path, change))
        yield file("has obs hold itself", lambda path: _in_hdf5(
            path, lambda file: file.__setitem__("obs/more", file["obs"])), works=True)  # fmt: skip

    def _counts(self) -> Iterator[Attempt]:
        def value(number: float, dtype: Any = np.float32) -> Callable[[ad.AnnData], Any]:
            def change(adata: ad.AnnData) -> None:
                dense = adata.X.toarray().astype(dtype)
                dense[3, int(dense[3].argmax())] = number
                adata.X = dense

            return change

        def replaced(x: Callable[[Any], Any]) -> Callable[[ad.AnnData], Any]:
            return lambda adata: setattr(adata, "X", x(adata.X))

        def called(name: Callable[[int], str]) -> Callable[[ad.AnnData], Any]:
            """Genes by number, and by nothing else."""
            return lambda adata: setattr(adata, "var", pd.DataFrame(index=[name(i) for i in range(adata.n_vars)]))

        refused: list[tuple[str, Callable[[ad.AnnData], Any]]] = [
            ("hold NaN", value(np.nan)),
            ("hold infinity", value(np.inf)),
            ("hold a number below 0", value(-1)),
            ("are fractions", replaced(lambda x: x * 0.37)),
            ("are tiny fractions", replaced(lambda x: x.astype(np.float64) * 1e-300)),
            ("are complex", replaced(lambda x: x.toarray().astype(np.complex64))),
            ("are all 0", replaced(lambda x: x * 0)),
            ("are of no cell", lambda adata: adata[:0].copy()),
            ("are of no gene", lambda adata: adata[:, :0].copy()),
            ("are of genes without a name", called(lambda gene: "")),
            ("are of genes called by number", called(str)),
            ("are of a mouse", called("ENSMUSG{:011d}".format)),
            ("are of genes all called alike", called(lambda gene: "ENSG00000000000")),
        ]
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
        for ends_well, cases in ((False, refused), (True, works)):
            for what, change in cases:
                yield Attempt(
                    "counts",
                    what,
                    lambda folder, change=change: (self._lay_cells(folder, change), annotate())[1],
                    ends_well,
                )

    # ------------------------------------------------------------------ options and labels

    def _options(self) -> Iterator[Attempt]:
        options = {
            "an alpha of 2": "--alpha 2",
            "an alpha that is no number": "--alpha nan",
            "an error rate that was not fitted": "--error-rate 0.37",
            "an error rate below 0": "--error-rate -1",
            "an error rate for another alpha": "--error-rate 0.1 --alpha 0.5",
            "a shortlist of none": "--shortlist 0",
            "a shortlist in words": "--shortlist many",
            "a budget of no genes": "--batch-tokens 0",
            "a device that is not there": "--device cuda:99",
            "a device that nobody makes": "--device abacus",
            "a precision that nobody has": "--dtype int3",
            "a layer that is not there": "--layer counts",
            "raw counts that are not there": "--use-raw",
            "a gene column that is not there": "--gene-column symbols",
            "counts of a kind that nobody knows": "--counts guess",
            "clusters that are not there": "--cluster-key leiden",
            "a reference that is not there": "--reference truth",
            "a figure of a kind that nobody draws": "--figure figure.doc",
            "a number that is a word": "--alpha half",
            "an option that nobody knows": "--fast",
        }
        for what, option in options.items():
            yield self._annotate("option", what, *option.split())
        yield self._annotate("option", "labels and a root at once", "--ontology-root", "CL:0000542")
        yield self._attempt(
            "option",
            "a root that is no term",
            "annotate",
            "cells.h5ad",
            "--ontology-root",
            "CL:9999999",
            "--out",
            "out.h5ad",
        )

    def _labels(self) -> Iterator[Attempt]:
        given = {
            "none": " ; ",
            "one that nobody knows": "B cell;flurble",
            "one twice": "B cell;B cell",
            "one that is deprecated": "B cell;CL:0000003",
            "a file that is not there": "types.tsv",
            "a file outside the folder that is not there": "../../../types.json",
        }
        for what, text in given.items():
            yield self._annotate("labels", what, labels=text)
        files: dict[str, tuple[str, bytes]] = {
            "JSON with a name that no table can have": ("types.json", b'{".": "cell type: a", "B cell": ""}'),
            "JSON with one name twice": ("types.json", b'{"B cell": "", "B cell": "cell type: x"}'),
            "JSON with half of a sign": ("types.json", rb'{"a\ud800": "cell type: a", "B cell": ""}'),
            "JSON with a zero in a name": ("types.json", rb'{"a\u0000b": "cell type: a", "B cell": ""}'),
            "JSON that ends too early": ("types.json", b'{"B cell": '),
            "JSON of numbers": ("types.json", b"[1, 2]"),
            "JSON of null": ("types.json", b"null"),
            "JSON nested a hundred thousand deep": ("types.json", b"[" * 100_000),
            "bytes that are no text": ("types.tsv", b"\xff\xfe\x00B"),
            "lines with zero bytes": ("types.tsv", b"B cell\0\tcell type: b.\n"),
            "an empty file": ("types.txt", b""),
            "a file of tabs and empty lines": ("types.tsv", b"\t\n\n\t\t\n"),
        }
        for what, (name, content) in files.items():
            write = lambda folder, name=name, content=content: (folder / name).write_bytes(content)  # noqa: E731
            yield self._annotate("labels", what, labels=name, prepare=write)
        unicode = '{"κύτταρο 🧬": "cell type: B cell.", "T/細胞": "cell type: T cell."}'
        yield self._annotate(
            "labels", "JSON in Greek, emoji and Chinese", labels="types.json", works=True,
            prepare=lambda folder: (folder / "types.json").write_text(unicode, encoding="utf-8"),
        )  # fmt: skip
        yield self._annotate(
            "labels", "a folder", labels="types.json", prepare=lambda folder: (folder / "types.json").mkdir()
        )
        yield self._attempt(
            "labels",
            "of describe are numbers",
            "describe",
            "--labels",
            "types.json",
            prepare=lambda folder: (folder / "types.json").write_text("[1]"),
        )
        yield self._attempt("labels", "of describe are none", "describe")
        yield self._attempt("labels", "of explain are unknown", *explain("--labels", "flurble"))
        yield self._attempt(
            "labels",
            "of explain are no text",
            *explain("--labels", "types.tsv"),
            prepare=lambda folder: (folder / "types.tsv").write_bytes(b"\xff\xfe"),
        )

    # ------------------------------------------------------------------ outputs

    def _outputs(self) -> Iterator[Attempt]:
        def output(what: str, *arguments: str, prepare: Change = lambda folder: None, **facts: Any) -> Attempt:
            return self._attempt("output", what, *arguments, prepare=prepare, **facts)

        def in_the_way(folder: Path) -> None:
            (folder / "there").mkdir()
            (folder / "there/mine").write_text("")

        def file_in_the_way(folder: Path) -> None:
            (folder / "there").write_text("")

        commands: dict[str, Sequence[str]] = {
            "annotate": ["annotate", "cells.h5ad", "--labels", LABELS],
            "embed": ["embed", "cells.h5ad"],
            "search": ["search", "cells.h5ad", "B cell"],
            "explain": ["explain", "cells.h5ad", "--labels", LABELS],
        }
        for name, begin in commands.items():
            yield output(f"of {name} is a folder", *begin, "--out", "there", prepare=in_the_way)
            yield output(f"of {name} is below a file", *begin, "--out", "there/out", prepare=file_in_the_way)
            yield output(f"of {name} has a name that is too long", *begin, "--out", "a" * 300)
            yield output(f"of {name} is where nobody may write", *begin, "--out", "/proc/out")
            yield output(f"of {name} is a device", *begin, "--out", "/dev/full")
        done = (".out.h5ad.unfinished", ".out.h5ad.unfinished/00000000.safetensors", ".out.h5ad.unfinished/plan.json")
        for name, kept in (("annotate", done), ("embed", ())):
            yield output(
                f"of {name} is on a full disk", *commands[name], "--out", "out.h5ad", largest=FULL, leaves=kept
            )
        folders: dict[str, Sequence[str]] = {
            "calibrate": ["calibrate", "cells.h5ad", "--label-key", "cell_type"],
            "adapt": ["adapt", "cells.h5ad", "--label-key", "cell_type", "--head", "prototypes"],
            "export": ["export", MINI],
        }
        for name, begin in folders.items():
            yield output(f"of {name} exists", *begin, "--out", "there", prepare=in_the_way)
            yield output(f"of {name} is where nobody may write", *begin, "--out", "/proc/out")
            yield output(f"of {name} is on a full disk", *begin, "--out", "out", largest=2_000)

        def unfinished(name: str, content: str) -> Change:
            def change(folder: Path) -> None:
                (folder / ".out.h5ad.unfinished").mkdir()
                (folder / ".out.h5ad.unfinished" / name).write_text(content)

            return change

        yield output("has something of others where its parts would lie", *annotate(), prepare=unfinished("mine", ""))
        outside = unfinished("plan.json", '{"run": "../../x", "plan": {}}')
        yield output("has an unfinished plan that leaves its folder", *annotate(), prepare=outside, works=True)
        yield output(
            "that is the report is where nobody may write",
            *annotate("--report", "/proc/report.html"),
            leaves=("out.h5ad",),
        )
        yield output(
            "that is the figure is where nobody may write",
            *annotate("--figure", "/proc/figure.png"),
            leaves=("out.h5ad",),
        )

    # ------------------------------------------------------------------ checkpoints

    def _models(self) -> Iterator[Attempt]:
        def model(what: str, change: Change, works: bool = False) -> Attempt:
            def prepare(folder: Path) -> None:
                shutil.copytree(resolve_checkpoint(MINI), folder / "model")
                change(folder / "model")

            return self._annotate("checkpoint", what, "--model", "model", prepare=prepare, works=works)

        config, processor, words, weights = (
            "config.json",
            "processor_config.json",
            "tokenizer.json",
            "model.safetensors",
        )
        settings, index = "tokenizer_config.json", "model.safetensors.index.json"
        genes = "feature_extractor"

        def moved_out(folder: Path) -> None:
            """Weights beside the folder, which an index in it names."""
            names = load_file(folder / weights)
            (folder / weights).rename(folder.parent / "outside.safetensors")
            (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))

        yield model("is empty", lambda folder: (shutil.rmtree(folder), folder.mkdir()))
        for name in (config, weights, processor, words, settings):
            yield model(f"has no {name}", lambda folder, name=name: (folder / name).unlink())
        for name in (config, weights, processor, words):
            yield model(f"has a {name} that ends too early", lambda folder, name=name: _halve(folder / name))
        yield model("has a config nested without end", lambda folder: (folder / config).write_text("[" * 100_000))
        yield model("has a config that is a list", lambda folder: (folder / config).write_text("[1]"))
        yield model("has a tokenizer of nothing", lambda folder: (folder / words).write_text("{}"))
        yield model("has weights of other shapes", _json(config, "cell_config", hidden_size=128))
        yield model(
            "has weights that lack one", lambda folder: _in_weights(folder / weights, lambda found: found.popitem())
        )
        yield model("has weights that are no numbers", lambda folder: _in_weights(
            folder / weights, lambda found: next(iter(found.values())).fill(np.nan)))  # fmt: skip
        yield model("has weights outside its folder", moved_out)
        yield model("has an index of weights that is a list", lambda folder: (
            (folder / weights).unlink(), (folder / index).write_text("[1]")))  # fmt: skip
        yield model("has a pickle that runs a command in place of weights", lambda folder: (
            (folder / weights).unlink(), _bomb(folder / "pytorch_model.bin")))  # fmt: skip
        yield model("has no attention heads", _json(config, "cell_config", num_attention_heads=0))
        yield model("has a width in words", _json(config, "cell_config", hidden_size="wide"))
        yield model("has an activation that is a command", _json(config, "cell_config", hidden_act="os.system"))
        yield model("has a tower that is a list", _json(config, cell_config=[1]))
        yield model("is of another family", _json(config, model_type="bert"))
        evil = {"AutoConfig": "../../evil.Config", "AutoModel": "../../evil.Model"}
        yield model("brings code from outside its folder", _json(config, model_type="evil", auto_map=evil))
        yield model("brings code that nobody runs", _json(config, auto_map=evil), works=True)
        yield model("names a kernel of the Hub", _json(config, attn_implementation="evil/kernel"))
        yield model("names a processor that is a command", _json(processor, processor_class="os.system"))
        yield model("has a negative temperature", _json(config, temperature=-1))
        yield model("has a damaged calibration", _json(config, calibration={"temperature": "hot"}))
        few = {"ensembl_ids": ["a", "b"], "medians": [1, 2], "names": ["a", "b"]}
        yield model("has a processor of other genes", _json(processor, genes, gene_vocabulary=few))
        numbers = {"ensembl_ids": [1], "medians": [1], "names": [1]}
        yield model("has genes called by number", _json(processor, genes, gene_vocabulary=numbers))
        yield model("has a processor of longer cells", _json(processor, genes, max_length=10**6))
        yield model("has a processor of longer texts", _json(settings, model_max_length=10**6))
        yield self._annotate("checkpoint", "is a path that leaves the folder", "--model", "../../nowhere")
        yield self._annotate("checkpoint", "has a name that is too long", "--model", "a" * 300)
        yield self._attempt("checkpoint", "of describe is nothing", "describe", "B cell", "--model", "nowhere")
        yield self._attempt(
            "checkpoint",
            "of export is empty",
            "export",
            "empty",
            "--out",
            "encoder",
            prepare=lambda folder: (folder / "empty").mkdir(),
        )

    def _adapters(self) -> Iterator[Attempt]:
        good = {"head": "descriptions", "labels": {"B cell": "cell type: B cell.", "T cell": ""}, "base": MINI}
        good |= {"cells": {"B cell": 1}, "settings": {}, "versions": {}, "base_weights": "of another"}

        def adapter(what: str, said: Any, lay_more: Change = lambda folder: None, fits: bool = False) -> Attempt:
            def prepare(folder: Path) -> None:
                (folder / "adapter").mkdir()
                if said is not None:
                    own = {"base_weights": self.base_weights(said["head"])} if fits else {}
                    (folder / "adapter/adaptation.json").write_text(json.dumps(said | own))
                lay_more(folder / "adapter")

            arguments = ["annotate", "cells.h5ad", "--adapter", "adapter", "--out", "out.h5ad"]
            return self._attempt("adapter", what, *arguments, prepare=prepare)

        def with_weights(folder: Path) -> None:
            config = {"peft_type": "LORA", "base_model_name_or_path": "../../x", "target_modules": ["query"]}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            save_file({"a": np.zeros(3)}, folder / "adapter_model.safetensors")

        yield adapter("is of nothing", None)
        yield adapter("has weights that are not there", good)
        yield adapter("has a base that leaves its folder", good | {"base": "../../nowhere"}, with_weights)
        yield adapter("has weights of another base", good, with_weights)
        yield adapter("has weights of other layers", good, with_weights, fits=True)
        yield adapter("has labels that are numbers", good | {"labels": {"B cell": 1}}, with_weights)
        yield adapter("has a head that nobody knows", good | {"head": "os.system"}, with_weights)
        prototypes = good | {"head": "prototypes", "prototype_weight": 1.0}
        narrow = {"prototypes": np.zeros((2, 3), np.float32)}
        yield adapter("has prototypes that are text", prototypes, lambda folder: (
            (folder / "prototypes.safetensors").write_text("a")))  # fmt: skip
        yield adapter("has prototypes of another width", prototypes, lambda folder: (
            save_file(narrow, folder / "prototypes.safetensors")), fits=True)  # fmt: skip

    def _published(self) -> Iterator[Attempt]:
        def published(what: str, change: Change) -> Attempt:
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

        def dictionary(what: str, content: bytes) -> Attempt:
            return published(f"have a dictionary {what}", lambda folder: (folder / tokens).write_bytes(content))

        tokens, medians = "token_dictionary.pkl", "gene_median_dictionary.pkl"
        part, config = "parts/text_proj.bin", "parts/cell_bert/config.json"
        yield published("have a dictionary that runs a command", lambda folder: _bomb(folder / tokens))
        yield published("have weights that run a command", lambda folder: _bomb(folder / "parts/cell_proj.bin"))
        yield published("have a dictionary that ends too early", lambda folder: _halve(folder / tokens))
        yield dictionary("of no bytes", b"")
        yield dictionary("of a list", pickle.dumps([1]))
        yield dictionary("with gaps between its ids", pickle.dumps({"<pad>": 0, "<mask>": 1, "a": 7}))
        yield dictionary("nested without end", b"(" * 10**6 + b"t.")
        yield dictionary("that holds itself", b"\x80\x04}\x94\x8c\x01ah\x00s.")
        yield dictionary("that takes from an empty stack", b"\x80\x040.")
        yield dictionary("that remembers what is not there", b"\x80\x04h\x63.")
        yield published("have medians of infinity", lambda folder: (folder / medians).write_bytes(
            pickle.dumps({"ENSG00000000003": float("inf")})))  # fmt: skip
        yield published("lack a part", lambda folder: (folder / "parts/ctm_head.bin").unlink())
        yield published("lack the words", lambda folder: (folder / "vocab.txt").unlink())
        yield published("have words twice", lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[PAD]\n"))
        yield published("have words that are no text", lambda folder: (folder / "vocab.txt").write_bytes(b"\xff\xfe"))
        yield published("have a part that ends too early", lambda folder: _halve(folder / part))
        yield published("have parts in each other's place", lambda folder: (
            (folder / part).unlink(), shutil.copyfile(folder / "parts/ctm_head.bin", folder / part)))  # fmt: skip
        yield published("have a config nested without end", lambda folder: (folder / config).write_text("[" * 100_000))
        yield published("have a config without layers", lambda folder: _json(config, num_hidden_layers=0)(folder))
        for seed in range(3):
            yield published(
                f"have a dictionary with forty bytes changed, {seed}", lambda folder, s=seed: _flip(folder / tokens, s)
            )

    # ------------------------------------------------------------------ the other commands

    def _labelled_cells(self) -> Iterator[Attempt]:
        def both(what: str, prepare: Change = lambda folder: None, key: str = "cell_type") -> Iterator[Attempt]:
            for command in ("calibrate", "adapt"):
                arguments = [command, "cells.h5ad", "--label-key", key, "--out", "made"]
                yield self._attempt(f"labelled cells ({command})", what, *arguments, prepare=prepare)

        def types(of: Callable[[ad.AnnData], Any]) -> Change:
            return lambda folder: self._lay_cells(folder, lambda adata: adata.obs.__setitem__("cell_type", of(adata)))

        def file(change: Change) -> Change:
            return lambda folder: change(folder / "cells.h5ad")

        yield from both("are in a file that is cut", file(_halve))
        yield from both("have no such column", key="type")
        yield from both("are all of one type", types(lambda adata: ["B cell"] * adata.n_obs))
        yield from both("are all without a type", types(lambda adata: [""] * adata.n_obs))
        yield from both("have a gene below 0", file(lambda path: _in_hdf5(
            path, lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]]))))  # fmt: skip
        yield from both("have no X", file(lambda path: _in_hdf5(path, lambda file: file.__delitem__("X"))))

        def adapt(what: str, *options: str, prepare: Change = lambda folder: None) -> Attempt:
            arguments = ["adapt", "cells.h5ad", "--label-key", "cell_type", "--out", "made", *options]
            return self._attempt("adapt", what, *arguments, prepare=prepare)

        yield self._attempt(
            "calibrate",
            "two files of one name",
            "calibrate",
            "cells.h5ad",
            "more/cells.h5ad",
            "--label-key",
            "cell_type",
            "--out",
            "made",
            prepare=lambda folder: (
                (folder / "more").mkdir(),
                shutil.copyfile(folder / "cells.h5ad", folder / "more/cells.h5ad"),
            ),
        )
        yield self._attempt(
            "calibrate",
            "types that the ontology does not know",
            "calibrate",
            "cells.h5ad",
            "--label-key",
            "cell_type",
            "--out",
            "made",
            prepare=types(lambda adata: ["flurble", "glorp"] * (adata.n_obs // 2)),
        )
        yield adapt("more cells of a label than there are", "--shots", "999")
        yield adapt("a head that nobody knows", "--head", "tail")
        yield adapt("a rank of 0", "--rank", "0")
        yield adapt("no epochs", "--epochs", "0")
        yield adapt("a learning rate that is no number", "--learning-rate", "nan")
        yield adapt("a share of genes left out that is 2", "--gene-dropout", "2")
        yield adapt("all cells held out", "--held-out", "1")
        yield adapt("descriptions that are a list", "--labels", "types.json", prepare=lambda folder: (
            (folder / "types.json").write_text('["B cell"]')))  # fmt: skip
        yield adapt("a repository that is no name", "--push-to", "../../x")

    def _embedded_cells(self) -> Iterator[Attempt]:
        def search(
            what: str,
            change: Callable[[ad.AnnData], Any] = lambda adata: None,
            *,
            text: str = "B cell",
            options: Sequence[str] = (),
        ) -> Attempt:
            return Attempt(
                "search",
                what,
                lambda folder: (self._lay_cells(folder, change), ["search", "cells.h5ad", text, *options])[1],
            )

        def embedded(embeds: Any) -> Callable[[ad.AnnData], Any]:
            def change(adata: ad.AnnData) -> None:
                adata.obsm["X_langcell"] = embeds(adata)
                adata.uns["langcell"] = {"checkpoint": MINI, "adapter": ""}

            return change

        yield search("an empty text", text="  ")
        yield search("a term that is none", text="CL:9999999")
        yield search("no cells at all", options=("--top", "0"))
        yield search("embeddings of another width", embedded(lambda adata: np.ones((adata.n_obs, 3), np.float32)))
        yield search("embeddings that are no numbers", embedded(lambda adata: np.full((adata.n_obs, 256), np.nan)))
        yield search(
            "embeddings that are words",
            embedded(lambda adata: pd.DataFrame({"a": ["b"] * adata.n_obs}, index=adata.obs_names)),
        )
        yield search(
            "embeddings of nobody's", lambda adata: adata.obsm.__setitem__("X_langcell", np.ones((adata.n_obs, 3)))
        )
        yield self._attempt(
            "embed",
            "a file that is cut",
            "embed",
            "cells.h5ad",
            "--out",
            "out.h5ad",
            prepare=lambda folder: _halve(folder / "cells.h5ad"),
        )
        yield self._attempt(
            "embed",
            "a gene below 0",
            "embed",
            "cells.h5ad",
            "--out",
            "out.h5ad",
            prepare=lambda folder: _in_hdf5(
                folder / "cells.h5ad", lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]])
            ),
        )
        yield self._attempt("explain", "a method that nobody knows", *explain("--labels", LABELS, "--method", "magic"))
        yield self._attempt(
            "explain",
            "a file that is cut",
            *explain("--labels", LABELS),
            prepare=lambda folder: _halve(folder / "cells.h5ad"),
        )

    def _repositories(self) -> Iterator[Attempt]:
        def folder_of(command: str, what: str, change: Change, *options: str) -> Attempt:
            def lay(folder: Path) -> Sequence[str]:
                shutil.copytree(resolve_checkpoint(MINI), folder / "model")
                change(folder / "model")
                return [command, "model", *options]

            return Attempt(command, what, lay)

        def publish(what: str, change: Change = lambda folder: None, *options: str, to: str = "me/mine") -> Attempt:
            return folder_of("publish", what, change, "--repo-id", to, "--dry-run", *options)

        yield publish("a repository that is no name", to="../../x")
        yield publish("a tag that leaves its place", lambda folder: None, "--tag", "../x")
        yield publish("an empty folder", lambda folder: (shutil.rmtree(folder), folder.mkdir()))
        yield publish("a pickle under another name", lambda folder: _bomb(folder / "notes.txt"))
        yield publish("a link that leaves the folder", lambda folder: (folder / "notes.txt").symlink_to("/etc/passwd"))
        yield publish("weights that end too early", lambda folder: _halve(folder / "model.safetensors"))
        yield publish("a card that is not of it", lambda folder: (folder / "README.md").write_text("# Other\n"))
        yield publish(
            "a password in a card", lambda folder: (folder / "README.md").open("a").write(f"hf_{'a1B2' * 9}\n")
        )
        yield publish("results that are not there", lambda folder: None, "--results", "nowhere")

        about = lambda text: lambda folder: (folder.parent / "about.yaml").write_text(text)  # noqa: E731
        command = '!!python/object/apply:os.system ["touch was-run"]'
        yield folder_of(
            "card", "a text about it that runs a command", about(f"limits: {command}\n"), "--about", "about.yaml"
        )
        yield folder_of("card", "a text about it that is a list", about("[1]"), "--about", "about.yaml")
        yield folder_of("card", "a text about it that is not there", lambda folder: None, "--about", "nowhere.yaml")
        yield folder_of("card", "results that are not there", lambda folder: None, "--results", "nowhere")
        yield folder_of("card", "a config that ends too early", lambda folder: _halve(folder / "config.json"))
        yield folder_of(
            "card", "figures that are a list", lambda folder: (folder / "evaluation.json").write_text("[1]")
        )
        yield folder_of(
            "card", "figures nested without end", lambda folder: (folder / "evaluation.json").write_text("[" * 10**5)
        )
        yield folder_of(
            "card", "runs that are numbers", lambda folder: (folder / "training.json").write_text('{"runs": [1]}')
        )

    def _corpora(self) -> Iterator[Attempt]:
        table = self.genes / "Homo_sapiens.gene_info.gz"

        def corpus(what: str, *options: str, prepare: Change = lambda folder: None, genes: str = "genes.gz") -> Attempt:
            def lay_all(folder: Path) -> None:
                (folder / "genes.gz").symlink_to(table.resolve())
                prepare(folder)

            arguments = ["corpus", "cells.h5ad", "--gene-info", genes, "--out", "corpus", *options]
            return self._attempt("corpus", what, *arguments, prepare=lay_all)

        yield corpus("a source that is not there", "nowhere.h5ad")
        yield corpus("a source that is cut", prepare=lambda folder: _halve(folder / "cells.h5ad"))
        yield corpus(
            "a source without X",
            prepare=lambda folder: _in_hdf5(folder / "cells.h5ad", lambda file: file.__delitem__("X")),
        )
        yield corpus(
            "a source with a gene below 0",
            prepare=lambda folder: _in_hdf5(
                folder / "cells.h5ad", lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]])
            ),
        )
        yield corpus("a source twice", "cells.h5ad")
        yield corpus("genes that are not there", genes="nowhere.gz")
        yield corpus("genes that are no table", genes="cells.h5ad")
        yield corpus(
            "genes that end too early",
            genes="cut.gz",
            prepare=lambda folder: (folder / "cut.gz").write_bytes(table.read_bytes()[:50_000]),
        )
        yield corpus("a condition that runs a command", "--where", "@np.os.system('touch was-run') == 0")
        yield corpus("a condition on no column", "--where", "tissue == 'blood'")
        yield corpus("a vocabulary of nothing", "--vocabulary", "nowhere")
        yield corpus(
            "a folder that holds something else",
            prepare=lambda folder: ((folder / "corpus").mkdir(), (folder / "corpus/mine").write_text("")),
        )

    def _evaluations(self) -> Iterator[Attempt]:
        def evaluate(
            what: str, *options: str, task: str = "zero-shot", prepare: Change = lambda folder: None
        ) -> Attempt:
            arguments = ["evaluate", task, "--out", "results", "--data", ".", *options]
            return self._attempt("evaluate", what, *arguments, prepare=prepare)

        def studies(text: str) -> Change:
            return lambda folder: (folder / "studies.yaml").write_text(text)

        mine = ("--studies", "studies.yaml", "--study", "mine")
        yield evaluate("a task that nobody knows", task="../../x")
        yield evaluate("a study that nobody knows", "--study", "../../x")
        yield evaluate("data that are not there")
        yield evaluate("studies that are not there", *mine)
        yield evaluate(
            "studies that run a command",
            *mine,
            prepare=studies('mine: !!python/object/apply:os.system ["touch was-run"]\n'),
        )
        yield evaluate("studies that are a list", *mine, prepare=studies("[1]"))
        yield evaluate("a study of numbers", *mine, prepare=studies("mine: {path: 1}"))
        yield evaluate("gene sets that are not there", "--gene-sets", "nowhere.gmt", task="pathways")
        yield evaluate("a model that is not there", "--model", "nowhere")


# ---------------------------------------------------------------------- commands


def annotate(*options: str, cells: str = "cells.h5ad", labels: str = LABELS) -> list[str]:
    return ["annotate", cells, "--labels", labels, "--out", "out.h5ad", *options]


def explain(*options: str) -> list[str]:
    return ["explain", "cells.h5ad", "--out", "genes.tsv", *options]


# ---------------------------------------------------------------------- damage


def _halve(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _overwrite(path: Path, share: float, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(int(path.stat().st_size * share))
        file.write(content)


def _flip(path: Path, seed: int) -> None:
    content, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for place in rng.integers(0, len(content), 40):
        content[place] ^= int(rng.integers(1, 256))
    path.write_bytes(content)


def _virtual(path: str, shape: tuple[int, ...]) -> h5py.VirtualLayout:
    """A dataset that is one of another file's."""
    layout = h5py.VirtualLayout(shape, "u1")
    layout[:] = h5py.VirtualSource(path, "secret", shape)
    return layout


def _in_hdf5(path: Path, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def _edit(file: h5py.File, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces an array by what a function makes of it."""
    attributes, values = dict(file[name].attrs), change(file[name][:])
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def _in_weights(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    found = load_file(path)
    change(found)
    save_file(found, path, metadata={"format": "pt"})


def _json(name: str, *place: str, **changes: Any) -> Change:
    """Changes entries of a JSON object, or of one in it."""

    def change(folder: Path) -> None:
        found = there = json.loads((folder / name).read_text())
        for key in place:
            there = there[key]
        there.update(changes)
        (folder / name).write_text(json.dumps(found))

    return change


class _Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch was-run",)


def _bomb(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": _Bomb()}))
