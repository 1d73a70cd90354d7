# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A folder to a repository of the Hub: checked as a stranger would meet it, pushed in one commit, pulled and compared.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from . import hub, loading_probe
from .adapters import ADAPTATION, PEFT_CONFIG, Adaptation, load_checkpoint
from .cards import (
    CARD,
    EVALUATION,
    TRAINING,
    compare,
    faults_of,
    fingerprint_of,
    read_config,
    read_json,
    render_adaptation,
    summarize,
)
from .configuration_langcell import LangCellConfig
from .feature_extraction_langcell import InputError

_PACKAGE = Path(__file__).parent
_PROCESSOR = "processor_config.json"
#: What may stand in a repository: settings, weights that are nothing but numbers, the family's code, texts, pictures.
_ALLOWED = {".json", ".safetensors", ".py", ".md", ".txt", ".png", ".svg"}
_ALLOWED_NAMES = {"LICENSE", "NOTICE", ".gitattributes"}
#: What a training run leaves beside its checkpoint, and an operating system anywhere: it stays here.
_OF_THE_RUN = re.compile(r"^(tensorboard/.*|.*\.jsonl|checkpoints/.*|.*__pycache__/.*|(.*/)?\.DS_Store)$")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib"}
_SECRETS = re.compile(
    r"hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|sk-[\w-]{32,}|xox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
_PATHS = re.compile(
    r"(?<![\w.:/~<-])/(?:home|root|Users|tmp|var|mnt|media|data|scratch|work|workspace|opt|srv|private|gpfs|lustre"
    r"|nfs|content|kaggle|dbfs)/[^\s\"'`)\]]+|(?<!\w)[A-Za-z]:\\+[^\s\"'`)\]]+"
)

_REPOSITORY = re.compile(r"\w[\w.-]*/[\w.-]+")

Kind = Literal["checkpoint", "architecture", "adapter"]


@dataclass(frozen=True)
class Publication:
    """
    What would be published.

    Args:
        kind: A checkpoint, the architecture of one without weights, or an adapter (or prototypes).
        files: Sizes in bytes by name.
        left_out: Files of the folder that stay here.
        base: What an adapter is loaded on, a Hub id.
        commit: That it has become; empty for a dry run.
        url: Where it is then.
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

    What is pushed is the folder to the byte, but for its own name, which becomes the repository's in the card's
    snippets, and of an adapter the name of its base.

    Args:
        folder: What `train.py`, `langcell convert` or `langcell adapt` made, with its card (`langcell card`).
        repo_id: `owner/name`.
        base: Hub id of what an adapter was made from, where that is no Hub id yet.
        results: Folder of what `langcell evaluate` wrote, to compare `evaluation.json` with.
        private: Whether a new repository is for its owner alone.
        tag: Name for this state of the repository.
        dry_run: Whether to check and list alone. Nothing is sent, and nobody is asked.

    Raises:
        InputError: What is wrong with the folder, all of it; or a push that was refused or broken off.
    """
    folder = Path(folder)
    if not _REPOSITORY.fullmatch(repo_id):
        raise InputError(f"--repo-id {repo_id!r} is not of the form owner/name.")
    kind = _kind(folder)
    base = _base_of(folder, base)
    check(folder, results=results)
    with _staged(folder, repo_id, base) as staged:
        files = {name: (staged / name).stat().st_size for name in sorted(_names(staged))}
        left_out = sorted(name for name in _names(folder) if name not in files)
        publication = Publication(kind, files, left_out, base)
        if dry_run:
            return publication
        pushed = hub.push(staged, repo_id, private=private, tag=tag, message=f"Publish {folder.resolve().name}")
    return Publication(kind, files, left_out, base, pushed.commit, pushed.url)


def check(folder: str | Path, *, results: str | Path | None = None) -> None:
    """
    Sees that a folder may be published; `publish` does it first.

    Args: `folder` and `results` as for `publish`.

    Raises:
        InputError: All that is wrong with it.
    """
    folder = Path(folder)
    kind = _kind(folder)
    # What is unsafe or not whole is not loaded. The name of a base here is replaced by that on the Hub.
    faults = [*_file_faults(folder), *_leaks(folder, read_json(folder / ADAPTATION).get("base", ""))]
    if not faults and kind == "adapter":
        faults = [*_adapter_faults(folder)]
    elif not faults:
        faults = [*_code_faults(folder)]
        if kind == "checkpoint":
            faults += _processor_faults(folder)
        faults = faults or [*_loading_faults(folder)]
        if not faults:
            adapted = Adaptation.load(folder)
            faults += (
                faults_of(folder) if adapted is None else compare(folder / CARD, render_adaptation(adapted, folder))
            )
            faults += _evaluation_faults(folder, results)
    if faults:
        raise InputError(f"{folder} cannot be published:\n" + "\n".join(f"- {fault}" for fault in faults))


def _kind(folder: Path) -> Kind:
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder.")
    if (folder / CONFIG_NAME).is_file():
        beside = (SAFE_WEIGHTS_NAME, _PROCESSOR, TRAINING, EVALUATION, ADAPTATION, "tokenizer.json")
        return "checkpoint" if any((folder / name).exists() for name in beside) else "architecture"
    if (folder / ADAPTATION).is_file():
        return "adapter"
    raise InputError(f"{folder} holds neither a checkpoint ({CONFIG_NAME}) nor an adapter ({ADAPTATION}).")


def _names(folder: Path) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()]


