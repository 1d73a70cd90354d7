# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What a killed run goes on from."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from safetensors.torch import load_model, save_model
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

_PROGRESS, _AVERAGE = "progress.json", "average.safetensors"


class Checkpoints:
    """
    Keeps the newest state of a run: weights, optimizer, schedule and averaged weights. A batch depends on the number of
    its step alone and so does what dropout draws: there is nothing else to keep.

    A state is written aside and renamed when all of it is on disk: a half-written one is never taken for whole.

    Args:
        folder: Where the states are kept.
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
        Saves the state after a step, in all processes together; the state before it is then removed. `seconds` is how
        long the run has taken until then, which it tells when it goes on.
        """
        aside, whole = self.folder / f".step-{step:08}", self.folder / f"step-{step:08}"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(aside, ignore_errors=True)  # Of a run that was killed here.
            aside.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.save_state(str(aside))
        self.accelerator.wait_for_everyone()
        if main:
            if self.averaged is not None:
                save_model(self.averaged.module, str(aside / _AVERAGE))
            progress = {"step": step, "seconds": seconds, "schedule": self.schedule.state_dict()}
            (aside / _PROGRESS).write_text(json.dumps(progress))
            _on_disk(aside)
            older = self._whole()
            shutil.rmtree(whole, ignore_errors=True)
            aside.rename(whole)
            _on_disk(self.folder)
            for path in older:
                if path != whole:
                    shutil.rmtree(path)
        self.accelerator.wait_for_everyone()

    def go_on(self) -> tuple[int, float]:
        """Takes up the newest state; returns the step and seconds it was saved after, 0 where there is none."""
        states = self._whole()
        if not states:
            return 0, 0.0
        self.accelerator.load_state(str(states[-1]))
        progress: dict[str, Any] = json.loads((states[-1] / _PROGRESS).read_text())
        self.schedule.load_state_dict(progress["schedule"])
        if self.averaged is not None:
            load_model(self.averaged.module, str(states[-1] / _AVERAGE))
            self.averaged.n_averaged.fill_(progress["step"])
        return int(progress["step"]), float(progress.get("seconds", 0))

    def _whole(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))


def _on_disk(folder: Path) -> None:
    """Makes sure that files, and what they are called, outlive a crash of the machine."""
    for path in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


__all__ = ["Checkpoints"]
