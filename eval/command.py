# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The command that evaluates a checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

import modeling_langcell.eval as evaluation
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.cli.extras import needs_extra
from modeling_langcell.cli.options import Adapter, Device, Model, existing_file
from modeling_langcell.cli.paths import Reads, Writes, WritesFolder
from modeling_langcell.cli.terminal import say
from modeling_langcell.io.file_kinds import PAGE
from modeling_langcell.io.launch import sole_writer

app = typer.Typer()


@app.command()
def evaluate(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Names of tasks, or 'all'.")],
    model: Model = MINI,
    adapter: Adapter = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.", min=1)] = 3,
    data: Annotated[
        Path,
        typer.Option(help="Folder with the folders train/, validation/ and genes/."),
        Reads(lambda data, _: (Path(data) / folder for folder in ("train", "validation", "genes"))),
    ] = Path("../shared/data"),
    study: Annotated[
        list[str] | None, typer.Option(help="Study to use instead of the task's own; can be repeated.")
    ] = None,
    studies: Annotated[
        list[Path] | None, typer.Option(help="YAML file that describes more studies; can be repeated."), Reads()
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method to run instead of all; can be repeated.")] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Weight of the similarity against the matching.", show_default="the checkpoint's"),
    ] = None,
    gene_sets: Annotated[
        Path | None,
        typer.Option(help="File of gene sets (.gmt), for the task on pathways.", callback=existing_file),
        Reads(),
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download studies that are on the web.")] = False,
    out: Annotated[
        Path,
        typer.Option(help="Folder for the results; earlier ones in it are kept."),
        WritesFolder(new=False, alone=False),
    ] = Path("runs/results"),
    figures: Annotated[
        Path | None, typer.Option(help="Folder for figures."), WritesFolder(new=False, alone=False)
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="HTML page of all tasks that were run."), Writes(kind=PAGE)
    ] = None,
    device: Device = None,
) -> None:
    """Evaluate a checkpoint and baselines, task by task; the same command resumes a run that was killed."""
    with needs_extra("adapt,eval"):
        found = [evaluation.find_task(name) for name in (evaluation.TASKS if tasks == ["all"] else tasks)]
        context_of = evaluation.EvaluationContext
    drawings = out / "figures" if figures is None and report is not None else figures
    known = evaluation.read_studies(*studies or ())
    context = context_of(resolve_checkpoint(model), adapter, data, known, alpha, download, gene_sets, device)
    results, drawn = [], {}
    for task in found:
        with sole_writer(out / f"{task.name}.json"):
            results.append(
                evaluation.evaluate(task, context, seeds=seeds, out=out, studies=study or (), methods=method or ())
            )
        for line in (out / f"{task.name}.md").read_text().splitlines():
            say(line)
        say(f"Results: {out / f'{task.name}.json'}")
        if drawings is not None:
            drawn[task.name] = evaluation.draw_task(results[-1], drawings)
            for path in drawn[task.name]:
                say(f"Figure: {path}")
    if report is not None:
        say(f"Report: {evaluation.write_html(results, drawn, report)}")
