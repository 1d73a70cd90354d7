# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Annotation of AnnData: the contract's fields, the published scores, and memory that does not grow with the file."""

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import scipy.sparse as sp
import torch
from matplotlib.colors import to_hex
from transformers.utils import logging as transformers_logging

from modeling_langcell import AdaptationConfig, InputError, LangCellAnnotator, adapt, pl
from modeling_langcell.annotation.annotator import _load, annotate
from modeling_langcell.annotation.explain import explain, explain_annotated
from modeling_langcell.annotation.large_files import annotate_file
from modeling_langcell.annotation.metrics import agreement
from modeling_langcell.annotation.records import best_labels, describe_input
from modeling_langcell.annotation.table import to_table
from modeling_langcell.io.example import CELL_OPTIONS, load_example
from modeling_langcell.io.h5ad import open_cells, write_annotated
from modeling_langcell.io.labels import read_labels
from modeling_langcell.kernels import cpu_has_instructions
from modeling_langcell.ontology import id_of, short_name

LABELS = ["B cell", "natural killer cell", "monocyte"]


@pytest.fixture(scope="module")
def annotator(tiny_checkpoint):
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")


def test_annotate_writes_the_fields_and_returns_the_anndata(annotator, cells):
    annotated = annotator.annotate(cells, LABELS)
    assert annotated is cells
    labels, scores = cells.obs["langcell_cell_type"], cells.obsm["langcell_probabilities"]
    assert isinstance(labels.dtype, pd.CategoricalDtype)
    assert list(labels.cat.categories) == [label for label in LABELS if (labels == label).any()]
    assert list(scores.columns) == LABELS
    assert scores.index.equals(cells.obs_names)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-5)
    assert (labels.astype(str) == scores.idxmax(axis=1)).all()
    np.testing.assert_array_equal(cells.obs["langcell_score"], scores.max(axis=1))
    assert cells.obsm["X_langcell"].dtype == np.float32
    assert cells.obsm["X_langcell"].shape == (cells.n_obs, annotator.model.config.projection_dim)
    np.testing.assert_allclose(np.linalg.norm(cells.obsm["X_langcell"], axis=1), 1, atol=1e-5)


