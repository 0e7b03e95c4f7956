"""`tinyllm runs verify`: whether what a run left behind is still what was written, and still fits together.

Every byte of every checkpoint and shard is read. A problem is something that is there and is not what it should be, or is missing where
it is needed; what is merely gone (a parent that was removed to save space) is a note. Left out: mending; whether the weights are good.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tinyllm.errors import UserError
from tinyllm.model.described import ADAPTER, base_folder
from tinyllm.stages.parents import RUNS
from tinyllm.stages.runs.files import Fault, is_model, links_out, metrics, note, text_hash, unlisted, weights_sha256
from tinyllm.stages.runs.find import below, chosen, located, shortened
from tinyllm.stages.runs.lineage import CHANGED, GONE, MOVED, UNRECORDED, Archive, fingerprint
from tinyllm.stages.runs.read import Record, is_run, read, read_json, size_of, steps_in
from tinyllm.stages.symptoms.log import CONFIG, FACTS, METRICS
from tinyllm.train import checkpoint
from tinyllm.train.run import COMPLETED, FAST_DEV_RUN

_OTHER = "it is not what {} was trained from (sha256 differs)"


@dataclass
class Check:
    """What has been looked at, and what was found. Nothing is read twice: parents, bases and shards are shared by many runs."""

    problems: dict[Fault, None] = field(default_factory=dict)  # in the order they were found, each once
    notes: dict[Fault, None] = field(default_factory=dict)
    runs: int = 0
    checkpoints: int = 0
    bytes: int = 0
    _sound: dict[Path, bool] = field(default_factory=dict)
    _fingerprints: dict[Path, str | None] = field(default_factory=dict)
    _vocabularies: dict[tuple[str, str], str | Fault] = field(default_factory=dict)
    _archives: dict[Path, Archive] = field(default_factory=dict)

    # --- a run ---

    def run(self, record: Record) -> None:
        self.runs += 1
        folder = record.folder
        for fault in record.faults:
            name = CONFIG if fault.startswith(CONFIG) else FACTS
            self._broken(folder / name, fault.removeprefix(name).lstrip(": "))
        recorded = record.fact("config_sha256", str)
        if recorded and record.config and text_hash(folder / CONFIG) != recorded:
            self._broken(folder / CONFIG, "it is not the configuration that the run began with (sha256 differs)")
        self.problems |= dict.fromkeys(metrics(folder / METRICS, finished=record.status == COMPLETED))
        for path in steps_in(record.checkpoints):
            self.checkpoint(path, record)
        self._links(record)
        for role in ("parent", "reward_model"):
            if recorded := record.fact(role, dict):
                self._parent(record, role.replace("_", " "), recorded)
        for source in record.fact("data", list, []):
            if isinstance(source, dict) and isinstance(source.get("shards"), str):
                self._shards_of(record, source)

    def _links(self, record: Record) -> None:
        folder = record.checkpoints
        for name in (checkpoint.LATEST, checkpoint.BEST):
            link = folder / name
            if link.is_symlink():
                target = os.readlink(link)
                if folder / target not in steps_in(folder) and os.readlink(link) == target:  # a run under way moves it
                    self._broken(link, f"it leads to {target}, which is no checkpoint of this run")
            elif link.is_dir():
                self.checkpoint(link, record)  # a copy, where links cannot be made
            elif steps_in(folder) and record.owner is None:
                self._broken(link, "it is missing")
        for path in sorted(folder.glob("damaged-*")) if folder.is_dir() else ():
            self._note(path, "set aside earlier as damaged")

    def _parent(self, record: Record, kind: str, recorded: dict[str, Any]) -> None:
        link = self._archive(record).follow(recorded, record.folder)
        path = link.place or Path(str(recorded.get("checkpoint")))
        # a rehearsal takes the place of the one before it, whatever was rehearsed from that
        rehearsal = FAST_DEV_RUN in record.folder.name
        if link.status == CHANGED and not rehearsal:
            self._broken(path, _OTHER.format(record.name))
        elif link.status in (CHANGED, GONE, MOVED, UNRECORDED):
            words = {
                CHANGED: "has been rehearsed again since",
                GONE: "is gone",
                MOVED: f"has moved to {link.path}",
                UNRECORDED: "came without a manifest: nothing to compare it with",
            }
            self._note(path, f"the {kind} of {record.name} {words[link.status]}")

    def _shards_of(self, record: Record, source: dict[str, Any]) -> None:
        places = located(source["shards"], record.folder)
        if not places:
            self._note(Path(source["shards"]), f"the data of {record.name} are gone")
            return
        fingerprint = self.shards(places[0])
        if fingerprint and source.get("fingerprint") and fingerprint != source["fingerprint"]:
            self._broken(places[0], f"these are not the data that {record.name} was trained on (fingerprint differs)")

    # --- a checkpoint ---

    def checkpoint(self, folder: Path, record: Record | None = None) -> None:
        """A checkpoint directory, of a run or on its own; without a manifest only what its files say of themselves."""
        before = dict(self.problems)
        try:
            if self._whole(folder):
                self._tokenizer(folder, record)
                if (folder / ADAPTER).is_file():
                    self._base(folder, record)
        except OSError as error:
            self._broken(folder, f"it cannot be read: {error.strerror}")
        if folder.is_dir():
            self.checkpoints += 1
        else:  # a run under way has cleared it while we looked
            self.problems = before

    def _whole(self, folder: Path) -> bool:
        """Whether every file is what the manifest says. Said once, however often it is asked."""
        key = folder.resolve()
        if key not in self._sound:
            # what has none comes from elsewhere; our own checkpoints are never without
            ours = folder.parent.name == "checkpoints" or folder in steps_in(folder.parent)
            listed = (folder / checkpoint.MANIFEST).is_file() or ours
            found = list(checkpoint.faults(folder)) if listed else list(links_out(folder)) or list(unlisted(folder))
            self._sound[key] = not found
            self.problems |= dict.fromkeys(found)
            self.bytes += size_of(folder)
            if not listed and is_model(folder):
                self._note(folder, "it has no manifest: nothing says what its files should be")
        return self._sound[key]

    def _tokenizer(self, folder: Path, record: Record | None) -> None:
        recorded = record.fact("tokenizer_sha256", str) if record else None
        if not (folder / "tokenizer.json").is_file():
            if recorded:
                self._broken(folder / "tokenizer.json", "it is missing")
            return
        found = self._vocabulary(folder)
        if isinstance(found, tuple):
            self._broken(*found)
        elif recorded and found != recorded:
            what = f"it is not the tokenizer of this run ({found[:12]}, and run.json says {recorded[:12]})"
            self._broken(folder / "tokenizer.json", what)

    def _vocabulary(self, folder: Path) -> str | Fault:
        """The tokenizer's sha256 as run.json has it, or what is wrong with it. All checkpoints of a life have the same one."""
        files = [folder / name for name in ("tokenizer.json", "tokenizer_config.json")]
        first, second = (checkpoint.sha256(path) if path.is_file() else "" for path in files)
        if (first, second) not in self._vocabularies:
            from tinyllm.text.tokenizer import Tokenizer

            try:
                self._vocabularies[first, second] = Tokenizer.load(folder).sha256
            except UserError as error:
                self._vocabularies[first, second] = (files[0], error.what)
        return self._vocabularies[first, second]

    def _base(self, folder: Path, record: Record | None) -> None:
        """An adapter is nothing without the very weights it was trained on; its file says which, and an older one's parent does."""
        description, broken = read_json(folder / ADAPTER)
        parent = record.fact("parent", dict, {}) if record else {}
        try:
            base = shortened(base_folder(folder, str(description.get("base_model_name_or_path") or "")))
        except UserError as error:
            elsewhere = self._archive(record).find(parent.get("manifest_sha256")) if record else None
            hint = f"; the same files are at {shortened(elsewhere)}" if elsewhere else ""
            self._broken(folder, broken or f"{error.what}{hint}")
            return
        if not self._whole(base):
            return
        name = record.name if record else folder.as_posix()
        weights = note(folder / "adapter_model.safetensors", "base_sha256")
        recorded, now = (
            (weights, weights_sha256(base)) if weights else (parent.get("manifest_sha256"), fingerprint(base))
        )
        if recorded and recorded != now and (weights or parent.get("checkpoint") == base.as_posix()):
            self._broken(base, _OTHER.format(name))

    # --- shards ---

    def shards(self, folder: Path) -> str | None:
        """Their fingerprint, if they are whole."""
        from tinyllm.data.manifest import VERSION
        from tinyllm.data.shards import open_shards

        key, version = folder.resolve(), read_json(folder / checkpoint.MANIFEST)[0].get("version")
        if isinstance(version, int) and version < VERSION:
            self._note(folder, f"shards of version {version}, which this tinyllm does not read: not checked")
            return None
        if key not in self._fingerprints:
            try:
                self._fingerprints[key] = open_shards(folder, verify=True).manifest.fingerprint
            except UserError as error:
                self._fingerprints[key] = None
                self._broken(Path(error.where or folder), error.what)
            self.bytes += size_of(folder)
        return self._fingerprints[key]

    # --- what was found ---

    def _archive(self, record: Record) -> Archive:
        found = Archive(record.folder)
        return self._archives.setdefault(found.root, found)

    def _broken(self, path: Path, what: str) -> None:
        self.problems[path, what] = None

    def _note(self, path: Path, what: str) -> None:
        self.notes[path, what] = None


