# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Explanations: leaves out the genes that are said to drive a match, to test if they do."""

import numpy as np

from modeling_langcell.annotation.explain import Explainer
from modeling_langcell.eval.task import LANGCELL, Result, Run, Task, bootstrap
from modeling_langcell.io.columns import EMBEDDING
from modeling_langcell.io.labels import rank_cells

TASK = Task(
    name="explanations",
    question="Does a match fall when the genes that are said to drive it are left out?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card", "zheng68k_subset_pbmc"),
    methods=(LANGCELL,),
    metrics=("fall_explained", "fall_random", "times_random", "match"),
    main_score="fall_explained",
    settings=({"explained_by": "gradient"}, {"explained_by": "attention"}),
    seeded=(LANGCELL,),
)

_CELLS, _SHARE, _NEAR = 150, 0.05, 10


def measure(run: Run) -> Result:
    """
    Leaves out, in 150 random cells, the 5% of genes that contribute most to the match with the most similar type's
    description, or as many random genes at most ten ranks from them. `fall_...` is the mean fall of the match: of the
    cosine for gradients, of the log-odds of the matching for attention.
    """
    rng = np.random.default_rng(run.seed)
    chosen = np.sort(rng.permutation(run.cells.n_obs)[:_CELLS])
    ranked = rank_cells(run.cells, chosen, run.context.extractor, **run.study.read)
    explainer = Explainer(run.annotator, run.annotator.texts_of(np.unique(run.truth)), run.setting["explained_by"])
    embeds = run.annotator.embed(run.cells[chosen].copy(), **run.study.read).obsm[EMBEDDING]
    most_similar = (embeds @ explainer.text_embeds.cpu().numpy().T).argmax(axis=1)
    falls, matches = [], []
    for number in range(len(ranked)):
        genes = ranked[number]
        label = int(most_similar[number])
        contributions = explainer(genes, label)
        most = np.argsort(-contributions, kind="stable")[: max(1, round(_SHARE * len(contributions)))]
        match = explainer.match(genes, label)
        left_out = most, _random_neighbours(most, genes, rng)
        falls.append([match - explainer.match(np.delete(genes, 1 + places), label) for places in left_out])
        matches.append(match)
    explained, random = np.array(falls).T

    def scores(rows: np.ndarray) -> dict[str, float]:
        return {
            "times_random": float(explained[rows].mean() / random[rows].mean()),
            "fall_explained": float(explained[rows].mean()),
            "fall_random": float(random[rows].mean()),
        }

    every = np.arange(len(explained))
    return Result(scores(every) | {"match": float(np.mean(matches))}, bootstrap(len(every), scores, run.seed, 1000))


def _random_neighbours(places: np.ndarray, genes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws a random place near each of these places, without replacement."""
    drawn: set[int] = set()
    for place in places.tolist():
        around = range(max(0, place - _NEAR), min(len(genes) - 1, place + _NEAR + 1))
        free = [other for other in around if other not in drawn]
        drawn.add(int(rng.choice(free)) if free else place)
    return np.array(sorted(drawn))
