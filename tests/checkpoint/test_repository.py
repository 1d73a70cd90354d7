# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
Separate processes push to and pull from a stand-in for the Hub over HTTP on loopback. The server fails, connections
end, tokens lack rights, the disk is full, and processes are killed.
"""

import json
import os
import shutil
import signal
from pathlib import Path

import anndata as ad
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from modeling_langcell import LangCellModel
from modeling_langcell.cli.main import app
from tests.support.commands import Process
from tests.support.hub_stand_in import Block, Drop, Status, sha256
from tests.support.tiny import tiny_config

NAME = "tester/tiny"
ANNOTATE = ("-m", "modeling_langcell.cli", "annotate", "--out", "o.h5ad", "--labels", "B cell;monocyte", "--alpha", "1")
ADAPT = ("-m", "modeling_langcell.cli", "adapt", "--label-key", "type", "--epochs", "1", "--out", "adapter")

#: With "apart", every object of argv[1] gets a process of its own. The ids of the processes are printed first.
_CALLS = """
import json, os, sys
calls, ids = json.loads(sys.argv[1]), []
for options in calls if sys.argv[2:] == ["apart"] else ():
    ids.append(os.fork())
    if not ids[-1]:
        calls = [options]
        break
else:
    if ids:
        print(json.dumps(ids), flush=True)
        sys.exit(max(os.waitpid(id, 0)[1] for id in ids))
"""

#: Pushes with the options of each object of argv[1], and prints the outcome.
PUSH = f"""
from modeling_langcell import InputError
from modeling_langcell.checkpoint.repository import push
{_CALLS}
for options in calls:
    try:
        print(json.dumps(["pushed", push(**options).commit]))
    except InputError as error:
        print(json.dumps(["refused", str(error)]))
"""

#: Pulls with the options of each object of argv[1], and prints the commit and what was loaded; then does the same with
#: transformers alone.
PULL = f"""
from transformers import AutoModel, AutoProcessor
from modeling_langcell import InputError
from modeling_langcell.checkpoint.loading import load_checkpoint
{_CALLS}
weight = lambda model: model.cell_projection.weight.flatten()[0].item()
for options in calls:
    try:
        model, processor, _ = load_checkpoint(**options)
        print(json.dumps([model.config._commit_hash, weight(model), processor.feature_extractor.max_length]))
    except InputError as error:
        print(json.dumps(["refused", str(error)]))
for auto in (AutoModel, AutoProcessor) if len(sys.argv) > 3 else ():
    try:
        found = auto.from_pretrained(sys.argv[2], revision=sys.argv[3])
        print(json.dumps(weight(found) if auto is AutoModel else found.feature_extractor.max_length))
    except (OSError, ValueError) as error:
        print(json.dumps("refused"))
