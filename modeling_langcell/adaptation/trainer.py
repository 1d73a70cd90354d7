# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Training on labelled cells by transformers' Trainer, in one process or in several that share each batch."""

import atexit
import math
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from rich.progress import Progress
from torch import nn
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    get_scheduler,
)
from transformers.integrations import get_reporting_integration_callbacks

from ..io.atomic import temporary_folder
from ..io.progress import progress_bar
from ..model.errors import InputError
from .batches import Batch, CellBatches, ShuffledBatches
from .config import AdaptationConfig
from .losses import CellLoss

#: Loggers that are known by name; transformers has callbacks for others.
LOGGERS = ("none", "tensorboard", "wandb")


def find_loggers(report_to: str) -> list[TrainerCallback]:
    """
    Returns the callbacks that log to a service.

    Raises:
        InputError: The service is unknown, or its package is not installed.
    """
    if report_to not in LOGGERS:
        raise InputError(
            f"report_to={report_to!r} is not one of {', '.join(map(repr, LOGGERS))}. Give other loggers as callbacks."
        )
    try:
        return [logger() for logger in get_reporting_integration_callbacks(report_to)]
    except (RuntimeError, ImportError) as error:
        raise InputError(f"report_to={report_to!r} needs the package {report_to}: pip install {report_to}.") from error


