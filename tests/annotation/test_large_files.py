# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files annotated chunk by chunk: as in memory, after any interruption, and by any number of processes."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellAnnotator, LangCellForSequenceClassification
from modeling_langcell.annotation.annotation_run import AnnotationRun
from modeling_langcell.annotation.large_files import annotate_file, embed_file
from modeling_langcell.checkpoint.fingerprint import fingerprint
from modeling_langcell.cli.main import app
from modeling_langcell.io.h5ad import open_cells, open_lightly, read_annotation, write_annotated
from modeling_langcell.io.strings import writing_missing_text
from tests.support.commands import start_python
from tests.support.paths import REPOSITORY
from tests.support.tiny import GENES, SYMBOLS, tiny_config

CHUNK = 8
LABELS = {
    "B/C": "b cell",
    "natural killer cell": "cell type : natural killer .",
    "mono": "a monocyte",
    "t": "t cell",
}
OPTIONS = {"alpha": 0.3, "shortlist": 2, "check": 7}

#: The `langcell` command with small chunks; it logs each chunk that it annotates, and pauses after it.
DRIVER = f"""
import os, sys, time
from modeling_langcell.annotation import predictor
from modeling_langcell.annotation.annotation_run import AnnotationRun
from modeling_langcell.cli import main

log, pause = sys.argv[1], float(sys.argv[2])
del sys.argv[1:3]
predictor.CHUNK_SIZE = {CHUNK}
annotate = AnnotationRun.annotate

def watched(self, *arguments):
    found = annotate(self, *arguments)
    time.sleep(pause)
    with open(log, "a") as file:
        file.write(os.environ.get("RANK", "0"))
    return found

AnnotationRun.annotate = watched
if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Results are compared, to the last bit, with those of processes that have one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr("modeling_langcell.annotation.predictor.CHUNK_SIZE", CHUNK)
    for module in ("annotation.chunk_store", "io.launch"):
        monkeypatch.setattr(f"modeling_langcell.{module}.POLL_SECONDS", 0.05)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def annotator(tiny_checkpoint):
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")


def some_cells(number: int = 44) -> ad.AnnData:
    """Cells with raw counts, and other elements that must be kept."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(number, len(GENES)))).astype(np.float32)
    counts[:, 0] += 1
    index = pd.Index([f"cell{row}" for row in range(number)], name="barcode")
    obs = pd.DataFrame({"donor": pd.Categorical(["x", "y"] * (number // 2)), "depth": counts.sum(axis=1)}, index=index)
    adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame({"ensembl_id": GENES}, index=SYMBOLS))
    adata.obsm["X_pca"] = rng.normal(size=(number, 3))
    adata.uns["source"] = {"study": "mine", "year": 2020}
    return adata


@pytest.fixture
def cells_file(tmp_path):
    path = tmp_path / "cells.h5ad"
    some_cells().write_h5ad(path)
    return path


@pytest.fixture
def expected(annotator, cells_file, tmp_path):
    """The file as annotated in memory, by one process and without an interruption."""
    return write_annotated(annotator.annotate(open_cells(cells_file), LABELS, **OPTIONS), tmp_path / "expected.h5ad")


def assert_same_file(found, expected):
    """Compares groups, attributes, types and values to the last bit, but not their layout in the file."""

    def contents(path):
        entries = {}
        with h5py.File(path) as file:

            def visit(name, entry):
                entries[name] = [{what: np.asarray(value).tolist() for what, value in entry.attrs.items()}]
                if isinstance(entry, h5py.Dataset):
                    entries[name] += [entry.dtype, entry.shape, np.asarray(entry[()]).tobytes()]
                    if entry.dtype == object:
                        entries[name][-1] = np.asarray(entry[()]).tolist()

            file.visititems(visit)
        return entries

    ours, theirs = contents(found), contents(expected)
    assert ours.keys() == theirs.keys()
    for name, entry in theirs.items():
        assert ours[name] == entry, name


def unfinished(output):
    return output.with_name(f".{output.name}.unfinished")


def chunk_files(output):
    folder = unfinished(output)
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


@contextmanager
def counting(monkeypatch, fail_at: int | None = None):
    """Records the sizes of the annotated chunks; `fail_at` interrupts the work at that chunk."""
    annotated = []
    annotate = AnnotationRun.annotate

    def watched(self, *arguments):
        if len(annotated) == fail_at:
            raise KeyboardInterrupt
        annotated.append(len(arguments[1]))
        return annotate(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(AnnotationRun, "annotate", watched)
        yield annotated


def interrupt(annotator, cells_file, output, monkeypatch, after: int = 3, labels=LABELS, **options):
    """Annotates a few chunks and stops."""
    with counting(monkeypatch, fail_at=after), pytest.raises(KeyboardInterrupt):
        annotate_file(annotator, cells_file, output, labels, **OPTIONS | options)
    assert len(chunk_files(output)) == after
    assert not output.exists()


# ---------------------------------------------------------------------- embeddings


def embedded_in_memory(annotator, cells_file, output):
    return write_annotated(annotator.embed(open_cells(cells_file)), output)


def test_embeddings_equal_those_in_memory(annotator, cells_file, tmp_path):
    expected = embedded_in_memory(annotator, cells_file, tmp_path / "expected.h5ad")
    assert embed_file(annotator, cells_file, tmp_path / "o.h5ad") == tmp_path / "o.h5ad"
    assert_same_file(tmp_path / "o.h5ad", expected)


def test_embeddings_replace_an_annotation(annotator, cells_file, tmp_path):
    expected = embedded_in_memory(annotator, cells_file, tmp_path / "expected.h5ad")
    annotate_file(annotator, cells_file, cells_file, LABELS, **OPTIONS)
    embed_file(annotator, cells_file, cells_file)
    found, theirs = ad.read_h5ad(cells_file), ad.read_h5ad(expected)
    pd.testing.assert_frame_equal(found.obs, theirs.obs)
    assert found.obsm.keys() == theirs.obsm.keys()
    np.testing.assert_array_equal(found.obsm["X_langcell"], theirs.obsm["X_langcell"])
    assert found.uns.keys() == theirs.uns.keys()


def test_interrupted_embedding_is_resumed(annotator, cells_file, tmp_path, monkeypatch):
    expected = embedded_in_memory(annotator, cells_file, tmp_path / "expected.h5ad")
    embed, output, done = type(annotator).embed_ranked, tmp_path / "o.h5ad", []

    def interrupted(self, ranked, advance):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(len(ranked))
        return embed(self, ranked, advance)

    with monkeypatch.context() as patched:
        patched.setattr(type(annotator), "embed_ranked", interrupted)
        with pytest.raises(KeyboardInterrupt):
            embed_file(annotator, cells_file, output)
    assert len(chunk_files(output)) == 3
    resumed = []
    embed_file(annotator, cells_file, output, resumed=resumed.append)
    assert resumed == [24]
    assert_same_file(output, expected)
    assert not unfinished(output).exists()
    with counting(monkeypatch) as annotated:  # What was embedded is not taken for annotated.
        annotate_file(annotator, cells_file, output, LABELS, **OPTIONS)
    assert sum(annotated) == 44


# ---------------------------------------------------------------------- contents of the output


def test_the_output_equals_annotation_in_memory(annotator, cells_file, expected, tmp_path):
    out = tmp_path / "new" / "o.h5ad"
    assert annotate_file(annotator, cells_file, out, LABELS, **OPTIONS) == out
    assert_same_file(out, expected)
    assert list(out.parent.iterdir()) == [out], "nothing is left beside the result"
    assert out.stat().st_mode == cells_file.stat().st_mode
    found, theirs = ad.read_h5ad(out), annotator.annotate(ad.read_h5ad(cells_file), LABELS, **OPTIONS)
    pd.testing.assert_frame_equal(found.obs, theirs.obs)
    pd.testing.assert_frame_equal(found.obsm["langcell_probabilities"], theirs.obsm["langcell_probabilities"])
    np.testing.assert_array_equal(found.obsm["X_langcell"], theirs.obsm["X_langcell"])
    np.testing.assert_array_equal(found.obsm["X_pca"], theirs.obsm["X_pca"])
    assert (found.X != theirs.X).nnz == 0
    assert found.uns["source"] == {"study": "mine", "year": 2020}
    assert found.uns["langcell"]["checked"] == 7
    assert found.uns["langcell"]["agreement"] == theirs.uns["langcell"]["agreement"]
    light = read_annotation(out, embeds=True)
    pd.testing.assert_frame_equal(light.obs, found.obs)
    assert list(light.obsm) == ["X_langcell"]


@pytest.mark.parametrize("storage", ["csc", "dense", "sparse layer", "dense layer", "raw", "log1p", "marked"])
def test_counts_may_be_stored_in_any_format(annotator, tmp_path, storage):
    adata, options = some_cells(20), {}
    counts = adata.X
    if storage == "csc":
        adata.X = counts.tocsc()
    elif storage == "dense":
        adata.X = counts.toarray()
    elif storage.endswith("layer"):
        adata.layers["counts"] = counts if storage == "sparse layer" else counts.toarray()
        adata.X, options = counts * 0.5, {"layer": "counts"}
    elif storage == "raw":
        adata.raw = adata.copy()
        adata.X, options = counts * 0.5, {"use_raw": True}
    elif storage == "log1p":
        adata.X, options = counts.log1p(), {"counts": "log1p"}
    else:
        adata.X = sp.vstack([counts[:9], sp.csr_matrix((1, counts.shape[1]), dtype=np.float32), counts[10:]]).tocsr()
        options = {"empty_cells": "mark"}
    path, out = tmp_path / "cells.h5ad", tmp_path / "o.h5ad"
    adata.write_h5ad(path)
    annotate_file(annotator, path, out, LABELS, **OPTIONS, **options)
    theirs = annotator.annotate(open_cells(path), LABELS, **OPTIONS, **options)
    assert_same_file(out, write_annotated(theirs, tmp_path / "theirs.h5ad"))


def test_layers_stay_on_disk_and_scores_are_not_read(annotator, cells_file, tmp_path):
    adata = some_cells()
    adata.layers["sparse"], adata.layers["dense"] = adata.X.copy(), adata.X.toarray()
    adata.write_h5ad(cells_file)
    with open_lightly(cells_file) as opened:
        assert isinstance(opened.layers["dense"], h5py.Dataset)
        assert not sp.issparse(opened.layers["sparse"])
        assert not list(opened.obsm)
        np.testing.assert_array_equal(opened.layers["sparse"][:2].toarray(), adata.X[:2].toarray())
    adata.X = adata.X * 0.5
    adata.write_h5ad(cells_file)
    with pytest.raises(InputError, match=r"'dense'.*looks like counts"):
        annotate_file(annotator, cells_file, tmp_path / "o.h5ad", LABELS, counts="raw")


def test_the_output_replaces_its_input_and_an_earlier_annotation(annotator, cells_file, expected):
    first = {"other": "a cell", **LABELS, "another": "b cell"}
    annotate_file(annotator, cells_file, cells_file, first, shortlist=3)
    columns = ad.read_h5ad(cells_file).obs.columns
    assert "langcell_proven" in columns
    annotate_file(annotator, cells_file, cells_file, LABELS, **OPTIONS)
    found, theirs = ad.read_h5ad(cells_file), ad.read_h5ad(expected)
    pd.testing.assert_frame_equal(found.obs, theirs.obs)
    pd.testing.assert_frame_equal(found.obsm["langcell_probabilities"], theirs.obsm["langcell_probabilities"])
    assert found.uns["langcell"].keys() == theirs.uns["langcell"].keys()
    assert [path.name for path in cells_file.parent.glob(".*")] == []
    annotate_file(annotator, cells_file, cells_file, LABELS)
    assert "langcell_proven" not in ad.read_h5ad(cells_file).obs, "this run has no shortlist"


def test_the_output_neither_lies_in_the_input_nor_replaces_another_kind(annotator, cells, tmp_path):
    cells.write_zarr(tmp_path / "cells.zarr")
    (tmp_path / "notes.h5ad").write_text("mine")
    before = set(tmp_path.rglob("*"))
    for output, said in (("cells.zarr/out.h5ad", "lies in cells"), ("notes.h5ad", "is not a file of cells")):
        with pytest.raises(InputError, match=said):
            annotate_file(annotator, tmp_path / "cells.zarr", tmp_path / output, LABELS)
        with pytest.raises(InputError, match=said):
            embed_file(annotator, tmp_path / "cells.zarr", tmp_path / output)
    assert set(tmp_path.rglob("*")) == before
    assert (tmp_path / "notes.h5ad").read_text() == "mine"


@pytest.mark.parametrize("column", ["a slash", "missing text", "missing numbers", "ordered"])
def test_columns_of_others_stay_as_they_are_in_the_file(annotator, cells_file, tmp_path, column):
    """anndata 0.13 reads a slash in a name, and refuses to write it: not after the work."""
    adata = ad.read_h5ad(cells_file)
    number = np.arange(adata.n_obs)
    adata.obs["theirs"] = {
        "missing text": pd.array(["a", None] * 22, dtype="string"),
        "missing numbers": pd.array([1, None] * 22, dtype="Int64"),
        "ordered": pd.Categorical(["b", "a"] * 22, ["b", "a", "c"], ordered=True),
    }.get(column, number)
    with writing_missing_text():
        adata.write_h5ad(cells_file)
    with h5py.File(cells_file, "r+") as file:
        if column == "a slash":
            file.move("obs/theirs", "obs/cell type/major")
            file["obs"].attrs["column-order"] = [
                name.replace("theirs", "cell type/major") for name in file["obs"].attrs["column-order"]
            ]
        before = ad.io.read_elem(file["obs"])
    for output in (tmp_path / "o.h5ad", tmp_path / "o.h5ad"):  # The second replaces the first annotation.
        annotate_file(annotator, cells_file, output, LABELS, **OPTIONS)
        found = ad.read_h5ad(output).obs
        pd.testing.assert_frame_equal(found[before.columns], before)
        assert found["langcell_cell_type"].notna().all()
        cells_file = output


@pytest.mark.long
def test_many_columns_are_written_some_at_a_time(annotator, cells_file, tmp_path, monkeypatch):
    labels = {f"type {number}/{number % 7}": f"b cell {number}" for number in range(4200)}
    monkeypatch.setattr("modeling_langcell.annotation.large_files._BLOCK", 1000 * 44 * 4)
    annotate_file(annotator, cells_file, tmp_path / "o.h5ad", labels, alpha=1)
    found = ad.read_h5ad(tmp_path / "o.h5ad")
    theirs = annotator.annotate(some_cells(), labels, alpha=1)
    pd.testing.assert_frame_equal(found.obsm["langcell_probabilities"], theirs.obsm["langcell_probabilities"])
    assert list(found.uns["langcell"]["labels"]) == list(labels)


@pytest.mark.long
def test_all_scores_are_never_in_memory(annotator, tmp_path, monkeypatch):
    cells, labels = 3200, {f"type {number}": "b cell" for number in range(1000)}
    some_cells(cells).write_h5ad(tmp_path / "cells.h5ad")
    monkeypatch.setattr("modeling_langcell.annotation.predictor.CHUNK_SIZE", 100)
    monkeypatch.setattr("modeling_langcell.annotation.large_files._BLOCK", 400_000)
    some_cells().write_h5ad(tmp_path / "few.h5ad")
    annotate_file(annotator, tmp_path / "few.h5ad", tmp_path / "o.h5ad", labels, alpha=1)  # Imports what it needs.
    tracemalloc.start()
    annotate_file(annotator, tmp_path / "cells.h5ad", tmp_path / "o.h5ad", labels, alpha=1)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < cells * len(labels) * 4 / 2
    with h5py.File(tmp_path / "o.h5ad") as file:
        assert len(file["obsm/langcell_probabilities"]) == len(labels) + 1


@pytest.mark.parametrize("name", ["langcell_barcode", "langcell_cell_type"])
def test_an_index_that_is_called_like_a_result_is_refused_and_kept(annotator, cells, tmp_path, name):
    cells.obs.index.name = name
    cells.write_h5ad(tmp_path / "cells.h5ad")
    before = (tmp_path / "cells.h5ad").read_bytes()
    for work in (
        lambda path: annotate_file(annotator, path, path, LABELS),
        lambda path: embed_file(annotator, path, path),
    ):
        with pytest.raises(InputError, match=f"The index of obs is called '{name}', .* Rename it"):
            work(tmp_path / "cells.h5ad")
    assert (tmp_path / "cells.h5ad").read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["cells.h5ad"]


def test_column_names_that_hdf5_cannot_hold_are_refused_at_once(annotator, cells_file, tmp_path):
    for labels in ({"a/b": "b", "a|b": "t"}, {"barcode": "b"}, {".": "b", "t": "t"}):
        with pytest.raises(InputError, match="A table cannot have a column"):
            annotate_file(annotator, cells_file, tmp_path / "o.h5ad", labels)
    assert list(tmp_path.iterdir()) == [cells_file]


def test_a_classifier_annotates_files_too(tiny_processor, cells_file, tmp_path):
    names = {0: "one", 1: "two", 2: "three"}
    torch.manual_seed(0)
    model = LangCellForSequenceClassification._from_config(tiny_config().cell_config)
    model.config.id2label, model.classifier = names, torch.nn.Linear(16, 3)
    classifier = LangCellAnnotator(model, tiny_processor, device="cpu")
    annotate_file(classifier, cells_file, tmp_path / "o.h5ad")
    theirs = write_annotated(classifier.annotate(open_cells(cells_file)), tmp_path / "theirs.h5ad")
    assert_same_file(tmp_path / "o.h5ad", theirs)


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
def test_files_from_before_anndata_0_7(annotator, cells_file, expected, tmp_path):
    """`obs` and `var` were arrays of records, and the file had no attributes."""
    with h5py.File(cells_file, "r+") as file:
        for name in ("obs", "obsm", "uns", "var"):
            del file[name]
        for name, index in (("obs", some_cells().obs_names), ("var", GENES)):
            file[name] = np.array([(entry.encode(),) for entry in index], dtype=[("index", "S20")])
        for name in list(file.attrs):
            del file.attrs[name]
    annotate_file(annotator, cells_file, tmp_path / "o.h5ad", LABELS, **OPTIONS)
    found, theirs = ad.read_h5ad(tmp_path / "o.h5ad"), ad.read_h5ad(expected)
    np.testing.assert_array_equal(found.obsm["X_langcell"], theirs.obsm["X_langcell"])
    assert found.obs["langcell_cell_type"].tolist() == theirs.obs["langcell_cell_type"].tolist()


# ---------------------------------------------------------------------- interruptions


def test_an_interrupted_run_is_resumed(annotator, cells_file, expected, tmp_path, monkeypatch, caplog):
    out, told = tmp_path / "o.h5ad", []
    interrupt(annotator, cells_file, out, monkeypatch)
    with counting(monkeypatch) as annotated, caplog.at_level("INFO", "modeling_langcell.annotation.large_files"):
        annotate_file(annotator, cells_file, out, LABELS, resumed=told.append, **OPTIONS)
    assert "Resuming: 24 of 44 cells are annotated." in caplog.messages
    assert annotated == [8, 8, 4]
    assert told == [3 * CHUNK]
    assert_same_file(out, expected)
    assert not unfinished(out).exists()


def test_an_interruption_before_the_first_chunk_leaves_nothing(annotator, cells_file, tmp_path, monkeypatch):
    with counting(monkeypatch, fail_at=0), pytest.raises(KeyboardInterrupt):
        annotate_file(annotator, cells_file, tmp_path / "o.h5ad", LABELS)
    assert list(tmp_path.iterdir()) == [cells_file]


@pytest.mark.parametrize("change", ["labels", "description", "alpha", "shortlist", "check", "cells", "input", "chunk"])
def test_a_changed_run_begins_anew(annotator, cells_file, tmp_path, monkeypatch, change):
    out, labels, options = tmp_path / "o.h5ad", dict(LABELS), dict(OPTIONS)
    interrupt(annotator, cells_file, out, monkeypatch)
    if change == "labels":
        labels = dict(reversed(labels.items()))
    elif change == "description":
        labels["t"] = "t cell ."
    elif change == "input":
        adata = some_cells()
        adata.X[0, 0] += 1
        adata.write_h5ad(cells_file)
    elif change == "chunk":
        monkeypatch.setattr("modeling_langcell.annotation.predictor.CHUNK_SIZE", 9)
    else:
        options |= {"alpha": 0.4} if change == "alpha" else {}
        options |= {"shortlist": 3} if change == "shortlist" else {"check": 8} if change == "check" else {}
        options |= {"max_length": 30} if change == "cells" else {}
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, out, labels, **options)
    assert sum(annotated) == 44
    theirs = annotator.annotate(ad.read_h5ad(cells_file), labels, **options)
    np.testing.assert_array_equal(
        ad.read_h5ad(out).obsm["langcell_probabilities"], theirs.obsm["langcell_probabilities"]
    )


def write_in_place(path):
    """Changes a count of a file and neither its size nor its times."""
    before = path.stat()
    with h5py.File(path) as file:
        place, counts = file["X/data"].id.get_chunk_info(0).byte_offset, file["X/data"][:1] + 1
    with path.open("r+b") as file:
        file.seek(place)
        file.write(counts.tobytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_an_input_of_the_same_size_and_time_begins_anew(annotator, cells_file, tmp_path, monkeypatch):
    out = tmp_path / "o.h5ad"
    interrupt(annotator, cells_file, out, monkeypatch)
    write_in_place(cells_file)
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
    assert sum(annotated) == 44
    theirs = annotator.annotate(open_cells(cells_file), LABELS, **OPTIONS)
    assert_same_file(out, write_annotated(theirs, tmp_path / "theirs.h5ad"))


@pytest.mark.parametrize("how", ["touched", "copied", "moved"])
def test_the_same_content_is_resumed(annotator, cells_file, expected, tmp_path, monkeypatch, how):
    out = tmp_path / "o.h5ad"
    interrupt(annotator, cells_file, out, monkeypatch)
    if how == "touched":
        os.utime(cells_file, (1, 1))
    else:
        cells_file = (shutil.copy if how == "copied" else shutil.move)(cells_file, tmp_path / "other.h5ad")
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
    assert annotated == [8, 8, 4]
    assert_same_file(out, expected)


def test_another_model_begins_anew(annotator, cells_file, tmp_path, monkeypatch, tiny_checkpoint):
    interrupt(annotator, cells_file, tmp_path / "o.h5ad", monkeypatch)
    other = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    with torch.no_grad():
        next(other.model.parameters()).add_(0.1)
    with counting(monkeypatch) as annotated:
        annotate_file(other, cells_file, tmp_path / "o.h5ad", LABELS, **OPTIONS)
    assert sum(annotated) == 44


def test_other_descriptions_begin_anew(annotator, cells_file, tmp_path, monkeypatch, tiny_checkpoint):
    """All texts of a label are in the plan and in the record."""
    several = LABELS | {"t": ["t cell", "a t cell"]}
    interrupt(annotator, cells_file, tmp_path / "o.h5ad", monkeypatch)
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, tmp_path / "o.h5ad", several, **OPTIONS)
    assert sum(annotated) == 44
    expected = write_annotated(annotator.annotate(open_cells(cells_file), several, **OPTIONS), tmp_path / "e.h5ad")
    assert_same_file(tmp_path / "o.h5ad", expected)
    assert read_annotation(expected).uns["langcell"]["descriptions"].tolist()[-1] == "t cell\na t cell"
    other = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    before = fingerprint(other.model, other.processor)
    other.processor.prompt_templates = ["{name}"]
    assert fingerprint(other.model, other.processor) != before


def test_damaged_chunks_are_annotated_again(annotator, cells_file, expected, tmp_path, monkeypatch):
    out = tmp_path / "o.h5ad"
    interrupt(annotator, cells_file, out, monkeypatch, after=5)
    first, second, third, *_ = chunk_files(out)
    first.write_bytes(first.read_bytes()[:-5])
    content = bytearray(second.read_bytes())
    content[-20] ^= 1
    second.write_bytes(content)
    third.write_bytes(b"")
    (unfinished(out) / f".00000005.safetensors.{'a' * 32}").write_bytes(b"half")
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
    assert annotated == [8, 8, 8, 4]
    assert_same_file(out, expected)


def test_a_damaged_plan_begins_anew(annotator, cells_file, expected, tmp_path, monkeypatch):
    for content in (b"", b"\xff", b"[]", b'{"run": 1}'):
        interrupt(annotator, cells_file, tmp_path / "o.h5ad", monkeypatch, after=2)
        (unfinished(tmp_path / "o.h5ad") / "plan.json").write_bytes(content)
        with counting(monkeypatch) as annotated:
            annotate_file(annotator, cells_file, tmp_path / "o.h5ad", LABELS, **OPTIONS)
        assert sum(annotated) == 44
        (tmp_path / "o.h5ad").unlink()


@pytest.mark.parametrize("name", ["notes.txt", "00000001.safetensors.bak", "folder"])
def test_files_of_others_in_the_folder_are_not_touched(annotator, cells_file, tmp_path, monkeypatch, name):
    out = tmp_path / "o.h5ad"
    interrupt(annotator, cells_file, out, monkeypatch)
    if name == "folder":
        (unfinished(out) / name).mkdir()
    else:
        (unfinished(out) / name).write_text("mine")
    before = sorted(unfinished(out).iterdir())
    for labels in (LABELS, {"b": "b", "t": "t"}):
        with pytest.raises(InputError, match=f"holds {name}"):
            annotate_file(annotator, cells_file, out, labels, **OPTIONS)
    assert sorted(unfinished(out).iterdir()) == before


def test_bad_cells_in_a_later_chunk_keep_the_finished_chunks(annotator, tmp_path):
    path, out = tmp_path / "cells.h5ad", tmp_path / "o.h5ad"
    for bad, kept in ((21, 2), (3, 0)):
        adata = some_cells()
        adata.X[bad, 0] = 0.5
        adata.write_h5ad(path)
        with pytest.raises(InputError, match=f"cell{bad}"):
            annotate_file(annotator, path, out, LABELS, counts="raw")
        assert len(chunk_files(out)) == kept
        assert not out.exists()
    assert list(tmp_path.iterdir()) == [path]


def test_finished_chunks_stay_when_an_empty_cell_is_accepted(annotator, tmp_path, monkeypatch):
    path, out = tmp_path / "cells.h5ad", tmp_path / "o.h5ad"
    adata = some_cells()
    adata.X = sp.csr_matrix(adata.X.toarray() * (np.arange(44) != 21)[:, None])
    adata.write_h5ad(path)
    with pytest.raises(InputError, match=r"cell21'\. .* pass empty_cells='mark'") as error:
        annotate_file(annotator, path, out, LABELS, **OPTIONS)
    assert len(chunk_files(out)) == 2
    told: list[int] = []
    advice = {remedy.option: remedy.value for remedy in error.value.remedies}
    annotate_file(annotator, path, out, LABELS, resumed=told.append, **OPTIONS, **advice)
    assert told == [2 * CHUNK]
    whole = annotator.annotate(ad.read_h5ad(path), LABELS, **OPTIONS, **advice)
    assert_same_file(out, write_annotated(whole, tmp_path / "whole.h5ad"))
    out.unlink()
    # A run that accepts no empty cell does not take over chunks that may have some.
    interrupt(annotator, path, out, monkeypatch, **advice)
    with pytest.raises(InputError, match="cell21"):
        annotate_file(annotator, path, out, LABELS, **OPTIONS)


def test_an_input_that_changes_meanwhile_is_an_error(annotator, cells_file, tmp_path, monkeypatch):
    annotate = AnnotationRun.annotate

    def meanwhile(self, *arguments):
        write_in_place(cells_file)
        return annotate(self, *arguments)

    monkeypatch.setattr(AnnotationRun, "annotate", meanwhile)
    with pytest.raises(InputError, match="was changed"):
        annotate_file(annotator, cells_file, tmp_path / "o.h5ad", LABELS)
    assert not (tmp_path / "o.h5ad").exists()


def test_a_folder_taken_over_by_another_run_is_an_error(annotator, cells_file, tmp_path, monkeypatch):
    out, annotate = tmp_path / "o.h5ad", AnnotationRun.annotate

    def meanwhile(self, *arguments):
        (unfinished(out) / "plan.json").write_text("{}")
        return annotate(self, *arguments)

    monkeypatch.setattr(AnnotationRun, "annotate", meanwhile)
    with pytest.raises(InputError, match="taken over by another run"):
        annotate_file(annotator, cells_file, out, LABELS)
    assert not chunk_files(out)


# ---------------------------------------------------------------------- full disks and unwritable folders


@contextmanager
def largest_file(size: int):
    """Limits the size of files, so that writing fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("when", ["as it begins", "later"])
def test_a_full_disk_while_chunks_are_written(annotator, cells_file, expected, tmp_path, monkeypatch, when):
    out, limited = tmp_path / "o.h5ad", largest_file(500)
    interrupt(annotator, cells_file, out, monkeypatch)
    annotate = AnnotationRun.annotate

    def full(self, *arguments):
        limited.__enter__()
        return annotate(self, *arguments)

    with monkeypatch.context() as patched:
        if when == "later":
            patched.setattr(AnnotationRun, "annotate", full)
        else:
            limited.__enter__()
        with pytest.raises(InputError, match=r"o\.h5ad cannot be written.*the same command continues it"):
            annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
        limited.__exit__(None, None, None)
    assert not out.exists()
    assert len(chunk_files(out)) == 3
    assert not list(unfinished(out).glob(".*")), "no half-written file"
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
    assert sum(annotated) == 44 - 3 * CHUNK
    assert_same_file(out, expected)


def test_space_for_the_whole_output_is_reserved(annotator, cells_file, tmp_path, monkeypatch):
    """HDF5 itself then never meets a full disk."""
    out, reserve, reserved = tmp_path / "o.h5ad", os.posix_fallocate, []
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", lambda file, start, size: reserved.append(size))
        labels = {f"type {number}": "b cell " * 20 for number in range(300)}
        annotate_file(annotator, cells_file, out, labels, alpha=1)
    assert out.stat().st_size < reserved[0]
    annotate_file(annotator, cells_file, out, LABELS)
    whole = out.stat().st_size
    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", lambda file, start, size: reserve(file, start, 3 * size))
        annotate_file(annotator, cells_file, out, LABELS)
    assert out.stat().st_size == whole, "space that is not needed is given back"


@pytest.mark.parametrize("beyond", [-1000, 1, 3000, 20_000])
def test_a_full_disk_while_the_output_is_written(annotator, cells_file, expected, tmp_path, monkeypatch, beyond):
    out = tmp_path / "o.h5ad"
    with (
        largest_file(cells_file.stat().st_size + beyond),
        pytest.raises(InputError, match=r"o\.h5ad cannot be written") as failed,
    ):
        annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
    assert "\n" not in str(failed.value)
    assert not out.exists()
    assert {path.suffix for path in unfinished(out).iterdir()} == {".safetensors", ".json"}
    assert len(chunk_files(out)) == 6
    with counting(monkeypatch) as annotated:  # No chunk is left to annotate.
        annotate_file(annotator, cells_file, out, LABELS, **OPTIONS)
    assert annotated == []
    assert_same_file(out, expected)


def test_an_unwritable_output_is_refused_before_the_work(annotator, cells_file, tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("no folder")
    with counting(monkeypatch) as annotated:
        for output in ("folder", "file/o.h5ad", "/proc/langcell/o.h5ad"):
            with pytest.raises(InputError, match="cannot be written"):
                annotate_file(annotator, cells_file, tmp_path / output, LABELS)
        if os.geteuid() != 0:  # Nothing is read-only to root.
            (tmp_path / "folder").chmod(0o500)
            with pytest.raises(InputError, match="cannot be written"):
                annotate_file(annotator, cells_file, tmp_path / "folder" / "o.h5ad", LABELS)
    assert not annotated
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "file", "cells.h5ad"}


# ---------------------------------------------------------------------- processes


class Command:
    """`langcell annotate` in one or several processes."""

    def __init__(
        self, tmp_path, checkpoint, cells, *, pause=0.0, launcher=(), module=False, largest=None, output=None,
        **environment,
    ):  # fmt: skip
        self.log = tmp_path / "log"
        self.log.touch()
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER)
        labels = tmp_path / "labels.json"
        labels.write_text(json.dumps(LABELS))
        self.output = output or tmp_path / "o.h5ad"
        self.arguments = ["annotate", cells, "--model", checkpoint, "--labels", labels, "--out", self.output, "--json"]
        self.arguments += ["--alpha", 0.3, "--shortlist", 2, "--check-shortlist", 7, "--device", "cpu"]
        self.arguments = list(map(str, self.arguments))
        command = ["-m", "modeling_langcell.cli"] if module else [driver, self.log, pause]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        self.process = start_python(
            *launcher, *command, *self.arguments, env=environment, start_new_session=True, largest=largest
        )

    def annotated(self) -> str:
        """Returns the ranks of the processes that annotated the chunks so far."""
        return self.log.read_text()

    def wait_for(self, condition) -> None:
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            time.sleep(0.002)

    def wait(self) -> tuple[int, str, str]:
        said, errors = self.process.communicate(timeout=120)
        return self.process.returncode, said, errors

    def result(self) -> dict:
        code, said, errors = self.wait()
        assert code == 0, said + errors
        (line,) = [line for line in said.splitlines() if line]
        return json.loads(line)


LAUNCH = ["-m", "accelerate.commands.launch", "--config_file", REPOSITORY / "hub_configs/accelerate/ddp.yaml"]
LAUNCH += ["--num_processes=2", "--main_process_port=0"]


@pytest.mark.e2e
def test_a_killed_command_is_resumed(tiny_checkpoint, cells_file, expected, tmp_path, monkeypatch):
    killed = Command(tmp_path, tiny_checkpoint, cells_file, pause=0.15)
    killed.wait_for(lambda: len(chunk_files(killed.output)) == 2)
    os.killpg(killed.process.pid, signal.SIGKILL)
    assert killed.wait()[0] == -signal.SIGKILL
    done = len(chunk_files(killed.output))
    assert 2 <= done < 6
    assert not killed.output.exists()
    with counting(monkeypatch) as annotated:
        resumed = CliRunner().invoke(app, killed.arguments)
    assert resumed.exit_code == 0, resumed.output
    assert len(annotated) == 6 - done, "finished chunks are not annotated again"
    assert json.loads(resumed.stdout)["cells_done_before"] == CHUNK * done
    assert_same_file(killed.output, expected)
    assert not unfinished(killed.output).exists()


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_command_keeps_its_chunks_and_says_how_to_continue(
    tiny_checkpoint, cells_file, expected, tmp_path, number
):
    stopped = Command(tmp_path, tiny_checkpoint, cells_file, pause=0.15)
    stopped.wait_for(lambda: len(chunk_files(stopped.output)) == 2)
    os.kill(stopped.process.pid, number)
    code, said, errors = stopped.wait()
    assert (code, said, errors.count("\n")) == (128 + number, "", 1)
    assert errors.startswith("Stopped by ")
    assert "Run the same command again: it continues with what is finished." in errors
    assert not stopped.output.exists()
    assert len(chunk_files(stopped.output)) >= 2
    assert list(tmp_path.glob(".*")) == [unfinished(stopped.output)]
    assert {path.suffix for path in unfinished(stopped.output).iterdir()} == {".json", ".safetensors"}
    assert Command(tmp_path, tiny_checkpoint, cells_file).result()["cells_done_before"] >= 2 * CHUNK
    assert_same_file(stopped.output, expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.long
def test_a_full_disk_is_a_one_line_error_with_exit_code_2(tiny_checkpoint, cells_file, tmp_path):
    code, said, errors = Command(tmp_path, tiny_checkpoint, cells_file, largest=cells_file.stat().st_size + 5000).wait()
    assert (code, said, errors.count("\n")) == (2, "", 1), errors
    assert "o.h5ad cannot be written: File too large." in errors
    assert not (tmp_path / "o.h5ad").exists()
    assert len(chunk_files(tmp_path / "o.h5ad")) == 6


@pytest.mark.e2e
def test_one_process_resumes_when_one_of_two_was_killed(
    annotator, tiny_checkpoint, cells_file, expected, tmp_path, monkeypatch
):
    pair = Command(tmp_path, tiny_checkpoint, cells_file, pause=0.3, launcher=LAUNCH)
    pair.wait_for(lambda: set(pair.annotated()) == {"0", "1"})
    found = subprocess.run(["pgrep", "-f", pair.log], capture_output=True, text=True).stdout.split()
    (second,) = [pid for pid in found if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(second), signal.SIGKILL)
    assert pair.wait()[0] != 0, "the launcher ends them all"
    assert not pair.output.exists()
    done = len(chunk_files(pair.output))
    assert 1 <= done < 6
    with counting(monkeypatch) as annotated:
        annotate_file(annotator, cells_file, pair.output, LABELS, **OPTIONS)
    assert len(annotated) == 6 - done
    assert_same_file(pair.output, expected)


@pytest.mark.e2e
def test_two_processes_share_a_file(annotator, tiny_checkpoint, tmp_path, monkeypatch):
    """The real command under accelerate, with chunks of the real size."""
    cells = tmp_path / "cells.h5ad"
    some_cells(4200).write_h5ad(cells)
    pair = Command(tmp_path, tiny_checkpoint, cells, launcher=[*LAUNCH], module=True)
    said = pair.result()
    assert said["cells"] == sum(said["labels"].values()) == 4200
    assert said["shortlist"]["checked"] == 7
    monkeypatch.setattr("modeling_langcell.annotation.predictor.CHUNK_SIZE", 4096)
    theirs = annotator.annotate(open_cells(cells), LABELS, **OPTIONS)
    assert_same_file(pair.output, write_annotated(theirs, tmp_path / "theirs.h5ad"))
    assert not unfinished(pair.output).exists()


@pytest.mark.parametrize("late", ["the first", "the second"])
@pytest.mark.e2e
def test_processes_that_start_apart_do_not_wait_forever(annotator, tiny_checkpoint, tmp_path, monkeypatch, late):
    """An earlier run annotated all chunks; only the output, which replaces the input, is missing."""
    cells = tmp_path / "o.h5ad"
    some_cells().write_h5ad(cells)
    with monkeypatch.context() as patched:
        patched.setattr("modeling_langcell.annotation.large_files.shutil.copyfile", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            annotate_file(annotator, cells, cells, LABELS, **OPTIONS)
    plan = (unfinished(cells) / "plan.json").read_bytes()
    first = Command(tmp_path, tiny_checkpoint, cells, RANK="0", WORLD_SIZE="2")
    while late == "the second" and (unfinished(cells) / "plan.json").read_bytes() == plan:
        time.sleep(0.01)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert annotate_file(annotator, cells, cells, LABELS, **OPTIONS) is None
    assert first.result()["cells_done_before"] == 44
    assert first.annotated() == ""
    assert "langcell_cell_type" in read_annotation(cells).obs
    assert not unfinished(cells).exists()


@pytest.mark.e2e
def test_a_second_command_is_refused_while_the_first_lives(tiny_checkpoint, cells_file, expected, tmp_path):
    first = Command(tmp_path, tiny_checkpoint, cells_file, pause=0.3)
    first.wait_for(lambda: chunk_files(first.output))
    code, said, errors = Command(tmp_path, tiny_checkpoint, cells_file).wait()
    assert (code, said, errors.count("\n")) == (2, "", 1)
    assert f"o.h5ad is being written by process {first.process.pid} on " in errors
    assert first.wait()[0] == 0
    assert_same_file(first.output, expected)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"WORLD_SIZE": "2"}, r"process 0 of 2 .* process 1 has not begun .* unset RANK WORLD_SIZE"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, r"process 1 of 2 .* process 0 has not begun"),
        ({"RANK": "6", "WORLD_SIZE": "9"}, r"process 6 of 9 .* process 0 has not begun"),
        ({"RANK": "1"}, r"process 1 \(RANK\) of 1 \(WORLD_SIZE\).*unset RANK WORLD_SIZE"),
        ({"RANK": "-1", "WORLD_SIZE": "2"}, "RANK is '-1', not a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number.*unset WORLD_SIZE"),
        ({"WORLD_SIZE": "0"}, r"process 0 \(RANK\) of 0"),
    ],
)
def test_what_a_launch_left_in_the_environment_is_not_waited_for(
    annotator, cells_file, tmp_path, monkeypatch, variables, says
):
    monkeypatch.setattr("modeling_langcell.io.launch.JOIN_SECONDS", 0.3)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for write in (annotate_file, embed_file):
        options = {"labels": LABELS} if write is annotate_file else {}
        with pytest.raises(InputError, match=says):
            write(annotator, cells_file, tmp_path / "new" / "o.h5ad", **options)
    assert list(tmp_path.iterdir()) == [cells_file]


@pytest.mark.e2e
@pytest.mark.parametrize("dies", ["the first", "the second"])
def test_the_death_of_a_process_is_said_by_the_others(tiny_checkpoint, cells_file, expected, tmp_path, dies):
    """They were started without a launcher, which would end them."""
    pair = []
    for rank in "01":
        (tmp_path / rank).mkdir()
        pair.append(
            Command(tmp_path / rank, tiny_checkpoint, cells_file, pause=0.3, output=tmp_path / "o.h5ad",
                    RANK=rank, WORLD_SIZE="2")
        )  # fmt: skip
    pair[0].wait_for(lambda: all(process.annotated() for process in pair))
    killed, other = pair if dies == "the first" else reversed(pair)
    killed.process.kill()
    code, said, errors = other.wait()
    assert (code, said, errors.count("\n")) == (2, "", 1)
    assert f"Process {pair.index(killed)} of 2" in errors
    assert "Run the same command again" in errors
    assert not killed.output.exists()
    (tmp_path / "last").mkdir()
    last = Command(tmp_path / "last", tiny_checkpoint, cells_file, output=tmp_path / "o.h5ad").result()
    assert last["cells_done_before"] >= CHUNK
    assert_same_file(killed.output, expected)
    assert not list(tmp_path.glob(".*"))


def test_processes_that_write_different_things_are_told(annotator, tiny_checkpoint, cells_file, tmp_path, monkeypatch):
    first = Command(tmp_path, tiny_checkpoint, cells_file, RANK="0", WORLD_SIZE="2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match=r"does not write the same as the first one, process \d+ on"):
        annotate_file(annotator, cells_file, tmp_path / "o.h5ad", LABELS, alpha=1)
    assert "Process 1 of 2 (RANK=1) has ended" in first.wait()[2]


@pytest.mark.parametrize("change", ["genes", "weight", "usual places"])
def test_other_markers_begin_anew(annotator, cells_file, tmp_path, monkeypatch, tiny_checkpoint, change):
    labels = {label: {"description": text, "markers": ["GENE1"]} for label, text in LABELS.items()}
    interrupt(annotator, cells_file, tmp_path / "o.h5ad", monkeypatch, labels=labels, marker_weight=2)
    other = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    if change == "usual places":
        other.processor.feature_extractor.gene_places = {"means": [0.5] * 40, "spreads": [0.5] * 40}
    weight = 3 if change == "weight" else 2
    if change == "genes":
        labels = labels | {"t": {"description": LABELS["t"], "markers": ["GENE2"]}}
    with counting(monkeypatch) as annotated:
        annotate_file(other, cells_file, tmp_path / "o.h5ad", labels, marker_weight=weight, **OPTIONS)
    assert sum(annotated) == 44
