# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Shared fixtures: the real cells and the recorded behaviour, tiny random checkpoints, small AnnData."""

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real cells and recorded behaviour; its absence skips, or fails where it must be there."""
    folder = Path(os.environ.get("LANGCELL_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        reason = f"no real cells and recorded behaviour at {folder} (LANGCELL_SHARED names their folder)"
        if os.environ.get("LANGCELL_REQUIRE_SHARED"):
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


GENES = [f"ENSG{number:011d}" for number in range(1, 41)]
SYMBOLS = [f"GENE{number}" for number in range(1, 41)]
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] cell type : . , b t nk natural killer monocyte a lymphocyte that is".split()


@pytest.fixture(scope="session")
def gene_vocabulary() -> dict[str, list]:
    """Forty genes with medians between 0.5 and 4 and one synonym each."""
    medians = np.linspace(0.5, 4.0, len(GENES)).round(3).tolist()
    names = [f"{symbol}|ALIAS{number}" for number, symbol in enumerate(SYMBOLS, 1)]
    return {"ensembl_ids": list(GENES), "medians": medians, "names": names}


def tiny_config(**overrides):
    """A joint config that builds in milliseconds; a new object each time, since models write into theirs."""
    from modeling_langcell import LangCellConfig

    cell = {"vocab_size": len(GENES) + 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    cell |= {"intermediate_size": 32, "max_position_embeddings": 64}
    text = {"vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    text |= {"intermediate_size": 48, "max_position_embeddings": 32}
    cell |= overrides.pop("cell_config", {})
    text |= overrides.pop("text_config", {})
    return LangCellConfig(cell_config=cell, text_config=text, projection_dim=12, **overrides)


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
    """A random LangCell checkpoint as a saved folder."""
    import torch

    from modeling_langcell import LangCellModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny-langcell"
    LangCellModel(tiny_config()).save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def cells():
    """Twelve cells of raw counts over the forty genes (symbols, Ensembl ids in var), as AnnData."""
    import anndata as ad
    import pandas as pd

    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(12, len(GENES)))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"cell{number}" for number in range(12)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame({"ensembl_id": GENES}, index=SYMBOLS))
