# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Colours of names, which figures, the report and scanpy share."""

#: matplotlib's tab10 without its grey, and further colours, each as far as possible from all before it in OKLab
#: (Ottosson 2020) with lightness halved, so that no two look like shades of one. All are seen on white and on black.
_COLOURS = """
#1f77b4 #ff7f0e #2ca02c #d62728 #9467bd #8c564b #e377c2 #bcbd22 #17becf #056e5a #7c7903 #f2a7a2 #96306c #9caafd
#474ac0 #6bc891 #5c587e #bfa061 #dbaadf #5285f8 #e56c7f #b85207 #30aff8 #a56a8f #85309d #7a9572 #ca7ff5 #a12e3c
#0c7219 #f8ac3d #2d8f9e #685e35 #73cb51 #8a75f1 #0ca387 #cd4787 #6d78c7 #ba8c7f #b950b2 #ac731a #6f9ccf #86a54f
#e18c5f #336576 #89beae #a18cc8 #7e4383 #fa9dc3 #4458a1 #ed9bf4 #724bc4 #1364ce #f36451 #4e7541 #947c57 #767ea4
#844761 #bd615c #19d27f #c096af
""".split()
#: What has no colour of its own: cells that are unknown, and the rarest names.
GREY = "#9aa4af"


def colours(number: int) -> list[str]:
    """Returns this many colours as `#rrggbb`, all different up to 60; further ones repeat."""
    return [_COLOURS[place % len(_COLOURS)] for place in range(number)]


__all__ = ["GREY", "colours"]
