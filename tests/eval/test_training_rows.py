# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from modeling_langcell import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI
from modeling_langcell.eval import training_rows
from modeling_langcell.eval.training_rows import MOST_ROWS, read_rows, rows_of, training_files, types_seen
from modeling_langcell.model.errors import InputError
from modeling_langcell.ontology import id_of

GENES = ["CD79A", "MS4A1", "CD3D", "CD14"]


@pytest.fixture(scope="module")
def extractor():
    return LangCellAnnotator.from_pretrained(MINI).processor.feature_extractor


@pytest.fixture
def data(tmp_path):
    """A folder with 70 naive B cells and 3 T cells, and a file of averages that measured other genes."""

    def write(path, types, genes, **obs):
        path.parent.mkdir(parents=True)
        counts = sp.csr_matrix(np.arange(1, len(types) * len(genes) + 1, dtype=np.float32).reshape(len(types), -1))
        ids = [id_of(name) for name in types]
        obs = pd.DataFrame({"cell_type_ontology_term_id": ids, **obs}, index=[f"c{row}" for row in range(len(types))])
        ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=genes)).write_h5ad(path)

    write(tmp_path / "train" / "blood.h5ad", ["naive B cell"] * 70 + ["T cell"] * 3, GENES)
    write(tmp_path / "more" / "profiles" / "atlas.h5ad", ["monocyte"], ["CD14", "LYZ"], profile=True)
    return tmp_path


def test_rows_are_few_of_each_type_and_drawn_from_averages(data, extractor):
    atlas, blood = (read_rows(path, extractor, 0) for path in training_files(data))
    assert dict(zip(*np.unique(blood.types, return_counts=True), strict=True)) == {
        id_of("naive B cell"): MOST_ROWS,
        id_of("T cell"): 3,
    }
    assert len(atlas.types) == 5
    assert set(atlas.types) == {id_of("monocyte")}


def test_a_row_belongs_to_the_nearest_candidate_above_it(data, extractor):
    sources = [read_rows(path, extractor, 0) for path in training_files(data)]
    genes = extractor.match_genes(GENES[:3]).token_ids
    counts, labels = rows_of(sources, ["B cell", "lymphocyte", "monocyte"], genes)
    # The averages measured none of the three genes.
    assert dict(zip(*np.unique(labels, return_counts=True), strict=True)) == {"B cell": MOST_ROWS, "lymphocyte": 3}
    assert set(counts.indices) == set(genes)
    with pytest.raises(InputError, match="No row of the training is of the types neuron"):
        rows_of(sources, ["neuron"], genes)


@pytest.mark.parametrize(
    ("term", "candidate"),
    [
        ("B cell", "B cell"),
        ("naive B cell", "B cell"),
        ("CD8-positive, alpha-beta cytotoxic T cell", "CD8-positive, alpha-beta T cell"),
        ("natural killer cell", "lymphocyte"),
        ("hepatocyte", ""),
        ("leukocyte", ""),
    ],
)
def test_nearest_candidates(term, candidate):
    names = ("lymphocyte", "B cell", "CD8-positive, alpha-beta T cell")
    candidates = {str(id_of(name)): name for name in names}
    assert training_rows.nearest_candidate(str(id_of(term)), candidates) == candidate
    assert training_rows.nearest_candidate("unknown", candidates) == ""


@pytest.mark.parametrize("name", ["train/pbmc_facs_zheng", "more/profiles/retina_lung_ovary_profiles"])
def test_rows_of_real_sources_are_balanced_counts(shared, extractor, name):
    rows = read_rows(shared / "data" / f"{name}.h5ad", extractor, seed=0)
    _, sizes = np.unique(rows.types, return_counts=True)
    assert rows.counts.shape == (len(rows.types), len(extractor))
    assert 1 < sizes.max() <= MOST_ROWS
    assert (rows.counts.data == rows.counts.data.round()).all()
    assert np.isin(np.unique(rows.counts.indices), rows.genes).all()


def test_types_are_seen_with_those_above_them(data, extractor):
    seen = types_seen(read_rows(path, extractor, 0) for path in training_files(data))
    assert {id_of("naive B cell"), id_of("B cell"), id_of("lymphocyte")} <= seen
    assert id_of("memory B cell") not in seen
