"""`tinyllm runs lineage`: trace a run back to pretraining and its data, compare each link with what exists now, and hash it all.

A link is the path and manifest hash that a run recorded of its parent. If the path does not exist or has another checkpoint, a
checkpoint with that hash is looked up under runs/. Only manifests and data files are hashed here; `runs verify` compares checkpoints
with their manifests. `hashes` defines the hash of a run.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tinyllm.diagnostics.runs.find import find_run, recorded_paths, relative_to_cwd
from tinyllm.diagnostics.runs.hashes import config_hash, data_hash, effective_changes, lineage_hash, weights_hash
from tinyllm.diagnostics.runs.record import (
    RunRecord,
    checkpoint_step,
    checkpoints_in,
    of_type,
    parent_of_runs,
    read_record,
)
from tinyllm.errors import UserError
from tinyllm.io.files import sha256 as file_sha256
from tinyllm.train import checkpoint
from tinyllm.train.names import RUNS, is_run, runs_below

OK, CHANGED, GONE, UNRECORDED = "ok", "changed", "gone", "unrecorded"
MOVED = "moved"  # the same files exist under another path
MADE = "made"  # the bundled world, which is generated from its seed: there is no file to compare
_MAX_GENERATIONS = 64


# --- links -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """The state of a checkpoint that a run recorded.

    recorded: the manifest hash that was recorded.
    now: the manifest hash of what is at the recorded path.
    place: the recorded path, if it exists.
    path: where the recorded checkpoint is now.
    """

    status: str
    recorded: str | None
    now: str | None
    place: Path | None
    path: Path | None


class CheckpointIndex:
    """The checkpoints under one runs/ folder by manifest hash. Searched once, on first use."""

    def __init__(self, near: Path):
        """Use the runs/ folder that contains `near`, or the one in the current folder."""
        self.root = (parent_of_runs(near) or Path()) / RUNS

    @cached_property
    def _known(self) -> dict[str, Path]:
        found = {}
        for run in runs_below(self.root):
            for path in (*checkpoints_in(run / "checkpoints"), *checkpoint.decayed(run / "checkpoints")):
                with suppress(OSError):
                    found[checkpoint.fingerprint(path)] = relative_to_cwd(path)
        return found

    def find(self, sha256: str | None) -> Path | None:
        return self._known.get(sha256) if sha256 else None

    def resolve(self, recorded: dict[str, Any], run: Path) -> Link:
        """Return the state of the checkpoint that the run in folder `run` recorded as `{checkpoint, manifest_sha256}`."""
        sha256 = of_type(recorded.get("manifest_sha256"), str)
        places = recorded_paths(of_type(recorded.get("checkpoint"), str, ""), run)
        hashes = {place: manifest_sha256(place) for place in places}
        place, now = next(iter(hashes.items()), (None, None))
        if sha256 is None:
            return Link(UNRECORDED if places else GONE, None, now, place, place)
        same = next((place for place, found in hashes.items() if found == sha256), None)
        if same is not None:
            return Link(OK, sha256, sha256, same, same)
        elsewhere = self.find(sha256)
        status = MOVED if elsewhere else CHANGED if places else GONE
        return Link(status, sha256, now, place, elsewhere)


def manifest_sha256(folder: Path) -> str | None:
    """Return the hash of a checkpoint's manifest; None where there is none."""
    with suppress(OSError):
        return checkpoint.fingerprint(folder)
    return None


# --- the tree --------------------------------------------------------------------------------------------------------------------


def trace_lineage(name: str) -> dict[str, Any]:
    """Return the tree of a run's parents and data with the hashes and status of every link, and the lineage hash.

    A copied checkpoint with its manifest is found by the hash of the manifest.

    Raises: UserError (USAGE) if there is no such run.
    """
    try:
        record, taken = find_run(name)
    except UserError:
        taken = CheckpointIndex(Path.cwd() / RUNS).find(manifest_sha256(Path(name)))
        if taken is None:
            raise
        record = read_record(taken.parent.parent)
    tree = _LineageTree(CheckpointIndex(record.folder))
    root = tree.run(record, "run", checkpoint_step(taken) if taken else None)
    return {"schema_version": 1, "stage": "runs lineage", "lineage": root["lineage"], "tree": root}


