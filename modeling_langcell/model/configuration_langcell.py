# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Configurations of the LangCell family: the cell tower, the text tower, and the joint model."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

#: Classes that a saved repository offers to `AutoX.from_pretrained(..., trust_remote_code=True)`.
_CELL_AUTO_MAP = {
    "AutoConfig": "configuration_langcell.LangCellCellConfig",
    "AutoModel": "modeling_langcell.LangCellCellModel",
    "AutoModelForMaskedLM": "modeling_langcell.LangCellForMaskedLM",
    "AutoModelForSequenceClassification": "modeling_langcell.LangCellForSequenceClassification",
}
_TEXT_AUTO_MAP = {
    "AutoConfig": "configuration_langcell.LangCellTextConfig",
    "AutoModel": "modeling_langcell.LangCellTextModel",
}
_LANGCELL_AUTO_MAP = {
    "AutoConfig": "configuration_langcell.LangCellConfig",
    "AutoModel": "modeling_langcell.LangCellModel",
    "AutoModelForPreTraining": "modeling_langcell.LangCellForPreTraining",
    "AutoModelForMaskedLM": "modeling_langcell.LangCellForMaskedLMOfJoint",
    "AutoModelForSequenceClassification": "modeling_langcell.LangCellForSequenceClassificationOfJoint",
}
#: Task of the pipeline that such a repository offers.
PIPELINE_TASK = "zero-shot-cell-annotation"
_PIPELINE = {"impl": "pipeline_langcell.ZeroShotCellAnnotationPipeline", "pt": ["AutoModel"]}


def templates_of(calibration: Mapping[str, Any], default: Sequence[str]) -> Sequence[str]:
    """
    Returns the prompt templates that a calibration was fitted with; older calibrations call them wordings, or omit
    them.
    """
    return calibration.get("prompt_templates", calibration.get("wordings", default))


class _PublishedConfig(PreTrainedConfig):
    """A config that always saves its whole `auto_map`, whichever class of the family is being saved."""

    _auto_class = "AutoConfig"  # Saves the code too, for processes without this package.
    _published_auto_map: ClassVar[dict[str, str]] = {}

    def to_dict(self):
        output = super().to_dict()
        output["auto_map"] = dict(self._published_auto_map)
        return output


def _check_geometry(config) -> None:
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in (*sizes, "max_position_embeddings"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} ({getattr(config, name)}) must be above 0.")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size ({config.hidden_size}) must be a multiple of num_attention_heads "
            f"({config.num_attention_heads})."
        )


@strict
class LangCellCellConfig(_PublishedConfig):
    r"""
    The cell tower: a BERT encoder over ranked gene ids. The defaults are Geneformer's 12-layer geometry, which the
    published LangCell starts from.

    Args:
        vocab_size: Number of gene ids, including special ones: `<pad>` 0, `<mask>` 1, genes from 2 on, `<cls>` last.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: The encoder's geometry.
        hidden_act: Activation of the feed-forward layers.
        hidden_dropout_prob, attention_probs_dropout_prob: Dropout in training, which makes the two views of a cell in
            the cell-cell objective differ.
        classifier_dropout: Dropout before the classification head; `hidden_dropout_prob` when `None`.
        max_position_embeddings: Longest gene sequence, including `<cls>`.
        initializer_range, layer_norm_eps: The same as in BERT.
        pad_token_id, mask_token_id: Ids of `<pad>` and `<mask>`.
        cls_token_id: Id of `<cls>`; by default the last of the vocabulary, where it is before any token is added.
        tie_word_embeddings: True to share the gene embeddings with the masked-gene head.

    Example:

    ```python
    >>> from modeling_langcell import LangCellCellConfig
    >>> LangCellCellConfig().num_hidden_layers
    12

    ```"""

    model_type = "langcell_cell"
    base_config_key = "cell_config"
    #: Outputs that `Trainer` does not keep while it evaluates.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden_states", "attentions"]
    _published_auto_map: ClassVar[dict[str, str]] = _CELL_AUTO_MAP

    vocab_size: int = 25427
    hidden_size: int = 512
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    intermediate_size: int = 1024
    hidden_act: str = "relu"
    hidden_dropout_prob: float | int = 0.02
    attention_probs_dropout_prob: float | int = 0.02
    classifier_dropout: float | int | None = None
    max_position_embeddings: int = 2048
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    mask_token_id: int = 1
    if TYPE_CHECKING:  # Its type after initialisation.
        cls_token_id: int
    else:
        cls_token_id: int | None = None
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        if self.cls_token_id is None:
            self.cls_token_id = self.vocab_size - 1

    def validate_architecture(self):
        """Checks that sizes are above 0, and that the number of heads divides the hidden size."""
        _check_geometry(self)


