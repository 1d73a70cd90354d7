# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Corpora: what they hold, and that it does not depend on how often a build was interrupted."""

import gzip
import pickle
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from uuid import uuid4

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.cli.main import app
from modeling_langcell.corpus.build import GENEFORMER, CorpusBuilder
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.corpus.sources import ASPECTS, find_sources
from modeling_langcell.io.atomic import atomic_write
from tests.corpus.conftest import build, same_folders
from tests.support.commands import start_python
from tests.support.tiny import GENES, SYMBOLS

#: Four studies of 1,337 real cells.
REAL_STUDIES = (
    "marrow_vangalen2019_cd34sorted",
    "nsclc_zilionis_scgate",
    "pbmc_mimitou2019_eccite_citefuse",
    "zheng_sorted_safe",
)
#: End of the name that `atomic_write` gives to an incomplete file.
SUFFIX = "0123456789abcdef" * 2


def _all_genes(folder: Path) -> str:
    """Writes a vocabulary of all the genes, in the order of the tables."""
    columns = {"ensembl_ids": GENES, "medians": [1.0] * len(GENES), "names": SYMBOLS}
    LangCellFeatureExtractor(columns).save_pretrained(folder / "all-genes")
    return str(folder / "all-genes")


class TestContent:
    def test_cells_are_ranked_as_the_extractor_ranks_them(self, studies, tmp_path, gene_info):
        corpus = build(studies, tmp_path / "corpus", gene_info)
        extractor = LangCellFeatureExtractor(corpus.gene_vocabulary, max_length=2048)
        expected = []
        for name in ("first", "second"):
            adata = ad.read_h5ad(studies / f"{name}.h5ad")
            ranked = extractor.rank(adata, empty_cells="mark")
            expected += [ranked[cell].tolist() for cell in range(2 * (name == "first"), len(ranked)) if cell != 5]
        assert [ids.tolist() for ids in corpus.token_ids(range(len(corpus)))] == expected
        assert corpus.facts["length"].tolist() == [len(ids) for ids in expected]
        assert str(corpus.cells.features["token_ids"].feature.dtype) == "uint16"

    def test_long_cells_are_truncated(self, studies, tmp_path, gene_info):
        corpus = build(studies, tmp_path / "corpus", gene_info, max_genes=8)
        assert corpus.facts["length"].max() == 8

    def test_every_aspect_of_a_cell_is_kept(self, studies, tmp_path, gene_info):
        facts = build(studies, tmp_path / "corpus", gene_info).facts
        assert list(facts) == ["length", "study", *ASPECTS, "profile"]
        first, second = facts[facts["study"] == "first"], facts[facts["study"] == "second"]
        obs = ad.read_h5ad(studies / "first.h5ad").obs.drop(index=["first0", "first1", "first5"])
        assert first["cell_type"].tolist() == obs["cell_type_ontology_term_id"].tolist()
        assert first["sex"].tolist() == ["PATO:0000383"] * 46 + ["unknown"]
        assert set(second["sex"]) == {"unknown"}
        assert set(facts["tissue"]) == {"UBERON:0000178"}

    def test_the_manifest_accounts_for_every_cell(self, studies, tmp_path, gene_info):
        manifest = build(studies, tmp_path / "corpus", gene_info).manifest
        first, second = manifest["sources"]
        assert first["cells"] == 50
        assert first["kept"] == 47
        assert first["left_out"] == {"no known gene": 1, "not primary data": 2}
        assert second["kept"] == manifest["cells"] - 47 == 29
        assert len(manifest["shards"]) == 4 + 2
        assert sum(shard["cells"] for shard in manifest["shards"]) == manifest["cells"]

    def test_panels_list_the_genes_that_each_source_measured(self, studies, tmp_path, gene_info):
        """A gene that no cell expresses was measured all the same."""
        silent = ad.read_h5ad(studies / "first.h5ad")
        silent.X = silent.X @ np.diag(np.arange(silent.n_vars) != 7)
        silent.write_h5ad(studies / "first.h5ad")
        corpus = build(studies, tmp_path / "corpus", gene_info, vocabulary=_all_genes(tmp_path))
        assert {key: panel.tolist() for key, panel in corpus.panels.items()} == {
            ("first", "first"): list(range(2, 42)),
            ("second", "second"): list(range(2, 27)),
        }

    def test_panels_of_a_source_of_two_studies_list_the_genes_that_each_expresses(self, studies, tmp_path, gene_info):
        both = ad.read_h5ad(studies / "first.h5ad")
        both.obs["dataset_id"] = np.repeat(["a", "b"], 25)
        expressed = both.X.toarray()
        expressed[25:, 20:] = 0
        both.X = expressed
        both.write_h5ad(studies / "first.h5ad")
        (studies / "second.h5ad").unlink()
        panels = build(studies, tmp_path / "corpus", gene_info, vocabulary=_all_genes(tmp_path)).panels
        assert panels["first", "a"].tolist() == list(range(2, 42))
        assert panels["first", "b"].tolist() == list(range(2, 22))

    @pytest.mark.parametrize("chunk_cells", [7, 1000])
    def test_usual_places_are_those_of_all_its_cells(self, studies, tmp_path, gene_info, chunk_cells):
        corpus = build(studies, tmp_path / "corpus", gene_info, chunk_cells=chunk_cells, max_genes=5)
        extractor = LangCellFeatureExtractor(corpus.gene_vocabulary)
        ids = range(2, len(extractor) - 1)
        weights, sums, squares = np.zeros((3, len(ids)))
        for study in ("first", "second"):
            adata = ad.read_h5ad(studies / f"{study}.h5ad")
            ranked = extractor.rank(adata, places_of=ids, empty_cells="mark")
            kept = ~ranked.without_genes
            if "is_primary_data" in adata.obs:
                kept &= adata.obs["is_primary_data"].to_numpy()
            for term in adata.obs["cell_type_ontology_term_id"].unique():
                places = ranked.places[kept & (adata.obs["cell_type_ontology_term_id"] == term).to_numpy()]
                weight = min(np.sqrt(len(places)), 20) / max(len(places), 1)
                weights += weight * (~np.isnan(places)).sum(axis=0)
                sums += weight * np.nansum(places, axis=0)
                squares += weight * np.nansum(places**2, axis=0)
        with np.errstate(invalid="ignore"):
            means, spreads = sums / weights, np.sqrt(np.maximum(squares / weights - (sums / weights) ** 2, 0))
        for name, expected, unmeasured in (("means", means, 0.1), ("spreads", spreads, 0.3)):
            expected = np.where(weights > 0, expected, unmeasured)
            np.testing.assert_allclose(corpus.gene_places[name], expected, atol=1e-4)

    def test_a_condition_selects_cells(self, studies, tmp_path, gene_info):
        corpus = build(studies, tmp_path / "corpus", gene_info, where="cell_type_ontology_term_id == 'CL:0000236'")
        assert set(corpus.facts["cell_type"]) == {"CL:0000236"}
        assert 0 < len(corpus) < 76
        with pytest.raises(InputError, match="cannot be evaluated"):
            build(studies, tmp_path / "other", gene_info, where="no_such_column == 1")

    def test_counts_are_read_from_raw_or_x(self, studies, tmp_path, gene_info):
        """CELLxGENE's files have normalised values in X and the counts in raw; a raw of other values is not read."""
        expected = build(studies, tmp_path / "expected", gene_info)
        for name, in_raw in (("first", True), ("second", False)):
            adata = ad.read_h5ad(studies / f"{name}.h5ad")
            counts, normalised = adata.X.copy(), (adata.X / 3).log1p()
            adata.X = counts if in_raw else normalised
            adata.raw = adata
            adata.X = normalised if in_raw else counts
            adata.write_h5ad(studies / f"{name}.h5ad")
        found = build(studies, tmp_path / "found", gene_info)
        assert found.gene_vocabulary == expected.gene_vocabulary
        assert found.manifest["shards"] == expected.manifest["shards"]

    def test_vocabulary_of_another_corpus(self, studies, tmp_path, gene_info):
        first = build(studies / "second.h5ad", tmp_path / "first", gene_info)
        other = build(studies, tmp_path / "other", gene_info, vocabulary=str(tmp_path / "first"))
        assert other.gene_vocabulary == first.gene_vocabulary
        assert len(other.gene_vocabulary["ensembl_ids"]) == 25

    def test_vocabulary_of_geneformer(self, studies, tmp_path, gene_info):
        folder = tmp_path / "geneformer"
        folder.mkdir()
        ids = {"<pad>": 0, "<mask>": 1} | {gene: 2 + i for i, gene in enumerate(reversed(GENES))}
        dictionaries = (ids, dict.fromkeys(GENES, 2.0), dict(zip(SYMBOLS, GENES, strict=True)))
        for name, content in zip(GENEFORMER, dictionaries, strict=True):
            (folder / name).write_bytes(pickle.dumps(content))
        corpus = build(studies, tmp_path / "corpus", gene_info, vocabulary=str(folder))
        assert corpus.gene_vocabulary["ensembl_ids"] == GENES[::-1]
        assert set(corpus.gene_vocabulary["medians"]) == {2.0}


