# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The report in a browser: cells of a pancreatic tumour annotated by langcell-mini, and a reader's clicks."""

import html
import io
import re
import shlex
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from modeling_langcell import InputError, LangCellAnnotator
from modeling_langcell.adaptation.adapt import AdaptationConfig, adapt
from modeling_langcell.annotation.explain import explain_annotated
from modeling_langcell.cli.main import app
from modeling_langcell.report.page import write_report
from modeling_langcell.report.plots import lay_out
from tests.support.accessibility import serious_faults

LABELS = "malignant cell; pancreatic ductal cell; tuft cell; macrophage; lymphocyte; endothelial cell; fibroblast"


@pytest.fixture(scope="module")
def report(shared, tmp_path_factory):
    """The page that the command writes for every third cell."""
    folder = tmp_path_factory.mktemp("report")
    cells = ad.read_h5ad(shared / "data" / "validation" / "pdac_moncada_card.h5ad")[::3].copy()
    cells.obs_names = [f"<b>{name}</b>" for name in cells.obs_names]  # Names must not act as markup.
    cells.obs["donor"] = np.where(np.arange(cells.n_obs) % 3, "donor 10", "donor 2")
    cells.write_h5ad(folder / "cells.h5ad")
    arguments = ["annotate", str(folder / "cells.h5ad"), "--labels", LABELS, "--empty-cells", "mark"]
    arguments += ["--reference", "cell_type", "--cluster-key", "batch", "--out", str(folder / "out.h5ad")]
    arguments += ["--report", str(folder / "report.html"), "--report-genes", "2", "--sample-key", "donor"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["somewhere/langcell", *arguments])  # As the command finds it.
        assert CliRunner().invoke(app, arguments, catch_exceptions=False).exit_code == 0
    (folder / "command.txt").write_text(shlex.join(["langcell", *arguments]))
    return folder / "report.html"


@pytest.fixture
def tab(chromium, report, request):
    """The page, opened without a network; any error of its script fails the test."""
    context = chromium.new_context(offline=True, **getattr(request, "param", {}))
    tab, errors, asked = context.new_page(), [], []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(report.as_uri())
    yield tab
    context.close()
    assert not errors
    assert asked == [report.as_uri()], "the page is self-contained"


def colours(tab) -> set[int]:
    """Returns the frequent colours of the map, as numbers."""
    return set(
        tab.evaluate(
            "() => { const map = document.querySelector('canvas'), seen = new Map();"
            "const pixels = map.getContext('2d').getImageData(0, 0, map.width, map.height).data;"
            "for (const one of new Uint32Array(pixels.buffer)) seen.set(one, 1 + (seen.get(one) ?? 0));"
            "return [...seen].filter(([one, times]) => one >>> 24 === 255 && times > 40).map(([one]) => one); }"
        )
    )


def test_all_sections_are_there(tab):
    said = tab.inner_text("body")
    for part in ("cells; X read as raw values", "answered, at an expected error rate of 10%", "unlike every candidate"):
        assert part in said
    assert tab.get_by_role("heading", level=1).inner_text() == "cells.h5ad"
    assert re.search(r"cells, annotated by LangCell \S+ \(langcell-mini\); 20\d\d-\d\d-\d\d", said)
    for heading in (
        "What the cells are",
        "Do the cells express the markers of their labels?",
        "Map",
        "By donor",
        "Quality of the input",
        "Labels",
        "Answers at an expected error rate of 10%",
        "Clusters (batch)",
        "Comparison with cell_type",
    ):
        assert tab.get_by_role("heading", name=heading, exact=True).count() == 1
    for heading in ("Least certain cells", "Driving genes", "Candidates and their descriptions", "Repeat this run"):
        assert tab.get_by_role("heading", name=heading, exact=True).count() == 1
    assert "Checkpoint\nlangcell-mini" in said
    assert "A lymphocyte is a leukocyte" in said
    assert tab.locator("#uncertain-cells tbody tr").count() == 100
    assert "<b>pdac_moncada_card:Cell" in said, "a name is shown as it is"
    assert "nan" not in re.findall(r"[a-z]+", said.lower())
    assert tab.locator(".genes > div").count() >= 5
    names = tab.locator(".genes > div").first.locator("table").nth(1).locator("td:first-child").all_inner_texts()
    assert len(names) >= 3, "the places of markers"
    assert [name.startswith("no ") for name in names] == sorted(name.startswith("no ") for name in names)
    assert "Markers: " in said
    assert "Absent: " in said


