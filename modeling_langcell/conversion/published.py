# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Conversion of the five published parts, gene dictionaries and text vocabulary to one folder for `AutoModel`."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from transformers import AutoModel, AutoProcessor, BertTokenizer
from transformers.activations import ACT2FN

from ..io.atomic import atomic_folder
from ..io.documents import read_bytes, read_json, read_text
from ..io.outputs import require_new_folder
from ..model.configuration_langcell import LangCellConfig
from ..model.errors import InputError, reason_of
from ..model.feature_extraction_langcell import LangCellFeatureExtractor
from ..model.modeling_langcell import LangCellModel
from ..model.processing_langcell import LangCellProcessor
from .bert import SETTINGS, SIZES, TOKEN_TYPES, WORDS, add_cls_embedding, fold_token_types
from .pickles import UnsafePickle, read_plain_pickle
from .tensors import read_tensors

#: The published file of the weights of each module of `LangCellModel`.
PARTS = {
    "cell_model": "cell_bert/pytorch_model.bin",
    "text_model": "text_bert/pytorch_model.bin",
    "cell_projection": "cell_proj.bin",
    "text_projection": "text_proj.bin",
    "matching_head": "ctm_head.bin",
}
#: Largest sizes of a tower.
_MAX_LAYERS, _MAX_SIZE = 256, 10_000_000
#: Most bytes of a vocabulary of word pieces.
_MAX_VOCABULARY = 4 << 20
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def convert(
    parts: str | Path,
    *,
    token_dictionary: str | Path,
    gene_medians: str | Path,
    gene_names: str | Path,
    text_vocab: str | Path,
    output: str | Path,
) -> Path:
    """
    Converts a checkpoint in the published layout to one folder with model and processor.

    The geometry of both towers comes from their config.json, their vocabularies from the given files. The cell encoder
    of a Geneformer lacks `<cls>`: its embedding is then the mean of the genes', which is within their range, favours no
    gene, and is the same each time.

    A failed conversion leaves nothing behind: the folder appears once it has been loaded again and compared.

    Args:
        parts: Folder with `cell_bert/` and `text_bert/` (config.json, pytorch_model.bin), `cell_proj.bin`,
            `text_proj.bin`, `ctm_head.bin`.
        token_dictionary, gene_medians, gene_names: The arguments of `read_gene_vocabulary`.
        text_vocab: The text tower's `vocab.txt`; `[DEC]` and `[ENC]` are added unless it has them.
        output: Folder to create.

    Returns:
        `output`.

    Raises:
        InputError: Files are missing, damaged or unsafe, parts do not fit together, or `output` exists.
    """
    parts, output = Path(parts), require_new_folder(output)
    configs = {"cell_config": parts / "cell_bert/config.json", "text_config": parts / "text_bert/config.json"}
    weights = {module: parts / name for module, name in PARTS.items()}
    vocabularies = [Path(path) for path in (token_dictionary, gene_medians, gene_names, text_vocab)]
    _require_files([*configs.values(), *weights.values(), *vocabularies])

    vocabulary = read_gene_vocabulary(token_dictionary, gene_medians, gene_names)
    geometry = {tower: _read_geometry(path) for tower, path in configs.items()}
    extractor = LangCellFeatureExtractor(vocabulary, max_length=geometry["cell_config"]["max_position_embeddings"])
    tokenizer = _read_tokenizer(Path(text_vocab), geometry["text_config"]["max_position_embeddings"])
    states = {module: _read_weights(path) for module, path in weights.items()}
    states["cell_model"] = add_cls_embedding(states["cell_model"], len(extractor))
    model = _build_model(geometry, states, extractor, tokenizer, weights)
    processor = LangCellProcessor(extractor, tokenizer)

    with atomic_folder(output) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        _verify(folder, model, processor)
    return output


# ---------------------------------------------------------------------- genes


