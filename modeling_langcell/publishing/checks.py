# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Checks that a folder may be published: first its files, which need no model, and then the model's output."""

import json
import os
import pickletools
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from errno import ENOSPC
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import anndata as ad
import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..annotation.annotator import LangCellAnnotator
from ..checkpoint.files import CARD, EVALUATION, PROCESSOR, PROSE
from ..checkpoint.folder import CheckpointFolder
from ..checkpoint.loading import require_same_vocabularies
from ..io.atomic import temporary_folder
from ..io.columns import PROBABILITIES
from ..io.documents import parse_json
from ..model.errors import InputError
from . import probe
from .cards import Prose, render
from .evaluation import summarize

#: The family's code, which a checkpoint carries along.
_HUB_FILES = Path(__file__).resolve().parent.parent / "model"
#: Files that may be in a repository: settings, safetensors, the family's code, texts and pictures.
_TEXTS = (".json", ".py", ".md", ".txt", ".svg", "LICENSE", "NOTICE")
_WEIGHTS, _PICTURES = ".safetensors", ".png"
#: Files that are not published: files that a training run leaves next to its checkpoint, and hidden files.
_NOT_PUBLISHED = re.compile(r"^(tensorboard/.*|checkpoints/.*|.*\.jsonl|run\.json|(.*/)?__pycache__/.*|(.*/)?\..*)$")
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


def check(folder: CheckpointFolder, *, results: str | Path | None = None) -> None:
    """
    Checks that a folder may be published; `publish` does it first.

    Args:
        folder: The folder.
        results: Folder that `langcell evaluate` wrote, to compare `evaluation.json` with.

    Raises:
        InputError: The folder may not be published. The message lists every fault.
    """
    faults = [*_file_faults(folder)]
    safe = not faults  # Nothing is loaded from a folder with unsafe or incomplete files.
    adaptation = folder.adaptation if safe else None
    # `publish` replaces the name of the base with that on the Hub.
    faults += leaks(folder.path, [*names_to_publish(folder.path), PROSE], "" if adaptation is None else adaptation.base)
    if safe:
        faults += _code_faults(folder)
    if not faults and folder.kind == "checkpoint":
        faults += _processor_faults(folder)
    if not faults:
        faults += [*_card_faults(folder), *_results_faults(folder, results)]
    if not faults:
        faults += _adapter_faults(folder) if folder.kind == "adapter" else _loading_faults(folder)
    if not faults:
        faults += _fingerprint_faults(folder)
    if faults:
        raise refusal(folder.path, faults)


def refusal(path: Path, faults: Iterable[str]) -> InputError:
    """Returns the error that lists the faults of a folder."""
    return InputError(f"{path} cannot be published:\n" + "\n".join(f"- {fault}" for fault in faults))


def names_in(path: Path) -> list[str]:
    """Returns the names of all files in a folder and its subfolders."""
    return [file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()]


def names_to_publish(path: Path) -> list[str]:
    """Returns the names of the files that are published as they are; the card is rendered again."""
    return sorted(name for name in names_in(path) if not _NOT_PUBLISHED.match(name) and name not in (CARD, PROSE))


