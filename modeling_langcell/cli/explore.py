# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that look at cells and labels with a checkpoint: embed, describe, search and explain."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import modeling_langcell as langcell

from .. import annotation, checkpoint, io, report
from ..checkpoint.builtin import MINI, display_name, resolve_checkpoint
from ..io.atomic import require_apart
from ..io.columns import EMBEDDING
from ..model.errors import InputError
from ..ontology import Candidate
from ..ontology import candidates as describe_candidates
from .labels import labels_file, read_candidates, read_labels, require_candidates
from .options import (
    Counts,
    Device,
    Dtype,
    EmptyCells,
    GeneColumn,
    Input,
    Labels,
    Layer,
    Model,
    OntologyRoot,
    Revision,
    UseRaw,
    cell_options,
    checkpoint_files,
    existing_file,
    figure_file,
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
        [("INPUT.h5ad", cells), *checkpoint_files("--model", model)],
        allowed=[("--out", "INPUT.h5ad")],  # A copy of the input with the embeddings replaces it.
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
    file: Annotated[Path | None, typer.Option("--labels", help="A .json, .tsv or .txt file of labels.")] = None,
    model: Model = MINI,
    revision: Revision = None,
) -> None:
    """Show every text that describes a label, in order, with its source."""
    if (file is None) == (not labels):
        raise InputError("Give either labels or a file (--labels), not both.")
    asked = read_labels(file) if file is not None else labels or []
    processor = checkpoint.load_processor(model, revision=revision)
    name = display_name(resolve_checkpoint(model))
    for number, candidate in enumerate(describe_candidates(asked, processor.prompt_templates)):
        if number > 0:
            typer.echo()
        print_candidate(candidate, processor.tokenizer, name)


def print_candidate(candidate: Candidate, tokenizer: Any, model: str) -> None:
    """Prints a candidate with its term and its texts, and marks those that the model cuts."""
    typer.echo(candidate.label)
    if candidate.term is not None:
        typer.echo(f"  means  {candidate.term.name} ({candidate.term.id})")
        if candidate.term.synonyms:
            typer.echo(f"  also   {'; '.join(sorted(candidate.term.synonyms))}")
    for text in candidate.texts:
        typer.echo(f"  text   {text.text}")
        typer.echo(f"  from   {text.origin}")
        if text.template:
            typer.echo(f"  as     {text.template}")
        pieces, longest = len(tokenizer(text.text, truncation=False)["input_ids"]), tokenizer.model_max_length
        if pieces > longest:
            typer.echo(f"  cut    after {longest} of its {pieces} word pieces, the most that {model} reads")


# ---------------------------------------------------------------------- search


@app.command()
def search(
    cells: Annotated[
        Path,
        typer.Argument(
            metavar="INPUT.h5ad",
            help="File of cells with raw counts, or with the embeddings of this checkpoint.",
            callback=existing_file,
        ),
    ],
    text: Annotated[
        str, typer.Argument(help="Description of the cells in your own words, or a Cell Ontology name or id.")
    ],
    top: Annotated[int, typer.Option(help="Number of cells to find.", min=1)] = 20,
    out: Annotated[Path | None, typer.Option(help="Table of the cells as .tsv.", show_default="printed only")] = None,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    counts: Counts = "raw",
    device: Device = None,
) -> None:
    """Find the cells that a text describes best, the most similar first."""
    require_apart([("--out", out)], [("INPUT.h5ad", cells), *checkpoint_files("--model", model)])
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    if EMBEDDING not in adata.obsm:
        adata = annotator.embed(adata, empty_cells="mark", **cell_options(layer, use_raw, gene_column, counts))
    found = annotator.search(adata, text, top)
    for cell, similarity in found["similarity"].items():
        typer.echo(f"{similarity:>8.3f}  {cell}")
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
    """Show which genes drive the matches of cells with their best labels."""
    candidates = require_candidates(read_candidates(labels, ontology_root))
    require_apart(
        [("--out", out), ("--figure", figure)],
        [("INPUT.h5ad", cells), ("--labels", labels_file(labels)), *checkpoint_files("--model", model)],
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
    typer.echo(f"Genes: {write_table(found.to_csv(sep=chr(9), index=False), out)}")
    if figure is not None:
        typer.echo(f"Figure: {write_figure(report.draw_genes(found, top), figure)}")
