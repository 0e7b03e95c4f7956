"""Files of a data set on a Hugging Face hub: which there are, and fetching one of them, resumed and checked.

The network is used here and nowhere else in the package, and only when `tinyllm data download` is run. `huggingface_hub` (extra `hub`)
answers what a repository holds and finds the token; the bytes are fetched by `fetching`, because its own `hf_hub_download` begins again
from nothing after every interruption (2.4 writes to a file of the process and removes it).

The token goes to the hub alone: a redirect to another host, where the large files are, is followed without it, and one from https to
http is not followed. Left out: models and scripts, uploading, Xet (its chunks cannot be resumed from a file), parallel files.
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
from tinyllm.data.files import SUFFIXES, shown
from tinyllm.errors import RESOURCES, UserError

EXTRA = "pip install 'tinyllm-lifecycle[hub]'"
_REACH_SECONDS = 8.0  # until somebody without a network is told so
_REDIRECTS = 5
_NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # what others keep beside it


@dataclass(frozen=True)
class Remote:
    """One file of a repository, as the hub describes it. `sha256` for large files, `git_sha1` (of the git blob) for the others."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    repository: str
    revision: str
    """the commit that was asked for, or that a branch is at now"""
    licence: str | None
    files: tuple[Remote, ...]
    """data files only"""


def offline() -> bool:
    """HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set, as huggingface_hub reads them."""
    asked = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return asked.upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """HF_ENDPOINT, or the public hub."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def kinds() -> tuple[str, ...]:
    """The endings of data files, also with .gz: what our readers open, less .md, which is a data set's card."""
    return tuple(suffix for suffix in SUFFIXES if suffix != ".md")


def is_data(path: str) -> bool:
    """A file our readers could open: never a script, a card, or what is hidden."""
    pure = PurePosixPath(path)
    hidden = any(
        part.startswith(".") and part != ".." for part in pure.parts
    )  # ".." is refused aloud, see stays_inside
    return not hidden and pure.name not in _NOT_DATA and pure.name.lower().removesuffix(".gz").endswith(kinds())