def test_links_lead_to_sections(tab):
    for link in tab.locator("nav a").all():
        link.click()
        target = tab.url.partition("#")[2]
        assert tab.locator(f"#{target}").is_visible()


def test_the_map_takes_the_chosen_colours(tab):
    before = colours(tab)
    assert len(before) >= 4
    assert tab.locator(".legend button").count() >= 5
    for view, first in (("label", "button"), ("uncertainty", ".ramp"), ("novelty", ".ramp"), ("cell_type", "button")):
        tab.get_by_label("Coloured by").select_option(view)
        assert tab.locator(f".legend {first}").first.is_visible()
        assert colours(tab) != before
        before = colours(tab)


def test_a_name_in_the_legend_highlights_its_cells(tab):
    before = colours(tab)
    name = tab.locator(".legend button").first
    name.click()
    assert tab.locator(".legend button[aria-pressed=true]").count() == 1
    assert len(colours(tab)) < len(before)
    tab.locator(".legend button").first.click()
    assert colours(tab) == before


def test_what_the_cells_are_is_said_once_and_first(tab, report):
    """Of several compositions one is named as the one to use, and it comes first."""
    section = tab.locator("#composition + p").inner_text()
    assert section.startswith('Use the answer (obs["langcell_answer"]): ')
    answers = ad.read_h5ad(report.with_name("out.h5ad")).obs["langcell_answer"].astype(str)
    shown = dict(
        zip(
            *(tab.locator(f".parts li > {of}").all_inner_texts() for of in ("span:not(.number)", ".number")),
            strict=True,
        )
    )
    for name, cells in answers.value_counts().items():
        assert shown[name].split() == [f"{cells / len(answers):.1%}", f"{cells:,}"]
    widths = [
        bar.bounding_box()["width"] for bar in tab.locator("#composition ~ .stack >> nth=0").locator("span").all()
    ]
    assert sum(widths) == pytest.approx(tab.locator("#composition ~ .stack >> nth=0").bounding_box()["width"], rel=0.01)


def test_markers_are_dots_that_fit_the_expression(tab, report):
    """The size of a dot is the share of cells that express the gene; the label's own markers are framed."""
    out = ad.read_h5ad(report.with_name("out.h5ad"))
    genes = tab.locator("#dots [data-gene]").all_inner_texts()
    assert {"CDH5", "C1QA"} <= {*genes}
    fibroblasts = tab.locator("#dots tbody tr", has=tab.get_by_role("rowheader", name="fibroblast"))
    column = genes.index("COL1A2") if "COL1A2" in genes else genes.index("COL1A1")
    share = fibroblasts.locator("td:not(.number)").nth(column).get_attribute("title")
    own = out[out.obs["langcell_cell_type"] == "fibroblast", genes[column]].X
    assert share.startswith(f"{own.getnnz() / own.shape[0]:.1%} of the cells")
    framed = fibroblasts.locator("td.own").count()
    assert 2 <= framed <= 3, "those that the cells measure"
    assert re.fullmatch(rf"[0-3] of {framed}", fibroblasts.locator("td.number").inner_text())


def test_a_gene_colours_the_map(tab):
    by_label = colours(tab)
    tab.locator("#dots [data-gene]").first.click()
    assert tab.locator(".legend .ramp").is_visible()
    assert colours(tab) != by_label
    gene = tab.locator("#dots [data-gene]").first.inner_text()
    assert tab.locator("#colour-by option:checked").inner_text() == gene
    assert tab.locator("#colour-by optgroup option").count() == len(
        {*tab.locator("#dots [data-gene]").all_inner_texts()}
    )


def test_samples_are_compared(tab):
    rows = tab.locator("#by-sample tbody tr")
    assert [row.locator("th").inner_text() for row in rows.all()] == ["donor 2", "donor 10"]
    for row in rows.all():
        shares = [float(text.rstrip("%")) for text in row.locator("td.number").all_inner_texts()[1:] if text]
        assert sum(shares) == pytest.approx(100, abs=0.5)


def test_the_input_has_histograms(tab):
    charts = tab.locator(".histograms figure")
    titles = charts.locator("figcaption").all_inner_texts()
    assert titles[:2] == ["Genes per cell", "Counts per cell"]
    for chart in charts.all():
        assert re.search(r"median [\d,.%]+; nine of ten cells from", chart.locator("p").inner_text())


