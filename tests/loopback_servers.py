"""Servers on loopback for tests: one with faults, nginx, moto's S3, and a stand-in for the Hub's API.

The Hub's stand-in is no Hub: it answers the handful of requests that the real huggingface_hub client makes to read and
to commit small files, and keeps everything in memory.
"""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import os
import shutil
import socket
import struct
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest


class FaultyServer(http.server.BaseHTTPRequestHandler):
    """Serves ranges of the files of `folder`, to `user` ("name:password") alone if one is named.

    faults: what goes wrong, one a request for a file whose name ends in one of `names`: a status ("503 2": with
    Retry-After), "to ADDRESS", "drop", "stall", "reset" and "cut" (after half of the bytes), "rot", "vast", "gzip",
    another file as if it were whole ("short", "long", "page"), or an odd but allowed answer: "no ranges", "chunked",
    "aligned" (whole blocks), "star" (the size is not told). taken: files and first bytes sent;
    asked: every path, as it came, and the Authorization with it.
    """

    protocol_version = "HTTP/1.1"
    folder: Path
    user = ""
    faults: list[str]
    names: tuple[str, ...] = (".tar", "model.safetensors")
    taken: list[str]
    asked: list[tuple[str, str | None]]

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        self.asked.append((self.path, authorization))
        path = self.folder / urllib.parse.unquote(self.path.partition("?")[0]).lstrip("/")
        fault = self.faults.pop(0) if self.faults and path.name.endswith(self.names) else ""
        status, _, further = fault.partition(" ")
        if self.user and authorization != f"Basic {base64.b64encode(self.user.encode()).decode()}":
            self._end(401, {"WWW-Authenticate": "Basic"})
        elif status == "to":
            self._end(302, {"Location": further})
        elif status.isdecimal():
            self._end(int(status), {"Retry-After": further} if further else {})
        elif fault == "drop":
            self._break()
        elif not path.is_file():
            self._end(404)
        else:
            if fault == "stall":
                time.sleep(1)
            with suppress(BrokenPipeError, ConnectionResetError):  # who asked has gone
                self._send(path.name, path.read_bytes(), fault)

    def _send(self, name: str, content: bytes, fault: str) -> None:
        others = {"short": content[: len(content) // 2], "long": content + content, "page": b"<html>Busy</html>"}
        content = others.get(fault, content)
        start, stop, headers = 0, len(content), {}
        if (wanted := self.headers.get("Range", "")) and fault != "no ranges":
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(int(last) + 1, len(content)) if last else len(content)
            start = start // 4096 * 4096 if fault == "aligned" else start
            total = "*" if fault == "star" else len(content)
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{total}"
        self.taken.append(f"{name} {start}")
        if start >= len(content):
            return self._end(416)
        part = content[start:stop]
        if fault == "rot":
            part = bytes([part[0] ^ 1]) + part[1:]
        if fault == "gzip":
            headers["Content-Encoding"] = "gzip"
        if fault == "chunked":
            headers["Transfer-Encoding"] = "chunked"
            part = b"%x\r\n%b\r\n0\r\n\r\n" % (len(part), part)
        else:
            headers["Content-Length"] = str(10**15 if fault == "vast" else len(part))
        self._head(206 if "Content-Range" in headers else 200, headers)
        self.wfile.write(part[: len(part) // 2] if fault in ("cut", "reset") else part)
        if fault in ("cut", "reset"):
            self._break(reset=fault == "reset")

    def _break(self, *, reset: bool = False) -> None:
        self.close_connection = True
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        else:
            self.connection.shutdown(socket.SHUT_RDWR)

    def _end(self, status: int, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": "0", **(headers or {})})

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, text in headers.items():
            self.send_header(name, text)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


class Clock:
    """The client's time, for tests of outages: nobody waits, and `pauses` holds how long it would have been."""

    def __init__(self) -> None:
        self.now, self.pauses = 0.0, list[float]()

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run a handler's server on a free port of loopback; give its address."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@contextmanager
def faulty(folder: Path, faults: list[str] | None = None, **further: Any) -> Iterator[tuple[str, type[FaultyServer]]]:
    """Serve a folder with faults; give the address and the handler, which notes what was asked for."""
    handler = type(
        "Handler",
        (FaultyServer,),
        {"folder": folder, "faults": list(faults or []), "taken": [], "asked": [], **further},
    )
    with serving(handler) as url:
        yield url, handler


def free_port() -> int:
    """Return a port of loopback on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def nginx(folder: Path, work: Path) -> Iterator[tuple[str, Path]]:
    """Serve a folder by a real nginx; give its address and its access log. Skips where it is not installed."""
    program = shutil.which("nginx")
    if program is None:
        pytest.skip("nginx is not installed: apt-get install nginx")
    work.mkdir(parents=True, exist_ok=True)
    port = free_port()
    (work / "nginx.conf").write_text(
        f"daemon off; pid {work}/pid; error_log {work}/error.log; events {{}}\n"
        f"http {{ log_format short '$request_method $uri $status $bytes_sent'; access_log {work}/access.log short;\n"
        f"server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
    for parent in (folder, *folder.parents):
        if parent.owner() == folder.owner() and str(parent).startswith(str(folder.parents[1])):
            os.chmod(parent, 0o755)
    command = [program, "-c", str(work / "nginx.conf"), "-g", "user root;" if os.getuid() == 0 else ""]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=60):
                break
            time.sleep(0.05)
        assert process.poll() is None, (work / "error.log").read_text()
        (work / "access.log").write_text("")
        yield url, work / "access.log"
    finally:
        process.terminate()
        process.wait()


@contextmanager
def moto_s3(monkeypatch: pytest.MonkeyPatch, bucket: str = "weights") -> Iterator[Any]:
    """Run moto's S3 server with one bucket, and point s3fs at it; give a boto3 client."""
    boto3 = pytest.importorskip("boto3", reason="the test extra is not installed")
    s3fs = pytest.importorskip("s3fs", reason="pip install 'inflate3d[s3]'")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        client = boto3.client("s3")
        client.create_bucket(Bucket=bucket)
        yield client
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


class HubStandIn(http.server.BaseHTTPRequestHandler):
    """A stand-in for the Hub's API: repositories of small files, one commit after another."""

    protocol_version = "HTTP/1.1"
    commits: dict[str, list[dict[str, bytes]]]
    requests: list[str]
    faults: list[str]
    names: tuple[str, ...] = (".tar", "model.safetensors")

    def do_HEAD(self) -> None:
        self._resolve(send=False)

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if "resolve" in parts:
            self._resolve(send=True)
        elif parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            if repository not in self.commits:
                return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            number = len(self.commits[repository])
            if parts[4:5] == ["tree"]:
                tree = self._tree(repository, number)
                return self._json([{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in tree.items()])
            siblings = [{"rfilename": name} for name in self._tree(repository, number)]
            self._json({"id": repository, "sha": self._sha(number), "siblings": siblings, "private": False, "tags": []})
        else:
            self._json({}, 404)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.requests.append(f"POST {path}")
        if path == "/api/repos/create":
            asked = json.loads(body)
            repository = f"{asked.get('organization') or 'someone'}/{asked['name']}"
            self.commits.setdefault(repository, [{}])
            self._json({"url": f"{self._own}/{repository}", "name": repository, "id": repository})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
            self._json({"files": [{**f, "shouldIgnore": False} for f in files]})
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[3:5]), body)
        else:
            self._json({}, 404)

    def _commit(self, repository: str, body: bytes) -> None:
        if self.faults:
            return self._json({"error": self.faults.pop(0)}, 500)
        tree = dict(self.commits[repository][-1])
        for line in body.decode().splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                tree[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                tree.pop(entry["value"]["path"], None)
        self.commits[repository].append(tree)
        sha = self._sha(len(self.commits[repository]))
        self._json({"commitOid": sha, "commitUrl": f"{self._own}/{repository}/commit/{sha}", "success": True})

    def _resolve(self, *, send: bool) -> None:
        repository, _, rest = self.path.partition("?")[0].strip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository not in self.commits:
            return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}, send=send)
        latest = len(self.commits[repository])
        numbers = {"main": latest, **{self._sha(n): n for n in range(1, latest + 1)}}
        if revision not in numbers:
            return self._json({"error": "Revision not found"}, 404, {"X-Error-Code": "RevisionNotFound"}, send=send)
        tree = self._tree(repository, numbers[revision])
        if name not in tree:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self._sha(numbers[revision])}
            return self._json({"error": "Entry not found"}, 404, headers, send=send)
        content = tree[name]
        if send:
            self.requests.append(f"GET {name}")
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        part = content[start:]
        fault = self.faults.pop(0) if send and self.faults and name == "model.safetensors" else ""
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", self._sha(numbers[revision]))
        self.send_header("Content-Length", str(len(part)))
        if "Range" in self.headers:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.requests.append(f"from {start}")
        self.end_headers()
        if send:
            if fault == "cut":
                part, self.close_connection = part[: len(part) // 2], True
            self.wfile.write(part)

    @property
    def _own(self) -> str:
        return f"http://{self.headers['Host']}"

    def _tree(self, repository: str, number: int) -> dict[str, bytes]:
        return self.commits[repository][number - 1]

    def _sha(self, number: int) -> str:
        return hashlib.sha1(str(number).encode()).hexdigest()

    def _json(self, value: Any, status: int = 200, headers: dict[str, str] | None = None, *, send: bool = True) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(content))}.items():
            self.send_header(name, text)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.end_headers()
        if send:
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def hub_stand_in(repositories: dict[str, Path] | None = None) -> Iterator[tuple[str, type[HubStandIn]]]:
    """Serve the stand-in with these directories as repositories; give HF_ENDPOINT's value and the handler."""
    commits = {
        name: [{p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}]
        for name, folder in (repositories or {}).items()
    }
    handler = type("Handler", (HubStandIn,), {"commits": commits, "requests": [], "faults": []})
    with serving(handler) as url:
        yield url, handler
