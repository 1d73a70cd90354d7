# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot scores: the shortlist, the labels outside of it, when it is exact, and labels with several texts."""

import anndata as ad
import numpy as np
import pytest
import torch

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.annotation.scorers import PrototypeScorer
from modeling_langcell.model.packed_langcell import PackedSequences
from modeling_langcell.model.prompts import as_texts
from modeling_langcell.model.token_budget import TokenBudget
from modeling_langcell.model.zero_shot import SHORTLIST, DescriptionScorer, read_cells
from modeling_langcell.ontology import find_term

#: More labels than are all read by default, of different lengths.
MANY = {f"type {number}": "cell type : " + "b " * (1 + number % 9) for number in range(SHORTLIST + 8)}
FEW = dict(list(MANY.items())[:6])


@pytest.fixture(scope="module")
def annotator(tiny_checkpoint):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint, device="cpu")
    torch.manual_seed(0)
    for parameter in annotator.model.parameters():  # Random weights as they are drawn make all texts alike.
        parameter.data += 0.3 * torch.randn_like(parameter)
    return annotator


@pytest.fixture
def score(annotator, cells):
    """Scores of twelve cells, in their order."""
    ranked = annotator.processor.feature_extractor.rank(cells)

    def score(descriptions=FEW, alpha=0.3, shortlist=None, tokens=1000):
        scorer = DescriptionScorer(
            annotator.model, annotator.processor, descriptions, alpha, shortlist, TokenBudget(tokens)
        )
        scores = torch.zeros(len(ranked), len(descriptions))
        shortlist_is_exact = torch.zeros(len(ranked), dtype=torch.bool)
        for rows, found in read_cells(ranked, scorer, scorer.budget, annotator.device):
            scores[rows], shortlist_is_exact[rows] = found.scores, found.shortlist_is_exact
        return scores, shortlist_is_exact

    return score


class TestShortlist:
    def test_labels_inside_get_the_same_match_as_without_it(self, score):
        """The most similar labels of each cell are read; the others score as if they did not match at all."""
        alpha = 0.3
        similarity, _ = score(alpha=1)
        exact, _ = score(alpha=alpha)
        # The matching's part of the exact scores, whose logarithms are the probabilities to match, up to one number.
        matching = ((exact - alpha * similarity) / (1 - alpha)).log()
        found, _ = score(alpha=alpha, shortlist=2)
        part = ((found - alpha * similarity) / (1 - alpha)).log()
        for cell in range(len(found)):
            chosen = similarity[cell].topk(2).indices
            left = torch.tensor([label for label in range(len(FEW)) if label not in chosen])
            torch.testing.assert_close(part[cell, chosen].diff(), matching[cell, chosen].diff(), atol=1e-4, rtol=0)
            torch.testing.assert_close(part[cell, left], part[cell, left[:1]].expand(len(left)), atol=1e-4, rtol=0)
            assert (part[cell, chosen] >= part[cell, left[0]] - 1e-4).all()
        torch.testing.assert_close(found.sum(dim=1), torch.ones(len(found)))

    def test_blocks_change_nothing(self, score):
        for shortlist in (None, 3):
            whole, _ = score(shortlist=shortlist)
            in_parts, _ = score(shortlist=shortlist, tokens=1)
            torch.testing.assert_close(in_parts, whole, atol=1e-5, rtol=0)

    def test_default_applies_only_to_many_labels(self, annotator):
        def shortlist(descriptions, asked="auto", alpha=0.5):
            return DescriptionScorer(annotator.model, annotator.processor, descriptions, alpha, asked).shortlist

        assert shortlist(FEW) is None
        assert shortlist(MANY) == SHORTLIST
        assert shortlist(MANY, None) is None
        assert shortlist(MANY, 5) == 5
        assert shortlist(MANY, 10**6) is None
        assert shortlist(MANY, 5, alpha=1.0) is None, "the matching is left out"

    @pytest.mark.parametrize("asked", [0, -1, 2.5, "16", "many"])
    def test_must_be_a_number(self, annotator, asked):
        with pytest.raises(InputError, match="shortlist="):
            DescriptionScorer(annotator.model, annotator.processor, FEW, 0.5, asked)

    def test_is_recorded_and_checked(self, annotator, cells):
        annotator.annotate(cells, MANY, alpha=0.5, check=5)
        run = cells.uns["langcell"]
        assert (run["shortlist"], run["checked"]) == (SHORTLIST, 5)
        assert run["proven"] == pytest.approx(cells.obs["langcell_proven"].mean())
        exact = annotator.annotate(cells.copy(), MANY, alpha=0.5, shortlist=None)
        rows = np.unique(np.linspace(0, cells.n_obs - 1, 5).astype(int))
        same = cells.obs["langcell_cell_type"].to_numpy() == exact.obs["langcell_cell_type"].to_numpy()
        assert run["agreement"] == pytest.approx(same[rows].mean())
        assert same[cells.obs["langcell_proven"]].all()
        assert "shortlist" not in exact.uns["langcell"]
        assert "langcell_proven" not in exact.obs


