"""`tinyllm verify [RUN]`: check that the computations are correct here, with this torch, device and number of threads.

Each check computes the same quantity in two ways and reports the largest difference. Without RUN the checks use a tiny model, with RUN
the user's checkpoint. They are listed in `checks`. Not checked: speed, and whether a model has learned anything.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tinyllm import console
from tinyllm import distributed as dist
from tinyllm.diagnostics.checks import CHECKS, Check
from tinyllm.diagnostics.checks.checkpoints import restore_hint
from tinyllm.diagnostics.checks.result import CheckError, CheckResult, CheckSkipped, Status
from tinyllm.diagnostics.checks.target import Target, checkpoint_target, small_target
from tinyllm.errors import INTERRUPTED, RESOURCES, TERMINATED, UserError
from tinyllm.stages.parents import find_checkpoint
from tinyllm.train import memory
from tinyllm.train.engine import choose_device, choose_precision
from tinyllm.train.names import find

_DEVICES = ("auto", "cpu", "cuda", "mps")
_NO_RESULT = (RESOURCES, INTERRUPTED, TERMINATED)  # a full disk or Ctrl-C does not mean that a computation is wrong


def run(
    path: Path | None, device: str, on_result: Callable[[CheckResult], None], base: Path | None = None
) -> dict[str, Any]:
    """Run all checks that apply to this machine, or to the run or checkpoint at `path`.

    Args:
        on_result: called with every result as soon as it is known.
        base: the base model of an adapter, where it does not lie at the path that the adapter names.

    Raises: UserError where there is no checkpoint at `path` (USAGE), a file is damaged (INTEGRITY), or the device does not exist
        (USAGE, RESOURCES).
    """
    started = time.monotonic()
    if dist.world_size() > 1:
        raise UserError("verify starts its own ranks", where="WORLD_SIZE", fix="run it without torchrun")
    if device not in _DEVICES:
        raise UserError(f"unknown device {device!r}", where="--device", fix=f"use one of {', '.join(_DEVICES)}")
    chosen = choose_device(device)
    dist.start(chosen)
    with tempfile.TemporaryDirectory(prefix="tinyllm-verify-") as scratch, _quiet_console():
        target = (
            small_target(chosen, Path(scratch)) if path is None else _load_target(path, chosen, Path(scratch), base)
        )
        results = []
        for check in CHECKS:
            if check.on_machine if path is None else check.on_checkpoint:
                results.append(_run_check(check, target))
                on_result(results[-1])
    return {
        "schema_version": 1,
        "stage": "verify",
        "of": "this machine" if target.folder is None else target.folder.as_posix(),
        "machine": memory.machine_facts(str(chosen), choose_precision("auto", chosen)),
        "passed": all(result.status != "failed" for result in results),
        "seconds": round(time.monotonic() - started, 2),
        "checks": [result.to_json() for result in results],
    }


def _load_target(path: Path, device: torch.device, scratch: Path, base: Path | None) -> Target:
    """Load a run directory, a checkpoint or a Hugging Face folder, after verifying its files."""
    with restore_hint():
        parent = find_checkpoint("verify", path, fast=False, base=base)
    named = None if parent.hub else find(path)
    run = named.run if named and not named.checkpoint else None
    return checkpoint_target(parent.folder, run, device, scratch, parent.base)


def _run_check(check: Check, target: Target) -> CheckResult:
    started = time.monotonic()

    def result(status: Status, **more: Any) -> CheckResult:
        return CheckResult(check.name, status, seconds=time.monotonic() - started, **more)

    try:
        comparisons = check.run(target)
    except CheckSkipped as skipped:
        return result("skipped", reason=str(skipped))
    except CheckError as error:
        return result("failed", reason=str(error))
    except UserError as error:
        if check.fatal or error.code in _NO_RESULT:
            raise
        return result("failed", reason=error.what)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # broken code may raise anything, and the other checks can still run
        return result("failed", reason=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return result("ok" if all(c.passed for c in comparisons) else "failed", comparisons=comparisons)


@contextmanager
def _quiet_console() -> Iterator[None]:
    """Suppress the progress output of the runs inside the checks."""
    before, console.Quiet.on = console.Quiet.on, True
    try:
        yield
    finally:
        console.Quiet.on = before
