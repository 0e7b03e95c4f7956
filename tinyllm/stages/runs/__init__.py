"""`tinyllm runs list | show`: what ran, how far it got, what moved; read from the run directories alone, no daemon, no database.

`verify` and `lineage` are in files of their own, `verify` and `lineage`. Left out: deleting, comparing, tagging, a web page.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.stages.explain import figure_of
from tinyllm.stages.parents import RUNS
from tinyllm.stages.runs.find import below, chosen
from tinyllm.stages.runs.read import Record, read, size_of, step_at, steps_in
from tinyllm.stages.symptoms.log import CONFIG, is_number
from tinyllm.train import checkpoint
from tinyllm.train.run import FAILED_STATUS, RUNNING


def list_(folder: Path | None, *, everything: bool = False) -> dict[str, Any]:
    """The runs below `folder` (runs/ by default), the one that was last at work last. Rehearsals and moved-aside ones: `everything`."""
    if folder is not None and not folder.is_dir():
        raise UserError(f"there is no folder {folder}", where="PATH", fix="leave it out to list runs/")
    records = [read(run) for run in below(folder or RUNS)]
    shown = sorted((r for r in records if everything or not r.hidden), key=lambda r: (r.ended, r.written, r.name))
    rows = [_row(record) for record in shown]
    return {"schema_version": 1, "stage": "runs list", "runs": rows, "hidden": len(records) - len(rows)}


def _row(record: Record) -> dict[str, Any]:
    status = record.status
    return {
        "run": record.folder.as_posix(),
        "name": record.name,
        "stage": record.stage,
        "status": status,
        "pid": (record.owner or {}).get("pid") if status == RUNNING else None,
        "error": record.fact("error", str) if status == FAILED_STATUS else None,
        "faults": list(record.faults),
        "step": record.step,
        "steps": record.steps,
        "moved": moved(record),
        "seconds": record.fact("seconds", (int, float)),
        "started": record.fact("started", str),
        "ended": record.fact("ended", str),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.ended)),
        "bytes": size_of(record.folder),
    }


def moved(record: Record) -> dict[str, Any] | None:
    """The stage's own figure before the first step and at the best checkpoint; None before anything was evaluated."""
    if not record.config:
        return None
    before, best = record.figures("before"), record.figures("best")
    margins = before.get("rewards/margins")
    what = figure_of(record.log.family, margins if is_number(margins) else None)
    if not is_number(before.get(what)) or not is_number(best.get(what)):
        return None
    return {"what": what, "from": before[what], "to": best[what]}


def show(given: str) -> dict[str, Any]:
    """Everything about one run that its files say, sizes looked at and no content read."""
    record, _ = chosen(given)
    parent, reward_model = record.fact("parent", dict), record.fact("reward_model", dict)
    command = record.fact("command", list) or []
    return {
        "schema_version": 1,
        **_row(record),
        "stage": "runs show",
        "of": record.stage,
        "command": " ".join(map(str, command)) or None,
        "config": (record.folder / CONFIG).as_posix(),
        "settings": record.config,
        "versions": record.fact("versions", dict, {}),
        "owner": record.owner,
        "parent": parent,
        "reward_model": reward_model,
        "data": [entry for entry in record.fact("data", list, []) if isinstance(entry, dict)],
        "tokenizer_sha256": record.fact("tokenizer_sha256", str),
        "seed": record.fact("seed", int),
        "world_size": record.fact("world_size", int),
        "parameters": record.fact("parameters", int),
        "trainable_parameters": record.fact("trainable_parameters", int),
        "tokens": record.fact("tokens", int),
        "checkpoints": _checkpoints(record),
        "figures": {when: record.figures(when) for when in ("before", "best", "last")},
    }


def _checkpoints(record: Record) -> list[dict[str, Any]]:
    best, latest = (_leads_to(record.checkpoints / name) for name in (checkpoint.BEST, checkpoint.LATEST))
    found = []
    for path in steps_in(record.checkpoints):
        wrong = next(checkpoint.faults(path, contents=False), None)
        found.append(
            {
                "path": path.as_posix(),
                "step": checkpoint.step_of(path),
                "bytes": size_of(path),
                "best": path.name == best,
                "latest": path.name == latest,
                "whole": wrong is None,  # names and sizes; `runs verify` reads every byte
                "fault": f"{wrong[0].name}: {wrong[1]}" if wrong else None,
            }
        )
    return found


def _leads_to(link: Path) -> str | None:
    """The checkpoint that a link names; of a copy (where links cannot be made) the one with its step."""
    try:
        return os.readlink(link) if link.is_symlink() else f"step-{step_at(link):08d}"
    except (OSError, TypeError):
        return None
