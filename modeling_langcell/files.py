# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Files that appear whole or not at all."""

import os
from pathlib import Path
from uuid import uuid4


def write_whole(path: str | Path, content: bytes) -> None:
    """
    Writes a file aside and renames it: whoever looks sees nothing or all of it, and it outlives a crash of the machine.
    Its folder is made if need be.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid4().hex}")
    with open(aside, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


__all__ = ["write_whole"]
