# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Descriptions that training never showed, and the share that they get from those that it showed."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoModel

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.model.zero_shot import DescriptionScorer, KnownTypes, RelativesShare, read_cells

LEARNT = {"B cell": "a b cell .", "T cell": "a t cell ."}
NEW = LEARNT | {"plasma cell": "a b cell that secretes antibody ."}


@pytest.fixture
def annotator(tiny_checkpoint):
    """A checkpoint whose training showed the first two descriptions."""
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    torch.manual_seed(0)
    for parameter in annotator.model.parameters():  # Random weights as they are drawn make all texts alike.
        parameter.data += 0.3 * torch.randn_like(parameter)
    texts = torch.from_numpy(annotator.embed_texts(LEARNT.values()))
    annotator.model.remember_types(texts, F.normalize(torch.randn(texts.shape), dim=1))
    annotator.model.config.alpha = 1.0
    return annotator


def _scores(annotator, cells, labels, **options):
    annotated = annotator.annotate(cells.copy(), labels, **options)
    return np.asarray(annotated.obsm["langcell_probabilities"])


def _scores_of(annotator, cells, labels, weight):
    annotator.model.config.relatives_weight = weight
    return _scores(annotator, cells, labels)


def test_known_descriptions_are_divided_among_the_labels():
    generator = torch.Generator().manual_seed(1)
    known, new = (F.normalize(torch.randn(rows, 8, generator=generator), dim=1) for rows in (5, 2))
    similarity, known_probabilities = (
        torch.randn(6, columns, generator=generator).softmax(dim=1) for columns in (3, 5)
    )
    share = RelativesShare.of(torch.cat([new, known[2:3]]), KnownTypes(known, known, weight=0.0), weight=4.0)
    found = share(similarity, known_probabilities)
    labels = torch.cat([new, known[2:3]])
    for cell in range(6):
        expected = similarity[cell].double().clone()
        for text, probability in zip(known, known_probabilities[cell], strict=True):
            closeness = (12 * (labels @ text)).double().exp()
            expected[:2] += 4 * probability * (closeness / closeness.sum())[:2]
        torch.testing.assert_close(found[cell].double(), expected / expected.sum(), rtol=1e-5, atol=1e-7)


def test_nothing_is_shared_among_known_descriptions(annotator, cells):
    assert (_scores_of(annotator, cells, LEARNT, 0) == _scores_of(annotator, cells, LEARNT, 100)).all()
    assert annotator.scorer(LEARNT).relatives is None
    assert annotator.scorer(NEW).relatives is not None


def test_a_new_description_gains_on_those_that_are_known(annotator, cells):
    before, after = _scores_of(annotator, cells, NEW, 0), _scores_of(annotator, cells, NEW, 10)
    assert (after[:, 2] > before[:, 2]).all()
    np.testing.assert_allclose(after[:, 0] / after[:, 1], before[:, 0] / before[:, 1], rtol=1e-4)
    np.testing.assert_allclose(after.sum(axis=1), 1, rtol=1e-5)


def test_a_checkpoint_without_known_descriptions_scores_as_before(tiny_checkpoint, cells):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    assert annotator.model.known_texts is None
    assert (_scores_of(annotator, cells, NEW, 100) == _scores_of(annotator, cells, NEW, 0)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_known_descriptions_are_saved_with_the_model(annotator, cells, tmp_path, dtype):
    expected = _scores_of(annotator, cells, NEW, 10)
    annotator.model.to(dtype).save_pretrained(tmp_path)
    annotator.processor.save_pretrained(tmp_path)
    again = LangCellAnnotator.from_pretrained(tmp_path, device="cpu")
    assert again.model.config.n_known_types == 2
    assert again.scorer(LEARNT).relatives is None, "rounded weights describe the same"
    np.testing.assert_allclose(_scores(again, cells, NEW), expected, atol=1e-5 if dtype == torch.float32 else 0.02)
    model = AutoModel.from_pretrained(tmp_path)
    torch.testing.assert_close(model.known_texts.float(), again.model.known_texts.float())
    torch.testing.assert_close(model.known_cells.float(), again.model.known_cells.float())


def test_known_descriptions_move_towards_their_cells_and_new_ones_stay(annotator):
    """The larger the weight, the nearer; the embeddings of the texts stay where they are."""
    model, texts = annotator.model, annotator.scorer(NEW).text_embeds
    nearness = []
    for weight in (0, 0.5, 5):
        model.config.known_cells_weight = weight
        scorer = annotator.scorer(NEW)
        torch.testing.assert_close(scorer.text_embeds, texts)
        torch.testing.assert_close(scorer.label_embeds[2], texts[2])
        torch.testing.assert_close(scorer.label_embeds.norm(dim=1), torch.ones(3))
        nearness.append((scorer.label_embeds[:2] * model.known_cells).sum(dim=1))
    assert (nearness[0] < nearness[1]).all()
    assert (nearness[1] < nearness[2]).all()
    expected = F.normalize(texts[:2] + 5 * model.known_cells, dim=1)
    torch.testing.assert_close(scorer.label_embeds[:2], expected)


def test_known_cells_decide_scores(annotator, cells):
    annotator.model.config.known_cells_weight = 0
    before = _scores(annotator, cells, LEARNT)
    embeds = torch.from_numpy(annotator.embed(cells.copy()).obsm["X_langcell"])
    annotator.model.known_cells = F.normalize(torch.stack([embeds[0], -embeds[0]]), dim=1)
    annotator.model.config.known_cells_weight = 1
    assert _scores(annotator, cells, LEARNT)[0, 0] > before[0, 0]


def test_shortlists_are_proven_with_the_share_too(annotator, cells):
    annotator.model.config.relatives_weight = 10
    ranked = annotator.processor.feature_extractor.rank(cells)
    best = {}
    for shortlist in (None, 2):
        scorer = annotator.scorer(NEW, alpha=0.5, shortlist=shortlist)
        ((_, found),) = read_cells(ranked, scorer, scorer.budget, annotator.device)
        best[shortlist] = found.scores.argmax(dim=1)
    assert found.shortlist_is_exact.any()
    assert (best[None] == best[2])[found.shortlist_is_exact].all()


def test_weights_below_0_are_refused(annotator):
    with pytest.raises(InputError, match="relatives_weight=-1 is not a weight: give 0 or more"):
        DescriptionScorer(annotator.model, annotator.processor, NEW, 1.0, relatives_weight=-1)
    with pytest.raises(InputError, match="known_cells_weight=-1 is not a weight: give 0 or more"):
        DescriptionScorer(annotator.model, annotator.processor, NEW, 1.0, known_cells_weight=-1)
    with pytest.raises(StrictDataclassError, match=r"relatives_weight \(-1.0\) must not be below 0"):
        type(annotator.model.config)(relatives_weight=-1.0)
