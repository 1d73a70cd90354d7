# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What `var` says of its rows: which of them are genes, and where their names stand."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from modeling_langcell import InputError, LangCellFeatureExtractor

SYMBOLS = ["CD3E", "LYZ", "MS4A1", "CD4", "CD14"]
IDS = [f"ENSG{number:011d}" for number in range(1, 6)]
OTHERS = ["CD4-x", "CD14-x"]


@pytest.fixture(scope="module")
def extractor():
    return LangCellFeatureExtractor({"ensembl_ids": IDS, "medians": [1.0] * 5, "names": SYMBOLS})


def cells_of(names, **columns) -> ad.AnnData:
    names = list(names)
    counts = np.random.default_rng(0).permutation(4 * len(names)).reshape(4, -1).astype(np.float32) + 1
    return ad.AnnData(counts, var=pd.DataFrame(columns, index=names))


def read(extractor, adata, **options) -> list[list[int]]:
    ranked = extractor.rank(adata, **options)
    return [ranked[cell].tolist() for cell in range(4)]


@pytest.mark.parametrize("column", ["feature_types", "FeatureType", "feature_types-0", "modality", "Feature_Type"])
@pytest.mark.parametrize(
    ("gene", "other"),
    [
        ("Gene Expression", "Antibody Capture"),
        ("GeneExpression", "AntibodyCapture"),
        ("transcriptome", "surface"),
        ("RNA", "ADT"),
        ("RNA-seq", "CITE-seq"),
        ("protein_coding", "AbSeq"),
        ("expr", "protein_panel"),
        ("gene", "spike-in"),
        ("mRNA", "sgRNA"),
        ("Gene Expression", "Something else"),
    ],
)
def test_what_is_no_gene_is_left_out(extractor, column, gene, other):
    cells = cells_of([*SYMBOLS, "CD4", "CD14"], **{column: [gene] * 5 + [other] * 2})
    assert read(extractor, cells) == read(extractor, cells[:, :5].copy())


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        *(("gene_type", "cell surface"), ("gene_type", "surface"), ("gene_biotype", "guide_RNA")),
        *(("feature_type", "Custom gene expression"), ("gene_biotype", "antigen presentation")),
    ],
)
def test_genes_that_are_called_like_others_are_genes(extractor, column, kind):
    usual = "Gene Expression" if column == "feature_type" else "protein_coding"
    cells = cells_of(SYMBOLS, **{column: [usual] * 3 + [kind] * 2})
    assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))


def test_a_date_is_no_region_of_a_chromosome():
    dates = LangCellFeatureExtractor(
        {"ensembl_ids": IDS[:2], "medians": [1.0, 1.0], "names": ["SEPTIN7", "CD4"]}, min_matched_genes=0
    )
    cells = cells_of(["2021-09-07", "CD4", "12-100-200", "X:100-200"])
    assert dates.open(cells)[1].token_ids.tolist() == [2, 3]


def test_repeated_columns_of_var(extractor):
    cells = cells_of([f"row{number}" for number in range(5)], symbol=SYMBOLS)
    cells.var.insert(1, "symbol", "none", allow_duplicates=True)
    assert read(extractor, cells, gene_column="symbol") == read(extractor, cells_of(SYMBOLS))
    cells.raw = cells
    cells.var = pd.concat([cells.var, pd.DataFrame({"note": 1, "notes": 2}, cells.var_names)], axis=1)
    cells.var.columns = ["symbol", "symbol", "note", "note"]
    assert read(extractor, cells, use_raw=True) == read(extractor, cells_of(SYMBOLS))


@pytest.mark.parametrize("column", ["Type", "kind", "data_type"])
def test_any_column_of_kinds_is_believed(extractor, column):
    """DropletUtils calls it `Type`."""
    cells = cells_of([*SYMBOLS, "CD4", "CD14"], **{column: ["Gene Expression"] * 5 + ["Antibody Capture"] * 2})
    assert read(extractor, cells) == read(extractor, cells[:, :5].copy())
    other = cells_of(SYMBOLS, **{column: ["gene", "variable gene", "MT", "Ribo", "custom"]})
    assert read(extractor, other) == read(extractor, cells_of(SYMBOLS))


@pytest.mark.parametrize("column", ["gene_type", "gene_biotype"])
def test_no_biotype_of_a_gene_is_left_out(extractor, column):
    cells = cells_of(SYMBOLS, **{column: ["protein_coding", "other", "C_region", "antisense", "TEC"]})
    assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))


@pytest.mark.parametrize(
    "form", ["chr1_{0}00_{0}50", "chr1.{0}.9", "GL000194.1:{0}-99", "GRCh38_chr1:{0}-99", "X:{0}-99"]
)
def test_regions_of_chromosomes_are_no_genes(extractor, form):
    cells = cells_of([*SYMBOLS, *(form.format(number) for number in range(1, 90))])
    assert read(extractor, cells) == read(extractor, cells[:, :5].copy())


