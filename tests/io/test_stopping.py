# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Signals as exceptions."""

import os
import signal
import threading
import time
import weakref

import pytest

from modeling_langcell.io import owners
from modeling_langcell.io.atomic import atomic_file, atomic_folder
from modeling_langcell.io.launch import sole_writer
from modeling_langcell.io.stopping import SIGNALS, Stopped, stopping, undisturbed


@pytest.fixture(autouse=True)
def heard():
    """Signals have their usual effect, also where the tests run in the background, which ignores some."""
    before = {number: signal.signal(number, signal.default_int_handler) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_an_exception_with_its_exit_code(number):
    before = signal.getsignal(number)
    cleaned = []

    def stop_twice():
        try:
            os.kill(os.getpid(), number)
        finally:
            os.kill(os.getpid(), number)  # Another one does not disturb the cleaning up.
            cleaned.append(True)

    with pytest.raises(KeyboardInterrupt) as stopped, stopping():
        stop_twice()
    assert isinstance(stopped.value, Stopped)
    assert stopped.value.exit_code == 128 + number
    assert str(stopped.value) == f"Stopped by {'Ctrl-C' if number == signal.SIGINT else number.name}"
    assert cleaned
    assert signal.getsignal(number) == before


class Referred:
    """An object with a destructor."""

    at_the_end = staticmethod(lambda: None)

    def __del__(self):
        self.at_the_end()


def in_a_destructor(call):
    referred = Referred()
    referred.at_the_end = call


def in_the_callback_of_a_weak_reference(call):
    referred = Referred()
    reference = weakref.ref(referred, lambda _: call())
    del referred
    assert reference() is None


@pytest.mark.parametrize("drop", [in_a_destructor, in_the_callback_of_a_weak_reference])
@pytest.mark.parametrize("times", [1, 3])
def test_a_signal_is_not_lost_where_python_drops_exceptions(drop, times, capsys):
    came = []

    def be_stopped():
        came.append(True)
        os.kill(os.getpid(), signal.SIGTERM)

    def work():
        for _ in range(times):
            drop(be_stopped)
        time.sleep(10)

    with pytest.raises(Stopped) as stopped, stopping():
        work()
    assert stopped.value.number == signal.SIGTERM
    assert came
    assert capsys.readouterr().err == ""


def test_a_lost_signal_does_not_come_again_after_the_work(monkeypatch):
    monkeypatch.setattr("modeling_langcell.io.stopping._AGAIN", 10)
    before = threading.active_count()
    with stopping():
        in_a_destructor(lambda: os.kill(os.getpid(), signal.SIGINT))
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_other_dropped_exceptions_are_shown_as_before(monkeypatch):
    shown = []
    monkeypatch.setattr("sys.unraisablehook", shown.append)
    with stopping():
        in_a_destructor(lambda: 1 / 0)
    assert [dropped.exc_type for dropped in shown] == [ZeroDivisionError]


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As under nohup.
    try:
        with stopping():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_steps_that_belong_together_are_finished_first():
    done = []

    def work():
        with stopping():
            with undisturbed():
                os.kill(os.getpid(), signal.SIGHUP)
                done.append("the rest")
            done.append("too much")

    with pytest.raises(Stopped) as stopped:
        work()
    assert stopped.value.number == signal.SIGHUP
    assert done == ["the rest"]


@pytest.mark.parametrize(
    "write", [lambda path: sole_writer(path), lambda path: atomic_file(path), lambda path: atomic_folder(path)]
)
def test_a_lock_that_is_just_made_is_deleted(tmp_path, monkeypatch, write):
    take = owners._take

    def interrupted(*arguments):
        taken = take(*arguments)
        os.kill(os.getpid(), signal.SIGHUP)
        return taken

    monkeypatch.setattr(owners, "_take", interrupted)
    with pytest.raises(Stopped), stopping(), write(tmp_path / "new" / "out"):
        pytest.fail("the work began")
    assert not list(tmp_path.iterdir())
