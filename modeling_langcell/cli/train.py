# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that make checkpoints: corpus, pretrain, adapt and calibrate."""

import inspect
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

import modeling_langcell as langcell

from .. import checkpoint, io
from .. import corpus as corpora
from ..checkpoint.builtin import MINI, display_name, resolve_checkpoint
from ..io.launch import Launch, launched_processes
from ..io.stopping import Stopped
from ..model.errors import InputError
from .extras import needs_extra
from .labels import read_descriptions
from .options import (
    CELLS_HELP,
    LABELLED,
    MACHINE,
    MAKING,
    RESULTS,
    SCORING,
    TRAINING,
    AsJson,
    Counts,
    Device,
    GeneColumn,
    Layer,
    MarkerWeight,
    Model,
    Organism,
    UseRaw,
    all_existing_cells,
    cell_options,
    examples,
    existing_cells,
    existing_file,
)
from .paths import Reads, WritesFolder, existing, local_checkpoint
from .terminal import say, say_json, say_once

if TYPE_CHECKING:
    from ..adaptation.adapt import Adapted

app = typer.Typer()

# These are copied from the package, which takes seconds to import; a test compares the two.
OnUnfit = Literal["refuse", "skip"]
Head = Literal["descriptions", "classes", "prototypes"]
Method = Literal["lora", "full", "frozen"]
Precision = Literal["no", "bf16"]
Logger = Literal["none", "tensorboard", "wandb"]
Unlabelled = Literal["error", "skip"]


# ---------------------------------------------------------------------- corpus


