# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Names of genes as people and tools write them, and genes of other organisms."""

import re

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.model.gene_names import GeneName

IDS = [f"ENSG{number:011d}" for number in range(1, 11)]
NAMES = ["CD3E|T3E", "HLA-DRA", "RN7SK|7SK", "SOD2", "NKX2-1|TTF1", "LYZ", "MS4A1|CD20", "MT-CO1", "CD8B", "Y_RNA"]
MOUSE = ["Cd3e", "", "", "Sod2", "Nkx2-1", "Lyz2", "Ms4a1", "mt-Co1", "Cd8b1", ""]
VOCABULARY = {
    "ensembl_ids": IDS,
    "medians": [1.0] * 10,
    "names": NAMES,
    "orthologs": {
        "mouse": [f"ENSMUSG{number:011d}|{symbol}" if symbol else "" for number, symbol in enumerate(MOUSE, 1)]
    },
}
SYMBOLS = [name.split("|")[0] for name in NAMES]
KNOWN = list(range(2, 12))


@pytest.fixture(scope="module")
def extractor():
    return LangCellFeatureExtractor(VOCABULARY)


def r_name(name: str) -> str:
    """What R's `make.names` makes of a name."""
    name = re.sub(r"[^A-Za-z0-9._]", ".", name)
    return f"X{name}" if name[0].isdigit() else name


@pytest.mark.parametrize(
    "form",
    [
        *("{e}.5", "{e}.5_2", "{e}-1", "{e}-5", "{e}.12_PAR_Y", "GRCh38_{e}", "gene:{e}", "{e}.3-1", "hg19_{e}.7"),
        *("{s}_{e}", "{e}_{s}", "{e}|{s}", "{s}:{e}", "{e}.9|{s}", "{s} ({e})", "{e};{s}", "{e}-{s}", "GRCh38-{s}_{e}"),
        *("GRCh38_{s}", "hg19-{s}", "GRCh38______{s}", "hg38.{s}", "gene-{s}", "HUMAN_{s}", "{s}|7157", "{s} (7157)"),
        *("{s}_7157", "{s}|HGNC:11998", " {s} ", "{s}_{s}", "b'{s}'", '"{s}"', "{s}~{e}", "{e}#{s}", "{s}|NM_000733.4"),
        *("{s}__chr11", "rna_{s}", "gene_{s}", "GRCh38_premrna_{s}", "GRCh38-3.0.0_{s}", "\ufeff{s}", "{s} [{e}]"),
        *("GRCh38p13_{s}", "GRCh37.p13_{s}", "GRCh38-2020-A_{s}", "Homo_sapiens_{s}", "Homo_sapiens_{e}"),
    ],
)
def test_a_gene_is_found_wherever_its_name_stands(extractor, form):
    names = [form.format(s=symbol, e=ensembl_id) for symbol, ensembl_id in zip(SYMBOLS, IDS, strict=True)]
    whole = 9 if "_" in form else 10  # An underscore is a part of Y_RNA.
    assert extractor.match_genes(names).token_ids.tolist()[:whole] == KNOWN[:whole]


@pytest.mark.parametrize("change", [r_name, lambda name: name.replace("_", "-"), lambda name: f"GRCh38_{r_name(name)}"])
def test_names_that_r_changed(extractor, change):
    names = [change(name) for name in SYMBOLS]
    assert extractor.match_genes(names).token_ids.tolist() == KNOWN
    assert extractor.match_genes([change("7SK"), change("TTF1")]).token_ids.tolist() == [4, 6]


def test_a_second_gene_of_a_name_is_the_same_gene(extractor):
    for repeated in ("CD3E-1", "CD3E.1"):
        match = extractor.match_genes(["CD3E", "LYZ", repeated])
        assert match.token_ids.tolist() == [2, 7, 2]
    assert extractor.match_genes(["CD3E", "CD3E_1", "CD3E_2"]).token_ids.tolist() == [2, -1, -1], "guides"
    assert extractor.match_genes(["NKX2-1", "LYZ-1"]).token_ids.tolist() == [6, -1], "no LYZ beside it"


def test_the_copy_on_y_is_the_same_gene(extractor):
    assert extractor.match_genes([IDS[0], f"{IDS[0]}_PAR_Y", "ENSGR0000000001"]).token_ids.tolist() == [2, 2, 2]


