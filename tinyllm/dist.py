"""Ranks: who am I, add this up over all of us, start the others.

A thin layer over torch.distributed so that one process and many read the same. Ranks come from torchrun's environment variables,
so the same command works alone, under torchrun and under SLURM. torch is imported inside the functions: asking for one's rank must
not cost two seconds.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main() -> bool:
    """Rank 0 writes the files and prints."""
    return rank() == 0


def threads_per_rank() -> int:
    """Cores of this machine divided among its ranks: more threads than cores makes every OpenMP loop several times slower."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS")
    # torchrun sets OMP_NUM_THREADS=1 for several ranks whatever the machine has; a single process may be limited by its user.
    return min(int(asked), cores) if asked and ranks_here == 1 else max(1, cores // ranks_here)


def start(device: device, timeout_seconds: int = 600) -> None:
    """Join the process group (nccl on cuda, gloo elsewhere) if there is more than one rank. Safe to call again."""
    import torch
    import torch.distributed as torch_dist

    torch.set_num_threads(threads_per_rank())
    if world_size() == 1 or torch_dist.is_initialized():
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch_dist.init_process_group(backend, timeout=timedelta(seconds=timeout_seconds))


def stop() -> None:
    """Leave the process group, if one was joined."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_(tensor: Tensor) -> Tensor:
    """Add `tensor` over all ranks, in place."""
    if world_size() > 1:
        import torch.distributed as torch_dist

        torch_dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        import torch.distributed as torch_dist

        torch_dist.barrier()


def broadcast_text(text: str) -> str:
    """Rank 0's `text`, on every rank (for paths and other decisions that only one rank may take)."""
    if world_size() == 1:
        return text
    import torch.distributed as torch_dist

    box = [text]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def launch(ranks: int, arguments: Sequence[str]) -> int:
    """Run `tinyllm ARGUMENTS` as `ranks` processes of this machine under torchrun; returns the exit code of the first that failed."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    return subprocess.run([*command, "-m", "tinyllm", *arguments], env=environment).returncode
