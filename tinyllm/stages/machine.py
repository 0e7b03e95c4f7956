"""What this process has used of the machine, and what the machine is."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllm.errors import RESOURCES, UserError

_STATUS, _REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Start a new measurement of `peak_memory_mb`, where the system can (Linux); elsewhere it goes on counting from the start."""
    if _REFERENCES.exists():
        try:
            _REFERENCES.write_text("5", encoding="ascii")
        except OSError:  # a container may forbid it
            return


def peak_memory_mb() -> int:
    """The most this process has held since the last reset, in MB (10^6 bytes); 0 where the system does not say."""
    if _STATUS.exists():
        line = next(
            (line for line in _STATUS.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM:")), ""
        )
        if line:
            return round(int(line.split()[1]) * 1024 / 1e6)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


def described(device: str, precision: str) -> dict[str, Any]:
    """For a report: where figures were measured."""
    import torch

    return {
        "device": device,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "precision": precision,
    }


_SIGNS = ("not enough memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc", "out of memory")


@contextmanager
def out_of_memory_explained(needs: Callable[[], str]) -> Iterator[None]:
    """Turn every way of running out of memory into one UserError (RESOURCES) that says what `needs` says."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        raise UserError(
            f"out of memory: {needs()}",
            where="train.micro_batch_size",
            fix="lower train.micro_batch_size (the results do not change), then data.max_length, then train an adapter (--lora)",
            code=RESOURCES,
        ) from None
