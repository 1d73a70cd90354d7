# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checks of the input: no caution for real cells as they are, and the right one for each way to spoil them."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.quality import ambient_share, examine
from modeling_langcell.annotation.records import describe_error_rate
from tests.support.paths import REPOSITORY

LABELS = ["B cell", "CD14-positive monocyte", "natural killer cell", "CD4-positive, alpha-beta T cell"]


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained(REPOSITORY / "hub_configs" / "langcell-mini")


@pytest.fixture(scope="module")
def blood(shared):
    return ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")


def cautions(annotator, cells, **options) -> str:
    annotated = annotator.annotate(cells.copy(), LABELS, empty_cells="mark", **options)
    return " ".join(map(str, examine(annotator.processor.feature_extractor, cells, annotated).cautions))


def with_ambient(cells: ad.AnnData, share: float) -> sp.csr_matrix:
    """Draws this share of each cell's counts again from the mixture of all cells."""
    rng = np.random.default_rng(0)
    counts = sp.csr_matrix(cells.X).astype(int)
    mixture = np.asarray(counts.sum(axis=0)).ravel() / counts.sum()
    totals = np.asarray(counts.sum(axis=1)).ravel()
    counts.data = rng.binomial(counts.data, 1 - share)
    drawn = np.array([rng.multinomial(round(total * share), mixture) for total in totals])
    return sp.csr_matrix(counts + sp.csr_matrix(drawn)).astype(np.float32)


def test_good_cells_give_no_caution(annotator, blood):
    annotated = annotator.annotate(blood.copy(), LABELS)
    found = examine(annotator.processor.feature_extractor, blood, annotated)
    assert found.cautions == ()
    assert found.cells == blood.n_obs
    assert found.genes == np.median(blood.X.getnnz(axis=1))
    assert found.counts == np.median(np.asarray(blood.X.sum(axis=1)))
    assert found.ambient < 0.1


def test_each_cell_has_its_genes_counts_and_mitochondrial_share(annotator, blood):
    cells = blood.copy()
    annotated = annotator.annotate(cells.copy(), LABELS)
    assert [*examine(annotator.processor.feature_extractor, cells, annotated).per_cell] == ["genes", "counts"]
    names = cells.var_names.to_list()
    most = np.argsort(-np.asarray(cells.X.sum(axis=0)).ravel())[:2]
    for place, name in zip(most, ("MT-CO1", "MT-ND1"), strict=True):
        names[place] = name
    cells.var = pd.DataFrame(index=names)
    found = examine(annotator.processor.feature_extractor, cells, annotated).per_cell
    assert found.index.equals(cells.obs_names)
    counts = cells.X.toarray()
    np.testing.assert_array_equal(found["genes"], (counts > 0).sum(axis=1))
    np.testing.assert_allclose(found["counts"], counts.sum(axis=1))
    np.testing.assert_allclose(found["mitochondrial"], counts[:, most].sum(axis=1) / counts.sum(axis=1), rtol=1e-6)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_the_share_of_ambient_rna_is_estimated(blood, share):
    labels = blood.obs["cell_type"].cat.codes.to_numpy()
    assert ambient_share(sp.csr_matrix(blood.X), labels) < 0.02
    assert 0.6 * share < ambient_share(with_ambient(blood, share), labels) < 1.1 * share


def test_ambient_rna_gives_a_caution_with_the_annotated_labels(annotator, blood):
    soiled = blood.copy()
    soiled.X = with_ambient(blood, 0.4)
    assert "Ambient RNA: about" in cautions(annotator, soiled)


def test_ambient_rna_is_not_estimated_from_one_label(blood):
    assert ambient_share(sp.csr_matrix(blood.X), np.zeros(blood.n_obs, dtype=int)) is None
    assert ambient_share(sp.csr_matrix(blood.X), np.full(blood.n_obs, -1)) is None


def test_low_depth_gives_a_caution(annotator, blood):
    shallow = blood.copy()
    shallow.X.data = np.random.default_rng(0).binomial(blood.X.data.astype(int), 0.05).astype(np.float32)
    assert "Low depth: " in cautions(annotator, shallow)


def test_few_genes_give_a_caution(annotator, blood):
    panel = annotator.annotate(blood[:, :2000].copy(), LABELS)
    assert "not promised" in describe_error_rate(panel.uns["langcell"])
    assert "Few genes: only " in cautions(annotator, blood[:, :2000].copy())


