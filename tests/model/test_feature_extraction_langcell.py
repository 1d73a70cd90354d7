# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The feature extractor: ranks against a simple slow reference, every form of input, gene names, invalid input."""

import json
import threading
from collections.abc import Sequence
from fractions import Fraction
from importlib import import_module

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor, AutoProcessor, DataCollatorWithPadding

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.conversion.published import read_gene_vocabulary
from modeling_langcell.model import ranking
from modeling_langcell.model.count_values import RAW
from modeling_langcell.model.errors import reason_of
from modeling_langcell.model.ranking import RankedCells


def reference(counts, token_ids, medians: dict[int, float], cls: int, max_length: int) -> list[list[int]]:
    """LangCell, section 3.1, gene by gene, exact (medians are decimal numbers); ties go to the lower id."""
    sequences = []
    for row in np.asarray(counts).tolist():
        values: dict[int, Fraction] = {}
        for token_id, count in zip(token_ids, row, strict=True):
            if count > 0 and medians.get(token_id) is not None:
                value = Fraction(count) / Fraction(sum(row)) * 10_000 / Fraction(str(medians[token_id]))
                values[token_id] = values.get(token_id, Fraction(0)) + value
        ranked = sorted(values, key=lambda token_id: (-values[token_id], token_id))
        sequences.append([cls, *ranked][:max_length])
    return sequences


def sequences(ranked: RankedCells) -> list[list[int]]:
    return [ranked[cell].tolist() for cell in range(len(ranked))]


def adata_of(counts, genes, **kwargs) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"cell{number}" for number in range(counts.shape[0])])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=list(genes)), **kwargs)


@pytest.fixture(scope="module")
def extractor(tiny_processor) -> LangCellFeatureExtractor:
    return tiny_processor.feature_extractor


@pytest.fixture
def counts(cells) -> np.ndarray:
    return cells.X.toarray()


@pytest.fixture
def genes(gene_vocabulary) -> list[str]:
    return gene_vocabulary["ensembl_ids"]


@pytest.fixture
def expected(counts, gene_vocabulary, extractor) -> list[list[int]]:
    ids = range(2, 2 + counts.shape[1])
    medians = dict(zip(ids, gene_vocabulary["medians"], strict=True))
    return reference(counts, ids, medians, extractor.cls_token_id, extractor.max_length)


# ---------------------------------------------------------------------- ranks


@st.composite
def matrices_and_vocabularies(draw):
    """Few distinct counts and medians, so that many values tie; genes without a median; unknown genes."""
    n_genes = draw(st.integers(1, 12))
    medians = draw(st.lists(st.sampled_from([None, 0.1, 0.3, 0.5, 1.0, 1.5, 3.0, 7.25]), min_size=n_genes))
    row = st.lists(st.one_of(st.just(0), st.integers(0, 7), st.integers(0, 10**6)), min_size=n_genes, max_size=n_genes)
    counts = np.array(draw(st.lists(row, min_size=1, max_size=6)))
    columns = draw(st.lists(st.integers(0, len(medians) + 1), min_size=n_genes, max_size=n_genes))
    return counts, medians, np.array(columns), draw(st.integers(2, 14)), draw(st.integers(1, 7))


@given(matrices_and_vocabularies(), st.sampled_from([np.int64, np.int32, np.uint32, np.float32, np.float64]))
def test_ranks_are_those_of_the_definition(drawn, dtype):
    counts, medians, columns, max_length, chunk_size = drawn
    names = [f"ENSG{gene}" for gene in range(len(medians) + 2)]  # The last two are unknown.
    extractor = LangCellFeatureExtractor(
        {"ensembl_ids": names[:-2], "medians": medians, "names": names[:-2]}, min_matched_genes=0.0
    )
    ranked = RankedCells.concatenate(
        list(
            extractor.stream(
                sp.csr_matrix(counts.astype(dtype)),
                gene_ids=[names[column] for column in columns],
                empty_cells="mark",
                max_length=max_length,
                chunk_size=chunk_size,
            )
        )
    )
    of_id = dict(enumerate(medians, start=2))
    assert sequences(ranked) == reference(counts, columns + 2, of_id, extractor.cls_token_id, max_length)
    known = np.array([of_id.get(column + 2) is not None for column in columns])
    np.testing.assert_allclose(
        ranked.matched_counts, (counts * known).sum(axis=1) / np.maximum(counts.sum(axis=1), 1), rtol=1e-6
    )


COUNTS = {  # Numbers that the dtype holds exactly; sums of a few differ by more than a tie allows.
    "float32": [0, 1, 2, 3, 7, 65_000, 10**10],
    "float64": [0, 1, 2, 3, 7, 65_000, 10**10],
    "int32": [0, 1, 2, 3, 7, 65_000, 2 * 10**9],
    "uint16": [0, 1, 2, 3, 7, 65_000],
    "bool": [0, 1],
}


@st.composite
def sparse_matrices(draw):
    """Entries in any order, some zero, some of one gene twice; columns of one gene, unknown ones, empty cells."""
    dtype = draw(st.sampled_from(list(COUNTS)))
    n_columns = draw(st.integers(1, 12))
    entries = st.tuples(st.integers(0, n_columns - 1), st.sampled_from(COUNTS[dtype]))
    unique = (lambda entry: entry[0]) if draw(st.booleans()) else None
    cells = draw(st.lists(st.lists(entries, max_size=16, unique_by=unique), min_size=1, max_size=9))
    if draw(st.booleans()):
        cells = [sorted((column, count) for column, count in cell if count) for cell in cells]
    medians = draw(st.lists(st.sampled_from([None, 0.1, 0.3, 0.5, 1.0, 1.5, 3.0, 7.25]), min_size=1, max_size=12))
    genes = draw(st.lists(st.integers(0, len(medians)), min_size=n_columns, max_size=n_columns))
    columns, counts = np.array([entry for cell in cells for entry in cell], dtype=np.int64).reshape(-1, 2).T
    starts = np.cumsum([0, *map(len, cells)])
    matrix = sp.csr_matrix((counts.astype(dtype), columns, starts), shape=(len(cells), n_columns))
    dense = np.zeros(matrix.shape, dtype=np.int64)
    np.add.at(dense, (np.repeat(np.arange(len(cells)), np.diff(starts)), columns), counts)
    return matrix, dense, medians, np.array(genes)


@given(sparse_matrices(), st.integers(2, 14))
def test_sparse_matrices_of_every_kind_are_ranked_by_the_definition(drawn, max_length):
    matrix, dense, medians, genes = drawn
    names = [f"ENSG{gene}" for gene in range(len(medians) + 1)]  # The last is unknown.
    extractor = LangCellFeatureExtractor(
        {"ensembl_ids": names[:-1], "medians": medians, "names": names[:-1]}, min_matched_genes=0.0
    )
    before = matrix.copy()
    ranked = extractor.rank(matrix, gene_ids=[names[gene] for gene in genes], empty_cells="mark", max_length=max_length)
    of_id = dict(enumerate(medians, start=2))
    assert sequences(ranked) == reference(dense, (genes + 2).tolist(), of_id, extractor.cls_token_id, max_length)
    known = np.array([of_id.get(gene + 2) is not None for gene in genes])
    expected = (dense * known).sum(axis=1) / np.maximum(dense.sum(axis=1), 1)
    np.testing.assert_allclose(ranked.matched_counts, expected, rtol=1e-6)
    for array in ("data", "indices", "indptr"):
        assert (getattr(matrix, array) == getattr(before, array)).all(), "the input was written to"


