# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""The declared paths of the commands: none can be forgotten, and all are checked before any work."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command

from modeling_langcell.cli.main import app
from modeling_langcell.cli.paths import Reads, Writes, WritesFolder, check_paths_of
from modeling_langcell.io.file_kinds import TABLE
from modeling_langcell.io.owners import Lock, find_owner

LABELS = "B cell;T cell"


class TestDeclarations:
    def test_every_command_is_checked(self):
        for name, command in get_command(app).commands.items():
            assert "check_paths" in command.callback.__code__.co_names, name

    @pytest.mark.parametrize("kind", [Path, Path | None, list[Path], list[Path] | None, tuple[str, Path]])
    def test_a_path_without_a_declaration_is_an_error(self, kind):
        undeclared = typer.Typer()

        @undeclared.command()
        def copy(source: Annotated[kind, typer.Option()]):
            pass

        with pytest.raises(TypeError, match="'source' is a path: declare that it Reads, Writes or WritesFolder"):
            check_paths_of(get_command(undeclared))

    def test_a_new_command_is_checked_by_its_annotations_alone(self, tmp_path):
        new = typer.Typer()
        (tmp_path / "cells").write_text("mine")

        @new.command()
        def copy(
            source: Annotated[Path, typer.Argument(metavar="SOURCE"), Reads()],
            to: Annotated[Path | None, typer.Option(), Writes(kind=TABLE)] = None,
        ):
            pytest.fail("work")

        command = get_command(new)
        check_paths_of(command)
        with pytest.raises(ValueError, match=r"--to .*cells is the same file as SOURCE"):
            command.main([str(tmp_path / "cells"), "--to", str(tmp_path / "cells")], standalone_mode=False)


class TestInputs:
    @pytest.mark.parametrize("kind", ["pipe", "device", "socket"])
    def test_only_files_and_folders_are_read(self, tmp_path, kind):
        new, source = typer.Typer(), tmp_path / "source"

        @new.command()
        def copy(source: Annotated[Path, typer.Argument(metavar="SOURCE"), Reads()]):
            pytest.fail("it would wait")

        if kind == "pipe":
            os.mkfifo(source)
        elif kind == "device":
            source.symlink_to("/dev/zero")
        else:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(source))
        command = get_command(new)
        check_paths_of(command)
        with pytest.raises(ValueError, match=r"SOURCE .*source is neither a file nor a folder"):
            command.main([str(source)], standalone_mode=False)


class TestFoldersOfOneRun:
    @pytest.mark.parametrize(("alone", "new"), [(True, True), (True, False), (False, False)])
    def test_a_folder_is_locked_until_the_command_ends(self, tmp_path, alone, new):
        found, app = [], typer.Typer()

        @app.command()
        def build(out: Annotated[Path, typer.Option(), WritesFolder(new=new, alone=alone)]):
            found.append(find_owner(tmp_path / ".out.process-0"))

        command = get_command(app)
        check_paths_of(command)
        command.main(["--out", str(tmp_path / "out")], standalone_mode=False)
        assert [owner is not None for owner in found] == [alone]
        with Lock(tmp_path / ".out.process-0"):
            if alone:
                with pytest.raises(ValueError, match="is being written by process"):
                    command.main(["--out", str(tmp_path / "out")], standalone_mode=False)
            else:
                command.main(["--out", str(tmp_path / "out")], standalone_mode=False)
        assert not list(tmp_path.iterdir())


