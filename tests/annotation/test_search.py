# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Search: exact neighbours, nearly exact ones from the index, cells by text and texts by cell, and the command."""

import json
import sys

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation import query
from modeling_langcell.annotation import search as searching
from modeling_langcell.annotation.search import Neighbours, nearest_texts, search
from modeling_langcell.cli.main import app
from modeling_langcell.ontology import find_term


def unit(rows, width=32, seed=0):
    drawn = np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def annotator(tiny_checkpoint):
    return LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")


@pytest.fixture
def embedded(annotator, cells):
    return annotator.embed(cells)


class TestNeighbours:
    @pytest.mark.parametrize("block", [2**26, 700])
    def test_they_are_the_most_similar_by_brute_force(self, block, monkeypatch):
        monkeypatch.setattr(searching, "_BLOCK", block)
        embeds, queries = unit(200), unit(7, seed=1)
        embeds[13] = np.nan
        places, cosines = Neighbours(embeds)(queries, 5)
        similarities = np.nan_to_num(queries @ embeds.T, nan=-2)
        np.testing.assert_array_equal(places, np.argsort(-similarities, axis=1)[:, :5])
        np.testing.assert_allclose(cosines, -np.sort(-similarities, axis=1)[:, :5], atol=1e-5)

    def test_all_are_returned_where_there_are_fewer(self):
        places, _ = Neighbours(unit(3))(unit(1), 10)
        assert sorted(places[0]) == [0, 1, 2]

    @pytest.mark.long
    def test_the_index_finds_nearly_all_neighbours(self):
        pytest.importorskip("usearch")
        embeds, queries = unit(20_000), unit(50, seed=1)
        embeds[7] = np.nan
        exact, _ = Neighbours(embeds)(queries, 10)
        found, cosines = Neighbours(embeds, exact=False)(queries, 10)
        recall = np.mean([len({*a} & {*b}) / 10 for a, b in zip(exact, found, strict=True)])
        assert recall > 0.9
        np.testing.assert_allclose(cosines[:, 0], (queries * embeds[found[:, 0]]).sum(axis=1), atol=1e-5)
        assert (np.diff(cosines, axis=1) <= 1e-6).all()

    @pytest.mark.long
    def test_the_index_finds_cells_by_texts(self):
        """Texts lie apart from cells, which lie close together: few of a cell's neighbours are as near to a text."""
        pytest.importorskip("usearch")
        embeds = unit(20_000) + 3 * unit(1, seed=2)
        embeds /= np.linalg.norm(embeds, axis=1, keepdims=True)
        queries = unit(50, seed=1)
        exact, _ = Neighbours(embeds)(queries, 20)
        found, _ = Neighbours(embeds, exact=False)(queries, 20)
        assert np.mean([len({*a} & {*b}) / 20 for a, b in zip(exact, found, strict=True)]) > 0.9

    def test_the_index_needs_an_extra(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "usearch.index", None)
        Neighbours(unit(10))
        with pytest.raises(InputError, match=r"modeling-langcell\[search\]"):
            Neighbours(unit(10), exact=False)


def test_search_finds_the_most_similar_cells(annotator, embedded):
    found = search(annotator, embedded, "a lymphocyte that is nk", 4)
    cosines = embedded.obsm["X_langcell"] @ annotator.embed_texts(["a lymphocyte that is nk"])[0]
    assert found["row"].tolist() == np.argsort(-cosines)[:4].tolist()
    assert found.index.tolist() == embedded.obs_names[found["row"]].tolist()
    np.testing.assert_allclose(found["similarity"], np.sort(cosines)[::-1][:4], atol=1e-5)


def test_the_method_of_the_annotator_is_search(annotator, embedded):
    expected = search(annotator, embedded, "a lymphocyte", 3)
    pd.testing.assert_frame_equal(annotator.search(embedded, "a lymphocyte", top_k=3), expected)
    assert len(annotator.search(embedded, "a lymphocyte")) == embedded.n_obs, "20 cells by default"


@pytest.mark.parametrize("name", ["NK cells", "CL:0000623"])
def test_a_term_is_searched_for_by_its_description(annotator, embedded, name):
    expected = search(annotator, embedded, find_term("natural killer cell").description)
    pd.testing.assert_frame_equal(search(annotator, embedded, name), expected)


def test_a_term_is_worded_by_the_checkpoints_templates(annotator, embedded, monkeypatch):
    monkeypatch.setitem(vars(annotator.processor), "prompt_templates", ("a {name}", "{synonym}"))
    both = annotator.embed_texts([("a natural killer cell", "NK cell")])[0]
    found = search(annotator, embedded, "NK cells")
    np.testing.assert_allclose(found["similarity"], embedded.obsm["X_langcell"][found["row"]] @ both, atol=1e-5)
    assert nearest_texts(annotator, embedded[:1], top_k=2)["similarity"].is_monotonic_decreasing
    (nearest,) = nearest_texts(annotator, embedded[:1], ["NK cells"], 1)["similarity"]
    np.testing.assert_allclose(nearest, embedded.obsm["X_langcell"][0] @ both, atol=1e-5)


