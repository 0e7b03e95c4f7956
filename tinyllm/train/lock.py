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
from tinyllm.io import strict_json

NAME = "lock"
_TIMEOUT = 0.3  # seconds; `is_held` takes a free lock for a moment to test it
_held: dict[Path, IO[str]] = {}  # the locks of this process; closing a file releases its lock


def acquire(folder: Path, *, fix: str = "wait for it to finish, or choose another --name") -> None:
    """Lock `folder` for this process until `release` or its end. Does nothing if this process already holds the lock.

    Creates the folder if it does not exist. On file systems without locks the folder is used unlocked.

    Args:
        fix: the suggestion where another process holds the lock.

    Raises:
        UserError (RESOURCES): another process holds the lock, or the folder is not writable.
    """
    path = folder.absolute() / NAME
    if path in _held and not _is_same_file(_held[path], path):  # the folder was moved or removed in the meantime
        _held.pop(path).close()
    while path not in _held:
        file = _open(path)
        if not _try_lock_for(_TIMEOUT, file):
            file.close()
            if path.exists():
                raise _in_use(folder, fix)
        elif _is_same_file(file, path):
            _write_owner(file)
            _held[path] = file
        else:  # moved or removed between opening and locking
            file.close()


def release(folder: Path) -> None:
    """Unlock `folder` if this process holds its lock, and clear the content of the file: a free lock names no owner."""
    file = _held.pop(folder.absolute() / NAME, None)
    if file is not None:
        with contextlib.suppress(OSError):
            file.truncate(0)
        file.close()


def check(folder: Path) -> None:
    """Check before writing that a folder locked by this process is still at its path.

    Writing would otherwise begin a second directory beside the one that was moved.
    Raises: UserError (RESOURCES) if it was moved, removed or replaced.
    """
    path = folder.absolute() / NAME
    if path in _held and not _is_same_file(_held[path], path):
        place = _present_place(_held[path])
        fix = f"move it back from {place}" if place else "move it back"
        raise UserError(
            "the run directory was moved or removed while the run was writing to it",
            where=str(folder),
            fix=f"{fix}, then run the same command again",
            code=RESOURCES,
        )


def is_held(folder: Path) -> bool | None:
    """Return whether a process holds the lock of `folder`; None where that cannot be told.

    It cannot where the file may not be read (a run of another user), and where the file system has no locks but an owner is recorded.
    Reading suffices, so it works for a folder on a read-only mount.
    """
    path = folder.absolute() / NAME
    if path in _held:
        return _is_same_file(_held[path], path)
    try:
        with _open_to_test(path) as file:
            found = _try_lock(file)
            return None if found is None and _read_owner(path) else not (found is None or found)
    except FileNotFoundError:
        return False
    except OSError:
        return None


def owner(folder: Path) -> dict[str, Any] | None:
    """Return pid, host and start time of the process that holds the lock of `folder`; None if it is free or that cannot be told."""
    if not is_held(folder):
        return None
    return _read_owner(folder.absolute() / NAME) or {"pid": None, "host": None, "started": None}


def _read_owner(path: Path) -> dict[str, Any]:
    """Return the content of a lock file, empty if there is none."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _in_use(folder: Path, fix: str) -> UserError:
    found, deadline = _living_owner(folder), time.monotonic() + _TIMEOUT
    while not found and time.monotonic() < deadline:  # it has locked the file and not yet written its name
        time.sleep(0.02)
        found = _living_owner(folder)
    who = f": pid {found.get('pid')} on {found.get('host')}, since {found.get('started')}" if found else ""
    return UserError(f"directory is in use by another process{who}", where=str(folder), fix=fix, code=RESOURCES)


def _living_owner(folder: Path) -> dict[str, Any]:
    """Return who is recorded in a lock file; empty where that process has ended, so that another one must hold the lock."""
    found = _read_owner(folder.absolute() / NAME)
    pid = found.get("pid")
    if sys.platform != "win32" and type(pid) is int and found.get("host") == socket.gethostname():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return {}
        except (OSError, OverflowError):  # a process of another user
            pass
    return found


def _open(path: Path) -> IO[str]:
    """Open the lock file for appending. This also checks that the folder is writable before anything is computed."""
    for attempt in range(5):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # another process moved the folder aside in between
            if attempt < 4:
                continue
            reason = "it is moved or removed again and again"
        except OSError as error:
            reason = str(error.strerror)
        break
    raise UserError(
        f"run directory cannot be written to: {reason}",
        where=str(path.parent),
        fix="run the command in a directory that you can write to",
        code=RESOURCES,
    )


def _open_to_test(path: Path) -> IO[str]:
    """Open a lock file for writing, which locks need on network file systems, or where that is not allowed for reading."""
    try:
        return path.open("r+", encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError:
        return path.open("r", encoding="utf-8")


def _present_place(file: IO[str]) -> str:
    """Return the folder that an open lock file is in now, where the system can tell (Linux); else an empty text."""
    with contextlib.suppress(OSError):
        place = Path(os.readlink(f"/proc/self/fd/{file.fileno()}"))
        if _is_same_file(file, place):
            return str(place.parent)
    return ""


def _write_owner(file: IO[str]) -> None:
    facts = {"pid": os.getpid(), "host": socket.gethostname(), "started": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
    with contextlib.suppress(OSError):  # on a full disk the lock is held all the same
        file.truncate(0)
        os.write(file.fileno(), (strict_json.dumps(facts) + "\n").encode())


def _try_lock_for(seconds: float, file: IO[str]) -> bool:
    deadline = time.monotonic() + seconds
    while _try_lock(file) is False:
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

    def _try_lock(file: IO[str]) -> bool | None:
        file.seek(1 << 30)  # a byte far beyond the text, so that other processes can still read it
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

else:
    import errno
    import fcntl

    def _try_lock(file: IO[str]) -> bool | None:
        """Return True if the lock was taken, False if it is held, None on a file system without locks."""
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return False if error.errno in (errno.EAGAIN, errno.EACCES) else None
        return True

    def _close_in_child() -> None:
        """Close the inherited descriptors in a forked child, which would otherwise keep the lock after its parent died."""
        while _held:
            _held.popitem()[1].close()

    os.register_at_fork(after_in_child=_close_in_child)
