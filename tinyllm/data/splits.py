"""The records of a stage, from files and from the bundled world, and their split into training and held-out ones. No torch.

Without `data.val`, files are split by prompt: all answers to one prompt, and all conversations with the same opening, are in one
split, so that validation never sees a prompt that is trained on. The split is decided by a hash of the opening, so adding records
does not move others. Only a few records of small data are moved, to leave no split empty or, of labeled answers, without a label.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tinyllm.console import say
from tinyllm.data import validation, world
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.records.reader import Reader, configured_reader
from tinyllm.data.records.types import (
    Conversation,
    Document,
    Messages,
    Pair,
    Prompt,
    Record,
    UnpairedPreference,
    messages_of,
    opening_of,
    prompt_of,
)
from tinyllm.data.sources.paths import expand
from tinyllm.errors import UserError, escape_unprintable

WORLD_VAL = 256  # held-out records of the world
WORLD_VAL_DOCUMENTS = 500
TRAIN, VAL, BY_HASH = "train", "val", "by hash"  # the split of a record, or how it is decided
_HASHES = 1 << 64


class RecordSource:
    """An iterable of (split, record) over everything a stage reads, in a fixed order. May be iterated again.

    Args:
        options: arguments of the bundled world's functions. The faults `wrong` and `flawed` are not used for held-out records.
        on_bad_line: overrides `data.on_bad_line`.
    """

    def __init__(self, data: DataConfig, kind: str, seed: int, *, on_bad_line: str = "", **options: Any):
        self.data, self.kind, self.seed, self.options = data, kind, seed, options
        self.on_bad_line = on_bad_line or data.on_bad_line
        self.readers: list[Reader] = []

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        self.readers = []
        of_files = BY_HASH if not self.data.val else TRAIN
        of_world = of_files if self.kind == "documents" and not self._all_world() else TRAIN
        for split, sources in ((of_world, self.data.train), (VAL, (*self.data.val, *self._implied_val()))):
            for source in filter(is_world, sources):
                yield from ((split, record) for record in self._from_world(source, TRAIN if split != VAL else VAL))
        for split, sources in ((of_files, self.data.train), (VAL, self.data.val)):
            yield from ((split, record) for record in self._from_files([s for s in sources if not is_world(s)]))

    @property
    def size(self) -> int:
        """Bytes of all files as stored on disk; 0 if unknown, as for standard input."""
        sources = [source for source in (*self.data.train, *self.data.val) if not is_world(source)]
        return 0 if "-" in sources or not sources else sum(p.stat().st_size for p in expand(sources))

    @property
    def bytes_read(self) -> int:
        """Bytes of the files read so far."""
        return sum(reader.bytes_read for reader in self.readers)

    def _all_world(self) -> bool:
        return all(map(is_world, self.data.train))

    def _implied_val(self) -> tuple[str, ...]:
        """Return the world's held-out records where no validation data are given."""
        if self.data.val or not any(map(is_world, self.data.train)):
            return ()
        if self.kind == "documents":
            return (f"world:{WORLD_VAL_DOCUMENTS}",) if self._all_world() else ()
        return (f"world:{WORLD_VAL}",)

    def _from_files(self, sources: Sequence[str]) -> Iterator[Record]:
        if sources:
            reader = configured_reader(sources, self.kind, self.data, on_bad_line=self.on_bad_line)
            self.readers.append(reader)
            yield from reader

    def _from_world(self, source: str, split: str) -> Iterator[Record]:
        _, _, number = source.partition(":")
        if not number.isdecimal() or not int(number):
            what = f"{source!r} does not specify a number of records"
            raise UserError(what, where="data", fix="write for example world:20000")
        implied = split == VAL and not self.data.val
        options = {k: v for k, v in self.options.items() if not (implied and k in ("wrong", "flawed"))}
        found = _WORLD[self.kind](int(number), seed=self.seed, split=split, **options)
        if self.kind != "prompts":
            return found
        return (replace(p, place=f"{source}[{i}]") for i, p in enumerate(found) if isinstance(p, Prompt))

    def lines(self) -> list[str]:
        """Return the readers' reports for a person."""
        return [escape_unprintable(line) for reader in self.readers for line in reader.report.lines()]

    def provenance(self) -> list[dict[str, Any]]:
        """Return the entries of run.json for the sources."""
        of_world = [{"source": source, "seed": self.seed} for source in self.data.train if is_world(source)]
        return of_world + [entry for reader in self.readers for entry in reader.report.sources()]


def _documents(*args: Any, **options: Any) -> Iterator[Record]:
    return (Document(row["text"]) for row in world.documents(*args, **options))


def _conversations(*args: Any, **options: Any) -> Iterator[Record]:
    return (Conversation(tuple(row["messages"])) for row in world.conversations(*args, **options))


