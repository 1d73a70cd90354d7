# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""LangCell-CE (LangCell, section 4.4): the cell encoder with a linear head, two thirds of a study learnt from."""

import numpy as np
from sklearn.model_selection import train_test_split

from modeling_langcell.adaptation.adapt import AdaptationConfig, Method, adapt
from modeling_langcell.eval.baselines import counts_by_gene
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM, Result, Run, Task, judge
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
    drawn=(*HOW, *CLASSIFIERS),
    adapts=True,
)


def measure(cell: Run) -> Result:
    """
    Of random weights the head alone is trained.

    Raises:
        InputError: A type with too few cells to be learnt and judged.
    """
    truth = cell.truth
    names, sizes = np.unique(truth, return_counts=True)
    if sizes.min() < 3 or len(names) < 2:
        raise InputError(
            f"{cell.study.name}: two types are needed, and three cells of each: {names[sizes.argmin()]!r}."
        )
    learnt, judged = train_test_split(
        np.arange(len(truth)), test_size=JUDGED_SHARE, random_state=cell.seed, stratify=truth
    )
    if cell.method in CLASSIFIERS:
        counts, _ = counts_by_gene(cell.cells, cell.context.extractor, cell.study.read)
        classifier = cell.context.classifiers(cell.seed)[cell.method].fit(counts[learnt], truth[learnt])
        return judge(truth[judged], classifier.classes_, classifier.predict_proba(counts[judged]))
    config = AdaptationConfig(head="classes", method=HOW[cell.method], epochs=EPOCHS, batch_cells=16, seed=cell.seed)
    adapted = adapt(
        cell.checkpoint,
        cell.cells[learnt],
        cell.study.label_key,
        config=config,
        device=cell.context.device,
        **cell.study.read,
    )
    found = adapted.annotator(device=cell.context.device).annotate(cell.cells[judged].copy(), **cell.study.read)
    return judge(truth[judged], found.uns[RUN]["labels"], found.obsm[PROBABILITIES].to_numpy())
