# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Corpora built by several processes and by a Dask cluster are those of one process."""

import os
import signal
import threading
import time

import pytest

from modeling_langcell import InputError
from modeling_langcell.corpus.parallel import WorkerPool
from tests.corpus.conftest import build, same_folders


@pytest.mark.e2e
def test_two_processes_build_the_same_corpus(studies, tmp_path, gene_info):
    expected = build(studies, tmp_path / "expected", gene_info)
    assert same_folders(expected.folder, build(studies, tmp_path / "corpus", gene_info, processes=2).folder)


def test_no_processes_are_refused():
    with pytest.raises(InputError, match="must be at least 1"):
        WorkerPool(0)


@pytest.mark.e2e
@pytest.mark.heavy
def test_dask_cluster_that_loses_a_worker(studies, tmp_path, gene_info):
    distributed = pytest.importorskip("distributed")
    expected = build(studies, tmp_path / "expected", gene_info, chunk_cells=1)
    output = tmp_path / "corpus"
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        worker = cluster.workers[0].pid
        killed = threading.Event()

        def kill_once_there_are_sketches():
            while len(list(output.glob("unfinished/*.npz"))) < 2:
                time.sleep(0.005)
            if not (output / "genes.json").exists():
                os.kill(worker, signal.SIGKILL)
                killed.set()

        killer = threading.Thread(target=kill_once_there_are_sketches, daemon=True)
        killer.start()
        corpus = build(studies, output, gene_info, chunk_cells=1, scheduler=cluster.scheduler_address)
    killer.join(timeout=10)
    assert killed.is_set(), "the sketches were finished before a worker could be killed"
    assert same_folders(corpus.folder, expected.folder)