@pytest.mark.parametrize("missing", [np.nan, "", "nan", "NA"])
def test_a_row_without_a_kind_is_a_gene(extractor, missing):
    cells = cells_of(SYMBOLS, feature_types=["Gene Expression"] * 3 + [missing] * 2)
    assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))


@pytest.mark.parametrize(
    "kinds",
    [
        ["gene", "ncRNA_gene", "pseudogene", "gene", "gene"],
        ["protein_coding", "lncRNA", "TEC", "ribozyme", "IG_C_gene"],
        ["Gene Expression", "Gene Expression (targeted)", "Gene Expression", "Gene Expression", "Gene Expression"],
    ],
)
def test_all_kinds_of_genes_are_genes(extractor, kinds):
    cells = cells_of(SYMBOLS, gene_ids=IDS, feature_type=kinds)
    assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))


@pytest.mark.parametrize("name", ["ERCC-00002", "ERCC.00171", "Hashtag1", "Hashtag-12", "HTO1", "HTO_3", "CMO301"])
def test_tags_and_spike_ins_are_no_genes(extractor, name):
    cells = cells_of([*SYMBOLS, name])
    assert extractor.open(cells)[0].n_genes == 5
    assert read(extractor, cells) == read(extractor, cells[:, :5].copy())


@pytest.mark.parametrize(
    "form", ["{}_TotalSeqB", "{}-TotalSeqC", "{}_ADT", "ADT:{}", "{} antibody", "sgRNA:{}", "{0}:SK3|{0}|AHS0032|pAbO"]
)
@pytest.mark.parametrize("column", [None, "gene_ids", "gene_symbols"])
def test_names_that_no_gene_has(extractor, form, column):
    others = [form.format(name) for name in ("CD4", "CD14")]
    if column is None:
        cells = cells_of([*SYMBOLS, *others])
    else:
        cells = cells_of(
            [*SYMBOLS, "CD4-1", "CD14-1"], **{column: [*(IDS if column == "gene_ids" else SYMBOLS), *others]}
        )
    assert read(extractor, cells) == read(extractor, cells[:, :5].copy())


@pytest.mark.parametrize(
    "column", ["Gene", "hgnc_symbol", "SYMBOL", "GeneSymbol", "external_gene_name", "gene_name-1", "_index", "features"]
)
def test_usual_columns_of_symbols_are_read(extractor, column):
    cells = cells_of(map(str, range(5)), **{column: SYMBOLS})
    assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))


@pytest.mark.parametrize("column", ["ensembl_gene_id", "ENSEMBL", "EnsemblID", "gene_ids-0", "GeneID"])
def test_usual_columns_of_ids_are_read(extractor, column):
    cells = cells_of(["a", "b", "c", "d", "e"], **{column: IDS})
    assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))


def test_another_column_of_names_is_advised(extractor):
    cells = cells_of(map(str, range(5)), mine=SYMBOLS, note=["x"] * 5)
    with pytest.raises(
        InputError, match=r"^0 of the 5 genes .*Column 'mine' of var has such names: pass gene_column='mine'"
    ):
        extractor.rank(cells)
    assert read(extractor, cells, gene_column="mine") == read(extractor, cells_of(SYMBOLS))


class TestRaw:
    """What `var` says of the rows of `raw`, whose own table holds nothing but names."""

    def raw_of(self, adata: ad.AnnData) -> ad.AnnData:
        bare = ad.AnnData(adata.X.copy(), obs=adata.obs, var=pd.DataFrame(index=adata.var_names))
        found = adata.copy()
        found.X = np.log1p(found.X / found.X.sum(axis=1, keepdims=True) * 1e4)
        found.raw = bare
        return found

    def test_antibodies_are_left_out(self, extractor):
        kinds = ["Gene Expression"] * 5 + ["Antibody Capture"] * 2
        for names in (["CD4-1", "CD14-1"], ["CD4", "CD14"]):
            cells = cells_of([*SYMBOLS, *names], feature_types=kinds)
            assert read(extractor, self.raw_of(cells)) == read(extractor, cells[:, :5].copy())

    def test_names_are_found(self, extractor):
        unknown = [f"ENSG{number:011d}" for number in range(90, 95)]
        cells = cells_of(unknown, feature_name=SYMBOLS)
        assert read(extractor, self.raw_of(cells)) == read(extractor, cells_of(SYMBOLS))

    def test_numbers_name_the_same_rows_only_if_all_are_there(self, extractor):
        cells = self.raw_of(cells_of(map(str, range(5)), symbol=SYMBOLS))
        assert read(extractor, cells) == read(extractor, cells_of(SYMBOLS))
        fewer = cells[:, 2:].copy()
        fewer.var_names = ["0", "1", "2"]  # As pandas' reset_index leaves them.
        with pytest.raises(InputError, match=r"^0 of the 5 genes of raw\.X are known"):
            extractor.rank(fewer, use_raw=True)

    def test_a_column_that_is_not_there_is_said_of_raw(self, extractor):
        with pytest.raises(InputError, match=r"^No column 'mine' in raw\.var"):
            extractor.rank(self.raw_of(cells_of(SYMBOLS)), use_raw=True, gene_column="mine")
