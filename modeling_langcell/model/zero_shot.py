# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation as every checkpoint carries it: how cells are scored against descriptions."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ProcessorMixin

from .configuration_langcell import templates_of
from .errors import InputError
from .packed_langcell import PackedSequences
from .prompts import PROMPT_TEMPLATES, as_texts
from .ranking import RankedCells
from .token_budget import TokenBudget

if TYPE_CHECKING:
    from .modeling_langcell import LangCellModel

T = TypeVar("T")
Shortlist = int | Literal["auto"] | None
#: Of more labels than this the matching reads, unless told otherwise, so many of each cell, those most similar to it.
SHORTLIST = 32


class Scored(NamedTuple):
    """
    What is found of cells.

    Args:
        embeds: `(cells, width)` float32, L2-normalised.
        scores: `(cells, labels)` float32 from 0 to 1.
        shortlist_is_exact: `(cells,)` whether no label that a shortlist left out can be the best.
        max_cosine: `(cells,)` float32 cosine with the most similar description; NaN where there are none.
    """

    embeds: torch.Tensor
    scores: torch.Tensor
    shortlist_is_exact: torch.Tensor
    max_cosine: torch.Tensor


class DescriptionScorer:
    """
    Zero-shot (LangCell, section 3.3): a label's score blends two probabilities over the labels, that of the similarity
    in the shared space, with weight `alpha`, and that of the matching head, with weight `1 - alpha`.

    With a shortlist the matching reads of each cell only the labels most similar to it. The others keep the least that
    it could give them, a probability of 0 to match; where even the most, 1, would not make one of them the best, the
    best is proven to be that of all.

    A label that several texts describe is judged by all of them: its embedding is the mean of theirs, made to length 1
    again (Radford et al., 2021, section 3.1.4). The matching reads the first of them alone, since what it costs grows
    with the texts.

    Where the checkpoint is calibrated for this `alpha` and for the wordings of its processor (its config says so), the
    scores are probabilities: the blend to the power of the inverse of the fitted temperature, made to add up to 1.

    Args:
        model, processor: The checkpoint.
        descriptions: A text or several by label. They are read and embedded here, once.
        alpha: 1 leaves the matching out, which is much faster.
        shortlist: How many labels of each cell the matching reads; `None` for all. By default (`"auto"`) all up to 32,
            and 32 of more.
        budget: How many positions go through a tower at once.

    Raises:
        InputError: A shortlist of none, or a label without a text.
    """

    def __init__(
        self,
        model: "LangCellModel",
        processor: ProcessorMixin,
        descriptions: Mapping[str, str | Sequence[str]],
        alpha: float,
        shortlist: Shortlist = "auto",
        budget: TokenBudget | None = None,
    ):
        self.model, self.alpha = model, alpha
        #: All that each label is judged by; the matching reads the first.
        self.descriptions = {label: as_texts(label, texts) for label, texts in descriptions.items()}
        #: What the scores are calibrated by; none where they are not.
        self.calibration = model.config.calibration if _fits(model.config.calibration, alpha, processor) else None
        self.budget = TokenBudget.for_model(model) if budget is None else budget
        self._set_shortlist(shortlist)
        # The first text of each label, which goes by the label's number, and then all the others.
        first = [texts[0] for texts in self.descriptions.values()]
        others = [text for texts in self.descriptions.values() for text in texts[1:]]
        self.text_ids = processor(text=first + others, text_kwargs={"padding": False})["input_ids"]
        self.lengths = [len(ids) for ids in self.text_ids]
        self.text_embeds = self._embed()

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences) -> Scored:
        """
        Args:
            ids: `(genes of all cells,)`, cells laid end to end.
            cells: Where each cell is.
        """
        model = self.model
        states, pooled = model.cell_model.read_packed(ids, cells, pooled_only=self.alpha == 1)
        embeds = model.project_cells(pooled).float()
        logits = model.get_similarity_logits(embeds, self.text_embeds)
        max_cosine = logits.amax(dim=1) * model.config.temperature
        similarity = logits.softmax(dim=1)
        if self.alpha == 1:
            shortlist_is_exact = torch.ones(len(cells), dtype=torch.bool)
            return Scored(embeds, self._calibrated(similarity), shortlist_is_exact, max_cosine)
        # Numbers of the labels that the matching reads, of each cell; and what it makes of them.
        if self.shortlist is None:
            chosen = torch.arange(len(self.descriptions)).expand(len(cells), -1)
        else:
            chosen = similarity.topk(self.shortlist, dim=1).indices.cpu()
        match = self.match(states, cells, chosen)
        # The published procedure takes the softmax, over candidates, of the probabilities themselves.
        scores = self.alpha * similarity + (1 - self.alpha) * match.softmax(dim=1)
        shortlist_is_exact = self._shortlist_is_exact(similarity, match, scores, chosen.to(scores.device)).cpu()
        return Scored(embeds, self._calibrated(scores), shortlist_is_exact, max_cosine)

    def _calibrated(self, scores: torch.Tensor) -> torch.Tensor:
        if self.calibration is None:
            return scores
        powers = scores ** (1 / self.calibration["temperature"])
        return powers / powers.sum(dim=1, keepdim=True)

    def reading(self, shortlist: Shortlist) -> "DescriptionScorer":
        """The same with another shortlist."""
        scorer = copy.copy(self)
        scorer._set_shortlist(shortlist)
        return scorer

    def _set_shortlist(self, shortlist: Shortlist) -> None:
        self.shortlist = _shortlist(shortlist, len(self.descriptions), self.alpha)
        self.settings: dict[str, float] = {"alpha": float(self.alpha)}
        if self.shortlist is not None:
            self.settings["shortlist"] = self.shortlist

    def match(self, states: torch.Tensor, cells: PackedSequences, chosen: torch.Tensor) -> torch.Tensor:
        """
        Args:
            states: `(genes of all cells, hidden_size)` last hidden states.
            cells: Where each cell is.
            chosen: `(cells, labels)` numbers of the labels to read of each cell.

        Returns:
            `(cells, all labels)` probabilities of a match, 0 where it is not asked for.
        """
        match = torch.zeros(len(cells), len(self.descriptions), device=states.device)
        same = self._by_length(range(len(self.descriptions))) if self.shortlist is None else None
        texts_of = [same or self._by_length(of_cell) for of_cell in chosen.tolist()]
        words = [sum(self.lengths[text] for text in texts) for texts in texts_of]
        for block in self.budget.blocks(range(len(cells)), words):
            first, last = block[0], block[-1] + 1
            block_states = states[cells.offsets[first] : cells.offsets[last]]
            block_cells = PackedSequences(cells.lengths[first:last], states.device)
            # A cell that has more texts than are read at once is alone in its block, and has them read in parts.
            parts = [texts_of[first:last]]
            if len(block) == 1:
                lengths = [self.lengths[text] for text in texts_of[first]]
                parts = [[part] for part in self.budget.blocks(texts_of[first], lengths)]
            for asked in parts:
                texts = self._by_length({*chain(*asked)})
                place = {text: place for place, text in enumerate(texts)}
                found = self.model.match_packed(
                    block_states, block_cells, *self._pack(texts), [[place[text] for text in of] for of in asked]
                )
                rows = [cell for cell, of_cell in enumerate(asked, first) for _ in of_cell]
                match[rows, [*chain(*asked)]] = found
        return match

    def _shortlist_is_exact(self, similarity, match, scores, chosen) -> torch.Tensor:
        """
        Whether each cell's best label stays the best whatever the matching would give to those left out.

        Of these the most similar one comes nearest where it alone matches for certain. Among those read, what others
        get does not change how they stand in the matching, but lessens its part in the score: they stay in order if
        they do where it is least.
        """
        if self.shortlist is None:
            return torch.ones(len(scores), dtype=torch.bool, device=scores.device)
        best = scores.argmax(dim=1, keepdim=True)
        exponents = match.exp()
        total = exponents.sum(dim=1, keepdim=True)
        left_out = len(self.descriptions) - self.shortlist

        similar = similarity.scatter(1, chosen, -1.0).amax(dim=1, keepdim=True)
        ahead = self.alpha * (similarity.gather(1, best) - similar)
        ahead += (1 - self.alpha) * (exponents.gather(1, best) - math.e) / (total + math.e - 1)

        least = self.alpha * similarity + (1 - self.alpha) * exponents / (total + left_out * (math.e - 1))
        first = chosen.gather(1, least.gather(1, chosen).argmax(dim=1, keepdim=True))
        return ((ahead > 0) & (first == best)).squeeze(1)

    def _embed(self) -> torch.Tensor:
        """`(labels, projection_dim)` float32, L2-normalised: of each label the mean of its texts."""
        embeds = torch.empty(len(self.lengths), self.model.config.projection_dim, device=self.model.device)
        with torch.inference_mode():
            every = self._by_length(range(len(self.lengths)))
            for rows, pooled in self.budget.spend(every, self.lengths.__getitem__, self._read_texts):
                embeds[rows] = self.model.project_texts(pooled).float()
        start = len(self.descriptions)
        for label, texts in enumerate(self.descriptions.values()):
            if len(texts) > 1:  # What is made to length 1 again would differ in its last bits.
                stop = start + len(texts) - 1
                embeds[label] = F.normalize(embeds[label] + embeds[start:stop].sum(dim=0), dim=0)
                start = stop
        return embeds[: len(self.descriptions)]

    def _by_length(self, texts: Iterable[int]) -> list[int]:
        """Texts of one length as neighbours, which are read at once."""
        return sorted(texts, key=lambda text: (self.lengths[text], text))

    def _read_texts(self, texts: list[int]) -> torch.Tensor:
        return self.model.text_model.read_packed(*self._pack(texts))

    def _pack(self, texts: list[int]) -> tuple[torch.Tensor, PackedSequences]:
        device = self.model.device
        ids = torch.tensor([*chain(*(self.text_ids[text] for text in texts))], device=device)
        return ids, PackedSequences([self.lengths[text] for text in texts], device)


