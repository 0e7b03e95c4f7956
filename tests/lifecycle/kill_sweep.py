"""Kill a whole lifecycle again and again while it trains, resume it each time, and compare its weights with an undisturbed one's.

As a script: `python -m tests.lifecycle.kill_sweep FOLDER KILLS [SEED] [--smoke]` prints one JSON object. A kill is a SIGKILL to the
process group, after some steps of whatever stage is training, and a random fraction of a second. With `--smoke` the command is
`lifecycle --smoke`, which begins anew each time; otherwise a small lifecycle of every stage, which goes on where it was: the next
session of the killed run begins after its newest checkpoint, as its run.json records, and finished stages are not trained again.
The exit code is 1 where that is not so, weights differ, nothing was compared, or fewer kills than asked took place.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tinyllm.io.files import sha256

ROOT = Path(__file__).resolve().parents[2]
SHAPE = "{vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, head_dim: 16}"
SETS = [
    f"pretrain:model={SHAPE}", "pretrain:data.train=['world:300']", "train.batch_size=8", "train.micro_batch_size=4",
    "train.steps=12", "train.eval_every=6", "train.save_every=4", "train.eval_rows=8", "train.compile=off", "train.log_every=1",
]  # fmt: skip


def command(smoke: bool) -> list[str]:
    words = [sys.executable, "-m", "tinyllm", "lifecycle"]
    if smoke:
        return [*words, "--smoke"]
    return [*words, "--name", "killed", "--questions", "8", *(word for s in SETS for word in ("--set", s))]


def logged(folder: Path) -> dict[Path, int]:
    """Return the number of lines of every metrics.jsonl."""
    found = {}
    for top, _, names in os.walk(folder / "runs"):  # unlike glob, it bears folders that vanish under a running command
        if "metrics.jsonl" not in names:
            continue
        path = Path(top, "metrics.jsonl")
        try:
            found[path] = path.read_bytes().count(b"\n")
        except OSError:  # removed in this moment
            continue
    return found


def weights(folder: Path) -> dict[str, str]:
    """Return the sha256 of the weights and the optimizer state in the newest checkpoint of every run."""
    files = [path for path in folder.glob("runs/**/ckpt_latest/**/*.safetensors") if "~" not in str(path)]
    files += [
        path for link in folder.glob("runs/**/ckpt_latest") for path in link.resolve().rglob("*.safetensors")
    ]  # ** does not follow links
    names = {f"{path.relative_to(folder.resolve())}": path for path in map(Path.resolve, files)}
    return {name: sha256(path) for name, path in sorted(names.items())}


def start(folder: Path, smoke: bool) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            command(smoke), cwd=folder, env=environment, stdout=output, stderr=output, start_new_session=True
        )


def killed(folder: Path, smoke: bool, steps: int, pause: float) -> str | None:
    """Start the command, and kill it once it has logged `steps` steps more. Return where it was; None if it had come to its end."""
    process, before, seen = start(folder, smoke), logged(folder), 0
    while seen < steps:
        if process.poll() is not None:
            return None
        time.sleep(0.005)
        now = logged(folder)
        seen += sum(max(0, lines - before.get(path, 0)) for path, lines in now.items())
        newest = max(
            (path for path in now if now[path] > before.get(path, 0)), default=None, key=lambda p: p.stat().st_mtime
        )
        place = f"{newest.parent.relative_to(folder)}, line {now[newest]}" if newest else ""
        before = now
    time.sleep(pause)
    if process.poll() is not None:
        return None
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return place


def newest_step(run: Path) -> int:
    """Return the step of the newest published checkpoint of a run; 0 without one."""
    names = [path.name.removeprefix("step-") for path in run.glob("checkpoints/step-*")]
    return max((int(name) for name in names if name.isdigit()), default=0)


def sessions(run: Path) -> list[dict[str, Any]]:
    """Return the sessions of a run, as run.json lists them."""
    return json.loads((run / "run.json").read_text()).get("sessions", [])


def finished(folder: Path) -> dict[Path, int]:
    """Return the number of sessions of every completed run."""
    facts = {path.parent: json.loads(path.read_text()) for path in folder.glob("runs/**/run.json")}
    return {run: len(found["sessions"]) for run, found in facts.items() if found["status"] == "completed"}


def wrong_beginnings(kills: list[tuple[Path, int]]) -> list[str]:
    """Return the killed runs of which no later session began after the checkpoint that was the newest when they were killed."""
    found = []
    for run, step in kills:
        begun = [session["from_step"] for session in sessions(run)]
        if step < sessions(run)[-1]["steps"] and step not in begun[1:]:
            found.append(f"{run.name}: killed after step {step}, its sessions begin after steps {begun}")
    return found


def main() -> int:
    smoke = "--smoke" in sys.argv
    folder, wanted_kills, *rest = [word for word in sys.argv[1:] if word != "--smoke"]
    base, random_ = Path(folder).resolve(), random.Random(int(rest[0]) if rest else 0)
    whole, cut = base / "whole", base / "cut"
    for part in (whole, cut):
        part.mkdir(parents=True)
    began = time.monotonic()
    assert start(whole, smoke).wait() in (0, 1), (whole / "output.txt").read_text()[-2000:]  # 1: a gate failed
    seconds = round(time.monotonic() - began)
    most = max(2, 2 * sum(logged(whole).values()) // int(wanted_kills))
    places, kills, done, wrong = list[str](), list[tuple[Path, int]](), dict[Path, int](), list[str]()
    while len(places) < int(wanted_kills):
        place = killed(cut, smoke, random_.randint(1, most), random_.random() / 4)
        if place is None:
            break
        places.append(place)
        if not smoke:
            run = cut / place.partition(",")[0]
            kills += [(run, newest_step(run))] * ((run / "run.json").exists() and newest_step(run) > 0)
            done |= finished(cut)
    assert start(cut, smoke).wait() in (0, 1), (cut / "output.txt").read_text()[-2000:]
    wanted, got = weights(whole), weights(cut)
    different = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
    if not smoke:
        wrong = wrong_beginnings(kills)
        wrong += [
            f"{run.name}: finished, and trained again" for run, count in done.items() if len(sessions(run)) != count
        ]
    found = {
        "undisturbed seconds": seconds,
        "killed in": places,
        "kills": len(places),
        "after a checkpoint": len(kills),
    }
    found |= {"finished stages": len(done), "files": len(wanted), "different": different, "wrong": wrong}
    print(json.dumps(found, indent=1))
    return int(bool(different or wrong) or not wanted or len(places) < int(wanted_kills) or not (kills or smoke))


if __name__ == "__main__":
    sys.exit(main())
