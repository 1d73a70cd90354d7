# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Candidates on the command line: files of labels and genes, tissues, and names that no one knows."""

import json

import anndata as ad
import pytest

from modeling_langcell import InputError
from modeling_langcell.cli.labels import labels_file, read_candidates, read_labels
from modeling_langcell.ontology import usual_in

INS = {"description": "beta cell", "markers": ["INS", "IAPP"], "absent": ["GCG"]}


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("l.json", json.dumps({"beta": INS}), {"beta": INS}),
        ("l.tsv", "label\tdescription\tmarkers\tabsent\nbeta\tbeta cell\tINS, IAPP\tGCG\n", {"beta": INS}),
        ("l.csv", 'label,markers,absent,description\nbeta,"INS IAPP",GCG,beta cell\n', {"beta": INS}),
        ("l.csv", "label\nB cell\n", {"B cell": {"description": ""}}),
        (
            "l.gmt",
            "beta\tislets\tINS\tIAPP\nB cell\t\tMS4A1\n",
            {"beta": {"markers": ["INS", "IAPP"]}, "B cell": {"markers": ["MS4A1"]}},
        ),
        ("l.csv", "B cell\nT cell\n", {"B cell": "", "T cell": ""}),
        ("l.csv", '"CD4-positive, alpha-beta T cell"\n', {"CD4-positive, alpha-beta T cell": ""}),
        ("l.TXT", "B cell\nT cell\n", {"B cell": "", "T cell": ""}),
        ("l.tsv", '"B cell"\t"a ""B"" cell, of the\nB lineage"\n', {"B cell": 'a "B" cell, of the\nB lineage'}),
        ("l.tsv", "\ufeffB cell\nT cell\n", {"B cell": "", "T cell": ""}),
        ("l.txt", "B cell\r\n\r\nT cell\t\r\n", {"B cell": "", "T cell": ""}),
        ("l.tsv", "B cell\tone\nB cell\tanother\n", {"B cell": ["one", "another"]}),
        ("l.txt", "cell_type\nB cell\n", {"B cell": {"description": ""}}),
        ("l.tsv", "Label\tDescription\nB cell\ttext\n", {"B cell": {"description": "text"}}),
        ("l.tsv", '5" cell\ttext\n', {'5" cell': "text"}),
        ("l.csv", "label;description\nB cell;one, two\n", {"B cell": {"description": "one, two"}}),
        (
            "l.csv",
            "label\tmarkers\nB cell\tCD19;MS4A1\n",
            {"B cell": {"description": "", "markers": ["CD19", "MS4A1"]}},
        ),
        ("l.txt", 'Name,Definition\nB cell,"one, two"\n', {"B cell": {"description": "one, two"}}),
        ("l.csv", "label\nB cell\nB-cells\nT cell\n", {"B cell": {"description": ""}, "T cell": {"description": ""}}),
        ("l.csv", ",label\n0,B cell\n1,T cell\n", {"B cell": {"description": ""}, "T cell": {"description": ""}}),
        ("l.csv", "B cell\nB-cells\nCL_0000236\n", {"B cell": ""}),
        ("l.csv", "sep=;\nlabel;description\nB cell;one\n", {"B cell": {"description": "one"}}),
        ("l.txt", "# my types\nB cell\n# another\nT cell\n", {"B cell": "", "T cell": ""}),
    ],
)
def test_files(tmp_path, name, content, expected):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert read_candidates(str(tmp_path / name), None) == expected
    assert labels_file(str(tmp_path / name)) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("l.gmt", "beta\tislets\n", "no genes for 'beta'"),
        ("l.gmt", "beta\t\tINS\nbeta\t\tIAPP\n", "label 'beta' twice"),
        ("l.gmt", "# a comment\nbeta INS IAPP\n", "no genes for 'beta INS IAPP'"),
        ("l.csv", "beta,INS\n", r"a line of 2 columns, 'beta', \.\.\.: name the columns in a first line"),
        ("l.csv", "set,markers\nbeta,INS\n", "none of them is 'label'"),
        ("l.tsv", "set\tdescription\nbeta\tbeta cell\n", "none of them is 'label'"),
        ("l.csv", "beta;cell type: beta cell.\n", "has the line 'beta;cell type: beta cell.': write one label in each"),
        ("l.txt", "B cell; T cell\n", "write one label in each line"),
        ("l.csv", "cell_type,name\nB cell,T cell\n", "several columns of the label: leave one"),
        ("l.csv", "", "holds no labels"),
        (
            "l.csv",
            "label,description\nB cell,one, two\n",
            r"a line of 3 columns, 'B cell', .*first line names 2: quote",
        ),
        ("l.tsv", "B cell\tCL:0000236\n", "'CL:0000236' is the id of a type, not a description of 'B cell'"),
        ("l.json", "[]", "holds no labels"),
        ("l.csv", "CD4-positive, alpha-beta T cell\n", "quote cells that contain the separator"),
        ("l.tsv", "B cell\tcell type: B cell.\tCL:0000236\n", "a line of 3 columns"),
        ("l.tsv", "label\tmine\nB cell\tx\n", "a column 'mine'"),
        ("l.tsv", '"B cell\n', "cannot be read: unexpected end of data"),
        ("l.csv", "label,genes\nbeta,INS\n", "a column 'genes'"),
        ("l.csv", "label\nbeta\nbeta\n", "label 'beta' twice"),
        ("l.json", json.dumps({"beta": 3}), "must hold a list of labels"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, name, content, fault):
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=fault):
        read_labels(tmp_path / name)


