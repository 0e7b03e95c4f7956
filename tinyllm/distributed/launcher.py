"""Launcher of `--nproc` and `--max-restarts`: start the ranks, monitor them, stop all when one fails, restart.

Ranks get the environment variables that torchrun would set. torchrun itself is not used here: it turns every exit code into 1, takes
seconds, does not run on Windows, and prints the errors of all ranks.

The launcher does not import torch and takes no part in the run. It reads exit codes and the files of `heartbeat`, so it cannot hang
with the ranks. If it is killed, they finish their step, save, and exit.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from tinyllm import signals as own_signals
from tinyllm.distributed import heartbeat
from tinyllm.distributed.failure_attribution import Failure, RankState, find_failure
from tinyllm.distributed.ranks import environments, timeout
from tinyllm.errors import OK, STOPS, escape_unprintable

_POLL_SECONDS = 0.1  # between polls
_GRACE_SECONDS = 2.0  # for the other ranks to stop by themselves and report, once the failed one is known
_UNCERTAIN_SECONDS = 3.0  # to wait for the original failure while only follow-up errors are known
_ECHO_SECONDS = 1.0  # in which a repeated signal counts once: `timeout` sends it to the process and to its group
_PORTS = 5  # attempts to find a free port


def launch(ranks: int, command: Sequence[str], restarts: int = 0, *, debug: bool = False) -> int:
    """Run `command` as `ranks` processes on this machine and return its exit code. Errors are printed on stderr.

    Args:
        ranks: 1 is a single process without torch.distributed, monitored in the same way.
        restarts: maximum number of restarts after failures that are not user errors.
        debug: show the output of every rank.
    """
    root = Path(tempfile.mkdtemp(prefix="tinyllm-ranks-"))
    try:
        with own_signals.holding(), _Signals().listening() as signals:
            failure = _attempts(ranks, command, restarts, root, signals, debug)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if failure is None:
        return OK
    if failure.text:
        _print(failure.text)
    return failure.code


def _attempts(
    ranks: int, command: Sequence[str], restarts: int, root: Path, signals: _Signals, debug: bool
) -> Failure | None:
    """Start the command until it ends normally (None), or fails for the last time."""
    ports, done, earlier = _PORTS, 0, None
    while True:
        attempt = _Attempt(Path(tempfile.mkdtemp(dir=root)), signals, debug)
        failure = attempt.run(ranks, command)
        if failure is None or signals.count:
            return failure
        if attempt.training_begun:
            (root / heartbeat.BEGUN).touch()
        if failure.kind == "PortTakenError" and ports and ranks > 1:
            ports -= 1
            continue
        if done == restarts or not failure.restart:
            return failure
        if _same(failure, earlier):
            what, _, fix = failure.text.partition("\n")
            return replace(failure, text=f"{what}; the same failure as before, not restarted\n{fix}".rstrip())
        done, earlier = done + 1, failure
        _print(f"restarting ({done} of {restarts}): {failure.line}")


def _same(failure: Failure, earlier: Failure | None) -> bool:
    """Return True for the same exception at the same step: restarting will not help."""
    return earlier is not None and bool(failure.kind) and (failure.line, failure.step) == (earlier.line, earlier.step)


def _print(text: str) -> None:
    print(
        escape_unprintable(text, keep="\n\t"), file=sys.stderr, flush=True
    )  # a rank's last line may be of native code


class _Signals:
    """Forwards SIGINT, SIGTERM and SIGHUP to the ranks, which finish their step and save. A second signal kills them.

    The ranks run in their own sessions, so Ctrl-C reaches only the launcher, and each rank receives it once.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.code = 0
        self.name = ""
        self.processes: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def listening(self) -> Iterator[_Signals]:
        handlers: dict[int, Callable[[int, Any], None]] = {
            number: self._stop for number in own_signals.STOPS if signal.getsignal(number) is not signal.SIG_IGN
        }
        if os.name == "posix":
            handlers[signal.SIGTSTP] = self._pause
        old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
        try:
            yield self
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: Any) -> None:
        now = time.monotonic()
        if self.count and now - self.last < _ECHO_SECONDS:
            return
        self.count, self.last = self.count + 1, now
        self.code, self.name = 128 + number, signal.Signals(number).name
        if self.count > 1:
            self.send(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        elif os.name == "posix":  # on Windows the console signals them as well
            self.send(number)

    def _pause(self, number: int, frame: Any) -> None:
        """Ctrl-Z suspends the ranks together with the launcher."""
        self.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.send(signal.SIGCONT)

    def send(self, number: int) -> None:
        """Send a signal to all ranks that still run."""
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)


