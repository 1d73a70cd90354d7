# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Retrieval of texts by cells and of cells by texts: recall at k and mean rank."""

import datasets
import evaluate
import numpy as np

from modeling_langcell.model.errors import InputError

_DESCRIPTION = """
From cells to texts, a cell's rank is that of its own text among all texts, by similarity. From texts to cells, the rank
of a text is that of its best cell among the cells of other texts. Rank 1 is the best; ties rank before the right
answer, so a model that tells nothing apart comes last. Recall at k is the share of ranks up to k: with k texts or
fewer it is always 1.
"""

_CITATION = """
@inproceedings{zhao-2024-langcell,
  title = {{LangCell}: Language-Cell Pre-training for Cell Identity Understanding},
  author = {Zhao, Suyuan and Zhang, Jiahuan and Wu, Yushuai and Luo, Yizhen and Nie, Zaiqing},
  booktitle = {Proceedings of the 41st International Conference on Machine Learning},
  year = {2024}
}
"""

_INPUTS = """
Args:
    references: Position of each cell's own text among the texts, from 0.
    similarities: Similarity of each cell to every text, `(cells, texts)`, compared as float32.

Returns:
    cell_to_text_r1, cell_to_text_r5, cell_to_text_r10: Share of cells whose text is among the best 1, 5 and 10.
    cell_to_text_mean_rank: Mean rank of the cells' own texts.
    text_to_cell_r1, text_to_cell_r5, text_to_cell_r10: Share of texts with cells that find one of them among the best.
    text_to_cell_mean_rank: Mean rank of the best cells of these texts.
    chance_cell_to_text_r1: Expected score of random choice, 1 / texts.

Raises:
    InputError: There are no cells, rows differ in length, a similarity is not finite, or a position is out of range.

Examples:
    >>> import evaluate
    >>> metric = evaluate.load("eval/metrics/cell_text_retrieval")
    >>> found = metric.compute(references=[0, 1, 1], similarities=[[0.9, 0.1], [0.8, 0.3], [0.2, 0.7]])
    >>> round(found["cell_to_text_r1"], 3), found["text_to_cell_r1"], found["chance_cell_to_text_r1"]
    (0.667, 1.0, 0.5)
"""


def _figures(direction: str, ranks: np.ndarray) -> dict[str, float]:
    recall = {f"{direction}_r{k}": float((ranks <= k).mean()) for k in (1, 5, 10)}
    return recall | {f"{direction}_mean_rank": float(ranks.mean())}


class CellTextRetrieval(evaluate.Metric):
    """Compares the similarities of cells and texts with the true pairs."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features(
                {
                    "references": datasets.Value("int64"),
                    "similarities": datasets.Sequence(datasets.Value("float32")),
                }
            ),
        )

    def _compute(self, references: list[int], similarities: list[list[float]]) -> dict:
        if not references:
            raise InputError("There are no cells to score: references and similarities are empty.")
        texts = len(similarities[0])
        if any(len(row) != texts for row in similarities):
            raise InputError("similarities must have rows of equal length: one value for every text.")
        own, table = np.array(references), np.array(similarities, dtype=np.float32)
        if not np.isfinite(table).all():
            raise InputError("similarities must be finite numbers.")
        if own.min() < 0 or own.max() >= texts:
            raise InputError(
                f"references must be positions among {texts} texts, from 0, but go from {own.min()} to {own.max()}."
            )
        text_ranks = (table >= table[np.arange(len(own)), own][:, None]).sum(axis=1)
        cell_ranks = [1 + (table[own != text, text] >= table[own == text, text].max()).sum() for text in np.unique(own)]
        return {
            **_figures("cell_to_text", text_ranks),
            **_figures("text_to_cell", np.array(cell_ranks)),
            "chance_cell_to_text_r1": 1 / texts,
        }
