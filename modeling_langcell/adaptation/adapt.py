# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Adapts a checkpoint to labelled cells: few-shot (LangCell, section 3.4) and LangCell-CE, by LoRA or as a whole."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel, TrainerCallback

from ..annotation.annotator import LangCellAnnotator
from ..annotation.device import find_device
from ..checkpoint.adaptation_record import Adaptation, versions
from ..checkpoint.adapters import CELL_MODULES, CROSS_MODULES, TEXT_MODULES
from ..checkpoint.builtin import display_name, resolve_checkpoint
from ..checkpoint.files import CARD
from ..checkpoint.fingerprint import weights_of_base
from ..checkpoint.loading import load_checkpoint, load_classifier, quiet_peft
from ..checkpoint.repository import fetch
from ..io.atomic import atomic_folder
from ..io.labels import Labels, rank_cells, read_labels
from ..io.outputs import require_place
from ..model.errors import InputError
from ..model.feature_extraction_langcell import takes_cell_options
from ..model.modeling_langcell import LangCellModel
from ..model.processing_langcell import LangCellProcessor
from ..model.prompts import Description, as_description
from ..model.ranking import RankedCells
from ..ontology import descriptions_of, id_of, same_types
from .batches import CellBatches
from .config import AdaptationConfig
from .losses import CellLoss, ClassLoss, DescriptionLoss
from .trainer import find_loggers, fit

logger = logging.getLogger(__name__)

#: Number of cells of a label whose prototype weighs as much as its description.
_DESCRIPTION_WORTH = 0.5
#: Number of cells of a label to learn from with which its markers count half.
_MARKERS_WORTH = 1


@dataclass(frozen=True)
class Adapted:
    """
    Model that `adapt` returns.

    Args:
        model: Adapted model; a `PeftModel` with LoRA.
        processor: Processor of the checkpoint.
        adaptation: Record of the adaptation.
        trained_share: Share of the parameters that were trained.
        losses: Mean loss of each epoch, on the held-out cells if there are any.
    """

    model: PreTrainedModel | PeftModel
    processor: LangCellProcessor
    adaptation: Adaptation
    trained_share: float
    losses: tuple[float, ...]

    def annotator(self, **options: Any) -> LangCellAnnotator:
        """Returns an annotator with this model; `options` are those of `LangCellAnnotator`."""
        return LangCellAnnotator(_inner(self.model), self.processor, adaptation=self.adaptation, **options)

    def save(self, folder: str | Path) -> Path:
        """
        Writes a folder with the labels and their descriptions, and with a PEFT adapter, with prototypes, or with the
        whole checkpoint if that was trained. `LangCellAnnotator.from_pretrained` loads it, and `langcell card` writes
        its card.

        Raises:
            InputError: The folder exists, or cannot be written.
        """
        with atomic_folder(folder) as temporary:
            if isinstance(self.model, PeftModel):
                self.model.peft_config["default"].base_model_name_or_path = self.adaptation.base
                self.model.save_pretrained(str(temporary), save_embedding_layers=False)
                (temporary / CARD).unlink(missing_ok=True)  # peft writes an empty template there.
            elif self.adaptation.head != "prototypes":
                self.model.save_pretrained(temporary)
                self.processor.save_pretrained(temporary)
            self.adaptation.save(temporary)
        return Path(folder)


