# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The sources of a corpus's cells: files of cells and TileDB-SOMA experiments, read in slices of cells."""

import csv
import hashlib
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import numpy as np
import pandas as pd

from ..io.containers import find_reader
from ..io.h5ad import open_cells
from ..model.count_matrix import CountMatrix
from ..model.count_sources import open_raw_counts
from ..model.count_values import RAW, check_values
from ..model.errors import InputError, Remedy, reason_of

#: The aspects of a cell that a description can mention, and CELLxGENE's column of `obs` for each.
ASPECTS = {
    "cell_type": "cell_type_ontology_term_id",
    "tissue": "tissue_ontology_term_id",
    "disease": "disease_ontology_term_id",
    "development_stage": "development_stage_ontology_term_id",
    "sex": "sex_ontology_term_id",
    "self_reported_ethnicity": "self_reported_ethnicity_ontology_term_id",
    "assay": "assay_ontology_term_id",
    "suspension_type": "suspension_type",
    "organism": "organism",
}
UNKNOWN = "unknown"
#: Keys of `uns` that name the origin of the cells; CELLxGENE's files have the first two.
ORIGIN = ("title", "citation", "source", "licence", "license")
#: An id of an ontology as OWL writes it, such as CL_0000236, also at the end of an address.
_UNDERSCORED_ID = re.compile(r"^(?:https?://\S+/)?([A-Za-z]+)_(\d+)$")
_SMALL_ID = re.compile(r"^[a-z]+:\d+$")
_TRUTH = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "t", "y"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "f", "n", "", "nan", "na", "none", "unknown"), False),
}
_STUDY, _PRIMARY, _PROFILE = "dataset_id", "is_primary_data", "profile"
_COLUMNS = (*ASPECTS.values(), _STUDY, _PRIMARY, _PROFILE)
#: Largest length of a source's name, in bytes. File names begin with it, and file systems allow 255.
_MAX_NAME_BYTES = 195


class ToldOfSource(NamedTuple):
    """
    What a table of sources tells of a source.

    Args:
        study: Name of its study; empty if it is a study of its own. Sources of one study, or of one atlas, count as one
            where cells are drawn for training.
        licence: Licence of its cells; empty if it is not known.
    """

    study: str = ""
    licence: str = ""


class Source(ABC):
    """
    Cells with raw counts and CELLxGENE's columns in `obs`. Another process receives the location only, and opens the
    source itself.

    Args:
        location: A path, or the URI of an experiment.
        where: A condition on columns of `obs` that selects cells, such as `tissue_general == 'blood'`.
        told: What is known of the source from elsewhere.
        reading: How its cells are read: `layer`, `use_raw`, `gene_column` and `organism` of
            `LangCellFeatureExtractor.open`; what is not among them is found out.
    """

    def __init__(
        self,
        location: str,
        where: str | None = None,
        told: "ToldOfSource | None" = None,
        reading: Mapping[str, Any] | None = None,
    ):
        self.location, self.where = location, where
        self.told = ToldOfSource() if told is None else told
        self.reading = dict(reading or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.location, self.where, self.told, self.reading)

    @property
    def study(self) -> str:
        """Name of the study where `obs` has no `dataset_id`."""
        return self.told.study or self.name

    @property
    def name(self) -> str:
        """Name of the source."""
        return Path(os.path.abspath(self.location)).stem  # "." gets the name of its folder.

    @property
    def naming(self) -> dict[str, Any]:
        """How the genes of the cells that were read are named: `gene_column` and `organism`, where they are given."""
        return {name: self.reading[name] for name in ("gene_column", "organism") if name in self.reading}

    @property
    def array(self) -> str:
        """Name of the array that is read."""
        return "raw counts"

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """Number of cells, selected or not."""

    @property
    @abstractmethod
    def rows(self) -> np.ndarray:
        """Ascending numbers of the selected cells."""

    @abstractmethod
    def read(self, rows: np.ndarray) -> ad.AnnData:
        """Reads some cells into memory: counts, and CELLxGENE's columns of `obs`."""

    def origin(self) -> dict[str, str]:
        """Returns the keys of `ORIGIN` that the source itself has."""
        return {}

    def about(self) -> dict[str, str]:
        """Returns where the cells come from, and their licence: what the source says, then what was told of it."""
        return ({"licence": self.told.licence} if self.told.licence else {}) | self.origin()

    @abstractmethod
    def checksum(self) -> str:
        """Computes the SHA-256 of the content; for a source too large to read, that of its address and size."""


