"""`tinyllm verify [RUN]`: do the mathematics and the plumbing hold *here*, with this torch, on this device, with this many threads?

Two ways to the same figure are compared, and the largest difference is the answer. Without RUN the checks look at a tiny model made on
the spot; with it, at the user's own checkpoint. The checks are in `checks`. Left out: speed, and whether a model has learned anything.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from tinyllm import dist
from tinyllm.errors import INTERRUPTED, RESOURCES, TERMINATED, UserError
from tinyllm.stages import machine
from tinyllm.stages.checks import CHECKS, Check
from tinyllm.stages.checks.files import advised
from tinyllm.stages.checks.outcome import Broken, Outcome, Skipped
from tinyllm.stages.checks.subject import Subject, own, small
from tinyllm.stages.parents import find
from tinyllm.train import progress
from tinyllm.train.engine import choose_device, choose_precision
from tinyllm.train.run import read_facts

_DEVICES = ("auto", "cpu", "cuda", "mps")
_NO_VERDICT = (RESOURCES, INTERRUPTED, TERMINATED)  # a full disk or Ctrl-C says nothing about the mathematics


def run(given: Path | None, device: str, watch: Callable[[Outcome], None]) -> dict[str, Any]:
    """Look at this machine, or at the checkpoint `given`; `watch` is told of every check when it is done.

    Raises UserError: no checkpoint there (USAGE), a file that is not what was written (INTEGRITY), no such device (USAGE, RESOURCES).
    """
    started = time.monotonic()
    if dist.world_size() > 1:
        raise UserError("verify starts its own ranks", where="WORLD_SIZE", fix="run it without torchrun")
    if device not in _DEVICES:
        raise UserError(f"there is no device {device!r}", where="--device", fix=f"use one of {', '.join(_DEVICES)}")
    chosen = choose_device(device)
    dist.start(chosen)
    with tempfile.TemporaryDirectory(prefix="tinyllm-verify-") as scratch, _silence():
        subject = small(chosen, Path(scratch)) if given is None else _named(given, chosen, Path(scratch))
        outcomes = []
        for check in CHECKS:
            if check.machine if given is None else check.checkpoint:
                outcomes.append(_looked(check, subject))
                watch(outcomes[-1])
    return {
        "schema_version": 1,
        "stage": "verify",
        "of": "this machine" if subject.folder is None else subject.folder.as_posix(),
        "machine": machine.described(str(chosen), choose_precision("auto", chosen)),
        "passed": all(outcome.status != "failed" for outcome in outcomes),
        "seconds": round(time.monotonic() - started, 2),
        "checks": [outcome.facts() for outcome in outcomes],
    }


def _named(given: Path, device: torch.device, scratch: Path) -> Subject:
    """The checkpoint meant by a run directory, a checkpoint or a folder from elsewhere; its files are verified."""
    with advised():
        folder = find("verify", given, fast=False).folder
    run = given if read_facts(given) else None
    return own(folder, run, device, scratch)


def _looked(check: Check, subject: Subject) -> Outcome:
    began = time.monotonic()

    def outcome(status: Any, **more: Any) -> Outcome:
        return Outcome(check.name, status, seconds=time.monotonic() - began, **more)

    try:
        compared = check.look(subject)
    except Skipped as why:
        return outcome("skipped", reason=str(why))
    except Broken as why:
        return outcome("failed", reason=str(why))
    except UserError as error:
        if check.fatal or error.code in _NO_VERDICT:
            raise
        return outcome("failed", reason=error.what)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken piece may break anywhere; the other checks still have something to say
        return outcome("failed", reason=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    return outcome("ok" if all(c.passed for c in compared) else "failed", compared=compared)


@contextmanager
def _silence() -> Iterator[None]:
    """The runs inside the checks have nothing to say to a person."""
    before, progress.Quiet.on = progress.Quiet.on, True
    try:
        yield
    finally:
        progress.Quiet.on = before
