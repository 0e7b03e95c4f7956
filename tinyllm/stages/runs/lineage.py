"""`tinyllm runs lineage`: from a run up to pretraining and the data, each link compared with what is there now, and one hash for it all.

A link is the path and manifest hash that a run wrote down about its parent. Where the path leads nowhere, or to something else, the
checkpoint is looked for by that hash under runs/. Only manifests and source files are hashed here; whether a checkpoint's files are
what its manifest says is for `runs verify`. What makes up the hash of a run is said in `hashes`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.stages.parents import RUNS
from tinyllm.stages.runs.find import below, chosen, located, shortened
from tinyllm.stages.runs.hashes import config_hash, data_hash, lineage_hash, weights_hash
from tinyllm.stages.runs.read import Record, home, is_run, read, step_at, steps_in, typed
from tinyllm.train import checkpoint

OK, CHANGED, GONE, UNRECORDED = "ok", "changed", "gone", "unrecorded"
MOVED = "moved"  # the same files under another path
MADE = "made"  # the bundled world is made anew from its seed: there is no file to compare
_DEEPEST = 64  # generations


# --- links -----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A checkpoint that was written down, and what has become of it."""

    status: str
    recorded: str | None
    now: str | None  # the hash of what is at the recorded place
    place: Path | None  # which is here
    path: Path | None  # where the very files that were written down are


class Archive:
    """The checkpoints of one tree of runs, by the hash of their manifest. Looked through once, when first asked."""

    def __init__(self, near: Path):
        self.root = (home(near) or Path()) / RUNS

    @cached_property
    def _known(self) -> dict[str, Path]:
        found = {}
        for run in below(self.root):
            for path in steps_in(run / "checkpoints"):
                with suppress(OSError):
                    found[checkpoint.fingerprint(path)] = shortened(path)
        return found

    def find(self, sha256: str | None) -> Path | None:
        return self._known.get(sha256) if sha256 else None

    def follow(self, recorded: dict[str, Any], near: Path) -> Link:
        """What has become of the checkpoint that the run at `near` wrote down as `{checkpoint, manifest_sha256}`."""
        sha256 = typed(recorded.get("manifest_sha256"), str)
        places = located(typed(recorded.get("checkpoint"), str, ""), near)
        hashes = {place: fingerprint(place) for place in places}
        place, now = next(iter(hashes.items()), (None, None))
        if sha256 is None:
            return Link(UNRECORDED if places else GONE, None, now, place, place)
        same = next((place for place, found in hashes.items() if found == sha256), None)
        if same is not None:
            return Link(OK, sha256, sha256, same, same)
        elsewhere = self.find(sha256)
        status = MOVED if elsewhere else CHANGED if places else GONE
        return Link(status, sha256, now, place, elsewhere)


def fingerprint(folder: Path) -> str | None:
    with suppress(OSError):
        return checkpoint.fingerprint(folder)
    return None


# --- the tree --------------------------------------------------------------------------------------------------------------------


def lineage(given: str) -> dict[str, Any]:
    """The tree of everything that shaped a run: `kind`, path, step, hashes and status of every link, and its lineage hash.

    A checkpoint that lies elsewhere, but came with its manifest, is looked up by that. UserError (USAGE) where there is no such run.
    """
    try:
        record, taken = chosen(given)
    except UserError:
        taken = Archive(Path.cwd() / RUNS).find(fingerprint(Path(given)))
        if taken is None:
            raise
        record = read(taken.parent.parent)
    tree = _Tree(Archive(record.folder))
    found = tree.run(record, "run", step_at(taken) if taken else None)
    return {"schema_version": 1, "stage": "runs lineage", "lineage": found["lineage"], "tree": found}


