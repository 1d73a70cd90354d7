# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Genes from NCBI's table, and medians from sketches."""

import numpy as np
import pytest
import scipy.sparse as sp

from modeling_langcell import InputError
from modeling_langcell.corpus.genes import MedianSketch, all_genes_extractor, merge_gene_vocabulary, read_gene_info
from tests.corpus.conftest import build
from tests.support.tiny import GENES


def test_other_tables_are_refused(tmp_path):
    (tmp_path / "table.tsv").write_text("a\tb\n1\t2\n")
    with pytest.raises(InputError, match="gene_info"):
        read_gene_info(tmp_path / "table.tsv")
    with pytest.raises(InputError, match="No gene_info"):
        read_gene_info(tmp_path / "absent")


def table_of(path, rows):
    header = "#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription"
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n")
    return path


def test_an_ensembl_id_of_two_genes_has_both_symbols(tmp_path):
    rows = [("9606", symbol, "-", "Ensembl:ENSG01", symbol) for symbol in ("ASPRV1", "PCBP1-AS1")]
    (gene,) = read_gene_info(table_of(tmp_path / "table.tsv", rows))
    assert gene.names == "ASPRV1|PCBP1-AS1"


def test_the_symbol_of_a_gene_is_no_synonym_of_another(tmp_path):
    rows = [("9606", "MYDGF", "IL25|SF20", "Ensembl:ENSG01", ""), ("9606", "IL25", "-", "Ensembl:ENSG02", "")]
    rows += [("9606", "PTGS1", "COX1|PHS1", "Ensembl:ENSG03", ""), ("9606", "COX1", "-", "-", "")]
    genes = read_gene_info(table_of(tmp_path / "table.tsv", rows))
    assert [gene.names for gene in genes] == ["MYDGF|SF20", "IL25", "PTGS1|PHS1"]


def test_the_organism_is_that_of_the_table(tmp_path):
    fish = ("7955", "cd4-1", "-", "ZFIN:1|Ensembl:ENSDARG01", "cd4-1")
    genes = read_gene_info(table_of(tmp_path / "table.tsv", [fish]))
    assert [(gene.ensembl_id, gene.organism) for gene in genes] == [("ENSDARG01", "zebrafish")]
    assert all_genes_extractor(genes).genes.organisms == ["zebrafish"]
    human = ("9606", "CD4", "-", "Ensembl:ENSG01", "CD4")
    with pytest.raises(InputError, match="the genes of one organism; here: of human and zebrafish"):
        read_gene_info(table_of(tmp_path / "both.tsv", [fish, human]))
    with pytest.raises(InputError, match="here: none with an Ensembl id"):
        read_gene_info(table_of(tmp_path / "none.tsv", [("9606", "CD4", "-", "-", "CD4")]))


def test_medians_are_within_the_stated_error(gene_info):
    rng = np.random.default_rng(1)
    counts = sp.csr_matrix(rng.poisson(np.linspace(0.1, 30, len(GENES)), (501, len(GENES))).astype(float))
    extractor = all_genes_extractor(read_gene_info(gene_info))
    parts = []
    for rows in np.array_split(np.arange(501), 4):
        by_gene, totals = extractor.read_counts(counts[rows], gene_ids=GENES)
        parts.append(MedianSketch.from_counts(by_gene, totals))
    vocabulary = merge_gene_vocabulary(parts, read_gene_info(gene_info), min_cells=1)
    scaled = counts.multiply(1e4 / counts.sum(axis=1)).tocsc()
    exact = [np.median(scaled[:, gene].data) for gene in range(len(GENES))]
    assert vocabulary["ensembl_ids"] == GENES
    np.testing.assert_allclose(vocabulary["medians"], exact, rtol=0.0055)


def test_the_order_of_merging_does_not_matter(gene_info):
    rng = np.random.default_rng(2)
    extractor = all_genes_extractor(read_gene_info(gene_info))
    parts = [
        MedianSketch.from_counts(
            *extractor.read_counts(sp.csr_matrix(rng.poisson(2.0, (20, 40)).astype(float)), gene_ids=GENES)
        )
        for _ in range(5)
    ]
    genes = read_gene_info(gene_info)
    assert merge_gene_vocabulary(parts, genes, min_cells=1) == merge_gene_vocabulary(parts[::-1], genes, min_cells=1)
    assert merge_gene_vocabulary(parts[:4], genes, min_cells=1) != merge_gene_vocabulary(parts, genes, min_cells=1)


def test_rare_genes_get_no_id(studies, tmp_path, gene_info):
    with_all = build(studies, tmp_path / "all", gene_info)
    without = build(studies, tmp_path / "some", gene_info, min_cells=40)
    assert 0 < len(without.gene_vocabulary["ensembl_ids"]) < len(with_all.gene_vocabulary["ensembl_ids"])