class TestSeveralTexts:
    """Labels with several texts, beside labels with one."""

    TEXTS = {"b": ["cell type : b", "b cell", "a lymphocyte that is b"], "nk": "natural killer", "t": ["t", "a t cell"]}
    FIRST = {"b": "cell type : b", "nk": "natural killer", "t": "t"}

    def test_the_embedding_is_the_mean(self, annotator):
        found = annotator.embed_texts(self.TEXTS.values())
        for label, texts in zip(found, self.TEXTS.values(), strict=True):
            mean = annotator.embed_texts(as_texts("", texts)).mean(axis=0)
            np.testing.assert_allclose(label, mean / np.linalg.norm(mean), atol=1e-6)

    def test_one_text_scores_the_same_as_before(self, score):
        for alpha in (1, 0.3):
            assert torch.equal(
                score({label: [text, text] for label, text in FEW.items()}, alpha)[0], score(FEW, alpha)[0]
            )

    def test_the_matching_reads_the_first(self, score):
        similarity, _ = score(self.TEXTS, alpha=1)
        matching, _ = score(self.FIRST, alpha=0)
        assert not torch.allclose(similarity, score(self.FIRST, alpha=1)[0], atol=1e-3)
        torch.testing.assert_close(score(self.TEXTS, alpha=0.3)[0], 0.3 * similarity + 0.7 * matching)

    @pytest.mark.parametrize("alpha", [1, 0.3])
    def test_blocks_and_order_change_nothing(self, score, alpha):
        whole, _ = score(self.TEXTS, alpha, shortlist=2)
        torch.testing.assert_close(score(self.TEXTS, alpha, shortlist=2, tokens=1)[0], whole, atol=1e-5, rtol=0)
        other_way = dict(reversed(self.TEXTS.items()))
        torch.testing.assert_close(score(other_way, alpha, shortlist=2)[0].flip(1), whole, atol=1e-5, rtol=0)

    def test_novelty_uses_the_mean(self, annotator, cells):
        annotator.annotate(cells, self.TEXTS)
        max_cosine = cells.obsm["X_langcell"] @ annotator.embed_texts(self.TEXTS.values()).T
        np.testing.assert_allclose(cells.obs["langcell_novelty"], 1 - max_cosine.max(axis=1), atol=1e-5)

    def test_the_record_has_all_texts(self, annotator, cells, tmp_path):
        annotator.annotate(cells, self.TEXTS | {"odd": ["a\nb", "c"]}).write_h5ad(tmp_path / "cells.h5ad")
        described = ad.read_h5ad(tmp_path / "cells.h5ad").uns["langcell"]["descriptions"]
        assert [texts.split("\n") for texts in described] == [
            *(list(as_texts(label, texts)) for label, texts in self.TEXTS.items()),
            ["a b", "c"],
        ]

    def test_wordings_of_the_processor(self, annotator, cells, monkeypatch):
        monkeypatch.setitem(vars(annotator.processor), "prompt_templates", ("{name}", "a {synonym}"))
        labels = ["B cell", "natural killer cell", "monocyte"]
        found = annotator.annotate(cells.copy(), labels).obsm["langcell_probabilities"]
        by_hand = {label: [label, *(f"a {one}" for one in find_term(label).synonyms)] for label in labels}
        assert list(map(len, by_hand.values())) == [4, 2, 1]
        assert annotator.texts_of(labels) == {label: tuple(texts) for label, texts in by_hand.items()}
        assert found.equals(annotator.annotate(cells, by_hand).obsm["langcell_probabilities"])

    def test_no_text(self, annotator, cells):
        for none in ([], [""], ["b", None], 5):
            with pytest.raises(InputError, match="must be texts"):
                annotator.annotate(cells, {"b": none})


