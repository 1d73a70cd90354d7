# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
What the table of results looks like: figures of a task, and one page of all tasks. Results are as `run.evaluate` gives
them.
"""

import html
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from modeling_langcell.annotation.metrics import mean_and_range
from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM
from modeling_langcell.io.atomic import atomic_write
from modeling_langcell.model.errors import InputError
from modeling_langcell.publishing.cards import in_words
from modeling_langcell.report.html import inline_image, write_page
from modeling_langcell.report.plots import render

Cells = list[Mapping[str, Any]]

DPI = 110
#: Okabe & Ito's, which the colour-blind can tell apart, with grey for their yellow.
COLOURS = ("#0072B2", "#8C8C8C", "#000000", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "osXD^vP"  # As many as share no factor with the colours: no two of 56 look alike.
GREY = COLOURS[1]
#: The methods of most tasks, which look alike in all of them.
USUAL = (LANGCELL, RANDOM, *CLASSIFIERS)
MOST_NAMED = 20
BINS = 15
SMALL = 8


def draw_task(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """
    Writes `<task>-<kind>.png` for each of `FIGURES` that the result has what it takes for.

    Returns:
        The files, in the order of `FIGURES`.

    Raises:
        InputError: The folder cannot be written.
    """
    written = []
    for kind, draw in FIGURES.items():
        if (figure := draw(result)) is None:
            continue
        path = folder / f"{result['task']['name']}-{kind}.png"
        try:
            atomic_write(path, render(figure, DPI))
        except OSError as error:
            raise InputError(f"The figure {path} cannot be written: {error}") from error
        written.append(path)
    return written


def draw_curve(result: Mapping[str, Any]) -> Figure | None:
    """
    The main score by the number of shots, a panel a study: means over seeds, shaded from the lowest to the highest;
    dashed without shots. None where fewer than two numbers of shots were measured.
    """
    score = result["task"]["main_score"]
    if not _has_curve(result):
        return None
    looks = styles(cell["method"] for cell in result["cells"])
    studies = _by(result["cells"], "study")
    figure, panels = _panels(studies, width=4.2, height=3.4, sharey=True)
    for axes, cells in zip(panels, studies.values(), strict=True):
        for method, own in _by(cells, "method").items():
            _draw_line(axes, own, score, looks[method], _shown(method))
        axes.set_xticks(sorted({cell["setting"].get("shots", 0) for cell in cells} - {0}))
        axes.set(xlabel="cells of each type learnt from")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(bottom=0)
    figure.supylabel(_shown(score), fontsize=10)
    _title(figure, f"{result['task']['name']}: {_shown(score)} by shots")
    _legend(figure, panels)
    return figure


def _draw_line(axes: Axes, cells: Cells, score: str, look: Mapping[str, Any], name: str) -> None:
    found = {shots: mean_and_range(same, score) for shots, same in _by_shots(cells).items()}
    points = [(shots, *spread) for shots, spread in sorted(found.items()) if shots]
    if 0 in found:
        axes.axhline(found[0][0], color=look["color"], linestyle="--", linewidth=1.4, label=f"{name}, zero-shot")
    if points:
        shots, means, lows, highs = zip(*points, strict=True)
        axes.plot(shots, means, **look, markersize=4.5, linewidth=1.6, label=name)
        axes.fill_between(shots, lows, highs, color=look["color"], alpha=0.15, linewidth=0)


def draw_scores(result: Mapping[str, Any]) -> Figure | None:
    """
    The main score of each method, a panel a study, with the 95% interval or, of several seeds, from the lowest to the
    highest. None where there is a curve.
    """
    score = result["task"]["main_score"]
    cells = [cell for cell in result["cells"] if score in cell["scores"]]
    if not cells or _has_curve(result):
        return None
    looks = styles(cell["method"] for cell in result["cells"])
    studies, rows = _by(cells, "study"), list(_by_row(cells))
    figure, panels = _panels(studies, width=3.9, height=1.1 + 0.27 * len(rows), sharex=True, sharey=True)
    for axes, same in zip(panels, studies.values(), strict=True):
        for row, seeds in _by_row(same).items():
            mean, low, high = mean_and_range(seeds, score)
            look, place = looks[seeds[0]["method"]], rows.index(row)
            axes.plot([low, high], [place, place], color=look["color"], linewidth=2, alpha=0.5)
            axes.plot(mean, place, **look, markersize=7, linestyle="none")
            where: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "va": "center", "fontsize": SMALL}
            axes.annotate(f"{mean:.3f}", (1.02, place), **where)
        axes.set(xlabel=_shown(score))
        axes.grid(alpha=0.3)
        axes.set_yticks(range(len(rows)), rows)
    panels[0].set(ylim=(len(rows) - 0.5, -0.5))
    panels[0].set_xlim(left=min(0, *panels[0].get_xlim()))
    _title(figure, f"{result['task']['name']}: {_shown(score)}")
    return figure


def draw_confusion(result: Mapping[str, Any]) -> Figure | None:
    """
    Cells of each label by the label found, a panel a study, all seeds together; of LangCell or, without it, the first
    method that has such tables, and of the most shots. None where nothing has any.
    """
    if not (studies := _drawn(result, "confusion")):
        return None
    tables = [confusion(cells) for cells in studies.values()]
    sides = [0.32 * max(len(table), 6) for table in tables]  # So that a cell has room for its number.
    columns = 2 if max(sides) < 6 else 1
    figure, panels = _panels(studies, width=3 + max(sides), height=1 + np.array(sides), most_columns=columns)
    for axes, table in zip(panels, tables, strict=True):
        sizes = table.sum(axis=1).to_numpy()
        shares = table.to_numpy() / np.maximum(sizes, 1)[:, None]
        axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
        axes.set_anchor("NW")
        ticks = np.arange(len(table))
        rows = [f"{_wrap(f'{name} ({sizes[i]:,})', 36)}  {i + 1}" for i, name in enumerate(table.index)]
        axes.set_yticks(ticks, rows, fontsize=7)
        axes.set_xticks(ticks, map(str, ticks + 1), fontsize=7)
        axes.set(xlabel="label found, by its row")
        for row, column in np.argwhere(shares >= 0.05):
            colour = "white" if shares[row, column] > 0.6 else "black"
            shown = f"{shares[row, column]:.0%}"
            axes.text(column, row, shown, ha="center", va="center", fontsize=6.5, color=colour)
    _title(figure, f"{_titled(result, studies)}: labels (cells) against labels found, as shares of a row")
    return figure


def confusion(cells: Cells) -> pd.DataFrame:
    """Cells of each label (rows) by the label found (columns), of all seeds together."""
    drawn = [cell["drawings"]["confusion"] for cell in cells]
    table = pd.concat([pd.DataFrame(one["cells"], one["labels"], one["labels"]) for one in drawn])
    table = table.groupby(level=0).sum()
    return table.reindex(columns=table.index).fillna(0).astype(int)


def draw_reliability(result: Mapping[str, Any]) -> Figure | None:
    """
    How often the model is right by how sure it is, a panel a study; bars as wide as there are cells. Whose and of what,
    as `draw_confusion`. None where nothing was sure or unsure.
    """
    if not (studies := _drawn(result, "reliability")):
        return None
    looks = styles(cell["method"] for cell in result["cells"])
    figure, panels = _panels(studies, width=3.4, height=3.7)
    for axes, (study, cells) in zip(panels, studies.items(), strict=True):
        bins = reliability(cells)
        widths = 1 / BINS * np.maximum(bins["cells"] / bins["cells"].max(), 0.08)
        axes.bar(
            bins["confidence"],
            bins["accuracy"],
            widths,
            color=looks[cells[0]["method"]]["color"],
            alpha=0.75,
            linewidth=0,
        )
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        error = np.mean([cell["scores"]["expected_calibration_error"] for cell in cells])
        axes.set_title(f"{_wrap(study, 38)}\nexpected calibration error {error:.3f}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share that is right")
        axes.set(xlabel="confidence (wide bars: many cells)")
    _title(figure, f"{_titled(result, studies)}: how sure, and how often right")
    return figure


def reliability(cells: Cells) -> pd.DataFrame:
    """Mean confidence, accuracy and cells in 15 bins of equal width, of all seeds together."""
    bins = pd.DataFrame([one for cell in cells for one in cell["drawings"]["reliability"]])
    weighted = bins[["confidence", "accuracy"]].mul(bins["cells"], axis=0).assign(cells=bins["cells"])
    sums = weighted.groupby(np.ceil(bins["confidence"] * BINS).clip(lower=1)).sum()
    return sums[["confidence", "accuracy"]].div(sums["cells"], axis=0).assign(cells=sums["cells"])


def draw_roc(result: Mapping[str, Any]) -> Figure | None:
    """
    True against false positives, a panel a study, a line a method and seed, and each method's mean AUROC. None where
    nothing has such curves.
    """
    cells = [cell for cell in result["cells"] if "roc" in cell["drawings"]]
    if not cells:
        return None
    looks = styles(cell["method"] for cell in result["cells"])
    studies = _by(cells, "study")
    figure, panels = _panels(studies, width=3.8, height=3.8 + 0.2 * len(_by(cells, "method")))
    for axes, same in zip(panels, studies.values(), strict=True):
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        for method, seeds in _by(same, "method").items():
            area = np.mean([cell["scores"]["auroc"] for cell in seeds])
            for number, cell in enumerate(seeds):
                points = pd.DataFrame(cell["drawings"]["roc"])
                name = f"{_shown(method)}, AUROC {area:.2f}" if number == 0 else None
                rates = points["false_positive_rate"], points["true_positive_rate"]
                axes.plot(*rates, **looks[method], markevery=0.15, markersize=4, linewidth=1.6, label=name)
        limits = (-0.01, 1.01)
        axes.set(xlim=limits, ylim=limits)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.legend(fontsize=SMALL, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
    _title(figure, f"{result['task']['name']}: {result['task']['question']}")
    return figure


def draw_umap(result: Mapping[str, Any]) -> Figure | None:
    """
    Cells by their embedding, a row a study and method, a panel a column of labels; of the first seed and the most
    shots. None where nothing has coordinates.
    """
    cells = _most_shots([cell for cell in result["cells"] if "umap" in cell["drawings"]])
    rows = [seeds[0] for same in _by(cells, "study").values() for seeds in _by(same, "method").values()]
    if not rows:
        return None
    columns = max(len(_columns_of(cell)) for cell in rows)
    figure = Figure(figsize=(5.6 * columns, 3.9 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, cell in zip(grid, rows, strict=True):
        labels = _columns_of(cell)
        for axes, (column, values) in zip(panels, labels.items(), strict=False):
            others = [other for other in labels.values() if set(other) & set(values)]
            _scatter(axes, cell["drawings"]["umap"], values, _most_frequent(others))
            title = f"{_wrap(cell['study'], 40)}\n{_shown(cell['method'])}, by {_shown(column)}"
            axes.set_title(title, fontsize=10, loc="left")
        for axes in panels[len(labels) :]:
            axes.remove()
    _title(figure, f"{result['task']['name']}: UMAP of the cells' embeddings")
    return figure


def _columns_of(cell: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: values for name, values in cell["drawings"]["umap"].items() if name not in ("x", "y")}


def _most_frequent(columns: Iterable[Sequence[str]]) -> list[str]:
    """The values that are named, the most frequent first: columns that share values show them alike."""
    counts = Counter(value for column in columns for value in column)
    return [name for name, _ in counts.most_common(MOST_NAMED)]


def _scatter(axes: Axes, places: Mapping[str, Sequence], values: Sequence[str], named: Sequence[str]) -> None:
    """Cells of what is rare lie on top, and of what is not named at the bottom."""
    x, y, labels = np.array(places["x"]), np.array(places["y"]), np.array(values)
    colours = [colour for colour in COLOURS if colour != GREY]
    shared: dict[str, Any] = {"s": 11, "linewidths": 0, "alpha": 0.85}
    if (rest := ~np.isin(labels, named)).any():
        axes.scatter(x[rest], y[rest], **shared, color="#D9D9D9", label=f"other ({len(set(labels[rest]))})", zorder=1)
    for i, name in enumerate(named):
        if (chosen := labels == name).any():
            look: dict[str, Any] = {"color": colours[i % len(colours)], "marker": "os^"[i // len(colours)]}
            axes.scatter(x[chosen], y[chosen], **shared, **look, label=_wrap(name, 34), zorder=2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i].startswith("other ("))
    legend: dict[str, Any] = {"fontsize": 7, "markerscale": 1.8, "loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend([handles[i] for i in order], [names[i] for i in order], **legend, frameon=False, labelspacing=0.35)


#: What draws each kind of figure: a function of a result, to a figure or to None where it lacks what this kind takes.
FIGURES = {
    "scores": draw_scores,
    "curve": draw_curve,
    "confusion": draw_confusion,
    "reliability": draw_reliability,
    "roc": draw_roc,
    "umap": draw_umap,
}


def write_html(results: Sequence[Mapping[str, Any]], figures: Mapping[str, Sequence[Path]], path: str | Path) -> Path:
    """
    Writes one self-contained page: each task's figures and means.

    Args:
        results: Of any number of tasks.
        figures: Of each, by its name, the files that `draw_task` wrote.
        path: Of the page.

    Raises:
        InputError: It cannot be written.
    """
    names = [html.escape(result["task"]["name"]) for result in results]
    body = "<nav>" + "".join(f'<a href="#{name}">{name}</a>' for name in names) + "</nav>\n"
    body += "\n".join(_section(result, figures.get(result["task"]["name"], ())) for result in results)
    return write_page(path, "page.html", title="LangCell evaluation", body=Markup(body))


def _section(result: Mapping[str, Any], figures: Sequence[Path]) -> str:
    task, model = result["task"], result["model"]
    judged = model["checkpoint"] + (f", adapter {model['adapter']}" if model["adapter"] else "")
    name, question, command = (html.escape(text) for text in (task["name"], task["question"], result["command"]))
    parts = [f'<h2 id="{name}">{name}</h2>', f"<p>{question} LangCell is {html.escape(judged)}.</p>"]
    parts += [f"<p>{inline_image(file.read_bytes(), file.stem)}</p>" for file in figures]
    for study, cells in _by(result["cells"], "study").items():
        about = result["studies"][study]
        said = f"{about['what']} {about['citation']}." + " It was trained on." * about["in_training"]
        parts.append(f"<h3>{html.escape(study)}</h3>\n<p>{html.escape(said)}</p>\n{means(task, cells)}")
    parts.append(
        "<p>Means; in brackets 95% intervals over cells or, of several seeds, the lowest and the highest. "
        f"Made by <code>{command}</code>.</p>"
    )
    return "\n".join(parts)


def means(task: Mapping[str, Any], cells: Cells) -> str:
    """An HTML table of a study: a row a method and setting, a column a metric, the main score first."""
    names = [name for name in task["metrics"] if any(name in cell["scores"] for cell in cells)]
    names.sort(key=lambda name: name != task["main_score"])
    rows = [
        {"method": row} | {_shown(name): _written(*mean_and_range(seeds, name)) for name in names}
        for row, seeds in _by_row(cells).items()
    ]
    return f"<div class=wide>{pd.DataFrame(rows).to_html(index=False, border=0)}</div>"


def _written(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if low < high else "")


def styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each method: the usual ones' are always the same."""
    names = dict.fromkeys([*USUAL, *methods])
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(names)
    }


