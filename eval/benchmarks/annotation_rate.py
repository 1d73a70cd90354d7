# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Speed of annotation compared with the naive procedure, with the same weights on the same real cells, both measured in
each round. The model has the base geometry and random weights: speed does not depend on their values.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from transformers import AutoProcessor

from modeling_langcell import LangCellConfig, LangCellFeatureExtractor, LangCellModel, LangCellProcessor
from modeling_langcell.annotation.annotator import LangCellAnnotator
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.eval.benchmarks.naive import BATCH, NaiveProcedure
from modeling_langcell.eval.benchmarks.operations import matrix_rate, operations_of_cells, operations_of_pairs, time_of
from modeling_langcell.io.h5ad import open_cells
from modeling_langcell.kernels import cpu_has_instructions
from modeling_langcell.model.packed_langcell import PackedSequences
from modeling_langcell.model.ranking import RankedCells
from modeling_langcell.model.zero_shot import DescriptionScorer, read_cells
from modeling_langcell.ontology import all_terms

ALPHA = 0.1  # The public notebook's value.


@dataclass(frozen=True)
class Setting:
    """
    Settings of annotation that are measured.

    Args:
        candidates: Number of descriptions.
        shortlist: Number of descriptions per cell that the matching reads; None for all.
        precision: `float32` or `bfloat16`.
        cells: Number of cells of a naive batch that are annotated.
    """

    candidates: int
    shortlist: int | None
    precision: str
    cells: int

    @property
    def way(self) -> str:
        """Name of precision and shortlist, without the number of candidates."""
        return self.precision if self.shortlist is None else f"{self.precision}, shortlist of {self.shortlist}"