class TestProof:
    """By brute force: whatever the matching would have given to those left out."""

    @pytest.mark.parametrize("with_evidence", [False, True])
    @pytest.mark.parametrize(("alpha", "spread"), [(0.1, 3), (0.5, 3), (0.9, 0.2)])
    def test_holds_whatever_was_left_out(self, annotator, alpha, spread, with_evidence):
        labels, read, cells = 7, 3, 400
        scorer = DescriptionScorer(
            annotator.model, annotator.processor, {str(n): "b" for n in range(labels)}, alpha, read
        )
        generator = torch.Generator().manual_seed(0)
        similarity = (spread * torch.randn(cells, labels, generator=generator)).softmax(dim=1)
        evidence = torch.randn(cells, labels, generator=generator) if with_evidence else torch.zeros(cells, labels)
        chosen = (similarity * evidence.exp()).topk(read, dim=1).indices
        match = torch.zeros_like(similarity).scatter(1, chosen, torch.rand(cells, read, generator=generator))
        left_out = torch.ones_like(similarity).scatter(1, chosen, 0.0)

        def scores(match):
            return (alpha * similarity + (1 - alpha) * match.softmax(dim=1)) * evidence.exp()

        found = scores(match)
        given = evidence if with_evidence else None
        shortlist_is_exact = scorer._shortlist_is_exact(similarity, match, given, found.argmax(dim=1), chosen)
        assert 0.05 < shortlist_is_exact.float().mean() < 1, "it neither proves nothing nor takes all for proven"
        always = torch.ones(cells, dtype=torch.bool)
        extremes = [left_out * torch.eye(labels)[label] for label in range(labels)] + [left_out]
        drawn = [left_out * torch.rand(cells, labels, generator=generator).round(decimals=1) for _ in range(50)]
        for other in extremes + drawn:
            always &= scores(match + other).argmax(dim=1) == found.argmax(dim=1)
        assert always[shortlist_is_exact].all()
        assert always.float().mean() - shortlist_is_exact.float().mean() < 0.15, (
            "what is not proven could well be otherwise"
        )

    def test_all_is_proven_where_all_are_read(self, score):
        assert score()[1].all()
        assert score(alpha=1)[1].all()

    def test_nothing_is_proven_of_prototypes(self, annotator, cells):
        ranked = annotator.processor.feature_extractor.rank(cells)
        ids, packed = torch.from_numpy(ranked.token_ids.astype(np.int64)), PackedSequences(ranked.lengths.tolist())
        for shortlist, expected in ((2, False), (None, True)):
            by_description = DescriptionScorer(annotator.model, annotator.processor, FEW, 0.99, shortlist)
            scorer = PrototypeScorer(by_description, by_description.text_embeds, 0.5)
            assert bool(scorer(ids, packed).shortlist_is_exact.all()) == expected