def point_at(tab, cell: int = 0) -> None:
    tab.locator("canvas").scroll_into_view_if_needed()
    box = tab.locator("canvas").bounding_box()
    left, top = tab.evaluate(f"where({cell}, canvas.clientWidth, canvas.clientHeight)")
    tab.mouse.move(box["x"] + left, box["y"] + top)


def test_pointing_at_a_cell_shows_its_labels_beside_it(tab):
    point_at(tab)
    said = tab.locator("#pointed").inner_text()
    assert re.search(r"pdac_moncada_card:Cell\d+</b>\n", said)
    for title in ("label: ", "answer: ", "uncertainty: 0.", "novelty: ", "donor: "):
        assert title in said
    drawn = tab.evaluate("where(marked, canvas.clientWidth, canvas.clientHeight)")
    box, shown = tab.locator("canvas").bounding_box(), tab.locator("#pointed").bounding_box()
    away = max(shown["x"] - box["x"] - drawn[0], box["x"] + drawn[0] - shown["x"] - shown["width"])
    assert 0 <= away < 40


def test_the_map_zooms_and_moves(tab):
    canvas = tab.locator("canvas")
    before = tab.evaluate("where(0, 100, 100)")
    tab.get_by_role("button", name="Zoom in").click()
    assert tab.evaluate("zoom") == 1.5
    assert tab.evaluate("where(0, 100, 100)") != before
    centre = tab.evaluate("centre")
    canvas.focus()
    canvas.press("ArrowRight")
    moved = tab.evaluate("centre[0]")
    assert moved > centre[0]
    box = canvas.bounding_box()
    tab.mouse.move(box["x"] + 200, box["y"] + 200)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 300, box["y"] + 200)
    tab.mouse.up()
    assert tab.evaluate("centre[0]") < moved - 0.05
    tab.mouse.dblclick(box["x"] + 200, box["y"] + 200)
    assert tab.evaluate("zoom") == 3
    tab.get_by_role("button", name="whole map").click()
    assert tab.evaluate("where(0, 100, 100)") == before


def test_names_stand_on_the_map(tab):
    before = tab.locator("canvas").screenshot()
    tab.get_by_label("names").uncheck()
    assert tab.locator("canvas").screenshot() != before


def saved(tab, button) -> bytes:
    with tab.expect_download() as started:
        button.click()
    return started.value.path().read_bytes()


def test_tables_and_map_are_saved(tab, report):
    out = ad.read_h5ad(report.with_name("out.h5ad"))
    for button in tab.locator("[data-csv]").all():
        table = pd.read_csv(io.BytesIO(saved(tab, button)))
        assert len(table) == tab.locator(f"#{button.get_attribute('data-csv')} tbody tr").count()
        assert not any(str(name).startswith("Unnamed") for name in table.columns)
    cells = pd.read_csv(io.BytesIO(saved(tab, tab.get_by_role("button", name="cells as CSV", exact=True))), index_col=0)
    known = out.obs.loc[cells.index]
    assert (cells["label"] == known["langcell_cell_type"]).all()
    np.testing.assert_allclose(cells["uncertainty"], 1 - known["langcell_score"], atol=1e-3)
    picture = Image.open(io.BytesIO(saved(tab, tab.get_by_role("button", name="PNG"))))
    assert picture.width > 2000
    assert len({*picture.convert("RGB").resize((200, 100)).getdata()}) > 10


def test_terms_are_explained_on_the_spot(tab):
    for term in tab.locator("button.term").all():
        explanation = tab.locator(f"#{term.get_attribute('popovertarget')}")
        assert not explanation.is_visible()
        term.click()
        assert explanation.is_visible()
        tab.keyboard.press("Escape")
    assert tab.locator("button.term").count() >= 8


@pytest.mark.parametrize(
    "tab",
    [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}],
    indirect=True,
)
def test_nobody_is_shut_out(tab):
    """What axe, which knows the rules of accessibility, has to say."""
    assert serious_faults(tab) == []


def test_uncertain_cells_are_sorted_filtered_and_shown(tab):
    rows = tab.locator("#uncertain-cells tbody tr")
    scores = [float(text) for text in tab.locator("#uncertain-cells tbody td:nth-child(3)").all_inner_texts()]
    assert scores == sorted(scores)
    heading = tab.locator("#uncertain-cells th button", has_text="score")
    heading.click()
    heading.click()
    turned = [float(text) for text in tab.locator("#uncertain-cells tbody td:nth-child(3)").all_inner_texts()]
    assert turned == sorted(scores, reverse=True)
    name = rows.first.locator("td").first.inner_text()
    tab.get_by_placeholder("name or type").fill(name)
    assert [row.is_visible() for row in rows.all()].count(True) >= 1
    assert rows.first.is_visible()
    rows.first.get_by_role("button").click()
    assert tab.locator("#pointed").inner_text().startswith(name)
    tab.get_by_placeholder("name or type").fill("no cell has this name")
    assert not rows.first.is_visible()


