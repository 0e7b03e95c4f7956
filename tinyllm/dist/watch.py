"""What a rank lets its launcher know: that it lives, which step it has done, what went wrong, that it came to its end.

Files in a folder that the launcher names in TINYLLM_RANKS; without it every function here does nothing. Files, because they outlive
the rank, however it ends, and because they can be read while it is frozen.

    beat-N    its time is the sign of life, renewed every second by a thread; inside: the step done, and the backend
    error-N   JSON: what went wrong, when, the exit code, and whether it is only what the loss of another rank looks like
    done-N    it came to its end: exit code 0 without it is a process that left early
    ../begun  from the launcher: an earlier start has begun to train
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

from tinyllm import dist
from tinyllm.errors import UserError

FOLDER = "TINYLLM_RANKS"
BEGUN = "begun"
_WIDTH = 32  # of what is in a beat file, so that it is overwritten in place
_LOST = (
    "gloo",
    "nccl",
    "connection closed by peer",
    "connection reset by peer",
)  # in what torch raises when another rank is gone


class _Beat:
    """The file of this rank's signs of life."""

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
    """Where the launcher reads, if a launcher of ours has started this process."""
    found = os.environ.get(FOLDER)
    return Path(found) if found and os.path.isdir(found) else None


def begin() -> None:
    """Give signs of life from now on."""
    there = folder()
    if there is None or _Beat.file is not None:
        return
    _Beat.file = (there / f"beat-{dist.rank()}").open("wb", buffering=0)
    _Beat.write()
    threading.Thread(target=_live, args=(there / f"beat-{dist.rank()}",), daemon=True).start()


def _live(path: Path) -> None:
    """Renew the sign of life; end in order (finish the step, save) when there is no launcher any more."""
    parent, seconds = os.getppid(), min(1.0, dist.timeout() / 4)
    while os.getppid() == parent:
        try:
            os.utime(path)
        except OSError:  # the launcher removes the folder when it is done
            break
        time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(dist.timeout())
    os._exit(1)


def beat(step: int) -> None:
    """So many steps are done. Cheap: one short write, and only under a launcher."""
    _Beat.step = step
    _Beat.write()


def uses(backend: str) -> None:
    _Beat.backend = backend
    _Beat.write()


def has_begun() -> bool:
    """Whether an earlier start of this same command has begun to train, so that this one is to continue it."""
    there = folder()
    return there is not None and (there.parent / BEGUN).exists()


def record(text: str, code: int, error: BaseException | None = None) -> bool:
    """Leave an error to the launcher, which prints the one that matters. False where there is none: the caller prints."""
    there = folder()
    if there is None:
        return False
    found = {
        "time": time.time(),
        "text": text,
        "code": code,
        "kind": type(error).__name__ if error else "",
        "mistake": isinstance(error, UserError) or error is None,
        "lost": lost(error),
        "waited": "timed out" in str(error).lower() or "timeout" in str(error).lower(),
    }
    path = there / f"error-{dist.rank()}"
    with suppress(OSError):
        draft = path.with_suffix(".new")
        draft.write_text(json.dumps(found), encoding="utf-8")
        os.replace(draft, path)
        return True
    return False


def done() -> None:
    """This rank came to its end and everything it had to write is written."""
    there = folder()
    if there is not None:
        with suppress(OSError):
            (there / f"done-{dist.rank()}").touch()


def lost(error: BaseException | None) -> bool:
    """Whether an exception, or one behind it, is what torch raises when another rank is gone: a victim's, not a culprit's."""
    if isinstance(error, UserError):  # somebody has looked at what was behind it
        return False
    while error is not None:
        if _is_torch_s(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _is_torch_s(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and isinstance(error, torch.distributed.DistError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(mark in text for mark in _LOST)
