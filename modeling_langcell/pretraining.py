# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Pre-training: where the towers start, what a batch holds, and the loop on Accelerate."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import resources
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import AutoTokenizer, BertModel, get_cosine_schedule_with_warmup

from . import ontology
from .configuration_langcell import LangCellConfig
from .conversion import fold_token_types
from .corpus import Gene, LabelledCells, build_gene_vocabulary, read_gene_info, read_labelled_cells
from .feature_extraction_langcell import InputError, LangCellFeatureExtractor
from .modeling_langcell import LangCellForPreTraining, LangCellModel
from .processing_langcell import LangCellProcessor


@dataclass
class PretrainingConfig:
    """
    One pre-training run; the fields of its YAML file.

    Args:
        data: Folder of `.h5ad` files with raw counts and Cell Ontology ids.
        gene_info: NCBI `gene_info` table, for gene names.
        output: Folder for the checkpoint.
        text_tower: A BERT sentence encoder to start from: a folder, a Hub id, or `package://NAME/FOLDER` for one that
            an installed Python package carries.
        start: A LangCell checkpoint to go on from; then `text_tower`, `gene_info` and `model` are its own.
        model: Overrides of `LangCellConfig`; the text tower's geometry comes from `text_tower`.
        train_text_tower: Train the text tower's own layers too, and not only its cross-attention. Frozen, it reads
            every wording once a run.
        train_text_projection: Train the projection of the texts, or keep its start: the principal components of what
            the sentence encoder makes of the corpus's descriptions. Kept, types never seen stay where language puts
            them.
        train_cell_tower: Train the cell tower, or keep it as it is while the matching is learnt.
        gene_names_start: Start gene embeddings from the text tower's reading of each gene's symbol and full name.
        gene_average_start: Start the cell tower's last layer as an average over the genes, and not as noise: a small
            tower then tells cells apart from its first steps on.
        min_cells: Genes counted in fewer cells of the corpus get no id.
        max_genes: Longest cell, `<cls>` included. The processor that is saved cuts there too (or where an earlier run
            did, if later): positions beyond learn nothing.
        gene_dropout: A random share of a cell's genes, up to this, is left out each time it is seen.
        panel_share: Share of the cells that are seen with only those of their genes that another study of the corpus,
            drawn at random, has measured: which genes a matrix has must not tell the study.
        ancestor_share: Share of the cells that are described by an ancestor of their type.
        sibling_texts: At most so many descriptions in a batch that are of none of its cells, but of types beside
            theirs in the ontology.
        name_only_share: Share of the descriptions that are the type's name or a synonym without its definition.
        max_tokens: Longest description; the saved processor cuts as with `max_genes`.
        balance: 1 draws cells as they come, 0 every type of every study equally often.
        averaging: Decay, a step, of a running average of the weights, which is what is saved; 0 saves the last ones.
        batch_size, steps, learning_rate, warmup_steps, weight_decay, max_gradient_norm: The optimisation; AdamW with
            linear warm-up and cosine decay.
        precision: `no` or `bf16`.
        saved_dtype: What the weights are saved in; they load as float32 whatever it is.
        seed: Of everything drawn.
    """

    data: str
    output: str
    gene_info: str | None = None
    text_tower: str | None = None
    start: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    train_text_tower: bool = True
    train_text_projection: bool = True
    train_cell_tower: bool = True
    gene_names_start: bool = True
    gene_average_start: bool = False
    min_cells: int = 10
    max_genes: int = 512
    gene_dropout: float = 0.5
    panel_share: float = 0.0
    ancestor_share: float = 0.5
    sibling_texts: int = 0
    name_only_share: float = 0.5
    max_tokens: int = 64
    balance: float = 0.5
    averaging: float = 0.0
    batch_size: int = 64
    steps: int = 1000
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    weight_decay: float = 0.01
    max_gradient_norm: float = 1.0
    precision: str = "no"
    saved_dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    seed: int = 0

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "PretrainingConfig":
        """
        Reads a YAML file and `key=value` overrides (`model.temperature=0.07` reaches into `model`).

        Raises:
            InputError: No such file, a field that does not exist, or a value of the wrong kind.
        """
        if not Path(path).is_file():
            raise InputError(f"No configuration at {path}.")
        values = yaml.safe_load(Path(path).read_text()) or {}
        for override in overrides:
            key, separator, value = override.partition("=")
            if not separator:
                raise InputError(f"{override!r} is not of the form key=value.")
            *parents, last = key.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = yaml.safe_load(value)
        known = {f.name: f for f in fields(cls)}
        if unknown := sorted(set(values) - set(known)):
            raise InputError(f"{path}: unknown field(s) {', '.join(unknown)}; known are {', '.join(known)}.")
        if missing := [name for name in ("data", "output") if not values.get(name)]:
            raise InputError(f"{path}: {' and '.join(missing)} must be set.")
        config = cls(**values)
        for name, f in known.items():
            value = getattr(config, name)
            if f.type in (int, float) and (isinstance(value, bool) or not isinstance(value, (int, float))):
                raise InputError(f"{path}: {name} must be a number, not {value!r}.")
        return config


