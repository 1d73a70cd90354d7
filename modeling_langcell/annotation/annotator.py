# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells in, annotated cells out: annotation and embedding of an AnnData."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from ..checkpoint.adaptation_record import Adaptation
from ..checkpoint.builtin import display_name
from ..checkpoint.loading import load_checkpoint
from ..io.columns import EMBEDDING, PROBABILITIES, RUN, probability_columns
from ..io.progress import progress_bar
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import RankedCells, RankedChunks
from ..model.modeling_langcell import LangCellForSequenceClassification, LangCellModel
from ..model.packed_langcell import PackedSequences
from ..model.processing_langcell import LangCellProcessor
from ..model.token_budget import TokenBudget
from ..model.zero_shot import DescriptionScorer, Shortlist, read_cells
from ..ontology import texts_of
from .clusters import Consensus
from .predictions import DecisionRule, Predictions, facts_of
from .scorers import ClassScorer, PrototypeScorer, Scorer

_CHUNK = 4096  # Cells ranked, and sorted by length, at a time.


@dataclass(frozen=True)
class AnnotatedCells:
    """
    What is found of cells; of those without known genes missing values.

    Args:
        embeds: `(cells, width)` float32, L2-normalised.
        scores: `(cells, labels)` float32 from 0 to 1.
        answers: What follows from the scores.
    """

    embeds: np.ndarray
    scores: np.ndarray
    answers: Predictions


