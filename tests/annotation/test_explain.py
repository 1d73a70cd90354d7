# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Explanations: contributions that add up, genes that real matches depend on, tables by label, and the command."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.annotation_run import AnnotationRun
from modeling_langcell.annotation.explain import Explainer, explain, explain_annotated
from modeling_langcell.cli.main import app
from modeling_langcell.ontology import describe
from tests.support.tiny import GENES, SYMBOLS

LABELS = ["B cell", "natural killer cell", "monocyte"]
TEXTS = {"b": "cell type : b", "nk": "a natural killer", "t": "cell type : t"}


@pytest.fixture(scope="module")
def annotator(tiny_checkpoint):
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def ranked(annotator, cells):
    return annotator.processor.feature_extractor.rank(cells)


@pytest.mark.parametrize("method", ["gradient", "attention"])
def test_every_gene_gets_a_contribution(annotator, ranked, method):
    explainer = Explainer(annotator, TEXTS, method)
    for cell in range(3):
        found = explainer(ranked[cell], 1)
        assert found.shape == (len(ranked[cell]) - 1,)
        assert np.isfinite(found).all()
        assert found.std() > 0


def test_contributions_add_up_to_the_difference_from_average_genes(annotator, ranked):
    explainer = Explainer(annotator, TEXTS)
    ids = torch.from_numpy(ranked[0].astype(np.int64))[None]
    tower = annotator.model.cell_model
    embeds = tower.embeddings.word_embeddings(ids).detach()
    embeds[0, 1:] = tower.embeddings.word_embeddings.weight[2:-1].mean(dim=0)
    with torch.no_grad():
        average = annotator.model.project_cells(tower(inputs_embeds=embeds, pooled_only=True).pooler_output)[0]
    for label in range(3):
        expected = explainer.match(ranked[0], label) - float(average @ explainer.text_embeds[label])
        assert explainer(ranked[0], label).sum() == pytest.approx(expected, abs=0.1 * abs(expected) + 1e-3)


def test_the_match_is_the_output_of_the_model(annotator, cells, ranked):
    batch = annotator.processor(cells=cells[0], text=[*TEXTS.values()], return_tensors="pt")
    with torch.no_grad():
        out = annotator.model(**batch, return_matching=True, return_dict=True)
    cosines = [Explainer(annotator, TEXTS).match(ranked[0], label) for label in range(3)]
    odds = [Explainer(annotator, TEXTS, "attention").match(ranked[0], label) for label in range(3)]
    similar, (no, yes) = out.logits_per_cell[0] * annotator.model.config.temperature, out.matching_logits[0].T
    np.testing.assert_allclose(cosines, similar.numpy(), atol=1e-5)
    np.testing.assert_allclose(odds, (yes - no).numpy(), atol=1e-4)


def test_several_texts_of_a_label_count_for_the_similarity_and_the_first_for_the_matching(annotator, ranked):
    several = TEXTS | {"nk": ["a natural killer", "nk", "t cell"]}
    by_gradient, by_attention = (Explainer(annotator, several, method) for method in ("gradient", "attention"))
    for label in range(3):
        assert by_attention.match(ranked[0], label) == Explainer(annotator, TEXTS, "attention").match(ranked[0], label)
    mean = annotator.embed_texts([several["nk"]])[0]
    np.testing.assert_allclose(by_gradient.text_embeds[1], mean, atol=1e-6)
    assert by_gradient.match(ranked[0], 1) != pytest.approx(Explainer(annotator, TEXTS).match(ranked[0], 1), abs=1e-6)


@pytest.mark.long
@pytest.mark.parametrize("method", ["gradient", "attention"])
def test_real_matches_fall_without_the_genes_that_drive_them(shared, method):
    """Leaves out the genes that contribute most, and as many whose contribution is closest to 0."""
    annotator = LangCellAnnotator.from_pretrained("langcell-mini", device="cpu")
    adata = ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[::80]
    explainer = Explainer(annotator, describe(["B cell"]), method)
    ranked = annotator.processor.feature_extractor.rank(adata)
    falls = []
    for cell in range(len(ranked)):
        genes = ranked[cell]
        order = np.argsort(-explainer(genes, 0))
        few = len(order) // 20
        idle = np.argsort(np.abs(explainer(genes, 0)))[:few]
        match = explainer.match(genes, 0)
        falls.append([match - explainer.match(np.delete(genes, 1 + out), 0) for out in (order[:few], idle)])
    driving, others = np.mean(falls, axis=0)
    assert driving > 3 * abs(others)


