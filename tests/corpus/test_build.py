# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Corpora: what is in them, and that it is the same however, and however often, their making was begun."""

import filecmp
import gzip
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from modeling_langcell import InputError, LangCellFeatureExtractor
from modeling_langcell.corpus.build import GENEFORMER, CorpusBuilder, CorpusSettings, make_corpus
from modeling_langcell.corpus.corpus import Corpus
from modeling_langcell.corpus.genes import MedianSketch, every_gene, read_gene_info
from modeling_langcell.corpus.genes import gene_vocabulary as merged
from modeling_langcell.corpus.sources import ASPECTS, H5adFile, find_sources
from modeling_langcell.io.atomic import atomic_write
from tests.conftest import GENES, SYMBOLS

TYPES = np.array(["CL:0000236", "CL:0000623", "CL:0000576", "unknown"])
#: The end of a name that `atomic_write` gives to a file until it is whole.
HALF = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def gene_info(tmp_path_factory):
    path = tmp_path_factory.mktemp("genes") / "gene_info.gz"
    lines = ["#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription"]
    lines += [f"9606\t{s}\t-\tHGNC:1|Ensembl:{g}\t{s} protein" for g, s in zip(GENES, SYMBOLS, strict=True)]
    with gzip.open(path, "wt") as table:
        table.write("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture
def studies(tmp_path):
    """Two studies of 50 and 30 cells; the second lacks some genes and some columns of `obs`."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "studies"
    folder.mkdir()
    for name, cells, genes in (("first", 50, 40), ("second", 30, 25)):
        obs = pd.DataFrame(
            {
                "cell_type_ontology_term_id": TYPES[rng.integers(0, 4, cells)],
                "tissue_ontology_term_id": "UBERON:0000178",
            },
            index=[f"{name}{cell}" for cell in range(cells)],
        )
        if name == "first":
            obs["sex_ontology_term_id"] = pd.Categorical(["PATO:0000383"] * 49 + [None])
            obs["is_primary_data"] = [False, False] + [True] * 48
        counts = rng.poisson(1.0, (cells, genes)).astype(np.float32)
        counts[5] = 0
        adata = ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame(index=GENES[:genes]))
        adata.write_h5ad(folder / f"{name}.h5ad")
    return folder


def make(folder, output, gene_info, *, where=None, **options) -> Corpus:
    names = ("vocabulary", "max_genes", "min_cells", "chunk_cells")
    settings = {"chunk_cells": 16, "min_cells": 1} | {name: options.pop(name) for name in names if name in options}
    sources = find_sources([str(folder)], where)
    return make_corpus(sources, output, CorpusSettings(gene_info, **settings), **options)


def same_folders(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, to the last byte."""
    files = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (one, other)]
    whole = [name for name in files[0] if (one / name).is_file()]
    return files[0] == files[1] and not any(filecmp.cmpfiles(one, other, whole, shallow=False)[1:])


def lay(path: Path) -> Path:
    """A file that no corpus has made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]")
    return path


def content_of(folder: Path) -> dict[str, str]:
    """The files in a folder, hidden ones too, and what is in them."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text("latin-1") for path in files}


