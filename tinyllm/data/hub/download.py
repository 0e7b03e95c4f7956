"""Download of one file from a hub, resumed after interruptions and checked against the hub's size and checksum.

It is written to `NAME.HASH.part`, so that versions never mix, and renamed when it is complete. Left out: parallel downloads.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from tinyllm.data.hub.answers import Listing, RemoteFile
from tinyllm.data.hub.api import BadStatus, Hub
from tinyllm.data.hub.pace import Pace, SlowError
from tinyllm.errors import INTEGRITY, RESOURCES, UserError
from tinyllm.io.files import writing

_RETRY_DELAYS = (0.5, 1.0, 2.0)  # seconds before the attempts after one that gave no byte
_CHUNK = 1 << 20
_RETRIABLE = (408, 416, 429)  # as are all from 500 on


def fetch(hub: Hub, listing: Listing, remote: RemoteFile, to: Path, progress: Callable[[int], None]) -> str:
    """Download one file to `to`; return its sha256.

    Args:
        progress: called with the number of bytes that are on disk.

    Raises:
        UserError: the connection failed or was too slow repeatedly, or the disk is full (RESOURCES; partial data are kept); another
            size or checksum than the hub's (INTEGRITY; the data are removed).
    """
    checksum = remote.sha256 or remote.git_sha1
    if not checksum:
        what, fix = f"the hub gives no checksum for {remote.path}", "use the public hub: unset HF_ENDPOINT"
        raise UserError(what, where=hub.endpoint, fix=fix, code=INTEGRITY)
    part = to.with_name(f"{to.name}.{checksum[:12]}.part")
    with writing(to, fix=listing.kind.elsewhere):
        to.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as file:
            sums = _Checksums(remote)
            file.seek(0)
            sums.read(file)
            _fill(hub, listing, file, sums, progress)
            file.flush()
            os.fsync(file.fileno())
        if not sums.match():
            part.unlink()
            what = f"{remote.path}: size or checksum of the {sums.size:,} received bytes is not the hub's ({remote.size:,} bytes)"
            raise UserError(what, where=hub.host, fix="run the same command again", code=INTEGRITY)
        os.replace(part, to)
    return sums.sha256.hexdigest()


def matches(file: Path, remote: RemoteFile) -> str | None:
    """Return the sha256 of a file that equals the hub's; None for any other file."""
    if not file.is_file() or file.stat().st_size != remote.size:
        return None
    sums = _Checksums(remote)
    with writing(file, what="cannot be read"), file.open("rb") as opened:
        sums.read(opened)
    return sums.sha256.hexdigest() if sums.match() else None


class _Checksums:
    """Size and checksums of the part of a file that was received."""

    def __init__(self, remote: RemoteFile):
        self.remote = remote
        self.reset()

    def reset(self) -> None:
        self.size = 0
        self.sha256 = hashlib.sha256()
        self._git = hashlib.sha1(b"blob %d\0" % self.remote.size, usedforsecurity=False)

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self.sha256.update(chunk)
        if self.remote.sha256 is None:
            self._git.update(chunk)

    def read(self, file: IO[bytes]) -> None:
        while chunk := file.read(_CHUNK):
            self.add(chunk)

    def match(self) -> bool:
        if self.remote.sha256:
            same = self.sha256.hexdigest() == self.remote.sha256
        else:
            same = self._git.hexdigest() == self.remote.git_sha1
        return same and self.size == self.remote.size


def _fill(hub: Hub, listing: Listing, file: IO[bytes], sums: _Checksums, progress: Callable[[int], None]) -> None:
    """Download until the file has its size. Consecutive attempts below the lowest rate, or without new bytes, count as failures."""
    delays, furthest = list(_RETRY_DELAYS), sums.size
    progress(sums.size)
    while sums.size < sums.remote.size:
        pace = Pace(hub.rate)
        why = _attempt(hub, listing, file, sums, progress, pace)
        if sums.size >= sums.remote.size:
            return
        if pace.is_sufficient() and sums.size > furthest:  # a server that starts over each time gets no further
            delays, furthest = list(_RETRY_DELAYS), sums.size
        if not delays:
            what = f"{sums.remote.path}: {sums.size:,} of {sums.remote.size:,} bytes received, then {why}"
            fix = "run the same command again, it resumes from there"
            raise UserError(what, where=hub.host, fix=fix, code=RESOURCES)
        time.sleep(delays.pop(0))


def _attempt(
    hub: Hub, listing: Listing, file: IO[bytes], sums: _Checksums, progress: Callable[[int], None], pace: Pace
) -> str:
    """Download as much as possible in one request; return the reason why it ended."""
    headers = {"Range": f"bytes={sums.size}-"} if sums.size else {}
    try:
        with hub.get(hub.url(listing, sums.remote.path), headers) as response:
            if sums.size and response.status_code != 206:  # the whole file again
                _restart(file, sums)
            for chunk in response.iter_raw():  # as received: a chunk that is not full would be lost with the connection
                file.write(chunk)
                sums.add(chunk)
                progress(sums.size)
                if sums.size > sums.remote.size:
                    break
                pace.add(len(chunk))
    except (hub.transport_error, SlowError) as error:
        return str(error) or type(error).__name__
    except BadStatus as bad:
        if bad.status < 500 and bad.status not in _RETRIABLE:
            raise hub.status_error(bad.status, bad.code, sums.remote.path, listing.kind, listing.repository) from None
        if bad.status == 416:  # the range starts after the end: what is there is not the beginning of this file
            _restart(file, sums)
        return f"answer {bad.status}"
    return "the connection was closed"


def _restart(file: IO[bytes], sums: _Checksums) -> None:
    file.seek(0)
    file.truncate()
    sums.reset()