@pytest.mark.parametrize(
    "name",
    [
        ".x",
        "..x",
        "._x",
        "a.b, c",
        "细胞 å",
        "first line\nsecond",
        "[ab]*?",
        "manifest.json",
        "plan.json",
        f".plan.json.{SUFFIX}",
        f".first-000000.arrow.{SUFFIX}",
        "x" * 195,
    ],
)
def test_unusual_names_of_sources(studies, tmp_path, gene_info, name):
    expected = build(studies, tmp_path / "expected", gene_info)
    (studies / "second.h5ad").rename(studies / f"{name}.h5ad")
    corpus = build(studies, tmp_path / "corpus", gene_info)
    assert len(corpus.cells) == len(corpus) == len(expected)
    assert corpus.facts["study"].value_counts().to_dict() == {"first": 47, name: 29}
    assert not (corpus.folder / "unfinished").exists()
    alone = build(studies / f"{name}.h5ad", tmp_path / "alone", gene_info)
    assert len(alone.cells) == 29


@pytest.mark.parametrize("where", ["layer", "raw"])
def test_counts_are_found_in_a_layer_and_in_raw(studies, tmp_path, gene_info, where):
    expected = build(studies, tmp_path / "expected", gene_info)
    for file in studies.glob("*.h5ad"):
        adata = ad.read_h5ad(file)
        if where == "layer":
            adata.layers["counts"] = adata.X.copy()
        else:
            adata.raw = adata.copy()
        adata.X = adata.X * 0.37
        adata.write_h5ad(file)
    found = build(studies, tmp_path / "found", gene_info)
    assert [cell["token_ids"] for cell in found.cells] == [cell["token_ids"] for cell in expected.cells]


