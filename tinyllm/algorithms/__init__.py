"""One file an algorithm; the file's name is its name on the command line.

A file offers `Settings` (a Config) and `loss(settings, model, batch) -> (Mean, metrics)`. Online algorithms add
`credit(settings, samples) -> samples`, which turns rewards into advantages, and may set `CRITIC = True` to be given an `ActorCritic`.
Offline ones say which `DATA` they learn from (pairs, judgements) and may
`prepare(settings, model, batches) -> batches` a whole optimiser step, where the loss needs to know something of all of it.
`FAMILY` says which command runs it. Nothing here imports torch when it is imported: settings must be checkable in milliseconds.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType

from tinyllm.errors import UserError


def names(family: str) -> list[str]:
    """The algorithms of a family ("supervised", "reward", "offline", "online"), by their files."""
    files = sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name != "common")
    return [name for name in files if family == import_module(f"{__name__}.{name}").FAMILY]


def load(name: str, family: str) -> ModuleType:
    """The algorithm's module; UserError naming the ones there are."""
    known = names(family)
    if name not in known:
        raise UserError(
            f"there is no {family} algorithm {name!r}", where="--algorithm", fix=f"choose one of {', '.join(known)}"
        )
    return import_module(f"{__name__}.{name}")
