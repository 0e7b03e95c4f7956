"""A connection to a Hugging Face hub: the files of a data set or a model, and GET requests for them.

The network is used in this folder and nowhere else in the package: by `tinyllm data download`, and by `--checkpoint OWNER/NAME` for a
model that is not in the cache. `huggingface_hub` (extra `hub`)
finds the token and knows the addresses. Its own requests are not used: `hf_hub_download` starts again from nothing after an interruption
(version 2.4 writes to a file of the process and removes it), and `HfApi` has no limit on the time and the size of an answer.

The hub is not trusted. Only https is used, except for a hub on this machine, also after redirects; the token is sent to the hub only: a
redirect to another host, which stores the large files, is followed without it. Left out: pickles and scripts, uploading, Xet (its chunks
cannot be resumed from a file), parallel files.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urljoin, urlsplit

from tinyllm import __version__
from tinyllm.data.hub import answers, pace
from tinyllm.data.hub.answers import DATASET, Kind, Listing
from tinyllm.data.sources.errors import preview
from tinyllm.errors import RESOURCES, UserError

EXTRA = "pip install 'tinyllm-lifecycle[hub]'"
_CONNECT_SECONDS = 8.0  # until a missing network is reported
_MAX_REDIRECTS = 5
_THIS_MACHINE = ("localhost", "127.0.0.1", "::1")


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, read as huggingface_hub does."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """Return HF_ENDPOINT, or the address of the public hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


@dataclass
class Hub:
    """A connection to `endpoint`.

    Raises: UserError (RESOURCES) in offline mode, without the extra `hub`, and if the endpoint cannot be reached.
    """

    endpoint: str = field(default_factory=endpoint)

    def __post_init__(self) -> None:
        if offline():
            what = "HF_HUB_OFFLINE is set, so nothing is downloaded"
            raise UserError(what, where="HF_HUB_OFFLINE", fix="unset HF_HUB_OFFLINE", code=RESOURCES)
        self.rate = pace.lowest_rate()
        seconds = _seconds("HF_HUB_DOWNLOAD_TIMEOUT")
        self._to_list = _seconds("HF_HUB_ETAG_TIMEOUT")
        try:
            import httpx2
            import huggingface_hub
        except ImportError as error:
            what = f"downloading needs huggingface_hub 2 or newer, which is not installed ({error.name})"
            raise UserError(what, fix=EXTRA, code=RESOURCES) from error
        self.transport_error: type[Exception] = httpx2.RequestError
        self._library = huggingface_hub
        try:
            self.origin = _origin(self.endpoint)
        except ValueError as error:
            what, fix = (
                f"HF_ENDPOINT {preview(self.endpoint)}: {error}",
                "set it to a URL such as https://huggingface.co",
            )
            raise UserError(what, where="HF_ENDPOINT", fix=fix) from None
        self.host = self.origin[1]
        self.token = _token(huggingface_hub.get_token())
        timeout = httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
        self._client = httpx2.Client(follow_redirects=False, timeout=timeout)
        self._begin_seconds = max(seconds, pace.WINDOW)
        _check_reachable(self.origin)

    def close(self) -> None:
        self._client.close()

    def listing(self, repository: str, revision: str | None, kind: Kind = DATASET) -> Listing:
        """Return the files of a repository at a revision, by one request.

        Raises:
            UserError: no such repository or revision, or a token is needed (USAGE); not the answer of a hub (RESOURCES).
        """
        url = f"{self.endpoint}/api/{kind.name}s/{repository}/revision/{quote(revision or 'main', safe='')}?blobs=true"
        found, measured = bytearray(), pace.Pace(self.rate)
        try:
            with self.get(url, {}, timeout=self._to_list) as response:
                for chunk in response.iter_bytes():
                    found += chunk
                    measured.add(len(chunk))
                    if len(found) > answers.MAX_BYTES:
                        raise self._not_a_hub(f"its answer is larger than {answers.MAX_BYTES:,} bytes")
        except BadStatus as bad:
            raise self.status_error(bad.status, bad.code, repository, kind) from None
        except (self.transport_error, pace.SlowError) as error:
            raise unreachable(self.host, str(error) or type(error).__name__) from error
        try:
            return answers.parse(bytes(found), repository, kind)
        except ValueError as error:
            raise self._not_a_hub(str(error)) from None

    def url(self, listing: Listing, path: str) -> str:
        """Return the URL of a file."""
        return self._library.hf_hub_url(
            listing.repository, path, repo_type=listing.kind.name, revision=listing.revision, endpoint=self.endpoint
        )

    @contextlib.contextmanager
    def get(self, url: str, headers: dict[str, str], timeout: float | None = None) -> Iterator[Any]:
        """Send a GET request and follow redirects.

        Raises:
            BadStatus: an answer other than 200 and 206.
            SlowError: no answer although the server sends something.
            UserError: a redirect to where we do not go (RESOURCES).
        """
        headers = {"User-Agent": f"tinyllm/{__version__}", "Accept-Encoding": "identity", **headers}
        for _ in range(_MAX_REDIRECTS):
            token = self.token if _origin(url) == self.origin else None
            sent = {**headers, "Authorization": f"Bearer {token}"} if token else headers
            with contextlib.closing(self._send(url, sent, timeout)) as response:
                if response.status_code not in (301, 302, 303, 307, 308):
                    if response.status_code not in (200, 206):
                        raise BadStatus(response.status_code, response.headers.get("X-Error-Code", ""))
                    yield response
                    return
                url = self._redirected(url, response.headers.get("Location", ""))
        raise UserError(f"more than {_MAX_REDIRECTS} redirects", where=self.host, fix="try again later", code=RESOURCES)

    def _send(self, url: str, headers: dict[str, str], timeout: float | None) -> Any:
        """Return the response once its headers have come. In a thread: a header of one byte every few seconds never times out."""
        found: list[Any] = []
        done = threading.Event()
        more: dict[str, Any] = {} if timeout is None else {"timeout": timeout}

        def send() -> None:
            try:
                found.append(
                    self._client.send(self._client.build_request("GET", url, headers=headers, **more), stream=True)
                )
            except Exception as error:
                found.append(error)
            done.set()

        threading.Thread(target=send, daemon=True).start()
        if not done.wait(self._begin_seconds):
            raise pace.SlowError(self.rate)
        if isinstance(found[0], Exception):
            raise found[0]
        return found[0]

    def _redirected(self, url: str, location: str) -> str:
        try:
            target = urljoin(url, location)
            if _origin(target)[0] != "https" and _origin(url)[0] == "https":
                raise ValueError("it is not https")
        except ValueError as error:
            what = f"a redirect to {preview(location, 80)} was not followed: {error}"
            fix = "check the network: another server answers in place of the hub"
            raise UserError(what, where=self.host, fix=fix, code=RESOURCES) from None
        return target

    # --- errors ------------------------------------------------------------------------------------------------------------------

    def _not_a_hub(self, why: str) -> UserError:
        fix = "unset HF_ENDPOINT, or check the network"
        return UserError(f"this server is not a hub: {why}", where=self.endpoint, fix=fix, code=RESOURCES)

    def status_error(self, status: int, code: str, what: str, kind: Kind, repository: str = "") -> UserError:
        """Return the error for a status of 400 or more.

        Args:
            code: the hub's X-Error-Code.
            what: the file or the repository that was asked for.
            repository: that of the file.
        """
        status = _MEANINGS.get(code, status)
        if status not in _STATUS_ERRORS:
            why = "too many requests" if status == 429 else f"answer {status}"
            return UserError(f"the hub refused: {why}", where=self.host, fix="try again later", code=RESOURCES)
        why, with_token, without = _STATUS_ERRORS[status]
        name = repository or what
        find = kind.find.format(endpoint=self.endpoint, name=name.rpartition("/")[2])
        places = {"page": f"{self.endpoint}/{kind.page}{name}", "endpoint": self.endpoint, "find": find}
        fix = (with_token if self.token else without).format(**places)
        return UserError(f"{what}: {why.format(missing=kind.missing)}", where=self.host, fix=fix)


