# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that look at cells and labels with a checkpoint: embed, describe, search and explain."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import modeling_langcell as langcell

from .. import annotation, checkpoint, io, ontology, report
from ..checkpoint.builtin import MINI, display_name, resolve_checkpoint
from ..io.atomic import require_apart
from ..io.columns import EMBEDDING
from ..model.errors import InputError
from ..ontology import Candidate
from .labels import labels_file, read_candidates, read_labels
from .options import (
    CELLS_HELP,
    AcceptText,
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
    Revision,
    UseRaw,
    cell_options,
    checkpoint_files,
    existing_cells,
    figure_file,
    may_replace,
)
from .outputs import write_figure, write_table

app = typer.Typer()

# ---------------------------------------------------------------------- embed


@app.command()
def embed(
    cells: Input,
    out: Annotated[Path, typer.Option(help="The .h5ad file with the embeddings in obsm['X_langcell'].")],
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
    """Embed each cell in the space that cells and texts share."""
    require_apart(
        [("--out", out)],
        [("INPUT", cells), *checkpoint_files("--model", model)],
        allowed=may_replace(cells),
    )
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, dtype=dtype, revision=revision)
    adata = annotator.embed(adata, empty_cells=empty_cells, **cell_options(layer, use_raw, gene_column, counts))
    typer.echo(annotation.describe_input(adata))
    typer.echo(f"Embedded: {io.write_annotated(adata, out)}")


# ---------------------------------------------------------------------- describe


