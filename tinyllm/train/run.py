"""A run directory: configuration, facts, metrics, log and checkpoints of one run.

`config.yaml` (resolved), `run.json` (status, parent, seed, versions, command), `metrics.jsonl` (one flat object per line, appended and
flushed, so it survives a kill), `logs/` and `checkpoints/`. Rank 0 writes and holds the `lock`; the `Run` of the other ranks does nothing.
A directory with checkpoints is continued only with the same configuration, data and parent.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tinyllm import __version__, console
from tinyllm import distributed as dist
from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.io.files import write_text_atomically, writing
from tinyllm.train import checkpoint, lock

COMPLETED, RUNNING, FAILED_STATUS, STOPPED = "completed", "running", "failed", "stopped"
FAST_DEV_RUN = "fast-dev-run"
_SHOWN = 5  # changed keys in an error message
_MAX_BYTES = 16 << 20  # of run.json, which lists every source
_MAX_SECONDS = 1e10  # three hundred years
_START_ANEW = "choose another --name, or add --no-resume to move the old run aside"


class Run:
    """One run directory, open for writing on rank 0.

    Args:
        folder: e.g. runs/pretrain/NAME.
        config: the resolved configuration as YAML.
        facts: further entries of run.json: parent, data and tokenizer fingerprints, parameters.
        resume: continue the run in `folder` if it is the same; False moves it aside and starts over.
        allow_data_change: continue even if the data have changed since the run began.

    Raises: UserError if the directory holds another run (USAGE), is locked, or cannot be written (RESOURCES).
    """

    def __init__(
        self, folder: Path, config: str, facts: dict[str, Any], *, resume: bool = True, allow_data_change: bool = False
    ):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.started = time.time()
        self.facts: dict[str, Any] = {}
        self.seconds_before = 0.0  # in earlier sessions
        if dist.is_main():
            self._open(config, facts, resume, allow_data_change)
        dist.barrier()

    def _open(self, config: str, facts: dict[str, Any], resume: bool, allow_data_change: bool) -> None:
        lock.acquire(self.folder)
        fast_dev_run = self.folder.name == FAST_DEV_RUN or self.folder.name.endswith(f"-{FAST_DEV_RUN}")
        if fast_dev_run or not resume:
            lock.release(self.folder)  # the lock file is moved or deleted with the folder
            if fast_dev_run:  # leaves nothing that could be mistaken for a result
                shutil.rmtree(self.folder, ignore_errors=True)
            elif checkpoint.steps(self.checkpoints) or self.metrics.exists():
                os.replace(self.folder, _free_name(self.folder))
            lock.acquire(self.folder)
        earlier = read_facts(self.folder)
        data_before: list[Any] = []
        if checkpoint.steps(self.checkpoints):  # before the first checkpoint there is nothing to protect
            self._refuse_other_config(config)
            self._refuse_other_parent(facts, earlier)
            data_before = self._data_before(facts, earlier, allow_data_change)
        seconds = earlier.get("seconds")
        if isinstance(seconds, int | float) and 0 <= seconds < _MAX_SECONDS:
            self.seconds_before = float(seconds)
        with writing(self.folder):
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            checkpoint.clear_leftovers(self.checkpoints)
            console.Log.path = self.folder / "logs" / "run.log"
            (self.folder / "config.yaml").write_text(config, encoding="utf-8")
        self.facts = {
            "status": RUNNING,
            **facts,
            **({"data_before": data_before} if data_before else {}),
            "config_sha256": hashlib.sha256(config.encode()).hexdigest(),
            "command": ["tinyllm", *sys.argv[1:]],
            "world_size": dist.world_size(),
            "versions": {name: version(name) for name in ("torch", "tokenizers", "safetensors")}
            | {"tinyllm": __version__, "python": platform.python_version()},
            "started": _now(),
        }
        self._write_facts()

    def _refuse_other_config(self, config: str) -> None:
        path = self.folder / "config.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8", errors="replace") == config:
            return
        different = _differences(untrusted_files.read_yaml(path), yaml.safe_load(config))
        raise UserError(
            f"{self.folder} already contains a run with a different configuration: {'; '.join(different)}",
            where=str(path),
            fix=_START_ANEW,
        )

    def _refuse_other_parent(self, facts: dict[str, Any], earlier: dict[str, Any]) -> None:
        """A run continues only from the parent and the reward model it began with."""
        for role in ("parent", "reward_model"):
            now, before = facts.get(role), earlier.get(role)
            if now and before and now != before:
                raise UserError(
                    f"{self.folder} began from {_parent_text(before)}, its {role.replace('_', ' ')} is now {_parent_text(now)}",
                    where=str(self.folder / "run.json"),
                    fix=_START_ANEW,
                )

    def _data_before(self, facts: dict[str, Any], earlier: dict[str, Any], allowed: bool) -> list[Any]:
        """Return the data of earlier sessions that are not the present data, oldest first.

        Raises: UserError if the data have changed and that is not allowed.
        """
        now, then = (_identities(found.get("data")) for found in (facts, earlier))
        before = earlier["data_before"] if isinstance(earlier.get("data_before"), list) else []
        if not then or now == then:
            return before
        changed = [name for name in {**then, **now} if now.get(name) != then.get(name)]
        error = data_changed(self.folder, changed)
        if not allowed:
            raise error
        console.say(f"{error.what}; continuing with the present data (--allow-data-change)")
        return [*before, earlier["data"]]

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl. Numbers keep full precision; NaN becomes null."""
        if dist.is_main():
            clean = {k: (None if isinstance(v, float) and v != v else v) for k, v in row.items()}
            with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")

    def drop_metrics_after(self, step: int) -> None:
        """Remove the metrics of steps that will be repeated."""
        if dist.is_main() and self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            write_text_atomically(self.metrics, "".join(line + "\n" for line in kept))

    def note(self, **facts: Any) -> None:
        """Add entries to run.json."""
        if dist.is_main():
            self.facts |= facts
            self._write_facts()

    def finish(self, status: str, **facts: Any) -> None:
        """Record in run.json how and when the run ended, and the seconds of all sessions."""
        seconds = self.seconds_before + time.time() - self.started
        self.note(status=status, seconds=round(seconds, 3), ended=_now(), **facts)

    def close(self) -> None:
        """Release the directory."""
        console.Log.path = None
        lock.release(self.folder)

    def _write_facts(self) -> None:
        write_text_atomically(self.folder / "run.json", json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class Invocation:
    """How a stage was started, beside its configuration.

    Args:
        yaml: the resolved configuration, as config.yaml holds it.
        fast: --fast-dev-run.
    """

    yaml: str
    fast: bool = False
    resume: bool = True
    allow_data_change: bool = False

    def open(self, folder: Path, facts: dict[str, Any]) -> Run:
        """Open a run directory. Raises: UserError as `Run` does, and (USAGE) if the facts differ between ranks."""
        dist.require_equal(facts)
        return Run(folder, self.yaml, facts, resume=self.resume, allow_data_change=self.allow_data_change)


def read_facts(folder: Path) -> dict[str, Any]:
    """Return run.json of a run directory; empty where it is missing or unreadable."""
    try:
        return untrusted_files.read_json(folder / "run.json", max_bytes=_MAX_BYTES, nan=True)
    except UserError:
        return {}


def data_changed(folder: Path, names: Sequence[Any]) -> UserError:
    """Return the error for a run whose sources `names` have changed since it began."""
    return UserError(
        f"the data have changed since {folder} began: {', '.join(map(str, names[:_SHOWN]))}",
        where=str(folder / "run.json"),
        fix="restore them, add --allow-data-change to continue with the present data, or choose another --name",
    )


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return `train.steps: 100 -> 200` for the first few keys that differ."""
    before, now = dict(_flat(old)), dict(_flat(new))
    keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    found = [
        f"{key!s:.80}: {before.get(key, '(none)')!s:.80} -> {now.get(key, '(none)')!s:.80}" for key in keys[:_SHOWN]
    ]
    return found + [f"and {len(keys) - _SHOWN} more"] * (len(keys) > _SHOWN)


def _flat(section: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in section.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _parent_text(facts: Any) -> str:
    known = facts if isinstance(facts, dict) else {}
    return f"{known.get('checkpoint')!s:.200} ({known.get('manifest_sha256')!s:.12})"


def _identities(data: Any) -> dict[str, Any]:
    """Return what identifies the content of every source, by its name. Standard input has no content to compare."""
    entries = [entry for entry in (data if isinstance(data, list) else []) if isinstance(entry, dict)]
    named = {
        str(e.get("source", e.get("shards"))): e.get("sha256", e.get("fingerprint", e.get("seed"))) for e in entries
    }
    return {name: identity for name, identity in named.items() if name != "-"}


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
