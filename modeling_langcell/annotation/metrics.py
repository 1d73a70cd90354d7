# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Comparison of an annotation with known labels, by what they mean in the Cell Ontology."""

from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, recall_score

from ..io.columns import CELL_TYPE, require_column
from ..io.labels import is_known
from ..model.errors import InputError
from ..ontology import ancestors, get_term, id_of
from .records import candidate_labels


@dataclass(frozen=True)
class Comparison:
    """
    The cells of an annotation that have a label and a known type.

    Args:
        known: `(cells,)` known types: the candidate of the same meaning, or else the ontology's name, or else as given.
        found: `(cells,)` labels.
        is_broader: `(cells,)` true where the label is a term above the known type.
        is_narrower: `(cells,)` true where the label is a kind of the known type.
        is_candidate: `(cells,)` true where the known type, or a type above or below it, is a candidate, so that the
            label can be right.
    """

    known: np.ndarray
    found: np.ndarray
    is_broader: np.ndarray
    is_narrower: np.ndarray
    is_candidate: np.ndarray


def compare(adata: ad.AnnData, reference: str) -> Comparison:
    """
    Compares an annotation with known labels. Names that mean the same term of the Cell Ontology are the same: `B
    cells`, `CL:0000236` and `B cell`. Cells without a known type (`unknown`, empty) are left out.

    Args:
        adata: Annotated cells.
        reference: Column of `obs` with the known labels.

    Raises:
        InputError: There is no such column; or it is the annotation itself, has no labels, or none that is a candidate.
    """
    require_column(adata.obs, reference)
    if reference == CELL_TYPE:
        raise InputError(f"obs[{CELL_TYPE!r}] is the annotation itself: name the column with the known labels.")
    candidates = candidate_labels(adata)
    both = adata.obs.loc[is_known(adata.obs[reference]), [reference, CELL_TYPE]].dropna().astype(str)
    if both.empty:
        raise InputError(f"obs[{reference!r}] has no labels.")
    candidate_of = {_meaning(label): label for label in reversed(candidates)}
    meanings = {label: _meaning(label) for label in {*both[reference], *candidates}}
    names = {label: candidate_of.get(meaning, _name(meaning)) for label, meaning in meanings.items()}
    above = {meaning: ancestors(meaning) if meaning.startswith("CL:") else set() for meaning in meanings.values()}
    comparable = {
        meaning: any(meaning == one or meaning in above[one] or one in above[meaning] for one in candidate_of)
        for meaning in above
    }
    known, found = both[reference].map(meanings).to_numpy(), both[CELL_TYPE].map(meanings).to_numpy()
    comparison = Comparison(
        known=both[reference].map(names).to_numpy(dtype=str),
        found=both[CELL_TYPE].map(names).to_numpy(dtype=str),
        is_broader=np.array([label in above[type_] for type_, label in zip(known, found, strict=True)], bool),
        is_narrower=np.array([type_ in above[label] for type_, label in zip(known, found, strict=True)], bool),
        is_candidate=np.array([comparable[type_] for type_ in known], bool),
    )
    if not comparison.is_candidate.any():
        raise InputError(
            f"None of the labels in obs[{reference!r}] is a candidate. The labels: {_some(set(both[reference]))}. The "
            f"candidates: {_some(set(candidates))}."
        )
    return comparison


def agreement(adata: ad.AnnData, reference: str) -> dict[str, Any]:
    """
    Scores an annotation by known labels. Arguments and errors are the same as for `compare`.

    Returns:
        The number of `cells` whose known type, or a type above or below it, is a candidate; the shares of these whose
        label is the known type (`accuracy`), a `broader` one, or a `narrower` one, that is a kind of it; their
        `balanced_accuracy` and `macro_f1`; and `no_candidate`, the number of other cells by their known type.
    """
    compared = compare(adata, reference)
    rows = compared.is_candidate
    known, found = compared.known[rows], compared.found[rows]
    over_types = {"average": "macro", "labels": np.unique(known), "zero_division": 0}
    return {
        "cells": len(known),
        "accuracy": float(accuracy_score(known, found)),
        "broader": float(compared.is_broader[rows].mean()),
        "narrower": float(compared.is_narrower[rows].mean()),
        "balanced_accuracy": float(recall_score(known, found, **over_types)),
        "macro_f1": float(f1_score(known, found, **over_types)),
        "no_candidate": {str(name): int(n) for name, n in pd.Series(compared.known[~rows]).value_counts().items()},
    }


def describe_agreement(scores: dict[str, Any], reference: str) -> list[str]:
    """Returns the scores of `agreement` in sentences."""
    first = f"Accuracy against {reference}: {scores['accuracy']:.3f} over {scores['cells']:,} cells"
    others = [
        f"{scores[kind]:.0%} are labelled with {what}"
        for kind, what in (("broader", "a broader type"), ("narrower", "a kind of their type"))
        if scores[kind] > 0
    ]
    sentences = [first + "".join(f"; {other}" for other in others) + "."]
    if missing := scores["no_candidate"]:
        named = ", ".join(f"{name} ({cells:,})" for name, cells in list(missing.items())[:10])
        more = f" and {len(missing) - 10} more types" if len(missing) > 10 else ""
        total = sum(missing.values())
        sentences.append(f"Further cells whose type is no candidate: {total:,}, of {named}{more}.")
    return sentences


def _meaning(label: str) -> str:
    """Returns the id of the term that a label means; the label itself where it means none."""
    return id_of(label) or label


def _name(meaning: str) -> str:
    return get_term(meaning).name if meaning.startswith("CL:") and id_of(meaning) else meaning


def _some(names: set[str]) -> str:
    """Returns up to ten names."""
    first = sorted(names)[:10]
    return ", ".join(first) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


__all__ = ["Comparison", "agreement", "compare", "describe_agreement"]
