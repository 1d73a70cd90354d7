# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Two small studies and their genes, and helpers to build corpora and compare folders."""

import filecmp
import gzip
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from modeling_langcell.corpus.build import CorpusSettings, make_corpus
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.corpus.sources import find_sources
from tests.support.tiny import GENES, SYMBOLS

TYPES = np.array(["CL:0000236", "CL:0000623", "CL:0000576", "unknown"])


@pytest.fixture(scope="session")
def gene_info(tmp_path_factory):
    path = tmp_path_factory.mktemp("genes") / "gene_info.gz"
    lines = ["#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription"]
    lines += [f"9606\t{s}\t-\tHGNC:1|Ensembl:{g}\t{s} protein" for g, s in zip(GENES, SYMBOLS, strict=True)]
    with gzip.open(path, "wt") as table:
        table.write("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def studies(tmp_path):
    """Two studies of 50 and 30 cells; the second lacks some genes and some columns of `obs`."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "studies"
    folder.mkdir()
    for name, cells, genes in (("first", 50, 40), ("second", 30, 25)):
        obs = pd.DataFrame(
            {
                "cell_type_ontology_term_id": TYPES[rng.integers(0, 4, cells)],
                "tissue_ontology_term_id": "UBERON:0000178",
            },
            index=[f"{name}{cell}" for cell in range(cells)],
        )
        if name == "first":
            obs["sex_ontology_term_id"] = pd.Categorical(["PATO:0000383"] * 49 + [None])
            obs["is_primary_data"] = [False, False] + [True] * 48
        counts = rng.poisson(1.0, (cells, genes)).astype(np.float32)
        counts[5] = 0
        adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES[:genes]))
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


def build(folder, output, gene_info, *, where=None, reading=None, **options) -> Corpus:
    """Builds a corpus of a file or a folder of files, in chunks of 16 cells."""
    names = ("orthologs", "vocabulary", "max_genes", "min_cells", "chunk_cells")
    settings = {"chunk_cells": 16, "min_cells": 1} | {name: options.pop(name) for name in names if name in options}
    sources = find_sources([str(folder)], where, reading=reading)
    return make_corpus(sources, output, CorpusSettings(gene_info, **settings), **options)


def same_folders(one: Path, other: Path) -> bool:
    """Returns whether two folders hold the same files, to the last byte."""
    names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    files = [name for name in names[0] if (one / name).is_file()]
    return names[0] == names[1] and not any(filecmp.cmpfiles(one, other, files, shallow=False)[1:])
