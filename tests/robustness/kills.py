# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Kills commands at random moments, runs each again until it succeeds, and compares what it made with the result of a run
without a kill. Nothing else may be left, neither beside the output nor among the temporary files.

    python -m tests.robustness.kills --json eval/results/kills.json
"""

import os
import random
import signal
import subprocess
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from modeling_langcell.eval.record import write_record
from tests.robustness.small_runs import REPOSITORY_NAME, SmallRun, SmallRuns, contents, listing
from tests.support.commands import link_cache
from tests.support.hub_stand_in import HubStandIn

_SECONDS = 300


class Killer:
    """
    Kills commands, each after a random share of its usual time.

    Args:
        folder: An empty folder.
        hub: The stand-in for the Hub.
        seed: Seed of the moments.
    """

    def __init__(self, folder: Path, hub: HubStandIn, seed: int = 0):
        self.folder, self.hub, self.seed = folder, hub, seed
        (folder / "inputs").mkdir()
        self.runs = {run.name: run for run in SmallRuns(folder / "inputs", link_cache(folder / "home"), hub.url)}
        self._unbroken: dict[str, tuple[float, Any]] = {}

    def kill(self, name: str, number: int) -> dict[str, Any]:
        """Kills a command once, and returns the row of the table."""
        run = self.runs[name]
        seconds, expected = self.unbroken(name)
        share = random.Random(f"{self.seed} {name} {number}").random()
        place = self._place(f"{name}-{number}")
        killed, _, errors = self._finish(run, place, kill_after=share * seconds)
        left_by_kill = sorted(listing(place / "out") | listing(place / "tmp"))
        code, again = killed, 0
        found = self._state(place)
        while code != 0 and again < 3:
            code, _, errors = self._finish(run, place)
            again += 1
            found = self._state(place)
            if code != 0 and "already" in errors and found["out"] == expected["out"]:
                code = 0  # The kill came when all was done, but for leftovers, which this run removed.
        left = {
            where: sorted(found[where].keys() ^ expected[where].keys()) if where == "out" else sorted(found[where])
            for where in ("out", "tmp")
        }
        changed = [path for path, held in expected["out"].items() if found["out"].get(path) != held]
        row = {
            "command": name,
            "killed_at": round(share, 3),
            "ended_by": "SIGKILL" if killed == -signal.SIGKILL else killed,
            "paths_left_by_the_kill": len(left_by_kill),
            "runs_until_success": again,
            "left": left["out"] + left["tmp"],
            "same_result": code == 0 and found["out"] == expected["out"] and found["hub"] == expected["hub"],
        }
        return (
            row
            | {"as_it_should": row["same_result"] and not row["left"] and (again <= 1)}
            | ({"changed": changed} if changed else {})
            | ({} if code == 0 else {"said": errors[-500:]})
        )

    def unbroken(self, name: str) -> tuple[float, Any]:
        """Returns the seconds that a command takes without a kill, and what it makes."""
        if name not in self._unbroken:
            for number in range(2):  # The first of them imports what the others then have.
                place = self._place(f"{name}-unbroken-{number}")
                started = time.monotonic()
                code, said, errors = self._finish(self.runs[name], place)
                assert code == 0, f"{name}: {said}{errors}"
                self._unbroken[name] = time.monotonic() - started, self._state(place)
        return self._unbroken[name]

    def _place(self, name: str) -> Path:
        self.hub.reset()
        for part in ("out", "tmp"):
            (self.folder / name / part).mkdir(parents=True)
        # Every run of a command is given the same path, which some results name.
        link = self.folder / "place"
        link.unlink(missing_ok=True)
        link.symlink_to(self.folder / name)
        return self.folder / name

    def _finish(self, run: SmallRun, place: Path, kill_after: float | None = None) -> tuple[int, str, str]:
        """Runs a command to its end, or kills its processes after some seconds; returns exit code, stdout, stderr."""
        link = self.folder / "place"
        process = run.start(link / "out", link / "tmp", self.folder)
        if kill_after is not None:
            try:
                process.wait(max(kill_after, 0.0001))
            except subprocess.TimeoutExpired:
                os.kill(process.pid, signal.SIGKILL)
        printed, errors = process.communicate(timeout=_SECONDS)
        return process.returncode, printed, errors

    def _state(self, place: Path) -> dict[str, Any]:
        published = self.hub.repositories.get(REPOSITORY_NAME)
        temporary = {path for path in listing(place / "tmp") if "torchinductor" not in path}
        return {
            "out": contents(place / "out"),
            "tmp": temporary,
            "hub": None if published is None else (len(published.commits), dict(published)),
        }


def main(
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the table.")] = None,
    kills: Annotated[int, typer.Option(help="Number of kills of each command.", min=1)] = 9,
    seed: Annotated[int, typer.Option(help="Seed of the moments.")] = 0,
    only: Annotated[str, typer.Option(help="Kill only the commands whose name contains this text.")] = "",
) -> None:
    """Kill every command at random moments, and exit with 1 if any kill changes or leaves something."""
    os.environ |= {"OMP_NUM_THREADS": "1"}
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        killer = Killer(folder, opened.enter_context(HubStandIn()), seed)
        rows = []
        for name in killer.runs:
            for number in range(kills if only in name else 0):
                rows.append(killer.kill(name, number))
                verdict = "" if rows[-1]["as_it_should"] else "WRONG "
                typer.echo(f"{verdict}{rows[-1]}")
    wrong = sum(not row["as_it_should"] for row in rows)
    ended = Counter(row["ended_by"] for row in rows)
    typer.echo(
        f"{len(rows)} kills, of which {ended['SIGKILL']} came before the end; {wrong} ended in an unexpected way."
    )
    write_record(json_file, {"seed": seed, "kills": len(rows), "wrong": wrong, "rows": rows})
    raise typer.Exit(1 if wrong else 0)


if __name__ == "__main__":
    typer.run(main)