def _pairs(*args: Any, **options: Any) -> Iterator[Record]:
    rows = world.pairs(*args, **options)
    return (Pair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"])) for row in rows)


def _unpaired(*args: Any, **options: Any) -> Iterator[Record]:
    for row in world.pairs(*args, **options):
        for side in ("chosen", "rejected"):
            yield UnpairedPreference(tuple(row["prompt"]), tuple(row[side]), side == "chosen")


def _prompts(*args: Any, **options: Any) -> Iterator[Record]:
    for row in world.prompts(*args, **options):
        yield Prompt(tuple(row["prompt"]), {name: value for name, value in row.items() if name != "prompt"})


_WORLD: dict[str, Callable[..., Iterator[Record]]] = {
    "documents": _documents,
    "conversations": _conversations,
    "pairs": _pairs,
    "unpaired": _unpaired,
    "prompts": _prompts,
}


# --- the split -------------------------------------------------------------------------------------------------------------------


def text_hash(messages: Messages) -> int:
    """Return a number below 2^64 that is the same for equal messages, in every process and version."""
    text = "\0".join([f"{message['role']}\0{message['content'].strip()}" for message in messages])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _shared_prompts(val: Sequence[Record], train: Sequence[Record]) -> int:
    """Return the number of validation records whose prompt is one of the training records'."""
    return int(np.isin(text_hashes(val, prompt_of), text_hashes(train, prompt_of), kind="sort").sum())


def text_hashes(records: Sequence[Record], part: Callable[[Record], Messages]) -> np.ndarray:
    """Return the hashes (N,) uint64 of one part of each record."""
    return np.fromiter((text_hash(part(record)) for record in records), np.uint64, len(records))


def held_out(hashes: np.ndarray, fraction: float) -> np.ndarray:
    """Return (N,) bool: the hash is in the lowest `fraction` of the range. Two different hashes are enough for two splits."""
    held = hashes < np.uint64(fraction * _HASHES)
    if held.any() and not held.all():
        return held
    values, counts = np.unique(hashes, return_counts=True)
    if len(values) < 2:
        return np.zeros(len(hashes), bool)
    return hashes != values[counts.argmax()] if held.all() else hashes == values[counts.argmin()]


def keep_both_labels(held: np.ndarray, hashes: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N,) bool: `held` with records moved so that both splits have both labels, where that is possible.

    Records with equal hashes are moved together: into validation those with the lowest hash, into training those with the highest,
    as another fraction would.
    """
    held = held.copy()
    for side, label in ((True, False), (True, True), (False, False), (False, True)):
        if (labels[held == side] == label).any():
            continue
        candidates = np.unique(hashes[(held != side) & (labels == label)])
        for candidate in candidates if side else candidates[::-1]:
            moved = np.where(hashes == candidate, side, held)
            if set(labels[moved != side]) == set(labels[held != side]):  # the other split loses no label
                held = moved
                break
    return held


def split_by_hash(
    openings: np.ndarray, whole: Callable[[], np.ndarray], fraction: float, labels: np.ndarray | None = None
) -> tuple[np.ndarray, bool]:
    """Return (N,) bool, the held-out records by the hashes of their openings; and whether the hashes of `whole` records were used.

    That is so where all records have the same opening.

    Args:
        labels: (N,) bool, of labeled answers: both splits are to have both.
    """
    by_record = len(openings) > 1 and bool((openings == openings[0]).all())
    hashes = whole() if by_record else openings
    held = held_out(hashes, fraction)
    return (held if labels is None else keep_both_labels(held, hashes, labels)), by_record


def read_split(
    data: DataConfig, kind: str, seed: int, **world_options: Any
) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Return the training records, the held-out records, and the entries of run.json for the sources.

    Held-out records come from `data.val`. If it is empty, the world provides its own, and of files every record is held out whose
    opening hashes below `data.val_fraction` (at least one record).
    """
    source = RecordSource(data, kind, seed, **world_options)
    records: dict[str, list[Any]] = {TRAIN: [], VAL: [], BY_HASH: []}
    for split, record in source:
        records[split].append(record)
    for line in source.lines():
        say(line)
    undecided = records[BY_HASH]
    labels = np.array([record.good for record in undecided], bool) if kind == "unpaired" else None
    held, by_record = split_by_hash(
        text_hashes(undecided, opening_of), lambda: text_hashes(undecided, messages_of), data.val_fraction, labels
    )
    train = records[TRAIN] + [r for r, is_val in zip(undecided, held, strict=True) if not is_val]
    val = records[VAL] + [r for r, is_val in zip(undecided, held, strict=True) if is_val]
    disjoint = not source.readers or not (data.val or by_record or records[TRAIN])  # by construction
    shared = 0 if disjoint else _shared_prompts(val, train)
    counts = (int(held.sum()), len(held))
    findings = validation.check_splits(len(train), len(val), shared, data=data, split=counts, by_record=by_record)
    findings += [] if labels is None else validation.check_split_labels(labels, held)
    validation.report_findings(findings)
    return train, val, source.provenance()
