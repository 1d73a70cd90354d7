# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The card of a checkpoint or an adapter: what its own files say, and what somebody has to say of it.

A checkpoint's folder holds all that is figures: `config.json`, `training.json` of the runs that made it, and
`evaluation.json`, which is drawn from what `langcell evaluate` wrote. So a card can be made anew from the folder at any
time, and a figure in it that is not the folder's is found.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from ..annotation.metrics import mean_and_range
from ..checkpoint.builtin import MODEL_CARDS
from ..checkpoint.files import ADAPTATION, CARD, EVALUATION, TRAINING, count_parameters, read_config, read_json
from ..io.atomic import atomic_write
from ..model.configuration_langcell import LangCellConfig
from ..model.errors import InputError, reason_of

#: What of the metadata may be said by hand.
_METADATA = ("license", "license_name", "license_link", "language", "base_model", "datasets", "tags", "pipeline_tag")
_LANGCELL, _RANDOM = "langcell", "random_weights"
_OBJECTIVES = {
    "masked_gene_weight": "masked genes",
    "cell_cell_weight": "cell-cell contrast",
    "cell_text_weight": "cell-text contrast",
    "matching_weight": "cell-text matching",
}


@dataclass(frozen=True)
class Prose:
    """
    What of a card cannot be read off the checkpoint's files: a YAML file with some of these keys.

    Args:
        summary: A sentence or two below the name.
        more_use: Added to how it is used, such as further commands.
        intended_use, limits, failure_modes: What it is good for, what not, and where it is known to fail.
        training_data, procedure, evaluation, compute: What is to be said where no file of the checkpoint says it.
        metadata: More of the card's metadata: `license`, `base_model`, `datasets`, `tags`.
    """

    summary: str = "A LangCell checkpoint: single cells and descriptions of them in one space."
    more_use: str = ""
    intended_use: str = (
        "To annotate human single-cell transcriptomes by descriptions of cell types in research, and to embed cells. "
        "Not for diagnosis or any other decision on a patient."
    )
    limits: str = (
        "The scores rank the candidates that are named, and one of them always wins: they are not calibrated, and a "
        "cell that is none of the candidates is not found out by them. Counts must be raw, or said to be normalised."
    )
    failure_modes: str = "None was written down. Try it first on cells whose types you know."
    training_data: str = "No record of the training came with the checkpoint."
    procedure: str = ""
    evaluation: str = "Not measured. `langcell evaluate` measures it."
    compute: str = "Not recorded."
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> "Prose":
        """
        Raises:
            InputError: No such file, or one that says what no card has.
        """
        try:
            said = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
        kinds = {one.name: dict if one.name == "metadata" else str for one in fields(cls)}
        if not isinstance(said, dict) or any(not isinstance(said[name], kinds.get(name, ())) for name in said):
            raise InputError(f"{path} must map some of {', '.join(kinds)} to texts (metadata: to settings).")
        for key, value in said.get("metadata", {}).items():
            values = value if isinstance(value, list) else [value]
            if key not in _METADATA or not all(isinstance(one, str) for one in values):
                raise InputError(f"{path}: metadata are {', '.join(_METADATA)}, each a text or a list of texts.")
        texts: dict[str, Any] = {name: text if name == "metadata" else text.strip() for name, text in said.items()}
        return cls(**texts)


def write_card(folder: str | Path, results: str | Path | None = None, prose: Prose | None = None) -> Path:
    """
    Writes a checkpoint's `README.md`, and `evaluation.json` when there are results.

    Args:
        folder: The checkpoint.
        results: Folder of what `langcell evaluate` wrote of it; what `evaluation.json` holds by default.
        prose: What the files do not say.

    Returns:
        The card.

    Raises:
        InputError: No checkpoint, no results, or results of another model.
    """
    folder = Path(folder)
    evaluation = None if results is None else summarize(results)
    if evaluation is not None and evaluation["model"] != fingerprint_of(folder):
        raise InputError(f"The results in {results} are of another model than {folder}: evaluate this one.")
    card = render(folder, prose or Prose(), evaluation)
    if evaluation is not None:
        _write(folder / EVALUATION, _by_lines(evaluation))
    _write(folder / CARD, card)
    return folder / CARD


def render(folder: str | Path, prose: Prose, evaluation: Mapping[str, Any] | None = None) -> str:
    """
    The text of a checkpoint's card, metadata included.

    Args:
        folder: The checkpoint; what `langcell adapt` made may be an adapter.
        prose: What its files do not say; an adaptation says all itself.
        evaluation: What `evaluation.json` is to hold; what it holds by default.

    Raises:
        InputError: No checkpoint, or files in it that are not as this package writes them.
    """
    folder = Path(folder)
    adaptation = read_json(folder / ADAPTATION)
    with _as_written(folder):
        if adaptation:
            return _render_adaptation(adaptation, folder)
        return _render_checkpoint(folder, prose, read_json(folder / EVALUATION) if evaluation is None else evaluation)


