"""Kill a run at every critical moment and check the files that it leaves.

As a script: `python -m tests.train.crash_sweep FOLDER STRIDE` prints one JSON object. A run of three steps that saves, links and
prunes after each is killed by
SIGKILL at its i-th file-system event in the run directory (Python's audit events: every open, mkdir, rename, remove, symlink), for
every STRIDE-th i; and, since safetensors writes without such events, in the middle of a write: at the byte where a file outgrows
RLIMIT_FSIZE. After each, what is there must verify, nothing published may be lost, and the run must resume to the same result.
A rehearsal (--fast-dev-run) that replaces an earlier one is killed in the same way: the next one must come to its end.

A killed process leaves to the system what it has written, so nothing is flushed to the disk: waiting for a busy disk took most of the time.
`tests/lifecycle/crash_sweep.py` does the same to the records and reports of a lifecycle.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import small
from tests.support.trained import train_small
from tinyllm.errors import RESOURCES, UserError
from tinyllm.stages import sft
from tinyllm.stages.config import SftConfig
from tinyllm.train import checkpoint
from tinyllm.train.run import Invocation

STEPS = 3
REMOVALS = {"os.remove", "os.rmdir"}
EVENTS = {"open", "os.mkdir", "os.rename", "os.symlink", "os.truncate"} | REMOVALS


def train(folder: Path) -> None:
    train_small(folder, steps=STEPS, keep=1)


def in_child(go: Callable[[], None], arm: Callable[[], None] | None = None) -> int:
    """Return the status of a forked process that arms itself and goes; quiet, and gone at the end whatever happens."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.fsync = lambda _: None
            if arm is not None:
                arm()
            go()
            code = 0
        except UserError as error:
            code = error.code
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def watch(folder: Path, seen: Callable[[str, tuple], None]) -> None:
    """Call `seen` before every event that concerns `folder`."""

    def hook(event: str, arguments: tuple) -> None:
        named = any(str(folder) in str(a) for a in arguments if isinstance(a, str | Path))
        # removing a tree names its files relative to open folders
        inside = event in REMOVALS and isinstance(arguments[0], str) and not os.path.isabs(arguments[0])
        if event in EVENTS and (named or inside):
            seen(event, arguments)

    sys.addaudithook(hook)


def killed_at(folder: Path, number: int) -> None:
    left = [number]

    def seen(event: str, arguments: tuple) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(folder, seen)


def recorded(folder: Path, file: Path) -> None:
    """Write every event down, one a line, as it happens."""
    out = file.open("w")  # outside the folder

    def seen(event: str, arguments: tuple) -> None:
        print(json.dumps([event, [str(a) for a in arguments]]), file=out, flush=True)

    watch(folder, seen)


def limited(size: int, action: signal.Handlers) -> None:
    signal.signal(signal.SIGXFSZ, action)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def published(events: list[Any], number: int) -> int:
    """The highest step that had its final name before event `number`; -1: none."""
    names = [Path(args[1]).name for event, args in events[: number - 1] if event == "os.rename"]
    steps = [int(n.removeprefix("step-")) for n in names if n.startswith("step-")]
    return max(steps, default=-1)


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((checkpoint.steps(folder / "checkpoints")[-1] / checkpoint.MANIFEST).read_text())["files"]


def look(folder: Path, at_least: int) -> str:
    """Return the faults in the files of a killed run."""
    there = checkpoint.steps(folder / "checkpoints")
    for path in there:
        checkpoint.verify(path)
    newest = checkpoint.step_of(there[-1]) if there else -1
    return "" if newest >= at_least else f"step {at_least} was published, {newest} is the newest now"


def sweep(base: Path, stride: int) -> dict[str, Any]:
    train(base / "warm")  # whatever is imported late is imported once and not in every child
    straight = base / "straight"
    assert in_child(lambda: train(straight), lambda: recorded(straight, base / "events")) == 0
    events = [json.loads(line) for line in (base / "events").read_text().splitlines()]
    wanted, lost = manifest(straight), []
    longest = max(entry["size"] for entry in wanted.values())

    def one(name: str, arm: Callable[[], None], status: set[int], at_least: int) -> None:
        folder = base / "run"
        shutil.rmtree(folder, ignore_errors=True)
        ended = in_child(lambda: train(folder), arm)
        if ended not in status:
            lost.append(f"{name}: ended with status {ended}")
        try:
            problem = look(folder, at_least)
        except Exception as error:
            problem = str(error)
        if problem:
            lost.append(f"{name}: {problem}")
        if in_child(lambda: train(folder)) != 0:
            lost.append(f"{name}: does not resume")
        elif manifest(folder) != wanted:
            lost.append(f"{name}: resumes to another result")
        elif list((folder / "checkpoints").glob(".unfinished*")):
            lost.append(f"{name}: leftovers")

    numbers = range(1, len(events) + 1, stride)
    for number in numbers:
        one(f"event {number}", lambda n=number: killed_at(base / "run", n), {signal.SIGKILL}, published(events, number))
    sizes = range(1, longest, max(1, longest * stride // 60))
    for size in sizes:
        one(
            f"killed at byte {size}",
            lambda s=size: limited(s, signal.SIG_DFL),
            {signal.SIGXFSZ, 0x80 | signal.SIGXFSZ},
            -1,
        )
        one(f"no room past byte {size}", lambda s=size: limited(s, signal.SIG_IGN), {RESOURCES << 8}, -1)
    return {
        "events": len(events),
        "killed at events": len(numbers),
        "in the middle of a write": 2 * len(sizes),
        "lost": lost,
    }


def rehearsals(base: Path, stride: int) -> dict[str, Any]:
    """Kill a rehearsal at the file-system events in its directory; an earlier one is there, and a finished run beside it."""
    os.chdir(base)
    small.saved(small.rough(scale=0.1), Path("parent"))
    rows = [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(25)]
    sections = small.common(small.written(Path("answers.jsonl"), rows), steps=2, eval_every=1, save_every=1)
    folder, finished = Path("runs/sft/full/fast-dev-run"), Path("runs/sft/full/mine")

    def go(name: str = "fast-dev-run") -> None:
        config = SftConfig(**sections, parent=Path("parent"), name=name)
        sft.run(config, Invocation("written: down\n", fast=name == "fast-dev-run"))

    go("mine")
    kept = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    go()
    assert in_child(go, lambda: recorded(folder, base / "rehearsal-events")) == 0
    events, wanted, lost = (base / "rehearsal-events").read_text().splitlines(), manifest(folder), []
    numbers = range(1, len(events) + 1, stride)
    for number in numbers:
        if in_child(go, lambda n=number: killed_at(folder, n)) != signal.SIGKILL:
            lost.append(f"rehearsal, event {number}: not killed")
        if in_child(go) != 0:
            lost.append(f"rehearsal, event {number}: the next one fails")
        elif manifest(folder) != wanted:
            lost.append(f"rehearsal, event {number}: another result")
        if {path.name for path in folder.parent.iterdir() if not path.name.startswith(".")} != {"fast-dev-run", "mine"}:
            lost.append(f"rehearsal, event {number}: leftovers")
    if {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} != kept:
        lost.append("a finished run has changed")
    return {"rehearsal events": len(events), "rehearsals killed": len(numbers), "lost": lost}


def main() -> None:
    base, stride = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    runs, rehearsed = sweep(base, stride), rehearsals(base, stride)
    print(json.dumps({**runs, **rehearsed, "lost": runs["lost"] + rehearsed["lost"]}))


if __name__ == "__main__":
    main()
