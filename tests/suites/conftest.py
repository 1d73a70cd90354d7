# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Marks of the shared tests of transformers and peft: those they carry, and those of this suite."""

import pytest

#: Marks that pytest is told to refuse unless somebody declares them.
_MARKS = (
    "accelerate_tests",
    "bitsandbytes",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "flash_attn_test",
    "order",
    "slow",
    "torch_compile_test",
)
#: Adapter methods that are tested each time; all others take minutes. Only these are tested on the text tower, whose
#: layers are those of the cell tower where it reads no cells.
_QUICK_METHODS = ("LoraConfig", "IA3Config")


def pytest_configure(config):
    for mark in _MARKS:
        config.addinivalue_line("markers", f"{mark}: set by shared tests of transformers or peft")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    kept = []
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        method = getattr(params.get("config_cls"), "__name__", None)
        if method is None or method in _QUICK_METHODS:
            kept.append(item)
        elif params.get("model_id") != "text-tower":
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.heavy)
            kept.append(item)
    items[:] = kept
