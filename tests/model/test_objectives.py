# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The four objectives, against references in plain loops (LangCell, section 3.2)."""

import math
from collections import Counter

import pytest
import torch

from modeling_langcell.model.objectives import (
    IGNORED,
    CellCellContrast,
    CellTextContrast,
    CellTextMatching,
    MaskedGeneModelling,
    merge_texts,
)


def log_sum_exp(values) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values))


def close(loss: torch.Tensor, expected: float):
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, abs=1e-4, rel=1e-4)


def assert_finite_gradient(loss: torch.Tensor, inputs: torch.Tensor):
    assert torch.isfinite(loss)
    loss.backward()
    assert torch.isfinite(inputs.grad).all()


class TestMaskedGeneModelling:
    VOCABULARY, SPECIAL = 1002, (0, 1, 1001)

    @pytest.fixture
    def cells(self):
        """A thousand cells of 300 tokens: `<cls>`, genes, padding, and a stray `<mask>`."""
        torch.manual_seed(0)
        ids = torch.randint(2, self.VOCABULARY - 1, (1000, 300))
        ids[:, 0], ids[:, 5], ids[:, 250:] = self.VOCABULARY - 1, 1, 0
        return ids

    @pytest.mark.parametrize("probability", [0.15, 0.5])
    def test_shares(self, cells, probability):
        before = cells.clone()
        shown, labels = MaskedGeneModelling(self.VOCABULARY, probability=probability).corrupt(cells)
        assert torch.equal(cells, before)
        genes = torch.isin(cells, torch.tensor(self.SPECIAL), invert=True)
        chosen = labels != IGNORED

        def assert_share(part, whole, expected):
            n = whole.sum().item()
            six_sigma = 6 * math.sqrt(expected * (1 - expected) / n)
            assert part.sum().item() / n == pytest.approx(expected, abs=six_sigma)

        assert_share(chosen, genes, probability)
        kept_by_chance = 0.1 / (self.VOCABULARY - 3)
        assert_share(chosen & (shown == 1), chosen, 0.8)
        assert_share(chosen & (shown == cells), chosen, 0.1 + kept_by_chance)
        assert_share(chosen & (shown != 1) & (shown != cells), chosen, 0.1 - kept_by_chance)
        # What is chosen does not depend on the place.
        assert_share(chosen[:, 1], genes[:, 1], probability)
        assert_share(chosen[:, 249], genes[:, 249], probability)

    def test_only_genes_are_chosen(self, cells):
        shown, labels = MaskedGeneModelling(self.VOCABULARY, probability=1.0).corrupt(cells)
        special = torch.isin(cells, torch.tensor(self.SPECIAL))
        assert torch.equal(labels, cells.masked_fill(special, IGNORED))
        assert torch.equal(shown[special], cells[special])

    def test_other_genes_are_unchanged(self, cells):
        shown, labels = MaskedGeneModelling(self.VOCABULARY).corrupt(cells)
        chosen = labels != IGNORED
        assert torch.equal(shown[~chosen], cells[~chosen])
        assert torch.equal(labels[chosen], cells[chosen])

    def test_swapped_genes_are_of_the_whole_vocabulary(self, cells):
        shown, labels = MaskedGeneModelling(self.VOCABULARY, probability=1.0).corrupt(cells)
        swapped = shown[(labels != IGNORED) & (shown != 1) & (shown != labels)]
        # Each of 999 genes some 25 times: none is left out, and no special id is drawn.
        assert torch.equal(swapped.unique(), torch.arange(2, self.VOCABULARY - 1))
        counts = swapped.bincount()[2:].double()
        chi_square = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert chi_square < len(counts) + 6 * math.sqrt(2 * len(counts))

    def test_other_mask_id(self):
        cells = torch.full((50, 50), 4)
        shown, labels = MaskedGeneModelling(20, mask_token_id=3, probability=1.0).corrupt(cells)
        assert (labels == 4).all()
        assert (shown == 3).float().mean() > 0.7
        assert shown.min() == 3

    def test_draws_differ(self, cells):
        objective = MaskedGeneModelling(self.VOCABULARY)
        assert not torch.equal(objective.corrupt(cells)[1], objective.corrupt(cells)[1])

    def test_evaluation_draws_the_same(self, cells):
        objective = MaskedGeneModelling(self.VOCABULARY).eval()
        for first, second in zip(objective.corrupt(cells), objective.corrupt(cells), strict=True):
            assert torch.equal(first, second)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("seed", range(3))
    def test_loss(self, seed, dtype):
        torch.manual_seed(seed)
        logits = (3 * torch.randn(4, 7, 11)).to(dtype)
        labels = torch.randint(2, 10, (4, 7)).masked_fill(torch.rand(4, 7) < 0.6, IGNORED)
        terms = []
        for cell in range(4):
            for place in range(7):
                label = labels[cell, place].item()
                if label != IGNORED:
                    scores = logits[cell, place].tolist()
                    terms.append(log_sum_exp(scores) - scores[label])
        objective = MaskedGeneModelling(11)
        close(objective(logits, labels), sum(terms) / len(terms))
        asked = labels != IGNORED
        close(objective(logits[asked], labels[asked]), sum(terms) / len(terms))

    @pytest.mark.parametrize("shape", [(2, 3, 11), (0, 11)])
    def test_no_labels(self, shape):
        logits = torch.randn(shape, requires_grad=True)
        loss = MaskedGeneModelling(11)(logits, torch.full(shape[:-1], IGNORED))
        close(loss, 0)
        assert_finite_gradient(loss, logits)


