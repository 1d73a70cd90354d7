# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Speed and memory compared with the published procedures, measured in one run on the same cells. Tokenizing:

    python eval/benchmarks/throughput.py tokenize --json eval/results/throughput_tokenize.json

Peak memory of making a corpus, by its number of cells:

    python eval/benchmarks/throughput.py corpus --json eval/results/throughput_corpus.json

Annotation, and its matching alone, compared with the public loop on real cells:

    python eval/benchmarks/throughput.py annotate --json eval/results/throughput_annotate.json \\
        --figure docs/throughput.png
    python eval/benchmarks/throughput.py match --json eval/results/throughput_match.json

What marker genes add to the time of annotating:

    python eval/benchmarks/throughput.py markers --json eval/results/throughput_markers.json

A change of the package, measured against a checkout without it:

    python eval/benchmarks/throughput.py checkouts --before ../before --json eval/results/throughput_checkouts.json

How long the command takes for one file, from its start on:

    python eval/benchmarks/throughput.py first --before ../before --json eval/results/throughput_first.json

Alternative kernels for the cell tower:

    python eval/benchmarks/throughput.py kernels --json eval/results/throughput_kernels.json

Time and memory of annotating a large file with the command, which is killed once and run again:

    python eval/benchmarks/throughput.py study --json eval/results/throughput_study.json

The same for an atlas, which is killed twice and compared with an unbroken run (20 minutes, 20 GB of disk):

    python eval/benchmarks/throughput.py study --number 1000000 --kill-at 0.3 --kill-at 0.7 --unbroken \\
        --json eval/results/throughput_atlas.json

The index that searches a million cells:

    python eval/benchmarks/throughput.py index --json eval/results/throughput_index.json

Size of the report of a large study, and the time that a browser takes to open it:

    python eval/benchmarks/throughput.py report --json eval/results/throughput_report.json

Speed of pre-training, and the time that the paper's run would take at that speed:

    python eval/benchmarks/throughput.py train --json eval/results/throughput_train.json
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import anndata as ad
import datasets
import numpy as np
import scipy.sparse as sp
import torch
import typer

from modeling_langcell import LangCellAnnotator, LangCellFeatureExtractor
from modeling_langcell.annotation.device import find_device
from modeling_langcell.checkpoint.builtin import MINI
from modeling_langcell.corpus.build import CorpusSettings, make_corpus
from modeling_langcell.corpus.sources import find_sources
from modeling_langcell.eval.benchmarks import annotation_rate
from modeling_langcell.eval.benchmarks.checkouts import compare_checkouts
from modeling_langcell.eval.benchmarks.first_answer import measure_first_answer
from modeling_langcell.eval.benchmarks.index_recall import measure_index
from modeling_langcell.eval.benchmarks.kernel_choices import measure_choices, measure_mini
from modeling_langcell.eval.benchmarks.memory import GIGABYTE, peak_gb, resident
from modeling_langcell.eval.benchmarks.naive import BATCH
from modeling_langcell.eval.benchmarks.report_opening import open_report
from modeling_langcell.eval.benchmarks.study_run import annotate_study
from modeling_langcell.eval.benchmarks.tokenizing_rate import (
    MAX_LENGTH,
    disagreements,
    memory_of_backed_file,
    published_tokenize,
    synthetic_counts,
    synthetic_vocabulary,
)
from modeling_langcell.eval.benchmarks.training_rate import (
    PAPER_A100_DAYS,
    PAPER_CELLS,
    STAGES,
    Workload,
    days,
    measure,
)
from modeling_langcell.eval.record import write_record
from modeling_langcell.io.h5ad import open_cells
from modeling_langcell.model.errors import InputError
from modeling_langcell.model.ranking import RankedCells
from modeling_langcell.ontology import get_term, usual_in
from modeling_langcell.report.plots import write_figure

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)

JsonFile = Annotated[Path | None, typer.Option("--json", help="File for the figures.")]


@app.callback()
def main() -> None:
    """Measure speed and memory, compared with the published procedures."""


# ---------------------------------------------------------------------- tokenize