class BenchmarkContext:
    """
    A model of the base geometry with random weights, and real cells ranked for it.

    Args:
        cells: An `.h5ad` file.
        device: Device of the model.
        seed: Seed of weights, cells and candidates.
        geometry: Config to use instead of the base geometry; its vocabularies are set to fit.
    """

    def __init__(self, cells: Path, device: torch.device, seed: int, geometry: LangCellConfig | None = None):
        shipped = AutoProcessor.from_pretrained(resolve_checkpoint(MINI))
        extractor = LangCellFeatureExtractor(shipped.feature_extractor.gene_vocabulary)
        tokenizer = shipped.tokenizer
        self.config = LangCellConfig() if geometry is None else geometry
        self.config.cell_config.vocab_size = len(extractor)
        tokenizer.model_max_length = self.config.text_config.max_position_embeddings
        self.processor = LangCellProcessor(extractor, tokenizer)
        self.device, self.rng = device, np.random.default_rng(seed)
        torch.manual_seed(seed)
        self.model = LangCellModel(self.config).to(device).eval()
        self.models = {"float32": self.model}
        self._scorers: dict[tuple[int, str], DescriptionScorer] = {}
        self.ranked: RankedCells = extractor.rank(open_cells(cells), empty_cells="mark")
        terms = all_terms()
        order = self.rng.permutation(len(terms))
        self.descriptions = [terms[number].description for number in order]

    def model_in(self, precision: str) -> LangCellModel:
        """Returns the model with its weights in a precision."""
        if precision not in self.models:
            copied = LangCellModel(self.config)
            copied.load_state_dict(self.model.state_dict())
            self.models[precision] = copied.to(self.device, getattr(torch, precision)).eval()
        return self.models[precision]

    def scorer(self, setting: Setting) -> DescriptionScorer:
        """Returns the scorer of a setting; settings that differ only in the shortlist share their encoded texts."""
        key = setting.candidates, setting.precision
        if key not in self._scorers:
            chosen = {str(number): text for number, text in enumerate(self.descriptions[: setting.candidates])}
            model = self.model_in(setting.precision)
            self._scorers[key] = DescriptionScorer(model, self.processor, chosen, ALPHA, None)
        return self._scorers[key].reading(setting.shortlist)

    def texts(self, candidates: int) -> list[list[int]]:
        """Returns the token ids of the first descriptions."""
        return self.processor(text=self.descriptions[:candidates], text_kwargs={"padding": False})["input_ids"]

    def batch(self) -> np.ndarray:
        """Draws the rows of one batch of the public loop, shortest cells first."""
        rows = self.rng.choice(np.flatnonzero(~self.ranked.without_genes), BATCH, replace=False)
        return rows[np.argsort(self.ranked.lengths[rows], kind="stable")]

    def choose(self, rows: np.ndarray, cells: int) -> np.ndarray:
        """Returns the rows of `cells` cells of a batch, spread evenly over its lengths."""
        return rows[((np.arange(cells) + 0.5) * len(rows) / cells).astype(int)]

    def pad(self, rows: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns ids and mask in the form that the naive procedure takes."""
        ids, mask = (torch.from_numpy(array).to(self.device) for array in self.ranked.pad(rows))
        return ids, mask


class NaiveSeconds:
    """
    Seconds of the naive procedure on a batch. It reads texts one at a time, at a cost that depends on their length
    alone: timing a few texts from the shortest to the longest gives the cost of any number. It pads all cells to the
    longest: a few of them, with the longest, give the cost of each.

    Args:
        context: Model and cells.
        rows: Rows of the batch, the longest cell last.
        texts: Token ids of all texts.
        timed: Number of texts that are timed.
        cells: Number of cells that are timed.
    """

    def __init__(
        self,
        context: BenchmarkContext,
        rows: np.ndarray,
        texts: Sequence[Sequence[int]],
        timed: int,
        cells: int = BATCH,
    ):
        rows = rows[np.linspace(0, len(rows) - 1, min(cells, len(rows))).astype(int)]
        self.lengths = np.array([len(text) for text in texts])
        order = np.argsort(self.lengths, kind="stable")
        sample = np.unique(order[np.linspace(0, len(order) - 1, min(timed, len(order))).astype(int)])
        sample = sample[np.argsort(self.lengths[sample], kind="stable")]
        naive = NaiveProcedure(context.model, [texts[text] for text in sample], ALPHA)
        ids, mask = context.pad(rows)
        found: dict[str, torch.Tensor] = {}

        def encode() -> None:
            found["states"], _ = naive.encode_cells(ids, mask)

        if context.device.type == "cuda":  # The first calls with a size cost more than later ones.
            encode()
            naive.match(found["states"], mask, -1)
        self.cells = len(rows)
        self.encoding = time_of(encode, context.device)
        self.matching = [
            time_of(lambda text=text: naive.match(found["states"], mask, text), context.device)
            for text in range(len(sample))
        ]
        self._known = self.lengths[sample]

    def match(self, candidates: int) -> float:
        """Returns the seconds per cell of the matching with the first `candidates` texts."""
        return float(np.interp(self.lengths[:candidates], self._known, self.matching).sum()) / self.cells

    def annotate(self, candidates: int) -> float:
        """Returns the seconds per cell of annotation with the first `candidates` texts."""
        return self.encoding / self.cells + self.match(candidates)


def measure_annotation(
    context: BenchmarkContext,
    settings: Sequence[Setting],
    rounds: int,
    timed_texts: int,
    timed_cells: int,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """
    Measures rounds of the naive procedure and of every setting on the same cells, without the encoding of candidates,
    which both do once per run. `timed_texts` and `timed_cells` are numbers for `NaiveSeconds`.

    Returns:
        `ways`: for every setting the medians over rounds of `cells_per_second` and of `ratio` to the naive procedure.
        If all candidates are read, also `share_of_floor`, the time that the fewest operations known to suffice would
        take at the device's rate, as a share of the time taken, and `same_answer`, the share of cells with the best
        candidate of single precision. `naive_cells_per_second`: the naive procedure's rate by number of candidates.
    """
    scorers = {setting: context.scorer(setting) for setting in settings}
    most = max(setting.candidates for setting in settings)
    texts = context.texts(most)
    # The cost of the very first call is not part of the rate; on a GPU it includes memory for a whole batch.
    gpu = context.device.type == "cuda"
    for setting, scorer in scorers.items():
        _annotate(context, scorer, context.batch()[: BATCH if gpu else 1])
        say(f"ready: {setting.candidates} candidates, {setting.way}")
    found: dict[Setting, list[dict[str, float]]] = {setting: [] for setting in settings}
    naive: dict[int, list[float]] = {setting.candidates: [] for setting in settings}
    for number in range(rounds):
        rows = context.batch()
        seconds = NaiveSeconds(context, rows, texts, timed_texts, timed_cells)
        for candidates, times in naive.items():
            times.append(seconds.annotate(candidates))
        best: dict[tuple[int, int], int] = {}  # The exact answers, by number of candidates and cell.
        for setting, scorer in scorers.items():
            chosen = context.choose(rows, setting.cells)
            answers: list[int] = []
            taken = time_of(lambda c=chosen, s=scorer, a=answers: a.extend(_annotate(context, s, c)), context.device)
            if setting.way == "float32":
                best |= {(setting.candidates, row): answer for row, answer in zip(chosen, answers, strict=True)}
            same = [
                best[setting.candidates, row] == answer
                for row, answer in zip(chosen, answers, strict=True)
                if (setting.candidates, row) in best
            ]
            lengths = context.ranked.lengths[chosen].tolist()
            least = operations_of_cells(context.config, lengths)
            least += operations_of_pairs(context.config, lengths, scorer.lengths)
            rate = matrix_rate(context.device, getattr(torch, setting.precision))
            found[setting].append(
                {
                    "genes_a_cell": float(np.mean(lengths)),
                    "seconds_a_cell": taken / len(chosen),
                    "ratio": naive[setting.candidates][-1] / (taken / len(chosen)),
                    "share_of_floor": least / rate / taken,
                    "same_answer": float(np.mean(same)) if same else float("nan"),
                }
            )
            say(f"round {number + 1}: {setting.candidates} candidates, {setting.way}: "
                f"{found[setting][-1]['ratio']:.1f} times the naive rate")  # fmt: skip
    return {
        "naive_cells_per_second": {number: 1 / float(np.median(times)) for number, times in naive.items()},
        "ways": [_summary(setting, rounds_found) for setting, rounds_found in found.items()],
    }


def _summary(setting: Setting, rounds: list[dict[str, float]]) -> dict[str, Any]:
    def median(name: str) -> float:
        return float(np.median([one[name] for one in rounds]))

    summary = {
        "candidates": setting.candidates,
        "way": setting.way,
        "precision": setting.precision,
        "shortlist": setting.shortlist,
        "cells_a_round": setting.cells,
        "genes_a_cell": float(np.mean([one["genes_a_cell"] for one in rounds])),
        "cells_per_second": 1 / median("seconds_a_cell"),
        "ratio": median("ratio"),
        "ratio_by_round": [one["ratio"] for one in rounds],
    }
    if setting.shortlist is None:
        # Neither has a meaning for a shortlist here: the texts that are read are not known, and with random weights
        # texts are too similar for their order to survive rounding.
        summary |= {"share_of_floor": median("share_of_floor"), "same_answer": median("same_answer")}
    return summary


def _annotate(context: BenchmarkContext, scorer: DescriptionScorer, rows: np.ndarray) -> list[int]:
    """Returns the best candidate of each cell."""
    best = dict[int, int]()
    for done, found in read_cells(context.ranked, scorer, scorer.budget, context.device, rows):
        best |= zip(done.tolist(), found.scores.argmax(dim=1).tolist(), strict=True)
    return [best[row] for row in rows.tolist()]


def largest_difference(context: BenchmarkContext, candidates: int, cells: int) -> float:
    """Returns the largest difference between naive scores and exact scores in single precision, for a few cells."""
    rows = context.choose(context.batch(), cells)
    naive = NaiveProcedure(context.model, context.texts(candidates), ALPHA)(*context.pad(rows))
    scorer = context.scorer(Setting(candidates, None, "float32", cells))
    place = {row: number for number, row in enumerate(rows.tolist())}
    difference = 0.0
    for done, found in read_cells(context.ranked, scorer, scorer.budget, context.device, rows):
        expected = naive[[place[row] for row in done.tolist()]]
        difference = max(difference, float((found.scores - expected).abs().max()))
    return difference


def agreement_of_mini(
    cells: Path, candidates: int, shortlist: int, n_cells: int, seed: int, device: torch.device
) -> dict[str, Any]:
    """
    Returns how often langcell-mini, a trained model, gives the answer of exact single precision with a shortlist and in
    half precision. The candidates are the types of the cells and other types of the Cell Ontology; `alpha` is 0.1 to
    give the matching a large weight.
    """
    rng = np.random.default_rng(seed)
    adata = open_cells(cells)
    types = set(adata.obs["cell_type"].astype(str))
    own = [term for term in all_terms() if term.name in types]
    others = [term for term in all_terms() if term.name not in types]
    chosen = own + [others[number] for number in rng.permutation(len(others))[: candidates - len(own)]]
    descriptions = {term.name: term.description for term in chosen}
    answers: dict[str, np.ndarray] = {}
    shortlist_is_exact = np.zeros(0)
    for precision in fast_on(device):
        annotator = LangCellAnnotator.from_pretrained(MINI, device=device, dtype=precision)
        ranked = annotator.processor.feature_extractor.rank(adata, empty_cells="mark")
        rows = np.random.default_rng(seed).permutation(np.flatnonzero(~ranked.without_genes))[:n_cells]
        exact = DescriptionScorer(annotator.model, annotator.processor, descriptions, ALPHA, None)
        for way, scorer in ((precision, exact), (f"{precision}, shortlist", exact.reading(shortlist))):
            best = np.full(len(ranked), -1)
            sure = np.zeros(len(ranked), dtype=bool)
            for done, found in read_cells(ranked, scorer, scorer.budget, annotator.device, rows):
                best[done], sure[done] = found.scores.argmax(dim=1).cpu().numpy(), found.shortlist_is_exact.numpy()
            answers[way] = best[rows]
            shortlist_is_exact = sure[rows] if way == "float32, shortlist" else shortlist_is_exact
    same = {way: float((found == answers["float32"]).mean()) for way, found in answers.items() if way != "float32"}
    right = (answers["float32, shortlist"] == answers["float32"])[shortlist_is_exact]
    return {
        "candidates": candidates,
        "shortlist": shortlist,
        "cells": len(rows),
        "alpha": ALPHA,
        "same_answer": same,
        "proven": float(shortlist_is_exact.mean()),
        "same_answer_where_proven": float(right.mean()) if len(right) else None,
    }


def measure_matching(
    context: BenchmarkContext, candidates: int, rounds: int, timed_texts: int, cells: int
) -> dict[str, Any]:
    """Measures rounds of matching cells that are already encoded: median pairs per second, and their ratios."""
    texts = context.texts(candidates)
    ways = {
        precision: context.scorer(Setting(candidates, None, precision, cells)) for precision in fast_on(context.device)
    }
    chosen = torch.arange(candidates).expand(cells, -1)
    rates: dict[str, list[float]] = {"naive": [], **{way: [] for way in ways}}
    for _ in range(rounds):
        rows = context.batch()
        rates["naive"].append(candidates / NaiveSeconds(context, rows, texts, timed_texts).match(candidates))
        rows = context.choose(rows, cells)
        ids = torch.from_numpy(np.concatenate([context.ranked[row] for row in rows]).astype(np.int64)).to(
            context.device
        )
        packed = PackedSequences(context.ranked.lengths[rows].tolist(), context.device)
        for way, scorer in ways.items():
            with torch.inference_mode():
                tower = scorer.model.cell_model
                states = tower(ids[None], return_dict=True, **packed.arguments).last_hidden_state
                taken = time_of(lambda s=scorer, t=states, p=packed: s.match(t, p, chosen), context.device)
            rates[way].append(cells * candidates / taken)
    ratios = {way: [ours / theirs for ours, theirs in zip(rates[way], rates["naive"], strict=True)] for way in ways}
    return {
        "candidates": candidates,
        "cells_a_round": cells,
        "pairs_per_second": {way: float(np.median(rate)) for way, rate in rates.items()},
        "ratios": {way: float(np.median(ratio)) for way, ratio in ratios.items()},
        "ratio": float(np.median(ratios["float32"])),
        "ratio_by_round": ratios,
    }


def measure_cell_tower(context: BenchmarkContext, lengths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """
    Measures rounds of the cell tower on cells of random genes, for each length: median cells per second of the naive
    procedure and of each precision, and the share of the device's matrix rate that each precision reaches.
    """
    at_once = 65_536 if context.device.type == "cuda" else 4_096
    measured = []
    for length in lengths:
        cells = max(1, at_once // length)
        ids = torch.randint(2, context.config.cell_config.vocab_size - 1, (cells, length), device=context.device)
        mask, packed = torch.ones_like(ids), PackedSequences([length] * cells, context.device)
        naive = NaiveProcedure(context.model, context.texts(1), ALPHA)
        operations = operations_of_cells(context.config, [length] * cells)
        rates: dict[str, list[float]] = {"naive": []}
        shares: dict[str, list[float]] = {}
        for number in range(rounds + 1):
            taken = {"naive": time_of(lambda n=naive, i=ids, m=mask: n.encode_cells(i, m), context.device)}
            for precision in fast_on(context.device):
                tower = context.model_in(precision).cell_model
                with torch.inference_mode():
                    taken[precision] = time_of(
                        lambda t=tower, i=ids, p=packed: t(i.flatten()[None], **p.arguments), context.device
                    )
                if number:
                    rate = matrix_rate(context.device, getattr(torch, precision))
                    shares.setdefault(precision, []).append(operations / taken[precision] / rate)
            if number:  # The first round only warms up.
                for way, seconds in taken.items():
                    rates.setdefault(way, []).append(cells / seconds)
        measured.append(
            {
                "length": length,
                "cells": cells,
                "cells_per_second": {way: float(np.median(rate)) for way, rate in rates.items()},
                "share_of_matrix_rate": {way: float(np.median(share)) for way, share in shares.items()},
            }
        )
    return measured


def fast_on(device: torch.device) -> Iterator[str]:
    """Yields the precisions that a device computes fast."""
    yield "float32"
    if device.type == "cuda" or cpu_has_instructions(torch.bfloat16):
        yield "bfloat16"


def draw(figures: dict[str, Any]) -> Figure:
    """Draws cells per second by number of candidates, and those of the cell tower by length of the cells."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_candidates, by_length = figure.subplots(1, 2)
    naive = figures["naive_cells_per_second"]
    by_candidates.plot([int(n) for n in naive], list(naive.values()), "k--o", label="naive procedure, float32")
    ways: dict[str, list[tuple[int, float]]] = {}
    for one in figures["ways"]:
        ways.setdefault(one["way"], []).append((one["candidates"], one["cells_per_second"]))
    for look, (way, points) in zip(("C0-o", "C1-v", "C2-s", "C3-^"), ways.items(), strict=False):
        by_candidates.plot(*zip(*sorted(points), strict=True), look, label=way)
    by_candidates.set(xlabel="candidates", title="annotation")
    for way, look in {"naive": "k--o", "float32": "C0-o", "bfloat16": "C2-s"}.items():
        points = [(one["length"], one["cells_per_second"].get(way)) for one in figures["cell_tower"]]
        if all(rate for _, rate in points) and points:
            label = "naive procedure, float32" if way == "naive" else way
            by_length.plot(*zip(*points, strict=True), look, label=label)
    by_length.set(xlabel="genes of a cell", title="cell tower alone")
    by_length.set_xscale("log", base=2)
    by_candidates.set_xscale("log")
    for axes in (by_candidates, by_length):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=12))
        axes.set_ylabel("cells / s")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    return figure


__all__ = [
    "BenchmarkContext",
    "Setting",
    "agreement_of_mini",
    "draw",
    "fast_on",
    "largest_difference",
    "measure_annotation",
    "measure_cell_tower",
    "measure_matching",
]
