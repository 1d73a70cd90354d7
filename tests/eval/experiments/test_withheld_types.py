# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Withheld types: the condition leaves them out of a corpus, with all kinds of them, and their cells are judged."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import LangCellAnnotator
from modeling_langcell.corpus.profiles import CELLS
from modeling_langcell.corpus.sources import CellsFile
from modeling_langcell.eval.experiments import withheld_types
from modeling_langcell.ontology import ancestors, find_term, is_term


def test_types_of_all_tissues_are_withheld():
    withheld = withheld_types.read_withheld()
    assert len(set(withheld)) == 40
    assert all(map(is_term, withheld))
    assert not any(one in ancestors(other) for one in withheld for other in withheld)


def test_the_condition_leaves_out_a_type_and_its_kinds(tmp_path):
    names = ["goblet cell", "type B pancreatic cell", "skeletal muscle fiber", "fast muscle cell", "epithelial cell"]
    ids = [find_term(name).id for name in names]
    obs = pd.DataFrame({"cell_type_ontology_term_id": [*ids, "unknown"]}, index=[*map(str, range(6))])
    ad.AnnData(np.ones((6, 2), dtype=np.float32), obs=obs).write_h5ad(tmp_path / "cells.h5ad")
    assert CellsFile(str(tmp_path / "cells.h5ad"), withheld_types.condition()).rows.tolist() == [4, 5]


def test_a_file_without_such_types_is_passed_over(shared):
    assert withheld_types.read_cells(shared / "data" / "train" / "pbmc_mimitou2019_eccite_citefuse.h5ad") is None


@pytest.mark.long
def test_cells_of_withheld_types_are_judged_among_all_types_of_their_file(shared):
    path = shared / "data" / "train" / "scp1884_gut_crohn.h5ad"
    cells, names = withheld_types.read_cells(path)
    sizes = cells.obs["cell_type"].value_counts()
    assert {"goblet cell", "paneth cell"} <= set(sizes.index) <= set(names)
    assert sizes.max() == 20
    study = withheld_types.measure(LangCellAnnotator.from_pretrained("langcell-mini"), path)
    assert study["candidates"] == len(names) == 33
    for recalls in study["recalls"].values():
        assert recalls.keys() == set(sizes.index)
    assert study["recalls"]["with the catalogue's markers"]["goblet cell"] > 0.5


def test_cells_are_drawn_from_averages(shared):
    cells, names = withheld_types.read_cells(shared / "data" / "more" / "profiles" / "retina_lung_ovary_profiles.h5ad")
    assert len(cells) % CELLS == 0
    assert set(cells.obs["cell_type"]) == {"retinal rod cell"}
    assert len(names) > 20
