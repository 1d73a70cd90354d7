# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training on Accelerate, in one process or many; a killed run resumes (LangCell, sections 3.2 and 3.3)."""

import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from torch.utils.data import DataLoader

from ..checkpoint.builtin import resolve_checkpoint
from ..checkpoint.files import CARD
from ..checkpoint.repository import require_write_access
from ..corpus.corpus import Corpus
from ..io.launch import Launch, launched_processes
from ..io.outputs import require_apart
from ..io.printable import one_line
from ..io.progress import progress_bar
from ..io.stopping import SIGNALS
from ..model.errors import InputError
from ..model.modeling_langcell import LangCellForPreTraining
from ..publishing.cards import write_card
from ..publishing.publish import publish
from .config import PretrainingConfig
from .dataset import FrozenTextEncoder, PretrainingBatches
from .folder import HELD_OUT, LOSSES, RunFolder
from .initialization import initialize_model, initialize_text_projection
from .known_types import remember_types
from .optimization import create_average, create_optimizer, create_schedule, freeze_parameters
from .resume import TrainingCheckpoints, complete_checkpoints
from .texts import TYPE, all_type_texts
from .validation import HeldOutCells

logger = logging.getLogger(__name__)


class TrainingStopped(Exception):
    """
    Raised when the run was told to stop, after it saved a checkpoint to resume from.

    Args:
        message: The step that was reached.
        exit_code: The exit code of a process that the signal ended.
    """

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


def pretrain(config: PretrainingConfig) -> Path:
    """
    Trains a model, or resumes a run that was stopped or killed: the same command resumes it, and the losses are those
    of a run without interruption.

    The folder `config.output` gets model and processor; `training.json` with the settings, corpus and versions of this
    run and of those before it; the logs `losses.jsonl` and `held_out.jsonl`, one line per step or validation; and the
    same for TensorBoard.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: The corpus is missing or has no labels, a checkpoint to start from cannot be used, the folder holds
            a different run or cannot be written, another process writes it, a process ends early or does not begin,
            the repository cannot be pushed to, or the loss is no longer a number.
        TrainingStopped: The process received SIGINT, SIGTERM or SIGHUP.
    """
    _require_apart(config)
    rank, processes = launched_processes()
    with Launch(config.output, rank, processes) as launch:
        launch.wait_for_all()  # Otherwise the processes would wait for a missing one much longer.
        folder = RunFolder(config)
        with folder.writing():
            try:
                _pretrain(config, folder)
            except RuntimeError:  # A process does not answer.
                launch.require_others()
                raise
    return folder.path


def _pretrain(config: PretrainingConfig, folder: RunFolder) -> None:
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # Otherwise each process without a GPU would train alone.
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulation,
        log_with="tensorboard",
        project_dir=config.output,
    )
    try:
        if folder.is_trained():
            logger.info("%s already holds the trained model.", folder.path)
        else:
            run = PretrainingRun(config, folder, accelerator)
            try:
                run.train()
                run.save()
            finally:
                run.release()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(folder)
    finally:
        accelerator.end_training()


