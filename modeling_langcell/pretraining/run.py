# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training: the loop on Accelerate, alone or in many processes, that goes on where it was killed."""

import json
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator, DistributedType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from transformers import get_scheduler

from ..checkpoint.files import CARD
from ..checkpoint.repository import require_write_access
from ..corpus.corpus import Corpus
from ..io.atomic import atomic_write
from ..model.errors import InputError
from ..model.modeling_langcell import LangCellForPreTraining, LangCellModel
from ..model.processing_langcell import LangCellProcessor
from ..publishing.cards import write_card
from ..publishing.publish import publish
from .config import PretrainingConfig
from .dataset import FrozenTexts, PretrainingBatches
from .initialization import initialize_model, start_text_projection
from .resume import Checkpoints
from .texts import TYPE, type_wordings
from .validation import HeldOutCells

#: What may be another when a run goes on: nothing that is learnt depends on it.
_FREE_TO_CHANGE = {"output", "workers", "checkpoint_every", "push_to"}
_RUN, _RECORD, _LOSSES, _HELD_OUT = "run.json", "training.json", "losses.jsonl", "held_out.jsonl"
_STATES = "checkpoints"


class TrainingStopped(Exception):
    """The run was told to stop, and saved where it was."""


def pretrain(config: PretrainingConfig) -> Path:
    """
    Trains as `config` says, or goes on with a run that was stopped or killed: the same command, and the losses are
    those of a run that never was.

    The folder `config.output` gets model and processor; `training.json` (configuration and versions of this run and of
    those it goes on from); line by line, `losses.jsonl` and, of the cells held out, `held_out.jsonl`; and the same for
    TensorBoard.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: No corpus, or one without labels, starts that cannot be used, a folder that holds another run, a
            repository that cannot be pushed to, or a loss that is no longer a number.
        TrainingStopped: By SIGTERM; the same command goes on.
    """
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # Else processes without a GPU would each train alone.
        mixed_precision=config.precision,
        gradient_accumulation_steps=config.accumulation,
        log_with="tensorboard",
        project_dir=config.output,
    )
    try:
        if not _is_trained(config):
            run = _Run(config, accelerator)
            try:
                run.train()
                run.save()
            finally:
                run.release()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _conclude(config)
    finally:
        accelerator.end_training()
    return Path(config.output)


