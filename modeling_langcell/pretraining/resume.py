# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Training checkpoints, from which a killed run resumes."""

import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from ..io.atomic import reserve
from ..model.errors import InputError, reason_of

logger = logging.getLogger(__name__)

_PROGRESS, _AVERAGE = "progress.json", "average.safetensors"
#: Bytes that still fit into a folder, unless it is full.
_ROOM = 2**20
#: The name of a checkpoint, which holds the number of its step. While it is incomplete it is hidden.
_NAME = re.compile(r"\.?step-(\d{8,})")


class TrainingCheckpoints:
    """
    Keeps the newest state of a run: weights, optimizer, schedule and averaged weights. Batches and dropout depend
    only on the number of the step, so no other state is needed.

    A checkpoint is written under a hidden name and renamed once all of it is on disk: an incomplete one is never read.

    Args:
        folder: The folder of the checkpoints.
        accelerator: Holds the prepared model and optimizer of every process.
        schedule: The learning rate.
        averaged: The running average of the weights, if there is one.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, schedule: LRScheduler, averaged: AveragedModel | None = None
    ):
        self.folder, self.accelerator, self.schedule, self.averaged = folder, accelerator, schedule, averaged

    def save(self, step: int, seconds: float) -> None:
        """
        Saves the state after a step, in all processes together, and removes the checkpoint before it.

        Args:
            step: Number of the step.
            seconds: Duration of the run so far, which `resume` returns.
        """
        incomplete, complete = self.folder / f".step-{step:08}", self.folder / f"step-{step:08}"
        try:
            self._save(step, seconds, incomplete, complete)
        except BaseException:
            if self.accelerator.is_main_process:
                shutil.rmtree(incomplete, ignore_errors=True)
            raise

    def _save(self, step: int, seconds: float, incomplete: Path, complete: Path) -> None:
        is_main = self.accelerator.is_main_process
        if is_main:
            incomplete.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        with _saying_why(incomplete):
            self.accelerator.save_state(str(incomplete))
        self.accelerator.wait_for_everyone()
        if is_main:
            if self.averaged is not None:
                save_model(self.averaged.module, str(incomplete / _AVERAGE))
            progress = {"step": step, "seconds": seconds, "schedule": self.schedule.state_dict()}
            (incomplete / _PROGRESS).write_text(json.dumps(progress))
            _flush_to_disk(incomplete)
            older = complete_checkpoints(self.folder)
            shutil.rmtree(complete, ignore_errors=True)
            incomplete.rename(complete)
            _flush_to_disk(self.folder)
            for path in older:
                if path != complete:
                    shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def resume(self) -> tuple[int, float]:
        """
        Loads the newest checkpoint; returns its step and the run's seconds until then, 0 if there is none.

        Raises:
            InputError: The checkpoint is damaged.
        """
        for path in _incomplete_checkpoints(self.folder) if self.accelerator.is_main_process else ():
            logger.warning("The checkpoint %s is incomplete: deleting it.", path)
            shutil.rmtree(path)
        checkpoints = complete_checkpoints(self.folder)
        if not checkpoints:
            return 0, 0.0
        newest = checkpoints[-1]
        logger.info("Resuming from %s.", newest)
        try:
            return self._load(newest)
        except (MemoryError, torch.OutOfMemoryError):  # A checkpoint that is too large here is not damaged.
            raise
        except Exception as error:  # torch, safetensors and accelerate raise many kinds of errors for damaged files.
            raise InputError(
                f"The checkpoint {newest} is damaged: {reason_of(error)}. Remove it: the same command then continues "
                "from the checkpoint before it or, if there is none, begins again."
            ) from error

    def _load(self, checkpoint: Path) -> tuple[int, float]:
        self.accelerator.load_state(str(checkpoint))
        progress: dict[str, Any] = json.loads((checkpoint / _PROGRESS).read_text())
        self.schedule.load_state_dict(progress["schedule"])
        if self.averaged is not None:
            load_model(self.averaged.module, str(checkpoint / _AVERAGE))
            self.averaged.n_averaged.fill_(progress["step"])
        return int(progress["step"]), float(progress.get("seconds", 0))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a folder, the newest last."""
    return _find(folder, "step-*")


def remove_checkpoints(folder: Path) -> None:
    """Removes the checkpoints in a folder, and the folder if it holds nothing else."""
    for path in [*_incomplete_checkpoints(folder), *complete_checkpoints(folder)]:
        shutil.rmtree(path)
    with suppress(OSError):
        folder.rmdir()


def _incomplete_checkpoints(folder: Path) -> list[Path]:
    return _find(folder, ".step-*")


def _find(folder: Path, pattern: str) -> list[Path]:
    """Returns the checkpoints whose names match a pattern, by their steps; other files and folders are not ours."""
    found = [(_NAME.fullmatch(path.name), path) for path in folder.glob(pattern)]
    steps = [(int(name[1]), path) for name, path in found if name and path.is_dir() and not path.is_symlink()]
    return [path for _, path in sorted(steps)]


@contextmanager
def _saying_why(folder: Path) -> Iterator[None]:
    """
    Finds out why torch could not write a file into a folder, of which it tells nothing.

    Raises:
        OSError: The disk is full, or a limit on the size of files is reached.
    """
    try:
        yield
    except RuntimeError:
        for path in folder.rglob("*"):
            if path.is_file():
                reserve(path, _ROOM)
        raise


def _flush_to_disk(folder: Path) -> None:
    """Makes sure that the files of a folder, and their names, survive a crash of the machine."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


__all__ = ["TrainingCheckpoints", "complete_checkpoints", "remove_checkpoints"]