@pytest.mark.parametrize("max_length", [2, 50, 400, 600, 900, 2048])
@pytest.mark.parametrize("unknown", [0, 300])
def test_long_cells_are_ranked_by_a_plain_sort(max_length, unknown):
    """Cells of 0 to 1,000 genes, many of them equal, some longer than the limit by little and some by much."""
    rng = np.random.default_rng(max_length)
    names = [f"ENSG{gene}" for gene in range(1500)]
    medians = rng.choice([0.1, 0.3, 0.6, 1.0, 1.7, 12.5], 1500)
    extractor = LangCellFeatureExtractor(
        {"ensembl_ids": names[unknown:], "medians": medians[unknown:].tolist(), "names": names[unknown:]}
    )
    counts = rng.geometric(0.2, (150, 1500)) * (rng.random((150, 1500)) < rng.choice([0, 0.1, 0.4, 0.65], (150, 1)))
    order = rng.permutation(1500)
    matrix = sp.csr_matrix(counts[:, order].astype(np.float32))
    ranked = extractor.rank(matrix, gene_ids=[names[gene] for gene in order], empty_cells="mark", max_length=max_length)
    for cell, row in enumerate(counts):
        genes = unknown + np.flatnonzero(row[unknown:])
        values = np.round(row[genes] / medians[genes], 9)
        expected = genes[np.lexsort((genes, -values))] - unknown + 2
        assert ranked[cell].tolist() == [extractor.cls_token_id, *expected[: max_length - 1]]


def test_a_call_gives_ids_and_mask(extractor, cells, expected):
    batch = extractor(cells)
    longest = max(map(len, expected))
    assert batch["cell_input_ids"] == [row + [0] * (longest - len(row)) for row in expected]
    assert batch["cell_attention_mask"] == [[1] * len(row) + [0] * (longest - len(row)) for row in expected]
    assert extractor.model_input_names == list(batch)


def test_special_ids(extractor, gene_vocabulary):
    assert (extractor.pad_token_id, extractor.mask_token_id, extractor.cls_token_id) == (0, 1, 42)
    assert len(extractor) == len(gene_vocabulary["ensembl_ids"]) + 3


@pytest.mark.parametrize("max_length", [2, 3, 10, 24, 25, 26, 64])
def test_max_length_cuts_exactly(extractor, cells, expected, max_length):
    assert sequences(extractor.rank(cells, max_length=max_length)) == [row[:max_length] for row in expected]


def test_the_extractors_own_max_length_is_the_default(gene_vocabulary, cells, expected):
    short = LangCellFeatureExtractor(gene_vocabulary, max_length=7)
    assert sequences(short.rank(cells)) == [row[:7] for row in expected]
    assert sequences(short.rank(cells, max_length=9)) == [row[:9] for row in expected]


def test_order_of_columns_never_matters(extractor, counts, genes, expected):
    order = np.random.default_rng(1).permutation(len(genes))
    assert sequences(extractor.rank(adata_of(counts[:, order], np.array(genes)[order]))) == expected


def test_order_inside_a_row_never_matters(extractor, counts, genes, expected):
    matrix = sp.csr_matrix(counts)
    for start, stop in zip(matrix.indptr, matrix.indptr[1:], strict=False):
        matrix.indices[start:stop] = matrix.indices[start:stop][::-1].copy()
        matrix.data[start:stop] = matrix.data[start:stop][::-1].copy()
    matrix.has_sorted_indices = False
    assert sequences(extractor.rank(matrix, gene_ids=genes)) == expected


def test_stored_zeros_are_ignored(extractor, counts, genes, expected):
    cells, columns = counts.shape
    starts, indices = np.arange(cells + 1) * columns, np.tile(np.arange(columns), cells)
    matrix = sp.csr_matrix((counts.ravel(), indices, starts), shape=counts.shape)
    assert matrix.nnz == counts.size
    assert sequences(extractor.rank(matrix, gene_ids=genes)) == expected
    assert sequences(extractor.rank(matrix * 0.5, gene_ids=genes, counts="normalized")) == expected


def test_repeated_entries_are_summed(extractor, counts, genes, expected):
    matrix = sp.csr_matrix(counts)
    assert (matrix.data > 1).any()
    ones = (matrix.data > 1).astype(matrix.dtype)  # One of each larger count moves to an entry of its own.
    data = np.stack([matrix.data - ones, ones]).T.ravel()
    twice = sp.csr_matrix((data, np.repeat(matrix.indices, 2), matrix.indptr * 2), shape=matrix.shape)
    before = twice.copy()
    assert sequences(extractor.rank(twice, gene_ids=genes)) == expected
    assert (twice.data == before.data).all(), "the input was written to"


@pytest.fixture(params=[1, 4])
def small_blocks(request, monkeypatch):
    """Makes chunks consist of many blocks, for one thread or several."""
    monkeypatch.setattr(ranking, "_BLOCK", 2)
    monkeypatch.setattr(ranking, "_GROUP", 2)
    monkeypatch.setattr("torch.get_num_threads", lambda: request.param)


