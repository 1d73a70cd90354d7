# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Publishes a folder on the Hub: checks it, renders its card, pushes both in one commit, and compares the pushed files.
"""

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..checkpoint.builtin import MINI
from ..checkpoint.files import ADAPTATION, CARD, PEFT_CONFIG, read_json
from ..checkpoint.folder import CheckpointFolder, Kind
from ..checkpoint.repository import push
from ..io.atomic import temporary_folder
from ..model.errors import InputError
from .cards import render
from .checks import check, leaks, names_in, names_to_publish, refusal

_TAG = re.compile(r"\w(?:[\w-]|\.(?!\.))*(?<!\.lock)(?<!\.)", re.ASCII)


@dataclass(frozen=True)
class Publication:
    """
    Files and repository of an upload by `publish`, sent or only checked.

    Args:
        kind: A checkpoint, the architecture of one without weights, or an adapter (or prototypes).
        files: Sizes in bytes by name.
        left_out: Files of the folder that are not sent.
        base: Hub id that an adapter is loaded on.
        commit: Commit on the Hub; empty for a dry run.
        url: Page of the commit; empty for a dry run.
    """

    kind: Kind
    files: dict[str, int]
    left_out: list[str]
    base: str = ""
    commit: str = ""
    url: str = ""


def publish(
    folder: str | Path,
    repo_id: str,
    *,
    base: str | None = None,
    results: str | Path | None = None,
    private: bool = False,
    tag: str | None = None,
    dry_run: bool = False,
) -> Publication:
    """
    Checks a checkpoint, an architecture or an adapter, pushes it in one commit, and pulls it again to compare.

    The files are pushed byte for byte, except that an adapter gets the name of its base on the Hub. The card is
    rendered from the files, `card.yaml` and the repository's name; a `README.md` in the folder is not used.

    Args:
        folder: Folder that `train.py`, `langcell convert` or `langcell adapt` made.
        repo_id: `owner/name`.
        base: Hub id of the checkpoint that an adapter was made from; needed if the adapter names a folder.
        results: Folder that `langcell evaluate` wrote, to compare `evaluation.json` with.
        private: True to make a new repository private.
        tag: Tag for the commit.
        dry_run: True to check and list only: nothing is sent, and the Hub is not contacted.

    Raises:
        InputError: The folder has faults, all of which the message lists; or the push was refused or interrupted.
    """
    if not _is_repository(repo_id):
        raise InputError(f"{repo_id!r} is not the name of a repository on the Hub, OWNER/NAME.")
    if tag is not None and not _TAG.fullmatch(tag):
        raise InputError(f"{tag!r} is not a tag: use letters, digits, '-', '_' and single dots, such as v1.0.")
    opened = CheckpointFolder(Path(folder))
    kind, base = opened.kind, _base_on_hub(opened, base)
    if base and not dry_run:
        opened = replace(opened, base=base)  # The adapter is tested on the base that others will load it on.
    check(opened, results=results)
    with _staged(opened, repo_id, base) as staged:
        files = {name: (staged / name).stat().st_size for name in sorted(names_in(staged))}
        left_out = sorted(name for name in names_in(opened.path) if name not in files)
        publication = Publication(kind, files, left_out, base)
        if dry_run:
            return publication
        pushed = push(staged, repo_id, private=private, tag=tag, message=f"Publish {opened.name}")
    return replace(publication, commit=pushed.commit, url=pushed.url)


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isascii() and name.count("/") == 1


def _base_on_hub(folder: CheckpointFolder, base: str | None) -> str:
    """
    Returns the name by which others find the base of an adaptation: a Hub id, or the checkpoint of the package. Empty
    if nothing was adapted.

    Raises:
        InputError: The base is a folder on this machine.
    """
    if folder.adaptation is None:
        return ""
    base = base or folder.adaptation.base
    if base != MINI and (not _is_repository(base) or Path(base).is_dir()):
        raise InputError(
            f"{folder.path} was made from {base!r}, which is not a repository on the Hub: publish it first, and give "
            "its name with --base OWNER/NAME."
        )
    return base


@contextmanager
def _staged(folder: CheckpointFolder, repo_id: str, base: str) -> Iterator[Path]:
    """
    Copies the files as they are to be in the repository: regular files, the name of the base there, and the card.

    Raises:
        InputError: A file holds a path of this machine or a password; or the copies cannot be written.
    """
    with temporary_folder() as temporary:
        staged = temporary / folder.name
        staged.mkdir()
        for name in names_to_publish(folder.path):
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.path / name, target)
        if base:
            _set_entry(staged / ADAPTATION, "base", base)
            if (staged / PEFT_CONFIG).is_file():
                _set_entry(staged / PEFT_CONFIG, "base_model_name_or_path", base)
        (staged / CARD).write_text(render(folder, repo_id=repo_id, base=base), encoding="utf-8")
        if faults := list(leaks(staged, names_in(staged))):
            raise refusal(folder.path, faults)
        yield staged


def _set_entry(path: Path, name: str, value: str) -> None:
    """Sets an entry of a JSON file; a file that already has it keeps its bytes."""
    if read_json(path).get(name) == value:
        return
    path.write_text(json.dumps(read_json(path) | {name: value}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["Publication", "publish"]
