"""One owner per run directory.

A lock of the operating system on the file `lock` (flock, LockFileEx on Windows), which ends with the process that holds it, however it
ends: nothing is left behind that somebody has to clear away, as with files that hold a process number. What the file says (pid, host,
start) is for people.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import IO, Any

from tinyllm.errors import RESOURCES, UserError

NAME = "lock"
_PATIENCE = 0.3  # seconds; `holder` takes the lock for a moment to see whether somebody has it
_held: dict[Path, IO[str]] = {}  # by this process: closing one lets it go


def claim(folder: Path) -> None:
    """Make `folder` this process's own until `release` or its end; safe to call again.

    Raises: UserError (RESOURCES) where another process is at work in it, or where it cannot be written to.
    """
    path = folder.absolute() / NAME
    if path in _held and not _same(_held[path], path):  # the folder was moved or removed meanwhile
        release(folder)
    while path not in _held:
        file = _opened(path)
        if not _locked_within(_PATIENCE, file):
            owner = holder(folder) or {}
            file.close()
            raise UserError(
                f"another process is at work in this run: pid {owner.get('pid')} on {owner.get('host')}, since {owner.get('started')}",
                where=str(folder),
                fix="wait for it, or choose another --name",
                code=RESOURCES,
            )
        if _same(file, path):  # it may have been moved aside or removed between opening and locking
            facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
            with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
                file.truncate(0)
                os.write(file.fileno(), (json.dumps(facts) + "\n").encode())
            _held[path] = file
        else:
            file.close()


def release(folder: Path) -> None:
    """Let `folder` go, if this process holds it."""
    file = _held.pop(folder.absolute() / NAME, None)
    if file is not None:
        file.close()


def holder(folder: Path) -> dict[str, Any] | None:
    """pid, host and start of the process at work in `folder`; None if there is none."""
    path = folder.absolute() / NAME
    if path not in _held:
        try:
            with path.open("r+", encoding="utf-8") as file:
                if _lock(file):
                    return None
        except OSError:
            return None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {"pid": None, "host": None, "started": None}


def _opened(path: Path) -> IO[str]:
    """Making the file is also how it is found out, before anything is computed, that the place can be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"the run directory cannot be written to: {error.strerror}",
            where=str(path.parent),
            fix="start the command in a folder you may write to",
            code=RESOURCES,
        ) from None


def _locked_within(seconds: float, file: IO[str]) -> bool:
    deadline = time.monotonic() + seconds
    while not _lock(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _same(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> bool:
        file.seek(1 << 30)  # a byte far behind the text, so that others can still read who holds it
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import errno
    import fcntl

    def _lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)  # a file system without locks: go on without
        return True