class _LineageTree:
    """Builds nested dicts of runs and their ancestors. A run that occurs twice is expanded once."""

    def __init__(self, index: CheckpointIndex):
        self.index = index
        self.descendants: list[Path] = []  # from the root to the present run
        self.done: dict[Path, dict[str, Any]] = {}

    def run(self, record: RunRecord, kind: str, step: int | None, link: Link | None = None) -> dict[str, Any]:
        key = record.folder.resolve()
        node = {"kind": kind, "name": record.name, "path": record.folder.as_posix(), "step": step, **_link_keys(link)}
        if key in self.descendants or len(self.descendants) >= _MAX_GENERATIONS:
            cyclic = key in self.descendants
            why = "it is its own ancestor" if cyclic else f"more than {_MAX_GENERATIONS} generations"
            return node | {"lineage": None, "unknown": f"{record.name}: {why}", "repeated": False, "children": []}
        if key in self.done:
            return {**self.done[key], **node, "repeated": True, "children": []}
        self.descendants.append(key)
        parents = {
            role: self._parent(record, role, fact)
            for role in ("parent", "reward_model")
            if (fact := record.fact(role, dict))
        }
        self.descendants.pop()
        # data used before a change (--allow-data-change) count too
        entries = [
            *chain(*(of_type(e, list, []) for e in record.fact("data_before", list, []))),
            *record.fact("data", list, []),
        ]
        sources = [entry for entry in entries if isinstance(entry, dict)]
        own = {"stage": record.stage, **self._hashes(record, parents, sources), "repeated": False}
        self.done[key] = own
        data = [_source(source, record.folder) for source in sources]
        return {**node, **own, "children": [*parents.values(), *data]}

    def _hashes(self, record: RunRecord, parents: dict[str, dict[str, Any]], sources: list[Any]) -> dict[str, Any]:
        """Return the hashes of a run. `unknown` says why there is no lineage hash."""
        of_shards = bool(sources) and all("fingerprint" in source for source in sources)
        found = {
            "seed": record.fact("seed", int),
            "tokenizer": record.fact("tokenizer_sha256", str),
            "config": config_hash(record.config, of_shards=of_shards) if record.config else None,
            "data": data_hash(sources) if sources else None,
        }
        missing = [f"no {name} on record" for name, value in found.items() if value is None]
        if record.stage not in (None, "pretrain") and "parent" not in parents:
            missing.append("no parent on record")
        unknown = [f"{record.name}: {', '.join((*record.faults, *missing))}"] if missing else []
        unknown += [node["unknown"] for node in parents.values() if node["unknown"]]
        inputs = {role: node["stands_for"] for role, node in parents.items()}
        return {
            "seed": found["seed"],
            "tokenizer_sha256": found["tokenizer"],
            "config_sha256": found["config"],
            "data_sha256": found["data"],
            "lineage": None if unknown else lineage_hash(**found, **inputs, changes=effective_changes(record.changes)),
            "unknown": unknown[0] if unknown else None,
        }

    def _parent(self, record: RunRecord, role: str, recorded: dict[str, Any]) -> dict[str, Any]:
        """Return the node of a parent. `stands_for` is its part of the child's lineage hash."""
        link, kind = self.index.resolve(recorded, record.folder), role.replace("_", " ")
        if link.path is None:
            path = str(recorded.get("checkpoint"))
            why = f"{record.name}: its {kind} {path} is {link.status}"
            node = {"kind": kind, "name": path, "path": path, "step": None, **_link_keys(link), "children": []}
            return node | {"lineage": None, "unknown": why, "stands_for": None, "repeated": False}
        folder = link.path if is_run(link.path.parent.parent) else self.index.find(link.now) or link.path
        step = checkpoint_step(folder)
        if is_run(folder.parent.parent):
            node = self.run(read_record(folder.parent.parent), kind, step, link)
            return node | {"stands_for": [node["lineage"], step]}
        weights = weights_hash(folder)
        node = {"kind": kind, "name": folder.as_posix(), "path": folder.as_posix(), "step": step, **_link_keys(link)}
        node |= {"lineage": None, "repeated": False, "children": [], "weights_sha256": weights}
        unknown = None if weights else f"{record.name}: its {kind} {folder} has no model that can be read"
        return node | {"unknown": unknown, "stands_for": ["weights", weights]}


def _link_keys(link: Link | None) -> dict[str, Any]:
    moved_to = link.path.as_posix() if link and link.status == MOVED and link.path else None
    status, recorded, now = (link.status, link.recorded, link.now) if link else (OK, None, None)
    return {"status": status, "recorded": recorded, "now": now, "moved_to": moved_to}


def _source(source: dict[str, Any], run: Path) -> dict[str, Any]:
    """Return the node of a data source: token shards with the files they were made from, a file, or the bundled world."""
    path = str(source.get("shards", source.get("source", "")))
    recorded = of_type(source.get("fingerprint", source.get("sha256")), str)
    node = {"kind": "data", "name": path, "path": path, "recorded": recorded, "now": None, "moved_to": None}
    node |= {"seed": source.get("seed"), "children": []}
    if path.partition(":")[0] == "world":
        return node | {"status": MADE}
    found = [(place, *_content(place)) for place in recorded_paths(path, run)]
    _, now, children = next((f for f in found if f[1] == recorded), found[0] if found else (None, None, []))
    status = GONE if not found else UNRECORDED if recorded is None else OK if now == recorded else CHANGED
    return node | {"now": now, "status": status, "children": [_source(child, run) for child in children]}


def _content(place: Path) -> tuple[str | None, list[Any]]:
    """Return the hash of a file, or the fingerprint of token shards and the sources they were made from."""
    with suppress(OSError, UserError):
        if not place.is_dir():
            return file_sha256(place), []
        from tinyllm.data.tokens.manifest import MANIFEST, read_manifest

        manifest = read_manifest(place / MANIFEST)
        return manifest.fingerprint, [source for source in manifest.sources if isinstance(source, dict)]
    return None, []
