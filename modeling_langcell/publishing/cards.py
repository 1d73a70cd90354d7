# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Cards of checkpoints and adapters, rendered from the files in a folder.

All figures of a card come from `config.json`, `training.json` and `evaluation.json`, or from `adaptation.json`. The
sentences that no such file holds come from `card.yaml`. A card can therefore be rendered again at any time, as
`publish` does.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..checkpoint.adaptation_record import Adaptation
from ..checkpoint.builtin import MODEL_CARDS
from ..checkpoint.files import CARD, EVALUATION, PEFT_CONFIG, PROSE, explaining_entries
from ..checkpoint.folder import CheckpointFolder
from ..io import file_kinds
from ..io.documents import read_yaml
from ..io.file_kinds import require_replaceable
from ..io.printable import markdown_cell
from ..io.replace import write_result
from ..model.configuration_langcell import LangCellConfig
from ..model.errors import InputError
from .evaluation import as_table, in_words, own_rows, summarize, to_json

_PACKAGE = "modeling-langcell"
#: Metadata that `card.yaml` may set.
_METADATA = ("license", "license_name", "license_link", "language", "base_model", "datasets", "tags", "pipeline_tag")
_OBJECTIVES = {
    "masked_gene_weight": "masked genes",
    "cell_cell_weight": "cell-cell contrast",
    "cell_text_weight": "cell-text contrast",
    "matching_weight": "cell-text matching",
}
_HEADS = {
    "descriptions": "their descriptions, in the space that cells and texts share",
    "classes": "a linear head on the cell encoder (LangCell-CE)",
    "prototypes": "the mean embeddings of a few cells of each label and the labels' descriptions; nothing was trained",
}


@dataclass(frozen=True)
class Prose:
    """
    Sentences of a card that no other file of the checkpoint holds: a YAML file, `card.yaml`, with some of these keys.

    Args:
        summary: One or two sentences below the name.
        more_use: Text that is added to the section on use, such as further commands.
        intended_use: Uses that the checkpoint is suited to.
        limits: Uses that it is not suited to.
        failure_modes: Cases in which it is known to fail.
        training_data: Description of the training cells, where `training.json` does not list them.
        procedure: Text that is added to the section on training.
        evaluation: Text of the section on evaluation, where there is no `evaluation.json`.
        compute: Hardware and time that the training took.
        metadata: Further metadata of the card: `license`, `base_model`, `datasets`, `tags`.
    """

    summary: str = "A LangCell checkpoint: single cells and descriptions of them in one space."
    more_use: str = ""
    intended_use: str = (
        "To annotate human single-cell transcriptomes by descriptions of cell types in research, and to embed cells. "
        "Not for diagnosis or any other decision on a patient."
    )
    limits: str = (
        "The scores rank the candidates that are named. They are not calibrated, and one candidate always scores "
        "highest, even when none fits."
    )
    failure_modes: str = "No failure modes were recorded. Try it first on cells whose types you know."
    training_data: str = "No record of the training came with the checkpoint."
    procedure: str = ""
    evaluation: str = "Not measured. `langcell evaluate` measures it."
    compute: str = "Not recorded."
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Prose":
        """
        Reads a YAML file.

        Raises:
            InputError: The file does not exist, or holds anything except these keys and texts without tables.
        """
        found = read_yaml(path)
        kinds = {one.name: dict if one.name == "metadata" else str for one in fields(cls)}
        if not isinstance(found, dict) or any(not isinstance(found[name], kinds.get(name, ())) for name in found):
            raise InputError(f"{path} must map some of {', '.join(kinds)} to texts (metadata: to settings).")
        for key, value in found.get("metadata", {}).items():
            values = value if isinstance(value, list) else [value]
            if key not in _METADATA or not all(isinstance(one, str) and one.strip() for one in values):
                raise InputError(f"{path}: metadata are {', '.join(_METADATA)}, each a text or a list of texts.")
        texts = {name: text if name == "metadata" else text.strip() for name, text in found.items()}
        for name, text in texts.items():
            if name != "metadata" and re.search(r"^\s*\|", text, flags=re.MULTILINE):
                raise InputError(f"{path}: {name} has a table. Tables hold only figures from the checkpoint's files.")
        return cls(**texts)

    @classmethod
    def of(cls, folder: CheckpointFolder) -> "Prose":
        """Reads the folder's `card.yaml`; the defaults if there is none. Errors are those of `read`."""
        path = folder.path / PROSE
        return cls.read(path) if path.exists() else cls()


