# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Trains langcell-mini's second stage several times, each time without some of the studies, so that these can be scored as
if they were new: langcell-mini is calibrated on them, too.

    python eval/experiments/cross_fitting.py --out runs/folds

It prints the command that calibrates langcell-mini. A training takes ten to twenty minutes on one core.
"""

import csv
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

RECIPE = Path("hub_configs/pretraining/mini-stage2.yaml")
SOURCES = Path("hub_configs/pretraining/sources.tsv")
#: Studies that each training leaves out. Files of one study leave together.
FOLDS = (
    ("liver_he2020_ahca", "pancreas_xin", "oligodendroglioma_tirosh", "melanoma_tcells_sadefeldman"),
    (
        *("crc_scmetalink_4210g", "nsclc_zilionis_scgate", "nsclc_dc_zilionis_rogue"),
        *("pollen2015_fetal_cortex", "myoblast_trapnell_hsmm", "pollen2014_11pops"),
    ),
    ("scp1884_gut_crohn", "prostate_cancer_gse141445", "gastrula_tyser", "pbmc_mimitou2019_eccite_citefuse"),
    (
        *("headneck_puram_chetah", "fetal_telencephalon_braun_hvg2000", "marrow_vangalen2019_cd34sorted"),
        *("mait_mast", "blakeley_embryo"),
    ),
)
#: Studies that langcell-mini is calibrated on: at least three types, and 5,000 genes that it knows.
FITTED = (
    *("liver_he2020_ahca", "oligodendroglioma_tirosh", "nsclc_zilionis_scgate", "nsclc_dc_zilionis_rogue"),
    *("pollen2015_fetal_cortex", "pollen2014_11pops", "scp1884_gut_crohn", "prostate_cancer_gse141445"),
    *("pbmc_mimitou2019_eccite_citefuse", "headneck_puram_chetah"),
)
#: Others with at least three types, but fewer genes.
JUDGED = (
    *("pancreas_xin", "melanoma_tcells_sadefeldman", "crc_scmetalink_4210g", "gastrula_tyser"),
    "fetal_telencephalon_braun_hvg2000",
)


def files_of(data: Path) -> dict[str, Path]:
    """Returns the files that langcell-mini is trained on, by name."""
    folders = (data / "train", data / "more" / "cells", data / "more" / "profiles")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.h5ad"))}


def cross_fitted(data: Path, folds: Path, names: Iterable[str]) -> dict[str | Path, str | Path]:
    """Returns the files of some studies with the trainings that left them out."""
    files, left_out = files_of(data), {name: number for number, fold in enumerate(FOLDS) for name in fold}
    return {files[name]: folds / str(left_out[name]) for name in names}


def train(number: int, data: Path, corpus: Path, out: Path) -> None:
    """Builds the corpus without a fold, with the genes of the whole corpus, and trains on it."""
    folder, fold, gene_info = out / f"corpus-{number}", FOLDS[number], data / "genes" / "Homo_sapiens.gene_info.gz"
    if not folder.exists():
        table = out / f"sources-{number}.tsv"
        with SOURCES.open() as every, table.open("w") as kept:
            rows = (row for row in csv.reader(every, delimiter="\t") if row[0] not in fold)
            csv.writer(kept, delimiter="\t", lineterminator="\n").writerows(rows)
        files = [path for name, path in files_of(data).items() if name not in fold]
        genes: list[str | Path] = ["--gene-info", gene_info, "--vocabulary", corpus]
        command = [sys.executable, "-m", "modeling_langcell.cli", "corpus", *files, *genes]
        _run([*command, "--sources", table, "--out", folder])
    _run([sys.executable, "train.py", RECIPE, f"corpus={folder}", "seed=1", f"output={out / str(number)}"])


def _run(command: list[str | Path]) -> None:
    subprocess.run(list(map(str, command)), check=True)


def main(
    data: Annotated[Path, typer.Option(help="Folder with train/, validation/ and more/.")] = Path("../shared/data"),
    corpus: Annotated[Path, typer.Option(help="The whole corpus.")] = Path("runs/corpus"),
    out: Annotated[Path, typer.Option(help="Folder for the trainings.")] = Path("runs/folds"),
    fold: Annotated[list[int] | None, typer.Option(help="Number of a fold, from 0; by default all.")] = None,
) -> None:
    """Train without some of the studies, a fold at a time."""
    out.mkdir(parents=True, exist_ok=True)
    for number in fold or range(len(FOLDS)):
        train(number, data, corpus, out)
    pairs = cross_fitted(data, out, FITTED).items()
    options = "".join(f" \\\n    --cross-fit {path}={checkpoint}" for path, checkpoint in pairs)
    command = "langcell calibrate --label-key cell_type --marker-weight 12.1 --out calibrated"
    typer.echo(f"{command} {data}/validation/*.h5ad{options}")


if __name__ == "__main__":
    typer.run(main)
