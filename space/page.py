# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The page: what a visitor sees, and what happens on a click."""

import html
import logging
from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import gradio as gr
from candidates import read_types, type_choices, types_of
from gate import PAGE
from jobs import JobFailed, Jobs, Turns, VisitorLeft
from limits import (
    ANNOTATED,
    ANNOTATED_AT_ONCE,
    ANNOTATING,
    CELLS,
    MOST_CELLS,
    MOST_MEGABYTES,
    MOST_WAITING,
    READ_AT_ONCE,
    READING,
    REPORT,
    TABLE,
)
from visits import Visit, Visits
from words import ARRAY, ERRORS, KIND, LAYER, TISSUE, TYPES, VALUES, X, in_words

from modeling_langcell import InputError
from modeling_langcell.io.example import CELL_OPTIONS, MAIN_TYPE_COLUMN, MAIN_TYPES
from modeling_langcell.ontology import tissues

_PROGRESS = gr.Progress()  # Gradio finds it among the default arguments.
_NO_COLUMN = ""

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

    def receive(self, upload: None, request: gr.Request) -> tuple:
        """Describes the file that has arrived: in words, and as choices of arrays and columns."""
        with self._visits.working(page_of(request)) as visit:
            cells = visit.folder / CELLS
            if not cells.is_file():
                raise InputError("The file did not arrive completely: drop it again.")
            try:
                return self._read(visit, "describe")
            except BaseException:
                cells.unlink(missing_ok=True)
                raise

    def forget(self, request: gr.Request) -> tuple:
        """Deletes the visitor's file."""
        self._visits.renew(page_of(request))
        nothing = gr.update(choices=[_NO_COLUMN], value=_NO_COLUMN)
        return "", gr.update(choices=[X], value=X), nothing, nothing

    def take_example(self, request: gr.Request) -> tuple:
        """Writes the example into the visitor's folder, in place of an uploaded file, and sets how it is read."""
        with self._visits.working(page_of(request), new=True) as visit:
            visit.sample = "blood_example"
            said, arrays, known, samples = self._read(visit, "write_example")
        values = next(name for name, counts in VALUES.items() if counts == CELL_OPTIONS["counts"])
        said += " Blood cells of Zheng et al. 2017, which come with scanpy."
        known = known | {"value": MAIN_TYPE_COLUMN}
        return None, said, arrays | {"value": "raw.X"}, known, samples, values, sorted({*MAIN_TYPES.values()})

    def _read(self, visit: Visit, work: str) -> tuple[str, dict, dict, dict]:
        with self._reading.turn(visit):
            found = self._jobs.run(visit, work, str(visit.folder), limits=READING)
        columns = gr.update(choices=[_NO_COLUMN, *found["columns"]], value=_NO_COLUMN)
        said = f"{found['cells']:,} cells x {found['genes']:,} genes. {html.escape(found['counts'])}"
        return said, gr.update(choices=[X, *found["arrays"]], value=X), columns, columns

    def choose_tissue(self, tissue: str, request: gr.Request) -> list[str]:
        """Returns the types of a tissue as candidates."""
        return types_of(tissue) if tissue else []

    def annotate(
        self,
        names: list[str],
        described: str,
        marked: str,
        tissue: str,
        clusters: bool,
        known: str,
        samples: str,
        array: str,
        values: str,
        errors: int | None,
        request: gr.Request,
        progress=_PROGRESS,
    ) -> tuple[str, str]:
        """Annotates the visitor's cells. Returns HTML with links to the results, and HTML that shows the report."""
        rate, types = None if errors is None else errors / 100, read_types(names, described, marked)
        own_tissue = tissue if tissue and types is None else None
        asked = {"labels": types, "error_rate": rate, "cluster": clusters, "tissue": own_tissue}
        with self._visits.working(page_of(request)) as visit:
            require_cells(visit)
            with self._annotating.turn(visit, lambda what: progress(0, what)):
                given = (str(visit.folder), visit.sample, asked, reading(array, values), known or None, samples or None)
                said = self._jobs.run(visit, "annotate", *given, limits=ANNOTATING, said=progress)
        at = f"results/{visit.token}"
        links = (
            f'<p><a href="{at}/{ANNOTATED}" download>Download the annotated .h5ad</a> · '
            f'<a href="{at}/{REPORT}" download>Download this report</a> · '
            f'<a href="{at}/{TABLE}" download>Download the table (.xlsx)</a></p>'
        )
        links += f"<p>{html.escape(said)}</p>" if said else ""
        page = f'<iframe title="Report" src="{at}/{REPORT}" sandbox="allow-scripts allow-downloads"></iframe>'
        return links, page

    def search(self, text: str, array: str, values: str, request: gr.Request, progress=_PROGRESS) -> str:
        """Finds the visitor's cells that a text describes. Returns them as HTML."""
        if not (text or "").strip():
            raise InputError("Write what the cells should be like: a type, what they do, or genes that they express.")
        with self._visits.working(page_of(request)) as visit:
            require_cells(visit)
            with self._annotating.turn(visit, lambda what: progress(0, what)):
                given = (str(visit.folder), text, reading(array, values))
                found = self._jobs.run(visit, "search", *given, limits=ANNOTATING, said=progress)
        return found_cells(found)

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
                raise refusal(self._visits.without_paths(in_words(error))) from error
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


