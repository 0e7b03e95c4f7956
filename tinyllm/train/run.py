"""A run directory: the complete account of one run.

`config.yaml` (resolved), `run.json` (status, parent, seed, versions, command), `metrics.jsonl` (one flat object a step, appended and
flushed, so that it survives a kill), `logs/` and `checkpoints/`. Rank 0 writes; the other ranks hold a `Run` that keeps silent.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tinyllm import __version__, dist
from tinyllm.errors import UserError
from tinyllm.train import progress

COMPLETED, RUNNING, FAILED_STATUS, STOPPED = "completed", "running", "failed", "stopped"
FAST_DEV_RUN = "fast-dev-run"


class Run:
    """One run directory, open for writing on rank 0.

    Args:
        folder: e.g. runs/pretrain/NAME.
        config: the resolved configuration as YAML.
        facts: what run.json records beyond the usual: parent, data and tokenizer fingerprints, parameters.
        resume: continue what is there if its configuration is the same; False moves it aside and starts over.
    """

    def __init__(self, folder: Path, config: str, facts: dict[str, Any], *, resume: bool = True):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.metrics = folder / "metrics.jsonl"
        self.started = time.time()
        self.facts: dict[str, Any] = {}
        self.spent = 0.0
        if not dist.is_main():
            dist.barrier()
            return
        if folder.name == FAST_DEV_RUN or folder.name.endswith(f"-{FAST_DEV_RUN}"):
            shutil.rmtree(
                folder, ignore_errors=True
            )  # a rehearsal leaves nothing behind that could be mistaken for a result
        elif folder.exists() and not resume:
            os.replace(folder, _free_name(folder))
        self._refuse_other_config(config)
        earlier = read_facts(folder)
        self._refuse_other_parent(facts, earlier)
        self.spent = float(earlier.get("seconds") or 0.0)  # by the sittings before this one
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        progress.Log.path = folder / "logs" / "run.log"
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        self.facts = {
            "status": RUNNING,
            **facts,
            "command": ["tinyllm", *sys.argv[1:]],
            "world_size": dist.world_size(),
            "versions": {name: version(name) for name in ("torch", "tokenizers", "safetensors")}
            | {"tinyllm": __version__, "python": platform.python_version()},
            "started": _now(),
        }
        self._write_facts()
        dist.barrier()

    def _refuse_other_config(self, config: str) -> None:
        path = self.folder / "config.yaml"
        if not path.is_file() or path.read_text(encoding="utf-8") == config:
            return
        old = set(path.read_text(encoding="utf-8").splitlines())
        changed = [line.strip() for line in config.splitlines() if line not in old]
        raise UserError(
            f"{self.folder} holds a run with another configuration; now different: {', '.join(changed[:5]) or 'removed keys'}",
            where=str(path),
            fix="choose another --name, or add --no-resume to move the old run aside",
        )

    def _refuse_other_parent(self, facts: dict[str, Any], earlier: dict[str, Any]) -> None:
        """A run goes on from the weights it began with, or not at all."""
        now, then = facts.get("parent"), earlier.get("parent")
        if earlier and (self.checkpoints.is_dir() and any(self.checkpoints.iterdir())) and now and then and now != then:
            raise UserError(
                f"{self.folder} began from {then['checkpoint']} ({str(then['manifest_sha256'])[:12]}), "
                f"its parent is now {now['checkpoint']} ({str(now['manifest_sha256'])[:12]})",
                where=str(self.folder / "run.json"),
                fix="choose another --name, or add --no-resume to move the old run aside",
            )

    def log(self, row: dict[str, Any]) -> None:
        """Append one object to metrics.jsonl. Numbers keep full precision; what is not a number in JSON becomes null."""
        if dist.is_main():
            clean = {k: (None if isinstance(v, float) and v != v else v) for k, v in row.items()}
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(clean) + "\n")

    def forget_after(self, step: int) -> None:
        """Drop the metrics of steps that are about to be done again."""
        if dist.is_main() and self.metrics.is_file():
            lines = self.metrics.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            self.metrics.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def note(self, **facts: Any) -> None:
        """Add to run.json."""
        if dist.is_main():
            self.facts |= facts
            self._write_facts()

    def finish(self, status: str, **facts: Any) -> None:
        self.note(status=status, seconds=round(self.spent + time.time() - self.started, 3), ended=_now(), **facts)
        progress.Log.path = None

    def _write_facts(self) -> None:
        draft = self.folder / "run.json.new"
        draft.write_text(json.dumps(self.facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(draft, self.folder / "run.json")


def _step_of(line: str) -> float:
    """The step of a line of metrics.jsonl; infinite for one that a killed writer left half done."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def read_facts(folder: Path) -> dict[str, Any]:
    """run.json of a run directory; empty where there is none."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _free_name(folder: Path) -> Path:
    number = 1
    while (candidate := folder.with_name(f"{folder.name}~{number}")).exists():
        number += 1
    return candidate


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
