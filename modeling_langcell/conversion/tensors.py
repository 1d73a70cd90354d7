# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Reading the tensors of a PyTorch file without `torch.load`.

Such a file is a zip archive: a pickle that names the tensors, and their numbers. A tensor is a view of its numbers, and
a view may repeat them, so that a file of a few bytes asks for any amount of memory. Here a tensor has no more numbers
than the file has for it.
"""

import math
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..model.errors import InputError
from .pickles import UnsafePickle, read_plain_pickle

_TYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "BoolStorage": torch.bool,
}
_MAX_PICKLE_BYTES = 16 << 20
#: Tensors of a file together have at most this many times its bytes: some share theirs.
_SHARED = 4


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """
    Reads the tensors of a file that `torch.save` wrote, by their names.

    Raises:
        InputError: The file holds anything else, which is not run, or it is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            contents = _Archive(archive, path)
            tensors = read_plain_pickle(contents.pickle, contents)
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path} is not a complete PyTorch file of weights alone: its end is missing, or it was saved by a "
            "PyTorch before 1.6. Download it again, or save it with a newer PyTorch."
        ) from error
    except UnsafePickle as error:
        raise InputError(
            f"{path} is not a complete PyTorch file of weights alone: found more than numbers, none of which was run "
            f"({error}). Download it again."
        ) from error
    except Exception as error:  # Damaged bytes raise many kinds of errors.
        raise InputError(
            f"{path} is not a complete PyTorch file of weights alone: found the end missing. Download it again."
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, torch.Tensor) for value in tensors.values()):
        raise InputError(f"{path} is not a dict of tensors.")
    if sum(tensor.nbytes for tensor in tensors.values()) > _SHARED * path.stat().st_size:
        raise InputError(f"{path} names the same numbers too often: save it again without shared tensors.")
    return tensors


class _Archive:
    """
    The zip archive of a PyTorch file; an `Extension` for its pickle.

    Args:
        archive: The archive.
        path: Its file.

    Raises:
        UnsafePickle: The archive would unpack to more than its own size.
    """

    def __init__(self, archive: zipfile.ZipFile, path: Path):
        self.archive = archive
        size, entries = path.stat().st_size, archive.infolist()
        stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
        if not stored or sum(entry.file_size for entry in entries) > size:
            raise UnsafePickle("entries that are compressed, or overlap")
        (self.name,) = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
        self.folder = self.name.removesuffix("data.pkl")
        if archive.getinfo(self.name).file_size > _MAX_PICKLE_BYTES:
            raise UnsafePickle("too many values")
        if f"{self.folder}byteorder" in archive.namelist() and archive.read(f"{self.folder}byteorder") != b"little":
            raise UnsafePickle("numbers in another byte order")
        self.storages: dict[str, torch.Tensor] = {}

    @property
    def pickle(self) -> bytes:
        return self.archive.read(self.name)

    def is_allowed(self, module: str, name: str) -> bool:
        return (module, name) in {
            ("collections", "OrderedDict"),
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch._utils", "_rebuild_parameter"),
        } or (module == "torch" and name in _TYPES)

    def build(self, module: str, name: str, arguments: Any) -> Any:
        match name, arguments:
            case "OrderedDict", ():
                return {}
            case "_rebuild_parameter", (torch.Tensor() as tensor, bool(), dict()):
                return tensor
            case "_rebuild_tensor_v2", (torch.Tensor() as numbers, int(offset), tuple(size), tuple(stride), *_):
                return self._view(numbers, offset, size, stride)
        raise UnsafePickle("an object to be built")

    def load(self, reference: Any) -> torch.Tensor:
        match reference:
            case ("storage", kind, str(key), str(), int(length)) if getattr(kind, "name", None) in _TYPES:
                if key not in self.storages:
                    content = bytearray(self.archive.read(f"{self.folder}data/{key}"))
                    dtype = _TYPES[kind.name]
                    self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0)
                if len(numbers := self.storages[key]) != length:
                    raise ValueError("another number of values than stated")
                return numbers
        raise UnsafePickle("a reference to something else than numbers")

    def _view(self, numbers: torch.Tensor, offset: int, size: tuple[Any, ...], stride: tuple[Any, ...]) -> torch.Tensor:
        whole = all(type(value) is int and value >= 0 for value in (offset, *size, *stride))
        if not whole or len(size) != len(stride) or len(size) > 8:
            raise UnsafePickle("a tensor without a shape")
        count = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) if count else 0
        if count > len(numbers) or (count and last >= len(numbers)):
            raise UnsafePickle("a tensor with more values than the file has")
        return numbers.as_strided(size, stride, offset)


__all__ = ["read_tensors"]
