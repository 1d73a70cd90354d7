# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Zero-shot annotation, which every checkpoint carries: scores cells against descriptions of labels."""

import copy
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from transformers import ProcessorMixin

from .configuration_langcell import templates_of
from .errors import InputError
from .gene_matching import UsualPlaces
from .marker_genes import NamedGenes, without_gene_lists
from .packed_langcell import PackedSequences
from .prompts import PROMPT_TEMPLATES, as_description, as_texts
from .ranking import RankedCells
from .token_budget import TokenBudget, execution_device

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
        lead: `(cells,)` how much better the best label fits than other types do; None where no others are known.
    """

    embeds: torch.Tensor
    scores: torch.Tensor
    shortlist_is_exact: torch.Tensor
    max_cosine: torch.Tensor
    lead: torch.Tensor | None = None


class Compared(NamedTuple):
    """
    Cells compared with labels.

    Args:
        embeds: `(cells, width)` float32, L2-normalised.
        logits: `(cells, labels)` cosines divided by the temperature.
        known: `(cells, known types)` the same for the known types; None where there is no share of relatives.
        evidence: `(cells, labels)` weighted evidence of the markers; None where it has no weight.
    """

    embeds: torch.Tensor
    logits: torch.Tensor
    known: torch.Tensor | None
    evidence: torch.Tensor | None


class DescriptionScorer:
    """
    Scores cells zero-shot (LangCell, section 3.3): a label's score blends two probabilities over the labels, that of
    the similarity in the shared space, with weight `alpha`, and that of the matching head, with weight `1 - alpha`.

    With a shortlist, the matching reads only the labels most similar to a cell. The others get the lowest
    match probability, 0; if even the highest, 1, would not make one of them the best, the shortlist's best label is
    proven to be the best of all.

    A label with several texts is embedded as the mean of their embeddings, scaled back to length 1 (Radford et al.,
    2021, section 3.1.4). The matching reads only the first text, since its cost grows with the number of texts.

    A description that training showed is moved towards the cells of its type: see `KnownTypes`. One that it never
    showed has drawn no cell to it, and would lose to the others. It gets a share of the similarity of its relatives:
    see `RelativesShare`.

    Marker evidence is a third voice: `marker_weight` times the evidence is added to the logarithm of the blend, and the
    scores are scaled to add up to 1. The evidence for a label is the mean, over the genes that its description names
    and that the matrix measured, of how far the gene stands above its usual place in the ranking of a cell, in usual
    spreads to the power 0.75; below it, for a gene that is said to be absent. Four further genes that the cell does not
    express are counted with them: so one or two genes say less than many, and a label that names no gene fares like one
    whose genes are not found. Since what is usual comes from the checkpoint, a cell's evidence does not depend on the
    other cells.

    If the config has a calibration for this `alpha`, this `marker_weight` and the processor's prompt templates, the
    scores are probabilities: the scores to the power of the inverse of the fitted temperature, scaled to add up to 1.

    Args:
        model, processor: The checkpoint.
        descriptions: What describes each label, in any form that `as_description` reads. The texts are read and
            embedded once, here. Lists of genes in them (`markers: INS, IAPP`) are for the evidence alone.
        alpha: Weight of the similarity; 1 omits the matching, which is much faster.
        shortlist: Number of labels that the matching reads for each cell; `None` for all. The default, `"auto"`, reads
            up to 32.
        budget: Bounds the number of positions that go through a tower at once. The text tower gets no more of them
            than it would be given for itself.
        marker_weight: Weight of the marker evidence; by default the checkpoint's own. 0 leaves it out.
        relatives_weight: Weight of the share of relatives; by default the checkpoint's own. 0 leaves it out.
        known_cells_weight: Weight of the training cells of known types; by default the checkpoint's own. 0 leaves them
            out.

    Raises:
        InputError: A shortlist below 1, a weight below 0, or a label without a text.
    """

    def __init__(
        self,
        model: "LangCellModel",
        processor: ProcessorMixin,
        descriptions: Mapping[str, Any],
        alpha: float,
        shortlist: Shortlist = "auto",
        budget: TokenBudget | None = None,
        marker_weight: float | None = None,
        relatives_weight: float | None = None,
        known_cells_weight: float | None = None,
    ):
        self.model, self.alpha = model, alpha
        given = {
            "marker_weight": marker_weight,
            "relatives_weight": relatives_weight,
            "known_cells_weight": known_cells_weight,
        }
        weights = {name: getattr(model.config, name) if weight is None else weight for name, weight in given.items()}
        for name, weight in weights.items():
            if not 0 <= weight < math.inf:
                raise InputError(f"{name}={weight} is not a weight: give 0 or more.")
        self.marker_weight = weights["marker_weight"]
        described = {label: as_description(label, given) for label, given in descriptions.items()}
        #: The texts of each label; the matching reads the first.
        self.descriptions = {label: as_texts(label, given.texts) for label, given in described.items()}
        #: The evidence of the genes that the descriptions name; None where it has no weight.
        self.evidence: MarkerEvidence | None = None
        #: The genes that each label's description names; empty where they have no weight.
        self.markers: dict[str, NamedGenes] = {}
        if self.marker_weight:
            self.markers = {label: processor.find_genes(given) for label, given in described.items()}
            usual = processor.feature_extractor.usual_places
            self.evidence = MarkerEvidence(self.markers, usual, execution_device(model))
        #: The calibration of the scores; None if they are not calibrated.
        calibration = model.config.calibration
        self.calibration = calibration if _fits(calibration, alpha, self.marker_weight, processor) else None
        self.budget = TokenBudget.for_model(model) if budget is None else budget
        # A small cell tower reads more positions at once than suit the text tower, which is deeper and wider.
        of_texts = TokenBudget.for_model(model.text_model)
        self._text_budget = TokenBudget(min(self.budget.tokens, of_texts.tokens))
        self._set_shortlist(shortlist)
        # The first text of each label, at the label's number, and then all the others.
        read = [list(texts) for texts in self.descriptions.values()]
        if self.evidence is not None:
            read = [[without_gene_lists(text) or text for text in texts] for texts in read]
        first = [texts[0] for texts in read]
        others = [text for texts in read for text in texts[1:]]
        token_ids = processor(text=first + others, text_kwargs={"padding": False})["input_ids"]
        #: The texts laid end to end, where the model computes: what is read of them is gathered there.
        self.texts = PackedSequences([len(ids) for ids in token_ids], execution_device(model))
        self._token_ids = torch.tensor([*chain(*token_ids)], device=self.texts.device)
        self.text_embeds = self._embed()
        #: What the cells of each label are compared with.
        self.label_embeds = self.text_embeds
        #: The share of relatives; None where every description is known, or none is.
        self.relatives: RelativesShare | None = None
        if model.known_texts is not None:
            known = KnownTypes(model.known_texts.float(), model.known_cells.float(), weights["known_cells_weight"])
            self.label_embeds = known.place(self.text_embeds)
            self.relatives = RelativesShare.of(self.text_embeds, known, weights["relatives_weight"])

    @property
    def lengths(self) -> list[int]:
        """Number of tokens of each text: the first of each label, and then all the others."""
        return self.texts.lengths

    @property
    def marker_ids(self) -> tuple[int, ...]:
        """Ids of the genes whose places the evidence needs."""
        return () if self.evidence is None else self.evidence.ids

    @torch.inference_mode()
    def __call__(self, ids: torch.Tensor, cells: PackedSequences, places: torch.Tensor | None = None) -> Scored:
        """
        Scores packed cells.

        Args:
            ids: `(1, genes of all cells)`, cells laid end to end.
            cells: Lengths of the cells.
            places: `(cells, genes of marker_ids)` places of the genes, as in `RankedCells`.
        """
        states, embeds = self.read(ids, cells)
        return self.score(self.compare(embeds, places), states, cells)

    def read(self, ids: torch.Tensor, cells: PackedSequences) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last hidden states of packed cells, and their `(cells, width)` embeddings."""
        read = self.model.cell_model(ids, pooled_only=self.alpha == 1, return_dict=True, **cells.arguments)
        return read.last_hidden_state, self.model.project_cells(read.pooler_output).float()

    def compare(self, embeds: torch.Tensor, places: torch.Tensor | None = None) -> Compared:
        """
        Compares embedded cells with all that decides their scores, except the matching.

        Args:
            embeds: `(cells, width)` L2-normalised.
            places: Same as for a call.
        """
        logits = self.model.get_similarity_logits(embeds, self.label_embeds)
        known = evidence = None
        if self.relatives is not None:
            known = self.model.get_similarity_logits(embeds, self.relatives.known_embeds)
        if self.evidence is not None and places is not None:
            evidence = self.marker_weight * self.evidence(places)
        return Compared(embeds, logits, known, evidence)

    def score(self, compared: Compared, states: torch.Tensor, cells: PackedSequences) -> Scored:
        """
        Scores cells that have been compared. The matching, where it has a weight, reads them.

        Args:
            compared: The cells.
            states, cells: Their hidden states, as `read` returns them, and their lengths.
        """
        embeds, logits, known, evidence = compared
        max_cosine = logits.amax(dim=1) * self.model.config.temperature
        similarity = logits.softmax(dim=1)
        if self.relatives is not None and known is not None:
            similarity = self.relatives(similarity, known.softmax(dim=1))
        if self.alpha == 1:
            shortlist_is_exact = torch.ones(len(cells), dtype=torch.bool)
            scores = _with_evidence(similarity, evidence)
            return Scored(embeds, self._calibrated(scores), shortlist_is_exact, max_cosine)
        # `chosen` has, for each cell, the numbers of the labels that the matching reads.
        if self.shortlist is None:
            chosen = torch.arange(len(self.descriptions)).expand(len(cells), -1)
        else:
            chosen = _with_evidence(similarity, evidence).topk(self.shortlist, dim=1).indices.cpu()
        match = self.match(states, cells, chosen)
        # The published procedure takes the softmax, over candidates, of the probabilities themselves.
        scores = _with_evidence(self.alpha * similarity + (1 - self.alpha) * match.softmax(dim=1), evidence)
        exact = self._shortlist_is_exact(similarity, match, evidence, scores.argmax(dim=1), chosen.to(scores.device))
        shortlist_is_exact = exact.cpu()
        return Scored(embeds, self._calibrated(scores), shortlist_is_exact, max_cosine)

    def support(self, compared: Compared) -> torch.Tensor:
        """
        Returns how well each label fits each cell, regardless of the other labels: the cosine divided by the
        temperature, with the share of relatives, and the weighted evidence; `(cells, labels)`.
        """
        _, support, known, evidence = compared
        if self.relatives is not None and known is not None:
            support = torch.logaddexp(support, (known.double().exp() @ self.relatives.shares.double()).log().float())
        return support if evidence is None else support + evidence

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
        if self.marker_weight:
            self.settings["marker_weight"] = float(self.marker_weight)
        if self.shortlist is not None:
            self.settings["shortlist"] = self.shortlist

    def match(self, states: torch.Tensor, cells: PackedSequences, chosen: torch.Tensor) -> torch.Tensor:
        """
        Computes match probabilities of each cell with the labels chosen for it.

        Args:
            states: `(1, genes of all cells, hidden_size)` last hidden states.
            cells: Lengths of the cells.
            chosen: `(cells, chosen labels)` numbers of the labels to read for each cell.

        Returns:
            `(cells, labels)` match probabilities, 0 for labels that were not chosen.
        """
        match = torch.zeros(len(cells), len(self.descriptions), device=states.device)
        # There may be hundreds of thousands of pairs: none of this goes through them one by one.
        sizes = self.texts.sizes
        # Without a shortlist all cells have the same texts, which are sorted once.
        texts_of = self._by_length((chosen[:1] if self.shortlist is None else chosen).numpy())
        every = np.broadcast_to(texts_of, chosen.shape)
        for block in self._text_budget.slices(np.broadcast_to(sizes[texts_of].sum(axis=1), len(cells))):
            block_states = states[:, cells.offsets[block.start] : cells.offsets[block.stop]]
            block_cells = PackedSequences(cells.sizes[block], states.device)
            parts = [slice(None)]
            if block.stop == block.start + 1:  # A cell with more texts than the budget holds: they are read in parts.
                parts = [*self._text_budget.slices(sizes[every[block.start]])]
            for part in parts:
                pairs = every[block, part]
                texts = self._by_length(np.unique(pairs))
                place = np.empty(len(sizes), dtype=np.int64)
                place[texts] = np.arange(len(texts))
                found = self.model.match_packed(block_states, block_cells, *self._pack(texts), place[pairs])
                columns = torch.from_numpy(pairs.copy()).to(match.device)
                match[block].scatter_(1, columns, found.view(pairs.shape).to(match.dtype))
        return match

    def _shortlist_is_exact(self, similarity, match, evidence, best, chosen) -> torch.Tensor:
        """
        Returns `(cells,)` true where the best label stays the best whatever the matching would give to the labels
        outside the shortlist.

        A label outside scores most if it matches for certain. The more the others match besides, the less the matching
        weighs against the similarity. The lead of the best label over any other is linear in that weight, so it holds
        everywhere if it holds at both ends: where only one label outside matches for certain, and where all do.
        """
        if self.shortlist is None:
            return torch.ones(len(similarity), dtype=torch.bool, device=similarity.device)
        exponents = match.exp()
        total = exponents.sum(dim=1, keepdim=True)
        left_out = len(self.descriptions) - self.shortlist
        at_most = torch.full_like(exponents, math.e).scatter(1, chosen, exponents.gather(1, chosen))
        exact = (chosen == best[:, None]).any(dim=1)  # The evidence may favour a label that the matching did not read.
        for matching in (1, left_out):
            scores = self.alpha * similarity + (1 - self.alpha) * at_most / (total + matching * (math.e - 1))
            exact &= _with_evidence(scores, evidence).argmax(dim=1) == best
        return exact

    def _embed(self) -> torch.Tensor:
        """Embeds each label as the mean of its texts: `(labels, projection_dim)` float32, L2-normalised."""
        size = len(self.lengths), self.model.config.projection_dim
        embeds = torch.empty(size, device=execution_device(self.model))
        with torch.inference_mode():
            every = self._by_length(np.arange(len(self.lengths))).tolist()
            for rows, pooled in self._text_budget.spend(every, self.lengths.__getitem__, self._read_texts):
                embeds[rows] = self.model.project_texts(pooled).float()
        start = len(self.descriptions)
        for label, texts in enumerate(self.descriptions.values()):
            if len(texts) > 1:  # Normalising a single text again would change its last bits.
                stop = start + len(texts) - 1
                embeds[label] = F.normalize(embeds[label] + embeds[start:stop].sum(dim=0), dim=0)
                start = stop
        return embeds[: len(self.descriptions)]

    def _by_length(self, texts: np.ndarray) -> np.ndarray:
        """Sorts texts along the last axis by length: neighbours of one length are read at once."""
        order = np.argsort(self.texts.sizes, kind="stable")
        return order[np.sort(np.argsort(order)[texts], axis=-1)]

    def _read_texts(self, texts: list[int]) -> torch.Tensor:
        ids, packed = self._pack(np.array(texts))
        return self.model.text_model(ids, pooled_only=True, return_dict=True, **packed.arguments).pooler_output

    def _pack(self, texts: np.ndarray) -> tuple[torch.Tensor, PackedSequences]:
        packed = PackedSequences(self.texts.sizes[texts], self.texts.device)
        starts = torch.from_numpy(self.texts.ends[texts]).to(packed.device)
        return self._token_ids[packed.repeat(starts) + packed.positions][None], packed


