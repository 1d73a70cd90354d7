# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The names of the columns and tables that an annotation writes into an AnnData."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..model.errors import InputError

if TYPE_CHECKING:  # The commands' help needs the names, and answers at once.
    import pandas as pd

PREFIX = "langcell_"  # What the names of all columns begin with.
CELL_TYPE, SCORE, NOVELTY = "langcell_cell_type", "langcell_score", "langcell_novelty"
CELL_TYPE_ID, COLOURS = "langcell_cell_type_id", "langcell_cell_type_colors"  # scanpy looks for colours by this name.
SECOND, MARGIN = "langcell_second", "langcell_margin"
ANSWER, ANSWER_ID, ANSWER_PROBABILITY = "langcell_answer", "langcell_answer_id", "langcell_answer_probability"
FIT, UNKNOWN_BECAUSE = "langcell_fit", "langcell_unknown_because"
PROVEN = "langcell_proven"
#: The clusters that an annotation made itself.
CLUSTER = "langcell_cluster"
CLUSTER_LABEL, CLUSTER_SECOND = "langcell_cluster_label", "langcell_cluster_second"
CLUSTER_ANSWER, CLUSTER_ANSWER_ID = "langcell_cluster_answer", "langcell_cluster_answer_id"
CLUSTER_AGREEMENT, CLUSTER_MIXED = "langcell_cluster_agreement", "langcell_cluster_mixed"
#: How well a text that was searched for describes each cell.
SEARCH = "langcell_search"
EMBEDDING, PROBABILITIES = "X_langcell", "langcell_probabilities"
RUN = "langcell"


def require_column(obs: pd.DataFrame, name: str) -> None:
    """
    Checks that cells have a column.

    Raises:
        InputError: There is no such column; the message names those that there are.
    """
    if name not in obs:
        hint = " Annotate the cells first." if name == CELL_TYPE else ""
        raise InputError(f"No column {name!r} in obs; columns here: {sorted(map(str, obs.columns))}.{hint}")


def require_own_column(name: str) -> None:
    """
    Checks that a column is the user's, and not one that an annotation replaces. Clusters of an earlier one may be read.

    Raises:
        InputError: An annotation writes the column.
    """
    if name.startswith(PREFIX) and name != CLUSTER:
        raise InputError(f"The annotation replaces {name!r} with its own results: name another column, or rename it.")


def probability_columns(labels: Iterable[str]) -> list[str]:
    """Returns the column names for labels, without slashes, which `.h5ad` files would read as groups."""
    return [label.replace("/", "|") for label in labels]


__all__ = [
    "ANSWER",
    "ANSWER_ID",
    "ANSWER_PROBABILITY",
    "CELL_TYPE",
    "CELL_TYPE_ID",
    "CLUSTER",
    "CLUSTER_AGREEMENT",
    "CLUSTER_ANSWER",
    "CLUSTER_ANSWER_ID",
    "CLUSTER_LABEL",
    "CLUSTER_MIXED",
    "CLUSTER_SECOND",
    "COLOURS",
    "EMBEDDING",
    "FIT",
    "MARGIN",
    "NOVELTY",
    "PREFIX",
    "PROBABILITIES",
    "PROVEN",
    "RUN",
    "SCORE",
    "SEARCH",
    "SECOND",
    "UNKNOWN_BECAUSE",
    "probability_columns",
    "require_column",
    "require_own_column",
]