class _Run:
    """A run's parts, and its steps."""

    def __init__(self, config: PretrainingConfig, accelerator: Accelerator):
        self.config, self.output, self.accelerator = config, Path(config.output), accelerator
        corpus = Corpus(config.corpus)
        self.main = accelerator.is_main_process
        if config.averaging and accelerator.distributed_type == DistributedType.FSDP:
            raise InputError("averaging needs whole weights in every process, which FSDP has not: set it to 0.")
        if self.main and config.push_to is not None:
            _make_repository(config.push_to)

        torch.manual_seed(config.seed)
        states = self.output / _STATES
        anew = not any(states.glob("step-*"))
        model, self.processor = initialize_model(config, corpus.gene_vocabulary, weights_follow=not anew)
        processes = (self.accelerator.process_index, self.accelerator.num_processes)
        self.batches = PretrainingBatches(corpus, self.processor, model, config, *processes)
        frozen_texts = FrozenTexts(model, self.processor, config.max_tokens, self.accelerator.device)
        wordings = type_wordings(corpus.facts[TYPE].cat.categories)
        if anew and config.start is None and wordings:
            start_text_projection(model, frozen_texts(wordings).cpu(), config.text_whitening)
        self.frozen_texts = None if config.train_text_tower else frozen_texts
        freeze_parameters(model, config)
        if config.gradient_checkpointing:
            # The second name is that of transformers 5.20, and deprecated since.
            (getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable)()
        if config.compile:
            model.cell_model.compile(dynamic=True)
            model.text_model.compile(dynamic=True)
        self.held_out = self._held_out()

        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trained:
            raise InputError("Nothing would be trained: all that the objectives reach is frozen, or none has a weight.")
        optimizer = torch.optim.AdamW(_decay_groups(trained, config.weight_decay), lr=config.learning_rate, fused=True)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        # Not prepared: what is prepared steps once a process.
        self.schedule = get_scheduler(config.schedule, self.optimizer, config.warmup_steps, config.steps)
        average = get_ema_multi_avg_fn(config.averaging)
        self.averaged = AveragedModel(model, multi_avg_fn=average) if config.averaging else None
        self.checkpoints = Checkpoints(states, self.accelerator, self.schedule, self.averaged)
        self.first_step, seconds = self.checkpoints.go_on()
        self.started = time.monotonic() - seconds
        # Not before: what could not start has claimed nothing, and its settings can still be corrected.
        if self.main:
            _claim(config)
        self._forget_after(self.first_step)
        self.accelerator.init_trackers("tensorboard")

    def whole_model(self) -> LangCellForPreTraining:
        """The model that is measured and saved; all processes must ask, and only the main one may use it."""
        if self.averaged is not None:
            return cast(LangCellForPreTraining, self.averaged.module)
        whole = cast(LangCellForPreTraining, self.accelerator.unwrap_model(self.model))
        if self.accelerator.distributed_type == DistributedType.FSDP:
            state = self.accelerator.get_state_dict(self.model)
            whole = LangCellForPreTraining(whole.config)
            whole.load_state_dict(state, strict=self.main)
            whole.to(self.accelerator.device)
        return whole

    def train(self) -> None:
        """Takes the steps that are left."""
        config = self.config
        self.model.train()
        if not config.train_text_tower:  # A frozen encoder should read alike each time.
            self.accelerator.unwrap_model(self.model).text_model.eval()
        numbers = range(self.first_step * config.accumulation, config.steps * config.accumulation)
        loader = DataLoader(self.batches, batch_size=None, sampler=numbers, num_workers=config.workers)
        with _told_to_stop() as told, self._progress() as show:
            batches = iter(loader)  # Its processes, too, outlive a SIGTERM that the whole group gets.
            for step in range(self.first_step + 1, config.steps + 1):
                started = time.monotonic()
                losses, cells, genes = self._step(step, batches)
                show(step, losses, cells / (time.monotonic() - started))
                self._log(_LOSSES, step, losses | {"cells": cells, "genes": genes})
                if self.held_out is not None and (step % config.evaluate_every == 0 or step == config.steps):
                    model = self.whole_model()
                    self._log(_HELD_OUT, step, self.held_out.measure(model) if self.main else {})
                stop = bool(self.accelerator.reduce(torch.tensor(float(told()), device=self.accelerator.device)) > 0)
                if stop or (config.checkpoint_every and step % config.checkpoint_every == 0):
                    self.checkpoints.save(step, self._seconds)
                if stop and step < config.steps:
                    raise TrainingStopped(f"Stopped after step {step} of {config.steps}; the same command goes on.")

    def _step(self, step: int, batches: Iterator[dict[str, Any]]) -> tuple[dict[str, float], int, int]:
        """One step of the optimizer: its losses, and how many cells and genes it saw."""
        config, accelerator = self.config, self.accelerator
        # Dropout too depends on the step alone, so that nothing needs to be remembered of it.
        seeds = np.random.SeedSequence([config.seed, step, accelerator.process_index, 3])
        torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]))
        summed: dict[str, torch.Tensor] = {}
        seen = torch.zeros(2, dtype=torch.long, device=accelerator.device)
        for _ in range(config.accumulation):
            batch = next(batches)
            wordings, length_groups = batch.pop("wordings", None), batch.pop("length_groups")
            batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
            if wordings is not None and self.frozen_texts is not None:
                batch["text_pooled"] = self.frozen_texts(wordings)
            with accelerator.accumulate(self.model):
                outputs = self.model(**batch, length_groups=length_groups)
                accelerator.backward(outputs.loss)
                if accelerator.sync_gradients:
                    # FSDP has put other parameters in the place of those that the model was built with.
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), config.max_gradient_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            for name, value in outputs.items():
                if name.endswith("loss"):
                    summed[name] = summed.get(name, 0) + value.detach() / config.accumulation
            mask = batch["cell_attention_mask"]
            seen += torch.stack([torch.tensor(len(mask), device=mask.device), mask.sum()])
        self.schedule.step()
        if self.averaged is not None:
            self.averaged.update_parameters(accelerator.unwrap_model(self.model))
        found = {name: value.item() for name, value in summed.items()} | {"gradient_norm": float(norm)}
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(found[name]):
                raise InputError(f"The {name.replace('_', ' ')} is {found[name]} at step {step}: lower learning_rate.")
        cells, genes = accelerator.reduce(seen).tolist()
        return found, cells, genes

    def save(self) -> None:
        """Makes the checkpoint of what was learnt."""
        model = self.whole_model()
        if self.main:
            _save(model, self.processor, self.config, self._record())

    def release(self) -> None:
        """
        Lets model and optimizer go before the group of processes ends: if DDP's reducer dies last it takes gloo's group
        with it while it holds Python's lock, for which a thread that the group waits for may be waiting.
        """
        self.model, self.optimizer = self.accelerator.free_memory(self.model, self.optimizer)

    @property
    def _seconds(self) -> float:
        """How long the run has taken, that of processes which were killed included up to their last state."""
        return round(time.monotonic() - self.started, 1)

    def _record(self) -> dict[str, Any]:
        """What else a checkpoint says of its training: of which cells, on what, how long, with what."""
        device = self.accelerator.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        packages = ("modeling-langcell", "torch", "transformers", "accelerate")
        return {
            "corpus": Corpus(self.config.corpus).origin,
            "compute": {
                "device": name,
                "processes": self.accelerator.num_processes,
                "threads": torch.get_num_threads(),
                "seconds": self._seconds,
            },
            "versions": {package: version(package) for package in packages},
        }

    def _held_out(self) -> HeldOutCells | None:
        config = self.config
        if config.held_out is None:
            return None
        limits = {"max_genes": config.max_genes, "max_tokens": config.max_tokens, "most": config.held_out_cells}
        return HeldOutCells(Corpus(config.held_out), self.processor, seed=config.seed, **limits)

    def _forget_after(self, step: int) -> None:
        """Takes back what was logged after the state that the run goes on from."""
        for name in (_LOSSES, _HELD_OUT):
            if self.main and (path := self.output / name).exists():
                lines = path.read_text().splitlines(keepends=True)
                atomic_write(path, "".join(line for line in lines if _is_until(line, step)).encode())

    def _log(self, name: str, step: int, values: dict[str, float]) -> None:
        self.accelerator.log({f"{Path(name).stem}/{key}": value for key, value in values.items()}, step)
        if self.main:
            with open(self.output / name, "a") as log:
                print(json.dumps({"step": step, **values}), file=log, flush=True)
                os.fsync(log.fileno())  # A checkpoint must not outlive what was logged before it.

    @contextmanager
    def _progress(self):
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, disable=not self.main) as progress:
            task = progress.add_task("Training", total=self.config.steps, completed=self.first_step)

            def show(step: int, losses: dict[str, float], rate: float) -> None:
                named = "  ".join(
                    f"{name.removesuffix('_loss').replace('_', '-')} {value:.3f}"
                    for name, value in losses.items()
                    if name.endswith("loss")
                )
                progress.update(task, completed=step, description=f"{named}  {rate:.1f} cells/s")

            yield show


