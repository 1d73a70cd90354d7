# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A page may link to any file of the repository, as `../eval/results/few-shot.md`, and the link holds wherever the page is
read: where the guide is built, what is linked to outside `docs/` becomes a part of it.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

#: Where such files stand in the guide.
FOLDER = "repository"

_LINK = re.compile(r"(?<=\]\()(?P<path>\.\./[^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to, and those that these link to."""
    root = Path(config.config_file_path).parent
    asked = [(page.src_uri, page.content_string) for page in files.documentation_pages()]
    while asked:
        page, text = asked.pop()
        for found in _LINK.finditer(text):
            target = _outside(page, found["path"])
            if target is None or not (root / target).is_file() or f"{FOLDER}/{target}" in files.src_uris:
                continue  # What is not there mkdocs says itself.
            files.append(_taken_in(target, root, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lets links to such files point to where they stand in the guide."""

    def inside(found: re.Match) -> str:
        target = _outside(page.file.src_uri, found["path"])
        return found["path"] if target is None else relpath(f"{FOLDER}/{target}", dirname(page.file.src_uri) or ".")

    return _LINK.sub(inside, markdown)


def _outside(page: str, link: str) -> str | None:
    """The path, from the repository's root, of what a page links to outside `docs/`."""
    path = normpath(join("docs", dirname(page), link))
    return None if path.startswith(("docs/", "../")) else path


def _taken_in(target: str, root: Path, config: MkDocsConfig) -> File:
    file = File.generated(config, f"{FOLDER}/{target}", abs_src_path=str(root / target))
    file.inclusion = InclusionLevel.NOT_IN_NAV
    return file