class PretrainingRun:
    """
    Model, batches and optimizer of a run, resumed from its newest checkpoint.

    Args:
        config: The run's settings.
        folder: The run's output folder. It is claimed only once everything else is ready, so that the settings of a run
            that cannot start can still be corrected.
        accelerator: The processes.
    """

    def __init__(self, config: PretrainingConfig, folder: RunFolder, accelerator: Accelerator):
        self.config, self.folder, self.accelerator = config, folder, accelerator
        self.is_main = accelerator.is_main_process
        self.corpus = Corpus(config.corpus)
        if config.averaging and accelerator.distributed_type == DistributedType.FSDP:
            raise InputError("averaging needs whole weights in every process, which FSDP does not have: set it to 0.")
        if self.is_main:
            folder.earlier_runs()  # Damage is found here, before the training.
            if config.push_to is not None:
                _require_repository(config.push_to)

        torch.manual_seed(config.seed)
        model = self._build_model()
        self.held_out = self._read_held_out_cells()
        self.model, self.optimizer = accelerator.prepare(model, create_optimizer(model.parameters(), config))
        # The schedule is not prepared: a prepared one would take a step for each process.
        self.schedule = create_schedule(self.optimizer, config)
        self.averaged = create_average(model, config)
        self.checkpoints = TrainingCheckpoints(folder.checkpoints, accelerator, self.schedule, self.averaged)
        self.steps_done, seconds = self.checkpoints.resume()
        self.started = time.monotonic() - seconds
        if self.is_main:
            folder.claim()
            folder.truncate_logs(self.steps_done)
        accelerator.init_trackers("tensorboard")

    def _build_model(self) -> LangCellForPreTraining:
        """Builds the model and everything that depends on it: processor, batches and the encoder of frozen texts."""
        config, accelerator = self.config, self.accelerator
        resumes = bool(complete_checkpoints(self.folder.checkpoints))
        model, self.processor = initialize_model(
            config, self.corpus.gene_vocabulary, weights_follow=resumes, gene_places=self.corpus.gene_places
        )
        self.batches = PretrainingBatches(
            self.corpus, self.processor, model, config, accelerator.process_index, accelerator.num_processes
        )
        text_encoder = FrozenTextEncoder(model, self.processor, config.max_tokens, accelerator.device)
        texts = all_type_texts(self.corpus.facts[TYPE].cat.categories)
        if texts and config.start is None and not resumes:
            initialize_text_projection(model, text_encoder(texts).cpu(), config.text_whitening)
        self.text_encoder = None if config.train_text_tower else text_encoder
        freeze_parameters(model, config)
        if config.gradient_checkpointing:
            # The second name is that of transformers 5.20, deprecated since then.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        if config.compile:
            model.cell_model.compile(dynamic=True)
            model.text_model.compile(dynamic=True)
        return model

    def _read_held_out_cells(self) -> HeldOutCells | None:
        config = self.config
        if config.held_out is None:
            return None
        limits = {"max_genes": config.max_genes, "max_tokens": config.max_tokens, "max_cells": config.held_out_cells}
        return HeldOutCells(Corpus(config.held_out), self.processor, seed=config.seed, **limits)

    def train(self) -> None:
        """
        Takes the remaining steps.

        Raises:
            TrainingStopped: A process received SIGINT, SIGTERM or SIGHUP.
        """
        config = self.config
        self.model.train()
        if not config.train_text_tower:  # Without dropout, a frozen encoder gives a text the same state each time.
            self.accelerator.unwrap_model(self.model).text_model.eval()
        numbers = range(self.steps_done * config.accumulation, config.steps * config.accumulation)
        loader = DataLoader(self.batches, batch_size=None, sampler=numbers, num_workers=config.workers)
        with _deferred_signals() as received, self._progress_bar() as show:
            batches = iter(loader)  # Started here so that its processes ignore them too.
            for step in range(self.steps_done + 1, config.steps + 1):
                started = time.monotonic()
                losses, cells, genes = self._train_step(step, batches)
                show(step, losses, cells / (time.monotonic() - started))
                self._log(LOSSES, step, losses | {"cells": cells, "genes": genes})
                if step % config.evaluate_every == 0 or step == config.steps:
                    self._evaluate(step)
                stop = self._in_any_process(bool(received))
                if stop or (config.checkpoint_every and step % config.checkpoint_every == 0):
                    self.checkpoints.save(step, self._seconds)
                if stop and step < config.steps:
                    said = f"Stopped after step {step} of {config.steps}; the same command resumes."
                    raise TrainingStopped(said, 128 + (received or [signal.SIGTERM])[0])

    def _train_step(self, step: int, batches: Iterator[dict[str, Any]]) -> tuple[dict[str, float], int, int]:
        """
        Takes a step of the optimizer over `accumulation` batches.

        Returns:
            The losses and the gradient's norm; the numbers of cells and genes, over all processes.

        Raises:
            InputError: The loss or the gradient is no longer a number.
        """
        config, accelerator = self.config, self.accelerator
        self._seed_dropout(step)
        losses: dict[str, torch.Tensor] = {}
        counts = torch.zeros(2, dtype=torch.long, device=accelerator.device)
        for _ in range(config.accumulation):
            batch = self._to_device(next(batches))
            with accelerator.accumulate(self.model):
                outputs = self.model(**batch)
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients:
                    # FSDP has replaced the parameters that the model was built with.
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in outputs.items():
                if name.endswith("loss"):
                    losses[name] = losses.get(name, 0) + value.detach() / config.accumulation
            mask = batch["cell_attention_mask"]
            counts += torch.stack([torch.tensor(len(mask), device=mask.device), mask.sum()])
        self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(accelerator.unwrap_model(self.model))
        values = {name: value.item() for name, value in losses.items()} | {"gradient_norm": float(norm)}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(values[name]):
                raise InputError(f"The {name.replace('_', ' ')} is {values[name]} at step {step}: lower learning_rate.")
        cells, genes = accelerator.reduce(counts).tolist()
        return values, cells, genes

    def _seed_dropout(self, step: int) -> None:
        """Makes dropout depend only on the step, so that a resumed run needs no random state."""
        seeds = np.random.SeedSequence([self.config.seed, step, self.accelerator.process_index, 3])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))

    def _to_device(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Returns the model's arguments for a batch, with the states of the texts if the text tower is frozen."""
        texts = batch.pop("texts", None)
        device = self.accelerator.device
        batch = {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
        if texts is not None and self.text_encoder is not None:
            batch["text_pooled"] = self.text_encoder(texts)
        return batch

    def _evaluate(self, step: int) -> None:
        """Evaluates the model on the held-out cells, in the main process."""
        if self.held_out is not None:
            model = self._whole_model()
            self._log(HELD_OUT, step, self.held_out.evaluate(model) if self.is_main else {})

    def _whole_model(self) -> LangCellForPreTraining:
        """Returns the model to evaluate and save; all processes must call this, and only the main one may use it."""
        if self.averaged is not None:
            return cast(LangCellForPreTraining, self.averaged.module)
        model = cast(LangCellForPreTraining, self.accelerator.unwrap_model(self.model))
        if self.accelerator.distributed_type == DistributedType.FSDP:
            state = self.accelerator.get_state_dict(self.model)
            model = LangCellForPreTraining(model.config)
            model.load_state_dict(state, strict=self.is_main)
            model.to(self.accelerator.device)
        return model

    def _in_any_process(self, condition: bool) -> bool:
        flag = torch.tensor(float(condition), device=self.accelerator.device)
        return bool(self.accelerator.reduce(flag) > 0)

    def save(self) -> None:
        """Saves the trained model, which remembers the types of its training and so knows which are new to it."""
        model = self._whole_model()
        if self.is_main:
            if self.batches.descriptions is not None:
                remember_types(model, self.processor, self.batches)
            elif self.config.train_cell_tower:
                model.forget_types()
            self.folder.save_model(model, self.processor, self._record())

    def _record(self) -> dict[str, Any]:
        """Returns the record of the training without its settings: corpus, machine, duration and versions."""
        device = self.accelerator.device
        packages = ("modeling-langcell", "torch", "transformers", "accelerate")
        return {
            "corpus": self.corpus.origin,
            "compute": {
                "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "seconds": self._seconds,
            },
            "versions": {package: version(package) for package in packages},
        }

    def release(self) -> None:
        """
        Frees model and optimizer before the group of processes ends. If DDP's reducer dies last, it destroys gloo's
        group while it holds Python's lock, for which a thread that the group waits for may be waiting.
        """
        self.model, self.optimizer = self.accelerator.free_memory(self.model, self.optimizer)

    @property
    def _seconds(self) -> float:
        """Duration of the run, including killed processes up to their last checkpoint."""
        return round(time.monotonic() - self.started, 1)

    def _log(self, name: str, step: int, values: dict[str, float]) -> None:
        """Writes values to TensorBoard and to a log in the run's folder."""
        self.accelerator.log({f"{Path(name).stem}/{key}": value for key, value in values.items()}, step)
        if self.is_main:
            self.folder.log(name, step, values)

    @contextmanager
    def _progress_bar(self) -> Iterator[Callable[[int, dict[str, float], float], None]]:
        with progress_bar(shown=self.is_main) as progress:
            task = progress.add_task("Training", total=self.config.steps, completed=self.steps_done)

            def show(step: int, losses: dict[str, float], rate: float) -> None:
                named = "  ".join(
                    f"{name.removesuffix('_loss').replace('_', '-')} {value:.3f}"
                    for name, value in losses.items()
                    if name.endswith("loss")
                )
                progress.update(task, completed=step, description=f"{named}  {rate:.1f} cells/s")

            yield show


def _require_apart(config: PretrainingConfig) -> None:
    """
    Checks that the output is apart from all that is read.

    Raises:
        InputError: It is the same folder as one that is read, lies in one, or holds one.
    """
    read = ("corpus", "held_out", "text_tower", "cell_tower", "start", "gene_names_from")
    named = [(name, getattr(config, name)) for name in read]
    local = [(name, Path(resolve_checkpoint(path))) for name, path in named if path is not None]
    require_apart([("output", Path(config.output))], [(name, path) for name, path in local if path.exists()])


def _require_repository(name: str) -> None:
    """
    Checks before the training, not days later, that the checkpoint can be pushed.

    Raises:
        InputError: The checkpoint cannot be pushed.
    """
    try:
        require_write_access(name)
    except InputError as error:
        raise InputError(f"push_to: {error}") from error


def _finish(folder: RunFolder) -> None:
    """Cleans up, writes the model card, and pushes the checkpoint if requested; a run killed here resumes from here."""
    folder.remove_working_files()
    if not (folder.path / CARD).exists():
        try:
            write_card(folder.path)
        except InputError as error:  # A damaged record of an earlier run; the checkpoint itself is fine.
            print(one_line(f"No card was written: {error}"), file=sys.stderr)
    if folder.config.push_to is not None:
        try:
            publish(folder.path, folder.config.push_to)
        except InputError as error:
            raise InputError(f"The checkpoint is in {folder.path}; the same command resumes. {error}") from error
    folder.finish()


@contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Defers the signals that end a process, so that the run stops between steps; yields those that have come."""
    received: list[int] = []
    wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda number, _: received.append(number)) for number in wanted}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


__all__ = ["PretrainingRun", "TrainingStopped", "pretrain"]