class _Tree:
    """Runs and their ancestors as nested dicts. A run that comes up twice is spelled out once."""

    def __init__(self, archive: Archive):
        self.archive = archive
        self.above: list[Path] = []  # the runs this one is an ancestor of
        self.done: dict[Path, dict[str, Any]] = {}

    def run(self, record: Record, kind: str, step: int | None, link: Link | None = None) -> dict[str, Any]:
        key = record.folder.resolve()
        node = {"kind": kind, "name": record.name, "path": record.folder.as_posix(), "step": step, **_told(link)}
        if key in self.above or len(self.above) >= _DEEPEST:
            why = "it is its own ancestor" if key in self.above else f"more than {_DEEPEST} generations"
            return node | {"lineage": None, "unknown": f"{record.name}: {why}", "repeated": False, "children": []}
        if key in self.done:
            return {**self.done[key], **node, "repeated": True, "children": []}
        self.above.append(key)
        parents = {
            role: self._parent(record, role, fact)
            for role in ("parent", "reward_model")
            if (fact := record.fact(role, dict))
        }
        self.above.pop()
        # of a run that went on with other data (--allow-data-change), those that came before count, too
        entries = [
            *chain(*(typed(e, list, []) for e in record.fact("data_before", list, []))),
            *record.fact("data", list, []),
        ]
        sources = [entry for entry in entries if isinstance(entry, dict)]
        own = {"stage": record.stage, **self._hashed(record, parents, sources), "repeated": False}
        self.done[key] = own
        data = [_source(source, record.folder) for source in sources]
        return {**node, **own, "children": [*parents.values(), *data]}

    def _hashed(self, record: Record, parents: dict[str, dict[str, Any]], sources: list[Any]) -> dict[str, Any]:
        """A run's hashes; `unknown` says why there is no lineage hash."""
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
        given = {role: node["stands_for"] for role, node in parents.items()}
        return {
            "seed": found["seed"],
            "tokenizer_sha256": found["tokenizer"],
            "config_sha256": found["config"],
            "data_sha256": found["data"],
            "lineage": None if unknown else lineage_hash(**found, **given),
            "unknown": unknown[0] if unknown else None,
        }

    def _parent(self, record: Record, role: str, recorded: dict[str, Any]) -> dict[str, Any]:
        """The node of a parent; `stands_for` is what goes into the child's lineage hash."""
        link, kind = self.archive.follow(recorded, record.folder), role.replace("_", " ")
        if link.path is None:
            path = str(recorded.get("checkpoint"))
            why = f"{record.name}: its {kind} {path} is {link.status}"
            node = {"kind": kind, "name": path, "path": path, "step": None, **_told(link), "children": []}
            return node | {"lineage": None, "unknown": why, "stands_for": None, "repeated": False}
        folder = link.path if is_run(link.path.parent.parent) else self.archive.find(link.now) or link.path
        step = step_at(folder)
        if is_run(folder.parent.parent):
            node = self.run(read(folder.parent.parent), kind, step, link)
            return node | {"stands_for": [node["lineage"], step]}
        weights = weights_hash(folder)
        node = {"kind": kind, "name": folder.as_posix(), "path": folder.as_posix(), "step": step, **_told(link)}
        node |= {"lineage": None, "repeated": False, "children": [], "weights_sha256": weights}
        unknown = None if weights else f"{record.name}: its {kind} {folder} holds no model that can be read"
        return node | {"unknown": unknown, "stands_for": ["weights", weights]}


def _told(link: Link | None) -> dict[str, Any]:
    moved_to = link.path.as_posix() if link and link.status == MOVED and link.path else None
    status, recorded, now = (link.status, link.recorded, link.now) if link else (OK, None, None)
    return {"status": status, "recorded": recorded, "now": now, "moved_to": moved_to}


def _source(source: dict[str, Any], near: Path) -> dict[str, Any]:
    """The node of a data source: shards with the files they were made of, a file, or the bundled world."""
    path = str(source.get("shards", source.get("source", "")))
    recorded = typed(source.get("fingerprint", source.get("sha256")), str)
    node = {"kind": "data", "name": path, "path": path, "recorded": recorded, "now": None, "moved_to": None}
    node |= {"seed": source.get("seed"), "children": []}
    if path.partition(":")[0] == "world":
        return node | {"status": MADE}
    found = [(place, *_content(place)) for place in located(path, near)]
    _, now, children = next((f for f in found if f[1] == recorded), found[0] if found else (None, None, []))
    status = GONE if not found else UNRECORDED if recorded is None else OK if now == recorded else CHANGED
    return node | {"now": now, "status": status, "children": [_source(child, near) for child in children]}


def _content(place: Path) -> tuple[str | None, list[Any]]:
    """The hash of a file's content, or of shards with the sources they were made of."""
    with suppress(OSError, UserError):
        if not place.is_dir():
            return checkpoint.sha256(place), []
        from tinyllm.data.manifest import MANIFEST, read_manifest

        manifest = read_manifest(place / MANIFEST)
        return manifest.fingerprint, [source for source in manifest.sources if isinstance(source, dict)]
    return None, []