def cell_facts(obs: pd.DataFrame, study: str) -> pd.DataFrame:
    """
    Reads the known facts about each cell from `obs`.

    Args:
        obs: The cells' annotations.
        study: Name of the study where `obs` has none.

    Returns:
        `(cells, 12)`: the term id of each aspect, or its name where it has no ontology, `unknown` where there is none;
        `study`; `primary`, false for cells that CELLxGENE also has in another dataset; and `profile`, true for averages
        and sums over many cells.
    """
    facts = {aspect: _text_column(obs, column, UNKNOWN) for aspect, column in ASPECTS.items()}
    facts["study"] = _text_column(obs, _STUDY, study)
    facts["primary"] = _truth_column(obs, _PRIMARY, True)
    facts["profile"] = _truth_column(obs, _PROFILE, False)
    return pd.DataFrame(facts)


def _text_column(obs: pd.DataFrame, column: str, default: str) -> np.ndarray:
    if column not in obs:
        return np.full(len(obs), default, dtype=object)
    texts = obs[column].astype(object).where(obs[column].notna(), default).astype(str)
    if column.endswith("_ontology_term_id"):
        texts = texts.str.strip().str.replace(_UNDERSCORED_ID, r"\1:\2", regex=True)
        texts = texts.where(~texts.str.match(_SMALL_ID), texts.str.upper())
    return texts.to_numpy()


def _truth_column(obs: pd.DataFrame, column: str, default: bool) -> np.ndarray:
    """
    Returns a column of true and false, however they are written; a missing value is false.

    Raises:
        InputError: It holds something else.
    """
    if column not in obs:
        return np.full(len(obs), default)
    words = obs[column].astype(object).where(obs[column].notna(), False).astype(str)
    values = words.str.strip().str.casefold().map(_TRUTH)
    if values.isna().any():
        odd = words[values.isna()].iloc[0]
        raise InputError(f"obs[{column!r}] must hold true or false, not {odd!r}.")
    return values.to_numpy(dtype=bool)


class CellsFile(Source):
    """
    An `.h5ad` file, read from disk in slices, or another container that `open_cells` takes. The counts are those of
    the array that `reading` names, or else of X, raw or a layer called counts: CELLxGENE's files have normalised values
    in X and counts in raw.
    """

    @cached_property
    def _adata(self) -> ad.AnnData:
        return open_cells(self.location)

    @property
    def n_cells(self) -> int:
        return self._adata.n_obs

    @cached_property
    def rows(self) -> np.ndarray:
        if self.where is None:
            return np.arange(self.n_cells)
        try:
            # The condition sees the columns only, and no variables of this program.
            selected = self._adata.obs.eval(self.where, local_dict={}, global_dict={})
            return np.flatnonzero(np.asarray(selected, dtype=bool))
        except Exception as error:  # pandas raises many kinds of errors for a bad condition.
            raise InputError(
                f"{self.location}: the condition {self.where!r} cannot be evaluated: {reason_of(error)}"
            ) from error

    def read(self, rows: np.ndarray) -> ad.AnnData:
        matrix, genes = self._counts
        counts = matrix.take(rows)
        check_values(counts, RAW, replace(matrix, cell_names=self._adata.obs_names[rows]), 0)
        obs = self._adata.obs.iloc[rows]
        return ad.AnnData(counts, obs=obs.loc[:, obs.columns.isin(_COLUMNS)], var=genes.copy())

    @property
    def array(self) -> str:
        return self._counts[0].label

    @cached_property
    def _counts(self) -> tuple[CountMatrix, pd.DataFrame]:
        """The counts, and the table of their columns."""
        return open_raw_counts(self._adata, self.reading.get("layer"), self.reading.get("use_raw", False))

    def origin(self) -> dict[str, str]:
        found = {name: self._adata.uns.get(name) for name in ORIGIN}
        return {name.replace("license", "licence"): text for name, text in found.items() if isinstance(text, str)}

    def checksum(self) -> str:
        path = Path(self.location)
        parts = sorted(part for part in path.rglob("*") if part.is_file()) if path.is_dir() else [path]
        digest = hashlib.sha256()
        for part in parts:
            if part != path:
                digest.update(os.fsencode(part.relative_to(path)))
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


