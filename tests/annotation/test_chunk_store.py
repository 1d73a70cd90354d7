# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The store of annotated chunks: what is written is read, and what is damaged or of another plan is done again."""

import threading
import time
from contextlib import ExitStack

import numpy as np
import pytest

from modeling_langcell import InputError
from modeling_langcell.annotation.annotation_run import AnnotatedCells
from modeling_langcell.annotation.chunk_store import ChunkStore
from modeling_langcell.annotation.predictions import Predictions
from modeling_langcell.io.launch import Launch

PLAN = {"labels": ["B cell", "T cell"], "alpha": 1.0}


class Chunks:
    """Three chunks of ten cells in all, of which the store needs only the sizes."""

    n_cells = 10

    def __len__(self):
        return 3

    def rows(self, number):
        return range(self.n_cells)[4 * number : 4 * number + 4]


def annotated(number):
    rng = np.random.default_rng(number)
    cells = len(Chunks().rows(number))
    predictions = Predictions(*(rng.normal(size=cells) for _ in Predictions.names()))
    return AnnotatedCells(rng.normal(size=(cells, 5)), rng.normal(size=(cells, 2)), predictions)


@pytest.fixture
def open_store(tmp_path):
    """Opens the store as a new run does, after the run before it has ended."""
    with ExitStack() as running:

        def open_store(plan=PLAN):
            running.close()
            launch = running.enter_context(Launch(tmp_path / "o.h5ad"))
            store = ChunkStore(launch, plan, Chunks())
            store.open()
            store.count_cells()
            return store

        yield open_store


@pytest.fixture
def interrupted(open_store):
    """A store in which two of three chunks are annotated."""
    store = open_store()
    for number in (0, 1):
        store.write(number, annotated(number).arrays())
    return store


def test_chunks_are_read_as_they_were_written(tmp_path, open_store, interrupted):
    store = open_store()
    assert store.missing() == [2]
    assert store.count_cells() == 8
    store.write(2, annotated(2).arrays())
    expected = [annotated(number) for number in range(3)]
    for number, chunk in enumerate(expected):
        np.testing.assert_array_equal(store.array(number, "embeds"), chunk.embeds)
        np.testing.assert_array_equal(store.scores(number), chunk.scores.T)
        np.testing.assert_array_equal(store.scores(number, slice(1, 2)), chunk.scores.T[1:2])
    np.testing.assert_array_equal(store.predictions().score, np.concatenate([c.predictions.score for c in expected]))
    assert list(store.wait_for_others()) == []
    store.delete()
    assert not store.folder.exists()


def test_a_damaged_chunk_is_reported_and_missing(open_store, interrupted, caplog):
    path = interrupted.folder / "00000001.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    assert open_store().missing() == [1, 2]
    (message,) = caplog.messages
    assert message == f"{path} is damaged: annotating its cells again."


def test_another_plan_is_reported_and_begins_anew(open_store, interrupted, caplog):
    assert open_store(PLAN | {"alpha": 0.5}).missing() == [0, 1, 2]
    (message,) = caplog.messages
    assert "belongs to a different annotation" in message


def test_a_run_that_lost_its_folder_writes_nothing(open_store, interrupted):
    open_store(PLAN | {"alpha": 0.5})
    with pytest.raises(InputError, match="taken over by another run"):
        interrupted.write(2, annotated(2))


def test_processes_share_the_chunks(tmp_path, open_store, interrupted):
    """Each takes its own, and they wait for each other until they know that both run."""
    stores = []

    def second():
        with Launch(interrupted.output, 1, 2) as launch:
            store = ChunkStore(launch, PLAN, Chunks())
            store.open()
            stores.append(store)
            store.wait_for_first()

    interrupted.launch.__exit__(None, None, None)
    other = threading.Thread(target=second)
    other.start()
    with Launch(interrupted.output, 0, 2) as launch:
        first = ChunkStore(launch, PLAN, Chunks())
        first.open()
        while not stores:
            time.sleep(0.01)
        assert (first.missing(), stores[0].missing()) == ([2], [])
        first.write(2, annotated(2).arrays())
        list(first.wait_for_others())
        first.delete()
        other.join()
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_no_folder_without_chunks(interrupted):
    interrupted.close_after_error()
    assert interrupted.folder.is_dir(), "its chunks are kept"
    for path in interrupted.folder.glob("*.safetensors"):
        path.unlink()
    interrupted.close_after_error()
    assert not interrupted.folder.exists()
