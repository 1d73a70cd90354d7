# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Where a corpus's cells come from: `.h5ad` files and TileDB-SOMA experiments, read in slices of cells."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp

from ..io.h5ad import open_cells
from ..model.errors import InputError, reason_of

#: What a description can speak of, and CELLxGENE's column of `obs` for it.
ASPECTS = {
    "cell_type": "cell_type_ontology_term_id",
    "tissue": "tissue_ontology_term_id",
    "disease": "disease_ontology_term_id",
    "development_stage": "development_stage_ontology_term_id",
    "sex": "sex_ontology_term_id",
    "self_reported_ethnicity": "self_reported_ethnicity_ontology_term_id",
    "assay": "assay_ontology_term_id",
    "suspension_type": "suspension_type",
}
UNKNOWN = "unknown"
#: What `uns` may say of where the cells come from: CELLxGENE has the first two.
ORIGIN = ("title", "citation", "source", "licence", "license")
_STUDY, _PRIMARY = "dataset_id", "is_primary_data"
_COLUMNS = (*ASPECTS.values(), _STUDY, _PRIMARY)
#: Files are named after their source, which file systems allow 255 bytes for: this many are left for the rest.
_LONGEST_NAME = 200


class Source(ABC):
    """
    Cells with raw counts and CELLxGENE's columns in `obs`. Only where it lies goes to another process.

    Args:
        location: A path, or the URI of an experiment.
        where: Which cells to take, as a condition on columns of `obs`: `tissue_general == 'blood'`.
    """

    def __init__(self, location: str, where: str | None = None):
        self.location, self.where = location, where

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.where)

    @property
    def name(self) -> str:
        """What its study is called where `obs` has no `dataset_id`."""
        return Path(os.path.abspath(self.location)).stem  # "." is called as its folder is.

    @property
    @abstractmethod
    def stored(self) -> int:
        """How many cells it holds."""

    @property
    @abstractmethod
    def rows(self) -> np.ndarray:
        """The numbers of the cells that are asked for, ascending."""

    @abstractmethod
    def read(self, rows: np.ndarray) -> ad.AnnData:
        """These cells, in memory: counts, and of `obs` what CELLxGENE prescribes."""

    def about(self) -> dict[str, str]:
        """What it says of its origin: `ORIGIN`'s keys, as far as they are there."""
        return {}

    @abstractmethod
    def checksum(self) -> str:
        """SHA-256 of what it holds, or of what names its version where that is beyond reading."""


def facts_of(obs: pd.DataFrame, study: str) -> pd.DataFrame:
    """
    `(cells, 10)`: the term id of each aspect, `unknown` where there is none; `study`; and `primary`, false for cells
    that CELLxGENE says it has elsewhere too.
    """
    facts = {aspect: _text(obs, column, UNKNOWN) for aspect, column in ASPECTS.items()}
    facts["study"] = _text(obs, _STUDY, study)
    facts["primary"] = obs[_PRIMARY].astype(bool).to_numpy() if _PRIMARY in obs else np.ones(len(obs), bool)
    return pd.DataFrame(facts)


def _text(obs: pd.DataFrame, column: str, otherwise: str) -> np.ndarray:
    if column not in obs:
        return np.full(len(obs), otherwise, dtype=object)
    return obs[column].astype(object).where(obs[column].notna(), otherwise).astype(str).to_numpy()