class LangCellAnnotator:
    """
    Annotates and embeds AnnData with a LangCell model.

    Args:
        model: A `LangCellModel`; or, for labels of its own alone, a `LangCellForSequenceClassification`.
        processor: Its `LangCellProcessor`.
        adaptation: What the model was adapted to, if it was: its labels are then the candidates by default.
        device: Where to compute, as `find_device`.
        batch_tokens: How many gene positions go through the cell tower at once, and how many word positions through
            the text tower; by default as many as free memory and the device suggest. Where memory runs out it is
            halved, and the work goes on. It does not change results.

    Example:

    ```python
    >>> from modeling_langcell import LangCellAnnotator
    >>> annotator = LangCellAnnotator.from_pretrained("hub_configs/langcell-mini")  # doctest: +SKIP
    >>> annotator.annotate(adata, ["B cell", "T cell", "monocyte"])  # doctest: +SKIP

    ```"""

    def __init__(
        self,
        model: LangCellModel | LangCellForSequenceClassification,
        processor: LangCellProcessor,
        *,
        adaptation: Adaptation | None = None,
        device: str | torch.device | None = None,
        batch_tokens: int | None = None,
    ):
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        self.processor, self.adaptation = processor, adaptation
        self.budget = TokenBudget.for_model(self.model) if batch_tokens is None else TokenBudget(batch_tokens)

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        batch_tokens: int | None = None,
    ) -> "LangCellAnnotator":
        """
        Loads model and processor from a folder or a Hub id.

        Args:
            checkpoint: The folder or id; with an adapter, the one that it was made from may be left out.
            adapter: Folder or id of what `langcell adapt` made.
            device: As for the class.
            dtype: What to compute in. Results are stated for `float32`.
            revision: Branch, tag or commit of the checkpoint's Hub repository.
            batch_tokens: As for the class.

        Raises:
            InputError: Nothing there that loads as a LangCell model with its processor, an adapter that does not fit
                it, or no such device.
        """
        if dtype not in ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype {dtype!r} is not one of float32, bfloat16 and float16.")
        where = find_device(device)
        model, processor, adaptation = load_checkpoint(checkpoint, adapter, dtype=dtype, revision=revision)
        return cls(model, processor, adaptation=adaptation, device=where, batch_tokens=batch_tokens)

    def annotate(
        self,
        adata: ad.AnnData,
        labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
        *,
        alpha: float | None = None,
        shortlist: Shortlist = "auto",
        check: int = 0,
        error_rate: float | None = None,
        cluster_key: str | None = None,
        **cell_options: Any,
    ) -> ad.AnnData:
        """
        Finds for every cell the label that fits it best: with no training label, among candidates that are described
        (LangCell, section 3.3); of an adapted checkpoint, among the labels it was adapted to.

        Args:
            adata: Cells with counts, in memory or backed. A view is copied first.
            labels: Candidates: names, synonyms or ids of the Cell Ontology, `{label: description}`, or `{label:
                [description, ...]}` to be judged by several. An adapted checkpoint has its own.
            alpha: Weight of the similarity against the matching head, from 0 to 1; the checkpoint's own by default. 1
                leaves the matching out, which is much faster.
            shortlist: How many candidates of each cell, those most similar to it, the matching reads; `None` for all.
                By default all up to 32, and 32 of more.
            check: Where there is a shortlist, so many cells are read against all candidates too, to say how often the
                answer is the same.
            error_rate: Of the answers, where the checkpoint is calibrated: an answer is as specific as this rate of
                wrong ones allows, or `unknown`. 0.1 by default.
            cluster_key: Column of `obs` with clusters, which get an answer together.
            cell_options: `layer`, `use_raw`, `gene_column`, `counts`, `empty_cells`: how `LangCellFeatureExtractor`
                reads the cells. Cells marked by `empty_cells="mark"` get no label and missing values.

        Returns:
            The AnnData, with `obs["langcell_cell_type"]` (categorical; its categories are the labels that a cell has),
            `obs["langcell_score"]` (the winner's score), of several labels `obs["langcell_second"]` (the next),
            `obs["langcell_margin"]` (by how much the winner is ahead of it), `obs["langcell_novelty"]` (1 minus the
            cosine with the most similar description), `obsm["X_langcell"]` (float32 embeddings),
            `obsm["langcell_probabilities"]` (a column a label, with `|` for `/` in its name) and `uns["langcell"]`
            (what is needed to repeat the run).

            Where the checkpoint is calibrated for this alpha and its wordings the scores are probabilities, and there
            are `obs["langcell_answer"]` (the most specific term of the Cell Ontology that is probable enough, or
            `unknown`), `obs["langcell_answer_id"]` and `obs["langcell_answer_probability"]`. With a shortlist also
            `obs["langcell_proven"]`: whether no candidate that it left out can be the best. With clusters
            `obs["langcell_consensus"]`, where there are answers `obs["langcell_consensus_id"]`, and
            `obs["langcell_consensus_agreement"]`. On an error nothing is written.

        Raises:
            InputError: No labels, a label nobody knows, an alpha outside 0 to 1, an error rate that the checkpoint is
                not calibrated for, no such clusters, or cells that cannot be read.
        """
        scorer = self.scorer(labels, alpha, shortlist)
        rule = DecisionRule(scorer, error_rate)
        consensus = None if cluster_key is None else Consensus(adata.obs, cluster_key, rule)
        chunks = self.chunks(adata, **cell_options)
        with progress_bar() as progress:
            task = progress.add_task("Cells", total=adata.n_obs)
            parts = []
            for number, ranked in enumerate(chunks):
                rows = checked_rows(chunks.rows(number), adata.n_obs, check)
                parts.append(self.annotate_cells(ranked, scorer, rule, rows, lambda n: progress.advance(task, n)))
                if consensus is not None:
                    consensus.add(chunks.rows(number), parts[-1].scores)
        answers = Predictions.concatenate(part.answers for part in parts)
        adata = adata.copy() if adata.is_view else adata
        rule.write(adata.obs, answers)
        if consensus is not None:
            consensus.write(adata.obs, answers)
        adata.obsm[EMBEDDING] = np.concatenate([part.embeds for part in parts])
        adata.obsm[PROBABILITIES] = pd.DataFrame(
            np.concatenate([part.scores for part in parts]),
            index=adata.obs_names,
            columns=probability_columns(rule.labels),
        )
        adata.uns[RUN] = self.record_of(scorer, rule, chunks, answers, cluster_key)
        return adata

    def embed(self, adata: ad.AnnData, **cell_options: Any) -> ad.AnnData:
        """
        Places every cell in the space that cells and texts share.

        Args: `adata` and `cell_options` as for `annotate`.

        Returns:
            The AnnData, with `obsm["X_langcell"]`, `(cells, projection_dim)` float32, L2-normalised, and
            `uns["langcell"]`.
        """
        embeds = np.full((adata.n_obs, self.width), np.nan, dtype=np.float32)
        chunks, matched = self.chunks(adata, **cell_options), []
        with progress_bar() as progress:
            task = progress.add_task("Cells", total=adata.n_obs)
            for number, ranked in enumerate(chunks):
                matched.append(ranked.matched_counts)
                for rows, found in read_cells(ranked, self._embed, self.budget, self.device):
                    embeds[chunks.rows(number).start + rows] = found.cpu().numpy()
                    progress.advance(task, len(rows))
        adata = adata.copy() if adata.is_view else adata
        adata.obsm[EMBEDDING] = embeds
        adata.uns[RUN] = self.run_record(chunks, np.concatenate(matched))
        return adata

    def texts_of(self, labels: Iterable[str] | Mapping[str, str | Sequence[str]]) -> dict[str, tuple[str, ...]]:
        """
        All that this checkpoint judges labels by, as its processor words them; arguments and errors as for
        `ontology.candidates`.
        """
        return texts_of(labels, self.processor.prompt_templates)

    def embed_texts(self, texts: Iterable[str | Sequence[str]]) -> np.ndarray:
        """
        `(texts, projection_dim)` float32, L2-normalised: texts, such as descriptions, in the space of the cells. Where
        several stand for one, as `texts_of` gives them, they have one embedding together, as of `DescriptionScorer`.

        Raises:
            InputError: The checkpoint is a classifier, which reads no texts.
        """
        if not isinstance(self.model, LangCellModel):
            raise InputError("This checkpoint classifies into labels of its own and reads no texts.")
        described = {str(number): text for number, text in enumerate(texts)}
        scorer = DescriptionScorer(self.model, self.processor, described, 1.0, budget=self.budget)
        return scorer.text_embeds.cpu().numpy()

    # ------------------------------------------------------------------ the work

    def scorer(
        self,
        labels: Iterable[str] | Mapping[str, str | Sequence[str]] | None = None,
        alpha: float | None = None,
        shortlist: Shortlist = "auto",
    ) -> Scorer:
        """What the candidates are judged by; arguments and errors as for `annotate`."""
        adaptation = self.adaptation
        if isinstance(self.model, LangCellForSequenceClassification):
            if labels is not None or alpha is not None:
                raise InputError("This checkpoint classifies into labels of its own: leave labels and alpha out.")
            names = dict.fromkeys(self.model.config.id2label.values(), "")
            return ClassScorer(self.model, names if adaptation is None else adaptation.labels, self.budget)
        own = adaptation if labels is None else None
        if labels is None and own is None:
            raise InputError("Name the candidates: this checkpoint was not adapted to labels of its own.")
        if alpha is None:
            alpha = self.model.config.alpha if adaptation is None else adaptation.alpha
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha} is not between 0 and 1.")
        descriptions = self.texts_of(() if labels is None else labels) if own is None else own.labels
        by_description = DescriptionScorer(self.model, self.processor, descriptions, alpha, shortlist, self.budget)
        if own is not None and own.prototypes is not None:
            return PrototypeScorer(by_description, own.prototypes, own.prototype_weight)
        return by_description

    def chunks(self, adata: ad.AnnData, **cell_options: Any) -> RankedChunks:
        """The cells, ranked, a chunk at a time; arguments and errors as for `LangCellFeatureExtractor.chunks`."""
        return self.processor.feature_extractor.chunks(adata, chunk_size=_CHUNK, **cell_options)

    def annotate_cells(
        self,
        ranked: RankedCells,
        scorer: Scorer,
        rule: DecisionRule,
        checked: Sequence[int] = (),
        advance: Callable[[int], Any] = lambda cells: None,
    ) -> AnnotatedCells:
        """
        Annotates a chunk of cells.

        Args:
            ranked: The cells.
            scorer: As `scorer` gives it.
            rule: What turns its scores into answers.
            checked: Those that are read against all candidates too, where the scorer has a shortlist.
            advance: Told, again and again, of how many more cells were read.
        """
        embeds = np.full((len(ranked), self.width), np.nan, dtype=np.float32)
        scores = np.full((len(ranked), len(scorer.descriptions)), np.nan, dtype=np.float32)
        max_cosine = np.full(len(ranked), np.nan, dtype=np.float32)
        shortlist_is_exact = np.zeros(len(ranked), dtype=bool)
        exact = np.full(len(ranked), -1, dtype=np.int32)
        for rows, found in read_cells(ranked, scorer, scorer.budget, self.device):
            embeds[rows], scores[rows] = found.embeds.cpu().numpy(), found.scores.cpu().numpy()
            max_cosine[rows], shortlist_is_exact[rows] = (
                found.max_cosine.cpu().numpy(),
                found.shortlist_is_exact.numpy(),
            )
            advance(len(rows))
        if isinstance(scorer, DescriptionScorer) and scorer.shortlist is not None and len(checked):
            of_all = scorer.reading(None)
            for rows, found in read_cells(ranked, of_all, of_all.budget, self.device, np.array(checked)):
                exact[rows] = found.scores.argmax(dim=1).cpu().numpy()
        answers = rule(scores, max_cosine, shortlist_is_exact, exact, ranked.matched_counts)
        return AnnotatedCells(embeds, scores, answers)

    @property
    def width(self) -> int:
        """Of an embedding."""
        config = self.model.config
        return config.projection_dim if isinstance(self.model, LangCellModel) else config.hidden_size

    @torch.inference_mode()
    def _embed(self, ids: torch.Tensor, cells: PackedSequences) -> torch.Tensor:
        _, pooled = self.model.cell_model.read_packed(ids, cells, pooled_only=True)
        if isinstance(self.model, LangCellModel):
            return self.model.project_cells(pooled).float()
        return F.normalize(pooled.float(), dim=-1)

    def record_of(
        self, scorer: Scorer, rule: DecisionRule, chunks: RankedChunks, answers: Predictions, cluster_key: str | None
    ) -> dict[str, Any]:
        """What `uns` says of an annotation: what is needed to repeat it, and what is known of all its answers."""
        return self.run_record(chunks, answers.matched_counts) | {
            "labels": np.array(list(scorer.descriptions)),
            "descriptions": np.array([_in_lines(texts) for texts in scorer.descriptions.values()]),
            **({} if cluster_key is None else {"cluster_key": cluster_key}),
            **scorer.settings,
            **rule.settings,
            **facts_of(answers, rule),
        }

    def origin(self) -> dict[str, str]:
        """Where the model is from: `checkpoint` and its `revision`, and the `adapter`; empty where there is none."""
        config = self.model.config
        return {
            "checkpoint": display_name(config.name_or_path or ""),
            "revision": str(getattr(config, "_commit_hash", None) or ""),
            "adapter": "" if self.adaptation is None else self.adaptation.loaded_from,
        }

    def run_record(self, chunks: RankedChunks, matched_counts: np.ndarray) -> dict[str, Any]:
        """What `uns` says of a run, in kinds that `.h5ad` holds."""
        match = chunks.match
        facts = {
            "array": chunks.label,
            "counts": chunks.counts,
            "empty_cells": chunks.empty_cells,
            **({} if chunks.gene_column is None else {"gene_column": chunks.gene_column}),
            "genes": len(match.token_ids),
            "genes_by_ensembl_id": match.by_ensembl_id,
            "genes_by_symbol": match.by_symbol,
            "genes_by_synonym": match.by_synonym,
            "matched_counts": float(np.median(matched_counts)),
        }
        return {
            **self.origin(),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "input": facts,
            "versions": {name: version(name) for name in ("modeling-langcell", "transformers", "torch", "anndata")},
        }


