# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Python commands as real processes, without the ten seconds that importing torch, transformers and scanpy takes.

A server imports them once and forks for each command. A forked command is a process like any other: it has its own
arguments, working directory, environment, limits, pipes and exit code, and signals end it. It differs from a fresh
interpreter in four ways: the server's modules are imported already, the checkout is importable, strings have the hashes
of the server, and `-I` means only that neither it nor the working directory is. Where an import itself is tested, use
`subprocess`.

Some variables are read when a library is imported (`HF_HOME`, `HF_ENDPOINT`, `HF_HUB_OFFLINE`, ...), so every setting
of them has a server of its own. `link_cache` keeps `HF_HOME` the same from test to test.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from tests.support.paths import REPOSITORY

#: The installed `langcell` command, as a script.
LANGCELL = str(Path(sys.executable).parent / "langcell")
#: Modules that the package's commands need.
PACKAGE = (
    "scanpy",
    "umap",
    "modeling_langcell.adaptation.adapt",
    "modeling_langcell.annotation.large_files",
    "modeling_langcell.cli.annotate",
    "modeling_langcell.cli.explore",
    "modeling_langcell.cli.hub",
    "modeling_langcell.cli.main",
    "modeling_langcell.cli.train",
    "modeling_langcell.corpus.build",
    "modeling_langcell.eval.command",
    "modeling_langcell.pretraining.run",
    "modeling_langcell.publishing.publish",
    "modeling_langcell.report.page",
    "tests.support.warm",
)
#: Modules that a process without the package needs.
WITHOUT_THE_PACKAGE = (
    "peft",
    "scipy.sparse",
    "safetensors.torch",
    "transformers.pipelines",
    "transformers.models.auto.modeling_auto",
    "transformers.models.bert.modeling_bert",
)
#: Prefixes of the variables that libraries or Python read when they start.
_READ_AT_IMPORT = ("HF_", "TRANSFORMERS_", "PYTHON")
#: Read anew whenever it is needed.
_READ_LATER = ("HF_TOKEN",)


class Process:
    """A running command, with the methods of `subprocess.Popen` that tests use."""

    def __init__(self, arguments: list[str], status: socket.socket, stdout: IO | None, stderr: IO | None):
        self.args, self.stdout, self.stderr = arguments, stdout, stderr
        self.returncode: int | None = None
        self._status = status
        self._lines = status.makefile("r")
        self.pid = int(self._lines.readline())

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code, negative for a signal."""
        if self.returncode is None:
            self._status.settimeout(timeout)
            try:
                self.returncode = int(self._lines.readline())
            except TimeoutError:
                self._lines = self._status.makefile("r")
                raise subprocess.TimeoutExpired(self.args, timeout or 0) from None
        return self.returncode

    def poll(self) -> int | None:
        """Returns the exit code, or None while the command runs."""
        try:
            return self.wait(timeout=0.0001)
        except subprocess.TimeoutExpired:
            return None

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the end and returns what was printed to stdout and stderr."""
        printed = ["", ""]

        def read(number: int, stream: IO) -> None:
            printed[number] = "" if stream.closed else stream.read()

        streams = (self.stdout, self.stderr)
        readers = [threading.Thread(target=read, args=pair, daemon=True) for pair in enumerate(streams) if pair[1]]
        for reader in readers:
            reader.start()
        self.wait(timeout)
        for reader in readers:
            reader.join(timeout)
        for stream in filter(None, streams):
            stream.close()
        return printed[0], printed[1]

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Sends SIGKILL, unless the command has ended."""
        self.send_signal(signal.SIGKILL)


class _Server:
    """The client's side of a process that forks for each command."""

    def __init__(self, preload: tuple[str, ...], environment: Mapping[str, str]):
        self._control, theirs = socket.socketpair()
        program = f"from tests.support.commands import serve; serve({theirs.fileno()}, {preload!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program], cwd=REPOSITORY, env=environment, pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._lock = threading.Lock()

    def start(self, request: Mapping[str, Any], streams: list[int]) -> socket.socket:
        """Asks for a command, and returns the socket on which its process id and then its exit code arrive."""
        ours, theirs = socket.socketpair()
        with self._lock:
            socket.send_fds(self._control, [b"."], [theirs.fileno(), *streams])
        theirs.close()
        ours.sendall(json.dumps(request).encode() + b"\n")
        return ours

    def stop(self) -> None:
        self._control.close()
        self._process.wait()


_servers: dict[tuple, _Server] = {}
_starting = threading.Lock()  # Threads that start commands share a server.
_caches: Path | None = None


@atexit.register
def stop_servers() -> None:
    """Ends the servers. Commands that still run go on."""
    while _servers:
        _servers.popitem()[1].stop()


