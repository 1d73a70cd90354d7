# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Limits of the app, and the names of a visitor's files."""

from dataclasses import dataclass

CELLS, EMBEDDED = "cells.h5ad", "embedded.h5ad"
#: The files that a visitor takes away.
ANNOTATED, REPORT, TABLE = "annotated.h5ad", "report.html", "table.xlsx"

#: An uploaded file, its cells and genes, and the types that a visitor names.
MOST_MEGABYTES, MOST_CELLS, MOST_GENES, MOST_CANDIDATES = 200, 20_000, 100_000, 100
#: Bytes of an unpacked file: of its tables, which are read as a whole, and in all. Number of its parts.
MOST_IN_TABLES, MOST_IN_ALL, MOST_PARTS = 200 * 2**20, 8 * 2**30, 10_000
#: Bytes of any other request.
MOST_ASKED = 2**18
#: Visitors with files, bytes of all their files, visitors who wait, and open connections.
MOST_VISITORS, MOST_BYTES, MOST_WAITING, MOST_CONNECTIONS = 100, 2**32, 20, 400
#: Files that are read, and annotations that are made, at the same time.
READ_AT_ONCE, ANNOTATED_AT_ONCE = 2, 1
#: Seconds until the files of an open but unused page are deleted.
KEEP = 30 * 60


@dataclass(frozen=True)
class Limits:
    """
    What a process that works for a visitor may take.

    Args:
        seconds: Time from start to end.
        memory: Bytes of memory beyond what the process starts with.
        file: Bytes of each file that it writes.
    """

    seconds: float
    memory: int
    file: int


READING = Limits(seconds=120, memory=2**30, file=50 * 2**20)
ANNOTATING = Limits(seconds=30 * 60, memory=2**32, file=2 * MOST_MEGABYTES * 2**20)