class TestContent:
    def test_cells_are_ranked_as_the_extractor_ranks_them(self, studies, tmp_path, gene_info):
        corpus = make(studies, tmp_path / "corpus", gene_info)
        extractor = LangCellFeatureExtractor(corpus.gene_vocabulary, max_length=2048)
        expected = []
        for name in ("first", "second"):
            adata = ad.read_h5ad(studies / f"{name}.h5ad")
            ranked = extractor.rank(adata, empty_cells="mark")
            expected += [ranked[cell].tolist() for cell in range(2 * (name == "first"), len(ranked)) if cell != 5]
        assert [ids.tolist() for ids in corpus.token_ids(range(len(corpus)))] == expected
        assert corpus.facts["length"].tolist() == [len(ids) for ids in expected]
        assert str(corpus.cells.features["token_ids"].feature.dtype) == "uint16"

    def test_a_long_cell_is_cut(self, studies, tmp_path, gene_info):
        corpus = make(studies, tmp_path / "corpus", gene_info, max_genes=8)
        assert corpus.facts["length"].max() == 8

    def test_every_aspect_of_a_cell_is_kept(self, studies, tmp_path, gene_info):
        facts = make(studies, tmp_path / "corpus", gene_info).facts
        assert list(facts) == ["length", "study", *ASPECTS]
        first, second = facts[facts["study"] == "first"], facts[facts["study"] == "second"]
        obs = ad.read_h5ad(studies / "first.h5ad").obs.drop(index=["first0", "first1", "first5"])
        assert first["cell_type"].tolist() == obs["cell_type_ontology_term_id"].tolist()
        assert first["sex"].tolist() == ["PATO:0000383"] * 46 + ["unknown"]
        assert set(second["sex"]) == {"unknown"}
        assert set(facts["tissue"]) == {"UBERON:0000178"}

    def test_the_manifest_accounts_for_every_cell(self, studies, tmp_path, gene_info):
        manifest = make(studies, tmp_path / "corpus", gene_info).manifest
        first, second = manifest["sources"]
        assert first["cells"] == 50
        assert first["kept"] == 47
        assert first["left_out"] == {"no known gene": 1, "not primary data": 2}
        assert second["kept"] == manifest["cells"] - 47 == 29
        assert len(manifest["shards"]) == 4 + 2
        assert sum(shard["cells"] for shard in manifest["shards"]) == manifest["cells"]

    def test_panels_are_what_was_counted(self, studies, tmp_path, gene_info):
        corpus = make(studies, tmp_path / "corpus", gene_info)
        ids = corpus.token_ids(range(len(corpus)))
        for study, panel in corpus.panels.items():
            rows = np.flatnonzero(corpus.facts["study"] == study)
            assert panel.tolist() == np.unique(np.concatenate([ids[row] for row in rows])).tolist()

    def test_a_condition_chooses_cells(self, studies, tmp_path, gene_info):
        corpus = make(studies, tmp_path / "corpus", gene_info, where="cell_type_ontology_term_id == 'CL:0000236'")
        assert set(corpus.facts["cell_type"]) == {"CL:0000236"}
        assert 0 < len(corpus) < 76
        with pytest.raises(InputError, match="cannot be judged"):
            make(studies, tmp_path / "other", gene_info, where="no_such_column == 1")

    def test_counts_in_raw(self, studies, tmp_path, gene_info):
        """CELLxGENE's files have normalised values in X and the counts in raw; a raw of other values is let be."""
        expected = make(studies, tmp_path / "expected", gene_info)
        for name, in_raw in (("first", True), ("second", False)):
            adata = ad.read_h5ad(studies / f"{name}.h5ad")
            counts, normalised = adata.X.copy(), (adata.X / 3).log1p()
            adata.X = counts if in_raw else normalised
            adata.raw = adata
            adata.X = normalised if in_raw else counts
            adata.write_h5ad(studies / f"{name}.h5ad")
        found = make(studies, tmp_path / "found", gene_info)
        assert found.gene_vocabulary == expected.gene_vocabulary
        assert found.manifest["shards"] == expected.manifest["shards"]

    def test_the_vocabulary_of_another_corpus(self, studies, tmp_path, gene_info):
        first = make(studies / "second.h5ad", tmp_path / "first", gene_info)
        other = make(studies, tmp_path / "other", gene_info, vocabulary=str(tmp_path / "first"))
        assert other.gene_vocabulary == first.gene_vocabulary
        assert len(other.gene_vocabulary["ensembl_ids"]) == 25

    def test_the_vocabulary_of_geneformer(self, studies, tmp_path, gene_info):
        folder = tmp_path / "geneformer"
        folder.mkdir()
        ids = {"<pad>": 0, "<mask>": 1} | {gene: 2 + i for i, gene in enumerate(reversed(GENES))}
        dictionaries = (ids, dict.fromkeys(GENES, 2.0), dict(zip(SYMBOLS, GENES, strict=True)))
        for name, content in zip(GENEFORMER, dictionaries, strict=True):
            (folder / name).write_bytes(pickle.dumps(content))
        corpus = make(studies, tmp_path / "corpus", gene_info, vocabulary=str(folder))
        assert corpus.gene_vocabulary["ensembl_ids"] == GENES[::-1]
        assert set(corpus.gene_vocabulary["medians"]) == {2.0}


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            ".x",
            "..x",
            "a.b, c",
            "细胞 å",
            "first line\nsecond",
            "[ab]*?",
            "manifest.json",
            "plan.json",
            f".plan.json.{HALF}",
            f".first-000000.arrow.{HALF}",
            "x" * 200,
        ],
    )
    def test_a_corpus_has_the_cells_of_a_source_whatever_it_is_called(self, studies, tmp_path, gene_info, name):
        expected = make(studies, tmp_path / "expected", gene_info)
        (studies / "second.h5ad").rename(studies / f"{name}.h5ad")
        corpus = make(studies, tmp_path / "corpus", gene_info)
        assert len(corpus.cells) == len(corpus) == len(expected)
        assert corpus.facts["study"].value_counts().to_dict() == {"first": 47, name: 29}
        assert not (corpus.folder / "unfinished").exists()
        alone = make(studies / f"{name}.h5ad", tmp_path / "alone", gene_info)
        assert len(alone.cells) == 29

    @pytest.mark.parametrize("name", [b"latin-\xe9", b"x" * 201])
    def test_one_that_no_study_can_have_is_refused(self, studies, name):
        odd = os.fsencode(studies) + b"/" + name + b".h5ad"
        os.rename(studies / "second.h5ad", odd)
        with pytest.raises(InputError, match="rename it"):
            find_sources([str(studies)])
        with pytest.raises(InputError, match="rename it"):
            find_sources([os.fsdecode(odd)])

    def test_the_folder_that_one_is_in(self, tmp_path, monkeypatch):
        (tmp_path / "atlas" / "__group").mkdir(parents=True)
        monkeypatch.chdir(tmp_path / "atlas")
        assert [source.name for source in find_sources(["."])] == ["atlas"]


