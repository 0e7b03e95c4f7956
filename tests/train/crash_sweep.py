"""Kill a run at every critical moment, look at the files that it leaves, and resume it.

As a script: `python -m tests.train.crash_sweep FOLDER STRIDE` prints one JSON object; the exit code is 1 if anything was lost.
It has three parts, each for every STRIDE-th case:

- A run of three steps that saves, links and prunes after each is killed by SIGKILL at each of its file-system events in the run
  directory (Python's audit events: every open, mkdir, rename, remove, symlink).
- The same run, resumed after its first step, is cut off in the middle of each of its writes, at three offsets of every file: once
  killed, once refused with the error of a full disk. So a checkpoint is published before each of them.
- A fast-dev-run that replaces an earlier one is killed at its events: the next one must come to its end.

After each, exactly the checkpoints that were published are there, with the bytes that their manifests list. Resumed, the first step
trained is the one after the newest of them: the evaluation that the sweep hands to the trainer hears which steps it follows, and
run.json says the same. At the end all checkpoints, hashed here, the links, and all lines of metrics.jsonl are those of a run that nobody
disturbed. `tests/lifecycle/crash_sweep.py` does the same to the records and reports of a lifecycle.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from tests.support import kills, small
from tests.support.kills import Write, in_child
from tests.support.trained import PLANNED, planned, train_small
from tinyllm.errors import RESOURCES
from tinyllm.stages import sft
from tinyllm.stages.config import SftConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation

STEPS = 3
TENSORS = ("model.safetensors", "optimizer.safetensors")  # in the order in which they are written


def train(folder: Path, heard: Path | None = None) -> None:
    """Train or resume. `heard` receives the step that each evaluation follows: one comes before the first step, and one after each."""

    def evaluate(engine: Engine) -> dict[str, float]:
        if heard:
            with heard.open("a") as file:
                print(engine.updates, file=file)
        return planned(engine)

    train_small(folder, steps=STEPS, keep=1, log_every=1, evaluate=evaluate)


def rows(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl without the speed."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "tokens_per_second"} for row in found]


def links(folder: Path) -> dict[str, str]:
    """Return the names of the checkpoints that ckpt_latest and ckpt_best point to."""
    return {path.name: path.resolve().name for path in (folder / "checkpoints").glob("ckpt_*")}


class Sweep:
    """Runs that are killed one after the other, and what was found after each."""

    def __init__(self, base: Path):
        self.folder, self.heard, self.note = base / "run", base / "heard", base / "note"
        self.lost: list[str] = []
        self.resumed_from: Counter[str] = Counter()
        self.kills_at_events, self.files = 0, dict[str, Counter[str]]()
        train(base / "warm")  # whatever is imported late is imported once and not in every child
        straight = base / "straight"
        self.events = self._undisturbed(straight, base / "events")
        self.wanted, self.rows, self.links = kills.contents(straight), rows(straight), links(straight)
        best = min(range(STEPS + 1), key=PLANNED.__getitem__)
        assert set(self.wanted) == {best, STEPS}, f"kept are {set(self.wanted)}, not the best and the newest"
        assert [row["step"] for row in self.rows] == [0, 1, 1, 2, 2, 3, 3]
        self.begun = base / "begun"
        logs = [n for n, event in enumerate(self.events, 1) if self._follows_step_one(n, event)]
        number = logs[1]  # the line of step 2 is there, and will be dropped
        in_child(lambda: train(self.begun), lambda: kills.killed_at(self.begun, number))
        resumed = Path(shutil.copytree(self.begun, base / "resumed", symlinks=True))
        self.writes = self._writes(straight, self._undisturbed(resumed, base / "resumed-events"))

    def _undisturbed(self, folder: Path, events: Path) -> list[kills.Event]:
        assert in_child(lambda: train(folder), lambda: kills.recorded(folder, events)) == 0
        return kills.read_events(events)

    def _follows_step_one(self, number: int, event: kills.Event) -> bool:
        logs = event[0] == "open" and Path(event[1][0]).name == "metrics.jsonl"
        return logs and kills.published_by(self.events[: number - 1])[1] == 1

    def _writes(self, straight: Path, events: list[kills.Event]) -> list[Write]:
        """Return three places in every write of the resumed run: after its first byte, in the middle, and before its last byte."""
        newest = straight / "checkpoints" / f"step-{STEPS:08d}"
        sizes = {path.name: path.stat().st_size for path in newest.rglob("*") if path.is_file()}
        digits = 40  # seconds and tokens per second may have so many fewer in another run
        sizes["run.json.new"] = (self.begun / "run.json").stat().st_size - digits
        lines = (self.begun / "metrics.jsonl").read_text().splitlines(keepends=True)
        sizes["metrics.jsonl.new"] = len("".join(lines[:-1])) - digits  # the line of step 2 is dropped
        shortest = min(map(len, (straight / "metrics.jsonl").read_text().splitlines())) - digits
        sizes |= {"metrics.jsonl": shortest, "run.log": 9, "lock": 9}
        names = [(path.name, False) for path in kills.opened_for_writing(events)]
        calls = [(name, True) for _ in range(STEPS - 1) for name in TENSORS]
        return [
            Write(number, name, offset, tensors)
            for files in (names, calls)
            for number, (name, tensors) in enumerate(files, 1)
            for offset in (1, sizes[name] // 2, sizes[name] - 1)
        ]

    def chosen(self, stride: int) -> list[Write]:
        """Return every `stride`-th write, and one of each file."""
        first = {write.file: write for write in reversed(self.writes) if write.offset > 1}
        return list(dict.fromkeys([*self.writes[::stride], *first.values()]))

    def kill_at_event(self, number: int) -> None:
        """Kill a new run at one of its events."""
        name = f"event {number}"
        shutil.rmtree(self.folder, ignore_errors=True)
        status = in_child(lambda: train(self.folder), lambda: kills.killed_at(self.folder, number))
        if status != signal.SIGKILL:
            self.lost.append(f"{name}: ended with status {status}")
        self.kills_at_events += status == signal.SIGKILL
        there, newest = kills.published_by(self.events[: number - 1])
        needed = {newest, min(range(newest + 1), key=PLANNED.__getitem__)} if newest >= 0 else set[int]()
        if not needed <= there:
            self.lost.append(f"{name}: of the newest and the best, {needed}, there are only {there}")
        self.judge(name, there)

    def cut_off(self, write: Write, *, killed: bool) -> None:
        """Cut a resumed run off in the middle of a write: killed, or with an error."""
        name = f"{'killed' if killed else 'no room'} after {write.offset} bytes of {write.file}, write {write.number}"
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.begun, self.folder, symlinks=True)
        self.note.unlink(missing_ok=True)
        status = in_child(
            lambda: train(self.folder), lambda: kills.cut_off(self.folder, write, self.note, killed=killed)
        )
        noted = json.loads(self.note.read_text())
        if status not in (kills.CUT_OFF if killed else {RESOURCES << 8}):
            self.lost.append(f"{name}: ended with status {status}")
        elif killed and not kills.is_torn(self.folder, write, noted["size"]):
            self.lost.append(f"{name}: killed elsewhere")
        elif not killed and list((self.folder / "checkpoints").glob(".unfinished*")):
            self.lost.append(f"{name}: the incomplete checkpoint stays")
        self.files.setdefault(write.file, Counter())["kills" if killed else "refusals"] += 1
        self.judge(name, set(noted["published"]))

    def judge(self, name: str, before: set[int]) -> None:
        """Look at what is left, resume, and compare the end with that of the undisturbed run."""
        try:
            there = kills.contents(self.folder)
            if set(there) != before:
                self.lost.append(f"{name}: {before} were published, {set(there)} are there")
            dead = [path for path in (self.folder / "checkpoints").glob("ckpt_*") if not path.exists()]
            self.lost += [f"{name}: {path.name} points to nothing" for path in dead]
            self._resume(name, max(before, default=-1))
        except (OSError, ValueError) as error:
            self.lost.append(f"{name}: {error}")

    def _resume(self, name: str, newest: int) -> None:
        self.heard.write_text("")
        if in_child(lambda: train(self.folder, self.heard)) != 0:
            self.lost.append(f"{name}: does not resume")
            return
        followed = [int(line) for line in self.heard.read_text().split()]
        if followed != list(range(newest + 1, STEPS + 1)):
            self.lost.append(f"{name}: step {newest} was published, and resumed it evaluates after steps {followed}")
        session = json.loads((self.folder / "run.json").read_text())["sessions"][-1]
        if newest < STEPS and session["from_step"] != max(newest, 0):
            self.lost.append(f"{name}: the last session begins after step {session['from_step']}, not {newest}")
        ends = kills.contents(self.folder), rows(self.folder), links(self.folder)
        wanted = self.wanted, self.rows, self.links
        parts = [part for part, a, b in zip(("checkpoints", "metrics", "links"), ends, wanted, strict=True) if a != b]
        if parts:
            self.lost.append(f"{name}: resumes to other {' and '.join(parts)}")
        if [*(self.folder / "checkpoints").glob(".unfinished*"), *self.folder.glob("*.new")]:
            self.lost.append(f"{name}: leftovers")
        self.resumed_from["nothing" if newest < 0 else f"step {newest}"] += 1


def sweep(base: Path, stride: int) -> dict[str, Any]:
    found = Sweep(base)
    for number in range(1, len(found.events) + 1, stride):
        found.kill_at_event(number)
    for write in found.chosen(stride):
        found.cut_off(write, killed=True)
        found.cut_off(write, killed=False)
    total = sum(found.files.values(), Counter())
    return {
        "events": len(found.events),
        "places in writes": len(found.writes),
        "kills at events": found.kills_at_events,
        "kills in the middle of a write": total["kills"],
        "refusals in the middle of a write": total["refusals"],
        "files written": {name: dict(counts) for name, counts in sorted(found.files.items())},
        "resumed from": dict(sorted(found.resumed_from.items())),
        "lost": found.lost,
    }


def rehearsals(base: Path, stride: int) -> dict[str, Any]:
    """Kill a fast-dev-run at the file-system events in its directory; an earlier one is there, and a finished run beside it."""
    os.chdir(base)
    small.saved(small.rough(scale=0.1), Path("parent"))
    records = [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(25)]
    sections = small.common(small.written(Path("answers.jsonl"), records), steps=2, eval_every=1, save_every=1)
    folder, finished = Path("runs/sft/full/fast-dev-run"), Path("runs/sft/full/mine")

    def go(name: str = "fast-dev-run") -> None:
        config = SftConfig(**sections, parent=Path("parent"), name=name)
        sft.run(config, Invocation("written: down\n", fast=name == "fast-dev-run"))

    def files(folder: Path) -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    go("mine")
    kept = files(finished)
    go()
    assert in_child(go, lambda: kills.recorded(folder, base / "rehearsal-events")) == 0
    events, wanted, lost = kills.read_events(base / "rehearsal-events"), kills.contents(folder), []
    numbers, killed = range(1, len(events) + 1, stride), 0
    for number in numbers:
        status = in_child(go, lambda n=number: kills.killed_at(folder, n))
        killed += status == signal.SIGKILL
        if status != signal.SIGKILL:
            lost.append(f"fast-dev-run, event {number}: not killed")
        if in_child(go) != 0:
            lost.append(f"fast-dev-run, event {number}: the next one fails")
        elif kills.contents(folder) != wanted:
            lost.append(f"fast-dev-run, event {number}: another result")
        if {path.name for path in folder.parent.iterdir() if not path.name.startswith(".")} != {"fast-dev-run", "mine"}:
            lost.append(f"fast-dev-run, event {number}: leftovers")
    if files(finished) != kept or not kept or not wanted:
        lost.append("a finished run has changed")
    return {"events of a fast-dev-run": len(events), "kills of fast-dev-runs": killed, "lost": lost}


def main() -> int:
    kills.use_one_thread()
    base, stride = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    base.mkdir(parents=True, exist_ok=True)
    runs, rehearsed = sweep(base, stride), rehearsals(base, stride)
    lost = runs["lost"] + rehearsed["lost"]
    print(json.dumps({**runs, **rehearsed, "lost": lost}))
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
