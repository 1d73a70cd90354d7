# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Masked genes: the first pre-training objective, on cells of the studies."""

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from modeling_langcell import LangCellForMaskedLM
from modeling_langcell.eval.task import LANGCELL, Result, Run, Task, bootstrap
from modeling_langcell.io.labels import rank_cells
from modeling_langcell.model.errors import InputError
from modeling_langcell.model.objectives import IGNORED, MaskedGeneModelling

MOST_CELLS = 300
FREQUENT = "most_frequent"

TASK = Task(
    name="masked-genes",
    question="Which gene was masked?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(LANGCELL, FREQUENT),
    metrics=("masked_gene_accuracy", "masked_gene_loss"),
    main_score="masked_gene_accuracy",
    seeded=(LANGCELL, FREQUENT),
)


def measure(run: Run) -> Result:
    """
    Masks 15% of the genes of at most 300 cells as in pre-training and scores the guesses. `most_frequent` guesses the
    gene that most cells have and that this cell does not show.

    Raises:
        InputError: The checkpoint has no masked-gene head, or an adapter is given.
    """
    if run.context.adapter is not None:
        raise InputError(f"{TASK.name} measures the checkpoint alone: leave out the adapter.")
    rows = np.random.default_rng(run.seed).permutation(run.cells.n_obs)[:MOST_CELLS]
    extractor = run.context.extractor
    ranked = rank_cells(run.cells, np.sort(rows), extractor, **run.study.read)
    cells = [torch.from_numpy(ranked[i].astype(np.int64)) for i in range(len(ranked))]
    corrupt = MaskedGeneModelling(len(extractor), 1, 0.15).corrupt
    generator = torch.Generator().manual_seed(run.seed)
    pairs = [corrupt(ids, generator) for ids in cells]
    losses = None
    if run.method == FREQUENT:
        right = most_frequent(cells, pairs)
    else:
        right, losses = guesses(load_head(run.context.model), pairs)
    masked = np.array([int((labels != IGNORED).sum()) for _, labels in pairs])
    scores = {"masked_gene_accuracy": right.sum() / masked.sum()}
    if losses is not None:
        scores["masked_gene_loss"] = losses.sum() / masked.sum()
    drawn = bootstrap(
        len(masked),
        lambda rows: {"masked_gene_accuracy": right[rows].sum() / masked[rows].sum()},
        run.seed,
        draws=1000,
    )
    return Result({name: float(value) for name, value in scores.items()}, drawn)


def load_head(checkpoint: str) -> LangCellForMaskedLM:
    """
    Loads the cell tower with its masked-gene head.

    Raises:
        InputError: The checkpoint has no such head.
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # The error below says what is missing.
    try:
        model, loading = LangCellForMaskedLM.from_pretrained(checkpoint, dtype="float32", output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    if loading["missing_keys"]:
        raise InputError(
            f"{checkpoint} has no masked-gene head: train one (masked_gene_weight), or leave this task out."
        )
    return model.eval()


@torch.inference_mode()
def guesses(
    model: LangCellForMaskedLM, pairs: list[tuple[torch.Tensor, torch.Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns for each cell the number of masked genes that the model guesses right, and the sum of cross-entropies."""
    right, losses = np.zeros(len(pairs)), np.zeros(len(pairs))
    for row, (shown, labels) in enumerate(pairs):
        masked = labels != IGNORED
        scores = model.lm_head(model.cell_model(shown[None]).last_hidden_state[0, masked])
        losses[row] = F.cross_entropy(scores, labels[masked], reduction="sum")
        right[row] = (scores.argmax(dim=1) == labels[masked]).sum()
    return right, losses


def most_frequent(cells: list[torch.Tensor], pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> np.ndarray:
    """Returns for each cell 1 if the most frequent gene that it does not show is one of its masked genes, else 0."""
    frequent = torch.bincount(torch.cat([ids[1:] for ids in cells])).argsort(descending=True)
    right = np.zeros(len(pairs))
    for row, (shown, labels) in enumerate(pairs):
        guess = next(int(gene) for gene in frequent if gene not in shown)
        right[row] = (labels == guess).sum()
    return right
