"""The split of a stage's records into train, val and test. No torch.

Val selects: `ckpt_best`, and every early decision. Test examines: nothing is chosen by it. Without `data.val`, files are split by
prompt: all answers to one prompt, and all conversations with the same opening, are in one split, so that no prompt that is trained on
is held out, and none that selects is examined. The splits are decided by a hash of the opening, so adding records does not move others.
Only a few records of small data are moved, to leave no split empty or, of labeled answers, without a label.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tinyllm.console import say
from tinyllm.data import validation, world
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.record_source import (
    BY_HASH,
    HELD_OUT,
    SPLITS,
    TEST,
    TRAIN,
    VAL,
    RecordSource,
    share_for_test,
)
from tinyllm.data.records.types import Messages, Record, messages_of, opening_of, prompt_of, with_system

_HASHES = 1 << 64
_LOW = 1 << 32  # the bits that divide val and test; the highest ones decide what is held out


class Split(NamedTuple):
    """The records of a stage, and entries of run.json: `sources`; `facts`, the counts and hashes of each split."""

    train: list[Any]
    val: list[Any]
    test: list[Any]
    sources: list[dict[str, Any]]
    facts: dict[str, dict[str, Any]]

    def records(self) -> dict[str, list[Any]]:
        """Return the records by the name of their split."""
        return {TRAIN: self.train, VAL: self.val, TEST: self.test}


class Division(NamedTuple):
    """Of N records, as bool (N,): which are held out, and which of these are for test.

    `by_record`: the hashes of whole records were used, as all have the same opening.
    """

    held: np.ndarray
    by_record: bool
    test: np.ndarray


def text_hash(messages: Messages) -> int:
    """Return a number below 2^64 that is the same for equal messages, in every process and version."""
    return _hash("\0".join([f"{message['role']}\0{message['content'].strip()}" for message in messages]))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def _shared_prompts(held: Sequence[Record], others: Sequence[Record]) -> int:
    """Return the number of held-out records whose prompt is one of the others'."""
    return int(np.isin(text_hashes(held, prompt_of), text_hashes(others, prompt_of), kind="sort").sum())


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


def for_test(hashes: np.ndarray, fraction: float, labels: np.ndarray | None = None) -> np.ndarray:
    """Return (N,) bool: which of the held-out records are for test, by other bits of the hashes that held them out.

    Two different hashes are enough for one in each; a single one is for val. Of labeled answers both parts are to have all labels that
    there are; where that is impossible, there is no test split.
    """
    none = np.zeros(len(hashes), bool)
    if not fraction or not len(hashes):
        return none
    low = hashes % np.uint64(_LOW)
    test = low < min(max(math.ceil(fraction * _LOW), int(low.min()) + 1), int(low.max()))
    if labels is None:
        return test
    test = keep_both_labels(test, hashes, labels)
    return test if all(set(labels[test == side]) == set(labels) for side in (True, False)) else none


def split_by_hash(
    openings: np.ndarray,
    whole: Callable[[], np.ndarray],
    fraction: float,
    labels: np.ndarray | None = None,
    *,
    test: float = 0.0,
) -> Division:
    """Divide records by the hashes of their openings, or of `whole` records where all have the same opening.

    Args:
        labels: (N,) bool, of labeled answers: all splits are to have both.
        test: the share of the held-out records that is for test.
    """
    by_record = len(openings) > 1 and bool((openings == openings[0]).all())
    hashes = whole() if by_record else openings
    held = held_out(hashes, fraction)
    held = held if labels is None else keep_both_labels(held, hashes, labels)
    examined = np.zeros(len(held), bool)
    examined[held] = for_test(hashes[held], test, None if labels is None else labels[held])
    return Division(held, by_record, examined)


def check_disjoint(keys: Mapping[str, Iterable[int]]) -> dict[str, dict[str, Any]]:
    """Return of each split the number of its keys, and one sha256 over them (sorted, 8 bytes each, big-endian).

    Args:
        keys: of each split the hashes of what may be in it alone: openings, questions of the bundled world, whole documents.

    Raises: RuntimeError if a key is in two splits, which would be a fault of this program.
    """
    found = {split: np.unique(np.fromiter(hashes, np.uint64)) for split, hashes in keys.items()}
    names = list(found)
    for number, one in enumerate(names):
        for other in names[number + 1 :]:
            if common := len(np.intersect1d(found[one], found[other], assume_unique=True)):
                raise RuntimeError(f"{common:,} of {len(found[other]):,} keys of {other} are in {one} as well")
    return {
        split: {"keys": len(hashes), "sha256": hashlib.sha256(hashes.astype(">u8").tobytes()).hexdigest()}
        for split, hashes in found.items()
    }