@takes_cell_options
def adapt(
    checkpoint: str | Path,
    adata: ad.AnnData,
    label_key: str,
    *,
    shots: int | None = None,
    descriptions: Mapping[str, Any] | None = None,
    config: AdaptationConfig | None = None,
    unlabelled: Literal["error", "skip"] = "error",
    device: str | torch.device | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    report_to: str = "none",
    log_dir: str | Path | None = None,
    **cell_options: Any,
) -> Adapted:
    """
    Adapts a checkpoint to labelled cells.

    Several processes, as started by `accelerate launch` or `torchrun`, share each batch of cells, and all of them get
    the same adapted model. It is the one that a single process gets, except for what dropout drops: let one process
    save it.

    Args:
        checkpoint: Folder or Hub id of a LangCell checkpoint.
        adata: Labelled cells, in memory or backed.
        label_key: Column of `obs` with one label per cell; or a table of `obsm` with one column per label, true where a
            cell has it (`classes` only).
        shots: Number of training cells of each label, drawn by the seed; all cells by default.
        descriptions: Descriptions of labels that the Cell Ontology does not know, or that replace its own: in any form
            that `LangCellAnnotator.annotate` takes, with one text for each label.
        config: Settings.
        unlabelled: Treatment of cells without a label: `error`, or `skip` to leave them out.
        device: Device to compute on; by default the best available.
        callbacks: Callbacks of transformers' Trainer, called while the model is trained.
        report_to: Logger of the losses, for which its package must be installed: `tensorboard`, `wandb` or `none`.
        log_dir: Folder for the logger's files.
        cell_options: Options for reading cells, the same as for `LangCellAnnotator.annotate`.

    Raises:
        InputError: The label column is missing, has missing values or only one label; a label has fewer than `shots`
            cells, no description, or the same description as another label; the cells cannot be read; the checkpoint
            or the device does not exist; or the logger is not installed, or its files cannot be written.
    """
    config = config or AdaptationConfig()
    loggers = _find_loggers(config, report_to, log_dir, callbacks)
    labels = read_labels(adata, label_key, unlabelled=unlabelled)
    if labels.multilabel and config.head != "classes":
        raise InputError(f"obsm[{label_key!r}] gives a cell several labels, which needs the head 'classes'.")
    if config.head == "classes":
        for name, first in same_types(name for name in labels.names if name not in (descriptions or {})).items():
            logger.warning(
                "%r and %r are names of one type, but two classes here: merge them if that is wrong.", first, name
            )
    if shots is not None:
        labels = labels.shots(shots, config.seed)
    training, held_out = labels, None
    if config.held_out:
        training, held_out = labels.held_out(config.held_out, config.seed)

    checkpoint = resolve_checkpoint(checkpoint)
    model, processor, before = load_checkpoint(checkpoint)
    if before is not None or not isinstance(model, LangCellModel):
        raise InputError(f"{str(checkpoint)!r} was already adapted: name the checkpoint it was made from.")
    model.config.calibration = None  # It holds only for the weights before adaptation.
    described = _describe(labels.names, descriptions or {}, processor.prompt_templates, needed=config.head != "classes")
    where = find_device(device)
    adaptation = Adaptation(
        head=config.head,
        labels={label: found.texts[0] if found.texts else "" for label, found in described.items()},
        genes={
            label: {"markers": list(found.markers), "absent": list(found.absent)}
            for label, found in described.items()
            if found.markers is not None
        },
        base=display_name(checkpoint),
        base_weights=weights_of_base(model, config.head),
        multilabel=labels.multilabel,
        alpha=_alpha(model, config),
        marker_weight=_marker_weight(model, config, training),
        cells=training.sizes(),
        settings={"label_key": label_key, "shots": shots, **asdict(config), "learning_rate": config.peak_learning_rate},
        versions=versions(),
    )
    if config.head == "prototypes":
        ranked = rank_cells(adata, training.rows, processor.feature_extractor, **cell_options)
        return _with_prototypes(model.to(where), processor, adaptation, ranked, training, config)

    def batches(part: Labels) -> CellBatches:
        ranked = rank_cells(adata, part.rows, processor.feature_extractor, **cell_options)
        return CellBatches(ranked, part.truth, config.batch_cells)

    training_cells, held_out_cells = batches(training), None if held_out is None else batches(held_out)
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        adapted = _start(model, checkpoint, adaptation, config).to(where)
        inner = _inner(adapted)
        loss_of: CellLoss
        if config.head == "classes":
            loss_of = ClassLoss(inner, training.truth, config.balanced)
        else:
            texts = processor(text=list(adaptation.labels.values()), return_tensors="pt")
            loss_of = DescriptionLoss(
                inner,
                texts,
                temperature=config.temperature,
                matching=adaptation.alpha < 1,
                adapt_texts=_adapts_texts(config),
            )
        losses = fit(loss_of, training_cells, held_out_cells, config, [*loggers, *callbacks], log_dir)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in adapted.parameters()]
    share = sum(size for size, trained in sizes if trained) / sum(size for size, _ in sizes)
    return Adapted(adapted.eval(), processor, adaptation, share, losses)