def freeze_parameters(model: LangCellForPreTraining, config: PretrainingConfig) -> None:
    """
    Freezes what is to be kept, and what no objective reaches: DDP waits for the gradient of every parameter that asks
    for one.
    """
    weights = model.config
    reads_texts = bool(weights.cell_text_weight or weights.matching_weight)
    reads_cells = bool(reads_texts or weights.masked_gene_weight or weights.cell_cell_weight)
    model.lm_head.requires_grad_(bool(weights.masked_gene_weight))
    # After the head, whose output weights may be the tower's.
    model.cell_model.requires_grad_(reads_cells and config.train_cell_tower)
    # The matching only draws its negatives by the similarity: no gradient reaches what that is made of.
    model.cell_projection.requires_grad_(bool(weights.cell_text_weight))
    model.text_projection.requires_grad_(bool(weights.cell_text_weight) and config.train_text_projection)
    model.matching_head.requires_grad_(bool(weights.matching_weight))
    for name, parameter in model.text_model.named_parameters():
        of_matching = ".crossattention." in name
        parameter.requires_grad_(
            bool(weights.matching_weight) if of_matching else reads_texts and config.train_text_tower
        )


def _settings(config: PretrainingConfig) -> dict[str, Any]:
    """What a run that goes on must be told again."""
    return {name: value for name, value in asdict(config).items() if name not in _FREE_TO_CHANGE}


