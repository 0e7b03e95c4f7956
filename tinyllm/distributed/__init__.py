"""Ranks and the process group; a thin layer over torch.distributed.

`ranks` reads the environment and `schedulers` that of SLURM and MPI, `process_group` joins the ranks and exchanges tensors, `rendezvous`
is how they find each other and compare their configurations. `launcher` starts ranks (`--nproc`, `--max-restarts`), `heartbeat` is what
each of them reports to it, and `failure_attribution` finds the rank that failed first.
"""

from tinyllm.distributed.process_group import (
    barrier,
    broadcast_text,
    require_equal,
    should_print_error,
    start,
    stop,
    sum_,
)
from tinyllm.distributed.ranks import (
    address,
    check_environment,
    cores,
    environments,
    gpu,
    has_ranks,
    idle_tasks,
    is_main,
    is_overloaded,
    launched,
    local_rank,
    local_world_size,
    rank,
    require_single,
    threads_per_rank,
    timeout,
    world_size,
)

__all__ = [
    "address",
    "barrier",
    "broadcast_text",
    "check_environment",
    "cores",
    "environments",
    "gpu",
    "has_ranks",
    "idle_tasks",
    "is_main",
    "is_overloaded",
    "launched",
    "local_rank",
    "local_world_size",
    "rank",
    "require_equal",
    "require_single",
    "should_print_error",
    "start",
    "stop",
    "sum_",
    "threads_per_rank",
    "timeout",
    "world_size",
]
