"""Record what every stage computes, and compare another version of the code with the record.

    python tests/equality.py record before.json        # in the old checkout
    python tests/equality.py compare before.json       # in the new one; exit 1 where anything differs

Each set-up is a whole command in a subprocess, a `--fast-dev-run` from a fresh folder. What is recorded of a run is the sha256 of the
final weights and every logged figure that is not a time. A refactoring must leave all of it equal, bit for bit, on one machine with
one set of packages. The commands and files used here are the public ones, so that the script runs on both versions.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TIMES = {"tokens_per_second", "seconds", "rollout_seconds", "lr_seconds"}
ONLINE = ("ppo", "gspo", "grpo", "dapo", "dr_grpo", "cispo", "rloo")
OFFLINE = ("dpo", "orpo", "simpo", "kto")
PARENTS = {  # runs that the others start from, in this order
    "pretrain": "pretrain",
    "sft": "sft",
    "rm": "rm",
}
CASES = {
    "pretrain-packed": "pretrain --set packing=true",
    "sft-packed": "sft --set packing=true",
    "sft-lora": "sft --lora",
    "sft-dora": "sft --lora --set lora.dora=true",
    **{name: f"align-offline --algorithm {name}" for name in OFFLINE},
    "dpo-lora": "align-offline --algorithm dpo --set lora.r=8",
    **{name: f"align-online --algorithm {name}" for name in ONLINE},
    "grpo-lora": "align-online --algorithm grpo --set lora.r=8",
    "pretrain-2-ranks": "pretrain --nproc 2",
    "sft-2-ranks": "sft --nproc 2",
    "dpo-2-ranks": "align-offline --algorithm dpo --nproc 2",
    "grpo-2-ranks": "align-online --algorithm grpo --nproc 2",
}


def command(arguments: str, folder: Path) -> None:
    """Run one tinyllm command of this checkout in `folder`; SystemExit with its output where it fails."""
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1" if "--nproc" in arguments else "2"}
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", *arguments.split(), "--quiet"],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"tinyllm {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}")


def account(run: Path) -> dict[str, Any]:
    """Final weights and figures of a run directory."""
    last = (run / "checkpoints" / "ckpt_latest").resolve()
    weights = {
        path.relative_to(last).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(last.rglob("*.safetensors"))
    }
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figures = [{key: value for key, value in row.items() if key not in TIMES} for row in rows]
    return {"step": last.name, "weights": weights, "figures": figures}


def runs(folder: Path) -> dict[str, Path]:
    return {path.parent.relative_to(folder).as_posix(): path.parent for path in folder.rglob("metrics.jsonl")}


def fast(name: str, arguments: str, folder: Path) -> dict[str, Any]:
    """One `--fast-dev-run`: the account of the run that it wrote."""
    before = {key: path.joinpath("run.json").read_bytes() for key, path in runs(folder).items()}
    command(f"{arguments} --fast-dev-run", folder)
    written = [path for key, path in runs(folder).items() if path.joinpath("run.json").read_bytes() != before.get(key)]
    assert len(written) == 1, (name, written)
    return account(written[0])


def everything(only: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, arguments in PARENTS.items():
            found[name] = fast(name, arguments, folder)
            print(f"{name}: {len(found[name]['figures'])} rows", flush=True)
        keep = folder / "parents"
        keep.mkdir()
        (folder / "runs").rename(keep / "runs")
        for name, arguments in CASES.items():
            if only in name:
                found[name] = _from_parents(name, arguments, keep, folder)
                print(f"{name}: {len(found[name]['figures'])} rows", flush=True)
    if only in "lifecycle":
        with tempfile.TemporaryDirectory() as scratch:
            command("lifecycle --smoke", Path(scratch))
            for key, run in runs(Path(scratch)).items():
                found[f"lifecycle {key}"] = account(run)
            print("lifecycle --smoke", flush=True)
    return found


def _from_parents(name: str, arguments: str, keep: Path, folder: Path) -> dict[str, Any]:
    """A set-up in a folder of its own, with the parents linked in, so that it starts from those and nothing else."""
    own = folder / name
    subprocess.run(["cp", "-r", str(keep), str(own)], check=True)
    return fast(name, arguments, own)


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is not equal, a line each."""
    lines = [f"{name}: not in both" for name in sorted(before.keys() ^ now.keys())]
    for name in sorted(before.keys() & now.keys()):
        then, here = before[name], now[name]
        lines += [f"{name}: other {key}" for key in ("step", "weights") if then[key] != here[key]]
        if len(then["figures"]) != len(here["figures"]):
            lines.append(f"{name}: {len(then['figures'])} rows, now {len(here['figures'])}")
        for old, new in zip(then["figures"], here["figures"], strict=False):
            if old != new:
                keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
                lines.append(f"{name}: step {old['step']} {old['split']}: {', '.join(keys[:4])} differ")
                break
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", default="", help="set-ups whose name contains this, and their parents")
    options = parser.parse_args()
    now = everything(options.only)
    if options.what == "record":
        options.file.write_text(json.dumps(now, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{len(now)} runs recorded in {options.file}")
        return
    before = json.loads(options.file.read_text(encoding="utf-8"))
    if options.only:
        before = {name: value for name, value in before.items() if name in now}
    found = differences(before, now)
    print("\n".join(found) or f"{len(now)} runs equal: weights and {sum(len(r['figures']) for r in now.values())} rows")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
