# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A folder to a repository of the Hub: checked as a stranger would meet it, pushed in one commit, pulled and compared.
"""

import json
import os
import pickletools
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Literal

import anndata as ad
import numpy as np
import torch
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoProcessor
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..annotation.annotator import LangCellAnnotator
from ..checkpoint import repository as hub
from ..checkpoint.adaptation_record import ADAPTATION, PEFT_CONFIG, Adaptation
from ..checkpoint.builtin import MINI
from ..checkpoint.files import CARD, EVALUATION, TRAINING, read_config, read_json
from ..checkpoint.loading import load_checkpoint
from ..io.columns import PROBABILITIES
from ..model.configuration_langcell import LangCellConfig
from ..model.errors import InputError
from . import probe
from .cards import faults_of, fingerprint_of, summarize

_PACKAGE = Path(__file__).parent.parent / "model"
_PROCESSOR = "processor_config.json"
#: What may stand in a repository: settings, weights that are nothing but numbers, the family's code, texts, pictures.
_TEXTS = (".json", ".py", ".md", ".txt", ".svg", "LICENSE", "NOTICE")
_WEIGHTS, _PICTURES = ".safetensors", ".png"
#: What a training run leaves beside its checkpoint, and hidden files: these stay here.
_STAYS = re.compile(r"^(tensorboard/.*|checkpoints/.*|.*\.jsonl|run\.json|(.*/)?__pycache__/.*|(.*/)?\..*)$")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".joblib")
_SECRETS = re.compile(
    r"(?<![A-Za-z0-9])(hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|AKIA[0-9A-Z]{16}|AIza[\w-]{35}"
    r"|sk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{32,}|xox[abprs]-[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY-----)"
)
_PATHS = re.compile(
    r"(?<![\w.:/~<-])/(?:home|root|Users|Volumes|tmp|var|mnt|media|data|scratch|cluster|work|workspace|opt|srv|private"
    r"|gpfs|lustre|nfs|content|kaggle|dbfs)/[^\s\"'`)\]]+"
    r"|file://[^\s\"'`)\]]+|(?<!\w)[A-Za-z]:(?:\\+|/(?!/))[^\s\"'`)\]]+"
)
_TAG = re.compile(r"\w(?:[\w-]|\.(?!\.))*(?<!\.lock)(?<!\.)", re.ASCII)

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
    if not _is_repository(repo_id):
        raise InputError(f"{repo_id!r} can be no repository of the Hub, OWNER/NAME.")
    if tag is not None and not _TAG.fullmatch(tag):
        raise InputError(f"{tag!r} can be no tag: letters, digits, '-', '_' and single dots, such as v1.0.")
    kind = _kind(folder)
    base = _base_of(folder, base)
    check(folder, results=results)
    if base and kind == "adapter" and not dry_run:
        load_checkpoint(base, folder)  # As others will.
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
    # What is unsafe or not whole is not loaded.
    faults = [*_file_faults(folder)]
    whole = not faults
    adaptation = Adaptation.load(folder) if whole else None
    # The name of a base here is replaced by that on the Hub.
    faults += _leaks(folder, "" if adaptation is None else adaptation.base)
    if whole:
        faults += _code_faults(folder, kind)
    if not faults and kind == "checkpoint":
        faults += _processor_faults(folder)
    if not faults:
        faults += _adapter_faults(folder) if kind == "adapter" else _loading_faults(folder)
    if not faults:
        faults += [*faults_of(folder), *_evaluation_faults(folder, results)]
    if faults:
        raise _refusal(folder, faults)


def _refusal(folder: Path, faults: list[str]) -> InputError:
    return InputError(f"{folder} cannot be published:\n" + "\n".join(f"- {fault}" for fault in faults))


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
    return sorted(name for name in _names(folder) if not _STAYS.match(name))


# ---------------------------------------------------------------------- what can be wrong


def _file_faults(folder: Path) -> Iterator[str]:
    """Files that are no part of a repository, or that are not what they are called."""
    if _kind(folder) == "checkpoint" and not (folder / SAFE_WEIGHTS_NAME).is_file():
        yield f"{SAFE_WEIGHTS_NAME} is missing: these are settings of a checkpoint without its weights."
    for name in _to_publish(folder):
        path = folder / name
        if path.is_symlink() or not path.is_file():
            yield f"{name} is a link, or no regular file."
            continue
        try:
            yield from _content_faults(name, path)
        except OSError as error:
            yield f"{name} cannot be read: {error}"


def _content_faults(name: str, path: Path) -> Iterator[str]:
    if name.endswith(_WEIGHTS):
        try:
            with safe_open(path, "pt") as weights:
                weights.keys()
        except SafetensorError as error:
            yield f"{name} {'is a pickle' if _is_pickle(path.read_bytes()) else 'is not whole'}: {error}"
    elif name.endswith(_PICKLES) or _is_pickle(path.read_bytes()):
        yield f"{name} is a pickle, which can run code where it is loaded: weights go as safetensors alone."
    elif name.endswith(_PICTURES):
        if not path.read_bytes().startswith(b"\x89PNG"):
            yield f"{name} is no picture."
    elif not name.endswith(_TEXTS):
        yield f"{name} is no part of a model: take it out."
    else:
        try:
            text = path.read_bytes().decode()
            if name.endswith(".json"):
                json.loads(text)
        except UnicodeDecodeError:
            yield f"{name} is no text in UTF-8."
        except (ValueError, RecursionError) as error:
            yield f"{name} is no JSON: {error}"


def _is_pickle(content: bytes) -> bool:
    """Whatever it is called: pickles of any protocol, and PyTorch's archives of them."""
    if content[:4] == b"PK\x03\x04" or (
        content[:1] == b"\x80" and content[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
    ):
        return True
    try:
        steps = list(pickletools.genops(content))
    except Exception:  # What is no pickle stumbles in as many ways as there are opcodes.
        return False
    return len(steps) > 1 and steps[-1][2] == len(content.rstrip()) - 1


def _leaks(folder: Path, known: str = "") -> Iterator[str]:
    """Paths of this machine, and what looks like a password; but for what is `known` and replaced."""
    for name in _to_publish(folder):
        text = _text_of(name, folder / name)
        text = text.replace(known, "") if known else text
        if found := _SECRETS.search(text):
            yield f"{name} holds what looks like a secret: {found[0][:8]}..."
        if found := _PATHS.search(text):
            yield f"{name} holds a path of this machine: {found[0]}"
        elif name.endswith(".json") and name != "tokenizer.json":  # Its words are no paths.
            for value in _texts_in(text):
                if len(value) > 2 and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
                    yield f"{name} holds a path of this machine: {value}"
                    break


def _text_of(name: str, path: Path) -> str:
    """What can be read of a file, of weights what is said beside them; of what is not whole nothing."""
    try:
        if name.endswith(_WEIGHTS):
            with safe_open(path, "pt") as weights:
                return json.dumps(weights.metadata() or {})
        return path.read_text(encoding="utf-8") if name.endswith(_TEXTS) and path.is_file() else ""
    except (OSError, UnicodeDecodeError, SafetensorError):
        return ""


def _texts_in(content: str) -> Iterator[str]:
    """All texts in JSON that are values."""
    try:
        left = [json.loads(content)]
    except (ValueError, RecursionError):
        return
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _code_faults(folder: Path, kind: Kind) -> Iterator[str]:
    """The family's code must be there, and be this package's; an adapter has none."""
    references: list[object] = []
    for file in (CONFIG_NAME, _PROCESSOR, "tokenizer_config.json", "preprocessor_config.json"):
        settings = read_json(folder / file)
        pipelines = settings.get("custom_pipelines") or {}
        named = [settings.get("auto_map") or {}, *(pipelines.values() if isinstance(pipelines, dict) else [pipelines])]
        if not all(isinstance(one, dict) for one in named):
            yield f"{file}: its auto_map or custom_pipelines name no code as transformers has it."
            continue
        code = [value for one in named for key, value in one.items() if key != "pt"]  # "pt" names transformers' own.
        # A tokenizer names two classes, of which one may be none.
        references += [ref for value in code for ref in (value if isinstance(value, list) else [value]) if ref]
    if kind != "adapter" and not read_json(folder / CONFIG_NAME).get("auto_map"):
        yield f"{CONFIG_NAME} has no auto_map: save the model again, and it names its code."
    for reference in references:
        if not re.fullmatch(r"\w+\.\w+", str(reference)):
            yield f"{reference} is code of another place than this folder."
    needed = {f"{str(reference).partition('.')[0]}.py" for reference in references}
    for name in sorted(needed):
        if (_PACKAGE / name).is_file():
            needed |= {Path(path).name for path in get_relative_import_files(_PACKAGE / name)}
    for name in sorted(needed):
        if not (folder / name).is_file():
            yield f"{name}, which {CONFIG_NAME} or {_PROCESSOR} asks for, is missing: save the checkpoint again."
    for name in (name for name in _to_publish(folder) if name.endswith(".py")):
        if name not in needed or not (_PACKAGE / name).is_file():
            yield f"{name} is no code that this folder needs."
        elif (_PACKAGE / name).read_bytes() != (folder / name).read_bytes():
            yield f"{name} is not that of modeling-langcell here: save the checkpoint again."


def _processor_faults(folder: Path) -> Iterator[str]:
    """Genes and word pieces must be those that the model embeds."""
    config = read_config(folder)
    if not (folder / _PROCESSOR).is_file():
        yield f"{_PROCESSOR} is missing, and with it the gene vocabulary."
        return
    try:
        processor = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield f"{_PROCESSOR} does not load: {_first_line(error)}"
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
        with_package = probe.probe(folder, trust_remote_code=False)
    except Exception as error:  # Whatever transformers raises for a folder that does not load.
        yield f"it does not load: {_first_line(error)}"
        return
    with tempfile.TemporaryDirectory() as aside:
        output = Path(aside, "found.safetensors")
        environment = os.environ | {"HF_HOME": aside, "HF_MODULES_CACHE": f"{aside}/modules", "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [sys.executable, "-I", probe.__file__, str(folder.resolve()), str(output)],
            cwd=aside,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
            yield f"it does not load without this package: {said[-1]}"
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
    """It must load on its base, and give made-up cells scores that are numbers."""
    try:
        model, processor, adaptation = load_checkpoint(None, folder)
        genes, counts = probe.cells_of(processor)
        cells = ad.AnnData(counts.astype(np.float32))
        cells.var_names = genes
        LangCellAnnotator(model, processor, adaptation=adaptation, device="cpu").annotate(cells)
        if not np.isfinite(cells.obsm[PROBABILITIES].to_numpy()).all():
            yield "its scores are no numbers: the weights are not finite."
    except InputError as error:
        yield str(error)
    except Exception as error:  # Whatever weights of another shape make torch stumble over.
        yield f"it does not annotate: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


# ---------------------------------------------------------------------- what is sent


def _is_repository(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name.isascii() and name.count("/") == 1


def _base_of(folder: Path, base: str | None) -> str:
    """What was adapted, as others find it: a Hub id, or the checkpoint of the package; nothing where nothing was."""
    adaptation = Adaptation.load(folder)
    if adaptation is None:
        return ""
    base = base or adaptation.base
    if base != MINI and (not _is_repository(base) or Path(base).is_dir()):
        raise InputError(
            f"{folder} was made from {base!r}, which is no repository of the Hub: publish that first, and name it with "
            "--base OWNER/NAME."
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
        card = (staged / CARD).read_text(encoding="utf-8")
        card = _renamed(card, folder.resolve().name, repo_id)
        if base:
            made_from = read_json(folder / ADAPTATION)["base"]
            card = _renamed(card, made_from, base).replace(f"`{made_from}`", f"`{base}`")
            card = card.replace(f"\nbase_model: {made_from}\n", f"\nbase_model: {base}\n", 1)
            _edit_json(staged / ADAPTATION, "base", base)
            if (staged / PEFT_CONFIG).is_file():
                _edit_json(staged / PEFT_CONFIG, "base_model_name_or_path", base)
        (staged / CARD).write_text(card, encoding="utf-8")
        if faults := list(_leaks(staged)):
            raise _refusal(folder, faults)
        yield staged


def _renamed(card: str, here: str, there: str) -> str:
    """The snippets of a card, with a model's name there for its name here."""
    loads = r"(from_pretrained\((?:model, |adapter=)?|model=)"
    return re.sub(rf'{loads}"{re.escape(here)}"', lambda found: f'{found[1]}"{there}"', card)


def _edit_json(path: Path, name: str, value: str) -> None:
    if read_json(path).get(name) == value:
        return  # To the byte as it is.
    path.write_text(json.dumps(read_json(path) | {name: value}, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


__all__ = ["Publication", "check", "publish"]
