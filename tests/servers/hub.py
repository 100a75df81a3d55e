"""As much of the Hugging Face hub as a data set repository needs, in a thread: the real client talks to it.

Files over ``LARGE`` bytes go the way of large files, with their SHA-256, and are compared with it; the others come
inside the commit. Nothing is seen before it is committed.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.servers.programs import HOST

LARGE = 200


class Hub:
    """Repositories of a server.

    Attributes:
        endpoint: "http://HOST:PORT".
        commits: of each repository the files after each commit, by name.
        uploads: names and sizes of what was uploaded apart from commits.
    """

    def __init__(self) -> None:
        self.endpoint = ""
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.uploads: list[str] = []
        self.large: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def files(self, repo: str) -> dict[str, bytes]:
        """What a reader sees."""
        return self.commits[repo][-1]

    def at(self, repo: str, revision: str) -> dict[str, bytes] | None:
        """Files of a revision; "main" is the last one."""
        if repo not in self.commits:
            return None
        found = re.fullmatch(r"0*([0-9]+)", revision)
        number = int(found[1]) if found else len(self.commits[repo]) - 1
        return self.commits[repo][number]


def _oid(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""

    def _send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _missing(self, code: str) -> None:
        self._json({"error": code}, 404, X_Error_Code=code)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo, revision = found[1], found[2] or "main"
            files = self.hub.at(repo, revision)
            if files is None:
                return self._missing("RepoNotFound")
            number = len(self.hub.commits[repo]) - 1 if not revision.isdecimal() else int(revision)
            return self._json({"id": repo, "sha": f"{number:040d}", "private": False, "tags": []})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            files = self.hub.at(found[1], found[2])
            if files is None:
                return self._missing("RepoNotFound")
            start = f"{found[3]}/" if found[3] else ""
            inside = [name for name in files if name.startswith(start)]
            if found[3] and not inside:
                return self._missing("EntryNotFound")
            return self._json([self._entry(name, files[name]) for name in inside])
        if found := re.fullmatch(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)", path):
            files = self.hub.at(found[1], found[2])
            if files is None:
                return self._missing("RepoNotFound")
            if found[3] not in files:
                return self._missing("EntryNotFound")
            data = files[found[3]]
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            headers = {
                "ETag": f'"{_oid(data)}"',
                "X_Repo_Commit": found[2],
                "Accept_Ranges": "bytes",
            }
            if span is None:
                return self._send(200, data, **headers)
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            part = data[first : last + 1]
            headers["Content_Range"] = f"bytes {first}-{first + len(part) - 1}/{len(data)}"
            return self._send(206, part, **headers)
        return self._missing("EntryNotFound")

    def _entry(self, name: str, data: bytes) -> dict[str, Any]:
        return {"type": "file", "path": name, "size": len(data), "oid": _oid(data)[:40]}

    def do_PUT(self) -> None:
        data = self._body()
        oid = self.path.rpartition("/")[2]
        if _oid(data) != oid:
            return self._json({"error": "other bytes than announced"}, 400)
        self.hub.large[oid] = data
        return self._send(200, b"")

    def do_POST(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            with self.hub.lock:
                new = repo not in self.hub.commits
                self.hub.commits.setdefault(repo, [{".gitattributes": b""}])
            return self._json({"url": f"{self.hub.endpoint}/datasets/{repo}"}, 200 if new else 409)
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/paths-info/(.+)", path):
            files = self.hub.at(found[1], found[2])
            if files is None:
                return self._missing("RepoNotFound")
            wanted = (
                parse_qs(body.decode())["paths"] if b"paths=" in body else json.loads(body)["paths"]
            )
            return self._json([self._entry(name, files[name]) for name in wanted if name in files])
        if re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/preupload/(.+)", path):
            asked = json.loads(body)["files"]
            modes = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["size"] > LARGE else "regular",
                    "shouldIgnore": False,
                }
                for item in asked
            ]
            return self._json({"files": modes})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            answers = []
            for item in objects:
                answer = {"oid": item["oid"], "size": item["size"]}
                if item["oid"] not in self.hub.large:
                    self.hub.uploads.append(item["oid"])
                    answer["actions"] = {
                        "upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}"}
                    }
                answers.append(answer)
            return self._json({"transfer": "basic", "objects": answers})
        if found := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/(.+)", path):
            with self.hub.lock:
                return self._commit(found[1], body)
        return self._missing("EntryNotFound")

    def _commit(self, repo: str, body: bytes) -> None:
        files = dict(self.hub.commits[repo][-1])
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            match item["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    if value["path"] not in files:
                        return self._json({"error": "no such file"}, 400)
                    del files[value["path"]]
        self.hub.commits[repo].append(files)
        number = len(self.hub.commits[repo]) - 1
        where = f"{self.hub.endpoint}/datasets/{repo}/commit/{number:040d}"
        return self._json({"success": True, "commitOid": f"{number:040d}", "commitUrl": where})


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """Run a hub without repositories."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer((HOST, 0), handler)
    hub.endpoint = f"http://{HOST}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, name="hub", daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
