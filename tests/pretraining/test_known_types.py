# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a trained model remembers of its types: the embeddings of their descriptions, and the means of their cells."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from modeling_langcell import ontology
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.pretraining.config import PretrainingConfig
from modeling_langcell.pretraining.dataset import PretrainingBatches
from modeling_langcell.pretraining.initialization import initialize_model
from modeling_langcell.pretraining.known_types import remember_types


@pytest.fixture
def trained(settings):
    """Returns a function that makes a model with its processor and batches; keywords change the run's settings."""

    def make(**overrides):
        config = PretrainingConfig(**settings | overrides)
        corpus = Corpus(config.corpus)
        model, processor = initialize_model(config, corpus.gene_vocabulary)
        return model, processor, PretrainingBatches(corpus, processor, model, config)

    return make


def embeds_of(model, batches, rows):
    cells = [
        torch.from_numpy(ids[: batches.config.max_genes].astype(np.int64)) for ids in batches.corpus.token_ids(rows)
    ]
    with torch.no_grad():
        return torch.stack(
            [model.eval().get_cell_features(cell[None], torch.ones_like(cell)[None]).pooler_output[0] for cell in cells]
        )


def test_a_type_has_the_mean_of_its_studies_and_a_type_above_that_of_its_kinds(trained):
    model, processor, batches = trained()
    remember_types(model, processor, batches)
    terms = list(batches.descriptions.type_texts)
    assert model.known_texts.shape == model.known_cells.shape == (len(terms), model.config.projection_dim)
    facts = batches.corpus.facts.iloc[batches.rows]
    sizes = facts.groupby(["cell_type", "study"], observed=True).size()
    assert sizes.max() <= 20, "all cells are averaged"
    means = {
        group: embeds_of(model, batches, batches.rows[members]).mean(dim=0)
        for group, members in facts.reset_index().groupby(["cell_type", "study"], observed=True).indices.items()
    }
    for number, term in enumerate(terms):
        own = [mean for (kind, _), mean in means.items() if term == kind or term in ontology.ancestors(kind)]
        expected = F.normalize(torch.stack(own).mean(dim=0), dim=0)
        torch.testing.assert_close(model.known_cells[number], expected, atol=1e-4, rtol=1e-3)
    text = processor(text=[batches.descriptions.type_texts[terms[0]]], return_tensors="pt")
    torch.testing.assert_close(
        model.known_texts[0], model.get_text_features(**text).pooler_output[0].detach(), atol=1e-5, rtol=1e-4
    )


def test_types_above_are_remembered_where_they_describe_cells(trained):
    _, _, batches = trained()
    only_types = trained(ancestor_share=0.0)[2].descriptions.type_texts
    assert set(only_types) == set(batches.corpus.facts["cell_type"].iloc[batches.rows])
    assert set(only_types) < set(batches.descriptions.type_texts)
