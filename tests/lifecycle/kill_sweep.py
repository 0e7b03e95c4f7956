"""Kill a whole lifecycle again and again while it trains, resume it each time, and compare its weights with an undisturbed one's.

As a script: `python -m tests.lifecycle.kill_sweep FOLDER KILLS [SEED] [--smoke]` prints one JSON object. A kill is a SIGKILL to the
process group, after some steps of whatever stage is training, and a random fraction of a second. With `--smoke` the command is
`lifecycle --smoke`, which begins anew each time; otherwise a small lifecycle of every stage, which goes on where it was.
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
    for path in folder.glob("runs/**/metrics.jsonl"):
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


def main() -> None:
    smoke = "--smoke" in sys.argv
    folder, kills, *rest = [word for word in sys.argv[1:] if word != "--smoke"]
    base, random_ = Path(folder).resolve(), random.Random(int(rest[0]) if rest else 0)
    whole, cut = base / "whole", base / "cut"
    for part in (whole, cut):
        part.mkdir(parents=True)
    began = time.monotonic()
    assert start(whole, smoke).wait() in (0, 1), (whole / "output.txt").read_text()[-2000:]  # 1: a gate failed
    found: dict[str, Any] = {"undisturbed seconds": round(time.monotonic() - began), "killed in": []}
    most = max(2, 2 * sum(logged(whole).values()) // int(kills))
    while len(found["killed in"]) < int(kills):
        place = killed(cut, smoke, random_.randint(1, most), random_.random() / 4)
        if place is None:
            break
        found["killed in"].append(place)
    assert start(cut, smoke).wait() in (0, 1), (cut / "output.txt").read_text()[-2000:]
    wanted, got = weights(whole), weights(cut)
    different = [name for name in {**wanted, **got} if wanted.get(name) != got.get(name)]
    print(
        json.dumps({**found, "kills": len(found["killed in"]), "files": len(wanted), "different": different}, indent=1)
    )


if __name__ == "__main__":
    main()
