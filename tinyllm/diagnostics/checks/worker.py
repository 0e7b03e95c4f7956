"""Entry point of the processes that `subprocesses` starts: `python -m tinyllm.diagnostics.checks.worker TASK FOLDER DEVICE THREADS`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tinyllm import console
from tinyllm import distributed as dist
from tinyllm.diagnostics.checks import training

TASKS = {"resume": training.resume_task, "ranks": training.ranks_task}


def main(task: str, folder: str, device: str, threads: str) -> None:
    console.Quiet.on = True
    dist.start(torch.device(device), timeout_seconds=60)
    torch.set_num_threads(int(threads))
    TASKS[task](Path(folder), torch.device(device))
    dist.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
