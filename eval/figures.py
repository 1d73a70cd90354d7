# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Figures of a task's results, and one page for all tasks. A result is the dict that `run.evaluate` returns; its `cells`
are runs.
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

from modeling_langcell.eval.task import CLASSIFIERS, LANGCELL, RANDOM
from modeling_langcell.publishing.evaluation import in_words, mean_and_range
from modeling_langcell.report.html import inline_image, write_page
from modeling_langcell.report.plots import write_figure

Runs = list[Mapping[str, Any]]

DPI = 110
#: Okabe and Ito's colours for the colour-blind, with grey instead of their yellow.
COLOURS = ("#0072B2", "#8C8C8C", "#000000", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
MARKERS = "osXD^vP"  # Seven markers and eight colours share no factor: 56 methods look different.
GREY = COLOURS[1]
#: Methods of most tasks, which look the same in all of them.
USUAL = (LANGCELL, RANDOM, *CLASSIFIERS)
MOST_NAMED = 20
BINS = 15
SMALL = 8


def draw_task(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """
    Writes `<task>-<kind>.png` for each of `FIGURES` that the result has data for.

    Returns:
        The files in the order of `FIGURES`.

    Raises:
        InputError: The folder cannot be written.
    """
    written = []
    for kind, draw in FIGURES.items():
        if (figure := draw(result)) is None:
            continue
        written.append(write_figure(figure, folder / f"{result['task']['name']}-{kind}.png", DPI))
    return written


def draw_curve(result: Mapping[str, Any]) -> Figure | None:
    """
    Draws the main score against the number of shots, one panel per study: means over seeds, shaded from the lowest to
    the highest, and a dashed line without shots. Returns None if fewer than two numbers of shots were measured.
    """
    score = result["task"]["main_score"]
    if not _has_curve(result):
        return None
    style_of = styles(run["method"] for run in result["cells"])
    studies = _by(result["cells"], "study")
    figure, panels = _panels(studies, width=4.2, height=3.4, sharey=True)
    for axes, runs in zip(panels, studies.values(), strict=True):
        for method, own in _by(runs, "method").items():
            _draw_line(axes, own, score, style_of[method], _shown(method))
        axes.set_xticks(sorted({run["setting"].get("shots", 0) for run in runs} - {0}))
        axes.set(xlabel="cells learned from per type")
        axes.grid(axis="y", alpha=0.3)
    panels[0].set_ylim(bottom=0)
    figure.supylabel(_shown(score), fontsize=10)
    _title(figure, f"{result['task']['name']}: {_shown(score)} by shots")
    _legend(figure, panels)
    return figure


def _draw_line(axes: Axes, runs: Runs, score: str, style: Mapping[str, Any], name: str) -> None:
    found = {shots: mean_and_range(same, score) for shots, same in _by_shots(runs).items()}
    points = [(shots, *spread) for shots, spread in sorted(found.items()) if shots]
    if 0 in found:
        axes.axhline(found[0][0], color=style["color"], linestyle="--", linewidth=1.4, label=f"{name}, zero-shot")
    if points:
        shots, means, lows, highs = zip(*points, strict=True)
        axes.plot(shots, means, **style, markersize=4.5, linewidth=1.6, label=name)
        axes.fill_between(shots, lows, highs, color=style["color"], alpha=0.15, linewidth=0)


def draw_scores(result: Mapping[str, Any]) -> Figure | None:
    """
    Draws the main score of each method, one panel per study, with its 95% interval or, for several seeds, the range
    from the lowest to the highest. Returns None where `draw_curve` draws a figure.
    """
    score = result["task"]["main_score"]
    runs = [run for run in result["cells"] if score in run["scores"]]
    if not runs or _has_curve(result):
        return None
    style_of = styles(run["method"] for run in result["cells"])
    studies, rows = _by(runs, "study"), list(_by_row(runs))
    figure, panels = _panels(studies, width=3.9, height=1.1 + 0.27 * len(rows), sharex=True, sharey=True)
    for axes, same in zip(panels, studies.values(), strict=True):
        for row, seeds in _by_row(same).items():
            mean, low, high = mean_and_range(seeds, score)
            style, place = style_of[seeds[0]["method"]], rows.index(row)
            axes.plot([low, high], [place, place], color=style["color"], linewidth=2, alpha=0.5)
            axes.plot(mean, place, **style, markersize=7, linestyle="none")
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
    Draws the cells of each label by predicted label, one panel per study, all seeds together. The method is LangCell,
    or the first one with confusion tables, with the highest number of shots. Returns None without such tables.
    """
    if not (studies := _drawn(result, "confusion")):
        return None
    tables = [confusion(runs) for runs in studies.values()]
    sides = [0.32 * max(len(table), 6) for table in tables]  # Each square has room for its number.
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
    _title(figure, f"{_titled(result, studies)}: true labels (cells) against predicted labels, as shares of a row")
    return figure


def confusion(runs: Runs) -> pd.DataFrame:
    """Returns the numbers of cells by label (rows) and predicted label (columns), summed over seeds."""
    drawn = [run["drawings"]["confusion"] for run in runs]
    table = pd.concat([pd.DataFrame(one["cells"], one["labels"], one["labels"]) for one in drawn])
    table = table.groupby(level=0).sum()
    return table.reindex(columns=table.index).fillna(0).astype(int)


def draw_reliability(result: Mapping[str, Any]) -> Figure | None:
    """
    Draws accuracy against confidence, one panel per study; the width of a bar grows with its number of cells. Method
    and shots are chosen as in `draw_confusion`. Returns None without such data.
    """
    if not (studies := _drawn(result, "reliability")):
        return None
    style_of = styles(run["method"] for run in result["cells"])
    figure, panels = _panels(studies, width=3.4, height=3.7)
    for axes, (study, runs) in zip(panels, studies.items(), strict=True):
        bins = reliability(runs)
        widths = 1 / BINS * np.maximum(bins["cells"] / bins["cells"].max(), 0.08)
        axes.bar(
            bins["confidence"],
            bins["accuracy"],
            widths,
            color=style_of[runs[0]["method"]]["color"],
            alpha=0.75,
            linewidth=0,
        )
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        error = np.mean([run["scores"]["expected_calibration_error"] for run in runs])
        axes.set_title(f"{_wrap(study, 38)}\nexpected calibration error {error:.3f}", fontsize=10)
        axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
        axes.set(xlabel="confidence (wide bars: many cells)")
    _title(figure, f"{_titled(result, studies)}: accuracy by confidence")
    return figure


def reliability(runs: Runs) -> pd.DataFrame:
    """Returns mean confidence, accuracy and number of cells in 15 bins of equal width, all seeds together."""
    bins = pd.DataFrame([one for run in runs for one in run["drawings"]["reliability"]])
    weighted = bins[["confidence", "accuracy"]].mul(bins["cells"], axis=0).assign(cells=bins["cells"])
    sums = weighted.groupby(np.ceil(bins["confidence"] * BINS).clip(lower=1)).sum()
    return sums[["confidence", "accuracy"]].div(sums["cells"], axis=0).assign(cells=sums["cells"])


def draw_roc(result: Mapping[str, Any]) -> Figure | None:
    """
    Draws true against false positive rates, one panel per study and one line per method and seed, with each method's
    mean AUROC. Returns None without such curves.
    """
    runs = [run for run in result["cells"] if "roc" in run["drawings"]]
    if not runs:
        return None
    style_of = styles(run["method"] for run in result["cells"])
    studies = _by(runs, "study")
    figure, panels = _panels(studies, width=3.8, height=3.8 + 0.2 * len(_by(runs, "method")))
    for axes, same in zip(panels, studies.values(), strict=True):
        axes.plot([0, 1], [0, 1], color="black", linestyle=":", linewidth=1)
        for method, seeds in _by(same, "method").items():
            area = np.mean([run["scores"]["auroc"] for run in seeds])
            for number, run in enumerate(seeds):
                points = pd.DataFrame(run["drawings"]["roc"])
                name = f"{_shown(method)}, AUROC {area:.2f}" if number == 0 else None
                rates = points["false_positive_rate"], points["true_positive_rate"]
                axes.plot(*rates, **style_of[method], markevery=0.15, markersize=4, linewidth=1.6, label=name)
        limits = (-0.01, 1.01)
        axes.set(xlim=limits, ylim=limits)
        axes.set(xlabel="false positive rate", ylabel="true positive rate")
        axes.legend(fontsize=SMALL, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
    _title(figure, f"{result['task']['name']}: {result['task']['question']}")
    return figure


def draw_risk(result: Mapping[str, Any]) -> Figure | None:
    """
    Draws the share of wrong answers against the share of cells with an answer, as cells must fit the candidates better
    and better to get one: one panel per study, one line per set of candidates, and a dot where they must fit more
    probably than not, for the first seed. Returns None without such curves.
    """
    studies = _by([run for run in result["cells"] if "risk" in run["drawings"]], "study")
    if not studies:
        return None
    figure, panels = _panels(studies, width=3.8, height=4.2)
    for axes, runs in zip(panels, studies.values(), strict=True):
        for number, (offered, points) in enumerate(runs[0]["drawings"]["risk"].items()):
            curve = pd.DataFrame(points)
            usual = curve[curve["least_fit"] == 0.5]
            axes.plot(curve["coverage"], curve["risk"], color=f"C{number}", linewidth=1.6, label=offered)
            axes.plot(usual["coverage"], usual["risk"], color=f"C{number}", marker="o", linestyle="")
        axes.axhline(0.1, color="black", linestyle=":", linewidth=1)
        axes.set(xlim=(0, 1.01), ylim=(0, 1), xlabel="share of cells with an answer", ylabel="share of wrong answers")
        axes.legend(fontsize=SMALL, loc="upper center", bbox_to_anchor=(0.5, -0.17), frameon=False)
    _title(figure, f"{_titled(result, studies)}: wrong answers by answered cells")
    return figure


def draw_umap(result: Mapping[str, Any]) -> Figure | None:
    """
    Draws a UMAP of the cells' embeddings, one row per study and method and one panel per column of labels, for the
    first seed and the most shots. Returns None without coordinates.
    """
    runs = _most_shots([run for run in result["cells"] if "umap" in run["drawings"]])
    rows = [seeds[0] for same in _by(runs, "study").values() for seeds in _by(same, "method").values()]
    if not rows:
        return None
    columns = max(len(_columns_of(run)) for run in rows)
    figure = Figure(figsize=(5.6 * columns, 3.9 * len(rows) + 0.4), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, run in zip(grid, rows, strict=True):
        labels = _columns_of(run)
        for axes, (column, values) in zip(panels, labels.items(), strict=False):
            others = [other for other in labels.values() if set(other) & set(values)]
            _scatter(axes, run["drawings"]["umap"], values, _most_frequent(others))
            title = f"{_wrap(run['study'], 40)}\n{_shown(run['method'])}, by {_shown(column)}"
            axes.set_title(title, fontsize=10, loc="left")
        for axes in panels[len(labels) :]:
            axes.remove()
    _title(figure, f"{result['task']['name']}: UMAP of the cells' embeddings")
    return figure


def _columns_of(run: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    return {name: values for name, values in run["drawings"]["umap"].items() if name not in ("x", "y")}


def _most_frequent(columns: Iterable[Sequence[str]]) -> list[str]:
    """Returns the values that the legend names, the most frequent first; shared values look the same in all columns."""
    counts = Counter(value for column in columns for value in column)
    return [name for name, _ in counts.most_common(MOST_NAMED)]


def _scatter(axes: Axes, places: Mapping[str, Sequence], values: Sequence[str], named: Sequence[str]) -> None:
    """Draws rare labels on top, and labels that the legend does not name at the bottom."""
    x, y, labels = np.array(places["x"]), np.array(places["y"]), np.array(values)
    colours = [colour for colour in COLOURS if colour != GREY]
    shared: dict[str, Any] = {"s": 11, "linewidths": 0, "alpha": 0.85}
    if (rest := ~np.isin(labels, named)).any():
        axes.scatter(x[rest], y[rest], **shared, color="#D9D9D9", label=f"other ({len(set(labels[rest]))})", zorder=1)
    for i, name in enumerate(named):
        if (chosen := labels == name).any():
            style: dict[str, Any] = {"color": colours[i % len(colours)], "marker": "os^"[i // len(colours)]}
            axes.scatter(x[chosen], y[chosen], **shared, **style, label=_wrap(name, 34), zorder=2)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_color("#BBBBBB")
    handles, names = axes.get_legend_handles_labels()
    order = sorted(range(len(names)), key=lambda i: names[i].startswith("other ("))
    legend: dict[str, Any] = {"fontsize": 7, "markerscale": 1.8, "loc": "center left", "bbox_to_anchor": (1.01, 0.5)}
    axes.legend([handles[i] for i in order], [names[i] for i in order], **legend, frameon=False, labelspacing=0.35)


#: Functions that draw each kind of figure; they return None for a result without the data.
FIGURES = {
    "scores": draw_scores,
    "curve": draw_curve,
    "confusion": draw_confusion,
    "reliability": draw_reliability,
    "risk": draw_risk,
    "roc": draw_roc,
    "umap": draw_umap,
}


def write_html(results: Sequence[Mapping[str, Any]], figures: Mapping[str, Sequence[Path]], path: str | Path) -> Path:
    """
    Writes one self-contained page with each task's figures and means.

    Args:
        results: Results of any number of tasks.
        figures: Files that `draw_task` wrote, by task name.
        path: File of the page.

    Raises:
        InputError: The page cannot be written.
    """
    names = [html.escape(result["task"]["name"]) for result in results]
    body = "<nav>" + "".join(f'<a href="#{name}">{name}</a>' for name in names) + "</nav>\n"
    body += "\n".join(_section(result, figures.get(result["task"]["name"], ())) for result in results)
    return write_page(path, "page.html", title="LangCell evaluation", body=Markup(body))


def _section(result: Mapping[str, Any], figures: Sequence[Path]) -> str:
    task, model = result["task"], result["model"]
    checkpoint = model["checkpoint"] + (f", adapter {model['adapter']}" if model["adapter"] else "")
    name, question, command = (html.escape(text) for text in (task["name"], task["question"], result["command"]))
    parts = [f'<h2 id="{name}">{name}</h2>', f"<p>{question} LangCell is {html.escape(checkpoint)}.</p>"]
    parts += [f"<p>{inline_image(file.read_bytes(), file.stem)}</p>" for file in figures]
    for study, runs in _by(result["cells"], "study").items():
        about = result["studies"][study]
        said = f"{about['what']} {about['citation']}." + " The checkpoint was trained on it." * about["in_training"]
        parts.append(f"<h3>{html.escape(study)}</h3>\n<p>{html.escape(said)}</p>\n{means(task, runs)}")
    parts.append(
        "<p>Means; in brackets the 95% interval over cells or, for several seeds, the lowest and the highest value. "
        f"Made by <code>{command}</code>.</p>"
    )
    return "\n".join(parts)


def means(task: Mapping[str, Any], runs: Runs) -> str:
    """Returns an HTML table of a study: one row per method and setting, one column per metric, main score first."""
    names = [name for name in task["metrics"] if any(name in run["scores"] for run in runs)]
    names.sort(key=lambda name: name != task["main_score"])
    rows = [
        {"method": row} | {_shown(name): _written(*mean_and_range(seeds, name)) for name in names}
        for row, seeds in _by_row(runs).items()
    ]
    return f"<div class=wide>{pd.DataFrame(rows).to_html(index=False, border=0)}</div>"


def _written(mean: float, low: float, high: float) -> str:
    if np.isnan(mean):
        return ""
    return f"{mean:.3f}" + (f" ({low:.3f} to {high:.3f})" if low < high else "")


def styles(methods: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Returns colour and marker of each method; the usual methods always have the same."""
    names = dict.fromkeys([*USUAL, *methods])
    return {
        name: {"color": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]} for i, name in enumerate(names)
    }


def _panels(
    studies: Iterable[str], *, width: float, height: float | np.ndarray, most_columns: int = 3, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Returns a figure with one titled panel per study, of this width and height in inches, in even rows."""
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
    """Adds one legend for all panels below them."""
    entries = {name: handle for axes in panels for handle, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    columns = max(1, int(figure.get_figwidth() // 2))
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": min(columns, len(entries))}
    figure.legend(entries.values(), entries.keys(), **where, fontsize=SMALL, frameon=False)


def _wrap(text: str, width: int) -> str:
    """Breaks text at blanks and, in the names of studies, at underscores."""
    return "\n".join(textwrap.wrap(text.replace("_", "_ "), width, break_on_hyphens=False)).replace("_ ", "_")


def _shown(name: str) -> str:
    return name.replace("_", " ")


def _has_curve(result: Mapping[str, Any]) -> bool:
    return len({run["setting"].get("shots", 0) for run in result["cells"]} - {0}) > 1


def _drawn(result: Mapping[str, Any], kind: str) -> dict[str, Runs]:
    """Returns by study the runs with this drawing, of LangCell or the first method that has it, with most shots."""
    by_method = _by([run for run in result["cells"] if kind in run["drawings"]], "method")
    own = by_method.get(LANGCELL) or next(iter(by_method.values()), [])
    return _by(_most_shots(own), "study")


def _most_shots(runs: Runs) -> Runs:
    most = max((run["setting"].get("shots", 0) for run in runs), default=0)
    return [run for run in runs if run["setting"].get("shots", 0) == most]


def _titled(result: Mapping[str, Any], studies: Mapping[str, Runs]) -> str:
    """Returns the task's name with the method and setting of its drawings."""
    return f"{result['task']['name']}, {_row(next(iter(studies.values()))[0])}"


def _row(run: Mapping[str, Any]) -> str:
    """Returns a run's method and setting as text."""
    return ", ".join([_shown(run["method"]), *in_words(run["setting"])])


def _by_row(runs: Runs) -> dict[str, Runs]:
    return _grouped(runs, _row)


def _by(runs: Runs, key: str) -> dict[str, Runs]:
    return _grouped(runs, itemgetter(key))


def _by_shots(runs: Runs) -> dict[int, Runs]:
    return _grouped(runs, lambda run: run["setting"].get("shots", 0))


def _grouped(runs: Runs, key: Callable[[Mapping[str, Any]], Any]) -> dict[Any, Runs]:
    """Groups runs in the order of their first appearance."""
    groups: dict[Any, Runs] = {}
    for run in runs:
        groups.setdefault(key(run), []).append(run)
    return groups


__all__ = [
    "FIGURES",
    "confusion",
    "draw_confusion",
    "draw_curve",
    "draw_reliability",
    "draw_risk",
    "draw_roc",
    "draw_scores",
    "draw_task",
    "draw_umap",
    "means",
    "reliability",
    "styles",
    "write_html",
]