class TestCandidatesWithoutACell:
    """Candidates without a cell are not categories, on which scanpy fails, but stay in the record of the run."""

    CANDIDATES = ("neuron", "T cell", "B cell", "CD14-positive monocyte", "oligodendrocyte")
    FOUND = CANDIDATES[1:-1]

    @pytest.fixture
    def blood(self):
        return load_example()[::4].copy()

    def annotate(self, cells):
        annotator = LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")
        return annotator, annotator.annotate(cells.copy(), self.CANDIDATES, **CELL_OPTIONS)

    @pytest.fixture(params=["in memory", "a file"])
    def annotated(self, blood, tmp_path, request):
        if request.param == "in memory":
            return self.annotate(blood)[1]
        blood.write_h5ad(tmp_path / "cells.h5ad")
        annotator = LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")
        files = tmp_path / "cells.h5ad", tmp_path / "o.h5ad"
        return ad.read_h5ad(annotate_file(annotator, *files, self.CANDIDATES, **CELL_OPTIONS))

    def test_categories_are_what_cells_have_in_the_order_of_candidates(self, annotated):
        for column in ("langcell_cell_type", "langcell_second"):
            values = annotated.obs[column]
            assert list(values.cat.categories) == [label for label in self.CANDIDATES if (values == label).any()]
        assert tuple(annotated.obs["langcell_cell_type"].cat.categories) == self.FOUND
        assert tuple(annotated.uns["langcell"]["labels"]) == self.CANDIDATES
        assert tuple(annotated.obsm["langcell_probabilities"].columns) == self.CANDIDATES

    def test_ids_short_names_and_colours_go_with_the_labels(self, annotated):
        obs, run = annotated.obs, annotated.uns["langcell"]
        ids = obs["langcell_cell_type_id"]
        assert ids.astype(str).tolist() == [id_of(label) for label in obs["langcell_cell_type"].astype(str)]
        assert [str(name) for name in run["short_names"]] == [short_name(label) for label in self.CANDIDATES]
        kept = annotated.uns["langcell_cell_type_colors"]
        assert len(kept) == len(set(kept)) == len(self.FOUND)
        drawn = sc.pl.embedding(annotated, "X_langcell", color="langcell_cell_type", show=False)
        assert [str(colour) for colour in annotated.uns["langcell_cell_type_colors"]] == [str(one) for one in kept]
        shown = {to_hex(handle.get_facecolor()[0]) for handle in drawn.get_legend().legend_handles}
        assert shown == set(kept), "scanpy takes the colours as they are"
        plt.close("all")

    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # Between other libraries.
    def test_scanpy_compares_and_plots_the_types(self, annotated):
        sc.tl.rank_genes_groups(annotated, "langcell_cell_type")
        assert annotated.uns["rank_genes_groups"]["names"].dtype.names == self.FOUND
        sc.pl.rank_genes_groups_dotplot(annotated, n_genes=2, show=False)
        for column in ("langcell_cell_type", "langcell_second"):
            sc.pl.dotplot(annotated, ["CD3D", "CD79A", "LYZ"], groupby=column, show=False)
        plt.close("all")

    def test_categories_of_clusters_are_labels_that_they_have(self, annotator, cells):
        cells.obs["cluster"] = ["a", "b"] * 6
        said = annotator.annotate(cells, LABELS, cluster_key="cluster").obs["langcell_cluster_label"]
        assert list(said.cat.categories) == [label for label in LABELS if (said == label).any()]

    def test_readers_of_an_annotation_know_all_candidates(self, blood):
        """Files of earlier versions, in which all candidates are categories, are read alike."""
        annotator, new = self.annotate(blood)
        new.obs["known"] = ["neuron"] * 100 + ["B cell"] * 75
        old = new.copy()
        for column in ("langcell_cell_type", "langcell_second"):
            old.obs[column] = old.obs[column].cat.set_categories(self.CANDIDATES)
        expected = explain(annotator, blood, self.CANDIDATES, cells_per_label=2, **CELL_OPTIONS)
        assert tuple(expected["label"].unique()) == self.FOUND
        sizes = new.obs["langcell_cell_type"].value_counts()
        for annotated in (new, old):
            found = explain_annotated(annotator, blood, annotated, cells_per_label=2, **CELL_OPTIONS)
            pd.testing.assert_frame_equal(found, expected)
            assert best_labels(annotated).value_counts().to_dict() == {
                name: sizes.get(name, 0) for name in self.CANDIDATES
            }
            assert agreement(annotated, "known")["cells"] == 175, "known neurons too, which no cell is annotated as"

    def test_cells_without_any_label_are_written_and_read(self, annotator, cells, tmp_path):
        cells.X = sp.csr_matrix(cells.shape, dtype=np.float32)
        annotator.annotate(cells, LABELS, empty_cells="mark")
        for annotated in (cells, ad.read_h5ad(write_annotated(cells, tmp_path / "o.h5ad"))):
            assert isinstance(annotated.obs["langcell_cell_type"].dtype, pd.CategoricalDtype)
            assert best_labels(annotated).value_counts().to_dict() == dict.fromkeys(LABELS, 0)


def test_a_misspelt_argument_is_named_with_the_closest(annotator, cells):
    for call in (annotator.annotate, annotator.embed):
        with pytest.raises(TypeError, match=r"has no argument 'gene_colum': did you mean 'gene_column'\?$"):
            call(cells, gene_colum="symbol")
    with pytest.raises(TypeError, match=r"has no argument 'zzz': cells are read by layer, use_raw, gene_column, "):
        annotator.embed(cells, zzz=1)


def test_the_record_repeats_the_run(annotator, cells, tiny_checkpoint):
    annotator.annotate(cells, LABELS, alpha=0.3)
    run = cells.uns["langcell"]
    again = LangCellAnnotator.from_pretrained(run["checkpoint"]).annotate(
        cells.copy(), dict(zip(run["labels"], run["descriptions"], strict=True)), alpha=run["alpha"]
    )
    pd.testing.assert_frame_equal(again.obsm["langcell_probabilities"], cells.obsm["langcell_probabilities"])
    assert run["checkpoint"] == str(tiny_checkpoint)
    assert run["input"]["array"] == "X"
    assert {"modeling-langcell", "torch", "transformers"} <= set(run["versions"])
    assert "40 of 40 human genes known (40 by ensembl id)" in describe_input(cells)


