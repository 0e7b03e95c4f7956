"""A hub on 127.0.0.1, and commands that use it in the test's own process.

The server imitates what a hub answers: the files of a data set or a model with sizes and checksums, their bytes with ETag, X-Repo-Commit,
X-Linked-Size and ranges, redirects to another host for large files.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from tinyllm import cli
from tinyllm.data.hub import download as fetching

REPOSITORY, COMMIT = "some-one/tales.v1", "0123456789abcdef0123456789abcdef01234567"
STORY = "".join(f'{{"text": "story {i}"}}\n' for i in range(20_000)).encode()  # 400 kB
NOTES = b"a note\nand another\n"
FILES = {
    "data/train.jsonl": STORY,
    "notes.txt": NOTES,
    "README.md": b"# card",
    "loader.py": b"print('never')",
    ".gitattributes": b"*",
    "dataset_infos.json": b"{}",
}


@dataclass
class Fake:
    """The files of the server, its faults, and the requests it received."""

    files: dict[str, bytes] = field(default_factory=lambda: dict(FILES))
    large: set[str] = field(default_factory=lambda: {"data/train.jsonl"})  # in LFS: known by sha256
    cuts: list[int] = field(default_factory=list)  # bytes after which each answer in turn breaks off
    sent: dict[str, bytes] = field(default_factory=dict)  # other bytes than the listed ones
    status: dict[str, int] = field(default_factory=dict)  # path or "api" -> answer
    code: str = ""  # X-Error-Code of such an answer
    delay: float = 0.0  # before a file's bytes
    thinking: float = 0.0  # before the listing
    ranges: bool = True
    elsewhere: str = ""  # where large files are redirected to
    checksums: bool = True
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)  # (path, range, authorization)
    answer: bytes | None = None  # in place of the listing
    location: str | None = None  # in place of a file: a redirect
    drip: float = 0.0  # seconds between the bytes of a file
    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)  # other files than `files`, by repository

    def files_of(self, path: str) -> dict[str, bytes]:
        return next((found for name, found in self.repositories.items() if f"/{name}/" in path), self.files)

    def of(self, word: str) -> list[tuple[str, str | None, str | None]]:
        return [request for request in self.asked if word in request[0]]


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        fake: Fake = self.server.fake  # type: ignore[attr-defined]
        path = unquote(self.path.partition("?")[0])
        fake.asked.append((path, self.headers.get("Range"), self.headers.get("Authorization")))
        if path.startswith("/api/"):
            self._api(fake, path)
        else:
            self._file(fake, re.sub(r"^(?:/datasets)?/[^/]+/[^/]+/resolve/\w+/|^/store/", "", path))

    def _api(self, fake: Fake, path: str) -> None:
        time.sleep(fake.thinking)
        if status := fake.status.get("api"):
            self._say(status, b"no", {"X-Error-Code": fake.code} if fake.code else {})
            return
        if fake.answer is not None:
            self._say(200, fake.answer, {"Content-Type": "application/json"})
            return
        siblings = []
        for name, data in fake.files_of(path).items():
            git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            row: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git if fake.checksums else None}
            if name in fake.large:
                row["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
            siblings.append(row)
        facts = {"id": REPOSITORY, "sha": COMMIT, "siblings": siblings, "cardData": {"license": "mit"}}
        self._say(200, json.dumps(facts).encode(), {"Content-Type": "application/json"})

    def _file(self, fake: Fake, name: str) -> None:
        if status := fake.status.get(name):
            self._say(status, b"no", {})
            return
        if fake.location is not None:
            self._say(302, b"", {"Location": fake.location})
            return
        if name in fake.large and fake.elsewhere and not self.path.startswith("/store/"):
            self._say(302, b"", {"Location": f"{fake.elsewhere}/store/{name}"})
            return
        time.sleep(fake.delay)
        data = fake.sent.get(name, fake.files_of(self.path).get(name))
        if data is None:
            self._say(404, b"no", {})
            return
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1]) if fake.ranges else 0
        if start >= len(data):
            self._say(416, b"", {})
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(data)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        cut = fake.cuts.pop(0) if fake.cuts else len(data)
        if fake.drip:
            self._drip(data[start:], fake.drip)
        else:
            self.wfile.write(data[start : start + cut])
        self.close_connection = True

    def _drip(self, data: bytes, seconds: float) -> None:
        try:
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(seconds)
        except OSError:  # the client has left
            return

    def _say(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def serve() -> Iterator[Callable[..., Fake]]:
    servers = []

    def start(**settings: Any) -> Fake:
        server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        fake = Fake(**settings, address=f"http://127.0.0.1:{server.server_port}")
        server.fake = fake  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return fake

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@dataclass
class Ran:
    code: int
    out: str
    err: str
    seconds: float

    @property
    def result(self) -> dict[str, Any]:
        assert self.code == 0, self.err
        return json.loads(self.out)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """`tinyllm …` in an empty folder, with no settings, no token and no cache of the person who runs the tests."""
    constants = pytest.importorskip("huggingface_hub.constants")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(fetching, "_RETRY_DELAYS", (0.01, 0.01, 0.01))
    for name in ("ENDPOINT", "TOKEN", "HUB_OFFLINE", "HUB_DOWNLOAD_TIMEOUT", "HUB_ETAG_TIMEOUT", "HUB_CACHE"):
        monkeypatch.delenv(f"HF_{name}", raising=False)
    monkeypatch.delenv("TRANSFORMERS_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def run(*arguments: str, fake: Fake | None = None, **environment: str) -> Ran:
        if fake:
            environment["HF_ENDPOINT"] = fake.address
        began = time.monotonic()
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            code = cli.run([*arguments])
        output = capsys.readouterr()
        return Ran(code, output.out, output.err, time.monotonic() - began)

    return run


@pytest.fixture
def download(command: Callable[..., Ran]) -> Callable[..., Ran]:
    """`tinyllm data download …`; see `command`."""
    return partial(command, "data", "download")