def change_files(studies, change):
    for file in studies.glob("*.h5ad"):
        adata = ad.read_h5ad(file)
        (change(adata) or adata).write_h5ad(file)


def token_ids(corpus):
    return [cell["token_ids"] for cell in corpus.cells]


class TestReading:
    """What a corpus reads by other options than those that are found out."""

    def test_a_layer_that_is_named(self, studies, tmp_path, gene_info):
        expected = build(studies, tmp_path / "expected", gene_info)
        assert {source["read"]["array"] for source in expected.manifest["sources"]} == {"X"}

        def change(adata):
            adata.layers["ambient"] = adata.X.copy()
            adata.X = adata.X * 0.37

        change_files(studies, change)
        with pytest.raises(InputError, match="pass layer='ambient'") as refused:
            build(studies, tmp_path / "refused", gene_info)
        assert str(studies / "first.h5ad") in str(refused.value)
        assert "pass --layer ambient." in refused.value.on_command_line()
        assert "counts=" not in str(refused.value)
        found = build(studies, tmp_path / "found", gene_info, reading={"layer": "ambient"})
        assert token_ids(found) == token_ids(expected)
        assert {source["read"]["array"] for source in found.manifest["sources"]} == {"layers['ambient']"}

    def test_the_command_says_what_it_read(self, studies, tmp_path, gene_info):
        def change(adata):
            adata.layers["counts"], adata.layers["ambient"] = adata.X.copy(), adata.X.copy()
            adata.X = adata.X * 0.37

        change_files(studies, change)
        for options, layer in (([], "counts"), (["--layer", "ambient"], "ambient")):
            arguments = ["corpus", str(studies), "--gene-info", str(gene_info), "--min-cells", "1", *options]
            done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / layer)])
            assert done.exit_code == 0, done.output
            assert f"Counts: layers['{layer}'] (2 of 2 sources)." in done.output

    def test_raw_instead_of_other_counts(self, studies, tmp_path, gene_info):
        expected = build(studies, tmp_path / "expected", gene_info)

        def change(adata):
            adata.raw = adata.copy()
            adata.X = adata.X[:, ::-1].tocsr()

        change_files(studies, change)
        assert token_ids(build(studies, tmp_path / "x", gene_info)) != token_ids(expected)
        assert token_ids(build(studies, tmp_path / "raw", gene_info, reading={"use_raw": True})) == token_ids(expected)

    def test_a_column_of_names(self, studies, tmp_path, gene_info):
        expected = build(studies, tmp_path / "expected", gene_info)

        def change(adata):
            adata.var["mine"] = adata.var_names
            adata.var_names = [f"row{row}" for row in range(adata.n_vars)]

        change_files(studies, change)
        with pytest.raises(InputError, match="gene_column"):
            build(studies, tmp_path / "refused", gene_info)
        found = build(studies, tmp_path / "found", gene_info, reading={"gene_column": "mine"})
        assert token_ids(found) == token_ids(expected)

    def test_an_organism_that_is_not_there(self, studies, tmp_path, gene_info):
        with pytest.raises(InputError, match="mouse"):
            build(studies, tmp_path / "corpus", gene_info, reading={"organism": "mouse"})

    @pytest.mark.parametrize("reading", [{"layer": "absent"}, {"use_raw": True}, {"gene_column": "absent"}])
    def test_what_is_not_there_is_refused_with_its_file(self, studies, tmp_path, gene_info, reading):
        with pytest.raises(InputError, match=r"first\.h5ad: (No layer|This AnnData has no raw|No column)"):
            build(studies, tmp_path / "corpus", gene_info, reading=reading)
        assert not (tmp_path / "corpus").exists()

    @pytest.mark.parametrize("where", ["X", "raw"])
    def test_antibodies_are_left_out(self, studies, tmp_path, gene_info, where):
        """They may hold other values than counts; raw.var often holds names alone, and var tells what is measured."""
        expected = build(studies, tmp_path / "expected", gene_info)

        def change(adata):
            antibodies = adata.X[:, ::-1] * (0.4 if where == "X" else 9)
            both = ad.AnnData(sp.hstack([adata.X, antibodies]).tocsr(), obs=adata.obs)
            both.var_names = [*adata.var_names, *(f"{name}-1" for name in adata.var_names)]
            if where == "raw":
                both.raw = both.copy()
                both.X = both.X * 0.37
            both.var["feature_types"] = np.repeat(["Gene Expression", "Antibody Capture"], adata.n_vars)
            return both

        change_files(studies, change)
        assert token_ids(build(studies, tmp_path / "found", gene_info)) == token_ids(expected)

    def test_soma_has_no_layers(self, tmp_path):
        (tmp_path / "atlas" / "__group").mkdir(parents=True)
        with pytest.raises(InputError, match="leave out layer"):
            find_sources([str(tmp_path / "atlas")], reading={"layer": "counts"})

    def test_a_build_is_not_continued_from_another_array(self, studies, tmp_path, gene_info, monkeypatch):
        def change(adata):
            adata.layers["other"] = adata.X.copy()

        change_files(studies, change)
        monkeypatch.setattr(CorpusBuilder, "write_shards", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(studies, tmp_path / "corpus", gene_info)
        monkeypatch.undo()
        with pytest.raises(InputError, match="different"):
            build(studies, tmp_path / "corpus", gene_info, reading={"layer": "other"})
        build(studies, tmp_path / "corpus", gene_info)


def test_logarithms_after_the_first_cells_are_refused_with_a_given_vocabulary(studies, tmp_path, gene_info):
    build(studies, tmp_path / "genes", gene_info)
    adata = ad.read_h5ad(studies / "first.h5ad")
    adata.X = sp.vstack([adata.X[:16], adata.X[16:].log1p()]).tocsr()
    adata.write_h5ad(studies / "first.h5ad")
    with pytest.raises(InputError, match="not whole, so not raw counts"):
        build(studies, tmp_path / "corpus", gene_info, vocabulary=str(tmp_path / "genes"))


class TestUnfitSources:
    @pytest.fixture
    def spoilt(self, studies):
        """The studies, a truncated file and a file of log-transformed values."""
        whole = (studies / "first.h5ad").read_bytes()
        (studies / "torn.h5ad").write_bytes(whole[: len(whole) // 2])
        adata = ad.read_h5ad(studies / "first.h5ad")
        adata.X = adata.X.log1p()
        adata.write_h5ad(studies / "logs.h5ad")
        return studies

    def test_they_are_refused_before_anything_is_written(self, spoilt, tmp_path, gene_info):
        with pytest.raises(InputError, match=r"(?s)logs.h5ad.*not raw counts.*torn.h5ad"):
            build(spoilt, tmp_path / "corpus", gene_info)
        assert not (tmp_path / "corpus").exists()

    def test_they_are_skipped_and_named(self, spoilt, tmp_path, gene_info, caplog):
        corpus = build(spoilt, tmp_path / "corpus", gene_info, on_unfit="skip")
        assert sorted(corpus.manifest["unfit"]) == ["logs", "torn"]
        assert sorted(record.args for record in caplog.records) == sorted(corpus.manifest["unfit"].items())
        assert set(corpus.facts["study"]) == {"first", "second"}
        for name in ("logs", "torn"):
            (spoilt / f"{name}.h5ad").unlink()
        clean = build(spoilt, tmp_path / "clean", gene_info)
        assert same_folders(corpus.folder / "shards", clean.folder / "shards")
        assert corpus.gene_vocabulary == clean.gene_vocabulary

    def test_damage_that_shows_only_when_a_file_is_read(self, studies, tmp_path, gene_info):
        """The vocabulary is computed without the values of such a file."""
        adata = ad.read_h5ad(studies / "second.h5ad")
        counts = adata.X.toarray()
        counts[29] = 0.5
        adata.X = sp.csr_matrix(counts)
        adata.obs_names = [f"x{cell}" for cell in range(30)]
        adata.write_h5ad(studies / "late.h5ad")
        corpus = build(studies, tmp_path / "corpus", gene_info, on_unfit="skip")
        assert list(corpus.manifest["unfit"]) == ["late"]
        (studies / "late.h5ad").unlink()
        clean = build(studies, tmp_path / "clean", gene_info)
        assert same_folders(corpus.folder / "shards", clean.folder / "shards")
        assert corpus.gene_vocabulary == clean.gene_vocabulary

    def test_no_fit_source(self, tmp_path, gene_info):
        (tmp_path / "torn.h5ad").write_bytes(b"nothing")
        with pytest.raises(InputError, match="torn"):
            build(tmp_path / "torn.h5ad", tmp_path / "corpus", gene_info, on_unfit="skip")

    @pytest.mark.parametrize("vocabulary", [None, "own"])
    def test_no_cell_is_selected(self, studies, tmp_path, gene_info, vocabulary):
        if vocabulary:
            vocabulary = str(build(studies, tmp_path / "other", gene_info).folder)
        with pytest.raises(InputError, match="No cell is selected"):
            build(
                studies,
                tmp_path / "corpus",
                gene_info,
                where="cell_type_ontology_term_id == 'x'",
                vocabulary=vocabulary,
            )
        assert not (tmp_path / "corpus").exists()

    def test_no_cell_can_be_kept(self, studies, tmp_path, gene_info):
        vocabulary = str(build(studies, tmp_path / "other", gene_info).folder)
        for path in studies.glob("*.h5ad"):
            adata = ad.read_h5ad(path)
            adata.obs["is_primary_data"] = False
            adata.write_h5ad(path)
        with pytest.raises(InputError, match="No cell can be kept: 80 not primary data"):
            build(studies, tmp_path / "corpus", gene_info, vocabulary=vocabulary)
        assert not (tmp_path / "corpus").exists()


class TestResumedBuilds:
    def test_other_settings_are_refused(self, studies, tmp_path, gene_info, monkeypatch):
        with monkeypatch.context() as cut:
            cut.setattr("modeling_langcell.corpus.build.CorpusBuilder.write_shards", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build(studies, tmp_path / "corpus", gene_info)
        with pytest.raises(InputError, match="holds an unfinished corpus"):
            Corpus(tmp_path / "corpus")
        with pytest.raises(InputError, match="unfinished corpus with different sources or settings"):
            build(studies, tmp_path / "corpus", gene_info, max_genes=7)
        assert len(build(studies, tmp_path / "corpus", gene_info)) == 76

    @pytest.mark.long
    def test_killed_at_any_write(self, studies, tmp_path, gene_info, monkeypatch):
        """Each file in turn is left incomplete, as SIGKILL leaves it."""
        whole = build(studies, tmp_path / "whole", gene_info, chunk_cells=40).folder
        output = tmp_path / "corpus"
        for last in range(1000):
            written = []

            def write_or_die(path, content, written=written, last=last):
                if len(written) == last:
                    path = Path(path)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.with_name(f".{path.name}.{uuid4().hex}").write_bytes(content[:5])
                    raise KeyboardInterrupt
                written.append(path)
                atomic_write(path, content)

            with monkeypatch.context() as cut:
                for module in ("folder", "genes", "places", "tasks"):
                    cut.setattr(f"modeling_langcell.corpus.{module}.atomic_write", write_or_die)
                try:
                    build(studies, output, gene_info, chunk_cells=40)
                    break
                except KeyboardInterrupt:
                    pass
            assert same_folders(build(studies, output, gene_info, chunk_cells=40).folder, whole), last
            shutil.rmtree(output)
        assert last == 15, "plan, three sketches, genes, unfit, three sums and shards, panels, places, manifest"

    def test_killed_while_cleaning_up(self, studies, tmp_path, gene_info, monkeypatch):
        output = tmp_path / "corpus"
        with monkeypatch.context() as cut:
            cut.setattr("modeling_langcell.corpus.build.CorpusBuilder.clean_up", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                build(studies, output, gene_info)
        with pytest.raises(InputError, match="unfinished corpus with different sources or settings"):
            build(studies / "second.h5ad", output, gene_info)
        assert same_folders(
            build(studies, output, gene_info).folder, build(studies, tmp_path / "other", gene_info).folder
        )

    def test_genes_that_have_changed(self, studies, tmp_path, gene_info, monkeypatch):
        """A file named in the settings may have other content when the command is given again."""
        build(studies / "second.h5ad", tmp_path / "genes", gene_info)
        for name, changes in (("corpus", {"vocabulary": str(tmp_path / "genes")}), ("other", {})):
            with monkeypatch.context() as cut:
                cut.setattr("modeling_langcell.corpus.build.CorpusBuilder.write_panels", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    build(studies, tmp_path / name, gene_info, **changes)
        shutil.rmtree(tmp_path / "genes")
        build(studies, tmp_path / "genes", gene_info)
        fewer = Path(gene_info).with_name("fewer.gz")
        with gzip.open(gene_info, "rt") as table, gzip.open(fewer, "wt") as copy:
            copy.writelines(table.readlines()[:-3])
        with pytest.raises(InputError, match="unfinished corpus with different sources or settings"):
            build(studies, tmp_path / "corpus", gene_info, vocabulary=str(tmp_path / "genes"))
        with pytest.raises(InputError, match="unfinished corpus with different sources or settings"):
            build(studies, tmp_path / "other", str(fewer))

    def test_rebuilt_in_the_same_place(self, studies, tmp_path, gene_info):
        """A process that remembers the genes of one corpus ranks the cells of another by its own."""
        build(studies / "second.h5ad", tmp_path / "corpus", gene_info)
        shutil.rmtree(tmp_path / "corpus")
        anew = build(studies, tmp_path / "corpus", gene_info)
        extractor = LangCellFeatureExtractor(anew.gene_vocabulary, max_length=2048)
        first = ad.read_h5ad(studies / "first.h5ad")
        assert anew.token_ids([0])[0].tolist() == extractor.rank(first, empty_cells="mark")[2].tolist()

    @pytest.mark.e2e
    def test_killed_processes(self, studies, tmp_path, gene_info):
        """SIGKILL as soon as there are sketches, and again as soon as there are shards."""
        output = tmp_path / "corpus"
        command = ["-m", "modeling_langcell.cli", "corpus", studies, "--out", output]
        command += ["--gene-info", gene_info, "--chunk-cells", "1", "--min-cells", "1"]
        rng = random.Random(0)
        for awaited in ("unfinished/*.npz", "shards/*.arrow"):
            number = rng.randint(1, 4)
            process = start_python(*command, stdout=subprocess.DEVNULL)
            while len(list(output.glob(awaited))) < number:
                assert process.poll() is None, "it finished before it could be killed"
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert not (output / "manifest.json").exists()
        build(studies, output, gene_info, chunk_cells=1)
        whole = build(studies, tmp_path / "whole", gene_info, chunk_cells=1)
        assert same_folders(output, whole.folder)


@pytest.mark.parametrize("step", ["write_panels", "write_manifest"])
def test_missing_shards(studies, tmp_path, gene_info, monkeypatch, step):
    """Shards may be deleted during the build or later: neither gives a corpus without cells."""
    whole = build(studies, tmp_path / "whole", gene_info)
    shutil.rmtree(whole.folder / "shards")
    with pytest.raises(InputError, match="lacks its shard first-000000"):
        _ = Corpus(whole.folder).facts
    original = getattr(CorpusBuilder, step)

    def lose_shards(builder):
        for shard in (builder.output / "shards").iterdir():
            shard.unlink()
        original(builder)

    monkeypatch.setattr(CorpusBuilder, step, lose_shards)
    with pytest.raises(InputError, match="lacks its shard first-000000"):
        build(studies, tmp_path / "corpus", gene_info)
    assert not (tmp_path / "corpus" / "manifest.json").exists()


@pytest.mark.long
def test_command_on_real_cells(shared, tmp_path):
    data = shared / "data"
    files = [str(data / "train" / f"{name}.h5ad") for name in REAL_STUDIES]
    options = ["--gene-info", str(data / "genes" / "Homo_sapiens.gene_info.gz"), "--out", str(tmp_path / "corpus")]
    done = CliRunner().invoke(app, ["corpus", *files, *options])
    assert done.exit_code == 0, done.output
    assert "1,337 cells" in done.stdout
    assert len(Corpus(tmp_path / "corpus").cells) == 1337


def test_command_with_an_unfit_file(gene_info, tmp_path):
    (tmp_path / "torn.h5ad").write_bytes(b"nothing")
    arguments = [str(tmp_path / "torn.h5ad"), "--gene-info", gene_info, "--out", str(tmp_path / "corpus")]
    done = CliRunner().invoke(app, ["corpus", *arguments])
    assert done.exit_code == 2
    assert "torn.h5ad" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "corpus").exists()


class TestSourceTable:
    def test_sources_of_one_atlas_are_one_study(self, studies, tmp_path, gene_info):
        (tmp_path / "sources.tsv").write_text("source\tstudy\nfirst\tatlas\nsecond\tatlas\n")
        done = self._build(studies, tmp_path, gene_info)
        assert done.exit_code == 0, done.output
        assert "76 cells of 1 studies" in done.output
        corpus = Corpus(tmp_path / "corpus")
        assert set(corpus.facts["study"]) == {"atlas"}
        assert [*corpus.panels] == [("first", "atlas"), ("second", "atlas")], "each source keeps its own panel"

    def test_licences_are_recorded(self, studies, tmp_path, gene_info):
        adata = ad.read_h5ad(studies / "second.h5ad")
        adata.uns["licence"] = "CC0"
        adata.write_h5ad(studies / "second.h5ad")
        (tmp_path / "sources.tsv").write_text("source\tstudy\tlicence\nfirst\t\tCC BY 4.0\nsecond\t\tMIT\n")
        assert self._build(studies, tmp_path, gene_info).exit_code == 0
        corpus = Corpus(tmp_path / "corpus")
        licences = [source["about"]["licence"] for source in corpus.manifest["sources"]]
        assert licences == ["CC BY 4.0", "CC0"], "what a file says of itself comes first"
        assert set(corpus.facts["study"]) == {"first", "second"}, "an empty cell tells nothing"

    @pytest.mark.parametrize(
        ("table", "fault"),
        [
            ("name\tstudy\nfirst\tatlas\n", "must have columns source, and study or licence"),
            ("source\tstudy\nfirst\tatlas\nfirst\tother\n", "names a source twice"),
            ("source\nfirst\n", "must have columns source, and study or licence"),
            ("source\tstudy\nfirst\tÜbersicht\n".encode("latin-1"), "it is not text in UTF-8"),
            ("source\tstudy\nthird\tatlas\n", "'third', which is not among the sources"),
        ],
    )
    def test_tables_that_do_not_fit_are_refused(self, studies, tmp_path, gene_info, table, fault):
        (tmp_path / "sources.tsv").write_bytes(table if isinstance(table, bytes) else table.encode())
        done = self._build(studies, tmp_path, gene_info)
        assert done.exit_code == 2
        assert fault in " ".join(done.stderr.split())
        assert not (tmp_path / "corpus").exists()

    @staticmethod
    def _build(studies, folder, gene_info):
        arguments = ["--gene-info", gene_info, "--min-cells", "1", "--sources", folder / "sources.tsv"]
        return CliRunner().invoke(app, list(map(str, ["corpus", studies, "--out", folder / "corpus", *arguments])))


def test_a_corpus_of_another_version_is_refused(studies, tmp_path, gene_info):
    build(studies, tmp_path / "corpus", gene_info)
    manifest = tmp_path / "corpus" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(InputError, match="was built by another version of this package: build the corpus again"):
        Corpus(tmp_path / "corpus")
