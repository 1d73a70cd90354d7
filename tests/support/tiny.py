# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A vocabulary of forty genes and a score of words, and models that build in milliseconds."""

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
