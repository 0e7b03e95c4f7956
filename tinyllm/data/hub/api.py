"""A connection to a Hugging Face hub: the files of a data set, and GET requests for them.

The network is used in this folder and nowhere else in the package, and only by `tinyllm data download`. `huggingface_hub` (extra `hub`)
lists a repository and finds the token. Files are downloaded by `download`, because `hf_hub_download` starts again from nothing after an
interruption (version 2.4 writes to a file of the process and removes it).

The token is sent to the hub only: a redirect to another host, which stores the large files, is followed without it, and a redirect from
https to http is not followed. Left out: models and scripts, uploading, Xet (its chunks cannot be resumed from a file), parallel files.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urljoin, urlsplit

from tinyllm import __version__
from tinyllm.data.sources.errors import preview
from tinyllm.data.sources.paths import SUFFIXES
from tinyllm.errors import RESOURCES, UserError

EXTRA = "pip install 'tinyllm-lifecycle[hub]'"
_CONNECT_SECONDS = 8.0  # until a missing network is reported
_MAX_REDIRECTS = 5
_NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # metadata of other programs


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository, as the hub describes it: large files have `sha256`, others `git_sha1` (of the git blob)."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """The data files of a repository at one commit."""

    repository: str
    revision: str
    """the commit"""
    license: str | None
    files: tuple[RemoteFile, ...]


def offline() -> bool:
    """Return whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, read as huggingface_hub does."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """Return HF_ENDPOINT, or the address of the public hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def data_suffixes() -> tuple[str, ...]:
    """Return the suffixes of data files, also with .gz: those our readers open, except .md (a data set's card)."""
    return tuple(suffix for suffix in SUFFIXES if suffix != ".md")


