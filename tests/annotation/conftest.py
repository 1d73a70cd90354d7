# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Fixtures of the tests of annotation: labelled studies, and a checkpoint that is calibrated on them."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.annotation.calibrate import calibrate
from tests.support.tiny import GENES

LABELS = ["B cell", "natural killer cell", "monocyte"]


def random_cells(cells, seed):
    """Draws cells with random counts."""
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(cells, len(GENES)))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"c{number}" for number in range(cells)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES))


@pytest.fixture(scope="session")
def labelled_studies(tiny_checkpoint, tmp_path_factory):
    """Two studies; the random checkpoint finds the labels of two thirds of the cells."""
    folder = tmp_path_factory.mktemp("studies")
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    for seed, name in enumerate(("one", "two")):
        adata = random_cells(60, seed)
        found = annotator.annotate(adata.copy(), LABELS).obs["langcell_cell_type"].astype(str).to_numpy()
        other = np.random.default_rng(seed).choice(LABELS, 60)
        adata.obs["cell_type"] = np.where(np.arange(60) % 3, found, other)
        adata.obs.loc["c0", "cell_type"] = "unknown"
        adata.write_h5ad(folder / f"{name}.h5ad")
    return [folder / "one.h5ad", folder / "two.h5ad"]


@pytest.fixture(scope="session")
def calibrated_checkpoint(tiny_checkpoint, labelled_studies, tmp_path_factory):
    folder = tmp_path_factory.mktemp("calibrated") / "calibrated"
    calibrate(tiny_checkpoint, labelled_studies, folder)
    return folder
