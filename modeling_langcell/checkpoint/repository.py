# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Between a folder here and a repository on the Hub: pulled as one commit, pushed as one commit, never in part."""

import filecmp
import hashlib
import tempfile
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

from ..model.errors import InputError

T = TypeVar("T")

#: What a checkpoint or an adapter is loaded from.
_USEFUL = ["*.json", "*.safetensors", "*.txt", "README.md"]
#: Without these no model, no processor and no adapter loads. They are pulled when the rest is here, so that what was
#: killed half-way loads nowhere: not in transformers or peft either, which know nothing of the rest.
_LAST = ["*config.json", "adaptation.json"]
#: The Hub's own, in every repository.
_ATTRIBUTES = ".gitattributes"
#: Seconds between tries of what may pass.
_WAITS = (1, 2)
#: What the Hub, the way to it and this disk can make `huggingface_hub` raise.
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
    What was pushed.

    Args:
        repo_id: Repository, with its owner.
        commit: Commit that holds the folder's files and no others.
        url: Page of that commit.
    """

    repo_id: str
    commit: str
    url: str


def fetch(name: str | Path, revision: str | None = None) -> Path:
    """
    The folder of a checkpoint or an adapter: of one commit, and whole. What was pulled before is found without the Hub.

    Args:
        name: A folder, which is given back; or a Hub id. `shipped.locate` knows the package's checkpoint.
        revision: Branch, tag or commit of the Hub's repository.

    Returns:
        The folder; of a Hub id its name is the commit.

    Raises:
        InputError: Neither a folder nor a repository that can be read, no such revision, a pull that failed, or one
            that was killed before and cannot go on because the Hub cannot be reached.
    """
    name = str(name)
    if Path(name).is_dir():
        if revision is not None:
            raise InputError(f"{name!r} is a folder and has no revision {revision!r}: leave the revision out.")
        return Path(name)

    def pull() -> Path:
        at = HfApi().resolve_revision(name, revision=revision)
        pull_files = partial(snapshot_download, name, revision=at, allow_patterns=_USEFUL)
        pull_files(ignore_patterns=_LAST)
        folder = pull_files()
        # Where the Hub cannot be reached, what others left in the cache comes back unseen, be it whole or not: only a
        # commit whose files are listed is known to be whole.
        get_cached_repo_tree(name, revision=at)
        return Path(folder)

    with _one_line(f"{name!r} is no folder here and could not be pulled from the Hub", ""):
        return _persist(pull)


def require_write_access(repo_id: str, private: bool = False) -> str:
    """
    Makes a repository where there is none, and sees that it may be pushed to.

    Returns:
        Its id, with its owner.

    Raises:
        InputError: No leave, no such place, or a repository that all can read where it was to be `private`.
    """
    api = HfApi()
    with _one_line(f"{repo_id} cannot be pushed to", "no file was changed there"):
        repo_id = _persist(lambda: api.create_repo(repo_id, private=private or None, exist_ok=True)).repo_id
        _persist(lambda: api.auth_check(repo_id, write=True))  # It may be there, and somebody else's.
        if private and not _persist(lambda: api.repo_info(repo_id)).private:
            raise InputError(f"{repo_id} is there already and not private: make it so, or name another.")
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
    Makes a repository hold what a folder holds, in one commit; then pulls that commit into an empty folder and compares
    every byte, and only then tags it. Killed anywhere, the same call goes on.

    Args:
        folder: Its files are pushed, but for hidden ones; what else the repository holds is deleted in the same commit.
        repo_id: Hub id. The repository is made if there is none.
        private: Whether only its owner may read the repository.
        tag: Name for the commit.
        message: Of the commit.
        ignore: Patterns of files that are not pushed.

    Raises:
        InputError: No such folder, no leave, a tag of another commit, a repository that somebody else changes at the
            same time, or a push that failed. The message says what was done there and what was not.
    """
    files = _files(Path(folder), tuple(ignore))
    if not files:
        raise InputError(f"{folder} holds no files to push.")
    repo_id = require_write_access(repo_id, private)
    with _one_line(f"{folder} was not pushed to {repo_id}", "no file was changed there"):
        commit = _persist(lambda: _commit(files, repo_id, tag, message))
    done = Pushed(repo_id, commit, f"{HfApi().endpoint}/{repo_id}/commit/{commit}")
    stands = f"pushing again goes on{f', and sets {tag!r}' if tag else ''}"
    with _one_line(f"{repo_id} has all files as commit {commit}, but they could not be compared", stands):
        _compare(files, done)
    if tag is not None:
        with _one_line(f"{repo_id} has all files as commit {commit}, without the tag {tag!r}", "pushing again goes on"):
            _persist(lambda: _set_tag(done, tag))
    return done


