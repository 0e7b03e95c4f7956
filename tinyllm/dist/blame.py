"""Which rank has failed, and which only suffer from it.

A rank that dies takes its connections with it, so within a moment every other rank raises an error of its own. Three things tell them
apart. A victim's error is torch's about a lost connection or a wait without end, and carries no blame while anybody has failed in
another way. Of those who have, the first by time is to blame. If nobody has, but some waited in vain, then whoever neither ended nor
waited is: it hangs.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyllm.errors import FAILED, INTEGRITY, INTERRUPTED, RESOURCES, TERMINATED, USAGE

STOPS = (INTERRUPTED, TERMINATED)
_FINAL = (USAGE, INTEGRITY, RESOURCES, *STOPS)  # exit codes after which the same command would end in the same way
_AGAIN = "fix: the same command goes on from its last checkpoint; --max-restarts 3 lets it do so by itself"
_REASONS = {
    "SIGKILL": "often: out of memory",
    "SIGSEGV": "a crash in native code",
    "SIGABRT": "native code gave up",
    "SIGBUS": "often: a full /dev/shm or disk",
    "SIGILL": "an instruction this processor lacks",
}


@dataclass(frozen=True)
class Seen:
    """What the launcher knows of one rank."""

    rank: int
    code: int | None = None  # exit code, negative for a signal; None while it runs
    time: float = 0.0  # when it ended, or when the launcher noticed
    done: bool = False  # it said that it came to its end
    error: dict[str, Any] = field(default_factory=dict)  # what it recorded (`watch.record`)
    step: int | None = None  # done so far
    backend: str = ""
    silent: float = 0.0  # seconds without a sign of life, of those that the launcher was awake itself
    stopped: bool = False  # by SIGSTOP or a debugger, where the system tells
    last_words: str = ""  # of its captured stderr


@dataclass(frozen=True)
class Verdict:
    """What to print, the exit code, whether the same command may be started again, whether a little patience could change it."""

    text: str
    code: int = FAILED
    restart: bool = True
    certain: bool = True
    kind: str = ""  # of the exception
    step: int | None = None

    @property
    def line(self) -> str:
        """The culprit in one line."""
        return self.text.partition("\n")[0].removeprefix("error: ")


def judge(ranks: Sequence[Seen], patience: float) -> Verdict | None:
    """The culprit as far as is known; None while nothing is wrong. `patience`: seconds without a sign of life that are too many."""
    own = [r for r in ranks if _failed_itself(r)]
    if own:
        return _blamed(min(own, key=lambda r: r.error.get("time", r.time)), ranks)
    frozen = [r for r in ranks if r.code is None and r.silent > patience]
    if frozen:
        return _hung(frozen, f"no sign of life for {patience:.0f} s", ranks)
    victims = [r for r in ranks if r.error or r.code]
    if not victims:
        return None
    idle = [r for r in ranks if r.code is None and not r.error]
    first = min(victims, key=lambda r: r.error.get("time", r.time))
    if idle and any(r.error.get("waited") or r.code for r in victims):
        return _hung(idle, f"the others waited for it for {patience:.0f} s", ranks, certain=False)
    what = f"lost its connection to the other ranks{_place(first)}: {_said(first)}"
    return Verdict(f"error: {_name(first, ranks)} {what}\n{_AGAIN}", certain=False, step=first.step)


def _failed_itself(r: Seen) -> bool:
    """It ended in a way that the loss of another rank does not explain."""
    if r.error:
        return not r.error["lost"]
    if r.code is None or (r.code == 0 and r.done):
        return False
    return not (r.code == -signal.SIGABRT and r.backend == "nccl")  # nccl's watchdog ends the ranks that waited in vain


def _blamed(r: Seen, ranks: Sequence[Seen]) -> Verdict:
    if not r.error:
        return _ended_without_a_word(r, ranks)
    text, code = r.error["text"], r.error["code"]
    if code in STOPS:  # only the rank that heard the signal knows which it was
        code = max(other.error["code"] for other in ranks if other.error.get("code") in STOPS)
    restart = not r.error["mistake"] and code not in _FINAL
    told_by_main = any(other.rank == 0 and other.error.get("text") == text for other in ranks)
    if not r.error["mistake"]:
        text = f"error: {_name(r, ranks)}{_place(r)}: {text.removeprefix('error: ')}"
    elif r.rank and not told_by_main and not text.startswith(f"error: rank {r.rank}"):
        text = f"error: rank {r.rank}: {text.removeprefix('error: ')}"
    return Verdict(text, code, restart, kind=r.error["kind"], step=r.step)


def _ended_without_a_word(r: Seen, ranks: Sequence[Seen]) -> Verdict:
    code = r.code or 0
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else ""
        reason = ", ".join(x for x in (name, _REASONS.get(name, "")) if x)
        what = f"was ended{_place(r)} by signal {-code}" + (f" ({reason})" if reason else "")
        code = 128 - code if -code in (signal.SIGINT, signal.SIGTERM) else FAILED
    else:
        what = f"left{_place(r)} with exit code {code} before the run was done"
        code = code or FAILED
    words = f": {r.last_words}" if r.last_words else ""
    text = f"error: {_name(r, ranks)} {what}{words}\n{_AGAIN}"
    return Verdict(text, code, code not in _FINAL, step=r.step)


def _hung(them: list[Seen], why: str, ranks: Sequence[Seen], certain: bool = True) -> Verdict:
    """Of several that neither ended nor waited, those that are furthest behind."""
    least = min(-1 if r.step is None else r.step for r in them)
    them = [r for r in them if (-1 if r.step is None else r.step) == least]
    name = _name(them[0], ranks) if len(them) == 1 else f"ranks {', '.join(str(r.rank) for r in them)}"
    stopped = "; the process is stopped" if any(r.stopped for r in them) else ""
    text = f"error: {name} hung{_place(them[0])}: {why}{stopped}\n{_AGAIN}"
    return Verdict(text, certain=certain, step=them[0].step)


def _name(r: Seen, ranks: Sequence[Seen]) -> str:
    return f"rank {r.rank}" if len(ranks) > 1 else "the process"


def _place(r: Seen) -> str:
    if r.step is None:
        return ""
    return f" after step {r.step}" if r.step else " before the first step"


def _said(r: Seen) -> str:
    return r.error.get("text", "").partition("\n")[0].removeprefix("error: ") or f"exit code {r.code}"
