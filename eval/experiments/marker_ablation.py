# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
What the parts of a description add to zero-shot annotation: the name, the definition, and marker genes, those of the
catalogue or those that somebody writes down; and what the markers find alone. And annotation without any labels, whose
candidates are the catalogue's.

    python eval/experiments/marker_ablation.py --json eval/results/markers.json

The markers that somebody writes down, `textbook_markers.tsv`, were chosen from textbooks before they were measured. The
marker weight of langcell-mini, and a few lists of the catalogue, were tuned on the first three studies.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.calibrate import score_labelled
from modeling_langcell.annotation.calibration import ERROR_RATE, Calibration, calibration_error
from modeling_langcell.annotation.ontology_backoff import UNKNOWN, OntologyBackoff
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.cli.labels import read_labels
from modeling_langcell.eval.record import write_record
from modeling_langcell.eval.studies import Study
from modeling_langcell.eval.task import EvaluationContext, metric, score_predictions
from modeling_langcell.eval.tasks.zero_shot import TASK
from modeling_langcell.io.columns import ANSWER, CELL_TYPE, PROBABILITIES, RUN
from modeling_langcell.model.prompts import NAME_ALONE, PROMPT_TEMPLATES
from modeling_langcell.ontology import ancestors, depth, id_of

TEXTBOOK = Path(__file__).with_name("textbook_markers.tsv")
#: Lineages, by terms that head them: a label is of the right lineage if it is below a head that the type is below too.
LINEAGES = {
    "lymphoid": ("lymphocyte", "lymphoid lineage restricted progenitor cell"),
    "myeloid": ("myeloid leukocyte", "dendritic cell", "mononuclear phagocyte"),
    "erythroid and megakaryocytic": ("erythroid lineage cell", "megakaryocyte", "platelet"),
    "precursors of blood": ("hematopoietic precursor cell",),
    "epithelium": ("epithelial cell",),
    "endothelium": ("endothelial cell",),
    "connective tissue": ("connective tissue cell", "mesenchymal cell", "pericyte"),
    "muscle": ("muscle cell",),
    "nerves and glia": ("neural cell",),
    "tumour": ("malignant cell",),
}
#: The lineage that a study's tumour grew from: its cells may be called by either name.
TUMOUR_OF = {"pdac_moncada_card": "epithelium"}
#: Depth from which a term above a cell's type still says something: that of "B cell".
DEEP = 4
#: Tissue of each study, for annotation without labels.
TISSUES = {"pdac_moncada_card": "pancreas"}


def measure_candidates(context: EvaluationContext, study: Study) -> dict[str, dict[str, Any]]:
    """Returns the scores of annotation among the study's types, by what describes them."""
    adata, annotator = context.cells(study), context.annotator
    truth = adata.obs[study.label_key].astype(str).to_numpy()
    names = np.unique(truth)
    textbook = read_labels(TEXTBOOK)
    assert isinstance(textbook, dict)

    def annotated(templates: tuple[str, ...], labels: Any, **options: Any) -> np.ndarray:
        annotator.processor.prompt_templates = templates
        found = annotator.annotate(adata.copy(), labels, **options, **study.read)
        annotator.processor.prompt_templates = PROMPT_TEMPLATES
        return found.obsm[PROBABILITIES].to_numpy()

    alone = score_labelled(annotator, adata, study.label_key, **study.read).evidence
    probabilities = {
        "names": annotated((NAME_ALONE,), names, with_markers=False),
        "and definitions": annotated(PROMPT_TEMPLATES, names, with_markers=False),
        "and the catalogue's markers": annotated(PROMPT_TEMPLATES, names),
        "and textbook markers instead": annotated(PROMPT_TEMPLATES, {name: textbook[name] for name in names}),
        "the catalogue's markers alone": np.exp(alone) / np.exp(alone).sum(axis=1, keepdims=True),
    }
    results = {}
    for described, of_cells in probabilities.items():
        found = score_predictions(truth, names, of_cells)
        recalls = {label: round(scores["recall"], 4) for label, scores in found.per_class.items()}
        results[described] = {"scores": found.scores, "intervals": found.intervals, "recalls": recalls}
    return results


