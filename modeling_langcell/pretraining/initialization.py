# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Where the towers of a pre-training run start."""

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

from ..checkpoint.repository import fetch
from ..conversion.bert import explaining, geometry, read_bert, require_kind, resized, take_over
from ..corpus.genes import Gene, read_gene_info
from ..model.configuration_langcell import LangCellCellConfig, LangCellConfig, LangCellTextConfig
from ..model.errors import InputError
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.modeling_langcell import LangCellForPreTraining, LangCellModel, LangCellTowerModel
from ..model.processing_langcell import LangCellProcessor
from .config import PretrainingConfig


def _text_tower_folder(name: str) -> str:
    if not name.startswith("package://"):
        return name
    package, _, folder = name.removeprefix("package://").partition("/")
    try:
        return str(resources.files(package) / folder)
    except ModuleNotFoundError as error:
        raise InputError(
            f"text_tower: the package {package!r} is not installed; the extra [train] brings it."
        ) from error


def initialize_model(
    config: PretrainingConfig, vocabulary: dict[str, list], weights_follow: bool = False
) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """
    A model and processor ready to train: gone on from `config.start`, or built from a sentence encoder, the corpus's
    gene vocabulary and, if asked, a Geneformer and the genes' names.

    Args:
        config: What the towers start from.
        vocabulary: The genes.
        weights_follow: Whether the weights come from elsewhere: what is slow to start is then left out.

    Raises:
        InputError: A start whose genes are not the corpus's, or that does not fit; no start and no sentence encoder.
    """
    _check_names(config.model)
    if config.start is not None:
        model, processor = _go_on(config, vocabulary)
    else:
        model, processor = _start_anew(config, vocabulary, weights_follow)
    for name, tower, longest in (
        ("max_genes", model.config.cell_config, config.max_genes),
        ("max_tokens", model.config.text_config, config.max_tokens),
    ):
        if longest > tower.max_position_embeddings:
            raise InputError(
                f"{name} is {longest}, but the tower has {tower.max_position_embeddings} positions: set "
                f"model.{tower.base_config_key}.max_position_embeddings."
            )
    return model, processor


def _go_on(config: PretrainingConfig, vocabulary: dict[str, list]) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """What `config.start` holds, with the settings of `config.model`."""
    name = str(config.start)
    overrides = copy.deepcopy(config.model)
    positions = {
        part: overrides[part].pop("max_position_embeddings", None)
        for part in ("cell_config", "text_config")
        if part in overrides
    }
    with _explaining("start", name):
        folder = fetch(name)
        require_kind(str(folder), "langcell")
        model = LangCellForPreTraining.from_pretrained(folder, dtype=torch.float32, **overrides)
        model.config.calibration = None  # It is of the weights as they were.
        processor = LangCellProcessor.from_pretrained(folder)
    for part, wanted in positions.items():
        if wanted is not None:
            _resize(model.cell_model if part == "cell_config" else model.text_model, wanted)
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    if extractor.gene_vocabulary["ensembl_ids"] != vocabulary["ensembl_ids"]:
        raise InputError(
            f"{name} has other genes than the corpus: make the corpus with langcell corpus --vocabulary {name}."
        )
    extractor.max_length = max(extractor.max_length, config.max_genes)
    tokenizer.model_max_length = max(tokenizer.model_max_length, config.max_tokens)
    return model, processor


