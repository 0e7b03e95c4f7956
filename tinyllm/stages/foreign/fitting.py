"""Which settings of a command are fitted to the model that it starts from, and what is known of that model. No torch.

They replace the shipped configuration's and the fields' defaults, and never a value of the user: from a file that was named, from the
environment or from the command line.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tinyllm.config import Resolved, flatten
from tinyllm.data.config import is_world
from tinyllm.data.record_source import BY_HASH, TRAIN, RecordSource
from tinyllm.errors import UserError
from tinyllm.io import hub_cache
from tinyllm.stages import origin
from tinyllm.stages.config import data_kind
from tinyllm.stages.continued import model_of
from tinyllm.stages.foreign import defaults
from tinyllm.stages.foreign.defaults import Model, Task
from tinyllm.stages.parents import expected_parent, named_base
from tinyllm.train import checkpoint
from tinyllm.train.run import read_facts

ORIGIN = "fitted to the parent"
STAGES = ("sft", "rm", "align-offline", "align-online", "pretrain")
_SHIPPED_NAMES = "1.4M"  # how the names of runs begin in the shipped configurations
_MOST_PARENTS = 20
_FAST = ("optim.learning_rate", "optim.optimizer", "train.micro_batch_size")  # what --fast-dev-run leaves to fit
_MOST_BYTES = 64_000_000  # of files whose records are counted

Setting = tuple[str, str, str]  # dotted key, value as YAML, origin: as `config.load` takes them
ONE_ROW: Setting = ("train.micro_batch_size", "1", ORIGIN)  # divides every batch


def settings(stage: str, resolved: Resolved, shipped: Path | None, *, fast: bool) -> tuple[list[Setting], str]:
    """Return the settings that fit the parent of a resolved configuration, and a line about them.

    None where the shipped ones are meant for it.

    Args:
        shipped: the shipped configuration in use; None for a file that the user named, whose settings are the user's.

    Raises: UserError where the name of a model of a hub cannot be used.
    """
    config = resolved.config
    model = _model(stage, config, fast=fast) if stage in STAGES and (stage != "pretrain" or config.parent) else None
    if model is None or not defaults.applies(model):
        return [], ""
    values = flatten(config)
    chosen = {key: values[key] for key, by in resolved.origins.items() if not _is_default(by, shipped)}
    known = {"lora": config.lora is not None} if stage != "pretrain" else {}
    algorithm = values.get("algorithm", "")
    records = None if fast else _records(config)
    found = defaults.fit(model, Task(stage, algorithm, records=records, memory=_memory(), **known), chosen)
    found = {key: value for key, value in found.items() if key in values and (not fast or key in _FAST)}
    made = [(key, f"{value}", f"{ORIGIN}: {reason}") for key, (value, reason) in found.items()]
    is_named = fast or "name" in chosen or (model.ours and model.name.startswith(_SHIPPED_NAMES))
    name = [] if is_named else [("name", _run_name(model.name), ORIGIN)]
    return made + name, defaults.line(model, found) if found else ""


def _is_default(by: str, shipped: Path | None) -> bool:
    """Return whether an origin, `path:line`, is a default: of a field, or of the shipped configuration."""
    return by in ("default", ORIGIN) or (
        shipped is not None and Path(by.rpartition(":")[0]).resolve() == shipped.resolve()
    )


def _model(stage: str, config: Any, *, fast: bool) -> Model | None:
    """Return what is known of the parent; None where that is not enough, which the stage itself reports."""
    folder = expected_parent(stage, config.parent, fast=fast)
    if folder is None:
        return None
    try:
        shape = model_of(folder, config.base and named_base(config.base, weights=False))
    except UserError:
        return None
    remote = hub_cache.name_of(folder)
    ours = _is_ours(folder)
    of_run = folder.parent.parent.name if folder.parent.name == "checkpoints" else ""
    return Model(remote.repository if remote else of_run or folder.resolve().name, shape, ours)


def _is_ours(folder: Path) -> bool:
    """Return whether a checkpoint was trained here from new weights on, by the parents that its runs recorded."""
    for _ in range(_MOST_PARENTS):
        if not ((folder / origin.FILE).is_file() or (folder / checkpoint.MANIFEST).is_file()):
            return False
        parent = read_facts(folder.resolve().parents[1]).get("parent")
        if not isinstance(parent, dict) or not isinstance(parent.get("checkpoint"), str):
            return True
        if parent.get("manifest_sha256") is None:  # only a model of others has no manifest
            return False
        folder = Path(parent["checkpoint"])
        if not folder.is_dir():
            return True
    return True


def _run_name(model: str) -> str:
    """Return a name for a run, made of the model's."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", model.rpartition("/")[2]).strip(".-")[:100] or "default"


def _records(config: Any) -> int | None:
    """Return the number of records to train on, about; None where counting would take long, or they cannot be read."""
    kind = data_kind(config)
    if kind is None or "-" in config.data.sources or kind == "documents":
        return None
    source = RecordSource(config.data, kind, config.seed)
    try:
        if all(map(is_world, config.data.train)):
            return sum(int(entry.partition(":")[2] or 0) for entry in config.data.train) or None
        if source.size > _MOST_BYTES:
            return None
        counts = {TRAIN: 0, BY_HASH: 0}
        for split, _ in source.of_files():
            counts[split] = counts.get(split, 0) + 1
    except (UserError, OSError, ValueError):
        return None
    held_out = 1 - config.data.val_fraction
    return counts[TRAIN] + round(counts[BY_HASH] * held_out) or None


def _memory() -> int:
    """Return the bytes of memory of this machine or, if it is less, of the container. Not what is free: that changes between runs."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):  # Windows
        return Task("sft").memory
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        limit = ""
    return min(found, int(limit)) if limit.isdecimal() else found