def test_a_table_in_utf_16_is_read(tmp_path):
    (tmp_path / "l.txt").write_text("label\tdescription\nγδ T cell\tone\n", encoding="utf-16")  # As Excel saves it.
    assert read_labels(tmp_path / "l.txt") == {"γδ T cell": {"description": "one"}}


def test_ids_beside_their_names_are_no_labels(tmp_path):
    (tmp_path / "l.tsv").write_text("CL:0000236\tB cell\nCL_0000084\tT lymphocytes\nCL:0000236\tcell type: one.\n")
    found = {"B cell": "", "T lymphocytes": "", "CL:0000236": "cell type: one."}
    assert read_labels(tmp_path / "l.tsv") == found
    (tmp_path / "l.tsv").write_text("CL:9999999\tmy own kind of cell\n")
    assert read_labels(tmp_path / "l.tsv") == {"CL:9999999": "my own kind of cell"}


@pytest.mark.parametrize("header", ["cell.type", "Cell Types", "CellTypes", "CELL_TYPE", "Labels", "cell-type"])
@pytest.mark.parametrize("other", ["Definition", "cell_ontology_id", "CL ID", "Unnamed: 0"])
def test_columns_by_other_names(tmp_path, header, other):
    (tmp_path / "l.tsv").write_text(f"{other}\t{header}\nCL:0000236\tB cell\n\tT cell\n")
    if other == "Definition":
        with pytest.raises(InputError, match="'CL:0000236' is the id of a type"):
            read_labels(tmp_path / "l.tsv")
    else:
        assert list(read_labels(tmp_path / "l.tsv")) == ["B cell", "T cell"]


def test_markers_by_another_name_with_a_comma_too_many(tmp_path):
    (tmp_path / "l.csv").write_text('Cell type,Marker genes\nmine,"CD19, MS4A1,"\n')
    assert read_labels(tmp_path / "l.csv") == {"mine": {"description": "", "markers": ["CD19", "MS4A1"]}}


def test_labels_that_are_called_like_a_column_with_a_number_are_labels(tmp_path):
    (tmp_path / "l.tsv").write_text("Type 1\tcell type: one.\nType 2\tcell type: two.\n")
    assert list(read_labels(tmp_path / "l.tsv")) == ["Type 1", "Type 2"]


def test_a_file_of_another_kind_is_no_label(tmp_path):
    (tmp_path / "types.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"types\.xlsx cannot be read: a file of labels ends in \.json, .* CSV UTF-8"):
        labels_file(str(tmp_path / "types.xlsx"))
    for missing in ("no.xlsx", "no.tab", "no.docx"):
        with pytest.raises(InputError, match="a file of labels ends in"):
            labels_file(missing)
    (tmp_path / "labels").touch()
    with pytest.raises(InputError, match="a file of labels ends in"):
        labels_file(str(tmp_path / "labels"))
    assert labels_file("B cell; T cell, v1.2") is None
    assert labels_file("a long text. " * 1000) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("B cell;T cell", ["B cell", "T cell"]),
        ("B cell, T cell,", ["B cell", "T cell"]),
        ("'B cell'; \"T cell\"", ["B cell", "T cell"]),
        ('["B cell", "T cell"]', ["B cell", "T cell"]),
        ("B cell; B-cells", ["B cell"]),
        ("CD8-positive, alpha-beta T cell, B cell", ["CD8-positive, alpha-beta T cell", "B cell"]),
        (
            "B cell, CD4-positive, CD25-positive, alpha-beta regulatory T cell, T cell",
            ["B cell", "CD4-positive, CD25-positive, alpha-beta regulatory T cell", "T cell"],
        ),
    ],
)
def test_names_on_the_command_line(text, expected):
    assert read_candidates(text, None) == expected


class TestMarkersFile:
    @pytest.fixture
    def markers(self, tmp_path):
        path = tmp_path / "genes.gmt"
        path.write_text("NK\t\tGNLY\tNKG7\n")
        return path

    def test_genes_join_the_candidates(self, markers):
        found = read_candidates("NK;B cell", None, markers)
        assert found == {"NK": {"description": "", "markers": ["GNLY", "NKG7"]}, "B cell": ""}

    def test_genes_of_a_file_replace_those_of_the_labels(self, markers, tmp_path):
        (tmp_path / "l.json").write_text(json.dumps({"NK": {"description": "mine", "markers": ["KLRB1"]}}))
        found = read_candidates(str(tmp_path / "l.json"), None, markers)
        assert found == {"NK": {"description": "mine", "markers": ["GNLY", "NKG7"]}}

    def test_without_labels_its_own_are_the_candidates(self, markers):
        assert read_candidates(None, None, markers) == {"NK": {"markers": ["GNLY", "NKG7"]}}

    def test_other_labels_are_refused(self, markers):
        with pytest.raises(InputError, match=r"genes for 'NK'.* not among the candidates"):
            read_candidates("B cell;T cell", None, markers)

    def test_a_file_without_genes_is_refused(self, tmp_path):
        (tmp_path / "l.txt").write_text("NK\n")
        with pytest.raises(InputError, match="must hold genes for each label"):
            read_candidates("NK;B cell", None, tmp_path / "l.txt")


