# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: real cells and recorded behaviour, tiny random checkpoints, small AnnData, processes and a Hub."""

import gzip
import os
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from tests.support.commands import Process, link_cache, start_python, stop_servers
from tests.support.hub_stand_in import TOKEN, HubStandIn
from tests.support.paths import REPOSITORY
from tests.support.tiny import GENES, SYMBOLS, TYPES, WORDS, tiny_config

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
    medians = np.linspace(0.5, 4.0, len(GENES)).round(3).tolist()
    names = [f"{symbol}|ALIAS{number}" for number, symbol in enumerate(SYMBOLS, 1)]
    return {"ensembl_ids": list(GENES), "medians": medians, "names": names}


@pytest.fixture(scope="session")
def tiny_processor(gene_vocabulary, tmp_path_factory):
    """A processor for the forty genes and a score of words."""
    from transformers import BertTokenizer

    from modeling_langcell import LangCellFeatureExtractor, LangCellProcessor

    vocabulary = tmp_path_factory.mktemp("words") / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizer(str(vocabulary), model_max_length=32)
    return LangCellProcessor(LangCellFeatureExtractor(gene_vocabulary, max_length=64), tokenizer)


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_processor, tmp_path_factory) -> Path:
    """A saved folder of a random LangCell checkpoint."""

    from modeling_langcell import LangCellModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-langcell"
    LangCellModel(tiny_config()).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def cells():
    """An AnnData of twelve cells with raw counts of the forty genes: symbols as names, Ensembl ids in var."""
    import anndata as ad
    import pandas as pd

    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(12, len(GENES)))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"cell{number}" for number in range(12)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame({"ensembl_id": GENES}, index=SYMBOLS))


@pytest.fixture(scope="session")
def tiny_studies(tmp_path_factory):
    """A corpus of three studies in which a type's genes are expressed tenfold, and a random sentence encoder."""
    import anndata as ad
    import pandas as pd
    from transformers import BertConfig, BertModel, BertTokenizer

    from modeling_langcell.corpus.build import CorpusSettings, make_corpus
    from modeling_langcell.corpus.sources import find_sources

    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for study in range(3):
        term_ids = np.array([*TYPES, "unknown"])[rng.integers(0, 4, 40)]
        rates = np.full((40, len(GENES)), 0.5)
        for number, term_id in enumerate(TYPES):
            rates[term_ids == term_id, 10 * number : 10 * number + 10] *= 10
        obs = pd.DataFrame({"cell_type_ontology_term_id": term_ids}, index=[f"s{study}c{row}" for row in range(40)])
        if study < 2:  # Blood and bone marrow; the third study does not name its tissue.
            obs["tissue_ontology_term_id"] = ("UBERON:0000178", "UBERON:0002371")[study]
        obs["suspension_type"] = "cell"
        counts = sp.csr_matrix(rng.poisson(rates).astype(np.float32))
        (folder / "train").mkdir(exist_ok=True)
        ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=GENES)).write_h5ad(folder / "train" / f"study{study}.h5ad")
    lines = ["#tax_id\tSymbol\tSynonyms\tdbXrefs\tdescription"]
    lines += [f"9606\t{s}\t-\tHGNC:1|Ensembl:{g}\t{s} protein" for g, s in zip(GENES, SYMBOLS, strict=True)]
    with gzip.open(folder / "gene_info.gz", "wt") as table:
        table.write("\n".join(lines) + "\n")
    encoder = folder / "encoder"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config, add_pooling_layer=False).save_pretrained(encoder)
    (encoder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizer(str(encoder / "vocab.txt")).save_pretrained(encoder)
    settings = CorpusSettings(str(folder / "gene_info.gz"), min_cells=1, chunk_cells=32)
    make_corpus(find_sources([str(folder / "train")]), folder / "corpus", settings)
    return folder


@pytest.fixture
def settings(tiny_studies, tmp_path):
    """Settings of a pre-training run of seconds on the tiny studies."""
    folder = tiny_studies
    return {
        "corpus": str(folder / "corpus"),
        "gene_names_from": str(folder / "gene_info.gz"),
        "text_tower": str(folder / "encoder"),
        "output": str(tmp_path / "run"),
        "max_genes": 32,
        "batch_tokens": 400,
        "steps": 4,
        "warmup_steps": 1,
        "learning_rate": 3e-3,
        "model": {
            "cell_config": {
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 32,
            },
            "text_config": {"pooling": "mean"},
            "projection_dim": 8,
        },
    }


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
