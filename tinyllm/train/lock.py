"""Exclusive ownership of a run directory by one process.

An operating-system lock (flock, or a byte range on Windows) on the file `lock`. The system drops it when the process ends, however it
ends, so no stale lock is left behind. The content of the file (pid, host, start time) is only shown to users.

Left out: `filelock`. Its descriptor lock replaces 15 lines, but on Windows it locks the first byte, so other processes cannot read who
holds the directory; its `FileLock` neither notices a moved directory nor works on file systems without locks.
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
_TIMEOUT = 0.3  # seconds; `owner` takes a free lock for a moment to test it
_held: dict[Path, IO[str]] = {}  # the locks of this process; closing a file releases its lock


def acquire(folder: Path) -> None:
    """Lock `folder` for this process until `release` or its end. Does nothing if this process already holds the lock.

    Creates the folder if it does not exist. On file systems without locks the folder is used unlocked.

    Raises:
        UserError (RESOURCES): another process holds the lock, or the folder is not writable.
    """
    path = folder.absolute() / NAME
    if path in _held and not _is_same_file(_held[path], path):  # the folder was moved or removed in the meantime
        release(folder)
    while path not in _held:
        file = _open(path)
        if not _try_lock_for(_TIMEOUT, file):
            file.close()
            raise _in_use(folder)
        if _is_same_file(file, path):
            _write_owner(file)
            _held[path] = file
        else:  # moved or removed between opening and locking
            file.close()


def release(folder: Path) -> None:
    """Unlock `folder` if this process holds its lock."""
    file = _held.pop(folder.absolute() / NAME, None)
    if file is not None:
        file.close()


def owner(folder: Path) -> dict[str, Any] | None:
    """Return pid, host and start time of the process that holds the lock of `folder`, or None if it is free."""
    path = folder.absolute() / NAME
    if path not in _held:
        try:
            with path.open("r+", encoding="utf-8") as file:
                if _try_lock(file):
                    return None
        except OSError:
            return None
    with contextlib.suppress(OSError, ValueError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {"pid": None, "host": None, "started": None}


def _in_use(folder: Path) -> UserError:
    found = owner(folder) or {}
    return UserError(
        f"directory is in use by another process: pid {found.get('pid')} on {found.get('host')},"
        f" since {found.get('started')}",
        where=str(folder),
        fix="wait for it to finish, or choose another --name",
        code=RESOURCES,
    )


def _open(path: Path) -> IO[str]:
    """Open the lock file for appending. This also checks that the folder is writable before anything is computed."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+", encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"run directory cannot be written to: {error.strerror}",
            where=str(path.parent),
            fix="run the command in a directory that you can write to",
            code=RESOURCES,
        ) from None


def _write_owner(file: IO[str]) -> None:
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with contextlib.suppress(OSError):  # on a full disk the lock is held all the same
        file.truncate(0)
        os.write(file.fileno(), (json.dumps(facts) + "\n").encode())


def _try_lock_for(seconds: float, file: IO[str]) -> bool:
    deadline = time.monotonic() + seconds
    while not _try_lock(file):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _is_same_file(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(file: IO[str]) -> bool:
        file.seek(1 << 30)  # a byte far beyond the text, so that other processes can still read it
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import errno
    import fcntl

    def _try_lock(file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)  # a file system without locks: continue unlocked
        return True

    def _close_in_child() -> None:
        """Close the inherited descriptors in a forked child, which would otherwise keep the lock after its parent died."""
        while _held:
            _held.popitem()[1].close()

    os.register_at_fork(after_in_child=_close_in_child)
