# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The shipped checkpoint: complete, with the package's code, small, and accurate on held-out cells."""

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from transformers import AutoModel, AutoProcessor

from modeling_langcell import LangCellAnnotator, LangCellModel
from modeling_langcell.ontology import ancestors, id_of
from tests.support.paths import REPOSITORY

MINI = REPOSITORY / "hub_configs" / "langcell-mini"


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained(MINI)


def test_it_loads_completely_in_float32():
    model, report = AutoModel.from_pretrained(MINI, output_loading_info=True)
    assert type(model) is LangCellModel
    assert model.dtype == torch.float32
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    processor = AutoProcessor.from_pretrained(MINI)
    assert len(processor.feature_extractor) == model.config.cell_config.vocab_size
    assert len(processor.tokenizer) == model.config.text_config.vocab_size


@pytest.mark.parametrize("folder", ["langcell-base", "langcell-mini"])
def test_its_code_is_linked_to_the_package(folder):
    source = REPOSITORY / "modeling_langcell" / "model"
    linked = sorted((REPOSITORY / "hub_configs" / folder).glob("*.py"))
    assert {path.name for path in linked} == {path.name for path in source.glob("*.py")} - {"__init__.py"}
    for path in linked:
        assert path.readlink() == Path("../../modeling_langcell/model", path.name)


def test_its_weights_are_small_and_safe():
    files = {path.name for path in MINI.iterdir()}
    assert (MINI / "model.safetensors").stat().st_size < 90e6
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]


@pytest.mark.long
@pytest.mark.parametrize(
    ("study", "accuracy"), [("pbmc_kang_ctrl", 0.84), ("pdac_moncada_card", 0.8), ("zheng68k_subset_pbmc", 0.53)]
)
def test_zero_shot_accuracy_on_held_out_cells(annotator, shared, study, accuracy):
    adata = ad.read_h5ad(shared / "data" / "validation" / f"{study}.h5ad")
    truth = adata.obs["cell_type"].astype(str)
    annotator.annotate(adata, sorted(set(truth) - {"unknown"}))
    known = truth != "unknown"
    assert (adata.obs["langcell_cell_type"].astype(str) == truth)[known].mean() >= accuracy


def test_normal_ducts_are_not_called_malignant(annotator, shared):
    adata = ad.read_h5ad(shared / "data" / "validation" / "pdac_moncada_card.h5ad")
    types = sorted(set(adata.obs["cell_type"].astype(str)) - {"unknown"})
    ducts = adata[adata.obs["cell_type"] == "pancreatic ductal cell"].copy()
    found = annotator.annotate(ducts, types).obs["langcell_cell_type"]
    assert (found == "malignant cell").mean() <= 0.15


@pytest.fixture(scope="module")
def blood(shared):
    """Held-out blood cells of eight types."""
    adata = ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")
    return adata[adata.obs["cell_type"] != "unknown"].copy()


@pytest.mark.long
def test_markers_find_types_that_its_texts_confuse(annotator, blood):
    truth = blood.obs["cell_type"].astype(str)
    found = annotator.annotate(blood.copy(), sorted(set(truth))).obs["langcell_cell_type"].astype(str)
    without = annotator.annotate(blood.copy(), sorted(set(truth)), marker_weight=0).obs["langcell_cell_type"]
    right, right_without = ((labels.astype(str) == truth).groupby(truth).mean() for labels in (found, without))
    assert right.mean() >= 0.8
    assert right.min() >= 0.7
    assert right["CD14-positive monocyte"] > right_without["CD14-positive monocyte"] + 0.3


@pytest.mark.long
@pytest.mark.parametrize(
    ("study", "tissue", "answered", "right"),
    [("pbmc_kang_ctrl", "blood", 0.9, 0.9), ("pdac_moncada_card", "pancreas", 0.55, 0.9)],
)
def test_answers_are_right_without_labels(annotator, shared, study, tissue, answered, right):
    cells = ad.read_h5ad(shared / "data" / "validation" / f"{study}.h5ad")
    cells = cells[cells.obs["cell_type"] != "unknown"].copy()
    truth = [id_of(label) for label in cells.obs["cell_type"].astype(str)]
    annotator.annotate(cells)
    assert cells.uns["langcell"]["tissues"][-1] == tissue
    given = [
        (id_of(answer), own)
        for answer, own in zip(cells.obs["langcell_answer"].astype(str), truth, strict=True)
        if answer != "unknown"
    ]
    assert len(given) > answered * len(truth)
    assert sum(answer == own or answer in ancestors(own) for answer, own in given) > right * len(given)


@pytest.mark.parametrize("gene", ["CD3D", "CD8A", "MS4A1", "NKG7", "CD14", "FCGR3A", "PPBP", "CD40LG"])
def test_cells_that_express_a_gene_are_found(annotator, blood, gene):
    if "X_langcell" not in blood.obsm:
        annotator.embed(blood)
    hits = annotator.search(blood, f"cells that express {gene}", top_k=8)
    (column,) = (blood.var["symbol"] == gene).to_numpy().nonzero()
    assert (blood.X[hits["row"].to_numpy()][:, column].toarray() > 0).all()


def mouse_names(annotator, symbols, form: str) -> list[str]:
    """Returns names of the mouse orthologs in a form; symbols in the spelling of mouse for genes without one."""
    vocabulary = annotator.processor.feature_extractor.gene_vocabulary
    pairs = zip(vocabulary["names"], vocabulary["orthologs"]["mouse"], strict=True)
    orthologs = {names.split("|")[0]: ortholog.split("|") for names, ortholog in pairs if "|" in ortholog}
    named = {symbol: form.format(id=gene, symbol=name) for symbol, (gene, name) in orthologs.items()}
    return [named.get(symbol, symbol.capitalize()) for symbol in symbols]


@pytest.mark.parametrize("form", ["{symbol}", "{id}", "{id}.4", "{symbol}_{id}", "mm10_{symbol}", "mm10---{id}"])
@pytest.mark.parametrize(
    "study",
    ["mouse_brain_zeisel_subset", "mouse_lung_zilionis_cluey", "mouse_gut_haber_scdesign", "mouse_marrow_tapseq"],
)
def test_mouse_cells_are_those_of_their_human_names(annotator, shared, study, form):
    cells = ad.read_h5ad(shared / "data/more/cells" / f"{study}.h5ad", backed="r")
    counts, symbols = cells.X[:20], cells.var["symbol"].astype(str).tolist()
    human = annotator.embed(ad.AnnData(counts, var=pd.DataFrame(index=symbols)))
    written = pd.DataFrame(index=mouse_names(annotator, symbols, form))
    mouse = annotator.embed(ad.AnnData(counts, var=written))
    np.testing.assert_allclose(mouse.obsm["X_langcell"], human.obsm["X_langcell"], atol=1e-5)
    assert mouse.uns["langcell"]["input"]["organism"] == "mouse"
    cells.file.close()
