# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The command that annotates cells: its options, its steps and its output."""

import shlex
import sys
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import modeling_langcell as langcell

from .. import annotation, io, ontology, report
from ..io.columns import RUN, require_column, require_own_column
from ..io.file_kinds import CELLS, FIGURE, PAGE, TABLE
from ..model.errors import InputError
from .labels import Candidates, read_candidates
from .options import (
    ANNOTATING,
    CELLS_HELP,
    RESULTS,
    SCORING,
    AcceptText,
    Adapter,
    AsJson,
    BatchTokens,
    Counts,
    Device,
    Dtype,
    EmptyCells,
    GeneColumn,
    Labels,
    Layer,
    Markers,
    MarkerWeight,
    NoMarkers,
    OntologyRoot,
    OptionalModel,
    Organism,
    Revision,
    Tissue,
    UseRaw,
    cell_options,
    examples,
    existing_cells,
    loading_options,
)
from .paths import Reads, Writes
from .terminal import say, say_json, say_resumed

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

app = typer.Typer()


def parse_shortlist(text: str) -> int | Literal["auto"] | None:
    """
    Returns the shortlist as an argument of the package, where None means all candidates.

    Raises:
        BadParameter: The text is neither a positive number, nor `auto`, nor `all`.
    """
    if text == "auto":
        return "auto"
    if text == "all":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise typer.BadParameter(f"{text!r} is not a number of candidates, 'auto' or 'all'.")


def annotated_file(out: Path | str | None, values: Mapping[str, Any]) -> list[Path]:
    """Returns the file that an annotation writes: by default it lies next to the input, and the example has none."""
    if out is not None:
        return [Path(out)]
    if values["cells"] is None:
        return []
    cells = Path(values["cells"])
    cells = cells if cells.name else cells.absolute()  # "." has a name, too.
    return [cells.with_name(f"{cells.stem}_langcell.h5ad")]


InputOrExample = Annotated[
    Path | None, typer.Argument(metavar="INPUT", help=CELLS_HELP, callback=existing_cells), Reads()
]
Example = Annotated[bool, typer.Option("--example", help="Annotate the 700 blood cells that scanpy ships.")]
Out = Annotated[
    Path | None,
    typer.Option(help="The annotated .h5ad file.", show_default="INPUT_langcell.h5ad", rich_help_panel=RESULTS),
    Writes(annotated_file, CELLS, may_be="cells"),
]
Report = Annotated[
    Path | None, typer.Option(help="HTML report of the results.", rich_help_panel=RESULTS), Writes(kind=PAGE)
]
ReportGenes = Annotated[
    int,
    typer.Option(
        help="Number of cells per label whose driving genes the report shows; 0 for none.",
        min=0,
        rich_help_panel=RESULTS,
    ),
]
SampleKey = Annotated[
    str | None,
    typer.Option(
        help="Column of obs with samples or donors, whose compositions the report compares.", rich_help_panel=RESULTS
    ),
]
ResultFigure = Annotated[
    Path | None,
    typer.Option(help="Figure of the results: .png, .pdf or .svg.", rich_help_panel=RESULTS),
    Writes(kind=FIGURE),
]
ResultTable = Annotated[
    Path | None,
    typer.Option(
        "--table", help="Table of the results, a row for each cell: .csv, .tsv or .xlsx.", rich_help_panel=RESULTS
    ),
    Writes(kind=TABLE),
]
Reference = Annotated[
    str | None,
    typer.Option(help="Column of obs with known labels to compare the results with.", rich_help_panel=RESULTS),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Weight of the similarity against the matching, from 0 to 1; 1 leaves out the matching.",
        show_default="the checkpoint's",
        rich_help_panel=SCORING,
    ),
]
Shortlist = Annotated[
    Any,
    typer.Option(
        parser=parse_shortlist,
        metavar="NUMBER|auto|all",
        help="Number of candidates, the most similar ones, that the matching scores for each cell.",
        rich_help_panel=SCORING,
    ),
]
CheckShortlist = Annotated[
    int,
    typer.Option(
        help="Score this many cells against all candidates as well, and report how often the shortlist agrees.",
        min=0,
        rich_help_panel=SCORING,
    ),
]
ErrorRate = Annotated[
    float | None,
    typer.Option(
        help="Accepted share of wrong answers; a lower one gives broader types, or 'unknown'. For calibrated "
        "checkpoints.",
        show_default="0.1",
        rich_help_panel=SCORING,
    ),
]
ClusterKey = Annotated[
    str | None,
    typer.Option(
        help="Column of obs with clusters, each of which gets one label by all its cells.", rich_help_panel=SCORING
    ),
]
Cluster = Annotated[
    bool,
    typer.Option(
        "--cluster", help="Make small clusters of the cells, each of which gets one label.", rich_help_panel=SCORING
    ),
]
Smooth = Annotated[
    bool,
    typer.Option(
        "--smooth",
        help="Average each cell's scores with those of its neighbours in gene expression, from 500 cells on.",
        rich_help_panel=SCORING,
    ),
]


