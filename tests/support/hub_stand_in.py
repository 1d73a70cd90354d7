# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A server on loopback that stands in for the Hub, which tests cannot reach.

It answers the requests with which `huggingface_hub` creates a repository, pushes to it, tags it and pulls any of its
revisions, and it fails where a test asks it to.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_of_nobody"


@dataclass(frozen=True)
class Commit:
    """A commit: its id, its message, and the content of each file by its path."""

    id: str
    message: str
    files: dict[str, bytes]


class Repository(Mapping[str, bytes]):
    """A model's repository. As a mapping, it holds the files of its last commit."""

    def __init__(self, name: str, private: bool = False):
        self.name, self.private = name, private
        self.commits: list[Commit] = []
        self.tags: dict[str, str] = {}
        self.commit("initial commit", {".gitattributes": b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"})

    def commit(self, message: str, files: dict[str, bytes]) -> Commit:
        """Adds a commit whose tree is these files."""
        said = json.dumps([self.name, len(self.commits), message, sorted(map(blob_id, files.values()))])
        self.commits.append(Commit(hashlib.sha1(said.encode()).hexdigest(), message, files))
        return self.commits[-1]

    def at(self, revision: str) -> Commit | None:
        """Returns the commit of a branch, a tag or an id, or None."""
        if revision == "main":
            return self.commits[-1]
        wanted = self.tags.get(revision, revision)
        return next((commit for commit in self.commits if commit.id == wanted), None)

    def __getitem__(self, path: str) -> bytes:
        return self.commits[-1].files[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.commits[-1].files)

    def __len__(self) -> int:
        return len(self.commits[-1].files)


@dataclass
class Fault:
    """A failure of the first `times` requests of a kind. `struck` is set when the first one has failed."""

    times: int = field(default=1, kw_only=True)
    struck: threading.Event = field(default_factory=threading.Event, kw_only=True)


@dataclass
class Status(Fault):
    """The server answers with this status, and does nothing."""

    code: int = 500


@dataclass
class Drop(Fault):
    """The connection ends: before anything is done, or after so many bytes of the content are sent."""

    after: int | None = None


@dataclass
class Block(Drop):
    """The answer stops where that of `Drop` does, but the connection stays open and silent until `ended` is set."""

    ended: threading.Event = field(default_factory=threading.Event, kw_only=True)


class HubStandIn(ThreadingHTTPServer):
    """Repositories in memory, by name. Clients with the `TOKEN` may write to all of them except those `of_others`."""

    daemon_threads, block_on_close = True, False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, Repository] = {}
        self.of_others: set[str] = set()
        self.large: dict[str, bytes] = {}  #: Contents of large files, by their SHA-256.
        self.requests: list[tuple[str, str, str]] = []  #: Method, path and range of each request so far.
        self.faults: list[tuple[str, str, Fault]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def fault(self, do: Fault, method: str, path: str) -> Fault:
        """Makes requests of a method fail whose path the pattern is found in. Returns the failure."""
        self.faults.append((method, path, do))
        return do

    def note(self, method: str, path: str, wanted: str) -> Fault | None:
        """Remembers a request, and returns the failure that it meets, or None."""
        with self.lock:
            self.requests.append((method, path, wanted))
            for faulty, pattern, fault in self.faults:
                if fault.times and method == faulty and re.search(pattern, path):
                    fault.times -= 1
                    return fault
        return None

    def add(self, name: str, folder: Path, **options) -> Commit:
        """Commits a folder's files to a repository, which is created if need be, without a request over HTTP."""
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        repository = self.repositories.setdefault(name, Repository(name, **options))
        return repository.commit("Upload a LangCell", {".gitattributes": repository[".gitattributes"], **files})

    def handle_error(self, *_):
        """Prints nothing when a connection ends early: tests kill clients on purpose."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.reset()
        self.shutdown()
        self.server_close()

    def reset(self) -> None:
        """Ends the blocked requests and forgets all repositories, requests and failures. The address stays."""
        for _, _, fault in self.faults:
            if isinstance(fault, Block):
                fault.ended.set()
        with self.lock:
            for kept in (self.repositories, self.of_others, self.large, self.requests, self.faults):
                kept.clear()


def blob_id(content: bytes) -> str:
    """Returns git's id of a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def facts(path: str, content: bytes) -> dict:
    """Returns the Hub's entry for a file in a listing. Git holds a pointer to a large file."""
    if not is_large(path):
        return {"type": "file", "path": path, "size": len(content), "oid": blob_id(content)}
    said = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256(content)}\nsize {len(content)}\n".encode()
    lfs = {"oid": sha256(content), "size": len(content), "pointerSize": len(said)}
    return {"type": "file", "path": path, "size": len(content), "oid": blob_id(said), "lfs": lfs}


@dataclass(eq=False)
class _Reply(Exception):
    """An answer. A method raises it to refuse a request."""

    status: int
    content: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


def _refusal(status: int, code: str = "", message: str = "", **headers: str) -> _Reply:
    """Returns a refusal as the Hub sends it, with the reason in the headers."""
    return _Reply(status, b'{"error": "refused"}', {"X-Error-Code": code, "X-Error-Message": message, **headers})


class _Lost(Exception):
    """Ends the connection without an answer."""


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *_):
        pass

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        fault = self.server.note(self.command, path, self.headers.get("Range", ""))
        try:
            if isinstance(fault, Drop) and fault.after is None:
                self.strike(fault)
            self.content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send(self.reply(path, fault), fault)
        except _Lost:
            self.close_connection = True

    do_HEAD = do_POST = do_PUT = do_GET

    def reply(self, path: str, fault: Fault | None) -> _Reply:
        """Does what a request asks for, and returns the answer."""
        if isinstance(fault, Status):
            fault.struck.set()
            return _refusal(fault.code)
        try:
            if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
                raise _refusal(401, message="Invalid credentials in Authorization header")
            for pattern, act in _ACTS.items():
                if found := re.fullmatch(pattern, f"{self.command.replace('HEAD', 'GET')} {path}"):
                    with self.server.lock:
                        value = act(self, *found.groups())
                    return value if isinstance(value, _Reply) else _Reply(200, json.dumps(value).encode())
            raise _refusal(404)
        except _Reply as refused:
            return refused

    def send(self, reply: _Reply, fault: Fault | None) -> None:
        self.send_response(reply.status)
        for name, header in {"Content-Length": str(len(reply.content)), **reply.headers}.items():
            if header:
                self.send_header(name, header)
        self.end_headers()
        if self.command == "HEAD":
            return
        if isinstance(fault, Drop):
            self.wfile.write(reply.content[: fault.after])
            self.strike(fault)
        self.wfile.write(reply.content)

    def strike(self, fault: Drop) -> None:
        self.wfile.flush()
        fault.struck.set()
        if isinstance(fault, Block):
            fault.ended.wait(60)
        raise _Lost

    # ------------------------------------------------------------------ who may do what

    @property
    def known(self) -> bool:
        return "Authorization" in self.headers

    def read(self, name: str) -> Repository:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self.known):
            raise _refusal(404 if self.known else 401, "RepoNotFound")
        return repository

    def read_at(self, name: str, revision: str | None) -> Commit:
        found = self.read(name).at(revision or "main")
        if found is None:
            raise _refusal(404, "RevisionNotFound")
        return found

    def write(self, name: str) -> Repository:
        if not self.known:
            raise _refusal(401, message="Invalid username or password.")
        if name in self.server.of_others:
            raise _refusal(403, message="You are not allowed to write to this repository")
        return self.read(name)

    # ------------------------------------------------------------------ what can be asked for

    def create(self) -> Any:
        asked = json.loads(self.content)
        name = f"{asked.get('organization') or 'tester'}/{asked['name']}"
        if not self.known or name in self.server.of_others:
            raise _refusal(403 if self.known else 401)
        said = {"url": f"{self.server.url}/{name}", "name": name}
        if name in self.server.repositories:
            return _Reply(409, json.dumps(said).encode())
        self.server.repositories[name] = Repository(name, asked.get("visibility") == "private")
        return said

    def check(self, name: str, write: str) -> Any:
        return {"name": (self.write if write else self.read)(name).name}

    def info(self, name: str, revision: str | None) -> Any:
        commit = self.read_at(name, revision)
        files = [{"rfilename": path} for path in commit.files]
        return {"id": name, "sha": commit.id, "siblings": files, "private": self.read(name).private}

    def tree(self, name: str, revision: str) -> Any:
        return [facts(path, content) for path, content in self.read_at(name, revision).files.items()]

    def paths_info(self, name: str, revision: str) -> Any:
        files = self.read_at(name, revision).files
        return [facts(path, files[path]) for path in json.loads(self.content)["paths"] if path in files]

    def refs(self, name: str) -> Any:
        repository = self.read(name)
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": repository.commits[-1].id}
        tags = [{"name": tag, "ref": f"refs/tags/{tag}", "targetCommit": at} for tag, at in repository.tags.items()]
        return {"branches": [main], "converts": [], "tags": tags}

    def resolve(self, name: str, revision: str, path: str) -> Any:
        commit = self.read_at(name, revision)
        headers = {"X-Repo-Commit": commit.id}
        if path not in commit.files:
            raise _refusal(404, "EntryNotFound", **headers)
        content = commit.files[path]
        if not is_large(path):
            return self.part(content, headers | {"ETag": f'"{blob_id(content)}"'})
        # Large files are on another host, to which clients must send no token.
        self.server.large[sha256(content)] = content
        there = f"http://localhost:{self.server.server_port}/large/{sha256(content)}"
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-ETag": f'"{sha256(content)}"', "Location": there}
        return _Reply(302, b"", headers | linked)

    def download(self, oid: str) -> Any:
        return self.part(self.server.large[oid], {"ETag": f'"{oid}"'})

    def part(self, content: bytes, headers: dict[str, str]) -> _Reply:
        """Returns a file, from the byte on that the request names."""
        wanted = re.fullmatch(r"bytes=(\d+)-\d*", self.headers.get("Range", ""))
        if wanted is None:
            return _Reply(200, content, headers)
        start = int(wanted[1])
        there = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}
        return _Reply(206, content[start:], headers | there)

    def validate(self) -> Any:
        return {"errors": [], "warnings": []}

    def preupload(self, name: str, revision: str) -> Any:
        self.write(name)
        there = {path: facts(path, content) for path, content in self.read_at(name, revision).files.items()}
        paths = [file["path"] for file in json.loads(self.content)["files"]]
        files = [
            {
                "path": path,
                "uploadMode": "lfs" if is_large(path) else "regular",
                "shouldIgnore": False,
                "oid": there[path].get("lfs", there[path])["oid"] if path in there else None,
            }
            for path in paths
        ]
        return {"files": files}

    def batch(self, name: str) -> Any:
        self.write(name)
        objects = [{"oid": one["oid"], "size": one["size"]} for one in json.loads(self.content)["objects"]]
        for one in objects:
            if one["oid"] not in self.server.large:
                one["actions"] = {"upload": {"href": f"{self.server.url}/large/{one['oid']}", "header": {}}}
        return {"transfer": "basic", "objects": objects}

    def upload(self, oid: str) -> Any:
        if sha256(self.content) != oid:
            raise _refusal(400)
        self.server.large[oid] = self.content
        return {}

    def commit(self, name: str, revision: str) -> Any:
        repository = self.write(name)
        header, *changes = ((line["key"], line["value"]) for line in map(json.loads, self.content.splitlines()))
        if header[1].get("parentCommit", repository.commits[-1].id) != repository.commits[-1].id:
            raise _refusal(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repository)
        for key, value in changes:
            if key == "deletedFile":
                del files[value["path"]]
            elif key == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            else:
                files[value["path"]] = base64.b64decode(value["content"])
        made = repository.commit(header[1]["summary"], files)
        return {"success": True, "commitOid": made.id, "commitUrl": f"{self.server.url}/{name}/commit/{made.id}"}

    def tag(self, name: str, revision: str) -> Any:
        tags, asked = self.write(name).tags, json.loads(self.content)["tag"]
        if asked in tags:
            raise _refusal(409, message="Tag reference exists already")
        tags[asked] = self.read_at(name, revision).id
        return {}


_NAME = "([^/]+/[^/]+)"
_ACTS = {
    r"POST /api/repos/create": _Answers.create,
    r"POST /api/validate-yaml": _Answers.validate,
    rf"GET /api/models/{_NAME}/auth-check(/write)?": _Answers.check,
    rf"GET /api/models/{_NAME}/refs": _Answers.refs,
    rf"GET /api/models/{_NAME}/tree/([^/]+)": _Answers.tree,
    rf"GET /api/models/{_NAME}(?:/revision/([^/]+))?": _Answers.info,
    rf"POST /api/models/{_NAME}/paths-info/([^/]+)": _Answers.paths_info,
    rf"POST /api/models/{_NAME}/preupload/([^/]+)": _Answers.preupload,
    rf"POST /api/models/{_NAME}/commit/([^/]+)": _Answers.commit,
    rf"POST /api/models/{_NAME}/tag/([^/]+)": _Answers.tag,
    rf"POST /{_NAME}\.git/info/lfs/objects/batch": _Answers.batch,
    rf"GET /{_NAME}/resolve/([^/]+)/(.+)": _Answers.resolve,
    r"PUT /large/([0-9a-f]{64})": _Answers.upload,
    r"GET /large/([0-9a-f]{64})": _Answers.download,
}
