# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that look at cells and labels with a checkpoint: embed, describe, search and explain."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

import modeling_langcell as langcell

from .. import annotation, checkpoint, io, ontology, report
from ..checkpoint.builtin import MINI, display_name, resolve_checkpoint
from ..io.columns import EMBEDDING, RUN
from ..io.file_kinds import CELLS, FIGURE, TABLE
from ..model.errors import InputError
from ..model.prompts import require_text
from ..ontology import Candidate
from .labels import read_candidates, read_labels
from .options import (
    ANNOTATING,
    CELLS_HELP,
    LOOKING,
    RESULTS,
    AcceptText,
    Adapter,
    AsJson,
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
    examples,
    existing_cells,
    loading_options,
)
from .paths import Reads, Writes
from .terminal import ignore, say, say_json, say_resumed

app = typer.Typer()

# ---------------------------------------------------------------------- embed


@app.command(rich_help_panel=ANNOTATING, epilog=examples("langcell embed cells.h5ad --out embedded.h5ad"))
def embed(
    cells: Input,
    out: Annotated[
        Path,
        typer.Option(help="The .h5ad file with the embeddings in obsm['X_langcell'].", rich_help_panel=RESULTS),
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
    as_json: AsJson = False,
) -> None:
    """
    Embed each cell in the space that cells and texts share.

    The same command resumes a run that was killed. Under 'accelerate launch' several processes share one file.
    """
    loading = loading_options(model, adapter, revision, device=device, dtype=dtype, batch_tokens=batch_tokens)
    annotator = langcell.LangCellAnnotator.from_pretrained(**loading)
    reading = cell_options(layer, use_raw, gene_column, organism, counts) | {"empty_cells": empty_cells}
    file = langcell.embed_file(annotator, cells, out, resumed=ignore if as_json else say_resumed, **reading)
    if file is None:
        return  # The first of several processes reports for all.
    embedded = io.read_annotation(file)
    if as_json:
        say_json({"embedded": file, "cells": embedded.n_obs, "input": embedded.uns[RUN]["input"]})
        return
    say(annotation.describe_input(embedded))
    say(f"Embedded: {file}")


# ---------------------------------------------------------------------- describe


@app.command(
    rich_help_panel=LOOKING,
    epilog=examples(
        'langcell describe "NK cell" CL:0000236', "langcell describe --labels types.tsv --cells cells.h5ad"
    ),
)
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
    as_json: AsJson = False,
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
    options = {"with_markers": not no_markers, "accept_text": accept_text}
    candidates = ontology.candidates(asked, processor.prompt_templates, **options)
    described = [facts_of(candidate, processor, measured) for candidate in candidates]
    if as_json:
        say_json(described)
        return
    name = display_name(resolve_checkpoint(model))
    for number, facts in enumerate(described):
        if number > 0:
            say()
        print_described(facts, name)


def facts_of(candidate: Candidate, processor: Any, measured: set[int] | None) -> dict[str, Any]:
    """
    Returns what is known of a candidate: its term, its texts, with the number of word pieces of those that the model
    cuts, its genes, those that the model does not know, and those that a matrix did not measure; `measured` has the ids
    of those that it did.
    """
    genes, named = processor.feature_extractor.genes, processor.find_genes(candidate.description)
    tokenizer = processor.tokenizer
    texts = []
    for text in candidate.texts:
        pieces, longest = len(tokenizer(text.text, truncation=False)["input_ids"]), tokenizer.model_max_length
        cut = {"pieces": pieces, "read": longest} if pieces > longest else None
        texts.append({"text": text.text, "from": text.origin, "template": text.template or None, "cut": cut})
    term, missing = candidate.term, []
    if measured is not None:
        missing = [genes.symbol_of(i) for i in (*named.present, *named.absent) if i not in measured]
    return {
        "label": candidate.label,
        "term": None if term is None else {"name": term.name, "id": term.id, "synonyms": sorted(term.synonyms)},
        "texts": texts,
        "genes": [*map(genes.symbol_of, named.present)],
        "absent": [*map(genes.symbol_of, named.absent)],
        "genes_from": candidate.markers_from if named.present or named.absent else None,
        "not_known": [*named.unknown],
        "not_measured": missing,
    }


def print_described(facts: Mapping[str, Any], model: str) -> None:
    """Prints the facts of a candidate for people."""
    say(facts["label"])
    if (term := facts["term"]) is not None:
        say(f"  means  {term['name']} ({term['id']})")
        if term["synonyms"]:
            say(f"  also   {'; '.join(term['synonyms'])}")
    for text in facts["texts"]:
        say(f"  text   {text['text']}")
        say(f"  from   {text['from']}")
        if text["template"]:
            say(f"  as     {text['template']}")
        if (cut := text["cut"]) is not None:
            say(f"  cut    after {cut['read']} of its {cut['pieces']} word pieces, the most that {model} reads")
    for title in ("genes", "absent"):
        if facts[title]:
            say(f"  {title:<6} {', '.join(facts[title])}")
    if facts["genes_from"] is not None:
        say(f"  from   {facts['genes_from']}")
    if facts["not_known"]:
        say(f"  not known to {model}: {', '.join(facts['not_known'])}")
    if facts["not_measured"]:
        say(f"  not measured: {', '.join(facts['not_measured'])}")


# ---------------------------------------------------------------------- labels


@app.command(
    "labels",
    rich_help_panel=LOOKING,
    epilog=examples("langcell labels --tissue lung", "langcell labels --tissue blood --out blood.tsv"),
)
def list_labels(
    tissue: Annotated[
        list[str] | None,
        typer.Option(help="Uberon name or id of a tissue. May be repeated.", show_default="all of the catalogue"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Table as .tsv.", show_default="printed only"), Writes(kind=TABLE)
    ] = None,
    as_json: AsJson = False,
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
    if out is not None:
        io.write_table(rows, out)
    if as_json:
        say_json(rows)
        return
    for row in rows:
        say(f"{row['id']}  {row['short_name']:<24}  {row['label']}: {row['markers']}")
    if out is not None:
        say(f"Labels: {out}")


# ---------------------------------------------------------------------- search


@app.command(
    rich_help_panel=LOOKING,
    epilog=examples(
        'langcell search cells.h5ad "cells that kill virus-infected cells" --top 10',
        'langcell search cells.h5ad "cells that express PPBP and PF4" --out found.tsv',
    ),
)
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
    top: Annotated[int, typer.Option(help="Number of cells to find.", min=1, rich_help_panel=RESULTS)] = 20,
    marker_weight: MarkerWeight = None,
    scored: Annotated[
        Path | None,
        typer.Option(
            help="The cells with a score of each in obs['langcell_search'], as .h5ad: colour a map by it.",
            rich_help_panel=RESULTS,
        ),
        Writes(kind=CELLS),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Table of the cells as .tsv.", show_default="printed only", rich_help_panel=RESULTS),
        Writes(kind=TABLE),
    ] = None,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """
    Find the cells that a text describes best, the best first, with their similarity to the text, the probability that
    it describes them (fit) and, if genes that it names count, the evidence for them and the share of them that the cell
    expresses (agreeing).
    """
    require_text(text, "The text to search for")
    adata = io.open_cells(cells)
    annotator = langcell.LangCellAnnotator.from_pretrained(model, device=device, revision=revision)
    if EMBEDDING not in adata.obsm:
        adata = annotator.embed(
            adata, empty_cells="mark", **cell_options(layer, use_raw, gene_column, organism, counts)
        )
    found = annotator.search(adata, text, top, marker_weight=marker_weight)
    written = {} if out is None else {"cells": io.write_table(found, out, index=True)}
    if scored is not None:
        annotator.score_cells(adata, text, marker_weight=marker_weight)
        written["scored"] = io.write_annotated(adata, scored)
    if as_json:
        say_json(written | {"text": text, "found": found.reset_index().to_dict("records")})
        return
    print_found(found)
    for name, path in written.items():
        say(f"{name.capitalize()}: {path}")


def print_found(found: Any) -> None:
    """Prints found cells, a line for each: what the numbers are, then numbers, name and label."""
    numbers = found.drop(columns=["row", "label"], errors="ignore")
    say("".join(f"{name:>11}" for name in numbers) + "  cell")
    labels = found["label"] if "label" in found else [""] * len(found)
    for cell, values, label in zip(found.index, numbers.to_numpy(), labels, strict=True):
        say("".join(f"{value:>11.3f}" for value in values) + f"  {cell}" + (f"  {label}" if label else ""))


# ---------------------------------------------------------------------- explain

ExplainMethod = Literal["gradient", "attention"]


@app.command(
    rich_help_panel=LOOKING, epilog=examples("langcell explain cells_langcell.h5ad --out genes.tsv --figure genes.png")
)
def explain(
    cells: Input,
    out: Annotated[
        Path,
        typer.Option(help="Table of the genes of each label as .tsv.", rich_help_panel=RESULTS),
        Writes(kind=TABLE),
    ],
    labels: Labels = None,
    ontology_root: OntologyRoot = None,
    figure: Annotated[
        Path | None,
        typer.Option(help="Figure of the first genes of each label: .png, .pdf or .svg.", rich_help_panel=RESULTS),
        Writes(kind=FIGURE),
    ] = None,
    method: Annotated[
        ExplainMethod,
        typer.Option(
            help="Explain the similarity by its gradient, or the matching by its attention.",
            rich_help_panel="What is explained",
        ),
    ] = "gradient",
    cells_per_label: Annotated[
        int, typer.Option(help="Number of cells to explain for each label.", min=1, rich_help_panel="What is explained")
    ] = 50,
    top: Annotated[
        int, typer.Option(help="Number of genes of each label to print and to draw.", min=1, rich_help_panel=RESULTS)
    ] = 8,
    model: Model = MINI,
    revision: Revision = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    device: Device = None,
    as_json: AsJson = False,
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
    written = {"genes": io.write_table(found, out)}
    if figure is not None:
        written["figure"] = report.write_figure(report.draw_genes(found, top), figure)
    by_label = found.groupby("label", sort=False)
    if as_json:
        say_json(written | {"labels": {label: genes.head(top).to_dict("records") for label, genes in by_label}})
        return
    for label, genes in by_label:
        say(f"{label} ({genes['cells'].iloc[0]} cells): {', '.join(genes['gene'].head(top))}")
        for kind, title in (("marker", "markers"), ("absent", "absent")):
            if places := [_place(gene) for gene in genes[genes["named"] == kind].itertuples()]:
                say(f"  {title}: {', '.join(places)}")
    for name, path in written.items():
        say(f"{name.capitalize()}: {path}")


def _place(gene: Any) -> str:
    """Returns a named gene with its place, and its usual one."""
    if gene.place != gene.place:  # Missing
        return f"{gene.gene} not measured"
    return f"{gene.gene} {gene.place:.2f} (usually {gene.usual_place:.2f})"
