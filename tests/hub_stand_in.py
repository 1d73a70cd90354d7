# Copyright 2026 The LangCell developers. Licensed under the Apache License, Version 2.0.
"""
A server on loopback that speaks what `huggingface_hub` asks of the Hub to make a repository, push to it and pull from
it. The Hub itself cannot be reached from the tests.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubStandIn(ThreadingHTTPServer):
    """Repositories of models in memory: `repositories[id]` has the content of each file, by its path."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.of_others: set[str] = set()  #: Repositories that may be read, and not be pushed to.
        self.large: dict[str, bytes] = {}
        self.commits: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStandIn

    def log_message(self, *_):
        pass

    @property
    def content(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, value=None, status=200, content=None, **headers):
        content = json.dumps(value).encode() if content is None else content
        self.send_response(status)
        for name, header in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def commit_id(self) -> str:
        return hashlib.sha1("".join(self.server.commits).encode()).hexdigest()

    def do_POST(self):
        content, path = self.content, self.path.partition("?")[0]
        if path == "/api/repos/create":
            asked = json.loads(content)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            name = name if "/" in name else f"tester/{name}"
            self.server.repositories.setdefault(name, {})
            return self.answer({"url": f"{self.server.url}/{name}", "name": name})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {
                    "oid": one["oid"],
                    "size": one["size"],
                    "actions": {"upload": {"href": f"{self.server.url}/upload/{one['oid']}", "header": {}}},
                }
                for one in json.loads(content)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(content)["files"]
            ]
            return self.answer({"files": files})
        if "/commit/" in path:
            name = path.removeprefix("/api/models/").partition("/commit/")[0]
            repository = self.server.repositories[name]
            for line in map(json.loads, content.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    repository[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    repository[value["path"]] = self.server.large[value["oid"]]
                elif line["key"] == "header":
                    self.server.commits.append(value["summary"])
            commit = self.commit_id()
            url = f"{self.server.url}/{name}/commit/{commit}"
            return self.answer({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})
        return self.answer({"error": f"unknown: {path}"}, 404)

    def do_PUT(self):
        self.server.large[self.path.rpartition("/")[2]] = self.content
        self.answer({}, ETag='"done"')

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if "/resolve/" in path:
            name, _, rest = path.strip("/").partition("/resolve/")
            content = self.server.repositories.get(name, {}).get(rest.partition("/")[2])
            if content is None:
                return self.answer({}, 404, **{"X-Error-Code": "EntryNotFound"})
            etag = f'"{hashlib.sha1(content).hexdigest()}"'
            return self.answer(content=content, ETag=etag, **{"X-Repo-Commit": self.commit_id()})
        if path.endswith("/auth-check/write"):
            mine = path.removeprefix("/api/models/").removesuffix("/auth-check/write") not in self.server.of_others
            return self.answer({}, 200 if mine else 403)
        name = path.removeprefix("/api/models/").partition("/revision/")[0].partition("/tree/")[0]
        if name in self.server.repositories:
            files = self.server.repositories[name]
            if "/tree/" in path:
                listed = [{"type": "file", "path": p, "size": len(c), "oid": "0"} for p, c in files.items()]
                return self.answer(listed)
            siblings = [{"rfilename": file} for file in files]
            return self.answer({"id": name, "sha": self.commit_id(), "siblings": siblings, "private": False})
        return self.answer({}, 404, **{"X-Error-Code": "RepoNotFound"})
