# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A disk that is really full: a small file system in memory, which only the commands that enter it see."""

import ctypes
import os
import subprocess
from pathlib import Path

_SIZE = 2**26  # Bytes of the disk.
_HOLD = 'mount -t tmpfs -o size={size} none "$0" && echo mounted && cat'
_USER, _MOUNTS = 0x10000000, 0x00020000  # Linux's CLONE_NEWUSER and CLONE_NEWNS.


class FullDisk:
    """
    A file system that a process holds in namespaces of its own, which needs no privileges. A context manager.

    Args:
        place: An empty folder, where the commands find the disk.

    Raises:
        OSError: This machine does not let users mount a file system.
    """

    def __init__(self, place: Path):
        self.place = place
        self._holder = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", _HOLD.format(size=_SIZE), place],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            raise OSError(f"no file system can be mounted here: {self._holder.communicate()[1].strip()}")
        #: The same folder, as processes outside see it.
        self.seen = Path(f"/proc/{self._holder.pid}/root", *place.absolute().parts[1:])
        self._filler = self.seen / "filler"

    def __enter__(self) -> "FullDisk":
        return self

    def __exit__(self, *error: object) -> None:
        self._holder.communicate()

    def on_it(self, program: str) -> str:
        """Returns a Python program that does the same where the disk is."""
        return f"from tests.robustness.full_disk import enter\nenter({self._holder.pid})\n{program}"

    def used(self) -> int:
        """Returns the number of bytes that are not free."""
        found = os.statvfs(self.seen)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def fill(self, room: int) -> None:
        """Fills the disk, except for some bytes."""
        self.free()
        with self._filler.open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, _SIZE - self.used() - room)

    def free(self) -> None:
        """Frees the space again."""
        self._filler.unlink(missing_ok=True)


def enter(holder: int) -> None:
    """Moves this process, which has a single thread, to the disk of another process."""
    libc, folder = ctypes.CDLL(None, use_errno=True), Path.cwd()
    descriptors = [os.open(f"/proc/{holder}/ns/{name}", os.O_RDONLY) for name in ("user", "mnt")]
    for descriptor, kind in zip(descriptors, (_USER, _MOUNTS), strict=True):
        if libc.setns(descriptor, kind) != 0:
            raise OSError(ctypes.get_errno(), "the process cannot enter the namespace")
        os.close(descriptor)
    os.chdir(folder)


__all__ = ["FullDisk", "enter"]
