# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Calibrates a checkpoint on cells whose types are known."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

from ..checkpoint.builtin import resolve_checkpoint
from ..checkpoint.config import read_config
from ..checkpoint.loading import load_processor
from ..checkpoint.repository import fetch
from ..io.atomic import atomic_folder
from ..io.h5ad import open_cells
from ..io.labels import rank_cells, read_labels
from ..io.outputs import require_new_folder
from ..model.errors import InputError
from ..model.feature_extraction_langcell import takes_cell_options
from ..model.modeling_langcell import LangCellModel
from ..model.zero_shot import DescriptionScorer, MarkerEvidence, read_cells
from ..ontology import Labels
from .annotator import LangCellAnnotator
from .calibration import Calibration, LabelledScores, RivalScores, fit
from .open_set import OtherTypes, are_alike
from .predictor import Predictor

#: Weights of the checkpoint that those of `cross_fitted` score with, too.
_WEIGHTS = ("alpha", "relatives_weight", "known_cells_weight")


@takes_cell_options
def calibrate(
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    output: str | Path,
    *,
    label_key: str = "cell_type",
    marker_weight: float | None = None,
    cross_fitted: Mapping[str | Path, str | Path] | None = None,
    device: str | None = None,
    **cell_options: Any,
) -> Calibration:
    """
    Writes a copy of a checkpoint with a calibration and its marker weight in its config. Candidates have the markers of
    the catalogue of cell types. A study's types are its candidates.

    Args:
        checkpoint: Folder or Hub id. It must not be adapted: an adapter has fixed labels.
        inputs: `.h5ad` files of cells with known types that the checkpoint was not trained on, one for each study.
        output: A new folder.
        label_key: Column of `obs` with the types, by any of their names in the Cell Ontology.
        marker_weight: Weight of the genes that descriptions name, beside similarity and matching; fitted by default. 0
            leaves them out.
        cross_fitted: Further files, which the checkpoint was trained on, each with the checkpoint of another run of the
            same training that left it out and scores it in its place (cross-fitting).
        device: Device to compute on.
        cell_options: `layer`, `use_raw`, `gene_column` and `counts` say how the cells are read.

    Raises:
        InputError: A file cannot be read, the ontology does not know a type, the marker weight is below 0, or the
            folder exists.
    """
    if isinstance(inputs, (str, Path)):
        raise InputError(f"The inputs must be a list of files, not one: [{str(inputs)!r}, ...].")
    output = require_new_folder(output)
    source = fetch(resolve_checkpoint(checkpoint))
    studies = {
        name: score_labelled(annotator, cells, label_key, **cell_options)
        for name, annotator, cells in studies_with_scorers(source, inputs, cross_fitted or {}, device)
    }
    found = fit(studies, read_config(source).alpha, marker_weight)
    calibration = replace(found, prompt_templates=load_processor(source).prompt_templates)
    made_with = {name: version(name) for name in ("modeling-langcell", "torch", "transformers")}
    calibration.fitted["versions"] = made_with
    save_calibrated(source, calibration, output)
    return calibration


def studies_with_scorers(
    checkpoint: str | Path,
    inputs: Sequence[str | Path],
    cross_fitted: Mapping[str | Path, str | Path],
    device: str | None = None,
) -> Iterator[tuple[str, LangCellAnnotator, ad.AnnData]]:
    """
    Yields the name of each study, which is that of its file, what scores it, and its cells. Arguments and errors are
    the same as for `calibrate`.
    """
    scored_by = [(Path(path), str(checkpoint)) for path in inputs]
    scored_by += [(Path(path), str(fetch(resolve_checkpoint(other)))) for path, other in cross_fitted.items()]
    if len({path.stem for path, _ in scored_by}) < len(scored_by):
        raise InputError("Two inputs have the same file name: rename one, since the file names identify the studies.")
    config = read_config(Path(checkpoint))
    for path, scorer in scored_by:
        annotator = LangCellAnnotator.from_pretrained(scorer, device=device)
        for weight in _WEIGHTS:
            setattr(annotator.model.config, weight, getattr(config, weight))
        yield path.stem, annotator, open_cells(path)


