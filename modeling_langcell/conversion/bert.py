# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Conversion between the weights of a `transformers.BertModel` and those of a tower.

A tower is a BERT with the same parameter names, without token types and without a pooler: its pooled state is the state
of the first token.
"""

import copy
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import PickleError
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import save
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_NAME,
    logging,
)

from ..checkpoint.builtin import display_name, resolve_checkpoint
from ..checkpoint.config import build_model, read_config
from ..checkpoint.repository import fetch
from ..checkpoint.screening import require_harmless, require_no_code
from ..checkpoint.weights import require_weights_for
from ..io.atomic import atomic_folder, atomic_write
from ..io.outputs import require_new_folder
from ..io.tables import write_table
from ..model.configuration_langcell import LangCellCellConfig
from ..model.errors import InputError
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.modeling_langcell import (
    LangCellCellModel,
    LangCellForMaskedLM,
    LangCellForSequenceClassification,
    LangCellModel,
    LangCellTowerModel,
)
from .tensors import read_tensors

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
#: Settings that the configs of a tower and of a BERT have under the same names.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
SETTINGS = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)
#: The table of an exported encoder's ids.
GENES = "genes.tsv"


# ---------------------------------------------------------------------- a BERT as a tower


def read_cell_tower(
    name_or_path: str | Path, *, vocab_size: int | None = None, revision: str | None = None
) -> LangCellCellModel:
    """
    Reads a BERT over ranked genes, such as a published Geneformer, as a cell tower with the same outputs.

    Heads and the pooler are left out, and the token types are added to the positions. Geneformer V1 has no `<cls>`: its
    embedding is then the mean of the genes' (`add_cls_embedding`). Geneformer V2 has `<cls>` among its first ids; a
    `LangCellFeatureExtractor` does not produce such ids, so its cells must come from its own tokenizer.

    Args:
        name_or_path: Folder or Hub id of any BERT of transformers: `BertModel`, `BertForMaskedLM` and so on.
        vocab_size: Number of ids of the cells' vocabulary, `<cls>` last: `len(extractor)`. By default one more than the
            BERT has, for `<cls>`, unless the BERT's last id is `cls_token_id`, as in the output of `export_cell_tower`.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        InputError: There is no BERT, or it is damaged, has a different vocabulary, or is a decoder.
    """
    name = str(name_or_path)
    bert = read_bert(name, revision)
    rows = bert.config.vocab_size
    if bert.config.is_decoder:
        raise InputError(f"{name} attends in one direction only (is_decoder), but a cell tower in both.")
    if vocab_size is None:
        vocab_size = rows if getattr(bert.config, "cls_token_id", None) == rows - 1 else rows + 1
    settings = bert_settings(bert) | {"vocab_size": vocab_size, "pad_token_id": bert.config.pad_token_id}
    with naming_failures(name):
        tower = LangCellCellModel(LangCellCellConfig(**settings))
    load_bert_weights(tower, bert, name)
    return tower.eval()


class _BertWithoutHeads(BertModel):
    """The part of any BERT that a tower has; transformers does not report the parts that are left out."""

    _keys_to_ignore_on_load_unexpected = [r"^((bert\.)?pooler|cls|classifier|qa_outputs)\."]


def read_bert(name: str, revision: str | None = None) -> BertModel:
    """
    Reads a BERT from a folder or the Hub, without heads and pooler, in float32.

    Raises:
        InputError: There is no BERT, its weights are damaged or incomplete, or its positions are not absolute.
    """
    with naming_failures(name):
        settings = require_model_type(name, "bert", revision=revision)
        if (folder := Path(name)).is_dir():
            require_weights_for(lambda: BertModel(BertConfig.from_dict(settings)), folder, name)
            if not any(folder.glob("*.safetensors")) and (folder / WEIGHTS_NAME).is_file():
                read_tensors(folder / WEIGHTS_NAME)
        bert, loading = _BertWithoutHeads.from_pretrained(
            name, revision=revision, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise InputError(f"{name} lacks the weights {', '.join(sorted(loading['missing_keys'])[:3])}.")
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{name} has positions that are not absolute (position_embedding_type), unlike a tower.")
    return bert


def bert_settings(bert: BertModel) -> dict[str, Any]:
    """Returns the settings of a BERT that a tower is built from."""
    return {name: getattr(bert.config, name) for name in ("vocab_size", *SIZES, *SETTINGS)}


def load_bert_weights(tower: LangCellTowerModel, bert: BertModel, name: str) -> None:
    """
    Loads a BERT's weights into a tower. The last row of the vocabulary, that of `<cls>`, may be missing.

    Args:
        tower: The tower; changed in place.
        bert: The BERT.
        name: The BERT's name, for error messages.

    Raises:
        InputError: The BERT has a different vocabulary or geometry.
    """
    state = add_cls_embedding(fold_token_types(bert.state_dict()), tower.config.vocab_size)
    if len(state[WORDS]) != tower.config.vocab_size:
        raise InputError(f"{name} has {len(state[WORDS])} tokens, not {tower.config.vocab_size}.")
    state[POSITIONS] = resize_positions(state[POSITIONS], tower.config.max_position_embeddings)
    try:
        loaded = tower.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{name} does not fit the tower: {error}") from error
    missing = [key for key in loaded.missing_keys if ".crossattention." not in key]
    if missing or loaded.unexpected_keys:
        raise InputError(f"{name} does not fit the tower: {missing or loaded.unexpected_keys}.")


def fold_token_types(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns a BERT's state without token types; their first row, which all tokens have, is added to the positions."""
    state = dict(state)
    token_types = state.pop(TOKEN_TYPES, None)
    if token_types is not None:
        state[POSITIONS] = state[POSITIONS] + token_types[0]
    return state


