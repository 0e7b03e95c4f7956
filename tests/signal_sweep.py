"""Send a signal in every phase of every command: seconds to the end, exit code, and what was printed.

As a script: `python -m tests.signal_sweep FOLDER [PHASE...]` prints a table, and at its end one JSON object; `SWEPT_ROOT` names another
copy of the package. The exit code is 1 if a command ended with another code or later than it may, printed an error or a traceback, left a
process behind, or had ended before the signal was sent: then nothing was seen. Each phase is a command, what it prints (or a file it
writes) when the phase has begun, and a delay. The runs that they start from are made first.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(os.environ.get("SWEPT_ROOT", Path(__file__).resolve().parents[1]))


@dataclass(frozen=True)
class Phase:
    """When to send a signal to a command.

    Args:
        begun: a pattern that its output shows when the phase has begun; empty: at its start.
        wait: seconds from there.
    """

    command: list[str]
    begun: str = ""
    wait: float = 0.3
    signal: signal.Signals = signal.SIGINT
    group: bool = False  # as a terminal sends it: to all processes of the command
    stdin: bool = False
    sets: tuple[str, ...] = ()
    fresh: bool = field(default=True)  # with a name of its own
    seconds: float = 2.0  # at most until the end; docs/reliability.md, Signals
    starting: bool = False  # Python answers itself, by a traceback and its own exit code


def phases() -> dict[str, Phase]:
    """Return every phase by its name."""
    dpo = ["align-offline", "--algorithm", "dpo", "--checkpoint", "tuned"]
    pairs = ("data.train=[world:20000]", "data.val=[world:64]", "train.steps=50")
    sft = ["sft", "--checkpoint", "base"]
    slow_eval = ("data.train=[world:64]", "data.val=[world:20000]", "train.eval_rows=20000", "train.steps=20")
    steps = ("data.train=[world:64]", "data.val=[world:8]", "train.steps=100000", "train.eval_every=100000")
    text = ["big.txt"]
    return {
        "python starts": Phase(["--version"], wait=0.06, fresh=False, starting=True),
        "import of the command line": Phase(["pretrain"], wait=0.15),
        "import of torch": Phase(sft, wait=0.9, sets=steps),
        "import of torch, SIGTERM": Phase(sft, wait=0.9, sets=steps, signal=signal.SIGTERM),
        "import of torch, SIGHUP": Phase(sft, wait=0.9, sets=steps, signal=signal.SIGHUP),
        "conversations are read": Phase(sft, "starting from", 0.8, sets=("data.train=[world:200000]",)),
        "preference pairs are read": Phase(dpo, "starting from", 0.8, sets=("data.train=[world:200000]",)),
        "reward model, pairs are read": Phase(["rm", *dpo[3:]], "starting from", 0.8, sets=("data.train=[world:200000]",)),
        "reference is scored": Phase(dpo, "reference", 1.0, sets=pairs),
        "reference is scored, SIGTERM": Phase(dpo, "reference", 1.0, sets=pairs, signal=signal.SIGTERM),
        "first evaluation": Phase(sft, "val: ", 1.5, sets=slow_eval),
        "later evaluation": Phase(sft, "step 1/", 1.5, sets=(*slow_eval, "train.eval_every=1", "train.eval_rows=6000")),
        "training step": Phase(sft, "step 1/", 0.5, sets=steps),
        "training step, SIGTERM": Phase(sft, "step 1/", 0.5, sets=steps, signal=signal.SIGTERM),
        "training step, SIGHUP": Phase(sft, "step 1/", 0.5, sets=steps, signal=signal.SIGHUP),
        "compiling 2 s": Phase(sft, "compiling the", 2.0, sets=(*steps, "train.compile=on"), group=True),
        "compiling 6 s": Phase(sft, "compiling the", 6.0, sets=(*steps, "train.compile=on"), group=True),
        "compiling 15 s": Phase(sft, "compiling the", 15.0, sets=(*steps, "train.compile=on"), group=True),
        "compiling, SIGTERM": Phase(sft, "compiling the", 9.0, sets=(*steps, "train.compile=on"), signal=signal.SIGTERM),
        "rollout and rewards": Phase(
            ["align-online", "--checkpoint", "tuned"], "step 1/", 1.0, sets=("train.steps=500",)
        ),
        "tokenizer training": Phase(["data", "tokenizer", *text, "--out", "tok-{n}"], "training a tokenizer", 1.0, fresh=False),
        "documents are read": Phase(["data", "tokenizer", *text, "--out", "tok-{n}"], "", 1.4, fresh=False),
        "preparation": Phase(["data", "prepare"], "prepare|training a tokenizer", 1.0, sets=("data.train=[big.txt]",)),
        "preparation, after the tokenizer": Phase(
            ["data", "prepare"], "documents|dedup", 0.3, sets=("data.train=[big.txt]", "tokenizer=base")
        ),
        "data inspect": Phase(["data", "inspect", *text], "", 0.7, fresh=False),
        "evaluation of a checkpoint": Phase(
            ["eval", "--checkpoint", "base"], "evaluating", 1.0,
            sets=("data.val=[big.txt]",), fresh=False,
        ),
        "chat answers": Phase(
            ["chat", "--checkpoint", "base", "-p", "once"], "base model", 0.4,
            sets=("max_new_tokens=100000",), fresh=False,
        ),
        "chat waits for input": Phase(
            ["chat", "--checkpoint", "base"], "/help", 0.4, stdin=True, fresh=False
        ),
        "rehearsal": Phase(["pretrain", "--fast-dev-run"], "", 2.6, fresh=False),
        "lifecycle --smoke": Phase(["lifecycle", "--smoke"], "--- rm", 0.0, fresh=False),
        "lifecycle --smoke, SIGHUP": Phase(["lifecycle", "--smoke"], "--- sft", 1.0, fresh=False, signal=signal.SIGHUP),
        "verify": Phase(["verify"], "repeat", 1.0, fresh=False),
        "runs verify": Phase(["runs", "verify"], "", 0.4, fresh=False),
        "two ranks start": Phase([*sft, "--nproc", "2"], "", 1.5, sets=steps),
        "two ranks, first evaluation": Phase([*sft, "--nproc", "2"], "val: ", 1.5, sets=slow_eval, seconds=15.0),
        "two ranks, reference": Phase([*dpo, "--nproc", "2"], "reference", 1.0, sets=pairs),
        "two ranks train": Phase([*sft, "--nproc", "2"], "step 1/", 0.5, sets=steps),
        "two ranks train, SIGHUP": Phase([*sft, "--nproc", "2"], "step 1/", 0.5, sets=steps, signal=signal.SIGHUP),
        "two ranks compile": Phase([*sft, "--nproc", "2"], "compiling the", 9.0, sets=(*steps, "train.compile=on")),
    }  # fmt: skip


def sent(phase: Phase, number: int, folder: Path) -> dict[str, Any]:
    """Start the command, send the signal in its phase, and return what followed."""
    words = [word.replace("{n}", str(number)) for word in phase.command]
    words += ["--name", f"s{number}-{time.time_ns() % 10**12}"] * phase.fresh
    command = [sys.executable, "-m", "tinyllm", *words, *(w for s in phase.sets for w in ("--set", s))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, text=True, start_new_session=True,
        stdin=subprocess.PIPE if phase.stdin else subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup ignores
    )  # fmt: skip
    lines: list[tuple[float, str]] = []
    thread = threading.Thread(target=lambda: lines.extend((time.monotonic(), line) for line in process.stdout))
    began = threading.Event()

    def read() -> None:
        for line in process.stdout:
            lines.append((time.monotonic(), line.rstrip("\n")))
            if phase.begun and re.search(phase.begun, line):
                began.set()
        began.set()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    if phase.begun:
        began.wait(180)
    time.sleep(phase.wait)
    if process.poll() is not None:
        return {"ended": process.returncode, "lines": [line for _, line in lines[-3:]]}
    at = time.monotonic()
    (os.killpg if phase.group else os.kill)(process.pid, phase.signal)
    try:
        code: int | None = process.wait(90)
    except subprocess.TimeoutExpired:
        code = None
        os.killpg(process.pid, signal.SIGKILL)
    seconds = time.monotonic() - at
    thread.join(3)
    after = [(round(when - at, 2), line) for when, line in lines if when >= at]
    left = _left(process.pid)
    return {"seconds": round(seconds, 2), "code": code, "lines": after, "processes left": len(left)}


def _left(session: int) -> list[str]:
    """Return the processes of a session that are there two seconds after its leader ended: workers end when their pipe is closed."""
    until = time.monotonic() + 2
    while True:
        left = subprocess.run(["pgrep", "-s", str(session)], capture_output=True, text=True).stdout.split()
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.1)


def prepare(folder: Path) -> None:
    """Make the runs that the phases start from, and a text of many megabytes."""
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for stage, run, name in (("pretrain", "pretrain", "base"), ("sft", "sft/full", "tuned")):
        if not (folder / name).exists():
            command = [sys.executable, "-m", "tinyllm", stage, "--fast-dev-run", "--quiet"]
            subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
            shutil.copytree(folder / "runs" / run / "fast-dev-run" / "checkpoints" / "ckpt_best", folder / name)
    if not (folder / "big.txt").exists():
        words = " ".join(f"word{i * 7919 % 100003} of{i % 97}" for i in range(1500))
        (folder / "big.txt").write_text("\n\n".join(f"{i} {words[i % 500 :]} {i * 31}" for i in range(6000)), "utf-8")


def wrong(phase: Phase, found: dict[str, Any]) -> str:
    """Return what is not as it should be after the signal."""
    if "ended" in found:
        return f"it had ended with code {found['ended']} before the signal"
    said = [line for _, line in found["lines"]]
    if phase.starting:
        return "it went on" if found["code"] == 0 else ""
    if found["code"] != 128 + phase.signal:
        return f"exit code {found['code']}"
    if any(line.startswith(("error:", "Traceback")) for line in said):
        return "it printed an error"
    if not any("stopped by" in line or "stopped after" in line for line in said):
        return "it did not tell that it was stopped"
    if found["processes left"]:
        return f"{found['processes left']} processes are left"
    return f"{found['seconds']} s until its end" if found["seconds"] > phase.seconds else ""


def main() -> int:
    folder, chosen = Path(sys.argv[1]).resolve(), sys.argv[2:]
    prepare(folder)
    seconds, problems = dict[str, float](), dict[str, str]()
    for number, (name, phase) in enumerate(phases().items()):
        if not chosen or any(part in name for part in chosen):
            found = sent(phase, number, folder)
            print(f"{name:<34}{phase.signal.name:<8}{json.dumps(found)}", flush=True)
            seconds[name] = found.get("seconds", 0.0)
            if problem := wrong(phase, found):
                problems[name] = problem
    slowest = max(seconds, key=lambda name: seconds[name], default="")
    print(json.dumps({"phases": len(seconds), "slowest": [slowest, seconds.get(slowest)], "wrong": problems}))
    return int(bool(problems) or not seconds)


if __name__ == "__main__":
    sys.exit(main())
