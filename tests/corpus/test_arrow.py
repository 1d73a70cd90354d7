# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A corpus of others is read only if its files are those that were recorded, and every position in them is right."""

import hashlib
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from modeling_langcell import InputError
from modeling_langcell.corpus.corpus import Corpus

from .conftest import build


@pytest.fixture
def corpus(studies, tmp_path, gene_info):
    build(studies, tmp_path / "corpus", gene_info)
    return tmp_path / "corpus"


def first_shard(corpus):
    return corpus / "shards" / json.loads((corpus / "manifest.json").read_text())["shards"][0]["file"]


def change_manifest(corpus, change):
    manifest = json.loads((corpus / "manifest.json").read_text())
    change(manifest)
    (corpus / "manifest.json").write_text(json.dumps(manifest))


def sign(corpus):
    """Records the checksum of a changed shard, as whoever changed it would."""
    sha256 = hashlib.sha256(first_shard(corpus).read_bytes()).hexdigest()
    change_manifest(corpus, lambda manifest: manifest["shards"][0].update(sha256=sha256))


def refused(corpus, says):
    with pytest.raises(InputError, match=says):
        Corpus(corpus).cells  # noqa: B018


def rewrite(corpus, change, **options):
    table = change(pa.ipc.open_stream(first_shard(corpus).read_bytes()).read_all())
    settings = pa.ipc.IpcWriteOptions(**options)
    with pa.ipc.new_stream(str(first_shard(corpus)), table.schema, options=settings) as stream:
        stream.write_table(table)
    sign(corpus)


def test_an_intact_corpus_with_and_without_checksums_of_its_tables(corpus):
    assert len(Corpus(corpus).cells) == len(Corpus(corpus))
    change_manifest(corpus, lambda manifest: manifest.pop("files"))  # As older corpora are.
    assert Corpus(corpus).gene_vocabulary["ensembl_ids"]


@pytest.mark.parametrize("name", ["genes.json", "panels.arrow", "places.json"])
def test_checksums_of_tables(corpus, name):
    with (corpus / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(InputError, match=rf"{name} is not the file that the corpus was built with"):
        Corpus(corpus)


def test_checksums_of_shards(corpus):
    with first_shard(corpus).open("ab") as file:
        file.write(b" ")
    refused(corpus, "its checksum differs")


@pytest.mark.parametrize(
    "change", [lambda old: old[::-1], lambda old: old - 1000, lambda old: np.r_[old[:-1], 2**31 - 1]]
)
def test_positions_outside_the_file(corpus, change):
    content = first_shard(corpus).read_bytes()
    offsets = pa.ipc.open_stream(content).read_all()["token_ids"].combine_chunks().offsets.to_numpy()
    first_shard(corpus).write_bytes(content.replace(offsets.tobytes(), change(offsets).astype(np.int32).tobytes()))
    sign(corpus)
    refused(corpus, "is damaged")


def test_compression(corpus):
    rewrite(corpus, lambda table: table, compression="zstd")
    refused(corpus, "is compressed")


def test_other_columns(corpus):
    rewrite(corpus, lambda table: table.drop_columns(["study"]))
    refused(corpus, "has other columns")


def test_other_features(corpus):
    rewrite(corpus, lambda table: table.replace_schema_metadata({"huggingface": "{}"}))
    refused(corpus, "has metadata of something else")


def test_genes_that_the_vocabulary_lacks(corpus):
    def change(table):
        ids = table["token_ids"].combine_chunks()
        values = ids.values.to_numpy().copy()
        values[1] = 60_000
        return table.set_column(0, "token_ids", pa.ListArray.from_arrays(ids.offsets, pa.array(values)))

    rewrite(corpus, change)
    refused(corpus, "no lists of their genes")


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["shards"][0].update(file="../secret.arrow"),
        lambda manifest: manifest["shards"][0].update(cells=10**9),
        lambda manifest: manifest.update(shards=[1]),
        lambda manifest: manifest.update(files={"../secret": "0"}),
    ],
)
def test_manifests(corpus, change):
    shutil.copyfile(first_shard(corpus), corpus / "secret.arrow")
    change_manifest(corpus, change)
    with pytest.raises(InputError, match=r"manifest\.json is not what langcell corpus writes"):
        Corpus(corpus)