def _find_loggers(
    config: AdaptationConfig, report_to: str, log_dir: str | Path | None, callbacks: Sequence[TrainerCallback]
) -> list[TrainerCallback]:
    """
    Returns the callbacks of the logger.

    Raises:
        InputError: Nothing is trained that could be logged, there is no folder for the logger's files or it cannot be
            written, or the logger is not installed.
    """
    loggers = find_loggers(report_to)
    if config.head == "prototypes" and (loggers or callbacks):
        raise InputError(f"{'report_to' if loggers else 'callbacks'} needs a trained head; prototypes are not trained.")
    if bool(loggers) != (log_dir is not None):
        raise InputError("report_to and log_dir belong together: give both, or neither.")
    if log_dir is not None:
        require_place(Path(log_dir) / "events", "log_dir")
    return loggers


def _describe(
    names: tuple[str, ...], descriptions: Mapping[str, Any], prompt_templates: Sequence[str], needed: bool
) -> dict[str, Description]:
    """
    Returns what describes each label, with one text: the one given, or that of the ontology in the first prompt
    template. If none is needed, labels that the ontology does not know have no text.

    Raises:
        InputError: A description is for an unknown label, a label has none or several, or two labels have the same one.
    """
    unknown = [name for name in descriptions if name not in names]
    if unknown:
        raise InputError(f"A description is given for the label {unknown[0]!r}, which no cell has.")
    given = {name: as_description(name, descriptions.get(name, "")) for name in names}
    if several := [name for name, own in given.items() if len(own.texts) > 1]:
        raise InputError(f"An adaptation needs one description for each label; {several[0]!r} has several.")
    known = {name: own for name, own in given.items() if needed or own.texts or id_of(name) is not None}
    found = descriptions_of(known, prompt_templates) if known else {}
    described = {name: replace(own, texts=own.texts[:1]) for name, own in (given | found).items()}
    if needed:
        first: dict[str, str] = {}
        for name, own in described.items():
            other = first.setdefault(own.texts[0], name)
            if other != name:
                raise InputError(f"{other!r} and {name!r} have the same description: merge them, or describe them.")
    return described


def _marker_weight(model: LangCellModel, config: AdaptationConfig, training: Labels) -> float:
    """Returns the weight of the markers: the checkpoint's, less for a trained head with many cells to learn from."""
    if config.head == "classes":
        return 0.0
    if config.marker_weight is not None:
        return float(config.marker_weight)
    weight = float(model.config.marker_weight)
    if config.head == "prototypes":  # Their scorer gives the descriptions, with the markers, less weight itself.
        return weight
    return weight * _MARKERS_WORTH / (min(training.sizes().values()) + _MARKERS_WORTH)


def _alpha(model: LangCellModel, config: AdaptationConfig) -> float:
    """Returns the weight of the similarity: the checkpoint's, or the published 0.5 where matching is newly used."""
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
    """Returns the model to train, with gradients for the weights that are trained."""
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
    """Returns the model inside a `PeftModel`, with its adapters."""
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
    """Adds each label's mean embedding, and its weight against the description, which grows with the cells."""
    batches = CellBatches(ranked, labels.truth, 64)
    model.eval()
    options = {"pooled_only": True, "return_dict": True}
    read = [
        model.get_cell_features(batch["ids"].to(model.device), batch["mask"].to(model.device), **options)
        for batch in batches.in_order()
    ]
    embeds = torch.cat([one.pooler_output for one in read])
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