def fit(
    loss_of: CellLoss,
    training: CellBatches,
    held_out: CellBatches | None,
    config: AdaptationConfig,
    callbacks: Sequence[TrainerCallback] = (),
    log_dir: str | Path | None = None,
) -> tuple[float, ...]:
    """
    Trains the parameters of a loss's model that need gradients, by AdamW with a short warm-up and cosine decay. With
    `held_out` cells, the weights of the epoch with the lowest loss on them are kept, and training stops after
    `patience` epochs without a lower one.

    Args:
        loss_of: The loss, on the device to train on.
        training: Cells to train on.
        held_out: Cells to watch the training by.
        config: Settings.
        callbacks: Callbacks of transformers, among them those of `find_loggers`.
        log_dir: Folder for the files of loggers.

    Returns:
        Mean loss of each epoch, on the held-out cells if there are any.

    Raises:
        InputError: The loss is not finite, or accelerate was told to shard the model.
    """
    trained = _trained(loss_of)
    device = trained[0].device
    steps = config.epochs * len(training)
    optimizer = torch.optim.AdamW(trained, lr=config.peak_learning_rate, weight_decay=config.weight_decay)
    schedule = get_scheduler("cosine", optimizer, min(10, steps // 10), steps)
    with ExitStack() as opened:
        if log_dir is None:  # The Trainer makes a folder even if nothing is written.
            folder = str(opened.enter_context(temporary_folder()))
        else:
            folder = str(log_dir)
            opened.enter_context(_environment(WANDB_DIR=folder))  # Otherwise W&B writes into the working directory.
        had_group = torch.distributed.is_initialized()
        opened.enter_context(torch.cuda.device(device) if device.type == "cuda" else nullcontext())
        arguments = _Arguments(
            output_dir=folder,
            computes_on=str(device),
            use_cpu=device.type == "cpu",
            num_train_epochs=config.epochs,
            per_device_train_batch_size=config.batch_cells,
            learning_rate=config.peak_learning_rate,
            weight_decay=config.weight_decay,
            max_grad_norm=1.0,
            bf16=config.precision == "bf16",
            eval_strategy="no" if held_out is None else "epoch",
            metric_for_best_model="loss",
            save_strategy="no",
            logging_strategy="epoch",
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            report_to="none",
            # A method that trains all weights also trains those that the loss does not use.
            ddp_find_unused_parameters=config.method == "full",
            seed=config.seed,
        )
        if torch.distributed.is_initialized() and not had_group:
            # Not now: a second adaptation would find this group's addresses in the launcher's store, and wait for them.
            atexit.register(_end_processes)
        # A launcher's own precision is not what the adaptation's record says.
        arguments.mixed_precision = config.precision
        best = [] if held_out is None else [BestWeights(config.patience)]
        with _random_state_kept():
            trainer = CellTrainer(
                loss_of,
                arguments,
                train_dataset=ShuffledBatches(training, config.gene_dropout, config.seed),
                eval_dataset=held_out,
                callbacks=[*best, *callbacks],
                optimizers=(optimizer, schedule),
            )
        opened.callback(trainer.release)
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise InputError(
                "An adaptation is too small to shard: launch it with DDP (hub_configs/accelerate/ddp.yaml)."
            )
        trainer.remove_callback(PrinterCallback)
        if arguments.process_index > 0:  # What dropout drops from its share is different.
            torch.manual_seed(config.seed + arguments.process_index)
        progress = opened.enter_context(progress_bar(shown=arguments.process_index == 0))
        trainer.add_callback(_EndOfEpoch(trainer, progress))
        trainer.train()
        losses = trainer.training_losses if held_out is None else trainer.held_out_losses
    loss_of.eval()
    return tuple(losses)


@dataclass
class _Arguments(TrainingArguments):
    """
    Arguments of a Trainer that computes on one device, which may be another than the first GPU.

    Args:
        computes_on: The device.
    """

    computes_on: str = "cpu"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device.type == "cuda":  # Accelerate moves the model to the current one.
            torch.cuda.set_device(self.device)

    @property
    def device(self) -> torch.device:
        """The device; the first time it is asked for, the processes meet."""
        _ = super().device
        return torch.device(self.computes_on)

    @property
    def n_gpu(self) -> int:
        """At most 1, so that several GPUs are used by several processes alone."""
        return min(super().n_gpu, 1)


class CellTrainer(Trainer):
    """
    Trainer of a `CellLoss` on `ShuffledBatches`, with `CellBatches` to evaluate on. All processes have the same
    batches, and each computes its share of every batch, so that several processes take the steps that one takes.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        self.training_losses: list[float] = []
        self.held_out_losses: list[float] = []
        self._seen: list[tuple[torch.Tensor, int]] = []  # Losses of batches, and their numbers of cells.

    def get_train_dataloader(self) -> DataLoader:
        # With a generator of its own it draws nothing from that of dropout.
        return DataLoader(self.train_dataset, batch_size=None, generator=torch.Generator())

    def compute_loss(self, model: nn.Module, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        """
        Returns the loss of this process's share of a batch, weighted so that the mean over the processes is the loss of
        the batch.
        """
        truth = inputs["truth"]
        processes = self.accelerator.num_processes
        share = slice(self.accelerator.process_index, None, processes)
        weight = processes * self.model.weight(truth[share]) / self.model.weight(truth)
        if not weight:  # There are fewer cells than processes, and each must compute gradients.
            share = slice(1)
        loss = model(**{name: values[share] for name, values in inputs.items()}) * weight
        self._seen.append((loss.detach(), len(truth)))
        return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Returns the mean loss of the held-out cells, as `eval_loss`."""
        self.model.eval()
        with torch.inference_mode():
            for batch in self.eval_dataset.in_order():
                self.compute_loss(self.model, self._prepare_inputs(batch))
        metrics = {"eval_loss": self.mean_loss()}
        self.held_out_losses.append(metrics["eval_loss"])
        self.log(metrics)
        self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def mean_loss(self) -> float:
        """
        Returns the mean loss of the cells since it was last asked for, in all processes.

        Raises:
            InputError: It is not finite.
        """
        cells = sum(cells for _, cells in self._seen)
        total = sum(loss.item() * cells for loss, cells in self._seen)
        self._seen.clear()
        mean = sum(gather_object([total])) / self.accelerator.num_processes / cells
        if not math.isfinite(mean):
            raise InputError(f"The loss of epoch {round(self.state.epoch)} is not finite: lower the learning_rate.")
        return mean

    def release(self) -> None:
        """
        Frees what DDP holds before the group of processes ends. If its reducer dies last, it destroys gloo's group
        while it holds Python's lock, for which a thread that the group waits for may be waiting.
        """
        if self.accelerator.num_processes > 1:
            self.model_wrapped = self.model
            self.accelerator.free_memory()


class BestWeights(EarlyStoppingCallback):
    """
    Stops training as its base does, and ends it with the best weights. They are kept in memory: a checkpoint of the
    Trainer would hold the whole model.
    """

    _weights: list[torch.Tensor]

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **objects: Any) -> None:
        """Does not warn that no checkpoints are written."""

    def on_evaluate(self, args: TrainingArguments, state: Any, control: Any, metrics: Any, **objects: Any) -> None:
        super().on_evaluate(args, state, control, metrics, **objects)
        if self.early_stopping_patience_counter == 0:
            self._weights = [parameter.detach().clone() for parameter in _trained(objects["model"])]

    def on_train_end(self, args: TrainingArguments, state: Any, control: Any, **objects: Any) -> None:
        with torch.no_grad():
            for parameter, value in zip(_trained(objects["model"]), self._weights, strict=True):
                parameter.copy_(value)


class _EndOfEpoch(TrainerCallback):
    """Notes the loss of each epoch, and shows how far the training is."""

    def __init__(self, trainer: CellTrainer, progress: Progress):
        self.trainer, self.progress = trainer, progress
        self.task = progress.add_task("Epochs", total=trainer.args.num_train_epochs)

    def on_epoch_end(self, args: TrainingArguments, state: Any, control: Any, **objects: Any) -> None:
        self.trainer.training_losses.append(self.trainer.mean_loss())
        self.progress.advance(self.task)


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextmanager
def _random_state_kept() -> Iterator[None]:
    """Undoes that the Trainer seeds all random numbers of the process when it is made."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        yield
    random.setstate(python)
    np.random.set_state(numpy)


def _end_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


__all__ = ["LOGGERS", "BestWeights", "CellTrainer", "find_loggers", "fit"]
