"""The configuration of a training stage given to `eval` or `chat`: its held-out data, seed, device and sampling.

What the command cannot use is named and left out. Never taken over: the parent, which is the checkpoint that training started from.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tinyllm.config import Config, flatten, load
from tinyllm.config.base import dotted_keys, find_field
from tinyllm.config.files import Document, read_documents
from tinyllm.config.yaml12 import Node
from tinyllm.console import say
from tinyllm.data.config import is_world
from tinyllm.errors import UserError
from tinyllm.stages.config import StageConfig, data_kind

Setting = tuple[str, str, str]  # dotted key, value as YAML, origin

_RENAMED = {  # key of a training stage -> key of eval or chat
    "seed": "seed",
    "device": "device",
    "rollout.max_new_tokens": "max_new_tokens",
    "rollout.temperature": "temperature",
}
_READING = ("data.field", "data.on_bad_line", "data.encoding", "data.max_length")  # with any kind of data
_OF_DOCUMENTS = ("data.format", "data.val_fraction")


def stage_in(path: Path, own: type[Config], stages: Mapping[str, type[Config]]) -> str | None:
    """Return the training stage that a file is a configuration of; None if it is one of the command itself.

    Args:
        own: the settings of the command.
        stages: the settings of every training stage; the first that knows the most keys of the file.
    """
    problems: list[Any] = []
    documents = read_documents(path, problems)
    missing = len(_unknown(own, documents))
    if problems or not missing:
        return None
    counts = {name: len(_unknown(cls, documents)) for name, cls in stages.items()}
    best = min(counts, key=counts.__getitem__)
    return best if counts[best] < missing else None


def borrowed(
    path: Path, name: str, cls: type[Config], own: type[Config], *, fast: bool, given: Sequence[str]
) -> list[Setting]:
    """Return the settings of a training stage's file that a command uses, and say which ones it does not.

    Args:
        name: the training stage, whose settings are `cls`.
        own: the settings of the command.
        given: the keys that the user sets as well.

    Raises: UserError for a file that is not valid, or held-out data that the command cannot find.
    """
    resolved = load(cls, files=[path], fast=fast)
    assert isinstance(resolved.config, StageConfig)
    values, changed = flatten(resolved.config), resolved.changed()
    wanted = [(old, new, values[old]) for old, new in _RENAMED.items() if old in changed]
    if "data" in own.model_fields:
        wanted += _held_out(values, str(data_kind(resolved.config)), name, given)
    known = dotted_keys(own)
    used = [(old, new, value) for old, new, value in wanted if new in known]
    _report(path, name, [old for old, _, _ in used if old in changed], list(changed))
    return [(new, json.dumps(value), resolved.origins[old]) for old, new, value in used]


def _held_out(values: Mapping[str, Any], kind: str, name: str, given: Sequence[str]) -> list[tuple[str, str, Any]]:
    """Return the data that the stage does not train on, as eval finds them: (key of the stage, key of eval, value)."""
    keys = (*_READING, *(_OF_DOCUMENTS if kind == "documents" else ()))
    found = [(key, key, values[key]) for key in keys]
    train, val = values["data.train"], values["data.val"]
    if "data.val" in given or (not val and all(map(is_world, train))):
        return found  # without data.val, eval reads the held-out part of the bundled world
    if val:
        return [*found, ("data.val", "data.val", val)]
    if kind == "documents":
        return [*found, ("data.val", "data.val", []), ("data.train", "data.train", train)]
    what = f"the held-out {kind} of {name} are a part of data.train, which eval cannot tell apart"
    raise UserError(what, where="data.val", fix="name held-out data: --set 'data.val=[FILE]'")


def _report(path: Path, name: str, used: Sequence[str], changed: Sequence[str]) -> None:
    unused = [key for key in changed if key not in used and (key[:5] != "data." or key in ("data.train", "data.val"))]
    left = dict.fromkeys(key if key.startswith("data.") else key.partition(".")[0] for key in unused)
    text = f"{path} is a configuration of {name}: using {', '.join(used) or 'nothing of it'}"
    say(f"{text}; not using {', '.join(left)}" if left else text)


def _unknown(cls: type[Config], documents: Sequence[Document]) -> set[tuple[str, ...]]:
    sections = [section for document in documents for section in (document.settings, document.fast_dev_run)]
    return {path for section in sections for path in _paths((), section) if find_field(cls, path) is None}


def _paths(prefix: tuple[str, ...], section: Mapping[str, Node]) -> Iterator[tuple[str, ...]]:
    """Yield the keys of a section and, as far as they are sections, below them."""
    for key, node in section.items():
        path = (*prefix, *key.split("."))
        yield path
        if isinstance(node.value, dict):
            yield from _paths(path, node.value)
