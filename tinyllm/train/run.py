"""A run directory: the complete account of one run.

`config.yaml` (resolved), `run.json` (status, parent, seed, versions, command), `metrics.jsonl` (one flat object a step, appended and
flushed, so that it survives a kill), `logs/` and `checkpoints/`. Rank 0 writes and holds the `lock`; the other ranks hold a `Run` that
keeps silent. A directory with checkpoints is continued by the same configuration, data and parent, or not at all.
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
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from tinyllm import __version__, dist, foreign
from tinyllm.errors import RESOURCES, UserError
from tinyllm.train import checkpoint, lock, progress

COMPLETED, RUNNING, FAILED_STATUS, STOPPED = "completed", "running", "failed", "stopped"
FAST_DEV_RUN = "fast-dev-run"
_SHOWN = 5  # of changed keys
_MOST_FACTS = 16 << 20  # bytes of run.json, which names every source
_LONGEST = 1e10  # seconds: three hundred years
_APART = "choose another --name, or add --no-resume to move the old run aside"


class Run:
    """One run directory, open for writing on rank 0.

    Args:
        folder: e.g. runs/pretrain/NAME.
        config: the resolved configuration as YAML.
        facts: what run.json records beyond the usual: parent, data and tokenizer fingerprints, parameters.
        resume: continue what is there if it is the same run; False moves it aside and starts over.
        allow_data_change: continue although the data are not what they were when the run began.
    """

    def __init__(
        self, folder: Path, config: str, facts: dict[str, Any], *, resume: bool = True, allow_data_change: bool = False
    ):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.started = time.time()
        self.facts: dict[str, Any] = {}
        self.spent = 0.0
        if dist.is_main():
            self._open(config, facts, resume, allow_data_change)
        dist.barrier()

    def _open(self, config: str, facts: dict[str, Any], resume: bool, allow_data_change: bool) -> None:
        lock.claim(self.folder)
        rehearsal = self.folder.name == FAST_DEV_RUN or self.folder.name.endswith(f"-{FAST_DEV_RUN}")
        if rehearsal or not resume:
            lock.release(self.folder)  # the file goes with the folder
            if rehearsal:  # leaves nothing behind that could be mistaken for a result
                shutil.rmtree(self.folder, ignore_errors=True)
            elif checkpoint.steps(self.checkpoints) or self.metrics.exists():
                os.replace(self.folder, _free_name(self.folder))
            lock.claim(self.folder)
        earlier = read_facts(self.folder)
        data_before: list[Any] = []
        if checkpoint.steps(self.checkpoints):  # where nothing has been computed, nothing needs protection
            self._refuse_other_config(config)
            self._refuse_other_parent(facts, earlier)
            data_before = self._data_before(facts, earlier, allow_data_change)
        spent = earlier.get("seconds")
        self.spent = (
            float(spent) if isinstance(spent, int | float) and 0 <= spent < _LONGEST else 0.0
        )  # in earlier sittings
        with writing(self.folder):
            (self.folder / "logs").mkdir(parents=True, exist_ok=True)
            checkpoint.clear_leftovers(self.checkpoints)
            progress.Log.path = self.folder / "logs" / "run.log"
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
        different = _differences(foreign.read_yaml(path), yaml.safe_load(config))
        raise UserError(
            f"{self.folder} holds a run with another configuration: {'; '.join(different)}",
            where=str(path),
            fix=_APART,
        )

    def _refuse_other_parent(self, facts: dict[str, Any], earlier: dict[str, Any]) -> None:
        """A run goes on from the weights it began with, and with the reward model it began with, or not at all."""
        for role in ("parent", "reward_model"):
            now, then = facts.get(role), earlier.get(role)
            if now and then and now != then:
                raise UserError(
                    f"{self.folder} began from {_parent(then)}, its {role.replace('_', ' ')} is now {_parent(now)}",
                    where=str(self.folder / "run.json"),
                    fix=_APART,
                )

    def _data_before(self, facts: dict[str, Any], earlier: dict[str, Any], allowed: bool) -> list[Any]:
        """The data of sittings before the present data, oldest first; UserError where they have changed and that was not allowed."""
        now, then = (_identities(found.get("data")) for found in (facts, earlier))
        before = earlier["data_before"] if isinstance(earlier.get("data_before"), list) else []
        if not then or now == then:
            return before
        changed = [name for name in {**then, **now} if now.get(name) != then.get(name)]
        error = data_changed(self.folder, changed)
        if not allowed:
            raise error
        progress.say(f"{error.what}; going on with what is there now, as asked")
        return [*before, earlier["data"]]

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl. Numbers keep full precision; what is not a number in JSON becomes null."""
        if dist.is_main():
            clean = {k: (None if isinstance(v, float) and v != v else v) for k, v in row.items()}
            with writing(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that are about to be done again."""
        if dist.is_main() and self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            _replace(self.metrics, "".join(line + "\n" for line in kept))

    def note(self, **facts: Any) -> None:
        """Add to run.json."""
        if dist.is_main():
            self.facts |= facts
            self._write_facts()

    def finish(self, status: str, **facts: Any) -> None:
        self.note(status=status, seconds=round(self.spent + time.time() - self.started, 3), ended=_now(), **facts)

    def close(self) -> None:
        """Let go of the directory."""
        progress.Log.path = None
        lock.release(self.folder)

    def _write_facts(self) -> None:
        _replace(self.folder / "run.json", json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full or refuses is the user's to mend, and no bug of ours."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}",
            where=str(path),
            fix="free disk space, then run the same command again",
            code=RESOURCES,
        ) from None


def _replace(path: Path, text: str) -> None:
    """The whole new content, or still the old one."""
    draft = path.with_name(f"{path.name}.new")
    with writing(path):
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, path)


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """`train.steps: 100 -> 200`, the first few keys that differ."""
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


def _parent(facts: Any) -> str:
    known = facts if isinstance(facts, dict) else {}
    return f"{known.get('checkpoint')!s:.200} ({known.get('manifest_sha256')!s:.12})"


def _identities(data: Any) -> dict[str, Any]:
    """Of every source, by its name: what stands for its content. Standard input has no content to come back to."""
    entries = [entry for entry in (data if isinstance(data, list) else []) if isinstance(entry, dict)]
    named = {
        str(e.get("source", e.get("shards"))): e.get("sha256", e.get("fingerprint", e.get("seed"))) for e in entries
    }
    return {name: identity for name, identity in named.items() if name != "-"}


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for one that a killed writer left half done."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return float("inf")
    return step if isinstance(step, int) else float("inf")


def data_changed(folder: Path, names: Sequence[Any]) -> UserError:
    return UserError(
        f"the data have changed since {folder} began: {', '.join(map(str, names[:_SHOWN]))}",
        where=str(folder / "run.json"),
        fix="restore them, add --allow-data-change to go on with what is there now, or choose another --name",
    )


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json of a run directory; empty where there is none that can be read."""
    try:
        return foreign.read_json(folder / "run.json", most=_MOST_FACTS, nan=True)
    except UserError:
        return {}


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    return candidate


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