@dataclass(frozen=True)
class AnnotateOptions:
    """
    Options of `langcell annotate`.

    Args:
        cells: The input file. None for the example.
        labels: Candidates, or the file that holds them.
        ontology_root: Cell Ontology term above all candidates.
        markers: File of the candidates' genes.
        out: The annotated file. None if the annotated example is not written.
        report: The HTML report.
        report_genes: Number of cells per label whose driving genes the report shows.
        sample_key: Column of `obs` with samples, which the report compares.
        figure: The figure.
        table: The table of cells.
        reference: Column of `obs` with known labels.
        as_json: True to print the results as JSON.
        loading: Arguments of `LangCellAnnotator.from_pretrained`.
        reading: Arguments that say how the cells are read.
        scoring: Arguments that say how labels are chosen.
    """

    cells: Path | None
    labels: str | None
    ontology_root: str | None
    markers: Path | None
    out: Path | None
    report: Path | None
    report_genes: int
    sample_key: str | None
    figure: Path | None
    table: Path | None
    reference: str | None
    as_json: bool
    loading: Mapping[str, Any]
    reading: Mapping[str, Any]
    scoring: Mapping[str, Any]

    def with_defaults(self) -> "AnnotateOptions":
        """Returns the options with the output next to the input, or with everything that the example needs."""
        if self.cells is not None:
            return replace(self, out=annotated_file(self.out, {"cells": self.cells})[0])
        own_labels = self.loading["adapter"] is not None
        known = None if own_labels else io.example.MAIN_TYPE_COLUMN
        return replace(self, reference=self.reference or known, reading={**self.reading, **io.example.CELL_OPTIONS})

    def open_cells(self) -> "AbstractContextManager[AnnData]":
        """Opens the input, whose matrix stays on disk, or loads the example."""
        return nullcontext(io.example.load_example()) if self.cells is None else io.open_lightly(self.cells)


@dataclass(frozen=True)
class AnnotationResult:
    """
    A finished annotation.

    Args:
        adata: The annotated cells; those of a file without their matrix.
        done_before: Number of cells that an earlier, interrupted run annotated.
        file: The annotated file. None if it is not written.
    """

    adata: "AnnData"
    done_before: int
    file: Path | None


