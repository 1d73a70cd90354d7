# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: real cells and recorded behaviour, tiny random checkpoints, small AnnData, processes and a Hub."""

import os
from pathlib import Path

import hypothesis
import pytest
import torch

from tests.support import tiny
from tests.support.commands import Process, link_cache, start_python, stop_servers
from tests.support.hub_stand_in import TOKEN, HubStandIn
from tests.support.paths import REPOSITORY

torch.set_num_threads(1)

# `ci` draws the same few inputs every time; `LANGCELL_HYPOTHESIS=nightly` draws many, and others each time. A test's
# fixtures are read and not changed, or made anew by each input.
_FIXTURES = [hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow]
_FIXTURES += [hypothesis.HealthCheck.data_too_large]
for _name, _draws in (("ci", {"max_examples": 25, "derandomize": True}), ("nightly", {"max_examples": 1000})):
    hypothesis.settings.register_profile(_name, deadline=None, suppress_health_check=_FIXTURES, **_draws)
hypothesis.settings.load_profile(os.environ.get("LANGCELL_HYPOTHESIS", "ci"))


#: Fixtures whose tests take a browser, a Hub over HTTP, the built guide, a wheel or a measurement by a script.
_END_TO_END = {"chromium", "hub_server", "site", "wheel", "sdist", "throughput"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Marks the tests that use such a fixture as `e2e`."""
    for item in items:
        if _END_TO_END & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.e2e)


def pytest_sessionfinish():
    stop_servers()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real cells and recorded behaviour. Without it a test is skipped, or fails under CI."""
    folder = Path(os.environ.get("LANGCELL_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        reason = f"no real cells and recorded behaviour at {folder} (LANGCELL_SHARED names their folder)"
        if os.environ.get("LANGCELL_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def chromium():
    """A browser without a window. Without it a test is skipped, or fails under CI."""
    from modeling_langcell import InputError
    from modeling_langcell.eval.experiments.pictures import chromium as start

    try:
        with start() as browser:
            yield browser
    except InputError as error:
        if os.environ.get("LANGCELL_REQUIRE_BROWSER"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def gene_vocabulary() -> dict[str, list]:
    """Forty genes with medians between 0.5 and 4 and one synonym each."""
    return tiny.gene_vocabulary()


@pytest.fixture(scope="session")
def tiny_processor(tmp_path_factory):
    """A processor for the forty genes and a score of words."""
    return tiny.make_processor(tmp_path_factory.mktemp("words"))


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_processor, tmp_path_factory) -> Path:
    """A saved folder of a random LangCell checkpoint."""
    return tiny.make_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny-langcell", tiny_processor)


@pytest.fixture
def cells():
    """An AnnData of twelve cells with raw counts of the forty genes: symbols as names, Ensembl ids in var."""
    return tiny.random_cells(12)


@pytest.fixture(scope="session")
def tiny_studies(tmp_path_factory):
    """A corpus of three studies in which a type's genes are expressed tenfold, and a random sentence encoder."""
    return tiny.make_studies(tmp_path_factory.mktemp("corpus"))


@pytest.fixture
def settings(tiny_studies, tmp_path):
    """Settings of a pre-training run of seconds on the tiny studies."""
    return tiny.training_settings(tiny_studies, tmp_path / "run")


# ---------------------------------------------------------------------- processes and a Hub


@pytest.fixture(scope="session")
def hub_server():
    """The stand-in for the Hub that all tests of this process ask."""
    with HubStandIn() as hub:
        yield hub


@pytest.fixture
def hub(hub_server):
    """An empty stand-in for the Hub."""
    yield hub_server
    hub_server.reset()


@pytest.fixture
def start(hub, tmp_path):
    """Starts Python with arguments, in `tmp_path`, with no Hub but the stand-in and an empty cache."""
    running: list[Process] = []

    def start(*command, home: str = "home", token: str = TOKEN, environment=None, **options) -> Process:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("HF_")},
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(link_cache(tmp_path / home)),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            **(environment or {}),
        }
        running.append(start_python(*command, **{"cwd": tmp_path, "env": environment, **options}))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def run(start):
    """Runs Python with arguments to its end, as `start` does; returns the exit code, stdout and stderr."""

    def run(*command, **options) -> tuple[int, str, str]:
        process = start(*command, **options)
        printed, errors = process.communicate(timeout=300)
        return process.returncode, printed, errors

    return run
