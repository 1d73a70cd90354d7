# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""LangCell-CE (LangCell, section 4.4): the cell encoder with a linear head, two thirds of a study learnt from."""

import numpy as np
from sklearn.model_selection import train_test_split

from modeling_langcell.adaptation.adapt import AdaptationConfig, Method, adapt
from modeling_langcell.eval.baselines import counts_by_gene
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Result, Run, Task, score_predictions
from modeling_langcell.io.columns import PROBABILITIES, RUN
from modeling_langcell.model.errors import InputError

JUDGED_SHARE = 1 / 3
EPOCHS = 15
#: The encoder by LoRA, as a whole, and not at all.
HOW: dict[str, Method] = {LANGCELL: "lora", "all_weights": "full", "head_alone": "frozen", RANDOM: "frozen"}

TASK = Task(
    name="fine-tuning",
    question="Which of a study's types is a cell, when the types of two thirds of the cells are known?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(*HOW, *CLASSIFIERS),
    metrics=("macro_f1", "accuracy", "balanced_accuracy", "ontology_score", "expected_calibration_error"),
    main_score="macro_f1",
    seeded=(*HOW, *CLASSIFIERS),
    adapts=True,
)


def measure(run: Run) -> Result:
    """
    Of random weights the head alone is trained.

    Raises:
        InputError: A type with too few cells to be learnt and judged.
    """
    truth = run.truth
    names, sizes = np.unique(truth, return_counts=True)
    if sizes.min() < 3 or len(names) < 2:
        raise InputError(f"{run.study.name}: two types are needed, and three cells of each: {names[sizes.argmin()]!r}.")
    learnt, judged = train_test_split(
        np.arange(len(truth)), test_size=JUDGED_SHARE, random_state=run.seed, stratify=truth
    )
    if run.method in CLASSIFIERS:
        counts, _ = counts_by_gene(run.cells, run.context.extractor, run.study.read)
        classifier = run.context.classifiers(run.seed)[run.method].fit(counts[learnt], truth[learnt])
        return score_predictions(truth[judged], classifier.classes_, classifier.predict_proba(counts[judged]))
    config = AdaptationConfig(head="classes", method=HOW[run.method], epochs=EPOCHS, batch_cells=16, seed=run.seed)
    adapted = adapt(
        run.checkpoint,
        run.cells[learnt],
        run.study.label_key,
        config=config,
        device=run.context.device,
        **run.study.read,
    )
    found = adapted.annotator(device=run.context.device).annotate(run.cells[judged].copy(), **run.study.read)
    return score_predictions(truth[judged], found.uns[RUN]["labels"], found.obsm[PROBABILITIES].to_numpy())