class TestMedians:
    def test_they_are_within_the_stated_error_of_the_exact(self, gene_info):
        rng = np.random.default_rng(1)
        counts = sp.csr_matrix(rng.poisson(np.linspace(0.1, 30, len(GENES)), (501, len(GENES))).astype(float))
        every = every_gene(read_gene_info(gene_info))
        parts = []
        for rows in np.array_split(np.arange(501), 4):
            by_gene, totals = every.read_counts(counts[rows], gene_ids=GENES)
            parts.append(MedianSketch.of(by_gene, totals))
        vocabulary = merged(parts, read_gene_info(gene_info), min_cells=1)
        scaled = counts.multiply(1e4 / counts.sum(axis=1)).tocsc()
        exact = [np.median(scaled[:, gene].data) for gene in range(len(GENES))]
        assert vocabulary["ensembl_ids"] == GENES
        np.testing.assert_allclose(vocabulary["medians"], exact, rtol=0.0055)

    def test_the_order_of_merging_does_not_matter(self, gene_info):
        rng = np.random.default_rng(2)
        every = every_gene(read_gene_info(gene_info))
        parts = [
            MedianSketch.of(*every.read_counts(sp.csr_matrix(rng.poisson(2.0, (20, 40)).astype(float)), gene_ids=GENES))
            for _ in range(5)
        ]
        genes = read_gene_info(gene_info)
        assert merged(parts, genes, min_cells=1) == merged(parts[::-1], genes, min_cells=1)
        assert merged(parts[:4], genes, min_cells=1) != merged(parts, genes, min_cells=1)

    def test_rare_genes_get_no_id(self, studies, tmp_path, gene_info):
        with_all = make(studies, tmp_path / "all", gene_info)
        without = make(studies, tmp_path / "some", gene_info, min_cells=40)
        assert 0 < len(without.gene_vocabulary["ensembl_ids"]) < len(with_all.gene_vocabulary["ensembl_ids"])