def test_an_unknown_id_falls_back_to_the_symbol_of_a_gene_that_is_not_there(extractor):
    new = "ENSG00000999999"
    assert extractor.match_genes([new, IDS[0]], ["SOD2", "CD3E"]).token_ids.tolist() == [5, 2]
    assert extractor.match_genes([new, IDS[3]], ["SOD2", "SOD2"]).token_ids.tolist() == [-1, 5]
    assert extractor.match_genes([f"SOD2_{new}"]).token_ids.tolist() == [5]
    assert extractor.match_genes([new], ["T3E"]).token_ids.tolist() == [2], "a synonym"
    assert extractor.match_genes([new], [IDS[4]]).token_ids.tolist() == [6], "a known id in another column"
    for order in ([0, 1], [1, 0]):  # The order of the genes does not matter.
        names = np.array([new, "ENSG00000888888"])[order].tolist()
        assert extractor.match_genes(names, ["SOD2", "SOD2"]).token_ids.tolist() == [5, 5]


def test_what_is_no_name_of_a_gene_is_not_known(extractor):
    names = ["", "nan", "1", "Y", "RNA", "CD3", "ENSG", "ENSG00000000099", "AC000001.1"]
    names += ["NM_000733", "CD3E_1_2", "a sentence about CD3E", "X 1 2"]
    assert extractor.match_genes(names).token_ids.tolist() == [-1] * len(names)
    assert GeneName.read("AC000001.1") == GeneName(None, ("AC000001.1",))


@pytest.mark.parametrize("missing", ["NA", "NaN", "nan", "None", "<NA>", "N/A", "NULL", "-", "?", ""])
def test_a_name_that_is_missing_is_no_gene(missing):
    words = LangCellFeatureExtractor(
        {"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": ["XK|NA|NULL", "SCN11A|NaN"]}
    )
    assert words.match_genes([missing, "XK", f"{missing}-1"]).token_ids.tolist() == [-1, 2, -1]


def test_parts_of_a_name_do_not_join_a_gene_that_is_there(extractor):
    synonym = LangCellFeatureExtractor(
        {"ensembl_ids": IDS[:2], "medians": [1.0] * 2, "names": ["MS4A1", "MS4A2|MS4A1"]}
    )
    assert synonym.match_genes(["MS4A1", "MS4A1_1", "MS4A1 (1)"]).token_ids.tolist() == [2, -1, -1]
    for other in ("CD3E:UCHT1", "anti-CD3E (UCHT1)", "CD3E antibody", "protein:CD3E", "CD3E_UCHT1", "T3E"):
        assert extractor.match_genes(["CD3E", other]).token_ids.tolist() == [2, -1], other
        assert extractor.match_genes([IDS[0], other]).token_ids.tolist() == [2, -1], other


def test_capitals_of_open_reading_frames():
    frames = LangCellFeatureExtractor({"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": ["C9orf72", "CXorf38"]})
    assert frames.match_genes(["C9ORF72", "CXORF38", "c9orf72"]).token_ids.tolist() == [2, 3, -1]


def test_symbols_that_lost_their_hyphens(extractor):
    assert extractor.match_genes(["HLADRA", "NKX21", "MTCO1"]).token_ids.tolist() == [3, 6, 9]
    assert extractor.match_genes(["HLA-DRA", "HLADRA"]).token_ids.tolist() == [3, -1], "the gene itself is there"
    taken = LangCellFeatureExtractor({"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": ["H1-3", "H13"]})
    assert taken.match_genes(["H13"]).token_ids.tolist() == [3], "a symbol of its own"
    two = LangCellFeatureExtractor({"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": ["A1-2", "A-12"]})
    assert two.match_genes(["A12"]).token_ids.tolist() == [-1]


@pytest.mark.parametrize(
    ("date", "symbol"),
    [
        *(("7-Sep", "SEPTIN7"), ("Sep-07", "SEPTIN7"), ("07-SEP", "SEPTIN7"), ("2021-09-07", "SEPTIN7")),
        *(("2021-03-08 00:00:00", "MARCHF8"), ("8-Mar", "MARCHF8"), ("1-Dec", "DELEC1"), ("Dec-01", "DELEC1")),
        *(("1-Mar", None), ("2021-03-02", None), ("2-Dec", None), ("3-Sep", None), ("7-Apr", None), ("7-Seps", None)),
    ],
)
def test_dates_that_a_spreadsheet_made_of_symbols(date, symbol):
    symbols = ["SEPTIN7", "MARCHF8", "DELEC1", "MARCHF1", "MTARC1"]
    vocabulary = {"ensembl_ids": IDS[:5], "medians": [1.0] * 5, "names": symbols}
    vocabulary["orthologs"] = {"mouse": [f"ENSMUSG{n:011d}|{one.capitalize()}" for n, one in enumerate(symbols, 1)]}
    spreadsheet = LangCellFeatureExtractor(vocabulary)
    expected = -1 if symbol is None else symbols.index(symbol) + 2
    for organism in ("human", "mouse"):
        assert spreadsheet.match_genes([date], organism=organism).token_ids.tolist() == [expected]


