# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Which model this is: a hash of what decides what it computes."""

import hashlib
import json
from typing import TYPE_CHECKING

from .adapters import add_weights

if TYPE_CHECKING:
    from .annotation import LangCellAnnotator


def fingerprint(annotator: "LangCellAnnotator") -> str:
    """Which model this is: a hash of its weights, with an adapter's, and of what else decides what it computes."""
    digest = hashlib.sha256()
    add_weights(digest, annotator.model)
    config, extractor = annotator.model.config, annotator.processor.feature_extractor
    deciding = {
        "cell": config.cell_config.to_diff_dict(),
        "text": config.text_config.to_diff_dict(),
        "alpha": config.alpha,
        "temperature": config.temperature,
        "genes": extractor.gene_vocabulary,
        "lengths": [extractor.max_length, annotator.processor.tokenizer.model_max_length],
    }
    digest.update(json.dumps(deciding, sort_keys=True).encode())
    return digest.hexdigest()[:16]


__all__ = ["fingerprint"]
