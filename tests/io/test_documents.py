# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""JSON, YAML and text of others: plain values are read, and what would hang or fill the memory is refused."""

import gzip
import json
import os

import pytest

from modeling_langcell import InputError
from modeling_langcell.io.documents import parse_json, parse_yaml, read_bytes, read_gzip_text, read_json, read_yaml


def test_plain_documents(tmp_path):
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": {}}}
    (tmp_path / "a.json").write_text(json.dumps(value), encoding="utf-8-sig")
    assert read_json(tmp_path / "a.json") == value
    (tmp_path / "a.yaml").write_text("a: [1, 2.5, null, true, é]\nb: {c: {}}\n")
    assert read_yaml(tmp_path / "a.yaml") == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 100_000, "nested too deep"),
        ("[" * 65 + "]" * 65, "nested too deep"),
        ('{"a": ' * 65 + "1" + "}" * 65, "nested too deep"),
        ("[" + "[]," * 2_000_001 + "[]]", "too many values"),
        ("[1e999]", "not finite"),
        ("[NaN]", "not finite"),
        ("[" + "9" * 401 + "]", "too large to convert to float"),
        ("[" + "9" * 5000 + "]", "too many digits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' twice"),
        ("{", "Expecting property name"),
    ],
    ids=lambda text: text[:20],
)
def test_json_that_is_refused(text, reason):
    with pytest.raises(InputError, match=rf"^mine\.json cannot be read: .*{reason}"):
        parse_json(text, "mine.json")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [1]\nb: *a\n", "alias"),
        ("a: &a [*a]\n", "alias"),
        ("[" * 100_000, "nested too deep"),
        ("- " * 10_000 + "1", "nested too deep"),
        ("a: 1\nb: 2\na: 3\n", "'a' twice"),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor"),
        ("a: 1" + ":1" * 100_000, "too many digits"),
        ("a: 2001-99-99\n", "month must be"),
    ],
    ids=lambda text: text[:20],
)
def test_yaml_that_is_refused(text, reason):
    with pytest.raises(InputError, match=rf"^mine\.yaml cannot be read as YAML: .*{reason}"):
        parse_yaml(text, "mine.yaml")


def test_files_that_are_refused(tmp_path):
    (tmp_path / "large").write_bytes(bytes(11))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin").write_bytes(b'"\xe9"')
    for name, reason in {"large": "more than 10 bytes", "pipe": "is not a file", "none": "No such file"}.items():
        with pytest.raises(InputError, match=f"{name} .*{reason}"):
            read_bytes(tmp_path / name, 10)
    with pytest.raises(InputError, match="latin cannot be read: it is not text in UTF-8"):
        read_json(tmp_path / "latin")


def test_compressed_text(tmp_path):
    path = tmp_path / "text.gz"
    path.write_bytes(gzip.compress(b"a" * 10))
    assert read_gzip_text(path, 10) == "a" * 10
    with pytest.raises(InputError, match=r"text\.gz cannot be read: it unpacks to more than"):
        read_gzip_text(path, 9)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(InputError, match=r"text\.gz cannot be read"):
        read_gzip_text(path, 10)