@strict
class LangCellTextConfig(_PublishedConfig):
    r"""
    The text tower: BERT without token-type embeddings, with a cross-attention to the cell in every layer. The defaults
    are BERT-base with PubMedBERT's vocabulary and the two added tokens `[DEC]` and `[ENC]`.

    Args:
        vocab_size: Number of word pieces, including the added tokens.
        hidden_size, num_hidden_layers, num_attention_heads, intermediate_size: The encoder's geometry.
        cell_hidden_size: Width of the cell states that the cross-attention reads. `LangCellConfig` sets it to its
            cell tower's `hidden_size`.
        hidden_act: Activation of the feed-forward layers.
        hidden_dropout_prob, attention_probs_dropout_prob: Dropout in training.
        max_position_embeddings: Longest text in word pieces.
        initializer_range, layer_norm_eps: The same as in BERT.
        pad_token_id: Id of `[PAD]`.
        pooling: State of the whole text in the similarity: `"cls"`, the `[CLS]` state, as published; or `"mean"`, the
            mean over the tokens, for towers started from a mean-pooled sentence encoder.

    Example:

    ```python
    >>> from modeling_langcell import LangCellTextConfig
    >>> LangCellTextConfig(pooling="mean").pooling
    'mean'

    ```"""

    model_type = "langcell_text"
    base_config_key = "text_config"
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["hidden_states", "attentions", "cross_attentions"]
    _published_auto_map: ClassVar[dict[str, str]] = _TEXT_AUTO_MAP

    vocab_size: int = 30524
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    cell_hidden_size: int = 512
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    initializer_range: float | int = 0.02
    layer_norm_eps: float | int = 1e-12
    pad_token_id: int | None = 0
    pooling: Literal["cls", "mean"] = "cls"

    def validate_architecture(self):
        """Checks that sizes are above 0, and that the number of heads divides the hidden size."""
        _check_geometry(self)


