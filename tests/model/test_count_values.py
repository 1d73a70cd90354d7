# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The kind of values is told from the values, and the array that is read by what it holds."""

import math

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.model.count_values import ValueKind, noted_base, recognise

N_GENES = 200
GENES = [f"GENE{number}" for number in range(N_GENES)]


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 2, (40, 1))
    return rng.poisson(rng.gamma(0.4, 3, N_GENES) * depth).astype(np.float32)


@pytest.fixture(scope="module")
def extractor():
    return LangCellFeatureExtractor(
        {"ensembl_ids": [f"ENSG{i:011d}" for i in range(N_GENES)], "medians": [1.0] * N_GENES, "names": GENES}
    )


def scaled(counts: np.ndarray, total: float = 1e4) -> np.ndarray:
    return counts / counts.sum(axis=1, keepdims=True) * total


def corrected(counts: np.ndarray) -> np.ndarray:
    """As SoupX takes a share of the mean profile from each cell."""
    background = counts.sum(axis=0) / counts.sum()
    return np.maximum(counts - 0.05 * counts.sum(axis=1, keepdims=True) * background, 0).astype(np.float32)


def test_kinds_are_recognised(counts):
    def kind(values: np.ndarray, noted: float | None = None) -> ValueKind | None:
        return recognise(sp.csr_matrix(values.astype(np.float32)), noted)

    assert kind(counts) == ValueKind("raw")
    for total in (1e4, 1e6, 700):
        assert kind(scaled(counts, total)) == ValueKind("normalized")
    for base in (math.e, 2.0, 10.0):
        assert kind(np.log1p(scaled(counts)) / math.log(base)) == ValueKind("log1p", base)
        few = np.log1p(scaled(counts))[:, ::3] / math.log(base)  # Variable genes alone: totals tell nothing.
        assert kind(few) == ValueKind("log1p", base)
        assert kind(np.log1p(scaled(corrected(counts))) / math.log(base)) == ValueKind("log1p", base)
    deep = counts.copy()
    deep[:, 0] += 40
    assert kind(corrected(deep)) == ValueKind("corrected"), "too large for logarithms"
    for wrong in (scaled(deep), np.log1p(scaled(counts))):
        assert kind(50 * wrong / (wrong.std(axis=0) + 1e-9)) is None, "scaled by gene"
    for roots in (np.sqrt(deep), np.sqrt(counts), np.sqrt(scaled(deep))):
        assert kind(roots) is None
    filtered = scaled(counts, 1e6) * np.linspace(0.1, 3, counts.shape[1])
    assert kind(scaled(filtered, 1e6)) == ValueKind("normalized"), "TPM"
    half = counts.copy()
    half[:, :20] += 0.37
    assert kind(half) == ValueKind("corrected"), "many whole numbers, as of expected counts"
    assert kind(np.log1p(corrected(counts))) is None
    assert kind(np.log1p(corrected(counts)), noted=2.0) == ValueKind("log1p", 2.0)
    assert kind(counts - 1) is None
    one_wrong = counts.copy()
    one_wrong[3, 5] = 0.5
    assert kind(one_wrong) is None, "a fault among counts"


def test_the_noted_base():
    assert noted_base({}) is None
    assert noted_base({"log1p": {"base": None}}) == math.e
    assert noted_base({"log1p": {}}) == math.e
    assert noted_base({"log1p": {"base": np.float64(2)}}) == 2
    assert noted_base({"log1p": "yes"}) is None
    assert noted_base({"log1p": {"base": "two"}}) is None


def anndata_of(values: np.ndarray, **parts) -> ad.AnnData:
    adata = ad.AnnData(values, **parts)
    adata.var_names = GENES
    return adata


@pytest.mark.parametrize("counts_option", ["auto", "log1p"])
@pytest.mark.parametrize("base", [math.e, 2.0, 10.0])
def test_logarithms_to_any_base_give_the_ids_of_the_counts(extractor, counts, base, counts_option):
    expected = extractor.rank(counts, gene_ids=GENES)
    logs = (np.log1p(scaled(counts)) / math.log(base)).astype(np.float32)
    found = extractor.rank(sp.csr_matrix(logs), gene_ids=GENES, counts=counts_option)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert extractor.chunks(logs, gene_ids=GENES).kind == ValueKind("log1p", base)


def test_a_stated_kind_that_the_values_contradict_is_refused(extractor, counts):
    logs = np.log1p(scaled(counts))
    for stated in ("corrected", "normalized"):
        with pytest.raises(InputError, match=r"^The values of the matrix are logarithms: pass counts='log1p'\."):
            extractor.rank(logs, gene_ids=GENES, counts=stated)
    small = scaled(counts, 20)
    with pytest.raises(InputError, match=r"^The values of the matrix are no logarithms: pass counts='normalized'\."):
        extractor.rank(small, gene_ids=GENES, counts="log1p")


def test_uncertain_values_are_refused_with_both_readings(extractor, counts):
    values = np.log1p(corrected(counts))
    with pytest.raises(
        InputError, match=r"corrected \(SoupX, DecontX\), pass counts='corrected'\. For logarithms, pass"
    ):
        extractor.rank(values, gene_ids=GENES)
    as_told = extractor.rank(values, gene_ids=GENES, counts="corrected")
    assert len(as_told) == len(counts)
    order = np.argsort(-values[0], kind="stable")
    assert as_told[0][1:].tolist() == [2 + gene for gene in order if values[0, gene] > 0]