class H5adFile(Source):
    """
    An `.h5ad` file, read from disk in slices. Where there is a `raw` that holds whole numbers these are the counts, as
    CELLxGENE has it for files with normalised values in `X`; else `X` must hold them.
    """

    @cached_property
    def _adata(self) -> ad.AnnData:
        return open_cells(self.location)

    @property
    def stored(self) -> int:
        return self._adata.n_obs

    @cached_property
    def rows(self) -> np.ndarray:
        if self.where is None:
            return np.arange(self.stored)
        try:
            chosen = self._adata.obs.eval(
                self.where, local_dict={}, global_dict={}
            )  # Of columns alone, and of no program
            return np.flatnonzero(np.asarray(chosen, dtype=bool))
        except Exception as error:  # pandas raises whatever a condition makes it stumble over
            raise InputError(
                f"{self.location}: the condition {self.where!r} cannot be judged: {reason_of(error)}"
            ) from error

    def read(self, rows: np.ndarray) -> ad.AnnData:
        together = rows[-1] - rows[0] + 1 == len(rows)  # A slice is read sooner than as many single cells.
        try:
            matrix, genes = self._counts
            counts = matrix[rows[0] : rows[-1] + 1] if together else matrix[rows]
        except Exception as error:  # h5py raises whatever a damaged file makes it stumble over
            raise InputError(f"{self.location} cannot be read from cell {rows[0]} on: {reason_of(error)}") from error
        obs = self._adata.obs.iloc[rows]
        return ad.AnnData(counts, obs=obs.loc[:, obs.columns.isin(_COLUMNS)], var=genes.copy())

    @cached_property
    def _counts(self) -> tuple[Any, pd.DataFrame]:
        """The matrix with the counts, and its genes."""
        raw = self._adata.raw
        if raw is not None and _are_whole(raw.X[:64]):
            return raw.X, raw.var
        return self._adata.X, self._adata.var

    def about(self) -> dict[str, str]:
        told = {name: self._adata.uns.get(name) for name in ORIGIN}
        return {name.replace("license", "licence"): text for name, text in told.items() if isinstance(text, str)}

    def checksum(self) -> str:
        digest = hashlib.sha256()
        with open(self.location, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


def _are_whole(matrix: Any) -> bool:
    values = matrix.data if sp.issparse(matrix) else np.asarray(matrix)
    return bool((values == np.rint(values)).all())


class SomaExperiment(Source):
    """A TileDB-SOMA experiment with raw counts in `ms["RNA"]/X/raw`, as the CELLxGENE Census has them."""

    @cached_property
    def _experiment(self) -> Any:
        soma = _import_soma()
        anonymous = {"vfs.s3.no_sign_request": "true", "vfs.s3.region": "us-west-2"}
        context = soma.SOMATileDBContext(tiledb_config=anonymous if self.location.startswith("s3://") else {})
        try:
            return soma.Experiment.open(self.location, context=context)
        except soma.SOMAError as error:
            raise InputError(f"{self.location} cannot be opened as a SOMA experiment: {error}") from error

    @property
    def stored(self) -> int:
        return int(self._experiment.obs.count)

    @cached_property
    def rows(self) -> np.ndarray:
        soma = _import_soma()
        try:
            ids = self._experiment.obs.read(column_names=["soma_joinid"], value_filter=self.where).concat()
        except soma.SOMAError as error:
            raise InputError(
                f"{self.location}: the condition {self.where!r} cannot be judged: {reason_of(error)}"
            ) from error
        return np.sort(ids["soma_joinid"].to_numpy())

    def read(self, rows: np.ndarray) -> ad.AnnData:
        soma = _import_soma()
        known = [name for name in self._experiment.obs.schema.names if name in _COLUMNS]
        with self._experiment.axis_query("RNA", obs_query=soma.AxisQuery(coords=(rows,))) as query:
            return query.to_anndata("raw", column_names={"obs": ["soma_joinid", *known]})

    def checksum(self) -> str:
        # An atlas is not read twice to name it: its address, which for the Census has the release in it, and its size.
        return hashlib.sha256(f"{self.location} {self.stored}".encode()).hexdigest()


def _import_soma() -> Any:
    try:
        import tiledbsoma
    except ModuleNotFoundError as error:
        raise InputError("To read a SOMA experiment, install the extra [census].") from error
    return tiledbsoma


def find_sources(inputs: Iterable[str], where: str | None = None) -> list[Source]:
    """
    Sources of `.h5ad` files, folders of them, and SOMA experiments (folders, or URIs), ordered by name.

    Raises:
        InputError: Nothing there, two sources of one name, or a name that no study can have.
    """
    found: list[Source] = []
    for location in inputs:
        path = Path(location)
        files: Sequence[Path] = sorted(path.glob("*.h5ad")) if path.is_dir() else [path]
        if "://" in location or (path.is_dir() and (path / "__group").exists()):
            found.append(SomaExperiment(location, where))
        elif not files or not path.exists():
            raise InputError(f"{location} is no .h5ad file, no folder of them, and no SOMA experiment.")
        else:
            found += [H5adFile(str(file), where) for file in files]
    for source in found:
        if len(os.fsencode(source.name)) > _LONGEST_NAME or not _is_text(source.name):
            raise InputError(
                f"{source.location} has a name that is no text in UTF-8, or longer than {_LONGEST_NAME} bytes: "
                "rename it."
            )
    found.sort(key=lambda source: source.name)
    for one, other in pairwise(found):
        if one.name == other.name:
            raise InputError(f"{one.location} and {other.location} are both called {one.name!r}: rename one.")
    return found


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # Bytes on disk that are no UTF-8
        return False
    return True


__all__ = ["ASPECTS", "UNKNOWN", "H5adFile", "SomaExperiment", "Source", "facts_of", "find_sources"]