@app.command(
    rich_help_panel=ANNOTATING,
    epilog=examples(
        "langcell annotate cells.h5ad --cluster --report report.html",
        'langcell annotate cells.h5ad --labels "B cell;monocyte;T cell" --table cells.xlsx',
        "langcell annotate cells.h5ad --tissue blood --sample-key donor_id --report report.html",
    ),
)
def annotate(
    cells: InputOrExample = None,
    example: Example = False,
    model: OptionalModel = None,
    revision: Revision = None,
    adapter: Adapter = None,
    labels: Labels = None,
    ontology_root: OntologyRoot = None,
    tissue: Tissue = None,
    markers: Markers = None,
    no_markers: NoMarkers = False,
    accept_text: AcceptText = False,
    out: Out = None,
    report: Report = None,
    report_genes: ReportGenes = 10,
    sample_key: SampleKey = None,
    figure: ResultFigure = None,
    table: ResultTable = None,
    reference: Reference = None,
    alpha: Alpha = None,
    marker_weight: MarkerWeight = None,
    shortlist: Shortlist = "auto",
    check_shortlist: CheckShortlist = 0,
    error_rate: ErrorRate = None,
    cluster_key: ClusterKey = None,
    cluster: Cluster = False,
    smooth: Smooth = False,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    empty_cells: EmptyCells = "error",
    device: Device = None,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = None,
    as_json: AsJson = False,
) -> None:
    """
    Find the candidate that describes each cell best, without training labels. Candidates are those of --labels or
    --ontology-root, or an adapter's labels, or else the cell types that the catalogue has for the tissue ('langcell
    labels'). If --tissue does not name it, the markers of the cells tell it.

    The same command resumes a run that was killed. Under 'accelerate launch' several processes share one file.
    """
    if example == (cells is not None):
        raise InputError("Give either an INPUT or --example.")
    loading = loading_options(model, adapter, revision, device=device, dtype=dtype, batch_tokens=batch_tokens)
    reading = cell_options(layer, use_raw, gene_column, organism, counts) | {"empty_cells": empty_cells}
    scoring = {"alpha": alpha, "shortlist": shortlist, "check": check_shortlist}
    scoring |= {"error_rate": error_rate, "marker_weight": marker_weight}
    scoring |= {"cluster_key": cluster_key, "cluster": cluster, "smooth": smooth}
    scoring |= {"tissue": tissue or None, "with_markers": not no_markers, "accept_text": accept_text}
    results = (out, report, report_genes, sample_key, figure, table, reference, as_json)
    options = AnnotateOptions(cells, labels, ontology_root, markers, *results, loading, reading, scoring)
    run_annotation(options.with_defaults())


def run_annotation(options: AnnotateOptions) -> None:
    """Carries out `langcell annotate`: checks, annotates, examines the input, writes, and prints."""
    candidates = read_candidates(options.labels, options.ontology_root, options.markers)
    if candidates is None and options.scoring["tissue"] is not None:
        ontology.usual_in(options.scoring["tissue"])
    check_cells(options)
    annotator = langcell.LangCellAnnotator.from_pretrained(**options.loading)
    if annotator.adaptation is None and options.cells is None and options.scoring["tissue"] is None:
        candidates = candidates or sorted({*io.example.MAIN_TYPES.values()})
    result = annotate_cells(annotator, options, candidates)
    if result is None:
        return  # The first of several processes reports for all.
    options, not_compared = check_reference(options, result.adata)
    written = {} if result.file is None else {"annotated": result.file}
    with options.open_cells() as cells:
        quality = annotation.examine(annotator.processor.feature_extractor, cells, result.adata)
        written |= write_pages(annotator, options, cells, result.adata, quality)
    if options.table is not None:
        langcell.to_table(result.adata, options.table)
        written["table"] = options.table
    facts = summarize(options, result) | ({} if not_compared is None else {"not_compared": not_compared})
    if options.as_json:
        print_json(written, facts, quality)
    else:
        print_text(options, result.adata, written, facts, quality)


def check_cells(options: AnnotateOptions) -> None:
    """
    Checks that the input can be read.

    Raises:
        InputError: The input cannot be read, or does not have the named columns of known labels, samples and clusters.
    """
    cluster_key = options.scoring["cluster_key"]
    with options.open_cells() as cells:
        if options.reference is not None:
            require_own_column(options.reference)
            require_column(cells.obs, options.reference)
        if options.sample_key is not None:
            require_column(cells.obs, options.sample_key)
        if options.table is not None:
            io.require_room(options.table, cells.n_obs)
        if cluster_key is not None:
            annotation.require_clusters(cells.obs, cluster_key)


