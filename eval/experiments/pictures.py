# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Pictures for the guide: screenshots of the report and the app in a browser, and an annotated study.

    langcell annotate --example --report demo/report.html
    python eval/experiments/pictures.py report demo/report.html docs/report.png
    python eval/experiments/pictures.py app docs/app.png docs/found.png
    python eval/experiments/pictures.py study ../shared/data/validation/pbmc_kang_ctrl.h5ad docs/kang.png
"""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from PIL import Image

from modeling_langcell.model.errors import InputError

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Stops Chromium from looking for updates, and from needing a sandbox, which containers lack.
_OPTIONS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")
_NAMES = ("chromium", "chromium-browser", "google-chrome")

_REPOSITORY = Path(__file__).resolve().parent.parent.parent

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False)


@contextmanager
def chromium() -> Iterator["Browser"]:
    """
    Runs the system's Chromium without a window.

    Raises:
        InputError: Chromium or the package playwright, which drives it, is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError as error:
        raise InputError('No package playwright: pip install "modeling-langcell[dev]".') from error
    found = next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        raise InputError("Chromium is not installed: apt-get install chromium, for instance.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=list(_OPTIONS))
        yield browser
        browser.close()


@contextmanager
def running_app(**environment: str) -> Iterator[str]:
    """
    Runs the app of `space/` in a process of its own and yields its address.

    Args:
        environment: More environment variables of the process.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {**os.environ, "PYTHONPATH": str(_REPOSITORY), "HOST": "127.0.0.1", "PORT": str(port), **environment}
    process = subprocess.Popen([sys.executable, str(_REPOSITORY / "space" / "app.py")], env=variables)
    try:
        while process.poll() is None:
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        else:
            raise InputError(f"The app did not start: exit code {process.returncode}.")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@app.command()
def report(
    page: Annotated[Path, typer.Argument(metavar="REPORT.html", help="Page that 'langcell annotate --report' wrote.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE.png", help="File for the picture.")],
) -> None:
    """Take a picture of the first screen of a report: light, dark, and on a phone."""
    height = 1100
    screens: list[tuple[Literal["light", "dark"], int]] = [("light", 1000), ("dark", 1000), ("light", 390)]
    whole = Image.new("RGB", (sum(width for _, width in screens), height))
    place = 0
    with chromium() as browser:
        for scheme, width in screens:
            tab = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": height})
            tab.goto(page.resolve().as_uri())
            whole.paste(Image.open(io.BytesIO(tab.screenshot())), (place, 0))
            place += width
    whole.quantize(256).save(picture, optimize=True)
    typer.echo(f"Picture: {picture}")


@app.command("app")
def picture_app(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE.png", help="File for the picture of annotated cells.")],
    of_search: Annotated[Path, typer.Argument(metavar="PICTURE.png", help="File for the picture of found cells.")],
) -> None:
    """Take pictures of the app with its example annotated, and with cells found by a text."""
    with running_app() as address, chromium() as browser:
        tab = browser.new_page(viewport={"width": 1100, "height": 1500})
        tab.goto(address)
        tab.get_by_role("button", name="Take the example").click()
        tab.get_by_text("700 cells x 765 genes").wait_for()
        tab.get_by_role("button", name="Annotate").click()
        tab.frame_locator("iframe").get_by_text("Coloured by").wait_for(timeout=300_000)
        tab.screenshot(path=picture)
        tab.get_by_role("tab", name="Find cells by text").click()
        tab.get_by_label("What the cells should be like").fill("cells that kill tumour cells")
        tab.get_by_role("button", name="Find").click()
        tab.locator("table.found").wait_for()
        place = tab.get_by_role("tablist").bounding_box()
        assert place is not None
        tab.screenshot(path=of_search, full_page=True, clip={"x": 0, "y": place["y"], "width": 1100, "height": 640})
    for made in (picture, of_search):
        typer.echo(f"Picture: {made}")


@app.command("study")
def picture_study(
    cells: Annotated[Path, typer.Argument(metavar="CELLS.h5ad", help="Cells with known types.")],
    picture: Annotated[Path, typer.Argument(metavar="PICTURE.png", help="File for the picture.")],
    reference: Annotated[str, typer.Option(help="Column of obs with the known types, which are the candidates.")] = (
        "cell_type"
    ),
) -> None:
    """Annotate cells by cluster, and draw them with their labels, and the markers of the labels."""
    import anndata as ad
    import matplotlib.pyplot as plt
    import numpy as np

    import modeling_langcell as langcell
    from modeling_langcell.io.colours import colours
    from modeling_langcell.io.columns import CLUSTER_LABEL
    from modeling_langcell.ontology import short_name
    from modeling_langcell.report import lay_out

    adata = ad.read_h5ad(cells)
    langcell.annotate(adata, sorted(adata.obs[reference].astype(str).unique()), cluster=True)
    labels = adata.obs[CLUSTER_LABEL].astype(str).to_numpy()
    layout, names = lay_out(adata), sorted({*labels})
    figure, (plane, dots) = plt.subplots(1, 2, figsize=(14, 5), width_ratios=(1, 1.6), layout="constrained")
    for name, colour in zip(names, colours(len(names)), strict=True):
        places = layout.coordinates[labels[layout.rows] == name]
        plane.scatter(*places.T, s=7, color=colour, linewidths=0, label=short_name(name))
    plane.set(xticks=[], yticks=[], title=f"{adata.n_obs:,} cells by the label of their cluster")
    plane.set_xlabel("UMAP of the embeddings")
    plane.legend(ncols=4, frameon=False, markerscale=2, loc="upper center", bbox_to_anchor=(0.5, -0.08))
    adata.obs["label"] = [short_name(name) for name in labels]
    langcell.pl.dotplot(adata, "label", ax=dots, show=False, var_group_rotation=30)
    known = adata.obs[reference].astype(str).to_numpy()
    typer.echo(f"The label of the cluster is that of {reference} in {np.mean(labels == known):.1%} of the cells.")
    figure.savefig(picture, dpi=110, bbox_inches="tight")
    typer.echo(f"Picture: {picture}")


if __name__ == "__main__":
    app()
