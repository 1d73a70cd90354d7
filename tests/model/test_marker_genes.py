# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The genes that descriptions name: found in lists and sentences, present or absent, and nothing that is no gene."""

import pytest

from modeling_langcell import InputError
from modeling_langcell.checkpoint.loading import load_processor
from modeling_langcell.model.gene_matching import GeneVocabulary, UsualPlaces
from modeling_langcell.model.marker_genes import MarkerReader, without_gene_lists
from modeling_langcell.model.prompts import as_description
from tests.support.paths import REPOSITORY

#: Symbols with some of their real synonyms; two genes share CD16, and REST, MAX and the like are words.
NAMES = """
    PDCD1|CD279|PD-1 LAG3|CD223 TOX CD3D CD3E CD3G CD4 CD8A|CD8|p32 CD8B NCAM1|CD56|NCAM FCGR3A|CD16 FCGR3B|CD16 INS
    GCG SST IAPP MS4A1|CD20|Bp35 TH|TYH SLC6A3|DAT1 REST|NRSF MAX|bHLHd4 SET CAT IMPACT EPCAM HLA-DRA HLA-DRB1
    NKX2-1 ITGAX|CD11C CD1C KIT|CD117|c-Kit MKI67|KIA HAVCR2|TIM3|TIM-3 FOXP3 RPE|HUSSY-17 AGTR2|AT2 C1orf56 VIP
    PTPRC|CD45
""".split()


@pytest.fixture(scope="module")
def reader():
    ids = [f"ENSG{number:011d}" for number in range(len(NAMES))]
    return MarkerReader(GeneVocabulary({"ensembl_ids": ids, "medians": [1.0] * len(ids), "names": NAMES}))


def symbols(reader, ids):
    return " ".join(map(reader.genes.symbol_of, ids))


def in_symbols(reader, text):
    found = reader.read_text(text)
    return symbols(reader, found.present), symbols(reader, found.absent)


@pytest.fixture(scope="module")
def mini_reader():
    return MarkerReader(load_processor(REPOSITORY / "hub_configs" / "langcell-mini").feature_extractor.genes)


@pytest.mark.parametrize(
    ("text", "present", "absent"),
    [
        ("T cell with PDCD1, LAG3 and TOX", "PDCD1 LAG3 TOX", ""),
        ("exhausted T cell that expresses PD-1 and TIM-3", "PDCD1 HAVCR2", ""),
        ("a CD56+ CD3- cell", "NCAM1", "CD3D CD3E CD3G"),
        ("CD3-CD56+ lymphocyte", "NCAM1", "CD3D CD3E CD3G"),
        ("CD16-negative, CD56-bright natural killer cell", "NCAM1", "FCGR3A"),
        ("CD4-positive T cell, CD8-negative", "CD4", "CD8A CD8B"),
        ("B cell: MS4A1, -CD3E", "MS4A1", "CD3E"),
        ("T cell that lacks CD4 and CD8 but expresses CD3D", "CD3D", "CD4 CD8A CD8B"),
        ("Neither CD4 nor CD8 is there. It has CD3G.", "CD3G", "CD4 CD8A CD8B"),
        ("cell without EPCAM, with PTPRC", "PTPRC", "EPCAM"),
        ("HLA-DR high monocyte", "HLA-DRA HLA-DRB1", ""),
        ("CD11c+ CD1c+ dendritic cell", "ITGAX CD1C", ""),
        ("dopaminergic neuron with TH and SLC6A3", "TH SLC6A3", ""),
        ("TH+ neuron", "TH", ""),
        ("mast cell, c-Kit+; Foxp3-", "KIT", "FOXP3"),
        ("NKX2-1 positive, Ki-67 negative", "NKX2-1", "MKI67"),
        ("C1orf56 and ENSG00000000012", "C1orf56 INS", ""),
        ("CD4-low, CD56-dim", "", ""),
        ("CD45 cells", "PTPRC", ""),
    ],
)
def test_sentences(reader, text, present, absent):
    assert in_symbols(reader, text) == (present, absent)


