# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A finished corpus: the cells of many studies as ranked gene ids and the term ids that describe them."""

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from datasets import Dataset, concatenate_datasets

from ..model.errors import InputError
from .sources import ASPECTS

FORMAT = 1
MANIFEST, GENES, PANELS = "manifest.json", "genes.json", "panels.arrow"
SHARDS, UNFINISHED = "shards", "unfinished"
#: What a corpus was begun with; until this is gone the making of it is not over.
PLAN = Path(UNFINISHED, "plan.json")


class Corpus:
    """
    A corpus that was made: its cells stay on disk, what describes them is in memory as small integers.

    Args:
        folder: Where it is.

    Raises:
        InputError: There is none, or the making of it was not finished.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).is_file():
            begun = (self.folder / UNFINISHED).exists()
            raise InputError(f"{folder} holds no corpus" + (": the making of it was not finished." if begun else "."))
        self.manifest: dict[str, Any] = json.loads((self.folder / MANIFEST).read_text())

    def __len__(self) -> int:
        return int(self.manifest["cells"])

    @property
    def origin(self) -> dict[str, Any]:
        """What a model's record says of the cells that it learnt from: how many, and of which sources."""
        said = ("name", "sha256", "kept", "left_out", "about")
        return {
            "cells": len(self),
            "genes": self.manifest["genes"],
            "sources": [{name: source[name] for name in said if name in source} for source in self.manifest["sources"]],
        }

    @cached_property
    def gene_vocabulary(self) -> dict[str, list]:
        """The genes and their medians, as `LangCellFeatureExtractor` takes them."""
        return json.loads((self.folder / GENES).read_text())

    @cached_property
    def cells(self) -> Dataset:
        """
        `token_ids`, `length`, `study` and a term id for each aspect, of every cell; they stay on disk.

        Raises:
            InputError: A shard is missing.
        """
        require_shards(self.folder, self.manifest["shards"])
        shards = [self.folder / SHARDS / shard["file"] for shard in self.manifest["shards"] if shard["cells"]]
        return concatenate_datasets([Dataset.from_file(str(shard)) for shard in shards])

    @cached_property
    def facts(self) -> pd.DataFrame:
        """All but the genes, in memory: `length`, and categories for `study` and the aspects."""
        table = self.cells.data.table.select(["length", "study", *ASPECTS])
        return table.to_pandas(strings_to_categorical=True)

    def token_ids(self, cells: Sequence[int] | np.ndarray) -> list[np.ndarray]:
        """Ranked ids of some cells, `<cls>` first."""
        return [np.asarray(ids) for ids in self._token_ids[cells]["token_ids"]]

    @cached_property
    def panels(self) -> dict[str, np.ndarray]:
        """Ids of all that was counted in each study, `<cls>` included."""
        table = pa.ipc.open_stream((self.folder / PANELS).read_bytes()).read_all()
        ids = (np.asarray(panel) for panel in table["token_ids"].to_pylist())
        return dict(zip(table["study"].to_pylist(), ids, strict=True))

    @cached_property
    def _token_ids(self) -> Dataset:
        return self.cells.select_columns("token_ids").with_format("numpy")


def require_shards(folder: Path, shards: Iterable[dict[str, Any]]) -> None:
    """
    Raises:
        InputError: A shard of the manifest is not there.
    """
    for shard in shards:
        if not (folder / SHARDS / shard["file"]).is_file():
            raise InputError(f"{folder} lacks its shard {shard['file']}: make the corpus anew.")


__all__ = ["FORMAT", "GENES", "MANIFEST", "PANELS", "PLAN", "SHARDS", "UNFINISHED", "Corpus"]