def check_reference(options: AnnotateOptions, annotated: "AnnData") -> tuple[AnnotateOptions, str | None]:
    """
    Returns the options without a reference that the annotation cannot be compared with, and the reason. A useless
    comparison must not cost the results.
    """
    if options.reference is None:
        return options, None
    try:
        annotation.compare(annotated, options.reference)
    except InputError as error:
        return replace(options, reference=None), f"Not compared with {options.reference}. {error}"
    return options, None


def annotate_cells(
    annotator: "langcell.LangCellAnnotator", options: AnnotateOptions, candidates: Candidates | None
) -> AnnotationResult | None:
    """Annotates the input; returns None in every process except the first."""
    if options.cells is None:
        adata = annotator.annotate(io.example.load_example(), candidates, **options.reading, **options.scoring)
        return AnnotationResult(adata, 0, None if options.out is None else io.write_annotated(adata, options.out))
    assert options.out is not None
    done_before = 0

    def note_resumed(done: int) -> None:
        nonlocal done_before
        done_before = done
        if not options.as_json:
            say_resumed(done)

    file = langcell.annotate_file(
        annotator,
        options.cells,
        options.out,
        candidates,
        resumed=note_resumed,
        **options.reading,
        **options.scoring,
    )
    if file is None:
        return None
    pages = options.report is not None or options.figure is not None
    return AnnotationResult(io.read_annotation(file, embeds=pages), done_before, file)


def write_pages(
    annotator: "langcell.LangCellAnnotator",
    options: AnnotateOptions,
    cells: "AnnData",
    annotated: "AnnData",
    quality: "annotation.InputQuality",
) -> dict[str, Path]:
    """Writes the requested figure and report; returns their paths."""
    if options.figure is None and options.report is None:
        return {}
    written, layout = {}, report.lay_out(annotated)
    if options.figure is not None:
        written["figure"] = report.write_figure(report.draw(annotated, layout, options.reference), options.figure)
    if options.report is not None:
        extractor = annotator.processor.feature_extractor
        written["report"] = langcell.write_report(
            annotated,
            options.report,
            layout,
            quality=quality,
            genes=explain_labels(annotator, options, cells, annotated),
            expressed=annotation.express_markers(extractor, cells, annotated, layout.rows),
            reference=options.reference,
            sample_key=options.sample_key,
            name="700 blood cells, the example" if options.cells is None else options.cells.name,
            command=shlex.join(["langcell", *sys.argv[1:]]),
        )
    return written


def explain_labels(
    annotator: "langcell.LangCellAnnotator", options: AnnotateOptions, cells: "AnnData", annotated: "AnnData"
) -> "pd.DataFrame | None":
    """Finds the driving genes that the report shows; None if it shows none."""
    if options.report_genes == 0:
        return None
    reading = {name: value for name, value in options.reading.items() if name != "empty_cells"}
    return annotation.explain_annotated(annotator, cells, annotated, cells_per_label=options.report_genes, **reading)


def summarize(options: AnnotateOptions, result: AnnotationResult) -> dict[str, Any]:
    """Returns the results of an annotation as facts, most of them counts of cells."""
    adata, run = result.adata, result.adata.uns[RUN]
    answers = annotation.count_answers(adata.obs)
    clusters = annotation.count_clusters(adata.obs, str(run["cluster_key"])) if "cluster_key" in run else None
    return {
        "cells": adata.n_obs,
        "cells_done_before": result.done_before,
        "labels": {str(label): int(cells) for label, cells in annotation.best_labels(adata).value_counts().items()},
        "answers": {"error_rate": float(run["error_rate"]), "cells": answers} if answers else None,
        "unknown": annotation.count_unknown(adata.obs),
        "clusters": clusters,
        "shortlist": summarize_shortlist(run),
        "agreement": None if options.reference is None else annotation.agreement(adata, options.reference),
        "input": run["input"],
    }


