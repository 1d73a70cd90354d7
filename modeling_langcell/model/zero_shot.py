# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation, which every checkpoint carries: scores cells against descriptions of labels."""

import copy
import logging
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

logger = logging.getLogger(__name__)

T = TypeVar("T")
Shortlist = int | Literal["auto"] | None
#: Default length of the shortlist: with more labels, the matching reads the 32 most similar to each cell.
SHORTLIST = 32


class Scored(NamedTuple):
    """
    Scores and embeddings of cells.

    Args:
        embeds: `(cells, width)` float32, L2-normalised.
        scores: `(cells, labels)` float32 from 0 to 1.
        shortlist_is_exact: `(cells,)` true where no label outside the shortlist can be the best.
        max_cosine: `(cells,)` float32 cosine with the most similar description; NaN where there are none.
    """

    embeds: torch.Tensor
    scores: torch.Tensor
    shortlist_is_exact: torch.Tensor
    max_cosine: torch.Tensor


class DescriptionScorer:
    """
    Scores cells zero-shot (LangCell, section 3.3): a label's score blends two probabilities over the labels, that of
    the similarity in the shared space, with weight `alpha`, and that of the matching head, with weight `1 - alpha`.

    With a shortlist, the matching reads only the labels most similar to a cell. The others get the lowest
    match probability, 0; if even the highest, 1, would not make one of them the best, the shortlist's best label is
    proven to be the best of all.

    A label with several texts is embedded as the mean of their embeddings, scaled back to length 1 (Radford et al.,
    2021, section 3.1.4). The matching reads only the first text, since its cost grows with the number of texts.

    If the config has a calibration for this `alpha` and the processor's prompt templates, the scores are probabilities:
    the blend to the power of the inverse of the fitted temperature, scaled to add up to 1.

    Args:
        model, processor: The checkpoint.
        descriptions: One text or several for each label. They are read and embedded once, here.
        alpha: Weight of the similarity; 1 omits the matching, which is much faster.
        shortlist: Number of labels that the matching reads for each cell; `None` for all. The default, `"auto"`, reads
            up to 32.
        budget: Bounds the number of positions that go through a tower at once.

    Raises:
        InputError: A shortlist below 1, or a label without a text.
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
        #: The texts of each label; the matching reads the first.
        self.descriptions = {label: as_texts(label, texts) for label, texts in descriptions.items()}
        #: The calibration of the scores; None if they are not calibrated.
        self.calibration = model.config.calibration if _fits(model.config.calibration, alpha, processor) else None
        self.budget = TokenBudget.for_model(model) if budget is None else budget
        self._set_shortlist(shortlist)
        # The first text of each label, at the label's number, and then all the others.
        first = [texts[0] for texts in self.descriptions.values()]
        others = [text for texts in self.descriptions.values() for text in texts[1:]]
        self.text_ids = processor(text=first + others, text_kwargs={"padding": False})["input_ids"]
        self.lengths = [len(ids) for ids in self.text_ids]
        self.text_embeds = self._embed()

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences) -> Scored:
        """
        Scores packed cells.

        Args:
            ids: `(genes of all cells,)`, cells laid end to end.
            cells: Lengths of the cells.
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
        # `chosen` has, for each cell, the numbers of the labels that the matching reads.
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
        """Returns a copy of this scorer with a different shortlist, which shares the embedded texts."""
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
        Computes match probabilities of each cell with the labels chosen for it.

        Args:
            states: `(genes of all cells, hidden_size)` last hidden states.
            cells: Lengths of the cells.
            chosen: `(cells, chosen labels)` numbers of the labels to read for each cell.

        Returns:
            `(cells, labels)` match probabilities, 0 for labels that were not chosen.
        """
        match = torch.zeros(len(cells), len(self.descriptions), device=states.device)
        all_texts = self._by_length(range(len(self.descriptions))) if self.shortlist is None else None
        texts_of_cell = [all_texts or self._by_length(labels) for labels in chosen.tolist()]
        tokens = [sum(self.lengths[text] for text in texts) for texts in texts_of_cell]
        for block in self.budget.blocks(range(len(cells)), tokens):
            first, last = block[0], block[-1] + 1
            block_states = states[cells.offsets[first] : cells.offsets[last]]
            block_cells = PackedSequences(cells.lengths[first:last], states.device)
            # A cell with more texts than the budget holds is alone in its block, and its texts are read in parts.
            parts = [texts_of_cell[first:last]]
            if len(block) == 1:
                lengths = [self.lengths[text] for text in texts_of_cell[first]]
                parts = [[part] for part in self.budget.blocks(texts_of_cell[first], lengths)]
            for part in parts:
                texts = self._by_length({*chain(*part)})
                place = {text: place for place, text in enumerate(texts)}
                pairs = [[place[text] for text in of_cell] for of_cell in part]
                found = self.model.match_packed(block_states, block_cells, *self._pack(texts), pairs)
                rows = [cell for cell, of_cell in enumerate(part, first) for _ in of_cell]
                match[rows, [*chain(*part)]] = found
        return match

    def _shortlist_is_exact(self, similarity, match, scores, chosen) -> torch.Tensor:
        """
        Returns `(cells,)` true where the best label stays the best whatever the matching would give to the labels
        outside the shortlist.

        Two conditions are checked. The most similar label outside comes nearest when it alone matches for certain, and
        must still score lower. The labels inside keep their order in the matching, but the more the labels outside
        match, the less the matching weighs against the similarity; the best must be the same where it weighs least.
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
        """Embeds each label as the mean of its texts: `(labels, projection_dim)` float32, L2-normalised."""
        embeds = torch.empty(len(self.lengths), self.model.config.projection_dim, device=self.model.device)
        with torch.inference_mode():
            every = self._by_length(range(len(self.lengths)))
            for rows, pooled in self.budget.spend(every, self.lengths.__getitem__, self._read_texts):
                embeds[rows] = self.model.project_texts(pooled).float()
        start = len(self.descriptions)
        for label, texts in enumerate(self.descriptions.values()):
            if len(texts) > 1:  # Normalising a single text again would change its last bits.
                stop = start + len(texts) - 1
                embeds[label] = F.normalize(embeds[label] + embeds[start:stop].sum(dim=0), dim=0)
                start = stop
        return embeds[: len(self.descriptions)]

    def _by_length(self, texts: Iterable[int]) -> list[int]:
        """Sorts texts by length, so that texts of one length are neighbours and are read at once."""
        return sorted(texts, key=lambda text: (self.lengths[text], text))

    def _read_texts(self, texts: list[int]) -> torch.Tensor:
        return self.model.text_model.read_packed(*self._pack(texts))

    def _pack(self, texts: list[int]) -> tuple[torch.Tensor, PackedSequences]:
        device = self.model.device
        ids = torch.tensor([*chain(*(self.text_ids[text] for text in texts))], device=device)
        return ids, PackedSequences([self.lengths[text] for text in texts], device)