@pytest.mark.parametrize("name", ["MT-CO2", "MTCO2", "COX2", "COII", "ND1", "MT-ND4L", "ND4L", "CYTB", "RNR1", "ATP6"])
def test_mitochondrial_genes_are_not_those_that_have_their_names_as_synonyms(name):
    names = [f"MTCO2P12|{name}", "CD3E"]
    nuclear = LangCellFeatureExtractor({"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": names})
    expected = [2, 3] if name == "COII" else [-1, 3]
    assert nuclear.match_genes([name, "CD3E"]).token_ids.tolist() == expected
    whole = LangCellFeatureExtractor({"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": [name, "CD3E"]})
    assert whole.match_genes([name, "CD3E"]).token_ids.tolist() == [2, 3]


def mouse_names(ids: bool) -> list[str]:
    return [f"ENSMUSG{number:011d}" if ids else symbol or f"Gm{number}" for number, symbol in enumerate(MOUSE, 1)]


@pytest.mark.parametrize(
    ("ids", "form"),
    [(True, "{}.4"), *((ids, form) for ids in (True, False) for form in ("{}", "mm10___{}", "GRCm39_{}", "mm10---{}"))],
)
def test_mouse_genes_are_read_through_their_orthologs(extractor, ids, form):
    match = extractor.match_genes([form.format(name) for name in mouse_names(ids)])
    assert match.organism == "mouse"
    known = [token if symbol else -1 for token, symbol in zip(KNOWN, MOUSE, strict=True)]
    assert match.token_ids.tolist() == known
    assert extractor.match_genes(mouse_names(True), organism="human").token_ids.tolist() == [-1] * 10


def test_a_mouse_gene_without_an_ortholog_is_the_one_of_its_name(extractor):
    names = [*mouse_names(False)[3:], "Hla-dra", "Cd8b"]
    assert extractor.match_genes(names).token_ids.tolist()[-2:] == [3, -1], "CD8B is Cd8b1"


def cells_of(names: list[str]) -> ad.AnnData:
    return ad.AnnData(np.arange(2 * len(names), dtype=np.float32).reshape(2, -1) + 1, var=pd.DataFrame(index=names))


def test_a_mixture_of_organisms_is_refused_and_one_can_be_read_alone(extractor):
    both = cells_of([*(f"GRCh38_{name}" for name in SYMBOLS), *(f"mm10___{name}" for name in mouse_names(False))])
    with pytest.raises(InputError, match=r"^X has genes of human and of mouse\. .* pass organism='human'"):
        extractor.rank(both)
    found = extractor.rank(both, organism="human")
    assert found.token_ids.tolist() == extractor.rank(both[:, :10]).token_ids.tolist()
    found = extractor.rank(both, organism="mouse")
    assert found.token_ids.tolist() == extractor.rank(both[:, 10:].copy()).token_ids.tolist()
    with pytest.raises(InputError, match="This checkpoint reads the genes of human and mouse, not of 'yeast'"):
        extractor.rank(both, organism="yeast")


def test_the_genome_of_a_name_tells_its_organism(extractor):
    """Symbols that both organisms spell alike, and those of mouse in capitals, are not read as human ones."""
    alike = cells_of([*(f"GRCh38_{name}" for name in SYMBOLS), *(f"mm10___{name.upper()}" for name in SYMBOLS)])
    with pytest.raises(InputError, match=r"^X has genes of human and of mouse\."):
        extractor.rank(alike)
    found = extractor.rank(alike, organism="human")
    assert found.token_ids.tolist() == extractor.rank(alike[:, :10]).token_ids.tolist()
    few = cells_of([*(f"GRCh38_{name}" for name in SYMBOLS), "mm10___CD3E"])
    assert extractor.rank(few).token_ids.tolist() == extractor.rank(few[:, :10]).token_ids.tolist()
    with pytest.raises(InputError, match="X has genes of another genome than that of human"):
        extractor.rank(cells_of([*(f"GRCh38_{name}" for name in SYMBOLS), *(f"rn6_{name}" for name in SYMBOLS)]))
    some = cells_of([*SYMBOLS[:8], "ENSSSCG00000000001", "ENSSSCG00000000002"])
    with pytest.raises(InputError, match="X has Ensembl ids of another organism, ENSSSCG"):
        extractor.rank(some)
    assert extractor.match_genes(["rn6_CD3E", "CD3E"]).token_ids.tolist() == [-1, 2]
    assert GeneName.read("Grcc10_ENSMUSG00000072772").symbols == ("Grcc10",), "a gene of mouse, no genome"