class TestCellCellContrast:
    @pytest.mark.parametrize("temperature", [0.05, 1.0])
    @pytest.mark.parametrize("cells", [1, 2, 6])
    def test_loss(self, cells, temperature):
        torch.manual_seed(cells)
        view, other = 3 * torch.randn(cells, 5), torch.randn(cells, 5)
        terms = []
        for i in range(cells):
            similarity = []
            for j in range(cells):
                dot = sum(a * b for a, b in zip(view[i].tolist(), other[j].tolist(), strict=True))
                similarity.append(dot / view[i].norm().item() / other[j].norm().item() / temperature)
            terms.append(log_sum_exp(similarity) - similarity[i])
        close(CellCellContrast(temperature)(view, other), sum(terms) / cells)

    def test_default_temperature(self):
        assert CellCellContrast().temperature == 0.05

    @pytest.mark.parametrize("cells", [1, 3])
    def test_gradient_of_equal_views(self, cells):
        view = torch.randn(cells, 5, requires_grad=True)
        assert_finite_gradient(CellCellContrast()(view, view), view)


def random_batch(seed: int, cells: int, texts: int, neutral_share: float = 0.0):
    """Logits, each cell's text (every text has a cell as far as there are cells), and ignored pairs."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(cells, texts, generator=generator)
    text_index = torch.arange(cells) % texts
    text_index = text_index[torch.randperm(cells, generator=generator)]
    ignored_pairs = torch.rand(cells, texts, generator=generator) < neutral_share
    return logits, text_index, ignored_pairs


BATCHES = {
    "distinct": random_batch(0, 5, 5),
    "shared descriptions": random_batch(1, 7, 3),
    "neutral pairs": random_batch(2, 6, 6, 0.3),
    "shared and neutral": random_batch(3, 9, 4, 0.4),
    "one description": random_batch(4, 5, 1),
    "one cell": random_batch(5, 1, 1),
    "one cell, several texts": random_batch(6, 1, 4),
    "all neutral": random_batch(7, 4, 4, 1.0),
}


def is_negative(cell: int, text: int, text_index, ignored_pairs) -> bool:
    return text_index[cell].item() != text and not ignored_pairs[cell, text].item()


@pytest.fixture(params=BATCHES)
def batch(request):
    return BATCHES[request.param]


class TestCellTextContrast:
    def test_loss(self, batch):
        logits, text_index, ignored_pairs = batch
        cells, texts = logits.shape
        cell_to_text, text_to_cell = [], []
        for cell in range(cells):
            own = text_index[cell].item()
            positive = logits[cell, own].item()
            wrong = [logits[cell, t].item() for t in range(texts) if is_negative(cell, t, text_index, ignored_pairs)]
            cell_to_text.append(log_sum_exp([positive, *wrong]) - positive)
            others = [logits[c, own].item() for c in range(cells) if is_negative(c, own, text_index, ignored_pairs)]
            text_to_cell.append(log_sum_exp([positive, *others]) - positive)
        expected = (sum(cell_to_text) + sum(text_to_cell)) / (2 * cells)
        close(CellTextContrast()(logits, text_index, ignored_pairs), expected)
        close(CellTextContrast()(logits.double(), text_index, ignored_pairs), expected)
        if not ignored_pairs.any():
            close(CellTextContrast()(logits, text_index), expected)

    def test_gradient(self, batch):
        logits, text_index, ignored_pairs = batch
        logits = logits.clone().requires_grad_()
        assert_finite_gradient(CellTextContrast()(logits, text_index, ignored_pairs), logits)
        own = torch.zeros_like(ignored_pairs)
        own[range(len(logits)), text_index] = True
        assert (logits.grad[ignored_pairs & ~own] == 0).all()
        assert (logits.grad[own] <= 0).all()
        assert (logits.grad[~own] >= 0).all()

    def test_far_apart(self):
        """Logits as large as a cosine over temperature can be, and larger, stay finite."""
        logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], requires_grad=True)
        loss = CellTextContrast()(logits, torch.tensor([0, 1]))
        close(loss, 400)
        assert_finite_gradient(loss, logits)

    def test_cells_of_one_description_do_not_repel(self):
        logits, text_index = torch.zeros(3, 2, requires_grad=True), torch.tensor([0, 0, 1])
        CellTextContrast()(logits, text_index).backward()
        alone = torch.zeros(2, 2, requires_grad=True)
        CellTextContrast()(alone, torch.tensor([0, 1])).backward()
        # Each of two equal cells pulls as a lone one would, in a mean over three cells and not two.
        torch.testing.assert_close(logits.grad[:2, 0], alone.grad[0, 0].repeat(2) * 2 / 3)


class TestMergeTexts:
    def test_equal_texts_become_one(self):
        """Also where padding differs, and whatever the ids of the padding."""
        ids = torch.tensor([[2, 9, 0], [2, 5, 7], [2, 9, 8], [2, 5, 0]])
        mask = torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 1, 0]])
        ignored_pairs = torch.tensor([[False, True, False, False], [False, False, False, True]])
        merged = merge_texts(ids, mask, torch.tensor([2, 1]), ignored_pairs)
        assert merged[0].tolist() == [[2, 5, 0], [2, 5, 7], [2, 9, 0]]
        assert merged[1].tolist() == [[1, 1, 0], [1, 1, 1], [1, 1, 0]]
        assert merged[2].tolist() == [2, 1]
        assert merged[3].tolist() == [[False, True, False], [True, False, False]]

    def test_without_masks_and_pairs(self):
        ids, mask, text_index, ignored_pairs = merge_texts(torch.tensor([[2, 9], [2, 5]]), None, torch.arange(2), None)
        assert ids.tolist() == [[2, 5], [2, 9]]
        assert mask.all()
        assert text_index.tolist() == [1, 0]
        assert ignored_pairs is None


class TestCellTextMatching:
    DRAWS = 3000

    def draws(self, logits, text_index, ignored_pairs):
        torch.manual_seed(0)
        drawn = [CellTextMatching().draw_negatives(logits, text_index, ignored_pairs) for _ in range(self.DRAWS)]
        return [torch.stack(part) for part in zip(*drawn, strict=True)]

    def assert_distribution(self, drawn: torch.Tensor, scores: dict[int, float]):
        """The draws are among the scored candidates, in proportion to the softmax of the scores."""
        counts = Counter(drawn.tolist())
        assert counts.keys() <= scores.keys()
        total = log_sum_exp(scores.values())
        chi_square = 0.0
        for candidate, score in scores.items():
            expected = self.DRAWS * math.exp(score - total)
            chi_square += (counts[candidate] - expected) ** 2 / expected
        freedom = len(scores) - 1
        assert chi_square <= freedom + 8 * math.sqrt(2 * freedom), (counts, scores)

    @pytest.mark.parametrize("name", ["distinct", "shared descriptions", "neutral pairs", "shared and neutral"])
    def test_draws(self, name):
        logits, text_index, ignored_pairs = BATCHES[name]
        logits = logits / 4  # No candidate so rare that the statistic is of single draws.
        cells, texts = logits.shape
        wrong_texts, wrong_cells, usable = self.draws(logits, text_index, ignored_pairs)
        asked = 0
        for cell in range(cells):
            own = text_index[cell].item()
            of_cell = {
                t: logits[cell, t].item() for t in range(texts) if is_negative(cell, t, text_index, ignored_pairs)
            }
            of_text = {c: logits[c, own].item() for c in range(cells) if is_negative(c, own, text_index, ignored_pairs)}
            assert (usable[:, cell] == bool(of_cell and of_text)).all()
            if of_cell and of_text:
                self.assert_distribution(wrong_texts[:, cell], of_cell)
                self.assert_distribution(wrong_cells[:, cell], of_text)
                asked += 1
        assert asked >= cells - 2

    @pytest.mark.parametrize("name", ["distinct", "shared descriptions", "neutral pairs", "shared and neutral"])
    def test_given_numbers_decide(self, name):
        """The number falls into the partner's share of the distribution, with candidates in order."""
        logits, text_index, ignored_pairs = BATCHES[name]
        cells, texts = logits.shape
        torch.manual_seed(0)
        for draws in (torch.rand(cells, 2), torch.zeros(cells, 2), torch.full((cells, 2), 1 - 1e-7)):
            wrong_text, wrong_cell, usable = CellTextMatching().draw_negatives(logits, text_index, ignored_pairs, draws)

            def chosen(scores, number):
                reached, total = 0.0, log_sum_exp(scores.values())
                for candidate, score in scores.items():
                    reached += math.exp(score - total)
                    if reached > number:
                        return candidate
                return max(scores)

            for cell in usable.nonzero().flatten().tolist():
                own = text_index[cell].item()
                of_cell = {
                    t: logits[cell, t].item() for t in range(texts) if is_negative(cell, t, text_index, ignored_pairs)
                }
                of_text = {
                    c: logits[c, own].item() for c in range(cells) if is_negative(c, own, text_index, ignored_pairs)
                }
                assert wrong_text[cell] == chosen(of_cell, draws[cell, 0].item())
                assert wrong_cell[cell] == chosen(of_text, draws[cell, 1].item())

    def test_without_ignored_pairs(self):
        logits, text_index, ignored_pairs = BATCHES["shared descriptions"]
        torch.manual_seed(0)
        expected = CellTextMatching().draw_negatives(logits, text_index, ignored_pairs)
        torch.manual_seed(0)
        for part, other in zip(CellTextMatching().draw_negatives(logits, text_index), expected, strict=True):
            assert torch.equal(part, other)

    @pytest.mark.parametrize("name", ["one description", "one cell", "all neutral"])
    def test_nothing_to_draw(self, name):
        logits, text_index, ignored_pairs = BATCHES[name]
        wrong_text, wrong_cell, usable = CellTextMatching().draw_negatives(logits, text_index, ignored_pairs)
        assert not usable.any()
        # The draws mean nothing, but can be indexed with.
        assert (wrong_text >= 0).all()
        assert (wrong_text < logits.shape[1]).all()
        assert (wrong_cell >= 0).all()
        assert (wrong_cell < len(logits)).all()

    def test_some_without_negatives(self):
        """Every text is true of cell 0; each other cell has one wrong partner."""
        ignored_pairs = torch.zeros(3, 2, dtype=torch.bool)
        ignored_pairs[0, 1] = True
        text_index = torch.tensor([0, 0, 1])
        wrong_text, wrong_cell, usable = CellTextMatching().draw_negatives(torch.zeros(3, 2), text_index, ignored_pairs)
        assert usable.tolist() == [False, True, True]
        assert wrong_text[1:].tolist() == [1, 0]
        assert wrong_cell[1].item() == 2
        assert wrong_cell[2].item() == 1  # Not cell 0, of which text 1 is neutral.

    def test_a_text_true_of_every_cell(self):
        """Cell 0 has wrong texts, but its own is true of every cell: the cell is ignored."""
        ignored_pairs = torch.zeros(3, 3, dtype=torch.bool)
        ignored_pairs[1:, 0] = True
        *_, usable = CellTextMatching().draw_negatives(torch.zeros(3, 3), torch.arange(3), ignored_pairs)
        assert usable.tolist() == [False, True, True]

    def test_extreme_logits(self):
        logits = torch.tensor([[500.0, -500.0, 0.0], [0.0, 500.0, -500.0], [-500.0, 0.0, 500.0]])
        wrong_text, wrong_cell, usable = CellTextMatching().draw_negatives(logits, torch.arange(3))
        assert usable.all()
        assert wrong_text.tolist() == [2, 0, 1]
        assert wrong_cell.tolist() == [1, 2, 0]

    def test_evaluation_draws_the_same(self):
        objective = CellTextMatching().eval()
        drawn = [objective.draw_negatives(torch.zeros(50, 50), torch.arange(50)) for _ in range(2)]
        for first, second in zip(*drawn, strict=True):
            assert torch.equal(first, second)

    def test_draws_carry_no_gradient(self):
        logits, text_index, ignored_pairs = BATCHES["distinct"]
        drawn = CellTextMatching().draw_negatives(logits.clone().requires_grad_(), text_index, ignored_pairs)
        assert not any(part.requires_grad for part in drawn)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("seed", range(3))
    def test_loss(self, seed, dtype):
        torch.manual_seed(seed)
        logits = (2 * torch.randn(9, 2)).to(dtype)
        labels = torch.tensor([1, 0, 0, 1, IGNORED, IGNORED, 1, 0, 0])
        terms = [
            log_sum_exp(pair) - pair[label]
            for pair, label in zip(logits.tolist(), labels.tolist(), strict=True)
            if label != IGNORED
        ]
        close(CellTextMatching()(logits, labels), sum(terms) / 7)

    def test_no_labels(self):
        logits = torch.randn(4, 2, requires_grad=True)
        loss = CellTextMatching()(logits, torch.full((4,), IGNORED))
        close(loss, 0)
        assert_finite_gradient(loss, logits)
