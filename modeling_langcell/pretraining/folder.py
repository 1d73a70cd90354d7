# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The output folder of a run: claimed by its settings, filled with logs, and finished with a checkpoint."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..checkpoint.files import CARD, TRAINING, explaining_entries, read_json
from ..corpus.folder import GENES, MANIFEST, PANELS, PLACES
from ..io.atomic import atomic_write, remove_leftovers
from ..io.content import content_hash
from ..io.outputs import writing_into
from ..model.errors import InputError, reason_of
from ..model.modeling_langcell import LangCellForPreTraining, LangCellModel
from ..model.processing_langcell import LangCellProcessor
from .config import PretrainingConfig
from .resume import remove_checkpoints

LOSSES, HELD_OUT = "losses.jsonl", "held_out.jsonl"
_RUN, _CHECKPOINTS = "run.json", "checkpoints"
#: The files that `atomic_write` writes, which a killed process may leave incomplete under a hidden name.
_WRITTEN_WHOLE = (_RUN, LOSSES, HELD_OUT, TRAINING, CARD)
#: Settings that may change when a run is resumed: the trained weights do not depend on them.
_FREE_TO_CHANGE = {"output", "workers", "checkpoint_every", "push_to"}
#: Settings that name files or folders to read, or repositories on the Hub.
_INPUTS = ("corpus", "held_out", "start", "text_tower", "cell_tower", "gene_names_from")


class RunFolder:
    """
    The output folder of a run. `run.json` exists from the first step until the run is finished, `training.json` once
    the model is saved.

    Args:
        config: The run's settings.
    """

    def __init__(self, config: PretrainingConfig):
        self.config, self.path = config, Path(config.output)
        self.checkpoints = self.path / _CHECKPOINTS
        self._run, self._training = self.path / _RUN, self.path / TRAINING

    def is_trained(self) -> bool:
        """
        Returns true if the folder holds the trained model of this run, which was killed before it was finished.

        Raises:
            InputError: The folder holds a run with different settings, a finished or a damaged one, or other files.
        """
        trained = self._training.exists()
        if not self._run.exists():
            if trained:
                raise InputError(f"{self.path} already holds a finished run: choose a new folder.")
            self._require_free()
            return False
        settings, found = self._settings(), read_json(self._run)
        differing = sorted(name for name in settings if found.get(name) != settings[name])
        if differing:
            raise InputError(
                f"{self.path} holds a run with different settings ({', '.join(differing)}): choose a new folder."
            )
        return trained

    def _require_free(self) -> None:
        """
        Checks, before a new run, that it replaces nothing: it writes many files, and none of them is hidden.

        Raises:
            InputError: The folder holds files of others.
        """
        if self.path.exists() and any(not path.name.startswith(".") for path in self.path.iterdir()):
            raise InputError(f"{self.path} is not empty, and holds no unfinished run: choose a new folder.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """
        Turns write errors into a message that says how to continue.

        Raises:
            InputError: The disk is full, the folder is not writable, an input cannot be read, or the like.
        """
        then = "The same command continues from the last checkpoint."
        try:
            with writing_into(self.path, then):
                yield
        except SafetensorError as error:
            raise InputError(f"{self.path} cannot be written: {reason_of(error)}. {then}") from error

    def claim(self) -> None:
        """
        Writes the run's settings, so that no other run uses the folder.

        Raises:
            OSError: The folder cannot be written.
        """
        if not self._run.exists():
            atomic_write(self._run, json.dumps(self._settings(), indent=1).encode())

    def _settings(self) -> dict[str, Any]:
        """Returns the settings that must be the same when the run is resumed; inputs count by their content."""
        settings = {name: value for name, value in asdict(self.config).items() if name not in _FREE_TO_CHANGE}
        return settings | {name: _content_of(settings[name]) for name in _INPUTS}

    def log(self, name: str, step: int, values: dict[str, float]) -> None:
        """Appends a line to a log, and makes sure that it is on disk: no checkpoint may be newer than the logs."""
        with open(self.path / name, "a") as log:
            print(json.dumps({"step": step, **values}), file=log, flush=True)
            os.fsync(log.fileno())

    def truncate_logs(self, step: int) -> None:
        """Removes incomplete or damaged lines, and lines after a step, from the logs."""

        def is_kept(line: str) -> bool:
            try:
                return line.endswith("}\n") and json.loads(line)["step"] <= step
            except (ValueError, KeyError, TypeError):
                return False

        for name in (LOSSES, HELD_OUT):
            if (path := self.path / name).exists():
                lines = path.read_text(errors="replace").splitlines(keepends=True)
                atomic_write(path, "".join(line for line in lines if is_kept(line)).encode())

    def save_model(self, model: LangCellForPreTraining, processor: LangCellProcessor, record: dict[str, Any]) -> None:
        """
        Saves model and processor, and then the training record, which marks the run as trained.

        Args:
            model: The trained model. An untrained masked-gene head is not saved.
            processor: Its processor.
            record: Corpus, machine and versions of the training.
        """
        saved: LangCellModel = model
        if not model.config.masked_gene_weight:
            saved = LangCellModel(model.config)
            saved.load_state_dict(
                {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head.")}
            )
        saved.to(getattr(torch, self.config.saved_dtype)).save_pretrained(self.path)
        # Half precision only saves space on disk: the checkpoint loads as float32 by default.
        for part in (saved.config, saved.config.cell_config, saved.config.text_config):
            part.dtype = torch.float32
        saved.config.save_pretrained(self.path)
        processor.save_pretrained(self.path)
        settings = {name: _without_folder(value) for name, value in asdict(self.config).items() if name != "output"}
        runs = [*self.earlier_runs(), {"config": settings, **record}]
        atomic_write(self._training, (json.dumps({"runs": runs}, indent=1) + "\n").encode())

    def earlier_runs(self) -> list[dict[str, Any]]:
        """
        Reads the training record of the checkpoint that the run started from.

        Raises:
            InputError: The record is damaged.
        """
        if self.config.start is None:
            return []
        record = Path(self.config.start, TRAINING)
        with explaining_entries(record):
            return list(read_json(record).get("runs", []))

    def remove_working_files(self) -> None:
        """Removes training checkpoints, and files that a killed process left incomplete."""
        remove_checkpoints(self.checkpoints)
        for name in _WRITTEN_WHOLE:
            remove_leftovers(self.path / name)

    def finish(self) -> None:
        """Marks the run as finished."""
        self._run.unlink()


def _content_of(source: str | None) -> str | None:
    """Returns the hash of a file, of a corpus or of a checkpoint's folder; the name of anything else."""
    path = Path(source or "")
    if source is None or not path.exists():
        return source
    if (path / MANIFEST).is_file():  # It has the checksums of the shards, which are too large to read here.
        return content_hash(path, [path / name for name in (MANIFEST, GENES, PANELS, PLACES)])
    if path.is_dir():
        return content_hash(path, [one for one in path.iterdir() if one.name != CARD and not one.name.startswith(".")])
    return content_hash(path)


def _without_folder(value: Any) -> Any:
    """Returns a setting for the record: only the name of a path, since its folder is on this machine only."""
    is_path = isinstance(value, str) and (Path(value).is_absolute() or ("/" in value and Path(value).exists()))
    return Path(value).name if is_path else value


__all__ = ["HELD_OUT", "LOSSES", "RunFolder"]
