# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that look at cells and labels with a checkpoint: embed, describe, search and explain."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import modeling_langcell as langcell

from .. import annotation, checkpoint, io, ontology, report
from ..checkpoint.builtin import MINI, display_name, resolve_checkpoint
from ..io.columns import EMBEDDING
from ..io.file_kinds import CELLS, FIGURE, TABLE
from ..model.errors import InputError
from ..model.prompts import require_text
from ..ontology import Candidate
from .labels import read_candidates, read_labels
from .options import (
    CELLS_HELP,
    AcceptText,
    Adapter,
    BatchTokens,
    Counts,
    Device,
    Dtype,
    EmptyCells,
    GeneColumn,
    Input,
    Labels,
    Layer,
    MarkerWeight,
    Model,
    NoMarkers,
    OntologyRoot,
    OptionalModel,
    Organism,
    Revision,
    UseRaw,
    cell_options,
    existing_cells,
    loading_options,
)
from .paths import Reads, Writes
from .terminal import say, say_resumed

app = typer.Typer()

# ---------------------------------------------------------------------- embed


@app.command()
def embed(
    cells: Input,
    out: Annotated[
        Path,
        typer.Option(help="The .h5ad file with the embeddings in obsm['X_langcell']."),
        Writes(kind=CELLS, may_be="cells"),
    ],
    model: OptionalModel = None,
    adapter: Adapter = None,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    empty_cells: EmptyCells = "error",
    device: Device = None,
    dtype: Dtype = "float32",
    batch_tokens: BatchTokens = None,
) -> None:
    """
    Embed each cell in the space that cells and texts share.

    The same command resumes a run that was killed. Under 'accelerate launch' several processes share one file.
    """
    loading = loading_options(model, adapter, revision, device=device, dtype=dtype, batch_tokens=batch_tokens)
    annotator = langcell.LangCellAnnotator.from_pretrained(**loading)
    reading = cell_options(layer, use_raw, gene_column, organism, counts) | {"empty_cells": empty_cells}
    file = langcell.embed_file(annotator, cells, out, resumed=say_resumed, **reading)
    if file is not None:  # The first of several processes reports for all.
        say(annotation.describe_input(io.read_annotation(file)))
        say(f"Embedded: {file}")


# ---------------------------------------------------------------------- describe


@app.command()
def describe(
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]...", help="Names, synonyms or ids of cell types.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--labels", help="A .json, .tsv, .csv, .gmt or .txt file of labels."), Reads()
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Cells: show which genes they did not measure, too.", callback=existing_cells),
        Reads(),
    ] = None,
    no_markers: NoMarkers = False,
    accept_text: AcceptText = False,
    model: Model = MINI,
    revision: Revision = None,
    gene_column: GeneColumn = None,
) -> None:
    """Show every text that describes a label, in order, with its source, and the genes that it names."""
    if (file is None) == (not labels):
        raise InputError("Give either labels or a file (--labels), not both.")
    asked = read_labels(file) if file is not None else labels or []
    ontology.given_descriptions(asked)
    processor = checkpoint.load_processor(model, revision=revision)
    measured = None
    if cells is not None:
        # Raw counts are not checked until they are read: here the genes alone matter.
        _, match = processor.feature_extractor.open(io.open_cells(cells), gene_column=gene_column, counts="raw")
        measured = set(match.token_ids.tolist())
    name = display_name(resolve_checkpoint(model))
    options = {"with_markers": not no_markers, "accept_text": accept_text}
    for number, candidate in enumerate(ontology.candidates(asked, processor.prompt_templates, **options)):
        if number > 0:
            say()
        print_candidate(candidate, processor, name, measured)


def print_candidate(candidate: Candidate, processor: Any, model: str, measured: set[int] | None) -> None:
    """
    Prints a candidate with its term, its texts, and its genes. Marks texts that the model cuts, genes that it does not
    know, and those that a matrix did not measure; `measured` has the ids of those that it did.
    """
    say(candidate.label)
    if candidate.term is not None:
        say(f"  means  {candidate.term.name} ({candidate.term.id})")
        if candidate.term.synonyms:
            say(f"  also   {'; '.join(sorted(candidate.term.synonyms))}")
    tokenizer = processor.tokenizer
    for text in candidate.texts:
        say(f"  text   {text.text}")
        say(f"  from   {text.origin}")
        if text.template:
            say(f"  as     {text.template}")
        pieces, longest = len(tokenizer(text.text, truncation=False)["input_ids"]), tokenizer.model_max_length
        if pieces > longest:
            say(f"  cut    after {longest} of its {pieces} word pieces, the most that {model} reads")
    genes, named = processor.feature_extractor.genes, processor.find_genes(candidate.description)
    for title, ids in (("genes", named.present), ("absent", named.absent)):
        if ids:
            say(f"  {title:<6} {', '.join(map(genes.symbol_of, ids))}")
    if named.present or named.absent:
        say(f"  from   {candidate.markers_from}")
    if named.unknown:
        say(f"  not known to {model}: {', '.join(named.unknown)}")
    if measured is not None and (missing := [i for i in (*named.present, *named.absent) if i not in measured]):
        say(f"  not measured: {', '.join(map(genes.symbol_of, missing))}")


