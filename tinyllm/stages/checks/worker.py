"""`python -m tinyllm.stages.checks.worker PART FOLDER DEVICE THREADS`: what `apart` starts. Left out: everything a person would need."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tinyllm import dist
from tinyllm.stages.checks import training
from tinyllm.train import progress

PARTS = {"resume": training.resumed, "ranks": training.ranked}


def main(part: str, folder: str, device: str, threads: str) -> None:
    progress.Quiet.on = True
    dist.start(torch.device(device), timeout_seconds=60)
    torch.set_num_threads(int(threads))
    PARTS[part](Path(folder), torch.device(device))
    dist.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
