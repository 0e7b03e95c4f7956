"""Ranks: who am I, add this up over all of us, start the others.

A thin layer over torch.distributed so that one process and many read the same. Ranks come from torchrun's environment variables,
so the same command works alone, under torchrun and under SLURM. torch is imported inside the functions: asking for one's rank must
not cost two seconds.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, device


_GRACE_SECONDS = 5.0  # between a rank's failure and the end of the others


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
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets OMP_NUM_THREADS=1 for several ranks whatever the machine has; a single process may be limited by its user.
    return min(int(asked), cores) if asked.isdecimal() and ranks_here == 1 else max(1, cores // ranks_here)


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
    """Run `tinyllm ARGUMENTS` as `ranks` processes of this machine, joined by torch.distributed; returns the first bad exit code.

    The ranks find each other by the environment variables torchrun would set. They are started here and not by torchrun, because
    its launcher turns every exit code into 1, costs seconds, and does not run on Windows.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {
        "OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // ranks),
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "USE_LIBUV": 0,
    }
    processes = []
    for number in range(ranks):
        own = {key: str(value) for key, value in {**shared, "RANK": number, "LOCAL_RANK": number}.items()}
        processes.append(subprocess.Popen([sys.executable, "-m", "tinyllm", *arguments], env={**os.environ, **own}))
    try:
        return _wait(processes)
    except KeyboardInterrupt:  # the terminal has told the ranks, too: they finish their step and save
        return max(process.wait() for process in processes)
    finally:
        for process in processes:
            process.kill()


def _wait(processes: list[subprocess.Popen]) -> int:
    """0 when all are done, or the code of the first that failed, a little later: the others may be about to say why."""
    while any(process.poll() is None for process in processes):
        failed = [(number, process.returncode) for number, process in enumerate(processes) if process.returncode]
        if failed:
            deadline = time.monotonic() + _GRACE_SECONDS
            while time.monotonic() < deadline and any(process.poll() is None for process in processes):
                time.sleep(0.05)
            number, code = failed[0]
            if code < 0:
                print(f"error: rank {number} was ended by signal {-code}", file=sys.stderr)
            return code if code > 0 else 1
        time.sleep(0.05)
    return max(abs(process.returncode) for process in processes)