def _fits(calibration: Mapping[str, Any] | None, alpha: float, processor: ProcessorMixin) -> bool:
    """Returns true if a calibration was fitted with this `alpha` and with the processor's prompt templates."""
    if calibration is None or not math.isclose(calibration["alpha"], alpha):
        return False
    return tuple(templates_of(calibration, PROMPT_TEMPLATES)) == processor.prompt_templates


def _shortlist(shortlist: Shortlist, labels: int, alpha: float) -> int | None:
    """Returns the number of labels in the shortlist; None where the matching reads all of them, or is omitted."""
    if shortlist == "auto":
        if labels > SHORTLIST and alpha != 1:
            logger.info("The matching reads the %d most similar of the %d labels.", SHORTLIST, labels)
        shortlist = SHORTLIST
    if shortlist is not None and not (isinstance(shortlist, int) and shortlist >= 1):
        raise InputError(f"shortlist={shortlist!r} is not a number of candidates.")
    return None if shortlist is None or shortlist >= labels or alpha == 1 else shortlist


def read_cells(
    ranked: RankedCells,
    read: Callable[[torch.Tensor, PackedSequences], T],
    budget: TokenBudget,
    device: torch.device,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, T]]:
    """
    Reads cells (`rows`, by default all) in batches of similar length, as many at once as the budget holds, and yields
    row numbers with results. The longest come first, so that memory runs out at the start or not at all. Cells without
    known genes are skipped.
    """

    def read_rows(rows: list[int]) -> T:
        ids = torch.from_numpy(np.concatenate([ranked[row] for row in rows]).astype(np.int64))
        return read(ids.to(device), PackedSequences(lengths[rows].tolist(), device))

    lengths = ranked.lengths
    order = np.argsort(-lengths, kind="stable") if rows is None else rows[np.argsort(-lengths[rows], kind="stable")]
    for done, found in budget.spend(order[~ranked.without_genes[order]].tolist(), lengths.__getitem__, read_rows):
        yield np.array(done), found


__all__ = ["SHORTLIST", "DescriptionScorer", "Scored", "Shortlist", "read_cells"]