@app.command(
    rich_help_panel=MAKING,
    epilog=examples("langcell corpus studies --gene-info Homo_sapiens.gene_info.gz --out runs/corpus"),
)
def corpus(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="Files of cells, such as .h5ad, folders of them, or SOMA experiments."),
        Reads(existing),
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Folder for the corpus; a build that was interrupted there is resumed.", rich_help_panel=RESULTS
        ),
        WritesFolder(new=False),
    ],
    gene_info: Annotated[
        Path,
        typer.Option(help="NCBI's gene_info(.gz) table of the genes to look for.", rich_help_panel="Genes"),
        Reads(),
    ],
    orthologs: Annotated[
        list[Path] | None,
        typer.Option(
            help="Table of Ensembl BioMart with the orthologs of these genes in another organism, such as mouse, whose "
            "cells can then be read. May be repeated.",
            rich_help_panel="Genes",
        ),
        Reads(),
    ] = None,
    vocabulary: Annotated[
        str | None,
        typer.Option(
            help="Corpus, checkpoint, or folder of Geneformer's dictionaries whose genes are used.",
            rich_help_panel="Genes",
        ),
        Reads(local_checkpoint),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            help="Condition on obs that selects cells, such as \"tissue == 'blood'\".", rich_help_panel="Sources"
        ),
    ] = None,
    sources: Annotated[
        Path | None,
        typer.Option(
            help="Table (.tsv) with columns source, study and licence: sources that share a study, and what the "
            "model card says of them.",
            callback=existing_file,
            rich_help_panel="Sources",
        ),
        Reads(),
    ] = None,
    on_unfit: Annotated[
        OnUnfit,
        typer.Option(
            help="Treatment of sources that cannot be used: stop with an error, or leave them out.",
            rich_help_panel="Sources",
        ),
    ] = "refuse",
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    max_genes: Annotated[
        int,
        typer.Option(
            help="Largest number of genes to keep per cell, including <cls>.", min=2, max=65535, rich_help_panel="Genes"
        ),
    ] = 2048,
    min_cells: Annotated[
        int,
        typer.Option(
            help="Smallest number of cells with counts of a gene for it to get an id.", min=1, rich_help_panel="Genes"
        ),
    ] = 10,
    chunk_cells: Annotated[
        int,
        typer.Option(help="Number of cells in a shard; the memory used grows with it.", min=1, rich_help_panel=MACHINE),
    ] = 4096,
    num_proc: Annotated[
        int, typer.Option(help="Number of processes on this machine.", min=1, rich_help_panel=MACHINE)
    ] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="Address of a Dask scheduler, for an atlas.", rich_help_panel=MACHINE)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a pre-training corpus from many studies; the same command resumes a build that was killed."""
    with needs_extra("train"):
        settings = corpora.CorpusSettings(
            gene_info=str(gene_info),
            orthologs=tuple(map(str, orthologs or ())),
            vocabulary=vocabulary,
            max_genes=max_genes,
            min_cells=min_cells,
            chunk_cells=chunk_cells,
        )
    told = None if sources is None else corpora.read_source_table(sources)
    given = {"layer": layer, "use_raw": use_raw, "gene_column": gene_column, "organism": organism}
    reading = {name: value for name, value in given.items() if value}
    made = langcell.make_corpus(
        corpora.find_sources(inputs, where, told, reading),
        out,
        settings,
        on_unfit=on_unfit,
        processes=num_proc,
        scheduler=scheduler,
    )
    left_out = sum((Counter(source["left_out"]) for source in made.manifest["sources"]), Counter())
    n_studies = len({study for _, study in made.panels})
    facts = {"corpus": out, "cells": len(made), "studies": n_studies, "genes": made.manifest["genes"]}
    arrays = Counter(source["read"]["array"] for source in made.manifest["sources"] if source["asked_for"])
    if as_json:
        say_json(facts | {"arrays": arrays, "left_out": left_out, "unfit": made.manifest["unfit"]})
        return
    for name, fault in made.manifest["unfit"].items():
        say(f"Left out {name}: {fault}")
    if {*arrays} != {"X"}:
        read = (f"{array} ({number:,} of {arrays.total():,} sources)" for array, number in sorted(arrays.items()))
        say(f"Counts: {', '.join(read)}.")
    reasons = "".join(f"; {number:,} left out ({reason})" for reason, number in sorted(left_out.items()))
    say(f"{len(made):,} cells of {n_studies:,} studies, {made.manifest['genes']:,} genes{reasons}.")
    say(f"Corpus: {out}")


# ---------------------------------------------------------------------- pretrain


@app.command(
    rich_help_panel=MAKING,
    epilog=examples(
        "langcell pretrain config.yaml steps=1000 output=runs/mine",
        "accelerate launch --num_processes 2 -m modeling_langcell.cli pretrain config.yaml",
    ),
)
def pretrain(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="YAML file of settings, of which 'corpus' and 'output' must be set."),
        Reads(),
    ] = None,
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change, such as steps=1000.")
    ] = None,
    settings: Annotated[bool, typer.Option("--settings", help="Explain every setting, and exit.")] = False,
    as_json: AsJson = False,
) -> None:
    """
    Pre-train LangCell on a corpus, in one process or, under 'accelerate launch', in several. The same command resumes a
    run that was stopped or killed.
    """
    if settings:
        for line in (inspect.getdoc(langcell.PretrainingConfig) or "").splitlines():
            say(line)
        return
    if config is None:
        raise InputError("Give a CONFIG: 'langcell pretrain --settings' explains what it holds.")
    with needs_extra("train"):
        training = import_module("modeling_langcell.pretraining.run")
    try:
        output = training.pretrain(langcell.PretrainingConfig.from_yaml(config, changes or ()))
    except training.TrainingStopped as stopped:
        say_once(stopped, err=True)
        raise typer.Exit(stopped.exit_code) from None
    except Stopped as stopped:
        say_once(f"{stopped}. The same command resumes.", err=True)
        raise typer.Exit(stopped.exit_code) from None
    if launched_processes()[0] > 0:
        return
    if as_json:
        say_json({"checkpoint": output})
        return
    say(f"Checkpoint: {output}")


# ---------------------------------------------------------------------- adapt


LabelledInput = Annotated[
    Path,
    typer.Argument(metavar="INPUT", help="Cells with known labels. " + CELLS_HELP, callback=existing_cells),
    Reads(),
]
LabelKey = Annotated[
    str,
    typer.Option(
        help="Column of obs with the labels; or, for --head classes, a table of obsm.", rich_help_panel=LABELLED
    ),
]
AdaptedFolder = Annotated[
    Path,
    typer.Option(help="Folder for the adapter, or for the checkpoint of --method full.", rich_help_panel=RESULTS),
    WritesFolder(alone=False),  # Several processes may work on it; see `_launched`.
]
Shots = Annotated[
    int | None,
    typer.Option(help="Number of cells per label to learn from.", show_default="all", rich_help_panel=LABELLED),
]
HeadOption = Annotated[
    Head,
    typer.Option(
        help="Part that separates the labels: their descriptions, classes (LangCell-CE), or prototypes, which take "
        "seconds.",
        rich_help_panel=TRAINING,
    ),
]
MethodOption = Annotated[
    Method,
    typer.Option(
        help="Weights to train: LoRA's, all of them (full), or the head alone (frozen).", rich_help_panel=TRAINING
    ),
]
Descriptions = Annotated[
    Path | None,
    typer.Option(
        help="Descriptions of the labels, and genes that mark them: .json, .tsv, .csv or .gmt, as for annotate.",
        rich_help_panel=LABELLED,
    ),
    Reads(),
]
Epochs = Annotated[int, typer.Option(help="Number of passes over the cells.", rich_help_panel=TRAINING)]
LearningRate = Annotated[
    float | None,
    typer.Option(help="Peak learning rate, after warm-up.", show_default="by the method", rich_help_panel=TRAINING),
]
Rank = Annotated[int, typer.Option(help="LoRA rank.", rich_help_panel=TRAINING)]
GeneDropout = Annotated[
    float,
    typer.Option(
        help="Upper bound of the random share of genes dropped from a cell in each epoch.", rich_help_panel=TRAINING
    ),
]
Matching = Annotated[
    bool | None,
    typer.Option(help="Adapt the matching too.", show_default="if the checkpoint uses it", rich_help_panel=TRAINING),
]
AdaptTexts = Annotated[bool, typer.Option(help="Adapt the text tower too.", rich_help_panel=TRAINING)]
Balanced = Annotated[
    bool,
    typer.Option("--balanced", help="Give all labels the same weight, for --head classes.", rich_help_panel=TRAINING),
]
HeldOut = Annotated[
    float,
    typer.Option(
        help="Share of the cells to hold out, to stop when their loss no longer falls.", rich_help_panel=TRAINING
    ),
]
UnlabelledOption = Annotated[
    Unlabelled,
    typer.Option(
        help="Treatment of cells without a label: stop with an error, or leave them out.", rich_help_panel=LABELLED
    ),
]
PrecisionOption = Annotated[
    Precision,
    typer.Option(
        help="Precision to train in: no for float32, or bf16, which is faster on GPUs.", rich_help_panel=TRAINING
    ),
]
ReportTo = Annotated[
    Logger, typer.Option(help="Logger of the losses; its package must be installed.", rich_help_panel=RESULTS)
]
LogDir = Annotated[
    Path | None,
    typer.Option(help="Folder for the files of --report-to.", rich_help_panel=RESULTS),
    WritesFolder(new=False, alone=False),
]
Seed = Annotated[
    int, typer.Option(help="Seed of the drawn cells and of everything else that is random.", rich_help_panel=TRAINING)
]
PushTo = Annotated[
    str | None, typer.Option(help="Hub id of a repository to push the result to.", rich_help_panel=RESULTS)
]


@app.command(
    rich_help_panel=MAKING,
    epilog=examples(
        "langcell adapt labelled.h5ad --label-key my_label --shots 9 --out runs/adapter",
        "langcell adapt labelled.h5ad --label-key my_label --head prototypes --out runs/prototypes",
    ),
)
def adapt(
    cells: LabelledInput,
    label_key: LabelKey,
    out: AdaptedFolder,
    shots: Shots = None,
    model: Model = MINI,
    head: HeadOption = "descriptions",
    method: MethodOption = "lora",
    labels: Descriptions = None,
    epochs: Epochs = 30,
    learning_rate: LearningRate = None,
    rank: Rank = 8,
    gene_dropout: GeneDropout = 0.8,
    matching: Matching = None,
    adapt_texts: AdaptTexts = False,
    balanced: Balanced = False,
    held_out: HeldOut = 0.0,
    marker_weight: MarkerWeight = None,
    unlabelled: UnlabelledOption = "error",
    precision: PrecisionOption = "no",
    report_to: ReportTo = "none",
    log_dir: LogDir = None,
    seed: Seed = 0,
    push_to: PushTo = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Adapt a checkpoint to cells whose labels are known, few or many."""
    descriptions = None if labels is None else read_descriptions(labels)
    with needs_extra("adapt"):
        config = langcell.AdaptationConfig(
            head=head,
            method=method,
            rank=rank,
            epochs=epochs,
            learning_rate=learning_rate,
            gene_dropout=gene_dropout,
            matching=matching,
            adapt_texts=adapt_texts,
            balanced=balanced,
            held_out=held_out,
            marker_weight=marker_weight,
            precision=precision,
            seed=seed,
        )
    if push_to is not None:
        require_pushable(model, push_to)
    with _launched(out) as is_first:
        adapted = langcell.adapt(
            model,
            io.open_cells(cells),
            label_key,
            shots=shots,
            descriptions=descriptions,
            config=config,
            unlabelled=unlabelled,
            device=device,
            report_to=report_to,
            log_dir=log_dir,
            **cell_options(layer, use_raw, gene_column, organism, counts),
        )
        if not is_first:
            return
        facts = {"adapted": adapted.save(out), "cells": adapted.adaptation.cells, "losses": adapted.losses}
    if not as_json:
        print_adapted(adapted, held_out > 0)
        say(f"Adapted: {out}")
    pushed = None if push_to is None else push_adapted(out, push_to)
    if as_json:
        say_json(facts | {"trained_share": adapted.trained_share, "pushed": pushed})
    elif pushed is not None:
        say(f"Pushed: {pushed}")


