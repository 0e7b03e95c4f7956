"""Names of models on a Hugging Face hub, and the cache of downloaded ones on this machine. No network is used.

The cache is the one that transformers and all other tools of the hub share, in huggingface_hub's layout: `models--OWNER--NAME/` with
`blobs/HASH` (the content), `snapshots/COMMIT/FILE` (links to it) and `refs/BRANCH` (the commit that a branch was when it was asked for).
So a model that is there already is not downloaded again, by whichever program. `.tinyllm/COMMIT.json` lists what was downloaded for us.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.io import untrusted_files

MAIN = "main"
WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
_PART = r"[A-Za-z0-9](?:[\w.-]{0,94}\w)?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w.][\w./-]{{0,199}}))?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A repository `OWNER/NAME` and a branch, tag or commit; an empty revision is `main`."""

    repository: str
    revision: str = ""

    def __str__(self) -> str:
        return f"{self.repository}@{self.revision}" if self.revision else self.repository


def parse(text: str) -> HubName | None:
    """Return the name of a model, `OWNER/NAME` or `OWNER/NAME@REVISION`; None for a text that is none."""
    found = _NAME.fullmatch(text)
    if found is None or "--" in found[1] or ".." in text:
        return None
    return HubName(found[1], found[2] or "")


def base_of(adapter: Mapping[str, Any]) -> str | None:
    """Return the base that adapter_config.json names, at the revision beside it where there is one; None if it names none."""
    base, revision = adapter.get("base_model_name_or_path") or None, adapter.get("revision")
    if not isinstance(base, str):
        return None
    name = parse(f"{base}@{revision}") if isinstance(revision, str) and revision != MAIN else None
    return str(name) if name and name.repository == base else base


def is_commit(revision: str) -> bool:
    """Return whether a revision is a whole commit, which cannot change."""
    return _COMMIT.fullmatch(revision) is not None


def cache_folder() -> Path:
    """Return the folder of the cache: HF_HUB_CACHE, else `hub` in HF_HOME or in `huggingface` of the user's cache."""
    if named := os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE"):
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    user = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(user).expanduser() / "huggingface" / "hub"


def repository_folder(repository: str) -> Path:
    """Return the place of a model in the cache, which need not exist."""
    return cache_folder() / f"models--{repository.replace('/', '--')}"


def commit_of(name: HubName) -> str:
    """Return the commit that a name stands for, as far as this machine knows; empty if it does not."""
    if is_commit(name.revision):
        return name.revision
    try:
        text = (repository_folder(name.repository) / "refs" / (name.revision or MAIN)).read_text(encoding="ascii")
    except (OSError, ValueError):
        return ""
    return text.strip() if is_commit(text.strip()) else ""


def snapshot(name: HubName) -> Path | None:
    """Return the folder of a model in the cache, complete or not; None if there is none."""
    commit = commit_of(name)
    folder = repository_folder(name.repository) / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def complete_snapshot(name: HubName) -> Path | None:
    """Return the folder of a model in the cache if all its files are there, else None."""
    folder = snapshot(name)
    return folder if folder is not None and is_complete(folder) else None


def is_complete(folder: Path) -> bool:
    """Return whether a snapshot has all files: those of our list, or, if another program made it, weights and a tokenizer."""
    if record := read_record(folder):
        return all(_size(folder / name) == file["bytes"] for name, file in record.items())
    if (folder / ADAPTER).is_file():
        return (folder / ADAPTER_WEIGHTS).is_file()
    there = (folder / CONFIG).is_file() and any((folder / name).is_file() for name in _TOKENIZERS)
    return there and has_weights(folder)


def has_weights(folder: Path) -> bool:
    """Return whether all weights of a whole model are in a folder."""
    if (folder / WEIGHTS).is_file():
        return True
    try:
        parts = untrusted_files.read_json(folder / INDEX).get("weight_map")
        return isinstance(parts, dict) and all((folder / str(part)).is_file() for part in set(parts.values()))
    except (UserError, OSError, TypeError, ValueError):
        return False


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


# --- what is in a snapshot -------------------------------------------------------------------------------------------------------


def name_of(folder: Path) -> HubName | None:
    """Return repository and commit of a folder that is a snapshot in a cache, by its place; None for any other folder."""
    commit, above, repository = folder.name, folder.parent.name, folder.parent.parent.name
    if not is_commit(commit) or above != "snapshots" or not repository.startswith("models--"):
        return None
    found = parse(repository.removeprefix("models--").replace("--", "/", 1))
    return found and HubName(found.repository, commit)


def record_path(folder: Path) -> Path:
    """Return the place of the list of a snapshot's files."""
    return folder.parents[1] / ".tinyllm" / f"{folder.name}.json"


def read_record(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the files that were downloaded for us, `{name: {bytes, sha256}}`; empty if there is no list, or it is damaged."""
    try:
        files = json.loads(record_path(folder).read_text(encoding="utf-8"))["files"]
        return {str(f["path"]): {"bytes": int(f["bytes"]), "sha256": str(f["sha256"])} for f in files}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def expected_hash(path: Path) -> str:
    """Return the hash that the cache names a file's content by: 64 digits of SHA-256 or 40 of git's SHA-1; empty if unknown."""
    try:
        target = path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return ""
    found = target.name if target.parent.name == "blobs" and target != path else ""
    return found if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", found) else ""
