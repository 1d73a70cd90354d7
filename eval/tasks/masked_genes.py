# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Masked genes: what the first pre-training objective learns."""

import numpy as np
import torch
import torch.nn.functional as F
from transformers.utils import logging

from modeling_langcell import LangCellForMaskedLM
from modeling_langcell.eval.task import LANGCELL, Cell, Found, Task
from modeling_langcell.labelled_cells import rank_cells
from modeling_langcell.objectives import IGNORED, MaskedGeneModelling

MOST_CELLS = 300
FREQUENT = "most_frequent"


def measure(cell: Cell) -> Found:
    """
    15% of the genes of at most 300 cells are masked as in pre-training. `most_frequent` guesses the gene that most
    cells of the study have and that this cell does not show. A checkpoint without a masked-gene head, as langcell-mini,
    gets a new one of random weights and can do no better than chance.
    """
    rows = np.random.default_rng(cell.seed).permutation(cell.cells.n_obs)[:MOST_CELLS]
    extractor = cell.bench.extractor
    ranked = rank_cells(cell.cells, np.sort(rows), extractor, **cell.study.read)
    cells = [torch.from_numpy(ranked[i].astype(np.int64)) for i in range(len(ranked))]
    corrupt = MaskedGeneModelling(len(extractor), 1, 0.15).corrupt
    generator = torch.Generator().manual_seed(cell.seed)
    pairs = [corrupt(ids, generator) for ids in cells]
    if cell.method == FREQUENT:
        return Found({"masked_gene_accuracy": most_frequent(cells, pairs)})
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # That a head is missing is said above.
    try:
        model = LangCellForMaskedLM.from_pretrained(cell.bench.model, dtype="float32").eval()
    finally:
        logging.set_verbosity(verbosity)
    loss, right, asked = 0.0, 0, 0
    with torch.inference_mode():
        for shown, labels in pairs:
            masked = labels != IGNORED
            scores = model.lm_head(model.cell_model(shown[None]).last_hidden_state[0, masked])
            loss += F.cross_entropy(scores, labels[masked], reduction="sum").item()
            right += int((scores.argmax(dim=1) == labels[masked]).sum())
            asked += int(masked.sum())
    return Found({"masked_gene_accuracy": right / asked, "masked_gene_loss": loss / asked})


def most_frequent(cells: list[torch.Tensor], pairs: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Share of masked genes that the most frequent gene not shown is."""
    frequent = torch.bincount(torch.cat([ids[1:] for ids in cells])).argsort(descending=True)
    right = asked = 0
    for shown, labels in pairs:
        guess = next(int(gene) for gene in frequent if gene not in shown)
        masked = labels[labels != IGNORED]
        right += int((masked == guess).sum())
        asked += len(masked)
    return right / asked


TASK = Task(
    name="masked-genes",
    question="Which gene was masked?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(LANGCELL, FREQUENT),
    metrics=("masked_gene_accuracy", "masked_gene_loss"),
    main_score="masked_gene_accuracy",
    measure=measure,
)
