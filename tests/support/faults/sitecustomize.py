"""Faults for ranks: with this folder on PYTHONPATH every Python process loads this file, and those whose turn it is come to harm.

FAULTS is a list of `RANK:STEP:WHAT`, parted by commas. When its launcher knows that a rank has done so many steps, WHAT happens to it:
kill, stop (SIGKILL, SIGSTOP), term (SIGTERM), raise, user, leave (an exception, a UserError, sys.exit(0), raised in its main thread),
vanish (os._exit(0)), full (it can write no file of more than 2,000 bytes from then on). Each happens once: a rank that is started again
is spared; what has happened is noted in the folder FAULTS_NOTES, with the time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path


def _raise(error: BaseException) -> None:
    """In the main thread, wherever it is."""

    def handler(number: int, frame: object) -> None:
        raise error

    signal.signal(signal.SIGUSR1, handler)


def _harm(what: str) -> None:
    if what in ("kill", "stop", "term"):
        os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[what])
    elif what == "vanish":
        os._exit(0)
    elif what == "full":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.RLIM_INFINITY))
    else:
        os.kill(os.getpid(), signal.SIGUSR1)


def _wait(beat: Path, step: int, what: str, note: Path) -> None:
    while True:
        done = beat.read_text().split(" ")[0] if beat.exists() else ""
        if done.isdecimal() and int(done) >= step:
            note.write_text(repr(time.time()))
            _harm(what)
            return
        time.sleep(0.001)


def _plan() -> None:
    for fault in filter(None, os.environ.get("FAULTS", "").split(",")):
        rank, step, what = fault.split(":")
        note = Path(os.environ["FAULTS_NOTES"]) / fault
        if rank != os.environ.get("RANK", "0") or "TINYLLM_RANKS" not in os.environ or note.exists():
            continue
        if what == "raise":
            _raise(ValueError("planted\nby a test"))
        elif what == "leave":
            _raise(SystemExit(0))
        elif what == "user":
            from tinyllm.errors import INTEGRITY, UserError

            _raise(UserError("planted", where="by a test", fix="do not", code=INTEGRITY))
        beat = Path(os.environ["TINYLLM_RANKS"]) / f"beat-{rank}"
        threading.Thread(target=_wait, args=(beat, int(step), what, note), daemon=True).start()
        return  # one at a time, in the order of the list


if "-m" in sys.orig_argv and "tinyllm" in sys.orig_argv:
    _plan()
