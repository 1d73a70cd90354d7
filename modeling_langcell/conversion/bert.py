# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The weights of a `transformers.BertModel` as a tower's, and a cell tower's as a BERT's.

A tower computes what a BERT does, under the same parameter names, without token types and without a pooler: its pooled
state is that of the first token as it is.
"""

import copy
import csv
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
from transformers.utils import FEATURE_EXTRACTOR_NAME, PROCESSOR_NAME, SAFE_WEIGHTS_NAME, logging

from ..checkpoint.builtin import display_name, resolve_checkpoint
from ..checkpoint.repository import fetch
from ..io.atomic import atomic_folder, atomic_write, require_new_folder
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

WORDS = "embeddings.word_embeddings.weight"
POSITIONS = "embeddings.position_embeddings.weight"
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
#: What a tower's config has of a BERT's, under the same names.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "max_position_embeddings")
SETTINGS = (
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)
#: What the ids of an exported encoder mean.
GENES = "genes.tsv"


# ---------------------------------------------------------------------- a BERT as a tower


def read_cell_tower(
    name_or_path: str | Path, *, vocab_size: int | None = None, revision: str | None = None
) -> LangCellCellModel:
    """
    A BERT over ranked genes, as Geneformer is published, as a cell tower that computes the same.

    Heads and the pooler are left out, and token types go into the positions. Geneformer V1 has no `<cls>`: its
    embedding is then the mean of the genes', as `with_cls` makes it. Geneformer V2 has `<cls>` among its first ids, and
    no `LangCellFeatureExtractor` makes such ids: they are to come from its own tokenizer.

    Args:
        name_or_path: Folder or Hub id of any BERT of transformers: `BertModel`, `BertForMaskedLM` and so on.
        vocab_size: Ids of the vocabulary that cells come in, `<cls>` last: `len(extractor)`. By default one more than
            the BERT has, for `<cls>`, unless its config says that the last is `cls_token_id`, as what
            `export_cell_tower` wrote does.
        revision: Branch, tag or commit of a Hub repository.

    Raises:
        InputError: No BERT there, or damaged; one of another vocabulary, or that does not read both ways.
    """
    name = str(name_or_path)
    bert = read_bert(name, revision)
    rows = bert.config.vocab_size
    if bert.config.is_decoder:
        raise InputError(f"{name} reads one way alone (is_decoder), a cell tower both ways.")
    if vocab_size is None:
        vocab_size = rows if getattr(bert.config, "cls_token_id", None) == rows - 1 else rows + 1
    settings = geometry(bert) | {"vocab_size": vocab_size, "pad_token_id": bert.config.pad_token_id}
    with explaining(name):
        tower = LangCellCellModel(LangCellCellConfig(**settings))
    take_over(tower, bert, name)
    return tower.eval()


class _BertWithoutHeads(BertModel):
    """What a tower has of any BERT; that the rest is left out needs no report."""

    _keys_to_ignore_on_load_unexpected = [r"^((bert\.)?pooler|cls|classifier|qa_outputs)\."]


def read_bert(name: str, revision: str | None = None) -> BertModel:
    """
    A BERT from a folder or the Hub, without heads and pooler, in float32.

    Raises:
        InputError: No BERT there, weights that are damaged or not all there, positions that are not absolute.
    """
    with explaining(name):
        settings = require_kind(name, "bert", revision=revision)
        bert, loading = _BertWithoutHeads.from_pretrained(
            name, revision=revision, add_pooling_layer=False, dtype=torch.float32, output_loading_info=True
        )
    if loading["missing_keys"]:
        raise InputError(f"{name} lacks the weights {', '.join(sorted(loading['missing_keys'])[:3])}.")
    if settings.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{name} has positions that are not absolute (position_embedding_type), as a tower's are.")
    return bert


def geometry(bert: BertModel) -> dict[str, Any]:
    """What of a BERT's config a tower is built from."""
    return {name: getattr(bert.config, name) for name in ("vocab_size", *SIZES, *SETTINGS)}


def take_over(tower: LangCellTowerModel, bert: BertModel, name: str) -> None:
    """
    BERT's weights become the tower's; one row of the vocabulary may be missing, that of `<cls>`, which is last.

    Raises:
        InputError: Another vocabulary or another geometry; `name` says whose.
    """
    state = with_cls(fold_token_types(bert.state_dict()), tower.config.vocab_size)
    if len(state[WORDS]) != tower.config.vocab_size:
        raise InputError(f"{name} has {len(state[WORDS])} tokens, not {tower.config.vocab_size}.")
    state[POSITIONS] = resized(state[POSITIONS], tower.config.max_position_embeddings)
    try:
        loaded = tower.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise InputError(f"{name} does not fit the tower that is asked for: {error}") from error
    strangers = [key for key in loaded.missing_keys if ".crossattention." not in key]
    if strangers or loaded.unexpected_keys:
        raise InputError(f"{name} does not fit the tower: {strangers or loaded.unexpected_keys}.")


