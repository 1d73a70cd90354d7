# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The LoRA adapters that `langcell adapt` writes, and their check before PEFT reads one."""

from itertools import combinations
from pathlib import Path

from ..model.errors import InputError
from .files import PEFT_CONFIG, PEFT_WEIGHTS, read_json
from .weights import read_shapes

#: Modules that LoRA adapts: the gene embeddings and every linear map of the cell tower's layers; in the text tower the
#: self-attention, and the cross-attention only if matching is trained.
CELL_MODULES = (
    r"cell_model\.(embeddings\.word_embeddings|encoder\.layer\.\d+\."
    r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense))"
)
TEXT_MODULES = r"text_model\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)"
CROSS_MODULES = r"text_model\.encoder\.layer\.\d+\.crossattention\.self\.(query|key|value)"
#: Heads that are trained whole.
HEADS = ("cell_projection", "text_projection", "matching_head", "classifier")

#: PEFT matches `target_modules` as a regular expression, and a foreign one may take for ever: only these are read.
_PATTERNS = {
    "|".join((CELL_MODULES, *more)) for n in range(3) for more in combinations((TEXT_MODULES, CROSS_MODULES), n)
}
_HIGHEST_RANK = 1024
#: Settings that `langcell adapt` sets, or that say nothing about the weights. All others must be as PEFT sets them.
_FREE = {
    *("r", "lora_alpha", "target_modules", "modules_to_save", "auto_mapping", "base_model_name_or_path"),
    *("inference_mode", "peft_type", "peft_version", "revision"),
}


def require_own_adapter(folder: Path, source: object) -> None:
    """
    Checks that a LoRA adapter is one that `langcell adapt` writes.

    Args:
        folder: Folder with `adapter_config.json` and `adapter_model.safetensors`.
        source: Folder or Hub id as the user named it, for messages.

    Raises:
        InputError: A file is damaged or lies elsewhere, a setting is not one that `langcell adapt` writes, or the
            weights are not of the rank that the settings name.
    """
    from peft import LoraConfig

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise InputError(f"{PEFT_CONFIG} of {source} {what}. Use an intact copy, or adapt again.")

    given = read_json(folder / PEFT_CONFIG)
    defaults = LoraConfig().to_dict()
    require(given.get("peft_type") == "LORA", f"names {given.get('peft_type')!r}, not LORA")
    other = [name for name, value in given.items() if name not in _FREE and value and value != defaults.get(name)]
    require(not other, f"has a setting that langcell adapt does not write ({', '.join(other[:3])})")
    rank, alpha, heads = given.get("r"), given.get("lora_alpha"), given.get("modules_to_save")
    require(type(rank) is int and 0 < rank <= _HIGHEST_RANK, f"has a rank (r) that is not from 1 to {_HIGHEST_RANK}")
    require(isinstance(alpha, (int, float)), "has no number as its lora_alpha")
    modules = given.get("target_modules")
    known = isinstance(modules, str) and modules in _PATTERNS
    require(known, "names other modules (target_modules) than langcell adapt")
    known = isinstance(heads, list) and all(head in HEADS for head in heads)
    require(known, "names other heads (modules_to_save) than langcell adapt")
    ranks = {shape[0] for name, shape in read_shapes(folder / PEFT_WEIGHTS).items() if _is_first_of_pair(name)}
    require(ranks == {rank}, f"names the rank {rank}, which {PEFT_WEIGHTS} does not have")


def _is_first_of_pair(name: str) -> bool:
    return ".lora_A." in name or ".lora_embedding_A" in name


__all__ = ["CELL_MODULES", "CROSS_MODULES", "HEADS", "TEXT_MODULES", "require_own_adapter"]