# ---------------------------------------------------------------------- where the towers start


def _text_tower_folder(name: str) -> str:
    if not name.startswith("package://"):
        return name
    package, _, folder = name.removeprefix("package://").partition("/")
    try:
        return str(resources.files(package) / folder)
    except ModuleNotFoundError as error:
        raise InputError(
            f"text_tower: the package {package!r} is not installed; the extra [train] brings it."
        ) from error


def start_model(config: PretrainingConfig, files: list[Path]) -> tuple[LangCellForPreTraining, LangCellProcessor]:
    """
    A model and processor ready to train: gone on from `config.start`, or built from a sentence encoder, the corpus's
    gene vocabulary and, if asked, the genes' names.
    """
    if config.start is not None:
        model = LangCellForPreTraining.from_pretrained(config.start, dtype=torch.float32, **config.model)
        processor = LangCellProcessor.from_pretrained(config.start)
        extractor, tokenizer = processor.feature_extractor, processor.tokenizer
        extractor.max_length = max(extractor.max_length, config.max_genes)
        tokenizer.model_max_length = max(tokenizer.model_max_length, config.max_tokens)
        return model, processor
    if config.text_tower is None or config.gene_info is None:
        raise InputError("A run that does not go on from a checkpoint (start) needs text_tower and gene_info.")

    folder = _text_tower_folder(config.text_tower)
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = config.max_tokens
    genes = {gene.ensembl_id: gene for gene in read_gene_info(config.gene_info)}
    vocabulary = build_gene_vocabulary(files, list(genes.values()), config.min_cells)
    extractor = LangCellFeatureExtractor(vocabulary, max_length=config.max_genes)

    overrides = dict(config.model)
    geometry = {
        key: getattr(bert.config, key)
        for key in (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "hidden_act",
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "max_position_embeddings",
            "layer_norm_eps",
        )
    }
    overrides["text_config"] = geometry | overrides.get("text_config", {})
    overrides["cell_config"] = overrides.get("cell_config", {}) | {"vocab_size": len(extractor)}
    model = LangCellForPreTraining(LangCellConfig(**overrides))
    loaded = model.text_model.load_state_dict(fold_token_types(bert.state_dict()), strict=False)
    strangers = [name for name in loaded.missing_keys if ".crossattention." not in name]
    if strangers or loaded.unexpected_keys:
        raise InputError(f"{config.text_tower} does not fit the text tower: {strangers or loaded.unexpected_keys}.")
    if config.gene_names_start:
        ordered = [genes[ensembl_id] for ensembl_id in vocabulary["ensembl_ids"]]
        _start_gene_embeddings(model, bert, tokenizer, ordered)
    if config.gene_average_start:
        _start_gene_average(model)
    return model, LangCellProcessor(extractor, tokenizer)