class TestUnfit:
    @pytest.fixture
    def spoilt(self, studies):
        """Also a truncated file and one of logarithms."""
        whole = (studies / "first.h5ad").read_bytes()
        (studies / "torn.h5ad").write_bytes(whole[: len(whole) // 2])
        adata = ad.read_h5ad(studies / "first.h5ad")
        adata.X = adata.X.log1p()
        adata.write_h5ad(studies / "logs.h5ad")
        return studies

    def test_they_are_refused_before_anything_is_made(self, spoilt, tmp_path, gene_info):
        with pytest.raises(InputError, match=r"(?s)logs.h5ad.*log-transformed.*torn.h5ad"):
            make(spoilt, tmp_path / "corpus", gene_info)
        assert not (tmp_path / "corpus").exists()

    def test_or_left_out_and_named(self, spoilt, tmp_path, gene_info):
        corpus = make(spoilt, tmp_path / "corpus", gene_info, on_unfit="skip")
        assert sorted(corpus.manifest["unfit"]) == ["logs", "torn"]
        assert set(corpus.facts["study"]) == {"first", "second"}
        for name in ("logs", "torn"):
            (spoilt / f"{name}.h5ad").unlink()
        clean = make(spoilt, tmp_path / "clean", gene_info)
        assert same_folders(corpus.folder / "shards", clean.folder / "shards")
        assert corpus.gene_vocabulary == clean.gene_vocabulary

    def test_damage_deep_in_a_file(self, studies, tmp_path, gene_info):
        """What opening does not show, reading does; the vocabulary has nothing of such a file."""
        adata = ad.read_h5ad(studies / "second.h5ad")
        counts = adata.X.toarray()
        counts[29] = 0.5
        adata.X = sp.csr_matrix(counts)
        adata.obs_names = [f"x{cell}" for cell in range(30)]
        adata.write_h5ad(studies / "late.h5ad")
        corpus = make(studies, tmp_path / "corpus", gene_info, on_unfit="skip")
        assert list(corpus.manifest["unfit"]) == ["late"]
        (studies / "late.h5ad").unlink()
        clean = make(studies, tmp_path / "clean", gene_info)
        assert same_folders(corpus.folder / "shards", clean.folder / "shards")
        assert corpus.gene_vocabulary == clean.gene_vocabulary

    def test_nothing_fit(self, tmp_path, gene_info):
        (tmp_path / "torn.h5ad").write_bytes(b"nothing")
        with pytest.raises(InputError, match="torn"):
            make(tmp_path / "torn.h5ad", tmp_path / "corpus", gene_info, on_unfit="skip")

    @pytest.mark.parametrize("vocabulary", [None, "own"])
    def test_no_cell_is_asked_for(self, studies, tmp_path, gene_info, vocabulary):
        if vocabulary:
            vocabulary = str(make(studies, tmp_path / "other", gene_info).folder)
        with pytest.raises(InputError, match="No cell was asked for"):
            make(
                studies,
                tmp_path / "corpus",
                gene_info,
                where="cell_type_ontology_term_id == 'x'",
                vocabulary=vocabulary,
            )
        assert not (tmp_path / "corpus").exists()

    def test_no_cell_can_be_kept(self, studies, tmp_path, gene_info):
        vocabulary = str(make(studies, tmp_path / "other", gene_info).folder)
        for path in studies.glob("*.h5ad"):
            adata = ad.read_h5ad(path)
            adata.obs["is_primary_data"] = False
            adata.write_h5ad(path)
        with pytest.raises(InputError, match="No cell can be kept: 80 not primary data"):
            make(studies, tmp_path / "corpus", gene_info, vocabulary=vocabulary)
        assert not (tmp_path / "corpus").exists()

    def test_sources_that_are_not_there(self, tmp_path):
        with pytest.raises(InputError, match="no folder of them"):
            find_sources([str(tmp_path)])
        with pytest.raises(InputError, match="no folder of them"):
            find_sources([str(tmp_path / "absent.h5ad")])

    def test_two_sources_of_one_name(self, studies, tmp_path):
        shutil.copytree(studies, tmp_path / "again")
        with pytest.raises(InputError, match="both called 'first'"):
            find_sources([str(studies), str(tmp_path / "again")])


class TestFolders:
    def test_a_finished_corpus_is_not_written_to(self, studies, tmp_path, gene_info):
        make(studies, tmp_path / "corpus", gene_info)
        with pytest.raises(InputError, match="holds a corpus already"):
            make(studies, tmp_path / "corpus", gene_info)

    def test_nor_a_folder_of_other_things(self, studies, tmp_path, gene_info):
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "notes.txt").write_text("mine")
        with pytest.raises(InputError, match="not empty"):
            make(studies, tmp_path / "corpus", gene_info)
        assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["notes.txt"]

    def test_one_begun_otherwise_is_not_gone_on_with(self, studies, tmp_path, gene_info, monkeypatch):
        with monkeypatch.context() as cut:
            cut.setattr("modeling_langcell.corpus.build.CorpusBuilder.write_shards", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                make(studies, tmp_path / "corpus", gene_info)
        with pytest.raises(InputError, match="making of it was not finished"):
            Corpus(tmp_path / "corpus")
        with pytest.raises(InputError, match="begun with other sources or settings"):
            make(studies, tmp_path / "corpus", gene_info, max_genes=7)
        assert len(make(studies, tmp_path / "corpus", gene_info)) == 76

    def test_killed_at_any_write_it_is_gone_on_with(self, studies, tmp_path, gene_info, monkeypatch):
        """Every file in turn is left half-written, as SIGKILL leaves it, and so is the clearing up."""
        whole = make(studies, tmp_path / "whole", gene_info).folder
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
                cut.setattr("modeling_langcell.corpus.build.atomic_write", write_or_die)
                try:
                    make(studies, output, gene_info)
                    break
                except KeyboardInterrupt:
                    pass
            assert same_folders(make(studies, output, gene_info).folder, whole), last
            shutil.rmtree(output)
        assert last > 5

    def test_killed_while_clearing_up(self, studies, tmp_path, gene_info, monkeypatch):
        output = tmp_path / "corpus"
        with monkeypatch.context() as cut:
            cut.setattr("modeling_langcell.corpus.build.CorpusBuilder.clear_up", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                make(studies, output, gene_info)
        with pytest.raises(InputError, match="begun with other sources or settings"):
            make(studies / "second.h5ad", output, gene_info)
        assert same_folders(
            make(studies, output, gene_info).folder, make(studies, tmp_path / "other", gene_info).folder
        )

    def test_genes_that_changed_meanwhile(self, studies, tmp_path, gene_info, monkeypatch):
        """What a setting names may have another content when the command is given again."""
        make(studies / "second.h5ad", tmp_path / "genes", gene_info)
        for name, changes in (("corpus", {"vocabulary": str(tmp_path / "genes")}), ("other", {})):
            with monkeypatch.context() as cut:
                cut.setattr("modeling_langcell.corpus.build.CorpusBuilder.write_panels", lambda _: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    make(studies, tmp_path / name, gene_info, **changes)
        shutil.rmtree(tmp_path / "genes")
        make(studies, tmp_path / "genes", gene_info)
        fewer = Path(gene_info).with_name("fewer.gz")
        with gzip.open(gene_info, "rt") as table, gzip.open(fewer, "wt") as copy:
            copy.writelines(table.readlines()[:-3])
        with pytest.raises(InputError, match="begun with other sources or settings"):
            make(studies, tmp_path / "corpus", gene_info, vocabulary=str(tmp_path / "genes"))
        with pytest.raises(InputError, match="begun with other sources or settings"):
            make(studies, tmp_path / "other", str(fewer))

    def test_made_anew_in_the_same_place(self, studies, tmp_path, gene_info):
        """A process that has seen the genes of one corpus ranks another's by its own."""
        make(studies / "second.h5ad", tmp_path / "corpus", gene_info)
        shutil.rmtree(tmp_path / "corpus")
        anew = make(studies, tmp_path / "corpus", gene_info)
        extractor = LangCellFeatureExtractor(anew.gene_vocabulary, max_length=2048)
        first = ad.read_h5ad(studies / "first.h5ad")
        assert anew.token_ids([0])[0].tolist() == extractor.rank(first, empty_cells="mark")[2].tolist()

    @pytest.mark.parametrize(
        "file",
        [
            "unfinished/notes.txt",
            "unfinished/.hidden",
            "unfinished/nested/notes.txt",
            "unfinished/plan.json",
            "unfinished/unfit.json",
            "unfinished/first-000000.npz",
            "unfinished/.plan.json.swp",
            f"unfinished/.plan.json.{HALF}/notes.txt",
            f".plan.json.{HALF}",
            "shards/first-000000.arrow",
        ],
    )
    def test_a_folder_of_others_is_left_as_it_is(self, studies, tmp_path, gene_info, file):
        output = tmp_path / "corpus"
        lay(output / file)
        with pytest.raises(InputError, match="is not empty: choose a new folder"):
            make(studies, output, gene_info)
        assert content_of(output) == {file: "[]"}

    def test_so_is_what_a_link_leads_to(self, studies, tmp_path, gene_info, monkeypatch):
        output = tmp_path / "corpus"
        output.mkdir()
        elsewhere = lay(tmp_path / "elsewhere" / "notes.txt").parent
        (output / "unfinished").symlink_to(elsewhere)
        with pytest.raises(InputError, match="is not empty"):
            make(studies, output, gene_info)
        with monkeypatch.context() as cut:
            cut.setattr(CorpusBuilder, "write_panels", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                make(studies, tmp_path / "begun", gene_info)
        for folder in ("unfinished", "shards"):
            (tmp_path / "begun" / folder).rename(tmp_path / folder)
            (tmp_path / "begun" / folder).symlink_to(tmp_path / folder)
            before = content_of(tmp_path / folder)
            with pytest.raises(InputError, match=rf"not empty|{folder} is not of the corpus"):
                make(studies, tmp_path / "begun", gene_info)
            assert content_of(tmp_path / folder) == before
            (tmp_path / "begun" / folder).unlink()
            (tmp_path / folder).rename(tmp_path / "begun" / folder)
        assert content_of(elsewhere) == {"notes.txt": "[]"}
        assert len(make(studies, tmp_path / "begun", gene_info)) == 76

    def test_a_link_to_an_empty_folder_is_written_through(self, studies, tmp_path, gene_info):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "corpus").symlink_to(tmp_path / "elsewhere")
        make(studies, tmp_path / "corpus", gene_info)
        assert len(Corpus(tmp_path / "elsewhere").cells) == 76

    OF_OTHERS = (
        "notes.txt",
        ".hidden",
        ".git/config",
        "unfinished/notes.npz",
        "unfinished/nested/first-000000.npz",
        "shards/.first-000000.arrow.swp",
        "shards/first-000000.arrow.bak",
        "shards/first-000099.arrow",
        "shards/third-000000.arrow",
        f"shards/.third-000000.arrow.{HALF}",
        f"shards/.first-000000.arrow.{HALF.upper()}",
        f"unfinished/.first-000000.arrow.{HALF}",
    )

    def test_a_begun_one_that_others_use_too_is_gone_on_with_when_they_have_left(
        self, studies, tmp_path, gene_info, monkeypatch
    ):
        whole = make(studies, tmp_path / "whole", gene_info).folder
        output = tmp_path / "corpus"
        with monkeypatch.context() as cut:
            cut.setattr(CorpusBuilder, "write_panels", lambda _: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                make(studies, output, gene_info)
        for file in self.OF_OTHERS:
            lay(output / file)
            before = content_of(output)
            with pytest.raises(InputError, match="move it away"):
                make(studies, output, gene_info)
            assert content_of(output) == before
            (output / file).unlink()
            if (output / file).parent.name in ("nested", ".git"):
                (output / file).parent.rmdir()
        lay(output / "shards" / f".first-000000.arrow.{HALF}")
        assert same_folders(make(studies, output, gene_info).folder, whole)

    def test_what_others_put_in_meanwhile_stays(self, studies, tmp_path, gene_info, monkeypatch):
        write_panels = CorpusBuilder.write_panels

        def beside_others(making):
            for file in self.OF_OTHERS:
                lay(making.output / file)
            write_panels(making)

        monkeypatch.setattr(CorpusBuilder, "write_panels", beside_others)
        corpus = make(studies, tmp_path / "corpus", gene_info)
        assert len(corpus.cells) == 76
        held = content_of(corpus.folder)
        assert all(held.pop(file) == "[]" for file in self.OF_OTHERS)
        monkeypatch.undo()
        assert held.keys() == content_of(make(studies, tmp_path / "whole", gene_info).folder).keys()

    @pytest.mark.parametrize(
        ("changes", "step", "says"),
        [({"min_cells": 1000}, "write_vocabulary", "in 1000 cells"), ({}, "write_shards", "No cell can be kept")],
    )
    def test_so_it_does_where_there_can_be_no_corpus(
        self, studies, tmp_path, gene_info, monkeypatch, changes, step, says
    ):
        if step == "write_shards":
            changes = {"vocabulary": str(make(studies, tmp_path / "other", gene_info).folder)}
            for path in studies.glob("*.h5ad"):
                adata = ad.read_h5ad(path)
                adata.obs["is_primary_data"] = False
                adata.write_h5ad(path)
        (tmp_path / "empty").mkdir()
        for output, is_left in (("new", False), ("empty", True)):
            with pytest.raises(InputError, match=says):
                make(studies, tmp_path / output, gene_info, **changes)
            assert (tmp_path / output).exists() == is_left
        going_on = getattr(CorpusBuilder, step)
        monkeypatch.setattr(
            CorpusBuilder, step, lambda making: (lay(making.output / "shards" / ".mine"), going_on(making))
        )
        with pytest.raises(InputError, match=says):
            make(studies, tmp_path / "used", gene_info, **changes)
        assert content_of(tmp_path / "used") == {"shards/.mine": "[]"}

    def test_one_called_as_the_folder_in_it(self, studies, tmp_path, gene_info):
        corpus = make(studies, tmp_path / "unfinished", gene_info)
        assert same_folders(corpus.folder, make(studies, tmp_path / "corpus", gene_info).folder)

    @pytest.mark.parametrize("step", ["write_panels", "write_manifest"])
    def test_shards_that_are_gone(self, studies, tmp_path, gene_info, monkeypatch, step):
        """Whether while the corpus is made or later: it is no corpus without cells."""
        whole = make(studies, tmp_path / "whole", gene_info)
        shutil.rmtree(whole.folder / "shards")
        with pytest.raises(InputError, match="lacks its shard first-000000"):
            _ = Corpus(whole.folder).facts
        going_on = getattr(CorpusBuilder, step)

        def lose_shards(making):
            for shard in (making.output / "shards").iterdir():
                shard.unlink()
            going_on(making)

        monkeypatch.setattr(CorpusBuilder, step, lose_shards)
        with pytest.raises(InputError, match="lacks its shard first-000000"):
            make(studies, tmp_path / "corpus", gene_info)
        assert not (tmp_path / "corpus" / "manifest.json").exists()

    def test_no_corpus(self, tmp_path):
        with pytest.raises(InputError, match="holds no corpus"):
            Corpus(tmp_path)


# ---------------------------------------------------------------------- real cells, real processes

REAL = (
    "marrow_vangalen2019_cd34sorted",
    "nsclc_zilionis_scgate",
    "pbmc_mimitou2019_eccite_citefuse",
    "zheng_sorted_safe",
)


@pytest.fixture(scope="module")
def real_arguments(shared):
    data = shared / "data"
    files = [str(data / "train" / f"{name}.h5ad") for name in REAL]
    return [*files, "--gene-info", str(data / "genes" / "Homo_sapiens.gene_info.gz"), "--chunk-cells", "128"]


def command(arguments, output, *more):
    return [sys.executable, "-m", "modeling_langcell.cli", "corpus", *arguments, "--out", str(output), *more]


@pytest.fixture(scope="module")
def in_one_go(real_arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("one") / "corpus"
    done = subprocess.run(command(real_arguments, output), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1,337 cells" in done.stdout
    return output


class TestRealCells:
    def test_several_processes(self, in_one_go, real_arguments, tmp_path):
        subprocess.run(command(real_arguments, tmp_path / "corpus", "--num-proc", "2"), check=True, capture_output=True)
        assert same_folders(in_one_go, tmp_path / "corpus")

    def test_killed_and_begun_again(self, in_one_go, real_arguments, tmp_path):
        """SIGKILL as soon as there are sketches, and again as soon as there are shards."""
        output = tmp_path / "corpus"
        rng = random.Random(0)
        for awaited in ("unfinished/*.npz", "shards/*.arrow"):
            number = rng.randint(1, 4)
            making = subprocess.Popen(command(real_arguments, output), stdout=subprocess.DEVNULL)
            while len(list(output.glob(awaited))) < number:
                assert making.poll() is None, "it was done before it could be killed"
                time.sleep(0.005)
            making.send_signal(signal.SIGKILL)
            making.wait()
            assert not (output / "manifest.json").exists()
        subprocess.run(command(real_arguments, output), check=True, capture_output=True)
        assert same_folders(in_one_go, output)

    def test_a_dask_cluster_that_loses_a_worker(self, in_one_go, real_arguments, tmp_path):
        distributed = pytest.importorskip("distributed")
        output = tmp_path / "corpus"
        with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            scheduler = ("--scheduler", cluster.scheduler_address)
            making = subprocess.Popen(command(real_arguments, output, *scheduler), stdout=subprocess.DEVNULL)
            while len(list(output.glob("unfinished/*.npz"))) < 2:
                assert making.poll() is None
                time.sleep(0.005)
            cluster.workers[0].process.process.kill()
            assert making.wait() == 0
        assert same_folders(in_one_go, output)

    def test_a_soma_experiment(self, in_one_go, shared, tmp_path, monkeypatch):
        soma_io = pytest.importorskip("tiledbsoma.io")
        name = "zheng_sorted_safe"
        adata = ad.read_h5ad(shared / "data" / "train" / f"{name}.h5ad")
        experiment = str(tmp_path / name)
        # tiledbsoma 2.3 takes X, which anndata 0.13 counts among the layers, for a layer of no name.
        monkeypatch.setattr(
            type(adata.layers), "items", lambda layers: [(n, layers[n]) for n in layers if n is not None]
        )
        soma_io.from_anndata(experiment, adata, measurement_name="RNA", X_layer_name="raw")
        monkeypatch.undo()
        gene_info = str(shared / "data" / "genes" / "Homo_sapiens.gene_info.gz")
        options = {"vocabulary": str(in_one_go), "chunk_cells": 128}
        corpus = make(experiment, tmp_path / "corpus", gene_info, **options)
        of_file = make(shared / "data" / "train" / f"{name}.h5ad", tmp_path / "file", gene_info, **options)
        assert same_folders(corpus.folder / "shards", of_file.folder / "shards")
        condition = "cell_type == 'B cell' and tissue == 'blood'"
        b_cells = make(experiment, tmp_path / "b", gene_info, where=condition, **options)
        assert len(b_cells) == (adata.obs["cell_type"] == "B cell").sum()
        with pytest.raises(InputError, match="cannot be judged"):
            make(experiment, tmp_path / "none", gene_info, where="no_such == 1", **options)

    def test_an_unfit_file_on_the_command_line(self, real_arguments, tmp_path):
        (tmp_path / "torn.h5ad").write_bytes(b"nothing")
        done = subprocess.run(
            command([str(tmp_path / "torn.h5ad"), *real_arguments[1:]], tmp_path / "corpus"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2
        assert "torn.h5ad" in done.stderr
        assert "Traceback" not in done.stderr
        assert not (tmp_path / "corpus").exists()


def test_an_h5ad_file_is_read_in_slices(studies):
    source = H5adFile(str(studies / "first.h5ad"))
    part = source.read(np.array([3, 4, 7]))
    assert part.obs_names.tolist() == ["first3", "first4", "first7"]
    assert (part.X != ad.read_h5ad(studies / "first.h5ad")[[3, 4, 7]].X).nnz == 0
    assert source.checksum() == H5adFile(str(studies / "first.h5ad")).checksum()
    assert source.checksum() != H5adFile(str(studies / "second.h5ad")).checksum()
