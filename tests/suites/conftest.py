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
#: Adapter methods that are tested each time, on a cell tower. All of them on all models take minutes.
_QUICK_METHODS = ("LoraConfig", "IA3Config")


def pytest_configure(config):
    for mark in _MARKS:
        config.addinivalue_line("markers", f"{mark}: set by shared tests of transformers or peft")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        params = getattr(getattr(item, "callspec", None), "params", {})
        method = getattr(params.get("config_cls"), "__name__", None)
        if method is not None and (method not in _QUICK_METHODS or params.get("model_id") == "text-tower"):
            item.add_marker(pytest.mark.e2e)
