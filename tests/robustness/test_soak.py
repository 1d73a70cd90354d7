# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""What many visitors leave in the app: a short soak, and the committed record of a long one."""

import json

import anndata as ad
import pytest

from tests.robustness.soak import soak
from tests.support.paths import REPOSITORY

RECORD = REPOSITORY / "eval" / "results" / "app_soak.json"


def require_nothing_left(found: dict) -> None:
    """Checks that all visits went as they should, and that the app takes afterwards what it took before."""
    assert found["worked"] == found["in_turn"] + found["at_once"]
    assert found["repelled"] == found["hostile"]
    start, end = found["start"], found["end"]
    assert end["files"] == end["megabytes_of_files"] == 0
    assert (end["handles"], end["processes"]) == (start["handles"], start["processes"])
    assert end["megabytes"] < 1.2 * start["megabytes"], "what libraries keep for the next request"


@pytest.mark.e2e
def test_visitors_leave_nothing(shared, tmp_path):
    ad.read_h5ad(shared / "data" / "validation" / "pbmc_kang_ctrl.h5ad")[:30].write_h5ad(tmp_path / "cells.h5ad")
    require_nothing_left(soak(tmp_path / "cells.h5ad", in_turn=1, at_once=2))


def test_the_record_is_of_many_visitors_who_left_nothing():
    record = json.loads(RECORD.read_text())
    assert record["command"] == "python -m tests.robustness.soak --json eval/results/app_soak.json"
    assert (record["in_turn"], record["at_once"], record["hostile"]) == (20, 8, 3)
    require_nothing_left(record)
