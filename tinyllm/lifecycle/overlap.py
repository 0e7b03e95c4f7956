"""Overlaps of the exam with what trains and selects: hashes of every record, and the numbers of those in common.

Records are compared by what a model could remember of them: a document by its tokens, a pair by its prompt and both answers, a question
by its last user message with everything before it (`questions`) and by that message alone (`last questions`). Of a conversation that
trained or selected, every question counts; of one in the exam, the last. The ancestors of a stage count too: what trained its parent, or
the reward model that it learns from, must not be in its exam either.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm.data.records.types import Conversation, Document, Messages, Pair, Record, prompt_of
from tinyllm.data.splits import text_hash
from tinyllm.errors import UserError

DOCUMENTS, PAIRS, QUESTIONS, LAST = "documents", "pairs", "questions", "last questions"
Keys = dict[str, np.ndarray]  # unit -> (N,) uint64, sorted and distinct


def keys_of(records: Iterable[Record], *, every_turn: bool = True) -> Keys:
    """Return the distinct hashes of records by unit.

    Args:
        every_turn: of a conversation every question, not only the last.
    """
    found: dict[str, list[int]] = {}
    for record in records:
        if isinstance(record, Document):
            found.setdefault(DOCUMENTS, []).append(text_hash(prompt_of(record)))
            continue
        if isinstance(record, Pair):
            both = (*record.prompt, *record.chosen, *record.rejected)
            found.setdefault(PAIRS, []).append(text_hash(both))
        for asked in _asked(record) if every_turn else [prompt_of(record)]:
            found.setdefault(QUESTIONS, []).append(text_hash(asked))
            if last := tuple(message for message in asked if message["role"] == "user"):
                found.setdefault(LAST, []).append(text_hash(last[-1:]))
    return {unit: np.unique(np.array(hashes, np.uint64)) for unit, hashes in found.items()}


def _asked(record: Record) -> list[Messages]:
    """Return the messages before each answer."""
    if not isinstance(record, Conversation):
        return [prompt_of(record)]
    turns = record.messages
    return [turns[:i] for i, message in enumerate(turns) if message["role"] == "assistant"]


def keys_of_tokens(documents: Iterable[np.ndarray]) -> Keys:
    """Return the distinct hashes of tokenized documents; equal texts have equal tokens."""
    hashes = [
        int.from_bytes(hashlib.sha256(np.asarray(tokens, "<u4").tobytes()).digest()[:8], "big") for tokens in documents
    ]
    return {DOCUMENTS: np.unique(np.array(hashes, np.uint64))} if hashes else {}


def merged(*many: Keys) -> Keys:
    """Return the keys of several sets of records together."""
    units = dict.fromkeys(unit for keys in many for unit in keys)
    return {unit: np.unique(np.concatenate([keys[unit] for keys in many if unit in keys])) for unit in units}


def in_common(some: Keys, others: Keys) -> dict[str, int]:
    """Return unit -> number of hashes in both, for the units that both have."""
    return {u: int(np.isin(some[u], others[u], assume_unique=True).sum()) for u in some if u in others}


def summary(keys: Keys) -> dict[str, Any]:
    """Return the number of distinct records by unit, and one sha256 of all sorted hashes."""
    digest = hashlib.sha256()
    for unit in sorted(keys):
        digest.update(unit.encode() + b"\0" + keys[unit].astype("<u8").tobytes())
    return {"n": {unit: len(hashes) for unit, hashes in keys.items()}, "sha256": digest.hexdigest()}


@dataclass(frozen=True)
class Uses:
    """Hashes of the records that train a stage, select its checkpoint and examine it."""

    train: Keys
    selection: Keys
    exam: Keys


@dataclass
class Splits:
    """The uses of every stage of a lifecycle.

    Args:
        ancestors: stage -> the stages whose models it starts from or learns from, directly.
        tolerated: units whose overlap is counted and not refused. In the user's conversations the same last message can follow
            different ones ("Tell me more."); such questions are not asked in the exam, but the test loss includes them.
    """

    ancestors: Mapping[str, Sequence[str]]
    tolerated: Sequence[str] = ()
    uses: dict[str, Uses] = field(default_factory=dict)

    def rows(self, stage: str) -> dict[str, Any]:
        """Return the row of a stage in the scorecard: counts, hashes, and the overlaps with its exam, ancestors included."""
        own, before = self.uses[stage], [self.uses[name] for name in self._lineage(stage)]
        train = in_common(own.exam, merged(own.train, *(uses.train for uses in before)))
        selection = in_common(own.exam, merged(own.selection, *(uses.selection for uses in before)))
        return {
            "train": summary(own.train),
            "selection": summary(own.selection),
            "exam": summary(own.exam),
            "overlap": {"train/exam": train, "selection/exam": selection},
        }

    def _lineage(self, stage: str) -> list[str]:
        found: list[str] = []
        for name in self.ancestors.get(stage, ()):
            if name in self.uses and name not in found:
                found += [name, *(n for n in self._lineage(name) if n not in found)]
        return found

    def check(self, stage: str) -> dict[str, Any]:
        """Return the row of a stage. Raises: UserError (DATA) if its exam has anything in common with what it has seen."""
        row = self.rows(stage)
        for sides, overlap in row["overlap"].items():
            for unit, count in overlap.items():
                if count and unit not in self.tolerated:
                    asked, use = len(self.uses[stage].exam[unit]), sides.partition("/")[0]
                    verb = "trained" if use == "train" else "selected the checkpoint of"
                    raise UserError(
                        f"{count:,} of the {asked:,} {unit} of the exam also {verb} {stage} or a model it started from",
                        where="lifecycle",
                        fix="give data.test records that are in no other file, or remove it to have them split off",
                    )
        return row