@pytest.mark.parametrize("chunk_size", [1, 5, 12, 1000])
def test_chunk_size_never_matters(extractor, cells, expected, chunk_size):
    chunks = list(extractor.stream(cells, chunk_size=chunk_size))
    assert [len(chunk) for chunk in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
    assert sequences(RankedCells.concatenate(chunks)) == expected


@pytest.mark.parametrize("chunk_size", [1, 5, 1000])
def test_blocks_and_threads_never_matter(small_blocks, extractor, cells, expected, chunk_size, tmp_path):
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for adata in (cells, backed):
        chunks = list(extractor.stream(adata, chunk_size=chunk_size))
        assert [len(chunk) for chunk in chunks[:-1]] == [chunk_size] * (len(chunks) - 1)
        assert sequences(RankedCells.concatenate(chunks)) == expected
    backed.file.close()


def test_a_fault_is_raised_when_its_chunk_is_reached(small_blocks, extractor, counts, genes, expected):
    counts[6:, 0] = -2  # The third block and all after it; the first of them is named.
    chunks = extractor.stream(counts, gene_ids=genes, chunk_size=4, counts="raw")
    assert sequences(next(chunks)) == expected[:4]
    with pytest.raises(InputError, match="in cell 6"):
        next(chunks)


@pytest.mark.parametrize(("chunk_size", "read"), [(5, [2, 2, 1, 2, 2, 1, 2]), (1000, [2] * 6)])
def test_no_more_rows_than_a_block_are_read_at_a_time(
    small_blocks, extractor, counts, genes, expected, chunk_size, read
):
    class Recorder:
        shape = counts.shape
        slices = []

        def __getitem__(self, rows):
            self.slices.append(rows)
            return counts[rows]

    chunks = extractor.stream(Recorder(), gene_ids=genes, chunk_size=chunk_size, counts="raw")
    assert not Recorder.slices
    assert sequences(RankedCells.concatenate(list(chunks))) == expected
    assert [rows.stop - rows.start for rows in sorted(Recorder.slices, key=lambda rows: rows.start)] == read


# ---------------------------------------------------------------------- chunks


def same(one: RankedCells, other: RankedCells) -> bool:
    arrays = ("token_ids", "offsets", "matched_counts")
    return all(np.array_equal(getattr(one, array), getattr(other, array)) for array in arrays)


@pytest.mark.parametrize("kind", ["raw", "normalized", "log1p"])
@pytest.mark.parametrize("chunk_size", [1, 5, 12, 1000])
def test_a_chunk_alone_is_the_chunk_of_the_stream(small_blocks, extractor, cells, kind, chunk_size, tmp_path):
    if kind != "raw":
        cells.X = sp.csr_matrix(cells.X.multiply(1e4 / cells.X.sum(axis=1)))
    if kind == "log1p":
        cells.X = cells.X.log1p()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    whole = extractor.rank(cells, counts=kind)
    files = [ad.read_h5ad(tmp_path / "cells.h5ad", backed="r") for _ in range(2)]
    for adata, again in ((cells, cells), files):
        streamed = list(extractor.stream(adata, chunk_size=chunk_size, counts=kind))
        chunks = extractor.chunks(again, chunk_size=chunk_size, counts=kind)
        assert len(chunks) == len(streamed)
        for chunk in np.random.default_rng(0).permutation(len(chunks)):
            assert same(chunks[chunk], streamed[chunk])
        assert all(same(one, other) for one, other in zip(chunks, streamed, strict=True))
        assert same(RankedCells.concatenate(list(chunks)), whole)
    for file in files:
        file.file.close()


@pytest.mark.parametrize("near", [1, 3, 16])
@pytest.mark.parametrize("rows", [[0], [3, 4, 5], [0, 2, 3, 7, 11], [11, 4, 4, 0], list(range(12))])
def test_some_cells_are_those_of_the_whole(extractor, cells, expected, rows, near, tmp_path, monkeypatch):
    monkeypatch.setattr("modeling_langcell.model.count_matrix._NEAR", near)
    monkeypatch.setattr("modeling_langcell.model.count_matrix._BLOCK", 5)
    monkeypatch.setattr("modeling_langcell.model.ranking._GROUP", 3)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    monkeypatch.setattr(type(backed.X), "__getitem__", None)  # It fails with SciPy 1.17 before anndata 0.12.7.
    for adata in (cells, backed):
        assert sequences(extractor.chunks(adata).take(np.array(rows))) == [expected[row] for row in rows]
    backed.file.close()


def test_a_fault_among_some_cells_names_the_cell(extractor, counts, genes):
    counts[7, 3], counts[10] = -2, 0
    chunks = extractor.chunks(adata_of(counts, genes), counts="raw")
    with pytest.raises(InputError, match=r"^1 cell\(s\) of X have no counts in known genes: 'cell10'\. "):
        chunks.take(np.array([2, 10, 11]))  # Those between them do not matter.
    with pytest.raises(InputError, match=r"^X holds negative values \(-2.0 in cell 'cell7'\)"):
        chunks.take(np.array([2, 7]))


def test_attributes_of_chunks(extractor, counts, genes):
    adata = adata_of(np.ones_like(counts), genes, layers={"counts": counts})
    chunks = extractor.chunks(adata, chunk_size=5, layer="counts", max_length=4)
    assert isinstance(chunks, Sequence)
    assert (chunks.label, chunks.n_cells, chunks.chunk_size, chunks.kind) == ("layers['counts']", 12, 5, RAW)
    assert chunks.match.token_ids.tolist() == list(range(2, 42))
    assert [chunks.rows(chunk) for chunk in range(3)] == [range(5), range(5, 10), range(10, 12)]
    assert [len(chunk) for chunk in chunks] == [5, 5, 2]
    assert max(chunk.lengths.max() for chunk in chunks) == 4
    for chunk in (-1, 3):
        with pytest.raises(IndexError, match=f"^No chunk {chunk}: they are numbered from 0 to 2.$"):
            chunks.rows(chunk)
        with pytest.raises(IndexError, match=f"^No chunk {chunk}: "):
            chunks[chunk]
    with pytest.raises(TypeError):
        chunks[0:2]


def test_the_next_chunk_is_read_ahead(extractor, counts, genes):
    class Recorder:
        shape = counts.shape
        reached = {start: threading.Event() for start in range(0, 12, 4)}

        def __getitem__(self, rows):
            self.reached[rows.start].set()
            return counts[rows]

    chunks = extractor.chunks(Recorder(), gene_ids=genes, chunk_size=4, counts="raw").ahead([2, 0, 1])
    number, ranked = next(chunks)
    assert (number, len(ranked)) == (2, 4)
    assert Recorder.reached[0].wait(30), "it is read before it is asked for"
    assert not Recorder.reached[4].wait(0.2), "one ahead, and no more"
    assert [number for number, _ in chunks] == [0, 1]


def test_a_chunk_reads_only_its_own_rows(small_blocks, extractor, counts, genes, expected):
    class Recorder:
        shape = counts.shape
        read = []

        def __getitem__(self, rows):
            self.read += range(*rows.indices(len(counts)))
            return counts[rows]

    chunks = extractor.chunks(Recorder(), gene_ids=genes, chunk_size=5, counts="raw")
    assert sequences(chunks[1]) == expected[5:10]
    assert sorted(Recorder.read) == list(range(5, 10))


def test_a_fault_in_a_chunk_names_the_cell_of_the_whole_file(small_blocks, extractor, counts, genes, tmp_path):
    counts[7, 3], counts[10] = -2, 0
    adata_of(sp.csr_matrix(counts), genes).write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    chunks = extractor.chunks(backed, chunk_size=3, counts="raw")
    assert len(chunks[0]) == 3
    with pytest.raises(InputError, match=r"^1 cell\(s\) of X have no counts in known genes: 'cell10'\. "):
        chunks[3]
    with pytest.raises(InputError, match=r"^X holds negative values \(-2.0 in cell 'cell7'\)"):
        chunks[2]
    marked = extractor.chunks(backed, chunk_size=3, empty_cells="mark", counts="raw")[3]
    assert marked.without_genes.tolist() == [False, True, False]
    backed.file.close()


@pytest.mark.parametrize("how", ["chunks", "stream"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunk_size": 0}, "chunk_size=0 is not a number of cells"),
        ({"counts": "cpm"}, "counts='cpm' is not one of"),
        ({"empty_cells": "drop"}, "empty_cells='drop' is not one of"),
        ({"max_length": 1}, "max_length=1 leaves no room for genes"),
        ({"layer": "gone"}, "No layer 'gone'"),
        ({"gene_column": "gone"}, "No column 'gone' in var"),
    ],
)
def test_arguments_are_refused_before_anything_is_read(extractor, cells, how, options, message):
    with pytest.raises(InputError, match=message):
        getattr(extractor, how)(cells, **options)


@pytest.mark.long
def test_the_memory_of_a_backed_file_is_measured():
    memory_of_backed_file = import_module("modeling_langcell.eval.benchmarks.tokenizing_rate").memory_of_backed_file
    figures = memory_of_backed_file(cells=30, genes=300, seed=2)
    assert (figures["cells"], figures["genes"]) == (30, 300)
    assert 0 <= figures["peak_gb_above_start"] < figures["peak_gb"]
    assert figures["seconds"] > 0
    assert figures["file_gb"] > 0


# ---------------------------------------------------------------------- forms of input


@pytest.mark.parametrize(
    "form",
    [
        sp.csr_matrix,
        sp.csc_matrix,
        sp.coo_matrix,
        sp.csr_array,
        sp.csc_array,
        sp.lil_matrix,
        np.asarray,
        np.asfortranarray,
        lambda counts: counts.astype(np.float16),
        lambda counts: sp.csr_matrix(counts.astype(np.int16)),
        lambda counts: sp.csr_matrix(counts.astype(np.uint8)),
        lambda counts: sp.csr_matrix(counts, dtype=np.float64),
    ],
)
def test_matrices(extractor, counts, genes, expected, form):
    assert sequences(extractor.rank(form(counts), gene_ids=genes)) == expected


def test_a_boolean_matrix(extractor, counts, genes):
    assert sequences(extractor.rank(counts > 0, gene_ids=genes)) == sequences(
        extractor.rank((counts > 0).astype(int), gene_ids=genes)
    )


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray])
@pytest.mark.parametrize("where", ["X", "layer", "raw"])
@pytest.mark.parametrize("backed", [False, True])
def test_anndata(extractor, counts, genes, expected, form, where, backed, tmp_path, monkeypatch):
    """Counts in X, a layer or raw, in memory or in a file; the other arrays hold something else."""
    other = form(counts[:, ::-1] * 0.37)
    adata = adata_of(other if where != "X" else form(counts), genes, layers={"spliced": other})
    if where == "layer":
        adata.layers["counts"] = form(counts)
    elif where == "raw":
        adata.raw = adata_of(form(counts), genes)
        adata = adata[:, ::2].copy()  # raw keeps its own genes
    if backed:
        adata.write_h5ad(tmp_path / "cells.h5ad")
        adata = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        if form is not np.asarray:  # It fails with SciPy 1.17 before anndata 0.12.7.
            monkeypatch.setattr(type(adata.X), "__getitem__", None)
    options = {"X": {}, "layer": {"layer": "counts"}, "raw": {"use_raw": True}}[where]
    assert sequences(extractor.rank(adata, chunk_size=5, **options)) == expected
    for rows in (slice(2, 9), [7, 1, 4], np.arange(12) % 3 == 1):
        view = adata[rows, np.argsort(adata.var_names)[::-1]]
        assert view.is_view
        chosen = [expected[row] for row in np.arange(12)[rows]]
        assert sequences(extractor.rank(view, chunk_size=2, **options)) == chosen
    if backed:
        adata.file.close()