class SomaExperiment(Source):
    """A TileDB-SOMA experiment with raw counts in `ms["RNA"]/X/raw`, like the CELLxGENE Census."""

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
    def n_cells(self) -> int:
        return int(self._experiment.obs.count)

    @cached_property
    def rows(self) -> np.ndarray:
        soma = _import_soma()
        try:
            ids = self._experiment.obs.read(column_names=["soma_joinid"], value_filter=self.where).concat()
        except soma.SOMAError as error:
            raise InputError(
                f"{self.location}: the condition {self.where!r} cannot be evaluated: {reason_of(error)}"
            ) from error
        return np.sort(ids["soma_joinid"].to_numpy())

    def read(self, rows: np.ndarray) -> ad.AnnData:
        soma = _import_soma()
        known = [name for name in self._experiment.obs.schema.names if name in _COLUMNS]
        with self._experiment.axis_query("RNA", obs_query=soma.AxisQuery(coords=(rows,))) as query:
            return query.to_anndata("raw", column_names={"obs": ["soma_joinid", *known]})

    def checksum(self) -> str:
        # An atlas is too large to read for its checksum. The Census has its release in its address.
        return hashlib.sha256(f"{self.location} {self.n_cells}".encode()).hexdigest()


def _import_soma() -> Any:
    try:
        import tiledbsoma
    except ModuleNotFoundError as error:
        raise InputError("To read a SOMA experiment, install the extra [census].") from error
    return tiledbsoma


def find_sources(
    inputs: Iterable[str],
    where: str | None = None,
    told: Mapping[str, ToldOfSource] | None = None,
    reading: Mapping[str, Any] | None = None,
) -> list[Source]:
    """
    Finds the sources among files of cells, folders of them, and SOMA experiments (folders or URIs), ordered by name.

    Args:
        inputs: Paths and URIs.
        where: A condition on `obs` that selects cells.
        told: What is known of some sources from elsewhere, by their names.
        reading: How the cells of all of them are read: `layer`, `use_raw`, `gene_column`, `organism`.

    Raises:
        InputError: An input does not exist, holds no cells, or has no layers where one is asked for; two sources have
            the same name; a name is too long or not valid UTF-8; or something is told of a source that is not among
            the inputs.
    """
    found: list[Source] = []
    for location in inputs:
        path = Path(location)
        if "://" in location or (path.is_dir() and (path / "__group").exists()):
            if given := {"layer", "use_raw"} & {*(reading or {})}:
                remedy = Remedy("leave out {option}.", given.pop())
                raise InputError(f"{location} is a SOMA experiment, of which the raw counts are read:", remedy)
            found.append(SomaExperiment(location, where, reading=reading))
            continue
        files = _files_in(path) if path.is_dir() and find_reader(path) is None else [path]
        if not files or not path.exists():
            raise InputError(f"{location} is no file of cells, such as .h5ad, a folder of them, or a SOMA experiment.")
        found += [CellsFile(str(file), where, reading=reading) for file in files]
    for source in found:
        if len(os.fsencode(source.name)) > _MAX_NAME_BYTES or not _is_utf8(source.name):
            raise InputError(
                f"The name of {source.location} is not valid UTF-8, or longer than {_MAX_NAME_BYTES} bytes: rename it."
            )
    found.sort(key=lambda source: source.name)
    unused = dict(told or {})
    for source in found:
        source.told = unused.pop(source.name, source.told)
    if unused:
        raise InputError(f"The table tells of {', '.join(map(repr, unused))}, which is not among the sources.")
    for source, following in pairwise(found):
        if source.name == following.name:
            raise InputError(
                f"{source.location} and {following.location} have the same name {source.name!r}: rename one."
            )
    return found


def _files_in(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.suffix == ".h5ad" or find_reader(path) is not None]


def read_source_table(path: Path) -> dict[str, ToldOfSource]:
    """
    Reads what a table (.tsv) tells of sources: the columns `source`, and `study`, `licence` or both. A cell that is
    empty tells nothing.

    Raises:
        InputError: The table cannot be read, lacks a column, or names a source twice.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, delimiter="\t")
            named = [name for name in ToldOfSource._fields if name in (table.fieldnames or ())]
            if "source" not in (table.fieldnames or ()) or not named:
                raise InputError(f"{path} must have columns source, and study or licence, separated by a tab.")
            rows = [(row["source"], ToldOfSource(**{name: row[name] or "" for name in named})) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
    if len(dict(rows)) < len(rows):
        raise InputError(f"{path} names a source twice.")
    return dict(rows)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # The name has other bytes.
        return False
    return True


__all__ = [
    "ASPECTS",
    "UNKNOWN",
    "CellsFile",
    "SomaExperiment",
    "Source",
    "ToldOfSource",
    "cell_facts",
    "find_sources",
    "read_source_table",
]
