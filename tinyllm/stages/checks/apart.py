"""A part of a check in processes of its own: a resume knows nothing of the process before it, and ranks are processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from tinyllm import dist
from tinyllm.stages.checks.outcome import Broken

_SECONDS = 120  # a machine whose ranks cannot reach each other would wait for ever


def run(part: str, folder: Path, device: torch.device, *, ranks: int = 1, threads: int = 1) -> None:
    """Run `part` of `worker` on `folder` as `ranks` processes of `threads` threads; Broken, with what they said, where they fail."""
    command = [sys.executable, "-m", "tinyllm.stages.checks.worker", part, str(folder), str(device), str(threads)]
    environments = [
        {**os.environ, **own, "OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        for own in dist.environments(ranks)
    ]
    logs = [folder / f"{part}-{number}.log" for number in range(ranks)]
    processes = []
    try:
        for environment, log in zip(environments, logs, strict=True):
            with log.open("w", encoding="utf-8") as file:
                processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
        deadline = time.monotonic() + _SECONDS
        for process, log in zip(processes, logs, strict=True):
            code = process.wait(max(0.1, deadline - time.monotonic()))
            if code:
                raise Broken(f"the other process: exit code {code}, {_said(log)}")
    except subprocess.TimeoutExpired:
        raise Broken(f"the other process: no answer after {_SECONDS} s") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _said(log: Path) -> str:
    """The error, or whatever came last."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["without a word"])[-1]
