# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The page: what a visitor sees, and what happens on a click."""

import html
import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
from gate import PAGE
from jobs import JobFailed, Jobs, Turns, VisitorLeft
from limits import (
    ANNOTATED,
    ANNOTATED_AT_ONCE,
    ANNOTATING,
    CELLS,
    MOST_CANDIDATES,
    MOST_CELLS,
    MOST_MEGABYTES,
    MOST_WAITING,
    READ_AT_ONCE,
    READING,
    REPORT,
)
from visits import Visit, Visits

from modeling_langcell import InputError
from modeling_langcell.io.example import CELL_OPTIONS, CELL_TYPES
from modeling_langcell.ontology import human_terms, tissues

_LAYER = "layer "
_PROGRESS = gr.Progress()  # Gradio finds it among the default arguments.
#: X, unless the kind of the values is told from them and raw or a layer has the counts.
_X = "X, or where the counts are"
VALUES = {
    "told from the values": "auto",
    "raw counts": "raw",
    "corrected counts (such as SoupX's)": "corrected",
    "counts scaled by cell (such as CPM)": "normalized",
    "log-transformed counts": "log1p",
}
BLOOD = ["B cell", "natural killer cell", "CD14-positive monocyte", "CD4-positive, alpha-beta T cell"]
BLOOD += ["CD8-positive, alpha-beta T cell", "dendritic cell", "megakaryocyte"]

log = logging.getLogger("langcell.space")


class Page(gr.Blocks):
    """
    Blocks whose events name no files.

    Before Gradio calls an event's function, it hashes and copies every file that the event names in any input. A
    visitor's file is at its place already, so an event may name only the upload of its own page, by a name that is no
    path of the server; Gradio does not see it.
    """

    async def process_api(self, block_fn: Any, inputs: list[Any], *given: Any, **more: Any) -> dict[str, Any]:
        """
        Processes an event as Gradio does.

        Raises:
            gr.Error: It names a file other than the page's own.
        """
        if any(path != CELLS for path in named_files(inputs)):
            raise refusal("The file did not arrive completely, or not from this page: drop it again.")
        inputs = [None if any(named_files(value)) else value for value in inputs]
        return await super().process_api(block_fn, inputs, *given, **more)


def named_files(inputs: Any) -> Iterator[str]:
    """Yields the paths in an event's inputs at any depth: everything that Gradio would take for a file, and more."""
    left = [inputs]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield str(value["path"])
            left += value.values()
        elif isinstance(value, list | tuple):
            left += value


def refusal(said: str) -> gr.Error:
    """Returns the message to a visitor who caused an error. What looks like HTML in it is shown as text."""
    return gr.Error(html.escape(said, quote=False), duration=None, title="This does not work", print_exception=False)