@pytest.mark.parametrize("tab", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True)
def test_it_is_light_or_dark_like_the_screen_or_as_chosen(tab):
    def lightness() -> float:
        found = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return float(np.mean([int(part) for part in re.findall(r"\d+", found)[:3]]))

    dark = tab.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
    assert (lightness() < 60) == dark
    tab.get_by_title("Light or dark").click()
    assert (lightness() < 60) != dark
    tab.get_by_title("Light or dark").click()
    assert (lightness() < 60) == dark


@pytest.mark.parametrize("tab", [{"viewport": {"width": 360, "height": 740}, "has_touch": True}], indirect=True)
def test_it_fits_a_phone(tab):
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    assert tab.locator("canvas").bounding_box()["width"] > 300
    assert tab.locator(".legend").bounding_box()["y"] > tab.locator("canvas").bounding_box()["y"] + 200
    sizes = tab.evaluate(
        "[...document.querySelectorAll('p, td, dd')].map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 12
    tab.locator("h1").evaluate("one => { one.textContent = 'a_sample_with_a_name_' + 'that_does_not_end_'.repeat(4) }")
    assert tab.evaluate("document.documentElement.scrollWidth") <= 360
    for region in tab.locator(".wide").all():
        assert "radial-gradient" in region.evaluate("one => getComputedStyle(one).backgroundImage"), "a sign of more"


def test_a_long_table_scrolls_in_its_place(tab):
    """A study of many clusters, samples or candidates does not make a page of which nobody sees the end."""
    for table in ("labels-table", "answers-table", "clusters-table", "by-sample", "uncertain-cells"):
        lines = f"#{table} tbody"
        tab.locator(lines).evaluate(
            "body => { for (let i = 0; i < 500; i++) body.append(body.rows[0].cloneNode(true)) }"
        )
        region = tab.locator(f".wide:has(#{table})")
        assert region.bounding_box()["height"] <= 500
        heading = tab.locator(f"#{table} thead th").first
        place = heading.bounding_box()["y"]
        region.evaluate("one => one.scrollBy(0, 2000)")
        assert heading.bounding_box()["y"] == pytest.approx(place, abs=2), "its headings stay in sight"


def test_the_command_can_be_copied(tab, report):
    assert tab.locator("#code").inner_text() == report.with_name("command.txt").read_text()
    tab.get_by_role("button", name="Copy").click()
    tab.locator("#copy", has_text=re.compile("Copied|Selected")).wait_for()


# ---------------------------------------------------------------------- pages of other runs


@pytest.fixture(scope="module")
def annotator():
    return LangCellAnnotator.from_pretrained("langcell-mini")


def repeated(page: Path, cells: Path) -> ad.AnnData:
    """Runs the code on a page."""
    code = html.unescape(re.search(r'<pre id="code"[^>]*>(.*?)</pre>', page.read_text(), flags=re.DOTALL)[1])
    names: dict = {}
    code = code.replace('"cells.h5ad"', repr(str(cells))).replace("annotator.annotate(", "again = annotator.annotate(")
    exec(code, names)
    return names["again"]


@pytest.mark.long
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"error_rate": 0.2, "layer": "counts", "cluster_key": "cluster"},
        {"alpha": 0.1234567, "shortlist": 2},
        {"empty_cells": "mark", "gene_column": "called"},
        {"use_raw": True, "counts": "log1p"},
    ],
    ids=lambda options: " ".join(options) or "as it is",
)
def test_the_code_repeats_the_run(annotator, shared, tmp_path, options):
    cells = ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:30].copy()
    cells.layers["counts"] = cells.X.copy()
    cells.obs["cluster"] = ["a", "b", "c"] * 10
    cells.raw = ad.AnnData(cells.X.log1p(), var=cells.var.copy())
    if "gene_column" in options:
        cells.X[:3] = 0
        cells.var["called"] = cells.var_names
        cells.var = cells.var[["called"]].set_axis([f"x{number}" for number in range(cells.n_vars)])
    cells.write_h5ad(tmp_path / "cells.h5ad")
    annotator.annotate(
        cells, {"B cell": "", "mono": ["cell type: monocyte.", 'a "blood" cell'], "T cell": ""}, **options
    )
    again = repeated(write_report(cells, tmp_path / "report.html", lay_out(cells)), tmp_path / "cells.h5ad")
    found = [column for column in cells.obs if column.startswith("langcell_")]
    pd.testing.assert_frame_equal(again.obs[found], cells.obs[found])