@contextmanager
def _as_written(what: object) -> Iterator[None]:
    """Files of the right name and of any content: whatever they make us stumble over is said of them."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, RecursionError) as error:
        why = f" ({reason_of(error)})" if isinstance(error, (KeyError, ValueError)) else ""
        raise InputError(f"A JSON file of {what} is not as this package writes it{why}.") from error


def _render_checkpoint(folder: Path, prose: Prose, evaluation: Mapping[str, Any]) -> str:
    config = read_config(folder)
    joint = isinstance(config, LangCellConfig)
    training = read_json(folder / TRAINING).get("runs", [])
    origin = _origin(training)
    studies = {name: {"name": _starred(name, study)} | study for name, study in evaluation.get("studies", {}).items()}
    tasks = [_as_table(task, studies) for task in evaluation.get("tasks", [])]
    card = ModelCard.from_template(
        metadata(folder.resolve().name, evaluation, prose),
        template_str=(MODEL_CARDS / "template.md").read_text(encoding="utf-8"),
        name=folder.resolve().name,
        weights=(folder / SAFE_WEIGHTS_NAME).is_file(),
        joint=joint,
        config=config,
        cell=config.cell_config if isinstance(config, LangCellConfig) else config,
        text=config.text_config if isinstance(config, LangCellConfig) else None,
        calibration=config.calibration if isinstance(config, LangCellConfig) else None,
        parameters=count_parameters(config),
        origin=origin,
        runs=[_run(run) for run in training],
        tasks=tasks,
        studies=list(studies.values()),
        any_in_training=any(study["in_training"] for study in studies.values()),
        version=_version(training),
        **{name: text for name, text in asdict(prose).items() if name != "metadata"},
    )
    return _tidy(str(card))


_HOW = {
    "descriptions": "their descriptions, in the space that cells and texts share",
    "classes": "a linear head on the cell encoder (LangCell-CE)",
    "prototypes": "the mean embeddings of a few cells of each, beside their descriptions; nothing was trained",
}


def _render_adaptation(adaptation: Mapping[str, Any], folder: Path) -> str:
    """The text of the card of what `langcell adapt` made: what it tells apart, learnt from what, and how it is used."""
    peft, whole = (folder / "adapter_config.json").is_file(), (folder / CONFIG_NAME).is_file()
    labels = [
        {
            "name": _cell_of_table(name),
            "cells": adaptation["cells"].get(name, 0),
            "description": _cell_of_table(description),
        }
        for name, description in adaptation["labels"].items()
    ]
    card = ModelCard.from_template(
        ModelCardData(
            base_model=adaptation["base"],
            library_name="peft" if peft else "transformers" if whole else "modeling-langcell",
            tags=["langcell", "single-cell", adaptation["head"]],
        ),
        template_str=(MODEL_CARDS / "adapter.md").read_text(encoding="utf-8"),
        name=folder.resolve().name,
        kind="LoRA adapter" if peft else "checkpoint" if whole else "set of prototypes",
        base=adaptation["base"],
        head=adaptation["head"],
        how=_HOW[adaptation["head"]],
        multilabel=adaptation.get("multilabel", adaptation.get("several")),
        peft=peft,
        whole=whole,
        labels=labels,
        settings={name: value for name, value in adaptation["settings"].items() if value is not None},
        versions=", ".join(f"{name} {number}" for name, number in adaptation["versions"].items()),
    )
    return _tidy(str(card))


def _tidy(text: str) -> str:
    """What a template leaves out leaves gaps."""
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def metadata(name: str, evaluation: Mapping[str, Any], prose: Prose) -> ModelCardData:
    """What the Hub reads of a card: licence, library, and the figures as a `model-index`."""
    said = {"license": "apache-2.0", "language": "en", "library_name": "transformers"} | prose.metadata
    tags = ["langcell", "single-cell", "biology", "cell-type-annotation", "zero-shot-cell-annotation"]
    more = said.get("tags", [])
    more = [more] if isinstance(more, str) else more
    said["tags"] = [*tags, *(tag for tag in more if tag not in tags)]
    said.setdefault("pipeline_tag", "feature-extraction")  # The Hub's own list knows no cells.
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
        for row in task["rows"]
        for metric in dict.fromkeys((task["main_score"], "accuracy"))
        if row["method"] == _LANGCELL and metric in row["scores"]
    ]
    return ModelCardData(model_name=name, eval_results=results or None, **said)


def summarize(results: str | Path) -> dict[str, Any]:
    """
    What `langcell evaluate` found, as means over seeds.

    Args:
        results: Its folder.

    Returns:
        `model`, the fingerprint of its weights; `studies`; and `tasks`, each with a row a study, method and setting:
        every score's mean, from where to where it goes, and over how many seeds.

    Raises:
        InputError: No results, or of several models.
    """
    with _as_written(results):
        return _summarize(Path(results))


def _summarize(results: Path) -> dict[str, Any]:
    tables = [read_json(file) for file in sorted(results.glob("*.json"))]
    tables = [table for table in tables if {"task", "model", "cells"} <= table.keys()]
    models = {table["model"]["fingerprint"] for table in tables}
    if len(models) != 1:
        raise InputError(f"{results} holds results of {len(models)} models: name what 'langcell evaluate --out' made.")
    tasks, studies = [], {}
    for table in tables:
        grouped: dict[str, list[Mapping[str, Any]]] = {}
        for cell in table["cells"]:
            key = json.dumps([cell["study"], cell["method"], cell["setting"]])
            grouped.setdefault(key, []).append(cell)
        rows = []
        for key, cells in grouped.items():
            study, method, setting = json.loads(key)
            found = {name: mean_and_range(cells, name) for name in cells[0]["scores"]}
            scores = {
                name: {"mean": round(mean, 6), "low": round(low, 6), "high": round(high, 6), "seeds": len(cells)}
                for name, (mean, low, high) in found.items()
            }
            rows.append({"study": study, "method": method, "setting": setting, "scores": scores})
            about = table["studies"][study]
            studies[study] = {name: about[name] for name in ("what", "citation", "licence", "in_training")}
        said = {name: table["task"][name] for name in ("name", "question", "main_score")}
        tasks.append(said | {"command": table["command"], "versions": table["versions"], "rows": rows})
    tasks.sort(key=lambda task: (task["name"] != "zero-shot", task["name"]))  # What the model is for comes first.
    return {"model": models.pop(), "studies": studies, "tasks": tasks}


def faults_of(folder: str | Path) -> list[str]:
    """
    What is wrong with a card: what it lacks of what the folder's files say, of sections, of rows of tables and of the
    metadata's figures; and what rows it has that they do not say. Its prose is free.
    """
    folder = Path(folder)
    path = folder / CARD
    if not path.is_file():
        return [f"{CARD} is missing: 'langcell card {folder}' writes it."]
    expected = ModelCard(render(folder, Prose()))
    try:
        card = ModelCard.load(path)
        index, told, needed = _index(card), card.data.to_dict(), expected.data.to_dict()
    except (ValueError, TypeError, KeyError, AttributeError, yaml.YAMLError) as error:
        return [f"{CARD}: its metadata cannot be read: {str(error).splitlines()[0] if str(error) else error!r}"]
    faults = []
    named, name = re.search(r"^# (.+)$", card.text, flags=re.MULTILINE), folder.resolve().name
    if named is None or named[1].strip() != name:
        faults.append(f"{CARD} is not the card of {name!r}, as the folder is called: 'langcell card' writes one.")
    found, meant = sections(card.text), sections(expected.text)
    titles = _SECTION.findall(card.text)
    faults += [f"{CARD} has two sections {title!r}." for title in found if titles.count(title) > 1]
    for title in dict.fromkeys(["", *meant, *found]):
        there = found.get(title, "") if title else _SECTION.split(card.text)[0]
        where = f"{CARD}, {title}" if title else CARD
        if title in meant and not there.strip():
            faults.append(f"{CARD} has no section {title!r}.")
        rows, rows_meant = _rows(there), _rows(meant.get(title, ""))
        faults += [f"{where}: {row!r} is not what the folder's files say." for row in rows if row not in rows_meant]
        faults += [f"{where}, lacks {row!r}." for row in rows_meant if row not in rows]
        if "TODO" in there:
            faults.append(f"{where}: still says TODO.")
    faults += [f"{CARD}: its metadata has no {key}." for key in needed if not told.get(key) and key != "model-index"]
    if index != _index(expected):
        faults.append(f"{CARD}: the figures in its metadata (model-index) are not those of {EVALUATION}.")
    return faults


_SECTION = re.compile(r"^##[ \t]+(.+?)[ \t]*$", flags=re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    """The sections of a card by their titles, those of the second level."""
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def _rows(text: str) -> list[str]:
    """Rows of tables."""
    return [line.strip() for line in text.splitlines() if line.lstrip().startswith("|")]


def _index(card: ModelCard) -> list[tuple[Any, ...]]:
    results: list[EvalResult] = getattr(card.data, "eval_results", None) or []
    return sorted(((r.task_type, r.dataset_type, r.metric_name, r.metric_value) for r in results), key=repr)


# ---------------------------------------------------------------------- the folder's files


def fingerprint_of(folder: Path) -> str:
    """As `langcell evaluate` names the model in its results."""
    from ..annotation.annotator import LangCellAnnotator
    from ..checkpoint.fingerprint import fingerprint

    annotator = LangCellAnnotator.from_pretrained(folder, device="cpu")
    return fingerprint(annotator.model, annotator.processor)


def _by_lines(evaluation: Mapping[str, Any]) -> str:
    """As JSON, a row of a task a line."""
    rows = (row for task in evaluation["tasks"] for row in task["rows"])
    bare = dict(evaluation) | {
        "tasks": [dict(task) | {"rows": ["row"] * len(task["rows"])} for task in evaluation["tasks"]]
    }
    return re.sub(r'^ +"row"', lambda _: f"   {json.dumps(next(rows))}", json.dumps(bare, indent=1), flags=re.M) + "\n"


def _write(path: Path, text: str) -> None:
    try:
        atomic_write(path, text.encode())
    except OSError as error:
        raise InputError(f"{path} cannot be written: {reason_of(error)}.") from error


# ---------------------------------------------------------------------- as the template takes them


def _origin(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of which cells the last run learnt that says so."""
    told = [run["corpus"] for run in runs if isinstance(run.get("corpus"), Mapping)]
    if not told:
        return None
    sources = [
        {
            "name": source["name"],
            "kept": source["kept"],
            "origin": _cell_of_table(_joined(source, "title", "citation", "source") or "not stated in the file"),
            "licence": _cell_of_table(_joined(source, "licence") or "not stated in the file"),
        }
        for source in told[-1]["sources"]
    ]
    return {"cells": told[-1]["cells"], "genes": told[-1]["genes"], "sources": sources}


