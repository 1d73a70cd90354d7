# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Initialization of the model and processor of a pre-training run."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, BertModel

from ..checkpoint.config import build_model, read_config
from ..checkpoint.repository import fetch
from ..checkpoint.weights import require_weights_for
from ..conversion.bert import (
    bert_settings,
    load_bert_weights,
    naming_failures,
    read_bert,
    require_model_type,
    resize_positions,
)
from ..corpus.genes import Gene, read_gene_info
from ..model.configuration_langcell import LangCellCellConfig, LangCellConfig, LangCellTextConfig
from ..model.errors import InputError
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.modeling_langcell import LangCellForPreTraining, LangCellModel, LangCellTowerModel
from ..model.processing_langcell import LangCellProcessor
from .config import PretrainingConfig


def _resolve_text_tower(name: str) -> str:
    """Returns the folder or Hub id of a text tower; `package://NAME/FOLDER` is a folder in an installed package."""
    if not name.startswith("package://"):
        return name
    package, _, folder = name.removeprefix("package://").partition("/")
    try:
        return str(resources.files(package) / folder)
    except ModuleNotFoundError as error:
        raise InputError(
            f"text_tower: the package {package!r} is not installed; the extra [train] installs it."
        ) from error


def initialize_model(
    config: PretrainingConfig,
    vocabulary: dict[str, list],
    weights_follow: bool = False,
    gene_places: dict[str, list] | None = None,
) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """
    Returns a model and processor to train: those of `config.start`, or new ones from a sentence encoder, the corpus's
    gene vocabulary and, where the config names them, a Geneformer and the genes' names.

    Args:
        config: Names the checkpoints to start from.
        vocabulary: The genes.
        gene_places: The usual places of the genes, for a processor that has none.
        weights_follow: True if the weights will be loaded from a training checkpoint: slow initializations are then
            skipped.

    Raises:
        InputError: A checkpoint to start from has different genes from the corpus or does not fit, or none is given.
    """
    _require_known_settings(config.model)
    if config.start is not None:
        model, processor = _load_start(config, vocabulary)
    else:
        model, processor = _build_new(config, vocabulary, weights_follow)
    if processor.feature_extractor.gene_places is None:
        processor.feature_extractor.gene_places = gene_places
    for name, tower, length in (
        ("max_genes", model.config.cell_config, config.max_genes),
        ("max_tokens", model.config.text_config, config.max_tokens),
    ):
        if length > tower.max_position_embeddings:
            raise InputError(
                f"{name} is {length}, but the tower has {tower.max_position_embeddings} positions: set "
                f"model.{tower.base_config_key}.max_position_embeddings."
            )
    return model, processor


def _load_start(
    config: PretrainingConfig, vocabulary: dict[str, list]
) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """Loads model and processor of `config.start`, with the settings of `config.model`."""
    name = str(config.start)
    overrides = copy.deepcopy(config.model)
    positions = {
        part: overrides[part].pop("max_position_embeddings", None)
        for part in ("cell_config", "text_config")
        if part in overrides
    }
    with _naming_field("start", name):
        folder = fetch(name)
        require_model_type(str(folder), "langcell")
        require_weights_for(lambda: build_model(read_config(folder)), folder, name)
        model = LangCellForPreTraining.from_pretrained(folder, dtype=torch.float32, use_safetensors=True, **overrides)
        model.config.calibration = None  # Training makes it invalid.
        processor = LangCellProcessor.from_pretrained(folder)
    for part, length in positions.items():
        if length is not None:
            _set_positions(model.cell_model if part == "cell_config" else model.text_model, length)
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    if extractor.gene_vocabulary["ensembl_ids"] != vocabulary["ensembl_ids"]:
        raise InputError(
            f"{name} has different genes from the corpus: build the corpus with langcell corpus --vocabulary {name}."
        )
    extractor.max_length = max(extractor.max_length, config.max_genes)
    tokenizer.model_max_length = max(tokenizer.model_max_length, config.max_tokens)
    return model, processor


