"""One run directory as it is on disk. Files may be missing, truncated, edited, or not ours at all.

A file that cannot be used becomes a message in `RunRecord.faults`, never an exception. Links are followed only where the user names
them. Not read: weights, and metrics.jsonl except for its last line, which has the step.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from tinyllm.diagnostics.run_log import CONFIG, FACTS, METRICS, RunLog, parse_row
from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.train import checkpoint, lock
from tinyllm.train.fast_dev_runs import is_fast_dev_run
from tinyllm.train.names import RUNS
from tinyllm.train.run import COMPLETED, RUNNING

INTERRUPTED = "interrupted"  # run.json says running, but no process holds the lock
DAMAGED = "damaged"
UNKNOWN = "unknown"  # run.json has no status, or it says running and the lock cannot be tested
_MAX_BYTES = 16 << 20  # of a JSON or YAML file; ours have some kilobytes
_TAIL_BYTES = 1 << 16  # at the end of metrics.jsonl, enough for its last line
_YAML = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader  # ten times faster, for lists of a hundred runs


@dataclass(frozen=True)
class RunRecord:
    """One run directory.

    facts: the contents of run.json, empty if it cannot be read.
    config: the configuration, empty if config.yaml cannot be read.
    faults: what is wrong with these files.
    """

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    faults: tuple[str, ...]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def name(self) -> str:
        """The path below runs/, which `find_run` accepts."""
        top = parent_of_runs(self.folder)
        return self.folder.absolute().relative_to(top / RUNS).as_posix() if top else self.folder.as_posix()

    @property
    def hidden(self) -> bool:
        """True for fast-dev-runs and runs that were moved aside."""
        return self.is_fast_dev_run or "~" in self.folder.name

    @property
    def is_fast_dev_run(self) -> bool:
        return is_fast_dev_run(self.folder, self.facts)

    @cached_property
    def log(self) -> RunLog:
        """The configuration as `explain` reads it, for the names of stage and family. It has no metrics."""
        return RunLog(self.folder, self.facts, self.config)

    @property
    def stage(self) -> str | None:
        """The stage or algorithm, as in `explain`. Without a configuration only an algorithm is known."""
        return self.log.stage if "train" in self.config else self.fact("algorithm", str)

    @property
    def steps(self) -> int | None:
        """The number of steps in the configuration."""
        return of_type(self.log.setting("train.steps"), int)

    @property
    def last_step(self) -> int | None:
        """The step after which the run completed: as its last session recorded, else that of the configuration; None if it did not."""
        if self.status != COMPLETED:
            return None
        session = next(reversed(self.fact("sessions", list, [])), None)
        return of_type(of_type(session, dict, {}).get("to_step"), int, self.steps or 0)

    @cached_property
    def _held(self) -> bool | None:
        """Return whether a process holds the lock; None where that cannot be determined."""
        return lock.is_held(self.folder)

    @cached_property
    def owner(self) -> dict[str, Any] | None:
        """pid, host and start time of the process that holds the lock."""
        return lock.owner(self.folder)

    @property
    def status(self) -> str:
        if not self.facts:
            return DAMAGED
        found = self.fact("status", str, UNKNOWN)
        if found != RUNNING or (held := self._held):
            return found
        return UNKNOWN if held is None else INTERRUPTED

    @property
    def doubts(self) -> list[str]:
        """Return what could not be determined about the status."""
        unclear = self.fact("status", str) == RUNNING and self.status == UNKNOWN
        return ["it may be running: its lock cannot be tested from here"] if unclear else []

    @property
    def changes(self) -> list[dict[str, Any]]:
        """The settings that were changed when the run was resumed, in order: at_step, key, from, to."""
        found = (entry for entry in self.fact("changes", list, []) if isinstance(entry, dict))
        return [entry for entry in found if type(entry.get("at_step")) is int and isinstance(entry.get("key"), str)]

    @property
    def ended(self) -> float:
        """Seconds since the epoch: as recorded, else of the last write."""
        with suppress(ValueError, OverflowError):
            return datetime.strptime(self.fact("ended", str, ""), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        return self.last_written

    @cached_property
    def last_written(self) -> float:
        """Seconds since the epoch at which one of its files was last written, with fractions."""
        times = [0.0]
        for name in (METRICS, FACTS, CONFIG):
            with suppress(OSError):
                times.append((self.folder / name).lstat().st_mtime)
        return max(times)

    def fact(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """Return a value of run.json, or `default` if it is missing or of another type."""
        return of_type(self.facts.get(key), kind, default)

    def metrics(self, when: str) -> dict[str, Any]:
        """Return held-out metrics `before` training, at the `best` checkpoint, or `last`; if unfinished, from its newest checkpoint."""
        return self.fact(when, dict) or of_type(self._history.get(when), dict, {})

    def test(self, when: str) -> dict[str, Any]:
        """Return the test figures `before` training, of the `best` or of the `last` checkpoint; empty until the run has ended."""
        found = of_type(self.fact("test", dict, {}).get(when), dict, {})
        return of_type(found.get("figures"), dict, {})

    @cached_property
    def _history(self) -> dict[str, Any]:
        for path in reversed(checkpoints_in(self.checkpoints)):
            return of_type(read_json(path / "trainer" / "state.json")[0].get("history"), dict, {})
        return {}

    @cached_property
    def step(self) -> int | None:
        """The last step that was logged or saved."""
        saved = [checkpoint.step_of(path) for path in checkpoints_in(self.checkpoints)[-1:]]
        return max([*saved, *_last_logged_step(self.folder / METRICS)], default=None)


def of_type(value: Any, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """Return `value` if it is of type `kind`, else `default`. Booleans are not integers."""
    return value if isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool) else default


# --- files -----------------------------------------------------------------------------------------------------------------------


def read_record(folder: Path) -> RunRecord:
    """Read a run directory."""
    facts, broken = read_json(folder / FACTS)
    config, unreadable = read_yaml(folder / CONFIG)
    return RunRecord(folder, facts, config, tuple(fault for fault in (broken, unreadable) if fault))


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """Return the JSON object in a file and ""; or an empty object and what is wrong with the file."""
    return _parsed(path, lambda: untrusted_files.read_json(path, max_bytes=_MAX_BYTES, nan=True))  # a loss may be NaN


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """Return the YAML mapping in a file and ""; or an empty one and what is wrong. Aliases, which can expand endlessly, are refused."""

    def read() -> Any:
        text = untrusted_files.path_inside(path.parent, path.name).read_text(encoding="utf-8")
        if len(text) > _MAX_BYTES:
            raise ValueError(f"larger than {_MAX_BYTES:,} characters")
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_YAML)):
            raise ValueError("it has aliases, which tinyllm does not write")
        return yaml.load(text, Loader=_YAML)

    return _parsed(path, read)


def _parsed(path: Path, read: Callable[[], Any]) -> tuple[dict[str, Any], str]:
    if not path.is_file():
        return {}, f"{path.name} is missing"
    try:
        found = _simple(read())
    except UserError as error:
        return {}, f"{path.name}: {error.what}"
    except OSError as error:
        return {}, f"{path.name}: cannot be read: {error.strerror}"
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        return {}, f"{path.name}: cannot be read: {str(error).partition(chr(10))[0] or type(error).__name__}"
    return (found, "") if isinstance(found, dict) and found else ({}, f"{path.name}: not written by tinyllm")


def _simple(value: Any) -> Any:
    """Return a value as JSON allows it: keys, dates, and numbers that are not finite or exceed 64 bits become text."""
    if isinstance(value, dict):
        return {str(key): _simple(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_simple(inner) for inner in value]
    usual = not isinstance(value, int | float) or (
        math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    )
    return value if usual and isinstance(value, (str, int, float, type(None))) else str(value)


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the complete checkpoints in a folder, oldest first; none if the folder cannot be read. Links are not followed."""
    with suppress(OSError):
        return [path for path in checkpoint.steps(folder) if path.is_dir() and not path.is_symlink()]
    return []


