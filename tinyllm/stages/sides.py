"""The records of a stage, from files and from the bundled world, and which of them are held out. No torch.

Files without `data.val` are split by prompt, so that what is validated with was never practised: all answers to one prompt, and all
conversations that open alike, are on one side. The side is a hash of the opening, so new records move no old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from tinyllm.data import records, world
from tinyllm.data.files import expand
from tinyllm.data.records import Conversation, Document, Judgement, Pair, Prompt, Reader, Record
from tinyllm.data.turns import Messages
from tinyllm.errors import UserError, harmless
from tinyllm.stages import preflight
from tinyllm.stages.config import DataConfig, is_world
from tinyllm.train.progress import say

WORLD_VAL = 256  # held-out records of the world that a stage looks at
WORLD_VAL_DOCUMENTS = 500
TRAIN, VAL, SPLIT = "train", "val", "split"  # sides; of SPLIT a hash decides
_KEYS = 1 << 64


class Records:
    """(side, record) of everything a stage reads, one at a time, in a fixed order. May be iterated again.

    Args:
        options: for the bundled world; a demonstrator's faults are left out of what it holds out.
        on_bad_line: instead of `data.on_bad_line`.
    """

    def __init__(self, data: DataConfig, kind: str, seed: int, *, on_bad_line: str = "", **options: Any):
        self.data, self.kind, self.seed, self.options = data, kind, seed, options
        self.on_bad_line = on_bad_line or data.on_bad_line
        self.readers: list[Reader] = []

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        self.readers = []
        files = SPLIT if not self.data.val else TRAIN
        worlds = files if self.kind == "documents" and not self._all_world() else TRAIN
        for side, sources in ((worlds, self.data.train), (VAL, (*self.data.val, *self._implied()))):
            for source in filter(is_world, sources):
                yield from ((side, record) for record in self._from_world(source, TRAIN if side != VAL else VAL))
        for side, sources in ((files, self.data.train), (VAL, self.data.val)):
            yield from ((side, record) for record in self._from_files([s for s in sources if not is_world(s)]))

    @property
    def size(self) -> int:
        """Bytes of all files as they are stored; 0 where nobody knows, with standard input."""
        sources = [source for source in (*self.data.train, *self.data.val) if not is_world(source)]
        return 0 if "-" in sources or not sources else sum(p.stat().st_size for p in expand(sources))

    @property
    def read(self) -> int:
        """Bytes of them read so far."""
        return sum(reader.read for reader in self.readers)

    def _all_world(self) -> bool:
        return all(map(is_world, self.data.train))

    def _implied(self) -> tuple[str, ...]:
        """What the world holds out, where nothing else was named."""
        if self.data.val or not any(map(is_world, self.data.train)):
            return ()
        if self.kind == "documents":
            return (f"world:{WORLD_VAL_DOCUMENTS}",) if self._all_world() else ()
        return (f"world:{WORLD_VAL}",)

    def _from_files(self, sources: Sequence[str]) -> Iterator[Record]:
        if sources:
            data = self.data
            reader = records.read(
                sources,
                self.kind,
                format=data.format,
                field=data.field,
                on_bad_line=self.on_bad_line,
                encoding=data.encoding,
            )
            self.readers.append(reader)
            yield from reader

    def _from_world(self, source: str, split: str) -> Iterator[Record]:
        _, _, number = source.partition(":")
        if not number.isdecimal() or not int(number):
            raise UserError(
                f"{source!r} does not say how many records", where="data", fix="write for example world:20000"
            )
        held = split == VAL and not self.data.val
        options = {k: v for k, v in self.options.items() if not (held and k in ("wrong", "flawed"))}
        return _WORLD[self.kind](int(number), seed=self.seed, split=split, **options)

    def lines(self) -> list[str]:
        """What was read from files, for people."""
        return [harmless(line) for reader in self.readers for line in reader.report.lines()]

    def facts(self) -> list[dict[str, Any]]:
        """What run.json says about the sources."""
        of_world = [{"source": source, "seed": self.seed} for source in self.data.train if is_world(source)]
        return of_world + [fact for reader in self.readers for fact in reader.report.sources()]


def _judged(rows: Iterator[dict[str, Any]]) -> Iterator[Record]:
    for row in rows:
        yield from (Judgement(tuple(row["prompt"]), tuple(row[s]), s == "chosen") for s in ("chosen", "rejected"))


_WORLD = {
    "documents": lambda *a, **k: (Document(row["text"]) for row in world.documents(*a, **k)),
    "conversations": lambda *a, **k: (Conversation(tuple(row["messages"])) for row in world.conversations(*a, **k)),
    "pairs": lambda *a, **k: (
        Pair(tuple(row["prompt"]), tuple(row["chosen"]), tuple(row["rejected"])) for row in world.pairs(*a, **k)
    ),
    "judgements": lambda *a, **k: _judged(world.pairs(*a, **k)),
    "prompts": lambda *a, **k: (
        Prompt(tuple(row["prompt"]), {name: v for name, v in row.items() if name != "prompt"})
        for row in world.prompts(*a, **k)
    ),
}


# --- which side ------------------------------------------------------------------------------------------------------------------


def prompt_of(record: Record) -> Messages:
    """What is asked: all that comes before the (last) answer."""
    if isinstance(record, Document):
        return ({"role": "user", "content": record.text},)
    if isinstance(record, Conversation):
        return record.messages[:-1]
    return record.messages if isinstance(record, Prompt) else record.prompt


def opening_of(record: Record) -> Messages:
    """What decides the side. Of a conversation all that comes before its first answer: two that share what leads up to any of their
    answers share that."""
    if not isinstance(record, Conversation):
        return prompt_of(record)
    first = next(i for i, message in enumerate(record.messages) if message["role"] == "assistant")
    return record.messages[:first]


def messages_of(record: Record) -> Messages:
    """All texts of a record, in order."""
    if isinstance(record, Pair):
        return (*record.prompt, *record.chosen, *record.rejected)
    if isinstance(record, Judgement):
        return (*record.prompt, *record.completion)
    return record.messages if isinstance(record, Conversation | Prompt) else prompt_of(record)


def key(messages: Messages) -> int:
    """A number below 2^64 that equal texts share, in every process and version."""
    text = "\0".join([f"{message['role']}\0{message['content'].strip()}" for message in messages])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")


def keys(found: Sequence[Record], part: Callable[[Record], Messages]) -> np.ndarray:
    """(N,) uint64, the keys of this part of the records."""
    return np.fromiter((key(part(record)) for record in found), np.uint64, len(found))


def held_out(keys: np.ndarray, fraction: float) -> np.ndarray:
    """(N,) bool: whose key lies below `fraction` of all keys. With two different ones or more, both sides get one."""
    held = keys < np.uint64(fraction * _KEYS)
    if held.any() and not held.all():
        return held
    found, counts = np.unique(keys, return_counts=True)
    if len(found) < 2:
        return np.zeros(len(keys), bool)
    return keys != found[counts.argmax()] if held.all() else keys == found[counts.argmin()]


def split(openings: np.ndarray, whole: Callable[[], np.ndarray], fraction: float) -> tuple[np.ndarray, bool]:
    """(N,) which are held out, by the keys of their openings; and whether it had to be by `whole` records, there being one opening only."""
    by_record = len(openings) > 1 and bool((openings == openings[0]).all())
    return held_out(whole() if by_record else openings, fraction), by_record


def read_split(
    data: DataConfig, kind: str, seed: int, **world_options: Any
) -> tuple[list[Any], list[Any], list[dict[str, Any]]]:
    """Training records, held-out records and what run.json says about the sources.

    Held-out records are `data.val`; without it the world holds out its own, and of files every record whose prompt hashes below
    `data.val_fraction` (at least one) is set aside.
    """
    source = Records(data, kind, seed, **world_options)
    sides: dict[str, list[Any]] = {TRAIN: [], VAL: [], SPLIT: []}
    for side, record in source:
        sides[side].append(record)
    for line in source.lines():
        say(line)
    found = sides[SPLIT]
    held, by_record = split(keys(found, opening_of), lambda: keys(found, messages_of), data.val_fraction)
    train = sides[TRAIN] + [r for r, aside in zip(found, held, strict=True) if not aside]
    val = sides[VAL] + [r for r, aside in zip(found, held, strict=True) if aside]
    apart = not source.readers or not (data.val or by_record or sides[TRAIN])  # by the way they were made or split
    shared = 0 if apart else int(np.isin(keys(val, prompt_of), keys(train, prompt_of)).sum())
    counts = (int(held.sum()), len(held))
    preflight.settle(preflight.sides(len(train), len(val), shared, data=data, split=counts, by_record=by_record))
    return train, val, source.facts()