def _panels(
    studies: Iterable[str], *, width: float, height: float | np.ndarray, most_columns: int = 3, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """A panel for each study, of so many inches (each its own height), titled with its name, in rows of like length."""
    names = list(studies)
    rows = -(-len(names) // most_columns)
    columns = -(-len(names) // rows)
    titles = [_wrap(name, int(10 * width)) for name in names]
    every = np.zeros(rows * columns)
    every[: len(names)] = height + 0.17 * np.array([title.count("\n") for title in titles])
    heights = every.reshape(rows, columns).max(axis=1)
    figure = Figure(figsize=(width * columns, heights.sum() + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, height_ratios=heights, **shared).ravel().tolist()
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=SMALL, labelbottom=True)
    for axes in panels[len(names) :]:
        axes.remove()
    return figure, panels[: len(names)]


def _title(figure: Figure, text: str) -> None:
    figure.suptitle(_wrap(text, int(10 * figure.get_figwidth())), fontsize=11, fontweight="bold")


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """One for all panels, below them, as wide as they are."""
    entries = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(figure.get_figwidth() // 2))
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": min(columns, len(entries))}
    figure.legend(entries.values(), entries.keys(), **where, fontsize=SMALL, frameon=False)


def _wrap(text: str, width: int) -> str:
    """Breaks at blanks and, in the names of studies, at underscores."""
    return "\n".join(textwrap.wrap(text.replace("_", "_ "), width, break_on_hyphens=False)).replace("_ ", "_")


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _has_curve(result: Mapping[str, Any]) -> bool:
    return len({cell["setting"].get("shots", 0) for cell in result["cells"]} - {0}) > 1


def _drawn(result: Mapping[str, Any], kind: str) -> dict[str, Cells]:
    """By study, the cells with a drawing: of LangCell or else of the first method that has any, of the most shots."""
    by_method = _by([cell for cell in result["cells"] if kind in cell["drawings"]], "method")
    own = by_method.get(LANGCELL) or next(iter(by_method.values()), [])
    return _by(_most_shots(own), "study")


def _most_shots(cells: Cells) -> Cells:
    most = max((cell["setting"].get("shots", 0) for cell in cells), default=0)
    return [cell for cell in cells if cell["setting"].get("shots", 0) == most]


def _titled(result: Mapping[str, Any], studies: Mapping[str, Cells]) -> str:
    """The task, and by what its drawings are."""
    return f"{result['task']['name']}, {_row(next(iter(studies.values()))[0])}"


def _row(cell: Mapping[str, Any]) -> str:
    """Method and setting."""
    return ", ".join([_shown(cell["method"]), *in_words(cell["setting"])])


def _by_row(cells: Cells) -> dict[str, Cells]:
    return _grouped(cells, _row)


def _by(cells: Cells, key: str) -> dict[str, Cells]:
    return _grouped(cells, itemgetter(key))


def _by_shots(cells: Cells) -> dict[int, Cells]:
    return _grouped(cells, lambda cell: cell["setting"].get("shots", 0))


def _grouped(cells: Cells, key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, Cells]:
    """In the order in which the groups come."""
    groups: dict[Any, Cells] = {}
    for cell in cells:
        groups.setdefault(key(cell), []).append(cell)
    return groups


__all__ = [
    "FIGURES",
    "confusion",
    "draw_confusion",
    "draw_curve",
    "draw_reliability",
    "draw_roc",
    "draw_scores",
    "draw_task",
    "draw_umap",
    "means",
    "reliability",
    "styles",
    "write_html",
]