_MEANINGS = {
    "RevisionNotFound": -1,
    "GatedRepo": 403,
    "RepoNotFound": 404,
}  # without a token the public hub answers 401 to the last
_STATUS_ERRORS = {  # status: its meaning, the fix if there is a token, the fix if there is none
    -1: ("there is no such revision", "look for it at {page}/commits/main", "look for it at {page}/commits/main"),
    401: (
        "the hub requires a token (401)",
        "set HF_TOKEN to a valid token, or unset it",
        "{find}; if it is private, set HF_TOKEN",
    ),
    403: (
        "its terms must be accepted first (403)",
        "accept them at {page} with the account of your token, then run the same command again",
        "accept them at {page}, and set HF_TOKEN to a token of {endpoint}/settings/tokens",
    ),
    404: ("{missing}", "{find}", "{find}; if it is private, set HF_TOKEN"),
}


def _seconds(name: str) -> float:
    """Return one of huggingface_hub's timeouts, 10 seconds by default."""
    value = os.environ.get(name) or "10"
    if not value.isdecimal() or not int(value):
        raise UserError(f"{preview(value)} is not a number of seconds", where=name, fix=f"unset {name}")
    return float(value)


class BadStatus(Exception):  # noqa: N818 (often only counted)
    """An HTTP status other than 200 and 206, and the hub's X-Error-Code."""

    def __init__(self, status: int, code: str = ""):
        super().__init__(status)
        self.status, self.code = status, code


def unreachable(host: str, why: str) -> UserError:
    """Return the error for a host without an answer."""
    fix = "check the network, or name a mirror: HF_ENDPOINT=https://…"
    return UserError(f"{host} cannot be reached: {why}", where=host, fix=fix, code=RESOURCES)


def _check_reachable(origin: tuple[str, str, int]) -> None:
    """Open a connection with a short timeout: name servers and unreachable addresses may take minutes to fail.

    Skipped behind a proxy, which would only be reached itself. Raises: UserError (RESOURCES).
    """
    scheme, host, port = origin
    if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    failed: list[str] = []
    done = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            failed.append(error.strerror or str(error))
        except UnicodeError as error:  # a host name that DNS cannot hold
            failed.append(str(error))
        done.set()

    threading.Thread(target=connect, daemon=True).start()
    if not done.wait(_CONNECT_SECONDS):
        failed.append(f"no answer in {_CONNECT_SECONDS:.0f} seconds")
    if failed:
        raise unreachable(host, failed[0])


def _origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port. Raises: ValueError, with the reason, for a URL that is malformed or not encrypted."""
    parts = urlsplit(url)
    host, port = (parts.hostname or "").lower(), parts.port  # of both, reading may raise
    if parts.scheme not in ("http", "https") or not host:
        raise ValueError("it is not a URL")
    if parts.scheme == "http" and host not in _THIS_MACHINE:
        raise ValueError("it is not https")
    return parts.scheme, host, port or {"http": 80, "https": 443}[parts.scheme]


def _token(text: str | None) -> str | None:
    if text and not (text.isascii() and text.isprintable()):
        what = "the token has characters that no token has"
        raise UserError(what, where="HF_TOKEN", fix="set HF_TOKEN to a valid token, or unset it")
    return text
