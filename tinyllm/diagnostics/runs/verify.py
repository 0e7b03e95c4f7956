"""`tinyllm runs verify`: check that what runs wrote is unchanged and complete.

Every byte of every checkpoint and shard is read. A problem is a file that is damaged, or missing where it is needed. What is merely gone,
such as a parent that was removed to save space, is a note. Not done: repairs, and judging the weights.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.diagnostics.run_log import CONFIG, FACTS, METRICS
from tinyllm.diagnostics.runs.files import (
    Fault,
    escaping_links,
    is_model,
    metrics_faults,
    safetensors_metadata,
    text_sha256,
    weight_faults,
    weights_sha256,
)
from tinyllm.diagnostics.runs.find import find_run, recorded_paths, relative_to_cwd
from tinyllm.diagnostics.runs.lineage import CHANGED, GONE, MOVED, UNRECORDED, CheckpointIndex, manifest_sha256
from tinyllm.diagnostics.runs.record import RunRecord, checkpoints_in, disk_usage, read_json, read_record
from tinyllm.errors import UserError
from tinyllm.io import hub_cache
from tinyllm.io.files import sha256
from tinyllm.model.adapter_config import ADAPTER, base_folder
from tinyllm.train import checkpoint
from tinyllm.train.names import RUNS, folders, is_run, matching, runs_below

_DIFFERENT = "not the checkpoint that {} was trained from (sha256 differs)"


@dataclass
class RunVerifier:
    """Verifies runs, checkpoints and shards, and collects what is wrong. Files that several runs use are read once."""

    problems: dict[Fault, None] = field(default_factory=dict)  # ordered, without duplicates
    notes: dict[Fault, None] = field(default_factory=dict)
    runs: int = 0
    checkpoints: int = 0
    files: int = 0  # of checkpoints and shards
    bytes: int = 0
    _intact: dict[Path, bool] = field(default_factory=dict)
    _fingerprints: dict[Path, str | None] = field(default_factory=dict)
    _tokenizers: dict[tuple[str, str], str | Fault] = field(default_factory=dict)
    _indexes: dict[Path, CheckpointIndex] = field(default_factory=dict)

    # --- runs ---

    def run(self, record: RunRecord) -> None:
        """Verify a run: its own files, its checkpoints, its parents and its data."""
        self.runs += 1
        folder = record.folder
        for fault in record.faults:
            name = CONFIG if fault.startswith(CONFIG) else FACTS
            self._problem(folder / name, fault.removeprefix(name).lstrip(": "))
        recorded = record.fact("config_sha256", str)
        if recorded and record.config and text_sha256(folder / CONFIG) != recorded:
            self._problem(folder / CONFIG, "not the configuration that the run started with (sha256 differs)")
        self.problems |= dict.fromkeys(metrics_faults(folder / METRICS, until=record.last_step))
        self._completeness(record)
        for path in (*checkpoints_in(record.checkpoints), *checkpoint.decayed(record.checkpoints)):
            self.checkpoint(path, record)
        self._links(record)
        for role in ("parent", "reward_model"):
            if recorded := record.fact(role, dict):
                self._parent(record, role.replace("_", " "), recorded)
        for source in record.fact("data", list, []):
            if isinstance(source, dict) and isinstance(source.get("shards"), str):
                self._shards_of(record, source)

    def _completeness(self, record: RunRecord) -> None:
        """Require the last checkpoint of a completed run, and any of one that trained: step 0 is saved before the first step."""
        saved, folder = checkpoints_in(record.checkpoints), record.checkpoints
        newest = checkpoint.step_of(saved[-1]) if saved else None
        if record.last_step is not None and (newest is None or newest < record.last_step):
            has = f"the newest checkpoint is of step {newest}" if saved else "has no checkpoint"
            self._problem(folder, f"{has}, although the run completed after step {record.last_step}")
        elif newest is None and (record.step or 0) > 0 and record.owner is None:
            self._problem(folder, f"has no checkpoint, although the run trained to step {record.step}")
        elif newest is None:
            self._note(folder, "has no checkpoint yet")
        if record.last_step is not None and not (record.folder / "logs").is_dir():
            self._note(record.folder / "logs", "missing")

    def _links(self, record: RunRecord) -> None:
        folder = record.checkpoints
        for name in (checkpoint.LATEST, checkpoint.BEST):
            link = folder / name
            if link.is_symlink():
                target = os.readlink(link)
                if folder / target not in checkpoints_in(folder) and os.readlink(link) == target:  # else just replaced
                    self._problem(link, f"points to {target}, which is not a checkpoint of this run")
            elif link.is_dir():
                self.checkpoint(link, record)  # a copy, where links cannot be created
            elif checkpoints_in(folder) and record.owner is None:
                self._problem(link, "missing")
        for path in sorted(folder.glob(f"{checkpoint.DAMAGED}*")) if folder.is_dir() else ():
            self._note(path, "was set aside as damaged")

    def _parent(self, record: RunRecord, kind: str, recorded: dict[str, Any]) -> None:
        link = self._index(record).resolve(recorded, record.folder)
        path = link.place or Path(str(recorded.get("checkpoint")))
        if link.status == CHANGED and not record.is_fast_dev_run:  # a fast-dev-run replaces the one before it
            self._problem(path, _DIFFERENT.format(record.name))
        elif link.status in (CHANGED, GONE, MOVED, UNRECORDED):
            words = {
                CHANGED: "has been replaced by a later fast-dev-run",
                GONE: "is gone",
                MOVED: f"has moved to {link.path}",
                UNRECORDED: "had no manifest, so it cannot be compared",
            }
            self._note(path, f"the {kind} of {record.name} {words[link.status]}")

    def _shards_of(self, record: RunRecord, source: dict[str, Any]) -> None:
        places = recorded_paths(source["shards"], record.folder)
        if not places:
            self._note(Path(source["shards"]), f"the data of {record.name} are gone")
            return
        fingerprint = self.shards(places[0])
        if fingerprint and source.get("fingerprint") and fingerprint != source["fingerprint"]:
            self._problem(places[0], f"not the data that {record.name} was trained on (fingerprint differs)")

    # --- checkpoints ---

    def checkpoint(self, folder: Path, record: RunRecord | None = None) -> None:
        """Verify a checkpoint, of a run or on its own. Without a manifest only the sizes of its weight files are checked."""
        before = dict(self.problems)
        try:
            if self._is_intact(folder):
                self._tokenizer(folder, record)
                if (folder / ADAPTER).is_file():
                    self._base(folder, record)
        except OSError as error:
            self._problem(folder, f"cannot be read: {error.strerror}")
        if folder.is_dir():
            self.checkpoints += 1
        else:  # the run, which is still training, removed it in the meantime
            self.problems = before

    def _is_intact(self, folder: Path) -> bool:
        """Compare all files with the manifest, once per checkpoint."""
        key = folder.resolve()
        if key not in self._intact:
            # checkpoints of runs always have a manifest, other models may have none
            ours = folder.parent.name == "checkpoints" or folder in checkpoints_in(folder.parent)
            listed = (folder / checkpoint.MANIFEST).is_file() or ours
            if listed:
                found = list(checkpoint.faults(folder))
            else:
                found = list(escaping_links(folder))
            found = found or list(weight_faults(folder))
            self._intact[key] = not found
            self.problems |= dict.fromkeys(found)
            self._count(folder)
            if not listed and is_model(folder):
                self._note(folder, "has no manifest, so only the sizes of its weight files were checked")
        return self._intact[key]

    def _tokenizer(self, folder: Path, record: RunRecord | None) -> None:
        recorded = record.fact("tokenizer_sha256", str) if record else None
        if not (folder / "tokenizer.json").is_file():
            if recorded:
                self._problem(folder / "tokenizer.json", "missing")
            return
        found = self._tokenizer_sha256(folder)
        if isinstance(found, tuple):
            self._problem(*found)
        elif recorded and found != recorded:
            what = f"not the tokenizer of this run (sha256 {found[:12]}, run.json says {recorded[:12]})"
            self._problem(folder / "tokenizer.json", what)

    def _tokenizer_sha256(self, folder: Path) -> str | Fault:
        """Return the tokenizer's sha256 as recorded in run.json, or what is wrong with it. Loads each tokenizer once."""
        files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
        first, second = (sha256(path) if path.is_file() else "" for path in files)
        if (first, second) not in self._tokenizers:
            from tinyllm.text.tokenizer import Tokenizer

            try:
                self._tokenizers[first, second] = Tokenizer.load(folder).sha256
            except UserError as error:
                self._tokenizers[first, second] = (files[0], error.what)
        return self._tokenizers[first, second]

    def _base(self, folder: Path, record: RunRecord | None) -> None:
        """Verify the base of an adapter. Its weights must be those whose hash the adapter, or for older ones the run, recorded."""
        description, broken = read_json(folder / ADAPTER)
        parent = record.fact("parent", dict, {}) if record else {}
        try:
            base = relative_to_cwd(base_folder(folder, hub_cache.base_of(description) or ""))
        except UserError as error:
            elsewhere = self._index(record).find(parent.get("manifest_sha256")) if record else None
            hint = f"; the same files are at {relative_to_cwd(elsewhere)}" if elsewhere else ""
            self._problem(folder, broken or f"{error.what}{hint}")
            return
        if not self._is_intact(base):
            return
        name = record.name if record else folder.as_posix()
        weights = safetensors_metadata(folder / "adapter_model.safetensors", "base_sha256")
        recorded = weights or parent.get("manifest_sha256")
        now = weights_sha256(base) if weights else manifest_sha256(base)
        if recorded and recorded != now and (weights or parent.get("checkpoint") == base.as_posix()):
            self._problem(base, _DIFFERENT.format(name))

    # --- shards ---

    def shards(self, folder: Path) -> str | None:
        """Verify token shards and return their fingerprint; None if they are damaged."""
        from tinyllm.data.tokens.manifest import VERSION
        from tinyllm.data.tokens.shards import open_shards

        key, version = folder.resolve(), read_json(folder / checkpoint.MANIFEST)[0].get("version")
        if isinstance(version, int) and version < VERSION:
            self._note(folder, f"not checked: shards of version {version}, which this tinyllm does not read")
            return None
        if key not in self._fingerprints:
            try:
                self._fingerprints[key] = open_shards(folder, verify=True).manifest.fingerprint
            except UserError as error:
                self._fingerprints[key] = None
                self._problem(Path(error.where or folder), error.what)
            self._count(folder)
        return self._fingerprints[key]

    # --- results ---

    def _index(self, record: RunRecord) -> CheckpointIndex:
        found = CheckpointIndex(record.folder)
        return self._indexes.setdefault(found.root, found)

    def _count(self, folder: Path) -> None:
        """Count a folder that was read."""
        self.files += sum(path.is_file() for path in folder.rglob("*"))
        self.bytes += disk_usage(folder)

    def _problem(self, path: Path, what: str) -> None:
        self.problems[path, what] = None

    def _note(self, path: Path, what: str) -> None:
        self.notes[path, what] = None