"""


@pytest.fixture
def says(run):
    """Runs one of the scripts above, and returns the lines that it prints."""

    def says(script, asked, *more, **options) -> list:
        code, said, errors = run("-c", script, json.dumps(asked), *more, **options)
        assert code == 0, errors
        return [json.loads(line) for line in said.splitlines()]

    return says


@pytest.fixture(scope="session")
def versions(tiny_checkpoint, tmp_path_factory) -> list[Path]:
    """Two checkpoints with different weights, and processors that keep different numbers of genes."""
    second = tmp_path_factory.mktemp("second") / "tiny-langcell"
    shutil.copytree(tiny_checkpoint, second)
    torch.manual_seed(1)
    LangCellModel(tiny_config()).save_pretrained(second)
    settings = (second / "processor_config.json").read_text()
    assert '"max_length": 64' in settings
    (second / "processor_config.json").write_text(settings.replace('"max_length": 64', '"max_length": 48'))
    return [tiny_checkpoint, second]


@pytest.fixture
def cells_file(cells, tmp_path) -> Path:
    cells.obs["type"] = ["B cell", "monocyte"] * (cells.n_obs // 2)
    cells.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


def weight(folder: Path) -> float:
    return load_file(folder / "model.safetensors")["cell_projection.weight"].flatten()[0].item()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_apart(process: Process, faults: list[Block]) -> None:
    """Kills the process of each call of a script above once its fault has struck."""
    ids = json.loads(process.stdout.readline())
    for id, fault in zip(ids, faults, strict=True):
        assert fault.struck.wait(60)
        os.kill(id, signal.SIGKILL)
    process.wait(60)


# ---------------------------------------------------------------------- pull


@pytest.mark.heavy
def test_the_named_revision_is_loaded(hub, run, says, versions, cells_file, tmp_path):
    """
    The Hub is there, offline, or cannot be reached. In the last case a pull by transformers does not count as complete,
    since transformers does not pull the files of an adaptation.
    """
    other = "tester/pulled-by-transformers"
    first, second = (hub.add(NAME, folder).id for folder in versions)
    for name in (NAME, other):
        hub.repositories.setdefault(name, hub.repositories[NAME]).tags["v1"] = first
    asked = [{"checkpoint": NAME, "revision": revision} for revision in ("v1", None, "main", first, "v2")]
    *found, unknown, model, genes = says(PULL, asked, other, "v1")
    of_first, of_second = [first, weight(versions[0]), 64], [second, weight(versions[1]), 48]
    assert found == [of_first, of_second, of_second, of_first]
    assert "no such branch, tag or commit" in unknown[1]
    assert [model, genes] == of_first[1:]
    code, _, errors = run(
        *ANNOTATE, cells_file, "--model", NAME, "--revision", "v1", environment={"HF_HUB_OFFLINE": "1"}
    )
    assert code == 0, errors
    uns = ad.read_h5ad(tmp_path / "o.h5ad").uns["langcell"]
    assert (uns["checkpoint"], uns["revision"]) == (NAME, first)
    asked = [*asked[:2], {"checkpoint": other, "revision": "v1"}]
    *found, (_, why) = says(PULL, asked, environment={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert found == [of_first, of_second]
    assert "No cached tree listing" in why


def test_all_pulled_files_are_of_one_commit(hub, start, versions):
    """Another commit is pushed during the pull."""
    first = hub.add(NAME, versions[0]).id
    weights = hub.fault(Block(), "GET", "/large/")
    pulling = start("-c", PULL, json.dumps([{"checkpoint": NAME}]))
    assert weights.struck.wait(60)
    hub.add(NAME, versions[1])
    weights.ended.set()
    said, errors = pulling.communicate(timeout=60)
    assert json.loads(said) == [first, weight(versions[0]), 64], errors


def test_a_pull_survives_temporary_errors(hub, says, versions, tmp_path):
    """At most 10 MiB that arrived before a connection ended are pulled again."""
    folder = shutil.copytree(versions[0], tmp_path / "large")
    (folder / "more.safetensors").write_bytes(os.urandom(12 << 20))
    hub.add(NAME, folder)
    more = f"/large/{sha256((folder / 'more.safetensors').read_bytes())}"
    hub.fault(Drop(11 << 20), "GET", more)
    for fault, path in ((Status(), "/api/models/tester/tiny$"), (Status(503), "/tree/"), (Status(), "/large/")):
        hub.fault(fault, "GET", path)
    hub.fault(Drop(), "GET", "processor_config.json")
    assert [found for _, found, _ in says(PULL, [{"checkpoint": NAME}])] == [weight(versions[0])]
    assert all(fault.struck.is_set() for _, _, fault in hub.faults)
    assert [wanted for _, path, wanted in hub.requests if path == more] == ["", f"bytes={10 << 20}-"]


def test_a_failed_pull(hub, says, versions, tmp_path):
    """The error is one line, and nothing of the pull loads."""
    for name in ("server", "connection", "private"):
        hub.add(f"tester/{name}", versions[0], private=name == "private")
    hub.fault(Status(times=99), "GET", "/tester/server/resolve/")
    hub.fault(Drop(times=99), "GET", "/api/models/tester/connection$")
    found = says(PULL, [{"checkpoint": f"tester/{name}"} for name in ("server", "connection", "private")], token="")
    assert [what for what, _ in found] == ["refused"] * 3
    for (_, why), reason in zip(
        found, ("500", "disconnected", "no such repository, or this token cannot see it"), strict=True
    ):
        assert reason in why
        assert len(why.splitlines()) == 1
    assert not list((tmp_path / "home").rglob("*config.json"))


def test_a_full_disk(hub, run, versions, cells_file, tmp_path):
    """
    The kernel refuses the write by RLIMIT_FSIZE as on a full disk, which needs no right to mount a small one. The error
    is one line with exit code 2, nothing of the pull loads, and the same command continues.
    """
    hub.add(NAME, versions[0])
    code, said, errors = run(*ANNOTATE, cells_file, "--model", NAME, largest=20_000)
    assert (code, said, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith("Error: No LangCell checkpoint could be loaded: 'tester/tiny' is not a folder here and")
    assert "File too large" in errors
    for left in ("*config.json", "*.incomplete", "o.h5ad"):
        assert not list(tmp_path.rglob(left))
    code, _, errors = run(*ANNOTATE, cells_file, "--model", NAME)
    assert code == 0, errors
    assert (tmp_path / "o.h5ad").exists()


def test_a_killed_pull(hub, start, says, versions):
    """Without the Hub nothing of it loads. With the Hub it continues, and pulls no file twice."""
    names = ("tester/weights", "tester/config")
    for name, folder in zip(names, versions, strict=True):
        hub.add(name, folder)
    large = [f"/large/{sha256((folder / 'model.safetensors').read_bytes())}" for folder in versions]
    faults = [hub.fault(Block(100), "GET", path) for path in (large[0], "/tester/config/resolve/.*/config.json")]
    asked = [{"checkpoint": name} for name in names]
    kill_apart(start("-c", PULL, json.dumps(asked), "apart"), faults)
    *found, model, processor = says(PULL, asked, "tester/config", "main", environment={"HF_HUB_OFFLINE": "1"})
    assert [what for what, _ in found] == ["refused", "refused"]
    assert all("check your connection" in why for _, why in found)
    assert (model, processor) == ("refused", "refused")
    before = len(hub.requests)
    assert [found for _, found, _ in says(PULL, asked)] == [weight(folder) for folder in versions]
    again = [path for method, path, _ in hub.requests[before:] if method == "GET"]
    assert [again.count(path) for path in large] == [1, 0]


# ---------------------------------------------------------------------- push


def asked(folder, **options) -> dict:
    return {"folder": str(folder), "repo_id": NAME, **options}


def test_a_repository_gets_the_files_of_the_folder(hub, says, versions, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for made, folder in zip((first, second), versions, strict=True):
        shutil.copytree(folder, made)
        (made / ".half-written").write_text("no")
        (made / "log.jsonl").write_text("no")
    (first / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    (first / "notes.txt").write_text("only in the first")
    ignore = {"ignore": ["*.jsonl"]}
    calls = [
        asked(first, tag="v1", private=True, **ignore),
        asked(first, tag="v1", **ignore),
        asked(second, tag="v1", **ignore),
        asked(second, message="Better", **ignore),
        asked(first, tag="v1", **ignore),
        asked(tmp_path / "nowhere"),
        asked(first) | {"repo_id": "not a name"},
    ]
    (_, pushed), again, tagged, (_, better), moved, nowhere, nameless = says(PUSH, calls)
    repository = hub.repositories[NAME]
    assert repository.private
    assert again == ["pushed", pushed]
    assert [commit.id for commit in repository.commits[1:]] == [pushed, better]
    assert [commit.message for commit in repository.commits[1:]] == ["Upload a LangCell", "Better"]
    for commit, folder in zip(repository.commits[1:], (first, second), strict=True):
        files = contents(folder)
        del files[".half-written"], files["log.jsonl"]
        assert commit.files == {".gitattributes": repository[".gitattributes"], **files}
    for refused in (tagged, moved):
        assert f"has a tag 'v1' on commit {pushed}" in refused[1]
    assert "has no files" in nowhere[1]
    assert "not a name cannot be pushed to" in nameless[1]
    assert repository.tags == {"v1": pushed}


def test_a_push_survives_temporary_errors(hub, says, versions):
    """One of them is a commit that was made, but whose answer was lost."""
    for fault, method, path in (
        (Status(), "POST", "/create"),
        (Status(), "GET", "/auth-check"),
        (Drop(), "PUT", "/large/"),
        (Status(), "POST", "/commit/"),
        (Drop(5), "POST", "/commit/"),
        (Drop(5), "POST", "/tag/"),
        (Drop(1000), "GET", "/large/"),
    ):
        hub.fault(fault, method, path)
    ((_, commit),) = says(PUSH, [asked(versions[0], tag="v1")])
    assert all(fault.struck.is_set() for _, _, fault in hub.faults)
    repository = hub.repositories[NAME]
    assert [commit.id for commit in repository.commits[1:]] == [commit] == [repository.tags["v1"]]


def test_a_failed_push_says_what_was_done(hub, says, versions):
    """Each error is one line, and the repository is unchanged or equal to the folder."""
    theirs, faulty = "somebody/tiny", f"{NAME}-faulty"
    hub.add(theirs, versions[0])
    hub.of_others.add(theirs)
    hub.fault(Status(times=3), "POST", f"{faulty}/commit/")
    hub.fault(Status(413), "POST", f"{faulty}-2/commit/")
    hub.fault(Status(404), "GET", f"{faulty}-3/resolve/")
    calls = [
        asked(versions[1], tag="v1") | {"repo_id": name} for name in (theirs, faulty, f"{faulty}-2", f"{faulty}-3")
    ]
    calls.append(asked(versions[1], private=True) | {"repo_id": faulty})
    said = says(PUSH, calls)
    assert all(what == "refused" and len(why.splitlines()) == 1 for what, why in said), said
    not_allowed, unpushed, refused, not_compared, public = (why for _, why in said)
    assert "somebody/tiny cannot be pushed to: 403" in not_allowed
    for why in (not_allowed, unpushed, refused):
        assert "no file was changed there" in why
    for name in (faulty, f"{faulty}-2"):
        assert hub.repositories[name].keys() == {".gitattributes"}
    assert len(hub.repositories[theirs].commits) == 2
    whole = hub.repositories[f"{faulty}-3"]
    assert f"has all files as commit {whole.commits[-1].id}, but they could not be compared" in not_compared
    assert contents(versions[1]).items() <= dict(whole).items()
    assert not whole.tags
    assert "not private" in public
    ((refused, why),) = says(PUSH, [asked(versions[0])], token="hf_of_another")
    assert (refused, "401" in why, NAME in hub.repositories) == ("refused", True, False)


def test_somebody_else_pushes_at_the_same_time(hub, start, versions):
    """The other commit is not mixed with this one, and a commit that differs from what was pushed is not tagged."""
    theirs, changed = "tester/theirs", "tester/changed"
    hub.add(theirs, versions[0])
    committing = hub.fault(Block(), "POST", f"{theirs}/preupload/")
    comparing = hub.fault(Block(), "HEAD", f"{changed}/resolve/.*/config.json")
    calls = [asked(versions[1], tag="v1") | {"repo_id": name} for name in (theirs, changed)]
    pushing = start("-c", PUSH, json.dumps(calls))
    assert committing.struck.wait(60)
    faster = hub.repositories[theirs].commit("Theirs", {".gitattributes": b"", "README.md": b"theirs"})
    committing.ended.set()
    assert comparing.struck.wait(60)
    files = hub.repositories[changed].commits[-1].files
    files["config.json"] = files["config.json"].replace(b"16", b"61")
    comparing.ended.set()
    said, _ = pushing.communicate(timeout=60)
    (_, too_late), (_, differs) = map(json.loads, said.splitlines())
    assert "412" in too_late
    assert hub.repositories[theirs].commits[-1] == faster
    assert f"{changed} differs at commit" in differs
    assert "from the files here: config.json." in differs
    assert not hub.repositories[changed].tags


def test_a_killed_push(hub, start, says, versions, tmp_path):
    """The repository is unchanged or complete, and the same push continues, with one commit in all."""
    moments = {
        "upload": (Block(), "PUT", "{large}"),
        "before": (Block(), "POST", "/{name}/commit/"),
        "answer": (Block(5), "POST", "/{name}/commit/"),
        "compare": (Block(10), "GET", "{large}"),
        "tag": (Block(), "POST", "/{name}/tag/"),
    }
    calls = []
    for number, (name, (fault, method, path)) in enumerate(moments.items()):
        folder = shutil.copytree(versions[0], tmp_path / name)
        torch.manual_seed(10 + number)  # Every folder has its own weights: those that the Hub has are not uploaded.
        LangCellModel(tiny_config()).save_pretrained(folder)
        calls.append(asked(folder, tag="v1") | {"repo_id": f"tester/{name}"})
        large = f"/large/{sha256((folder / 'model.safetensors').read_bytes())}"
        hub.fault(fault, method, path.format(name=name, large=large))
    kill_apart(start("-c", PUSH, json.dumps(calls), "apart"), [fault for fault, _, _ in moments.values()])
    for name in moments:
        there = hub.repositories[f"tester/{name}"]
        assert not there.tags
        if name in ("upload", "before"):
            assert there.keys() == {".gitattributes"}
        else:
            assert contents(tmp_path / name).items() <= dict(there).items()
    commits = [hub.repositories[call["repo_id"]].commits for call in calls]
    assert [len(made) for made in commits] == [1, 1, 2, 2, 2]
    pushed = says(PUSH, calls)
    assert [len(made) for made in commits] == [2, 2, 2, 2, 2]
    assert [["pushed", made[-1].id] for made in commits] == pushed
    for call, (_, commit) in zip(calls, pushed, strict=True):
        assert hub.repositories[call["repo_id"]].tags == {"v1": commit}
        assert contents(Path(call["folder"])).items() <= dict(hub.repositories[call["repo_id"]]).items()


# ---------------------------------------------------------------------- commands


def test_an_adapter_is_pushed_and_annotates_by_its_id(hub, run, versions, cells_file, tmp_path):
    hub.add(NAME, versions[0])
    adapter = f"{NAME}-adapter"
    code, said, errors = run(*ADAPT, cells_file, "--model", NAME, "--push-to", adapter)
    assert code == 0, errors
    repository = hub.repositories[adapter]
    assert f"Pushed: {hub.url}/{adapter}/commit/{repository.commits[-1].id}" in said
    for file, content in contents(tmp_path / "adapter").items():
        assert repository[file] == content
    assert f'from_pretrained(adapter="{adapter}")' in repository["README.md"].decode()
    assert str(tmp_path).encode() not in b"".join(repository.values())
    command = ("-m", "modeling_langcell.cli", "annotate", cells_file, "--adapter", adapter, "--out", "o.h5ad")
    code, said, errors = run(*command, home="another")
    assert code == 0, errors
    uns = ad.read_h5ad(tmp_path / "o.h5ad").uns["langcell"]
    assert (uns["checkpoint"], uns["revision"]) == (NAME, hub.repositories[NAME].commits[-1].id)
    assert uns["adapter"] == adapter
    assert list(uns["labels"]) == ["B cell", "monocyte"]


def test_nothing_is_adapted_if_the_push_is_not_allowed(hub, run, cells_file, tmp_path):
    hub.of_others.add("somebody/tiny")
    code, said, errors = run(*ADAPT, cells_file, "--push-to", "somebody/tiny")
    assert (code, said, errors.count("\n")) == (2, "", 1), errors
    assert errors.startswith("Error: somebody/tiny cannot be pushed to: 403")
    assert not (tmp_path / "adapter").exists()


def test_an_adapter_made_from_a_local_folder_is_not_pushed(tiny_checkpoint, cells_file, tmp_path):
    command = ("adapt", cells_file, "--label-key", "type", "--model", tiny_checkpoint, "--out", tmp_path / "adapter")
    result = CliRunner().invoke(app, [*map(str, command), "--push-to", NAME])
    assert result.exit_code == 2, result.output
    assert f"{tiny_checkpoint}, the base of the adapter, is not on the Hub" in " ".join(result.stderr.split())
    assert not (tmp_path / "adapter").exists()


def test_a_folder_has_no_revision(tiny_checkpoint, cells_file):
    asked = (
        "embed",
        cells_file,
        "--model",
        tiny_checkpoint,
        "--revision",
        "v1",
        "--out",
        cells_file.with_name("o.h5ad"),
    )
    result = CliRunner().invoke(app, [*map(str, asked)])
    assert result.exit_code == 2, result.output
    assert "is a folder and has no revision 'v1'" in result.stderr
