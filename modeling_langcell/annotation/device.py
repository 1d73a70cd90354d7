# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The device to compute on, the precision that it computes fast, and the memory of a CPU."""

import ctypes
import logging
import os
from functools import cache

import torch

from ..kernels import cpu_has_instructions
from ..model.errors import InputError, reason_of

logger = logging.getLogger(__name__)

#: Options of glibc's `mallopt`, by their numbers: M_MMAP_THRESHOLD, the bytes from which a block is given back as soon
#: as it is free, and M_TRIM_THRESHOLD, the free bytes that are kept.
_GLIBC_OPTIONS = {-3: 2**27, -1: 2**30}


def find_device(device: str | torch.device | None) -> torch.device:
    """
    Returns the named device; by default CUDA, else Apple's MPS, else the CPU.

    Raises:
        InputError: This machine has no such device.
    """
    if device is None:
        device = "mps" if torch.backends.mps.is_available() else "cpu"
        if torch.cuda.is_available():  # With several processes, each takes its own GPU.
            device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"
        logger.info("No device was named: using %s.", device)
    try:
        found = torch.device(device)
    except RuntimeError as error:  # torch's own message lists every kind of device it has ever supported.
        raise InputError(f"The device {str(device)!r} cannot be used: name cpu, cuda, cuda:1 or mps.") from error
    try:
        torch.empty(1, device=found).cpu()
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"The device {str(device)!r} cannot be used: {reason_of(error).partition('. ')[0]}") from error
    return found


@cache
def reuse_memory() -> bool:
    """
    Lets this process keep up to a gigabyte of freed memory for what is computed next, on systems with glibc. To ask the
    system for fresh pages in every batch would take as long as a small network itself.

    Returns:
        True if it does.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # Another C library.
        return False
    return all(set_option(option, size) for option, size in _GLIBC_OPTIONS.items())


def warn_if_slow(device: torch.device, dtype: torch.dtype) -> None:
    """Warns of a precision that a CPU computes more slowly than single precision."""
    if device.type == "cpu" and not cpu_has_instructions(dtype):
        name = str(dtype).removeprefix("torch.")
        logger.warning("This CPU has no instructions for %s, which is several times slower than float32.", name)


__all__ = ["find_device", "reuse_memory", "warn_if_slow"]