class _Rank:
    """One process and its state."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], folder: Path):
        self.number, self.process, self.folder = number, process, folder
        self.ended = 0.0
        self.silent, self._beat = 0.0, 0

    def poll(self, awake: float) -> RankState:
        """Return the state of the rank. `awake`: seconds since the last poll in which the launcher itself was running."""
        code = self.process.poll()
        if code is not None and not self.ended:
            self.ended = time.time()
        beat = self.folder / f"beat-{self.number}"
        step, backend = self._read_beat(beat)
        changed = beat.stat().st_mtime_ns
        self.silent = self.silent + awake if changed == self._beat else 0.0
        self._beat = changed
        return RankState(
            rank=self.number,
            code=code,
            time=self.ended,
            done=(self.folder / f"done-{self.number}").exists(),
            error=self._read_error(),
            step=step,
            backend=backend,
            silent=self.silent,
            stopped=_is_stopped(self.process.pid),
            last_line=self._last_line() if code is not None and code < 0 else "",
        )

    def _read_beat(self, path: Path) -> tuple[int | None, str]:
        step, _, backend = path.read_text().strip("\0").partition(" ")
        return (int(step) if step.isdecimal() else None), backend.strip()

    def _read_error(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.folder / f"error-{self.number}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return found

    def _last_line(self) -> str:
        """Return the last line of the captured stderr, where native code reports why it aborts."""
        with suppress(OSError):
            lines = (self.folder / f"output-{self.number}").read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""


def _is_stopped(pid: int) -> bool:
    """Return True if a process is stopped by SIGSTOP or a debugger; False if the system does not report it."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            in "Tt"
        )
    except (OSError, IndexError):
        return False


class _Attempt:
    """One start of all ranks."""

    def __init__(self, folder: Path, signals: _Signals, debug: bool):
        self.folder, self.signals, self.debug = folder, signals, debug
        self.max_silence = timeout()
        self.ranks: list[_Rank] = []
        self.training_begun = False

    def run(self, ranks: int, command: Sequence[str]) -> Failure | None:
        """Run all ranks. Returns None if every one ended normally."""
        self.signals.processes = []
        try:
            for number, own in enumerate(environments(ranks) if ranks > 1 else [{}]):
                (self.folder / f"beat-{number}").touch()  # a process that never starts is frozen, too
                process = self._start(number, command, own)
                self.ranks.append(_Rank(number, process, self.folder))
                self.signals.processes.append(process)
            if self.signals.count:  # during the start, so not all ranks received it
                self.signals.send(signal.SIGTERM)
            return self._monitor()
        finally:
            for rank in self.ranks:
                rank.process.kill()
                rank.process.wait()

    def _start(self, number: int, command: Sequence[str], own: dict[str, str]) -> subprocess.Popen[bytes]:
        """Start one rank. Only rank 0 prints; the output of the others is captured."""
        environment = {**os.environ, **own, heartbeat.FOLDER: str(self.folder)}
        if self.debug or number == 0:
            return subprocess.Popen(command, env=environment, start_new_session=True)
        with (self.folder / f"output-{number}").open("wb") as output:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def _monitor(self) -> Failure | None:
        polled, suspected = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            # a launcher that was suspended cannot count that time as silence of the ranks
            seen = self._poll_ranks(min(now - polled, 10 * _POLL_SECONDS))
            polled = now
            if all(r.code == 0 and r.done for r in seen):
                return None
            failure = find_failure(seen, self.max_silence)
            if failure is not None:
                suspected = suspected or now
                if failure.certain:
                    return self._settle(failure)
                if now - suspected > _UNCERTAIN_SECONDS:
                    return self._stopped(seen, failure) if self.signals.count else failure
            if self.signals.count > 1:
                return self._stopped(seen, failure)
            time.sleep(_POLL_SECONDS)

    def _poll_ranks(self, awake: float) -> list[RankState]:
        seen = [rank.poll(awake) for rank in self.ranks]
        self.training_begun = self.training_begun or any(r.step is not None for r in seen)
        return seen

    def _settle(self, failure: Failure) -> Failure:
        """Wait for the other ranks to stop by themselves: one of them may have failed earlier."""
        stops = failure.code in STOPS
        deadline = time.monotonic() + (self.max_silence if stops else _GRACE_SECONDS)
        seen = self._poll_ranks(0.0)
        while time.monotonic() < deadline and any(r.code is None for r in seen) and self.signals.count < 2:
            time.sleep(_POLL_SECONDS)
            seen = self._poll_ranks(0.0)
        failure = find_failure(seen, self.max_silence) or failure
        return self._stopped(seen, failure) if self.signals.count else failure

    def _stopped(self, seen: list[RankState], failure: Failure | None) -> Failure:
        """Report the signal that the launcher received, unless something else failed."""
        if failure is not None and failure.code not in STOPS and self.signals.count == 1:
            return failure
        message = next((r.error["text"] for r in seen if r.error.get("code") in STOPS and r.error["mistake"]), "")
        if self.signals.count > 1 or not message:
            lost = "; progress since the last checkpoint is lost" if self.training_begun else ""
            message = f"stopped by {self.signals.name}{lost}"
        return Failure(message, self.signals.code, restart=False)