def add_cls_embedding(state: dict[str, torch.Tensor], vocab_size: int) -> dict[str, torch.Tensor]:
    """Returns a cell encoder's state with a row for `<cls>`, the mean of the genes', if exactly that row is missing."""
    genes = state.get(WORDS)
    if genes is None or genes.ndim != 2 or len(genes) != vocab_size - 1:
        return state
    return state | {WORDS: torch.cat([genes, genes[2:].mean(dim=0, keepdim=True)])}


def resize_positions(positions: torch.Tensor, length: int) -> torch.Tensor:
    """Returns `(length, hidden_size)` positions: truncated, or extended by copies of the last one."""
    beyond = positions[-1:].expand(max(0, length - len(positions)), -1)
    return torch.cat([positions[:length], beyond])


# ---------------------------------------------------------------------- a cell tower as a BERT


def export_cell_tower(
    model: str | Path | PreTrainedModel,
    output: str | Path,
    *,
    extractor: LangCellFeatureExtractor | None = None,
    masked_genes: bool = False,
    revision: str | None = None,
) -> Path:
    """
    Writes the cell tower of a LangCell model as a BERT, which `transformers` loads without this package:
    `BertModel.from_pretrained(output)` has the same `last_hidden_state`. All weights are float32.

    The parts of a BERT that a tower lacks have no effect: the token types are zeros, and the pooler is the identity, so
    `pooler_output` is the tanh of the `<cls>` state `last_hidden_state[:, 0]`. Without weights for the pooler,
    transformers would draw them at random, with only a warning.

    Next to the weights, `genes.tsv` lists the ids if an extractor defines them: `token_id`, `token` (Ensembl id, or
    `<pad>`, `<mask>`, `<cls>`), `median` (empty for a gene that is never used), `names` (symbol and synonyms, separated
    by `|`). A cell is `<cls>` and its genes by count over median, highest first.

    Args:
        model: A model, or folder or Hub id of a LangCell checkpoint of any kind that has a cell tower.
        output: Folder to create.
        extractor: Defines the ids; by default that of the checkpoint.
        masked_genes: True to write a `BertForMaskedLM` with the masked-gene head, the form in which Geneformer is
            published. It has no pooler, so `BertModel` reads it with `add_pooling_layer=False`.
        revision: Branch, tag or commit of a Hub repository.

    Returns:
        `output`.

    Raises:
        InputError: The model has no cell tower or no masked-gene head, the extractor has different genes, or
            `output` exists.
    """
    output = require_new_folder(output)
    source = ""
    if isinstance(model, (str, Path)):
        source = display_name(resolve_checkpoint(model))
        folder = fetch(resolve_checkpoint(model), revision)
        model = _read_langcell(folder, source, masked_genes)
        extractor = _read_extractor(folder, source) if extractor is None else extractor
    tower, head = _tower_and_head(model)
    if masked_genes and head is None:
        raise InputError(f"{source or type(model).__name__} has no masked-gene head: leave out masked_genes.")
    config = _bert_config(tower.config, "BertForMaskedLM" if masked_genes else "BertModel")
    if extractor is not None and len(extractor) != config.vocab_size:
        raise InputError(f"The extractor has {len(extractor)} ids, but the cell tower has {config.vocab_size}.")
    state = _bert_state(tower, head if masked_genes else None)
    with atomic_folder(output) as folder:
        config.save_pretrained(folder)
        # save_file makes files that only their owner can read.
        atomic_write(folder / SAFE_WEIGHTS_NAME, save(state, metadata={"format": "pt"}))
        if extractor is not None:
            _write_genes(extractor, folder / GENES)
        _write_card(folder, source, masked_genes)
    return output


