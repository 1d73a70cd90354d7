# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Options that several commands share, and checks of the files that they name."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..checkpoint.builtin import MINI
from ..model.errors import InputError
from .labels import labels_file
from .paths import Reads, local_checkpoint

#: Titles of the groups of commands in the help.
ANNOTATING, LOOKING, MAKING, PUBLISHING = "Annotate", "Look closer", "Make a checkpoint", "Share a checkpoint"
#: Titles of the groups of options.
CANDIDATES, SCORING, RESULTS = "Candidates", "How labels are chosen", "Results"
READING, CHECKPOINT, MACHINE = "How the cells are read", "Checkpoint", "Machine"
LABELLED, TRAINING = "Labelled cells", "Training"

#: What an input of cells may be.
CELLS_HELP = "Cells: an .h5ad, .loom or .h5mu file, a zarr store, or Cell Ranger's .h5 file or folder with matrix.mtx."

# These are copied from the package, which takes seconds to import; a test compares the two.
CountsChoice = Literal["auto", "raw", "corrected", "normalized", "log1p"]
EmptyCellsChoice = Literal["error", "mark"]
DtypeChoice = Literal["float32", "bfloat16", "float16"]


def examples(*lines: str) -> str:
    """Returns the end of a command's help: examples, each on a line of its own."""
    return "\n\n".join(["Examples:", *lines])


def existing_file(path: Path | None) -> Path | None:
    """
    Returns the path of an input, checked when the command line is read, before any heavy import.

    Raises:
        InputError: There is no such file.
    """
    if path is not None and not path.is_file():
        raise InputError(f"{path} is a folder: give a file." if path.is_dir() else f"No file {path}.")
    return path


def existing_cells(path: Path | None) -> Path | None:
    """
    Returns the path of cells, which may be a folder, checked in the same way.

    Raises:
        InputError: There is neither a file nor a folder.
    """
    if path is not None and not path.exists():
        raise InputError(f"No file {path}.")
    return path


def all_existing_cells(paths: list[Path]) -> list[Path]:
    """Returns the paths of several inputs, checked as by `existing_cells`."""
    for path in paths:
        existing_cells(path)
    return paths


def loading_options(model: str | None, adapter: str | None, revision: str | None, **more: Any) -> dict[str, Any]:
    """Returns how a checkpoint is loaded, perhaps with an adapter: arguments of `LangCellAnnotator.from_pretrained`."""
    checkpoint = MINI if model is None and adapter is None else model
    return {"checkpoint": checkpoint, "adapter": adapter, "revision": revision, **more}


def cell_options(
    layer: str | None, use_raw: bool, gene_column: str | None, organism: str | None, counts: CountsChoice
) -> dict[str, Any]:
    """Returns the options that say how cells are read, as arguments of the package's functions."""
    return {
        "layer": layer,
        "use_raw": use_raw,
        "gene_column": gene_column,
        "organism": organism,
        "counts": counts,
    }


Input = Annotated[
    Path,
    typer.Argument(metavar="INPUT", help=CELLS_HELP, callback=existing_cells),
    Reads(),
]
Model = Annotated[
    str, typer.Option(help="Checkpoint: a folder or a Hub id.", rich_help_panel=CHECKPOINT), Reads(local_checkpoint)
]
OptionalModel = Annotated[
    str | None,
    typer.Option(
        help="Checkpoint: a folder or a Hub id.", show_default=f"{MINI}, or the adapter's", rich_help_panel=CHECKPOINT
    ),
    Reads(local_checkpoint),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of the model's Hub repository.", rich_help_panel=CHECKPOINT)
]
Adapter = Annotated[
    str | None,
    typer.Option(help="Adapter from 'langcell adapt': a folder or a Hub id.", rich_help_panel=CHECKPOINT),
    Reads(local_checkpoint),
]
BatchTokens = Annotated[
    int | None,
    typer.Option(
        help="Number of genes, over all cells, in a batch.",
        show_default="what fits in memory",
        min=1,
        rich_help_panel=MACHINE,
    ),
]
Labels = Annotated[
    str | None,
    typer.Option(
        help="Candidates: 'B cell;T cell' (separated by ';' or ','), or a .json, .tsv, .csv, .gmt or .txt file.",
        rich_help_panel=CANDIDATES,
    ),
    Reads(lambda labels, _: filter(None, [labels_file(labels)])),
]
OntologyRoot = Annotated[
    str | None,
    typer.Option(help="Candidates: this Cell Ontology term and all terms below it.", rich_help_panel=CANDIDATES),
]
Markers = Annotated[
    Path | None,
    typer.Option(
        help="Genes of the candidates: a .gmt file, or .json, .tsv or .csv with the columns label, markers and absent.",
        callback=existing_file,
        rich_help_panel=CANDIDATES,
    ),
    Reads(),
]
NoMarkers = Annotated[
    bool,
    typer.Option(
        "--no-markers",
        help="Leave out the genes that the catalogue of cell types has for candidates.",
        rich_help_panel=CANDIDATES,
    ),
]
MarkerWeight = Annotated[
    float | None,
    typer.Option(
        help="Weight of the genes that descriptions name, beside similarity and matching; 0 leaves them out.",
        show_default="the checkpoint's",
        min=0,
        rich_help_panel=SCORING,
    ),
]
AcceptText = Annotated[
    bool,
    typer.Option(
        "--accept-text",
        help="Read candidates that the Cell Ontology does not know as plain texts.",
        rich_help_panel=CANDIDATES,
    ),
]
Tissue = Annotated[
    list[str] | None,
    typer.Option(
        help="Without candidates: those that the catalogue has for this tissue, by Uberon name or id. May be repeated.",
        show_default="judged by the markers of the cells",
        rich_help_panel=CANDIDATES,
    ),
]
Layer = Annotated[
    str | None, typer.Option(help="Layer to read the counts from, instead of X.", rich_help_panel=READING)
]
UseRaw = Annotated[bool, typer.Option("--use-raw", help="Read the counts from .raw.", rich_help_panel=READING)]
GeneColumn = Annotated[
    str | None,
    typer.Option(
        help="Column of var with the names of the genes.",
        show_default="the index and the usual columns",
        rich_help_panel=READING,
    ),
]
Organism = Annotated[
    str | None,
    typer.Option(
        help="Organism whose genes are read, such as mouse, through their human orthologs.",
        show_default="the one that has most of the genes",
        rich_help_panel=READING,
    ),
]
Counts = Annotated[
    CountsChoice,
    typer.Option(
        help="Kind of values: raw counts, corrected ones (SoupX), ones scaled by cell, or log1p of these; auto: told "
        "from the values, in the first of X, raw and a layer of counts that has counts.",
        rich_help_panel=READING,
    ),
]
EmptyCells = Annotated[
    EmptyCellsChoice,
    typer.Option(
        help="Treatment of cells without known genes: stop with an error, or leave them without a label.",
        rich_help_panel=READING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        help="Device to compute on: cpu, cuda, cuda:1 or mps.",
        show_default="the best there is",
        rich_help_panel=MACHINE,
    ),
]
Dtype = Annotated[DtypeChoice, typer.Option(help="Precision to compute in.", rich_help_panel=MACHINE)]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as one line of JSON.", rich_help_panel=RESULTS)]