# ---------------------------------------------------------------------- what the values are


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e6])
def test_counts_normalized_and_log1p_rank_alike(gene_vocabulary, scale):
    """Ties of counts survive float32's rounding: half of the medians here are twice the other half."""
    medians = [1.1 * 2 ** (gene % 2) for gene in range(40)]
    extractor = LangCellFeatureExtractor({**gene_vocabulary, "medians": medians}, max_length=64)
    rng = np.random.default_rng(3)
    counts = rng.geometric(0.02, size=(60, 40)) * (rng.random((60, 40)) < 0.7)
    counts[:, 0] = 1
    genes = gene_vocabulary["ensembl_ids"]
    normalized = (counts / counts.sum(axis=1, keepdims=True) * scale).astype(np.float32)
    raw = sequences(extractor.rank(sp.csr_matrix(counts), gene_ids=genes))
    assert sequences(extractor.rank(sp.csr_matrix(normalized), gene_ids=genes, counts="normalized")) == raw
    assert sequences(extractor.rank(sp.csr_matrix(np.log1p(normalized)), gene_ids=genes, counts="log1p")) == raw
    np.testing.assert_allclose(
        extractor.rank(np.log1p(normalized)[:, :30], gene_ids=genes[:30], counts="log1p").matched_counts, 1, rtol=1e-6
    )


def test_scaled_values_that_were_never_counts_keep_their_order(extractor, genes):
    values = np.random.default_rng(0).lognormal(size=(3, 40))
    medians = dict(enumerate(extractor.gene_vocabulary["medians"], start=2))
    ranked = sequences(extractor.rank(values, gene_ids=genes, counts="normalized"))
    assert ranked == reference(values, range(2, 42), medians, extractor.cls_token_id, 64)


# ---------------------------------------------------------------------- genes


NAMES = {
    "ensembl_ids": ["ENSG01", "ENSG02", "ENSG03", "ENSG04", "ENSG05", "ENSG06", "ENSG07"],
    "medians": [1.0, 1.0, 1.0, 1.0, None, 1.0, 1.0],
    "names": ["CD3E|T3E|SHARED", "LYZ|LZM|SHARED|LZM", "NKG7|GIG1", "CD19", "GHOST|SPOOK", "TWIN|PAIR", "TWIN|PAIR"],
}


@pytest.fixture(scope="module")
def names() -> LangCellFeatureExtractor:
    return LangCellFeatureExtractor(NAMES)


@pytest.mark.parametrize(
    ("name", "token_id", "how"),
    [
        ("ENSG02", 3, "ensembl_id"),
        ("ENSG02.17", 3, "ensembl_id"),
        ("ENSG99", -1, None),
        ("LYZ", 3, "symbol"),
        ("T3E", 2, "synonym"),
        ("LZM", 3, "synonym"),  # listed twice, of one gene all the same
        ("SHARED", -1, None),
        ("PAIR", 7, "synonym"),  # of two Ensembl ids of one symbol
        ("TWIN", 7, "symbol"),
        ("ENSG05", -1, None),  # no median: never used
        ("GHOST", -1, None),
        ("SPOOK", -1, None),
        ("lyz", -1, None),
        ("", -1, None),
        ("ENSMUSG02", -1, None),
    ],
)
def test_a_gene_is_found_by_its_name(names, name, token_id, how):
    match = names.match_genes([name])
    assert match.token_ids.tolist() == [token_id]
    found = {"ensembl_id": match.by_ensembl_id, "symbol": match.by_symbol, "synonym": match.by_synonym}
    assert found == {key: int(key == how) for key in found}
    assert match.fraction == (token_id >= 0)


def test_nameless_genes_have_no_name_in_common():
    nameless = LangCellFeatureExtractor({**NAMES, "names": [""] * 6 + ["A||B"]})
    assert nameless.match_genes(["", "ENSG01", "B"]).token_ids.tolist() == [-1, 2, 8]


def test_an_ensembl_id_in_any_column_decides(names):
    match = names.match_genes(["CD3E", "LYZ", "NKG7", "T3E"], ["ENSG04.1", "ENSG99", "", "ENSG03"])
    assert match.token_ids.tolist() == [5, 3, 4, 4]
    assert (match.by_ensembl_id, match.by_symbol, match.by_synonym) == (2, 2, 0)
    assert match.has_duplicates


def test_a_synonym_yields_to_the_gene_itself(names):
    assert names.match_genes(["T3E", "CD3E"]).token_ids.tolist() == [-1, 2]
    assert names.match_genes(["T3E", "CD19"]).token_ids.tolist() == [2, 5]


def test_duplicated_genes_are_summed(names):
    counts = np.array([[2, 3, 4, 1], [4, 3, 4, 1]])  # LYZ twice: 3 and 5 in all
    ranked = names.rank(counts, gene_ids=["LYZ", "CD19", "NKG7", "ENSG02"])
    assert sequences(ranked) == [[9, 4, 3, 5], [9, 3, 4, 5]]  # LYZ ties with CD19: the lower id first


def test_a_genome_prefix_is_not_part_of_a_name(names):
    ids = ["hg19_LYZ", "GRCh38_ENSG01", "GRCh38_______CD19", "hg38_ENSG03.2"]
    assert names.open(sp.csr_matrix((1, 4)), gene_ids=ids)[1].token_ids.tolist() == [3, 2, 5, 4]


def test_columns_of_var_that_name_genes(names):
    adata = adata_of(np.ones((2, 3)), ["a", "b", "c"])
    adata.var["feature_name"] = pd.Categorical(["LYZ", "CD19", "NKG7"])
    adata.var["mine"] = ["CD3E", "LYZ", np.nan]
    assert names.rank(adata)[0].tolist() == [9, 3, 4, 5]
    assert names.rank(adata, gene_column="mine")[0].tolist() == [9, 2, 3]
    with pytest.raises(InputError, match=r"No column 'gone' in var; columns here: \['feature_name', 'mine'\]"):
        names.rank(adata, gene_column="gone")


