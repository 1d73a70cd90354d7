# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a pre-training batch holds: cells, and descriptions that are composed for it of what the ontology knows."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from . import ontology
from .corpus import Corpus
from .feature_extraction_langcell import InputError
from .modeling_langcell import LangCellModel
from .processing_langcell import LangCellProcessor

if TYPE_CHECKING:
    from .pretraining import PretrainingConfig


class CellTextBatches:
    """
    Endless training batches of cells and the distinct descriptions of them.

    A cell is described by its type or, half of the time, by an ancestor of it: what is learnt of "lymphocyte" carries
    to types never seen. A text that is true of a cell without being the one drawn for it (another ancestor, or a type
    that may be the cell's own when its label is coarse) is neutral to it.

    Types that stand beside the cells' own in the ontology come as texts that no cell of the batch has: what sets a
    classical monocyte apart from a non-classical one is learnt though no cell of the latter was ever seen.
    """

    fewest_genes = 50  #: Of a cell on another study's panel, for it to be shown so.

    def __init__(self, corpus: Corpus, processor: LangCellProcessor, config: "PretrainingConfig"):
        self.corpus, self.processor, self.config = corpus, processor, config
        self.rng = np.random.default_rng(config.seed)
        types = corpus.facts["cell_type"]
        known = [term for term in types.cat.categories if ontology.is_term(term)]
        self.labelled = np.flatnonzero(types.isin(known))
        if not len(self.labelled):
            raise InputError(f"No cell of {corpus.folder} has a living Cell Ontology id for its type.")
        self.term_ids = types.to_numpy()[self.labelled]
        studies = corpus.facts["study"].cat.codes.to_numpy()[self.labelled]
        measured = np.zeros((len(corpus.panels), len(processor.feature_extractor)), dtype=bool)
        for panel, token_ids in zip(measured, corpus.panels.values(), strict=True):
            panel[token_ids] = True
        self.measured = measured
        study_and_type = np.stack([studies, types.cat.codes.to_numpy()[self.labelled]])
        _, groups, sizes = np.unique(study_and_type, axis=1, return_inverse=True, return_counts=True)
        weights = sizes[groups] ** (config.balance - 1.0)
        self.weights = weights / weights.sum()
        self.ancestors = {
            term: sorted(ontology.ancestors(term) - ontology.UNINFORMATIVE) for term in set(self.term_ids.tolist())
        }
        self.beside = {
            term: sorted(
                other
                for other in frozenset().union(*map(ontology.siblings, (term, *above)))
                if not ontology.related(term, other)
            )
            for term, above in self.ancestors.items()
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            rows = self.rng.choice(len(self.weights), self.config.batch_size, replace=False, p=self.weights)
            yield self.batch(rows)

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """One batch of the given cells: what the model takes, and the `wordings` of its texts."""
        own = [str(term) for term in self.term_ids[rows]]
        described_by = [self._describing_term(term) for term in own]
        terms = sorted(set(described_by))
        terms += self._wrong_terms(own, terms)
        text_index = np.array([terms.index(term) for term in described_by])
        neutral = np.array([[ontology.related(term, other) for other in terms] for term in own])
        neutral[np.arange(len(rows)), text_index] = False
        ids, mask = self._cells(rows)
        wordings = [self._wording(ontology.get_term(term)) for term in terms]
        texts = self.processor(text=wordings, text_kwargs={"max_length": self.config.max_tokens}, return_tensors="pt")
        return {
            "cell_input_ids": torch.from_numpy(ids),
            "cell_attention_mask": torch.from_numpy(mask),
            "wordings": wordings,
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
            "text_index": torch.from_numpy(text_index),
            "neutral": torch.from_numpy(neutral),
        }

    def _describing_term(self, term: str) -> str:
        above = self.ancestors[term]
        if above and self.rng.random() < self.config.ancestor_share:
            return str(self.rng.choice(above))
        return term

    def _wrong_terms(self, own: list[str], described: list[str]) -> list[str]:
        """Types beside those of the batch's cells and their ancestors, drawn among all that there are."""
        beside = sorted({str(self.rng.choice(self.beside[term])) for term in own if self.beside[term]} - {*described})
        return self.rng.permutation(beside)[: self.config.sibling_texts].tolist()

    @property
    def wordings(self) -> list[str]:
        """Everything that can be said of the corpus's cells: every type and ancestor, in all its wordings."""
        terms = set(self.ancestors).union(*self.ancestors.values())
        return [wording for term in sorted(terms) for wording in ontology.get_term(term).wordings]

    def _wording(self, term: ontology.Term) -> str:
        if term.definition and self.rng.random() >= self.config.name_only_share:
            return term.description
        return str(self.rng.choice(term.short_wordings))

    def _cells(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of the cells with some of their genes left out, order kept."""
        sequences = []
        for token_ids in self.corpus.token_ids(self.labelled[rows]):
            cls, genes = np.split(token_ids, [1])
            kept = self.rng.random(len(genes)) >= self.rng.uniform(0, self.config.gene_dropout)
            if self.rng.random() < self.config.panel_share:
                on_panel = self.measured[self.rng.integers(len(self.measured)), genes]
                # Two panels may have next to nothing in common: then the cell stays as it is.
                kept &= on_panel if on_panel.sum() >= self.fewest_genes else True
            sequences.append(np.concatenate([cls, genes[kept]])[: self.config.max_genes])
        mask = np.arange(max(map(len, sequences))) < np.array([[len(s)] for s in sequences])
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = np.concatenate(sequences)
        return ids, mask.astype(np.int64)


class FrozenTexts:
    """What a text tower that is not trained makes of a text: every wording is read once, and then remembered."""

    def __init__(self, model: LangCellModel, processor: LangCellProcessor, max_tokens: int):
        self.model, self.processor, self.max_tokens = model, processor, max_tokens
        self._pooled: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, wordings: list[str]) -> torch.Tensor:
        """`(texts, hidden_size)` pooled states."""
        unread = [wording for wording in wordings if wording not in self._pooled]
        if unread:
            texts = self.processor(text=unread, text_kwargs={"max_length": self.max_tokens}, return_tensors="pt")
            pooled = self.model.text_model(**texts.to(self.model.device), pooled_only=True).pooler_output
            self._pooled.update(zip(unread, pooled, strict=True))
        return torch.stack([self._pooled[wording] for wording in wordings])


__all__ = ["CellTextBatches", "FrozenTexts"]