def test_unmatched_genes_give_a_caution(annotator, blood):
    """Most of the counts are in genes with unknown names."""
    renamed = blood.copy()
    often = np.argsort(-np.asarray(blood.X.sum(axis=0)).ravel())[:1000]
    names, ids = (
        renamed.var_names.to_numpy(dtype=object).copy(),
        renamed.var["ensembl_id"].to_numpy(dtype=object).copy(),
    )
    names[often] = ids[often] = [f"contig{number}" for number in range(1000)]
    renamed.var_names, renamed.var["ensembl_id"] = names, ids
    renamed.var["symbol"] = names
    assert "Unmatched genes: the known ones have only " in cautions(annotator, renamed)


@pytest.mark.long
def test_an_unknown_gene_with_many_counts_is_named(annotator, blood):
    """SOD2 has an id since Ensembl 108 that NCBI's table does not know."""
    by_new_ids = blood.copy()
    by_new_ids.var_names = [
        ensembl_id if ensembl_id.startswith("ENSG") else symbol
        for symbol, ensembl_id in zip(blood.var["symbol"], blood.var["ensembl_id"], strict=True)
    ]
    by_new_ids.var = by_new_ids.var[[]]
    assert "Unknown genes with many of the counts: ENSG00000291237 (0.2%). If other" in cautions(annotator, by_new_ids)
    by_new_ids.var_names = ["MT-CO1" if "291237" in name else name for name in by_new_ids.var_names]
    assert "Unknown genes" not in cautions(annotator, by_new_ids), "mitochondrial genes are never known"
    assert "Unknown genes" not in cautions(annotator, blood), "there its symbol is known"


@pytest.mark.long
def test_values_that_are_not_counts_give_a_caution(annotator, blood):
    scaled = blood.copy()
    totals = np.asarray(blood.X.sum(axis=1)).ravel()
    scaled.X = sp.csr_matrix(sp.diags(10_000 / totals) @ blood.X)
    logarithms = scaled.copy()
    logarithms.X.data = np.log1p(logarithms.X.data)
    rounded = scaled.copy()
    rounded.X.data = np.rint(rounded.X.data)
    binary = blood.copy()
    binary.X.data = np.ones_like(binary.X.data)
    with pytest.raises(InputError, match=r"^The values of X are logarithms: pass counts='log1p'\.$"):
        cautions(annotator, logarithms, counts="normalized")
    uncertain = logarithms.copy()
    uncertain.X = sp.csr_matrix(sp.diags(np.linspace(0.7, 1, uncertain.n_obs)) @ uncertain.X)
    caution = "If they are logarithms, say so: counts='log1p'."
    assert caution in cautions(annotator, uncertain, counts="normalized")
    assert "Small values" in cautions(annotator, uncertain, counts="corrected")
    assert "Probably normalised and rounded" in cautions(annotator, rounded)
    assert "Probably no counts" in cautions(annotator, binary)
    assert "Small values" not in cautions(annotator, scaled, counts="normalized")
    assert "Small values" not in cautions(annotator, logarithms, counts="log1p")


def test_cells_unlike_the_candidates_give_a_caution(annotator, shared):
    tumour = ad.read_h5ad(shared / "data" / "validation" / "pdac_moncada_card.h5ad")[::4].copy()
    annotated = annotator.annotate(tumour.copy(), ["B cell", "natural killer cell"], empty_cells="mark")
    found = examine(annotator.processor.feature_extractor, tumour, annotated)
    assert any(str(caution).startswith("Unlike the candidates: ") for caution in found.cautions)


@pytest.mark.long
def test_candidates_that_nobody_named_are_cautioned_of(annotator, blood):
    for how, expected in (({}, (1, 1)), ({"tissue": "blood"}, (0, 1)), ({"labels": LABELS}, (0, 0))):
        annotated = annotator.annotate(blood.copy(), **how)
        found = examine(annotator.processor.feature_extractor, blood, annotated)
        said = [str(caution) for caution in found.cautions]
        starts = ("Tissue: blood, judged by the markers", "Candidates of the catalogue: ")
        assert tuple(sum(one.startswith(start) for one in said) for start in starts) == expected
        promised = "labels" in how
        assert ("not promised" in describe_error_rate(annotated.uns["langcell"])) is not promised
        if not how:
            (tissue,) = (one for one in found.cautions if "{option}" in one.text)
            assert "set --tissue to the right one" in tissue.on_command_line()


@pytest.mark.long
def test_a_sample_of_many_cells_is_examined(annotator, blood):
    many = ad.concat([blood] * 9, index_unique="-")
    many.var = blood.var
    annotated = annotator.annotate(many.copy(), LABELS)
    assert examine(annotator.processor.feature_extractor, many, annotated).cells == 4096
