# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Colours of labels, which figures, the report and scanpy share."""

import matplotlib
from matplotlib.colors import to_hex


def colours(number: int) -> list[str]:
    """Returns this many colours as `#rrggbb`, all different up to 60; further ones repeat."""
    maps = ("tab10",) if number <= 10 else ("tab20", "tab20b", "tab20c")
    palettes = [matplotlib.colormaps[name] for name in maps]
    palette = [to_hex(colours(place)) for colours in palettes for place in range(colours.N)]
    return [palette[place % len(palette)] for place in range(number)]


__all__ = ["colours"]