def _build_new(
    config: PretrainingConfig, vocabulary: dict[str, list], weights_follow: bool
) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """Builds a new model from a sentence encoder and, if there is one, a Geneformer."""
    if config.cell_tower is not None and (config.gene_names_from is not None or config.gene_average_start):
        raise InputError("cell_tower has its own genes and layers: leave out gene_names_from and gene_average_start.")
    if config.text_tower is None:
        raise InputError("A run that does not continue from a checkpoint (start) needs a text_tower.")

    folder = _resolve_text_tower(config.text_tower)
    with _naming_field("text_tower", folder):
        bert = read_bert(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = config.max_tokens
    extractor = LangCellFeatureExtractor(vocabulary, max_length=config.max_genes)

    overrides = dict(config.model)
    overrides["text_config"] = bert_settings(bert) | overrides.get("text_config", {})
    geneformer = None if config.cell_tower is None else _read_geneformer(config.cell_tower, extractor)
    cell_geometry = {} if geneformer is None else bert_settings(geneformer)
    overrides["cell_config"] = cell_geometry | overrides.get("cell_config", {}) | {"vocab_size": len(extractor)}
    with _naming_field("model", config.model):
        model = LangCellForPreTraining(LangCellConfig(**overrides))
    with _naming_field("text_tower", folder):
        load_bert_weights(model.text_model, bert, config.text_tower)
    if geneformer is not None and config.cell_tower is not None:
        with _naming_field("cell_tower", config.cell_tower):
            load_bert_weights(model.cell_model, geneformer, config.cell_tower)
    if weights_follow:
        return model, LangCellProcessor(extractor, tokenizer)
    if config.gene_names_from is not None:
        named = {gene.ensembl_id: gene for gene in read_gene_info(config.gene_names_from)}
        genes = [named.get(ensembl_id) for ensembl_id in vocabulary["ensembl_ids"]]
        if not any(genes):
            raise InputError(f"gene_names_from: {config.gene_names_from} has none of the corpus's genes.")
        _initialize_gene_embeddings(model, bert, tokenizer, genes)
    if config.gene_average_start:
        _initialize_gene_average(model)
    return model, LangCellProcessor(extractor, tokenizer)


def _read_geneformer(name: str, extractor: LangCellFeatureExtractor) -> BertModel:
    """
    Reads a BERT over the corpus's genes.

    Raises:
        InputError: There is no BERT, or it has different genes.
    """
    with _naming_field("cell_tower", name):
        bert = read_bert(name)
        # The row of <cls> may be missing; it is added later.
        if bert.config.vocab_size not in (len(extractor) - 1, len(extractor)):
            raise InputError(
                f"{name} has {bert.config.vocab_size} tokens, but the corpus has {len(extractor)}: build the corpus "
                "with the genes of the checkpoint, langcell corpus --vocabulary."
            )
    return bert


def _require_known_settings(overrides: dict[str, Any]) -> None:
    """
    Checks the names of the model's settings: transformers keeps unknown ones, so a misspelling would go unnoticed.

    Raises:
        InputError: A name is unknown, or a part of the config is not a mapping.
    """
    parts: dict[str, type] = {"cell_config": LangCellCellConfig, "text_config": LangCellTextConfig}
    given: dict[str, tuple[Any, Any]] = {"model": (overrides, LangCellConfig)}
    given |= {f"model.{part}": (overrides[part], kind) for part, kind in parts.items() if part in overrides}
    for where, (settings, kind) in given.items():
        if not isinstance(settings, dict):
            raise InputError(f"{where} must map settings to values, not be {settings!r}.")
        known = {field.name for field in fields(kind)}
        if unknown := sorted(set(settings) - known):
            raise InputError(f"{where} has no setting {', '.join(unknown)}.")


@contextmanager
def _naming_field(field: str, given: object) -> Iterator[None]:
    """Puts the field's name before the message of an error about its checkpoint or file."""
    try:
        with naming_failures(given):
            yield
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def _set_positions(tower: LangCellTowerModel, length: int) -> None:
    """Cuts or extends a tower's position embeddings to `length`."""
    positions = tower.embeddings.position_embeddings
    positions.weight = nn.Parameter(resize_positions(positions.weight.data, length))
    positions.num_embeddings = tower.config.max_position_embeddings = length


@torch.no_grad()
def _initialize_gene_embeddings(
    model: LangCellForPreTraining, bert: BertModel, tokenizer: Any, genes: list[Gene | None]
) -> None:
    """
    Initializes gene embeddings with the principal components of the mean-pooled text states of `symbol: full name`.
    Genes without a name keep their random embeddings.
    """
    texts = [f"{gene.symbol}: {gene.full_name}" for gene in genes if gene is not None]
    ids = [2 + place for place, gene in enumerate(genes) if gene is not None]
    embedded = torch.empty(len(texts), bert.config.hidden_size)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 256):
        rows = by_length[start : start + 256]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=48, return_tensors="pt")
        states = bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        embedded[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    weight = model.cell_model.get_input_embeddings().weight
    centred = embedded - embedded.mean(dim=0)
    components = min(weight.shape[1], *centred.shape)
    _, _, directions = torch.pca_lowrank(centred, q=components, center=False, niter=4)
    projected = centred @ directions
    # The scale is twice that of the positions: at first a gene's identity should count for more than its rank.
    projected *= 2 * model.config.cell_config.initializer_range / projected.std()
    weight[ids, :components] = projected


@torch.no_grad()
def _initialize_gene_average(model: LangCellForPreTraining) -> None:
    """
    Makes the values of the last layer the genes' own states, which its small random queries and keys weight about
    equally. The attended states count four times the layer's input: otherwise the constant initial state of `<cls>`
    would drown them.
    """
    attention = model.cell_model.encoder.layer[-1].attention
    torch.nn.init.eye_(attention.self.value.weight)
    torch.nn.init.eye_(attention.output.dense.weight).mul_(4)


@torch.no_grad()
def initialize_text_projection(model: LangCellModel, pooled: torch.Tensor, whitening: float = 0.0) -> None:
    """
    Initializes the text projection with the principal components of texts, at unit length on average: differences
    between descriptions are kept, and what they share is removed.

    Args:
        model: The model; changed in place.
        pooled: `(texts, hidden_size)` pooled states.
        whitening: Each component is divided by its spread to this power.
    """
    projection = model.text_projection
    components = min(projection.out_features, *pooled.shape)
    mean = pooled.mean(dim=0)
    _, spread, directions = torch.linalg.svd(pooled - mean, full_matrices=False)
    # With few texts the last components are rounding errors, which must not be amplified.
    divisors = spread[:components].clamp(min=1e-3 * spread[0]) ** whitening
    directions = directions[:components] / divisors[:, None]
    directions /= ((pooled - mean) @ directions.T).norm(dim=1).mean()
    projection.weight.zero_()
    projection.weight[:components] = directions
    projection.bias.zero_()
    projection.bias[:components] = -directions @ mean


__all__ = ["initialize_model", "initialize_text_projection"]