def test_nearest_texts_of_each_cell(annotator, embedded):
    embedded.obsm["X_langcell"][2] = np.nan
    texts = {"b": "cell type : b", "t": "cell type : t", "nk": "a natural killer"}
    found = nearest_texts(annotator, embedded, texts, 2)
    cosines = embedded.obsm["X_langcell"] @ annotator.embed_texts(texts.values()).T
    for cell, row in zip(embedded.obs_names, cosines, strict=True):
        if np.isnan(row[0]):
            assert cell not in found.index.get_level_values("cell")
            continue
        order = np.argsort(-row)[:2]
        assert found.loc[cell, "label"].tolist() == [list(texts)[place] for place in order]
        assert found.loc[cell].index.tolist() == [1, 2]


def test_nearest_texts_are_all_terms_by_default(annotator, embedded):
    found = nearest_texts(annotator, embedded[:2], top_k=1)
    assert find_term(found["label"].iloc[0]).name == found["label"].iloc[0]


def test_bad_input_is_refused(annotator, embedded, cells):
    with pytest.raises(InputError, match="the text is empty"):
        search(annotator, embedded, " ")
    with pytest.raises(InputError, match="top_k=0 is not a number of results"):
        search(annotator, embedded, "a lymphocyte", 0)
    with pytest.raises(InputError, match="not a term of an ontology"):
        search(annotator, embedded, "CL:1")
    embedded.uns["langcell"]["checkpoint"] = "another"
    with pytest.raises(InputError, match="embedded by another, not by"):
        search(annotator, embedded, "a lymphocyte")
    del cells.obsm["X_langcell"]
    with pytest.raises(InputError, match="embed or annotate them first"):
        search(annotator, cells, "a lymphocyte")


class TestCommand:
    def run(self, *arguments):
        return CliRunner().invoke(app, ["search", *map(str, arguments)])

    def test_embeds_cells_that_are_not_embedded(self, annotator, cells, tiny_checkpoint, tmp_path):
        cells.write_h5ad(tmp_path / "raw.h5ad")
        annotator.embed(cells).write_h5ad(tmp_path / "embedded.h5ad")
        said = [
            self.run(
                tmp_path / name, "NK cell", "--model", tiny_checkpoint, "--top", 3, "--out", tmp_path / "found.tsv"
            )
            for name in ("raw.h5ad", "embedded.h5ad")
        ]
        assert said[0].exit_code == 0, said[0].output
        assert said[0].stdout == said[1].stdout
        table = pd.read_csv(tmp_path / "found.tsv", sep="\t")
        assert table.columns.tolist() == ["cell", "row", "similarity"]
        assert len(table) == 3
        assert table["cell"][0] in said[0].stdout

    def test_bad_input_is_one_message(self, cells, tiny_checkpoint, tmp_path):
        cells.write_h5ad(tmp_path / "raw.h5ad")
        result = self.run(tmp_path / "raw.h5ad", "CL:1", "--model", tiny_checkpoint, "--out", tmp_path / "found.tsv")
        assert result.exit_code == 2
        assert "Error: 'CL:1' is not a term" in result.output
        assert not (tmp_path / "found.tsv").exists()


class TestGenes:
    """Texts that name genes."""

    @pytest.mark.parametrize("gene", ["GENE3", "GENE17", "GENE40"])
    def test_cells_that_express_it_come_first(self, annotator, embedded, gene):
        found = annotator.search(embedded, f"cells that express {gene}", 5, marker_weight=50)
        extractor = annotator.processor.feature_extractor
        watched = [extractor.genes.id_of(gene)]
        places = next(iter(annotator.chunks(embedded, places_of=watched))).places[:, 0]
        assert (places > 0).sum() >= 5
        assert places[found["row"]].min() > 0
        assert (np.diff(found["evidence"]) < 0.01).all()

    def test_absent_genes_come_last(self, annotator, embedded):
        express, lack = (
            annotator.search(embedded, f"cells that {verb} GENE3", 12, marker_weight=50).set_index("row").sort_index()
            for verb in ("express", "lack")
        )
        further = -4 * (1 / 3) ** 0.75 / 5  # Four genes that no cell expresses are counted with the one that is named.
        np.testing.assert_allclose(express["evidence"] - further, further - lack["evidence"], atol=1e-6)
        assert (express["agreeing"] + lack["agreeing"] == 1).all()

    def test_cells_that_express_more_of_the_named_genes_come_first_whatever_the_weight(self, annotator, embedded):
        found = annotator.search(embedded, "with GENE3, GENE17 and GENE40", 12, marker_weight=0.01)
        watched = [annotator.processor.feature_extractor.genes.id_of(gene) for gene in ("GENE3", "GENE17", "GENE40")]
        expressed = (next(iter(annotator.chunks(embedded, places_of=watched))).places > 0).mean(axis=1)
        np.testing.assert_allclose(found["agreeing"], expressed[found["row"]])
        assert (np.diff(found["agreeing"]) <= 0).all()
        assert found["agreeing"].nunique() > 1

    def test_without_weight_the_text_alone_counts(self, annotator, embedded):
        expected = annotator.search(embedded, "cells that express GENE3", 5)
        assert list(expected.columns) == ["row", "similarity"]
        pd.testing.assert_frame_equal(
            annotator.search(embedded, "cells that express GENE3", 5, marker_weight=0), expected
        )

    def test_cells_are_read_as_they_were_embedded(self, annotator, cells):
        plain = annotator.search(annotator.embed(cells.copy()), "with GENE3", 5, marker_weight=3)
        cells.layers["counts 'raw'"], cells.X = cells.X.copy(), cells.X * 0.5
        layered = annotator.embed(cells, layer="counts 'raw'")
        pd.testing.assert_frame_equal(annotator.search(layered, "with GENE3", 5, marker_weight=3), plain)

    def test_on_the_command_line(self, embedded, tiny_checkpoint, tmp_path):
        embedded.write_h5ad(tmp_path / "cells.h5ad")
        arguments = [
            "search",
            str(tmp_path / "cells.h5ad"),
            "with GENE3",
            "--top",
            "3",
            "--model",
            str(tiny_checkpoint),
        ]
        result = CliRunner().invoke(app, [*arguments, "--marker-weight", "3"])
        assert result.exit_code == 0, result.output
        head, *lines = result.stdout.splitlines()
        assert head.split() == ["similarity", "evidence", "agreeing", "cell"]
        assert len(lines) == 3
        assert {len(line.split()) for line in lines} == {4}


