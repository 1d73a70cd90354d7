# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The tests that transformers and peft share among their models, fetched from the package index at the installed version.

They are in the source distributions only. They are downloaded once into the user's cache and never into the repository.
"""

import fcntl
import functools
import importlib
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import unittest
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import pytest

#: What the shared tests import and the source distributions lack, by module; `.` stands for the package of the tests.
#: The first two would add tests of torch.export and of generation, `diffusers` is for tests of its own pipelines.
_STAND_INS: dict[str, dict[str, object]] = {
    ".exporters.test_export": {"ExportTesterMixin": type("ExportTesterMixin", (), {})},
    ".generation.test_utils": {"GenerationTesterMixin": type("GenerationTesterMixin", (), {})},
    ".utils.test_configuration_utils": {
        "config_common_kwargs": {
            "architectures": ["LangCell"],
            "chunk_size_feed_forward": 5,
            "dtype": "float16",
            "id2label": {0: "B cell"},
            "is_encoder_decoder": True,
            "label2id": {"B cell": 0},
            "output_attentions": True,
            "output_hidden_states": True,
            "problem_type": "regression",
            "return_dict": False,
        }
    },
    "fetch_hub_objects_for_ci": {"url_to_local_path": str},
    "diffusers": {"StableDiffusionPipeline": type("StableDiffusionPipeline", (), {})},
}


def upstream(package: str, module: str) -> ModuleType:
    """
    Returns a module of the shared tests of an installed package. Without a package index the tests of the caller are
    skipped, or fail in CI; they are also skipped if that version has no such module.
    """
    folder = _fetch(package, version(package))
    if isinstance(folder, str):
        return _give_up(folder)
    if not (folder / f"{module}.py").is_file():
        pytest.skip(f"{folder.name} comes without {module}", allow_module_level=True)
    parent = f"{package}_tests"
    if parent not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            parent, folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        sys.modules[parent] = importlib.util.module_from_spec(spec)
    path = list(sys.path)  # A module of the shared tests appends its own repository's scripts.
    stand_ins = _stand_in_modules(parent)
    sys.modules.update(stand_ins)
    try:
        return importlib.import_module(f"{parent}.{module}")
    except ImportError as error:  # Those of another version may import something else that is not there.
        return _give_up(f"the tests of {folder.name} cannot be imported: {error}")
    finally:
        sys.path[:] = path
        for name in stand_ins:
            del sys.modules[name]


def leave_out(reasons: dict[str, str]) -> Callable[[type], type]:
    """Skips shared tests that do not apply to a class, each with its reason."""

    def skip(tests: type) -> type:
        for name, reason in reasons.items():
            setattr(tests, name, unittest.skip(reason)(getattr(tests, name)))
        return tests

    return skip


def _give_up(reason: str) -> NoReturn:
    if os.environ.get("LANGCELL_REQUIRE_INDEX"):
        raise RuntimeError(reason)
    pytest.skip(reason, allow_module_level=True)


def _stand_in_modules(parent: str) -> dict[str, ModuleType]:
    modules = {}
    for name, content in _STAND_INS.items():
        full_name = parent + name if name.startswith(".") else name
        modules[full_name] = ModuleType(full_name)
        vars(modules[full_name]).update(content)
    return modules


@functools.cache
def _fetch(package: str, release: str) -> Path | str:
    """Returns the folder of a release's tests, or the reason why there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modeling_langcell" / "suites"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{package}-{release}"
    # One of several test processes downloads, and the others wait; what it leaves is complete, even if it is killed.
    with open(cache / f"{folder.name}.lock", "w") as lock, tempfile.TemporaryDirectory(dir=cache) as temporary:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.is_dir():
            return folder
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
        pip += ["--timeout", "30", "--no-deps", "--no-binary", package, "--dest", temporary, f"{package}=={release}"]
        downloaded = subprocess.run(pip, capture_output=True, text=True)
        if downloaded.returncode:
            return f"no package index to download the tests of {folder.name} from: {downloaded.stderr.strip()[-300:]}"
        (sdist,) = Path(temporary).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(temporary, filter="data")
        tests = Path(temporary, folder.name, "tests")
        tests.mkdir(exist_ok=True)
        (tests / "__init__.py").touch()  # transformers' tests import their own folder's package.
        tests.rename(folder)
    return folder
