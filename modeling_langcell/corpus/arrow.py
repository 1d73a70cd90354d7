# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
The Arrow files of a corpus, and their checks before anything reads them.

Arrow trusts the positions in a file: one that points outside it ends the process, or reads memory of something else.
"""

import hashlib
import struct
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..model.errors import InputError, reason_of
from .sources import ASPECTS

_IDS = (pa.list_(pa.uint16()), pa.list_(pa.uint32()))
_TEXT, _COUNTS = (pa.string(),), (pa.list_(pa.float32()),)
#: The types that the columns of a shard may have.
SHARD_COLUMNS = {"token_ids": _IDS, "counts": _COUNTS, "length": (pa.uint16(),), "study": _TEXT} | dict.fromkeys(
    ASPECTS, _TEXT
)
PANEL_COLUMNS = {"source": _TEXT, "study": _TEXT, "token_ids": (pa.list_(pa.uint32()),)}
_MAX_METADATA = 1 << 20


def read_table(path: Path, columns: Mapping[str, Collection[pa.DataType]]) -> pa.Table:
    """
    Reads a table from an Arrow stream, on disk, and checks every position in it.

    Args:
        path: The file.
        columns: The types that each column may have.

    Raises:
        InputError: The file is damaged, compressed, or a table of something else.
    """
    try:
        with pa.memory_map(str(path)) as file:
            _require_plain(file, path)
            file.seek(0)
            with pa.ipc.open_stream(file) as stream:
                schema = stream.schema
                if schema.names != [*columns] or any(schema.field(name).type not in columns[name] for name in columns):
                    raise InputError(f"{path} has other columns than a corpus: build the corpus again.")
                if not {*(schema.metadata or ())} <= {b"left_out"}:
                    raise InputError(f"{path} has metadata of something else: build the corpus again.")
                table = stream.read_all()
        table.validate(full=True)
    except (OSError, pa.ArrowException, struct.error, IndexError) as error:
        raise InputError(f"{path} is damaged: {reason_of(error)}. Use an intact copy, or build it again.") from error
    return table


def require_intact_shard(path: Path, cells: int, sha256: str, n_ids: int) -> None:
    """
    Checks a shard: its checksum, its positions, and that each cell is `<cls>` and genes of the vocabulary.

    Args:
        path: The file.
        cells: Number of its cells.
        sha256: Checksum of the file.
        n_ids: Number of ids of the vocabulary.

    Raises:
        InputError: The file is damaged, or is not what was recorded.
    """
    require_checksum(path, sha256)

    def require(condition: object) -> None:
        if not condition:
            raise InputError(f"{path} holds cells that are no lists of their genes: build the corpus again.")

    table = read_table(path, SHARD_COLUMNS)
    require(table.num_rows == cells)
    require(not any(table[name].null_count for name in ("token_ids", "length", "study")))
    for batch in table.to_batches():
        ids, counts = batch["token_ids"], batch["counts"]
        lengths = ids.value_lengths().to_numpy()
        values = ids.flatten()
        require(not values.null_count and (lengths > 0).all())
        tokens = values.to_numpy()
        starts = np.cumsum(lengths) - lengths
        require((tokens[starts] == n_ids - 1).all())
        genes = np.delete(tokens, starts)
        require(not len(genes) or (genes.min() > 1 and genes.max() < n_ids - 1))
        require((batch["length"].to_numpy() <= lengths).all())
        with_counts = pc.is_valid(counts).to_numpy(zero_copy_only=False)
        require((counts.drop_null().value_lengths().to_numpy() == lengths[with_counts] - 1).all())
        numbers = counts.flatten()
        require(not numbers.null_count and (numbers.to_numpy() >= 0).all() and np.isfinite(numbers.to_numpy()).all())


def require_checksum(path: Path, sha256: str) -> None:
    """
    Checks the checksum of a file.

    Raises:
        InputError: There is no such file, or it has another checksum.
    """
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason_of(error)}. Build the corpus again.") from error
    if digest.hexdigest() != sha256:
        raise InputError(
            f"{path} is not the file that the corpus was built with: its checksum differs. Use an intact copy, or "
            "build the corpus again."
        )


def _require_plain(file: pa.NativeFile, path: Path) -> None:
    """
    Checks that the record batches of a stream are not compressed: a compressed one may unpack to any size. Arrow does
    not offer this field, the fourth of the flatbuffers table `RecordBatch`.
    """
    messages = pa.ipc.MessageReader.open_stream(file)
    while (message := _next(messages)) is not None:
        if message.type == "record batch":
            if len(metadata := memoryview(message.metadata)) > _MAX_METADATA:
                raise InputError(f"{path} is damaged: a part of it is described at length. Build the corpus again.")
            header = _field(metadata, struct.unpack_from("<I", metadata)[0], 2)
            header += struct.unpack_from("<I", metadata, header)[0]
            if _field(metadata, header, 3):
                raise InputError(f"{path} is compressed, which no corpus is: build the corpus again.")


def _next(messages: pa.ipc.MessageReader) -> pa.ipc.Message | None:
    try:
        return messages.read_next_message()
    except StopIteration:
        return None


def _field(buffer: memoryview, table: int, number: int) -> int:
    """Returns the place of a field of a flatbuffers table; 0 if the table has no such field."""
    vtable = table - struct.unpack_from("<i", buffer, table)[0]
    if struct.unpack_from("<H", buffer, vtable)[0] < 6 + 2 * number:
        return 0
    place = struct.unpack_from("<H", buffer, vtable + 4 + 2 * number)[0]
    return table + place if place else 0


__all__ = ["PANEL_COLUMNS", "SHARD_COLUMNS", "read_table", "require_checksum", "require_intact_shard"]
