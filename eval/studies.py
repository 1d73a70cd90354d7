# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The studies that models are evaluated on: the facts of each, and its cells, verified by checksum."""

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pooch

from modeling_langcell.io.atomic import folder_beside
from modeling_langcell.io.content import content_hash
from modeling_langcell.io.documents import read_yaml
from modeling_langcell.io.example import CELL_OPTIONS, LABEL_COLUMN, load_example
from modeling_langcell.io.h5ad import open_cells
from modeling_langcell.io.labels import is_known
from modeling_langcell.model.errors import InputError
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor

REGISTRY = Path(__file__).with_name("studies.yaml")
#: Column of `obs` that names the study of each cell where several are taken together.
PART = "study"

_CELLXGENE = "https://datasets.cellxgene.cziscience.com/{}.h5ad"
_PLACES = ("path", "url", "cellxgene", "source", "parts")
_REQUIRED = ("what", "in_training", "licence", "citation")
_READ = ("layer", "use_raw", "gene_column", "organism", "counts")


@dataclass(frozen=True)
class Study:
    """
    Cells with known types, and where to find them. Exactly one of `path`, `url`, `source` and `parts` is given.

    Args:
        name: Name in results.
        what: One line on tissue, donors and peculiarities.
        in_training: True if the shipped checkpoint's training saw its cells or labels.
        licence, citation: Licence and citation of the data.
        path: Its `.h5ad` file, relative to a data folder.
        url: Address of its `.h5ad` file on the web.
        source: `scanpy` for the example that comes with scanpy.
        parts: Other studies whose cells are taken together; `obs["study"]` is their `batch_key` by default.
        sha256: SHA-256 of the file.
        label_key: Column of `obs` with the types.
        batch_key: Column of `obs` with the batches, such as donors or assays; None without batches.
        read: Options of `LangCellFeatureExtractor` for reading its cells: `layer`, `use_raw`, `gene_column`,
            `organism`, `counts`.
    """

    name: str
    what: str
    in_training: bool
    licence: str
    citation: str
    path: str | None = None
    url: str | None = None
    source: str | None = None
    parts: tuple["Study", ...] = ()
    sha256: str | None = None
    label_key: str = "cell_type"
    batch_key: str | None = None
    read: Mapping[str, Any] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """The exact version of the cells: the file's SHA-256, the version of scanpy, or the versions of all parts."""
        if self.parts:
            return "; ".join(part.version for part in self.parts)
        return f"sha256 {self.sha256}" if self.source is None else f"{self.source} {version(self.source)}"

    def open(self, data: Path, download: bool = False, extractor: LangCellFeatureExtractor | None = None) -> ad.AnnData:
        """
        Reads all cells into memory, including those without a label.

        Args:
            data: The folder that `path` is relative to.
            download: True to allow fetching a file from the web. It is kept in the folder that `LANGCELL_DATA_CACHE`
                names, by default the user's cache.
            extractor: Matches the genes of the parts; needed where there are parts.

        Raises:
            InputError: The file does not exist, cannot be fetched or may not be, or has a different checksum from the
                stated one; the column of labels or batches is missing; or a part's X holds no counts.
        """
        if self.parts:
            adata = _concatenate({part.name: part.open(data, download) for part in self.parts}, extractor)
        elif self.source is not None:
            adata = load_example()
        else:
            adata = open_cells(self._file(Path(data), download)).to_memory()
        for key, column in (("label_key", self.label_key), ("batch_key", self.batch_key)):
            if column is not None and column not in adata.obs:
                columns = sorted(map(str, adata.obs.columns))
                raise InputError(f"{self.name}: {key} {column!r} is not a column of obs; its columns are {columns}.")
        return adata

    def labelled(self, adata: ad.AnnData) -> np.ndarray:
        """Returns `(cells,)` booleans: true where the type is known."""
        return is_known(adata.obs[self.label_key])

    def _file(self, data: Path, download: bool) -> Path:
        if self.path is not None:
            file = data / self.path
            if not file.is_file():
                raise InputError(f"{self.name}: no file {file}; name the folder that has {self.path} with --data.")
            if (found := content_hash(file)) != self.sha256:
                raise InputError(
                    f"{self.name}: {file} is not the file that was registered: its SHA-256 is {found}, not "
                    f"{self.sha256}. Get the file again, or correct the entry."
                )
            return file
        file = Path(os.environ.get("LANGCELL_DATA_CACHE") or pooch.os_cache("langcell")) / f"{self.sha256}.h5ad"
        if not file.is_file() or content_hash(file) != self.sha256:
            if not download:
                raise InputError(f"{self.name} is not on this machine: --download fetches it from {self.url}.")
            self._fetch(file)
        return file

    def _fetch(self, file: Path) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with folder_beside(file) as folder:
                fetched = pooch.retrieve(
                    self.url, f"sha256:{self.sha256}", file.name, path=folder, progressbar=sys.stderr.isatty()
                )
                Path(fetched).replace(file)
        except OSError as error:  # This includes the errors of requests.
            raise InputError(f"{self.name}: {self.url} cannot be fetched to {file.parent}: {error}") from error
        except ValueError as error:
            raise InputError(
                f"{self.name}: the file at {self.url} is not the one that was registered: its SHA-256 is not "
                f"{self.sha256}. It was not kept; correct the entry if the file was replaced on purpose."
            ) from error


