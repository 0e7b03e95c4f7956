"""The process group: join it, add tensors over all ranks, wait for the others, leave.

A thin layer over torch.distributed that also works in a single process. torch is imported inside the functions, since importing it
takes two seconds.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tinyllm.distributed import heartbeat
from tinyllm.distributed.ranks import environment_is_checked, rank, threads_per_rank, timeout, world_size
from tinyllm.errors import FAILED, RESOURCES

if TYPE_CHECKING:
    from torch import Tensor, device

    from tinyllm.distributed.rendezvous import Rendezvous

_rendezvous: Rendezvous | None = None  # set by `start`


def start(device: device, timeout_seconds: float | None = None) -> None:
    """Join the process group (nccl on cuda, gloo elsewhere) if there is more than one rank. Safe to call again.

    Args:
        timeout_seconds: time limit of a collective; `timeout()` by default.

    Raises: UserError if the ranks do not find each other (RESOURCES) or disagree (USAGE).
    """
    global _rendezvous
    import torch
    import torch.distributed as torch_dist

    torch.set_num_threads(threads_per_rank())
    if world_size() == 1 or torch_dist.is_initialized():
        return
    from tinyllm.distributed.rendezvous import Rendezvous

    _rendezvous = Rendezvous()
    _rendezvous.join()
    backend = "nccl" if device.type == "cuda" else "gloo"
    heartbeat.report_backend(backend)
    store = torch_dist.PrefixStore("torch", _rendezvous.store)
    limit = timedelta(seconds=timeout_seconds or timeout())
    torch_dist.init_process_group(backend, store=store, rank=rank(), world_size=world_size(), timeout=limit)


def require_equal(facts: Mapping[str, Any]) -> None:
    """Check that every rank has the same `facts`. All ranks must call it.

    Raises: UserError (USAGE), on every rank, that names the differences by dotted keys: "seed: rank 0 has 0, rank 1 has 1".
    """
    if _rendezvous is not None:
        _rendezvous.require_equal(facts)


def stop(clean: bool = True) -> bool:
    """Leave the process group. Return True if there was one. Rank 0 leaves last, since it holds the store.

    Args:
        well: False after an error: do not wait for ranks that may be gone.
    """
    global _rendezvous
    if _rendezvous is None:
        return False
    if clean or heartbeat.folder() is None:  # our launcher does not need the store
        _rendezvous.leave(timeout() if clean else 2.0)
    _rendezvous = None
    if clean:
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
    """Wait for every rank, without a time limit: one of them may be preparing data for all.

    The launcher notices a rank that dies meanwhile, and one that is frozen by its missing heartbeat.
    """
    if world_size() > 1:
        assert _rendezvous is not None, "barrier() before start()"
        _rendezvous.barrier()


def broadcast_text(text: str) -> str:
    """Return the `text` of rank 0 on every rank, for paths and decisions that only one rank may make."""
    if world_size() == 1:
        return text
    import torch.distributed as torch_dist

    box = [text]
    torch_dist.broadcast_object_list(box, src=0)
    return box[0]


def should_print_error(code: int) -> bool:
    """Return True if this rank prints its error, when not started by our launcher: the first rank that fails does.

    Before the rendezvous, rank 0 prints user errors, which all ranks share; errors of a machine are printed by every rank.
    """
    if _rendezvous is None:
        return (
            os.environ.get("RANK", "0").strip() in ("", "0")
            or not environment_is_checked()
            or code in (FAILED, RESOURCES)
        )
    return _rendezvous.is_first_to_print()