@pytest.mark.parametrize(
    ("column", "kinds"),
    [
        ("feature_types", ["Gene Expression", "Antibody Capture", "Gene Expression"]),
        ("feature_types", ["Gene Expression", "Peaks", "Gene Expression"]),
        ("feature_types", ["gene_expression", "Multiplexing Capture", "gene_expression"]),
        ("feature_type", ["protein_coding", "ADT", "lncRNA"]),
        ("modality", ["RNA", "prot", "RNA"]),
        ("feature_types", ["lncRNA", "CRISPR Guide Capture", "protein_coding"]),
    ],
)
def test_rows_that_are_no_genes_are_left_out(names, column, kinds):
    counts = np.array([[5.0, 900, 1], [1, 0, 7], [2, 3, 0]])
    adata = adata_of(counts, ["LYZ", "CD19", "CD3E"])
    adata.var[column] = pd.Categorical(kinds)
    genes = adata[:, [0, 2]].copy()
    for cells in (adata, adata_sparse(adata)):
        found, expected = names.rank(cells), names.rank(genes)
        assert [row.tolist() for row in found] == [row.tolist() for row in expected]
        np.testing.assert_array_equal(found.matched_counts, expected.matched_counts)
    assert (names.chunks(adata).n_others, names.chunks(genes).n_others) == (1, 0)


def adata_sparse(adata):
    cells = adata.copy()
    cells.X = sp.csr_matrix(cells.X)
    return cells


def test_peaks_and_antibodies_are_known_by_their_names(names):
    adata = adata_of(np.ones((1, 6)), ["LYZ", "chr1:100-2000", "CD19", "X:5-90", "CD3_TotalSeqB", "CD4_ADT"])
    assert names.chunks(adata).n_others == 4
    with pytest.raises(InputError, match="X has no genes: its rows of var are antibodies, peaks or the like"):
        names.rank(adata[:, [1, 3]].copy())


def test_a_dask_array_of_sparse_blocks(names):
    da = pytest.importorskip("dask.array")
    counts = sp.csr_matrix(np.array([[5.0, 9, 1], [1, 0, 7], [2, 3, 0], [0, 1, 1]]))
    blocks = da.map_blocks(
        lambda block_info=None: counts[slice(*block_info[None]["array-location"][0])],
        chunks=((2, 2), (3,)),
        dtype=counts.dtype,
        meta=counts[:0],
    )
    adata, expected = (adata_of(one, ["LYZ", "CD19", "CD3E"]) for one in (blocks, counts))
    assert [row.tolist() for row in names.rank(adata)] == [row.tolist() for row in names.rank(expected)]


def test_counts_outside_the_vocabulary_are_reported(names):
    ranked = names.rank(np.array([[1.0, 3], [2, 0], [0, 5]]), gene_ids=["LYZ", "NOPE"], empty_cells="mark")
    np.testing.assert_allclose(ranked.matched_counts, [0.25, 1, 0])


# ---------------------------------------------------------------------- padding


def test_padding(extractor, cells, expected):
    assert extractor(cells, padding=False)["cell_input_ids"] == expected
    assert extractor(cells, padding="do_not_pad")["cell_attention_mask"] == [[1] * len(row) for row in expected]
    assert extractor(cells, padding="longest") == extractor(cells)
    batch = extractor(cells, padding="max_length", return_tensors="np")
    assert batch["cell_input_ids"].shape == batch["cell_attention_mask"].shape == (12, 64)
    assert batch["cell_input_ids"].dtype == batch["cell_attention_mask"].dtype == np.int64
    batch = extractor(cells, padding="max_length", max_length=30, return_tensors="pt")
    assert batch["cell_input_ids"].shape == (12, 30)
    assert extractor(cells[:1], padding=False, return_tensors="pt")["cell_input_ids"].tolist() == expected[:1]


def test_tensors_are_the_lists(extractor, cells):
    lists, arrays, tensors = (extractor(cells, return_tensors=kind) for kind in (None, "np", "pt"))
    for name in extractor.model_input_names:
        assert arrays[name].tolist() == tensors[name].tolist() == lists[name]


def test_chosen_cells_are_padded_alone(extractor, cells, expected):
    ids, mask = extractor.rank(cells).pad(np.array([4, 0]), pad_id=7)
    for row, length, cell in zip(ids, mask.sum(axis=1), (4, 0), strict=True):
        assert row[:length].tolist() == expected[cell]
    assert ids.shape[1] == max(len(expected[4]), len(expected[0]))
    assert (ids[mask == 0] == 7).all()
    ids, mask = extractor.rank(cells).pad(length=5)
    assert ids.tolist() == [row[:5] for row in expected]


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, r"X holds negative values \(-1.0 in cell 'cell3'\). Scaled data cannot be ranked: go back to the counts."),
        (np.nan, r"X holds values that are not finite \(nan in cell 'cell3'\). Go back to the counts, or remove .*"),
        (np.inf, r"X holds values that are not finite \(inf in cell 'cell3'\). Go back to the counts, or remove .*"),
        (0.5, r"X holds values that are not whole, so not raw counts \(0.5 in cell 'cell3'\). .*counts='log1p'."),
    ],
)
@pytest.mark.parametrize("chunk_size", [2, 100])
@pytest.mark.parametrize("form", [sp.csr_matrix, np.asarray])
def test_one_wrong_value_is_named(extractor, counts, genes, value, message, chunk_size, form):
    counts[3, 5] = value
    with pytest.raises(InputError, match=f"^{message}$"):
        list(extractor.stream(adata_of(form(counts), genes), chunk_size=chunk_size))


@pytest.mark.parametrize(
    ("layers", "advice"),
    [
        (
            {"ambiguous": 0.1, "matrix": 1, "spliced": 0.7},
            r"layers\['matrix'\] looks like counts: pass layer='matrix'\.",
        ),
        ({"ambiguous": 0.1, "spliced": 0.7, "unspliced": 0.2}, r"layers\['spliced'\] looks like counts: .*"),
        ({"a_mask": "mask", "counts": 1}, r"layers\['counts'\] looks like counts: pass layer='counts'\."),
        ({"all": 3, "Raw_Counts": 1}, r"layers\['Raw_Counts'\] looks like counts: .*"),
        ({"a_mask": "mask", "scaled": "scaled"}, r"For logarithms, pass counts='log1p'\..*"),
    ],
)
def test_of_several_arrays_the_most_likely_is_advised(extractor, counts, genes, layers, advice):
    counts = counts.astype(float)
    made = {"mask": (counts > 0).astype(float), "scaled": counts - 1.5}
    stored = {name: made[how] if how in made else np.rint(how * 10 * counts) for name, how in layers.items()}
    adata = adata_of(np.log1p(counts) + 0.1, genes, layers=stored)
    with pytest.raises(InputError, match=f"{advice}$") as error:
        extractor.rank(adata, counts="raw")
    for remedy in error.value.remedies[-1:]:
        if remedy.option == "layer":
            assert len(extractor.rank(adata, layer=remedy.value)) == len(adata)


@pytest.mark.parametrize("x", [None, "scaled"])
def test_logarithms_in_raw_are_advised_with_their_kind(extractor, counts, genes, x):
    """As scanpy's tutorial leaves a file."""
    adata = adata_of(np.log1p(counts.astype(np.float32) * 2.5), genes)
    adata.raw = adata.copy()
    adata.X = None if x is None else np.asarray(counts, dtype=float) - 1.5
    with pytest.raises(
        InputError, match=r"raw\.X holds natural logarithms: pass use_raw=True, counts='log1p'\.$"
    ) as error:
        extractor.rank(adata, counts="raw")
    assert "pass --use-raw --counts log1p." in error.value.on_command_line()
    found, expected = extractor.rank(adata, use_raw=True, counts="log1p"), extractor.rank(adata_of(counts, genes))
    assert [row.tolist() for row in found] == [row.tolist() for row in expected]
    with pytest.raises(InputError) as error:
        extractor.read_counts(adata)
    assert "log1p" not in str(error.value), "raw counts alone are read here"


