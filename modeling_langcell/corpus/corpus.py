# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A finished corpus: the cells of many studies as ranked gene ids, with the term ids that describe them."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from datasets import Dataset, concatenate_datasets

from ..io.documents import read_json
from ..model.errors import InputError
from ..model.gene_matching import GeneVocabulary
from .arrow import PANEL_COLUMNS, read_table, require_checksum, require_intact_shard
from .folder import FORMAT, GENES, MANIFEST, PANELS, PLACES, SHARDS, UNFINISHED
from .profiles import draw_cell
from .sources import ASPECTS


class Corpus:
    """
    A finished corpus. Its cells stay on disk; their descriptions are held in memory as small integers.

    Args:
        folder: The corpus's folder.

    Raises:
        InputError: The folder holds no corpus, or an unfinished one, or a file that is not the one that was built.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            if (self.folder / UNFINISHED).exists():
                raise InputError(f"{folder} holds an unfinished corpus: run the command that builds it again.")
            raise InputError(f"{folder} holds no corpus.")
        self.manifest: dict[str, Any] = _read_manifest(self.folder / MANIFEST)
        for name, sha256 in self.manifest.get("files", {}).items():  # Older corpora have none.
            require_checksum(self.folder / name, sha256)

    def __len__(self) -> int:
        return int(self.manifest["cells"])

    @property
    def origin(self) -> dict[str, Any]:
        """The corpus as a model's training record describes it: numbers of cells and genes, and the sources."""
        recorded = ("name", "sha256", "kept", "left_out", "about")
        return {
            "cells": len(self),
            "genes": self.manifest["genes"],
            "sources": [
                {name: source[name] for name in recorded if name in source} for source in self.manifest["sources"]
            ],
        }

    @cached_property
    def gene_vocabulary(self) -> dict[str, list]:
        """The genes and their medians, as `LangCellFeatureExtractor` takes them."""
        vocabulary = read_json(self.folder / GENES)
        genes = vocabulary.get("ensembl_ids") if isinstance(vocabulary, dict) else None
        if not isinstance(genes, list) or len(genes) != self.manifest["genes"]:
            raise InputError(f"{self.folder / GENES} does not have the corpus's genes: build the corpus again.")
        return vocabulary

    @cached_property
    def gene_places(self) -> dict[str, list] | None:
        """The usual places of the genes, as `LangCellFeatureExtractor` takes them; None in a corpus without them."""
        return read_json(self.folder / PLACES) if (self.folder / PLACES).is_file() else None

    @cached_property
    def cells(self) -> Dataset:
        """
        Every cell's `token_ids`, `length`, `study` and a term id for each aspect, on disk. The first use reads all
        shards once, to check them.

        Raises:
            InputError: A shard is missing, or is not what the manifest records.
        """
        require_shards(self.folder, self.manifest["shards"])
        with ThreadPoolExecutor() as pool:
            list(pool.map(self._require_intact, self.manifest["shards"]))
        shards = [self.folder / SHARDS / shard["file"] for shard in self.manifest["shards"] if shard["cells"]]
        return concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])

    @cached_property
    def facts(self) -> pd.DataFrame:
        """
        Every column of `cells` but the genes, in memory: `length`; `study` and the aspects as categories; and
        `profile`, true for averages and sums over many cells.
        """
        table = self.cells.data.table
        facts = table.select(["length", "study", *ASPECTS]).to_pandas(strings_to_categorical=True)
        return facts.assign(profile=pc.is_valid(table["counts"]).to_numpy())

    def token_ids(self, cells: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Reads the ranked ids of some cells, `<cls>` first; all the genes of a profile."""
        return [np.asarray(ids) for ids in self._token_ids[cells]["token_ids"]]

    def draw_cell(self, profile: int, rng: np.random.Generator) -> np.ndarray:
        """
        Draws a cell from a profile, as `profiles.draw_cell` does with the profiles of its shard as background: a study
        may have other sources, whose genes this one did not measure.

        Returns:
            The cell's ranked ids, `<cls>` first.
        """
        row = self._profiles[profile]
        cls, genes = np.split(row["token_ids"].astype(np.int64), [1])
        ids, counts = draw_cell(genes, row["counts"], self._backgrounds[self._shard_of_cell[profile]], rng)
        return np.concatenate([cls, ids[np.argsort(self._medians[ids] / counts, kind="stable")]])

    @cached_property
    def panels(self) -> dict[tuple[str, str], np.ndarray]:
        """Ids of all genes that were measured, by source and study."""
        table = read_table(self.folder / PANELS, PANEL_COLUMNS)
        ids = (np.asarray(panel, dtype=np.uint32) for panel in table["token_ids"].to_pylist())
        return dict(zip(zip(table["source"].to_pylist(), table["study"].to_pylist(), strict=True), ids, strict=True))

    def _require_intact(self, shard: dict[str, Any]) -> None:
        path = self.folder / SHARDS / shard["file"]
        require_intact_shard(path, shard["cells"], shard["sha256"], self.manifest["genes"] + 3)

    @cached_property
    def _token_ids(self) -> Dataset:
        return self.cells.select_columns("token_ids").with_format("numpy")

    @cached_property
    def _profiles(self) -> Dataset:
        return self.cells.select_columns(["token_ids", "counts"]).with_format("numpy")

    @cached_property
    def _medians(self) -> np.ndarray:
        return GeneVocabulary(self.gene_vocabulary).median_of_id

    @cached_property
    def _shard_of_cell(self) -> np.ndarray:
        shards = self.manifest["shards"]
        return np.repeat(np.arange(len(shards)), [shard["cells"] for shard in shards])

    @cached_property
    def _backgrounds(self) -> dict[int, np.ndarray]:
        """Cumulative sums of the mean profile of each shard, by gene id."""
        backgrounds: dict[int, np.ndarray] = {}
        for profile in np.flatnonzero(self.facts["profile"]).tolist():
            row = self._profiles[profile]
            sums = backgrounds.setdefault(self._shard_of_cell[profile], np.zeros(len(self._medians)))
            sums[row["token_ids"][1:]] += row["counts"] / row["counts"].sum(dtype=np.float64)
        return {shard: sums.cumsum() for shard, sums in backgrounds.items()}


def _read_manifest(path: Path) -> dict[str, Any]:
    """
    Reads the manifest of a corpus.

    Raises:
        InputError: The file is damaged, was written by another version, or names files elsewhere.
    """
    found = read_json(path)
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path.parent} was built by another version of this package: build the corpus again.")

    def is_shard(one: Any) -> bool:
        named = isinstance(one, dict) and isinstance(one.get("file"), str) and isinstance(one.get("sha256"), str)
        return named and one["file"] == Path(one["file"]).name and type(one.get("cells")) is int and one["cells"] >= 0

    shards: Any = found.get("shards")
    sources: Any = found.get("sources")
    files: Any = found.get("files", {})
    valid = isinstance(shards, list) and all(map(is_shard, shards))
    valid &= isinstance(sources, list) and all(isinstance(source, dict) for source in sources)
    valid &= isinstance(files, dict) and files.keys() <= {GENES, PANELS, PLACES}
    valid &= type(found.get("genes")) is int and found["genes"] > 0
    if not valid or found.get("cells") != sum(shard["cells"] for shard in shards):
        raise InputError(f"{path} is not what langcell corpus writes: use an intact copy, or build the corpus again.")
    return found


def require_shards(folder: Path, shards: Iterable[dict[str, Any]]) -> None:
    """
    Checks that the shards of a manifest exist.

    Raises:
        InputError: A shard is missing.
    """
    for shard in shards:
        if not (folder / SHARDS / shard["file"]).is_file():
            raise InputError(f"{folder} lacks its shard {shard['file']}: build the corpus again.")


__all__ = ["Corpus"]