def score_labelled(
    annotator: Predictor, adata: ad.AnnData, label_key: str, candidates: Labels | None = None, **cell_options: Any
) -> LabelledScores:
    """
    Scores the cells of a study, without calibration and marker weight, against candidates, by default the study's own
    types.

    Raises:
        InputError: The checkpoint is adapted; there are no such labels, or the ontology does not know one; or cells
            cannot be read or have no known gene.
    """
    model = annotator.model
    if annotator.adaptation is not None or not isinstance(model, LangCellModel):
        raise InputError(
            "An adapted checkpoint cannot be calibrated: its labels are fixed. Calibrate its base checkpoint."
        )
    labels = read_labels(adata, label_key, unlabelled="skip", merge_names=True)
    if labels.multilabel:
        raise InputError(f"{label_key!r} may hold several labels per cell: calibration needs exactly one.")
    extractor = annotator.processor.feature_extractor
    descriptions = annotator.descriptions_of(labels.names if candidates is None else candidates)
    markers = {label: annotator.processor.find_genes(described) for label, described in descriptions.items()}
    evidence = MarkerEvidence(markers, extractor.usual_places, torch.device("cpu"))
    others = None if model.config.known_types is None else OtherTypes(model, annotator.processor)
    watched = tuple(sorted({*evidence.ids, *(() if others is None else others.evidence.ids)}))
    ranked = rank_cells(adata, labels.rows, extractor, places_of=watched, **cell_options)
    scorer = DescriptionScorer(
        model, annotator.processor, descriptions, model.config.alpha, None, annotator.budget, marker_weight=0
    )
    scorer.calibration = None
    scores = np.zeros((len(ranked), len(descriptions)), dtype=np.float32)
    novelty = np.zeros(len(ranked), dtype=np.float32)
    embeds = torch.zeros(len(ranked), model.config.projection_dim)
    for rows, found in read_cells(ranked, scorer, scorer.budget, annotator.device):
        scores[rows], novelty[rows] = found.scores.cpu().numpy(), 1 - found.max_cosine.cpu().numpy()
        embeds[rows] = found.embeds.cpu()
    places, column = torch.from_numpy(ranked.places), {gene: number for number, gene in enumerate(watched)}
    found_evidence = evidence(places[:, [column[gene] for gene in evidence.ids]]).numpy()
    rivals = None
    if others is not None:
        of_others = places[:, [column[gene] for gene in others.evidence.ids]].to(annotator.device)
        rivals = _rival_scores(scorer, others, embeds.to(annotator.device), of_others)
    truth = np.array(labels.names)[labels.truth]
    scored = LabelledScores(tuple(descriptions), scores, found_evidence, novelty, truth, rivals)
    return scored.take(~ranked.without_genes)


@torch.inference_mode()
def _rival_scores(
    scorer: DescriptionScorer, others: OtherTypes, embeds: torch.Tensor, places: torch.Tensor
) -> RivalScores:
    """
    Returns how well the candidates and the other types fit the cells.

    Args:
        scorer: Scorer of the candidates, without the marker evidence.
        others: The types that the checkpoint knows.
        embeds: `(cells, width)` embeddings.
        places: Places of the genes of `others.evidence`.
    """
    related, alike = others.alike(scorer.descriptions, scorer.label_embeds)
    found = (
        scorer.support(scorer.compare(embeds)),
        scorer.model.get_similarity_logits(embeds, others.embeds),
        others.evidence(places),
        related,
        alike,
        are_alike(scorer.label_embeds, scorer.label_embeds),
    )
    return RivalScores(*(values.cpu().numpy() for values in found))


def save_calibrated(source: Path, calibration: Calibration, output: str | Path) -> None:
    """
    Writes a copy of a checkpoint's folder with a calibration and its marker weight in its config. It appears whole or
    not at all.
    """
    config = read_config(source)
    config.calibration, config.marker_weight = calibration.to_dict(), calibration.marker_weight
    with atomic_folder(output) as folder:
        for path in source.iterdir():
            if path.is_file():
                shutil.copyfile(path, folder / path.name)
        config.save_pretrained(folder)


__all__ = ["calibrate", "save_calibrated", "score_labelled", "studies_with_scorers"]