@app.command()
def tokenize(
    quick: Annotated[bool, typer.Option(help="Small run that tests the script, not the speed.")] = False,
    n_cells: Annotated[
        int | None, typer.Option("--cells", help="Number of cells; 20,000, or 300 with --quick.")
    ] = None,
    n_genes: Annotated[
        int | None, typer.Option("--genes", help="Number of genes; 20,000, or 1,000 with --quick.")
    ] = None,
    dense_cells: Annotated[int | None, typer.Option(help="Cells per round of the published procedure.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of rounds; 7, or 2 with --quick.")] = None,
    files: Annotated[
        list[int] | None,
        typer.Option("--file", help="Number of cells of a backed file whose memory is measured; can be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the cells.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Measure cells per second and peak memory of ranking genes, compared with the published dense procedure."""
    n_cells, n_genes = n_cells or (300 if quick else 20_000), n_genes or (1_000 if quick else 20_000)
    dense_cells, rounds = dense_cells or (100 if quick else 2_000), rounds or (2 if quick else 7)
    datasets.disable_progress_bars()

    vocabulary, counts = synthetic_vocabulary(n_genes, seed), synthetic_counts(n_cells, n_genes, seed)
    # The matrix's columns are not in the vocabulary's order.
    order = np.random.default_rng(seed).permutation(n_genes)
    gene_ids = [vocabulary["ensembl_ids"][gene] for gene in order]
    extractor = LangCellFeatureExtractor(vocabulary, max_length=MAX_LENGTH)
    token_ids, medians, cls = order + 2, np.array(vocabulary["medians"])[order], n_genes + 2

    def encode(part: sp.csr_matrix) -> list[RankedCells]:
        return list(extractor.stream(part, gene_ids=gene_ids))

    def encode_in_one_thread(part: sp.csr_matrix) -> list[RankedCells]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        ranked = encode(part)
        torch.set_num_threads(threads)
        return ranked

    def publish(part: sp.csr_matrix) -> datasets.Dataset:
        return published_tokenize(part, token_ids, medians, cls)

    for procedure in (encode, encode_in_one_thread, publish):
        procedure(counts[:100])  # The cost of the very first call is not part of the rate.
    rates: dict[str, list[float]] = {"extractor": [], "extractor_one_thread": [], "published": []}
    compared = differing = wrong = 0
    for first in np.arange(rounds) * dense_cells % max(1, n_cells - dense_cells + 1):
        part = counts[first : first + dense_cells]
        published, rate = _rate(publish, part)
        rates["published"].append(rate)
        _, rate = _rate(encode_in_one_thread, counts)
        rates["extractor_one_thread"].append(rate)
        ranked, rate = _rate(encode, counts)
        rates["extractor"].append(rate)
        typer.echo("  ".join(f"{name} {rate[-1]:.0f} cells/s" for name, rate in rates.items()))

        both = RankedCells.concatenate(ranked)
        values = sp.csr_matrix((part.data / medians[part.indices], token_ids[part.indices], part.indptr))
        values.resize(part.shape[0], cls + 1)
        differ, fail = disagreements([both[int(first) + cell] for cell in range(part.shape[0])], published, values)
        compared, differing, wrong = compared + part.shape[0], differing + differ, wrong + fail

    ratios = {
        name: [ours / theirs for ours, theirs in zip(rates[name], rates["published"], strict=True)]
        for name in ("extractor", "extractor_one_thread")
    }
    figures = {
        "cells": n_cells,
        "genes": n_genes,
        "density": counts.nnz / (n_cells * n_genes),
        "published_cells_per_round": min(dense_cells, n_cells),
        "cells_per_second": {name: float(np.median(rate)) for name, rate in rates.items()},
        "cells_per_second_by_round": rates,
        "ratio": float(np.median(ratios["extractor"])),
        "ratio_one_thread": float(np.median(ratios["extractor_one_thread"])),
        "ratio_by_round": ratios,
        "cells_compared": compared,
        "cells_with_ties_in_another_order": differing - wrong,
        "cells_that_differ": wrong,
        "input_gb": (counts.data.nbytes + counts.indices.nbytes + counts.indptr.nbytes) / GIGABYTE,
        "peak_gb_above_input": _peak_memory(counts, n_genes, gene_ids, seed),
    }
    if files:
        figures["backed_files"] = [memory_of_backed_file(cells, n_genes, seed) for cells in files]
        for file in figures["backed_files"]:
            typer.echo(f"backed file of {file['cells']:,} cells, {file['file_gb']:.2f} GB: peak GB {file['peak_gb']}")
    typer.echo(
        f"{figures['ratio']:.1f} times the published rate ({figures['ratio_one_thread']:.1f} in one thread); "
        f"{wrong} of {compared} cells differ; "
        f"peak GB above the input: {figures['peak_gb_above_input']}"
    )
    write_record(json_file, {"seed": seed, **figures})
    if wrong:
        raise typer.Exit(1)


def _rate(procedure: Callable[[sp.csr_matrix], Any], cells: sp.csr_matrix) -> tuple[Any, float]:
    """Returns the procedure's result for the cells, and the cells per second."""
    start = time.perf_counter()
    result = procedure(cells)
    return result, cells.shape[0] / (time.perf_counter() - start)


# ---------------------------------------------------------------------- memory


def _peak_memory(counts: sp.csr_matrix, n_genes: int, gene_ids: list[str], seed: int) -> dict[str, float] | None:
    """Returns the peak GB above the input when a fresh process encodes it; None if the system does not report it."""
    if resident("VmHWM") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        for name in ("data", "indices", "indptr"):
            np.save(Path(folder) / f"{name}.npy", getattr(counts, name))
        (Path(folder) / "gene_ids.json").write_text(json.dumps(gene_ids))
        child = [sys.executable, str(Path(__file__)), "memory", folder, str(n_genes), str(seed)]
        return json.loads(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)


@app.command(hidden=True)
def memory(folder: Path, n_genes: int, seed: int) -> None:
    """Measure the memory, above the input, of encoding it in this process: streamed, then as one padded batch."""
    data, indices, indptr = (np.load(folder / f"{name}.npy") for name in ("data", "indices", "indptr"))
    counts = sp.csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, n_genes))
    gene_ids = json.loads((folder / "gene_ids.json").read_text())
    extractor = LangCellFeatureExtractor(synthetic_vocabulary(n_genes, seed), max_length=MAX_LENGTH)
    before = resident("VmRSS")
    peak = {}
    ranked = list(extractor.stream(counts, gene_ids=gene_ids))
    peak["stream"] = (resident("VmHWM") - before) / GIGABYTE
    del ranked
    extractor(counts, gene_ids=gene_ids, return_tensors="np")
    peak["batch"] = (resident("VmHWM") - before) / GIGABYTE
    typer.echo(json.dumps(peak))


# ---------------------------------------------------------------------- corpus


@app.command()
def corpus(
    cells: Annotated[
        list[int] | None,
        typer.Option(help="Number of cells; can be repeated. By default 5,000, 15,000 and 50,000."),
    ] = None,
    n_genes: Annotated[int, typer.Option("--genes", help="Number of genes.")] = 20_000,
    chunk_cells: Annotated[int, typer.Option(help="Number of cells in a shard.")] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the cells.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Measure the peak memory of making a corpus of synthetic cells, each time in a fresh process."""
    peaks, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        gene_info = Path(folder) / "gene_info.tsv"
        lines = ["Symbol\tSynonyms\tdbXrefs\tdescription"]
        lines += [f"GENE{gene}\t-\tEnsembl:ENSG{gene:011d}\tgene {gene}" for gene in range(n_genes)]
        gene_info.write_text("\n".join(lines) + "\n")
        for n_cells in cells or (5_000, 15_000, 50_000):
            adata = ad.AnnData(synthetic_counts(n_cells, n_genes, seed))
            adata.var_names = [f"ENSG{gene:011d}" for gene in range(n_genes)]
            adata.write_h5ad(Path(folder) / "cells.h5ad")
            del adata
            out = str(Path(folder) / f"corpus{n_cells}")
            child = [
                sys.executable,
                str(Path(__file__)),
                "corpus-memory",
                folder,
                str(gene_info),
                out,
                str(chunk_cells),
            ]
            start = time.perf_counter()
            peaks[n_cells] = float(subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True).stdout)
            seconds[n_cells] = time.perf_counter() - start
            typer.echo(f"{n_cells:,} cells: peak {peaks[n_cells]:.2f} GB, {seconds[n_cells]:.0f} s")
    figures = {"genes": n_genes, "chunk_cells": chunk_cells, "peak_gb": peaks, "seconds": seconds}
    write_record(json_file, {"seed": seed, **figures})


@app.command(hidden=True)
def corpus_memory(sources: Path, gene_info: str, out: Path, chunk_cells: int) -> None:
    """Make a corpus of `cells.h5ad` and print the peak memory of this process in GB."""
    make_corpus(find_sources([str(sources / "cells.h5ad")]), out, CorpusSettings(gene_info, chunk_cells=chunk_cells))
    typer.echo(resident("VmHWM") / GIGABYTE)


# ---------------------------------------------------------------------- annotate, match

Cells = Annotated[Path, typer.Option("--cells", help="An .h5ad file of real cells.")]
PBMC = Path("../shared/data/validation/pbmc_kang_ctrl.h5ad")
Rounds = Annotated[int, typer.Option(min=1, help="Number of rounds; each measures all procedures in turn.")]
Device = Annotated[str | None, typer.Option(help="Device, such as cpu or cuda; the best one by default.")]


@app.command()
def annotate(
    quick: Annotated[
        bool,
        typer.Option("--quick", help="Run of less than eight minutes on two cores: 8 and 128 candidates, one round."),
    ] = False,
    cells_file: Cells = PBMC,
    rounds: Annotated[int | None, typer.Option(min=1, help="Number of rounds; 3, or 1 with --quick.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of weights, cells and candidates.")] = 0,
    device: Device = None,
    json_file: JsonFile = None,
    figure_file: Annotated[Path | None, typer.Option("--figure", help="File for the figure.")] = None,
) -> None:
    """Measure annotated cells per second, compared with the public loop, by candidates and by length of the cells."""
    start = time.perf_counter()

    def say(text: str) -> None:
        typer.echo(f"{time.perf_counter() - start:5.0f} s  {text}")

    context = _context(cells_file, device, seed)
    gpu = context.device.type == "cuda"
    every, rounds = len(context.descriptions), rounds or (1 if quick else 3)
    # Cells per round by number of candidates: fewer where each cell has more pairs.
    exact = {8: 8, 128: 2} if quick else {8: 32, 32: 8, 128: 4, 1024: 2, every: 1}
    short = {128: 8} if quick else {32: 16, 128: 16, 1024: 16, every: 16}
    if gpu:  # A GPU is fast enough for the whole batch.
        exact, short = dict.fromkeys(exact, 32), dict.fromkeys(short, 32)
    settings = [
        annotation_rate.Setting(candidates, shortlist, precision, cells)
        for precision in annotation_rate.fast_on(context.device)
        for shortlist, sizes in ((None, exact), (16, short))
        for candidates, cells in sizes.items()
    ]
    figures: dict[str, Any] = {
        "cells": cells_file.name,
        "genes_of_a_cell": {"mean": float(context.ranked.lengths.mean()), "longest": int(context.ranked.lengths.max())},
        "tokens_of_a_text": float(np.mean([len(text) for text in context.texts(128)])),
        "device": _device_name(context.device),
        "largest_difference": {
            n: annotation_rate.largest_difference(context, n, 2) for n in ((8,) if quick else (8, 128))
        },
    }
    timed = (2, 8) if quick else (5, BATCH)
    figures |= annotation_rate.measure_annotation(context, settings, rounds, *timed, say)
    lengths = (512,) if quick else (128, 256, 512, 1024, 2048)
    figures["cell_tower"] = annotation_rate.measure_cell_tower(context, lengths, 1 if quick else rounds)
    figures["ratio"] = next(
        way["ratio"] for way in figures["ways"] if (way["candidates"], way["way"]) == (8, "float32")
    )
    figures["mini"] = annotation_rate.agreement_of_mini(cells_file, 128, 16, 16 if quick else 400, seed, context.device)
    figures |= {"peak_gb": _peak_gb(context.device), "seconds": time.perf_counter() - start}
    say("measured")
    for way in figures["ways"]:
        more = ""
        if way["shortlist"] is None:
            more = f", {way['share_of_floor']:.0%} of the floor; same answer for {way['same_answer']:.1%}"
        typer.echo(
            f"{way['candidates']:>6,} candidates, {way['way']:<26} {way['cells_per_second']:8.3g} cells/s, "
            f"{way['ratio']:6.1f} times the naive rate{more}"
        )
    for way, same in figures["mini"]["same_answer"].items():
        typer.echo(f"langcell-mini, 128 candidates, {way}: same answer as exact single precision for {same:.1%}")
    if not gpu:
        typer.echo("No GPU: with one, every round takes 32 cells, and the cell tower 65,536 genes.")
    typer.echo(f"Largest difference from the naive scores, by candidates: {figures['largest_difference']}")
    write_record(json_file, {"seed": seed, **figures})
    if figure_file is not None:
        write_figure(annotation_rate.draw(figures), figure_file, 110)


@app.command()
def match(
    quick: Annotated[bool, typer.Option("--quick", help="Small run with fewer pairs.")] = False,
    cells_file: Cells = PBMC,
    candidates: Annotated[int, typer.Option(help="Number of descriptions.")] = 32,
    rounds: Rounds = 3,
    seed: Annotated[int, typer.Option(help="Seed of weights, cells and candidates.")] = 0,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """Measure matched pairs of a cell and a text per second, compared with the public loop."""
    context = _context(cells_file, device, seed)
    figures = annotation_rate.measure_matching(context, candidates, rounds, 2 if quick else 5, 4 if quick else 16)
    for way, ratio in figures["ratios"].items():
        typer.echo(f"{way}: {figures['pairs_per_second'][way]:.3g} pairs/s, {ratio:.1f} times the naive rate")
    figures |= {"device": _device_name(context.device), "peak_gb": _peak_gb(context.device)}
    write_record(json_file, {"seed": seed, "cells": cells_file.name, **figures})


@app.command()
def kernels(
    cells_file: Cells = PBMC,
    length: Annotated[int, typer.Option(help="Number of genes in a cell.")] = 512,
    rounds: Rounds = 5,
    seed: Annotated[int, typer.Option(help="Seed of weights and cells.")] = 0,
    device: Device = None,
    json_file: JsonFile = None,
) -> None:
    """
    Measure the cell tower compiled, in half precision and with int8 weights, and langcell-mini with these weights: the
    reasons for the defaults.
    """
    context = _context(cells_file, device, seed)
    figures = measure_choices(context, length, rounds)
    for way, one in figures["ways"].items():
        typer.echo(f"{way:<22} {one['ratio']:5.2f} times the naive rate, cosine at least {one['cosine']:.4f}")
    figures["mini"] = measure_mini(ad.read_h5ad(cells_file), _types_of_blood(), context.device, rounds)
    for way, one in figures["mini"].items():
        typer.echo(
            f"langcell-mini, {way}: {one['ratio']:.2f} times the rate of float32, the same label for "
            f"{one['same_label']:.1%}, cosine at least {one['cosine']:.4f}"
        )
    write_record(json_file, {"seed": seed, **figures})


@app.command()
def markers(
    cells_file: Cells = PBMC,
    candidates: Annotated[int, typer.Option(help="Number of candidates, from the catalogue's types of blood.")] = 72,
    rounds: Rounds = 9,
    json_file: JsonFile = None,
) -> None:
    """Measure what marker genes add to the time of annotating with langcell-mini, from reading the counts on."""
    annotator, adata = LangCellAnnotator.from_pretrained(MINI), ad.read_h5ad(cells_file)
    labels = [get_term(one.id).name for one in usual_in(["blood"])][:candidates]

    def seconds(marker_weight: float | None) -> float:
        copied, start = adata.copy(), time.perf_counter()
        annotator.annotate(copied, labels, marker_weight=marker_weight)
        return time.perf_counter() - start

    seconds(None)  # The first run also fills caches.
    pairs = [{"without": seconds(0), "with": seconds(None)} for _ in range(rounds)]
    ratio = float(np.median([pair["with"] / pair["without"] for pair in pairs]))
    typer.echo(f"{adata.n_obs} cells, {len(labels)} candidates: {ratio:.3f} times the time without markers")
    about = {"cells": adata.n_obs, "candidates": len(labels), "file": cells_file.name}
    write_record(json_file, about | {"ratio": ratio, "seconds": pairs})


@app.command()
def checkouts(
    before: Annotated[Path, typer.Option(help="Folder of the other checkout, such as a git worktree.")],
    cells_file: Cells = PBMC,
    n_cells: Annotated[int, typer.Option("--drawn", help="Number of cells that are drawn for each round.")] = 300,
    rounds: Rounds = 9,
    json_file: JsonFile = None,
) -> None:
    """Measure this checkout against another one, in turn: the rates of annotating with langcell-mini."""
    found = compare_checkouts(before, cells_file, _types_of_blood(), rounds, n_cells)
    for way, ratio in found["ratio"].items():
        typer.echo(f"{way}: {ratio:.3f} times the rate before")
    commits = {
        name: subprocess.check_output(["git", "-C", str(folder), "rev-parse", "HEAD"], text=True).strip()
        for name, folder in (("before", before), ("after", Path()))
    }
    write_record(json_file, {"commits": commits, "file": cells_file.name, **found})


@app.command("first")
def first_answer(
    cells_file: Cells = PBMC,
    rounds: Rounds = 5,
    before: Annotated[Path | None, typer.Option(help="Folder of another checkout, to compare with.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Measure how long the command takes for one file, from its start on, beside the imports that it needs."""
    found = measure_first_answer(cells_file, rounds, before)
    for way, by_checkout in found.items():
        for name in ("before", "after"):
            if name in by_checkout:
                one = by_checkout[name]
                typer.echo(f"{way}, {name}: {one['cpu_seconds']:.1f} s of CPU, {one['seconds']:.1f} s")
    write_record(json_file, {"cells": cells_file.name, "rounds": rounds, "ways": found})


def _context(cells: Path, device: str | None, seed: int) -> annotation_rate.BenchmarkContext:
    try:
        return annotation_rate.BenchmarkContext(cells, find_device(device), seed)
    except InputError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(2) from error


def _device_name(device: torch.device) -> str | None:
    """Returns the name of a GPU; a record names the CPU anyway."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else None


def _peak_gb(device: torch.device) -> float | None:
    """Returns the peak use of the device's own memory."""
    return torch.cuda.max_memory_allocated(device) / GIGABYTE if device.type == "cuda" else peak_gb()


# ---------------------------------------------------------------------- study


@app.command()
def study(
    quick: Annotated[bool, typer.Option("--quick", help="Small run with 20,000 cells.")] = False,
    cells_file: Cells = Path("../shared/data/train/pbmc_facs_zheng.h5ad"),
    n_cells: Annotated[
        int | None,
        typer.Option("--number", help="Number of cells, repeated from the file; 100,000 by default."),
    ] = None,
    kill_at: Annotated[
        list[float] | None,
        typer.Option(help="Share of the cells after which a run is killed; can be repeated. At half by default."),
    ] = None,
    unbroken: Annotated[
        bool, typer.Option("--unbroken", help="Compare the output with that of a run without a kill.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Annotate a large study with langcell-mini and the command, which is killed and run again."""
    n_cells = n_cells or (20_000 if quick else 100_000)
    figures = annotate_study(cells_file, n_cells, _known_types(cells_file), kill_at or [0.5], unbroken)
    runs = {f"run {number}": run for number, run in enumerate(figures["runs"], 1)}
    runs |= {"unbroken run": figures["unbroken"]} if unbroken else {}
    for name, run in runs.items():
        typer.echo(
            f"{name}: {run['seconds']:.0f} s, {run['cells_done']:,} of {n_cells:,} cells done, "
            f"peak {run['peak_gb']:.2f} GB, {run['disk_gb']:.2f} GB on disk, ended by {run['ended_by']}"
        )
    typer.echo(f"equal cells with equal answers: {figures['equal_cells_get_equal_answers']:.2%}")
    if unbroken:
        typer.echo(f"identical to the unbroken run: {figures['is_identical']}")
    write_record(json_file, {"source": cells_file.name, **figures})


@app.command()
def index(
    cells_file: Cells = Path("../shared/data/train/pbmc_facs_zheng.h5ad"),
    n_cells: Annotated[int, typer.Option("--number", help="Number of embeddings.")] = 1_000_000,
    queries: Annotated[int, typer.Option(help="Number of texts.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed of embeddings and texts.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Measure time, memory and recall of the index that searches many cells, compared with looking at all of them."""
    figures = measure_index(cells_file, n_cells, queries, seed)
    for way in ("exact", "index"):
        one = figures[way]
        typer.echo(
            f"{way}: built in {one['building']:.0f} s, a query in {1000 * one['query']:.1f} ms, "
            f"{one['peak_gb']:.2f} GB besides the embeddings"
        )
    typer.echo(f"recall of the {figures['queries']} queries' nearest 20: {figures['recall']:.1%}")
    write_record(json_file, {"seed": seed, "source": cells_file.name, **figures})


@app.command()
def report(
    cells_file: Cells = Path("../shared/data/train/pbmc_facs_zheng.h5ad"),
    n_cells: Annotated[int, typer.Option("--number", help="Number of cells, copies of those of the file.")] = 100_000,
    rounds: Annotated[int, typer.Option(help="Number of times that the report is opened.")] = 5,
    keep: Annotated[Path | None, typer.Option(help="File for the report.")] = None,
    json_file: JsonFile = None,
) -> None:
    """Annotate 100,000 cells by cluster with a report, and measure its size and how long Chromium takes to open it."""
    figures = open_report(cells_file, n_cells, _known_types(cells_file), rounds, keep)
    typer.echo(
        f"report of {n_cells:,} cells: {figures['report_mb']:.2f} MB, opened in "
        f"{np.median(figures['opened_in_seconds']):.2f} s (at most {max(figures['opened_in_seconds']):.2f} s)"
    )
    write_record(json_file, {"source": cells_file.name, **figures})


def _types_of_blood() -> list[str]:
    """Returns the first eight types that the catalogue has for blood."""
    return [get_term(one.id).name for one in usual_in(["blood"])][:8]


def _known_types(cells_file: Path) -> list[str]:
    types = open_cells(cells_file).obs["cell_type"].astype(str).unique()
    return sorted({label for label in types if label != "unknown"})


# ---------------------------------------------------------------------- train


@app.command()
def train(
    quick: Annotated[
        bool, typer.Option(help="Run with few and short cells that tests the script, not the speed.")
    ] = False,
    geometry: Annotated[list[str] | None, typer.Option(help="mini or base; can be repeated. Both by default.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Number of measured steps; 3, or 2 with --quick.")] = None,
    compile_towers: Annotated[bool, typer.Option("--compile", help="Compile the towers.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of weights and cells.")] = 0,
    json_file: JsonFile = None,
) -> None:
    """Measure pre-training steps of both stages and geometries, and estimate the days of the paper's run."""
    gpu = torch.cuda.is_available()
    sizes = {"mini": (64, 512, 32, 64), "base": (2, 2048, 2, 128)}
    if gpu:  # Large steps keep it busy: these sizes fill most of 80 GB, and shrink with the memory.
        share = min(1.0, torch.cuda.get_device_properties(0).total_memory / 72e9)
        cells, mini_cells = int(32 * share), int(512 * share)
        sizes = {"mini": (mini_cells, 512, mini_cells // 2, 64), "base": (cells, 2048, cells, 128)}
    if quick:
        sizes = {"mini": (8, 64, 4, 16), "base": (2, 64, 2, 16)}
    figures: dict[str, Any] = {"geometries": {}, "paper": {"cells": PAPER_CELLS, "a100_days": PAPER_A100_DAYS}}
    for name in geometry or sizes:
        found = {}
        for stage in STAGES:
            workload = Workload(name, *sizes[name])
            found[stage] = measure(workload, stage, rounds or (2 if quick else 3), seed, compile_towers)
            typer.echo(
                f"{name} {stage}: {found[stage]['cells_per_second']:.3g} cells/s, "
                f"{found[stage]['genes_per_second']:.3g} genes/s, utilisation {found[stage]['utilisation']:.0%} of "
                f"{found[stage]['machine_teraflops']:.3g} TFLOP/s"
            )
        paper_days = days({stage: figure["cells_per_second"] for stage, figure in found.items()})
        figures["geometries"][name] = {"stages": found, "days_for_the_papers_cells": paper_days}
        typer.echo(
            f"{name}: {PAPER_CELLS:,} cells, once through each stage, would take {paper_days:.3g} days on this "
            f"machine; the paper's run took {PAPER_A100_DAYS} A100-days"
        )
    figures["device"] = torch.cuda.get_device_name() if gpu else None
    write_record(json_file, {"seed": seed, **figures})


if __name__ == "__main__":
    app()
