"""`tinyllm runs list` and `tinyllm runs show`. Not done: deleting, comparing or tagging runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from tinyllm.diagnostics.explain import main_metric
from tinyllm.diagnostics.run_log import CONFIG, is_number
from tinyllm.diagnostics.runs.find import find_run
from tinyllm.diagnostics.runs.record import RunRecord, checkpoint_step, checkpoints_in, disk_usage, read_record
from tinyllm.errors import UserError
from tinyllm.io.shell import join
from tinyllm.train import checkpoint
from tinyllm.train.names import RUNS, folders, matching, runs_below
from tinyllm.train.run import FAILED_STATUS, RUNNING


def list_runs(folder: Path | None, *, everything: bool = False) -> dict[str, Any]:
    """List the runs below `folder` (default: runs/; also a path below it), or of that name, in the order in which they ended.

    everything: include fast-dev-runs and runs that were moved aside.

    Raises: UserError (USAGE) if there is no such folder or run.
    """
    places = [RUNS] if folder is None else folders(str(folder))[:1] or matching(str(folder))
    if not places:
        raise UserError(f"there is no folder or run {folder}", where="PATH", fix="leave it out to list runs/")
    records = [read_record(run) for place in places for run in runs_below(place)]
    shown = sorted((r for r in records if everything or not r.hidden), key=lambda r: (r.ended, r.last_written, r.name))
    rows = [_row(record) for record in shown]
    return {"schema_version": 1, "stage": "runs list", "runs": rows, "hidden": len(records) - len(rows)}


def _row(record: RunRecord) -> dict[str, Any]:
    status = record.status
    return {
        "run": record.folder.as_posix(),
        "name": record.name,
        "stage": record.stage,
        "status": status,
        "pid": (record.owner or {}).get("pid") if status == RUNNING else None,
        "error": record.fact("error", str) if status == FAILED_STATUS else None,
        "faults": [*record.faults, *record.doubts],
        "step": record.step,
        "steps": record.steps,
        "moved": main_metric_change(record),
        "seconds": record.fact("seconds", (int, float)),
        "started": record.fact("started", str),
        "ended": record.fact("ended", str),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.ended)),
        "bytes": disk_usage(record.folder),
    }


def main_metric_change(record: RunRecord) -> dict[str, Any] | None:
    """Return the main metric before the first step and at the best checkpoint, of test; without test figures, of val at the last step.

    None before the first evaluation.
    """
    if not record.config:
        return None
    before, after = record.metrics("before"), record.metrics("last")
    margin = before.get("rewards/margins")
    name = main_metric(record.log.family, margin if is_number(margin) else None)
    if is_number(record.test("best").get(name)):
        before, after = record.test("before"), record.test("best")
    elif not is_number(before.get(name)) or not is_number(after.get(name)):
        return None
    return {"what": name, "from": before.get(name), "to": after[name]}


def show_run(name: str) -> dict[str, Any]:
    """Return everything that the files of a run say about it. Checkpoints are compared with their manifest by size only."""
    record, _ = find_run(name)
    command = record.fact("command", list) or []
    return {
        "schema_version": 1,
        **_row(record),
        "stage": "runs show",
        "of": record.stage,
        "fast_dev_run": record.is_fast_dev_run,
        "command": join(command) or None,
        "config": (record.folder / CONFIG).as_posix(),
        "settings": record.config,
        "versions": record.fact("versions", dict, {}),
        "owner": record.owner,
        "parent": record.fact("parent", dict),
        "reward_model": record.fact("reward_model", dict),
        "data": [entry for entry in record.fact("data", list, []) if isinstance(entry, dict)],
        "tokenizer_sha256": record.fact("tokenizer_sha256", str),
        "seed": record.fact("seed", int),
        "world_size": record.fact("world_size", int),
        "parameters": record.fact("parameters", int),
        "trainable_parameters": record.fact("trainable_parameters", int),
        "tokens": record.fact("tokens", int),
        "changes": record.changes,
        "sessions": [entry for entry in record.fact("sessions", list, []) if isinstance(entry, dict)],
        "checkpoints": _checkpoints(record),
        "figures": {when: record.metrics(when) for when in ("before", "best", "last")},
        "test": {when: record.test(when) for when in ("before", "best", "last")},
        "splits": record.fact("splits", dict, {}),
    }


def _checkpoints(record: RunRecord) -> list[dict[str, Any]]:
    best, latest = (_target_of(record.checkpoints / name) for name in (checkpoint.BEST, checkpoint.LATEST))
    found = []
    for path in checkpoints_in(record.checkpoints):
        fault = next(checkpoint.faults(path, contents=False), None)
        found.append(
            {
                "path": path.as_posix(),
                "step": checkpoint.step_of(path),
                "bytes": disk_usage(path),
                "best": path.name == best,
                "latest": path.name == latest,
                "whole": fault is None,  # by names and sizes; `runs verify` reads the contents
                "fault": f"{fault[0].name}: {fault[1]}" if fault else None,
            }
        )
    return found


def _target_of(link: Path) -> str | None:
    """Return the name of the checkpoint that a link points to, or of the one with the same step if it is a copy."""
    try:
        return os.readlink(link) if link.is_symlink() else f"step-{checkpoint_step(link):08d}"
    except (OSError, TypeError):
        return None
