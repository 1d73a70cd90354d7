# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The command that evaluates a checkpoint."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Annotated

import typer

import modeling_langcell.eval as evaluation
from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint
from modeling_langcell.cli.extras import needs_extra
from modeling_langcell.cli.options import Adapter, Device, Model, checkpoint_files, existing_file
from modeling_langcell.io.atomic import require_apart

app = typer.Typer()


@app.command()
def evaluate(
    tasks: Annotated[list[str], typer.Argument(metavar="TASK...", help="Names of tasks, or 'all'.")],
    model: Model = MINI,
    adapter: Adapter = None,
    seeds: Annotated[int, typer.Option(help="Number of random seeds.", min=1)] = 3,
    data: Annotated[Path, typer.Option(help="Folder with the folders train/, validation/ and genes/.")] = Path(
        "../shared/data"
    ),
    study: Annotated[
        list[str] | None, typer.Option(help="Study to use instead of the task's own; can be repeated.")
    ] = None,
    studies: Annotated[
        list[Path] | None, typer.Option(help="YAML file that describes more studies; can be repeated.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method to run instead of all; can be repeated.")] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Weight of the similarity against the matching.", show_default="the checkpoint's"),
    ] = None,
    gene_sets: Annotated[
        Path | None, typer.Option(help="File of gene sets (.gmt), for the task on pathways.", callback=existing_file)
    ] = None,
    download: Annotated[bool, typer.Option("--download", help="Download studies that are on the web.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the results; earlier ones in it are kept.")] = Path(
        "runs/results"
    ),
    figures: Annotated[Path | None, typer.Option(help="Folder for figures.")] = None,
    report: Annotated[Path | None, typer.Option(help="HTML page of all tasks that were run.")] = None,
    device: Device = None,
) -> None:
    """Evaluate a checkpoint and baselines, task by task; the same command resumes a run that was killed."""
    with needs_extra("adapt,eval"):
        found = [evaluation.find_task(name) for name in (evaluation.TASKS if tasks == ["all"] else tasks)]
        context_of = evaluation.EvaluationContext
    drawings = out / "figures" if figures is None and report is not None else figures
    require_apart(
        [*result_files({task.name for task in found}, out, drawings), ("--report", report)],
        [
            *(("--studies", path) for path in studies or ()),
            *(("--data", path) for folder in ("train", "validation", "genes") for path in data.glob(f"{folder}/*")),
            ("--gene-sets", gene_sets),
            *checkpoint_files("--model", model),
            *checkpoint_files("--adapter", adapter),
        ],
    )
    known = evaluation.read_studies(*studies or ())
    context = context_of(resolve_checkpoint(model), adapter, data, known, alpha, download, gene_sets, device)
    results, drawn = [], {}
    for task in found:
        results.append(
            evaluation.evaluate(task, context, seeds=seeds, out=out, studies=study or (), methods=method or ())
        )
        typer.echo((out / f"{task.name}.md").read_text())
        typer.echo(f"Results: {out / f'{task.name}.json'}")
        if drawings is not None:
            drawn[task.name] = evaluation.draw_task(results[-1], drawings)
            for path in drawn[task.name]:
                typer.echo(f"Figure: {path}")
    if report is not None:
        typer.echo(f"Report: {evaluation.write_html(results, drawn, report)}")


def result_files(tasks: Collection[str], out: Path, figures: Path | None) -> Iterator[tuple[str, Path]]:
    """Lists the files that an evaluation may write, each with the option that names its folder, for `require_apart`."""
    for task in sorted(tasks):
        yield from (("--out", out / f"{task}.{suffix}") for suffix in ("json", "md"))
        if figures is not None:
            yield from (("--figures", figures / f"{task}-{kind}.png") for kind in evaluation.FIGURES)