def measure_without_labels(
    annotator: LangCellAnnotator, context: EvaluationContext, study: Study, tissue: str | None
) -> dict[str, Any]:
    """
    Returns the scores of annotation among the types of the catalogue: the ontology score of the labels; the shares of
    labels that are of the right lineage (`lineage`), that are the cell's type, one above it or one below it
    (`related`), and of these without those that are above it and not deep (`deep`); the share of cells with an
    answer, the shares of answers that are the cell's type or above it (`right`) and that are kinds of it (`finer`:
    whether they are right is not known), and the answers' mean depth. Without a tissue it is judged by markers. The
    shipped checkpoint is calibrated on the first three studies, among their own types.
    """
    adata = context.cells(study)
    truth = [id_of(label) for label in adata.obs[study.label_key].astype(str)]
    found = annotator.annotate(adata.copy(), tissue=tissue, **study.read)
    tumour = TUMOUR_OF.get(study.name)
    labels = [id_of(label) for label in found.obs[CELL_TYPE].astype(str)]
    answers = [None if answer == UNKNOWN else id_of(answer) for answer in found.obs[ANSWER].astype(str)]
    given = [(answer, own) for answer, own in zip(answers, truth, strict=True) if answer is not None]
    return {
        "tissues": found.uns[RUN]["tissues"].tolist(),
        "candidates": len(found.obsm[PROBABILITIES].columns),
        **metric("ontology_score", references=truth, predictions=labels),
        "related": float(np.mean([_is_right(a, b) or _is_right(b, a) for a, b in zip(labels, truth, strict=True)])),
        "lineage": float(
            np.mean([bool(_lineages(a, tumour) & _lineages(b, tumour)) for a, b in zip(labels, truth, strict=True)])
        ),
        "deep": float(np.mean([_is_right(b, a) or _is_deep(a, b) for a, b in zip(labels, truth, strict=True)])),
        "answered": len(given) / len(truth),
        "right": float(np.mean([_is_right(answer, own) for answer, own in given])),
        "finer": float(np.mean([answer != own and _is_right(own, answer) for answer, own in given])),
        "depth": float(np.mean([depth(answer) for answer, _ in given])),
        "labels": found.obs[CELL_TYPE].value_counts().head(12).to_dict(),
    }


def measure_calibration_without_markers(context: EvaluationContext, calibration: Calibration) -> dict[str, Any]:
    """
    Returns how a calibration that was fitted with markers holds for candidates without them, over the cells of the
    studies that it was fitted on and the checkpoint was not trained on: the share of wrong answers at an error rate of
    10%, the share of cells with an answer, and the calibration error of the best candidate.
    """
    parts = []
    for name in sorted(calibration.fitted["cells"].keys() & context.studies.keys()):
        cells = context.scores(context.study(name))
        backoff = OntologyBackoff(cells.labels)
        probabilities = backoff.probabilities(cells.probabilities(calibration.temperature, 0))
        answers, _ = backoff.answer(probabilities, calibration.threshold(ERROR_RATE))
        wrong = (answers >= 0) & ~backoff.right(answers, cells.truth.tolist())
        parts.append(np.stack([answers >= 0, wrong, *cells.confidence(calibration.temperature, 0)]))
    answered, wrong, confidence, right = np.concatenate(parts, axis=1)
    return {
        "error_rate": ERROR_RATE,
        "wrong": float(wrong.sum() / answered.sum()),
        "answered": float(answered.mean()),
        "expected_calibration_error": calibration_error(confidence, right),
    }


def _is_right(answer: str | None, truth: str | None) -> bool:
    """Returns true if an answer is a cell's type or a term above it."""
    return answer is not None and truth is not None and (answer == truth or answer in ancestors(truth))


def _is_deep(label: str | None, truth: str | None) -> bool:
    """Returns true if a label is a cell's type, or a term above it that is deep in the ontology."""
    return _is_right(label, truth) and (label == truth or depth(str(label)) >= DEEP)


@cache
def _lineages(term: str | None, tumour: str | None = None) -> frozenset[str]:
    """Returns the names of the lineages that a term belongs to; that of `tumour`, too, if it is a tumour cell."""
    found = {name for name, heads in LINEAGES.items() if any(_is_right(id_of(head), term) for head in heads)}
    return frozenset(found | {tumour} if tumour and "tumour" in found else found)


def main(
    model: Annotated[str, typer.Option(help="Checkpoint: a folder or a Hub id.")] = MINI,
    data: Annotated[Path, typer.Option(help="Folder with validation/.")] = Path("../shared/data"),
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the figures.")] = None,
) -> None:
    """Measure what names, definitions and markers add to annotation, and annotation without labels."""
    context = EvaluationContext(resolve_checkpoint(model), None, data)
    results: dict[str, dict[str, Any]] = {}
    for study in map(context.study, TASK.studies):
        results[study.name] = measure_candidates(context, study)
        typer.echo(study.name)
        for described, found in results[study.name].items():
            scores = (f"{found['scores'][name]:.3f}" for name in ("accuracy", "balanced_accuracy", "macro_f1"))
            typer.echo(f"  {described:31} {' / '.join(scores)}")
    calibrated = LangCellAnnotator.from_pretrained(resolve_checkpoint(model))
    without: dict[str, dict[str, Any]] = {}
    for study in map(context.study, TASK.studies):
        tissues = (None, TISSUES.get(study.name, "blood"))
        without[study.name] = {
            tissue or "judged": measure_without_labels(calibrated, context, study, tissue) for tissue in tissues
        }
        for tissue, found in without[study.name].items():
            numbers = (f"{name} {found[name]:.3f}" for name in ("lineage", "deep", "answered", "right", "finer"))
            typer.echo(f"{study.name}, no labels, {tissue}: {', '.join(numbers)}")
    found = calibrated.model.config.calibration
    holds = None if found is None else measure_calibration_without_markers(context, Calibration.from_dict(found))
    typer.echo(f"The calibration without markers: {holds}")
    figures = {"model": model, "marker_weight": context.annotator.model.config.marker_weight, "seed": 0}
    write_record(json_file, figures | {"candidates": results, "without_labels": without, "without_markers": holds})


if __name__ == "__main__":
    typer.run(main)
