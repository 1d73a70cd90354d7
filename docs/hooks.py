# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Links from a page to any file of the repository, such as `../eval/results/few-shot.md`. They work in the repository and
in the built guide: the build adds the linked files outside `docs/`.
"""

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

#: Folder of these files in the built guide.
FOLDER = "repository"

_LINK = re.compile(r"(?<=\]\()(?P<path>\.\./[^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the files that pages link to, and the files that those link to."""
    root = Path(config.config_file_path).parent
    asked = [(page.src_uri, page.content_string) for page in files.documentation_pages()]
    while asked:
        page, text = asked.pop()
        for found in _LINK.finditer(text):
            target = _outside(page, found["path"])
            if target is None or not (root / target).is_file() or f"{FOLDER}/{target}" in files.src_uris:
                continue  # mkdocs itself warns of a missing file.
            files.append(_added_file(target, root, config))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Rewrites links to these files to their places in the built guide."""

    def inside(found: re.Match) -> str:
        target = _outside(page.file.src_uri, found["path"])
        return found["path"] if target is None else relpath(f"{FOLDER}/{target}", dirname(page.file.src_uri) or ".")

    return _LINK.sub(inside, markdown)


def _outside(page: str, link: str) -> str | None:
    """Returns the path, from the repository's root, of a linked file outside `docs/`; none for other links."""
    path = normpath(join("docs", dirname(page), link))
    return None if path.startswith(("docs/", "../")) else path


def _added_file(target: str, root: Path, config: MkDocsConfig) -> File:
    file = File.generated(config, f"{FOLDER}/{target}", abs_src_path=str(root / target))
    file.inclusion = InclusionLevel.NOT_IN_NAV
    return file
