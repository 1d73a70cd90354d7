# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""LangCell-CE (LangCell, section 4.4): the cell encoder with a linear head, trained on two thirds of a study."""

import numpy as np
from sklearn.model_selection import train_test_split

from modeling_langcell.adaptation.adapt import adapt
from modeling_langcell.adaptation.config import AdaptationConfig, Method
from modeling_langcell.eval.baselines import counts_by_gene
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Result, Run, Task, score_predictions
from modeling_langcell.io.columns import PROBABILITIES, RUN
from modeling_langcell.model.errors import InputError

TEST_SHARE = 1 / 3
EPOCHS = 15
#: Training of the encoder: by LoRA, of all weights, or none.
ADAPTATION: dict[str, Method] = {
    LANGCELL: "lora",
    "all_weights": "full",
    "head_alone": "frozen",
    RANDOM: "frozen",
}

TASK = Task(
    name="fine-tuning",
    question="Which of a study's types is a cell, when the types of two thirds of the cells are known?",
    studies=("pbmc_kang_ctrl", "pdac_moncada_card"),
    methods=(*ADAPTATION, *CLASSIFIERS),
    metrics=("macro_f1", "accuracy", "balanced_accuracy", "ontology_score", "expected_calibration_error"),
    main_score="macro_f1",
    seeded=(*ADAPTATION, *CLASSIFIERS),
    adapts=True,
)


def measure(run: Run) -> Result:
    """
    Scores one run. With random weights only the head is trained.

    Raises:
        InputError: There are fewer than two types, or a type has fewer than three cells.
    """
    truth = run.truth
    names, sizes = np.unique(truth, return_counts=True)
    if sizes.min() < 3 or len(names) < 2:
        raise InputError(
            f"{run.study.name}: two types with three cells each are needed; the rarest is {names[sizes.argmin()]!r}."
        )
    train, test = train_test_split(np.arange(len(truth)), test_size=TEST_SHARE, random_state=run.seed, stratify=truth)
    if run.method in CLASSIFIERS:
        counts, _ = counts_by_gene(run.cells, run.context.extractor, run.study.read)
        classifier = run.context.classifiers(run.seed)[run.method].fit(counts[train], truth[train])
        return score_predictions(truth[test], classifier.classes_, classifier.predict_proba(counts[test]))
    config = AdaptationConfig(
        head="classes", method=ADAPTATION[run.method], epochs=EPOCHS, batch_cells=16, seed=run.seed
    )
    adapted = adapt(
        run.checkpoint,
        run.cells[train],
        run.study.label_key,
        config=config,
        device=run.context.device,
        **run.study.read,
    )
    found = adapted.annotator(device=run.context.device).annotate(run.cells[test].copy(), **run.study.read)
    return score_predictions(truth[test], found.uns[RUN]["labels"], found.obsm[PROBABILITIES].to_numpy())
