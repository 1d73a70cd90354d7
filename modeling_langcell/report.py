# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What an annotation looks like: a figure, and one HTML file that holds all there is to say of a run."""

import base64
import html
import io
from pathlib import Path

import anndata as ad
import matplotlib
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from .annotation import describe_input
from .answers import ANSWER, ANSWER_ID, CELL_TYPE, EMBEDDING, RUN, SCORE
from .feature_extraction_langcell import InputError

_SEED = 0


def agreement(adata: ad.AnnData, reference: str) -> dict[str, float]:
    """
    How far an annotation agrees with labels in `obs`: accuracy, balanced accuracy and macro-F1 over the labelled
    cells.

    Raises:
        InputError: No such column, or none of its labels is a candidate.
    """
    truth, predicted = _compared(adata, reference)
    over_types = {"average": "macro", "labels": np.unique(truth), "zero_division": 0}
    return {
        "cells": len(truth),
        "accuracy": float(accuracy_score(truth, predicted)),
        "balanced_accuracy": float(recall_score(truth, predicted, **over_types)),
        "macro_f1": float(f1_score(truth, predicted, **over_types)),
    }


def _compared(adata: ad.AnnData, reference: str) -> tuple[np.ndarray, np.ndarray]:
    if reference not in adata.obs:
        raise InputError(f"No column {reference!r} in obs; columns here: {sorted(map(str, adata.obs.columns))}.")
    candidates = set(adata.obs[CELL_TYPE].cat.categories)
    both = adata.obs[[reference, CELL_TYPE]].dropna()
    both = both[both[reference].isin(candidates)].astype(str)
    if both.empty:
        raise InputError(f"None of the labels in obs[{reference!r}] is a candidate: {', '.join(sorted(candidates))}.")
    return both[reference].to_numpy(), both[CELL_TYPE].to_numpy()


def draw(adata: ad.AnnData, reference: str | None = None) -> Figure:
    """
    Draws the cells on a UMAP of their embeddings, coloured by the label found, beside the shares of the labels or,
    with a reference column, the confusion with its labels.
    """
    figure = Figure(figsize=(15, 5.6), layout="constrained")
    scatter, beside = figure.subplots(1, 2, width_ratios=(1, 1.05))
    labels = adata.obs[CELL_TYPE].cat.remove_unused_categories()
    colours = matplotlib.colormaps["tab20" if len(labels.cat.categories) > 10 else "tab10"]
    coordinates = _umap(adata)
    for code, label in enumerate(labels.cat.categories):
        chosen = (labels == label).to_numpy()
        scatter.scatter(*coordinates[chosen].T, s=9, color=colours(code % colours.N), label=_short(label), linewidths=0)
    scatter.set(xticks=[], yticks=[], title=f"{adata.n_obs:,} cells by the label found", xlabel="UMAP of X_langcell")
    scatter.legend(fontsize=7, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=2, frameon=False)
    if reference is None:
        shares = labels.value_counts(normalize=True).sort_values()
        beside.barh([_short(name) for name in shares.index], shares)
        beside.set(title="Shares of the labels", xlabel="share of cells")
    else:
        _draw_confusion(figure, beside, *_compared(adata, reference), reference)
    return figure


def _draw_confusion(figure, axes, truth: np.ndarray, predicted: np.ndarray, reference: str) -> None:
    names = sorted(set(truth) | set(predicted))
    shares = confusion_matrix(truth, predicted, labels=names, normalize="true")
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    ticks = range(len(names))
    axes.set_xticks(ticks, [str(number + 1) for number in ticks])
    sizes = [int((truth == name).sum()) for name in names]
    axes.set_yticks(ticks, [f"{_short(name)} ({sizes[i]:,})   {i + 1}" for i, name in enumerate(names)], fontsize=8)
    for row, column in np.argwhere(shares >= 0.05):
        colour = "white" if shares[row, column] > 0.6 else "black"
        axes.text(column, row, f"{shares[row, column]:.0%}", ha="center", va="center", fontsize=7, color=colour)
    accuracy = accuracy_score(truth, predicted)
    axes.set(title=f"{reference} (cells) against the label found: accuracy {accuracy:.2f}", xlabel="label found")
    figure.colorbar(image, ax=axes, label="share of the row's cells", shrink=0.8)


def _umap(adata: ad.AnnData) -> np.ndarray:
    """Two coordinates a cell from its embedding; cells without one have none."""
    import scanpy as sc

    embeds = np.asarray(adata.obsm[EMBEDDING])
    known = ~np.isnan(embeds[:, 0])
    coordinates = np.full((len(embeds), 2), np.nan)
    if known.sum() < 5:  # Too few for a neighbourhood graph: the embedding's first two numbers.
        coordinates[known] = embeds[known, :2]
        return coordinates
    space = ad.AnnData(obs=pd.DataFrame(index=adata.obs_names[known]), obsm={EMBEDDING: embeds[known]})
    sc.pp.neighbors(space, use_rep=EMBEDDING, metric="cosine", n_neighbors=min(15, len(space) - 1), random_state=_SEED)
    sc.tl.umap(space, random_state=_SEED, init_pos="random" if len(space) < 50 else "spectral")
    coordinates[known] = space.obsm["X_umap"]
    return coordinates