def _is_trained(config: PretrainingConfig) -> bool:
    """
    Whether the folder has the checkpoint of this very run, which was killed before it was concluded.

    Raises:
        InputError: A folder of another run, or of one that was concluded.
    """
    output, settings = Path(config.output), _settings(config)
    trained = (output / _RECORD).exists()
    if not (output / _RUN).exists():
        if trained:
            raise InputError(f"{output} holds a finished run: choose a new folder.")
        return False
    begun = json.loads((output / _RUN).read_text())
    differ = sorted(name for name in settings if begun.get(name) != settings[name])
    if differ:
        raise InputError(f"{output} was begun with other settings ({', '.join(differ)}): choose a new folder.")
    return trained


def _claim(config: PretrainingConfig) -> None:
    """From here on the folder is this run's."""
    path = Path(config.output, _RUN)
    if not path.exists():
        try:
            atomic_write(path, json.dumps(_settings(config), indent=1).encode())
        except OSError as error:
            raise InputError(f"output: {config.output} cannot be written: {error}") from error


def _conclude(config: PretrainingConfig) -> None:
    """Clears up, writes the card, and pushes the checkpoint if asked; a run that is killed here goes on from here."""
    output = Path(config.output)
    shutil.rmtree(output / _STATES, ignore_errors=True)
    for half_written in output.glob(".*"):
        half_written.unlink()
    if not (output / CARD).exists():
        try:
            write_card(output)
        except InputError as error:  # Of a record that others wrote: the checkpoint is none the worse.
            print(f"No card was written: {error}", file=sys.stderr)
    if config.push_to is not None:
        try:
            publish(output, config.push_to)
        except InputError as error:
            raise InputError(f"The checkpoint is in {output}; the same command goes on. {error}") from error
    (output / _RUN).unlink()


def _make_repository(name: str) -> None:
    """Before the training, and not days later, it shows whether there is leave to push."""
    try:
        require_write_access(name)
    except InputError as error:
        raise InputError(f"push_to: {error}") from error


@contextmanager
def _told_to_stop():
    """Whether SIGTERM came: not in the middle of a step, but after it, the run stops."""
    told: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    try:
        yield lambda: bool(told)
    finally:
        signal.signal(signal.SIGTERM, before)


def _is_until(line: str, step: int) -> bool:
    """Whether a line of a log is whole, and of a step up to this."""
    return line.endswith("}\n") and json.loads(line)["step"] <= step


def _save(
    model: LangCellForPreTraining, processor: LangCellProcessor, config: PretrainingConfig, record: dict[str, Any]
) -> None:
    saved: LangCellModel = model
    if not model.config.masked_gene_weight:  # An untrained head is no part of a checkpoint.
        saved = LangCellModel(model.config)
        saved.load_state_dict(
            {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("lm_head.")}
        )
    saved.to(getattr(torch, config.saved_dtype)).save_pretrained(config.output)
    # Half precision saves space on disk; what loads computes in float32 unless it is told otherwise.
    for part in (saved.config, saved.config.cell_config, saved.config.text_config):
        part.dtype = torch.float32
    saved.config.save_pretrained(config.output)
    processor.save_pretrained(config.output)
    settings = {name: _told(value) for name, value in asdict(config).items() if name != "output"}
    runs = [*_runs_before(config), {"config": settings, **record}]
    # Last: with it the run is done.
    atomic_write(Path(config.output, _RECORD), (json.dumps({"runs": runs}, indent=1) + "\n").encode())


def _told(value: Any) -> Any:
    """A setting as others are told of it: from where on this machine a folder was read says nothing elsewhere."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _runs_before(config: PretrainingConfig) -> list[dict[str, Any]]:
    """What is on record of how the checkpoint that a run starts from was trained."""
    record = Path(config.start or "", _RECORD)
    return json.loads(record.read_text())["runs"] if config.start and record.is_file() else []


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and normalisations do not."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


__all__ = ["TrainingStopped", "pretrain"]
