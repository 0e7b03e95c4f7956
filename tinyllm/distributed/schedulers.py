"""Ranks started by SLURM's `srun` or by `mpirun`, given to the rest of the package as the variables of torchrun.

The innermost launcher counts: torchrun's variables, then those of MPI, then those of SLURM. A process is a rank of SLURM only inside a
step, which has SLURM_STEP_ID: an interactive `salloc` shell and a batch script that does not call `srun` have SLURM_NTASKS and
SLURM_PROCID as well, and are one process.

Sources: srun(1), "OUTPUT ENVIRONMENT VARIABLES"; Open MPI's mpirun(1), "Exported Environment Variables"; MPICH's Hydra.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from tinyllm.errors import UserError

SINGLE = "RANK=0 WORLD_SIZE=1"  # set for each task, they make it a run of its own
_SPECIAL_STEPS = (
    0xFFFFFFF0  # from here on: the interactive shell, the batch script and others, which srun's tasks never are
)
_FIRST_PORT, _PORTS = 20_000, 10_000  # below the ports that Linux and others give to outgoing connections


@dataclass(frozen=True)
class Started:
    """Rank and world size of a process, as its launcher states them."""

    launcher: str
    rank: int
    size: int
    local_rank: int
    local_size: int
    host: str | None
    """of rank 0; None: the launcher does not tell"""
    job: str | None
    """the same text in all ranks and in no other job; None: the launcher does not tell"""


def find(environ: Mapping[str, str]) -> Started | None:
    """Return what `srun` or `mpirun` says about this process; None if it was not started as one of several.

    Raises: UserError (USAGE) for variables that contradict each other or are not numbers.
    """
    slurm = _slurm(environ)
    same = slurm and (environ.get("PMI_RANK"), environ.get("PMI_SIZE")) == (str(slurm.rank), str(slurm.size))
    # `srun --mpi=pmi2` sets both; mpirun within SLURM starts its helpers, and so the ranks, as a step of one task a node
    return _open_mpi(environ) or (None if same else _pmi(environ)) or slurm


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of torchrun that follow from those of `srun` or `mpirun`; empty where torchrun's are complete.

    MASTER_ADDR and MASTER_PORT that the user has set are kept.

    Raises: UserError (USAGE) if RANK, WORLD_SIZE or their local siblings are set to something else, or rank 0 has no known address.
    """
    if environ.get("RANK") and environ.get("WORLD_SIZE"):
        return {}
    started = find(environ)
    if started is None:
        return {}
    wanted = {
        "RANK": started.rank,
        "WORLD_SIZE": started.size,
        "LOCAL_RANK": started.local_rank,
        "LOCAL_WORLD_SIZE": started.local_size,
    }
    found = {name: str(value) for name, value in wanted.items()}
    for name, value in found.items():
        if environ.get(name, value) != value:
            what = f"{name} is {environ[name]!r}, and {started.launcher} started {started.size} processes: expected {value}"
            raise UserError(what, where=f"env {name}", fix=f"unset {name}, or set all of torchrun's variables")
    return found | _master(environ, started)


def _master(environ: Mapping[str, str], started: Started) -> dict[str, str]:
    """Return the address of rank 0. A port by the job's identity is the same in all ranks, and rarely that of another job."""
    found = {}
    if not environ.get("MASTER_ADDR"):
        found["MASTER_ADDR"] = "127.0.0.1" if started.local_size == started.size else started.host or ""
    if not environ.get("MASTER_PORT"):
        port = _FIRST_PORT + zlib.crc32(started.job.encode()) % _PORTS if started.job else 0
        found["MASTER_PORT"] = str(port or "")
    missing = [name for name, value in found.items() if not value]
    if missing:
        first = "the host name of rank 0" if missing[0] == "MASTER_ADDR" else "a free port"
        raise UserError(
            f"{started.launcher} started {started.size} processes and does not tell {first}",
            where=f"env {missing[0]}",
            fix=f"start them with torchrun, or export {' and '.join(missing)}, the same for all",
        )
    return found


# --- SLURM -----------------------------------------------------------------------------------------------------------------------


