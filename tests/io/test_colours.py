# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Colours of names: as many as are needed, and different as long as there are enough."""

import re
from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from modeling_langcell.io.colours import GREY, colours

#: From linear sRGB to the responses of the three kinds of cones, and from their cube roots to OKLab (Ottosson 2020).
CONES = [[0.41222147, 0.53633254, 0.05144599], [0.2119035, 0.6806995, 0.10739696], [0.08830246, 0.28171884, 0.62997871]]
OKLAB = [[0.2104543, 0.7936178, -0.0040720], [1.9779985, -2.4285922, 0.4505937], [0.0259040, 0.7827718, -0.8086758]]


def linear(colour: str) -> np.ndarray:
    values = np.array(to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def without_shade(colour: str) -> np.ndarray:
    """Returns a colour in OKLab with half its lightness, where shades of one colour are near each other."""
    return [0.5, 1, 1] * (OKLAB @ np.cbrt(CONES @ linear(colour)))


def luminance(colour: str) -> float:
    return float([0.2126, 0.7152, 0.0722] @ linear(colour))


@pytest.mark.parametrize("number", [0, 1, 10, 11, 20, 60])
def test_colours_differ(number):
    found = colours(number)
    assert len(set(found)) == number
    assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in found)


def test_no_two_look_like_shades_of_one():
    for number, least in ((20, 0.08), (60, 0.05)):  # In matplotlib's tab20 the nearest are 0.048 apart.
        for one, other in combinations([*colours(number), GREY], 2):
            assert np.linalg.norm(without_shade(one) - without_shade(other)) >= least, (one, other)


def test_all_are_seen_on_white_and_on_black():
    for colour in [*colours(60), GREY]:
        assert 1.05 / (luminance(colour) + 0.05) > 1.7
        assert (luminance(colour) + 0.05) / 0.058 > 2.2


def test_colours_repeat_after_sixty():
    assert colours(65)[60:] == colours(65)[:5]
