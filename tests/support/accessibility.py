# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""Whether a page can be used by everybody, as axe, which knows the rules, sees it."""

from typing import Any

from axe_playwright_python.sync_playwright import Axe


def serious_faults(tab: Any) -> list[str]:
    """Returns the serious and critical faults of an open page, each with the first element that has it."""
    found = Axe().run(tab).response["violations"]
    return [
        f"{fault['id']} ({len(fault['nodes'])} times): {fault['nodes'][0]['html'][:200]} "
        f"{fault['nodes'][0]['failureSummary']}"
        for fault in found
        if fault["impact"] in ("serious", "critical")
    ]


__all__ = ["serious_faults"]
