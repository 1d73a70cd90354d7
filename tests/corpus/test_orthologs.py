# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Orthologs from Ensembl BioMart's table, and corpora that read cells of another organism through them."""

import anndata as ad
import pytest

from modeling_langcell import InputError
from modeling_langcell.corpus.orthologs import read_orthologs, with_orthologs
from tests.corpus.conftest import build
from tests.support.tiny import GENES, SYMBOLS

HEADER = ["Gene stable ID", "Gene name", "Mouse gene name", "Mouse gene stable ID", "Mouse homology type"]


def table(path, rows, separator: str = ",", header=HEADER):
    path.write_text("\n".join(separator.join(row) for row in [header, *rows]) + "\n")
    return path


def mouse_id(number: int) -> str:
    return f"ENSMUSG{number:011d}"


@pytest.fixture
def orthologs(tmp_path):
    """One ortholog for each of the forty genes but the last; the third has only an id, the fourth has several."""
    kinds = {3: "ortholog_one2many", 39: ""}
    rows = [
        [gene, symbol, "" if number == 2 else f"Mouse{number}", mouse_id(number), kinds.get(number, "ortholog_one2one")]
        for number, (gene, symbol) in enumerate(zip(GENES, SYMBOLS, strict=True))
    ]
    return table(tmp_path / "human_to_mouse.csv", rows)


def test_one_to_one_orthologs_are_read(orthologs):
    found = read_orthologs(orthologs)
    assert found.organism == "mouse"
    names = found.names_of({"ensembl_ids": [*GENES[:4], "ENSG9"], "names": ["a", "b", "c", "d", f"{SYMBOLS[7]}|old"]})
    assert names == [f"{mouse_id(0)}|Mouse0", f"{mouse_id(1)}|Mouse1", mouse_id(2), "", f"{mouse_id(7)}|Mouse7"]


@pytest.mark.parametrize("separator", [",", "\t"])
def test_the_organism_is_told_from_the_header(tmp_path, separator):
    header = [name.replace("Mouse", "Zebrafish") for name in reversed(HEADER)]
    row = ["ortholog_one2one", "ENSDARG01", "cd4-1", "CD4", "ENSG01"]
    found = read_orthologs(table(tmp_path / "table", [row], separator, header))
    assert (found.organism, dict(found.by_ensembl_id)) == ("zebrafish", {"ENSG01": "ENSDARG01|cd4-1"})


@pytest.mark.parametrize("missing", HEADER)
def test_other_tables_are_refused(tmp_path, missing):
    header = [name for name in HEADER if name != missing]
    with pytest.raises(InputError, match="is no table of orthologs from Ensembl BioMart: it lacks '"):
        read_orthologs(table(tmp_path / "table.csv", [], ",", header))
    with pytest.raises(InputError, match=r"absent\.csv cannot be read: No such file"):
        read_orthologs(tmp_path / "absent.csv")


def test_names_are_added_to_those_of_other_organisms(orthologs):
    vocabulary = {"ensembl_ids": GENES[:1], "names": SYMBOLS[:1], "medians": [1.0], "orthologs": {"rat": ["R1|Cd3e"]}}
    assert with_orthologs(vocabulary, []) == vocabulary
    added = with_orthologs(vocabulary, [read_orthologs(orthologs)])
    assert added["orthologs"] == {"rat": ["R1|Cd3e"], "mouse": [f"{mouse_id(0)}|Mouse0"]}


def test_a_newer_symbol_of_ensembl_becomes_a_synonym(tmp_path):
    rows = [["ENSG1", "CIMAP3", "Pifo", "ENSMUSG1", "ortholog_one2one"], ["ENSG2", "CD4", "", "", ""]]
    tables = [read_orthologs(table(tmp_path / "table.csv", rows))]
    vocabulary = {
        "ensembl_ids": ["ENSG1", "ENSG2", "ENSG3"],
        "names": ["PIFO|C1orf88", "T4", "CD4"],
        "medians": [1.0] * 3,
    }
    assert with_orthologs(vocabulary, tables)["names"] == ["PIFO|C1orf88|CIMAP3", "T4", "CD4"], (
        "CD4 is another gene here"
    )


def test_a_corpus_of_mouse_cells_is_that_of_their_human_names(studies, tmp_path, gene_info, orthologs):
    by_human_names = build(studies, tmp_path / "human", gene_info, orthologs=(str(orthologs),))
    for file in studies.glob("*.h5ad"):
        adata = ad.read_h5ad(file)
        # The fourth gene and the last have no ortholog: they keep their human names, as a mixture would.
        kept = [name for number, name in enumerate(adata.var_names) if number not in (3, 39)]
        adata = adata[:, kept].copy()
        adata.write_h5ad(file)
    human = build(studies, tmp_path / "human-kept", gene_info, orthologs=(str(orthologs),))
    for file in studies.glob("*.h5ad"):
        adata = ad.read_h5ad(file)
        adata.var_names = [mouse_id(GENES.index(name)) for name in adata.var_names]
        adata.write_h5ad(file)
    with pytest.raises(InputError, match="ENSMUSG"):
        build(studies, tmp_path / "refused", gene_info)
    mouse = build(studies, tmp_path / "mouse", gene_info, orthologs=(str(orthologs),))
    assert mouse.gene_vocabulary == human.gene_vocabulary
    assert mouse.gene_vocabulary["orthologs"].keys() == {"mouse"}
    assert [cell["token_ids"] for cell in mouse.cells] == [cell["token_ids"] for cell in human.cells]
    assert len(by_human_names.gene_vocabulary["ensembl_ids"]) == len(mouse.gene_vocabulary["ensembl_ids"]) + 2
