"""A run directory: configuration, facts, metrics, log and checkpoints of one run.

`config.yaml` (resolved), `run.json` (status, parent, seed, versions, command, sessions), `metrics.jsonl` (one flat object per line,
appended and flushed, so it survives a kill), `logs/` and `checkpoints/`. Rank 0 writes and holds the `lock`; the `Run` of the other ranks
does nothing. `resuming` and `changes` say what may differ when a directory with checkpoints is continued.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinyllm import __version__, console
from tinyllm import distributed as dist
from tinyllm.errors import UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.io.files import write_text_atomically, writing
from tinyllm.train import checkpoint, fast_dev_runs, lock
from tinyllm.train.changes import FREE, STEPS, Change, Continuation, moved_to

COMPLETED, RUNNING, FAILED_STATUS, STOPPED = "completed", "running", "failed", "stopped"
CHANGE = "change"  # the split of a line of metrics.jsonl that holds changed settings
_MAX_BYTES = 16 << 20  # of run.json, which lists every source
_MAX_SECONDS = 1e10  # three hundred years


@dataclass(frozen=True)
class Invocation:
    """The configuration and the options with which a stage was started.

    Args:
        yaml: the resolved configuration, as config.yaml holds it.
        fast: --fast-dev-run.
        resume: continue the run in the folder if it is the same; False moves it aside and starts over.
        allow_data_change: continue even if the data have changed since the run began.
        change: the keys given with --change; None: not even `train.steps` may change (a lifecycle has no option for it).
        rewarm: --rewarm: where `train.steps` grows, start the schedule again.
    """

    yaml: str
    fast: bool = False
    resume: bool = True
    allow_data_change: bool = False
    change: frozenset[str] | None = frozenset()
    rewarm: bool = False

    def open(self, folder: Path, facts: dict[str, Any]) -> Run:
        """Open a run directory. Raises: UserError as `Run` does, and (USAGE) if the facts differ between ranks."""
        dist.require_equal(facts)
        return Run(folder, self, facts)

    def lock_existing(self, folder: Path) -> None:
        """Lock a run directory that exists before anything that it depends on is written, such as prepared data.

        Raises: UserError (RESOURCES) if another process has locked it.
        """
        if dist.is_main() and folder.is_dir():
            lock.acquire(folder, **self.lock_fix())

    def lock_fix(self) -> dict[str, str]:
        """Return the argument `fix` of `lock.acquire`: a fast-dev-run has no name to choose."""
        return {"fix": "wait for it to finish"} if self.fast else {}


class Run:
    """One run directory, open for writing on rank 0.

    Args:
        folder: e.g. runs/pretrain/NAME.
        call: the configuration and the options; a text stands for `Invocation(text)`.
        facts: further entries of run.json: parent, data and tokenizer fingerprints, parameters.

    Raises: UserError if the directory holds another run (USAGE), one whose run.json is lost (INTEGRITY), is locked, or cannot be
    written (RESOURCES).
    """

    def __init__(self, folder: Path, call: Invocation | str, facts: dict[str, Any]):
        self.folder, self.call = folder, Invocation(call) if isinstance(call, str) else call
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.started = time.time()
        self.facts: dict[str, Any] = {}
        self.seconds_before = 0.0  # in earlier sessions
        self.tested: Any = None  # the test figures that an earlier session recorded, of the same records
        self.test_sha256 = _test_sha256(facts)
        self.plan = Continuation()
        self._began = False
        if dist.is_main():
            self._open(facts)
        self._share()

    def _open(self, facts: dict[str, Any]) -> None:
        self._make_room()
        earlier = read_facts(self.folder)
        self.seconds_before = _seconds(earlier)
        self.tested = earlier.get("test") if _test_sha256(earlier) == self.test_sha256 else None
        if checkpoint.steps(self.checkpoints):  # before the first checkpoint there is nothing to protect
            facts = self._continue(facts, earlier)
        with writing(self.folder):
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            checkpoint.clear_leftovers(self.checkpoints)
            console.Log.path = self.folder / "logs" / "run.log"
        self.facts = {"status": RUNNING, "fast_dev_run": self.call.fast, **facts, **_circumstances(self._config())}
        self._write_facts()

    def _make_room(self) -> None:
        """Lock the directory, and remove the fast-dev-run before this one, or move a run aside that shall not be resumed."""
        lock.acquire(self.folder, **self.call.lock_fix())
        saved = checkpoint.steps(self.checkpoints)
        self._refuse_to_change_nothing(bool(saved))
        if self.call.fast:
            fast_dev_runs.remove(self.folder, read_facts(self.folder))
        elif not self.call.resume and (saved or self.metrics.exists()):
            self._move_aside()

    def _config(self) -> Path:
        """Return config.yaml. One that differs in comments only stays, and so does one whose settings change when the session begins."""
        from tinyllm.train import resuming

        path = self.folder / "config.yaml"
        if not (checkpoint.steps(self.checkpoints) and resuming.settings_in(path)):
            write_text_atomically(path, self.call.yaml)
        return path

    def _continue(self, facts: dict[str, Any], earlier: dict[str, Any]) -> dict[str, Any]:
        """Check that the directory holds the same run, and plan how it goes on. Returns the facts with those of its past."""
        from tinyllm.train import resuming  # it imports the settings, which those who only read a run can do without

        call, kept = self.call, ("changes", "sessions")
        resuming.refuse_unknown_origin(self.folder, earlier, call.allow_data_change)
        changes = resuming.changed_settings(self.folder, call.yaml, earlier, call.change)
        resuming.refuse_other_parent(self.folder, facts, earlier)
        data_before = resuming.earlier_data(self.folder, facts, earlier, call.allow_data_change)
        self.plan = resuming.plan_continuation(self.folder, changes, earlier, call.yaml, rewarm=call.rewarm)
        past = {key: earlier[key] for key in kept if isinstance(earlier.get(key), list)}
        return {**facts, **past, **({"data_before": data_before} if data_before else {})}

    def _refuse_to_change_nothing(self, saved: bool) -> None:
        option = "--change" if self.call.change else "--rewarm" if self.call.rewarm else ""
        if option and (self.call.fast or not self.call.resume or not saved):
            raise UserError(
                f"{option} applies to a run that is continued, and there is none at {self.folder}",
                where=option,
                fix="use --set for a new run" if self.call.change else "leave it out",
            )

    def _move_aside(self) -> None:
        """Rename the directory to `NAME~1` and lock a new one. The old lock is held until then."""
        if sys.platform == "win32":  # it cannot rename a folder with an open file
            lock.release(self.folder)
        os.replace(self.folder, _free_name(self.folder))
        lock.acquire(self.folder)

    def _share(self) -> None:
        """Let every rank know how the run goes on, and what was recorded of it."""
        known = dist.broadcast_text(
            strict_json.dumps([self.plan.segments, self.plan.batch_size_before, self.plan.rewound, self.tested])
        )
        segments, before, rewound, self.tested = json.loads(known)
        self.plan.segments = segments and tuple((start, end) for start, end in segments)
        self.plan.batch_size_before, self.plan.rewound = before, rewound

    def begin(self, step: int, steps: int) -> None:
        """Record that a session begins after `step` of `steps` steps, and the settings that change there."""
        if not dist.is_main() or not (step < steps or self.plan.changes):
            return
        recorded, moved = moved_to(step, self.facts.get("changes", []))
        latest = {entry["key"]: entry for entry in recorded if isinstance(entry, dict) and "key" in entry}
        planned = [c.facts(step) for c in self.plan.changes if c.key != "name"]
        found = [facts for facts in planned if facts != latest.get(facts["key"])]  # else a kill came before config.yaml
        for entry in moved:
            console.say(f"{Change(entry['key'], entry['from'], entry['to'])} ({_when(entry['key'], step)})")
        if found := moved + found:
            self.log({"step": step, "split": CHANGE, **{facts["key"]: facts["to"] for facts in found}})
        if recorded or found or "changes" in self.facts:
            self.facts["changes"] = [*recorded, *found]
        for change in (c for c in self.plan.changes if c.key != STEPS):  # that one was explained when it was planned
            console.say(f"{change} ({_when(change.key, step)})")
        session = {"started": _now(), "from_step": step, "steps": steps, "command": self.facts["command"]}
        self.facts["sessions"] = [*self.facts.get("sessions", []), session]
        if self.plan.changes:
            self.facts["config_sha256"] = hashlib.sha256(self.call.yaml.encode()).hexdigest()
        self._write_facts()
        if self.plan.changes:
            write_text_atomically(self.folder / "config.yaml", self.call.yaml)
        self.plan.changes, self._began = [], True

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl. Numbers keep full precision; NaN and infinities become null, see `strict_json`."""
        if dist.is_main():
            lock.check(self.folder)
            with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(strict_json.dumps(row) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Remove the metrics of steps that will be repeated."""
        self._keep_metrics(lambda line: _step_of(line) <= step)

    def drop_test_figures(self) -> None:
        """Remove the test figures from after the first step, which will be computed again."""
        self._keep_metrics(lambda line: '"split": "test"' not in line or not _step_of(line))

    def _keep_metrics(self, keep: Callable[[str], bool]) -> None:
        if dist.is_main() and self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if keep(line)]
            if kept != lines:
                write_text_atomically(self.metrics, "".join(line + "\n" for line in kept))

    def note(self, **facts: Any) -> None:
        """Add entries to run.json."""
        if dist.is_main():
            self.facts |= facts
            self._write_facts()

    def finish(self, status: str, step: int | None = None, **facts: Any) -> None:
        """Record in run.json how and when the run ended, after which step, and the seconds of all sessions."""
        seconds = self.seconds_before + time.time() - self.started
        ended = _now()
        if self._began:
            self.facts["sessions"][-1] |= {"to_step": step, "ended": ended, "status": status}
        self.note(status=status, seconds=round(seconds, 3), ended=ended, **facts)

    def close(self) -> None:
        """Release the directory."""
        console.Log.path = None
        lock.release(self.folder)

    def _write_facts(self) -> None:
        lock.check(self.folder)
        text = strict_json.dumps(self.facts, indent=2, ensure_ascii=False)
        write_text_atomically(self.folder / "run.json", text + "\n")


def read_facts(folder: Path) -> dict[str, Any]:
    """Return run.json of a run directory; empty where it is missing or unreadable."""
    try:
        return untrusted_files.read_json(folder / "run.json", max_bytes=_MAX_BYTES, nan=True)
    except UserError:
        return {}


def _when(key: str, step: int) -> str:
    """Return from where on a changed setting is in force, for the user."""
    return "it does not affect the weights" if key in FREE else f"from step {step + 1} on"


def _circumstances(config: Path) -> dict[str, Any]:
    """Return what run.json records of the session, for a configuration file."""
    return {
        "config_sha256": hashlib.sha256(config.read_text(encoding="utf-8").encode()).hexdigest(),
        "command": ["tinyllm", *sys.argv[1:]],
        "world_size": dist.world_size(),
        "versions": {name: version(name) for name in ("torch", "tokenizers", "safetensors")}
        | {"tinyllm": __version__, "python": platform.python_version()},
        "started": _now(),
    }


def _test_sha256(facts: Mapping[str, Any]) -> str:
    """Return the hash of the test records in the facts of a run; "" without one."""
    found: Any = facts
    for key in ("splits", "test", "sha256"):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _seconds(facts: dict[str, Any]) -> float:
    """Return the seconds of earlier sessions."""
    found = facts.get("seconds")
    return float(found) if isinstance(found, int | float) and 0 <= found < _MAX_SECONDS else 0.0


def _step_of(line: str) -> float:
    """Return the step of a line of metrics.jsonl; infinity for a line that a killed writer left incomplete."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    return candidate


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