def _to_publish(folder: Path) -> list[str]:
    return sorted(name for name in _names(folder) if not _OF_THE_RUN.match(name))


# ---------------------------------------------------------------------- what can be wrong


def _file_faults(folder: Path) -> Iterator[str]:
    """Files that are no part of a repository, or that are not what they are called."""
    if _kind(folder) == "checkpoint" and not (folder / SAFE_WEIGHTS_NAME).is_file():
        yield f"{SAFE_WEIGHTS_NAME} is missing: these are settings of a checkpoint without its weights."
    for name in _to_publish(folder):
        path = folder / name
        if path.is_symlink():
            yield f"{name} is a link."
        elif path.suffix in _PICKLES or _is_pickle(path):
            yield f"{name} is a pickle, which can run code where it is loaded: weights go as safetensors alone."
        elif path.suffix not in _ALLOWED and path.name not in _ALLOWED_NAMES:
            yield f"{name} is no part of a model: take it out."
        elif path.suffix == ".json":
            try:
                json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                yield f"{name} is no JSON: {error}"
        elif path.suffix == ".safetensors":
            try:
                with safe_open(path, "pt") as weights:
                    weights.keys()
            except (OSError, SafetensorError) as error:
                yield f"{name} is not whole: {error}"


def _is_pickle(path: Path) -> bool:
    """Whatever it is called: pickles since protocol 2, and PyTorch's archives of them."""
    with open(path, "rb") as file:
        start = file.read(4)
    return (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")) or start == b"PK\x03\x04"


def _leaks(folder: Path, known: str = "") -> Iterator[str]:
    """Paths of this machine, and what looks like a password; but for what is `known` and replaced."""
    for name in _to_publish(folder):
        if Path(name).suffix not in (".json", ".md", ".txt", ".py"):
            continue
        text = (folder / name).read_text(encoding="utf-8", errors="replace")
        text = text.replace(known, "") if known else text
        if found := _SECRETS.search(text):
            yield f"{name} holds what looks like a secret: {found[0][:8]}..."
        if found := _PATHS.search(text):
            yield f"{name} holds a path of this machine: {found[0]}"


def _code_faults(folder: Path) -> Iterator[str]:
    """The family's code must be there, and be this package's."""
    config = read_json(folder / CONFIG_NAME)
    named = [config.get("auto_map", {}), *config.get("custom_pipelines", {}).values()]
    references = [ref for one in named for ref in one.values() if isinstance(ref, str)]
    if (folder / _PROCESSOR).is_file():
        references += read_json(folder / _PROCESSOR).get("auto_map", {}).values()
    if not config.get("auto_map"):
        yield f"{CONFIG_NAME} has no auto_map: save the model again, and it names its code."
    needed = {f"{reference.partition('.')[0]}.py" for reference in references}
    for name in sorted(needed):
        if (_PACKAGE / name).is_file():
            needed |= {Path(path).name for path in get_relative_import_files(_PACKAGE / name)}
    for name in sorted(needed):
        if not (folder / name).is_file():
            yield f"{name}, which {CONFIG_NAME} or {_PROCESSOR} asks for, is missing: save the checkpoint again."
    for path in sorted(folder.glob("*.py")):
        own = _PACKAGE / path.name
        if not own.is_file() or path.name not in needed:
            yield f"{path.name} is no code of this family."
        elif own.read_bytes() != path.read_bytes():
            yield f"{path.name} is not that of modeling-langcell here: save the checkpoint again."


def _processor_faults(folder: Path) -> Iterator[str]:
    """Genes and word pieces must be those that the model embeds."""
    config = read_config(folder)
    if not (folder / _PROCESSOR).is_file():
        yield f"{_PROCESSOR} is missing, and with it the gene vocabulary."
        return
    try:
        processor = AutoProcessor.from_pretrained(folder)
        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{_PROCESSOR} does not load: {str(error).strip().splitlines()[0]}"
        return
    joint = isinstance(config, LangCellConfig)
    cell = config.cell_config if joint else config
    if len(extractor) != cell.vocab_size:
        yield f"{_PROCESSOR} has {len(extractor)} genes, special tokens included, and the model {cell.vocab_size}."
    if not any(median is not None for median in extractor.gene_vocabulary["medians"]):
        yield f"{_PROCESSOR} has no gene with a median."
    if joint and len(tokenizer) != config.text_config.vocab_size:
        yield f"the tokenizer has {len(tokenizer)} word pieces, and the model {config.text_config.vocab_size}."


def _loading_faults(folder: Path) -> Iterator[str]:
    """Loads it with this package, and in a process of its own without: both must give the same."""
    try:
        with_package = loading_probe.probe(folder)
    except Exception as error:  # Whatever transformers raises for a folder that does not load.
        yield f"it does not load: {str(error).strip().splitlines()[0]}"
        return
    with tempfile.TemporaryDirectory() as aside:
        output = Path(aside, "found.safetensors")
        environment = os.environ | {"HF_HOME": aside, "HF_MODULES_CACHE": f"{aside}/modules", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-I", loading_probe.__file__, str(folder.resolve()), str(output)],
            cwd=aside,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            yield f"it does not load without this package: {done.stderr.strip().splitlines()[-1]}"
            return
        without = load_file(output)
    for name, tensor in with_package.items():
        if not torch.allclose(tensor.double(), without[name].double(), atol=1e-6, rtol=0):
            difference = (tensor.double() - without[name].double()).abs().max()
            yield f"{name} differ by {difference:.1e} with this package and without."
        if not tensor.isfinite().all():
            yield f"{name} are not finite."


def _evaluation_faults(folder: Path, results: str | Path | None) -> Iterator[str]:
    """The figures must be of these weights and, where the results are at hand, be theirs."""
    evaluation = read_json(folder / EVALUATION)
    if evaluation and evaluation.get("model") != fingerprint_of(folder):
        yield f"{EVALUATION} is of another model: 'langcell evaluate' this one, and 'langcell card' again."
    if results is not None and summarize(results) != evaluation:
        yield f"{EVALUATION} is not what {results} says: 'langcell card {folder} --results {results}' draws it anew."


def _adapter_faults(folder: Path) -> Iterator[str]:
    """It must load on its base, and its card be of this adapter."""
    adaptation = Adaptation.load(folder)
    assert adaptation is not None
    try:
        load_checkpoint(None, folder)
    except InputError as error:
        yield str(error)
    if not adaptation.labels or set(adaptation.cells) - set(adaptation.labels):
        yield f"{ADAPTATION} does not say of its labels what they were learnt from."
    yield from compare(folder / CARD, render_adaptation(adaptation, folder))


# ---------------------------------------------------------------------- what is sent


def _base_of(folder: Path, base: str | None) -> str:
    """The Hub id of what was adapted; nothing where nothing was."""
    made_from = read_json(folder / ADAPTATION).get("base", "")
    if not made_from:
        return ""
    base = base or made_from
    if not _REPOSITORY.fullmatch(base) or Path(base).is_dir():
        raise InputError(
            f"{folder} was made from {made_from!r}, which is no repository of the Hub: publish that first, and name it "
            "with --base OWNER/NAME."
        )
    return base


@contextmanager
def _staged(folder: Path, repo_id: str, base: str) -> Iterator[Path]:
    """A copy as it is to stand in the repository."""
    with tempfile.TemporaryDirectory() as aside:
        staged = Path(aside, folder.resolve().name)
        for name in _to_publish(folder):
            target = staged / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / name, target)
        renamed = {folder.resolve().name: repo_id}
        if base:
            renamed[read_json(folder / ADAPTATION)["base"]] = base
            _edit_json(staged / ADAPTATION, "base", base)
            if (staged / PEFT_CONFIG).is_file():
                _edit_json(staged / PEFT_CONFIG, "base_model_name_or_path", base)
        card = (staged / CARD).read_text(encoding="utf-8")
        for here, there in renamed.items():
            card = card.replace(f'"{here}"', f'"{there}"').replace(f"`{here}`", f"`{there}`")
            card = re.sub(rf"^(base_model: ){re.escape(here)}$", rf"\g<1>{there}", card, flags=re.MULTILINE)
        (staged / CARD).write_text(card, encoding="utf-8")
        if faults := list(_leaks(staged)):
            raise InputError(f"{folder} cannot be published:\n" + "\n".join(f"- {fault}" for fault in faults))
        yield staged


def _edit_json(path: Path, name: str, value: str) -> None:
    path.write_text(json.dumps(read_json(path) | {name: value}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["Publication", "check", "publish"]
