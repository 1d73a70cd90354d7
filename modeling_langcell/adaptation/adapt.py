# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""A checkpoint adapted to labelled cells: few-shot (LangCell, section 3.4) and LangCell-CE, by LoRA or as a whole."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from ..annotation.annotator import LangCellAnnotator
from ..annotation.device import find_device
from ..checkpoint.adaptation_record import Adaptation, Head, versions
from ..checkpoint.builtin import display_name, resolve_checkpoint
from ..checkpoint.fingerprint import weights_of_base
from ..checkpoint.loading import load_checkpoint, load_classifier, quiet_peft
from ..checkpoint.repository import fetch
from ..io.atomic import atomic_folder
from ..io.labels import Labels, rank_cells, read_labels
from ..model.errors import InputError
from ..model.feature_extraction_langcell import RankedCells
from ..model.modeling_langcell import LangCellModel
from ..model.processing_langcell import LangCellProcessor
from ..ontology import find_term
from .trainer import CellBatches, ClassLoss, DescriptionLoss, fit

Method = Literal["lora", "full", "frozen"]

#: What LoRA changes: every linear map of the cell tower's layers and the gene embeddings; of the text tower, how it
#: attends, to the cell only where the matching is trained.
CELL_MODULES = (
    r"cell_model\.(embeddings\.word_embeddings|encoder\.layer\.\d+\."
    r"(attention\.self\.(query|key|value)|attention\.output\.dense|intermediate\.dense|output\.dense))"
)
TEXT_MODULES = r"text_model\.encoder\.layer\.\d+\.attention\.self\.(query|key|value)"
CROSS_MODULES = r"text_model\.encoder\.layer\.\d+\.crossattention\.self\.(query|key|value)"

#: Cells of a label that weigh as much as its description, where there are prototypes and no training.
_DESCRIPTION_WORTH = 0.5


