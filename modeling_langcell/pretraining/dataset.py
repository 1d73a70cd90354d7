# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a pre-training step takes: cells as they are shown this time, and what is said of them."""

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
from .sampler import CellSampler, share_out
from .texts import TYPE, Describer


class PretrainingBatches(Dataset):
    """
    The batches of a run, one a step: `batches[step]` is what this process takes of it.

    Everything drawn, from the cells to the genes that are masked and the negatives of the matching, is drawn from the
    seed, the step and the cell's place in it. A batch is the same whatever came before, and however many processes
    share it: each reads some of its cells, and knows all of its texts.

    Args:
        corpus: Where the cells come from. Where an objective needs texts, cells without a known type are left out.
        processor, model: What the batches are for: genes and tokens, which objectives there are, how genes are masked.
        config: How cells are drawn, shown and described.
        process, processes: Which share of each batch is made.

    Raises:
        InputError: Texts are needed and no cell has a type.
    """

    fewest_genes = 50  #: Of a cell on another study's panel, for it to be shown so.

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
                raise InputError(f"No cell of {corpus.folder} has a living Cell Ontology id for its type.")
        facts = corpus.facts.iloc[self.rows]
        self.lengths = facts["length"].to_numpy().astype(np.int64)
        self.sampler = CellSampler(
            np.minimum(self.lengths, config.max_genes),
            [facts["study"].cat.codes.to_numpy(), facts[TYPE].cat.codes.to_numpy()],
            balance=config.balance,
            batch_tokens=config.batch_tokens,
            seed=config.seed,
        )
        self.describer = Describer(facts[list(ASPECTS)], config, self._fits) if self.needs_texts else None
        self.measured = np.zeros((len(corpus.panels), len(processor.feature_extractor)), dtype=bool)
        for panel, token_ids in zip(self.measured, corpus.panels.values(), strict=True):
            panel[token_ids] = True

    def __getitem__(self, step: int) -> dict[str, Any]:
        """
        What `LangCellForPreTraining` takes, and `wordings`, the texts themselves. The cells are those of this process;
        `text_index`, `ignored_pairs` and `negative_draws` are of all, in the order of the processes.
        """
        cells = self.sampler.cells(step)
        if len(cells) < self.processes:
            raise InputError(f"batch_tokens gives a step {len(cells)} cells, fewer than there are processes.")
        rng = np.random.default_rng([self.config.seed, step, 1])
        # How many genes are left is known before any is read: the work can be shared out evenly.
        left = np.ceil((1 - rng.uniform(0, self.config.gene_dropout, len(cells))) * self.lengths[cells]).astype(int)
        shares = share_out(np.minimum(left, self.config.max_genes), self.processes)
        own = shares[self.process]
        batch: dict[str, Any] = self._show(cells[own], left[own], step)
        # As many in all processes: with FSDP they must call each layer equally often.
        batch["length_groups"] = min(self.config.length_groups, *map(len, shares))
        if self.describer is not None:
            described = self.describer(cells[np.concatenate(shares)], rng)
            texts = self.processor(
                text=described.wordings, text_kwargs={"max_length": self.config.max_tokens}, return_tensors="pt"
            )
            batch |= {
                "wordings": described.wordings,
                "input_ids": texts["input_ids"],
                "attention_mask": texts["attention_mask"],
                "text_index": torch.from_numpy(described.text_index),
                "ignored_pairs": torch.from_numpy(described.ignored_pairs),
                "negative_draws": torch.from_numpy(rng.random((len(cells), 2), dtype=np.float32)),
            }
        return batch

    def _show(self, cells: np.ndarray, left: np.ndarray, step: int) -> dict[str, torch.Tensor]:
        """Ids and mask of cells with so many of their genes left; masked ids and labels if genes are to be guessed."""
        ids: list[torch.Tensor] = []
        masked: list[torch.Tensor] = []
        labels: list[torch.Tensor] = []
        for cell, genes_left, token_ids in zip(cells, left, self.corpus.token_ids(self.rows[cells]), strict=True):
            rng = np.random.default_rng([self.config.seed, step, 2, cell])
            ids.append(torch.from_numpy(self._leave_out(token_ids, genes_left, rng).astype(np.int64)))
            if self.masking is not None:
                generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
                for part, found in zip((masked, labels), self.masking.corrupt(ids[-1], generator), strict=True):
                    part.append(found)
        batch = {"cell_input_ids": _pad(ids), "cell_attention_mask": _pad([torch.ones_like(cell) for cell in ids])}
        if self.masking is not None:
            batch |= {"masked_input_ids": _pad(masked), "masked_gene_labels": _pad(labels, IGNORED)}
        return batch

    def _leave_out(self, token_ids: np.ndarray, genes_left: int, rng: np.random.Generator) -> np.ndarray:
        """A cell with so many of its genes, or fewer where another study's panel lacks some; order kept."""
        cls, genes = np.split(token_ids, [1])
        kept = rng.permutation(len(genes)) < genes_left
        if rng.random() < self.config.panel_share:
            on_panel = self.measured[rng.integers(len(self.measured)), genes]
            # Two panels may have next to nothing in common: then the cell stays as it is.
            kept &= on_panel if on_panel.sum() >= self.fewest_genes else True
        return np.concatenate([cls, genes[kept]])[: self.config.max_genes]

    def _fits(self, text: str) -> bool:
        return len(self.processor.tokenizer(text)["input_ids"]) <= self.config.max_tokens


def _pad(rows: list[torch.Tensor], value: int = 0) -> torch.Tensor:
    return pad_sequence(rows, batch_first=True, padding_value=value)


class FrozenTexts:
    """
    What a text tower that is not trained makes of a text. Every wording is read once, and then remembered; and by
    itself, so that what is made of it does not depend, to the last bit, on what else was unread. The tower is a copy:
    the model's own may be split over processes.
    """

    def __init__(
        self, model: LangCellModel, processor: LangCellProcessor, max_tokens: int, device: torch.device | None = None
    ):
        self.text_model = copy.deepcopy(model.text_model).eval().to(device)
        self.processor, self.max_tokens = processor, max_tokens
        self._pooled: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, wordings: list[str]) -> torch.Tensor:
        """`(texts, hidden_size)` pooled states."""
        for wording in wordings:
            if wording not in self._pooled:
                text = self.processor(text=[wording], text_kwargs={"max_length": self.max_tokens}, return_tensors="pt")
                read = self.text_model(**text.to(self.text_model.device), pooled_only=True)
                self._pooled[wording] = read.pooler_output[0]
        return torch.stack([self._pooled[wording] for wording in wordings])


__all__ = ["FrozenTexts", "PretrainingBatches"]
