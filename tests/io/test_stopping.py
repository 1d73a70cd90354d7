# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Signals as exceptions."""

import os
import signal

import pytest

from modeling_langcell.io.stopping import SIGNALS, Stopped, stopping


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


def test_signals_that_are_ignored_stay_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # As under nohup.
    try:
        with stopping():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