def _start_anew(
    config: PretrainingConfig, vocabulary: dict[str, list], weights_follow: bool
) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """A new model around a sentence encoder and, if there is one, a Geneformer."""
    if config.cell_tower is not None and (config.gene_names_from is not None or config.gene_average_start):
        raise InputError(
            "cell_tower brings its own genes and layers: leave out gene_names_from and gene_average_start."
        )
    if config.text_tower is None:
        raise InputError("A run that does not go on from a checkpoint (start) needs a text_tower.")

    folder = _text_tower_folder(config.text_tower)
    with _explaining("text_tower", folder):
        bert = read_bert(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = config.max_tokens
    extractor = LangCellFeatureExtractor(vocabulary, max_length=config.max_genes)

    overrides = dict(config.model)
    overrides["text_config"] = geometry(bert) | overrides.get("text_config", {})
    geneformer = None if config.cell_tower is None else _read_geneformer(config.cell_tower, extractor)
    cell_geometry = {} if geneformer is None else geometry(geneformer)
    overrides["cell_config"] = cell_geometry | overrides.get("cell_config", {}) | {"vocab_size": len(extractor)}
    with _explaining("model", config.model):
        model = LangCellForPreTraining(LangCellConfig(**overrides))
    with _explaining("text_tower", folder):
        take_over(model.text_model, bert, config.text_tower)
    if geneformer is not None and config.cell_tower is not None:
        with _explaining("cell_tower", config.cell_tower):
            take_over(model.cell_model, geneformer, config.cell_tower)
    if weights_follow:
        return model, LangCellProcessor(extractor, tokenizer)
    if config.gene_names_from is not None:
        named = {gene.ensembl_id: gene for gene in read_gene_info(config.gene_names_from)}
        genes = [named.get(ensembl_id) for ensembl_id in vocabulary["ensembl_ids"]]
        if not any(genes):
            raise InputError(f"gene_names_from: {config.gene_names_from} has none of the corpus's genes.")
        _start_gene_embeddings(model, bert, tokenizer, genes)
    if config.gene_average_start:
        _start_gene_average(model)
    return model, LangCellProcessor(extractor, tokenizer)


def _read_geneformer(name: str, extractor: LangCellFeatureExtractor) -> BertModel:
    """
    Raises:
        InputError: No BERT there, or one of other genes than the corpus's.
    """
    with _explaining("cell_tower", name):
        bert = read_bert(name)
        # The row of <cls> may be missing.
        if bert.config.vocab_size not in (len(extractor) - 1, len(extractor)):
            raise InputError(
                f"{name} has {bert.config.vocab_size} tokens, the corpus {len(extractor)}: make the corpus with the "
                "genes of the checkpoint, langcell corpus --vocabulary."
            )
    return bert


def _check_names(overrides: dict[str, Any]) -> None:
    """transformers keeps settings that it does not know: a slip of the pen would pass unseen."""
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
def _explaining(field: str, given: object) -> Iterator[None]:
    """Says of what cannot be used which field named it."""
    try:
        with explaining(given):
            yield
    except InputError as error:
        raise InputError(f"{field}: {error}") from error


def _resize(tower: LangCellTowerModel, wanted: int) -> None:
    """Gives a tower so many positions."""
    positions = tower.embeddings.position_embeddings
    positions.weight = nn.Parameter(resized(positions.weight.data, wanted))
    positions.num_embeddings = tower.config.max_position_embeddings = wanted


@torch.no_grad()
def _start_gene_embeddings(
    model: LangCellForPreTraining, bert: BertModel, tokenizer: Any, genes: list[Gene | None]
) -> None:
    """
    Gene embeddings from mean-pooled sentence embeddings of `symbol: full name`, by principal components. Genes without
    a name keep the start that they have.
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
    # Twice the positions' scale: which gene it is should at first say more than where it stands.
    projected *= 2 * model.config.cell_config.initializer_range / projected.std()
    weight[ids, :components] = projected


@torch.no_grad()
def _start_gene_average(model: LangCellForPreTraining) -> None:
    """
    The last layer's values become the genes' own states, which its small random queries and keys weigh about alike.
    What is attended to counts four times what was there: else the constant start of `<cls>` would drown it.
    """
    attention = model.cell_model.encoder.layer[-1].attention
    torch.nn.init.eye_(attention.self.value.weight)
    torch.nn.init.eye_(attention.output.dense.weight).mul_(4)


@torch.no_grad()
def start_text_projection(model: LangCellModel, pooled: torch.Tensor, whitening: float = 0.0) -> None:
    """
    Makes the projection of the texts the principal components of these `(texts, hidden_size)` pooled states, at unit
    length on average: what sets descriptions apart is kept, what they share is not. `whitening` is the power of its
    spread that each component is divided by.
    """
    projection = model.text_projection
    components = min(projection.out_features, *pooled.shape)
    mean = pooled.mean(dim=0)
    _, spread, directions = torch.linalg.svd(pooled - mean, full_matrices=False)
    # The last components of few texts are rounding errors: they are not to be blown up.
    divisors = spread[:components].clamp(min=1e-3 * spread[0]) ** whitening
    directions = directions[:components] / divisors[:, None]
    directions /= ((pooled - mean) @ directions.T).norm(dim=1).mean()
    projection.weight.zero_()
    projection.weight[:components] = directions
    projection.bias.zero_()
    projection.bias[:components] = -directions @ mean


__all__ = ["initialize_model", "start_text_projection"]