def fold_token_types(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A BERT state dict without token types: their first row, which every token gets, goes into the positions."""
    state = dict(state)
    token_types = state.pop(TOKEN_TYPES, None)
    if token_types is not None:
        state[POSITIONS] = state[POSITIONS] + token_types[0]
    return state


def with_cls(state: dict[str, torch.Tensor], vocab_size: int) -> dict[str, torch.Tensor]:
    """A cell encoder's weights with a row for `<cls>`, should just that row be missing: the mean of the genes'."""
    genes = state.get(WORDS)
    if genes is None or genes.ndim != 2 or len(genes) != vocab_size - 1:
        return state
    return state | {WORDS: torch.cat([genes, genes[2:].mean(dim=0, keepdim=True)])}


def resized(positions: torch.Tensor, wanted: int) -> torch.Tensor:
    """`(wanted, hidden_size)`: cut, or the last position's embedding for those beyond it."""
    beyond = positions[-1:].expand(max(0, wanted - len(positions)), -1)
    return torch.cat([positions[:wanted], beyond])


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
    Writes the cell tower of any LangCell model as a BERT, which `transformers` loads where this package is not known:
    `BertModel.from_pretrained(output)`, whose `last_hidden_state` is the tower's. All weights are float32.

    What a BERT has and a tower has not is such that it changes nothing or hides nothing. The token types are zeros.
    The pooler is the identity, so `pooler_output` is the tanh of the `<cls>` state `last_hidden_state[:, 0]`: without
    weights for it, transformers would draw it at random, and say so only in a warning.

    Beside the weights there is `genes.tsv`, what the ids mean, if that is known: `token_id`, `token` (Ensembl id, or
    `<pad>`, `<mask>`, `<cls>`), `median` (empty for a gene that is never used), `names` (symbol and synonyms, with `|`
    between). A cell is `<cls>` and its genes by count over median, highest first.

    Args:
        model: Folder or Hub id of a LangCell checkpoint of any kind that has a cell tower, or a model.
        output: The folder to make.
        extractor: What makes the ids; a checkpoint's own by default.
        masked_genes: Writes a `BertForMaskedLM` with the masked-gene head, as Geneformer is published: without a
            pooler, which that class does not have. `BertModel` reads it with `add_pooling_layer=False`.
        revision: Branch, tag or commit of a Hub repository.

    Returns:
        `output`.

    Raises:
        InputError: No cell tower or no masked-gene head there, an extractor of other genes, an `output` in use.
    """
    output = require_new_folder(output)
    source = ""
    if isinstance(model, (str, Path)):
        source = display_name(resolve_checkpoint(model))
        folder = fetch(resolve_checkpoint(model), revision)
        model = _read_langcell(folder, source, masked_genes)
        extractor = _read_extractor(folder, source) if extractor is None else extractor
    tower, head = _parts(model)
    if masked_genes and head is None:
        raise InputError(f"{source or type(model).__name__} has no masked-gene head: leave out masked_genes.")
    config = _bert_config(tower.config, "BertForMaskedLM" if masked_genes else "BertModel")
    if extractor is not None and len(extractor) != config.vocab_size:
        raise InputError(f"The extractor has {len(extractor)} ids, the cell tower {config.vocab_size}.")
    state = _state_as_bert(tower, head if masked_genes else None)
    with atomic_folder(output) as folder:
        config.save_pretrained(folder)
        # Not by save_file, which lets nobody else read it.
        atomic_write(folder / SAFE_WEIGHTS_NAME, save(state, metadata={"format": "pt"}))
        if extractor is not None:
            _write_genes(extractor, folder / GENES)
        _write_card(folder, source, masked_genes)
    return output


def _read_langcell(folder: Path, name: str, masked_genes: bool) -> LangCellCellModel | LangCellForMaskedLM:
    """The cell tower of a checkpoint, or the tower and the masked-gene head."""
    kind: type[PreTrainedModel] = LangCellForMaskedLM if masked_genes else LangCellCellModel
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # What is missing is said below.
    try:
        with explaining(name):
            require_kind(str(folder), "langcell", "langcell_cell")
            model, loading = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(loading["missing_keys"])
    if missing and all(key.startswith("lm_head.") for key in missing):
        raise InputError(f"{name} has no masked-gene head: leave out masked_genes.")
    if missing:
        raise InputError(f"{name} lacks the weights {', '.join(missing[:3])}.")
    return model


def _read_extractor(folder: Path, name: str) -> LangCellFeatureExtractor | None:
    """A checkpoint's own, if it has one."""
    if not any((folder / file).is_file() for file in (PROCESSOR_NAME, FEATURE_EXTRACTOR_NAME)):
        return None
    with explaining(name):
        return LangCellFeatureExtractor.from_pretrained(folder)


def _parts(model: PreTrainedModel) -> tuple[LangCellCellModel, nn.Module | None]:
    """The cell tower of a model of the family, and its masked-gene head."""
    if isinstance(model, LangCellCellModel):
        return model, None
    if isinstance(model, (LangCellModel, LangCellForMaskedLM, LangCellForSequenceClassification)):
        return model.cell_model, getattr(model, "lm_head", None)
    raise InputError(f"A {type(model).__name__} is no LangCell model with a cell tower; an adapter is to be merged.")


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


def _state_as_bert(tower: LangCellCellModel, head: nn.Module | None) -> dict[str, torch.Tensor]:
    """The weights under the names of `BertModel`, or of `BertForMaskedLM` with a head."""
    state = dict(tower.state_dict())
    with torch.device("meta"):  # A model writes into its config.
        plain = LangCellCellModel(copy.deepcopy(tower.config)).state_dict()
    if state.keys() != plain.keys():
        strangers = sorted(state.keys() ^ plain.keys())
        raise InputError(f"The cell tower is not a BERT's weights alone ({strangers[0]}): merge its adapter.")
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
            # Untied, transformers reads the decoder's own bias and asks for the other, which it does not use.
            state |= {f"cls.predictions.decoder.{part}": weight.clone() for part, weight in decoder.items()}
    return {name: weight.detach().to("cpu", torch.float32).contiguous() for name, weight in state.items()}


def _write_genes(extractor: LangCellFeatureExtractor, path: Path) -> None:
    vocabulary = extractor.gene_vocabulary
    columns = (vocabulary[column] for column in ("ensembl_ids", "medians", "names"))
    genes = [(gene, "" if median is None else median, names) for gene, median, names in zip(*columns, strict=True)]
    rows = [("<pad>", "", ""), ("<mask>", "", ""), *genes, ("<cls>", "", "")]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(("token_id", "token", "median", "names"))
        table.writerows((token_id, *row) for token_id, row in enumerate(rows))


_LOADED_BY = {
    False: """from transformers import BertModel

encoder = BertModel.from_pretrained("{here}")""",
    True: """from transformers import BertForMaskedLM, BertModel

masked_genes = BertForMaskedLM.from_pretrained("{here}")
encoder = BertModel.from_pretrained("{here}", add_pooling_layer=False)""",
}
_POOLED = {
    False: "`pooler_output` is the tanh of that state: the weights of the pooler are the identity.",
    True: "There is no pooler: unless told so, `BertModel` draws one at random.",
}


def _write_card(folder: Path, source: str, masked_genes: bool) -> None:
    """Writes `README.md`: how the encoder is loaded, and what its ids are."""
    data = ModelCardData(library_name="transformers", tags=["langcell", "single-cell"])
    genes = f"\n- What the ids mean, and the medians, is in `{GENES}`." if (folder / GENES).is_file() else ""
    text = f"""# {folder.name}

The cell encoder of {f"`{source}`, a" if source else "a"} [LangCell](https://arxiv.org/abs/2405.06708), as a BERT over
ranked genes.

```python
{_LOADED_BY[masked_genes].format(here=folder.name)}
```

- A cell is `<cls>` (`config.cls_token_id`) and its genes by count over median, highest first, padded with 0.{genes}
- What stands for the whole cell is the state of `<cls>`, `last_hidden_state[:, 0]`.
- {_POOLED[masked_genes]}
- The token types are zeros: they change nothing.
"""
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}").save(folder / "README.md")


# ---------------------------------------------------------------------- what cannot be read


@contextmanager
def explaining(given: object) -> Iterator[None]:
    """Says of what libraries raise what it comes of."""
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


def require_kind(name: str, *kinds: str, revision: str | None = None) -> dict[str, Any]:
    """
    What the config.json of a checkpoint holds.

    Raises:
        InputError: A checkpoint of no such `model_type`.
    """
    settings = PreTrainedConfig.get_config_dict(name, revision=revision)[0]
    found = settings.get("model_type") if isinstance(settings, dict) else None
    if found not in kinds:
        raise InputError(f"{name} is a checkpoint of {found or 'no known kind'}, not of {' or '.join(kinds)}.")
    return settings


__all__ = ["export_cell_tower", "fold_token_types", "read_bert", "read_cell_tower", "take_over", "with_cls"]