def write_card(folder: str | Path, results: str | Path | None = None, about: str | Path | None = None) -> Path:
    """
    Writes a folder's `README.md`, with `evaluation.json` and `card.yaml` if they are given.

    Args:
        folder: Checkpoint, architecture or adapter.
        results: Folder that `langcell evaluate` wrote for this checkpoint; by default `evaluation.json` is kept.
        about: YAML file in the form of `Prose`; by default `card.yaml` is kept.

    Returns:
        Path of the card.

    Raises:
        InputError: The folder is not a checkpoint, the results are missing or belong to a different model, or the YAML
            file is wrong.
    """
    opened = CheckpointFolder(Path(folder))
    require_replaceable(opened.path / CARD, file_kinds.CARD)
    if opened.adaptation is not None and not (results is None and about is None):
        raise InputError(f"{folder} was adapted: its card holds only its own record, neither results nor other texts.")
    prose = Prose.of(opened) if about is None else Prose.read(about)
    evaluation = None if results is None else summarize(results)
    if evaluation is not None and evaluation["model"] != opened.fingerprint:
        raise InputError(f"The results in {results} belong to a different model from {folder}: evaluate this one.")
    card = render(opened, prose, evaluation)
    if about is not None:
        write_result(opened.path / PROSE, Path(about).read_bytes(), file_kinds.PROSE)
    if evaluation is not None:
        write_result(opened.path / EVALUATION, to_json(evaluation), file_kinds.JSON)
    return write_result(opened.path / CARD, card, file_kinds.CARD)


def render(
    folder: CheckpointFolder,
    prose: Prose | None = None,
    evaluation: Mapping[str, Any] | None = None,
    *,
    repo_id: str = "",
    base: str = "",
) -> str:
    """
    Returns the text of a card, metadata included.

    Args:
        folder: Checkpoint, architecture or adapter.
        prose: Sentences that no other file holds; by default those of `card.yaml`; unused for an adaptation.
        evaluation: Results; by default those of `evaluation.json`.
        repo_id: Name of the repository in the snippets; the folder's name by default.
        base: Name of the checkpoint that was adapted; the one in the record by default.

    Raises:
        InputError: The folder is not a checkpoint, or its files do not have the form that this package writes.
    """
    name = repo_id or folder.name
    with explaining_entries(folder.path):
        if folder.adaptation is not None:
            return _render_adaptation(folder, folder.adaptation, name, base or folder.adaptation.base)
        return _render_checkpoint(folder, prose or Prose.of(folder), evaluation or folder.evaluation, name)


def _render_checkpoint(folder: CheckpointFolder, prose: Prose, evaluation: Mapping[str, Any], name: str) -> str:
    config, training = folder.config, folder.training
    joint = isinstance(config, LangCellConfig)
    made_with = training[-1]["versions"] if training else {_PACKAGE: version(_PACKAGE)}
    studies = {
        study: {"name": f"{study}*" if about["in_training"] else study} | about
        for study, about in evaluation.get("studies", {}).items()
    }
    shown_names = {study: about["name"] for study, about in studies.items()}
    card = ModelCard.from_template(
        metadata(_title(name), evaluation, prose),
        template_str=(MODEL_CARDS / "template.md").read_text(encoding="utf-8"),
        weights=(folder.path / SAFE_WEIGHTS_NAME).is_file(),
        joint=joint,
        config=config,
        cell=config.cell_config if joint else config,
        text=config.text_config if joint else None,
        parameters=folder.parameters,
        **_in_cells(
            title=_title(name),
            name=_in_quotes(name),
            calibration=config.calibration if joint else None,
            corpus=_corpus(training),
            runs=[_run(run) for run in training],
            tasks=[as_table(task, shown_names) for task in evaluation.get("tasks", [])],
            studies=list(studies.values()),
            any_in_training=any(study["in_training"] for study in studies.values()),
            versions=_versions(made_with),
        ),
        **{key: text for key, text in asdict(prose).items() if key != "metadata"},
    )
    return _tidy(str(card))


