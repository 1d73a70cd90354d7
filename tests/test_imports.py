# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What import-linter cannot see of the order of rooms; its contracts are in pyproject.toml."""

import ast

import pytest

from tests.support.paths import REPOSITORY

PACKAGE = REPOSITORY / "modeling_langcell"


def imported(path) -> set[str]:
    """Returns the absolute names of all modules that a file of the package imports, in functions too."""
    package = [PACKAGE.name, *path.relative_to(PACKAGE).parent.parts]
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            names |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return names


FILES = {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


@pytest.mark.parametrize("name", [name for name in FILES if not name.startswith("cli/")])
def test_the_package_does_not_import_its_evaluation(name):
    """Only the command does, for `langcell evaluate`."""
    assert not [module for module in imported(FILES[name]) if module.startswith("modeling_langcell.eval")]


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("model/")])
def test_a_hub_file_imports_relatively_and_only_what_travels_with_it(name):
    inside = {module for module in imported(FILES[name]) if module.startswith("modeling_langcell")}
    assert all(module.startswith("modeling_langcell.model") for module in inside)
    source = FILES[name].read_text(encoding="utf-8")
    assert "from modeling_langcell" not in source.replace(">>> from modeling_langcell", "")
