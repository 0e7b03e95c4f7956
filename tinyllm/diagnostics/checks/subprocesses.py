"""Run part of a check in other processes: a resume must not depend on the interrupted process, and ranks are processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import torch

from tinyllm import distributed as dist
from tinyllm.diagnostics.checks.result import CheckError

_TIMEOUT_SECONDS = 120  # ranks that cannot reach each other would wait forever


def run_workers(task: str, folder: Path, device: torch.device, *, ranks: int = 1, threads: int = 1) -> None:
    """Run a task of `worker` on `folder`, in `ranks` processes with `threads` threads each.

    Raises: CheckError with the error of the first process that fails, or after a timeout.
    """
    command = [sys.executable, "-m", "tinyllm.diagnostics.checks.worker", task, str(folder), str(device), str(threads)]
    environments = [
        {**os.environ, **own, "OMP_NUM_THREADS": str(threads), "TORCH_CPP_LOG_LEVEL": "ERROR"}
        for own in dist.environments(ranks)
    ]
    logs = [folder / f"{task}-{number}.log" for number in range(ranks)]
    processes = []
    try:
        for environment, log in zip(environments, logs, strict=True):
            with log.open("w", encoding="utf-8") as file:
                processes.append(subprocess.Popen(command, env=environment, stdout=file, stderr=file))
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        for process, log in zip(processes, logs, strict=True):
            code = process.wait(max(0.1, deadline - time.monotonic()))
            if code:
                raise CheckError(f"worker process failed with exit code {code}: {_error_in(log)}")
    except subprocess.TimeoutExpired:
        raise CheckError(f"worker process did not finish within {_TIMEOUT_SECONDS} s") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()


def _error_in(log: Path) -> str:
    """Return the last error line of a log, or its last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "error: " in line]
    return (errors or lines or ["no output"])[-1]
