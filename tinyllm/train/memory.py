"""Memory of this process and of the machine, facts about the machine, and out-of-memory errors as `UserError`."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tinyllm import distributed as dist
from tinyllm.errors import RESOURCES, UserError

if TYPE_CHECKING:
    import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_MEMINFO, _OWN_GROUPS, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")
_UNLIMITED = 1 << 60  # what version 1 of control groups calls no limit is near 2^63
_OUT_OF_MEMORY = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory")


def reset_peak_memory() -> None:
    """Restart the measurement of `peak_memory_mb`. Only Linux can; elsewhere the peak is that of the whole process."""
    if _CLEAR_REFS.exists():
        try:
            _CLEAR_REFS.write_text("5", encoding="ascii")
        except OSError:  # a container may forbid it
            return


def peak_memory_mb() -> int:
    """Return the peak resident memory since the last reset, in MB (10^6 bytes); 0 where the system does not report it."""
    if found := _amount(_STATUS, "VmHWM"):
        return round(found * 1024 / 1e6)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


def on_gpu(device: torch.device) -> dict[str, float]:
    """Return the figure `gpu_memory_mb`, the most that this process has allocated on its CUDA device so far (MB). Empty elsewhere."""
    import torch

    return {"gpu_memory_mb": torch.cuda.max_memory_allocated(device) / 1e6} if device.type == "cuda" else {}


def available_on(device: torch.device) -> int:
    """Return the bytes that this process may have on a device in all; ranks share the memory of a machine. 0: unknown."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return available_memory() // dist.local_world_size()


def available_memory() -> int:
    """Return the bytes that this process may have in all: those it has, and those that the machine and its control group have left.

    Returns 0 where the system does not report them.
    """
    left = [number for number in (_left_on_machine(), *_left_in_groups(_GROUPS, _OWN_GROUPS)) if number is not None]
    return max(0, min(left)) + _amount(_STATUS, "VmRSS") * 1024 if left else 0


def _left_on_machine() -> int | None:
    if _MEMINFO.exists():
        return _amount(_MEMINFO, "MemAvailable") * 1024 or None
    if sys.platform == "win32":
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")  # macOS: all there is


def _left_in_groups(root: Path, own: Path) -> Iterator[int]:
    """Yield what is left in each control group of this process that has a limit (versions 1 and 2), as in a container or a batch job."""
    if not own.exists():
        return
    for line in own.read_text(encoding="utf-8", errors="replace").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = root / "memory" if controllers else root
        limit, used = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        )
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(base):
                break
            most, now = _number(folder / limit), _number(folder / used)
            if most is not None and now is not None and most < _UNLIMITED:
                # the group's cache of files is freed when memory is needed
                yield most - now + _amount(folder / "memory.stat", "inactive_file")


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # absent, or `max`
        return None


def _amount(path: Path, key: str) -> int:
    """Return the number after `key` in a file of lines such as `VmRSS:  1024 kB`; 0 without one."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.replace(":", " ").split()[:1] == [key]), 0)


def machine_facts(device: str, precision: str) -> dict[str, Any]:
    """Return the hardware and versions that figures in a report were measured on."""
    import torch

    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "precision": precision,
    }


@contextmanager
def explain_out_of_memory(needs: Callable[[], str]) -> Iterator[None]:
    """Turn every kind of out-of-memory error into a UserError (RESOURCES). `needs` returns what the memory was needed for."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _OUT_OF_MEMORY):
            raise
        raise UserError(
            f"out of memory: {needs()}",
            where="train.micro_batch_size",
            fix="lower train.micro_batch_size (the results do not change), then data.max_length, then train an adapter (--lora)",
            code=RESOURCES,
        ) from None