def _fits(calibration: Mapping[str, Any] | None, alpha: float, processor: ProcessorMixin) -> bool:
    """Whether a calibration was fitted with this weight of the similarity, and with labels that were worded so."""
    if calibration is None or not math.isclose(calibration["alpha"], alpha):
        return False
    return tuple(templates_of(calibration, PROMPT_TEMPLATES)) == processor.prompt_templates


def _shortlist(shortlist: Shortlist, labels: int, alpha: float) -> int | None:
    """How many of so many labels are to be read; none where that is all, or nothing is read at all."""
    if shortlist == "auto":
        shortlist = SHORTLIST
    if shortlist is not None and not (isinstance(shortlist, int) and shortlist >= 1):
        raise InputError(f"shortlist={shortlist!r} is no number of candidates.")
    return None if shortlist is None or shortlist >= labels or alpha == 1 else shortlist


def read_cells(
    ranked: RankedCells,
    read: Callable[[torch.Tensor, PackedSequences], T],
    budget: TokenBudget,
    device: torch.device,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, T]]:
    """
    Rows of cells (of `rows`, all by default), and what is read of them, as many at once as the budget holds; the
    longest first, so that it is there that memory runs out. Cells without known genes are passed over.
    """

    def read_rows(rows: list[int]) -> T:
        ids = torch.from_numpy(np.concatenate([ranked[row] for row in rows]).astype(np.int64))
        return read(ids.to(device), PackedSequences(lengths[rows].tolist(), device))

    lengths = ranked.lengths
    order = np.argsort(-lengths, kind="stable") if rows is None else rows[np.argsort(-lengths[rows], kind="stable")]
    for done, found in budget.spend(order[~ranked.without_genes[order]].tolist(), lengths.__getitem__, read_rows):
        yield np.array(done), found


__all__ = ["SHORTLIST", "DescriptionScorer", "Scored", "Shortlist", "read_cells"]