@strict
class LangCellConfig(_PublishedConfig):
    r"""
    The joint model: both towers, the shared space, and the weights of the pre-training objectives.

    Args:
        cell_config, text_config: The towers, as configs or dicts; the defaults are the paper's.
        projection_dim: Width of the shared space.
        temperature: Divides the cosine of cell and text, in training and at inference.
        alpha: Share of the similarity in the zero-shot score, `alpha * p_similarity + (1 - alpha) * p_matching`; the
            default of `LangCellAnnotator`.
        marker_weight: Weight of the marker evidence beside similarity and matching in the zero-shot score, at least 0;
            0, the default, leaves it out. See `DescriptionScorer`.
        relatives_weight: Weight of the share that a description new to the model gets of the probability of its
            relatives among the descriptions of the training, at least 0; 0, the default, gives none. See
            `RelativesShare`.
        known_cells_weight: Weight of a type's training cells, beside its description, in what is compared with cells:
            at least 0; 0, the default, leaves them out. See `KnownTypes`.
        n_known_types: Number of types of the training that the model knows again, the rows of `known_texts` and
            `known_cells`.
        known_types: Their ids in the Cell Ontology, in the same order. None where they are not recorded.
        masked_gene_weight, cell_cell_weight, cell_text_weight, matching_weight: Weights of the objectives MGM, C-C,
            C-T and CTM in `LangCellForPreTraining`. An objective of weight 0 is not computed.
        masked_gene_probability: Share of a cell's genes that MGM masks.
        cell_cell_temperature: Temperature of the cell-cell objective.
        calibration: Calibration of the zero-shot scores by `langcell calibrate`, the fields of
            `annotation.calibration.Calibration`: the temperature that makes them probabilities, and the probability
            that an answer needs. None without calibration.

    Example:

    ```python
    >>> from modeling_langcell import LangCellConfig
    >>> config = LangCellConfig(cell_config={"num_hidden_layers": 6}, text_config={"num_hidden_layers": 4})
    >>> config.cell_config.num_hidden_layers, config.temperature
    (6, 0.05)

    ```"""

    model_type = "langcell"
    # The towers' outputs are large; the logits per text are those per cell, and of another number of rows.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "logits_per_text",
        "cell_model_output",
        "text_model_output",
        "matching_model_output",
    ]
    # Bare classes are enough from transformers 5.21 on, the first that does not support Python 3.10.
    sub_configs_defaults = {
        "cell_config": SubConfigSpec(LangCellCellConfig),
        "text_config": SubConfigSpec(LangCellTextConfig),
    }
    _published_auto_map: ClassVar[dict[str, str]] = _LANGCELL_AUTO_MAP

    if TYPE_CHECKING:  # Their types after initialisation.
        cell_config: LangCellCellConfig
        text_config: LangCellTextConfig
    else:
        cell_config: dict | LangCellCellConfig | None = None
        text_config: dict | LangCellTextConfig | None = None
    projection_dim: int = 256
    temperature: float | int = 0.05
    alpha: float | int = 0.1
    marker_weight: float | int = 0.0
    relatives_weight: float | int = 0.0
    known_cells_weight: float | int = 0.0
    n_known_types: int = 0
    known_types: list | None = None
    masked_gene_weight: float | int = 1.0
    cell_cell_weight: float | int = 1.0
    cell_text_weight: float | int = 1.0
    matching_weight: float | int = 1.0
    masked_gene_probability: float | int = 0.15
    cell_cell_temperature: float | int = 0.05
    initializer_range: float | int = 0.02
    calibration: dict | None = None

    def validate_objectives(self):
        """Checks that temperatures are above 0, weights at least 0, and shares from 0 to 1."""
        for name in ("temperature", "cell_cell_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must be above 0.")
        objectives = ("masked_gene_weight", "cell_cell_weight", "cell_text_weight", "matching_weight")
        for name in ("marker_weight", "relatives_weight", "known_cells_weight", "n_known_types", *objectives):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} ({getattr(self, name)}) must not be below 0.")
        for name in ("alpha", "masked_gene_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be from 0 to 1.")

    def validate_known_types(self):
        """Checks that there is an id for each known type."""
        if self.known_types is not None and len(self.known_types) != self.n_known_types:
            raise ValueError(
                f"known_types names {len(self.known_types)} types, not n_known_types={self.n_known_types}."
            )

    def validate_calibration(self):
        """Checks that a calibration has the numbers of `annotation.calibration.Calibration`."""
        if self.calibration is None:
            return
        thresholds, fitted = self.calibration.get("thresholds"), self.calibration.get("fitted")
        valid = isinstance(thresholds, dict) and isinstance(fitted, dict)
        numbers = [self.calibration.get(name) for name in ("temperature", "usual_novelty", "alpha")]
        numbers += [self.calibration.get("marker_weight", 0), *(self.calibration.get("lead") or ())]
        numbers += thresholds.values() if isinstance(thresholds, dict) else []
        valid &= isinstance(templates_of(self.calibration, []), (list, tuple))
        valid &= all(isinstance(number, (int, float)) and math.isfinite(number) for number in numbers)
        if not valid or self.calibration["temperature"] <= 0:
            raise ValueError("calibration is not what langcell calibrate writes: leave it out, or calibrate again.")

    def __post_init__(self, **kwargs):
        kwargs.pop("custom_pipelines", None)
        tied = kwargs.pop("tie_word_embeddings", None)
        super().__post_init__(**kwargs)
        if tied is not None:
            self.tie_word_embeddings = tied
        # The cross-attention reads the cell tower's states, so their width is set in one place.
        self.text_config.cell_hidden_size = self.cell_config.hidden_size

    def to_dict(self):
        return super().to_dict() | {"custom_pipelines": {PIPELINE_TASK: dict(_PIPELINE)}}

    @property
    def custom_pipelines(self) -> dict[str, dict]:
        """
        Pipelines whose code `transformers.pipeline` takes from the repository. There are none where the package is
        installed: it registers its own pipeline, which needs no trust in remote code.
        """
        return {PIPELINE_TASK: dict(_PIPELINE)} if __name__.startswith("transformers_modules.") else {}

    @property
    def tie_word_embeddings(self) -> bool:
        """True if the masked-gene head shares the gene embeddings, as the cell tower's config says."""
        return self.cell_config.tie_word_embeddings

    @tie_word_embeddings.setter
    def tie_word_embeddings(self, tied: bool) -> None:
        self.cell_config.tie_word_embeddings = tied

    def get_text_config(self, *args, **kwargs) -> LangCellCellConfig:
        """Returns the config of the input embeddings, which is what transformers asks for: here they embed genes."""
        return self.cell_config


__all__ = ["LangCellCellConfig", "LangCellConfig", "LangCellTextConfig"]