def is_data_file(path: str) -> bool:
    """Return whether our readers could open this file: never a script, a card, or a hidden file."""
    pure = PurePosixPath(path)
    hidden = any(part.startswith(".") and part != ".." for part in pure.parts)  # for ".." see is_safe_path
    return not hidden and pure.name not in _NOT_DATA and pure.name.lower().removesuffix(".gz").endswith(data_suffixes())


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
        seconds = _seconds("HF_HUB_DOWNLOAD_TIMEOUT")
        self._timeout = _seconds("HF_HUB_ETAG_TIMEOUT")
        try:
            import httpx2
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError as error:
            what = f"downloading needs huggingface_hub 2 or newer, which is not installed ({error.name})"
            raise UserError(what, fix=EXTRA, code=RESOURCES) from error
        # otherwise it requests a list of agents from the hub, and sends the version of torch
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        self.transport_error: type[Exception] = httpx2.TransportError
        self._library = huggingface_hub
        self.host = urlsplit(self.endpoint).hostname or ""
        if urlsplit(self.endpoint).scheme not in ("http", "https") or not self.host:
            what, fix = f"HF_ENDPOINT {self.endpoint!r} is not a URL", "set it to a URL such as https://huggingface.co"
            raise UserError(what, where="HF_ENDPOINT", fix=fix)
        timeout = httpx2.Timeout(seconds, connect=min(seconds, _CONNECT_SECONDS))
        self._client = httpx2.Client(follow_redirects=False, timeout=timeout)
        _check_reachable(self.endpoint)

    def close(self) -> None:
        self._client.close()

    def listing(self, repository: str, revision: str | None) -> Listing:
        """Return the data files of a data set at a revision, by one request.

        Raises:
            UserError: no such data set or revision, or a token is needed (USAGE); not the answer of a hub (RESOURCES).
        """
        api = self._library.HfApi(endpoint=self.endpoint, library_name="tinyllm", library_version=__version__)
        with self._errors(repository):
            info = api.dataset_info(repository, revision=revision, files_metadata=True, timeout=self._timeout)
        if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
            raise self._not_a_hub(f"its commit is {preview(info.sha)}")
        license = info.card_data.get("license") if info.card_data else None
        files = []
        for entry in info.siblings or ():
            if is_data_file(entry.rfilename) and entry.size is not None:
                sha256 = entry.lfs.sha256 if entry.lfs else None
                files.append(RemoteFile(entry.rfilename, entry.size, sha256, None if sha256 else entry.blob_id))
        text = license if license is None or isinstance(license, str) else ", ".join(map(str, license))
        return Listing(repository, str(info.sha), text, tuple(files))

    def url(self, listing: Listing, path: str) -> str:
        """Return the URL of a file."""
        return self._library.hf_hub_url(
            listing.repository, path, repo_type="dataset", revision=listing.revision, endpoint=self.endpoint
        )

    @contextlib.contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """Send a GET request and follow redirects. Raises: BadStatus for an answer other than 200 and 206."""
        token = self._library.get_token()
        headers = {"User-Agent": f"tinyllm/{__version__}", "Accept-Encoding": "identity", **headers}
        for _ in range(_MAX_REDIRECTS):
            is_hub = _origin(url) == _origin(self.endpoint)
            sent = {**headers, "Authorization": f"Bearer {token}"} if token and is_hub else headers
            with self._client.stream("GET", url, headers=sent) as response:
                if response.status_code not in (301, 302, 303, 307, 308):
                    if response.status_code not in (200, 206):
                        raise BadStatus(response.status_code)
                    yield response
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                what = f"a redirect from https to {preview(target)} was not followed"
                raise UserError(
                    what, where=self.host, fix="check the network: another server answers in place of the hub"
                )
            url = target
        raise UserError(f"more than {_MAX_REDIRECTS} redirects", where=self.host, fix="try again later", code=RESOURCES)

    # --- errors ------------------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self, repository: str) -> Iterator[None]:
        errors = self._library.errors
        try:
            yield
        except errors.HfHubHTTPError as error:
            code = error.response.headers.get("X-Error-Code", "")
            raise self.status_error(error.response.status_code, code, repository) from error
        except self.transport_error as error:
            raise unreachable(self.host, str(error) or type(error).__name__) from error
        except (errors.HFValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._not_a_hub(str(error).partition("\n")[0]) from error

    def _not_a_hub(self, why: str) -> UserError:
        fix = "unset HF_ENDPOINT, or check the network"
        return UserError(f"this server is not a hub: {why}", where=self.endpoint, fix=fix, code=RESOURCES)

    def status_error(self, status: int, code: str, what: str) -> UserError:
        """Return the error for a status of 400 or more; `code` is the hub's X-Error-Code."""
        token = self._library.get_token()
        if code == "RevisionNotFound":
            status = -1
        elif code == "GatedRepo":
            status = 403
        if status not in _STATUS_ERRORS:
            why = "too many requests" if status == 429 else f"answer {status}"
            return UserError(f"the hub refused: {why}", where=self.host, fix="try again later", code=RESOURCES)
        why, with_token, without = _STATUS_ERRORS[status]
        fix = (with_token if token else without).format(page=f"{self.endpoint}/datasets/{what}")
        return UserError(f"{what}: {why}", where=self.host, fix=fix)


_CHECK_NAME = "check the name and the revision"
_STATUS_ERRORS = {  # status: its meaning, the fix if there is a token, the fix if there is none
    -1: ("there is no such revision", "look for it at {page}/commits/main", "look for it at {page}/commits/main"),
    401: (
        "the hub requires a token (401)",
        "set HF_TOKEN to a valid token, or unset it",
        f"{_CHECK_NAME}; if it is private, set HF_TOKEN",
    ),
    403: (
        "its terms must be accepted first (403)",
        "accept them at {page}",
        "accept them at {page}, and set HF_TOKEN",
    ),
    404: ("the hub does not have it (404)", _CHECK_NAME, f"{_CHECK_NAME}; if it is private, set HF_TOKEN"),
}


def _seconds(name: str) -> float:
    """Return one of huggingface_hub's timeouts, 10 seconds by default."""
    value = os.environ.get(name) or "10"
    if not value.isdecimal() or not int(value):
        raise UserError(f"{preview(value)} is not a number of seconds", where=name, fix=f"unset {name}")
    return float(value)


class BadStatus(Exception):  # noqa: N818 (often only counted)
    """An HTTP status other than 200 and 206."""

    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def unreachable(host: str, why: str) -> UserError:
    """Return the error for a host without an answer."""
    fix = "check the network, or name a mirror: HF_ENDPOINT=https://…"
    return UserError(f"{host} cannot be reached: {why}", where=host, fix=fix, code=RESOURCES)


def _check_reachable(url: str) -> None:
    """Open a connection with a short timeout: name servers and unreachable addresses may take minutes to fail.

    Skipped behind a proxy, which would only be reached itself. Raises: UserError (RESOURCES).
    """
    parts = urlsplit(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    failed: list[str] = []
    done = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
        except OSError as error:
            failed.append(error.strerror or str(error))
        done.set()

    threading.Thread(target=connect, daemon=True).start()
    if not done.wait(_CONNECT_SECONDS):
        failed.append(f"no answer in {_CONNECT_SECONDS:.0f} seconds")
    if failed:
        raise unreachable(host, failed[0])


def is_safe_path(path: str) -> bool:
    """Return whether a path from the network stays inside the folder it is joined to, on every operating system."""
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and not re.search(r'[\\:\x00-\x1f\x7f*?"<>|]', path)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)
