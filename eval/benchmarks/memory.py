# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The memory of a process."""

import re
from pathlib import Path

GIGABYTE = 1e9


def resident(field: str, process: int | str = "self") -> int | None:
    """
    Returns the resident bytes of a process, now (`VmRSS`) or at their peak (`VmHWM`), or None where the system does not
    report them. (`ru_maxrss` would start at the parent's value in a child.)
    """
    try:
        found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    except OSError:  # The system has no /proc, or the process has ended.
        return None
    return None if found is None else int(found[1]) * 1024


def peak_gb(process: int | str = "self") -> float | None:
    """Returns the peak resident memory in GB."""
    peak = resident("VmHWM", process)
    return None if peak is None else peak / GIGABYTE


__all__ = ["GIGABYTE", "peak_gb", "resident"]
