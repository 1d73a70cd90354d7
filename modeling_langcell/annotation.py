# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells in, annotated cells out: zero-shot annotation and embedding of an AnnData."""

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import AutoModel, AutoProcessor

from .feature_extraction_langcell import InputError, RankedCells
from .modeling_langcell import LangCellModel
from .ontology import describe
from .processing_langcell import LangCellProcessor

CELL_TYPE, SCORE = "langcell_cell_type", "langcell_score"
EMBEDDING, PROBABILITIES = "X_langcell", "langcell_probabilities"
RUN = "langcell"

_CHUNK = 4096  # Cells ranked, and sorted by length, at a time.


@dataclass(frozen=True)
class _Candidates:
    """Candidate labels as the model reads them, and the embeddings of their descriptions."""

    descriptions: dict[str, str]
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    embeds: torch.Tensor

    def blocks(self, words: int) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """
        Texts of similar length together, at least one and at most as many as `words` hold: their rows, ids and masks
        without the columns that none of them fills.
        """
        lengths = self.attention_mask.sum(dim=1)
        order = lengths.argsort(descending=True, stable=True)
        while len(order):
            longest = int(lengths[order[0]])
            rows, order = order.tensor_split([max(1, words // longest)])
            yield rows, self.input_ids[rows, :longest], self.attention_mask[rows, :longest]


class LangCellAnnotator:
    """
    Annotates and embeds AnnData with a LangCell model.

    Args:
        model: A `LangCellModel`.
        processor: Its `LangCellProcessor`.
        device: Where to compute; by default CUDA, else Apple's MPS, else the CPU.
        batch_tokens: How many gene positions go through the cell tower at once, and how many word positions through
            the text tower. It bounds memory and does not change results.

    Example:

    ```python
    >>> from modeling_langcell import LangCellAnnotator
    >>> annotator = LangCellAnnotator.from_pretrained("hub_configs/langcell-mini")  # doctest: +SKIP
    >>> annotator.annotate(adata, ["B cell", "T cell", "monocyte"])  # doctest: +SKIP

    ```"""

    def __init__(
        self,
        model: LangCellModel,
        processor: LangCellProcessor,
        *,
        device: str | torch.device | None = None,
        batch_tokens: int = 16_384,
    ):
        self.device = torch.device(device) if device is not None else _best_device()
        self.model = model.to(self.device).eval()
        self.processor = processor
        self.batch_tokens = batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        batch_tokens: int = 16_384,
    ) -> "LangCellAnnotator":
        """
        Loads model and processor from a folder or a Hub id.

        Args:
            checkpoint: The folder or id.
            device: As for the class.
            dtype: What to compute in. Results are stated for `float32`.
            revision: Branch, tag or commit of a Hub repository.
            batch_tokens: As for the class.

        Raises:
            InputError: Nothing there that loads as a LangCell model with its processor, or no such device.
        """
        if dtype not in ("float32", "bfloat16", "float16", torch.float32, torch.bfloat16, torch.float16):
            raise InputError(f"dtype {dtype!r} is not one of float32, bfloat16 and float16.")
        try:
            model = AutoModel.from_pretrained(checkpoint, dtype=dtype, revision=revision)
            processor = AutoProcessor.from_pretrained(checkpoint, revision=revision)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raise InputError(f"No LangCell checkpoint could be loaded from {str(checkpoint)!r}: {reason}") from error
        if not isinstance(model, LangCellModel):
            raise InputError(f"{str(checkpoint)!r} holds a {type(model).__name__}, not a LangCellModel.")
        try:
            return cls(model, processor, device=device, batch_tokens=batch_tokens)
        except RuntimeError as error:
            raise InputError(f"The device {str(device)!r} cannot be used: {str(error).splitlines()[0]}") from error

    def annotate(
        self,
        adata: ad.AnnData,
        labels: Iterable[str] | Mapping[str, str],
        *,
        alpha: float | None = None,
        **cell_options: Any,
    ) -> ad.AnnData:
        """
        Finds for every cell the candidate that describes it best, with no training label (LangCell, section 3.3).

        A candidate's score blends two probabilities over the candidates: that of the similarity in the shared space,
        with weight `alpha`, and that of the matching head, with weight `1 - alpha`.

        Args:
            adata: Cells with counts, in memory or backed. A view is copied first.
            labels: Candidates: names, synonyms or ids of the Cell Ontology, or `{label: description}`.
            alpha: Weight of the similarity, from 0 to 1; the checkpoint's own by default. 1 leaves the matching out,
                which is much faster.
            cell_options: `layer`, `use_raw`, `gene_column`, `counts`, `empty_cells`: how `LangCellFeatureExtractor`
                reads the cells. Cells marked by `empty_cells="mark"` get no label and missing values.

        Returns:
            The AnnData, with `obs["langcell_cell_type"]` (categorical), `obs["langcell_score"]` (the winner's score),
            `obsm["X_langcell"]` (float32 embeddings), `obsm["langcell_probabilities"]` (a column a label) and
            `uns["langcell"]` (what is needed to repeat the run). On an error nothing is written.

        Raises:
            InputError: A label nobody knows, an alpha outside 0 to 1, or cells that cannot be read.
        """
        alpha = self.model.config.alpha if alpha is None else alpha
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha} is not between 0 and 1.")
        candidates = self._read(describe(labels))
        names = list(candidates.descriptions)
        embeds = np.full((adata.n_obs, self.model.config.projection_dim), np.nan, dtype=np.float32)
        scores = np.full((adata.n_obs, len(names)), np.nan, dtype=np.float32)
        facts: dict[str, Any] = {}
        for rows, cell_embeds, cell_scores in self._batches(adata, cell_options, facts, candidates, alpha):
            embeds[rows], scores[rows] = cell_embeds, cell_scores

        adata = adata.copy() if adata.is_view else adata
        known = ~np.isnan(scores[:, 0])
        best = np.where(known, np.argmax(scores, axis=1), -1).tolist()
        adata.obs[CELL_TYPE] = pd.Categorical.from_codes(best, pd.Index(names))
        adata.obs[SCORE] = scores.max(axis=1)
        adata.obsm[EMBEDDING] = embeds
        adata.obsm[PROBABILITIES] = pd.DataFrame(scores, index=adata.obs_names, columns=names)
        adata.uns[RUN] = self._run_record(facts) | {
            "labels": np.array(names),
            "descriptions": np.array(list(candidates.descriptions.values())),
            "alpha": float(alpha),
        }
        return adata

    def embed(self, adata: ad.AnnData, **cell_options: Any) -> ad.AnnData:
        """
        Places every cell in the space that cells and texts share.

        Args: `adata` and `cell_options` as for `annotate`.

        Returns:
            The AnnData, with `obsm["X_langcell"]`, `(cells, projection_dim)` float32, L2-normalised, and
            `uns["langcell"]`.
        """
        embeds = np.full((adata.n_obs, self.model.config.projection_dim), np.nan, dtype=np.float32)
        facts: dict[str, Any] = {}
        for rows, cell_embeds, _ in self._batches(adata, cell_options, facts):
            embeds[rows] = cell_embeds
        adata = adata.copy() if adata.is_view else adata
        adata.obsm[EMBEDDING] = embeds
        adata.uns[RUN] = self._run_record(facts)
        return adata

    # ------------------------------------------------------------------ the work

    @torch.inference_mode()
    def _read(self, descriptions: dict[str, str]) -> _Candidates:
        """Tokenizes and embeds the candidates, once a call."""
        texts = self.processor(text=list(descriptions.values()), return_tensors="pt").to(self.device)
        embeds = torch.empty(len(descriptions), self.model.config.projection_dim, device=self.device)
        candidates = _Candidates(descriptions, texts["input_ids"], texts["attention_mask"], embeds.to(self.model.dtype))
        for rows, ids, mask in candidates.blocks(self.batch_tokens):
            candidates.embeds[rows] = self.model.get_text_features(ids, mask)
        return candidates

    def _batches(
        self,
        adata: ad.AnnData,
        cell_options: dict[str, Any],
        facts: dict[str, Any],
        candidates: _Candidates | None = None,
        alpha: float = 1.0,
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        """
        Row numbers, embeddings and scores of batch after batch; `facts` is filled with what was found in the input.
        Cells without known genes are passed over.
        """
        extractor = self.processor.feature_extractor
        where = {key: cell_options[key] for key in ("layer", "use_raw", "gene_column") if key in cell_options}
        source, match = extractor.open(adata, **where)
        matched_counts = []
        with _progress() as progress:
            task = progress.add_task("Cells", total=adata.n_obs)
            start = 0
            for ranked in extractor.stream(adata, chunk_size=_CHUNK, **cell_options):
                matched_counts.append(ranked.matched_counts)
                for rows in self._by_length(ranked):
                    yield start + rows, *self._score(ranked, rows, candidates, alpha)
                    progress.advance(task, len(rows))
                start += len(ranked)
        facts |= {
            "array": source.label,
            "counts": cell_options.get("counts", "raw"),
            "genes": len(match.token_ids),
            "genes_by_ensembl_id": match.by_ensembl_id,
            "genes_by_symbol": match.by_symbol,
            "genes_by_synonym": match.by_synonym,
            "matched_counts": float(np.median(np.concatenate(matched_counts))),
        }

    def _by_length(self, ranked: RankedCells) -> Iterator[np.ndarray]:
        """Cells of similar length together, as many as `batch_tokens` holds, longest first."""
        order = np.argsort(-ranked.lengths, kind="stable")
        order = order[~ranked.without_genes[order]]
        while len(order):
            size = max(1, self.batch_tokens // int(ranked.lengths[order[0]]))
            yield order[:size]
            order = order[size:]

    @torch.inference_mode()
    def _score(
        self, ranked: RankedCells, rows: np.ndarray, candidates: _Candidates | None, alpha: float
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Embeddings of one batch and, with candidates, their scores."""
        ids, mask = (torch.from_numpy(array).to(self.device) for array in ranked.pad(rows))
        cells = self.model.cell_model(ids, mask, pooled_only=candidates is None or alpha == 1)
        embeds = self.model.project_cells(cells.pooler_output)
        if candidates is None:
            return embeds.float().cpu().numpy(), None
        scores = self.model.get_similarity_logits(embeds, candidates.embeds).float().softmax(dim=1)
        if alpha < 1:
            match = torch.empty_like(scores)
            for texts, text_ids, text_mask in candidates.blocks(self.batch_tokens // len(rows)):
                logits = self.model.get_matching_logits(cells.last_hidden_state, mask, text_ids, text_mask)
                match[:, texts] = logits.float().softmax(dim=-1)[..., 1]
            # The published procedure takes the softmax, over candidates, of the probabilities themselves.
            scores = alpha * scores + (1 - alpha) * match.softmax(dim=1)
        return embeds.float().cpu().numpy(), scores.cpu().numpy()

    def _run_record(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What `uns` says of a run, in kinds that `.h5ad` holds."""
        config = self.model.config
        return {
            "checkpoint": str(config.name_or_path or ""),
            "revision": str(getattr(config, "_commit_hash", None) or ""),
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "input": facts,
            "versions": {name: version(name) for name in ("modeling-langcell", "transformers", "torch", "anndata")},
        }


def describe_input(adata: ad.AnnData) -> str:
    """One sentence on what an annotated AnnData's run read of it."""
    facts = adata.uns[RUN]["input"]
    found = {how: facts[f"genes_by_{how}"] for how in ("ensembl_id", "symbol", "synonym")}
    ways = ", ".join(f"{number:,} by {how.replace('_', ' ')}" for how, number in found.items() if number)
    return (
        f"{adata.n_obs:,} cells; {facts['array']} read as {facts['counts']} values; {sum(found.values()):,} of "
        f"{facts['genes']:,} genes known ({ways}), with {facts['matched_counts']:.0%} of the median cell's counts."
    )


def _best_device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, transient=True, disable=not sys.stdout.isatty())


# ---------------------------------------------------------------------- files


def open_cells(path: str | Path) -> ad.AnnData:
    """
    Opens an `.h5ad` file backed: its matrix stays on disk.

    Raises:
        InputError: No such file, or one that anndata cannot read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"No file {path}.")
    try:
        return ad.read_h5ad(path, backed="r")
    except Exception as error:  # anndata and h5py raise whatever a damaged file makes them stumble over
        raise InputError(f"{path} cannot be read as .h5ad: {str(error).strip().splitlines()[0]}") from error


def write_annotated(adata: ad.AnnData, output: str | Path) -> Path:
    """
    Writes an annotated AnnData; a backed one as a copy of its file with the annotations added, so that the matrix
    never passes through memory. The file appears whole or not at all.

    Raises:
        InputError: The folder cannot be written to, or is full.
    """
    output = Path(output)
    aside = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.")
        os.close(descriptor)
        aside = Path(name)
        if adata.isbacked:
            shutil.copyfile(adata.filename, aside)
            with h5py.File(aside, "r+") as file:
                for group, element in (("obs", adata.obs), ("obsm", dict(adata.obsm)), ("uns", dict(adata.uns))):
                    ad.io.write_elem(file, group, element)
        else:
            adata.write_h5ad(aside)
        umask = os.umask(0)
        os.umask(umask)
        aside.chmod(0o666 & ~umask)  # mkstemp's files are private; a result is an ordinary file.
        aside.replace(output)
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error}") from error
    finally:
        if aside is not None:
            aside.unlink(missing_ok=True)
    return output


__all__ = ["LangCellAnnotator", "describe_input", "open_cells", "write_annotated"]
