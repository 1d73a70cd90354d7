# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Commands that convert checkpoints and publish them on the Hub: convert, export, card and publish."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

import modeling_langcell as langcell

from .. import checkpoint, conversion, publishing
from ..io.file_kinds import CARD
from .options import PUBLISHING, AsJson, Revision, examples
from .paths import Reads, Writes, WritesFolder, local_checkpoint
from .terminal import say, say_json

app = typer.Typer()


@app.command(
    rich_help_panel=PUBLISHING,
    epilog=examples(
        "langcell convert parts --token-dictionary tokens.pkl --gene-medians medians.pkl --gene-names names.pkl "
        "--text-vocab vocab.txt --out runs/published"
    ),
)
def convert(
    parts: Annotated[
        Path,
        typer.Argument(
            metavar="PARTS",
            help="Folder with cell_bert/, text_bert/, cell_proj.bin, text_proj.bin and ctm_head.bin, as published.",
        ),
        Reads(),
    ],
    token_dictionary: Annotated[Path, typer.Option(help="Pickle file of Ensembl ids and their token ids."), Reads()],
    gene_medians: Annotated[Path, typer.Option(help="Pickle file of Ensembl ids and their medians."), Reads()],
    gene_names: Annotated[Path, typer.Option(help="Pickle file of gene symbols and their Ensembl ids."), Reads()],
    text_vocab: Annotated[Path, typer.Option(help="The text encoder's vocab.txt."), Reads()],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoint; it must not exist."), WritesFolder()],
    as_json: AsJson = False,
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
    if as_json:
        say_json({"checkpoint": folder})
        return
    say(f"Checkpoint: {folder}")


@app.command(rich_help_panel=PUBLISHING, epilog=examples("langcell export langcell-mini --out runs/encoder"))
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Checkpoint: a folder or a Hub id."), Reads(local_checkpoint)
    ],
    out: Annotated[Path, typer.Option(help="Folder for the encoder; it must not exist."), WritesFolder()],
    masked_genes: Annotated[
        bool, typer.Option("--masked-genes", help="Include the masked-gene head, as Geneformer is published.")
    ] = False,
    revision: Revision = None,
    as_json: AsJson = False,
) -> None:
    """Write the cell encoder alone, as a BERT that transformers and Geneformer's tools load."""
    folder = conversion.export_cell_tower(model, out, masked_genes=masked_genes, revision=revision)
    if as_json:
        say_json({"encoder": folder, "defines_its_ids": (folder / conversion.GENES).is_file()})
        return
    if not (folder / conversion.GENES).is_file():
        say(f"The checkpoint does not define its ids, so there is no {conversion.GENES}.")
    say(f"Encoder: {folder}")


@app.command(rich_help_panel=PUBLISHING, epilog=examples("langcell card runs/mine --results runs/results"))
def card(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="Folder of a checkpoint or an adapter."),
        Writes(lambda folder, _: [Path(folder) / checkpoint.CARD], CARD),
    ],
    results: Annotated[
        Path | None, typer.Option(help="Folder that 'langcell evaluate --out' wrote for this checkpoint."), Reads()
    ] = None,
    about: Annotated[
        Path | None,
        typer.Option(help="YAML file of facts that no other file in the folder holds: limits, failure modes, licence."),
        Reads(),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the card (README.md) of a checkpoint or an adapter from its own files and the results of an evaluation."""
    written = publishing.write_card(folder, results, about)
    if as_json:
        say_json({"card": written})
        return
    say(f"Card: {written}")


@app.command(rich_help_panel=PUBLISHING, epilog=examples("langcell publish runs/mine --repo-id YOU/NAME --dry-run"))
def publish(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of a checkpoint, an architecture or an adapter."), Reads()
    ],
    repo_id: Annotated[
        str, typer.Option(help="Repository on the Hub, as OWNER/NAME; it is created if it does not exist.")
    ],
    base: Annotated[str | None, typer.Option(help="Hub id of the checkpoint that an adapter was made from.")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Folder that 'langcell evaluate' wrote, to compare the card with."), Reads()
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Make the repository private.")] = False,
    tag: Annotated[str | None, typer.Option(help="Name of this version, such as v1.0.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the folder and list the files, but send nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check a checkpoint or an adapter, and push it to the Hub in one commit."""
    published = langcell.publish(folder, repo_id, base=base, results=results, private=private, tag=tag, dry_run=dry_run)
    if as_json:
        say_json(asdict(published) | {"sent": not dry_run})
        return
    for name, size in published.files.items():
        say(f"{size:>14,}  {name}")
    say(f"{sum(published.files.values()):>14,}  bytes in {len(published.files)} files, {published.kind}")
    for name in published.left_out:
        say(f"Left out: {name}")
    if published.base:
        say(f"Base: {published.base}")
    if dry_run:
        say(f"Nothing was sent. Without --dry-run, this is pushed to {repo_id} in one commit.")
    else:
        say(f"Published: {published.url}" + (f", tagged {tag}" if tag else ""))