@pytest.mark.parametrize("form", [np.asarray, sp.csr_matrix, sp.csc_matrix])
def test_counts_are_found_where_they_are(extractor, counts, form, tmp_path):
    expected = extractor.rank(counts, gene_ids=GENES).token_ids.tolist()
    logs = np.log1p(scaled(counts)).astype(np.float32)
    standardised = ((logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1)).astype(np.float32)
    given, of_logs = form(counts), form(logs)

    def array_of(adata: ad.AnnData) -> str:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        for cells in (adata, backed):
            chunks = extractor.chunks(cells)
            assert [ids for chunk in chunks for ids in chunk.token_ids.tolist()] == expected
        backed.file.close()
        return chunks.label

    with_layer = anndata_of(of_logs, layers={"mask": form((counts > 0).astype(np.float32)), "counts": given})
    assert array_of(with_layer) == "layers['counts']"
    with_raw = anndata_of(of_logs)
    with_raw.raw = anndata_of(given)
    assert array_of(with_raw) == "raw.X"
    tutorial = anndata_of(standardised)
    tutorial.raw = anndata_of(of_logs)
    assert array_of(tutorial) == "raw.X", "logarithms of all genes, where X is scaled"
    velocyto = anndata_of(of_logs, layers={"ambiguous": form(np.rint(counts / 9)), "matrix": given})
    assert array_of(velocyto) == "layers['matrix']"
    assert array_of(anndata_of(given, layers={"counts": form(counts + 1)})) == "X", "X comes first"


def test_variable_genes_in_x_give_way_to_all_genes_in_raw(extractor, counts):
    logs = np.log1p(scaled(counts)).astype(np.float32)
    whole = anndata_of(logs)
    few = whole[:, :50].copy()
    few.raw = whole
    assert extractor.chunks(few).label == "raw.X"
    assert extractor.chunks(few, layer=None, use_raw=False, counts="log1p").label == "X", "as it was said"


def test_square_roots_are_refused(extractor, counts):
    for values in (np.sqrt(counts), np.sqrt(scaled(counts))):
        for stated in ("auto", "corrected", "normalized", "log1p"):
            with pytest.raises(InputError, match=r"square roots.*go back to the counts"):
                extractor.rank(values, gene_ids=GENES, counts=stated)


@pytest.mark.parametrize("at", [8, 32, 64, 72])
@pytest.mark.parametrize("order", [1, -1])
def test_values_of_several_kinds_are_refused(extractor, counts, at, order):
    """Studies that were joined before all of them had been brought to one kind."""
    many = np.tile(counts, (3, 1))[:96]
    natural, binary = np.log1p(scaled(many)), np.log1p(scaled(many)) / math.log(2)
    for kinds in ((natural, binary), (natural, many), (binary, scaled(many))):
        first, second = kinds[::order]
        joined = np.concatenate([first[:at], second[at:]])
        with pytest.raises(InputError, match="Bring all cells to one kind"):
            list(extractor.stream(joined, gene_ids=GENES, chunk_size=8))


class TestWhichArray:
    """X, raw or a layer of one AnnData: the counts' own ids, whatever else lies beside them."""

    @pytest.fixture
    def expected(self, extractor, counts):
        return extractor.rank(counts, gene_ids=GENES).token_ids.tolist()

    def test_logarithms_of_all_genes_come_before_counts_of_a_few(self, extractor, counts, expected):
        logs = np.log1p(scaled(counts)).astype(np.float32)
        few = anndata_of(logs, layers={"counts": counts})
        few.raw = anndata_of(logs)
        few = few[:, ::4].copy()  # As highly variable genes are taken.
        assert extractor.rank(few).token_ids.tolist() == expected
        raw_of_few = anndata_of(logs)
        raw_of_few.raw = anndata_of(counts)[:, ::4].copy()
        assert extractor.rank(raw_of_few).token_ids.tolist() == expected

    def test_a_mask_comes_last(self, extractor, counts, expected):
        mask, logs = (counts > 0).astype(np.float32), np.log1p(scaled(counts)).astype(np.float32)
        assert extractor.rank(anndata_of(logs, layers={"counts": mask})).token_ids.tolist() == expected
        assert extractor.rank(anndata_of(mask, layers={"counts": counts})).token_ids.tolist() == expected
        in_raw = anndata_of(mask)
        in_raw.raw = anndata_of(logs)
        assert extractor.rank(in_raw).token_ids.tolist() == expected

    def test_readable_values_of_a_layer_are_advised(self, extractor, counts, expected):
        logs = np.log1p(scaled(counts)).astype(np.float32)
        scaled_by_gene = (logs - logs.mean(axis=0)) / (logs.std(axis=0) + 1e-9)
        for name, values, stated in (("logcounts", logs, "log1p"), ("cpm", scaled(counts, 1e6), "normalized")):
            adata = anndata_of(scaled_by_gene, layers={name: values})
            with pytest.raises(InputError, match=f"pass layer='{name}', counts='{stated}'"):
                extractor.rank(adata)
            assert extractor.rank(adata, layer=name, counts=stated).token_ids.tolist() == expected


def test_a_stale_note_of_a_logarithm_does_not_overrule_what_is_said(extractor, counts):
    low = anndata_of(corrected(counts))
    low.uns["log1p"] = {"base": None}  # As `sc.pp.log1p(adata, layer="log")` leaves it.
    found = extractor.rank(low, counts="corrected").token_ids.tolist()
    assert found == extractor.rank(low.X, gene_ids=GENES, counts="corrected").token_ids.tolist()


def test_whole_numbers_are_never_logarithms(extractor, counts):
    with pytest.raises(InputError, match=r"only whole numbers, so not logarithms .* Pass counts='raw' for counts"):
        extractor.rank(counts * 40, gene_ids=GENES, counts="log1p")
