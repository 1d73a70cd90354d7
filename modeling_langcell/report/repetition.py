# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Code that repeats an annotation, and the facts about its run."""

from collections.abc import Mapping
from datetime import date
from typing import Any

from ..annotation.records import label_descriptions
from ..model.prompts import Description
from ..model.zero_shot import SHORTLIST


def python_code(run: Mapping[str, Any]) -> str:
    """Returns code that repeats a run: with the same checkpoint, candidates and settings, reading the same values."""
    read = run["input"]
    origin = [f"{name}={str(run[name])!r}" for name in ("revision", "adapter") if run[name]]
    origin = [repr(str(run["checkpoint"])), *origin, f"dtype={str(run['dtype'])!r}"]
    loaded = f"LangCellAnnotator.from_pretrained({', '.join(origin)})" if run["checkpoint"] else "...  # in memory"

    described = label_descriptions(run)
    # Classifiers and prototypes have their own labels.
    own = "prototype_weight" in run or "alpha" not in run
    with_genes = "marker_weight" in run
    labels = (
        "" if own else "".join(f"    {label!r}: {_given(one, with_genes)!r},\n" for label, one in described.items())
    )
    options = [] if own else ["labels"]
    options += [f"alpha={float(run['alpha'])!r}"] if "alpha" in run and not own else []
    if "shortlist" in run:
        options.append(f"shortlist={int(run['shortlist'])}")
    elif len(described) > SHORTLIST and run.get("alpha", 1) < 1:
        options.append("shortlist=None")
    options += [f"marker_weight={float(run['marker_weight'])!r}"] if with_genes and not own else []
    options += [f"error_rate={float(run['error_rate'])!r}"] if "error_rate" in run else []
    if "cluster_key" in run:
        options.append("cluster=True" if run["clusters_made"] else f"cluster_key={str(run['cluster_key'])!r}")
    options += ["smooth=True"] if "smoothing" in run else []
    array, defaults = str(read["array"]), {"counts": "raw", "empty_cells": "error", "gene_column": None}
    options += ["use_raw=True"] if array == "raw.X" else []
    options += [f"layer={array.removeprefix('layers[').removesuffix(']')}"] if array.startswith("layers[") else []
    options += [f"organism={str(read['chosen_organism'])!r}"] if "chosen_organism" in read else []
    options += [f"{name}={str(read[name])!r}" for name, usual in defaults.items() if read.get(name, usual) != usual]
    return (
        "import anndata as ad\nfrom modeling_langcell import LangCellAnnotator\n\n"
        f"annotator = {loaded}\n"
        + (f"labels = {{\n{labels}}}\n" if labels else "")
        + f'annotator.annotate(ad.read_h5ad("cells.h5ad"), {", ".join(options)})\n'
    )


def _given(described: Description, with_genes: bool) -> Any:
    """Returns what describes a label in the form that `annotate` takes it."""
    texts = list(described.texts)
    if not with_genes:
        return texts
    return {"description": texts, "markers": list(described.markers or ()), "absent": list(described.absent)}


def facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = [("Checkpoint", f"{run['checkpoint'] or 'a model in memory'} ({run['revision'] or 'local'})")]
    if run.get("adapter"):
        found.append(("Adapter", str(run["adapter"])))
    settings = (
        "alpha",
        "marker_weight",
        "prototype_weight",
        "shortlist",
        "temperature",
        "error_rate",
        "threshold",
        "usual_novelty",
    )
    values = [f"{name.replace('_', ' ')} {run[name]:.4g}" for name in settings if name in run]
    found.append(("Settings", ", ".join([*values, str(run["dtype"])])))
    found.append(("Versions", ", ".join(f"{name} {number}" for name, number in run["versions"].items())))
    found.append(("Written", date.today().isoformat()))
    return found


__all__ = ["facts", "python_code"]
