# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The names of the columns and tables that an annotation writes into an AnnData."""

from collections.abc import Iterable

CELL_TYPE, SCORE, NOVELTY = "langcell_cell_type", "langcell_score", "langcell_novelty"
CELL_TYPE_ID, COLOURS = "langcell_cell_type_id", "langcell_cell_type_colors"  # scanpy looks for colours by this name.
SECOND, MARGIN = "langcell_second", "langcell_margin"
ANSWER, ANSWER_ID, ANSWER_PROBABILITY = "langcell_answer", "langcell_answer_id", "langcell_answer_probability"
PROVEN = "langcell_proven"
CONSENSUS, CONSENSUS_ID, AGREEMENT = "langcell_consensus", "langcell_consensus_id", "langcell_consensus_agreement"
EMBEDDING, PROBABILITIES = "X_langcell", "langcell_probabilities"
RUN = "langcell"


def probability_columns(labels: Iterable[str]) -> list[str]:
    """Returns the column names for labels, without slashes, which `.h5ad` files would read as groups."""
    return [label.replace("/", "|") for label in labels]


__all__ = [
    "AGREEMENT",
    "ANSWER",
    "ANSWER_ID",
    "ANSWER_PROBABILITY",
    "CELL_TYPE",
    "CELL_TYPE_ID",
    "COLOURS",
    "CONSENSUS",
    "CONSENSUS_ID",
    "EMBEDDING",
    "MARGIN",
    "NOVELTY",
    "PROBABILITIES",
    "PROVEN",
    "RUN",
    "SCORE",
    "SECOND",
    "probability_columns",
]
