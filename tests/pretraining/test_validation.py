# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Metrics on held-out cells, against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_langcell import InputError
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.ontology import get_term
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.initialization import initialize_model
from modeling_langcell.pretraining.validation import HeldOutCells

LIMITS = {"max_genes": 32, "max_tokens": 16, "max_cells": 1000, "seed": 0}


@pytest.fixture
def model_and_processor(settings):
    torch.manual_seed(0)
    return initialize_model(PretrainingConfig(**settings), Corpus(settings["corpus"]).gene_vocabulary)


def test_similarity_against_loops(settings, model_and_processor):
    model, processor = model_and_processor
    corpus = Corpus(settings["corpus"])
    model.train()
    model.text_model.eval()
    found = HeldOutCells(corpus, processor, **LIMITS).evaluate(model)
    assert (model.training, model.cell_model.training, model.text_model.training) == (True, True, False)

    model.eval()
    facts = corpus.facts
    known = [row for row, term in enumerate(facts["cell_type"]) if term != "unknown"]
    truth, studies = (facts[name].to_numpy().astype(str)[known] for name in ("cell_type", "study"))
    terms = sorted(set(truth))
    texts = processor(
        text=[get_term(term).description for term in terms], text_kwargs={"max_length": 16}, return_tensors="pt"
    )
    similarity = []
    with torch.no_grad():
        embeds = model.get_text_features(**texts).pooler_output
        for ids in corpus.token_ids(known):
            cell = torch.from_numpy(ids[:32].astype(np.int64))[None]
            similarity.append((model.get_cell_features(cell).pooler_output @ embeds.T)[0].tolist())
    similarity = np.array(similarity)
    nearest = [terms[row.argmax()] for row in similarity]
    assert found["cell_to_text_r1"] == pytest.approx(np.mean([n == t for n, t in zip(nearest, truth, strict=True)]))
    best = [truth[similarity[:, column].argmax()] == term for column, term in enumerate(terms)]
    assert found["text_to_cell_r1"] == pytest.approx(np.mean(best))
    for study in set(studies):
        own = [n == t for n, t, s in zip(nearest, truth, studies, strict=True) if s == study]
        assert found[f"{study}/accuracy"] == pytest.approx(np.mean(own)), "every study has all the types here"


def test_masked_genes_against_loops(settings, model_and_processor, monkeypatch):
    model, processor = model_and_processor
    held_out = HeldOutCells(Corpus(settings["corpus"]), processor, **LIMITS)
    shown = []
    corrupt = model.masked_gene_modelling.corrupt
    monkeypatch.setattr(
        model.masked_gene_modelling, "corrupt", lambda *given: shown.append(corrupt(*given)) or shown[-1]
    )
    found = held_out.evaluate(model)
    losses, right = [], []
    model.eval()
    for ids, labels in shown:
        with torch.no_grad():
            scores = model.lm_head(model.cell_model(ids[None]).last_hidden_state)[0]
        for position in (labels != -100).nonzero().flatten():
            losses.append(F.cross_entropy(scores[position], labels[position]).item())
            right.append(bool(scores[position].argmax() == labels[position]))
    assert found["masked_gene_loss"] == pytest.approx(np.mean(losses), rel=1e-4)
    assert found["masked_gene_accuracy"] == pytest.approx(np.mean(right))
    assert held_out.evaluate(model)["masked_gene_loss"] == found["masked_gene_loss"], "the same genes each time"


def test_only_trained_objectives_are_evaluated(settings, model_and_processor):
    model, processor = model_and_processor
    held_out = HeldOutCells(Corpus(settings["corpus"]), processor, **LIMITS | {"max_cells": 7})
    assert len(held_out.token_ids) == 7
    model.config.masked_gene_weight = 0
    assert not [name for name in held_out.evaluate(model) if name.startswith("masked")]
    model.config.masked_gene_weight, model.config.cell_text_weight, model.config.matching_weight = 1, 0, 0
    assert held_out.evaluate(model).keys() == {"masked_gene_loss", "masked_gene_accuracy"}


def test_other_genes_are_refused(settings, model_and_processor, tiny_processor):
    vocabulary = tiny_processor.feature_extractor.gene_vocabulary
    tiny_processor.feature_extractor.gene_vocabulary = vocabulary | {"ensembl_ids": vocabulary["ensembl_ids"][::-1]}
    try:
        with pytest.raises(InputError, match="different genes"):
            HeldOutCells(Corpus(settings["corpus"]), tiny_processor, **LIMITS)
    finally:
        tiny_processor.feature_extractor.gene_vocabulary = vocabulary