def test_the_wrong_organism_is_refused_with_the_right_one(extractor):
    with pytest.raises(InputError, match=r"of mouse are expected\. They are genes of human: pass organism='human'\.$"):
        extractor.rank(cells_of([f"ENSG{number:011d}" for number in range(1, 11)]), organism="Mouse")
    with pytest.raises(InputError, match="They are genes of mouse: pass organism='mouse'"):
        extractor.rank(cells_of(mouse_names(True)), organism="human")


@pytest.mark.parametrize("name", ["Mus musculus", "Mouse", "NCBITaxon:10090", "mouse"])
def test_an_organism_has_several_names(extractor, name):
    assert extractor.match_genes(mouse_names(True), organism=name).organism == "mouse"


@pytest.mark.parametrize(
    ("column", "noted"),
    [
        *(("organism", "Macaca mulatta"), ("species", "rat"), ("organism_ontology_term_id", "NCBITaxon:9544")),
        *(("Organism", "Sus_scrofa"), ("Species", "Pan troglodytes"), ("species", "non-human primate")),
    ],
)
def test_an_organism_that_the_file_names_and_no_one_knows_is_refused(extractor, column, noted):
    cells = cells_of(SYMBOLS)
    cells.obs[column] = noted
    with pytest.raises(InputError, match=f"of another organism than .*: '{noted}'.*pass organism='human'"):
        extractor.rank(cells)
    assert len(extractor.rank(cells, organism="human")) == 2
    cells.obs[column] = ["NCBITaxon:9606" if "term" in column else "Homo sapiens", noted]
    with pytest.raises(InputError, match=f"of another organism than .*: '{noted}'"):
        extractor.rank(cells)
    for known in ("Homo sapiens", "Human blood", "NCBITaxon:9606", "unknown"):
        cells.obs[column] = known
        assert len(extractor.rank(cells)) == 2


def test_ids_of_an_unknown_organism_are_refused_even_with_known_symbols(extractor):
    rat = cells_of([f"ENSRNOG{number:011d}" for number in range(10)])
    rat.var["symbol"] = [symbol or "Xyz" for symbol in MOUSE]
    with pytest.raises(InputError, match=r"^X has Ensembl ids of another organism, ENSRNOG\.\.\.: .*organism='mouse'"):
        extractor.rank(rat)
    assert extractor.match_genes(rat.var_names, rat.var["symbol"], organism="mouse").by_symbol == 7
    del rat.var["symbol"]
    with pytest.raises(InputError, match=r"^X has Ensembl ids of another organism, .* the names of their orthologs"):
        extractor.rank(rat)
    rat.var["symbol"] = [symbol or "Xyz" for symbol in MOUSE]
    rat.var_names = [f"rat gene {number}" for number in range(10)]
    assert len(extractor.rank(rat)) == 2, "symbols alone do not tell rat from mouse"


def test_a_vocabulary_of_another_organism():
    fish = LangCellFeatureExtractor(
        {
            "organism": "zebrafish",
            "ensembl_ids": ["ENSDARG00000000001", "ENSDARG00000000002"],
            "medians": [1.0, 2.0],
            "names": ["cd4-1", "mki67"],
        }
    )
    assert fish.genes.organisms == ["zebrafish"]
    assert fish.match_genes(["ENSDARG00000000002.3", "cd4-1"]).token_ids.tolist() == [3, 2]
    with pytest.raises(InputError, match="gene symbols of zebrafish are expected"):
        fish.rank(cells_of(SYMBOLS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"organism": 3}, "organism must be a name"),
        ({"orthologs": {"mouse": ["a"]}}, "orthologs must be lists of strings by organism, as long as ensembl_ids"),
        ({"orthologs": []}, "orthologs must be lists"),
    ],
)
def test_vocabularies_that_do_not_fit(change, message):
    with pytest.raises(InputError, match=message):
        LangCellFeatureExtractor(VOCABULARY | change)
