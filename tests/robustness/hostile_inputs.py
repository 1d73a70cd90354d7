# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
# mypy: disable-error-code="func-returns-value, misc"
# Inputs are made by expressions, some of which return nothing.
"""Hostile and unusual inputs for every command, each in a folder of its own."""

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
#: Largest file in bytes that imitates a full disk.
FULL = 60_000

Change = Callable[[Path], Any]


@dataclass(frozen=True)
class Attempt:
    """
    A hostile or unusual input of a command.

    Args:
        about: The part of the input that is unusual.
        what: Its oddity.
        set_up: Writes the input into an empty folder, and returns the arguments of `langcell`, relative to it.
        valid: True if the input is only unusual, and must work.
        max_file_bytes: Largest size of a file that the command may write, in place of a full disk.
        kept: Whole files that stay although another file cannot be written.
        makes: Files and folders that the command makes or changes, if the input is valid.
        removed: What dead runs have left, which the command removes.
        locked: Name of a lock that another process holds meanwhile.
        environment: Further environment variables.
        program: `langcell`, or `train.py` for a training.
    """

    about: str
    what: str
    set_up: Callable[[Path], Sequence[str]]
    valid: bool = False
    max_file_bytes: int | None = None
    kept: tuple[str, ...] = ()
    makes: tuple[str, ...] = ("out.h5ad",)
    removed: tuple[str, ...] = ()
    locked: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    program: str = "langcell"

    @property
    def name(self) -> str:
        """Part and oddity, in one phrase."""
        return f"{self.about} {self.what}"