@dataclass(frozen=True)
class AdaptationConfig:
    """
    How a checkpoint is adapted.

    Args:
        head: What is to tell the labels apart: their `descriptions`, a classification head (`classes`, LangCell-CE), or
            `prototypes`, which need no training.
        method: `lora`; `full`, all weights; or `frozen`, the head alone (`classes`).
        rank: Of LoRA's matrices.
        epochs: How often each cell is seen.
        batch_cells: Cells of a step.
        learning_rate: The highest. By default 5e-4 with LoRA, 5e-5 for all weights, 5e-3 for a head alone.
        weight_decay: Of AdamW.
        gene_dropout: Of each cell a random share of the genes up to this one is left out whenever it is seen, so that
            few cells are as many as there are ways to see them; what is left is cut as always.
        temperature: Divides the cosine of cell and description while it is learnt. The checkpoint's own, 0.05, asks for
            nothing more once a few cells are told apart: with a higher one other cells are told apart better.
        matching: Whether the matching is adapted too, and has its say. By default where it has one in the checkpoint:
            it takes most of the time.
        adapt_texts: Whether LoRA changes the text tower too, which takes several times as long; if not, each
            description is read once.
        balanced: Whether a label counts as much as any other, however many cells it has (`classes`).
        held_out: Share of the cells that training is watched on; it ends when `patience` epochs brought nothing, and
            the best weights are kept. 0 trains all epochs on all cells.
        patience: See `held_out`.
        prototype_weight: Weight of the prototypes against the descriptions; by default the more, the more cells there
            are of a label.
        seed: Of the cells drawn, their order, what is dropped, and where new weights start.
    """

    head: Head = "descriptions"
    method: Method = "lora"
    rank: int = 8
    epochs: int = 30
    batch_cells: int = 12
    learning_rate: float | None = None
    weight_decay: float = 0.0
    gene_dropout: float = 0.8
    temperature: float = 0.4
    matching: bool | None = None
    adapt_texts: bool = False
    balanced: bool = False
    held_out: float = 0.0
    patience: int = 3
    prototype_weight: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.head not in ("descriptions", "classes", "prototypes"):
            raise InputError(f"head={self.head!r} is not one of 'descriptions', 'classes' and 'prototypes'.")
        if self.method not in ("lora", "full", "frozen"):
            raise InputError(f"method={self.method!r} is not one of 'lora', 'full' and 'frozen'.")
        for name in ("rank", "epochs", "batch_cells", "patience"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.temperature <= 0:
            raise InputError(f"temperature={self.temperature} must be above 0.")
        for name in ("gene_dropout", "held_out"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} is not a share: from 0 to less than 1.")
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise InputError(f"learning_rate={self.learning_rate} must be above 0.")
        if self.weight_decay < 0 or self.seed < 0:
            raise InputError("weight_decay and seed must not be below 0.")
        if self.prototype_weight is not None and not 0 <= self.prototype_weight <= 1:
            raise InputError(f"prototype_weight={self.prototype_weight} must be from 0 to 1.")
        for name, head in (("matching", "descriptions"), ("adapt_texts", "descriptions"), ("balanced", "classes")):
            if getattr(self, name) and self.head != head:
                raise InputError(f"{name} is for the head {head!r}: the head {self.head!r} does nothing with it.")
        if self.held_out and self.head == "prototypes":
            raise InputError("held_out is for what is trained, and prototypes are not.")

    @property
    def highest_rate(self) -> float:
        """The learning rate after the warm-up."""
        default = {"lora": 5e-4, "full": 5e-5, "frozen": 5e-3}[self.method]
        return default if self.learning_rate is None else self.learning_rate


@dataclass(frozen=True)
class Adapted:
    """
    What `adapt` makes.

    Args:
        model: The adapted model, inside a `PeftModel` where it is LoRA.
        processor: The checkpoint's.
        adaptation: What it was adapted to.
        trained_share: Share of the parameters that was trained.
        losses: Mean loss of each epoch; of the cells held out, where there are any.
    """

    model: PreTrainedModel | PeftModel
    processor: LangCellProcessor
    adaptation: Adaptation
    trained_share: float
    losses: tuple[float, ...]

    def annotator(self, **options: Any) -> LangCellAnnotator:
        """Annotates with it; `options` as `LangCellAnnotator`."""
        return LangCellAnnotator(_inner(self.model), self.processor, adaptation=self.adaptation, **options)

    def save(self, folder: str | Path) -> Path:
        """
        Makes a folder: a PEFT adapter, prototypes, or the whole checkpoint where all of it was trained; with labels,
        descriptions, and a card. `LangCellAnnotator.from_pretrained` loads it.

        Raises:
            InputError: The folder is in use, or cannot be written.
        """
        with atomic_folder(folder) as aside:
            if isinstance(self.model, PeftModel):
                self.model.peft_config["default"].base_model_name_or_path = self.adaptation.base
                self.model.save_pretrained(str(aside), save_embedding_layers=False)
            elif self.adaptation.head != "prototypes":
                self.model.save_pretrained(aside)
                self.processor.save_pretrained(aside)
            self.adaptation.save(aside)
        return Path(folder)


def adapt(
    checkpoint: str | Path,
    adata: ad.AnnData,
    label_key: str,
    *,
    shots: int | None = None,
    descriptions: Mapping[str, str] | None = None,
    config: AdaptationConfig | None = None,
    unlabelled: Literal["error", "skip"] = "error",
    device: str | torch.device | None = None,
    **cell_options: Any,
) -> Adapted:
    """
    Adapts a checkpoint to labelled cells.

    Args:
        checkpoint: Folder or Hub id of a LangCell checkpoint.
        adata: The cells, in memory or backed.
        label_key: Column of `obs` with a label a cell; or table of `obsm` with a column a label, true where a cell has
            it (`classes` alone).
        shots: Learn from so many cells of each label, drawn by the seed; from all by default.
        descriptions: Of labels that the Cell Ontology does not know, or in other words than its.
        config: How.
        unlabelled: Cells without a label: an error, or left out (`skip`).
        device: Where to compute; the best there is by default.
        cell_options: As `LangCellAnnotator.annotate`.

    Raises:
        InputError: A label column that is missing, has missing values or one label alone, a label with fewer than
            `shots` cells, a label without description or with that of another, cells that cannot be read, no such
            checkpoint, or no such device.
    """
    config = config or AdaptationConfig()
    labels = read_labels(adata, label_key, unlabelled=unlabelled)
    if labels.multilabel and config.head != "classes":
        raise InputError(f"obsm[{label_key!r}] gives a cell several labels: that needs the head 'classes'.")
    if shots is not None:
        labels = labels.shots(shots, config.seed)
    learnt_from, watched = labels, None
    if config.held_out:
        learnt_from, watched = labels.held_out(config.held_out, config.seed)

    checkpoint = resolve_checkpoint(checkpoint)
    model, processor, before = load_checkpoint(checkpoint)
    if before is not None or not isinstance(model, LangCellModel):
        raise InputError(f"{str(checkpoint)!r} was adapted already: name the checkpoint it was made from.")
    model.config.calibration = None  # What it says holds for other weights.
    described = _describe(labels.names, descriptions or {}, processor.prompt_templates, needed=config.head != "classes")
    where = find_device(device)
    adaptation = Adaptation(
        head=config.head,
        labels=described,
        base=display_name(checkpoint),
        base_weights=weights_of_base(model, config.head),
        multilabel=labels.multilabel,
        alpha=_alpha(model, config),
        cells=learnt_from.sizes(),
        settings={"label_key": label_key, "shots": shots, **asdict(config), "learning_rate": config.highest_rate},
        versions=versions(),
    )
    if config.head == "prototypes":
        ranked = rank_cells(adata, learnt_from.rows, processor.feature_extractor, **cell_options)
        return _with_prototypes(model.to(where), processor, adaptation, ranked, learnt_from, config)

    def batches(part: Labels) -> CellBatches:
        ranked = rank_cells(adata, part.rows, processor.feature_extractor, **cell_options)
        return CellBatches(ranked, part.truth, config.batch_cells, where)

    learnt_cells, watched_cells = batches(learnt_from), None if watched is None else batches(watched)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapted = _start(model, checkpoint, adaptation, config).to(where)
        inner = _inner(adapted)
        loss_of: nn.Module
        if config.head == "classes":
            loss_of = ClassLoss(inner, learnt_from.truth, config.balanced)
        else:
            texts = processor(text=list(described.values()), return_tensors="pt")
            loss_of = DescriptionLoss(
                inner,
                texts,
                temperature=config.temperature,
                matching=adaptation.alpha < 1,
                adapt_texts=_adapts_texts(config),
            )
        losses = fit(
            loss_of,
            learnt_cells,
            watched_cells,
            epochs=config.epochs,
            learning_rate=config.highest_rate,
            weight_decay=config.weight_decay,
            gene_dropout=config.gene_dropout,
            patience=config.patience,
            seed=config.seed,
        )
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in adapted.parameters()]
    share = sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)
    return Adapted(adapted.eval(), processor, adaptation, share, losses)