class _Keys:
    """The hashes of each split that `check_disjoint` compares."""

    def __init__(self) -> None:
        self.ours: dict[str, list[int]] = {split: [] for split in SPLITS}  # divided by this program
        self.named: dict[str, list[int]] = {split: [] for split in SPLITS}  # by the user's choice of files

    def facts(self) -> dict[str, dict[str, Any]]:
        """Return the entries of run.json. Raises: RuntimeError if a key divided by this program is in two splits."""
        check_disjoint(self.ours)
        return {split: check_disjoint({split: self.ours[split] + self.named[split]})[split] for split in SPLITS}


def read_split(data: DataConfig, kind: str, seed: int, *, system: str = "", **world_options: Any) -> Split:
    """Return the records of the three splits, and the entries of run.json.

    Held-out records come from `data.val`. If it is empty, the world provides its own, and of files every record is held out whose
    opening hashes below `data.val_fraction` (at least one record). Test records come from `data.test`. If it is empty, the world provides
    its own, and `data.test_fraction` of the held-out records of files are for test.

    Args:
        system: a system prompt for conversations without one. It does not change which split a record is in.

    Raises: UserError for unreadable data and for no records to train on or to select by (USAGE); RuntimeError as `check_disjoint`.
    """
    source = RecordSource(data, kind, seed, **world_options)
    records: dict[str, list[Any]] = {split: [] for split in (*SPLITS, BY_HASH, HELD_OUT)}
    keys = _Keys()
    for split, record in source.of_world():
        records[split].append(record)
        keys.ours[split] += map(_hash, world.questions(messages_of(record)))
    for split, record in source.of_files():
        records[split].append(record)
        if split in SPLITS:
            keys.named[split].append(text_hash(opening_of(record)))
    for line in source.lines():
        say(line)
    division, labels = _divide(records, keys, data, kind)
    facts = {split: {"records": len(records[split])} | found for split, found in keys.facts().items()}
    found = Split(records[TRAIN], records[VAL], records[TEST], source.provenance(), facts)
    validation.report_findings(_findings(found, division, labels, data, source))
    if not system.strip():
        return found
    given = [[with_system(record, system) for record in records] for records in found[:3]]
    return found._replace(train=given[0], val=given[1], test=given[2])


def _divide(
    records: dict[str, list[Any]], keys: _Keys, data: DataConfig, kind: str
) -> tuple[Division, np.ndarray | None]:
    """Move the records that are not decided yet into the splits. Returns the division of those from data.train, and their labels."""
    undecided, held = records[BY_HASH], records[HELD_OUT]
    labels = np.array([record.good for record in undecided], bool) if kind == "unpaired" else None
    openings = text_hashes(undecided, opening_of)
    share = share_for_test(data)
    division = split_by_hash(
        openings, lambda: text_hashes(undecided, messages_of), data.val_fraction, labels, test=share
    )
    of_held = text_hashes(held, opening_of)
    good = np.array([record.good for record in held], bool) if kind == "unpaired" else None
    parts = [(held, of_held, np.where(for_test(of_held, share, good), TEST, VAL))]
    names = np.where(division.test, TEST, np.where(division.held, VAL, TRAIN))
    parts.append((undecided, text_hashes(undecided, messages_of) if division.by_record else openings, names))
    for found, hashes, splits in parts:
        for record, key, split in zip(found, hashes.tolist(), splits.tolist(), strict=True):
            records[split].append(record)
            keys.ours[split].append(key)
    return division, labels


def _findings(
    found: Split, division: Division, labels: np.ndarray | None, data: DataConfig, source: RecordSource
) -> list[validation.Finding]:
    train, val, test = found[:3]
    mixed = any(map(is_world, data.train))
    disjoint = not source.readers or not (data.val or division.by_record or mixed)  # by construction
    shared = 0 if disjoint else _shared_prompts(val, train)
    counts = (int(division.held.sum()), len(division.held))
    findings = validation.check_splits(
        len(train), len(val), shared, data=data, split=counts, by_record=division.by_record
    )
    findings += [] if labels is None else validation.check_split_labels(labels, division.held)
    if data.test:
        findings += validation.check_test(
            len(test), _shared_prompts(test, train), _shared_prompts(test, val), data=data
        )
    return findings
