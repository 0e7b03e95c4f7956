"""Run directories as they lie on disk, read with suspicion: files may be missing, cut, edited or not ours at all.

Whatever is wrong with a file becomes a sentence in `Record.faults`, never an exception. Links are not followed, except the ones a user
names. Left out: weights, and the whole of metrics.jsonl, whose last line is enough to know how far a run has got.
"""

from __future__ import annotations

import json
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

from tinyllm import foreign
from tinyllm.errors import UserError
from tinyllm.stages.parents import RUNS
from tinyllm.stages.symptoms.log import CONFIG, FACTS, METRICS, Log
from tinyllm.train import checkpoint, lock
from tinyllm.train.run import FAST_DEV_RUN, RUNNING

INTERRUPTED = "interrupted"  # run.json says running, and nobody is
DAMAGED, UNKNOWN = "damaged", "unknown"
_LARGEST = 16 << 20  # bytes of a JSON or YAML file that is still read; ours have some kilobytes
_TAIL = 1 << 16  # bytes at the end of metrics.jsonl that hold its last line
_YAML = (
    yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
)  # ten times faster: a hundred runs are read at once


@dataclass(frozen=True)
class Record:
    """One run directory. `facts` and `config` are empty where run.json and config.yaml could not be read; `faults` says why."""

    folder: Path
    facts: dict[str, Any]
    config: dict[str, Any]
    faults: tuple[str, ...]

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"

    @property
    def name(self) -> str:
        """The path below runs/, as it is listed and as `chosen` understands it."""
        top = home(self.folder)
        return self.folder.absolute().relative_to(top / RUNS).as_posix() if top else self.folder.as_posix()

    @property
    def hidden(self) -> bool:
        """Rehearsals, and what was moved aside: no results."""
        return FAST_DEV_RUN in self.folder.name or "~" in self.folder.name

    @cached_property
    def log(self) -> Log:
        """For the names that `explain` gives stages and families."""
        return Log(self.folder, self.facts, self.config, [], 0, 0.0)

    @property
    def stage(self) -> str | None:
        """What `explain` calls it; without a configuration only an algorithm is known."""
        return self.log.stage if "train" in self.config else self.fact("algorithm", str)

    @property
    def steps(self) -> int | None:
        """How many the run is to make."""
        return typed(self.log.setting("train.steps"), int)

    @cached_property
    def owner(self) -> dict[str, Any] | None:
        """pid, host and start of the process at work in it."""
        return lock.holder(self.folder)

    @property
    def status(self) -> str:
        if not self.facts:
            return DAMAGED
        found = self.fact("status", str, UNKNOWN)
        return INTERRUPTED if found == RUNNING and self.owner is None else found

    @property
    def ended(self) -> float:
        """Seconds since the epoch: as recorded, else when it was last written to."""
        with suppress(ValueError, OverflowError):
            return datetime.strptime(self.fact("ended", str, ""), "%Y-%m-%dT%H:%M:%S%z").timestamp()
        return self.written

    @cached_property
    def written(self) -> float:
        """When a file of it was last written to, to the fraction of a second."""
        times = [0.0]
        for name in (METRICS, FACTS, CONFIG):
            with suppress(OSError):
                times.append((self.folder / name).lstat().st_mtime)
        return max(times)

    def fact(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """A value of run.json if it is of the right kind."""
        return typed(self.facts.get(key), kind, default)

    def figures(self, when: str) -> dict[str, Any]:
        """Held-out figures `before`, at the `best` checkpoint, and `last`; of a run under way as its newest checkpoint has them."""
        return self.fact(when, dict) or typed(self._history.get(when), dict, {})

    @cached_property
    def _history(self) -> dict[str, Any]:
        for path in reversed(steps_in(self.checkpoints)):
            return typed(read_json(path / "trainer" / "state.json")[0].get("history"), dict, {})
        return {}

    @cached_property
    def step(self) -> int | None:
        """The last one that was logged or saved."""
        saved = [checkpoint.step_of(path) for path in steps_in(self.checkpoints)[-1:]]
        return max([*saved, *_last_step(self.folder / METRICS)], default=None)


def typed(found: Any, kind: type | tuple[type, ...], default: Any = None) -> Any:
    """`found` if it is of that kind, and `default` otherwise; a boolean is no number."""
    return found if isinstance(found, kind) and not (isinstance(found, bool) and kind is not bool) else default


# --- files -----------------------------------------------------------------------------------------------------------------------


def read(folder: Path) -> Record:
    facts, broken = read_json(folder / FACTS)
    config, unreadable = read_yaml(folder / CONFIG)
    return Record(folder, facts, config, tuple(fault for fault in (broken, unreadable) if fault))


def read_json(path: Path) -> tuple[dict[str, Any], str]:
    """The object in a file, and nothing; or an empty one, and what is wrong."""
    return _parsed(path, lambda: foreign.read_json(path, most=_LARGEST, nan=True))  # a loss may be NaN


def read_yaml(path: Path) -> tuple[dict[str, Any], str]:
    """The mapping in a file of ours: no aliases, which a small file can use to name a billion values."""

    def read() -> Any:
        text = foreign.inside(path.parent, path.name).read_text(encoding="utf-8")
        if len(text) > _LARGEST:
            raise ValueError(f"larger than {_LARGEST:,} characters")
        if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=_YAML)):
            raise ValueError("aliases, which tinyllm does not write")
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
    return (found, "") if isinstance(found, dict) and found else ({}, f"{path.name}: holds nothing of ours")


def _simple(value: Any) -> Any:
    """The same as JSON can hold it: text for keys, for dates and for numbers that no computer counts with."""
    if isinstance(value, dict):
        return {str(key): _simple(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_simple(inner) for inner in value]
    usual = not isinstance(value, int | float) or (
        math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63
    )
    return value if usual and isinstance(value, (str, int, float, type(None))) else str(value)


def steps_in(folder: Path) -> list[Path]:
    """The finished checkpoints, oldest first; nothing where the folder is missing or closed to us. Not through links."""
    with suppress(OSError):
        return [path for path in checkpoint.steps(folder) if path.is_dir() and not path.is_symlink()]
    return []


def step_at(folder: Path) -> int | None:
    """The step of a checkpoint directory, from its name or from what is inside."""
    if folder in steps_in(folder.parent):
        return checkpoint.step_of(folder)
    return typed(read_json(folder / "trainer" / "state.json")[0].get("updates"), int)


def _last_step(path: Path) -> list[int]:
    """The step of the last whole line of metrics.jsonl, in a list; an empty one if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read(_TAIL).splitlines()
    except OSError:
        return []
    for line in reversed(lines):
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            if (step := typed(json.loads(line)["step"], int)) is not None:
                return [step]
    return []


def size_of(folder: Path) -> int:
    """Bytes of all files below, each once however many names it has, and links not followed."""
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


def is_run(folder: Path) -> bool:
    """A run directory, also one that has lost a file of its own."""
    if (folder / FACTS).is_file():
        return True
    return (folder / CONFIG).is_file() and ((folder / "checkpoints").is_dir() or (folder / METRICS).is_file())


def home(folder: Path) -> Path | None:
    """The folder that the nearest runs/ above is in: what a run wrote down as `runs/...` is to be found from there."""
    return next((p.parent for p in folder.absolute().parents if p.name == RUNS.name), None)