class TestAnnotate:
    def test_without_labels_the_catalogue_is_asked(self, run, cells_file, tiny_checkpoint):
        """The random cells of the tests come from no tissue that their few genes could tell."""
        for arguments, expected in (
            ((), usual_in(["blood"])),
            (("--no-markers",), usual_in()),
            (("--tissue", "liver", "--tissue", "lung"), usual_in(["liver", "lung"])),
        ):
            result = run("annotate", cells_file, "--model", tiny_checkpoint, "--alpha", 1, "--json", *arguments)
            assert result.exit_code == 0, result.output
            assert len(json.loads(result.stdout)["labels"]) == len(expected)

    def test_a_tissue_and_labels_are_refused(self, run, cells_file, tiny_checkpoint):
        result = run("annotate", cells_file, "--model", tiny_checkpoint, "--labels", "NK;B cell", "--tissue", "liver")
        assert result.exit_code == 2
        assert "not both" in result.stderr

    def test_unknown_names(self, run, cells_file, tiny_checkpoint):
        arguments = ("annotate", cells_file, "--model", tiny_checkpoint, "--labels", "NK;glowing cell;shining cell")
        result = run(*arguments)
        assert result.exit_code == 2
        assert "'glowing cell' (closest: " in result.stderr
        assert "'shining cell' (closest: " in result.stderr
        result = run(*arguments, "--accept-text", "--json")
        assert result.exit_code == 0, result.output
        assert {*json.loads(result.stdout)["labels"]} == {"NK", "glowing cell", "shining cell"}

    def test_markers_change_scores(self, run, cells_file, tiny_checkpoint, tmp_path):
        genes = tmp_path / "genes.gmt"
        genes.write_text("NK\t\tGENE1\tGENE2\nB cell\t\tGENE7\n")
        tables = []
        for weight in (0, 5):
            out = tmp_path / f"{weight}.h5ad"
            result = run(
                *("annotate", cells_file, "--model", tiny_checkpoint, "--labels", "NK;B cell", "--markers", genes),
                *("--marker-weight", weight, "--out", out),
            )
            assert result.exit_code == 0, result.output
            tables.append(ad.read_h5ad(out).obsm["langcell_probabilities"].to_numpy())
        assert abs(tables[0] - tables[1]).max() > 0.05

    def test_an_output_over_the_genes_is_refused(self, run, cells_file, tiny_checkpoint, tmp_path):
        genes = tmp_path / "genes.gmt"
        genes.write_text("NK\t\tGENE1\nB cell\t\tGENE7\n")
        result = run("annotate", cells_file, "--model", tiny_checkpoint, "--markers", genes, "--report", genes)
        assert result.exit_code == 2
        assert genes.read_text().startswith("NK")


class TestDescribe:
    def test_genes_are_shown(self, run, tiny_checkpoint, tmp_path, cells_file):
        (tmp_path / "l.json").write_text(
            json.dumps({"mine": {"description": "b", "markers": ["GENE1", "GENE99"], "absent": ["GENE7"]}})
        )
        result = run("describe", "--labels", tmp_path / "l.json", "--model", tiny_checkpoint, "--cells", cells_file)
        assert result.exit_code == 0, result.output
        assert "  genes  GENE1\n  absent GENE7\n  from   your own words\n" in result.stdout
        assert ": GENE99\n" in result.stdout

    def test_without_markers(self, run, tiny_checkpoint):
        result = run("describe", "NK", "--model", tiny_checkpoint, "--no-markers")
        assert result.exit_code == 0, result.output
        assert "genes" not in result.stdout


class TestLabels:
    def test_all_and_of_a_tissue(self, run, tmp_path):
        result = run("labels")
        assert result.exit_code == 0, result.output
        assert len(result.stdout.splitlines()) == len(usual_in())
        result = run("labels", "--tissue", "pancreas", "--out", tmp_path / "l.tsv")
        assert "CL:0000169  Beta                      type B pancreatic cell: INS, IAPP, " in result.stdout
        table = (tmp_path / "l.tsv").read_text().splitlines()
        assert len(table) == len(usual_in(["pancreas"])) + 1
        assert table[0] == "id\tlabel\tshort_name\tmarkers\tabsent"

    def test_no_such_tissue(self, run):
        result = run("labels", "--tissue", "lunge")
        assert result.exit_code == 2
        assert "no tissue 'lunge'" in result.stderr
