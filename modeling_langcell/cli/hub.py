# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that convert checkpoints and publish them on the Hub: convert, export, card and publish."""

from pathlib import Path
from typing import Annotated

import typer

import modeling_langcell as langcell

from .. import checkpoint, conversion, publishing
from ..io.atomic import require_apart
from .options import Revision

app = typer.Typer()


@app.command()
def convert(
    parts: Annotated[
        Path,
        typer.Argument(
            help="Folder with cell_bert/, text_bert/, cell_proj.bin, text_proj.bin and ctm_head.bin, as published."
        ),
    ],
    token_dictionary: Annotated[Path, typer.Option(help="Pickle file of Ensembl ids and their token ids.")],
    gene_medians: Annotated[Path, typer.Option(help="Pickle file of Ensembl ids and their medians.")],
    gene_names: Annotated[Path, typer.Option(help="Pickle file of gene symbols and their Ensembl ids.")],
    text_vocab: Annotated[Path, typer.Option(help="The text encoder's vocab.txt.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; it must not exist.")],
) -> None:
    """Turn the five published weight files into one checkpoint that AutoModel loads."""
    folder = langcell.convert(
        parts,
        token_dictionary=token_dictionary,
        gene_medians=gene_medians,
        gene_names=gene_names,
        text_vocab=text_vocab,
        output=out,
    )
    typer.echo(f"Checkpoint: {folder}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Checkpoint: a folder or a Hub id.")],
    out: Annotated[Path, typer.Option(help="Folder for the encoder; it must not exist.")],
    masked_genes: Annotated[
        bool, typer.Option("--masked-genes", help="Include the masked-gene head, as Geneformer is published.")
    ] = False,
    revision: Revision = None,
) -> None:
    """Write the cell encoder alone, as a BERT that transformers and Geneformer's tools load."""
    folder = conversion.export_cell_tower(model, out, masked_genes=masked_genes, revision=revision)
    if not (folder / conversion.GENES).is_file():
        typer.echo(f"The checkpoint does not define its ids, so there is no {conversion.GENES}.")
    typer.echo(f"Encoder: {folder}")


@app.command()
def card(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a checkpoint or an adapter.")],
    results: Annotated[
        Path | None, typer.Option(help="Folder that 'langcell evaluate --out' wrote for this checkpoint.")
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(help="YAML file of facts that no other file in the folder holds: limits, failure modes, licence."),
    ] = None,
) -> None:
    """Write the card (README.md) of a checkpoint or an adapter from its own files and the results of an evaluation."""
    evaluation = None if results is None else folder / checkpoint.EVALUATION
    require_apart([("The card", folder / checkpoint.CARD), ("The evaluation", evaluation)], [("--about", about)])
    typer.echo(f"Card: {publishing.write_card(folder, results, about)}")


@app.command()
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a checkpoint, an architecture or an adapter.")
    ],
    repo_id: Annotated[
        str, typer.Option(help="Repository on the Hub, as OWNER/NAME; it is created if it does not exist.")
    ],
    base: Annotated[str | None, typer.Option(help="Hub id of the checkpoint that an adapter was made from.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder that 'langcell evaluate' wrote, to compare the card with.")
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name of this version, such as v1.0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list the files, but send nothing.")
    ] = False,
) -> None:
    """Check a checkpoint or an adapter, and push it to the Hub in one commit."""
    published = langcell.publish(folder, repo_id, base=base, results=results, private=private, tag=tag, dry_run=dry_run)
    for name, size in published.files.items():
        typer.echo(f"{size:>14,}  {name}")
    typer.echo(f"{sum(published.files.values()):>14,}  bytes in {len(published.files)} files, {published.kind}")
    for name in published.left_out:
        typer.echo(f"Left out: {name}")
    if published.base:
        typer.echo(f"Base: {published.base}")
    if dry_run:
        typer.echo(f"Nothing was sent. Without --dry-run, this is pushed to {repo_id} in one commit.")
    else:
        typer.echo(f"Published: {published.url}" + (f", tagged {tag}" if tag else ""))