def leaks(path: Path, names: Iterable[str], known: str = "") -> Iterator[str]:
    """
    Finds paths of this machine and passwords in files.

    Args:
        path: The folder.
        names: Names of files in it.
        known: Text that is ignored.

    Yields:
        A fault for each file with a path, and one for each with a password.
    """
    for name in names:
        text = _text_in(name, path / name)
        text = text.replace(known, "") if known else text
        if found := _SECRETS.search(text):
            yield f"{name} holds what looks like a secret: {found[0][:8]}..."
        if found := _PATHS.search(text):
            yield f"{name} holds a path of this machine: {found[0]}"
        elif name.endswith(".json") and name != "tokenizer.json":  # Word pieces are not paths.
            for value in _texts_in_json(text):
                if len(value) > 2 and (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
                    yield f"{name} holds a path of this machine: {value}"
                    break


# ---------------------------------------------------------------------- files


def _file_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Yields a fault for each file that does not belong in a repository, or does not fit its name."""
    path = folder.path
    if folder.kind == "checkpoint" and not (path / SAFE_WEIGHTS_NAME).is_file():
        yield f"{SAFE_WEIGHTS_NAME} is missing: the folder holds a checkpoint's settings without its weights."
    if folder.kind == "checkpoint" and not (path / PROCESSOR).is_file():
        yield f"{PROCESSOR} is missing, and with it the gene vocabulary."
    for name in names_to_publish(path):
        if not _is_regular(path / name):
            yield f"{name} is a link, or not a regular file."
            continue
        try:
            yield from _content_faults(name, path / name)
        except OSError as error:
            yield f"{name} cannot be read: {error}"
    if (path / PROSE).is_symlink() or ((path / PROSE).exists() and not (path / PROSE).is_file()):
        yield f"{PROSE} is a link, or not a regular file."


def _is_regular(file: Path) -> bool:
    """Returns true for a regular file, and for a link to the file of that name in the package's own code."""
    if file.is_symlink():
        return file.suffix == ".py" and file.is_file() and file.resolve() == _HUB_FILES / file.name
    return file.is_file()


def _content_faults(name: str, path: Path) -> Iterator[str]:
    if name.endswith(_WEIGHTS):
        try:
            with safe_open(path, "pt") as weights:
                weights.keys()
        except SafetensorError as error:
            yield f"{name} {'is a pickle' if _is_pickle(path.read_bytes()) else 'is incomplete'}: {error}"
    elif name.endswith(_PICKLES) or _is_pickle(path.read_bytes()):
        yield f"{name} is a pickle, which can run code where it is loaded: save weights as safetensors."
    elif name.endswith(_PICTURES):
        if not path.read_bytes().startswith(b"\x89PNG"):
            yield f"{name} is not a picture."
    elif not name.endswith(_TEXTS):
        yield f"{name} is not part of a model: remove it."
    else:
        try:
            text = path.read_bytes().decode()
            if name.endswith(".json"):
                parse_json(text, name)
        except UnicodeDecodeError:
            yield f"{name} is not text in UTF-8."
        except InputError as error:
            yield str(error)


def _is_pickle(content: bytes) -> bool:
    """Recognizes pickles of any protocol, and PyTorch's archives of them, by their content."""
    if content[:4] == b"PK\x03\x04" or (
        content[:1] == b"\x80" and content[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"}
    ):
        return True
    try:
        steps = list(pickletools.genops(content))
    except Exception:  # Other content fails in as many ways as there are opcodes.
        return False
    return len(steps) > 1 and steps[-1][2] == len(content.rstrip()) - 1


def _text_in(name: str, path: Path) -> str:
    """Returns the text of a file (for weights, their metadata); an empty text for a damaged file."""
    try:
        if name.endswith(_WEIGHTS):
            with safe_open(path, "pt") as weights:
                return json.dumps(weights.metadata() or {})
        return path.read_text(encoding="utf-8") if name.endswith((*_TEXTS, PROSE)) and path.is_file() else ""
    except (OSError, UnicodeDecodeError, SafetensorError):
        return ""


def _texts_in_json(content: str) -> Iterator[str]:
    """Yields all values in JSON that are texts."""
    try:
        left = [parse_json(content, "")]
    except InputError:
        return
    while left:
        value = left.pop()
        if isinstance(value, str):
            yield value
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


# ---------------------------------------------------------------------- code, vocabularies and card


def _code_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Yields a fault for missing, differing or foreign code; an adapter has none."""
    path, references = folder.path, list[Any]()
    for file in (CONFIG_NAME, PROCESSOR, "tokenizer_config.json", "preprocessor_config.json"):
        for named in _code_maps(folder.json(file)):
            if not isinstance(named, dict):
                yield f"{file}: its auto_map or custom_pipelines do not name code as transformers does."
                continue
            code = [value for key, value in named.items() if key != "pt"]  # "pt" names transformers' own.
            # A tokenizer names two classes, one of which may be None.
            references += [ref for value in code for ref in (value if isinstance(value, list) else [value]) if ref]
    if folder.kind != "adapter" and not folder.json(CONFIG_NAME).get("auto_map"):
        yield f"{CONFIG_NAME} has no auto_map: save the model again to add it."
    for reference in references:
        if not re.fullmatch(r"\w+\.\w+", str(reference)):
            yield f"{reference} is code outside this folder."
    needed = {f"{str(reference).partition('.')[0]}.py" for reference in references}
    for name in sorted(needed):
        if (_HUB_FILES / name).is_file():
            needed |= {Path(imported).name for imported in get_relative_import_files(_HUB_FILES / name)}
    for name in sorted(needed):
        if not (path / name).is_file():
            yield f"{name}, which {CONFIG_NAME} or {PROCESSOR} needs, is missing: save the checkpoint again."
    for name in (name for name in names_to_publish(path) if name.endswith(".py")):
        if not (_HUB_FILES / name).is_file():
            yield f"{name} is not code of modeling-langcell."
        elif (_HUB_FILES / name).read_bytes() != (path / name).read_bytes():
            yield f"{name} differs from that of the installed modeling-langcell: save the checkpoint again."


def _code_maps(settings: dict[str, Any]) -> Iterator[Any]:
    """Yields each auto_map and each custom pipeline in settings and in the settings inside them."""
    for name, value in settings.items():
        if name == "auto_map":
            yield value or {}
        elif name == "custom_pipelines":
            yield from value.values() if isinstance(value, dict) else [value or {}]
        elif isinstance(value, dict):
            yield from _code_maps(value)


def _processor_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Yields a fault if the genes or word pieces differ from those that the model embeds."""
    try:
        require_same_vocabularies(folder.config, folder.processor, folder.path)
    except InputError as error:
        yield str(error)
        return
    if not any(median is not None for median in folder.processor.feature_extractor.gene_vocabulary["medians"]):
        yield f"{PROCESSOR} has no gene with a median."


def _card_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Yields a fault if no card can be rendered from the files."""
    try:
        prose = Prose.of(folder)
        render(folder, prose)
    except InputError as error:
        yield str(error)
        return
    if "TODO" in str(prose):
        yield f"{PROSE} still says TODO."


def _results_faults(folder: CheckpointFolder, results: str | Path | None) -> Iterator[str]:
    if results is not None and summarize(results) != folder.evaluation:
        yield f"{EVALUATION} differs from {results}: 'langcell card {folder.path} --results {results}' updates it."


# ---------------------------------------------------------------------- model


def _loading_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Loads the folder with this package, and in a separate process without it; both must give the same."""
    try:
        if folder.kind == "architecture":
            with_package = {"parameters": torch.tensor(folder.parameters)}
        else:
            with_package = probe.embed(folder.model, folder.processor)
    except Exception as error:  # torch and transformers raise errors of every kind for weights that do not fit.
        yield f"it does not load: {_first_line(error)}"
        return
    with temporary_folder() as temporary:
        output = Path(temporary, "found.safetensors")
        environment = os.environ | {
            "HF_HOME": str(temporary),
            "HF_MODULES_CACHE": f"{temporary}/modules",
            "HF_HUB_OFFLINE": "1",
        }
        # The process ends with this one, however this one ends: nobody holds the other end of its stdin any more.
        stdin, held = os.pipe()
        try:
            done = subprocess.run(
                [sys.executable, "-I", probe.__file__, str(folder.path.resolve()), str(output)],
                cwd=temporary,
                env=environment,
                stdin=stdin,
                capture_output=True,
                text=True,
            )
        finally:
            os.close(stdin)
            os.close(held)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
            if os.strerror(ENOSPC) in lines[-1]:  # The checkpoint is not to blame.
                raise OSError(ENOSPC, os.strerror(ENOSPC))
            yield f"it does not load without this package: {lines[-1]}"
            return
        without = load_file(output)
    for name, tensor in with_package.items():
        if not torch.allclose(tensor.double(), without[name].double(), atol=1e-6, rtol=0):
            difference = (tensor.double() - without[name].double()).abs().max()
            yield f"{name} differ by {difference:.1e} with and without this package."
        if not tensor.isfinite().all():
            yield f"{name} are not finite."


def _adapter_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Loads an adapter on its base, and annotates made-up cells; their scores must be finite."""
    try:
        model, processor = folder.model, folder.processor
        genes, counts = probe.made_up_cells(processor)
        cells = ad.AnnData(counts.astype(np.float32))
        cells.var_names = genes
        LangCellAnnotator(model, processor, adaptation=folder.adaptation, device="cpu").annotate(cells)
        if not np.isfinite(cells.obsm[PROBABILITIES].to_numpy()).all():
            yield "its scores are not finite, so neither are its weights."
    except InputError as error:
        yield str(error)
    except Exception as error:  # torch raises errors of every kind for weights of a different shape.
        yield f"it does not annotate: {_first_line(error)}"


def _fingerprint_faults(folder: CheckpointFolder) -> Iterator[str]:
    """Yields a fault if the results belong to different weights from the folder's."""
    try:
        if folder.evaluation and folder.evaluation.get("model") != folder.fingerprint:
            yield f"{EVALUATION} belongs to a different model: run 'langcell evaluate' and 'langcell card' on this one."
    except InputError as error:
        yield f"{EVALUATION}: {error}"


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


__all__ = ["check", "leaks", "names_in", "names_to_publish", "refusal"]