def _in_lines(texts: Sequence[str]) -> str:
    """A label's texts as one, a line each: a tokenizer takes the end of a line for a space."""
    return "\n".join(" ".join(text.splitlines()) for text in texts)


def texts_read(run: Mapping[str, Any]) -> dict[str, list[str]]:
    """What labels were judged by in a run, of what `uns["langcell"]` says of it."""
    pairs = zip(run["labels"], run["descriptions"], strict=True)
    return {str(label): str(texts).split("\n") for label, texts in pairs}


def checked_rows(rows: range, n_cells: int, check: int) -> list[int]:
    """Which cells of a chunk are among `check` ones spread evenly over all, counted from the chunk's first."""
    chosen = np.unique(np.linspace(0, n_cells - 1, min(check, n_cells)).astype(int))
    return (chosen[(chosen >= rows.start) & (chosen < rows.stop)] - rows.start).tolist()


def describe_input(adata: ad.AnnData) -> str:
    """One sentence on what an annotated AnnData's run read of it."""
    facts = adata.uns[RUN]["input"]
    found = {how: facts[f"genes_by_{how}"] for how in ("ensembl_id", "symbol", "synonym")}
    ways = ", ".join(f"{number:,} by {how.replace('_', ' ')}" for how, number in found.items() if number)
    return (
        f"{adata.n_obs:,} cells; {facts['array']} read as {facts['counts']} values; {sum(found.values()):,} of "
        f"{facts['genes']:,} genes known ({ways}), with {facts['matched_counts']:.0%} of the median cell's counts."
    )


def find_device(device: str | torch.device | None) -> torch.device:
    """
    The device that is named; by default CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: No such device here.
    """
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():  # Of several processes each takes a GPU of its own.
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
    try:
        found = torch.device(device)
    except RuntimeError as error:  # torch lists all that it was ever told of.
        raise InputError(f"The device {str(device)!r} cannot be used: name cpu, cuda, cuda:1 or mps.") from error
    try:
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {str(device)!r} cannot be used: {reason_of(error).partition('. ')[0]}") from error
    return found


# ---------------------------------------------------------------------- files


__all__ = ["LangCellAnnotator", "describe_input"]
