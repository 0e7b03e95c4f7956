"""Kill a lifecycle at the file-system events of its own folder: records, lock, scorecard and report.

As a script: `python -m tests.lifecycle.crash_sweep FOLDER STRIDE` prints one JSON object. After each kill, every file there is whole or
absent, and the same command ends with the same weights, figures and reports.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

from tests.train.crash_sweep import in_child, killed_at, recorded
from tinyllm.cli.lifecycle import pipeline_configs
from tinyllm.cli.options import Common
from tinyllm.lifecycle import records, run

SHAPE = "{vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, head_dim: 16}"
SETS = [
    "data.train=['world:60']",
    "train.steps=2",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.eval_every=2",
]
SETS += ["train.eval_rows=4", "train.compile=off", "data.max_length=96", f"pretrain:model={SHAPE}"]
FOLDER = Path("runs/lifecycle/tiny")
TIMES = ("seconds", "created", "command", "peak_memory_mb", "machine", "examined_seconds")


def go() -> None:
    found = pipeline_configs("laptop", Common(set=SETS, name="tiny"), [], 1, {})["tiny"]
    run.run({"tiny": {stage: found[stage] for stage in ("pretrain", "sft")}}, "laptop", "tiny", questions=8)


def timeless(value: Any) -> Any:
    """Return the value without what differs between two equal runs."""
    if isinstance(value, dict):
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES and "tokens_per" not in key}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def outcome() -> dict[str, Any]:
    """Return the figures of every record and of the scorecard, and the length of the report without its times."""
    return {path.name: timeless(json.loads(path.read_text())) for path in sorted(FOLDER.glob("*.json"))}


def damaged() -> str:
    """Return the faults of the files that a killed lifecycle left."""
    for stage in ("pretrain", "sft"):
        path = FOLDER / f"{stage}.json"
        if path.exists() and records.read(path, stage, policy=True) is None:
            return f"{path} is damaged"
    card, page = FOLDER / "scorecard.json", FOLDER / "report.html"
    if card.exists():
        json.loads(card.read_text())
    return "the report is cut off" if page.exists() and not page.read_text().rstrip().endswith("</html>") else ""


def main() -> None:
    base, stride = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    whole, here = base / "whole", base / "killed"
    whole.mkdir(parents=True)
    os.chdir(whole)
    assert in_child(go) == 0
    wanted, lost = outcome(), []
    trained = base / "trained"  # with the runs, without the records: what is killed is the folder of the lifecycle
    shutil.copytree(whole, trained, symlinks=True)
    shutil.rmtree(trained / FOLDER)
    shutil.copytree(trained, here, symlinks=True)
    os.chdir(here)
    assert in_child(go, lambda: recorded(FOLDER, base / "events")) == 0
    events = (base / "events").read_text().splitlines()
    numbers = range(1, len(events) + 1, stride)
    for number in numbers:
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(trained, here, symlinks=True)
        os.chdir(here)
        if in_child(go, lambda n=number: killed_at(FOLDER, n)) != signal.SIGKILL:
            lost.append(f"event {number}: not killed")
        if problem := damaged():
            lost.append(f"event {number}: {problem}")
        if in_child(go) != 0:
            lost.append(f"event {number}: does not resume")
        elif outcome() != wanted or damaged():
            lost.append(f"event {number}: resumes to another result")
        elif list(FOLDER.glob("*.new")):
            lost.append(f"event {number}: leftovers")
    print(json.dumps({"events": len(events), "killed at events": len(numbers), "lost": lost}))


if __name__ == "__main__":
    main()