@dataclass
class Hub:
    """A connection to `endpoint`.

    Raises: UserError (RESOURCES) in offline mode, without the extra, and where the endpoint cannot be reached.
    """

    endpoint: str = field(default_factory=endpoint)

    def __post_init__(self) -> None:
        if offline():
            what = "HF_HUB_OFFLINE is set, so nothing is downloaded"
            raise UserError(what, where="HF_HUB_OFFLINE", fix="unset HF_HUB_OFFLINE", code=RESOURCES)
        seconds = _seconds("HF_HUB_DOWNLOAD_TIMEOUT")
        self._patience = _seconds("HF_HUB_ETAG_TIMEOUT")
        try:
            import httpx2
            import huggingface_hub.constants
            import huggingface_hub.errors
        except ImportError as error:
            what = f"downloading needs huggingface_hub 2 or newer, which is not installed ({error.name})"
            raise UserError(what, fix=EXTRA, code=RESOURCES) from error
        # else it asks the hub for a list of agents, and names torch's version
        huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True
        self.broken: type[Exception] = httpx2.TransportError
        self._library = huggingface_hub
        self.host = urlsplit(self.endpoint).hostname or ""
        if urlsplit(self.endpoint).scheme not in ("http", "https") or not self.host:
            what, fix = f"HF_ENDPOINT {self.endpoint!r} is not an address", "set it to one like https://huggingface.co"
            raise UserError(what, where="HF_ENDPOINT", fix=fix)
        timeout = httpx2.Timeout(seconds, connect=min(seconds, _REACH_SECONDS))
        self._client = httpx2.Client(follow_redirects=False, timeout=timeout)
        _reach(self.endpoint)

    def close(self) -> None:
        self._client.close()

    def listing(self, repository: str, revision: str | None) -> Listing:
        """The data files of a data set at a revision. One request.

        Raises:
            UserError: no such data set or revision, a token is needed (USAGE); the hub does not answer as one (RESOURCES).
        """
        api = self._library.HfApi(endpoint=self.endpoint, library_name="tinyllm", library_version=__version__)
        with self._trouble(repository):
            info = api.dataset_info(repository, revision=revision, files_metadata=True, timeout=self._patience)
        if not re.fullmatch(r"[0-9a-f]{40}", str(info.sha)):
            raise self._no_hub(f"its commit is {shown(info.sha)}")
        licence = info.card_data.get("license") if info.card_data else None
        files = []
        for entry in info.siblings or ():
            if is_data(entry.rfilename) and entry.size is not None:
                sha256 = entry.lfs.sha256 if entry.lfs else None
                files.append(Remote(entry.rfilename, entry.size, sha256, None if sha256 else entry.blob_id))
        text = licence if licence is None or isinstance(licence, str) else ", ".join(map(str, licence))
        return Listing(repository, str(info.sha), text, tuple(files))

    def address(self, listing: Listing, path: str) -> str:
        return self._library.hf_hub_url(
            listing.repository, path, repo_type="dataset", revision=listing.revision, endpoint=self.endpoint
        )

    @contextlib.contextmanager
    def get(self, url: str, headers: dict[str, str]) -> Iterator[Any]:
        """A GET that follows redirects by hand. Raises: Refused for an answer that is neither 200 nor 206."""
        token = self._library.get_token()
        headers = {"User-Agent": f"tinyllm/{__version__}", "Accept-Encoding": "identity", **headers}
        for _ in range(_REDIRECTS):
            ours = _origin(url) == _origin(self.endpoint)
            sent = {**headers, "Authorization": f"Bearer {token}"} if token and ours else headers
            with self._client.stream("GET", url, headers=sent) as response:
                if response.status_code not in (301, 302, 303, 307, 308):
                    if response.status_code not in (200, 206):
                        raise Refused(response.status_code)
                    yield response
                    return
                target = urljoin(url, response.headers.get("Location", ""))
            if urlsplit(url).scheme == "https" and urlsplit(target).scheme != "https":
                what = f"a redirect from https to {shown(target)} was not followed"
                raise UserError(what, where=self.host, fix="check the network: somebody answers in the hub's place")
            url = target
        raise UserError(f"more than {_REDIRECTS} redirects", where=self.host, fix="try again later", code=RESOURCES)

    # --- what goes wrong ---------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _trouble(self, repository: str) -> Iterator[None]:
        errors = self._library.errors
        try:
            yield
        except errors.HfHubHTTPError as error:
            code = error.response.headers.get("X-Error-Code", "")
            raise self.refusal(error.response.status_code, code, repository) from error
        except self.broken as error:
            raise unreachable(self.host, str(error) or type(error).__name__) from error
        except (errors.HFValidationError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise self._no_hub(str(error).partition("\n")[0]) from error

    def _no_hub(self, why: str) -> UserError:
        fix = "unset HF_ENDPOINT, or check the network"
        return UserError(f"what answers is not a hub: {why}", where=self.endpoint, fix=fix, code=RESOURCES)

    def refusal(self, status: int, code: str, what: str) -> UserError:
        """An answer of 400 and more, in the user's terms."""
        token = self._library.get_token()
        if code == "RevisionNotFound":
            status = -1
        elif code == "GatedRepo":
            status = 403
        if status not in _REFUSALS:
            why = "too many requests" if status == 429 else f"answer {status}"
            return UserError(f"the hub refuses: {why}", where=self.host, fix="try again later", code=RESOURCES)
        why, with_token, without = _REFUSALS[status]
        fix = (with_token if token else without).format(page=f"{self.endpoint}/datasets/{what}")
        return UserError(f"{what}: {why}", where=self.host, fix=fix)


_LOOK = "check the name and the revision"
_REFUSALS = {  # status: what it means, what to do with a token, what to do without one
    -1: ("there is no such revision", "look for it at {page}/commits/main", "look for it at {page}/commits/main"),
    401: (
        "the hub wants to know who asks (401)",
        "set HF_TOKEN to a valid token, or unset it",
        f"{_LOOK}; if it is private, set HF_TOKEN",
    ),
    403: (
        "the hub gives it only to those who accepted its terms (403)",
        "accept them at {page}",
        "accept them at {page}, and set HF_TOKEN",
    ),
    404: ("the hub does not have it (404)", _LOOK, f"{_LOOK}; if it is private, set HF_TOKEN"),
}


def _seconds(name: str) -> float:
    """One of huggingface_hub's timeouts; 10 seconds by default."""
    value = os.environ.get(name) or "10"
    if not value.isdecimal() or not int(value):
        raise UserError(f"{shown(value)} is no number of seconds", where=name, fix=f"unset {name}")
    return float(value)


class Refused(Exception):  # noqa: N818 (often only counted)
    def __init__(self, status: int):
        super().__init__(status)
        self.status = status


def unreachable(host: str, why: str) -> UserError:
    fix = "check the network, or name a mirror: HF_ENDPOINT=https://…"
    return UserError(f"{host} cannot be reached: {why}", where=host, fix=fix, code=RESOURCES)


def _reach(address: str) -> None:
    """Whether anybody is there at all: name servers and unreachable addresses may take minutes to say no by themselves.

    Behind a proxy only the proxy would be asked, so that is left to the first request.
    """
    parts = urlsplit(address)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if parts.scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
        return
    failed: list[str] = []
    done = threading.Event()

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=_REACH_SECONDS).close()
        except OSError as error:
            failed.append(error.strerror or str(error))
        done.set()

    threading.Thread(target=knock, daemon=True).start()
    if not done.wait(_REACH_SECONDS):
        failed.append(f"no answer in {_REACH_SECONDS:.0f} seconds")
    if failed:
        raise unreachable(host, failed[0])


def stays_inside(path: str) -> bool:
    """Whether a name from the network, joined to a folder, lies in that folder, on every system."""
    parts = path.split("/")
    plain = all(part not in ("", ".", "..") for part in parts)
    return plain and not re.search(r'[\\:\x00-\x1f\x7f*?"<>|]', path)


def _origin(url: str) -> tuple[str, str, int | None]:
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)