class Events:
    """
    What happens on the page.

    Args:
        visits: The visitors.
        jobs: Starts the work on their cells.
    """

    def __init__(self, visits: Visits, jobs: Jobs):
        self._visits, self._jobs = visits, jobs
        self._reading, self._annotating = Turns(READ_AT_ONCE, MOST_WAITING), Turns(ANNOTATED_AT_ONCE, MOST_WAITING)

    def receive(self, upload: None, request: gr.Request) -> tuple[str, dict]:
        """Describes the file that has arrived. Returns its size in words, and its arrays as choices."""
        with self._visits.working(page_of(request)) as visit:
            cells = visit.folder / CELLS
            if not cells.is_file():
                raise InputError("The file did not arrive completely: drop it again.")
            try:
                return self._read(visit, "describe")
            except BaseException:
                cells.unlink(missing_ok=True)
                raise

    def forget(self, request: gr.Request) -> tuple[str, dict]:
        """Deletes the visitor's file."""
        self._visits.renew(page_of(request))
        return "", gr.update(choices=[_X], value=_X)

    def take_example(self, request: gr.Request) -> tuple[None, str, dict, str, list[str]]:
        """Writes the example into the visitor's folder, in place of an uploaded file, and sets how it is read."""
        with self._visits.working(page_of(request), new=True) as visit:
            said, arrays = self._read(visit, "write_example")
        values = next(name for name, counts in VALUES.items() if counts == CELL_OPTIONS["counts"])
        said += " Blood cells of Zheng et al. 2017, which come with scanpy."
        return None, said, arrays | {"value": "raw.X"}, values, sorted(CELL_TYPES.values())

    def _read(self, visit: Visit, work: str) -> tuple[str, dict]:
        with self._reading.turn(visit):
            n_cells, n_genes, arrays = self._jobs.run(visit, work, str(visit.folder), limits=READING)
        return f"{n_cells:,} cells x {n_genes:,} genes.", gr.update(choices=[_X, *arrays], value=_X)

    def annotate(
        self,
        names: list[str],
        own: str,
        tissue: str,
        array: str,
        values: str,
        errors: int | None,
        clusters: bool,
        request: gr.Request,
        progress=_PROGRESS,
    ) -> tuple[str, str]:
        """Annotates the visitor's cells. Returns HTML with links to the results, and HTML that shows the report."""
        rate = None if errors is None else errors / 100
        asked = {"labels": read_types(names, own), "tissue": tissue or None, "error_rate": rate, "cluster": clusters}
        layer = array.removeprefix(_LAYER) if array.startswith(_LAYER) else None
        options = {"use_raw": array == "raw.X", "layer": layer, "counts": VALUES[values]}
        with self._visits.working(page_of(request)) as visit:
            if not (visit.folder / CELLS).is_file():
                raise InputError(
                    "Drop an .h5ad file first, or take the example. Unused files are deleted after half an hour."
                )
            with self._annotating.turn(visit, lambda what: progress(0, what)):
                self._jobs.run(visit, "annotate", str(visit.folder), asked, options, limits=ANNOTATING, said=progress)
        at = f"results/{visit.token}"
        links = (
            f'<p><a href="{at}/{ANNOTATED}" download>Download the annotated .h5ad</a> · '
            f'<a href="{at}/{REPORT}" download>Download this report</a></p>'
        )
        page = f'<iframe title="Report" src="{at}/{REPORT}" sandbox="allow-scripts allow-downloads"></iframe>'
        return links, page

    def leave(self, request: gr.Request) -> None:
        """Deletes a visitor's files when the page is closed."""
        self._visits.end(page_of(request))

    def with_messages(self, act: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps an event so that an error tells its visitor what to do, or that it is not the visitor's fault."""

        @wraps(act)
        def acting(*given: Any, **more: Any) -> Any:
            try:
                return act(*given, **more)
            except InputError as error:
                raise refusal(self._visits.without_paths(str(error))) from error
            except VisitorLeft as error:
                raise refusal("This page was closed.") from error
            except Exception as error:
                if not isinstance(error, JobFailed):  # The process of a job has logged why it failed.
                    log.exception("%s failed", act.__name__)
                said = "Something went wrong here that is not your fault. Your file is deleted when you leave the page."
                raise gr.Error(said, duration=None, title="Sorry", print_exception=False) from error

        return acting


def page_of(request: gr.Request) -> str:
    """Returns the name of the page that sent an event, which the gate has checked."""
    return str(request.headers[PAGE])


def read_types(names: list[str] | None, own: str | None) -> dict[str, str] | None:
    """
    Returns the labels that were picked, and those that the visitor described, one `label: description` per line; None
    if there are none.
    """
    labels = dict.fromkeys(map(str, names or []), "")
    for line in filter(None, map(str.strip, (own or "").splitlines())):
        label, colon, text = (part.strip() for part in line.partition(":"))
        if not (label and colon and text):
            raise InputError(f"{line!r} is not a label with its description: write 'label: description'.")
        if label in labels:
            raise InputError(f"The label {label!r} was given twice: remove one of them.")
        labels[label] = text
    if len(labels) > MOST_CANDIDATES:
        raise InputError(f"{len(labels)} candidates are more than this app takes: name at most {MOST_CANDIDATES}.")
    return labels or None


_ABOUT = f"""# LangCell
Label single cells by free text, with no training labels. Drop an `.h5ad` with counts (up to {MOST_MEGABYTES} MB and
{MOST_CELLS:,} cells), or take the example, and name the types that may be among them. Nobody else can see your file.
It is deleted when you close the page, or after half an hour without use.
"""


def build_page(events: Events, rates: list[int]) -> gr.Blocks:
    """
    Builds the page.

    Args:
        events: What happens on it.
        rates: The wrong answers per 100 that a visitor may accept; none without a calibrated checkpoint.
    """
    with Page(title="LangCell") as page:
        gr.Markdown(_ABOUT)
        with gr.Row():
            with gr.Column():
                upload = gr.File(label="Cells (.h5ad)", file_types=[".h5ad"], height=140)
                example = gr.Button("Take the example: 700 blood cells", size="sm")
                said = gr.Markdown()
                array = gr.Dropdown([_X], value=_X, label="Array with the counts")
                values = gr.Dropdown(list(VALUES), value=next(iter(VALUES)), label="Values in this array")
                usual = 10 if 10 in rates else next(iter(rates), None)
                errors = gr.Dropdown(rates, value=usual, label="Accepted wrong answers per 100", visible=bool(rates))
            with gr.Column():
                terms = sorted(term.name for term in human_terms())
                about = "Names as you say them (NK, Tregs, AT2), or ids of the Cell Ontology."
                names = gr.Dropdown(
                    terms, value=BLOOD, multiselect=True, allow_custom_value=True, label="Types of cells", info=about
                )
                own = gr.Textbox(
                    label="Types in your own words",
                    info="One label: description per line.",
                    lines=3,
                    placeholder="exhausted T cell: cell type: T cell with PDCD1, LAG3 and TOX after long stimulation.",
                )
                tissue = gr.Dropdown(
                    ["", *tissues()],
                    value="",
                    label="Tissue",
                    info="Without types, those of this tissue are the candidates. Empty: the cells' markers tell it.",
                )
                clusters = gr.Checkbox(label="Cluster the cells, and give each cluster one label")
        run = gr.Button("Annotate", variant="primary")
        links, report = gr.HTML(), gr.HTML()

        # Visitors wait for their turn in `Turns`, which says what they wait for.
        usually: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        upload.upload(events.with_messages(events.receive), upload, [said, array], **usually)
        upload.clear(events.with_messages(events.forget), None, [said, array], **usually)
        example.click(events.with_messages(events.take_example), None, [upload, said, array, values, names], **usually)
        asked = [names, own, tissue, array, values, errors, clusters]
        run.click(events.with_messages(events.annotate), asked, [links, report], **usually)
        page.unload(events.leave)
    return page


__all__ = ["BLOOD", "VALUES", "Events", "Page", "build_page", "named_files", "read_types", "refusal"]