def test_scores_equal_the_published_procedure_pair_by_pair(annotator, cells):
    alpha = 0.35
    annotator.annotate(cells, LABELS, alpha=alpha)
    descriptions = list(cells.uns["langcell"]["descriptions"])
    model, processor = annotator.model, annotator.processor
    for row in range(cells.n_obs):
        similarity, match = [], []
        for description in descriptions:
            batch = processor(cells=cells[row], text=description, return_tensors="pt")
            with torch.no_grad():
                out = model(**batch, return_matching=True)
            similarity.append(float(out.cell_embeds[0] @ out.text_embeds[0]) / 0.05)
            match.append(float(out.matching_logits[0, 0].softmax(-1)[1]))
        expected = alpha * torch.tensor(similarity).softmax(0) + (1 - alpha) * torch.tensor(match).softmax(0)
        np.testing.assert_allclose(cells.obsm["langcell_probabilities"].iloc[row], expected, atol=1e-5)


def test_batch_size_and_order_of_cells_change_nothing(tiny_checkpoint, cells):
    whole = LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells.copy(), LABELS)
    one_by_one = LangCellAnnotator.from_pretrained(tiny_checkpoint, batch_tokens=1).annotate(cells.copy(), LABELS)
    order = np.random.default_rng(0).permutation(cells.n_obs)
    shuffled = LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells[order].copy(), LABELS)
    for other in (one_by_one, shuffled):
        np.testing.assert_allclose(other[cells.obs_names].obsm["X_langcell"], whole.obsm["X_langcell"], atol=1e-5)
        np.testing.assert_allclose(
            other.obsm["langcell_probabilities"].loc[cells.obs_names],
            whole.obsm["langcell_probabilities"],
            atol=1e-5,
        )


def test_chunks_are_joined_in_order(tiny_checkpoint, cells, monkeypatch):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    whole = annotator.embed(cells.copy()).obsm["X_langcell"]
    monkeypatch.setattr("modeling_langcell.annotation.predictor.CHUNK_SIZE", 5)
    np.testing.assert_allclose(annotator.embed(cells.copy()).obsm["X_langcell"], whole, atol=1e-6)


