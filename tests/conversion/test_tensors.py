# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The tensors of a PyTorch file are read without torch.load, and take no more memory than the file has numbers."""

from collections import OrderedDict

import pytest
import torch

from modeling_langcell import InputError
from modeling_langcell.conversion.tensors import read_tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_a_state(tmp_path, dtype):
    base = torch.arange(24, dtype=dtype).reshape(4, 6)
    state = OrderedDict(whole=base, turned=base.T, part=base[1:3, 2:], none=torch.zeros(0, dtype=dtype))
    state["parameter"] = torch.nn.Parameter(base.float())
    state._metadata = OrderedDict({"": {"version": 1}})
    torch.save(state, tmp_path / "a.bin")
    found = read_tensors(tmp_path / "a.bin")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


@pytest.mark.parametrize(
    ("state", "says"),
    [
        ({"a": torch.ones(1).expand(60_000, 60_000)}, "more values than the file has"),
        ({f"a{n}": one.view(-1) for one in [torch.ones(10_000)] for n in range(100)}, "the same numbers too often"),
        ({"a": torch.eye(3).to_sparse()}, "more than numbers, none of which was run"),
        ([torch.ones(1)], "the opcode EMPTY_LIST"),
        ({"a": 1}, "not a dict of tensors"),
    ],
)
def test_states_that_are_refused(tmp_path, state, says):
    torch.save(state, tmp_path / "a.bin")
    with pytest.raises(InputError, match=rf"a\.bin .*{says}"):
        read_tensors(tmp_path / "a.bin")


@pytest.mark.parametrize("kept", [0, 100, 600])
def test_a_truncated_file(tmp_path, kept):
    torch.save({"a": torch.ones(100)}, tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes((tmp_path / "a.bin").read_bytes()[:kept])
    with pytest.raises(InputError, match=r"a\.bin is not a complete PyTorch file"):
        read_tensors(tmp_path / "a.bin")
