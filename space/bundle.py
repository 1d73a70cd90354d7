# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Makes a folder that is a Space of Hugging Face as it stands: the app, and the package in a file of its own.

    pip install build
    python space/bundle.py FOLDER

Push the folder to a Space (`hf upload OWNER/NAME FOLDER --repo-type space`), build its `Dockerfile`, or install its
`requirements.txt` and run `python app.py` in it.
"""

import shutil
import subprocess
import sys
from pathlib import Path

_SPACE = Path(__file__).resolve().parent
_NOT_SERVED = ("bundle.py", "__pycache__")


def bundle(folder: Path) -> Path:
    """
    Makes the folder.

    Args:
        folder: A folder that does not exist.

    Returns:
        The folder.

    Raises:
        FileExistsError: It exists.
        CalledProcessError: The package cannot be built.
    """
    shutil.copytree(_SPACE, folder, ignore=shutil.ignore_patterns(*_NOT_SERVED))
    # The wheel is built from the source distribution, so that nothing that a checkout holds besides comes along.
    subprocess.run([sys.executable, "-m", "build", "--outdir", folder, _SPACE.parent], check=True)
    for source in folder.glob("*.tar.gz"):
        source.unlink()
    (wheel,) = folder.glob("*.whl")
    requirements = folder / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("modeling-langcell", f"./{wheel.name}"))
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    print(f"Space: {bundle(Path(sys.argv[1]))}")
