# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pulls repositories from the Hub and pushes folders to it, always as one complete commit."""

import filecmp
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import TypeVar

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    get_cached_repo_tree,
    snapshot_download,
)
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import httpx

from ..io.atomic import temporary_folder
from ..model.errors import InputError

T = TypeVar("T")

#: Files that a checkpoint or an adapter is loaded from.
_USEFUL = ["*.json", "*.safetensors", "*.txt", "README.md"]
#: Files without which no model, processor or adapter loads. They are pulled last, so that nothing loads an
#: interrupted pull, not even transformers or peft, which do not check that the other files are there.
_LAST = ["*config.json", "adaptation.json"]
#: File that the Hub adds to every repository.
_ATTRIBUTES = ".gitattributes"
#: Seconds between attempts after an error that may be temporary.
_WAITS = (1, 2)
#: Errors that `huggingface_hub` raises for faults of the Hub, the connection and the disk.
_FAILURES = (
    httpx.HTTPError,
    OSError,
    ValueError,
    RuntimeError,
    EntryNotFoundError,
    CachedRepoTreeNotFoundError,
    RevisionResolutionError,
)


@dataclass(frozen=True)
class Pushed:
    """
    Result of a push.

    Args:
        repo_id: Repository, with its owner.
        commit: Commit that holds the folder's files and no others.
        url: Page of the commit.
    """

    repo_id: str
    commit: str
    url: str


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """
    Returns the folder of a checkpoint or an adapter, complete and from one commit. A commit that was pulled before is
    found without contacting the Hub.

    Args:
        name: A folder, which is returned as it is; or a Hub id. `resolve_checkpoint` finds the package's checkpoint.
        revision: Branch, tag or commit of the repository on the Hub.

    Returns:
        The folder; for a Hub id its name is the commit.

    Raises:
        InputError: The name is neither a folder nor a readable repository, the revision does not exist, the pull
            failed, or an earlier pull was interrupted and cannot continue without the Hub.
    """
    name = str(name)
    if Path(name).is_dir():
        if revision is not None:
            raise InputError(f"{name!r} is a folder and has no revision {revision!r}: leave out the revision.")
        return Path(name)

    def pull() -> Path:
        at = HfApi().resolve_revision(name, revision=revision)
        pull_files = partial(snapshot_download, name, revision=at, allow_patterns=_USEFUL)
        pull_files(ignore_patterns=_LAST)
        folder = pull_files()
        # Without the Hub, `snapshot_download` returns anything in the cache, complete or not. Only a commit whose
        # files are listed is known to be complete.
        get_cached_repo_tree(name, revision=at)
        return Path(folder)

    with _one_line(f"{name!r} is not a folder here and could not be pulled from the Hub", ""):
        return _persist(pull)


def require_write_access(repo_id: str, private: bool = False) -> str:
    """
    Creates a repository if there is none, and checks that this token may push to it.

    Returns:
        Id of the repository, with its owner.

    Raises:
        InputError: The token may not write, the owner does not exist, or the repository is public although `private`
            was requested.
    """
    api = HfApi()
    with _one_line(f"{repo_id} cannot be pushed to", "no file was changed there"):
        repo_id = _persist(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True)).repo_id
        _persist(lambda: api.auth_check(repo_id, write=True))  # An existing one may belong to someone else.
        if private and not _persist(lambda: api.repo_info(repo_id)).private:
            raise InputError(f"{repo_id} exists and is not private: make it private, or choose another name.")
    return repo_id


def push(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    tag: str | None = None,
    message: str = "Upload a LangCell",
    ignore: Iterable[str] = (),
) -> Pushed:
    """
    Replaces the content of a repository with that of a folder, in one commit. Then pulls that commit into an empty
    folder, compares every byte, and tags it. After an interruption, the same call continues.

    Args:
        folder: Folder whose files are pushed, except hidden ones. Other files of the repository are deleted in the same
            commit.
        repo_id: Hub id. The repository is created if there is none.
        private: True if only its owner may read the repository.
        tag: Tag for the commit.
        message: Message of the commit.
        ignore: Patterns of files that are not pushed.

    Raises:
        InputError: The folder is empty, the token may not write, the tag names a different commit, someone else changes
            the repository at the same time, or the push failed. The message says what was done on the Hub.
    """
    files = _files(Path(folder), tuple(ignore))
    if not files:
        raise InputError(f"{folder} has no files to push.")
    repo_id = require_write_access(repo_id, private)
    with _one_line(f"{folder} was not pushed to {repo_id}", "no file was changed there"):
        commit = _persist(lambda: _commit(files, repo_id, tag, message))
    done = Pushed(repo_id, commit, f"{HfApi().endpoint}/{repo_id}/commit/{commit}")
    state = f"push again to compare them{f' and to set {tag!r}' if tag else ''}"
    with _one_line(f"{repo_id} has all files as commit {commit}, but they could not be compared", state):
        _compare(files, done)
    if tag is not None:
        with _one_line(
            f"{repo_id} has all files as commit {commit}, without the tag {tag!r}", "pushing again continues"
        ):
            _persist(lambda: _set_tag(done, tag))
    return done


