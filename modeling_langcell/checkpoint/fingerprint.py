# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Which model this is: hashes of what decides what it computes."""

import hashlib
import json
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..model.prompts import PROMPT_TEMPLATES

if TYPE_CHECKING:
    from ..annotation.annotator import LangCellAnnotator
    from .adaptation_record import Head


def fingerprint(annotator: "LangCellAnnotator") -> str:
    """Of a model as it annotates: its weights, with an adapter's, and whatever else decides what it computes."""
    digest = hashlib.sha256()
    _add_weights(digest, annotator.model)
    config, extractor = annotator.model.config, annotator.processor.feature_extractor
    deciding = {
        "cell": _own_settings(config.cell_config),
        "text": _own_settings(config.text_config),
        "alpha": config.alpha,
        "temperature": config.temperature,
        "genes": extractor.gene_vocabulary,
        "lengths": [extractor.max_length, annotator.processor.tokenizer.model_max_length],
    }
    if (
        annotator.processor.prompt_templates != PROMPT_TEMPLATES
    ):  # Figures of others were found before a model could have any.
        deciding["wordings"] = annotator.processor.prompt_templates
    digest.update(json.dumps(deciding, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def weights_of_base(model: PreTrainedModel, head: "Head") -> str:
    """Of the weights that an adaptation rests on: a classifier's are the cell tower's."""
    digest = hashlib.sha256()
    _add_weights(digest, model.cell_model if head == "classes" else model)
    return digest.hexdigest()


def _own_settings(config: PreTrainedConfig) -> dict[str, Any]:
    """What a tower's config says beyond what every config of transformers does, which differs by its version."""
    return {name: getattr(config, name) for name in sorted(type(config).__annotations__) if not name.startswith("_")}


def _add_weights(digest: Any, model: nn.Module) -> None:
    for parameter in model.state_dict().values():
        digest.update(parameter.detach().cpu().float().numpy().tobytes())


__all__ = ["fingerprint", "weights_of_base"]
