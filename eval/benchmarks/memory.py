# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""How much memory a process holds."""

import re
from pathlib import Path

GIGABYTE = 1e9


def resident(field: str, process: int | str = "self") -> int | None:
    """
    Bytes of a process that are resident now (`VmRSS`) or were at most (`VmHWM`), None where the system does not tell.
    (`ru_maxrss` starts at the parent's in a child.)
    """
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # No such system, or no such process any more.
        return None
    return None if found is None else int(found[1]) * 1024


def peak_gb(process: int | str = "self") -> float | None:
    """The most memory that was resident."""
    peak = resident("VmHWM", process)
    return None if peak is None else peak / GIGABYTE


__all__ = ["GIGABYTE", "peak_gb", "resident"]
