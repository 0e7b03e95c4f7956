"""Ranks: who am I, add this up over all of us, wait for the others.

A thin layer over torch.distributed so that one process and many read the same. Ranks come from torchrun's environment variables,
so the same command works alone, under torchrun and under SLURM. torch is imported inside the functions: asking for one's rank must
not cost two seconds.

`meeting` is how ranks find each other and compare what they are about to do; `watch` is what a rank lets its launcher know, `launcher`
the launcher (`--nproc`, `--max-restarts`), and `blame` how it tells the culprit from the victims.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tinyllm.errors import FAILED, RESOURCES, UserError

if TYPE_CHECKING:
    from torch import Tensor, device

    from tinyllm.dist.meeting import Meeting

_DEFAULT_TIMEOUT = 600.0  # seconds an exchange waits for the slowest rank: torch.distributed's own order of magnitude
_meeting: Meeting | None = None  # set by `start`


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """The ranks on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", str(world_size())))


def is_main() -> bool:
    """Rank 0 writes the files and prints."""
    return rank() == 0


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def threads_per_rank() -> int:
    """Cores of this machine divided among its ranks: more threads than cores makes every OpenMP loop several times slower."""
    ranks_here = local_world_size()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    # torchrun sets OMP_NUM_THREADS=1 for several ranks whatever the machine has; a single process may be limited by its user.
    return min(int(asked), cores()) if asked.isdecimal() and ranks_here == 1 else max(1, cores() // ranks_here)


def timeout() -> float:
    """Seconds an exchange (and the launcher, for a sign of life) waits: TINYLLM_DIST_TIMEOUT, or ten minutes."""
    text = os.environ.get("TINYLLM_DIST_TIMEOUT", "")
    try:
        seconds = float(text or _DEFAULT_TIMEOUT)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 1e9:
        raise UserError(
            f"{text!r} is no number of seconds", where="env TINYLLM_DIST_TIMEOUT", fix="export TINYLLM_DIST_TIMEOUT=600"
        )
    return seconds


def environments(ranks: int) -> list[dict[str, str]]:
    """For each of `ranks` processes of this machine: the variables torchrun would set, with a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": max(1, cores() // ranks),
        "USE_LIBUV": 0,  # torch's builds for Windows come without it
    }
    return [
        {key: str(value) for key, value in {**shared, "RANK": number, "LOCAL_RANK": number}.items()}
        for number in range(ranks)
    ]


def start(device: device, timeout_seconds: float | None = None) -> None:
    """Join the process group (nccl on cuda, gloo elsewhere) if there is more than one rank. Safe to call again.

    Args:
        timeout_seconds: how long an exchange waits for the slowest rank; `timeout()` by default.

    Raises: UserError where the ranks do not find each other (RESOURCES) or contradict each other (USAGE).
    """
    global _meeting
    import torch
    import torch.distributed as torch_dist

    torch.set_num_threads(threads_per_rank())
    if world_size() == 1 or torch_dist.is_initialized():
        return
    from tinyllm.dist import watch
    from tinyllm.dist.meeting import Meeting

    _meeting = Meeting()
    _meeting.arrive()
    backend = "nccl" if device.type == "cuda" else "gloo"
    watch.uses(backend)
    store = torch_dist.PrefixStore("torch", _meeting.store)
    limit = timedelta(seconds=timeout_seconds or timeout())
    torch_dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=limit)


def agree(facts: Mapping[str, Any]) -> None:
    """Refuse to go on unless every rank comes with the same `facts`; nested ones are named by dotted keys. All ranks must call it.

    Raises: UserError (USAGE), on every rank, that names what differs: "seed: rank 0 has 0, rank 1 has 1".
    """
    if _meeting is not None:
        _meeting.agree(facts)


def stop(well: bool = True) -> bool:
    """Leave the other ranks, if there are any: whether there were. Rank 0 goes last, since the others may still read what it has to say.

    Not `well` is no orderly goodbye, which would wait for ranks that may be gone: the process is to end at once.
    """
    global _meeting
    from tinyllm.dist import watch

    if _meeting is None:
        return False
    if well or watch.folder() is None:  # a launcher of ours has read it already
        _meeting.leave(timeout() if well else 2.0)
    _meeting = None
    if well:
        import torch.distributed as torch_dist

        torch_dist.destroy_process_group()
    return True


def sum_(tensor: Tensor) -> Tensor:
    """Add `tensor` over all ranks, in place."""
    if world_size() > 1:
        import torch.distributed as torch_dist

        torch_dist.all_reduce(tensor)
    return tensor


def barrier() -> None:
    """Wait for every rank, however long that takes: one of them may be preparing data for all.

    It has no time limit, unlike an exchange of tensors, in which all ranks are busy with the same work. A rank that dies meanwhile is
    noticed by the launcher, and one that is frozen by its missing sign of life (`watch`).
    """
    if world_size() > 1:
        assert _meeting is not None, "barrier() before start()"
        _meeting.wait_for_all()


def broadcast_text(text: str) -> str:
    """Rank 0's `text`, on every rank (for paths and other decisions that only one rank may take)."""
    if world_size() == 1:
        return text
    import torch.distributed as torch_dist

    box = [text]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def speaks(code: int) -> bool:
    """Whether an error of this rank is to be printed, where no launcher of ours sorts it out: the first of all ranks' is.

    Before the ranks have met, a mistake of the user is rank 0's to tell, since all make the same; what a machine lacks is everyone's.
    """
    if _meeting is None:
        return os.environ.get("RANK", "0").strip() in ("", "0") or not _checked or code in (FAILED, RESOURCES)
    return _meeting.first_to_speak()


_checked = False  # the variables were found in order


def check_environment() -> None:
    """Refuse variables of torchrun that cannot be right, before anybody waits for anybody. Raises UserError (USAGE)."""
    global _checked
    mend = "start the ranks with --nproc or torchrun, which set it, or unset RANK and WORLD_SIZE for a single process"

    def refuse(what: str, name: str) -> None:
        raise UserError(what, where=f"env {name}", fix=mend)

    for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        text = os.environ.get(name, "0")
        if not (text.isascii() and text.isdecimal()):
            refuse(f"{name} is {text!r}, which is no number", name)
    for number, size in (("RANK", world_size()), ("LOCAL_RANK", local_world_size())):
        if int(os.environ.get(number, "0")) >= size:
            refuse(f"{number} is {os.environ[number]} of {size}: ranks count from 0 to {size - 1}", number)
    if world_size() > 1:
        for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
            if not os.environ.get(name):
                refuse(f"WORLD_SIZE is {world_size()} and {name} is not set", name)
        if not 0 < int(os.environ["MASTER_PORT"]) < 2**16:
            refuse(f"MASTER_PORT is {os.environ['MASTER_PORT']}: ports end at 65535", "MASTER_PORT")
    timeout()
    _checked = True
