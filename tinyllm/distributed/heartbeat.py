"""Heartbeats of a rank for its launcher: it is alive, its last step, its error, its normal end.

They are files in the folder TINYLLM_RANKS, which the launcher sets; without it every function here does nothing. Files survive the rank
however it ends, and can be read while it is frozen.

    beat-N    its modification time is the heartbeat, renewed every second by a thread; content: the last step, and the backend
    error-N   JSON: the error, its time, the exit code, and whether it only follows from the failure of another rank
    done-N    the rank ended normally; exit code 0 without this file is a process that exited early
    ../begun  written by the launcher: an earlier start has begun to train
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from tinyllm.distributed import ranks
from tinyllm.errors import UserError

FOLDER = "TINYLLM_RANKS"
BEGUN = "begun"
_WIDTH = 32  # bytes of a beat file, which is overwritten in place
_LOST = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
)  # in the messages that torch raises when another rank is gone


class _Beat:
    """The open heartbeat file of this rank."""

    file: BinaryIO | None = None
    step: int | None = None
    backend = ""

    @classmethod
    def write(cls) -> None:
        if cls.file is not None:
            step = "" if cls.step is None else cls.step
            with suppress(OSError):
                cls.file.seek(0)
                cls.file.write(f"{step} {cls.backend}".ljust(_WIDTH).encode())


def folder() -> Path | None:
    """Return the folder that the launcher reads; None if this process was not started by ours."""
    found = os.environ.get(FOLDER)
    return Path(found) if found and os.path.isdir(found) else None


def start() -> None:
    """Start the heartbeat."""
    there = folder()
    if there is None or _Beat.file is not None:
        return
    _Beat.file = (there / f"beat-{ranks.rank()}").open("wb", buffering=0)
    _Beat.write()
    threading.Thread(target=_live, args=(there / f"beat-{ranks.rank()}",), daemon=True).start()


def _live(path: Path) -> None:
    """Renew the heartbeat. When the launcher is gone, stop this process in order: finish the step and save."""
    parent, seconds = os.getppid(), min(1.0, ranks.timeout() / 4)
    while os.getppid() == parent:
        try:
            os.utime(path)
        except OSError:  # the launcher removes the folder when it is done
            break
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(ranks.timeout())
    os._exit(1)


def beat(step: int) -> None:
    """Report the number of finished steps: one short write, and only under a launcher."""
    _Beat.step = step
    _Beat.write()


def report_backend(backend: str) -> None:
    """Report the backend of the process group."""
    _Beat.backend = backend
    _Beat.write()


def training_has_begun() -> bool:
    """Return True if an earlier start of this command has begun to train, so that this one resumes it."""
    there = folder()
    return there is not None and (there.parent / BEGUN).exists()


def report_error(text: str, code: int, error: BaseException | None = None) -> bool:
    """Report an error to the launcher, which prints the one that came first. Returns False without a launcher: the caller prints."""
    there = folder()
    if there is None:
        return False
    found = {
        "time": time.time(),
        "text": text,
        "code": code,
        "kind": type(error).__name__ if error else "",
        "mistake": isinstance(error, UserError) or error is None,
        "lost": is_connection_loss(error),
        "waited": "timed out" in str(error).lower() or "timeout" in str(error).lower(),
    }
    path = there / f"error-{ranks.rank()}"
    with suppress(OSError):  # the launcher may read at any time, so the file appears in one rename
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(found, allow_nan=False), encoding="utf-8")
        os.replace(draft, path)
        return True
    return False


def report_end() -> None:
    """Report that this rank ended normally and has written its files."""
    there = folder()
    if there is not None:
        with suppress(OSError):
            (there / f"done-{ranks.rank()}").touch()


def is_connection_loss(error: BaseException | None) -> bool:
    """Return True if an exception, or its cause, is what torch raises when another rank has failed."""
    if isinstance(error, UserError):  # raised on purpose, whatever its cause
        return False
    while error is not None:
        if _raised_by_torch(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _raised_by_torch(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in _LOST)