def test_embed_agrees_with_annotate_and_the_model(annotator, cells):
    embedded = annotator.embed(cells.copy()).obsm["X_langcell"]
    np.testing.assert_allclose(embedded, annotator.annotate(cells.copy(), LABELS).obsm["X_langcell"], atol=1e-6)
    batch = annotator.processor(cells=cells, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(embedded, annotator.model.get_cell_features(**batch).pooler_output, atol=1e-5)


def test_alpha_one_leaves_the_matching_out(annotator, cells, monkeypatch):
    with_matching = annotator.annotate(cells.copy(), LABELS, alpha=0.999999).obsm["langcell_probabilities"]
    monkeypatch.setattr(type(annotator.model), "get_matching_logits", lambda *_: pytest.fail("matching was computed"))
    without = annotator.annotate(cells.copy(), LABELS, alpha=1).obsm["langcell_probabilities"]
    np.testing.assert_allclose(without, with_matching, atol=1e-4)


def test_marked_cells_get_no_label(annotator, cells):
    empty = sp.csr_matrix(([0.0], ([0], [0])), shape=(1, cells.n_vars))
    cells.X = sp.vstack([cells.X[:3], empty, cells.X[4:]], format="csr")
    with pytest.raises(InputError, match="'cell3'"):
        annotator.annotate(cells, LABELS)
    assert "langcell_cell_type" not in cells.obs, "nothing is written on an error"
    annotator.annotate(cells, LABELS, empty_cells="mark")
    missing = cells.obs["langcell_cell_type"].isna()
    assert missing.tolist() == [row == 3 for row in range(cells.n_obs)]
    assert cells.obs["langcell_score"].isna().equals(missing)
    assert np.isnan(cells.obsm["X_langcell"][3]).all()
    assert not np.isnan(np.delete(cells.obsm["X_langcell"], 3, axis=0)).any()


@pytest.mark.parametrize("chosen", [slice(2, 6), np.arange(12) % 2 == 0, [5, 3, 1]])
def test_a_view_becomes_an_anndata_of_its_own(annotator, cells, chosen):
    """In place, as scanpy does it: what is added to a view would be lost."""
    view = cells[:12][chosen]
    assert annotator.annotate(view, LABELS) is view
    assert not view.is_view
    assert "langcell_cell_type" in view.obs
    assert "langcell_cell_type" not in cells.obs
    alone = annotator.annotate(cells[:12][chosen].copy(), LABELS)
    np.testing.assert_array_equal(view.obsm["X_langcell"], alone.obsm["X_langcell"])
    embedded = cells[:12][chosen]
    annotator.embed(embedded)
    assert "X_langcell" in embedded.obsm


def test_two_names_of_a_type_are_one_candidate(annotator, cells, caplog):
    labels = ["B cells", "NK cell", "B cell", "CL_0000236", "natural killer cell"]
    found = annotator.annotate(cells[:5].copy(), labels)
    assert found.uns["langcell"]["labels"].tolist() == ["B cells", "NK cell"]
    assert "'B cell' is left out: it is the same type as 'B cells'" in caplog.text
    alone = annotator.annotate(cells[:5].copy(), ["B cells", "NK cell"])
    np.testing.assert_array_equal(found.obs["langcell_score"], alone.obs["langcell_score"])
    own = {"B cell": "a cell of the blood", "B cells": "a cell of the spleen", "CL:0000236": ""}
    assert annotator.annotate(cells[:5].copy(), own).uns["langcell"]["labels"].tolist() == list(own)


@pytest.mark.parametrize("method", ["annotate", "embed"])
def test_a_view_of_a_file_is_refused_before_any_work(annotator, cells, tmp_path, method):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    view = open_cells(tmp_path / "cells.h5ad")[2:6]
    arguments = (LABELS,) if method == "annotate" else ()
    with pytest.raises(InputError, match=r"are a view of a file.*: give cells\.to_memory\(\)"):
        getattr(annotator, method)(view, *arguments)
    assert getattr(annotator, method)(view.to_memory(), *arguments).n_obs == 4


@pytest.mark.parametrize("labels", [{"a/b": "x", "a|b": "y"}, {"_index": "x", "b": "y"}])
def test_labels_that_no_file_can_hold_are_refused(annotator, cells, labels):
    with pytest.raises(InputError, match="A table cannot have a column"):
        annotator.annotate(cells, labels)
    assert cells.obs.columns.empty


def test_embedding_deletes_an_annotation_whose_record_it_replaces(annotator, cells, caplog):
    cells.obs["known"] = "B cell"
    annotator.embed(annotator.annotate(cells, LABELS))
    assert "Their embeddings replace the annotation" in caplog.text
    assert set(cells.obs) == {"known"}
    assert set(cells.obsm) == {"X_langcell"}
    with pytest.raises(InputError, match="not annotated: annotate them first"):
        agreement(cells, "known")


def test_a_shortlist_is_checked_with_prototypes_too(tiny_checkpoint, cells):
    cells.obs["type"] = LABELS * (cells.n_obs // len(LABELS))
    config = AdaptationConfig(head="prototypes")
    adapted = adapt(tiny_checkpoint, cells, "type", config=config)
    annotator = LangCellAnnotator(adapted.model, adapted.processor, adaptation=adapted.adaptation, device="cpu")
    annotator.annotate(cells, alpha=0.5, shortlist=2, check=4)
    assert cells.uns["langcell"]["checked"] == 4
    assert 0 <= cells.uns["langcell"]["agreement"] <= 1


def test_a_backed_file_round_trips_without_its_matrix(annotator, cells, tmp_path):
    path, out = tmp_path / "cells.h5ad", tmp_path / "new" / "annotated.h5ad"
    cells.layers["counts"] = cells.X.copy()
    cells.write_h5ad(path)
    expected = annotator.annotate(cells.copy(), LABELS)
    backed = annotator.annotate(open_cells(path), LABELS)
    assert backed.isbacked
    write_annotated(backed, out)
    assert [p.name for p in out.parent.iterdir()] == [out.name], "nothing is left beside the result"
    written = ad.read_h5ad(out)
    assert (written.X != cells.X).nnz == 0
    assert (written.layers["counts"] != cells.X).nnz == 0
    np.testing.assert_allclose(written.obsm["X_langcell"], expected.obsm["X_langcell"], atol=1e-6)
    pd.testing.assert_frame_equal(
        written.obsm["langcell_probabilities"], expected.obsm["langcell_probabilities"], atol=1e-6
    )
    assert written.obs["langcell_cell_type"].equals(expected.obs["langcell_cell_type"])
    assert list(written.uns["langcell"]["labels"]) == LABELS
    assert not ad.read_h5ad(path).obs.columns.tolist(), "the input is as it was"


def test_the_output_may_replace_the_input(annotator, cells, tmp_path):
    path = tmp_path / "cells.h5ad"
    cells.write_h5ad(path)
    write_annotated(annotator.annotate(open_cells(path), LABELS), path)
    assert "langcell_cell_type" in ad.read_h5ad(path).obs


def test_a_folder_that_cannot_be_written_to_is_an_input_error(annotator, cells, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    annotator.annotate(cells, LABELS)
    with pytest.raises(InputError, match=r"cannot be written"):
        write_annotated(cells, tmp_path / "file" / "out.h5ad")


@pytest.mark.parametrize("alpha", [-0.1, 1.1])
def test_alpha_outside_its_range_is_refused(annotator, cells, alpha):
    with pytest.raises(InputError, match="alpha"):
        annotator.annotate(cells, LABELS, alpha=alpha)


def test_a_missing_checkpoint_and_bad_options_are_refused(tmp_path, tiny_checkpoint):
    with pytest.raises(InputError, match="No LangCell checkpoint"):
        LangCellAnnotator.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(InputError, match="dtype"):
        LangCellAnnotator.from_pretrained(tiny_checkpoint, dtype="int8")
    with pytest.raises(InputError, match="device"):
        LangCellAnnotator.from_pretrained(tiny_checkpoint, device="nonsense")


@pytest.mark.parametrize("content", [b"", b"not hdf5 at all", b"\x89HDF\r\n\x1a\n" + b"\0" * 64])
def test_a_damaged_file_is_an_input_error(tmp_path, content):
    path = tmp_path / "damaged.h5ad"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.h5ad (cannot be read as \.h5ad|is not an \.h5ad|is empty)"):
        open_cells(path)


def test_half_precision_stays_close(tiny_checkpoint, cells, caplog):
    exact = LangCellAnnotator.from_pretrained(tiny_checkpoint).annotate(cells.copy(), LABELS)
    with caplog.at_level("WARNING", logger="modeling_langcell"):
        annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, dtype="bfloat16", device="cpu")
    assert ("slower than float32" in caplog.text) != cpu_has_instructions(torch.bfloat16)
    rough = annotator.annotate(cells.copy(), LABELS)
    assert rough.uns["langcell"]["dtype"] == "bfloat16"
    assert rough.obsm["X_langcell"].dtype == np.float32
    np.testing.assert_allclose(rough.obsm["X_langcell"], exact.obsm["X_langcell"], atol=0.05)


def test_labels_with_a_slash_can_be_written(annotator, cells, tmp_path):
    """HDF5 takes a slash in a name for the path of a group."""
    annotator.annotate(cells, {"B/C": "b cell", "nk": "cell type : nk ."})
    again = ad.read_h5ad(write_annotated(cells, tmp_path / "o.h5ad"))
    assert list(again.obsm["langcell_probabilities"].columns) == ["B|C", "nk"]
    assert list(again.uns["langcell"]["labels"]) == ["B/C", "nk"]
    assert set(again.obs["langcell_cell_type"]) <= {"B/C", "nk"}


class TestInOneCall:
    @pytest.fixture(autouse=True)
    def none_loaded(self):
        _load.cache_clear()
        yield
        _load.cache_clear()

    def test_gives_what_the_annotator_gives(self, cells, tiny_checkpoint):
        labels = ["B cell", "monocyte"]
        expected = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu").annotate(cells.copy(), labels)
        found = annotate(cells, labels, model=tiny_checkpoint, device="cpu")
        assert found is cells
        np.testing.assert_array_equal(found.obsm["X_langcell"], expected.obsm["X_langcell"])
        assert found.obs["langcell_cell_type"].tolist() == expected.obs["langcell_cell_type"].tolist()

    def test_keeps_the_last_checkpoint_loaded(self, cells, tiny_checkpoint):
        for _ in range(2):
            annotate(cells, ["B cell", "monocyte"], model=tiny_checkpoint)
        assert (_load.cache_info().misses, _load.cache_info().currsize) == (1, 1)

    def test_is_silent(self, tiny_checkpoint, cells, capsys):
        """transformers' own bars would stay in a log."""
        enabled = transformers_logging.is_progress_bar_enabled()
        transformers_logging.enable_progress_bar()
        try:
            annotate(cells, ["B cell", "monocyte"], model=tiny_checkpoint)
            assert transformers_logging.is_progress_bar_enabled()
        finally:
            if not enabled:
                transformers_logging.disable_progress_bar()
        assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda one, cells: one.annotate(cells, tisue="blood"),
            "annotate has no argument 'tisue': did you mean 'tissue'",
        ),
        (lambda one, cells: one.annotate(cells, lables=[]), "annotate has no argument 'lables': did you mean 'labels'"),
        (lambda one, cells: one.annotate(cells, use_row=True), "did you mean 'use_raw'"),
        (
            lambda one, cells: one.embed(cells, gene_col="x"),
            "embed has no argument 'gene_col': did you mean 'gene_column'",
        ),
        (lambda one, cells: one.explain(cells, qqq=1), "explain has no argument 'qqq': cells are read by"),
        (
            lambda one, cells: explain(one, cells, methods="x"),
            "explain has no argument 'methods': did you mean 'method'",
        ),
    ],
)
def test_a_misspelt_argument_gets_the_function_and_the_closest(annotator, cells, call, said):
    with pytest.raises(TypeError, match=said):
        call(annotator, cells)


