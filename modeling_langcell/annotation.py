# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Cells in, annotated cells out: annotation and embedding of an AnnData."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from .adapters import Adaptation, load_checkpoint
from .feature_extraction_langcell import InputError
from .modeling_langcell import LangCellForSequenceClassification, LangCellModel
from .ontology import describe
from .pipeline_langcell import BATCH_TOKENS, DescriptionScorer
from .processing_langcell import LangCellProcessor
from .progress import progress_bar
from .scoring import ClassScorer, PrototypeScorer, Scorer
from .shipped import name_of

CELL_TYPE, SCORE = "langcell_cell_type", "langcell_score"
EMBEDDING, PROBABILITIES = "X_langcell", "langcell_probabilities"
RUN = "langcell"

_CHUNK = 4096  # Cells ranked, and sorted by length, at a time.


class LangCellAnnotator:
    """
    Annotates and embeds AnnData with a LangCell model.

    Args:
        model: A `LangCellModel`; or, for labels of its own alone, a `LangCellForSequenceClassification`.
        processor: Its `LangCellProcessor`.
        adaptation: What the model was adapted to, if it was: its labels are then the candidates by default.
        device: Where to compute, as `find_device`.
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
        model: LangCellModel | LangCellForSequenceClassification,
        processor: LangCellProcessor,
        *,
        adaptation: Adaptation | None = None,
        device: str | torch.device | None = None,
        batch_tokens: int = BATCH_TOKENS,
    ):
        self.device = find_device(device)
        self.model = model.to(self.device).eval()
        self.processor, self.adaptation = processor, adaptation
        self.batch_tokens = batch_tokens

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | Path | None = None,
        *,
        adapter: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype = "float32",
        revision: str | None = None,
        batch_tokens: int = BATCH_TOKENS,
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
        labels: Iterable[str] | Mapping[str, str] | None = None,
        *,
        alpha: float | None = None,
        **cell_options: Any,
    ) -> ad.AnnData:
        """
        Finds for every cell the label that fits it best: with no training label, among candidates that are described
        (LangCell, section 3.3); of an adapted checkpoint, among the labels it was adapted to.

        Args:
            adata: Cells with counts, in memory or backed. A view is copied first.
            labels: Candidates: names, synonyms or ids of the Cell Ontology, or `{label: description}`. An adapted
                checkpoint has its own.
            alpha: Weight of the similarity against the matching head, from 0 to 1; the checkpoint's own by default. 1
                leaves the matching out, which is much faster.
            cell_options: `layer`, `use_raw`, `gene_column`, `counts`, `empty_cells`: how `LangCellFeatureExtractor`
                reads the cells. Cells marked by `empty_cells="mark"` get no label and missing values.

        Returns:
            The AnnData, with `obs["langcell_cell_type"]` (categorical), `obs["langcell_score"]` (the winner's score),
            `obsm["X_langcell"]` (float32 embeddings), `obsm["langcell_probabilities"]` (a column a label, with `|` for
            `/` in its name) and `uns["langcell"]` (what is needed to repeat the run). On an error nothing is written.

        Raises:
            InputError: No labels, a label nobody knows, an alpha outside 0 to 1, or cells that cannot be read.
        """
        scorer = self._scorer(labels, alpha)
        names = list(scorer.descriptions)
        embeds = np.full((adata.n_obs, self._width), np.nan, dtype=np.float32)
        scores = np.full((adata.n_obs, len(names)), np.nan, dtype=np.float32)
        facts: dict[str, Any] = {}
        for rows, (cell_embeds, cell_scores) in self._batches(adata, scorer, cell_options, facts):
            embeds[rows], scores[rows] = cell_embeds.cpu().numpy(), cell_scores.cpu().numpy()

        adata = adata.copy() if adata.is_view else adata
        known = ~np.isnan(scores[:, 0])
        best = np.where(known, np.argmax(scores, axis=1), -1).tolist()
        adata.obs[CELL_TYPE] = pd.Categorical.from_codes(best, pd.Index(names))
        adata.obs[SCORE] = scores.max(axis=1)
        adata.obsm[EMBEDDING] = embeds
        # An .h5ad takes a slash in the name of a column for a group.
        columns = [name.replace("/", "|") for name in names]
        adata.obsm[PROBABILITIES] = pd.DataFrame(scores, index=adata.obs_names, columns=columns)
        adata.uns[RUN] = self._run_record(facts) | {
            "labels": np.array(names),
            "descriptions": np.array(list(scorer.descriptions.values())),
            **scorer.settings,
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
        embeds = np.full((adata.n_obs, self._width), np.nan, dtype=np.float32)
        facts: dict[str, Any] = {}
        for rows, cell_embeds in self._batches(adata, self._embed, cell_options, facts):
            embeds[rows] = cell_embeds.cpu().numpy()
        adata = adata.copy() if adata.is_view else adata
        adata.obsm[EMBEDDING] = embeds
        adata.uns[RUN] = self._run_record(facts)
        return adata

    def embed_texts(self, texts: Iterable[str]) -> np.ndarray:
        """
        `(texts, projection_dim)` float32, L2-normalised: texts, such as descriptions, in the space of the cells.

        Raises:
            InputError: The checkpoint is a classifier, which reads no texts.
        """
        if not isinstance(self.model, LangCellModel):
            raise InputError("This checkpoint classifies into labels of its own and reads no texts.")
        described = {str(number): text for number, text in enumerate(texts)}
        scorer = DescriptionScorer(self.model, self.processor, described, 1.0, self.batch_tokens)
        return scorer.text_embeds.float().cpu().numpy()

    # ------------------------------------------------------------------ the work

    def _scorer(self, labels: Iterable[str] | Mapping[str, str] | None, alpha: float | None) -> Scorer:
        """What the candidates are judged by."""
        adaptation = self.adaptation
        if isinstance(self.model, LangCellForSequenceClassification):
            if labels is not None or alpha is not None:
                raise InputError("This checkpoint classifies into labels of its own: leave labels and alpha out.")
            names = dict.fromkeys(self.model.config.id2label.values(), "")
            return ClassScorer(self.model, names if adaptation is None else adaptation.labels)
        own = adaptation if labels is None else None
        if labels is None and own is None:
            raise InputError("Name the candidates: this checkpoint was not adapted to labels of its own.")
        if alpha is None:
            alpha = self.model.config.alpha if adaptation is None else adaptation.alpha
        if not 0 <= alpha <= 1:
            raise InputError(f"alpha={alpha} is not between 0 and 1.")
        descriptions = describe(() if labels is None else labels) if own is None else own.labels
        by_description = DescriptionScorer(self.model, self.processor, descriptions, alpha, self.batch_tokens)
        if own is not None and own.prototypes is not None:
            return PrototypeScorer(by_description, own.prototypes, own.prototype_weight)
        return by_description

    @property
    def _width(self) -> int:
        config = self.model.config
        return config.projection_dim if isinstance(self.model, LangCellModel) else config.hidden_size

    @torch.inference_mode()
    def _embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if isinstance(self.model, LangCellModel):
            return self.model.get_cell_features(ids, mask).float()
        return F.normalize(self.model.cell_model(ids, mask, pooled_only=True).pooler_output.float(), dim=-1)

    def _batches(
        self,
        adata: ad.AnnData,
        read: Callable[[torch.Tensor, torch.Tensor], Any],
        cell_options: dict[str, Any],
        facts: dict[str, Any],
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """
        Row numbers, and what is read of these cells, of batch after batch; `facts` is filled with what was found in the
        input. Cells without known genes are passed over.
        """
        extractor = self.processor.feature_extractor
        where = {key: cell_options[key] for key in ("layer", "use_raw", "gene_column") if key in cell_options}
        source, match = extractor.open(adata, **where)
        matched_counts = []
        with progress_bar() as progress:
            task = progress.add_task("Cells", total=adata.n_obs)
            start = 0
            for ranked in extractor.stream(adata, chunk_size=_CHUNK, **cell_options):
                matched_counts.append(ranked.matched_counts)
                for rows in ranked.batches(self.batch_tokens):
                    ids, mask = (torch.from_numpy(array).to(self.device) for array in ranked.pad(rows))
                    yield start + rows, read(ids, mask)
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

    def _run_record(self, facts: dict[str, Any]) -> dict[str, Any]:
        """What `uns` says of a run, in kinds that `.h5ad` holds."""
        config = self.model.config
        return {
            "checkpoint": name_of(config.name_or_path or ""),
            "revision": str(getattr(config, "_commit_hash", None) or ""),
            "adapter": "" if self.adaptation is None else self.adaptation.loaded_from,
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


def find_device(device: str | torch.device | None) -> torch.device:
    """
    The device that is named; by default CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: No such device here.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"The device {str(device)!r} cannot be used: {str(error).splitlines()[0].partition('. ')[0]}"
        ) from error
    return found


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
