# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The networks of LangCell (Zhao et al., ICML 2024, arXiv 2405.06708): a cell encoder over ranked genes, a text encoder
with cross-attention to the cell, their shared space, and the matching head.

Parameter names inside the towers are those of `transformers.BertModel`, so that BERT and Geneformer weights fit.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    BaseModelOutputWithPoolingAndCrossAttentions,
    MaskedLMOutput,
    SequenceClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_langcell import LangCellCellConfig, LangCellConfig, LangCellTextConfig
from .objectives import (
    IGNORED,
    CellCellContrast,
    CellTextContrast,
    CellTextMatching,
    MaskedGeneModelling,
    first_row,
    gather_rows,
    merge_texts,
    process_and_processes,
)
from .packed_langcell import (
    PackedPairs,
    PackedSequences,
    dense,
    first_tokens,
    is_plain,
    means,
    packed_attention_forward,
    runs,
)

#: The attention of sequences laid end to end, where transformers' own for the chosen implementation cannot do it.
_PACKED = "langcell_packed"
ALL_ATTENTION_FUNCTIONS.register(_PACKED, packed_attention_forward)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain PyTorch, which returns its weights and takes additive or boolean masks."""
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        if attention_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
        else:
            scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


#: Arguments that transformers handles for every model.
_OUTPUT_OPTIONS = ("output_attentions", "output_hidden_states", "return_dict")
#: Arguments by which transformers describes sequences that are laid end to end in one row.
_END_TO_END = ("position_ids", "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k")


def only_known_arguments(*others: str) -> Callable[[Callable], Callable]:
    """
    Refuses keyword arguments that a method neither names nor passes on, `others` or transformers' options of outputs,
    because they would be ignored.

    Raises:
        TypeError: There is no such argument; the message names the closest.
    """

    def decorate(forward: Callable) -> Callable:
        parameters = signature(forward).parameters.values()
        known = [one.name for one in parameters if one.kind is Parameter.POSITIONAL_OR_KEYWORD and one.name != "self"]
        known += [*others, *_OUTPUT_OPTIONS]

        @wraps(forward)
        def checked(self, *args, **kwargs):
            for name in kwargs:
                if name not in known:
                    close = get_close_matches(name, known, 1)
                    hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}."
                    raise TypeError(f"{type(self).__name__} has no argument {name!r}: {hint}")
            return forward(self, *args, **kwargs)

        return checked

    return decorate


def _cell_inputs(
    input_ids: torch.Tensor | None,
    attention_mask: torch.Tensor | None,
    cell_input_ids: torch.Tensor | None,
    cell_attention_mask: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """
    Returns ids and attention mask of cells, whose names in a joint batch a cell tower takes too.

    Raises:
        TypeError: One of them is given under both names.
    """
    for name, own, joint in (
        ("input_ids", input_ids, cell_input_ids),
        ("attention_mask", attention_mask, cell_attention_mask),
    ):
        if own is not None and joint is not None:
            raise TypeError(f"{name} and cell_{name} are the same here: give one of them.")
    return (
        cell_input_ids if input_ids is None else input_ids,
        cell_attention_mask if attention_mask is None else attention_mask,
    )


class LangCellEmbeddings(nn.Module):
    """Sum of word (or gene) and absolute position embeddings, normalised."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig):
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        inputs_embeds: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        longest: int | None = None,
    ) -> torch.Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give exactly one of input_ids and inputs_embeds.")
        hidden_states = self.word_embeddings(input_ids) if inputs_embeds is None else inputs_embeds
        length = hidden_states.shape[1] if longest is None else longest
        if not torch.jit.is_tracing() and length > self.position_embeddings.num_embeddings:
            raise ValueError(
                f"A sequence of {length} is longer than max_position_embeddings "
                f"({self.position_embeddings.num_embeddings}): truncate it with max_length in the processor."
            )
        if position_ids is None:
            position_ids = torch.arange(length, device=hidden_states.device)
        hidden_states = hidden_states + self.position_embeddings(position_ids)
        return self.dropout(self.LayerNorm(hidden_states))


class LangCellMultiHeadAttention(nn.Module):
    """Projections to queries, keys and values, which attend through transformers' attention interface."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig, key_value_size: int | None = None):
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        key_value_size = key_value_size or config.hidden_size
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_value_size, config.hidden_size)
        self.value = nn.Linear(key_value_size, config.hidden_size)

    def heads(self, states: torch.Tensor) -> torch.Tensor:
        """Splits `(rows, tokens, width)` into `(rows, heads, tokens, width / heads)`."""
        return states.unflatten(-1, (-1, self.head_size)).transpose(1, 2)

    def attend(self, implementation, query, key, value, attention_mask, **kwargs):
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        states, weights = attention(
            self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout, **kwargs
        )
        return states.flatten(2), weights

    def cross_attend(self, query, key, value, padding_mask, **kwargs):
        """
        Attends like `attend`, for different numbers of queries and keys; `padding_mask` is `(rows, keys)`, 1 for
        tokens.

        transformers' flash kernels un-pad queries with the keys' mask, and a flex block mask is bound to one query
        length: both are wrong here, so anything but eager runs on sdpa, with one mask row for all queries.
        """
        implementation = "eager" if self.config._attn_implementation == "eager" else "sdpa"
        mask = None if padding_mask is None else padding_mask[:, None, None, :].bool()
        return self.attend(implementation, query, key, value, mask, **kwargs)


class LangCellSelfAttention(LangCellMultiHeadAttention):
    """
    Attention of a sequence, or only of its first token, to the whole sequence. Sequences may be laid end to end in one
    row: transformers' `cu_seq_lens_q` and the like then tell where each begins.
    """

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cls_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        starts = kwargs.get("cu_seq_lens_q")
        if cls_only and is_plain(self.key, self.value):
            if starts is None:
                return self.attend_from_first(hidden_states, attention_mask)
            # Working run by run saves operations, which helps a CPU; a GPU would wait between the runs.
            if hidden_states.device.type == "cpu":
                found = [self.attend_from_first(run, None)[0] for run in runs(hidden_states[0], starts)]
                return torch.cat(found).transpose(0, 1), None
        key, value = self.heads(dense(self.key, hidden_states)), self.heads(dense(self.value, hidden_states))
        query_states = first_tokens(hidden_states, starts) if cls_only else hidden_states
        query = self.heads(dense(self.query, query_states))
        if starts is not None:
            if cls_only:
                one_each = torch.arange(len(starts), dtype=torch.int32, device=starts.device)
                kwargs = {**kwargs, "cu_seq_lens_q": one_each, "max_length_q": 1}
            return self.attend(_PACKED, query, key, value, None, **kwargs)
        if cls_only:
            return self.cross_attend(query, key, value, attention_mask, **kwargs)
        return self.attend(self.config._attn_implementation, query, key, value, attention_mask, **kwargs)

    def attend_from_first(
        self, states: torch.Tensor, padding_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Attends from the first token without computing keys and values, of which a long sequence has many. Each head's
        query is multiplied by the key weights and compared with the states themselves; the weighted mean of the states
        is then multiplied by the value weights. The result is the same up to rounding, for `heads / width` of the work.
        """
        query = self.query(states[:, 0]).unflatten(-1, (-1, self.head_size)) * self.scaling
        (key_weight, key_bias), (value_weight, value_bias) = (
            (projection.weight.unflatten(0, (-1, self.head_size)), projection.bias.unflatten(0, (-1, self.head_size)))
            for projection in (self.key, self.value)
        )
        query_on_states = torch.einsum("rhd,hdw->rhw", query, key_weight)
        scores = torch.einsum("rhw,rtw->rht", query_on_states, states) + (query * key_bias).sum(dim=-1, keepdim=True)
        if padding_mask is not None:
            scores = scores.masked_fill(~padding_mask[:, None].bool(), torch.finfo(scores.dtype).min)
        dropout = self.config.attention_probs_dropout_prob if self.training else 0.0
        weights = F.dropout(scores.softmax(dim=-1), p=dropout)
        mean_states = torch.einsum("rht,rtw->rhw", weights, states)
        attended = torch.einsum("rhw,hdw->rhd", mean_states, value_weight)
        attended = attended + weights.sum(dim=-1, keepdim=True) * value_bias
        return attended.flatten(1).unsqueeze(1), weights.unsqueeze(2)