@app.command()
def describe(
    labels: Annotated[
        list[str] | None, typer.Argument(metavar="[LABEL]...", help="Names, synonyms or ids of cell types.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--labels", help="A .json, .tsv, .csv, .gmt or .txt file of labels.")
    ] = None,
    cells: Annotated[
        Path | None,
        typer.Option(help="Cells: show which genes they did not measure, too.", callback=existing_cells),
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
    processor = checkpoint.load_processor(model, revision=revision)
    measured = None
    if cells is not None:
        _, match = processor.feature_extractor.open(io.open_cells(cells), gene_column=gene_column)
        measured = set(match.token_ids.tolist())
    name = display_name(resolve_checkpoint(model))
    options = {"with_markers": not no_markers, "accept_text": accept_text}
    for number, candidate in enumerate(ontology.candidates(asked, processor.prompt_templates, **options)):
        if number > 0:
            typer.echo()
        print_candidate(candidate, processor, name, measured)


def print_candidate(candidate: Candidate, processor: Any, model: str, measured: set[int] | None) -> None:
    """
    Prints a candidate with its term, its texts, and its genes. Marks texts that the model cuts, genes that it does not
    know, and those that a matrix did not measure; `measured` has the ids of those that it did.
    """
    typer.echo(candidate.label)
    if candidate.term is not None:
        typer.echo(f"  means  {candidate.term.name} ({candidate.term.id})")
        if candidate.term.synonyms:
            typer.echo(f"  also   {'; '.join(sorted(candidate.term.synonyms))}")
    tokenizer = processor.tokenizer
    for text in candidate.texts:
        typer.echo(f"  text   {text.text}")
        typer.echo(f"  from   {text.origin}")
        if text.template:
            typer.echo(f"  as     {text.template}")
        pieces, longest = len(tokenizer(text.text, truncation=False)["input_ids"]), tokenizer.model_max_length
        if pieces > longest:
            typer.echo(f"  cut    after {longest} of its {pieces} word pieces, the most that {model} reads")
    genes, named = processor.feature_extractor.genes, processor.find_genes(candidate.description)
    for title, ids in (("genes", named.present), ("absent", named.absent)):
        if ids:
            typer.echo(f"  {title:<6} {', '.join(map(genes.symbol_of, ids))}")
    if named.present or named.absent:
        typer.echo(f"  from   {candidate.markers_from}")
    if named.unknown:
        typer.echo(f"  not known to {model}: {', '.join(named.unknown)}")
    if measured is not None and (missing := [i for i in (*named.present, *named.absent) if i not in measured]):
        typer.echo(f"  not measured: {', '.join(map(genes.symbol_of, missing))}")


# ---------------------------------------------------------------------- labels


@app.command("labels")
def list_labels(
    tissue: Annotated[
        list[str] | None,
        typer.Option(help="Uberon name or id of a tissue. May be repeated.", show_default="all of the catalogue"),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Table as .tsv.", show_default="printed only")] = None,
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
        typer.echo(f"{row['id']}  {row['short_name']:<24}  {row['label']}: {row['markers']}")
    if out is not None:
        lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
        typer.echo(f"Labels: {write_table(chr(10).join(lines) + chr(10), out)}")


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
    ],
    text: Annotated[
        str, typer.Argument(help="Description of the cells in your own words, or a Cell Ontology name or id.")
    ],
    top: Annotated[int, typer.Option(help="Number of cells to find.", min=1)] = 20,
    marker_weight: MarkerWeight = None,
    out: Annotated[Path | None, typer.Option(help="Table of the cells as .tsv.", show_default="printed only")] = None,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """
    Find the cells that a text describes best, the best first, with their similarity to the text and, if genes that it
    names count, the evidence for them and the share of them that the cell expresses.
    """
    require_apart([("--out", out)], [("INPUT", cells), *checkpoint_files("--model", model)])
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    if EMBEDDING not in adata.obsm:
        adata = annotator.embed(adata, empty_cells="mark", **cell_options(layer, use_raw, gene_column, counts))
    found = annotator.search(adata, text, top, marker_weight=marker_weight)
    numbers = found.drop(columns="row")
    for cell, values in zip(found.index, numbers.to_numpy(), strict=True):
        typer.echo("".join(f"{value:>8.3f}" for value in values) + f"  {cell}")
    if out is not None:
        typer.echo(f"Cells: {write_table(found.to_csv(sep=chr(9)), out)}")


# ---------------------------------------------------------------------- explain

ExplainMethod = Literal["gradient", "attention"]


@app.command()
def explain(
    cells: Input,
    out: Annotated[Path, typer.Option(help="Table of the genes of each label as .tsv.")],
    labels: Labels = None,
    ontology_root: OntologyRoot = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Figure of the first genes of each label: .png, .pdf or .svg.", callback=figure_file),
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
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """
    Show which genes drive the matches of cells with their best labels, and at which place in the rankings of the cells
    (1 for the first, 0 for genes that are not expressed) the genes stand that describe a label.
    """
    candidates = read_candidates(labels, ontology_root)
    require_apart(
        [("--out", out), ("--figure", figure)],
        [("INPUT", cells), ("--labels", labels_file(labels)), *checkpoint_files("--model", model)],
    )
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    found = annotator.explain(
        adata,
        candidates,
        method=method,
        cells_per_label=cells_per_label,
        **cell_options(layer, use_raw, gene_column, counts),
    )
    for label, genes in found.groupby("label", sort=False):
        typer.echo(f"{label} ({genes['cells'].iloc[0]} cells): {', '.join(genes['gene'].head(top))}")
        for kind, title in (("marker", "markers"), ("absent", "absent")):
            if places := [_place(gene) for gene in genes[genes["named"] == kind].itertuples()]:
                typer.echo(f"  {title}: {', '.join(places)}")
    typer.echo(f"Genes: {write_table(found.to_csv(sep=chr(9), index=False), out)}")
    if figure is not None:
        typer.echo(f"Figure: {write_figure(report.draw_genes(found, top), figure)}")


def _place(gene: Any) -> str:
    """Returns a named gene with its place, and its usual one."""
    if gene.place != gene.place:  # Missing
        return f"{gene.gene} not measured"
    return f"{gene.gene} {gene.place:.2f} (usually {gene.usual_place:.2f})"