def _describe(
    names: tuple[str, ...], descriptions: Mapping[str, str], prompt_templates: Sequence[str], needed: bool
) -> dict[str, str]:
    """
    Labels to one description each: those given, else the ontology's, as the first of the wordings has it, else none
    where none is needed.

    Raises:
        InputError: A description of no label, a label without one, or two with the same.
    """
    strangers = [name for name in descriptions if name not in names]
    if strangers:
        raise InputError(f"No cell has the label {strangers[0]!r}, which a description was given for.")
    described = {}
    for name in names:
        try:
            described[name] = descriptions.get(name) or find_term(name).texts(prompt_templates)[0].text
        except InputError:
            if needed:
                raise
            described[name] = ""
    if needed:
        first: dict[str, str] = {}
        for name, description in described.items():
            other = first.setdefault(description, name)
            if other != name:
                raise InputError(f"{other!r} and {name!r} have the same description: merge them, or describe them.")
    return described


def _alpha(model: LangCellModel, config: AdaptationConfig) -> float:
    """The weight of the similarity: the checkpoint's, or the published 0.5 where only now the matching has a say."""
    if config.matching is None:
        return float(model.config.alpha)
    if not config.matching:
        return 1.0
    return float(model.config.alpha) if model.config.alpha < 1 else 0.5


def _adapts_texts(config: AdaptationConfig) -> bool:
    return config.adapt_texts and config.method != "frozen"


def _start(
    model: LangCellModel, checkpoint: str | Path, adaptation: Adaptation, config: AdaptationConfig
) -> PreTrainedModel | PeftModel:
    """The model to train, with gradients where it learns."""
    started: Any = model
    heads = ["cell_projection", "text_projection"]
    modules = [CELL_MODULES]
    if config.head == "classes":
        revision = None if Path(checkpoint).is_dir() else model.config._commit_hash
        started = load_classifier(fetch(checkpoint, revision), adaptation)
        heads = ["classifier"]
    else:
        if _adapts_texts(config):
            modules.append(TEXT_MODULES)
        if adaptation.alpha < 1:
            heads.append("matching_head")
            modules.append(CROSS_MODULES)
    if config.method == "lora":
        lora = LoraConfig(
            r=config.rank, lora_alpha=2 * config.rank, target_modules="|".join(modules), modules_to_save=heads
        )
        with quiet_peft():
            return get_peft_model(started, lora)
    started.requires_grad_(config.method == "full")
    if config.head != "classes" and not _adapts_texts(config):
        started.text_model.requires_grad_(False)
    for head in heads:
        getattr(started, head).requires_grad_(True)
    return started


def _inner(model: PreTrainedModel | PeftModel) -> Any:
    """The model itself, with what PEFT put into it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


@torch.inference_mode()
def _with_prototypes(
    model: LangCellModel,
    processor: LangCellProcessor,
    adaptation: Adaptation,
    ranked: RankedCells,
    labels: Labels,
    config: AdaptationConfig,
) -> Adapted:
    """Each label's mean embedding, and what it weighs against the description: the more cells, the more."""
    batches = CellBatches(ranked, labels.truth, 64, model.device)
    model.eval()
    embeds = torch.cat([model.get_cell_features(ids, mask) for ids, mask, _ in batches.whole()])
    truth = torch.from_numpy(labels.truth).to(model.device)
    means = torch.stack([embeds[truth == label].mean(dim=0) for label in range(len(labels.names))])
    weight = config.prototype_weight
    if weight is None:
        cells = min(adaptation.cells.values())
        weight = cells / (cells + _DESCRIPTION_WORTH)
    prototypes = F.normalize(means, dim=-1).float().cpu()
    adaptation = replace(adaptation, prototypes=prototypes, prototype_weight=weight)
    return Adapted(model, processor, adaptation, 0.0, ())


__all__ = ["AdaptationConfig", "Adapted", "adapt"]
