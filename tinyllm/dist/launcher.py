"""`--nproc` and `--max-restarts`: start the ranks, watch them, end all when one fails, start them again.

The ranks find each other by the environment variables torchrun would set. They are started here and not by torchrun, because its
launcher turns every exit code into 1, costs seconds, does not run on Windows, and prints the errors of all ranks.

Nothing here imports torch, and nothing here takes part in the run: what the launcher knows it reads from exit codes and from the
files of `watch`. It cannot hang with the ranks, and it can be killed without harm (they finish their step, save, and end).
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

from tinyllm import dist
from tinyllm.dist import watch
from tinyllm.dist.blame import STOPS, Seen, Verdict, judge
from tinyllm.errors import OK

_POLL = 0.1  # seconds between two looks
_GRACE = 2.0  # for the others to notice by themselves and write down what they must, once the culprit is known
_DOUBT = 3.0  # for a better culprit to show, while only victims are known
_ONCE = 1.0  # seconds in which a signal that comes twice is one: `timeout`, for one, sends it to the process and to its group
_PORTS = 5  # times to look for another port, when somebody was faster


def launch(ranks: int, command: Sequence[str], restarts: int = 0, *, debug: bool = False) -> int:
    """Run `command` as `ranks` processes of this machine and return its exit code; what went wrong has been said on stderr.

    Args:
        ranks: 1 is a single process without torch.distributed, watched in the same way.
        restarts: how often to start again after a failure that is nobody's mistake.
        debug: let every rank print what it likes.
    """
    root = Path(tempfile.mkdtemp(prefix="tinyllm-ranks-"))
    try:
        with _Signals().listening() as signals:
            verdict = _attempts(ranks, command, restarts, root, signals, debug)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if verdict is None:
        return OK
    _print(verdict.text)
    return verdict.code


def _attempts(
    ranks: int, command: Sequence[str], restarts: int, root: Path, signals: _Signals, debug: bool
) -> Verdict | None:
    """Start after start, until one comes to its end (None), or the last word is spoken."""
    ports, done, earlier = _PORTS, 0, None
    while True:
        attempt = _Attempt(Path(tempfile.mkdtemp(dir=root)), signals, debug)
        verdict = attempt.run(ranks, command)
        if verdict is None or signals.count:
            return verdict
        if attempt.begun:
            (root / watch.BEGUN).touch()
        if verdict.kind == "PortTakenError" and ports and ranks > 1:
            ports -= 1
            continue
        if done == restarts or not verdict.restart:
            return verdict
        if _same(verdict, earlier):
            what, _, fix = verdict.text.partition("\n")
            return replace(verdict, text=f"{what}; the same as before, so it was not started again\n{fix}".rstrip())
        done, earlier = done + 1, verdict
        _print(f"restarting ({done} of {restarts}): {verdict.line}")


def _same(verdict: Verdict, earlier: Verdict | None) -> bool:
    """An exception that comes back at the same step comes from the step."""
    return earlier is not None and bool(verdict.kind) and (verdict.line, verdict.step) == (earlier.line, earlier.step)


def _print(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class _Signals:
    """SIGINT and SIGTERM go on to the ranks, which finish their step and save; the second one ends them at once.

    The ranks are in sessions of their own, so what a terminal sends on Ctrl-C reaches only the launcher, and each rank hears it once.
    """

    def __init__(self) -> None:
        self.count = 0
        self.last = 0.0
        self.code = 0
        self.name = ""
        self.processes: list[subprocess.Popen[bytes]] = []

    @contextmanager
    def listening(self) -> Iterator[_Signals]:
        handlers: dict[int, Callable[[int, Any], None]] = {signal.SIGINT: self._stop, signal.SIGTERM: self._stop}
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
        if self.count and now - self.last < _ONCE:
            return
        self.count, self.last = self.count + 1, now
        self.code, self.name = 128 + number, signal.Signals(number).name
        if self.count > 1:
            self.send(signal.SIGKILL if os.name == "posix" else signal.SIGTERM)
        elif os.name == "posix":  # on Windows the console has told them, too
            self.send(number)

    def _pause(self, number: int, frame: Any) -> None:
        """Ctrl-Z: the ranks rest as long as the launcher does."""
        self.send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self.send(signal.SIGCONT)

    def send(self, number: int) -> None:
        for process in self.processes:
            with suppress(ProcessLookupError):
                process.send_signal(number)


class _Rank:
    """One process, and what is known of it."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], folder: Path):
        self.number, self.process, self.folder = number, process, folder
        self.ended = 0.0
        self.silent, self._beat = 0.0, 0

    def look(self, awake: float) -> Seen:
        """What there is to know. `awake`: seconds since the last look in which this process was awake itself."""
        code = self.process.poll()
        if code is not None and not self.ended:
            self.ended = time.time()
        beat = self.folder / f"beat-{self.number}"
        step, backend = self._read_beat(beat)
        changed = beat.stat().st_mtime_ns
        self.silent = self.silent + awake if changed == self._beat else 0.0
        self._beat = changed
        return Seen(
            rank=self.number,
            code=code,
            time=self.ended,
            done=(self.folder / f"done-{self.number}").exists(),
            error=self._read_error(),
            step=step,
            backend=backend,
            silent=self.silent,
            stopped=_is_stopped(self.process.pid),
            last_words=self._last_words() if code is not None and code < 0 else "",
        )

    def _read_beat(self, path: Path) -> tuple[int | None, str]:
        step, _, backend = path.read_text().strip("\0").partition(" ")
        return (int(step) if step.isdecimal() else None), backend.strip()

    def _read_error(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / f"error-{self.number}").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def _last_words(self) -> str:
        """The last line of a captured stderr: what native code says before it gives up."""
        with suppress(OSError):
            lines = (self.folder / f"said-{self.number}").read_text(encoding="utf-8", errors="replace").split("\n")
            return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
        return ""