def read_gene_vocabulary(
    token_dictionary: str | Path, gene_medians: str | Path, gene_names: str | Path
) -> dict[str, list]:
    """
    Reads Geneformer's three dictionaries into what `LangCellFeatureExtractor(gene_vocabulary=...)` takes.

    The files are pickles; only plain dicts of strings and numbers are read from them, and nothing in them is run.

    Args:
        token_dictionary: Maps Ensembl ids to token ids; `<pad>` is 0, `<mask>` 1, `<cls>` last or absent.
        gene_medians: Maps Ensembl ids to non-zero medians; a gene without one is never used.
        gene_names: Maps symbols to Ensembl ids; further symbols of a gene become its synonyms, and a gene without a
            symbol is named by its Ensembl id.

    Returns:
        `ensembl_ids`, `medians` (`None` where there is none) and `names`, in the order of the token ids from 2 on.

    Raises:
        InputError: A file is missing, damaged or unsafe, ids have gaps, special tokens are out of place, or medians are
            impossible.
    """
    _require_files([Path(path) for path in (token_dictionary, gene_medians, gene_names)])
    token_ids = _read_dictionary(Path(token_dictionary), int)
    medians = _read_dictionary(Path(gene_medians), (int, float))
    symbols = _read_dictionary(Path(gene_names), str)

    tokens = sorted(token_ids, key=token_ids.__getitem__)
    if [token_ids[token] for token in tokens] != list(range(len(tokens))):
        raise InputError(f"{token_dictionary}: the ids are not 0 to {len(tokens) - 1}, each once.")
    if tokens[:2] != ["<pad>", "<mask>"]:
        raise InputError(f"{token_dictionary}: ids 0 and 1 are {tokens[:2]}, not <pad> and <mask>.")
    genes = tokens[2:-1] if tokens[-1] == "<cls>" else tokens[2:]
    special = [gene for gene in genes if gene.startswith("<")]
    if special or not genes:
        raise InputError(f"{token_dictionary}: {special or 'nothing'} where genes are expected; <cls> comes last.")

    impossible = [gene for gene, median in medians.items() if not 0 < median <= sys.float_info.max]
    if impossible:
        raise InputError(f"{gene_medians}: medians must be finite and positive, unlike those of {_join(impossible)}.")
    if medians.keys().isdisjoint(genes):
        raise InputError(f"{gene_medians} has a median for none of the genes of {token_dictionary}.")
    malformed = [symbol for symbol in symbols if "|" in symbol]
    if malformed:
        raise InputError(f"{gene_names}: a gene symbol has no '|', unlike {_join(malformed)}.")
    names: dict[str, list[str]] = {gene: [] for gene in genes}
    for symbol, gene in symbols.items():
        if symbol and gene in names:  # The published dictionary has an empty symbol.
            names[gene].append(symbol)
    return {
        "ensembl_ids": genes,
        "medians": [medians.get(gene) for gene in genes],
        "names": ["|".join(names[gene]) or gene for gene in genes],
    }


def _read_dictionary(path: Path, value_type: type | tuple[type, ...]) -> dict[str, Any]:
    """Reads a pickled dict from strings to values of one type."""
    content = read_bytes(path)
    try:
        dictionary = read_plain_pickle(content)
    except UnsafePickle as error:
        raise InputError(
            f"{path} holds {error}, but only plain dicts of strings and numbers are read. Nothing in it was run."
        ) from error
    except Exception as error:  # Damaged bytes raise many kinds of errors.
        raise InputError(f"{path} is not a complete pickle: {reason_of(error)}. Download it again.") from error
    if not isinstance(dictionary, dict) or not dictionary:
        raise InputError(f"{path} does not hold a dict with entries.")
    for key, value in dictionary.items():
        if not isinstance(value, value_type) or isinstance(value, bool):
            raise InputError(f"{path}: the value of {key!r} is of the wrong kind ({type(value).__name__}).")
    return dictionary


# ---------------------------------------------------------------------- text


def _read_tokenizer(path: Path, max_length: int) -> BertTokenizer:
    """Builds the text tower's tokenizer as in BLIP: `[DEC]` begins, `[ENC]` is an extra special token."""
    tokens = read_text(path, _MAX_VOCABULARY).rstrip("\n").split("\n")
    vocabulary = {token: row for row, token in enumerate(tokens)}
    missing = [token for token in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]") if token not in vocabulary]
    if missing or len(vocabulary) != len(tokens):
        fault = f"lacks {', '.join(missing)}" if missing else "has the same token on several lines"
        raise InputError(f"{path} is not a BERT vocabulary: it {fault}.")
    for token in ("[DEC]", "[ENC]"):
        vocabulary.setdefault(token, len(vocabulary))
    return BertTokenizer(
        vocabulary, model_max_length=max_length, bos_token="[DEC]", extra_special_tokens={"enc_token": "[ENC]"}
    )


# ---------------------------------------------------------------------- weights


def _read_geometry(path: Path) -> dict[str, Any]:
    """Reads the settings of a published config.json that a tower is built from."""
    published = read_json(path)
    missing = [key for key in SIZES + SETTINGS if not isinstance(published, dict) or key not in published]
    if missing:
        raise InputError(f"{path} lacks {', '.join(missing)}.")
    impossible = [key for key in SIZES if type(published[key]) is not int or published[key] < 1]
    if impossible:
        raise InputError(f"{path}: {', '.join(impossible)} must be positive whole numbers.")
    if str(published["hidden_act"]) not in ACT2FN:
        raise InputError(f"{path}: {published['hidden_act']!r} is not a known hidden_act.")
    if published.get("position_embedding_type", "absolute") != "absolute":
        raise InputError(f"{path}: position_embedding_type is not 'absolute'.")
    if (layers := published["num_hidden_layers"]) > _MAX_LAYERS or max(published[key] for key in SIZES) > _MAX_SIZE:
        raise InputError(f"{path}: its sizes are above {_MAX_SIZE:,}, or its {layers:,} layers above {_MAX_LAYERS}.")
    return {key: published[key] for key in SIZES + SETTINGS}


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Reads the tensors of a part under the tower's names, without the parts of a BERT that LangCell does not use."""
    published = read_tensors(path)
    state = {}
    for name, value in published.items():
        name = str(name).removeprefix("bert.")
        if name.startswith(("cls.", "pooler.")) or name == "embeddings.position_ids":
            continue
        if name in state:
            raise InputError(f"{path} has {name} twice, with and without the prefix bert.")
        if value.dtype not in _FLOATS or not value.ndim or not value.isfinite().all():
            raise InputError(f"{path}: {name} is not a dense tensor of finite numbers.")
        state[name] = value.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return state


