# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""All hostile and unusual inputs of the table."""

from pathlib import Path

from tests.robustness import hostile_outputs, hostile_runs, hostile_supplies
from tests.robustness.hostile_inputs import Attempt, HostileInputs


def all_attempts(data: Path, reference: Path) -> list[Attempt]:
    """Returns all attempts; the arguments are those of `HostileInputs`."""
    inputs = HostileInputs(data, reference)
    modules = (hostile_outputs, hostile_runs, hostile_supplies)
    return [*inputs.attempts(), *(attempt for module in modules for attempt in module.attempts(inputs))]


__all__ = ["all_attempts"]