def _short(label: str, length: int = 60) -> str:
    return label if len(label) <= length else label[: length - 1] + "…"


def write_report(adata: ad.AnnData, path: str | Path, figure: Figure, reference: str | None = None) -> Path:
    """
    Writes one self-contained HTML page: the figure, the labels found, what was read of the input, and how to repeat
    the run.
    """
    run = adata.uns[RUN]
    composition = adata.obs.groupby(CELL_TYPE, observed=True)[SCORE].agg(["size", "median"])
    composition = composition.sort_values("size", ascending=False)
    rows = "".join(
        f"<tr><td>{html.escape(str(label))}</td><td>{cells:.0f}</td><td>{cells / adata.n_obs:.1%}</td>"
        f"<td>{score:.3f}</td></tr>"
        for label, cells, score in composition.itertuples()
    )
    answers = ""
    if ANSWER in adata.obs:
        sizes = adata.obs.groupby([ANSWER, ANSWER_ID], observed=True).size().sort_values(ascending=False, kind="stable")
        answers = _ANSWERS.format(
            error_rate=f"{run['error_rate']:.0%}",
            threshold=f"{run['threshold']:g}",
            rows="".join(
                f"<tr><td>{html.escape(name)}</td><td>{html.escape(term_id)}</td><td>{cells:,}</td>"
                f"<td>{cells / adata.n_obs:.1%}</td></tr>"
                for (name, term_id), cells in sizes.items()
            ),
        )
    unlabelled = int(adata.obs[CELL_TYPE].isna().sum())
    texts = "".join(
        f"<dt>{html.escape(str(label))}</dt><dd>{html.escape(str(text))}</dd>"
        for label, text in zip(run["labels"], run["descriptions"], strict=True)
    )
    read = describe_input(adata)
    if unlabelled:
        read += f" {unlabelled:,} cells have no known gene and no label."
    if reference is not None:
        scores = agreement(adata, reference)
        read += (
            f" Against {reference}: accuracy {scores['accuracy']:.3f}, balanced accuracy "
            f"{scores['balanced_accuracy']:.3f}, macro-F1 {scores['macro_f1']:.3f} over {scores['cells']:,} cells."
        )
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    body = _BODY.format(
        figure=inline_image(render(figure), "The cells by the label found, and how the labels are shared"),
        rows=rows,
        answers=answers,
        read=html.escape(read),
        texts=texts,
        checkpoint=html.escape(run["checkpoint"] or "a model in memory"),
        revision=html.escape(run["revision"] or "local"),
        adapter=html.escape(f", adapter {run['adapter']}" if run.get("adapter") else ""),
        settings="".join(
            f"{name.replace('_', ' ')} {run[name]}, " for name in ("alpha", "prototype_weight") if name in run
        ),
        dtype=run["dtype"],
        versions=html.escape(versions),
    )
    return write_page(path, "LangCell annotation", body)


def write_page(path: str | Path, title: str, body: str) -> Path:
    """
    Writes a page that needs nothing beside it, light or dark as its reader's screen is.

    Args:
        path: Its folder is made if need be.
        title: Plain text.
        body: HTML that goes below the title.

    Raises:
        InputError: It cannot be written.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_PAGE.format(title=html.escape(title), body=body), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    return path


def render(figure: Figure, dpi: int = 130) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    return buffer.getvalue()


def inline_image(png: bytes, alt: str) -> str:
    """A picture as HTML, all of it."""
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode("ascii")}">'


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }}
img {{ max-width: 100%; background: white; border-radius: 6px; }}
table {{ border-collapse: collapse; }}
th, td {{ text-align: left; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid #8884; }}
td:nth-child(n+2), th:nth-child(n+2) {{ text-align: right; font-variant-numeric: tabular-nums; }}
nav a {{ margin-right: 1rem; }} .wide {{ overflow-x: auto; }}
dt {{ font-weight: 600; }} dd {{ margin: 0 0 .6rem; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""
_BODY = """<p>{read}</p>
{figure}
<h2>Labels found</h2>
<table><tr><th>label</th><th>cells</th><th>share</th><th>median score</th></tr>{rows}</table>
<p>The score is that of the best among the candidates below, which is always one of them, whatever the cell is.</p>
{answers}
<h2>Candidates, as the model read them</h2>
<dl>{texts}</dl>
<h2>To repeat this run</h2>
<p>Checkpoint {checkpoint} ({revision}){adapter}, {settings}{dtype}; {versions}.</p>"""

_ANSWERS = """<h2>What can be answered</h2>
<table><tr><th>answer</th><th>id</th><th>cells</th><th>share</th></tr>{rows}</table>
<p>The most specific term of the Cell Ontology with a probability of {threshold} or more: of cells like those that the
checkpoint was calibrated on, about {error_rate} of the answers are expected to be wrong. Of other cells it promises
nothing.</p>"""

__all__ = ["agreement", "draw", "inline_image", "render", "write_page", "write_report"]
