"""The rank of this process, its threads and time limit, and environments for other ranks. No torch.

Ranks come from torchrun's environment variables, so the same command works alone, under torchrun and under SLURM.
"""

from __future__ import annotations

import os
import socket
import sys

from tinyllm.errors import UserError

_DEFAULT_TIMEOUT = 600.0  # seconds, as in torch.distributed


def rank() -> int:
    """Return the rank of this process over all machines."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Return the rank of this process on this machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    """Return the number of ranks over all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Return the number of ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def is_main() -> bool:
    """Return True for rank 0, which writes files and prints."""
    return rank() == 0


def cores() -> int:
    """Return the number of cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def threads_per_rank() -> int:
    """Return the cores of this machine per rank. More threads than cores make OpenMP loops several times slower."""
    ranks_here = local_world_size()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets OMP_NUM_THREADS=1 for several ranks whatever the machine has; a single process may be limited by its user.
    return min(int(asked), cores()) if asked.isdecimal() and ranks_here == 1 else max(1, cores() // ranks_here)


def timeout() -> float:
    """Return the seconds that a collective (and the launcher, for a heartbeat) waits: TINYLLM_DIST_TIMEOUT, or ten minutes."""
    text = os.environ.get("TINYLLM_DIST_TIMEOUT", "")
    try:
        seconds = float(text or _DEFAULT_TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UserError(
            f"{text!r} is not a number of seconds",
            where="env TINYLLM_DIST_TIMEOUT",
            fix="export TINYLLM_DIST_TIMEOUT=600",
        )
    return seconds


def environments(ranks: int) -> list[dict[str, str]]:
    """Return, for each of `ranks` processes on this machine, the variables that torchrun would set, with a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, cores() // ranks),
        "USE_LIBUV": 0,  # not in torch's builds for Windows
    }
    return [
        {key: str(value) for key, value in {**shared, "RANK": number, "LOCAL_RANK": number}.items()}
        for number in range(ranks)
    ]


_checked = False  # set once the variables have been validated


def check_environment() -> None:
    """Check the variables of torchrun before any rank waits for another. Raises: UserError (USAGE)."""
    global _checked
    fix = "start the ranks with --nproc or torchrun, which set it, or unset RANK and WORLD_SIZE for a single process"

    def refuse(what: str, name: str) -> None:
        raise UserError(what, where=f"env {name}", fix=fix)

    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, "0")
        if not (text.isascii() and text.isdecimal()):
            refuse(f"{name} is {text!r}, not a number", name)
    for number, size in (("RANK", world_size()), ("LOCAL_RANK", local_world_size())):
        if int(os.environ.get(number, "0")) >= size:
            refuse(f"{number} is {os.environ[number]} of {size}: ranks count from 0 to {size - 1}", number)
    if world_size() > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                refuse(f"WORLD_SIZE is {world_size()} and {name} is not set", name)
        if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
            refuse(f"MASTER_PORT is {os.environ['MASTER_PORT']}: the largest port is 65535", "MASTER_PORT")
    timeout()
    _checked = True


def environment_is_checked() -> bool:
    """Return True once `check_environment` has accepted the variables."""
    return _checked
