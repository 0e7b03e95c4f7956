"""Kill a lifecycle at the file-system events of its own folder: records, lock, scorecard and report.

As a script: `python -m tests.lifecycle.crash_sweep FOLDER STRIDE` prints one JSON object; the exit code is 1 if anything was lost. It is
killed at every STRIDE-th event, and in the middle of every STRIDE-th write. After each kill, every file there is whole or absent. The same
command ends with the same figures and reports, writes no record again that was whole, and trains no finished stage again: the files of
all checkpoints stay as they are.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.support import kills
from tests.support.kills import Write, in_child
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


def stamps(folder: Path, pattern: str) -> dict[Path, tuple[int, bytes]]:
    """Return the inode and the content of files: one that is written again has another inode."""
    return {path: (path.stat().st_ino, path.read_bytes()) for path in sorted(folder.glob(pattern)) if path.is_file()}


def trained() -> dict[Path, Any]:
    """Return all files of the checkpoints by inode and content, and the metrics by content: they hold the speed of every step."""
    metrics = {path: content for path, (_, content) in stamps(Path("runs"), "**/metrics.jsonl").items()}
    return metrics | {
        path: found for path, found in stamps(Path("runs"), "**/*").items() if "checkpoints" in path.parts
    }


def killed(arm: Callable[[], None], statuses: set[int], wanted: dict[str, Any]) -> list[str]:
    """Kill the lifecycle in the working directory, resume it, and return what was lost."""
    lost, before = [], trained()
    if in_child(go, arm) not in statuses:
        lost.append("not killed")
    if problem := damaged():
        lost.append(problem)
    whole = stamps(FOLDER, "[ps]*t*.json")  # of pretrain and sft
    whole.pop(FOLDER / "scorecard.json", None)
    if in_child(go) != 0:
        lost.append("does not resume")
    elif outcome() != wanted or damaged():
        lost.append("resumes to another result")
    elif list(FOLDER.glob("*.new")):
        lost.append("leftovers")
    if any(stamps(FOLDER, path.name)[path] != found for path, found in whole.items()):
        lost.append("a whole record was written again")
    if trained() != before or not before:
        lost.append("a finished stage was trained again")
    return lost


def main() -> int:
    kills.use_one_thread()
    base, stride = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    whole, here = base / "whole", base / "killed"
    whole.mkdir(parents=True)
    os.chdir(whole)
    assert in_child(go) == 0
    wanted = outcome()
    assert set(wanted) == {"pretrain.json", "sft.json", "scorecard.json"}, set(wanted)
    without = base / "trained"  # with the runs, without the records: what is killed is the folder of the lifecycle
    shutil.copytree(whole, without, symlinks=True)
    shutil.rmtree(without / FOLDER)

    def anew() -> None:
        os.chdir(base)
        shutil.rmtree(here, ignore_errors=True)
        shutil.copytree(without, here, symlinks=True)
        os.chdir(here)

    anew()
    assert in_child(go, lambda: kills.recorded(FOLDER, base / "events")) == 0
    events, lost, counts = kills.read_events(base / "events"), list[str](), Counter[str]()
    opened = [path.name for path in kills.opened_for_writing(events)]
    size = {f"{path.name}.new": path.stat().st_size for path in (whole / FOLDER).iterdir()} | {"lock": 9}
    writes = [Write(number, name, size[name] // 2) for number, name in enumerate(opened, 1)]
    cases: list[tuple[str, str, Callable[[], None], set[int]]] = [
        ("at events", f"event {n}", partial(kills.killed_at, FOLDER, n), {signal.SIGKILL})
        for n in range(1, len(events) + 1, stride)
    ]
    for write in writes[::stride]:
        arm = partial(kills.cut_off, FOLDER, write, base / "note", killed=True)
        cases.append(("in the middle of a write", f"half of {write.file}", arm, kills.CUT_OFF))
    for kind, name, arm, statuses in cases:
        anew()
        found = killed(arm, statuses, wanted)
        counts[f"kills {kind}"] += "not killed" not in found
        lost += [f"{name}: {what}" for what in found]
    print(json.dumps({"events": len(events), "writes": len(writes), **counts, "lost": lost}))
    return int(bool(lost) or not counts.total())


if __name__ == "__main__":
    sys.exit(main())
