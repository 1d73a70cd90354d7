# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The weights that a checkpoint scores with. Those of a training run are not fitted yet: it borrows langcell-mini's."""

from transformers import AutoConfig, PreTrainedModel

from modeling_langcell.checkpoint.builtin import MINI, resolve_checkpoint

#: Weights of the similarity, of the markers, of the relatives of a new type and of the cells of a known one.
WEIGHTS = ("alpha", "marker_weight", "relatives_weight", "known_cells_weight")


def borrow_weights(model: PreTrainedModel, checkpoint: str = MINI) -> dict[str, float]:
    """Gives a model the weights of another checkpoint, and returns them."""
    config = AutoConfig.from_pretrained(resolve_checkpoint(checkpoint))
    weights = {name: float(getattr(config, name)) for name in WEIGHTS}
    for name, weight in weights.items():
        setattr(model.config, name, weight)
    return weights
