"""One file from a hub: resumed where an earlier attempt stopped, and believed only with the hub's own size and checksum.

It is written to `NAME.HASH.part`, so that versions never mix, and gets its name by a rename when all is well. Left out: parallel parts.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from tinyllm.data.hub import Hub, Listing, Refused, Remote
from tinyllm.errors import INTEGRITY, RESOURCES, UserError

_WAITS = (0.5, 1.0, 2.0)  # seconds before trying again without having got a byte
_CHUNK = 1 << 20
_PASSING = (408, 416, 429)  # answers that another try may change


def fetch(hub: Hub, listing: Listing, remote: Remote, to: Path, progress: Callable[[int], None]) -> str:
    """Fetch one file to `to`; its sha256.

    Args:
        progress: is told how many bytes there are by now.

    Raises:
        UserError: the connection broke for good or the disk is full (RESOURCES; what is there is kept); another size or
            checksum than the hub's (INTEGRITY; what is there is removed).
    """
    wanted = remote.sha256 or remote.git_sha1
    if not wanted:
        what, fix = f"the hub gives no checksum for {remote.path}", "use the public hub: unset HF_ENDPOINT"
        raise UserError(what, where=hub.endpoint, fix=fix, code=INTEGRITY)
    part = to.with_name(f"{to.name}.{wanted[:12]}.part")
    with _writing(to):
        to.parent.mkdir(parents=True, exist_ok=True)
        with part.open("a+b") as file:
            sums = _Sums(remote)
            file.seek(0)
            sums.read(file)
            _fill(hub, hub.address(listing, remote.path), file, sums, progress)
            file.flush()
            os.fsync(file.fileno())
        if not sums.match():
            part.unlink()
            what = f"{remote.path}: {sums.size:,} bytes came that are not the hub's {remote.size:,} by their checksum"
            raise UserError(what, where=hub.host, fix="run the same command again", code=INTEGRITY)
        os.replace(part, to)
    return sums.sha256.hexdigest()


def matches(file: Path, remote: Remote) -> str | None:
    """The sha256 of a file that is what the hub has; None for any other."""
    if not file.is_file() or file.stat().st_size != remote.size:
        return None
    sums = _Sums(remote)
    with _writing(file), file.open("rb") as opened:
        sums.read(opened)
    return sums.sha256.hexdigest() if sums.match() else None


class _Sums:
    """Size and checksums of what has come of one file."""

    def __init__(self, remote: Remote):
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


def _fill(hub: Hub, url: str, file: IO[bytes], sums: _Sums, progress: Callable[[int], None]) -> None:
    """Read until the size is reached. Whoever brings bytes may break as often as it likes; silence is given up on."""
    waits = list(_WAITS)
    progress(sums.size)
    while sums.size < sums.remote.size:
        before = sums.size
        why = _attempt(hub, url, file, sums, progress)
        if sums.size >= sums.remote.size:
            return
        if sums.size > before:
            waits = list(_WAITS)
        if not waits:
            what = f"{sums.remote.path}: {sums.size:,} of {sums.remote.size:,} bytes came, then {why}"
            fix = "run the same command again: it goes on from there"
            raise UserError(what, where=hub.host, fix=fix, code=RESOURCES)
        time.sleep(waits.pop(0))


def _attempt(hub: Hub, url: str, file: IO[bytes], sums: _Sums, progress: Callable[[int], None]) -> str:
    """Read as much as comes; why no more did."""
    headers = {"Range": f"bytes={sums.size}-"} if sums.size else {}
    try:
        with hub.get(url, headers) as response:
            if sums.size and response.status_code != 206:  # the whole file again
                _restart(file, sums)
            for chunk in response.iter_raw():  # as they come: a chunk half full would be lost with the connection
                file.write(chunk)
                sums.add(chunk)
                progress(sums.size)
                if sums.size > sums.remote.size:
                    break
    except hub.broken as error:
        return str(error) or type(error).__name__
    except Refused as refused:
        if refused.status < 500 and refused.status not in _PASSING:
            raise hub.refusal(refused.status, "", sums.remote.path) from None
        if refused.status == 416:  # nothing behind what is there: it is not this file's beginning
            _restart(file, sums)
        return f"answer {refused.status}"
    return "the connection was closed"


def _restart(file: IO[bytes], sums: _Sums) -> None:
    file.seek(0)
    file.truncate()
    sums.reset()


@contextlib.contextmanager
def _writing(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        fix = "free some disk space and run the same command again" if full else "choose another --out"
        raise UserError(f"cannot be written: {error.strerror}", where=str(to), fix=fix, code=RESOURCES) from error