class TestFilesOfAnotherKind:
    @pytest.fixture
    def folder(self, cells_file, tmp_path, monkeypatch):
        """Files of several kinds under names that fit, and no way to load a checkpoint, which is the first work."""
        (tmp_path / "others.h5ad").write_bytes(cells_file.read_bytes())
        (tmp_path / "page.html").write_text("<!doctype html><title>mine</title>")
        (tmp_path / "table.tsv").write_text("gene\tscore\nA\t1\n")
        (tmp_path / "notes.txt").write_text("mine")
        for suffix in ("html", "png", "tsv", "h5ad"):
            (tmp_path / f"notes.{suffix}").write_text("mine")
            (tmp_path / f"cells.{suffix}").exists() or (tmp_path / f"cells.{suffix}").symlink_to("others.h5ad")
        monkeypatch.setattr(
            "modeling_langcell.annotation.annotator.load_checkpoint", lambda *_, **__: pytest.fail("work")
        )
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.mark.parametrize(
        ("command", "option", "path"),
        [
            ("annotate", "--report", "cells.html"),
            ("annotate", "--report", "notes.html"),
            ("annotate", "--figure", "cells.png"),
            ("annotate", "--figure", "notes.png"),
            ("annotate", "--out", "notes.h5ad"),
            ("search", "--out", "notes.tsv"),
            ("search", "--out", "notes.txt"),
            ("explain", "--out", "cells.tsv"),
            ("explain", "--figure", "notes.png"),
            ("labels", "--out", "notes.txt"),
        ],
    )
    def test_is_not_replaced(self, run, folder, command, option, path):
        self.refused(run, folder, command, option, path, f"{option} {path} exists and is not a")

    @pytest.mark.parametrize(
        ("command", "option", "path", "said"),
        [
            ("annotate", "--out", "new.zarr", "must end in .h5ad: it will be a file of cells"),
            ("annotate", "--out", "table.tsv", "must end in .h5ad: it will be a file of cells"),
            ("embed", "--out", "new.h5", "must end in .h5ad: it will be a file of cells"),
            ("annotate", "--table", "new.xls", "must end in .tsv, .csv, .xlsx or .txt: it will be a table"),
            ("search", "--out", "new.json", "must end in .tsv, .csv, .xlsx or .txt: it will be a table"),
            ("explain", "--out", "page.html", "must end in .tsv, .csv, .xlsx or .txt: it will be a table"),
            ("labels", "--out", "others.h5ad", "must end in .tsv, .csv, .xlsx or .txt: it will be a table"),
        ],
    )
    def test_a_suffix_of_another_kind_is_refused(self, run, folder, command, option, path, said):
        self.refused(run, folder, command, option, path, f"{option} {path} {said}")

    def refused(self, run, folder, command, option, path, said):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        arguments = {"labels": [], "search": ["cells.h5ad", "a B cell"]}.get(command, ["cells.h5ad"])
        arguments += ["--labels", LABELS] if command in ("annotate", "explain") else []
        arguments += ["--out", "new.tsv"] if (command, option) == ("explain", "--figure") else []
        result = run(command, *arguments, option, path)
        assert result.exit_code == 2, result.output
        assert f"Error: {said}" in result.stderr
        assert len(result.stderr.splitlines()) == 1
        assert {path: path.read_bytes() for path in folder.iterdir()} == before

    def test_a_card_does_not_replace_notes(self, run, tiny_checkpoint, tmp_path):
        (tmp_path / "README.md").write_text("# What I found\n")
        result = run("card", tmp_path)
        assert result.exit_code == 2
        assert "README.md exists and is not a card with metadata" in result.stderr
        assert (tmp_path / "README.md").read_text() == "# What I found\n"

    def test_a_table_replaces_a_table(self, run, folder):
        result = run("labels", "--tissue", "pancreas", "--out", "table.tsv")
        assert result.exit_code == 0, result.output
        assert (folder / "table.tsv").read_text().startswith("id\tlabel")


@pytest.mark.e2e
def test_paths_are_checked_before_heavy_imports(cells_file, tmp_path):
    """In a process of its own, because imports are tested."""
    program = (
        "import sys\nfrom modeling_langcell.cli import app\n"
        "try:\n    app()\nfinally:\n    print({'torch', 'transformers', 'anndata', 'pandas'} & set(sys.modules))"
    )
    (tmp_path / "cells.html").hardlink_to(cells_file)
    for options, said in (
        (["--report", "cells.html"], "is the same file as INPUT"),
        (["--report", "/proc/page.html"], "--report /proc/page.html cannot be written"),
        (["--figure", "figure.doc"], "must end in .png, .pdf or .svg"),
    ):
        command = [sys.executable, "-c", program, "annotate", "cells.h5ad", "--labels", LABELS, *options]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert said in done.stderr
        assert done.stdout == "set()\n"