@contextmanager
def _launched(out: Path) -> Iterator[bool]:
    """
    Waits for the other processes of a launch, which adapt together; yields true in the first, which alone writes.

    Raises:
        InputError: Another run writes the same output, or a process ends early or does not begin.
    """
    rank, processes = launched_processes()
    with Launch(out, rank, processes, then="it begins again") as launch:
        launch.wait_for_all()
        try:
            yield rank == 0
        except RuntimeError:  # A process does not answer.
            launch.require_others()
            raise


def print_adapted(adapted: "Adapted", held_out: bool) -> None:
    """Prints the number of cells of each label, and how the loss fell if there was training."""
    for label, number in adapted.adaptation.cells.items():
        say(f"{number:>8,}  {label}")
    if adapted.losses:
        reached = min(adapted.losses) if held_out else adapted.losses[-1]
        say(
            f"Trained {adapted.trained_share:.1%} of the parameters; loss of the "
            f"{'held-out' if held_out else 'training'} cells {adapted.losses[0]:.3f} to {reached:.3f}"
        )


def require_pushable(model: str, repo_id: str) -> None:
    """
    Checks, before the adaptation, that its result can be pushed.

    Raises:
        InputError: Its base checkpoint is not on the Hub, or the repository cannot be written to.
    """
    folder = resolve_checkpoint(model)
    if Path(folder).is_dir() and display_name(folder) != MINI:
        raise InputError(f"{model}, the base of the adapter, is not on the Hub: push it first, and give its Hub id.")
    checkpoint.require_write_access(repo_id)


