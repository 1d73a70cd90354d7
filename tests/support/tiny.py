# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A vocabulary of forty genes and a score of words, and models that build in milliseconds."""

import gzip

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

#: Ensembl ids of the forty genes.
GENES = [f"ENSG{number:011d}" for number in range(1, 41)]
#: Their symbols.
SYMBOLS = [f"GENE{number}" for number in range(1, 41)]
#: The text vocabulary.
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] cell type : . , b t nk natural killer monocyte a lymphocyte that is".split()
#: Cell types of the tiny studies, by Cell Ontology id.
TYPES = {"CL:0000236": "B cell", "CL:0000623": "natural killer cell", "CL:0000576": "monocyte"}


def tiny_config(**overrides):
    """Returns a new joint config of a tiny model; a new object each time, since models write into theirs."""
    from modeling_langcell import LangCellConfig

    cell = {"vocab_size": len(GENES) + 3, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    cell |= {"intermediate_size": 32, "max_position_embeddings": 64}
    text = {"vocab_size": len(WORDS), "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3}
    text |= {"intermediate_size": 48, "max_position_embeddings": 32}
    cell |= overrides.pop("cell_config", {})
    text |= overrides.pop("text_config", {})
    return LangCellConfig(cell_config=cell, text_config=text, projection_dim=12, **overrides)


def initialized(settings):
    """Returns the untrained model and processor of a pre-training run."""
    from modeling_langcell.corpus.corpus import Corpus
    from modeling_langcell.pretraining.config import PretrainingConfig
    from modeling_langcell.pretraining.initialization import initialize_model

    return initialize_model(PretrainingConfig(**settings), Corpus(settings["corpus"]).gene_vocabulary)


def gene_vocabulary():
    """Returns the forty genes with medians between 0.5 and 4 and one synonym each."""
    medians = np.linspace(0.5, 4.0, len(GENES)).round(3).tolist()
    names = [f"{symbol}|ALIAS{number}" for number, symbol in enumerate(SYMBOLS, 1)]
    return {"ensembl_ids": list(GENES), "medians": medians, "names": names}


def make_processor(folder):
    """Returns a processor for the forty genes and a score of words, which are written into a folder."""
    from transformers import BertTokenizer

    from modeling_langcell import LangCellFeatureExtractor, LangCellProcessor

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizer(str(vocabulary), model_max_length=32)
    return LangCellProcessor(LangCellFeatureExtractor(gene_vocabulary(), max_length=64), tokenizer)


def make_checkpoint(folder, processor):
    """Saves a random LangCell checkpoint in a folder."""
    from modeling_langcell import LangCellModel

    torch.manual_seed(0)
    LangCellModel(tiny_config()).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def random_cells(number):
    """Returns cells with raw counts of the forty genes: symbols as names, Ensembl ids in var."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 2.0, size=(number, len(GENES)))).astype(np.float32)
    counts[:, 0] += 1
    obs = pd.DataFrame(index=[f"cell{row}" for row in range(number)])
    return ad.AnnData(sp.csr_matrix(counts), obs=obs, var=pd.DataFrame({"ensembl_id": GENES}, index=SYMBOLS))


def make_studies(folder):
    """
    Makes, in a folder, three studies in which a type's genes are expressed tenfold (`train/`), their corpus, a table of
    the genes (`gene_info.gz`), and a random sentence encoder.
    """
    from transformers import BertConfig, BertModel, BertTokenizer

    from modeling_langcell.corpus.build import CorpusSettings, make_corpus
    from modeling_langcell.corpus.sources import find_sources

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


def training_settings(studies, output):
    """Returns the settings of a pre-training run of seconds on the tiny studies."""
    return {
        "corpus": str(studies / "corpus"),
        "gene_names_from": str(studies / "gene_info.gz"),
        "text_tower": str(studies / "encoder"),
        "output": str(output),
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