# ---------------------------------------------------------------------- labels


@app.command("labels")
def list_labels(
    tissue: Annotated[
        list[str] | None,
        typer.Option(help="Uberon name or id of a tissue. May be repeated.", show_default="all of the catalogue"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Table as .tsv.", show_default="printed only"), Writes(kind=TABLE)
    ] = None,
) -> None:
    """List the cell types of the catalogue, which are the candidates where none is named, with their markers."""
    rows = [
        {
            "id": one.id,
            "label": ontology.get_term(one.id).name,
            "short_name": one.short_name,
            "markers": ", ".join(one.markers),
            "absent": ", ".join(one.absent),
        }
        for one in ontology.usual_in(tissue or [])
    ]
    for row in rows:
        say(f"{row['id']}  {row['short_name']:<24}  {row['label']}: {row['markers']}")
    if out is not None:
        say(f"Labels: {io.write_table(rows, out)}")


# ---------------------------------------------------------------------- search


@app.command()
def search(
    cells: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT",
            help=CELLS_HELP + " It may have the embeddings of this checkpoint.",
            callback=existing_cells,
        ),
        Reads(),
    ],
    text: Annotated[
        str, typer.Argument(help="Description of the cells in your own words, or a Cell Ontology name or id.")
    ],
    top: Annotated[int, typer.Option(help="Number of cells to find.", min=1)] = 20,
    marker_weight: MarkerWeight = None,
    out: Annotated[
        Path | None, typer.Option(help="Table of the cells as .tsv.", show_default="printed only"), Writes(kind=TABLE)
    ] = None,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    device: Device = None,
) -> None:
    """
    Find the cells that a text describes best, the best first, with their similarity to the text and, if genes that it
    names count, the evidence for them and the share of them that the cell expresses.
    """
    require_text(text, "The text to search for")
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    if EMBEDDING not in adata.obsm:
        adata = annotator.embed(
            adata, empty_cells="mark", **cell_options(layer, use_raw, gene_column, organism, counts)
        )
    found = annotator.search(adata, text, top, marker_weight=marker_weight)
    numbers = found.drop(columns="row")
    for cell, values in zip(found.index, numbers.to_numpy(), strict=True):
        say("".join(f"{value:>8.3f}" for value in values) + f"  {cell}")
    if out is not None:
        say(f"Cells: {io.write_table(found, out, index=True)}")


# ---------------------------------------------------------------------- explain

ExplainMethod = Literal["gradient", "attention"]


@app.command()
def explain(
    cells: Input,
    out: Annotated[Path, typer.Option(help="Table of the genes of each label as .tsv."), Writes(kind=TABLE)],
    labels: Labels = None,
    ontology_root: OntologyRoot = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Figure of the first genes of each label: .png, .pdf or .svg."),
        Writes(kind=FIGURE),
    ] = None,
    method: Annotated[
        ExplainMethod, typer.Option(help="Explain the similarity by its gradient, or the matching by its attention.")
    ] = "gradient",
    cells_per_label: Annotated[int, typer.Option(help="Number of cells to explain for each label.", min=1)] = 50,
    top: Annotated[int, typer.Option(help="Number of genes of each label to print and to draw.", min=1)] = 8,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    device: Device = None,
) -> None:
    """
    Show which genes drive the matches of cells with their best labels, and at which place in the rankings of the cells
    (1 for the first, 0 for genes that are not expressed) the genes stand that describe a label. A file that 'langcell
    annotate' has written needs no labels: those that its cells have are explained.
    """
    candidates = read_candidates(labels, ontology_root)
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    found = annotator.explain(
        adata,
        candidates,
        method=method,
        cells_per_label=cells_per_label,
        **cell_options(layer, use_raw, gene_column, organism, counts),
    )
    for label, genes in found.groupby("label", sort=False):
        say(f"{label} ({genes['cells'].iloc[0]} cells): {', '.join(genes['gene'].head(top))}")
        for kind, title in (("marker", "markers"), ("absent", "absent")):
            if places := [_place(gene) for gene in genes[genes["named"] == kind].itertuples()]:
                say(f"  {title}: {', '.join(places)}")
    say(f"Genes: {io.write_table(found, out)}")
    if figure is not None:
        say(f"Figure: {report.write_figure(report.draw_genes(found, top), figure)}")


def _place(gene: Any) -> str:
    """Returns a named gene with its place, and its usual one."""
    if gene.place != gene.place:  # Missing
        return f"{gene.gene} not measured"
    return f"{gene.gene} {gene.place:.2f} (usually {gene.usual_place:.2f})"