def _is_stopped(pid: int) -> bool:
    """Whether a process is held by SIGSTOP or a debugger; False where the system does not say."""
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
            in "Tt"
        )
    except (OSError, IndexError):
        return False


class _Attempt:
    """All ranks, from one start to one end."""

    def __init__(self, folder: Path, signals: _Signals, debug: bool):
        self.folder, self.signals, self.debug = folder, signals, debug
        self.patience = dist.timeout()
        self.ranks: list[_Rank] = []
        self.begun = False  # to train

    def run(self, ranks: int, command: Sequence[str]) -> Verdict | None:
        """None when every rank came to its end."""
        self.signals.processes = []
        try:
            for number, own in enumerate(dist.environments(ranks) if ranks > 1 else [{}]):
                (self.folder / f"beat-{number}").touch()  # a process that does not even begin is frozen, too
                process = self._start(number, command, own)
                self.ranks.append(_Rank(number, process, self.folder))
                self.signals.processes.append(process)
            if self.signals.count:  # meanwhile, and not all have heard it
                self.signals.send(signal.SIGTERM)
            return self._watch()
        finally:
            for rank in self.ranks:
                rank.process.kill()
                rank.process.wait()

    def _start(self, number: int, command: Sequence[str], own: dict[str, str]) -> subprocess.Popen[bytes]:
        """Rank 0 speaks for all; what the others say is kept until it is known whether it matters."""
        environment = {**os.environ, **own, watch.FOLDER: str(self.folder)}
        if self.debug:
            return subprocess.Popen(command, env=environment, start_new_session=True)
        if number == 0:
            return subprocess.Popen(command, env=environment, start_new_session=True)
        with (self.folder / f"said-{number}").open("wb") as said:
            return subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
            )

    def _watch(self) -> Verdict | None:
        looked, doubted = time.monotonic(), 0.0
        while True:
            now = time.monotonic()
            seen = self._look(
                min(now - looked, 10 * _POLL)
            )  # whoever was stopped itself cannot say that others were silent
            looked = now
            if all(r.code == 0 and r.done for r in seen):
                return None
            verdict = judge(seen, self.patience)
            if verdict is not None:
                doubted = doubted or now
                if verdict.certain:
                    return self._last_look(verdict)
                if now - doubted > _DOUBT:
                    return self._stopped(seen, verdict) if self.signals.count else verdict
            if self.signals.count > 1:
                return self._stopped(seen, verdict)
            time.sleep(_POLL)

    def _look(self, awake: float) -> list[Seen]:
        seen = [rank.look(awake) for rank in self.ranks]
        self.begun = self.begun or any(r.step is not None for r in seen)
        return seen

    def _last_look(self, verdict: Verdict) -> Verdict:
        """Let the others find out by themselves; one of them may have failed before."""
        stops = verdict.code in STOPS
        deadline = time.monotonic() + (self.patience if stops else _GRACE)
        seen = self._look(0.0)
        while time.monotonic() < deadline and any(r.code is None for r in seen) and self.signals.count < 2:
            time.sleep(_POLL)
            seen = self._look(0.0)
        verdict = judge(seen, self.patience) or verdict
        return self._stopped(seen, verdict) if self.signals.count else verdict

    def _stopped(self, seen: list[Seen], verdict: Verdict | None) -> Verdict:
        """The signal that the launcher was given decides, unless something else went wrong on the way."""
        if verdict is not None and verdict.code not in STOPS and self.signals.count == 1:
            return verdict
        told = next((r.error["text"] for r in seen if r.error.get("code") in STOPS and r.error["mistake"]), "")
        if self.signals.count > 1 or not told:
            told = f"error: stopped by {self.signals.name}; what was not saved is lost"
        return Verdict(told, self.signals.code, restart=False)
