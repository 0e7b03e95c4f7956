"""Peak memory of this process, facts about the machine, and out-of-memory errors as `UserError`."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinyllm.errors import RESOURCES, UserError

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")
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
    if _STATUS.exists():
        lines = _STATUS.read_text(encoding="ascii").splitlines()
        line = next((line for line in lines if line.startswith("VmHWM:")), "")
        if line:
            return round(int(line.split()[1]) * 1024 / 1e6)
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6)


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
