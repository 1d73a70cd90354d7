# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What numba compiles of UMAP's graph, kept from one process to the next."""

from contextlib import suppress

from numba.core.caching import FunctionCache


class _Kept(FunctionCache):
    """Machine code on disk, if there is room for it: a function that cannot be kept works all the same."""

    def save_overload(self, sig, data):
        with suppress(OSError):
            super().save_overload(sig, data)


def keep_compiled() -> None:
    """
    Lets numba keep the two functions of UMAP's graph that take it ten seconds in every process, as it keeps those of
    nearest neighbours: beside the package, or else in the user's cache.
    """
    from umap.umap_ import compute_membership_strengths, smooth_knn_dist

    for function in (compute_membership_strengths, smooth_knn_dist):
        with suppress(RuntimeError):  # There is no folder that can be written.
            function._cache = _Kept(function.py_func)


__all__ = ["keep_compiled"]