class LangCellCrossAttention(LangCellMultiHeadAttention):
    """
    Attention of texts to cells. Keys and values are computed once per cell, whatever the number of its texts: the
    queries of all the texts of a cell are laid end to end and attend in one call.
    """

    def __init__(self, config: LangCellTextConfig):
        super().__init__(config, key_value_size=config.cell_hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        cell_hidden_states: torch.Tensor,
        cell_attention_mask: torch.Tensor | None,
        texts_per_cell: int,
        pairs: PackedPairs | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        query, key, value = (
            dense(projection, states)
            for projection, states in (
                (self.query, hidden_states),
                (self.key, cell_hidden_states),
                (self.value, cell_hidden_states),
            )
        )
        if pairs is not None:
            query = query if pairs.copies is None else query[:, pairs.copies]
            query, key, value = self.heads(query), self.heads(key), self.heads(value)
            return self.attend(_PACKED, query, key, value, None, **{**kwargs, **pairs.attention})
        # Rows are either texts that all cells share, or one block of texts for each cell.
        cells, length = len(cell_hidden_states), hidden_states.shape[1]
        blocks = query.unflatten(0, (-1, texts_per_cell)).flatten(1, 2)
        query = self.heads(blocks).expand(cells, -1, -1, -1)
        states, weights = self.cross_attend(query, self.heads(key), self.heads(value), cell_attention_mask, **kwargs)
        return states.unflatten(1, (texts_per_cell, length)).flatten(0, 1), weights


class LangCellResidual(nn.Module):
    """Linear layer, dropout, and the normalised sum with the residual."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig, input_size: int):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, hidden_states: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        if self.training:
            return self.LayerNorm(self.dropout(self.dense(hidden_states)) + residual)
        return self.LayerNorm(dense(self.dense, hidden_states, plus=residual))


class LangCellAttention(nn.Module):
    """Self-attention and its residual."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig):
        super().__init__()
        self.self = LangCellSelfAttention(config)
        self.output = LangCellResidual(config, config.hidden_size)

    def forward(self, hidden_states, attention_mask, cls_only=False, **kwargs):
        attended, _ = self.self(hidden_states, attention_mask, cls_only, **kwargs)
        if cls_only:
            hidden_states = first_tokens(hidden_states, kwargs.get("cu_seq_lens_q"))
        return self.output(attended, hidden_states)


class LangCellAttentionToCell(nn.Module):
    """Cross-attention and its residual. Texts that all cells share are copied for each cell only here."""

    def __init__(self, config: LangCellTextConfig):
        super().__init__()
        self.self = LangCellCrossAttention(config)
        self.output = LangCellResidual(config, config.hidden_size)

    def forward(self, hidden_states, cell_hidden_states, cell_attention_mask, texts_per_cell, pairs=None, **kwargs):
        attended, _ = self.self(hidden_states, cell_hidden_states, cell_attention_mask, texts_per_cell, pairs, **kwargs)
        if pairs is not None and pairs.copies is not None:
            hidden_states = hidden_states[:, pairs.copies]
        elif len(hidden_states) != len(attended):
            hidden_states = hidden_states.repeat(len(cell_hidden_states), 1, 1)
        return self.output(attended, hidden_states)


class LangCellIntermediate(nn.Module):
    """First half of the feed-forward network, which widens the states."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)
        self.act = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return dense(self.dense, hidden_states, self.act)


class LangCellCellLayer(GradientCheckpointingLayer):
    """Self-attention and feed-forward network."""

    def __init__(self, config: LangCellCellConfig):
        super().__init__()
        self.attention = LangCellAttention(config)
        self.intermediate = LangCellIntermediate(config)
        self.output = LangCellResidual(config, config.intermediate_size)

    def forward(self, hidden_states, attention_mask=None, cls_only=False, **kwargs):
        hidden_states = self.attention(hidden_states, attention_mask, cls_only, **kwargs)
        return self.output(self.intermediate(hidden_states), hidden_states)


class LangCellTextLayer(GradientCheckpointingLayer):
    """Self-attention, cross-attention if there are cells, and feed-forward network."""

    def __init__(self, config: LangCellTextConfig):
        super().__init__()
        self.attention = LangCellAttention(config)
        self.crossattention = LangCellAttentionToCell(config)
        self.intermediate = LangCellIntermediate(config)
        self.output = LangCellResidual(config, config.intermediate_size)

    def forward(
        self,
        hidden_states,
        attention_mask=None,
        cell_hidden_states=None,
        cell_attention_mask=None,
        texts_per_cell=1,
        cls_only=False,
        pairs=None,
        **kwargs,
    ):
        hidden_states = self.attention(hidden_states, attention_mask, cls_only, **kwargs)
        if cell_hidden_states is not None:
            hidden_states = self.crossattention(
                hidden_states, cell_hidden_states, cell_attention_mask, texts_per_cell, pairs, **kwargs
            )
        return self.output(self.intermediate(hidden_states), hidden_states)


class LangCellEncoder(nn.Module):
    """Stack of a tower's layers, in a separate module so that parameter names are BERT's."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig, layer_class: type[nn.Module]):
        super().__init__()
        self.layer = nn.ModuleList(layer_class(config) for _ in range(config.num_hidden_layers))


class LangCellPreTrainedModel(PreTrainedModel):
    """Base class, which declares what the family supports in transformers."""

    config: LangCellConfig
    base_model_prefix = "langcell"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    # Losses are means over a batch: Trainer must divide them itself when it accumulates gradients.
    accepts_loss_kwargs = False
    _no_split_modules = ["LangCellEmbeddings", "LangCellCellLayer", "LangCellTextLayer"]


#: Weights of a joint checkpoint that a tower, or a tower with a head, ignores when it loads its own.
_OF_THE_OTHERS = r"^(((cell|text)_(model|projection)|matching_head|lm_head|classifier)\.|known_(texts|cells)$)"


class LangCellTowerModel(LangCellPreTrainedModel):
    """Base class of both towers: embeddings, a stack of layers, and access to the input embeddings."""

    def __init__(self, config: LangCellCellConfig | LangCellTextConfig, layer_class: type[nn.Module]):
        super().__init__(config)
        self.embeddings = LangCellEmbeddings(config)
        self.encoder = LangCellEncoder(config, layer_class)
        self.post_init()

    def embed(self, input_ids, inputs_embeds, attention_mask, kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Returns the embeddings of the tokens, and the mask of the self-attention: none where sequences are laid end to
        end in one row. Position ids are taken out of `kwargs`.
        """
        hidden_states = self.embeddings(
            input_ids, inputs_embeds, kwargs.pop("position_ids", None), kwargs.get("max_length_q")
        )
        if kwargs.get("cu_seq_lens_q") is not None:
            return hidden_states, None
        return hidden_states, create_bidirectional_mask(
            self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.embeddings.word_embeddings = value


class LangCellCellModel(LangCellTowerModel):
    """The cell tower: a BERT encoder over ranked gene ids; `AutoModel` for `langcell_cell`."""

    _auto_class = "AutoModel"

    config: LangCellCellConfig
    base_model_prefix = "cell_model"
    _keys_to_ignore_on_load_unexpected = [_OF_THE_OTHERS]
    main_input_name = "input_ids"
    _can_record_outputs = {
        "hidden_states": LangCellCellLayer,
        "attentions": OutputRecorder(LangCellSelfAttention, index=1),
    }

    def __init__(self, config: LangCellCellConfig):
        super().__init__(config, LangCellCellLayer)

    @only_known_arguments(*_END_TO_END)
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        pooled_only: bool = False,
        cell_input_ids: torch.Tensor | None = None,
        cell_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Encodes cells.

        Args:
            input_ids: `(cells, genes)` ids, `<cls>` first and the highest-ranked genes after it.
            attention_mask: `(cells, genes)`, 1 for genes and 0 for padding; all ones if left out.
            inputs_embeds: `(cells, genes, hidden_size)` in place of `input_ids`.
            pooled_only: If true, the last layer computes only the `<cls>` state, for `pooler_output`, which in a
                shallow tower saves much of the work.
            cell_input_ids, cell_attention_mask: The names that the feature extractor gives `input_ids` and
                `attention_mask`, which in a joint batch are those of texts.
            kwargs: Among others transformers' arguments for cells laid end to end in one row, without padding:
                `position_ids` `(1, genes of all cells)`, `cu_seq_lens_q`, `cu_seq_lens_k`, `max_length_q` and
                `max_length_k`, as `DataCollatorWithFlattening` and `PackedSequences.arguments` give them.

        Returns:
            `last_hidden_state` `(cells, genes, hidden_size)`, or `(cells, 1, hidden_size)` if `pooled_only`, and
            `pooler_output`, its `<cls>` states `(cells, hidden_size)`. Of cells laid end to end, `last_hidden_state` is
            `(1, genes of all cells, hidden_size)`, or `(1, cells, hidden_size)`.
        """
        input_ids, attention_mask = _cell_inputs(input_ids, attention_mask, cell_input_ids, cell_attention_mask)
        hidden_states, mask = self.embed(input_ids, inputs_embeds, attention_mask, kwargs)
        cls_only = False
        for layer in self.encoder.layer:
            cls_only = pooled_only and layer is self.encoder.layer[-1]
            hidden_states = layer(hidden_states, attention_mask if cls_only else mask, cls_only, **kwargs)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=_pooled(hidden_states, kwargs.get("cu_seq_lens_q"), cls_only),
        )


class LangCellTextModel(LangCellTowerModel):
    """The text tower, in two modes on the same weights; `AutoModel` for `langcell_text`."""

    _auto_class = "AutoModel"

    config: LangCellTextConfig
    base_model_prefix = "text_model"
    _keys_to_ignore_on_load_unexpected = [_OF_THE_OTHERS]
    main_input_name = "input_ids"
    _can_record_outputs = {
        "hidden_states": LangCellTextLayer,
        "attentions": OutputRecorder(LangCellSelfAttention, index=1, layer_name=".attention."),
        "cross_attentions": OutputRecorder(LangCellCrossAttention, index=1, layer_name=".crossattention."),
    }

    def __init__(self, config: LangCellTextConfig):
        super().__init__(config, LangCellTextLayer)

    @only_known_arguments(*_END_TO_END)
    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        encoder_hidden_states: torch.Tensor | None = None,
        encoder_attention_mask: torch.Tensor | None = None,
        texts_per_cell: int | None = None,
        pooled_only: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """
        Encodes texts, alone or (with `encoder_hidden_states`) against cells.

        Args:
            input_ids: `(texts, tokens)` word pieces.
            attention_mask: `(texts, tokens)`, 1 for tokens and 0 for padding; all ones if left out.
            inputs_embeds: `(texts, tokens, hidden_size)` in place of `input_ids`.
            encoder_hidden_states: `(cells, genes, cell_hidden_size)` last hidden states of the cell tower.
            encoder_attention_mask: `(cells, genes)` attention mask of the cells.
            texts_per_cell: Number of texts paired with each cell. The default is `texts / cells`: each cell has its own
                texts, block after block. If it is the number of texts, every text is read against every cell, and
                states that depend only on the text are computed once per text.
            pooled_only: If true, and `pooler_output` is the `[CLS]` state, the last layer computes only that.
            kwargs: The same as for `LangCellCellModel.forward`, with texts laid end to end. These are read alone:
                `read_pairs` reads them against cells.

        Returns:
            `last_hidden_state` `(texts, tokens, hidden_size)`, or `(cells * texts_per_cell, tokens, hidden_size)`,
            cell by cell, if there are cells (with one token if only the `[CLS]` state was computed); `pooler_output`,
            its `[CLS]` state, or the mean over the tokens of a text if `config.pooling` is `"mean"` and there are no
            cells. Cross-attentions are `(cells, heads, texts_per_cell * tokens, genes)`.

        Raises:
            ValueError: The texts do not divide among the cells.
        """
        hidden_states, mask = self.embed(input_ids, inputs_embeds, attention_mask, kwargs)
        shared = cls_only = False
        if encoder_hidden_states is not None:
            texts, cells = len(hidden_states), len(encoder_hidden_states)
            texts_per_cell = texts // cells if texts_per_cell is None else texts_per_cell
            shared = texts == texts_per_cell and cells > 1
            if not shared and texts != cells * texts_per_cell:
                raise ValueError(
                    f"{texts} texts do not pair with {cells} cells at {texts_per_cell} texts per cell: give a multiple "
                    "of the cells, or texts_per_cell equal to the number of texts to pair all with all."
                )

        takes_mean = self.config.pooling == "mean" and encoder_hidden_states is None
        for layer in self.encoder.layer:
            cls_only = pooled_only and not takes_mean and layer is self.encoder.layer[-1]
            hidden_states = layer(
                hidden_states,
                attention_mask if cls_only else mask,
                encoder_hidden_states,
                encoder_attention_mask,
                texts_per_cell,
                cls_only,
                **kwargs,
            )
            if shared:  # The first cross-attention has made pairs of the shared texts.
                attention_mask = None if attention_mask is None else attention_mask.repeat(cells, 1)
                mask = create_bidirectional_mask(
                    self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
                )
                shared = False

        starts = kwargs.get("cu_seq_lens_q")
        if not takes_mean:
            pooled = _pooled(hidden_states, starts, cls_only)
        elif starts is not None:
            pooled = means(hidden_states[0], starts)
        else:
            weights = hidden_states.new_ones(hidden_states.shape[:2]) if attention_mask is None else attention_mask
            weights = weights.to(hidden_states.dtype).unsqueeze(-1)
            pooled = (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden_states, pooler_output=pooled)

    def read_pairs(
        self,
        input_ids: torch.Tensor,
        texts: PackedSequences,
        cell_states: torch.Tensor,
        cells: PackedSequences,
        chosen: Sequence[Sequence[int]] | np.ndarray,
    ) -> torch.Tensor:
        """
        Reads texts against cells, both laid end to end. States that depend only on the text are computed once per
        text, a cell's keys and values once per cell, and the last layer only for `[CLS]`.

        Args:
            input_ids: `(1, tokens of all texts)`.
            texts: Lengths of the texts.
            cell_states: `(1, genes of all cells, cell_hidden_size)` last hidden states of the cell tower.
            cells: Lengths of the cells.
            chosen: For each cell, the texts that it is paired with.

        Returns:
            `(pairs, hidden_size)` `[CLS]` states, cell by cell.
        """
        device = input_ids.device  # The weights may be elsewhere, offloaded.
        flat = np.concatenate([np.asarray(of_cell, dtype=np.int64) for of_cell in chosen])
        pairs, copied = PackedSequences(texts.sizes[flat], device), torch.from_numpy(flat).to(device)
        # The queries of all the texts of a cell attend to it in one call.
        cls_queries = PackedSequences([len(of_cell) for of_cell in chosen], device)
        queries = PackedSequences(np.diff(pairs.ends[cls_queries.ends]), device)

        sequences = texts
        states = self.embeddings(input_ids, None, texts.positions[None], int(texts.sizes.max()))
        for layer in self.encoder.layer:
            last = layer is self.encoder.layer[-1]
            copies = None
            if sequences is texts:  # The first cross-attention makes pairs of the texts.
                copies = copied if last else pairs.repeat(texts.first[copied]) + pairs.positions
            of_layer = PackedPairs(cls_queries if last else queries, cells, copies)
            states = layer(states, None, cell_states, cls_only=last, pairs=of_layer, **sequences.attention)
            sequences = pairs
        return states[0]


def _pooled(hidden_states: torch.Tensor, starts: torch.Tensor | None, cls_only: bool) -> torch.Tensor:
    """Returns the `(rows, width)` states of the first tokens, or of those of sequences that begin at `starts`."""
    if starts is None:
        return hidden_states[:, 0]
    return hidden_states[0] if cls_only else first_tokens(hidden_states, starts)[0]


@dataclass
class LangCellOutput(ModelOutput):
    """
    Output of `LangCellModel`.

    Args:
        loss: Cross-entropy of the similarity with the `labels`, plus that of the matching probabilities if they
            were requested; `None` without labels.
        logits_per_cell: `(cells, texts)` cosine over temperature.
        logits_per_text: Its transpose.
        matching_logits: `(cells, texts, 2)`; index 1 is "match". `None` without `return_matching`.
        cell_embeds: `(cells, projection_dim)`, L2-normalised.
        text_embeds: `(texts, projection_dim)`, L2-normalised.
        cell_model_output: Output of the cell tower.
        text_model_output: Output of the text tower on the texts alone.
        matching_model_output: Output of the text tower on the pairs, cell by cell, with the cross-attentions if
            attentions were requested. `None` without `return_matching`.
    """

    loss: torch.Tensor | None = None
    logits_per_cell: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    matching_logits: torch.Tensor | None = None
    cell_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    cell_model_output: BaseModelOutputWithPooling | None = None
    text_model_output: BaseModelOutputWithPoolingAndCrossAttentions | None = None
    matching_model_output: BaseModelOutputWithPoolingAndCrossAttentions | None = None


class LangCellModel(LangCellPreTrainedModel):
    """Both towers, the shared space, and the matching head; `AutoModel` for `langcell`."""

    _auto_class = "AutoModel"

    main_input_name = "cell_input_ids"
    # A checkpoint may also have the masked-gene head, which is for `LangCellForMaskedLM`.
    _keys_to_ignore_on_load_unexpected = [r"^lm_head\."]

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        self.cell_model = LangCellCellModel._from_config(config.cell_config)
        self.text_model = LangCellTextModel._from_config(config.text_config)
        self.cell_projection = nn.Linear(config.cell_config.hidden_size, config.projection_dim)
        self.text_projection = nn.Linear(config.text_config.hidden_size, config.projection_dim)
        self.matching_head = nn.Linear(config.text_config.hidden_size, 2)
        known = torch.zeros(config.n_known_types, config.projection_dim) if config.n_known_types else None
        #: `(n_known_types, projection_dim)` embeddings of the descriptions that training compared cells with, or None.
        self.register_buffer("known_texts", known)
        #: `(n_known_types, projection_dim)` mean embeddings of the training cells of the same types, or None.
        self.register_buffer("known_cells", None if known is None else known.clone())
        self.post_init()

    def remember_types(
        self, text_embeds: torch.Tensor, cell_embeds: torch.Tensor, term_ids: Sequence[str] | None = None
    ) -> None:
        """
        Sets `known_texts` and `known_cells` to `(types, projection_dim)` embeddings, L2-normalised, and the types' ids
        in the Cell Ontology.
        """
        self.config.n_known_types = len(text_embeds)
        self.config.known_types = None if term_ids is None else list(term_ids)
        self.known_texts, self.known_cells = text_embeds.detach().clone(), cell_embeds.detach().clone()

    def forget_types(self) -> None:
        """Removes `known_texts` and `known_cells`, which hold no longer once a tower has been trained further."""
        self.config.n_known_types, self.config.known_types = 0, None
        self.register_buffer("known_texts", None)
        self.register_buffer("known_cells", None)

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the gene embeddings."""
        return self.cell_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.cell_model.set_input_embeddings(value)

    def project_cells(self, pooled: torch.Tensor) -> torch.Tensor:
        """Projects `(cells, hidden_size)` pooled states to `(cells, projection_dim)`, L2-normalised."""
        return F.normalize(self.cell_projection(pooled), dim=-1)

    def project_texts(self, pooled: torch.Tensor) -> torch.Tensor:
        """Projects `(texts, hidden_size)` pooled states to `(texts, projection_dim)`, L2-normalised."""
        return F.normalize(self.text_projection(pooled), dim=-1)

    @can_return_tuple
    def get_cell_features(
        self,
        cell_input_ids: torch.Tensor,
        cell_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """
        Embeds cells.

        Args:
            cell_input_ids, cell_attention_mask: `(cells, genes)`.
            kwargs: Arguments of `LangCellCellModel.forward`; with `pooled_only` the last layer computes only what the
                embedding needs.

        Returns:
            The output of the cell tower, with the embeddings `(cells, projection_dim)`, L2-normalised, as its
            `pooler_output`: they are `cell_embeds` of `forward`.
        """
        cells = self.cell_model(cell_input_ids, cell_attention_mask, return_dict=True, **kwargs)
        cells.pooler_output = self.project_cells(cells.pooler_output)
        return cells

    @can_return_tuple
    def get_text_features(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """
        Embeds texts.

        Args:
            input_ids, attention_mask: `(texts, tokens)`.
            kwargs: Arguments of `LangCellTextModel.forward`; with `pooled_only` the last layer computes only what the
                embedding needs, if that is the `[CLS]` state.

        Returns:
            The output of the text tower, with the embeddings `(texts, projection_dim)`, L2-normalised, as its
            `pooler_output`: they are `text_embeds` of `forward`.
        """
        texts = self.text_model(input_ids, attention_mask, return_dict=True, **kwargs)
        texts.pooler_output = self.project_texts(texts.pooler_output)
        return texts

    def get_similarity_logits(self, cell_embeds: torch.Tensor, text_embeds: torch.Tensor) -> torch.Tensor:
        """Returns `(cells, texts)` cosine over temperature."""
        return cell_embeds @ text_embeds.T / self.config.temperature

    def get_matching_logits(
        self,
        cell_hidden_states: torch.Tensor,
        cell_attention_mask: torch.Tensor | None,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        texts_per_cell: int | None = None,
    ) -> torch.Tensor:
        """
        Computes logits of `(no match, match)` for texts read against cells.

        Args:
            cell_hidden_states: `(cells, genes, hidden_size)` last hidden states of the cell tower.
            cell_attention_mask: `(cells, genes)` attention mask of the cells.
            input_ids, attention_mask: `(texts, tokens)`.
            texts_per_cell: Number of texts paired with each cell; by default all, so that every text is read against
                every cell. See `LangCellTextModel.forward`.

        Returns:
            `(cells, texts_per_cell, 2)`.
        """
        texts_per_cell = len(input_ids) if texts_per_cell is None else texts_per_cell
        pairs = self._read_pairs(
            cell_hidden_states, cell_attention_mask, input_ids, attention_mask, texts_per_cell, pooled_only=True
        )
        return self._match(pairs, texts_per_cell)

    def _read_pairs(
        self, cell_hidden_states, cell_attention_mask, input_ids, attention_mask, texts_per_cell, **kwargs
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        """Returns the output of the text tower on pairs; arguments are those of `get_matching_logits`."""
        return self.text_model(
            input_ids,
            attention_mask,
            encoder_hidden_states=cell_hidden_states,
            encoder_attention_mask=cell_attention_mask,
            texts_per_cell=texts_per_cell,
            return_dict=True,
            **kwargs,
        )

    def _match(self, pairs: BaseModelOutputWithPoolingAndCrossAttentions, texts_per_cell: int) -> torch.Tensor:
        """Returns `(cells, texts_per_cell, 2)` logits of `(no match, match)`."""
        return self.matching_head(pairs.pooler_output).unflatten(0, (-1, texts_per_cell))

    def match_packed(
        self,
        cell_states: torch.Tensor,
        cells: PackedSequences,
        input_ids: torch.Tensor,
        texts: PackedSequences,
        chosen: Sequence[Sequence[int]] | np.ndarray,
    ) -> torch.Tensor:
        """
        Returns `(pairs,)` float32 match probabilities; arguments are those of `LangCellTextModel.read_pairs`.
        """
        pooled = self.text_model.read_pairs(input_ids, texts, cell_states, cells, chosen)
        return self.matching_head(pooled).float().softmax(dim=-1)[:, 1]

    @only_known_arguments()
    @can_return_tuple
    def forward(
        self,
        cell_input_ids: torch.Tensor,
        cell_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        return_matching: bool = False,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellOutput:
        """
        Compares every cell with every text.

        Args:
            cell_input_ids, cell_attention_mask: `(cells, genes)`.
            input_ids, attention_mask: `(texts, tokens)`.
            labels: `(cells,)` row of each cell's true text, for the adaptation loss of the paper's few-shot protocol.
            return_matching: Runs the matching head on every pair, which costs a pass of the text tower per pair.

        Raises:
            ValueError: No `input_ids`.
        """
        if input_ids is None:
            raise ValueError("input_ids is missing: this compares cells with texts; get_cell_features embeds cells.")
        cells = self.cell_model(cell_input_ids, cell_attention_mask, return_dict=True, **kwargs)
        texts = self.text_model(input_ids, attention_mask, return_dict=True, **kwargs)
        cell_embeds = self.project_cells(cells.pooler_output)
        text_embeds = self.project_texts(texts.pooler_output)
        logits_per_cell = self.get_similarity_logits(cell_embeds, text_embeds)

        matching_logits, pairs = None, None
        if return_matching:
            # The head reads only [CLS], but who asks for states or attentions wants those of all tokens.
            options = ("output_attentions", "output_hidden_states")
            pooled_only = not any(kwargs.get(name, getattr(self.config.text_config, name)) for name in options)
            pairs = self._read_pairs(
                *(cells.last_hidden_state, cell_attention_mask, input_ids, attention_mask, len(input_ids)),
                pooled_only=pooled_only,
                **kwargs,
            )
            matching_logits = self._match(pairs, len(input_ids))
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits_per_cell.float(), labels)
            if matching_logits is not None:
                # The published script takes the matching probabilities themselves as the logits over candidates.
                loss = loss + F.cross_entropy(matching_logits.float().softmax(dim=-1)[..., 1], labels)
        return LangCellOutput(
            loss=loss,
            logits_per_cell=logits_per_cell,
            logits_per_text=logits_per_cell.T,
            matching_logits=matching_logits,
            cell_embeds=cell_embeds,
            text_embeds=text_embeds,
            cell_model_output=cells,
            text_model_output=texts,
            matching_model_output=pairs,
        )


class LangCellMaskedGeneHead(nn.Module):
    """Scores every gene from hidden states, with the gene embeddings as output weights."""

    def __init__(self, config: LangCellCellConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.act = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.decoder(self.LayerNorm(self.act(self.dense(hidden_states))))


class LangCellForMaskedLM(LangCellPreTrainedModel):
    """The cell tower with the masked-gene head; `AutoModelForMaskedLM` for `langcell_cell`."""

    _auto_class = "AutoModelForMaskedLM"

    config: LangCellCellConfig
    base_model_prefix = "cell_model"
    _keys_to_ignore_on_load_unexpected = [_OF_THE_OTHERS]
    main_input_name = "input_ids"
    _tied_weights_keys = {"lm_head.decoder.weight": "cell_model.embeddings.word_embeddings.weight"}

    def __init__(self, config: LangCellCellConfig):
        super().__init__(config)
        self.cell_model = LangCellCellModel._from_config(config)
        self.lm_head = LangCellMaskedGeneHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    @only_known_arguments(*_END_TO_END)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cell_input_ids: torch.Tensor | None = None,
        cell_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """
        Predicts masked genes.

        Args:
            input_ids, attention_mask, inputs_embeds: The same as for `LangCellCellModel.forward`, with masked genes.
            labels: `(cells, genes)` true ids of masked genes, -100 elsewhere.
            cell_input_ids, cell_attention_mask: Other names of `input_ids` and `attention_mask`.

        Returns:
            `logits` `(cells, genes, vocab_size)`, and `loss` when there are labels.
        """
        input_ids, attention_mask = _cell_inputs(input_ids, attention_mask, cell_input_ids, cell_attention_mask)
        outputs = self.cell_model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.lm_head(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class LangCellForSequenceClassification(LangCellPreTrainedModel):
    """
    LangCell-CE: the cell tower with a linear head on its `<cls>` state, for one or several labels per cell;
    `AutoModelForSequenceClassification` for `langcell_cell`.
    """

    _auto_class = "AutoModelForSequenceClassification"

    config: LangCellCellConfig
    base_model_prefix = "cell_model"
    _keys_to_ignore_on_load_unexpected = [_OF_THE_OTHERS]
    main_input_name = "input_ids"

    def __init__(self, config: LangCellCellConfig):
        super().__init__(config)
        self.cell_model = LangCellCellModel._from_config(config)
        dropout = config.hidden_dropout_prob if config.classifier_dropout is None else config.classifier_dropout
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    @only_known_arguments(*_END_TO_END)
    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cell_input_ids: torch.Tensor | None = None,
        cell_attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """
        Classifies cells.

        Args:
            input_ids, attention_mask, inputs_embeds: The same as for `LangCellCellModel.forward`.
            labels: `(cells,)` class ids, or `(cells, num_labels)` zeros and ones for several labels per cell; numbers
                of shape `(cells,)` or `(cells, 1)` if `num_labels` is 1 (regression). `config.problem_type` decides,
                and is set from the labels of the first call if it is `None`.
            cell_input_ids, cell_attention_mask: Other names of `input_ids` and `attention_mask`.

        Returns:
            `logits` `(cells, num_labels)`, and `loss` when there are labels.
        """
        input_ids, attention_mask = _cell_inputs(input_ids, attention_mask, cell_input_ids, cell_attention_mask)
        outputs = self.cell_model(input_ids, attention_mask, inputs_embeds, return_dict=True, **kwargs)
        logits = self.classifier(self.dropout(outputs.pooler_output))
        loss = None
        if labels is not None:
            if labels.shape == logits.shape:  # Several labels per cell, or regression: numbers, not class ids.
                labels = labels.to(logits.dtype)
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class _HeadOfJoint:
    """
    Loads a head for the cell tower from the config of a joint model: transformers' Auto classes choose the class by the
    config, and ask that it names the same. What is loaded is the head itself, with the config of a cell tower.
    """

    config_class = LangCellConfig
    head: ClassVar[type[LangCellPreTrainedModel]]

    @classmethod
    def from_pretrained(cls, *args: Any, config: LangCellConfig, **kwargs: Any) -> Any:
        return cls.head.from_pretrained(*args, config=cls._cell_config(config), **kwargs)

    @classmethod
    def _from_config(cls, config: LangCellConfig, **kwargs: Any) -> Any:
        return cls.head._from_config(cls._cell_config(config), **kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = None) -> None:
        """Does nothing: a head is saved with its own code."""

    @staticmethod
    def _cell_config(config: LangCellConfig) -> LangCellCellConfig:
        """Returns the config of the cell tower with the labels, which Auto classes set in that of the joint model."""
        cell_config = copy.deepcopy(config.cell_config)
        cell_config.id2label, cell_config.label2id = config.id2label, config.label2id
        cell_config.problem_type = config.problem_type
        return cell_config


class LangCellForMaskedLMOfJoint(_HeadOfJoint):
    """`AutoModelForMaskedLM` for `langcell`."""

    head = LangCellForMaskedLM


class LangCellForSequenceClassificationOfJoint(_HeadOfJoint):
    """`AutoModelForSequenceClassification` for `langcell`."""

    head = LangCellForSequenceClassification


@dataclass
class LangCellForPreTrainingOutput(ModelOutput):
    """
    Output of `LangCellForPreTraining`.

    Args:
        loss: The weighted sum of the objectives.
        masked_gene_loss, cell_cell_loss, cell_text_loss, matching_loss: The objectives, unweighted; `None` where the
            weight is 0.
        logits_per_cell: `(cells, texts)` cosine over temperature, of this process's cells and the distinct texts of all
            processes; `None` if no objective needs texts.
    """

    loss: torch.Tensor | None = None
    masked_gene_loss: torch.Tensor | None = None
    cell_cell_loss: torch.Tensor | None = None
    cell_text_loss: torch.Tensor | None = None
    matching_loss: torch.Tensor | None = None
    logits_per_cell: torch.Tensor | None = None


class LangCellForPreTraining(LangCellModel):
    """
    LangCell with its four objectives; `AutoModelForPreTraining` for `langcell`.

    It is `LangCellModel` plus the masked-gene head, with the same parameter names: a checkpoint of one loads into the
    other, and into the towers.
    """

    _auto_class = "AutoModelForPreTraining"

    def __init__(self, config: LangCellConfig):
        super().__init__(config)
        cell_config = config.cell_config
        self.lm_head = LangCellMaskedGeneHead(cell_config)
        # Set here, not on the class, because LangCellModel's post_init also ties weights, before the head exists.
        self._tied_weights_keys = LangCellForMaskedLM._tied_weights_keys
        self.masked_gene_modelling = MaskedGeneModelling(
            cell_config.cls_token_id + 1, cell_config.mask_token_id, config.masked_gene_probability
        )
        self.cell_cell_contrast = CellCellContrast(config.cell_cell_temperature)
        self.cell_text_contrast = CellTextContrast()
        self.cell_text_matching = CellTextMatching()
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head.decoder

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.lm_head.decoder = value

    @only_known_arguments()
    @can_return_tuple
    def forward(
        self,
        cell_input_ids: torch.Tensor,
        cell_attention_mask: torch.Tensor | None = None,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        text_index: torch.Tensor | None = None,
        ignored_pairs: torch.Tensor | None = None,
        text_pooled: torch.Tensor | None = None,
        masked_input_ids: torch.Tensor | None = None,
        masked_gene_targets: torch.Tensor | None = None,
        negative_draws: torch.Tensor | None = None,
        length_groups: int = 1,
        return_loss: bool = True,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LangCellForPreTrainingOutput:
        """
        Computes the objectives. With several processes, each has some of the batch's cells, and all get the losses of
        the whole batch: see `objectives`. Each text is embedded by only one process.

        The descriptions can be given in three ways: one for each cell; those of the cells of this process, with
        `text_index` and `ignored_pairs` of these cells; or, as pre-training does, those of all processes. In the first
        two ways the descriptions of all processes are merged here, as `merge_texts` says.

        Args:
            cell_input_ids, cell_attention_mask: `(cells, genes)`.
            input_ids, attention_mask: `(texts, tokens)` descriptions: `(cells, tokens)` without `text_index`, and
                distinct ones with it.
            text_index: `(cells,)` or `(cells of all processes,)` row of each cell's description.
            ignored_pairs: `(cells, texts)` booleans of the cells of `text_index`, true where a text is true of a cell
                without being its description; such pairs are neither positives nor negatives.
            text_pooled: `(texts, hidden_size)` pooled states of the texts, if they are known because the text tower is
                frozen; `input_ids` are then needed only for the matching.
            masked_input_ids, masked_gene_targets: `(cells, genes)` outputs of `MaskedGeneModelling.corrupt`; drawn here
                by default.
            negative_draws: `(cells of all processes, 2)` uniform random numbers that determine the negatives of the
                matching, the same in every process; drawn here by default.
            length_groups: Number of groups of similar length in which the cells are encoded, to pad less.
            return_loss: If false, no objective is computed, and `logits_per_cell` compares the cells with the texts as
                `LangCellModel` does.

        Raises:
            ValueError: An objective lacks its texts, or `text_index` does not fit the cells.
        """
        config = self.config
        if not return_loss:
            compared = super().forward(cell_input_ids, cell_attention_mask, input_ids, attention_mask, **kwargs)
            return LangCellForPreTrainingOutput(logits_per_cell=compared.logits_per_cell)
        if config.masked_gene_weight and masked_input_ids is None:
            masked_input_ids, masked_gene_targets = self.masked_gene_modelling.corrupt(cell_input_ids)
        groups = [
            self._encode_cells(
                rows, cell_input_ids, cell_attention_mask, masked_input_ids, masked_gene_targets, **kwargs
            )
            for rows in _by_length(cell_input_ids, cell_attention_mask, length_groups)
        ]
        original_order = torch.cat([group.rows for group in groups]).argsort()

        losses: dict[str, torch.Tensor] = {}
        logits_per_cell = None
        if config.masked_gene_weight:
            scores, labels = (torch.cat(parts) for parts in zip(*(group.masked_genes for group in groups), strict=True))
            losses["masked_gene"] = self.masked_gene_modelling(scores, labels)
        if config.cell_cell_weight:
            views = (torch.cat([group.views[i] for group in groups])[original_order] for i in range(2))
            losses["cell_cell"] = self.cell_cell_contrast(*views)
        if config.cell_text_weight or config.matching_weight:
            input_ids, attention_mask, text_index, ignored_pairs = self._merge_texts(
                len(cell_input_ids), input_ids, attention_mask, text_index, ignored_pairs, text_pooled
            )
            cell_embeds = self.project_cells(torch.cat([group.views[0] for group in groups])[original_order])
            text_embeds = self._embed_texts(input_ids, attention_mask, text_pooled)
            first = first_row(cell_embeds)
            logits = self.get_similarity_logits(gather_rows(cell_embeds.float()), text_embeds.float())
            if len(logits) != len(text_index):
                raise ValueError(f"text_index is of {len(text_index)} cells, but there are {len(logits)}.")
            if config.cell_text_weight:
                losses["cell_text"] = self.cell_text_contrast(logits, text_index, ignored_pairs)
            if config.matching_weight:
                negatives = self.cell_text_matching.draw_negatives(logits, text_index, ignored_pairs, negative_draws)
                losses["matching"] = self._matching_loss(
                    groups, first, input_ids, attention_mask, text_index, *negatives
                )
            logits_per_cell = logits[first : first + len(cell_embeds)]
        weighted = [getattr(config, f"{name}_weight") * loss for name, loss in losses.items()]
        return LangCellForPreTrainingOutput(
            loss=torch.stack(weighted).sum() if weighted else None,
            logits_per_cell=logits_per_cell,
            **{f"{name}_loss": loss for name, loss in losses.items()},
        )

    def _encode_cells(self, rows, input_ids, attention_mask, masked_input_ids, masked_gene_targets, **kwargs):
        """Encodes some of the cells, in all the views that the objectives need, as one batch."""
        config = self.config
        ids, mask = input_ids[rows], None
        masked_ids, targets = (None if one is None else one[rows] for one in (masked_input_ids, masked_gene_targets))
        if attention_mask is not None:
            mask = attention_mask[rows]
            # A batch is padded to its longest cell, so that only groups gain; `int` would also end a compiled graph.
            longest = mask.shape[1] if len(rows) == len(input_ids) else int(mask.sum(dim=1).max())
            mask, ids, masked_ids, targets = _genes_first(longest, mask, ids, masked_ids, targets)
        # The views are the cell itself, the cell with different dropout, and the masked cell.
        views = [ids]
        if config.cell_cell_weight:
            views.append(ids)
        if config.masked_gene_weight:
            views.append(masked_ids)
        encoded = self.cell_model(
            torch.cat(views),
            None if mask is None else mask.repeat(len(views), 1),
            pooled_only=not (config.masked_gene_weight or config.matching_weight),
            return_dict=True,
            **kwargs,
        )
        states = encoded.last_hidden_state.split(len(rows))
        masked_genes = None
        if config.masked_gene_weight and targets is not None:
            # Only the masked positions are scored, because each takes as many logits as the vocabulary has genes.
            masked = targets != IGNORED if mask is None else (targets != IGNORED) & mask.bool()
            masked_genes = self.lm_head(states[-1][masked]), targets[masked]
        return _EncodedCells(rows, states[0], mask, encoded.pooler_output.split(len(rows)), masked_genes)

    def _merge_texts(self, n_cells, input_ids, attention_mask, text_index, ignored_pairs, pooled):
        """Returns the descriptions of all processes, with `text_index` and `ignored_pairs` of all cells."""
        lacking = input_ids is None and (pooled is None or self.config.matching_weight)
        one_per_cell = not lacking and text_index is None and pooled is None and len(input_ids) == n_cells
        if lacking or (text_index is None and not one_per_cell):
            raise ValueError(
                "The objectives on texts need input_ids and text_index, or a row of input_ids for each cell; without "
                "these, set their weights to 0."
            )
        if one_per_cell:
            text_index = torch.arange(n_cells, device=input_ids.device)
        elif pooled is not None or len(text_index) != n_cells or process_and_processes()[1] == 1:
            return input_ids, attention_mask, text_index, ignored_pairs
        return merge_texts(input_ids, attention_mask, text_index, ignored_pairs)

    def _embed_texts(self, input_ids, attention_mask, pooled) -> torch.Tensor:
        """Returns `(texts, projection_dim)`; each process embeds a share of the texts, and all get all embeddings."""
        if pooled is not None:
            return self.project_texts(pooled)
        process, processes = process_and_processes()
        # With fewer texts than processes, some texts are embedded twice.
        numbers = torch.arange(max(len(input_ids), processes), device=input_ids.device)
        share = numbers[process::processes] % len(input_ids)
        mask = None if attention_mask is None else attention_mask[share]
        embeds = self.get_text_features(input_ids[share], mask, pooled_only=True, return_dict=True).pooler_output
        gathered = torch.cat([numbers[other::processes] for other in range(processes)])
        return gather_rows(embeds)[gathered.argsort()][: len(input_ids)]

    def _matching_loss(
        self, groups, first, input_ids, attention_mask, text_index, wrong_text, wrong_cell, usable
    ) -> torch.Tensor:
        """
        Computes CTM for each cell with its own text and a wrong one, and for each text with a wrong cell. The process
        that has a pair's cell reads the pair, with the group in which the cell was encoded. `first` is the place of
        this process's first cell among the cells of all.
        """
        negative = torch.zeros_like(text_index).masked_fill(~usable, IGNORED)
        logits, labels = [], []

        def read_pairs(states, mask, texts, texts_per_cell, expected):
            text_mask = None if attention_mask is None else attention_mask[texts]
            found = self.get_matching_logits(states, mask, input_ids[texts], text_mask, texts_per_cell)
            logits.append(found.flatten(0, 1))
            labels.append(expected)

        for group in groups:
            cells = group.rows + first
            own_and_wrong = torch.stack([text_index[cells], wrong_text[cells]], dim=1).flatten()
            expected = torch.stack([torch.ones_like(cells), negative[cells]], dim=1).flatten()
            read_pairs(group.states, group.mask, own_and_wrong, 2, expected)
            # The pairs of a text and a wrong cell whose cell is in this group.
            if len(cells) == len(wrong_cell):  # All of them; a search would end a compiled graph.
                pairs, members = cells, wrong_cell
            else:
                pairs, members = (wrong_cell[:, None] == cells).nonzero(as_tuple=True)
            expected = negative[pairs]
            # If there are none, one ignored pair is read: with FSDP all processes must call the tower equally often.
            if not len(pairs):
                pairs, members = cells[:1], torch.zeros_like(cells[:1])
                expected = torch.full_like(pairs, IGNORED)
            mask = None if group.mask is None else group.mask[members]
            read_pairs(group.states[members], mask, text_index[pairs], 1, expected)
        return self.cell_text_matching(torch.cat(logits), torch.cat(labels))


@dataclass
class _EncodedCells:
    """
    Output of the cell tower for cells of similar length.

    Args:
        rows: `(cells,)` rows of the batch.
        states, mask: Last hidden states `(cells, genes, hidden_size)` and attention mask `(cells, genes)`.
        views: `(cells, hidden_size)` pooled states of every view.
        masked_genes: Logits and labels of the masked genes, with the masked-gene objective.
    """

    rows: torch.Tensor
    states: torch.Tensor
    mask: torch.Tensor | None
    views: tuple[torch.Tensor, ...]
    masked_genes: tuple[torch.Tensor, torch.Tensor] | None


def _genes_first(longest: int, mask: torch.Tensor, *tensors: torch.Tensor | None) -> list[torch.Tensor | None]:
    """
    Moves the genes of each cell to the front of its row, in their order, whatever side the padding is on, and leaves
    out the columns from `longest` on. Takes and returns `(cells, genes)` tensors, the attention mask first.
    """
    genes = mask.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
    return [None if one is None else one.gather(1, genes) for one in (mask, *tensors)]


def _by_length(input_ids: torch.Tensor, attention_mask: torch.Tensor | None, groups: int) -> tuple[torch.Tensor, ...]:
    """Splits the rows of a batch of cells into groups of similar length."""
    if attention_mask is None or groups == 1:
        return (torch.arange(len(input_ids), device=input_ids.device),)
    return attention_mask.sum(dim=1).argsort(stable=True).tensor_split(min(groups, len(input_ids)))


__all__ = [
    "LangCellCellModel",
    "LangCellForMaskedLM",
    "LangCellForMaskedLMOfJoint",
    "LangCellForPreTraining",
    "LangCellForSequenceClassification",
    "LangCellForSequenceClassificationOfJoint",
    "LangCellModel",
    "LangCellPreTrainedModel",
    "LangCellTextModel",
]