def start_python(
    *command: object,
    cwd: str | Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: int | IO = subprocess.PIPE,
    stderr: int | IO = subprocess.PIPE,
    start_new_session: bool = False,
    largest: int | None = None,
    preload: tuple[str, ...] = PACKAGE,
) -> Process:
    """
    Starts Python with arguments: `-m MODULE ...`, `-c CODE ...` or `SCRIPT ...`.

    Args:
        command: The arguments of Python.
        cwd, env, start_new_session: As for `subprocess.Popen`; stdin is empty.
        stdout, stderr: PIPE, DEVNULL or an open file.
        largest: Largest file that the command may write, in bytes (`RLIMIT_FSIZE`).
        preload: Modules that are imported already.
    """
    arguments = [str(part) for part in command]
    environment = dict(os.environ if env is None else env)
    at_start = {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}
    at_start = {name: value for name, value in at_start.items() if name not in _READ_LATER}
    at_start["PYTHONPATH"] = str(REPOSITORY)
    key = (preload, *sorted(at_start.items()))
    with _starting:
        if key not in _servers:
            _servers[key] = _Server(preload, environment | at_start)
    request = {
        "arguments": arguments,
        "cwd": str(cwd or Path.cwd()),
        "environment": environment,
        "new_session": start_new_session,
        "largest": largest,
    }
    null = os.open(os.devnull, os.O_RDWR)
    passed, read, opened = [null], [], [null]
    for wanted in (stdout, stderr):
        if wanted == subprocess.PIPE:
            end, theirs = os.pipe()
            opened.append(theirs)
            passed.append(theirs)
            read.append(os.fdopen(end))
        else:
            passed.append(
                null if wanted == subprocess.DEVNULL else wanted if isinstance(wanted, int) else wanted.fileno()
            )
            read.append(None)
    try:
        return Process(arguments, _servers[key].start(request, passed), *read)
    finally:
        for end in opened:
            os.close(end)


def run_python(
    *command: object, timeout: float | None = 300, check: bool = False, **options
) -> subprocess.CompletedProcess:
    """Runs what `start_python` starts to its end, and kills it after a timeout in seconds."""
    process = start_python(*command, **options)
    try:
        printed, errors = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    done = subprocess.CompletedProcess(process.args, process.returncode, printed, errors)
    if check and done.returncode:
        raise AssertionError(f"{done.args} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done


def link_cache(folder: Path) -> Path:
    """
    Makes a folder the cache of commands that start from now on.

    Returns:
        A path for `HF_HOME` that depends on the folder's name alone, so that all tests can share a server.
    """
    global _caches
    if _caches is None:
        _caches = Path(tempfile.mkdtemp())
        atexit.register(shutil.rmtree, _caches, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    link = _caches / folder.name
    link.unlink(missing_ok=True)
    link.symlink_to(folder)
    return link


def run_without_the_package(*command: object, cache: Path, **options: Any) -> subprocess.CompletedProcess:
    """
    Runs Python where torch and transformers are imported and the package is not, offline.

    Args:
        command: The arguments of Python.
        cache: Folder for what transformers caches, the code of repositories included.
        options: Those of `run_python`.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {"HF_HOME": str(link_cache(cache)), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    return run_python(*command, env=environment, preload=WITHOUT_THE_PACKAGE, **options)


# ---------------------------------------------------------------------- in the server


def serve(control: int, preload: tuple[str, ...]) -> None:
    """Imports the modules and forks for each command until the client is gone; in a fork, runs the command."""
    for name in preload:
        import_module(name)
    # Python looks at every object when a process ends, and in a fork a page of memory that is touched is copied.
    gc.collect()
    gc.freeze()
    # jemalloc, which pyarrow brings, prepares its thread for a fork; no other thread may be there.
    threads = {Path("/proc/self/task", task, "comm").read_text().strip() for task in os.listdir("/proc/self/task")}
    assert len(threads - {"jemalloc_bg_thd"}) == 1, f"forking with threads is not safe: {threads}"
    with socket.socket(fileno=control) as requests:
        waiting: set[int] = set()
        while descriptors := socket.recv_fds(requests, 1, 4)[1]:
            pid = os.fork()
            if pid == 0:
                break
            for descriptor in descriptors:
                os.close(descriptor)
            waiting = {pid} | {other for other in waiting if os.waitpid(other, os.WNOHANG) == (0, 0)}
    if descriptors:
        _run(_fork_command(*descriptors))


def _fork_command(status: int, *streams: int) -> dict[str, Any]:
    """Forks the command, and returns its request there; here, reports its id and its end to the client."""
    with socket.socket(fileno=status) as client:
        request = json.loads(client.makefile("r").readline())
        pid = os.fork()
        if pid:
            for stream in streams:
                os.close(stream)
            client.sendall(b"%d\n" % pid)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            client.sendall(b"%d\n" % code)
            os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, max(streams) + 1)
    return request


def _run(request: dict[str, Any]) -> None:
    """Runs a command in this process, as Python does with the same arguments."""
    # A shell has commands in the background ignore it, and what they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if "torch" in sys.modules:
        # Its pool of threads does not survive a fork, and is made anew when the number of threads is set. If several
        # threads that load weights are the first to do that, one of them may find no pool.
        torch = sys.modules["torch"]
        torch.set_num_threads(torch.get_num_threads())
    if request["new_session"]:
        os.setsid()
    if request["largest"] is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["largest"],) * 2)
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None  # TMPDIR is read anew.
    os.chdir(request["cwd"])
    arguments = request["arguments"]
    isolated = arguments[0] == "-I"
    sys.path.remove("")
    if isolated:
        arguments = arguments[1:]
        sys.path.remove(str(REPOSITORY))
    if arguments[0] in ("-c", "-m"):
        how, what, *rest = arguments
        sys.path[:0] = [] if isolated else [""] if how == "-c" else [request["cwd"]]
        sys.argv = [how, *rest]
        if how == "-m":
            runpy.run_module(what, run_name="__main__", alter_sys=True)
        else:
            sys.modules["__main__"] = types.ModuleType("__main__")
            exec(compile(what, "<string>", "exec"), vars(sys.modules["__main__"]))
    else:
        sys.path.insert(0, str(Path(request["cwd"], arguments[0]).parent))
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")  # As it was given: records quote it from sys.argv.
