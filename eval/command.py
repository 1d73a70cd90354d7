# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The command that evaluates a checkpoint."""

from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

import modeling_langcell.eval as evaluation
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.cli.extras import needs_extra
from modeling_langcell.cli.options import (
    MAKING,
    RESULTS,
    SCORING,
    Adapter,
    AsJson,
    Device,
    Model,
    examples,
    existing_file,
)
from modeling_langcell.cli.paths import Reads, Writes, WritesFolder
from modeling_langcell.cli.terminal import say, say_json
from modeling_langcell.io.file_kinds import PAGE
from modeling_langcell.io.launch import sole_writer

app = typer.Typer()


# Copied from the package, which takes seconds to import; a test compares the two.
class TaskName(str, Enum):
    """The tasks, and all of them."""

    ZERO_SHOT = "zero-shot"
    NOVEL_TYPES = "novel-types"
    FEW_SHOT = "few-shot"
    FINE_TUNING = "fine-tuning"
    RETRIEVAL = "retrieval"
    INTEGRATION = "integration"
    DISEASE = "disease"
    PATHWAYS = "pathways"
    MASKED_GENES = "masked-genes"
    DOUBT = "doubt"
    CLUSTERS = "clusters"
    EXPLANATIONS = "explanations"
    ALL = "all"


_STUDIES = "Studies and methods"

Seeds = Annotated[int, typer.Option(help="Number of random seeds.", min=1, rich_help_panel=_STUDIES)]
Data = Annotated[
    Path,
    typer.Option(help="Folder with the folders train/, validation/ and genes/.", rich_help_panel=_STUDIES),
    Reads(lambda data, _: (Path(data) / folder for folder in ("train", "validation", "genes"))),
]
Study = Annotated[
    list[str] | None,
    typer.Option(help="Study to use instead of the task's own; can be repeated.", rich_help_panel=_STUDIES),
]
Studies = Annotated[
    list[Path] | None,
    typer.Option(help="YAML file that describes more studies; can be repeated.", rich_help_panel=_STUDIES),
    Reads(),
]
MethodName = Annotated[
    list[str] | None,
    typer.Option(help="Method to run instead of all; can be repeated.", rich_help_panel=_STUDIES),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Weight of the similarity against the matching.", show_default="the checkpoint's", rich_help_panel=SCORING
    ),
]
GeneSets = Annotated[
    Path | None,
    typer.Option(
        help="File of gene sets (.gmt), for the task on pathways.", callback=existing_file, rich_help_panel=_STUDIES
    ),
    Reads(),
]
Download = Annotated[
    bool, typer.Option("--download", help="Download studies that are on the web.", rich_help_panel=_STUDIES)
]
ResultsFolder = Annotated[
    Path,
    typer.Option(help="Folder for the results; earlier ones in it are kept.", rich_help_panel=RESULTS),
    WritesFolder(new=False, alone=False),
]
Figures = Annotated[
    Path | None,
    typer.Option(help="Folder for figures.", rich_help_panel=RESULTS),
    WritesFolder(new=False, alone=False),
]
ResultsPage = Annotated[
    Path | None,
    typer.Option("--report", help="HTML page of all tasks that were run.", rich_help_panel=RESULTS),
    Writes(kind=PAGE),
]


@app.command(
    rich_help_panel=MAKING,
    epilog=examples(
        "langcell evaluate zero-shot clusters --seeds 1 --report evaluation.html",
        "langcell evaluate few-shot --adapter runs/adapter --studies my-studies.yaml",
    ),
)
def evaluate(
    tasks: Annotated[list[TaskName], typer.Argument(metavar="TASK...", help="Tasks to run.")],
    model: Model = MINI,
    adapter: Adapter = None,
    seeds: Seeds = 3,
    data: Data = Path("../shared/data"),
    study: Study = None,
    studies: Studies = None,
    method: MethodName = None,
    alpha: Alpha = None,
    gene_sets: GeneSets = None,
    download: Download = False,
    out: ResultsFolder = Path("runs/results"),
    figures: Figures = None,
    report: ResultsPage = None,
    device: Device = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate a checkpoint and baselines, task by task; the same command resumes a run that was killed."""
    with needs_extra("adapt,eval"):
        names = [task.value for task in tasks]
        found = [evaluation.find_task(name) for name in (evaluation.TASKS if "all" in names else names)]
        context_of = evaluation.EvaluationContext
    drawings = out / "figures" if figures is None and report is not None else figures
    known = evaluation.read_studies(*studies or ())
    context = context_of(resolve_checkpoint(model), adapter, data, known, alpha, download, gene_sets, device)
    results, drawn = [], {}
    written: dict[str, dict[str, Any]] = {}
    for task in found:
        with sole_writer(out / f"{task.name}.json"):
            results.append(
                evaluation.evaluate(task, context, seeds=seeds, out=out, studies=study or (), methods=method or ())
            )
        if drawings is not None:
            drawn[task.name] = evaluation.draw_task(results[-1], drawings)
        written[task.name] = {"results": out / f"{task.name}.json", "figures": drawn.get(task.name, [])}
        if not as_json:
            print_task(out / f"{task.name}.md", **written[task.name])
    if report is not None:
        evaluation.write_html(results, drawn, report)
    if as_json:
        say_json({"tasks": written, "report": report})
    elif report is not None:
        say(f"Report: {report}")


def print_task(table: Path, results: Path, figures: Sequence[Path]) -> None:
    """Prints the table of a task, and its files."""
    for line in table.read_text().splitlines():
        say(line)
    say(f"Results: {results}")
    for figure in figures:
        say(f"Figure: {figure}")
