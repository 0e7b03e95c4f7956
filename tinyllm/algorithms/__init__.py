"""Registry of algorithms. Each file of this folder is one; its name is the algorithm's name on the command line.

A file defines FAMILY ("supervised", "reward", "offline" or "online"), `Settings` (a Config) and
`loss(settings, model, batch) -> (Mean, metrics)`.
Online: also `compute_advantages(settings, samples) -> (samples with advantages, metrics)`, CRITIC = True to train an
`ActorCritic`, and NEEDS_GROUP = True if an advantage is relative to the other answers to its prompt.
Offline: also DATA ("pairs" or "unpaired"), and, if the loss depends on the whole optimizer step,
`prepare(settings, model, batches) -> batches`.
Optional: `uses_reference(settings) -> bool` (default: no), CONFIG (its default file in configs/), IN_LIFECYCLE = True.

A user's own file has the same form and is named by its path. Nothing here imports torch, so settings are validated in milliseconds.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from tinyllm.algorithms.entry import Algorithm, DataKind, Family, Loss, from_module
from tinyllm.errors import UserError
from tinyllm.io.user_code import load_module

__all__ = ["FAMILIES", "Algorithm", "DataKind", "Family", "Loss", "entries", "is_file", "load", "name_of", "names"]

FAMILIES: tuple[Family, ...] = ("offline", "online")  # with names that --algorithm accepts
_NOT_ALGORITHMS = {"common", "entry"}
_STAGES = ("pretrain", "sft", "rm")  # a checkpoint records the name of its stage or algorithm
_ORDER = (
    "dpo",
    "orpo",
    "simpo",
    "kto",
    "ppo",
    "gspo",
    "grpo",
    "dapo",
    "rloo",
)  # the guide's; other algorithms follow by name


def names(family: Family) -> list[str]:
    """Return the names of a family's built-in algorithms, sorted."""
    return sorted(entry.name for entry in _built_in() if entry.family == family)


def entries(family: Family) -> list[Algorithm]:
    """Return a family's built-in algorithms in the guide's order."""
    rank = {name: number for number, name in enumerate(_ORDER)}
    found = [entry for entry in _built_in() if entry.family == family]
    return sorted(found, key=lambda entry: (rank.get(entry.name, len(rank)), entry.name))


def load(name: str, family: Family) -> Algorithm:
    """Return the entry of a built-in algorithm, or of a file of the user's own (`path/to/my_loss.py`).

    Raises:
        UserError: there is no such algorithm in the family; or the file is missing, not valid Python, lacks an attribute, belongs to
            another family or is named like a built-in algorithm.
    """
    if is_file(name):
        return _from_file(Path(name), family)
    known = names(family)
    if name not in known:
        raise UserError(
            f"there is no {family} algorithm {name!r}",
            where="--algorithm",
            fix=f"choose one of {', '.join(known)}, or path/to/my_loss.py",
        )
    return _entry(name)


def is_file(name: str) -> bool:
    """Return whether an algorithm's name is the path of a file."""
    return name.endswith(".py")


def name_of(name: str) -> str:
    """Return the name of an algorithm's section and runs: its own, or the stem of its file."""
    return Path(name).stem if is_file(name) else name


def _from_file(path: Path, family: Family) -> Algorithm:
    name = path.stem
    if not name.isidentifier():
        raise UserError(
            f"{name!r} cannot name a section of a configuration",
            where=str(path),
            fix="rename the file: letters, digits and _ only, no digit first",
        )
    if name in (*_files(), *_STAGES):
        raise UserError(f"{name} is the name of a built-in algorithm or stage", where=str(path), fix="rename the file")
    return from_module(load_module(path, where="--algorithm"), name, family, str(path))


def _files() -> list[str]:
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _NOT_ALGORITHMS)


def _entry(name: str) -> Algorithm:
    module = import_module(f"{__name__}.{name}")
    return from_module(module, name, None, f"tinyllm/algorithms/{name}.py")


def _built_in() -> list[Algorithm]:
    return [_entry(name) for name in _files()]
