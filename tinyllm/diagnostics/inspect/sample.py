"""One pass over the records of a stage: their hashes, by which duplicates are counted, and a uniform sample of them."""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field

import numpy as np

from tinyllm.data import splits, validation
from tinyllm.data.records.types import Document, Record, UnpairedPreference, messages_of, prompt_of
from tinyllm.data.splits import BY_HASH, TRAIN, VAL
from tinyllm.data.tokens.documents import split_threshold
from tinyllm.data.tokens.preparation import document_hashes
from tinyllm.data.validation import Finding

SAMPLE = 20_000  # largest number of records to tokenize
SAMPLE_CHARACTERS = 64_000_000  # largest size of the sample


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
    val: np.ndarray = field(init=False)  # (N,) bool
    kept: np.ndarray = field(init=False)  # (N,) bool: all but the documents that preparation removes
    label_findings: list[Finding] = field(default_factory=list)
    keys: np.ndarray = field(init=False)  # (N,) uint64, of whole records
    prompt_keys: np.ndarray = field(init=False)  # (N,) uint64

    def add(self, side: str, record: Record) -> None:
        """Add a record of `side` TRAIN, VAL, or BY_HASH for one that `settle` will assign."""
        messages = messages_of(record)
        number = len(self.side)
        if isinstance(record, Document):  # as preparation hashes them: spaces at the ends count
            opening, key = document_hashes(record.text)
        else:
            opening, key = splits.text_hash(splits.opening_of(record)), splits.text_hash(messages)
        self.side.append((TRAIN, VAL, BY_HASH).index(side))
        self.whole.append(key)
        self.prompts.append(splits.text_hash(prompt_of(record)))
        if side == BY_HASH:
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

    def settle(self, val_fraction: float) -> tuple[bool, tuple[int, int]]:
        """Assign records that have no split. Return whether this was done by record instead of by prompt, and (held out, all)."""
        found = np.frombuffer(self.side, np.uint8)
        self.prompt_keys, self.keys = (np.array(kept, np.uint64) for kept in (self.prompts, self.whole))
        open_ = found == 2
        openings = np.array(self.openings, np.uint64)
        labels = np.frombuffer(self.labels, bool) if self.labels else None
        held, by_record = splits.split_by_hash(openings, lambda: self.keys[open_], val_fraction, labels)
        self.label_findings = [] if labels is None else validation.check_split_labels(labels, held)
        self.val = found == 1
        self.val[open_] = held
        self.kept = np.ones(len(found), bool)
        return by_record, (int(held.sum()), len(held))

    def settle_documents(self, val_fraction: float, *, exact: bool) -> None:
        """Assign documents as their preparation does. Of those with equal texts it keeps the first if `exact`, validation ones first."""
        side = np.frombuffer(self.side, np.uint8)
        self.prompt_keys, self.keys = (np.array(kept, np.uint64) for kept in (self.prompts, self.whole))
        self.val, self.kept = side == 1, np.ones(len(side), bool)
        if exact:
            order = np.argsort(~self.val, kind="stable")
            self.kept[:] = False
            self.kept[order[np.unique(self.keys[order], return_index=True)[1]]] = True
        hashes, open_ = np.array(self.openings, np.uint64), side == 2
        if len(hashes):
            threshold = split_threshold(int(hashes.min()), int(hashes.max()), val_fraction)
            self.val[open_] = hashes < threshold

    def records(self, val: bool) -> list[Record]:
        """Return the sampled records of one split, in the order of the data."""
        return [
            record
            for _, number, record in sorted(self.sample, key=lambda s: -s[1])
            if self.val[-number] == val and self.kept[-number]
        ]

    def repeated(self) -> dict[str, int]:
        """Count duplicates within each split, validation records also in train, and validation records whose prompt is also in train."""
        train, val = self.keys[~self.val], self.keys[self.val]
        prompts = self.prompt_keys[self.val], self.prompt_keys[~self.val]
        return {
            "train": len(train) - len(np.unique(train)),
            "val": len(val) - len(np.unique(val)),
            "val_in_train": int(np.isin(val, train, kind="sort").sum()),
            "prompts_in_both": int(np.isin(*prompts, kind="sort").sum()),
        }


def size(record: Record) -> int:
    """Return the number of characters of a record."""
    return sum(len(message["content"]) for message in messages_of(record))