def _joined(source: Mapping[str, Any], *names: str) -> str:
    about = source.get("about", {})
    return "; ".join(about[name] for name in names if name in about)


def _cell_of_table(text: str) -> str:
    return " ".join(text.replace("|", "/").split())


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


def _version(runs: Sequence[Mapping[str, Any]]) -> str:
    from .. import __version__

    if not runs:
        return f"Of modeling-langcell {__version__}."
    made = ", ".join(f"{name} {number}" for name, number in runs[-1]["versions"].items())
    return f"Made with {made}."


def in_words(setting: Mapping[str, Any]) -> list[str]:
    """What a task varies: 5 shots, calibrated on itself."""
    return [
        f"{name.replace('_', ' ')} {value}" if isinstance(value, str) else f"{value} {name}"
        for name, value in setting.items()
    ]


def _starred(name: str, study: Mapping[str, Any]) -> str:
    return f"{name}*" if study["in_training"] else name


def _as_table(task: Mapping[str, Any], studies: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row a study and setting: this checkpoint, random weights, and the best of what else was measured."""
    main = task["main_score"]
    by_place: dict[str, dict[str, dict[str, Any]]] = {}
    for row in task["rows"]:
        place = json.dumps([row["study"], row["setting"]])
        by_place.setdefault(place, {})[row["method"]] = row["scores"].get(main)
    rows = []
    for place, methods in by_place.items():
        study, setting = json.loads(place)
        if _LANGCELL not in methods:
            continue
        others = {name: score for name, score in methods.items() if name not in (_LANGCELL, _RANDOM) and score}
        best = max(others, key=lambda name: others[name]["mean"], default=None)
        rows.append(
            {
                "study": studies[study]["name"],
                "setting": ", ".join(str(value) for value in setting.values()),
                "langcell": _written(methods[_LANGCELL]),
                "random": _written(methods.get(_RANDOM)),
                "best": "" if best is None else f"{_written(others[best])}, {best.replace('_', ' ')}",
            }
        )
    varied = dict.fromkeys(name for row in task["rows"] for name in row["setting"])
    return dict(task) | {"rows": rows, "varied": ", ".join(varied)}


def _written(score: Mapping[str, float] | None) -> str:
    if score is None:
        return ""
    spread = f" ({score['low']:.3f} to {score['high']:.3f})" if score["low"] < score["high"] else ""
    return f"{score['mean']:.3f}{spread}"


__all__ = ["Prose", "faults_of", "in_words", "render", "summarize", "write_card"]
