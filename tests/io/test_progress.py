# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Progress: a bar where it can move, and lines in logs and pipes."""

import io

import pytest
from rich.console import Console
from rich.progress import Progress

from modeling_langcell.io import progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds(clock, capsys):
    with progress.progress_bar() as bar:
        bar.get_time = lambda: clock[0]
        task = bar.add_task("Cells", total=2000)
        for seconds in range(1, 21):
            clock[0] = seconds
            bar.advance(task, 50)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == ["Cells: 500 of 2,000 (25%), 30 s left", "Cells: 1,000 of 2,000 (50%), 20 s left"]


def test_work_that_is_tracked_gets_lines_too(clock, capsys):
    with progress.progress_bar() as bar:
        for _ in bar.track(range(4), description="Sources"):
            clock[0] += 11
    assert "Sources: 2 of 4 (50%)" in capsys.readouterr().err


@pytest.mark.parametrize("shown", [True, False])
def test_short_work_and_other_processes_are_silent(clock, capsys, shown):
    with progress.progress_bar(shown) as bar:
        task = bar.add_task("Cells", total=10)
        clock[0] = 5 if shown else 50
        bar.update(task, completed=10)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_and_a_notebook_get_a_bar(monkeypatch):
    for options in ({"force_terminal": True}, {"force_jupyter": True}):
        monkeypatch.setattr(progress, "Console", lambda options=options, **_: Console(file=io.StringIO(), **options))
        monkeypatch.setattr(progress, "find_spec", lambda name: name == "ipywidgets")
        assert type(progress.progress_bar()) is Progress
        assert type(progress.progress_bar(shown=False)) is progress.ProgressLines


def test_lines_are_printable(clock, capsys):
    with progress.progress_bar() as bar:
        task = bar.add_task("a\x1b[2J\nb", total=None)
        clock[0] = 99
        bar.advance(task)
    assert capsys.readouterr().err == "a\\u001b[2J\\nb: 1\n"
