# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The batches of a pre-training run: cells as the model reads them in a step, and the texts that describe them."""

import copy
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from .. import ontology
from ..corpus.corpus import Corpus
from ..corpus.sources import ASPECTS
from ..model.errors import InputError
from ..model.modeling_langcell import LangCellModel
from ..model.objectives import IGNORED, MaskedGeneModelling
from ..model.processing_langcell import LangCellProcessor
from .config import PretrainingConfig
from .sampler import CellSampler, split_by_length
from .texts import TYPE, DescriptionSampler


class PretrainingBatches(Dataset):
    """
    The batches of a run, one per step: `batches[step]` is the part of this process.

    All random draws, from the cells to the masked genes and the negatives of the matching, depend only on the seed, the
    step and the cell. A batch does not depend on earlier batches or on the number of processes that share it: each
    reads some of the cells, and all of the texts.

    Args:
        corpus: The cells. Cells without a known type are left out where an objective needs texts.
        processor: Tokenizes the texts.
        model: Determines the objectives and how genes are masked.
        config: Determines how cells are drawn, changed and described.
        process: Number of this process.
        processes: Number of all processes.

    Raises:
        InputError: Texts are needed and no cell has a type.
    """

    min_panel_genes = 50  #: A cell with fewer genes on another study's panel keeps all of its own.
    first_ranks = 10  #: Ranks this close to the top count as alike when noise is added: their genes differ little.

    def __init__(
        self,
        corpus: Corpus,
        processor: LangCellProcessor,
        model: LangCellModel,
        config: PretrainingConfig,
        process: int = 0,
        processes: int = 1,
    ):
        self.corpus, self.processor, self.config = corpus, processor, config
        self.process, self.processes = process, processes
        objectives = model.config
        self.needs_texts = bool(objectives.cell_text_weight or objectives.matching_weight)
        self.masking = None
        if objectives.masked_gene_weight:
            cells = objectives.cell_config
            self.masking = MaskedGeneModelling(
                cells.vocab_size, cells.mask_token_id, objectives.masked_gene_probability
            )
        types = corpus.facts[TYPE]
        self.rows = np.arange(len(corpus))
        if self.needs_texts:
            self.rows = np.flatnonzero(types.isin([term for term in types.cat.categories if ontology.is_term(term)]))
            if not len(self.rows):
                raise InputError(f"No cell of {corpus.folder} has a current Cell Ontology id for its type.")
        facts = corpus.facts.iloc[self.rows]
        self.lengths = facts["length"].to_numpy().astype(np.int64)
        self.is_profile = facts["profile"].to_numpy()
        self.sampler = CellSampler(
            np.minimum(self.lengths, config.max_genes),
            [facts["study"].cat.codes.to_numpy(), facts[TYPE].cat.codes.to_numpy()],
            balance=config.balance,
            batch_tokens=config.batch_tokens,
            seed=config.seed,
        )
        self.descriptions = DescriptionSampler(facts[list(ASPECTS)], config, self._fits) if self.needs_texts else None
        self.measured = np.zeros((len(corpus.panels), len(processor.feature_extractor)), dtype=bool)
        for panel, token_ids in zip(self.measured, corpus.panels.values(), strict=True):
            panel[token_ids] = True

    def __getitem__(self, step: int) -> dict[str, Any]:
        """
        Returns the arguments of `LangCellForPreTraining`, and `texts`, the descriptions as strings. The cells are those
        of this process; `text_index`, `ignored_pairs` and `negative_draws` are those of all processes, in their order.

        Raises:
            InputError: There are fewer cells than processes.
        """
        cells = self.sampler.cells(step)
        if len(cells) < self.processes:
            raise InputError(f"batch_tokens gives a step {len(cells)} cells, fewer than there are processes: raise it.")
        rng = np.random.default_rng([self.config.seed, step, 1])
        # The number of genes to keep is drawn before any are read, so that the work can be split evenly.
        n_genes = np.ceil((1 - rng.uniform(0, self.config.gene_dropout, len(cells))) * self.lengths[cells]).astype(int)
        parts = split_by_length(np.minimum(n_genes, self.config.max_genes), self.processes)
        own = parts[self.process]
        batch: dict[str, Any] = self._read_cells(cells[own], n_genes[own], step)
        # The same number in all processes: with FSDP they must call each layer equally often.
        batch["length_groups"] = min(self.config.length_groups, *map(len, parts))
        if self.descriptions is not None:
            described = self.descriptions(cells[np.concatenate(parts)], rng)
            tokens = self.processor(
                text=described.texts, text_kwargs={"max_length": self.config.max_tokens}, return_tensors="pt"
            )
            batch |= {
                "texts": described.texts,
                "input_ids": tokens["input_ids"],
                "attention_mask": tokens["attention_mask"],
                "text_index": torch.from_numpy(described.text_index),
                "ignored_pairs": torch.from_numpy(described.ignored_pairs),
                "negative_draws": torch.from_numpy(rng.random((len(cells), 2), dtype=np.float32)),
            }
        return batch

    def whole_cells(self, cells: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
        """Reads the ranked ids of cells without changes, at most `max_genes` of each; draws one from each profile."""
        read = self.corpus.token_ids(self.rows[cells])
        for number, cell in enumerate(cells.tolist()):
            if self.is_profile[cell]:
                read[number] = self.corpus.draw_cell(int(self.rows[cell]), rng)
        return [token_ids[: self.config.max_genes] for token_ids in read]

    def _read_cells(self, cells: np.ndarray, n_genes: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        """Reads cells with `n_genes` of their genes: ids and mask, and masked ids and labels for that objective."""
        ids: list[torch.Tensor] = []
        masked: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        for cell, n_kept, token_ids in zip(cells, n_genes, self.corpus.token_ids(self.rows[cells]), strict=True):
            rng = np.random.default_rng([self.config.seed, step, 2, cell])
            if self.is_profile[cell]:
                token_ids = self.corpus.draw_cell(int(self.rows[cell]), rng)
                n_kept = np.ceil(n_kept / self.lengths[cell] * len(token_ids))
            token_ids = self._drop_genes(self._reorder_genes(token_ids, rng), n_kept, rng)
            ids.append(torch.from_numpy(token_ids.astype(np.int64)))
            if self.masking is not None:
                generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
                masked_ids, gene_labels = self.masking.corrupt(ids[-1], generator)
                masked.append(masked_ids)
                labels.append(gene_labels)
        batch = {"cell_input_ids": _pad(ids), "cell_attention_mask": _pad([torch.ones_like(cell) for cell in ids])}
        if self.masking is not None:
            batch |= {"masked_input_ids": _pad(masked), "masked_gene_targets": _pad(labels, IGNORED)}
        return batch

    def _reorder_genes(self, token_ids: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Returns a cell whose genes change ranks as they do from study to study."""
        if not self.config.rank_noise:
            return token_ids
        cls, genes = np.split(token_ids, [1])
        ranks = np.log(np.arange(len(genes)) + self.first_ranks)
        spread = rng.uniform(0, self.config.rank_noise)
        return np.concatenate([cls, genes[np.argsort(ranks + rng.normal(0, spread, len(genes)), kind="stable")]])

    def _drop_genes(self, token_ids: np.ndarray, n_kept: int, rng: np.random.Generator) -> np.ndarray:
        """Returns a cell with `n_kept` of its genes, in order, or fewer where another study's panel lacks some."""
        cls, genes = np.split(token_ids, [1])
        kept = rng.permutation(len(genes)) < n_kept
        if rng.random() < self.config.panel_share:
            on_panel = self.measured[rng.integers(len(self.measured)), genes]
            # Two panels may have almost nothing in common.
            kept &= on_panel if on_panel.sum() >= self.min_panel_genes else True
        return np.concatenate([cls, genes[kept]])[: self.config.max_genes]

    def _fits(self, text: str) -> bool:
        return len(self.processor.tokenizer(text)["input_ids"]) <= self.config.max_tokens


def _pad(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


class FrozenTextEncoder:
    """
    Encodes texts with a text tower that is not trained. Each text is encoded once and then remembered. It is encoded by
    itself, so that not even the last bit of its encoding depends on other texts. The tower is a copy: the model's own
    may be split over processes.

    Args:
        model: Its text tower is copied.
        processor: Tokenizes the texts.
        max_tokens: Maximum length of a text.
        device: Device of the copy; by default that of the model.
    """

    def __init__(
        self, model: LangCellModel, processor: LangCellProcessor, max_tokens: int, device: torch.device | None = None
    ):
        self.text_model = copy.deepcopy(model.text_model).eval().to(device)
        self.processor, self.max_tokens = processor, max_tokens
        self._pooled: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Returns `(texts, hidden_size)` pooled states."""
        for text in texts:
            if text not in self._pooled:
                tokens = self.processor(text=[text], text_kwargs={"max_length": self.max_tokens}, return_tensors="pt")
                outputs = self.text_model(**tokens.to(self.text_model.device), pooled_only=True)
                self._pooled[text] = outputs.pooler_output[0]
        return torch.stack([self._pooled[text] for text in texts])


__all__ = ["FrozenTextEncoder", "PretrainingBatches"]