class KnownTypes:
    """
    Types that training showed. Their cells lie near their descriptions, but not on them: where training saw many
    cells, their mean says better than language where the next ones will lie, as with prototypes (Snell et al., 2017).
    So a description of such a type is compared with cells after it has been moved towards their mean.

    Args:
        texts: `(known, width)` embeddings of the descriptions.
        cells: `(known, width)` mean embeddings of the types' cells, L2-normalised.
        weight: Weight of the cells beside the description, whose weight is 1.
    """

    #: Cosine with a known description from which a description is the same, rounded weights or not.
    SAME = 0.98

    def __init__(self, texts: torch.Tensor, cells: torch.Tensor, weight: float):
        self.texts, self.cells, self.weight = texts, cells, weight

    @property
    def embeds(self) -> torch.Tensor:
        """`(known, width)` what the cells of the known types are compared with, L2-normalised."""
        return self.place(self.texts)

    def is_new(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Returns `(texts,)` true for texts that describe no known type."""
        return (text_embeds @ self.texts.T).amax(dim=1) < self.SAME

    def place(self, text_embeds: torch.Tensor) -> torch.Tensor:
        """Moves `(texts, width)` embeddings of texts, where they describe known types, towards the types' cells."""
        if not self.weight:
            return text_embeds
        cells = self.cells[(text_embeds @ self.texts.T).argmax(dim=1)]
        moved = F.normalize(text_embeds + self.weight * cells, dim=1)
        return torch.where(self.is_new(text_embeds)[:, None], text_embeds, moved)


class RelativesShare:
    """
    The share of similarity that a new description gets from its relatives, after ConSE (Norouzi et al., 2014).

    What the model takes for a macrophage may be a Kupffer cell, if training had no such cells: it can only tell apart
    what it learnt. So the probability of each known description, times a weight, is divided among the labels in
    proportion to `exp(SHARPNESS * cosine)` of the texts, and new descriptions get their parts of it on top of their
    own. Genes that the descriptions name then decide between the relatives. Many new descriptions share what one alone
    would get, so a long list of candidates does not bury the known ones.

    Args:
        known_embeds: `(known, width)` what the cells of the known types are compared with.
        shares: `(known, labels)` shares times weight; 0 for labels whose description is known.
    """

    SHARPNESS = 12.0

    def __init__(self, known_embeds: torch.Tensor, shares: torch.Tensor):
        self.known_embeds, self.shares = known_embeds, shares

    @classmethod
    def of(cls, text_embeds: torch.Tensor, known: KnownTypes, weight: float) -> "RelativesShare | None":
        """Returns the shares for `(labels, width)` embeddings of texts; None if each is known, or the weight is 0."""
        is_new = known.is_new(text_embeds)
        if not weight or not is_new.any():
            return None
        cosine = known.texts @ text_embeds.T
        return cls(known.embeds, weight * is_new * (cls.SHARPNESS * cosine).softmax(dim=1))

    def __call__(self, similarity: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        """
        Adds the shares to probabilities.

        Args:
            similarity: `(cells, labels)` probabilities of the labels.
            known: `(cells, known)` probabilities of the known descriptions.

        Returns:
            `(cells, labels)` probabilities.
        """
        shared = similarity + known @ self.shares
        return shared / shared.sum(dim=1, keepdim=True)


class MarkerEvidence:
    """
    How far the genes that descriptions name stand above their usual places in a cell: see `DescriptionScorer`.

    Args:
        named: The genes that each label's description names.
        usual: What is usual for the place of each gene.
        device: Device to compute on.

    Attributes:
        ids: Ids of all genes that are named.
    """

    #: Genes that are counted with those that are named, as if the cell did not express them: few genes are weak
    #: evidence, and none is no evidence for a label.
    FURTHER_GENES = 4
    #: Power of how far a gene stands from its usual place: a gene that stands out twice as far says less than twice as
    #: much, so a label wins by several of its genes rather than by one that is everywhere in the sample.
    POWER = 0.75

    def __init__(self, named: Mapping[str, NamedGenes], usual: UsualPlaces, device: torch.device):
        self.ids = tuple(sorted({gene for genes in named.values() for gene in (*genes.present, *genes.absent)}))
        column = {gene: number for number, gene in enumerate(self.ids)}
        signs = torch.zeros(len(self.ids), len(named))
        for label, genes in enumerate(named.values()):
            signs[[column[gene] for gene in genes.present], label] = 1
            signs[[column[gene] for gene in genes.absent], label] = -1
        self._signs, self._named = signs.to(device), signs.abs().to(device)
        ids = np.array(self.ids, dtype=int)
        self._means, self._spreads = (torch.from_numpy(a[ids]).to(device) for a in (usual.means, usual.spreads))

    def __call__(self, places: torch.Tensor) -> torch.Tensor:
        """
        Returns `(cells, labels)` evidence.

        Args:
            places: `(cells, genes of ids)` places; NaN for genes that were not measured, which say nothing.
        """
        above = self._compressed((places - self._means) / self._spreads).nan_to_num(0)
        measured = ~places.isnan()
        if len(measured) and (measured == measured[:1]).all():  # The cells of one matrix: one row is enough.
            measured = measured[:1]
        measured = measured.to(above.dtype) @ self._named
        mean, spread = UsualPlaces.AVERAGE
        further = self.FURTHER_GENES * self._compressed(torch.tensor((0 - mean) / spread))
        return (above @ self._signs + further) / (measured + self.FURTHER_GENES)

    def _compressed(self, above: torch.Tensor) -> torch.Tensor:
        return above.sign() * above.abs() ** self.POWER


def _with_evidence(scores: torch.Tensor, evidence: torch.Tensor | None) -> torch.Tensor:
    """Adds weighted evidence, if there is any, to the logarithms of scores, and scales these to add up to 1."""
    return scores if evidence is None else (scores.log() + evidence).softmax(dim=1)


def _fits(calibration: Mapping[str, Any] | None, alpha: float, marker_weight: float, processor: ProcessorMixin) -> bool:
    """Returns true if a calibration was fitted with these weights and with the processor's prompt templates."""
    if calibration is None or not math.isclose(calibration["alpha"], alpha):
        return False
    if not math.isclose(calibration.get("marker_weight", 0), marker_weight):
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
    read: Callable[..., T],
    budget: TokenBudget,
    device: torch.device,
    rows: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, T]]:
    """
    Reads cells (`rows`, by default all) in batches of similar length, as many at once as the budget holds, and yields
    row numbers with results. The longest come first, so that memory runs out at the start or not at all. Cells without
    known genes are skipped.

    Args:
        ranked: The cells.
        read: Function of `(1, genes of all cells)` ids, the lengths of the cells and, if the cells have any, the places
            of watched genes.
        budget: Bounds the number of positions that are read at once.
        device: Device to compute on.
        rows: Numbers of the cells to read.
    """

    def read_rows(rows: list[int]) -> T:
        ids = torch.from_numpy(np.concatenate([ranked[row] for row in rows]).astype(np.int64))
        places = [torch.from_numpy(ranked.places[rows]).to(device)] if ranked.places.shape[1] else []
        return read(ids.to(device)[None], PackedSequences(lengths[rows].tolist(), device), *places)

    lengths = ranked.lengths
    order = np.argsort(-lengths, kind="stable") if rows is None else rows[np.argsort(-lengths[rows], kind="stable")]
    for done, found in budget.spend(order[~ranked.without_genes[order]].tolist(), lengths.__getitem__, read_rows):
        yield np.array(done), found


__all__ = [
    "SHORTLIST",
    "Compared",
    "DescriptionScorer",
    "KnownTypes",
    "MarkerEvidence",
    "RelativesShare",
    "Scored",
    "Shortlist",
    "read_cells",
]
