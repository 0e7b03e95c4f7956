"""One pass over the records of a stage: their hashes, by which duplicates are counted, and a uniform sample of them."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field

import numpy as np

from tinyllm.data import splits, validation
from tinyllm.data.record_source import BY_HASH, HELD_OUT, SPLITS
from tinyllm.data.records.types import Document, Record, UnpairedPreference, messages_of, prompt_of
from tinyllm.data.tokens.documents import split_threshold
from tinyllm.data.tokens.preparation import document_hashes
from tinyllm.data.validation import Finding

SAMPLE = 20_000  # largest number of records to tokenize
SAMPLE_CHARACTERS = 64_000_000  # largest size of the sample
_SIDES = (*SPLITS, BY_HASH, HELD_OUT)
_TRAIN, _VAL, _TEST = range(3)


@dataclass
class Survey:
    """Hashes of all records, and a sample of the records."""

    max_records: int = SAMPLE
    max_characters: int = SAMPLE_CHARACTERS
    side: bytearray = field(default_factory=bytearray)
    openings: array = field(default_factory=lambda: array("Q"))  # of records without a split
    labels: bytearray = field(default_factory=bytearray)  # of labeled answers without a split
    prompts: array = field(default_factory=lambda: array("Q"))
    whole: array = field(default_factory=lambda: array("Q"))
    sample: list[tuple[int, int, Record]] = field(default_factory=list)  # heap of (-key, -number, record)
    characters: int = 0  # of the sample
    split: np.ndarray = field(init=False)  # (N,) uint8: an index of SPLITS
    kept: np.ndarray = field(init=False)  # (N,) bool: all but the documents that preparation removes
    label_findings: list[Finding] = field(default_factory=list)
    keys: np.ndarray = field(init=False)  # (N,) uint64, of whole records
    prompt_keys: np.ndarray = field(init=False)  # (N,) uint64

    def add(self, side: str, record: Record) -> None:
        """Add a record of `side` TRAIN, VAL or TEST, or BY_HASH or HELD_OUT for one that `settle` will assign."""
        messages = messages_of(record)
        number = len(self.side)
        if isinstance(record, Document):  # as preparation hashes them: spaces at the ends count
            opening, key = document_hashes(record.text)
        else:
            opening, key = splits.text_hash(splits.opening_of(record)), splits.text_hash(messages)
        self.side.append(_SIDES.index(side))
        self.whole.append(key)
        self.prompts.append(splits.text_hash(prompt_of(record)))
        if side not in SPLITS:
            self.openings.append(opening)
            if isinstance(record, UnpairedPreference):
                self.labels.append(record.good)
        if len(self.sample) >= self.max_records and -key < self.sample[0][0]:
            return
        heapq.heappush(self.sample, (-key, -number, record))
        self.characters += size(record)
        while len(self.sample) > 1 and (len(self.sample) > self.max_records or self.characters > self.max_characters):
            self.characters -= size(heapq.heappop(self.sample)[2])
            self.max_records = min(self.max_records, max(1, len(self.sample)))

    def settle(self, val_fraction: float, test: float) -> tuple[bool, tuple[int, int]]:
        """Assign records that have no split. Return whether this was done by record instead of by prompt, and (held out, all).

        Args: test: the share of the held-out records that is for test.
        """
        side = self._sides()
        self.kept = np.ones(len(side), bool)
        undecided, openings = side >= len(SPLITS), np.array(self.openings, np.uint64)
        labels = np.frombuffer(self.labels, bool) if self.labels else None
        if (side == _SIDES.index(HELD_OUT)).any():
            self.split[undecided] = np.where(splits.for_test(openings, test, labels), _TEST, _VAL)
            return False, (0, 0)
        found = splits.split_by_hash(openings, lambda: self.keys[undecided], val_fraction, labels, test=test)
        self.label_findings = [] if labels is None else validation.check_split_labels(labels, found.held)
        self.split[undecided] = np.where(found.test, _TEST, np.where(found.held, _VAL, _TRAIN))
        return found.by_record, (int(found.held.sum()), len(found.held))

    def settle_documents(self, val_fraction: float, *, exact: bool) -> None:
        """Assign documents as their preparation does, to train and val: test is a part of val, by the tokens.

        Of those with equal texts it keeps the first if `exact`, validation ones first.
        """
        side = self._sides()
        self.split[side == _SIDES.index(HELD_OUT)] = _VAL
        hashes, undecided = np.array(self.openings, np.uint64), side == _SIDES.index(BY_HASH)
        if undecided.any():
            threshold = split_threshold(int(hashes.min()), int(hashes.max()), val_fraction)
            self.split[undecided] = hashes < threshold
        self.kept = np.ones(len(side), bool)
        if exact:
            order = np.argsort(self.split != _VAL, kind="stable")
            order = order[self.split[order] != _TEST]  # documents of data.test are not prepared
            self.kept[order] = False
            self.kept[order[np.unique(self.keys[order], return_index=True)[1]]] = True

    def _sides(self) -> np.ndarray:
        side = np.frombuffer(self.side, np.uint8)
        self.prompt_keys, self.keys = (np.array(kept, np.uint64) for kept in (self.prompts, self.whole))
        self.split = side.copy()
        return side

    def count(self, split: str) -> int:
        """Return the number of records of a split that are kept."""
        return int((self.kept & (self.split == SPLITS.index(split))).sum())

    def records(self, split: str) -> list[Record]:
        """Return the sampled records of one split, in the order of the data."""
        return [
            record
            for _, number, record in sorted(self.sample, key=lambda s: -s[1])
            if self.split[-number] == SPLITS.index(split) and self.kept[-number]
        ]

    def repeated(self) -> dict[str, int]:
        """Count duplicates within each split, held-out records also in train, and held-out records whose prompt is in another split."""
        of_split = [self.split == number for number in range(len(SPLITS))]
        train, val, test = (self.keys[chosen] for chosen in of_split)
        prompts, val_prompts, test_prompts = (self.prompt_keys[chosen] for chosen in of_split)
        return {
            "train": len(train) - len(np.unique(train)),
            "val": len(val) - len(np.unique(val)),
            "test": len(test) - len(np.unique(test)),
            "val_in_train": _shared(val, train),
            "test_in_train": _shared(test, train),
            "test_in_val": _shared(test, val),
            "prompts_in_both": _shared(val_prompts, prompts),
            "test_prompts_in_train": _shared(test_prompts, prompts),
            "test_prompts_in_val": _shared(test_prompts, val_prompts),
        }


def _shared(some: np.ndarray, others: np.ndarray) -> int:
    return int(np.isin(some, others, kind="sort").sum())


def size(record: Record) -> int:
    """Return the number of characters of a record."""
    return sum(len(message["content"]) for message in messages_of(record))
