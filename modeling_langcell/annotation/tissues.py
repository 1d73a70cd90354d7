# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The tissues that cells come from, judged by the markers of the cell types that are usual there: so a file without labels
gets the candidates of its own tissue, rather than those of the whole body.

Only the markers of the catalogue are read, and no checkpoint: cells of tissues that a checkpoint never saw are judged
as well as those that it did.
"""

import logging

import numpy as np
import torch

from ..model.processing_langcell import LangCellProcessor
from ..model.prompts import Description
from ..model.ranking import RankedChunks
from ..model.zero_shot import MarkerEvidence
from ..ontology import CellType, tissue_masks, usual_in

logger = logging.getLogger(__name__)

#: Blood runs through every tissue, so its types are always candidates.
BLOOD = "blood"

_SAMPLE = 1024  # Number of cells, spread evenly over all, that a tissue is judged by.
_WEIGHT = 9.0  # Weight of the evidence in the logarithm of a type's probability.
_STRAYS = 0.1  # Share of cells that may be of any type: doublets, tumour cells, types that the catalogue does not list.
_LEAST_GAIN = 0.1  # Least gain in the mean log-likelihood of a cell with which one tissue is added to blood.
_CLEARLY = 1000  # A cell fits a further tissue clearly if it is so many times more likely there.
_LEAST_CLEAR = 0.01  # Share of the cells that must fit a further tissue clearly; one cell is never enough.


def find_tissues(processor: LangCellProcessor, chunks: RankedChunks) -> list[str]:
    """
    Finds the tissues whose usual cell types fit a sample of cells.

    Args:
        processor: Reads the genes of the catalogue, and knows their usual places.
        chunks: The cells.

    Returns:
        Names in Uberon, `blood` first.
    """
    types = usual_in()
    named = {one.id: processor.find_genes(Description((), one.markers, one.absent)) for one in types}
    evidence = MarkerEvidence(named, processor.feature_extractor.usual_places, torch.device("cpu"))
    ranked = chunks.sample(_SAMPLE, evidence.ids)
    places = torch.from_numpy(ranked.places[~ranked.without_genes])
    if not len(places):
        return [BLOOD]
    found = choose_tissues((_WEIGHT * evidence(places).double()).softmax(dim=1).numpy(), types)
    logger.info("The cells seem to come from %s.", " and ".join(found[1:] or found))
    return found


def choose_tissues(probabilities: np.ndarray, types: tuple[CellType, ...]) -> list[str]:
    """
    Chooses tissues by the probabilities of the cell types.

    The likelihood of a cell in some tissues is the mean probability of the types that are usual there: a tissue with
    many types that do not occur explains the cells worse than one with few. To blood is added the tissue that makes the
    cells most likely, on average; most files come from one. Further ones are added while some cells fit them, and no
    tissue so far, beyond doubt.

    Args:
        probabilities: `(cells, types)`, as if each type were equally frequent.
        types: Types of the catalogue.

    Returns:
        Names of tissues in Uberon, blood first.
    """
    masks = tissue_masks(types)
    chosen, usual = [BLOOD], masks.pop(BLOOD)

    def likelihood(usual: np.ndarray) -> np.ndarray:
        return probabilities[:, usual].mean(axis=1)

    def log_likelihood(usual: np.ndarray) -> float:
        return float(np.log((1 - _STRAYS) * likelihood(usual) + _STRAYS * probabilities.mean(axis=1)).mean())

    gains = {tissue: log_likelihood(usual | mask) - log_likelihood(usual) for tissue, mask in masks.items()}
    best = max(gains, key=gains.__getitem__)
    if gains[best] >= _LEAST_GAIN:
        chosen.append(best)
        usual = usual | masks.pop(best)
    while masks:
        clear = {
            tissue: int((likelihood(usual | mask) > _CLEARLY * likelihood(usual)).sum())
            for tissue, mask in masks.items()
        }
        best = max(clear, key=clear.__getitem__)
        if clear[best] < max(2, _LEAST_CLEAR * len(probabilities)):
            break
        chosen.append(best)
        usual = usual | masks.pop(best)
    return chosen


__all__ = ["BLOOD", "choose_tissues", "find_tissues"]