def _files(folder: Path, ignore: tuple[str, ...]) -> dict[str, Path]:
    """Files by their path in the repository."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {
        name.as_posix(): path
        for name, path in found.items()
        if not any(part.startswith(".") for part in name.parts)
        and not any(fnmatch(name.as_posix(), pattern) for pattern in ignore)
    }


def _commit(files: dict[str, Path], repo_id: str, tag: str | None, message: str) -> str:
    """The commit with these files: a new one, or the repository's last where nothing differs."""
    # Not `upload_folder`, which makes as many commits as it sees fit.
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
        raise InputError(f"{repo_id} has a tag {tag!r} of commit {tagged}: choose another. No file was changed there.")
    if head is not None and not changes:
        return head
    # With its parent it fails, and does not mix with it, if somebody else was faster.
    return api.create_commit(repo_id, changes, commit_message=message, parent_commit=head).oid


def _is_there(path: Path, there: RepoFile | None) -> bool:
    """Whether a file is in the repository as it is here."""
    if there is None or there.size != path.stat().st_size:
        return False
    digest = hashlib.sha1(b"blob %d\0" % there.size) if there.lfs is None else hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() == (there.blob_id if there.lfs is None else there.lfs.sha256)


def _compare(files: dict[str, Path], pushed: Pushed) -> None:
    """
    Raises:
        InputError: The commit's files, pulled into an empty folder, are not those here.
    """
    with tempfile.TemporaryDirectory(prefix="langcell-") as empty:
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
        raise InputError(f"{pushed.repo_id} differs at commit {pushed.commit} from what is here: {', '.join(differ)}.")


def _tags(repo_id: str) -> dict[str, str]:
    """Commits by tag."""
    return {tag.name: tag.target_commit for tag in HfApi().list_repo_refs(repo_id).tags}


def _set_tag(pushed: Pushed, tag: str) -> None:
    if _tags(pushed.repo_id).get(tag) != pushed.commit:
        HfApi().create_tag(pushed.repo_id, tag=tag, revision=pushed.commit)


def _persist(call: Callable[[], T]) -> T:
    """Calls again what failed by an error of the server or a lost connection; what is called can bear it."""
    for wait in _WAITS:
        try:
            return call()
        except _FAILURES as error:
            if not any(_may_pass(cause) for cause in _causes(error)):
                raise
            time.sleep(wait)
    return call()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code >= 500
    return isinstance(error, (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError))


@contextmanager
def _one_line(failed: str, stands: str) -> Iterator[None]:
    """Turns whatever fails into an `InputError`: what failed, why, and how things stand."""
    try:
        yield
    except InputError:
        raise
    except _FAILURES as error:
        raise InputError(f"{failed}: {_reason(error).rstrip('.')}{stands and '; '}{stands}.") from error


def _reason(error: BaseException) -> str:
    """Why, in one line."""
    if isinstance(error, RevisionNotFoundError):
        return "the repository has no such branch, tag or commit"
    if isinstance(error, RepositoryNotFoundError):
        return "there is no such repository, or none for this token ('hf auth login' sets another)"
    if isinstance(error, HFValidationError):
        return "it is no id of the form OWNER/NAME"
    # Of a failed upload the outer error says which file, and the inner one why.
    said = [" ".join(str(cause).split()) or type(cause).__name__ for cause in _causes(error)]
    return ": ".join(said[:2]) if isinstance(error, RuntimeError) else said[0]


__all__ = ["Pushed", "fetch", "push", "require_write_access"]