def push_adapted(folder: Path, repo_id: str) -> str:
    """
    Pushes an adapted checkpoint, and returns its address.

    Raises:
        InputError: It could not be pushed, and is still in its folder.
    """
    try:
        return langcell.publish(folder, repo_id).url
    except InputError as error:
        message = f"The adapted checkpoint is in {folder}; 'langcell publish' pushes it. {error.message}"
        raise InputError(message, *error.remedies) from error


# ---------------------------------------------------------------------- calibrate


@app.command(
    rich_help_panel=MAKING,
    epilog=examples("langcell calibrate blood.h5ad lung.h5ad --label-key cell_type --out runs/calibrated"),
)
def calibrate(
    cells: Annotated[
        list[Path],
        typer.Argument(
            metavar="INPUT...",
            help="Cells whose types are known, one input per study. " + CELLS_HELP,
            callback=all_existing_cells,
        ),
        Reads(),
    ],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the calibrated checkpoint; it must not exist.", rich_help_panel=RESULTS),
        WritesFolder(),
    ],
    label_key: Annotated[
        str, typer.Option(help="Column of obs with the types, named as in the Cell Ontology.", rich_help_panel=LABELLED)
    ],
    model: Model = MINI,
    marker_weight: Annotated[
        float | None,
        typer.Option(
            help="Weight of the genes that mark a type; fitted by default. 0 leaves them out.",
            min=0,
            show_default="fitted",
            rich_help_panel=SCORING,
        ),
    ] = None,
    cross_fit: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE=CHECKPOINT",
            help="A file that the checkpoint was trained on, with a checkpoint of the same training without that file, "
            "which scores it; repeatable.",
            rich_help_panel=LABELLED,
        ),
        Reads(lambda pairs, _: [path for pair in pairs or () for path in pair.split("=", 1) if Path(path).exists()]),
    ] = None,
    layer: Layer = None,
    use_raw: UseRaw = False,
    gene_column: GeneColumn = None,
    organism: Organism = None,
    counts: Counts = "auto",
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """
    Calibrate a checkpoint on cells of known types: fit the weight of marker genes, and make its probabilities show how
    often it is right.
    """
    found = langcell.calibrate(
        model,
        cells,
        out,
        label_key=label_key,
        marker_weight=marker_weight,
        cross_fitted=dict(map(_cross_fit, cross_fit or ())),
        device=device,
        **cell_options(layer, use_raw, gene_column, organism, counts),
    )
    if as_json:
        facts = {"calibrated": out, "marker_weight": found.marker_weight, "temperature": found.temperature}
        say_json(facts | {"thresholds": found.thresholds, "fitted": found.fitted})
        return
    for name, number in found.fitted["cells"].items():
        say(f"{number:>8,}  {name}")
    before, after = found.fitted["error_before"], found.fitted["error_after"]
    say(f"Marker weight {found.marker_weight:g}")
    say(f"Temperature {found.temperature:.2f}; expected calibration error {before:.3f} to {after:.3f}")
    for rate, threshold in found.thresholds.items():
        say(f"At most {float(rate):.0%} wrong answers: those with a probability of {threshold:g} or more")
    say(f"Calibrated: {out}")


def _cross_fit(pair: str) -> tuple[Path, str]:
    """
    Parses a file and the checkpoint that scores it.

    Raises:
        InputError: There is no `=`, or no such file.
    """
    file, separator, checkpoint = pair.partition("=")
    if not separator or not checkpoint:
        raise InputError(f"--cross-fit {pair}: give a file and a checkpoint, as in liver.h5ad=runs/without-liver.")
    if not Path(file).exists():
        raise InputError(f"--cross-fit {pair}: no file {file}.")
    return Path(file), checkpoint