class HostileInputs:
    """
    Attempts made by damaging real cells and a real checkpoint.

    Args:
        data: Folder with `validation/pbmc_kang_ctrl.h5ad`.
        reference: Folder with a small checkpoint in the published layout, its dictionaries and its vocabulary.
    """

    def __init__(self, data: Path, reference: Path):
        self.reference, self.genes = reference, data / "genes"
        self.cells = ad.read_h5ad(data / "validation" / "pbmc_kang_ctrl.h5ad")[:20].copy()
        self.cells.obs = self.cells.obs[["cell_type"]].copy()
        self.cells.uns.clear()

    def base_weights(self, head: Head) -> str:
        """Returns the hash of the base weights that an adapter of the shipped checkpoint records."""
        return weights_of_base(load_checkpoint(MINI)[0], head)

    def attempts(self) -> list[Attempt]:
        """Returns all attempts."""
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

    # ------------------------------------------------------------------ shared set-up

    def write_cells(self, folder: Path, change: Callable[[ad.AnnData], Any] = lambda adata: None) -> None:
        """Writes good cells, or changed ones, as `cells.h5ad`."""
        adata = self.cells.copy()
        adata = changed if isinstance(changed := change(adata), ad.AnnData) else adata
        adata.write_h5ad(folder / "cells.h5ad")

    def attempt(
        self, about: str, what: str, *arguments: str, prepare: Change = lambda folder: None, **facts: Any
    ) -> Attempt:
        """Returns an attempt with good cells, something else that is unusual, and a command."""

        def set_up(folder: Path) -> Sequence[str]:
            self.write_cells(folder)
            prepare(folder)
            return arguments

        return Attempt(about, what, set_up, **facts)

    def _annotate(self, about: str, what: str, *options: str, labels: str = LABELS, **facts: Any) -> Attempt:
        return self.attempt(about, what, *annotate(*options, labels=labels), **facts)

    # ------------------------------------------------------------------ cells

    def _files(self) -> Iterator[Attempt]:
        def file(what: str, change: Change, valid: bool = False) -> Attempt:
            return self._annotate("file", what, prepare=lambda folder: change(folder / "cells.h5ad"), valid=valid)

        yield file("does not exist", Path.unlink)
        yield file("is a folder", lambda path: (path.unlink(), path.mkdir()))
        yield file("is empty", lambda path: path.write_bytes(b""))
        yield file("is text", lambda path: path.write_text("cell,gene\n1,2\n"))
        yield file("is random bytes", lambda path: path.write_bytes(np.random.default_rng(0).bytes(10_000)))
        for share in (0.01, 0.5, 0.99):
            yield file(
                f"is truncated to {share:.0%}", lambda path, s=share: os.truncate(path, int(path.stat().st_size * s))
            )
        yield file("has zeros in its middle", lambda path: _overwrite(path, 0.3, bytes(20_000)))
        yield file(
            "is a link to the file",
            lambda path: (path.rename(path.with_name("real.h5ad")), path.symlink_to("real.h5ad")),
            valid=True,
        )
        yield file("is a link to nothing", lambda path: (path.unlink(), path.symlink_to("nowhere.h5ad")))
        yield file("is a link to itself", lambda path: (path.unlink(), path.symlink_to(path.name)))
        yield self.attempt("file", "has a name that is too long", *annotate(cells="a" * 300 + ".h5ad"))
        hdf5: list[tuple[str, Callable[[h5py.File], Any]]] = [
            ("has no X", lambda file: file.__delitem__("X")),
            ("has no obs", lambda file: file.__delitem__("obs")),
            ("has no var", lambda file: file.__delitem__("var")),
            ("has fewer gene indices than values", lambda file: _edit(file, "X/indices", lambda old: old[:-1])),
            ("has a gene index too high", lambda file: _edit(file, "X/indices", lambda old: np.r_[10**6, old[1:]])),
            ("has a negative gene index", lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]])),
            ("has rows that end before they begin", lambda file: _edit(file, "X/indptr", lambda old: old[::-1])),
            ("states a wrong shape", lambda file: file["X"].attrs.__setitem__("shape", [7, 3])),
            ("states that X is a dictionary", lambda file: file["X"].attrs.__setitem__("encoding-type", "dict")),
            ("has text for counts", lambda file: _edit(file, "X/data", lambda old: old.astype("S9"))),
            ("has fewer cell names than cells", lambda file: _edit(file, "obs/_index", lambda old: old[:-1])),
            ("has cell type codes without a category", lambda file: _edit(
                file, "obs/cell_type/codes", lambda old: old + 99)),
            ("links X to another file", lambda file: (
                file.__delitem__("X"), file.__setitem__("X", h5py.ExternalLink("../elsewhere.h5", "/X")))),
            ("reads obs from another file's bytes", lambda file: file["obs"].create_dataset(
                "leak", (9,), "u1", external=[("../secret.txt", 0, 9)])),
            ("reads obs from another HDF5 file", lambda file: file["obs"].create_virtual_dataset(
                "leak", _virtual("../secret.h5", (20,)))),
            ("links X to itself", lambda file: (file.__delitem__("X"), file.__setitem__("X", h5py.SoftLink("/X")))),
        ]  # fmt: skip
        for what, change in hdf5:
            yield file(what, lambda path, change=change: _in_hdf5(path, change))
        yield file("has an obs that contains itself", lambda path: _in_hdf5(
            path, lambda file: file.__setitem__("obs/more", file["obs"])), valid=True)  # fmt: skip

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
            """Names genes by a function of their number, and drops all other columns."""
            return lambda adata: setattr(adata, "var", pd.DataFrame(index=[name(i) for i in range(adata.n_vars)]))

        refused: list[tuple[str, Callable[[ad.AnnData], Any]]] = [
            ("contain NaN", value(np.nan)),
            ("contain infinity", value(np.inf)),
            ("contain a negative number", value(-1)),
            ("are complex", replaced(lambda x: x.toarray().astype(np.complex64))),
            ("are all 0", replaced(lambda x: x * 0)),
            ("have no cells", lambda adata: adata[:0].copy()),
            ("have no genes", lambda adata: adata[:, :0].copy()),
            ("have genes without names", called(lambda gene: "")),
            ("have numbers for gene names", called(str)),
            ("have rat genes", called("ENSRNOG{:011d}".format)),
            ("have one name for all genes", called(lambda gene: "ENSG00000000000")),
        ]
        accepted: list[tuple[str, Callable[[ad.AnnData], Any]]] = [
            ("are huge", value(1e30, np.float64)),
            ("are fractions", replaced(lambda x: x * 0.37)),
            ("are tiny fractions", replaced(lambda x: x.astype(np.float64) * 1e-300)),
            ("have mouse genes", called("ENSMUSG{:011d}".format)),
            ("are stored by genes (CSC)", replaced(sp.csc_matrix)),
            ("are dense 64-bit integers", replaced(lambda x: x.toarray().astype(np.int64))),
            ("are booleans", replaced(lambda x: x.toarray() > 0)),
            ("have gene names twice", lambda adata: setattr(
                adata, "var_names", [adata.var_names[max(0, i - 1)] for i in range(adata.n_vars)])),
            ("have one name for all cells", lambda adata: setattr(adata, "obs_names", ["cell"] * adata.n_obs)),
            ("have cells without names", lambda adata: setattr(adata, "obs_names", [""] * adata.n_obs)),
            ("have cell names in Greek and emoji", lambda adata: setattr(
                adata, "obs_names", [f"κύτταρο/🧬 {i}" for i in range(adata.n_obs)])),
            ("have a single cell", lambda adata: adata[:1].copy()),
        ]  # fmt: skip
        for valid, cases in ((False, refused), (True, accepted)):
            for what, change in cases:
                yield Attempt(
                    "counts",
                    what,
                    lambda folder, change=change: (self.write_cells(folder, change), annotate())[1],
                    valid,
                )

    # ------------------------------------------------------------------ options and labels

    def _options(self) -> Iterator[Attempt]:
        options = {
            "an alpha of 2": "--alpha 2",
            "an alpha of NaN": "--alpha nan",
            "an error rate without a fit": "--error-rate 0.37",
            "a negative error rate": "--error-rate -1",
            "an error rate with another alpha": "--error-rate 0.1 --alpha 0.5",
            "a shortlist of 0": "--shortlist 0",
            "a shortlist that is a word": "--shortlist many",
            "a token budget of 0": "--batch-tokens 0",
            "a missing device": "--device cuda:99",
            "an unknown device": "--device abacus",
            "an unknown precision": "--dtype int3",
            "a missing layer": "--layer counts",
            "missing raw counts": "--use-raw",
            "a missing gene column": "--gene-column symbols",
            "an unknown kind of counts": "--counts guess",
            "a missing cluster column": "--cluster-key leiden",
            "a missing reference column": "--reference truth",
            "an unknown figure format": "--figure figure.doc",
            "an alpha that is a word": "--alpha half",
            "an unknown option": "--fast",
        }
        for what, option in options.items():
            yield self._annotate("option", what, *option.split())
        yield self._annotate("option", "labels and a root together", "--ontology-root", "CL:0000542")
        yield self.attempt(
            "option",
            "a root that is not a term",
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
            "an unknown one": "B cell;flurble",
            "one twice": "B cell;B cell",
            "one that is deprecated": "B cell;CL:0000003",
            "a missing file": "types.tsv",
            "a missing file outside the folder": "../../../types.json",
        }
        for what, text in given.items():
            yield self._annotate("labels", what, labels=text)
        files: dict[str, tuple[str, bytes]] = {
            "JSON with a name that tables cannot have": ("types.json", b'{".": "cell type: a", "B cell": ""}'),
            "JSON with one name twice": ("types.json", b'{"B cell": "", "B cell": "cell type: x"}'),
            "JSON with half of a surrogate pair": ("types.json", rb'{"a\ud800": "cell type: a", "B cell": ""}'),
            "JSON with a null character in a name": ("types.json", rb'{"a\u0000b": "cell type: a", "B cell": ""}'),
            "truncated JSON": ("types.json", b'{"B cell": '),
            "JSON of numbers": ("types.json", b"[1, 2]"),
            "JSON of null": ("types.json", b"null"),
            "deeply nested JSON": ("types.json", b"[" * 100_000),
            "bytes that are not text": ("types.tsv", b"\xff\xfe\x00B"),
            "lines with zero bytes": ("types.tsv", b"B cell\0\tcell type: b.\n"),
            "an empty file": ("types.txt", b""),
            "a file of tabs and empty lines": ("types.tsv", b"\t\n\n\t\t\n"),
        }
        for what, (name, content) in files.items():
            write = lambda folder, name=name, content=content: (folder / name).write_bytes(content)  # noqa: E731
            yield self._annotate("labels", what, labels=name, prepare=write)
        unicode = '{"κύτταρο 🧬": "cell type: B cell.", "T/細胞": "cell type: T cell."}'
        yield self._annotate(
            "labels", "JSON in Greek, emoji and Chinese", labels="types.json", valid=True,
            prepare=lambda folder: (folder / "types.json").write_text(unicode, encoding="utf-8"),
        )  # fmt: skip
        yield self._annotate(
            "labels", "a folder", labels="types.json", prepare=lambda folder: (folder / "types.json").mkdir()
        )
        yield self.attempt(
            "labels",
            "for describe are numbers",
            "describe",
            "--labels",
            "types.json",
            prepare=lambda folder: (folder / "types.json").write_text("[1]"),
        )
        yield self.attempt("labels", "for describe are missing", "describe")
        yield self.attempt("labels", "for explain are unknown", *explain("--labels", "flurble"))
        yield self.attempt(
            "labels",
            "for explain are not text",
            *explain("--labels", "types.tsv"),
            prepare=lambda folder: (folder / "types.tsv").write_bytes(b"\xff\xfe"),
        )

    # ------------------------------------------------------------------ outputs

    def _outputs(self) -> Iterator[Attempt]:
        def output(what: str, *arguments: str, prepare: Change = lambda folder: None, **facts: Any) -> Attempt:
            return self.attempt("output", what, *arguments, prepare=prepare, **facts)

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
            yield output(f"for {name} is a folder", *begin, "--out", "there", prepare=in_the_way)
            yield output(f"for {name} is below a file", *begin, "--out", "there/out", prepare=file_in_the_way)
            yield output(f"for {name} has a name that is too long", *begin, "--out", "a" * 300)
            yield output(f"for {name} is in a read-only place", *begin, "--out", "/proc/out")
            yield output(f"for {name} is a device", *begin, "--out", "/dev/full")
        done = (".out.h5ad.unfinished", ".out.h5ad.unfinished/00000000.safetensors", ".out.h5ad.unfinished/plan.json")
        for name in ("annotate", "embed"):
            yield output(
                f"for {name} is on a full disk", *commands[name], "--out", "out.h5ad", max_file_bytes=FULL, kept=done
            )
        folders: dict[str, Sequence[str]] = {
            "calibrate": ["calibrate", "cells.h5ad", "--label-key", "cell_type"],
            "adapt": ["adapt", "cells.h5ad", "--label-key", "cell_type", "--head", "prototypes"],
            "export": ["export", MINI],
        }
        for name, begin in folders.items():
            yield output(f"for {name} exists", *begin, "--out", "there", prepare=in_the_way)
            yield output(f"for {name} is in a read-only place", *begin, "--out", "/proc/out")
            yield output(f"for {name} is on a full disk", *begin, "--out", "out", max_file_bytes=2_000)

        def unfinished(name: str, content: str) -> Change:
            def change(folder: Path) -> None:
                (folder / ".out.h5ad.unfinished").mkdir()
                (folder / ".out.h5ad.unfinished" / name).write_text(content)

            return change

        yield output("has a foreign file among its parts", *annotate(), prepare=unfinished("mine", ""))
        outside = unfinished("plan.json", '{"run": "../../x", "plan": {}}')
        yield output(
            "has an unfinished plan that points outside its folder", *annotate(), prepare=outside, valid=True,
            removed=done[::2],
        )  # fmt: skip
        yield output("for the report is in a read-only place", *annotate("--report", "/proc/report.html"))
        yield output("for the figure is in a read-only place", *annotate("--figure", "/proc/figure.png"))

    # ------------------------------------------------------------------ checkpoints

    def _models(self) -> Iterator[Attempt]:
        def model(what: str, change: Change, valid: bool = False) -> Attempt:
            def prepare(folder: Path) -> None:
                shutil.copytree(resolve_checkpoint(MINI), folder / "model")
                change(folder / "model")

            return self._annotate("checkpoint", what, "--model", "model", prepare=prepare, valid=valid)

        config, processor, words, weights = (
            "config.json",
            "processor_config.json",
            "tokenizer.json",
            "model.safetensors",
        )
        settings, index = "tokenizer_config.json", "model.safetensors.index.json"
        genes = "feature_extractor"

        def moved_out(folder: Path) -> None:
            """Moves the weights out of the folder and names them in an index in it."""
            names = load_file(folder / weights)
            (folder / weights).rename(folder.parent / "outside.safetensors")
            (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(names, "../outside.safetensors")}))

        yield model("is empty", lambda folder: (shutil.rmtree(folder), folder.mkdir()))
        for name in (config, weights, processor, words, settings):
            yield model(f"has no {name}", lambda folder, name=name: (folder / name).unlink())
        for name in (config, weights, processor, words):
            yield model(f"has a truncated {name}", lambda folder, name=name: _halve(folder / name))
        yield model("has a deeply nested config", lambda folder: (folder / config).write_text("[" * 100_000))
        yield model("has a config that is a list", lambda folder: (folder / config).write_text("[1]"))
        yield model("has an empty tokenizer", lambda folder: (folder / words).write_text("{}"))
        yield model("has weights of other shapes", _json(config, "cell_config", hidden_size=128))
        yield model(
            "lacks one of its weights", lambda folder: _in_weights(folder / weights, lambda found: found.popitem())
        )
        yield model("has weights that are NaN", lambda folder: _in_weights(
            folder / weights, lambda found: next(iter(found.values())).fill(np.nan)))  # fmt: skip
        yield model("has weights outside its folder", moved_out)
        yield model("has an index of weights that is a list", lambda folder: (
            (folder / weights).unlink(), (folder / index).write_text("[1]")))  # fmt: skip
        yield model("has a pickle that runs a command in place of weights", lambda folder: (
            (folder / weights).unlink(), _bomb(folder / "pytorch_model.bin")))  # fmt: skip
        yield model("has no attention heads", _json(config, "cell_config", num_attention_heads=0))
        yield model("has a width that is a word", _json(config, "cell_config", hidden_size="wide"))
        yield model("has an activation that is a command", _json(config, "cell_config", hidden_act="os.system"))
        yield model("has a tower that is a list", _json(config, cell_config=[1]))
        yield model("is of another family", _json(config, model_type="bert"))
        evil = {"AutoConfig": "../../evil.Config", "AutoModel": "../../evil.Model"}
        yield model("brings code from outside its folder", _json(config, model_type="evil", auto_map=evil))
        yield model("brings code that is not needed", _json(config, auto_map=evil), valid=True)
        yield model("names a kernel on the Hub", _json(config, attn_implementation="evil/kernel"))
        yield model("names a processor that is a command", _json(processor, processor_class="os.system"))
        yield model("has a negative temperature", _json(config, temperature=-1))
        yield model("has a damaged calibration", _json(config, calibration={"temperature": "hot"}))
        few = {"ensembl_ids": ["a", "b"], "medians": [1, 2], "names": ["a", "b"]}
        yield model("has a processor of other genes", _json(processor, genes, gene_vocabulary=few))
        numbers = {"ensembl_ids": [1], "medians": [1], "names": [1]}
        yield model("has numbers for gene ids", _json(processor, genes, gene_vocabulary=numbers))
        yield model("has a processor for longer cells", _json(processor, genes, max_length=10**6))
        yield model("has a processor for longer texts", _json(settings, model_max_length=10**6))
        yield self._annotate("checkpoint", "is a missing path outside the folder", "--model", "../../nowhere")
        yield self._annotate("checkpoint", "has a name that is too long", "--model", "a" * 300)
        yield self.attempt("checkpoint", "for describe does not exist", "describe", "B cell", "--model", "nowhere")
        yield self.attempt(
            "checkpoint",
            "for export is empty",
            "export",
            "empty",
            "--out",
            "encoder",
            prepare=lambda folder: (folder / "empty").mkdir(),
        )

    def _adapters(self) -> Iterator[Attempt]:
        good = {"head": "descriptions", "labels": {"B cell": "cell type: B cell.", "T cell": ""}, "base": MINI}
        good |= {"cells": {"B cell": 1}, "settings": {}, "versions": {}, "base_weights": "of another"}

        def adapter(what: str, said: Any, also: Change = lambda folder: None, fits: bool = False) -> Attempt:
            def prepare(folder: Path) -> None:
                (folder / "adapter").mkdir()
                if said is not None:
                    own = {"base_weights": self.base_weights(said["head"])} if fits else {}
                    (folder / "adapter/adaptation.json").write_text(json.dumps(said | own))
                also(folder / "adapter")

            arguments = ["annotate", "cells.h5ad", "--adapter", "adapter", "--out", "out.h5ad"]
            return self.attempt("adapter", what, *arguments, prepare=prepare)

        def with_weights(folder: Path) -> None:
            config = {"peft_type": "LORA", "base_model_name_or_path": "../../x", "target_modules": ["query"]}
            (folder / "adapter_config.json").write_text(json.dumps(config))
            save_file({"a": np.zeros(3)}, folder / "adapter_model.safetensors")

        yield adapter("is an empty folder", None)
        yield adapter("has no weights", good)
        yield adapter("has a base outside its folder", good | {"base": "../../nowhere"}, with_weights)
        yield adapter("has weights of another base", good, with_weights)
        yield adapter("has weights of other layers", good, with_weights, fits=True)
        yield adapter("has labels that are numbers", good | {"labels": {"B cell": 1}}, with_weights)
        yield adapter("has an unknown head", good | {"head": "os.system"}, with_weights)
        prototypes = good | {"head": "prototypes", "prototype_weight": 1.0}
        narrow = {"prototypes": np.zeros((2, 3), np.float32)}
        yield adapter("has text for prototypes", prototypes, lambda folder: (
            (folder / "prototypes.safetensors").write_text("a")))  # fmt: skip
        yield adapter("has prototypes of another width", prototypes, lambda folder: (
            save_file(narrow, folder / "prototypes.safetensors")), fits=True)  # fmt: skip

    def _published(self) -> Iterator[Attempt]:
        def published(what: str, change: Change) -> Attempt:
            def set_up(folder: Path) -> Sequence[str]:
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

            return Attempt("published parts", what, set_up)

        def dictionary(what: str, content: bytes) -> Attempt:
            return published(f"have a dictionary {what}", lambda folder: (folder / tokens).write_bytes(content))

        tokens, medians = "token_dictionary.pkl", "gene_median_dictionary.pkl"
        part, config = "parts/text_proj.bin", "parts/cell_bert/config.json"
        yield published("have a dictionary that runs a command", lambda folder: _bomb(folder / tokens))
        yield published("have weights that run a command", lambda folder: _bomb(folder / "parts/cell_proj.bin"))
        yield published("have a truncated dictionary", lambda folder: _halve(folder / tokens))
        yield dictionary("without bytes", b"")
        yield dictionary("that is a list", pickle.dumps([1]))
        yield dictionary("with gaps between its ids", pickle.dumps({"<pad>": 0, "<mask>": 1, "a": 7}))
        yield dictionary("that is deeply nested", b"(" * 10**6 + b"t.")
        yield dictionary("that contains itself", b"\x80\x04}\x94\x8c\x01ah\x00s.")
        yield dictionary("that pops an empty stack", b"\x80\x040.")
        yield dictionary("that reads an empty memo", b"\x80\x04h\x63.")
        yield published("have medians of infinity", lambda folder: (folder / medians).write_bytes(
            pickle.dumps({"ENSG00000000003": float("inf")})))  # fmt: skip
        yield published("lack a part", lambda folder: (folder / "parts/ctm_head.bin").unlink())
        yield published("lack the vocabulary", lambda folder: (folder / "vocab.txt").unlink())
        yield published("have a word twice", lambda folder: (folder / "vocab.txt").write_text("[PAD]\n[PAD]\n"))
        yield published("have a binary vocabulary", lambda folder: (folder / "vocab.txt").write_bytes(b"\xff\xfe"))
        yield published("have a truncated part", lambda folder: _halve(folder / part))
        yield published("have one part in place of another", lambda folder: (
            (folder / part).unlink(), shutil.copyfile(folder / "parts/ctm_head.bin", folder / part)))  # fmt: skip
        yield published("have a deeply nested config", lambda folder: (folder / config).write_text("[" * 100_000))
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
                yield self.attempt(f"labelled cells ({command})", what, *arguments, prepare=prepare)

        def types(of: Callable[[ad.AnnData], Any]) -> Change:
            return lambda folder: self.write_cells(folder, lambda adata: adata.obs.__setitem__("cell_type", of(adata)))

        def file(change: Change) -> Change:
            return lambda folder: change(folder / "cells.h5ad")

        yield from both("are in a truncated file", file(_halve))
        yield from both("lack the column", key="type")
        yield from both("are all of one type", types(lambda adata: ["B cell"] * adata.n_obs))
        yield from both("have no types", types(lambda adata: [""] * adata.n_obs))
        yield from both("have a negative gene index", file(lambda path: _in_hdf5(
            path, lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]]))))  # fmt: skip
        yield from both("have no X", file(lambda path: _in_hdf5(path, lambda file: file.__delitem__("X"))))

        def adapt(what: str, *options: str, prepare: Change = lambda folder: None) -> Attempt:
            arguments = ["adapt", "cells.h5ad", "--label-key", "cell_type", "--out", "made", *options]
            return self.attempt("adapt", what, *arguments, prepare=prepare)

        yield self.attempt(
            "calibrate",
            "two files with one name",
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
        yield self.attempt(
            "calibrate",
            "types that are not in the ontology",
            "calibrate",
            "cells.h5ad",
            "--label-key",
            "cell_type",
            "--out",
            "made",
            prepare=types(lambda adata: ["flurble", "glorp"] * (adata.n_obs // 2)),
        )
        yield adapt("more cells of a label than there are", "--shots", "999")
        yield adapt("an unknown head", "--head", "tail")
        yield adapt("a rank of 0", "--rank", "0")
        yield adapt("no epochs", "--epochs", "0")
        yield adapt("a learning rate of NaN", "--learning-rate", "nan")
        yield adapt("a gene dropout of 2", "--gene-dropout", "2")
        yield adapt("all cells held out", "--held-out", "1")
        yield adapt("descriptions that are a list", "--labels", "types.json", prepare=lambda folder: (
            (folder / "types.json").write_text('["B cell"]')))  # fmt: skip
        yield adapt("an invalid repository name", "--push-to", "../../x")

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
                lambda folder: (self.write_cells(folder, change), ["search", "cells.h5ad", text, *options])[1],
            )

        def embedded(embeds: Any) -> Callable[[ad.AnnData], Any]:
            def change(adata: ad.AnnData) -> None:
                adata.obsm["X_langcell"] = embeds(adata)
                adata.uns["langcell"] = {"checkpoint": MINI, "adapter": ""}

            return change

        yield search("an empty text", text="  ")
        yield search("an unknown term", text="CL:9999999")
        yield search("a limit of 0 cells", options=("--top", "0"))
        yield search("embeddings of another width", embedded(lambda adata: np.ones((adata.n_obs, 3), np.float32)))
        yield search("embeddings that are NaN", embedded(lambda adata: np.full((adata.n_obs, 256), np.nan)))
        yield search(
            "embeddings that are words",
            embedded(lambda adata: pd.DataFrame({"a": ["b"] * adata.n_obs}, index=adata.obs_names)),
        )
        yield search(
            "foreign embeddings",
            lambda adata: adata.obsm.__setitem__("X_langcell", np.ones((adata.n_obs, 3))),
        )
        yield self.attempt(
            "embed",
            "a truncated file",
            "embed",
            "cells.h5ad",
            "--out",
            "out.h5ad",
            prepare=lambda folder: _halve(folder / "cells.h5ad"),
        )
        yield self.attempt(
            "embed",
            "a negative gene index",
            "embed",
            "cells.h5ad",
            "--out",
            "out.h5ad",
            prepare=lambda folder: _in_hdf5(
                folder / "cells.h5ad", lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]])
            ),
        )
        yield self.attempt("explain", "an unknown method", *explain("--labels", LABELS, "--method", "magic"))
        yield self.attempt(
            "explain",
            "a truncated file",
            *explain("--labels", LABELS),
            prepare=lambda folder: _halve(folder / "cells.h5ad"),
        )

    def _repositories(self) -> Iterator[Attempt]:
        def folder_of(command: str, what: str, change: Change, *options: str) -> Attempt:
            def set_up(folder: Path) -> Sequence[str]:
                shutil.copytree(resolve_checkpoint(MINI), folder / "model")
                change(folder / "model")
                return [command, "model", *options]

            return Attempt(command, what, set_up)

        def publish(what: str, change: Change = lambda folder: None, *options: str, to: str = "me/mine") -> Attempt:
            return folder_of("publish", what, change, "--repo-id", to, "--dry-run", *options)

        yield publish("an invalid repository name", to="../../x")
        yield publish("a tag that is a path", lambda folder: None, "--tag", "../x")
        yield publish("an empty folder", lambda folder: (shutil.rmtree(folder), folder.mkdir()))
        yield publish("a pickle under another name", lambda folder: _bomb(folder / "notes.txt"))
        yield publish("a link out of the folder", lambda folder: (folder / "notes.txt").symlink_to("/etc/passwd"))
        yield publish("truncated weights", lambda folder: _halve(folder / "model.safetensors"))
        yield publish("prose that is a list", lambda folder: (folder / "card.yaml").write_text("[1]"))
        yield publish(
            "a password in the prose", lambda folder: (folder / "card.yaml").open("a").write(f"# hf_{'a1B2' * 9}\n")
        )
        yield publish("missing results", lambda folder: None, "--results", "nowhere")

        about = lambda text: lambda folder: (folder.parent / "about.yaml").write_text(text)  # noqa: E731
        command = '!!python/object/apply:os.system ["touch was-run"]'
        yield folder_of(
            "card", "an about file that runs a command", about(f"limits: {command}\n"), "--about", "about.yaml"
        )
        yield folder_of("card", "an about file that is a list", about("[1]"), "--about", "about.yaml")
        yield folder_of("card", "a missing about file", lambda folder: None, "--about", "nowhere.yaml")
        yield folder_of("card", "missing results", lambda folder: None, "--results", "nowhere")
        yield folder_of("card", "a truncated config", lambda folder: _halve(folder / "config.json"))
        yield folder_of(
            "card", "figures that are a list", lambda folder: (folder / "evaluation.json").write_text("[1]")
        )
        yield folder_of(
            "card",
            "deeply nested figures",
            lambda folder: (folder / "evaluation.json").write_text("[" * 10**5),
        )
        yield folder_of(
            "card", "runs that are numbers", lambda folder: (folder / "training.json").write_text('{"runs": [1]}')
        )

    def _corpora(self) -> Iterator[Attempt]:
        table = self.genes / "Homo_sapiens.gene_info.gz"

        def corpus(what: str, *options: str, prepare: Change = lambda folder: None, genes: str = "genes.gz") -> Attempt:
            def set_up(folder: Path) -> None:
                (folder / "genes.gz").symlink_to(table.resolve())
                prepare(folder)

            arguments = ["corpus", "cells.h5ad", "--gene-info", genes, "--out", "corpus", *options]
            return self.attempt("corpus", what, *arguments, prepare=set_up)

        yield corpus("a missing source", "nowhere.h5ad")
        yield corpus("a truncated source", prepare=lambda folder: _halve(folder / "cells.h5ad"))
        yield corpus(
            "a source without X",
            prepare=lambda folder: _in_hdf5(folder / "cells.h5ad", lambda file: file.__delitem__("X")),
        )
        yield corpus(
            "a source with a negative gene index",
            prepare=lambda folder: _in_hdf5(
                folder / "cells.h5ad", lambda file: _edit(file, "X/indices", lambda old: np.r_[-7, old[1:]])
            ),
        )
        yield corpus("a source twice", "cells.h5ad")
        yield corpus("a missing gene table", genes="nowhere.gz")
        yield corpus("a gene table that is not a table", genes="cells.h5ad")
        yield corpus(
            "a truncated gene table",
            genes="cut.gz",
            prepare=lambda folder: (folder / "cut.gz").write_bytes(table.read_bytes()[:50_000]),
        )
        yield corpus("a condition that runs a command", "--where", "@np.os.system('touch was-run') == 0")
        yield corpus("a condition on a missing column", "--where", "tissue == 'blood'")
        yield corpus("a missing vocabulary", "--vocabulary", "nowhere")
        yield corpus(
            "a folder with other files",
            prepare=lambda folder: ((folder / "corpus").mkdir(), (folder / "corpus/mine").write_text("")),
        )

    def _evaluations(self) -> Iterator[Attempt]:
        def evaluate(
            what: str, *options: str, task: str = "zero-shot", prepare: Change = lambda folder: None
        ) -> Attempt:
            arguments = ["evaluate", task, "--out", "results", "--data", ".", *options]
            return self.attempt("evaluate", what, *arguments, prepare=prepare)

        def studies(text: str) -> Change:
            return lambda folder: (folder / "studies.yaml").write_text(text)

        mine = ("--studies", "studies.yaml", "--study", "mine")
        yield evaluate("an unknown task", task="../../x")
        yield evaluate("an unknown study", "--study", "../../x")
        yield evaluate("missing data")
        yield evaluate("a missing file of studies", *mine)
        yield evaluate(
            "a file of studies that runs a command",
            *mine,
            prepare=studies('mine: !!python/object/apply:os.system ["touch was-run"]\n'),
        )
        yield evaluate("a file of studies that is a list", *mine, prepare=studies("[1]"))
        yield evaluate("a study of numbers", *mine, prepare=studies("mine: {path: 1}"))
        yield evaluate("missing gene sets", "--gene-sets", "nowhere.gmt", task="pathways")
        yield evaluate("a missing model", "--model", "nowhere")


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
    """Returns a dataset that reads another file's."""
    layout = h5py.VirtualLayout(shape, "u1")
    layout[:] = h5py.VirtualSource(path, "secret", shape)
    return layout


def _in_hdf5(path: Path, change: Callable[[h5py.File], Any]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def _edit(file: h5py.File, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replaces an array by a function of it."""
    attributes, values = dict(file[name].attrs), change(file[name][:])
    del file[name]
    file[name] = values
    file[name].attrs.update(attributes)


def _in_weights(path: Path, change: Callable[[dict[str, np.ndarray]], Any]) -> None:
    found = load_file(path)
    change(found)
    save_file(found, path, metadata={"format": "pt"})


def _json(name: str, *place: str, **changes: Any) -> Change:
    """Returns a function that changes entries of a JSON object, or of one in it."""

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