def _render_adaptation(folder: CheckpointFolder, adaptation: Adaptation, name: str, base: str) -> str:
    peft, whole = (folder.path / PEFT_CONFIG).is_file(), (folder.path / CONFIG_NAME).is_file()
    labels = [
        {
            "name": label,
            "cells": adaptation.cells.get(label, 0),
            "description": description,
            "markers": ", ".join(described.markers or ()),
            "absent": ", ".join(described.absent),
        }
        for (label, description), described in zip(
            adaptation.labels.items(), adaptation.descriptions.values(), strict=True
        )
    ]
    card = ModelCard.from_template(
        ModelCardData(
            base_model=base,
            library_name="peft" if peft else "transformers" if whole else _PACKAGE,
            tags=["langcell", "single-cell", adaptation.head],
        ),
        template_str=(MODEL_CARDS / "adapter.md").read_text(encoding="utf-8"),
        kind="LoRA adapter" if peft else "checkpoint" if whole else "set of prototypes",
        head=adaptation.head,
        how=_HEADS[adaptation.head],
        multilabel=adaptation.multilabel,
        peft=peft,
        whole=whole,
        marker_weight=adaptation.marker_weight,
        **_in_cells(
            title=_title(name),
            name=_in_quotes(name),
            base=_in_quotes(base),
            labels=labels,
            settings={key: value for key, value in adaptation.settings.items() if value is not None},
            versions=_versions(adaptation.versions),
        ),
    )
    return _tidy(str(card))


def metadata(name: str, evaluation: Mapping[str, Any], prose: Prose) -> ModelCardData:
    """Returns the metadata that the Hub reads: licence, library, tags, and the scores as a `model-index`."""
    entries = {"license": "apache-2.0", "language": "en", "library_name": "transformers"} | prose.metadata
    tags = ["langcell", "single-cell", "biology", "cell-type-annotation", "zero-shot-cell-annotation"]
    more = entries.get("tags", [])
    more = [more] if isinstance(more, str) else more
    entries["tags"] = [*tags, *(tag for tag in more if tag not in tags)]
    entries.setdefault("pipeline_tag", "feature-extraction")  # The Hub has no task for cells.
    results = [
        EvalResult(
            task_type=task["name"],
            task_name=task["question"],
            dataset_type=row["study"],
            dataset_name=row["study"],
            metric_type=metric,
            metric_name=", ".join([metric.replace("_", " "), *in_words(row["setting"])]),
            metric_value=round(row["scores"][metric]["mean"], 4),
        )
        for task in evaluation.get("tasks", [])
        for row in own_rows(task)
        for metric in dict.fromkeys((task["main_score"], "accuracy"))
        if metric in row["scores"]
    ]
    return ModelCardData(model_name=name, eval_results=results or None, **entries)


# ---------------------------------------------------------------------- values for the templates


def _title(name: str) -> str:
    """Returns a repository's name without its owner."""
    return name.rpartition("/")[2]


def _corpus(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Returns the training cells of the last run that records them."""
    recorded = [run["corpus"] for run in runs if isinstance(run.get("corpus"), Mapping)]
    if not recorded:
        return None
    sources = [
        {
            "name": source["name"],
            "kept": source["kept"],
            "origin": _joined(source, "title", "citation", "source") or "not stated in the file",
            "licence": _joined(source, "licence") or "not stated in the file",
        }
        for source in recorded[-1]["sources"]
    ]
    return {"cells": recorded[-1]["cells"], "genes": recorded[-1]["genes"], "sources": sources}


def _joined(source: Mapping[str, Any], *names: str) -> str:
    about = source.get("about", {})
    return "; ".join(about[name] for name in names if name in about)


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    config, defaults, compute = run["config"], LangCellConfig(), run.get("compute")
    weights = {name: config["model"].get(name, getattr(defaults, name)) for name in _OBJECTIVES}
    used = "not recorded"
    if compute:
        used = f"{compute['seconds'] / 3600:.2f} h, {compute['processes']} x {compute['device']}"
    return {
        "objectives": ", ".join(_OBJECTIVES[name] for name, weight in weights.items() if weight) or "none",
        "start": config["start"] or config["cell_tower"] or "new weights",
        "steps": config["steps"],
        "positions": config["batch_tokens"] * config["accumulation"],
        "learning_rate": config["learning_rate"],
        "schedule": config["schedule"],
        "seed": config["seed"],
        "compute": used,
    }


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in versions.items())


def _in_cells(**values: Any) -> dict[str, Any]:
    """Returns values with all texts in them, which come from the files of a checkpoint, as cells of a table."""
    return {name: _in_cell(value) for name, value in values.items()}


def _in_cell(value: Any) -> Any:
    if isinstance(value, str):
        return markdown_cell(value)
    if isinstance(value, Mapping):
        return {_in_cell(name): _in_cell(one) for name, one in value.items()}
    return [_in_cell(one) for one in value] if isinstance(value, (list, tuple)) else value


def _in_quotes(name: str) -> str:
    """Returns a name as it stands between the quotes of code."""
    return name.replace("\\", "\\\\").replace('"', '\\"')


def _tidy(text: str) -> str:
    """Removes the gaps where a template left something out."""
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


__all__ = ["Prose", "metadata", "render", "write_card"]