def _concatenate(studies: Mapping[str, ad.AnnData], extractor: LangCellFeatureExtractor | None) -> ad.AnnData:
    """Concatenates studies. The genes of each are matched separately, so a cell ranks as in its own study."""
    if extractor is None:
        raise TypeError("Studies with parts need the extractor that knows their genes.")
    genes = pd.DataFrame(index=extractor.gene_vocabulary["ensembl_ids"])
    parts = {}
    for name, adata in studies.items():
        counts, _ = extractor.read_counts(adata)
        parts[name] = ad.AnnData(counts[:, 2:-1], adata.obs, genes)  # Without <pad>, <mask> and <cls>.
    return ad.concat(parts, label=PART)


def read_studies(*extra: Path) -> dict[str, Study]:
    """
    Reads the committed studies and those of more YAML files, by name; a later study replaces an earlier one of the
    same name.

    A file maps names to the fields of `Study`. Required are `what`, `in_training`, `licence`, `citation`, one of
    `path`, `url`, `source` and `parts`, and `sha256` for a file. `cellxgene: ID`, the id of a dataset version of
    CELLxGENE, replaces `url`; `parts` are names of studies higher up or in an earlier file.

    Raises:
        InputError: The file does not exist, or an entry is malformed.
    """
    studies: dict[str, Study] = {}
    for file in (REGISTRY, *map(Path, extra)):
        entries = read_yaml(file)
        if not isinstance(entries, dict):
            raise InputError(f"{file} must map the names of studies to their fields.")
        for name, entry in entries.items():
            studies[str(name)] = _study(file, str(name), entry, studies)
    return studies


def _study(file: Path, name: str, entry: Any, above: Mapping[str, Study]) -> Study:
    """Returns the study of one entry, checked; `above` are the studies that may be its parts."""

    def require(condition: bool, message: str) -> None:
        if not condition:
            raise InputError(f"{file}: {name}: {message}.")

    require(isinstance(entry, dict), "the entry must be fields and their values")
    known = [*(one.name for one in fields(Study) if one.name != "name"), "cellxgene"]
    unknown = [str(key) for key in entry if key not in known]
    require(not unknown, f"unknown field {', '.join(unknown)}; the known fields are {', '.join(known)}")
    missing = [key for key in _REQUIRED if key not in entry]
    require(not missing, f"{' and '.join(missing)} must be given")
    require(
        sum(key in entry for key in _PLACES) == 1, f"exactly one of {', '.join(_PLACES)} must say where the cells are"
    )
    for key, value in entry.items():
        if key == "in_training":
            require(isinstance(value, bool), f"{key} must be true or false, not {value!r}")
        elif key == "parts":
            named = isinstance(value, list) and len(value) > 1 and all(str(part) in above for part in value)
            require(named, f"{key} must be names of studies listed before it, not {value!r}")
        elif key == "read":
            options = isinstance(value, dict) and set(value) <= set(_READ)
            require(options, f"{key} must map some of {', '.join(_READ)} to their values, not be {value!r}")
        else:
            require(isinstance(value, str) and value.strip() != "", f"{key} must be a text, not {value!r}")
    if "source" in entry:
        require(entry["source"] == "scanpy", f"source must be 'scanpy', not {entry['source']!r}")
        require("sha256" not in entry, "sha256 is only for a file: leave it out")
        return Study(name, **{"label_key": LABEL_COLUMN, "read": CELL_OPTIONS} | entry)
    if "parts" in entry:
        require("sha256" not in entry, "sha256 is only for a file: leave it out")
        parts = tuple(above[str(part)] for part in entry["parts"])
        plain = "read" not in entry and not any(part.read for part in parts)
        require(plain, "parts must be studies whose X holds counts, so without read")
        return Study(name, **{"batch_key": PART} | entry | {"parts": parts})
    is_hash = re.fullmatch("[0-9a-f]{64}", entry.get("sha256", "")) is not None
    require(is_hash, "sha256 must be given, the 64 hexadecimal digits that sha256sum prints for the file")
    if "cellxgene" in entry:
        entry = {"url": _CELLXGENE.format(entry["cellxgene"])} | entry
        del entry["cellxgene"]
    if "url" in entry:
        require(re.match("https?://", entry["url"]) is not None, f"url must begin with https://, not {entry['url']!r}")
    return Study(name, **entry)


__all__ = ["PART", "REGISTRY", "Study", "read_studies"]