def _files(folder: Path, ignore: tuple[str, ...]) -> dict[str, Path]:
    """Returns files by their path in the repository."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
        and not any(fnmatch(name.as_posix(), pattern) for pattern in ignore)
    }


def _commit(files: dict[str, Path], repo_id: str, tag: str | None, message: str) -> str:
    """Returns the commit with these files: a new one, or the repository's latest if nothing differs."""
    # `upload_folder` may make several commits.
    api = HfApi()
    head = api.repo_info(repo_id).sha
    listed = api.list_repo_tree(repo_id, recursive=True, revision=head)
    there = {file.path: file for file in listed if isinstance(file, RepoFile)}
    changes: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, path) for name, path in files.items() if not _is_there(path, there.get(name))
    ]
    changes += [CommitOperationDelete(name) for name in there if name not in files and name != _ATTRIBUTES]
    tagged = None if tag is None else _tags(repo_id).get(tag)
    if tagged is not None and (changes or tagged != head):
        raise InputError(
            f"{repo_id} has a tag {tag!r} on commit {tagged}: choose another tag. No file was changed there."
        )
    if head is not None and not changes:
        return head
    # With its parent given, the commit fails if someone else has committed in the meantime.
    return api.create_commit(repo_id, changes, commit_message=message, parent_commit=head).oid


def _is_there(path: Path, there: RepoFile | None) -> bool:
    """Returns true if the repository has the same file."""
    if there is None or there.size != path.stat().st_size:
        return False
    digest = hashlib.sha1(b"blob %d\0" % there.size) if there.lfs is None else hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == (there.blob_id if there.lfs is None else there.lfs.sha256)


def _compare(files: dict[str, Path], pushed: Pushed) -> None:
    """
    Pulls a commit into an empty folder, and compares it with the files here.

    Raises:
        InputError: The files differ.
    """
    with temporary_folder() as empty:
        pull = partial(snapshot_download, pushed.repo_id, revision=pushed.commit, cache_dir=empty)
        pulled = Path(_persist(pull))
        there = {path.relative_to(pulled).as_posix(): path for path in pulled.rglob("*") if path.is_file()}
        there.pop(_ATTRIBUTES, None)
        differ = sorted(
            name
            for name in files.keys() | there.keys()
            if name not in files or name not in there or not filecmp.cmp(files[name], there[name], shallow=False)
        )
    if differ:
        raise InputError(
            f"{pushed.repo_id} differs at commit {pushed.commit} from the files here: {', '.join(differ)}."
        )


def _tags(repo_id: str) -> dict[str, str]:
    """Returns commits by tag."""
    return {tag.name: tag.target_commit for tag in HfApi().list_repo_refs(repo_id).tags}


def _set_tag(pushed: Pushed, tag: str) -> None:
    if _tags(pushed.repo_id).get(tag) != pushed.commit:
        HfApi().create_tag(pushed.repo_id, tag=tag, revision=pushed.commit)


def _persist(call: Callable[[], T]) -> T:
    """
    Calls a function, and repeats the call after a server error or a lost connection; the function must allow that.
    """
    for wait in _WAITS:
        try:
            return call()
        except _FAILURES as error:
            if not any(_is_temporary(cause) for cause in _causes(error)):
                raise
            time.sleep(wait)
    return call()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _is_temporary(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError))


@contextmanager
def _one_line(failed: str, state: str) -> Iterator[None]:
    """Turns failures into an `InputError` that says what failed, why, and the state that this leaves."""
    try:
        yield
    except InputError:
        raise
    except _FAILURES as error:
        raise InputError(f"{failed}: {_reason(error).rstrip('.')}{state and '; '}{state}.") from error


def _reason(error: BaseException) -> str:
    """Returns the reason of an error in one line."""
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or this token cannot see it ('hf auth login' sets another token)"
    if isinstance(error, HFValidationError):
        return "it is not an id of the form OWNER/NAME"
    # For a failed upload the outer error names the file, and the inner one the reason.
    reasons = [" ".join(str(cause).split()) or type(cause).__name__ for cause in _causes(error)]
    return ": ".join(reasons[:2]) if isinstance(error, RuntimeError) else reasons[0]


__all__ = ["Pushed", "fetch", "push", "require_write_access"]