def test_an_array_is_not_suggested_for_itself(extractor, counts, genes):
    counts = np.tile(counts, (10, 1))
    counts[80, 3] = 0.5  # What lies before it does look like counts.
    adata = adata_of(counts, genes, layers={"names": np.full(counts.shape, "a", dtype=object)})
    with pytest.raises(InputError, match=r"\(0.5 in cell 'cell80'\).* pass counts='log1p'.$"):
        extractor(adata)


def test_normalized_values_get_their_own_hint(extractor, counts, genes):
    message = "not whole.* For counts scaled by cell .CPM, TPM., pass counts='normalized'.$"
    with pytest.raises(InputError, match=message):
        extractor(adata_of(counts / counts.sum(axis=1, keepdims=True) * 1e6, genes), counts="raw")


@pytest.mark.parametrize("wrong", ["logs", "scaled"])
@pytest.mark.parametrize(
    ("read", "elsewhere", "label", "advice"),
    [
        ({}, None, "X", ""),
        ({}, "layer", "X", " layers['counts'] looks like counts: pass layer='counts'."),
        ({}, "raw", "X", " raw.X looks like counts: pass use_raw=True."),
        ({"layer": "wrong"}, "X", "layers['wrong']", " X looks like counts: leave out layer."),
        ({"use_raw": True}, "X", "raw.X", " X looks like counts: leave out use_raw."),
    ],
)
def test_the_array_that_does_hold_counts_is_named(
    extractor, counts, genes, wrong, read, elsewhere, label, advice, tmp_path
):
    logs = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    values = logs if wrong == "logs" else (logs - logs.mean(axis=0)) / logs.std()
    empty = sp.csr_matrix(counts.shape)
    adata = adata_of(counts if elsewhere == "X" else values, genes, layers={"empty": empty, "wrong": values})
    if elsewhere == "layer":
        adata.layers["counts"] = sp.csr_matrix(counts)
    if elsewhere == "raw" or "use_raw" in read:
        adata.raw = adata_of(counts if elsewhere == "raw" else values, genes)
    adata.layers["shifted"], adata.layers["endless"] = counts - 1, np.full(counts.shape, np.inf)  # No counts either.
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    for given_adata in (adata, adata[2:], backed, backed[2:]):
        with pytest.raises(InputError) as caught:
            extractor(given_adata, **read, counts="raw")
        message = str(caught.value)
        assert message.startswith(f"{label} holds ")
        assert message.endswith(advice or ("counts='log1p'." if wrong == "logs" else "go back to the counts."))
        assert "\n" not in message
    backed.file.close()


def test_values_that_are_not_logarithms(extractor, counts, genes):
    with pytest.raises(InputError, match=r"X holds only whole numbers, so not logarithms .* Pass counts='raw'"):
        extractor(adata_of(counts.clip(max=20), genes), counts="log1p")
    with pytest.raises(InputError, match=r"X holds values too large for logarithms .* Pass counts='corrected'"):
        extractor(adata_of(counts * 100.5, genes), counts="log1p")
    with pytest.raises(InputError, match=r"X holds negative values \(-0.5 in cell 'cell0'\)"):
        extractor(adata_of(np.full((1, 40), -0.5), genes), counts="log1p")


def test_shallow_cells_of_a_later_chunk_may_be_whole_logarithms(extractor, counts, genes):
    twos = np.log2(1 + counts.astype(np.float64))
    twos = np.concatenate([twos] * 3 + [np.eye(1, counts.shape[1])])
    ranked = list(extractor.stream(adata_of(twos, genes), counts="log1p", chunk_size=len(twos) - 1))
    assert [len(part) for part in ranked] == [len(twos) - 1, 1]


@pytest.mark.parametrize("dtype", [object, str, complex])
def test_values_that_are_not_numbers(extractor, counts, genes, dtype):
    with pytest.raises(InputError, match=r"^the matrix holds (object|<U32|complex\d+) values: make them numbers.$"):
        extractor(counts.astype(dtype), gene_ids=genes)
    if dtype is object:
        adata = adata_of(counts.astype(object), genes, layers={"counts": counts})
        with pytest.raises(InputError, match=r"^X holds object values.* pass layer='counts'.$"):
            extractor(adata, counts="raw")
        assert len(extractor.rank(adata)) == len(counts), "the layer is read by itself"


def test_a_matrix_names_cells_by_their_number(extractor, counts, genes):
    counts[7, 0] = -2
    with pytest.raises(InputError, match=r"^the matrix holds negative values \(-2.0 in cell 7\)"):
        extractor(sp.csr_matrix(counts), gene_ids=genes)


def test_too_few_known_genes(extractor, counts):
    strange = adata_of(counts, [f"Gene{number}" for number in range(40)])
    strange.var["ensembl_id"] = [f"AT1G{number:05d}" for number in range(1, 41)]
    with pytest.raises(InputError) as caught:
        extractor(strange)
    message = str(caught.value)
    assert message.startswith("0 of the 40 genes of X are known (0.0%; at least 10% are required).")
    assert "Names in the index of var, var['ensembl_id']: 'Gene0', 'Gene1', 'Gene2'" in message
    assert "Ensembl ids or gene symbols of human are expected. Give their column of var with gene_column." in message


def test_the_share_of_known_genes_that_is_enough(gene_vocabulary, counts, genes):
    three_of_forty = genes[:3] + [f"none{number}" for number in range(37)]
    with pytest.raises(
        InputError, match=r"of the 40 genes of the matrix are known \(7.5%; at least 10% are required\)"
    ):
        LangCellFeatureExtractor(gene_vocabulary)(counts, gene_ids=three_of_forty)
    lenient = LangCellFeatureExtractor(gene_vocabulary, min_matched_genes=0.075)
    assert len(lenient.rank(counts, gene_ids=three_of_forty)) == 12


def test_cells_without_known_genes(extractor, counts, genes, expected):
    counts[[2, 5]] = 0
    message = r"^2 cell\(s\) of X have no counts in known genes: 'cell2', 'cell5'. Filter them out. .*'mark'.$"
    with pytest.raises(InputError, match=message):
        extractor(adata_of(sp.csr_matrix(counts), genes))
    ranked = extractor.rank(adata_of(sp.csr_matrix(counts), genes), empty_cells="mark")
    assert np.flatnonzero(ranked.without_genes).tolist() == [2, 5]
    lone = [extractor.cls_token_id]
    assert sequences(ranked) == [lone if cell in (2, 5) else row for cell, row in enumerate(expected)]
    assert (ranked.matched_counts == [cell not in (2, 5) for cell in range(12)]).all()
    batch = extractor(counts[[2]], gene_ids=genes, empty_cells="mark")
    assert (batch["cell_input_ids"], batch["cell_attention_mask"]) == ([lone], [[1]])
    with pytest.raises(InputError, match="known genes: 0, 1, 2, 3, 4 and 7 more"):
        extractor(np.zeros((12, 40)), gene_ids=genes)
    with pytest.raises(InputError, match=r"^1 cell\(s\) of the matrix have no counts in known genes: 2\. "):
        list(extractor.stream(counts, gene_ids=genes, chunk_size=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "gone"}, r"No layer 'gone'; layers here: \['counts'\]."),
        ({"use_raw": True}, "This AnnData has no raw: leave out use_raw."),
        ({"layer": "counts", "use_raw": True}, "Choose one of layer and use_raw."),
        (
            {"gene_ids": ["GENE1"] * 40},
            "gene_ids is for a matrix; for an AnnData, give their column of var with gene_col",
        ),
        ({"counts": "cpm"}, "counts='cpm' is not one of 'auto', 'raw', 'corrected', 'normalized' and 'log1p'."),
        ({"empty_cells": "drop"}, "empty_cells='drop' is not one of 'error' and 'mark'."),
        ({"padding": "left"}, "padding='left' is not one of True, 'longest', 'max_length', False, 'do_not_pad'."),
        ({"padding": False, "return_tensors": "pt"}, "Cells of different lengths do not fit one tensor: pad them, or"),
        ({"max_length": 1}, "max_length=1 leaves no room for genes"),
    ],
)
def test_options_that_do_not_fit(extractor, cells, options, message):
    cells.layers["counts"] = cells.X
    with pytest.raises(InputError, match=message):
        extractor(cells, **options)