def summarize_shortlist(run: Mapping[str, Any]) -> dict[str, float] | None:
    """
    Returns the number of candidates that the matching scored, the share of cells for which that is proven to be enough,
    and the agreement of a check. None where the matching scored all candidates.
    """
    if "shortlist" not in run:
        return None
    facts: dict[str, float] = {"read": int(run["shortlist"]), "candidates": len(run["labels"])}
    if "prototype_weight" not in run:  # Prototypes add to the scores, so nothing is proven.
        facts["proven"] = float(run["proven"])
    if run["checked"]:
        facts |= {"checked": int(run["checked"]), "agreement": float(run["agreement"])}
    return facts


def print_json(written: Mapping[str, Path], facts: Mapping[str, Any], quality: "annotation.InputQuality") -> None:
    """Prints the results as one line of JSON."""
    cautions = [str(caution) for caution in quality.cautions]
    say_json({**written, **facts, "cautions": cautions})


def print_text(
    options: AnnotateOptions,
    annotated: "AnnData",
    written: Mapping[str, Path],
    facts: Mapping[str, Any],
    quality: "annotation.InputQuality",
) -> None:
    """Prints the results for people."""
    if options.cells is None:
        for sentence in io.example.CAPTION:
            say(sentence)
    say(annotation.describe_input(annotated))
    if facts["shortlist"] is not None:
        say(shortlist_sentences(facts["shortlist"]))
    for label, cells in facts["labels"].items():
        if cells:
            say(f"{cells:>8,}  {label}")
    if facts["answers"] is not None:
        say(f"Answers {annotation.describe_error_rate(annotated.uns[RUN])}:")
        for answer in facts["answers"]["cells"]:
            say(f"{answer['cells']:>8,}  {answer['answer']}" + (f" ({answer['id']})" if answer["id"] else ""))
        if facts["unknown"]:
            say(f"Unknown cells: {annotation.describe_unknown(facts['unknown'])}.")
    if facts["clusters"] is not None:
        say(f"By {annotated.uns[RUN]['cluster_key']}:")
        for cluster, found in facts["clusters"].items():
            say(f"{found['cells']:>8,}  {cluster}: {cluster_words(found)}")
    if options.reference is not None:
        for sentence in annotation.describe_agreement(facts["agreement"], options.reference):
            say(sentence)
    if "not_compared" in facts:
        say(facts["not_compared"])
    for caution in quality.cautions:
        say(f"Caution: {caution.on_command_line()}")
    for name, path in written.items():
        say(f"{name.capitalize()}: {path}")


def cluster_words(found: Mapping[str, Any]) -> str:
    """Returns the label of a cluster in words, with what speaks for it and against it."""
    if found["label"] is None:
        return "no label (no known genes)"
    answered = "" if found["answer"] in (None, found["label"]) else f"answer: {found['answer']}, "
    words = f"{found['label']} ({answered}{found['agreement']:.0%} of its cells"
    if found["second"] is not None:
        words += f"; second: {found['second']}"
    return words + ("; looks like two types)" if found["mixed"] else ")")


def shortlist_sentences(facts: Mapping[str, float]) -> str:
    """Returns the facts of a shortlist in words."""
    first = f"The matching scored {facts['read']:,} of {facts['candidates']:,} candidates for each cell"
    if "proven" in facts:
        first += f"; for {facts['proven']:.0%} of the cells no other candidate can be the best"
    if "checked" not in facts:
        return f"{first}."
    return (
        f"{first}. {facts['checked']:,} cells were scored against all candidates as well: the best one is the same for "
        f"{facts['agreement']:.0%}."
    )
