# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Disease: tumour against normal tissue or blood, from texts and from 9 cells of each. The shipped checkpoint was trained
on both studies: it has seen the types of these cells, but never their tissue or disease.
"""

import numpy as np

from modeling_langcell.adaptation.adapt import AdaptationConfig, adapt
from modeling_langcell.checkpoint.adaptation_record import Head
from modeling_langcell.eval.baselines import counts_by_gene
from modeling_langcell.eval.task import LANGCELL, RANDOM, Result, Run, Task, score_predictions
from modeling_langcell.io.columns import PROBABILITIES, RUN
from modeling_langcell.io.labels import read_labels
from modeling_langcell.model.errors import InputError
from modeling_langcell.ontology import get_term, is_term

SHOTS = 9
PROTOTYPES = "prototypes"
LEARNERS = ("majority", "logistic_regression", "knn_pca")
#: Descriptions of labels that no single ontology term covers.
SENTENCES = {"lung tumour": "tissue: lung; disease: non-small cell lung carcinoma"}

TASK = Task(
    name="disease",
    question="Is a cell of a tumour or of normal tissue?",
    studies=("crc_scmetalink_4210g_disease", "nsclc_zilionis_scgate_tissue"),
    methods=(LANGCELL, PROTOTYPES, RANDOM, *LEARNERS),
    metrics=("macro_f1", "accuracy", "balanced_accuracy", "expected_calibration_error"),
    main_score="macro_f1",
    settings=({"shots": 0}, {"shots": SHOTS}),
    seeded=(LANGCELL, PROTOTYPES, RANDOM, *LEARNERS),
    applies=lambda method, setting: setting["shots"] > 0 or method in (LANGCELL, RANDOM),
    adapts=True,
)


def measure(run: Run) -> Result:
    """
    Scores one run. All methods and shots are scored on the same cells: those that are never drawn as shots. Without
    shots the model has the descriptions only; random weights use the prototypes only. In the tumour of the colon the
    disease is also the batch and each label has types of its own, so a classifier of types would do well too.
    """
    truth, labels = run.truth, np.unique(run.truth)
    train, test = split(run)
    shots, others = run.cells[train], run.cells[test].copy()
    if run.method in LEARNERS:
        counts, _ = counts_by_gene(run.cells, run.context.extractor, run.study.read)
        classifier = run.context.classifiers(run.seed)[run.method].fit(counts[train], truth[train])
        return score_predictions(truth[test], classifier.classes_, classifier.predict_proba(counts[test]))
    described = {label: describe_label(run, label) for label in labels}
    if run.setting["shots"] == 0:
        # Random weights are scored by similarity alone: their matching would only cost time.
        alpha = 1.0 if run.method == RANDOM else run.context.alpha
        annotated = run.annotator.annotate(others, described, alpha=alpha, **run.study.read)
    else:
        head: Head = "descriptions" if run.method == LANGCELL else "prototypes"
        annotated = (
            adapt(
                run.checkpoint,
                shots,
                run.study.label_key,
                descriptions=described,
                config=AdaptationConfig(
                    head=head, prototype_weight=1.0 if run.method == RANDOM else None, seed=run.seed
                ),
                device=run.context.device,
                **run.study.read,
            )
            .annotator(device=run.context.device)
            .annotate(others, **run.study.read)
        )
    return score_predictions(truth[test], annotated.uns[RUN]["labels"], annotated.obsm[PROBABILITIES].to_numpy())


def split(run: Run) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of the shots and of all other cells."""
    train = read_labels(run.cells, run.study.label_key).shots(SHOTS, run.seed).rows
    return train, np.setdiff1d(np.arange(run.cells.n_obs), train)


def describe_label(run: Run, label: str) -> str:
    """
    Returns a label's description: the one in `SENTENCES`, or `disease: {name}. {definition}` of the term that its cells
    have in the column of ontology ids beside the labels; `tissue: ...` if the labels are tissues.

    Raises:
        InputError: The label has no sentence, and its cells have no term or several.
    """
    if label in SENTENCES:
        return SENTENCES[label]
    key = f"{run.study.label_key}_ontology_term_id"
    ids = set(run.cells.obs[key][run.truth == label].astype(str)) if key in run.cells.obs else set()
    if len(ids) != 1 or not is_term(*ids):
        raise InputError(f"{run.study.name}: the label {label!r} needs one ontology term in obs[{key!r}].")
    term = get_term(*ids)
    return f"{run.study.label_key}: {term.name}. {term.definition}"