@pytest.mark.parametrize(
    ("cells", "options", "message"),
    [
        (np.ones((2, 40)), {}, r"A matrix needs gene_ids, one for each of its 40 columns \(none given\)."),
        (np.ones((2, 40)), {"gene_ids": ["GENE1"]}, r"one for each of its 40 columns \(1 given\)."),
        (np.ones((2, 1)), {"gene_ids": ["GENE1"], "layer": "x"}, "layer, use_raw and gene_column are for an Ann"),
        (np.ones((2, 1)), {"gene_ids": ["GENE1"], "use_raw": True}, "layer, use_raw and gene_column are for an Ann"),
        (np.ones((2, 1)), {"gene_ids": ["GENE1"], "gene_column": "x"}, "layer, use_raw and gene_column are for an"),
        (np.ones((0, 1)), {"gene_ids": ["GENE1"]}, "the matrix is empty: 0 cells x 1 genes."),
        (np.ones(3), {}, r"Cells must be an AnnData or a \(cells, genes\) matrix, not ndarray."),
        ([[1, 2]], {}, r"Cells must be an AnnData or a \(cells, genes\) matrix, not list."),
        (adata_of(np.ones((0, 2)), ["GENE1", "GENE2"]), {}, "X is empty: 0 cells x 2 genes."),
        (adata_of(np.ones((2, 0)), []), {}, "X is empty: 2 cells x 0 genes."),
        (adata_of(np.ones((2, 0)), [], layers={"a": np.ones((2, 0))}), {"layer": "a"}, r"layers\['a'\] is empty: "),
    ],
)
def test_cells_that_do_not_fit(extractor, cells, options, message):
    with pytest.raises(InputError, match=message):
        extractor(cells, **options)


def test_an_anndata_without_x(extractor, counts, genes, expected):
    adata = adata_of(counts, genes, layers={"counts": counts, "logs": np.log1p(counts)})
    del adata.X
    with pytest.raises(
        InputError, match=r"This AnnData has no X: layers\['counts'\] looks like counts: pass layer='counts'\."
    ):
        extractor(adata, counts="raw")
    assert sequences(extractor.rank(adata)) == expected
    only_logarithms = adata_of(counts, genes, layers={"logs": np.log1p(counts)})
    del only_logarithms.X
    with pytest.raises(
        InputError, match=r"no X: layers\['logs'\] holds natural logarithms: pass layer='logs', counts='log1p'\."
    ):
        extractor(only_logarithms)
    with pytest.raises(InputError, match="pass layer='counts'"):
        extractor(adata, layer="logs", counts="raw")
    assert sequences(extractor.rank(adata, layer="counts")) == expected


def damaged(x: h5py.Group, name: str, change) -> None:
    values = change(x[name][:])
    del x[name]
    x[name] = values


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda x: x.file.__delitem__("X"), r"cells.h5ad has no X: put the counts there\."),
        (lambda x: x.attrs.__setitem__("encoding-type", "dict"), "X of .* cannot be read: Unknown encoding type dict"),
        (
            lambda x: x.attrs.__setitem__("shape", [12, 41]),
            r"shape is \d+ x 41, but there are names for \d+ cells and 40",
        ),
        (lambda x: damaged(x, "indices", lambda indices: indices[:-1]), "X of .* cannot be read: "),
        (lambda x: damaged(x, "indices", lambda indices: indices - 1), "its indices are not all from 0 to 39"),
        (lambda x: damaged(x, "indices", lambda indices: indices + 40), "its indices are not all from 0 to 39"),
        (lambda x: damaged(x, "indptr", lambda indptr: indptr[::-1]), "X of .* cannot be read: "),
        (lambda x: damaged(x, "indptr", lambda indptr: indptr[:-8]), "X of .* cannot be read: "),
    ],
)
def test_a_file_whose_matrix_is_damaged(extractor, counts, genes, tmp_path, damage, message):
    for form in (sp.csr_matrix, sp.csc_matrix):
        adata_of(form(counts), genes).write_h5ad(tmp_path / "cells.h5ad")
        with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
            damage(file["X"])
        backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
        with pytest.raises(InputError, match=message if form is sp.csr_matrix else None):
            extractor.rank(backed)
        backed.file.close()


def test_columns_that_a_file_says_it_has_and_does_not_hold(extractor, counts, genes, tmp_path):
    """scipy would convert them from memory beyond the array, and may crash."""
    adata_of(sp.csc_matrix(counts), genes).write_h5ad(tmp_path / "cells.h5ad")
    with h5py.File(tmp_path / "cells.h5ad", "r+") as file:
        file["X"].attrs["shape"] = [12, 41]
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    with pytest.raises(InputError, match="its indptr has 41 values, but its shape is 12 x 41"):
        extractor.rank(backed)
    backed.file.close()


def test_a_matrix_in_memory_without_its_last_row_or_column(extractor, counts, genes):
    for form in (sp.csr_matrix, sp.csc_matrix):
        matrix = form(counts)
        matrix.indptr = matrix.indptr[:-1]
        with pytest.raises(InputError, match=r"its indptr has \d+ values, but its shape is"):
            extractor.rank(matrix, gene_ids=genes)


def test_a_matrix_in_memory_that_is_damaged(extractor, counts, genes):
    for form in (sp.csr_matrix, sp.csc_matrix):
        matrix = form(counts)
        matrix.indices[5] = 1000
        with pytest.raises(InputError, match="the matrix cannot be read: its indices are not all from 0 to"):
            extractor.rank(matrix, gene_ids=genes)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("Unable to synchronously open file (truncated file: eof = 1, stored_eof = 2)"), "truncated file"),
        (KeyError("Unable to synchronously open object (object 'X' doesn't exist)"), "object 'X' doesn't exist"),
        (FileNotFoundError(2, "No such file or directory", "a"), "No such file or directory"),
        (ValueError("two\nlines."), "two"),
        (ValueError(), "ValueError"),
        (RecursionError("maximum recursion depth exceeded"), "it is nested too deep"),
    ],
)
def test_reasons_of_exceptions(error, reason):
    assert reason_of(error) == reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ensembl_ids": []}, "needs the lists ensembl_ids, medians and names, of equal length"),
        ({"medians": [1.0]}, "needs the lists ensembl_ids, medians and names, of equal length"),
        ({"medians": [0.0] * 7}, "medians must be finite and positive, or None"),
        ({"medians": [float("inf")] * 7}, "medians must be finite and positive, or None"),
    ],
)
def test_vocabularies_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        LangCellFeatureExtractor({**NAMES, **change})


# ---------------------------------------------------------------------- saving