def require_cells(visit: Visit) -> None:
    """
    Checks that a visitor has cells.

    Raises:
        InputError: There are none.
    """
    if not (visit.folder / CELLS).is_file():
        raise InputError("Drop an .h5ad file first, or take the example. Unused files are deleted after half an hour.")


def reading(array: str, values: str) -> dict[str, Any]:
    """Returns how the cells are read, as arguments of the package."""
    layer = array.removeprefix(LAYER) if array.startswith(LAYER) else None
    return {"use_raw": array == "raw.X", "layer": layer, "counts": VALUES[values]}


def found_cells(found: dict[str, Any]) -> str:
    """Returns what a search found as HTML."""
    said = "The best cells come first."
    if found["fitting"]:
        said = (
            f"{found['fitting']:,} of {found['cells']:,} cells are described by this more probably than not (a fit of "
            f"0.5 or more). {said}"
        )
    elif found["fitting"] == 0:
        said = f"No cell reaches a fit of 0.5, as is usual for texts on what cells do, not on what they are. {said}"
    names = list(found["found"][0]) if found["found"] else []
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = "".join(f"<tr>{''.join(map(_table_cell, row.values()))}</tr>" for row in found["found"])
    return f"<p>{said}</p><table class='found'><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _table_cell(value: Any) -> str:
    return f"<td>{value:.3f}</td>" if isinstance(value, float) else f"<td>{html.escape(str(value))}</td>"


_ABOUT = f"""# LangCell
Label single cells by free text, with no training labels. Drop an `.h5ad` with counts (up to {MOST_MEGABYTES} MB and
{MOST_CELLS:,} cells), or take the example. Nobody else can see your file. It is deleted when you close the page, or
after half an hour without use.
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
                with gr.Accordion("How the cells are read", open=False):
                    array = gr.Dropdown([X], value=X, label=ARRAY)
                    values = gr.Dropdown(list(VALUES), value=next(iter(VALUES)), label=KIND)
                with gr.Accordion("Known labels and samples", open=False):
                    known = _columns("Known labels", "The report compares the results with them.")
                    samples = _columns("Samples", "The report shows what each sample, donor or condition consists of.")
            with gr.Column():
                about = "Its types become the candidates below. Empty: the cells' markers tell it."
                tissue = gr.Dropdown(["", *tissues()], value="", label=TISSUE, info=about)
                about = "Names as you say them (NK, Tregs, AT2). None: the types that are usual in the tissue."
                names = gr.Dropdown(
                    type_choices(),
                    value=[],
                    multiselect=True,
                    allow_custom_value=True,
                    label=TYPES,
                    info=about,
                    elem_id="types",
                )
                with gr.Accordion("Types in your own words or by your own markers", open=False):
                    described = gr.Textbox(
                        label="Types in your own words",
                        info="One label: description per line.",
                        lines=2,
                        placeholder="exhausted T cell: T cell with PDCD1, LAG3 and TOX after long stimulation.",
                    )
                    marked = gr.Textbox(
                        label="Types by your own markers",
                        info="One label: genes per line, also for types that are named above.",
                        lines=2,
                        placeholder="plasmablast: MZB1, JCHAIN, XBP1",
                    )
                clusters = gr.Checkbox(label="Cluster the cells, and give each cluster one label")
                usual = 10 if 10 in rates else next(iter(rates), None)
                errors = gr.Dropdown(rates, value=usual, label=ERRORS, visible=bool(rates))
        with gr.Tab("Annotate"):
            run = gr.Button("Annotate the cells", variant="primary")
            links, report = gr.HTML(), gr.HTML()
        with gr.Tab("Find cells by text"):
            text = gr.Textbox(
                label="What the cells should be like",
                placeholder="NK cell; or: cells that kill virus-infected cells; or: cells that express PPBP and PF4",
            )
            find = gr.Button("Find", variant="primary")
            found = gr.HTML()

        # Visitors wait for their turn in `Turns`, which says what they wait for.
        usually: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None}
        described_file = [said, array, known, samples]
        upload.upload(events.with_messages(events.receive), upload, described_file, **usually)
        upload.clear(events.with_messages(events.forget), None, described_file, **usually)
        taken = [upload, *described_file, values, names]
        example.click(events.with_messages(events.take_example), None, taken, **usually)
        tissue.change(events.with_messages(events.choose_tissue), tissue, names, **usually)
        asked = [names, described, marked, tissue, clusters, known, samples, array, values, errors]
        run.click(events.with_messages(events.annotate), asked, [links, report], show_progress_on=links, **usually)
        for act in (find.click, text.submit):
            act(events.with_messages(events.search), [text, array, values], found, **usually)
        page.unload(events.leave)
    return page


def _columns(label: str, info: str) -> gr.Dropdown:
    """Returns a choice of a column of the cells, none at first."""
    return gr.Dropdown([_NO_COLUMN], value=_NO_COLUMN, label=label, info=info)


__all__ = ["Events", "Page", "build_page", "named_files", "refusal"]
