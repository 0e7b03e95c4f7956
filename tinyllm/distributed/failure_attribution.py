"""Find the rank that failed first among ranks that all fail within a moment.

A rank that dies closes its connections, so every other rank soon raises an error of its own. These follow-up errors are torch's, about a
lost connection or a timeout, and do not count while any rank failed in another way. Of the ranks that did, the first by time is
reported. If none did, but some timed out, the rank that neither ended nor waited is reported: it hangs.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tinyllm.errors import FAILED, HUNG_UP, INTEGRITY, INTERRUPTED, RESOURCES, STOPS, TERMINATED, UNREAD, USAGE

_FINAL = (USAGE, INTEGRITY, RESOURCES, UNREAD, *STOPS)  # exit codes after which the same command would fail again
_AGAIN = "fix: run the same command again to resume from the last checkpoint, or add --max-restarts 3"
_REASONS = {
    "SIGKILL": "often: out of memory",
    "SIGSEGV": "a crash in native code",
    "SIGABRT": "abort in native code",
    "SIGBUS": "often: a full /dev/shm or disk",
    "SIGILL": "an instruction that this processor does not support",
}


@dataclass(frozen=True)
class RankState:
    """The state of one rank, as the launcher sees it."""

    rank: int
    code: int | None = None  # exit code, negative for a signal; None while it runs
    time: float = 0.0  # when it ended, or when the launcher noticed
    done: bool = False  # it reported a normal end
    error: dict[str, Any] = field(default_factory=dict)  # what it reported (`heartbeat.report_error`)
    step: int | None = None  # last finished step
    backend: str = ""
    silent: float = 0.0  # seconds without a heartbeat while the launcher was running
    stopped: bool = False  # by SIGSTOP or a debugger, if the system reports it
    last_line: str = ""  # last line of its captured stderr


@dataclass(frozen=True)
class Failure:
    """The failure that is reported.

    Args:
        text: the message to print.
        code: the exit code.
        restart: the same command may succeed if started again.
        certain: False if the state of other ranks may still change it.
        kind: class name of the exception.
        step: last finished step of the rank.
    """

    text: str
    code: int = FAILED
    restart: bool = True
    certain: bool = True
    kind: str = ""
    step: int | None = None

    @property
    def line(self) -> str:
        """The message in one line."""
        return self.text.partition("\n")[0].removeprefix("error: ")


def find_failure(ranks: Sequence[RankState], max_silence: float) -> Failure | None:
    """Return the failure of a set of ranks as far as it is known; None if there is none.

    Args:
        max_silence: seconds without a heartbeat after which a rank counts as frozen.
    """
    own = [r for r in ranks if _failed_itself(r)]
    if own:
        return _attributed(min(own, key=lambda r: r.error.get("time", r.time)), ranks)
    frozen = [r for r in ranks if r.code is None and r.silent > max_silence]
    if frozen:
        return _hang(frozen, f"no heartbeat for {max_silence:.0f} s", ranks)
    victims = [r for r in ranks if r.error or r.code]
    if not victims:
        return None
    idle = [r for r in ranks if r.code is None and not r.error]
    first = min(victims, key=lambda r: r.error.get("time", r.time))
    if idle and any(r.error.get("waited") or r.code for r in victims):
        return _hang(idle, f"the others waited for it for {max_silence:.0f} s", ranks, certain=False)
    what = f"lost its connection to the other ranks{_place(first)}: {_first_line(first)}"
    return Failure(f"error: {_name(first, ranks)} {what}\n{_AGAIN}", certain=False, step=first.step)


def _failed_itself(r: RankState) -> bool:
    """Return True if the failure of another rank does not explain how this one ended."""
    if r.error:
        return not r.error["lost"]
    if r.code is None or (r.code == 0 and r.done):
        return False
    return not (r.code == -signal.SIGABRT and r.backend == "nccl")  # nccl's watchdog aborts ranks that timed out


def _attributed(r: RankState, ranks: Sequence[RankState]) -> Failure:
    if not r.error:
        return _ended_without_a_report(r, ranks)
    text, code = r.error["text"], r.error["code"]
    if code in STOPS:  # only the rank that received the signal knows which it was
        codes = {other.error.get("code") for other in ranks}
        code = next(
            known for known in (TERMINATED, HUNG_UP, INTERRUPTED) if known in codes
        )  # the others say INTERRUPTED
    restart = not r.error["mistake"] and code not in _FINAL
    reported_by_main = any(other.rank == 0 and other.error.get("text") == text for other in ranks)
    if not r.error["mistake"]:
        text = f"error: {_name(r, ranks)}{_place(r)}: {text.removeprefix('error: ')}"
    elif r.rank and code not in STOPS and not reported_by_main and not text.startswith(f"error: rank {r.rank}"):
        text = f"error: rank {r.rank}: {text.removeprefix('error: ')}"
    return Failure(text, code, restart, kind=r.error["kind"], step=r.step)


def _ended_without_a_report(r: RankState, ranks: Sequence[RankState]) -> Failure:
    code = r.code or 0
    if code in STOPS:  # ended by a signal before it could report
        return Failure(f"stopped by {signal.Signals(code - 128).name}", code, restart=False, step=r.step)
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else ""
        reason = ", ".join(x for x in (name, _REASONS.get(name, "")) if x)
        what = f"was killed{_place(r)} by signal {-code}" + (f" ({reason})" if reason else "")
        code = 128 - code if 128 - code in STOPS else FAILED
    else:
        what = f"exited{_place(r)} with code {code} before the run was finished"
        code = code or FAILED
    words = f": {r.last_line}" if r.last_line else ""
    text = f"error: {_name(r, ranks)} {what}{words}\n{_AGAIN}"
    return Failure(text, code, code not in _FINAL, step=r.step)


def _hang(hanging: list[RankState], why: str, ranks: Sequence[RankState], certain: bool = True) -> Failure:
    """Report the ranks that are furthest behind, of those that neither ended nor waited."""
    least = min(-1 if r.step is None else r.step for r in hanging)
    hanging = [r for r in hanging if (-1 if r.step is None else r.step) == least]
    name = _name(hanging[0], ranks) if len(hanging) == 1 else f"ranks {', '.join(str(r.rank) for r in hanging)}"
    stopped = "; the process is stopped" if any(r.stopped for r in hanging) else ""
    text = f"error: {name} hung{_place(hanging[0])}: {why}{stopped}\n{_AGAIN}"
    return Failure(text, certain=certain, step=hanging[0].step)


def _name(r: RankState, ranks: Sequence[RankState]) -> str:
    return f"rank {r.rank}" if len(ranks) > 1 else "the process"


def _place(r: RankState) -> str:
    if r.step is None:
        return ""
    return f" after step {r.step}" if r.step else " before the first step"


def _first_line(r: RankState) -> str:
    return r.error.get("text", "").partition("\n")[0].removeprefix("error: ") or f"exit code {r.code}"