def verify_runs(names: Sequence[str]) -> dict[str, Any]:
    """Verify runs, checkpoints, shards, or folders of runs; without names, all runs below runs/. Returns problems and notes.

    A name that several runs have, such as that of a lifecycle, is all of them.

    Raises: UserError (USAGE) for a name that is none of these.
    """
    verifier, started = RunVerifier(), time.monotonic()
    for name in names or [RUNS.as_posix()]:
        if not any(_verify_folder(verifier, path) for path in folders(name)) and names:
            same = matching(name)
            for run in same if len(same) > 1 else [find_run(name)[0].folder]:
                verifier.run(read_record(run))
    if not (names or verifier.runs):
        verifier.problems[RUNS, "there are no runs to verify"] = None
    return {
        "schema_version": 1,
        "stage": "runs verify",
        "runs": verifier.runs,
        "checkpoints": verifier.checkpoints,
        "files": verifier.files,
        "bytes": verifier.bytes,
        "seconds": round(time.monotonic() - started, 3),
        "problems": [{"path": relative_to_cwd(path).as_posix(), "what": what} for path, what in verifier.problems],
        "notes": [{"path": relative_to_cwd(path).as_posix(), "what": what} for path, what in verifier.notes],
    }


def _verify_folder(verifier: RunVerifier, path: Path) -> bool:
    """Verify a run, a checkpoint of a run or on its own, token shards, or a folder of runs. False if it is none of these."""
    has_manifest = (path / checkpoint.MANIFEST).is_file()
    if is_run(path):
        verifier.run(read_record(path))
    elif has_manifest and not is_model(path) and "train" in read_json(path / checkpoint.MANIFEST)[0]:
        verifier.shards(path)
    elif is_model(path) or has_manifest:
        run = path.resolve().parent.parent
        verifier.checkpoint(path, read_record(run) if is_run(run) else None)
    elif (path / "shards" / checkpoint.MANIFEST).is_file():
        verifier.shards(path / "shards")
    else:
        inside = list(runs_below(path))
        for run in inside:
            verifier.run(read_record(run))
        return bool(inside)
    return True
