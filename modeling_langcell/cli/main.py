# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The `langcell` command: reads arguments, calls the package, says where the results are."""

import json
import re
import shlex
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from transformers.utils.logging import disable_progress_bar
from typer.core import TyperGroup

from .. import __version__
from ..checkpoint.builtin import MINI, display_name, resolve_checkpoint
from ..io.atomic import atomic_write, require_apart, require_new_folder
from ..model.errors import InputError, reason_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_errors = Console(stderr=True, highlight=False)


class _Commands(TyperGroup):
    """
    Turns the package's `InputError` into one line on stderr and exit code 2. So it does with what a file system
    refuses: no room, no leave, a name that is too long.
    """

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = error.on_command_line()
        except OSError as error:
            if error.strerror is None or isinstance(error, BrokenPipeError):
                raise
            message = f"{error.filename or 'A file'} cannot be read or written: {reason_of(error)}."
        shown = message.encode("utf-8", "backslashreplace").decode()  # A name on disk need not be text.
        _errors.print(f"[bold red]Error:[/] {_plain(shown)}", soft_wrap=True)
        raise typer.Exit(2)


def _plain(message: object) -> str:
    return str(message).replace("[", r"\[")


app = typer.Typer(
    cls=_Commands,
    help="Annotate single cells by free text.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Model = Annotated[str, typer.Option(help="Checkpoint: a folder or a Hub id.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of the model's Hub repository.")]
Adapter = Annotated[str | None, typer.Option(help="What 'langcell adapt' made: a folder or a Hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps; the best there is by default.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Layer = Annotated[str | None, typer.Option(help="Layer of the counts, in place of X.")]
UseRaw = Annotated[bool, typer.Option("--use-raw", help="Read the counts from .raw.")]
GeneColumn = Annotated[str | None, typer.Option(help="Column of var that names the genes.")]
Counts = Annotated[str, typer.Option(help="What the values are: raw, normalized or log1p.")]
EmptyCells = Annotated[str, typer.Option(help="Cells without known genes: error, or mark (left without a label).")]


def _say_version(asked: bool) -> None:
    if asked:
        typer.echo(f"langcell {__version__}")
        raise typer.Exit


@app.callback()
def _before_any_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say the version, and no more.")
    ] = False,
) -> None:
    if not sys.stderr.isatty():
        disable_progress_bar()


@app.command()
def annotate(
    cells: Annotated[Path | None, typer.Argument(metavar="INPUT.h5ad", help="Cells with raw counts.")] = None,
    example: Annotated[bool, typer.Option("--example", help="Annotate scanpy's 700 blood cells.")] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Checkpoint: a folder or a Hub id.", show_default="langcell-mini, or the adapter's"),
    ] = None,
    revision: Revision = None,
    adapter: Adapter = None,
    labels: Annotated[
        str | None, typer.Option(help="Candidates: 'B cell;T cell' (';' or ','), or a .json, .tsv or .txt file.")
    ] = None,
    ontology_root: Annotated[
        str | None, typer.Option(help="Candidates: this Cell Ontology term and all below.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The annotated .h5ad.")] = None,
    report: Annotated[Path | None, typer.Option(help="An HTML page of the results.")] = None,
    report_genes: Annotated[
        int, typer.Option(help="Cells of each label whose driving genes the page shows; 0 for none.", min=0)
    ] = 10,
    figure: Annotated[Path | None, typer.Option(help="A figure of them: .png, .pdf or .svg.")] = None,
    reference: Annotated[str | None, typer.Option(help="Column of obs with known labels, to compare with.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the similarity; 1 leaves the matching out.")] = None,
    shortlist: Annotated[
        str,
        typer.Option(help="Candidates that the matching reads of each cell, the most similar: a number, auto, all."),
    ] = "auto",
    check_shortlist: Annotated[
        int, typer.Option(help="So many cells are read against all too, to say how often the answer is the same.")
    ] = 0,
    error_rate: Annotated[
        float | None,
        typer.Option(
            help="Of the answers, with a calibrated checkpoint: they are as specific as it allows, or unknown.",
            show_default="0.1",
        ),
    ] = None,
    cluster_key: Annotated[
        str | None, typer.Option(help="Column of obs with clusters, which get an answer together.")
    ] = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    empty_cells: EmptyCells = "error",
    device: Device = None,
    dtype: Dtype = "float32",
    batch_tokens: Annotated[
        int | None, typer.Option(help="Genes of all cells read at once.", show_default="what memory holds")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Say the results as one line of JSON.")] = False,
) -> None:
    """
    Find the best description for every cell, with no training labels, or with an adapter the best of its labels.

    Killed, the same command goes on where it was. Under 'accelerate launch' several processes share one file.
    """
    from ..annotation.annotator import LangCellAnnotator
    from ..annotation.clusters import count_clusters
    from ..annotation.explain import explain_annotated
    from ..annotation.large_files import annotate_file
    from ..annotation.metrics import agreement
    from ..annotation.quality import examine
    from ..annotation.records import best_labels, count_answers, describe_input
    from ..io import example as example_cells
    from ..io.columns import RUN
    from ..io.h5ad import open_lightly, read_annotation, write_annotated
    from ..report.page import write_report
    from ..report.plots import draw, lay_out

    options = _cell_options(layer, use_raw, gene_column, counts) | {"empty_cells": empty_cells}
    options |= {"alpha": alpha, "shortlist": _shortlist(shortlist), "check": check_shortlist}
    options |= {"error_rate": error_rate, "cluster_key": cluster_key}
    if example == (cells is not None):
        raise InputError("Give an INPUT.h5ad, or --example, and not both.")
    if check_shortlist < 0:
        raise InputError(f"--check-shortlist is a number of cells, not {check_shortlist}.")
    if batch_tokens is not None and batch_tokens < 1:
        raise InputError(f"--batch-tokens is a number of genes, not {batch_tokens}.")
    _require_picture(figure)
    if model is None and adapter is None:
        model = MINI
    if cells is None:
        adata = example_cells.load_example()
        columns = adata.obs.columns
        options |= example_cells.CELL_OPTIONS
        labels = labels or "; ".join(sorted(example_cells.CELL_TYPES.values()))
        reference = reference or example_cells.LABEL_COLUMN
    else:
        with open_lightly(cells) as opened:
            columns = opened.obs.columns
        if out is None:
            out = cells.with_name(f"{cells.stem}_langcell.h5ad")
    require_apart(
        [("--out", out), ("--report", report), ("--figure", figure)],
        [
            ("INPUT.h5ad", cells),
            ("--labels", _labels_file(labels)),
            *_files_of("--model", model),
            *_files_of("--adapter", adapter),
        ],
        allowed=[("--out", "INPUT.h5ad")],  # A copy of it, with the annotation, takes its place.
    )
    if reference is not None and reference not in columns:
        raise InputError(f"No column {reference!r} in obs; columns here: {sorted(map(str, columns))}.")
    annotator = LangCellAnnotator.from_pretrained(
        model, adapter=adapter, device=device, dtype=dtype, revision=revision, batch_tokens=batch_tokens
    )
    own = annotator.adaptation is not None and labels is None and ontology_root is None
    candidates = None if own else _candidates(labels, ontology_root)

    written, done_before = {}, 0
    if cells is None:
        adata = annotator.annotate(adata, candidates, **options)
        if out is not None:
            written["annotated"] = write_annotated(adata, out)
    else:
        assert out is not None

        def say_resumed(done: int) -> None:
            nonlocal done_before
            done_before = done
            if not as_json:
                typer.echo(f"Going on: {done:,} cells were done already.")

        found_file = annotate_file(annotator, cells, out, candidates, resumed=say_resumed, **options)
        if found_file is None:
            return  # The first of several processes speaks for all.
        written["annotated"] = found_file
        adata = read_annotation(found_file, embeds=report is not None or figure is not None)
    with nullcontext(adata) if cells is None else open_lightly(cells) as counted:
        where = {name: options[name] for name in ("layer", "use_raw", "gene_column")}
        quality = examine(annotator.processor.feature_extractor, counted, adata, **where)
        genes = None
        if report is not None and report_genes:
            where["counts"] = options["counts"]
            genes = explain_annotated(annotator, counted, adata, cells_per_label=report_genes, **where)
    scores = None if reference is None else agreement(adata, reference)
    if report is not None or figure is not None:
        layout = lay_out(adata)
    if figure is not None:
        written["figure"] = _write_picture(draw(adata, layout, reference), figure)
    if report is not None:
        command = shlex.join(["langcell", *sys.argv[1:]])
        written["report"] = write_report(
            adata, report, layout, quality=quality, genes=genes, reference=reference, command=command
        )

    found = best_labels(adata).value_counts()
    run = adata.uns[RUN]
    answers = count_answers(adata.obs)
    clusters = count_clusters(adata.obs, str(run["cluster_key"])) if cluster_key is not None else {}
    if as_json:
        said = {
            **{what: str(path) for what, path in written.items()},
            "cells": adata.n_obs,
            "cells_done_before": done_before,
            "labels": {str(label): int(n) for label, n in found.items()},
            "answers": {"error_rate": float(run["error_rate"]), "cells": answers} if answers else None,
            "consensus": clusters or None,
            "shortlist": _facts_of_shortlist(run),
            "agreement": scores,
            "input": run["input"],
            "cautions": [str(caution) for caution in quality.cautions],
        }
        typer.echo(json.dumps(said, default=lambda number: number.item()))  # Of a file they are NumPy's.
        return
    if example:
        typer.echo("700 blood cells of Zheng et al. 2017; .raw holds log1p values of 765 genes, read as such.")
    typer.echo(describe_input(adata))
    if (facts := _facts_of_shortlist(run)) is not None:
        typer.echo(_say_shortlist(facts))
    for label, number in found[found > 0].items():
        typer.echo(f"{number:>8,}  {label}")
    if answers:
        typer.echo(f"At an error rate of {run['error_rate']:.0%} that can be answered so surely:")
        for answer in answers:
            typer.echo(f"{answer['cells']:>8,}  {answer['answer']}" + (f" ({answer['id']})" if answer["id"] else ""))
    if clusters:
        typer.echo(f"By {run['cluster_key']}:")
        for cluster, facts in clusters.items():
            agreeing = "no known genes" if facts["answer"] is None else f"{facts['agreement']:.0%} of its cells"
            typer.echo(f"{facts['cells']:>8,}  {cluster}: {facts['answer'] or 'no answer'} ({agreeing})")
    if scores is not None:
        typer.echo(f"Accuracy against {reference}: {scores['accuracy']:.3f} over {scores['cells']:,} cells")
    for caution in quality.cautions:
        typer.echo(f"Caution: {caution.on_command_line()}")
    for what, path in written.items():
        typer.echo(f"{what.capitalize()}: {path}")


@app.command()
def embed(
    cells: Annotated[Path, typer.Argument(metavar="INPUT.h5ad", help="Cells with raw counts.")],
    out: Annotated[Path, typer.Option(help="The .h5ad with obsm['X_langcell'].")],
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    empty_cells: EmptyCells = "error",
    device: Device = None,
    dtype: Dtype = "float32",
) -> None:
    """Place every cell in the space that cells and texts share."""
    from ..annotation.annotator import LangCellAnnotator
    from ..annotation.records import describe_input
    from ..io.h5ad import open_cells, write_annotated

    require_apart(
        [("--out", out)],
        [("INPUT.h5ad", cells), *_files_of("--model", model)],
        allowed=[("--out", "INPUT.h5ad")],  # A copy of it, with the embeddings, takes its place.
    )
    adata = open_cells(cells)
    options = _cell_options(layer, use_raw, gene_column, counts) | {"empty_cells": empty_cells}
    annotator = LangCellAnnotator.from_pretrained(model, device=device, dtype=dtype, revision=revision)
    adata = annotator.embed(adata, **options)
    typer.echo(describe_input(adata))
    typer.echo(f"Embedded: {write_annotated(adata, out)}")


@app.command()
def describe(
    labels: Annotated[list[str] | None, typer.Argument(metavar="[LABEL]...", help="Names, synonyms, ids.")] = None,
    file: Annotated[Path | None, typer.Option("--labels", help="Or a .json, .tsv or .txt file of them.")] = None,
    model: Model = MINI,
    revision: Revision = None,
) -> None:
    """Show every text that each label would be judged by, in order, and where it comes from."""
    from ..checkpoint.loading import load_processor
    from ..ontology import candidates

    if (file is None) == (not labels):
        raise InputError("Name labels, or a file of them with --labels, and not both.")
    processor = load_processor(model, revision=revision)
    tokenizer = processor.tokenizer
    found = candidates(_read_labels(file) if file is not None else labels or [], processor.prompt_templates)
    for number, candidate in enumerate(found):
        typer.echo("\n" * (number > 0) + candidate.label)
        if candidate.term is not None:
            typer.echo(f"  means  {candidate.term.name} ({candidate.term.id})")
            if candidate.term.synonyms:
                typer.echo(f"  also   {'; '.join(sorted(candidate.term.synonyms))}")
        for text in candidate.texts:
            typer.echo(f"  text   {text.text}")
            typer.echo(f"  from   {text.origin}")
            if text.template:
                typer.echo(f"  as     {text.template}")
            pieces, most = len(tokenizer(text.text, truncation=False)["input_ids"]), tokenizer.model_max_length
            if pieces > most:
                name = display_name(resolve_checkpoint(model))
                typer.echo(f"  cut    after {most} of its {pieces} word pieces, which is what {name} reads")


@app.command()
def search(
    cells: Annotated[Path, typer.Argument(metavar="INPUT.h5ad", help="Cells with raw counts, or embedded already.")],
    text: Annotated[str, typer.Argument(help="What to look for, in words of your own; or a Cell Ontology name or id.")],
    top: Annotated[int, typer.Option(help="How many cells.", min=1)] = 20,
    out: Annotated[Path | None, typer.Option(help="The cells as .tsv.", show_default="only said")] = None,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """Find the cells that a text describes best, the most similar first."""
    from ..annotation.annotator import LangCellAnnotator
    from ..annotation.search import search as search_cells
    from ..io.columns import EMBEDDING
    from ..io.h5ad import open_cells

    require_apart([("--out", out)], [("INPUT.h5ad", cells), *_files_of("--model", model)])
    adata = open_cells(cells)
    annotator = LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    if EMBEDDING not in adata.obsm:
        options = _cell_options(layer, use_raw, gene_column, counts) | {"empty_cells": "mark"}
        adata = annotator.embed(adata, **options)
    found = search_cells(annotator, adata, text, top)
    for cell, similarity in found["similarity"].items():
        typer.echo(f"{similarity:>8.3f}  {cell}")
    if out is not None:
        try:
            atomic_write(out, found.to_csv(sep="\t").encode())
        except OSError as error:
            raise InputError(f"{out} cannot be written: {reason_of(error)}.") from error
        typer.echo(f"Cells: {out}")


@app.command()
def explain(
    cells: Annotated[Path, typer.Argument(metavar="INPUT.h5ad", help="Cells with raw counts.")],
    out: Annotated[Path, typer.Option(help="The genes by label, as .tsv.")],
    labels: Annotated[
        str | None, typer.Option(help="Candidates: 'B cell;T cell' (';' or ','), or a .json, .tsv or .txt file.")
    ] = None,
    ontology_root: Annotated[
        str | None, typer.Option(help="Candidates: this Cell Ontology term and all below.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="The first genes of each label: .png, .pdf or .svg.")] = None,
    method: Annotated[str, typer.Option(help="What is explained: gradient (similarity), or attention (matching).")] = (
        "gradient"
    ),
    cells_per_label: Annotated[int, typer.Option(help="Cells explained of each label.", min=1)] = 50,
    top: Annotated[int, typer.Option(help="Genes said, and drawn, of each label.", min=1)] = 8,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """Show which genes drive the matches of cells with the label found for them."""
    from ..annotation.annotator import LangCellAnnotator
    from ..annotation.explain import explain as explain_cells
    from ..io.h5ad import open_cells
    from ..report.plots import draw_genes

    _require_picture(figure)
    require_apart(
        [("--out", out), ("--figure", figure)],
        [("INPUT.h5ad", cells), ("--labels", _labels_file(labels)), *_files_of("--model", model)],
    )
    adata = open_cells(cells)
    annotator = LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    found = explain_cells(
        annotator,
        adata,
        _candidates(labels, ontology_root),
        method=method,  # type: ignore[arg-type]  # Explainer says what there is.
        cells_per_label=cells_per_label,
        **_cell_options(layer, use_raw, gene_column, counts),
    )
    for label, genes in found.groupby("label", sort=False):
        typer.echo(f"{label} ({genes['cells'].iloc[0]} cells): {', '.join(genes['gene'].head(top))}")
    try:
        atomic_write(out, found.to_csv(sep="\t", index=False).encode())
    except OSError as error:
        raise InputError(f"{out} cannot be written: {reason_of(error)}.") from error
    typer.echo(f"Genes: {out}")
    if figure is not None:
        typer.echo(f"Figure: {_write_picture(draw_genes(found, top), figure)}")


@app.command()
def adapt(
    cells: Annotated[Path, typer.Argument(metavar="INPUT.h5ad", help="Cells with raw counts and known labels.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with labels; or table of obsm, for --head classes.")],
    out: Annotated[Path, typer.Option(help="Folder for the adapter, or for the checkpoint of --method full.")],
    shots: Annotated[int | None, typer.Option(help="Learn from so many cells of each label; all by default.")] = None,
    model: Model = MINI,
    head: Annotated[
        str, typer.Option(help="What tells labels apart: descriptions, classes (LangCell-CE), or prototypes (seconds).")
    ] = "descriptions",
    method: Annotated[str, typer.Option(help="lora, full (all weights), or frozen (the head alone).")] = "lora",
    labels: Annotated[
        Path | None, typer.Option(help="Descriptions of labels: .json, or .tsv of label, tab, description.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="How often each cell is seen.")] = 30,
    learning_rate: Annotated[float | None, typer.Option(help="The highest.", show_default="by the method")] = None,
    rank: Annotated[int, typer.Option(help="Of LoRA's matrices.")] = 8,
    gene_dropout: Annotated[float, typer.Option(help="Most of a cell's genes left out when it is seen.")] = 0.8,
    matching: Annotated[
        bool | None, typer.Option(help="Adapt the matching too.", show_default="as the checkpoint annotates")
    ] = None,
    adapt_texts: Annotated[bool, typer.Option(help="Adapt the text tower too.")] = False,
    balanced: Annotated[bool, typer.Option("--balanced", help="Labels count alike (classes).")] = False,
    held_out: Annotated[float, typer.Option(help="Share of the cells to watch, and to stop early by.")] = 0.0,
    unlabelled: Annotated[str, typer.Option(help="Cells without a label: error, or skip.")] = "error",
    seed: Annotated[int, typer.Option(help="Of the cells drawn, and of all that is random.")] = 0,
    push_to: Annotated[str | None, typer.Option(help="Hub id of a repository to push the result to.")] = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """Adapt a checkpoint to cells whose labels are known, few or many."""
    try:
        from ..adaptation.adapt import AdaptationConfig
        from ..adaptation.adapt import adapt as adapt_checkpoint
    except ImportError as error:
        raise InputError('Adaptation needs peft: pip install "modeling-langcell[adapt]".') from error
    from ..checkpoint.repository import require_write_access
    from ..io.h5ad import open_cells

    require_new_folder(out)
    if push_to is not None:
        if Path(resolve_checkpoint(model)).is_dir() and display_name(resolve_checkpoint(model)) != MINI:
            raise InputError(f"Nobody else has {model}, which it is made from: push that, and name its Hub id.")
        require_write_access(push_to)  # Before the adaptation, and not after it.
    config = AdaptationConfig(
        head=head,  # type: ignore[arg-type]  # AdaptationConfig says what there is.
        method=method,  # type: ignore[arg-type]
        rank=rank,
        epochs=epochs,
        learning_rate=learning_rate,
        gene_dropout=gene_dropout,
        matching=matching,
        adapt_texts=adapt_texts,
        balanced=balanced,
        held_out=held_out,
        seed=seed,
    )
    descriptions = None if labels is None else _read_descriptions(labels)
    adapted = adapt_checkpoint(
        model,
        open_cells(cells),
        label_key,
        shots=shots,
        descriptions=descriptions,
        config=config,
        unlabelled=unlabelled,  # type: ignore[arg-type]
        device=device,
        **_cell_options(layer, use_raw, gene_column, counts),
    )
    for label, number in adapted.adaptation.cells.items():
        typer.echo(f"{number:>8,}  {label}")
    if adapted.losses:
        what = "held out" if held_out else "learnt from"
        typer.echo(
            f"{adapted.trained_share:.1%} of the parameters trained; loss of the cells {what} "
            f"{adapted.losses[0]:.3f} to {min(adapted.losses) if held_out else adapted.losses[-1]:.3f}"
        )
    typer.echo(f"Adapted: {adapted.save(out)}")
    if push_to is not None:
        from ..publishing.publish import publish as publish_folder

        try:
            pushed = publish_folder(out, push_to)
        except InputError as error:
            message = f"The adapter is in {out}; 'langcell publish' pushes it. {error.message}"
            raise InputError(message, *error.remedies) from error
        typer.echo(f"Pushed: {pushed.url}")


@app.command()
def calibrate(
    cells: Annotated[list[Path], typer.Argument(metavar="INPUT.h5ad...", help="Cells of known types, a study a file.")],
    out: Annotated[Path, typer.Option(help="Folder for the calibrated checkpoint; must not exist.")],
    label_key: Annotated[str, typer.Option(help="Column of obs with the types, as the Cell Ontology names them.")],
    model: Model = MINI,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """Find out how far a checkpoint's scores can be trusted, from cells whose types are known."""
    from ..annotation.calibrate import calibrate as calibrate_checkpoint

    options = _cell_options(layer, use_raw, gene_column, counts)
    found = calibrate_checkpoint(model, cells, out, label_key=label_key, device=device, **options)
    for name, number in found.fitted["cells"].items():
        typer.echo(f"{number:>8,}  {name}")
    before, after = found.fitted["error_before"], found.fitted["error_after"]
    typer.echo(f"Temperature {found.temperature:.2f}; expected calibration error {before:.3f} to {after:.3f}")
    for rate, threshold in found.thresholds.items():
        typer.echo(
            f"At most {float(rate):.0%} of the answers wrong: those with a probability of {threshold:g} and more"
        )
    typer.echo(f"Calibrated: {out}")


@app.command()
def evaluate(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Tasks by name, or 'all'.")],
    model: Model = MINI,
    adapter: Adapter = None,
    seeds: Annotated[int, typer.Option(help="How often what is drawn is drawn.", min=1)] = 3,
    data: Annotated[Path, typer.Option(help="Folder with train/, validation/ and genes/.")] = Path("../shared/data"),
    study: Annotated[list[str] | None, typer.Option(help="Another study than the task's; can be repeated.")] = None,
    studies: Annotated[list[Path] | None, typer.Option(help="YAML file of more studies; can be repeated.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only this method; can be repeated.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the similarity; the checkpoint's own.")] = None,
    gene_sets: Annotated[Path | None, typer.Option(help="A .gmt file, for the task on pathways.")] = None,
    download: Annotated[bool, typer.Option("--download", help="Fetch studies that are on the web.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for results; what is filled in it is kept.")] = Path("runs/results"),
    figures: Annotated[Path | None, typer.Option(help="Folder for figures.")] = None,
    report: Annotated[Path | None, typer.Option(help="An HTML page of all tasks that were run.")] = None,
    device: Device = None,
) -> None:
    """Measure a checkpoint, task by task, beside baselines; goes on where it was killed."""
    try:
        from modeling_langcell.eval.figures import FIGURES, draw_task, write_html
        from modeling_langcell.eval.run import TASKS, find_task
        from modeling_langcell.eval.run import evaluate as evaluate_task
        from modeling_langcell.eval.studies import read_studies
        from modeling_langcell.eval.task import EvaluationContext
    except ModuleNotFoundError as error:
        raise InputError(f'No package {error.name}: pip install "modeling-langcell[adapt,eval]".') from error

    found = [find_task(name) for name in (TASKS if tasks == ["all"] else tasks)]
    pictures = None
    if figures is not None or report is not None:
        pictures = out / "figures" if figures is None else figures
    names = {task.name for task in found}
    written = [("--out", out / f"{name}.{kind}") for name in sorted(names) for kind in ("json", "md")]
    if pictures is not None:
        written += [("--figures", pictures / f"{name}-{kind}.png") for name in sorted(names) for kind in FIGURES]
    require_apart(
        [*written, ("--report", report)],
        [
            *(("--studies", path) for path in studies or ()),
            *(("--data", path) for folder in ("train", "validation", "genes") for path in data.glob(f"{folder}/*")),
            ("--gene-sets", gene_sets),
            *_files_of("--model", model),
            *_files_of("--adapter", adapter),
        ],
    )
    context = EvaluationContext(
        resolve_checkpoint(model), adapter, data, read_studies(*studies or ()), alpha, download, gene_sets, device
    )
    if gene_sets is not None and not gene_sets.is_file():
        raise InputError(f"No file {gene_sets}.")
    results, drawn = [], {}
    for task in found:
        results.append(evaluate_task(task, context, seeds=seeds, out=out, studies=study or (), methods=method or ()))
        typer.echo((out / f"{task.name}.md").read_text())
        typer.echo(f"Results: {out / f'{task.name}.json'}")
        if pictures is not None:
            drawn[task.name] = draw_task(results[-1], pictures)
            for path in drawn[task.name]:
                typer.echo(f"Figure: {path}")
    if report is not None:
        typer.echo(f"Report: {write_html(results, drawn, report)}")


@app.command()
def convert(
    parts: Annotated[
        Path, typer.Argument(help="Folder with cell_bert/, text_bert/, cell_proj.bin, text_proj.bin, ctm_head.bin.")
    ],
    token_dictionary: Annotated[Path, typer.Option(help="Pickle: Ensembl id to token id.")],
    gene_medians: Annotated[Path, typer.Option(help="Pickle: Ensembl id to median.")],
    gene_names: Annotated[Path, typer.Option(help="Pickle: symbol to Ensembl id.")],
    text_vocab: Annotated[Path, typer.Option(help="The text encoder's vocab.txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; must not exist.")],
) -> None:
    """Turn the published five weight files into one checkpoint that AutoModel loads."""
    from ..conversion.published import convert as convert_parts

    folder = convert_parts(
        parts,
        token_dictionary=token_dictionary,
        gene_medians=gene_medians,
        gene_names=gene_names,
        text_vocab=text_vocab,
        output=out,
    )
    typer.echo(f"Checkpoint: {folder}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Checkpoint, or what 'langcell adapt' made.")],
    results: Annotated[Path | None, typer.Option(help="What 'langcell evaluate --out' wrote of it.")] = None,
    about: Annotated[
        Path | None, typer.Option(help="YAML file of what its files do not say: limits, failure modes, licence.")
    ] = None,
) -> None:
    """Write the card of a checkpoint or an adapter: its README.md, from its own files and what an evaluation found."""
    from ..checkpoint.files import CARD, EVALUATION
    from ..publishing.cards import write_card

    evaluation = None if results is None else folder / EVALUATION
    require_apart([("The card", folder / CARD), ("The evaluation", evaluation)], [("--about", about)])
    typer.echo(f"Card: {write_card(folder, results, about)}")


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a checkpoint, an architecture or an adapter.")],
    repo_id: Annotated[str, typer.Option(help="Repository of the Hub, OWNER/NAME; made if there is none.")],
    base: Annotated[str | None, typer.Option(help="Hub id of what an adapter was made from.")] = None,
    results: Annotated[Path | None, typer.Option(help="What 'langcell evaluate' wrote, to compare with.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository for its owner alone.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name for this version: v1.0.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check, and list what would go; send nothing.")] = False,
) -> None:
    """Check a checkpoint or an adapter, and push it to the Hub in one commit."""
    from ..publishing.publish import publish as publish_folder

    published = publish_folder(folder, repo_id, base=base, results=results, private=private, tag=tag, dry_run=dry_run)
    for name, size in published.files.items():
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"{sum(published.files.values()):>14,}  bytes in {len(published.files)} files, {published.kind}")
    for name in published.left_out:
        typer.echo(f"Left out: {name}")
    if published.base:
        typer.echo(f"Base: {published.base}")
    if dry_run:
        typer.echo(f"Nothing was sent. Without --dry-run this goes to {repo_id} in one commit.")
    else:
        typer.echo(f"Published: {published.url}" + (f", tagged {tag}" if tag else ""))


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: a folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the encoder; must not exist.")],
    masked_genes: Annotated[
        bool, typer.Option("--masked-genes", help="With the masked-gene head, as Geneformer is published.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Write the cell encoder alone, as a BERT that transformers and Geneformer's users load."""
    from ..conversion.bert import GENES, export_cell_tower

    folder = export_cell_tower(model, out, masked_genes=masked_genes, revision=revision)
    if not (folder / GENES).is_file():
        typer.echo(f"The checkpoint does not say what its ids mean: there is no {GENES}.")
    typer.echo(f"Encoder: {folder}")


@app.command()
def corpus(
    inputs: Annotated[list[str], typer.Argument(metavar="INPUT...", help=".h5ad files, folders, SOMA experiments.")],
    out: Annotated[Path, typer.Option(help="Folder for the corpus; one that was begun is gone on with.")],
    gene_info: Annotated[Path, typer.Option(help="NCBI's gene_info(.gz) table: the genes to look for.")],
    vocabulary: Annotated[
        str | None, typer.Option(help="Corpus, checkpoint, or folder of Geneformer's dictionaries, whose genes to use.")
    ] = None,
    where: Annotated[str | None, typer.Option(help="Which cells: a condition on obs, \"tissue == 'blood'\".")] = None,
    on_unfit: Annotated[str, typer.Option(help="Sources that cannot be used: refuse, or skip.")] = "refuse",
    max_genes: Annotated[int, typer.Option(help="Genes kept of a cell, <cls> included.", min=2, max=65535)] = 2048,
    min_cells: Annotated[int, typer.Option(help="Genes counted in fewer cells get no id.", min=1)] = 10,
    chunk_cells: Annotated[int, typer.Option(help="Cells of a shard; memory grows with it.", min=1)] = 4096,
    num_proc: Annotated[int, typer.Option(help="Processes on this machine.", min=1)] = 1,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, for an atlas.")] = None,
) -> None:
    """Make a pre-training corpus of many studies; killed, it goes on where it was."""
    try:
        from ..corpus.build import CorpusSettings, make_corpus
    except ModuleNotFoundError as error:
        raise InputError(f'No package {error.name}: pip install "modeling-langcell[train]".') from error
    from ..corpus.sources import find_sources

    if on_unfit not in ("refuse", "skip"):
        raise InputError(f"--on-unfit is refuse or skip, not {on_unfit!r}.")
    settings = CorpusSettings(
        gene_info=str(gene_info),
        vocabulary=vocabulary,
        max_genes=max_genes,
        min_cells=min_cells,
        chunk_cells=chunk_cells,
    )
    made = make_corpus(
        find_sources(inputs, where),
        out,
        settings,
        on_unfit="skip" if on_unfit == "skip" else "refuse",
        processes=num_proc,
        scheduler=scheduler,
    )
    for name, fault in made.manifest["unfit"].items():
        typer.echo(f"Left out {name}: {fault}")
    left_out = sum((Counter(source["left_out"]) for source in made.manifest["sources"]), Counter())
    reasons = "".join(f"; {number:,} left out ({reason})" for reason, number in sorted(left_out.items()))
    studies = len(made.panels)
    typer.echo(f"{len(made):,} cells of {studies:,} studies, {made.manifest['genes']:,} genes{reasons}.")
    typer.echo(f"Corpus: {out}")


# ---------------------------------------------------------------------- arguments and results


def _require_picture(figure: Path | None) -> None:
    if figure is not None and figure.suffix not in (".png", ".pdf", ".svg"):
        raise InputError(f"The figure {figure} must end in .png, .pdf or .svg.")


def _files_of(option: str, checkpoint: str | None) -> list[tuple[str, Path]]:
    """What a checkpoint or an adapter in a folder here is read from, each beside the option that names the folder."""
    if checkpoint is None or not (folder := Path(resolve_checkpoint(checkpoint))).is_dir():
        return []
    kinds = (".json", ".safetensors", ".bin", ".txt", ".py")  # Pages, figures and tables may lie there too.
    return [(option, path) for path in sorted(folder.iterdir()) if path.suffix in kinds]


def _cell_options(layer: str | None, use_raw: bool, gene_column: str | None, counts: str) -> dict:
    return {"layer": layer, "use_raw": use_raw, "gene_column": gene_column, "counts": counts}


def _shortlist(asked: str) -> "int | Literal['auto'] | None":
    """As the package has it."""
    if asked == "auto":
        return "auto"
    if asked == "all":
        return None
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    raise InputError(f"--shortlist is a number of candidates, auto or all, not {asked!r}.")


def _facts_of_shortlist(run: Mapping[str, Any]) -> dict[str, float] | None:
    """How many candidates of how many the matching read, and what is known of the answers; none where it read all."""
    if "shortlist" not in run:
        return None
    facts: dict[str, float] = {"read": int(run["shortlist"]), "candidates": len(run["labels"])}
    if "prototype_weight" not in run:  # Prototypes have a part in the score, of which nothing is proven.
        facts["proven"] = float(run["proven"])
    if run["checked"]:
        facts |= {"checked": int(run["checked"]), "agreement": float(run["agreement"])}
    return facts


def _say_shortlist(facts: Mapping[str, float]) -> str:
    said = f"The matching read {facts['read']:,} of {facts['candidates']:,} candidates of each cell"
    if "proven" in facts:
        said += f"; for {facts['proven']:.0%} of the cells no other can be the best"
    if "checked" in facts:
        said += f". {facts['checked']:,} cells were read against all: the answer is the same for "
        said += f"{facts['agreement']:.0%}"
    return said + "."


def _candidates(labels: str | None, ontology_root: str | None) -> list[str] | dict[str, str | list[str]]:
    """The candidates that the command line names, one way or the other."""
    from ..ontology import descendants

    if labels is not None and ontology_root is None:
        file = _labels_file(labels)
        return _split(labels) if file is None else _read_labels(file)
    if ontology_root is not None and labels is None:
        return [term.name for term in descendants(ontology_root)]
    raise InputError("Name the candidates with --labels or with --ontology-root, one of the two.")


def _labels_file(labels: str | None) -> Path | None:
    """The file that --labels names, if it names one and not the labels themselves."""
    return Path(labels) if labels is not None and Path(labels).suffix in (".json", ".tsv", ".txt") else None


def _split(labels: str) -> list[str]:
    # Names of the ontology hold commas ("CD8-positive, alpha-beta T cell"), so ';' separates where there is one.
    return [name.strip() for name in labels.split(";" if ";" in labels else ",") if name.strip()]


def _read_labels(path: Path) -> list[str] | dict[str, str | list[str]]:
    """
    Labels from a file: JSON (a list, or label to description or descriptions), or lines of label or label, tab,
    description; a label with several descriptions has a line for each.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if "\0" in text:
            raise InputError(f"{path} is no text: it holds a zero byte.")
        if path.suffix == ".json":
            labels = _load_json(text, path)
            kinds, values = ((str, list), labels.values()) if isinstance(labels, dict) else (str, labels)
            if not isinstance(labels, (dict, list)) or not all(isinstance(value, kinds) for value in values):
                raise InputError(f"{path} must hold a list of labels, or an object of labels and descriptions.")
            return labels
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"The labels in {path} cannot be read: {reason_of(error)}.") from error
    found: dict[str, list[str]] = {}
    for line in filter(str.strip, text.splitlines()):
        label, _, description = (part.strip() for part in line.partition("\t"))
        found.setdefault(label, []).extend([description] if description else [])
    return {label: texts if len(texts) > 1 else "".join(texts) for label, texts in found.items()}


def _load_json(text: str, path: Path) -> Any:
    """JSON whose texts can be written to a file, and whose objects say nothing twice."""

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        twice = [name for name, number in Counter(name for name, _ in pairs).items() if number > 1]
        if twice:
            raise InputError(f"{path} has the label {twice[0]!r} twice.")
        return dict(pairs)

    found = json.loads(text, object_pairs_hook=each_once, parse_int=float)  # No label is a number, however long.
    said = json.dumps(found, ensure_ascii=False)
    if "\\u0000" in said or (not said.isascii() and re.search("[\ud800-\udfff]", said)):
        raise InputError(f"{path} holds a sign that is no text (zero, or half of one): take it out.")
    return found


def _read_descriptions(path: Path) -> dict[str, str]:
    labels = _read_labels(path)
    if not isinstance(labels, dict):
        raise InputError(f"{path} holds labels without descriptions: write an object of labels and descriptions.")
    one = {label: [text] if isinstance(text, str) else text for label, text in labels.items()}
    if several := next((label for label, texts in one.items() if len(texts) != 1), None):
        raise InputError(
            f"{path} must hold one description of each label, as an adaptation learns from: see {several!r}."
        )
    return {label: texts[0] for label, texts in one.items()}


def _write_picture(drawn: "Figure", path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        drawn.savefig(path, dpi=130)
    except OSError as error:
        raise InputError(f"The figure {path} cannot be written: {reason_of(error)}.") from error
    return path


def main() -> None:
    """Entry point of the `langcell` command."""
    app()