def test_save_and_load(gene_vocabulary, cells, tmp_path):
    medians = [None, *gene_vocabulary["medians"][1:]]
    saved = LangCellFeatureExtractor({**gene_vocabulary, "medians": medians}, max_length=11, min_matched_genes=0.25)
    saved.save_pretrained(tmp_path)
    for load in (LangCellFeatureExtractor, AutoFeatureExtractor):
        loaded = load.from_pretrained(tmp_path)
        assert type(loaded) is LangCellFeatureExtractor
        assert loaded.to_dict() == saved.to_dict()
        assert (loaded.max_length, loaded.min_matched_genes, len(loaded)) == (11, 0.25, 43)
        assert sequences(loaded.rank(cells)) == sequences(saved.rank(cells))
    written = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert set(written) <= {"auto_map", "feature_extractor_type", "gene_vocabulary", "max_length", "min_matched_genes"}


def test_save_and_load_inside_the_processor(tiny_processor, cells, tmp_path):
    tiny_processor.save_pretrained(tmp_path)
    processor = AutoProcessor.from_pretrained(tmp_path)
    for loaded in (processor.feature_extractor, AutoFeatureExtractor.from_pretrained(tmp_path)):
        assert loaded.to_dict() == tiny_processor.feature_extractor.to_dict()
        assert loaded(cells) == tiny_processor.feature_extractor(cells)


def test_repr_is_short(extractor):
    assert repr(extractor) == "LangCellFeatureExtractor(40 genes, max_length=64)"


# ---------------------------------------------------------------------- real cells


@pytest.fixture(scope="module")
def geneformer(shared) -> LangCellFeatureExtractor:
    names = ("token_dictionary.pkl", "gene_median_dictionary.pkl", "gene_name_id_dict.pkl")
    files = [shared / "reference" / "geneformer" / name for name in names]
    return LangCellFeatureExtractor(read_gene_vocabulary(*files))


def assert_ranked(ids, values: dict[int, float], limit: int):
    """`ids` are the genes of the highest values, all of them or as many as the limit, in an order that falls."""
    assert len(ids) == len(set(ids)) == min(len(values), limit)
    assert set(ids) <= set(values)
    ranked = np.array([values[token_id] for token_id in ids])
    assert (ranked[1:] <= ranked[:-1] * (1 + 1e-9)).all()
    left_out = values.keys() - set(ids)
    assert max((values[token_id] for token_id in left_out), default=0.0) <= ranked[-1] * (1 + 1e-9)


def values_of(row: sp.csr_matrix, token_ids: np.ndarray, medians: list) -> dict[int, float]:
    values: dict[int, float] = {}
    for gene, count in zip(row.indices, row.data.tolist(), strict=True):
        if token_ids[gene] >= 0:
            token_id = int(token_ids[gene])
            values[token_id] = values.get(token_id, 0.0) + count / medians[token_id - 2]
    return values


@pytest.mark.long
def test_every_real_file_is_encoded(shared, geneformer):
    files = sorted((shared / "data").glob("*/*.h5ad"))
    assert files
    for file in files:
        adata = ad.read_h5ad(file)[:50]
        source, match = geneformer.open(adata)
        ranked = geneformer.rank(adata)
        assert match.fraction > 0.5, file.name
        assert ranked.matched_counts.min() > 0.6, file.name
        assert (ranked.token_ids[ranked.offsets[:-1]] == geneformer.cls_token_id).all()
        assert ranked.lengths.max() <= 2048
        for cell in (0, len(ranked) - 1):
            values = values_of(source.rows(cell, cell + 1), match.token_ids, geneformer.gene_vocabulary["medians"])
            assert_ranked(ranked[cell][1:].tolist(), values, 2047)


def test_the_recorded_ranks(shared, geneformer):
    """Ids recorded from the published inference code; its order among equal values is arbitrary."""
    recorded = json.loads((shared / "reference" / "ranked_cells.json").read_text())["cells"]
    adata = ad.read_h5ad(shared / "data" / "train" / "pbmc_facs_zheng.h5ad")[::97]
    _, match = geneformer.open(adata, gene_column="ensembl_id")
    # The published code knows ids alone; a gene whose id is retired is found by its symbol, too.
    ranked = geneformer.rank(adata, max_length=30_000, gene_column="ensembl_id")
    assert len(ranked) == len(recorded)
    for cell, ids in enumerate(recorded.values()):
        values = values_of(adata.X[[cell]], match.token_ids, geneformer.gene_vocabulary["medians"])
        assert sorted(ranked[cell][1:].tolist()) == sorted(ids)
        assert_ranked(ranked[cell][1:].tolist(), values, 30_000)
        np.testing.assert_allclose([values[i] for i in ranked[cell][1:]], [values[i] for i in ids], rtol=1e-6)


class TestPad:
    """The extractor is what `DataCollatorWithPadding` takes for a tokenizer."""

    def features(self, extractor, cells):
        batch = extractor(cells, padding=False)
        return [
            {"cell_input_ids": ids, "cell_attention_mask": mask, "label": row % 2}
            for row, (ids, mask) in enumerate(zip(*batch.values(), strict=True))
        ]

    def test_collator(self, tiny_processor, cells):
        extractor = tiny_processor.feature_extractor
        batch = DataCollatorWithPadding(extractor)(self.features(extractor, cells))
        expected = extractor(cells, return_tensors="pt")
        assert batch["labels"].tolist() == [0, 1] * 6
        assert all(torch.equal(batch[name], expected[name]) for name in expected)

    def test_lengths(self, tiny_processor, cells):
        extractor = tiny_processor.feature_extractor
        features = self.features(extractor, cells)
        longest = max(len(one["cell_input_ids"]) for one in features)
        of_eight = extractor.pad(features, pad_to_multiple_of=8, return_tensors="np")["cell_input_ids"]
        assert of_eight.shape[1] == -(-longest // 8) * 8
        assert of_eight.dtype == np.int64
        for length, expected in ((None, extractor.max_length), (50, 50)):
            padded = extractor.pad(features, padding="max_length", max_length=length)
            assert {len(row) for rows in padded.values() for row in rows if isinstance(rows[0], list)} == {expected}
        kept = extractor.pad(features, padding=False)
        assert kept["cell_input_ids"] == [one["cell_input_ids"] for one in features]

    def test_padding_that_is_there_is_left_out(self, tiny_processor, cells):
        extractor = tiny_processor.feature_extractor
        expected = extractor(cells)
        assert extractor.pad(extractor(cells, padding="max_length")) == expected
        assert extractor.pad({"cell_input_ids": extractor(cells, padding=False)["cell_input_ids"]}) == expected

    def test_refusals(self, tiny_processor, cells):
        extractor = tiny_processor.feature_extractor
        with pytest.raises(InputError, match="longer than max_length=3"):
            extractor.pad(extractor(cells), padding="max_length", max_length=3)
        for nothing, named in (([], "nothing"), ([{"input_ids": [1]}], "input_ids")):
            with pytest.raises(InputError, match=f"no cell_input_ids to pad, only {named}"):
                extractor.pad(nothing)


def test_a_saved_extractor_names_its_own_class(tiny_processor, tmp_path):
    tiny_processor.save_pretrained(tmp_path / "processor")
    tiny_processor.feature_extractor.save_pretrained(tmp_path / "extractor")
    saved = json.loads((tmp_path / "extractor" / "preprocessor_config.json").read_text())
    own = {"AutoFeatureExtractor": "feature_extraction_langcell.LangCellFeatureExtractor"}
    assert saved["auto_map"] == own
    saved = json.loads((tmp_path / "processor" / "processor_config.json").read_text())
    assert saved["feature_extractor"]["auto_map"] == own