@pytest.mark.long
@pytest.mark.parametrize("head", ["classes", "prototypes"])
def test_adapted_checkpoints_have_a_page(head, shared, tmp_path):
    cells = ad.read_h5ad(shared / "data" / "validation" / "zheng68k_subset_pbmc.h5ad")
    config = AdaptationConfig(head=head, epochs=1)
    adapt("langcell-mini", cells, "cell_type", shots=2, config=config).save(tmp_path / "adapter")
    cells = cells[:40].copy()
    cells.write_h5ad(tmp_path / "cells.h5ad")
    annotator = LangCellAnnotator.from_pretrained(adapter=tmp_path / "adapter")
    annotator.annotate(cells)
    genes = explain_annotated(annotator, cells, cells)
    assert genes is None
    page = write_report(cells, tmp_path / "report.html", lay_out(cells), genes=genes)
    assert "Genes were not explained in this run." in page.read_text()
    again = repeated(page, tmp_path / "cells.h5ad")
    np.testing.assert_allclose(again.obs["langcell_score"], cells.obs["langcell_score"], atol=1e-6)


def test_uncalibrated_checkpoints_have_a_page(cells, tiny_checkpoint, tmp_path):
    """Three cells, two candidates, no explained genes."""
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    annotated = annotator.annotate(cells[:3].copy(), ["B cell", "monocyte"])
    page = write_report(annotated, tmp_path / "new" / "report.html", lay_out(annotated)).read_text()
    assert "median score (not calibrated)" in page
    assert "Answers at an expected error rate" not in page
    assert "Genes were not explained in this run." in page


def test_cells_without_known_genes_have_a_page(cells, tiny_checkpoint, tmp_path):
    """First all cells of a cluster, then all cells, lack known genes."""
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    cells.obs["cluster"] = ["full"] * 8 + ["empty"] * 4
    cells.X[8:] = 0
    some = annotator.annotate(cells.copy(), ["B cell", "monocyte"], empty_cells="mark", cluster_key="cluster")
    page = write_report(some, tmp_path / "some.html", lay_out(some)).read_text()
    assert "4 cells have no known gene and no label." in page
    assert "<td>no known genes</td>" in page
    assert "nan" not in page.partition("<script")[0].lower().replace("nano", "")
    cells.X[:] = 0
    none = annotator.annotate(cells.copy(), ["B cell", "monocyte"], empty_cells="mark")
    genes = explain_annotated(annotator, cells, none)
    page = write_report(none, tmp_path / "none.html", lay_out(none), genes=genes).read_text()
    assert "No cell has a label that genes could explain." in page


@pytest.mark.parametrize(
    ("clusters", "column"),
    [("cell_type", "langcell_cluster_answer"), ("batch", "langcell_answer"), (None, "langcell_answer")],
)
def test_clusters_are_what_to_use_if_the_cells_agree_with_them(annotator, shared, tmp_path, clusters, column):
    cells = ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:200].copy()
    annotator.annotate(cells, ["B cell", "monocyte", "T cell", "NK cell"], cluster_key=clusters)
    page = write_report(cells, tmp_path / "report.html", lay_out(cells)).read_text()
    assert f'(<code>obs["{column}"]</code>)' in page


def test_bad_references_are_refused_before_anything_is_written(cells, tiny_checkpoint, tmp_path):
    annotator = LangCellAnnotator.from_pretrained(tiny_checkpoint)
    annotated = annotator.annotate(cells, ["B cell", "monocyte"])
    for reference, said in (("nope", "No column 'nope' in obs"), ("langcell_cell_type", "is the annotation itself")):
        with pytest.raises(InputError, match=said):
            write_report(annotated, tmp_path / "report.html", lay_out(annotated), reference=reference)
    del annotated.obsm["X_langcell"]
    with pytest.raises(InputError, match="annotate or embed the cells first"):
        lay_out(annotated)
    assert not (tmp_path / "report.html").exists()
