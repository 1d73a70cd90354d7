# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Locks that show which process works on a file. The kernel frees them when their process ends, however it ends, so that a
lock is never stale.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4
from weakref import WeakSet

#: Attempts to take a lock, and seconds between two: a process that only looks whether a lock is free holds it briefly.
_ATTEMPTS, _PAUSE = 5, 0.05
_LONGEST = 200  # Letters of a command that are shown.
#: Disks without locks fail with these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EBADF)


@dataclass(frozen=True)
class Owner:
    """
    The process that holds a lock.

    Args:
        id: Drawn anew for each lock.
        host: Name of its machine.
        pid: Its number there.
        command: Its command line.
    """

    id: str
    host: str
    pid: int
    command: str

    @classmethod
    def this_process(cls) -> "Owner":
        """Returns this process as the owner of a new lock."""
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        return cls(uuid4().hex, socket.gethostname(), os.getpid(), command)

    @classmethod
    def parse(cls, content: bytes) -> "Owner":
        """Reads what a process wrote into its lock; a process that has not written yet is not known."""
        try:
            found = json.loads(content)
            return cls(str(found["id"]), str(found["host"]), int(found["pid"]), str(found["command"]))
        except (ValueError, KeyError, TypeError, RecursionError):
            return cls("", "", 0, "")

    @property
    def is_gone(self) -> bool:
        """True if the process is known to have ended; of one on another machine that cannot be told."""
        if not self.pid:
            return True
        if self.host != socket.gethostname():
            return False
        with suppress(PermissionError):
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                return True
        return False

    def __str__(self) -> str:
        if not self.pid:
            return "another process"
        command = "".join(letter if letter.isprintable() else "?" for letter in self.command)
        host = "".join(letter for letter in self.host if letter.isprintable())
        return f"process {self.pid} on {host} ({command[:_LONGEST]})"


class Lock:
    """
    A lock that this process holds: an open file with the owner's description. It is a context manager.

    Raises:
        BlockingIOError: Another process holds the lock.
        OSError: The file cannot be written.
    """

    def __init__(self, path: Path):
        self.path, self.owner = path, Owner.this_process()
        self._descriptor = _take(path, os.O_RDWR | os.O_CREAT)
        _held.add(self)
        try:
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, json.dumps(asdict(self.owner)).encode(), 0)
        except BaseException:
            self.release()
            raise

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()

    def release(self) -> None:
        """Deletes the file and frees the lock, in this order: a file that is there is held, or its owner has died."""
        with suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Closes the file; the lock is free once all processes that share it have done so."""
        if self in _held:
            _held.discard(self)
            os.close(self._descriptor)


#: The locks of this process. A forked process shares them, and must not keep them after the death of this one.
_held: "WeakSet[Lock]" = WeakSet()


def _close_in_fork() -> None:
    for lock in list(_held):
        lock.close()


os.register_at_fork(after_in_child=_close_in_fork)


def find_owner(path: Path) -> Owner | None:
    """Returns the living process that holds a lock; None if there is none."""
    try:
        _require_regular(path)
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        return Owner.parse(b"") if error.errno in (errno.EACCES, errno.EPERM) else None
    try:
        owner = _read_owner(descriptor)
        return None if _is_free(descriptor, fcntl.LOCK_SH) else owner
    finally:
        os.close(descriptor)


@contextmanager
def taking_over(path: Path) -> Iterator[bool]:
    """
    Takes the lock of a process that died, and deletes it at the end. Yields false, and deletes nothing, if the process
    lives.
    """
    if find_owner(path) is not None:
        yield False
        return
    try:
        descriptor = _take(path, os.O_RDWR)
    except OSError:
        yield not path.exists()
        return
    try:
        yield True
        with suppress(OSError):
            path.unlink()
    finally:
        os.close(descriptor)


def _take(path: Path, flags: int) -> int:
    """Opens and locks the file at a path, and not one that its former owner has just deleted."""
    _require_regular(path)
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        with ExitStack() as unless_taken:
            unless_taken.callback(os.close, descriptor)
            if _is_free(descriptor, fcntl.LOCK_EX) and os.fstat(descriptor).st_nlink:
                unless_taken.pop_all()
                return descriptor
        time.sleep(_PAUSE)
    raise BlockingIOError(errno.EWOULDBLOCK, "another process uses it", str(path))


def _require_regular(path: Path) -> None:
    """
    Checks that a lock can lie at a path, and that nothing else of this name is opened, locked or deleted.

    Raises:
        FileExistsError: Something else is there.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise FileExistsError(errno.EEXIST, f"{path} is not a regular file, and its lock belongs there", str(path))


def _is_free(descriptor: int, how: int) -> bool:
    """Locks an open file, unless another process has; on a disk without locks, looks whether its owner lives."""
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return _read_owner(descriptor).is_gone
    return True


def _read_owner(descriptor: int) -> Owner:
    return Owner.parse(os.pread(descriptor, 1 << 16, 0))


__all__ = ["Lock", "Owner", "find_owner", "taking_over"]