class TestScoresOfRealCells:
    """langcell-mini knows other types, so that it can tell how probably a text describes a cell."""

    @pytest.fixture(scope="class")
    def mini(self):
        return LangCellAnnotator.from_pretrained("langcell-mini")

    @pytest.fixture(scope="class")
    def blood(self, mini, shared):
        cells = ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:300].copy()
        return mini.annotate(cells, ["B cell", "monocyte", "T cell", "NK cell"], alpha=1)

    @pytest.mark.parametrize("text", ["B cell", "cells that make antibodies", "cells that express MS4A1 and CD79A"])
    def test_a_fit_of_a_half_separates_cells(self, mini, blood, text):
        found = mini.score_cells(blood, text)
        is_b_cell = (blood.obs["cell_type"] == "B cell").to_numpy()
        assert found.index.equals(blood.obs_names)
        assert found["fit"].between(0, 1).all()
        assert found["fit"][is_b_cell].mean() > 1.8 * found["fit"][~is_b_cell].mean()
        if text == "B cell":
            assert ((found["fit"] >= 0.5) == is_b_cell).mean() > 0.95
        np.testing.assert_allclose(blood.obs["langcell_search"], found["fit"], atol=1e-6)

    def test_what_no_blood_cell_is_fits_none(self, mini, blood):
        assert (mini.score_cells(blood, "hepatocyte")["fit"] < 0.5).mean() > 0.97

    @pytest.mark.parametrize("text", ["NK cells", "cells that kill virus-infected cells"])
    def test_search_shows_the_same_scores_and_the_types(self, mini, blood, text):
        found, of_all = mini.search(blood, text, 5), mini.score_cells(blood, text)
        for column in set(found) - {"row", "label"}:
            np.testing.assert_allclose(found[column], of_all.loc[found.index, column], atol=1e-5)
        assert found["label"].tolist() == blood.obs["langcell_answer"].astype(str).loc[found.index].tolist()
        assert [*found][:2] == ["row", "label"]

    def test_cells_without_an_embedding_have_no_score(self, mini, blood):
        some = blood[:20].copy()
        some.obsm["X_langcell"][3] = np.nan
        found = mini.score_cells(some, "cells that make antibodies")
        assert found.isna().any(axis=1).tolist() == [number == 3 for number in range(20)]

    def test_many_cells_are_compared_in_blocks(self, mini, blood, monkeypatch):
        expected = mini.score_cells(blood, "cells that make antibodies")
        monkeypatch.setattr(query, "_CELLS", 77)
        pd.testing.assert_frame_equal(mini.score_cells(blood, "cells that make antibodies"), expected)

    def test_scored_cells_are_written(self, blood, tmp_path):
        blood.write_h5ad(tmp_path / "cells.h5ad")
        arguments = ["search", str(tmp_path / "cells.h5ad"), "B cell", "--top", "2"]
        result = CliRunner().invoke(app, [*arguments, "--scored", str(tmp_path / "scored.h5ad")])
        assert result.exit_code == 0, result.output
        head, *lines = result.stdout.splitlines()
        assert head.split() == ["similarity", "evidence", "agreeing", "fit", "cell"]
        assert lines[0].endswith("  B cell")
        assert lines[-1] == f"Scored: {tmp_path / 'scored.h5ad'}"
        scores = ad.read_h5ad(tmp_path / "scored.h5ad").obs["langcell_search"]
        for line in lines[:2]:
            assert scores[line.split()[4]] == pytest.approx(float(line.split()[3]), abs=1e-3)
        as_json = CliRunner().invoke(app, [*arguments, "--json"])
        assert [one["label"] for one in json.loads(as_json.stdout)["found"]] == ["B cell", "B cell"]