def _slurm(environ: Mapping[str, str]) -> Started | None:
    if not in_step(environ):
        return None
    size = _number(environ, "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "SLURM_NPROCS", default="1")
    if size < 2:
        return None
    name = next((n for n in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if environ.get(n)), "")
    nodes = list(itertools.islice(hosts(environ.get(name, ""), name), size + 1))
    job = environ.get("SLURM_JOB_ID") or environ.get("SLURM_JOBID")
    return _checked(
        Started(
            launcher="srun",
            rank=_number(environ, "SLURM_PROCID"),
            size=size,
            local_rank=_number(environ, "SLURM_LOCALID"),
            local_size=_tasks_here(environ, size, len(nodes)),
            host=nodes[0] if nodes else None,
            job=f"{job}.{environ['SLURM_STEP_ID']}" if job else None,
        ),
        "SLURM_PROCID",
        "SLURM_LOCALID",
    )


def in_step(environ: Mapping[str, str]) -> bool:
    """Return True for a task of `srun`, also if it is the only one."""
    return bool(environ.get("SLURM_STEP_ID")) and _number(environ, "SLURM_STEP_ID") < _SPECIAL_STEPS


def idle_tasks(environ: Mapping[str, str]) -> int:
    """Return the number of tasks of a SLURM batch script that does not use `srun`: they are allocated, and only one process runs."""
    batch = environ.get("SLURM_JOB_ID") and environ.get("SLURM_PROCID") and not environ.get("SLURM_STEP_ID")
    tasks = environ.get("SLURM_NTASKS", "")
    return int(tasks) if batch and tasks.isdecimal() and int(tasks) > 1 else 0


def _tasks_here(environ: Mapping[str, str], size: int, nodes: int) -> int:
    """Return the number of tasks on this node, from a list such as `2(x3),1`: two on each of three nodes, one on the fourth."""
    if nodes == 1:
        return size
    for name in ("SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"):
        counts: list[int] = []
        for part in environ.get(name, "").split(","):
            match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
            counts += [int(match[1])] * min(size, int(match[2] or 1)) if match else []
        if sum(counts) == size:
            node = _number(environ, "SLURM_NODEID")
            if node < len(counts):
                return counts[node]
    raise UserError(
        f"the tasks of each node, {environ.get('SLURM_STEP_TASKS_PER_NODE')!r}, do not add up to {size}",
        where="env SLURM_STEP_TASKS_PER_NODE",
        fix="start the ranks with torchrun: srun --ntasks-per-node=1 torchrun …",
    )


def hosts(text: str, name: str = "SLURM_JOB_NODELIST") -> Iterator[str]:
    """Yield the host names of a node list such as `node[001-003,007],gpu5`, as `scontrol show hostnames` does.

    Raises: UserError (USAGE) for any other text.
    """
    for part in re.findall(r"(?:[^,\[\]]|\[[^\[\]]*\])+|[\[\]]", text):
        try:
            yield from _expand(part)
        except ValueError:
            fix = "export MASTER_ADDR and MASTER_PORT of rank 0, or start the ranks with torchrun: srun torchrun …"
            raise UserError(f"{text!r} is not a list of nodes", where=f"env {name}", fix=fix) from None


def _expand(part: str) -> Iterator[str]:
    before, bracket, rest = part.partition("[")
    if not bracket:
        if not re.fullmatch(r"[\w.-]+", part):
            raise ValueError(part)
        yield part
        return
    inside, _, after = rest.partition("]")
    for item in inside.split(","):
        low, _, high = item.partition("-")
        for number in range(int(low), int(high or low) + 1):
            yield from _expand(f"{before}{number:0{len(low)}}{after}")


# --- MPI -------------------------------------------------------------------------------------------------------------------------


def _open_mpi(environ: Mapping[str, str]) -> Started | None:
    size = _number(environ, "OMPI_COMM_WORLD_SIZE", default="1")
    if size < 2:
        return None
    return _checked(
        Started(
            launcher="mpirun",
            rank=_number(environ, "OMPI_COMM_WORLD_RANK"),
            size=size,
            local_rank=_number(environ, "OMPI_COMM_WORLD_LOCAL_RANK"),
            local_size=_number(environ, "OMPI_COMM_WORLD_LOCAL_SIZE"),
            host=None,
            job=environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid"),
        ),
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_LOCAL_RANK",
    )


def _pmi(environ: Mapping[str, str]) -> Started | None:
    """MPICH, Intel MPI and Cray."""
    size = _number(environ, "PMI_SIZE", default="1")
    if size < 2:
        return None
    return _checked(
        Started(
            launcher="mpirun",
            rank=_number(environ, "PMI_RANK"),
            size=size,
            local_rank=_number(environ, "MPI_LOCALRANKID", "PMI_LOCAL_RANK"),
            local_size=_number(environ, "MPI_LOCALNRANKS", "PMI_LOCAL_SIZE"),
            host=None,
            job=None,
        ),
        "PMI_RANK",
        "MPI_LOCALRANKID",
    )


# --- checks ----------------------------------------------------------------------------------------------------------------------


def _number(environ: Mapping[str, str], *names: str, default: str | None = None) -> int:
    """Return the first variable that is set, as a number. Raises: UserError if it is none, or unset without a default."""
    name = next((name for name in names if environ.get(name)), names[0])
    text = environ.get(name) or default
    if text is None or not (text.isascii() and text.isdecimal() and len(text) < 11):
        what = f"{name} is not set" if text is None else f"{name} is {text!r}, not a number"
        raise UserError(
            what, where=f"env {name}", fix="start the ranks with torchrun: srun torchrun …, mpirun … torchrun …"
        )
    return int(text)


def _checked(started: Started, rank: str, local_rank: str) -> Started:
    for name, number, size in (
        (rank, started.rank, started.size),
        (local_rank, started.local_rank, started.local_size),
    ):
        if number >= size:
            what = f"{name} is {number} of {size}: ranks count from 0 to {size - 1}"
            raise UserError(what, where=f"env {name}", fix=f"for a single process: {SINGLE} tinyllm …")
    return started
