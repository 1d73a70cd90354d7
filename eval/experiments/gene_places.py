# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Measures what is usual for the place of each gene of a checkpoint, which marker evidence needs, and writes it into the
checkpoint's processor.

    python eval/experiments/gene_places.py hub_configs/langcell-mini --cells ../shared/data/train \
        --cells ../shared/data/more/cells

A type of a file weighs as the root of its number of cells, up to 20, so that blood does not decide what is usual. Files
of other species are left out. A gene's mean and spread are over the files that measure it; a gene that no file measures
is taken for an average one.
"""

import json
from pathlib import Path
from typing import Annotated

import anndata as ad
import numpy as np
import typer

from modeling_langcell.checkpoint.loading import load_processor
from modeling_langcell.io.atomic import atomic_write
from modeling_langcell.model.feature_extraction_langcell import LangCellFeatureExtractor
from modeling_langcell.model.gene_matching import UsualPlaces

_TYPE, _ORGANISM, _HUMAN = "cell_type_ontology_term_id", "organism", ("human", "homo sapiens")
_MOST = 20
_CHUNK = 256  # Cells whose places are held at once, for all genes.


def measure(paths: list[Path], extractor: LangCellFeatureExtractor) -> dict[str, list[float]]:
    """Returns the means and spreads of the places, in the order of the gene vocabulary."""
    ids = list(range(extractor.genes.first_gene_id, extractor.cls_token_id))
    weights, sums, squares = np.zeros((3, len(ids)))
    for path in paths:
        adata = ad.read_h5ad(path)
        organism = str(adata.obs[_ORGANISM].iloc[0]) if _ORGANISM in adata.obs else _HUMAN[0]
        if organism.casefold() not in _HUMAN:
            continue
        types = adata.obs[_TYPE].astype(str) if _TYPE in adata.obs else np.full(adata.n_obs, "unknown")
        _, of_cell, sizes = np.unique(types, return_inverse=True, return_counts=True)
        weight = (np.minimum(np.sqrt(sizes), _MOST) / sizes)[of_cell]
        chunks = extractor.chunks(adata, places_of=ids, chunk_size=_CHUNK, empty_cells="mark")
        for number, ranked in enumerate(chunks):
            here = weight[chunks.rows(number)]
            measured = ~np.isnan(ranked.places[0])
            places = np.nan_to_num(ranked.places)
            weights += here.sum() * measured
            sums += here @ places
            squares += here @ places**2
    known = weights > 0
    means = np.where(known, sums / np.maximum(weights, 1e-9), UsualPlaces.AVERAGE[0])
    spreads = np.sqrt(np.maximum(squares / np.maximum(weights, 1e-9) - means**2, 0))
    spreads = np.where(known, spreads, UsualPlaces.AVERAGE[1])
    return {"means": np.round(means, 4).tolist(), "spreads": np.round(spreads, 4).tolist()}


def main(
    checkpoint: Annotated[Path, typer.Argument(help="Folder of the checkpoint.")],
    cells: Annotated[list[Path], typer.Option(help="Folders of .h5ad files of cells with known types.")],
) -> None:
    """Writes the usual places into the processor of a checkpoint."""
    paths = sorted(path for folder in cells for path in folder.glob("*.h5ad"))
    places = measure(paths, load_processor(checkpoint).feature_extractor)
    file = checkpoint / "processor_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["feature_extractor"]["gene_places"] = places
    atomic_write(file, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


if __name__ == "__main__":
    typer.run(main)
