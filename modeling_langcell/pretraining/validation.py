# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Validation during training, on cells of studies that are not used for training."""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import accuracy_score, recall_score
from torch.nn.utils.rnn import pad_sequence

from .. import ontology
from ..corpus.corpus import Corpus
from ..model.errors import InputError
from ..model.modeling_langcell import LangCellForPreTraining
from ..model.objectives import IGNORED
from ..model.processing_langcell import LangCellProcessor
from .texts import TYPE


class HeldOutCells:
    """
    Cells of known type from held-out studies, to evaluate a model on.

    Args:
        corpus: The studies, built with the genes of the training corpus.
        processor: Tokenizes the descriptions.
        max_genes: Maximum length of a cell.
        max_tokens: Maximum length of a text.
        max_cells: Maximum number of cells, drawn once.
        seed: Seed of that draw and of the masked genes.

    Raises:
        InputError: The corpus has different genes from the processor, or no cell of known type.
    """

    batch_size = 32

    def __init__(
        self,
        corpus: Corpus,
        processor: LangCellProcessor,
        *,
        max_genes: int,
        max_tokens: int,
        max_cells: int,
        seed: int,
    ):
        if corpus.gene_vocabulary["ensembl_ids"] != processor.feature_extractor.gene_vocabulary["ensembl_ids"]:
            raise InputError(
                f"{corpus.folder} has different genes from the training corpus: build it with langcell corpus "
                "--vocabulary."
            )
        self.processor, self.seed, self.max_tokens = processor, seed, max_tokens
        types = corpus.facts[TYPE].to_numpy().astype(str)
        known = np.flatnonzero([ontology.is_term(term) for term in types])
        if not len(known):
            raise InputError(f"No cell of {corpus.folder} has a current Cell Ontology id for its type.")
        rng = np.random.default_rng(seed)
        cells = np.sort(rng.choice(known, min(max_cells, len(known)), replace=False))
        lengths = np.minimum(corpus.facts["length"].to_numpy()[cells], max_genes)
        cells = cells[np.argsort(lengths, kind="stable")]
        self.token_ids = [torch.from_numpy(ids[:max_genes].astype(np.int64)) for ids in corpus.token_ids(cells)]
        self.types, self.studies = types[cells], corpus.facts["study"].to_numpy().astype(str)[cells]

    @torch.no_grad()
    def evaluate(self, model: LangCellForPreTraining) -> dict[str, float]:
        """
        Evaluates the objectives that the model is trained for: loss and accuracy on masked genes; the shares of cells
        nearest to their own description (`cell_to_text_r1`) and of descriptions nearest to one of their own cells
        (`text_to_cell_r1`); and for each study accuracy and balanced accuracy of annotation by similarity alone, among
        the study's own types.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        metrics: dict[str, float] = {}
        if model.config.masked_gene_weight:
            metrics |= self._masked_genes(model)
        if model.config.cell_text_weight or model.config.matching_weight:
            metrics |= self._similarity(model)
        for module, mode in modes.items():
            module.training = mode
        return metrics

    def _batches(self, token_ids: list[torch.Tensor], device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
        for start in range(0, len(token_ids), self.batch_size):
            rows = token_ids[start : start + self.batch_size]
            mask = pad_sequence([torch.ones_like(cell) for cell in rows], batch_first=True)
            yield pad_sequence(rows, batch_first=True).to(device), mask.to(device)

    def _masked_genes(self, model: LangCellForPreTraining) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.seed)
        corrupted = [model.masked_gene_modelling.corrupt(cell, generator) for cell in self.token_ids]
        masked_ids, labels = zip(*corrupted, strict=True)
        loss, n_correct, n_masked = 0.0, 0, 0
        for start, (ids, mask) in enumerate(self._batches(list(masked_ids), model.device)):
            rows = list(labels[start * self.batch_size :][: self.batch_size])
            truth = pad_sequence(rows, batch_first=True, padding_value=IGNORED).to(model.device)
            states = model.cell_model(ids, mask, return_dict=True).last_hidden_state
            truth, states = truth[truth != IGNORED], states[truth != IGNORED]
            scores = model.lm_head(states).float()
            loss += F.cross_entropy(scores, truth, reduction="sum").item()
            n_correct += int((scores.argmax(dim=1) == truth).sum())
            n_masked += len(truth)
        return {"masked_gene_loss": loss / max(1, n_masked), "masked_gene_accuracy": n_correct / max(1, n_masked)}

    def _similarity(self, model: LangCellForPreTraining) -> dict[str, float]:
        terms = np.unique(self.types)
        texts = self.processor(
            text=[ontology.get_term(term).description for term in terms],
            text_kwargs={"max_length": self.max_tokens},
            return_tensors="pt",
        ).to(model.device)
        text_embeds = model.get_text_features(**texts, pooled_only=True, return_dict=True).pooler_output
        cells = [
            model.get_cell_features(ids, mask, pooled_only=True, return_dict=True).pooler_output
            for ids, mask in self._batches(self.token_ids, model.device)
        ]
        similarity = (torch.cat(cells) @ text_embeds.T).float().cpu().numpy()
        metrics = {
            "cell_to_text_r1": float((terms[similarity.argmax(axis=1)] == self.types).mean()),
            "text_to_cell_r1": float((self.types[similarity.argmax(axis=0)] == terms).mean()),
        }
        for study in np.unique(self.studies):
            own = self.studies == study
            candidates = np.isin(terms, self.types[own])
            predicted = terms[candidates][similarity[own][:, candidates].argmax(axis=1)]
            metrics[f"{study}/accuracy"] = float(accuracy_score(self.types[own], predicted))
            recall = recall_score(
                self.types[own], predicted, labels=terms[candidates], average="macro", zero_division=0
            )
            metrics[f"{study}/balanced_accuracy"] = float(recall)
        return metrics


__all__ = ["HeldOutCells"]
