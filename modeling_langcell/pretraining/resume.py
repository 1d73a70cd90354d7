# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Training checkpoints, from which a killed run resumes."""

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

logger = logging.getLogger(__name__)

_PROGRESS, _AVERAGE = "progress.json", "average.safetensors"


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
        """Loads the newest checkpoint; returns its step and the run's seconds until then, 0 if there is none."""
        for path in sorted(self.folder.glob(".step-*")) if self.accelerator.is_main_process else ():
            logger.warning("The checkpoint %s is incomplete: deleting it.", path)
            shutil.rmtree(path)
        checkpoints = complete_checkpoints(self.folder)
        if not checkpoints:
            return 0, 0.0
        newest = checkpoints[-1]
        logger.info("Resuming from %s.", newest)
        self.accelerator.load_state(str(newest))
        progress: dict[str, Any] = json.loads((newest / _PROGRESS).read_text())
        self.schedule.load_state_dict(progress["schedule"])
        if self.averaged is not None:
            load_model(self.averaged.module, str(newest / _AVERAGE))
            self.averaged.n_averaged.fill_(progress["step"])
        return int(progress["step"]), float(progress.get("seconds", 0))


def complete_checkpoints(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a folder, the newest last."""
    return sorted(folder.glob("step-*"))


def _flush_to_disk(folder: Path) -> None:
    """Makes sure that the files of a folder, and their names, survive a crash of the machine."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


__all__ = ["TrainingCheckpoints", "complete_checkpoints"]