def checkpoint_step(folder: Path) -> int | None:
    """Return the step of a checkpoint, from the name of its directory or from its trainer state."""
    if folder in checkpoints_in(folder.parent):
        return checkpoint.step_of(folder)
    return of_type(read_json(folder / "trainer" / "state.json")[0].get("updates"), int)


def _last_logged_step(path: Path) -> list[int]:
    """Return the step of the last intact line of metrics.jsonl in a list, empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read(_TAIL_BYTES).splitlines()
    except OSError:
        return []
    rows = (parse_row(line) for line in reversed(lines))
    return [row["step"] for row in rows if row is not None][:1]


def disk_usage(folder: Path) -> int:
    """Return the bytes of all files below a folder. Hard links count once, symbolic links are not followed."""
    seen: set[tuple[int, int]] = set()
    total, folders = 0, [folder]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                    continue
                stat = entry.stat(follow_symlinks=False)
                if stat.st_nlink == 1 or (stat.st_dev, stat.st_ino) not in seen:
                    seen.add((stat.st_dev, stat.st_ino))
                    total += stat.st_size
    return total


def parent_of_runs(folder: Path) -> Path | None:
    """Return the folder that contains the nearest runs/ above. Paths recorded as `runs/...` are relative to it."""
    return next((p.parent for p in folder.absolute().parents if p.name == RUNS.name), None)