def _build_model(
    geometry: dict[str, dict[str, Any]],
    states: dict[str, dict[str, torch.Tensor]],
    extractor: LangCellFeatureExtractor,
    tokenizer: BertTokenizer,
    weights: dict[str, Path],
) -> LangCellModel:
    """Builds the model after checking that all weights exist and fit."""
    vocab_sizes = {"cell_model": len(extractor), "text_model": len(tokenizer)}
    for module, vocab_size in vocab_sizes.items():
        rows = len(states[module].get(WORDS, range(vocab_size)))
        if rows != vocab_size:
            raise InputError(
                f"{weights[module]} embeds {rows} tokens, but the vocabulary given has {vocab_size}, special ones "
                "included: they are not from one checkpoint."
            )
    projection = states["cell_projection"].get("weight", torch.empty(1))
    try:
        config = LangCellConfig(
            cell_config=geometry["cell_config"] | {"vocab_size": len(extractor), "pad_token_id": 0},
            text_config=geometry["text_config"]
            | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id},
            projection_dim=len(projection),
        )
        with torch.device("meta"):
            model = LangCellModel(config)
    except Exception as error:
        raise InputError(f"{weights['cell_model'].parent.parent}: a config.json does not fit: {error}") from error
    for module, path in weights.items():
        expected = {name: tuple(value.shape) for name, value in model.get_submodule(module).state_dict().items()}
        if module == "cell_model" and TOKEN_TYPES in states[module]:
            expected[TOKEN_TYPES] = (max(1, len(states[module][TOKEN_TYPES])), config.cell_config.hidden_size)
        given = {name: tuple(value.shape) for name, value in states[module].items()}
        if given != expected:
            raise InputError(f"{path} does not fit its config.json and the other parts: {_mismatch(given, expected)}.")
    states["cell_model"] = fold_token_types(states["cell_model"])
    model.load_state_dict(
        {f"{module}.{name}": value for module, state in states.items() for name, value in state.items()},
        assign=True,
    )
    return model.eval()


def _mismatch(given: Mapping[str, tuple], expected: Mapping[str, tuple]) -> str:
    """Describes how the shapes of given weights differ from the expected ones."""
    faults = []
    if missing := expected.keys() - given.keys():
        faults.append(f"missing {_join(sorted(missing))}")
    if unexpected := given.keys() - expected.keys():
        faults.append(f"unexpected {_join(sorted(unexpected))}")
    for name in sorted(given.keys() & expected.keys()):
        if given[name] != expected[name]:
            faults.append(f"{name} is {given[name]} and should be {expected[name]}")
    return "; ".join(faults)


def _verify(folder: Path, model: LangCellModel, processor: LangCellProcessor) -> None:
    """Loads a written folder as a user would, and compares weights, ids and outputs with the originals."""
    loaded, loaded_processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    vocabulary = processor.feature_extractor.gene_vocabulary
    pairs = zip(vocabulary["ensembl_ids"], vocabulary["medians"], strict=True)
    genes = [gene for gene, median in pairs if median is not None][:32]
    cell, text = sp.csr_matrix(np.arange(1, len(genes) + 1)[None]), "cell type: natural killer cell."
    batches = [p(cells=cell, text=text, gene_ids=genes, return_tensors="pt") for p in (processor, loaded_processor)]
    with torch.inference_mode():
        outputs = [m(**batches[0], return_matching=True).matching_logits for m in (model, loaded)]
    expected, found = model.state_dict(), loaded.state_dict()
    same = (
        expected.keys() == found.keys()
        and all(torch.equal(expected[name], found[name]) for name in expected)
        and all(torch.equal(batches[0][name], batches[1][name]) for name in batches[0])
        and torch.allclose(*outputs)
    )
    if not same:
        raise RuntimeError("The converted checkpoint does not load as it was written.")


def _require_files(paths: Sequence[Path]) -> None:
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"Not found: {', '.join(missing)}.")


def _join(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


__all__ = ["convert", "read_gene_vocabulary"]