@pytest.mark.parametrize(
    "call",
    [
        lambda one, cells: one.annotate(cells, ["B cell", "T cell"]),
        lambda one, cells: one.embed(cells),
        lambda one, cells: one.search(cells, "B cell"),
        lambda one, cells: to_table(cells),
        lambda one, cells: read_labels(cells, "cell_type"),
        lambda one, cells: pl.composition(cells, "sample"),
    ],
)
@pytest.mark.parametrize("cells", ["cells.h5ad", pd.DataFrame(), np.zeros((2, 3))], ids=["path", "table", "matrix"])
def test_what_is_no_anndata_is_refused(annotator, call, cells):
    with pytest.raises(
        InputError, match=r"^Cells must be an AnnData, not \w+\. Read a file with anndata\.read_h5ad, or"
    ):
        call(annotator, cells)


def test_a_note_of_that_name_is_no_record(annotator, cells):
    cells.uns["langcell"] = "v1"
    cells.obsm["X_langcell"] = np.ones((cells.n_obs, annotator.width), dtype=np.float32)
    with pytest.raises(InputError, match="embed or annotate them first"):
        annotator.search(cells, "B cell")


def test_an_annotator_shows_what_it_is(tiny_checkpoint):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    shown = repr(annotator)
    assert shown.startswith("LangCellAnnotator(checkpoint: ")
    assert shown.endswith("labels: any, by description, weights: float32 on cpu)")
    assert "<td>any, by description</td>" in annotator._repr_html_()
    annotator.model.config.name_or_path = "<b>"
    assert "<td><b></td>" not in annotator._repr_html_()
