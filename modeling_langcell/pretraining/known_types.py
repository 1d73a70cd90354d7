# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The types of its training that a model remembers: their descriptions, and where their cells lie."""

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F

from ..model.modeling_langcell import LangCellModel
from ..model.packed_langcell import PackedSequences
from ..model.processing_langcell import LangCellProcessor
from ..model.ranking import RankedCells
from ..model.token_budget import TokenBudget
from ..model.zero_shot import read_cells
from .dataset import FrozenTextEncoder, PretrainingBatches
from .texts import TYPE

#: Most cells of a type of a study that are averaged, and cells that are drawn from each of its profiles.
CELLS, DRAWS = 20, 5


@torch.no_grad()
def remember_types(model: LangCellModel, processor: LangCellProcessor, batches: PretrainingBatches) -> None:
    """
    Lets a model remember each type that its batches describe, and each type above these where they describe ancestors:
    the embedding of its description, and the mean embedding of its cells and those of its kinds. All studies of a type
    have the same weight in its mean.

    Args:
        model: The trained model, in one piece. It is left in evaluation mode.
        processor: Tokenizes the descriptions.
        batches: The batches of the training, which have descriptions.
    """
    assert batches.descriptions is not None
    model.eval()
    described, ancestors = batches.descriptions.type_texts, batches.descriptions.ancestors
    encode = FrozenTextEncoder(model, processor, batches.config.max_tokens, model.device)
    text_embeds = model.project_texts(encode(list(described.values())))
    means: dict[str, list[torch.Tensor]] = {term: [] for term in described}
    for term, mean in _mean_of_each_study(model, batches):
        for known in {term, *ancestors[term]} & means.keys():
            means[known].append(mean)
    cell_embeds = torch.stack([torch.stack(of_term).mean(dim=0) for of_term in means.values()])
    model.remember_types(text_embeds, F.normalize(cell_embeds, dim=1), list(described))


def _mean_of_each_study(model: LangCellModel, batches: PretrainingBatches) -> list[tuple[str, torch.Tensor]]:
    """Returns the mean embedding of each type in each study, `(width,)`, with the type's id."""
    rng = np.random.default_rng(batches.config.seed)
    facts = batches.corpus.facts.iloc[batches.rows]
    groups = cast(dict[tuple[str, str], np.ndarray], facts.groupby([TYPE, "study"], observed=True).indices)
    rows = [_choose(members, batches.is_profile, rng) for members in groups.values()]
    embeds = _embed(model, batches.whole_cells(np.concatenate(rows), rng))
    bounds = np.cumsum([len(chosen) for chosen in rows])[:-1].tolist()
    parts = embeds.tensor_split(bounds)
    return [(term, part.mean(dim=0)) for (term, _), part in zip(groups, parts, strict=True)]


def _choose(members: np.ndarray, is_profile: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    chosen = rng.permutation(members)[:CELLS]
    return np.repeat(chosen, np.where(is_profile[chosen], DRAWS, 1))[:CELLS]


def _embed(model: LangCellModel, cells: list[np.ndarray]) -> torch.Tensor:
    """Returns the `(cells, width)` embeddings of cells, given by their ranked ids; 0 for a cell without genes."""

    def read(ids: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
        read = model.cell_model(ids, pooled_only=True, return_dict=True, **packed.arguments)
        return model.project_cells(read.pooler_output).float()

    offsets = np.cumsum([0, *map(len, cells)])
    without_places = np.empty((len(cells), 0), dtype=np.float32)
    ranked = RankedCells(np.concatenate(cells), offsets, np.ones(len(cells)), without_places)
    embeds = torch.zeros(len(cells), model.config.projection_dim, device=model.device)
    for rows, found in read_cells(ranked, read, TokenBudget.for_model(model), model.device):
        embeds[rows] = found
    return embeds


__all__ = ["remember_types"]
