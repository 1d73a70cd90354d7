# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Colours of labels: as many as are needed, and different as long as there are enough."""

import re

import pytest

from modeling_langcell.io.colours import colours


@pytest.mark.parametrize("number", [0, 1, 10, 11, 20, 60])
def test_colours_differ(number):
    found = colours(number)
    assert len(set(found)) == number
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in found)


def test_colours_repeat_after_sixty():
    assert colours(65)[60:] == colours(65)[:5]