def _read_langcell(folder: Path, name: str, masked_genes: bool) -> LangCellCellModel | LangCellForMaskedLM:
    """Reads the cell tower of a checkpoint, with or without the masked-gene head."""
    kind: type[PreTrainedModel] = LangCellForMaskedLM if masked_genes else LangCellCellModel
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # Missing weights are reported below.
    try:
        with naming_failures(name):
            require_model_type(str(folder), "langcell", "langcell_cell")
            require_weights_for(lambda: build_model(read_config(folder)), folder, name)
            model, loading = kind.from_pretrained(
                folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(loading["missing_keys"])
    if missing and all(key.startswith("lm_head.") for key in missing):
        raise InputError(f"{name} has no masked-gene head: leave out masked_genes.")
    if missing:
        raise InputError(f"{name} lacks the weights {', '.join(missing[:3])}.")
    return model


def _read_extractor(folder: Path, name: str) -> LangCellFeatureExtractor | None:
    """Reads the extractor of a checkpoint, if it has one."""
    if not any((folder / file).is_file() for file in (PROCESSOR_NAME, FEATURE_EXTRACTOR_NAME)):
        return None
    with naming_failures(name):
        return LangCellFeatureExtractor.from_pretrained(folder)


def _tower_and_head(model: PreTrainedModel) -> tuple[LangCellCellModel, nn.Module | None]:
    """Returns the cell tower of a LangCell model, and its masked-gene head if it has one."""
    if isinstance(model, LangCellCellModel):
        return model, None
    if isinstance(model, (LangCellModel, LangCellForMaskedLM, LangCellForSequenceClassification)):
        return model.cell_model, getattr(model, "lm_head", None)
    raise InputError(f"A {type(model).__name__} is not a LangCell model with a cell tower; merge an adapter first.")


def _bert_config(config: LangCellCellConfig, architecture: str) -> BertConfig:
    floats = {name: float(getattr(config, name)) for name in ("initializer_range", "layer_norm_eps")}
    return BertConfig(
        **{name: getattr(config, name) for name in ("vocab_size", *SIZES, *SETTINGS)} | floats,
        classifier_dropout=config.classifier_dropout,
        pad_token_id=config.pad_token_id,
        mask_token_id=config.mask_token_id,
        cls_token_id=config.cls_token_id,
        tie_word_embeddings=config.tie_word_embeddings,
        type_vocab_size=2,
        architectures=[architecture],
        dtype="float32",
    )


def _bert_state(tower: LangCellCellModel, head: nn.Module | None) -> dict[str, torch.Tensor]:
    """Returns the weights under the names of `BertModel`, or of `BertForMaskedLM` if there is a head."""
    state = dict(tower.state_dict())
    with torch.device("meta"):  # The config is copied because a model changes it.
        plain = LangCellCellModel(copy.deepcopy(tower.config)).state_dict()
    if state.keys() != plain.keys():
        differing = sorted(state.keys() ^ plain.keys())
        raise InputError(f"The cell tower has different weights from a BERT ({differing[0]}): merge its adapter.")
    width = tower.config.hidden_size
    state[TOKEN_TYPES] = torch.zeros(2, width)
    if head is None:
        state |= {"pooler.dense.weight": torch.eye(width), "pooler.dense.bias": torch.zeros(width)}
    else:
        state = {f"bert.{name}": weight for name, weight in state.items()}
        scores = dict(head.state_dict())
        decoder = {part: scores.pop(f"decoder.{part}") for part in ("weight", "bias")}
        state |= {f"cls.predictions.transform.{name}": weight for name, weight in scores.items()}
        state["cls.predictions.bias"] = decoder["bias"]
        if not tower.config.tie_word_embeddings:
            # Without tying, transformers reads the decoder's bias, and still requires the other.
            state |= {f"cls.predictions.decoder.{part}": weight.clone() for part, weight in decoder.items()}
    return {name: weight.detach().to("cpu", torch.float32).contiguous() for name, weight in state.items()}


def _write_genes(extractor: LangCellFeatureExtractor, path: Path) -> None:
    """Writes the table of ids."""
    vocabulary = extractor.gene_vocabulary
    columns = (vocabulary[column] for column in ("ensembl_ids", "medians", "names"))
    genes = [(gene, "" if median is None else median, names) for gene, median, names in zip(*columns, strict=True)]
    tokens = [("<pad>", "", ""), ("<mask>", "", ""), *genes, ("<cls>", "", "")]
    names = ("token_id", "token", "median", "names")
    write_table([dict(zip(names, (token_id, *row), strict=True)) for token_id, row in enumerate(tokens)], path)


_LOADING_CODE = {
    False: """from transformers import BertModel

encoder = BertModel.from_pretrained("{here}")""",
    True: """from transformers import BertForMaskedLM, BertModel

masked_genes = BertForMaskedLM.from_pretrained("{here}")
encoder = BertModel.from_pretrained("{here}", add_pooling_layer=False)""",
}
_POOLER_NOTE = {
    False: "`pooler_output` is the tanh of that state: the weights of the pooler are the identity.",
    True: "There is no pooler: without `add_pooling_layer=False`, `BertModel` draws one at random.",
}


def _write_card(folder: Path, source: str, masked_genes: bool) -> None:
    """Writes `README.md`: how to load the encoder, and what its ids are."""
    data = ModelCardData(library_name="transformers", tags=["langcell", "single-cell"])
    genes = f"\n- `{GENES}` lists the ids and the medians." if (folder / GENES).is_file() else ""
    text = f"""# {folder.name}

The cell encoder of {f"`{source}`, a" if source else "a"} [LangCell](https://arxiv.org/abs/2405.06708), as a BERT over
ranked genes.

```python
{_LOADING_CODE[masked_genes].format(here=folder.name)}
```

- A cell is `<cls>` (`config.cls_token_id`) and its genes by count over median, highest first, padded with 0.{genes}
- The state of `<cls>`, `last_hidden_state[:, 0]`, represents the whole cell.
- {_POOLER_NOTE[masked_genes]}
- The token types are zeros and have no effect.
"""
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


# ---------------------------------------------------------------------- errors


@contextmanager
def naming_failures(given: object) -> Iterator[None]:
    """Raises the errors of libraries as an InputError that names the unusable checkpoint or file."""
    try:
        yield
    except InputError:
        raise
    except (
        *(OSError, ValueError, KeyError, RuntimeError, StrictDataclassError),
        *(SafetensorError, PickleError, EOFError, struct.error),  # Damaged files of weights.
    ) as error:
        reason = next(iter(str(error.__cause__ or error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{given} cannot be used: {reason}") from error


def require_model_type(name: str, *kinds: str, revision: str | None = None) -> dict[str, Any]:
    """
    Reads the config.json of a checkpoint.

    Raises:
        InputError: The checkpoint's `model_type` is none of `kinds`, or its config names code from elsewhere.
    """
    if Path(name).is_dir():
        require_harmless(Path(name), name)
    settings = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found not in kinds:
        raise InputError(f"{name} is a checkpoint of {found or 'no known kind'}, not of {' or '.join(kinds)}.")
    require_no_code(settings, f"{name}: {CONFIG_NAME}")
    return settings


__all__ = [
    "add_cls_embedding",
    "export_cell_tower",
    "fold_token_types",
    "load_bert_weights",
    "read_bert",
    "read_cell_tower",
]
