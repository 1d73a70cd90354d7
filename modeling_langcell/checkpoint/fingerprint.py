# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Hashes that identify a model by everything that decides its output."""

import hashlib
import json
from dataclasses import fields
from typing import Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..model.processing_langcell import LangCellProcessor
from ..model.prompts import PROMPT_TEMPLATES
from .adaptation_record import Head


def fingerprint(model: PreTrainedModel, processor: LangCellProcessor, *, with_markers: bool = True) -> str:
    """
    Returns the hash of a model in the state in which it annotates: its weights, including those of a merged adapter,
    and every setting of model and processor that changes its scores. Without markers it is the hash of all that the
    evidence of marker genes is not part of, such as embeddings.
    """
    digest = hashlib.sha256()
    _add_weights(digest, model)
    config, extractor = model.config, processor.feature_extractor
    deciding = {
        "cell": _own_settings(config.cell_config),
        "text": _own_settings(config.text_config),
        "alpha": config.alpha,
        "temperature": config.temperature,
        "genes": extractor.gene_vocabulary,
        "lengths": [extractor.max_length, processor.tokenizer.model_max_length],
    }
    if processor.prompt_templates != PROMPT_TEMPLATES:
        # Results on disk hold fingerprints from before a checkpoint could have templates, and from when they were
        # called wordings: the default is left out, and the key keeps its name.
        deciding["wordings"] = processor.prompt_templates
    if with_markers and config.marker_weight:
        deciding["markers"] = [config.marker_weight, extractor.gene_places]
    if config.relatives_weight or config.known_cells_weight:
        deciding["known"] = [config.relatives_weight, config.known_cells_weight]
    digest.update(json.dumps(deciding, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def weights_of_base(model: PreTrainedModel, head: Head) -> str:
    """Returns the hash of the weights that an adaptation rests on: for a classifier, those of the cell tower."""
    digest = hashlib.sha256()
    _add_weights(digest, model.cell_model if head == "classes" else model)
    return digest.hexdigest()


def _own_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """Returns a tower's own settings; settings that every config in transformers has differ between its versions."""
    own = {field.name for field in fields(config)} & type(config).__annotations__.keys()
    settings = {name: getattr(config, name) for name in sorted(own) if not name.startswith("_")}
    if settings.get("cls_token_id") == config.vocab_size - 1:
        # Results on disk hold fingerprints from when `<cls>` was always the last token.
        del settings["cls_token_id"]
    return settings


def _add_weights(digest: Any, model: nn.Module) -> None:
    for parameter in model.state_dict().values():
        # Adding 0 makes negative zeros positive: equal weights have equal bytes.
        digest.update((parameter.detach().cpu().float() + 0.0).numpy().tobytes())


__all__ = ["fingerprint", "weights_of_base"]
