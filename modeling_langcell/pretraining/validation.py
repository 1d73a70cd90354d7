# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How well a model that is being trained does on studies that it is not trained on."""

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
    Cells of known type of other studies, and what is measured on them.

    Args:
        corpus: The studies; made with the genes of the corpus that is trained on.
        processor: Reads the descriptions.
        max_genes, max_tokens: Longest cell and text.
        most: At most so many cells, drawn once.
        seed: Of that draw, and of the genes that are masked.

    Raises:
        InputError: Other genes than the processor's, or no cell of known type.
    """

    cells_at_once = 32

    def __init__(
        self, corpus: Corpus, processor: LangCellProcessor, *, max_genes: int, max_tokens: int, most: int, seed: int
    ):
        if corpus.gene_vocabulary["ensembl_ids"] != processor.feature_extractor.gene_vocabulary["ensembl_ids"]:
            raise InputError(f"{corpus.folder} has other genes than the corpus trained on: make it with --vocabulary.")
        self.processor, self.seed, self.max_tokens = processor, seed, max_tokens
        types = corpus.facts[TYPE].to_numpy().astype(str)
        known = np.flatnonzero([ontology.is_term(term) for term in types])
        if not len(known):
            raise InputError(f"No cell of {corpus.folder} has a living Cell Ontology id for its type.")
        rng = np.random.default_rng(seed)
        cells = np.sort(rng.choice(known, min(most, len(known)), replace=False))
        lengths = np.minimum(corpus.facts["length"].to_numpy()[cells], max_genes)
        cells = cells[np.argsort(lengths, kind="stable")]
        self.token_ids = [torch.from_numpy(ids[:max_genes].astype(np.int64)) for ids in corpus.token_ids(cells)]
        self.types, self.studies = types[cells], corpus.facts["study"].to_numpy().astype(str)[cells]

    @torch.no_grad()
    def measure(self, model: LangCellForPreTraining) -> dict[str, float]:
        """
        Measures what the model is trained for: the masked-gene loss and how often the gene is guessed; how often a
        cell is nearest to its own of all the cells' descriptions (`cell_to_text_r1`) and a description to a cell of its
        own (`text_to_cell_r1`); accuracy, and balanced accuracy, of annotating each study by similarity alone among
        its own types.
        """
        modes = {module: module.training for module in model.modules()}
        model.eval()
        found: dict[str, float] = {}
        if model.config.masked_gene_weight:
            found |= self._masked_genes(model)
        if model.config.cell_text_weight or model.config.matching_weight:
            found |= self._similarity(model)
        for module, mode in modes.items():
            module.training = mode
        return found

    def _batches(self, token_ids: list[torch.Tensor], device: torch.device) -> Iterator[tuple[torch.Tensor, ...]]:
        for start in range(0, len(token_ids), self.cells_at_once):
            rows = token_ids[start : start + self.cells_at_once]
            mask = pad_sequence([torch.ones_like(cell) for cell in rows], batch_first=True)
            yield pad_sequence(rows, batch_first=True).to(device), mask.to(device)

    def _masked_genes(self, model: LangCellForPreTraining) -> dict[str, float]:
        generator = torch.Generator().manual_seed(self.seed)
        corrupted = [model.masked_gene_modelling.corrupt(cell, generator) for cell in self.token_ids]
        shown, labels = zip(*corrupted, strict=True)
        loss, right, asked = 0.0, 0, 0
        for start, (ids, mask) in enumerate(self._batches(list(shown), model.device)):
            rows = list(labels[start * self.cells_at_once :][: self.cells_at_once])
            truth = pad_sequence(rows, batch_first=True, padding_value=IGNORED).to(model.device)
            states = model.cell_model(ids, mask, return_dict=True).last_hidden_state
            truth, states = truth[truth != IGNORED], states[truth != IGNORED]
            scores = model.lm_head(states).float()
            loss += F.cross_entropy(scores, truth, reduction="sum").item()
            right += int((scores.argmax(dim=1) == truth).sum())
            asked += len(truth)
        return {"masked_gene_loss": loss / max(1, asked), "masked_gene_accuracy": right / max(1, asked)}

    def _similarity(self, model: LangCellForPreTraining) -> dict[str, float]:
        terms = np.unique(self.types)
        texts = self.processor(
            text=[ontology.get_term(term).description for term in terms],
            text_kwargs={"max_length": self.max_tokens},
            return_tensors="pt",
        ).to(model.device)
        text_embeds = model.get_text_features(**texts)
        cells = [model.get_cell_features(ids, mask) for ids, mask in self._batches(self.token_ids, model.device)]
        similarity = (torch.cat(cells) @ text_embeds.T).float().cpu().numpy()
        found = {
            "cell_to_text_r1": float((terms[similarity.argmax(axis=1)] == self.types).mean()),
            "text_to_cell_r1": float((self.types[similarity.argmax(axis=0)] == terms).mean()),
        }
        for study in np.unique(self.studies):
            own = self.studies == study
            candidates = np.isin(terms, self.types[own])
            named = terms[candidates][similarity[own][:, candidates].argmax(axis=1)]
            found[f"{study}/accuracy"] = float(accuracy_score(self.types[own], named))
            recall = recall_score(self.types[own], named, labels=terms[candidates], average="macro", zero_division=0)
            found[f"{study}/balanced_accuracy"] = float(recall)
        return found


__all__ = ["HeldOutCells"]