def test_the_model_is_not_changed(annotator, ranked):
    before = annotator.model.text_model.config._attn_implementation
    Explainer(annotator, TEXTS, "attention")(ranked[0], 0)
    assert annotator.model.text_model.config._attn_implementation == before
    assert all(parameter.grad is None for parameter in annotator.model.parameters())


def test_the_table_by_label(annotator, cells):
    found = explain(annotator, cells, LABELS, cells_per_label=3)
    annotator.annotate(cells, LABELS)
    sizes = cells.obs["langcell_cell_type"].value_counts()
    assert list(dict.fromkeys(found["label"])) == [label for label in LABELS if label in sizes]
    for label, genes in found.groupby("label"):
        assert (genes["cells"] == min(3, sizes[label])).all()
        assert genes["contribution"].is_monotonic_decreasing
        assert genes["cells_with_gene"].between(1, genes["cells"].iloc[0]).all()
        assert genes["ensembl_id"].is_unique
    symbols = dict(zip(GENES, SYMBOLS, strict=True))
    assert found["gene"].tolist() == [symbols[gene] for gene in found["ensembl_id"]]
    pd.testing.assert_frame_equal(found, explain(annotator, cells, LABELS, cells_per_label=3))
    one = cells[cells.obs["langcell_cell_type"] == found["label"][0]][:1].copy()
    (ranked,) = annotator.processor.feature_extractor.stream(one)
    alone = explain(annotator, one, LABELS).set_index("ensembl_id")["contribution"]
    by_hand = Explainer(annotator, annotator.scorer(LABELS).descriptions)(ranked[0], LABELS.index(found["label"][0]))
    np.testing.assert_allclose(alone[[GENES[gene - 2] for gene in ranked[0][1:]]], by_hand, atol=1e-5)


MARKED = {
    "B cell": {"markers": [SYMBOLS[0], SYMBOLS[1]], "absent": [SYMBOLS[2]]},
    "monocyte": {"markers": [SYMBOLS[3], "GENE39"]},
}


def test_named_genes_have_their_places(annotator, cells, monkeypatch):
    monkeypatch.setattr(annotator.model.config, "marker_weight", 3.0)
    chosen = cells[:, ~cells.var_names.isin(["GENE39", GENES[38]])].copy()
    found = explain(annotator, chosen, MARKED, cells_per_label=1000)
    best = annotator.annotate(chosen.copy(), MARKED).obs["langcell_cell_type"]
    named = {"B cell": {"marker": SYMBOLS[:2], "absent": [SYMBOLS[2]]}, "monocyte": {"marker": [SYMBOLS[3], "GENE39"]}}
    for label, table in found.groupby("label", sort=False):
        for kind in ("marker", "absent"):
            assert sorted(table.loc[table["named"] == kind, "gene"]) == sorted(named[label].get(kind, []))
        ids = {gene: annotator.processor.feature_extractor.genes.id_of(gene) for gene in table["gene"]}
        rows = np.flatnonzero(best == label)
        for gene in table[table["named"] != ""].itertuples():
            options = {"places_of": [ids[gene.gene]], "empty_cells": "mark"}
            places = annotator.processor.feature_extractor.rank(chosen[rows], **options).places[:, 0]
            assert gene.place == pytest.approx(places.mean(), nan_ok=True)
            assert gene.cells_with_gene == (places > 0).sum()
            assert np.isnan(gene.place) == (gene.gene == "GENE39"), "it was not measured"
        assert table.loc[table["named"] == "", ["place", "usual_place"]].isna().all(axis=None)


def test_an_earlier_annotation_is_explained_with_the_genes_of_its_record(annotator, cells, monkeypatch):
    monkeypatch.setattr(annotator.model.config, "marker_weight", 3.0)
    annotated = annotator.annotate(cells.copy(), MARKED)
    assert annotated.uns["langcell"]["markers"].tolist() == [" ".join(SYMBOLS[:2]), f"{SYMBOLS[3]} GENE39"]
    assert annotated.uns["langcell"]["absent"].tolist() == [SYMBOLS[2], ""]
    found = explain_annotated(annotator, cells, annotated, cells_per_label=1000)
    expected = explain(annotator, cells, MARKED, cells_per_label=1000)
    pd.testing.assert_frame_equal(found, expected)


