# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The record in every file of figures that says how to repeat them: command, versions and machine."""

import json
import os
import platform
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from modeling_langcell.io.file_kinds import JSON
from modeling_langcell.io.replace import write_result

PACKAGES = ("modeling-langcell", "torch", "transformers", "accelerate", "datasets", "scikit-learn", "numpy", "scipy")


def write_record(json_file: Path | None, figures: dict[str, Any]) -> None:
    """Writes figures as JSON with the command, versions and machine that gave them; without a file it does nothing."""
    if json_file is None:
        return
    write_result(json_file, json.dumps(record(figures), indent=1) + "\n", JSON)


def record(figures: dict[str, Any]) -> dict[str, Any]:
    """Returns figures together with the command, versions and machine that gave them."""
    return {
        "command": shlex.join([*_program(), *sys.argv[1:]]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": {"cpus": os.cpu_count(), "cpu": _cpu_name(), "threads": torch.get_num_threads()},
        **figures,
    }


def _program() -> list[str]:
    """Returns the program as it was called, without the folder that it is installed in."""
    spec = sys.modules["__main__"].__spec__
    if spec is not None:  # Started with `python -m`; sys.argv[0] is then a path of this machine.
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    program = Path(sys.argv[0])
    return ["python", sys.argv[0]] if program.suffix == ".py" else [program.name]


def _cpu_name() -> str:
    """Returns the model of the CPU."""
    listing = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", listing.read_text()) if listing.exists() else None
    return found[1] if found else platform.processor() or platform.machine()
