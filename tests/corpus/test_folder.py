# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The folder of a corpus: a build replaces and deletes nothing but its own files."""

from pathlib import Path

import anndata as ad
import pytest

from modeling_langcell import InputError
from modeling_langcell.corpus.build import CorpusBuilder
from modeling_langcell.corpus.corpus import Corpus
from tests.corpus.conftest import build, same_folders

#: End of the name that `atomic_write` gives to an incomplete file.
SUFFIX = "0123456789abcdef" * 2
#: Files that no build has written.
FOREIGN_FILES = (
    "notes.txt",
    ".hidden",
    ".git/config",
    "unfinished/notes.npz",
    "unfinished/nested/first-000000.npz",
    "shards/.first-000000.arrow.swp",
    "shards/first-000000.arrow.bak",
    "shards/first-000099.arrow",
    "shards/third-000000.arrow",
    f"shards/.third-000000.arrow.{SUFFIX}",
    f"shards/.first-000000.arrow.{SUFFIX.upper()}",
    f"unfinished/.first-000000.arrow.{SUFFIX}",
)


def write_foreign_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[]")
    return path


def content_of(folder: Path) -> dict[str, str]:
    """Returns the content of each file in a folder, hidden ones included."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text("latin-1") for path in files}


def test_a_finished_corpus_is_left_alone(studies, tmp_path, gene_info):
    build(studies, tmp_path / "corpus", gene_info)
    with pytest.raises(InputError, match="already holds a corpus"):
        build(studies, tmp_path / "corpus", gene_info)


def test_a_folder_that_is_not_empty_is_refused(studies, tmp_path, gene_info):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        build(studies, tmp_path / "corpus", gene_info)
    assert [path.name for path in (tmp_path / "corpus").iterdir()] == ["notes.txt"]


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
        f"unfinished/.plan.json.{SUFFIX}/notes.txt",
        f".plan.json.{SUFFIX}",
        "shards/first-000000.arrow",
    ],
)
def test_a_folder_of_other_files_is_left_alone(studies, tmp_path, gene_info, file):
    output = tmp_path / "corpus"
    write_foreign_file(output / file)
    with pytest.raises(InputError, match="is not empty: choose a new folder"):
        build(studies, output, gene_info)
    assert content_of(output) == {file: "[]"}


def test_the_targets_of_links_are_left_alone(studies, tmp_path, gene_info, monkeypatch):
    output = tmp_path / "corpus"
    output.mkdir()
    elsewhere = write_foreign_file(tmp_path / "elsewhere" / "notes.txt").parent
    (output / "unfinished").symlink_to(elsewhere)
    with pytest.raises(InputError, match="is not empty"):
        build(studies, output, gene_info)
    with monkeypatch.context() as cut:
        cut.setattr(CorpusBuilder, "write_panels", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(studies, tmp_path / "unfinished-corpus", gene_info)
    for folder in ("unfinished", "shards"):
        (tmp_path / "unfinished-corpus" / folder).rename(tmp_path / folder)
        (tmp_path / "unfinished-corpus" / folder).symlink_to(tmp_path / folder)
        before = content_of(tmp_path / folder)
        with pytest.raises(InputError, match=rf"not empty|{folder} does not belong to"):
            build(studies, tmp_path / "unfinished-corpus", gene_info)
        assert content_of(tmp_path / folder) == before
        (tmp_path / "unfinished-corpus" / folder).unlink()
        (tmp_path / folder).rename(tmp_path / "unfinished-corpus" / folder)
    assert content_of(elsewhere) == {"notes.txt": "[]"}
    assert len(build(studies, tmp_path / "unfinished-corpus", gene_info)) == 76


def test_a_link_to_an_empty_folder_is_written_through(studies, tmp_path, gene_info):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "corpus").symlink_to(tmp_path / "elsewhere")
    build(studies, tmp_path / "corpus", gene_info)
    assert len(Corpus(tmp_path / "elsewhere").cells) == 76


def test_an_unfinished_corpus_is_resumed_once_foreign_files_are_gone(studies, tmp_path, gene_info, monkeypatch):
    whole = build(studies, tmp_path / "whole", gene_info).folder
    output = tmp_path / "corpus"
    with monkeypatch.context() as cut:
        cut.setattr(CorpusBuilder, "write_panels", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(studies, output, gene_info)
    for file in FOREIGN_FILES:
        write_foreign_file(output / file)
        before = content_of(output)
        with pytest.raises(InputError, match="move it elsewhere"):
            build(studies, output, gene_info)
        assert content_of(output) == before
        (output / file).unlink()
        if (output / file).parent.name in ("nested", ".git"):
            (output / file).parent.rmdir()
    write_foreign_file(output / "shards" / f".first-000000.arrow.{SUFFIX}")
    assert same_folders(build(studies, output, gene_info).folder, whole)


@pytest.mark.parametrize(
    ("step", "name"),
    [("write_vocabulary", "genes.json"), ("write_panels", "panels.arrow"), ("write_places", "places.json")],
)
def test_foreign_files_under_a_name_of_the_corpus_are_not_replaced(
    studies, tmp_path, gene_info, monkeypatch, step, name
):
    whole, output = build(studies, tmp_path / "whole", gene_info).folder, tmp_path / "corpus"
    with monkeypatch.context() as cut:
        cut.setattr(CorpusBuilder, step, lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(studies, output, gene_info)
    write_foreign_file(output / name)
    with pytest.raises(InputError, match=rf"{name} does not belong to the unfinished corpus in .*: move it elsewhere"):
        build(studies, output, gene_info)
    assert (output / name).read_text() == "[]"
    (output / name).unlink()
    assert same_folders(build(studies, output, gene_info).folder, whole)


def test_foreign_files_that_appear_during_a_build_stay(studies, tmp_path, gene_info, monkeypatch):
    write_panels = CorpusBuilder.write_panels

    def write_panels_beside_foreign_files(builder):
        for file in FOREIGN_FILES:
            write_foreign_file(builder.output / file)
        write_panels(builder)

    monkeypatch.setattr(CorpusBuilder, "write_panels", write_panels_beside_foreign_files)
    corpus = build(studies, tmp_path / "corpus", gene_info)
    assert len(corpus.cells) == 76
    held = content_of(corpus.folder)
    assert all(held.pop(file) == "[]" for file in FOREIGN_FILES)
    monkeypatch.undo()
    assert held.keys() == content_of(build(studies, tmp_path / "whole", gene_info).folder).keys()


@pytest.mark.parametrize(
    ("changes", "step", "says"),
    [({"min_cells": 1000}, "write_vocabulary", "in 1000 cells"), ({}, "write_shards", "No cell can be kept")],
)
def test_foreign_files_stay_when_a_build_fails(studies, tmp_path, gene_info, monkeypatch, changes, step, says):
    if step == "write_shards":
        changes = {"vocabulary": str(build(studies, tmp_path / "other", gene_info).folder)}
        for path in studies.glob("*.h5ad"):
            adata = ad.read_h5ad(path)
            adata.obs["is_primary_data"] = False
            adata.write_h5ad(path)
    (tmp_path / "empty").mkdir()
    for output, is_left in (("new", False), ("empty", True)):
        with pytest.raises(InputError, match=says):
            build(studies, tmp_path / output, gene_info, **changes)
        assert (tmp_path / output).exists() == is_left
    original = getattr(CorpusBuilder, step)
    monkeypatch.setattr(
        CorpusBuilder,
        step,
        lambda builder: (write_foreign_file(builder.output / "shards" / ".mine"), original(builder)),
    )
    with pytest.raises(InputError, match=says):
        build(studies, tmp_path / "used", gene_info, **changes)
    assert content_of(tmp_path / "used") == {"shards/.mine": "[]"}


def test_a_corpus_named_like_its_subfolder(studies, tmp_path, gene_info):
    corpus = build(studies, tmp_path / "unfinished", gene_info)
    assert same_folders(corpus.folder, build(studies, tmp_path / "corpus", gene_info).folder)