#: Names as papers write them, and as the shipped checkpoint's vocabulary knows their genes.
@pytest.mark.parametrize(
    ("text", "present", "absent"),
    [
        ("KRT8/18 positive epithelial cell", "KRT8 KRT18", ""),
        ("S100A8/A9 high, S100A8/9", "S100A8 S100A9", ""),
        ("CD79A/B positive B cell", "CD79A CD79B", ""),
        ("MCM2/3/5 and HLA-DRA/B1", "MCM2 MCM3 MCM5 HLA-DRA HLA-DRB1", ""),
        ("markers: KRT5/14, TP63", "KRT5 KRT14 TP63", ""),
        ("CD3ε+ T cell with IFNγ, TNFα and TGFβ1", "CD3E IFNG TNF TGFB1", ""),
        ("CD8αα+ or CD8αβ+", "CD8A CD8B", ""),
        ("α-SMA+ PDGFRα+ fibroblast", "ACTA2 PDGFRA", ""),
        ("α-FOO, FooβR and γδ T cells with TCRγδ", "", ""),
        ("CD56dimCD16+ NK", "FCGR3A", ""),
        ("CD45RA-CCR7+ T cell", "CCR7", ""),
        ("CD11b-CD11c+", "ITGAX", "ITGAM"),
        ("low CD4, high CD8A, reduced expression of CD19", "CD8A", ""),
        ("HSC/MPP, L2/3 IT, microglia/PVM", "", ""),
    ],
)
def test_joint_and_greek_names(mini_reader, text, present, absent):
    assert in_symbols(mini_reader, text) == (present, absent)


@pytest.mark.parametrize(
    "text",
    [
        "cells at REST with MAX size, a SET of CAT scans with IMPACT",
        "the RPE and an AT2 cell",
        "insulin-producing cell of the pancreas",
        "cell type: natural killer cell. A lymphocyte that can spontaneously kill a variety of target cells.",
        "max, set, cat and rest",
        "",
    ],
)
def test_words_that_are_no_genes(reader, text):
    assert reader.read_text(text) == ((), (), ())


@pytest.mark.parametrize(
    ("text", "present", "absent", "unknown"),
    [
        ("beta cell. Markers: INS, IAPP", "INS IAPP", "", ()),
        ("markers: rest, Max, Cd3e, FOO9", "REST MAX CD3E", "", ("FOO9",)),
        ("genes: INS/GCG and SST.", "INS GCG SST", "", ()),
        ("Expresses: GCG; absent: INS, SST", "GCG", "INS SST", ()),
        ("markers: CD4, -CD8A", "CD4", "CD8A", ()),
        ("negative for: CD20", "", "MS4A1", ()),
        ("markers: insulin, HLA-DR", "INS HLA-DRA HLA-DRB1", "", ()),
    ],
)
def test_lists(reader, text, present, absent, unknown):
    assert in_symbols(reader, text) == (present, absent)
    assert reader.read_text(text).unknown == unknown


def test_a_gene_that_is_both_is_neither(reader):
    assert reader.read_text("CD4 and not CD4") == ((), (), ())


def test_a_descriptions_own_lists_say_all(reader):
    given = {"description": "a cell with GCG", "markers": ["ins", "FOO9"], "absent": ["CD3"]}
    found = reader.read(as_description("", given))
    assert symbols(reader, found.present) == "INS"
    assert symbols(reader, found.absent) == "CD3D CD3E CD3G"
    assert found.unknown == ("FOO9",)
    assert reader.read(as_description("", {"description": "GCG", "markers": []})) == ((), (), ())


def test_several_texts_add_up(reader):
    assert symbols(reader, reader.read(as_description("", ["with INS", "with GCG and INS"])).present) == "INS GCG"


@pytest.mark.parametrize(
    ("text", "rest"),
    [
        ("cell type: beta cell. Markers: INS, IAPP.", "cell type: beta cell."),
        ("markers: INS; a beta cell", "a beta cell"),
        ("cell type: B cell. A lymphocyte.", "cell type: B cell. A lymphocyte."),
        ("cells expressing: INS", "cells"),
    ],
)
def test_lists_can_be_left_out(text, rest):
    assert without_gene_lists(text) == rest


@pytest.mark.parametrize(
    "columns", [{"means": [0.1]}, {"means": [0.1, 0.2], "spreads": [0.1]}, {"means": [2.0], "spreads": [0.1]}, 3]
)
def test_usual_places_must_fit(columns):
    with pytest.raises(InputError, match="gene_places"):
        UsualPlaces(columns, 4)