def verify(given: Sequence[str]) -> dict[str, Any]:
    """Check runs (all below runs/ by default), checkpoint directories or folders of runs. Problems are in the answer, not raised.

    Raises: UserError (USAGE) for a name that stands for nothing.
    """
    check, begun = Check(), time.monotonic()
    for name in given or [RUNS.as_posix()]:
        path = Path(name)
        if not is_run(path) and (is_model(path) or (path / checkpoint.MANIFEST).is_file()):
            _one(check, path)
        elif (path / "shards" / checkpoint.MANIFEST).is_file():
            check.shards(path / "shards")
        elif path.is_dir() and not is_run(path) and (inside := list(below(path))):
            for run in inside:
                check.run(read(run))
        elif given:
            check.run(chosen(name)[0])
    return {
        "schema_version": 1,
        "stage": "runs verify",
        "runs": check.runs,
        "checkpoints": check.checkpoints,
        "bytes": check.bytes,
        "seconds": round(time.monotonic() - begun, 3),
        "problems": [{"path": shortened(path).as_posix(), "what": what} for path, what in check.problems],
        "notes": [{"path": shortened(path).as_posix(), "what": what} for path, what in check.notes],
    }


def _one(check: Check, path: Path) -> None:
    """A directory that is a checkpoint of a run, one on its own, or shards."""
    if not is_model(path) and "train" in read_json(path / checkpoint.MANIFEST)[0]:
        check.shards(path)
        return
    run = path.resolve().parent.parent
    check.checkpoint(path, read(run) if is_run(run) else None)
