"""The rank of this process, its threads and time limit, and environments for other ranks. No torch.

Ranks come from torchrun's environment variables. `check_environment` sets them where `srun` or `mpirun` started the ranks, so the same
command works alone, under torchrun, SLURM and MPI.
"""

from __future__ import annotations

import os
import socket
import sys

from tinyllm.distributed import schedulers
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


def has_own_cores() -> bool:
    """Return True if `srun` has bound each of its tasks to cores of its own: this process sees fewer than the step has on the node."""
    on_node = os.environ.get("SLURM_CPUS_ON_NODE", "")
    return _launched is not None and on_node.isdecimal() and cores() < int(on_node)


def is_overloaded() -> bool:
    """Return True if the ranks of this machine have less than a core each. Cores that a launcher binds are not counted."""
    return _launched is None and local_world_size() > cores()


def gpu(visible: int) -> int:
    """Return the index of the GPU of this rank among the `visible` ones: its local rank, or 0 where `srun` shows each task its own."""
    on_node = os.environ.get("SLURM_GPUS_ON_NODE", "")
    enough = on_node.isdecimal() and int(on_node) >= local_world_size()
    own = _launched is not None and visible == 1 and (enough or bool(os.environ.get("SLURM_GPUS_PER_TASK")))
    return 0 if own else local_rank()


def threads_per_rank() -> int:
    """Return the cores of this machine per rank. More threads than cores make OpenMP loops several times slower."""
    ranks_here = 1 if has_own_cores() else local_world_size()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets OMP_NUM_THREADS=1 for several ranks whatever the machine has; otherwise it is the user's limit
    obeyed = asked.isdecimal() and (_launched is not None or ranks_here == 1)
    return max(1, min(int(asked), cores()) if obeyed else cores() // ranks_here)


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
_launched: schedulers.Started | None = None  # set if the variables of torchrun follow from those of srun or mpirun


def has_ranks() -> bool:
    """Return True if the environment has variables of a launcher. Unlike `check_environment` it does not check them."""
    return any(name in os.environ for name in ("RANK", "SLURM_STEP_ID", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))


def address() -> str:
    """Return host and port of rank 0."""
    return f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"


def idle_tasks() -> int:
    """Return the number of tasks that SLURM allocated to a batch script of one process, which leaves them idle; otherwise 0."""
    return schedulers.idle_tasks(os.environ) if world_size() == 1 else 0


def launched() -> schedulers.Started | None:
    """Return what `srun` or `mpirun` says about this rank; None in a single process and under torchrun and our launcher."""
    return _launched


def how_to_separate() -> str:
    """Return the end of a fix: what tasks of `srun` or `mpirun` need that are not ranks of one run; empty under other launchers."""
    return f"; for separate runs set {schedulers.SINGLE}" if _launched else ""


def check_environment() -> None:
    """Check the variables of torchrun before any rank waits for another, and set them in ranks of `srun` and `mpirun`.

    Raises: UserError (USAGE).
    """
    global _checked, _launched
    if found := schedulers.variables(os.environ):
        _launched = schedulers.find(os.environ)
        os.environ.update(found)
    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, "0")
        if not (text.isascii() and text.isdecimal()):
            raise _wrong(f"{name} is {text!r}, not a number", name)
    for number, size in (("RANK", world_size()), ("LOCAL_RANK", local_world_size())):
        if int(os.environ.get(number, "0")) >= size:
            raise _wrong(f"{number} is {os.environ[number]} of {size}: ranks count from 0 to {size - 1}", number)
    _check_complete()
    timeout()
    _checked = True


def _check_complete() -> None:
    if "RANK" in os.environ and "WORLD_SIZE" not in os.environ:
        raise _wrong(f"RANK is {rank()} and WORLD_SIZE is not set", "WORLD_SIZE")
    if world_size() > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                raise _wrong(f"WORLD_SIZE is {world_size()} and {name} is not set", name)
        if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
            raise _wrong(f"MASTER_PORT is {os.environ['MASTER_PORT']}: the largest port is 65535", "MASTER_PORT")


def _wrong(what: str, name: str) -> UserError:
    fix = "start the ranks with --nproc or torchrun, which set it, or unset RANK and WORLD_SIZE for a single process"
    return UserError(what, where=f"env {name}", fix=fix)


def environment_is_checked() -> bool:
    """Return True once `check_environment` has accepted the variables."""
    return _checked


def require_single(command: str) -> None:
    """Raise UserError (USAGE) if a command that runs as one process was started as several."""
    if world_size() > 1:
        what = f"{command} runs as one process, and {world_size()} were started"
        fix = "run it without srun, mpirun and torchrun"
        raise UserError(what, where="env WORLD_SIZE", fix=fix)