def test_annotated_cells_need_no_labels_again(annotator, cells):
    """Those that they have are explained, read from the array that the annotation read."""
    labels = {"mine": "cell type : b", "yours": "a natural killer"}
    expected = explain(annotator, cells.copy(), labels)
    cells.layers["counts"] = cells.X
    cells.X = -cells.X
    annotated = annotator.annotate(cells, labels, layer="counts")
    pd.testing.assert_frame_equal(explain(annotator, annotated), expected)
    pd.testing.assert_frame_equal(explain(annotator, annotated, layer=None, counts="auto"), expected)
    changed = explain(annotator, annotated, ["B cell", "monocyte"], layer="counts")
    assert {*changed["label"]} <= {"B cell", "monocyte"}


def test_the_annotation_of_another_checkpoint_is_not_explained(annotator, cells):
    annotated = annotator.annotate(cells, {"mine": "cell type : b", "yours": "a natural killer"})
    annotated.uns["langcell"]["checkpoint"] = "another"
    assert "mine" not in set(explain(annotator, annotated)["label"])


def test_cells_without_known_genes_are_skipped(annotator, cells):
    cells.X = cells.X.toarray()
    cells.X[0] = 0
    assert (
        explain(annotator, cells, LABELS)["cells"].groupby(explain(annotator, cells, LABELS)["label"]).first().sum()
        == 11
    )


def test_the_method_of_the_annotator_is_explain(annotator, cells):
    options = {"method": "attention", "cells_per_label": 1, "seed": 3}
    found = annotator.explain(cells, LABELS, **options)
    pd.testing.assert_frame_equal(found, explain(annotator, cells, LABELS, **options))


def test_labels_that_are_not_explained_are_logged(annotator, cells, caplog, monkeypatch):
    annotated = annotator.annotate(cells.copy(), LABELS)
    labels = [LABELS[2]] * (cells.n_obs - 1) + [LABELS[1]]
    annotated.obs["langcell_cell_type"] = pd.Categorical(labels, LABELS)
    monkeypatch.setattr("modeling_langcell.annotation.explain._MOST_LABELS", 1)
    with caplog.at_level("INFO", logger="modeling_langcell.annotation.explain"):
        assert set(explain_annotated(annotator, cells, annotated)["label"]) == {LABELS[2]}
        annotated.uns["langcell"]["prototype_weight"] = 0.5
        assert explain_annotated(annotator, cells, annotated) is None
    assert "for the 1 most frequent of 2 labels" in caplog.messages[0]
    assert "not scored by their descriptions alone" in caplog.messages[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"method": "shap"}, "not one of gradient, attention"), ({"cells_per_label": 0}, "not a number of cells")],
)
def test_bad_options_are_refused(annotator, cells, options, message):
    with pytest.raises(InputError, match=message):
        explain(annotator, cells, LABELS, **options)


def test_options_of_others_are_refused_before_any_work(annotator, cells, monkeypatch):
    monkeypatch.setattr(AnnotationRun, "annotate", lambda *_: pytest.fail("cells were annotated"))
    with pytest.raises(TypeError, match="alpha"):
        explain(annotator, cells, LABELS, alpha=1.0)


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["explain", *map(str, arguments)])

    @pytest.fixture
    def file(self, cells, tmp_path):
        cells.write_h5ad(tmp_path / "cells.h5ad")
        return tmp_path / "cells.h5ad"

    def test_writes_table_and_figure(self, file, tiny_checkpoint, tmp_path):
        out, figure = tmp_path / "genes.tsv", tmp_path / "genes.png"
        labels = ";".join(LABELS)
        result = self.run(file, "--labels", labels, "--model", tiny_checkpoint, "--out", out, "--figure", figure)
        assert result.exit_code == 0, result.output
        table = pd.read_csv(out, sep="\t")
        assert f"{table['label'][0]} ({table['cells'][0]} cells): {table['gene'][0]}, " in result.stdout
        assert figure.read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize("bad", [["--method", "shap"], ["--figure", "genes.doc"], ["--ontology-root", "nowhere"]])
    def test_bad_input_is_one_message(self, file, tiny_checkpoint, tmp_path, bad):
        named = [] if "--ontology-root" in bad else ["--labels", "B cell;monocyte"]
        result = self.run(file, *named, "--model", tiny_checkpoint, "--out", tmp_path / "genes.tsv", *bad)
        assert result.exit_code == 2
        assert "Error: " in result.output or "Invalid value for '--method'" in result.output
        assert not (tmp_path / "genes.tsv").exists()