@torch.no_grad()
def _start_gene_embeddings(model: LangCellForPreTraining, bert: BertModel, tokenizer: Any, genes: list[Gene]) -> None:
    """Gene embeddings from mean-pooled sentence embeddings of `symbol: full name`, by principal components."""
    texts = [f"{gene.symbol}: {gene.full_name}" for gene in genes]
    embedded = torch.empty(len(texts), bert.config.hidden_size)
    by_length = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), 256):
        rows = by_length[start : start + 256]
        batch = tokenizer([texts[i] for i in rows], padding=True, truncation=True, max_length=48, return_tensors="pt")
        states = bert(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        embedded[rows] = F.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    weight = model.cell_model.get_input_embeddings().weight
    centred = embedded - embedded.mean(dim=0)
    components = min(weight.shape[1], centred.shape[1])
    _, _, directions = torch.pca_lowrank(centred, q=components, center=False, niter=4)
    projected = centred @ directions
    # Twice the positions' scale: which gene it is should at first say more than where it stands.
    projected *= 2 * model.config.cell_config.initializer_range / projected.std()
    weight[2 : 2 + len(genes), :components] = projected


@torch.no_grad()
def _start_gene_average(model: LangCellForPreTraining) -> None:
    """
    The last layer's values become the genes' own states, which its small random queries and keys weigh about alike.
    What is attended to counts four times what was there: else the constant start of `<cls>` would drown it.
    """
    attention = model.cell_model.encoder.layer[-1].attention
    torch.nn.init.eye_(attention.self.value.weight)
    torch.nn.init.eye_(attention.output.dense.weight).mul_(4)


# ---------------------------------------------------------------------- what a batch holds


class CellTextBatches:
    """
    Endless training batches of cells and the distinct descriptions of them.

    A cell is described by its type or, half of the time, by an ancestor of it: what is learnt of "lymphocyte" carries
    to types never seen. A text that is true of a cell without being the one drawn for it (another ancestor, or a type
    that may be the cell's own when its label is coarse) is neutral to it.

    Types that stand beside the cells' own in the ontology come as texts that no cell of the batch has: what sets a
    classical monocyte apart from a non-classical one is learnt though no cell of the latter was ever seen.
    """

    fewest_genes = 50  #: Of a cell on another study's panel, for it to be shown so.

    def __init__(self, data: LabelledCells, processor: LangCellProcessor, config: PretrainingConfig):
        self.data, self.processor, self.config = data, processor, config
        self.rng = np.random.default_rng(config.seed)
        measured = np.zeros((len(data.panels), len(processor.feature_extractor)), dtype=bool)
        for panel, token_ids in zip(measured, data.panels.values(), strict=True):
            panel[token_ids] = True
        self.measured = measured
        groups, sizes = np.unique(
            np.char.add(data.studies.astype(str), data.term_ids.astype(str)), return_inverse=True, return_counts=True
        )[1:]
        weights = sizes[groups] ** (config.balance - 1.0)
        self.weights = weights / weights.sum()
        self.ancestors = {
            term: sorted(ontology.ancestors(term) - ontology.UNINFORMATIVE) for term in set(data.term_ids.tolist())
        }
        self.beside = {
            term: sorted(
                other
                for other in frozenset().union(*map(ontology.siblings, (term, *above)))
                if not ontology.related(term, other)
            )
            for term, above in self.ancestors.items()
        }

    def __iter__(self) -> Iterator[dict[str, Any]]:
        while True:
            rows = self.rng.choice(len(self.weights), self.config.batch_size, replace=False, p=self.weights)
            yield self.batch(rows)

    def batch(self, rows: np.ndarray) -> dict[str, Any]:
        """One batch of the given cells: what the model takes, and the `wordings` of its texts."""
        own = [str(term) for term in self.data.term_ids[rows]]
        described_by = [self._describing_term(term) for term in own]
        terms = sorted(set(described_by))
        terms += self._wrong_terms(own, terms)
        text_index = np.array([terms.index(term) for term in described_by])
        neutral = np.array([[ontology.related(term, other) for other in terms] for term in own])
        neutral[np.arange(len(rows)), text_index] = False
        ids, mask = self._cells(rows)
        wordings = [self._wording(ontology.get_term(term)) for term in terms]
        texts = self.processor(text=wordings, text_kwargs={"max_length": self.config.max_tokens}, return_tensors="pt")
        return {
            "cell_input_ids": torch.from_numpy(ids),
            "cell_attention_mask": torch.from_numpy(mask),
            "wordings": wordings,
            "input_ids": texts["input_ids"],
            "attention_mask": texts["attention_mask"],
            "text_index": torch.from_numpy(text_index),
            "neutral": torch.from_numpy(neutral),
        }

    def _describing_term(self, term: str) -> str:
        above = self.ancestors[term]
        if above and self.rng.random() < self.config.ancestor_share:
            return str(self.rng.choice(above))
        return term

    def _wrong_terms(self, own: list[str], described: list[str]) -> list[str]:
        """Types beside those of the batch's cells and their ancestors, drawn among all that there are."""
        beside = sorted({str(self.rng.choice(self.beside[term])) for term in own if self.beside[term]} - {*described})
        return self.rng.permutation(beside)[: self.config.sibling_texts].tolist()

    @property
    def wordings(self) -> list[str]:
        """Everything that can be said of the corpus's cells: every type and ancestor, in all its wordings."""
        terms = set(self.ancestors).union(*self.ancestors.values())
        return [wording for term in sorted(terms) for wording in ontology.get_term(term).wordings]

    def _wording(self, term: ontology.Term) -> str:
        if term.definition and self.rng.random() >= self.config.name_only_share:
            return term.description
        return str(self.rng.choice(term.short_wordings))

    def _cells(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids and mask of the cells with some of their genes left out, order kept."""
        sequences = []
        for row in rows:
            cls, genes = np.split(self.data.cells[row], [1])
            kept = self.rng.random(len(genes)) >= self.rng.uniform(0, self.config.gene_dropout)
            if self.rng.random() < self.config.panel_share:
                on_panel = self.measured[self.rng.integers(len(self.measured)), genes]
                # Two panels may have next to nothing in common: then the cell stays as it is.
                kept &= on_panel if on_panel.sum() >= self.fewest_genes else True
            sequences.append(np.concatenate([cls, genes[kept]])[: self.config.max_genes])
        mask = np.arange(max(map(len, sequences))) < np.array([[len(s)] for s in sequences])
        ids = np.zeros(mask.shape, dtype=np.int64)
        ids[mask] = np.concatenate(sequences)
        return ids, mask.astype(np.int64)


class FrozenTexts:
    """What a text tower that is not trained makes of a text: every wording is read once, and then remembered."""

    def __init__(self, model: LangCellModel, processor: LangCellProcessor, max_tokens: int):
        self.model, self.processor, self.max_tokens = model, processor, max_tokens
        self._pooled: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def __call__(self, wordings: list[str]) -> torch.Tensor:
        """`(texts, hidden_size)` pooled states."""
        unread = [wording for wording in wordings if wording not in self._pooled]
        if unread:
            texts = self.processor(text=unread, text_kwargs={"max_length": self.max_tokens}, return_tensors="pt")
            pooled = self.model.text_model(**texts.to(self.model.device), pooled_only=True).pooler_output
            self._pooled.update(zip(unread, pooled, strict=True))
        return torch.stack([self._pooled[wording] for wording in wordings])


@torch.no_grad()
def start_text_projection(model: LangCellModel, pooled: torch.Tensor) -> None:
    """
    Makes the projection of the texts the principal components of these `(texts, hidden_size)` pooled states, at unit
    length on average: what sets descriptions apart is kept, what they share is not.
    """
    projection = model.text_projection
    components = min(projection.out_features, *pooled.shape)
    mean = pooled.mean(dim=0)
    _, _, directions = torch.linalg.svd(pooled - mean, full_matrices=False)
    directions = directions[:components] / ((pooled - mean) @ directions[:components].T).norm(dim=1).mean()
    projection.weight.zero_()
    projection.weight[:components] = directions
    projection.bias.zero_()
    projection.bias[:components] = -directions @ mean


# ---------------------------------------------------------------------- the loop


def pretrain(config: PretrainingConfig) -> Path:
    """
    Trains as `config` says. The folder `config.output` gets model and processor, `training.json` (configuration and
    versions of this run and of those it goes on from) and, line by line while it trains, `losses.jsonl`.

    Returns:
        The checkpoint's folder.

    Raises:
        InputError: No data, or data or starts that cannot be used.
    """
    files = sorted(Path(config.data).glob("*.h5ad"))
    if not files:
        raise InputError(f"No .h5ad files in {config.data}.")
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    set_seed(config.seed)
    accelerator = Accelerator(mixed_precision=config.precision)
    model, processor = start_model(config, files)
    data = read_labelled_cells(files, processor.feature_extractor, max_length=2 * config.max_genes)
    batches = CellTextBatches(data, processor, config)
    frozen_texts = FrozenTexts(model, processor, config.max_tokens)
    if config.start is None:
        model.text_model.eval()
        start_text_projection(model, frozen_texts(batches.wordings))
    model.text_projection.requires_grad_(config.train_text_projection)
    model.cell_model.requires_grad_(config.train_cell_tower)
    if not config.train_text_tower:
        for name, parameter in model.text_model.named_parameters():
            parameter.requires_grad_(".crossattention." in name)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(_decay_groups(trained, config.weight_decay), lr=config.learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, config.warmup_steps, config.steps)
    model, optimizer, schedule = accelerator.prepare(model, optimizer, schedule)
    model.train()
    if not config.train_text_tower:
        accelerator.unwrap_model(model).text_model.eval()  # A frozen encoder should read alike each time.

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.averaging)) if config.averaging else None
    main = accelerator.is_main_process
    with (
        Progress(*columns, disable=not main) as progress,
        open(output / "losses.jsonl" if main else os.devnull, "w") as log,
    ):
        task = progress.add_task("Training", total=config.steps)
        started = time.monotonic()
        for step, batch in enumerate(islice(batches, config.steps), start=1):
            wordings = batch.pop("wordings")
            batch = {key: value.to(accelerator.device) for key, value in batch.items()}
            if not config.train_text_tower:
                batch["text_pooled"] = frozen_texts(wordings)
            outputs = model(**batch)
            accelerator.backward(outputs.loss)
            norm = accelerator.clip_grad_norm_(trained, config.max_gradient_norm)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if averaged is not None:
                averaged.update_parameters(model)
            losses = {key: value.item() for key, value in outputs.items() if key.endswith("loss")}
            if not math.isfinite(losses["loss"]):
                raise RuntimeError(f"The loss is {losses['loss']} at step {step}: lower learning_rate.")
            print(json.dumps({"step": step, **losses, "gradient_norm": float(norm)}), file=log, flush=True)
            rate = step * config.batch_size / (time.monotonic() - started)
            progress.update(task, advance=1, description=f"loss {losses['loss']:.3f}  {rate:.1f} cells/s")

    accelerator.wait_for_everyone()
    if main:
        _save(accelerator.unwrap_model(model if averaged is None else averaged.module), processor, config)
    return output


def _save(model: LangCellForPreTraining, processor: LangCellProcessor, config: PretrainingConfig) -> None:
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
    versions = {name: version(name) for name in ("modeling-langcell", "torch", "transformers", "accelerate")}
    settings = {name: value for name, value in asdict(config).items() if name != "output"}
    runs = [*_runs_before(config), {"config": settings, "versions": versions}]
    Path(config.output, "training.json").write_text(json.dumps({"runs": runs}, indent=1) + "\n")


def _runs_before(config: PretrainingConfig) -> list[dict[str, Any]]:
    """What is on record of how the checkpoint that a run starts from was trained."""
    record = Path(config.start or "", "training.json")
    return json.loads(record.read_text())["runs"] if config.start and record.is_file() else []


def _decay_groups(parameters: list[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Matrices decay; biases and normalisations do not."""
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


__all__ = ["CellTextBatches", "PretrainingConfig", "pretrain", "start_model"]
