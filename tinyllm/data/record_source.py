"""The records of a stage, from files and from the bundled world, with what is known of their split. No torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from tinyllm.data import world
from tinyllm.data.config import DataConfig, is_world
from tinyllm.data.records.reader import Reader, configured_reader
from tinyllm.data.records.types import Conversation, Document, Pair, Prompt, Record, UnpairedPreference
from tinyllm.data.sources.paths import expand
from tinyllm.errors import UserError, escape_unprintable

WORLD_HELD_OUT = 256  # records of the world in val, and as many in test
WORLD_HELD_OUT_DOCUMENTS = 500
TRAIN, VAL, TEST = SPLITS = ("train", "val", "test")
HALF = 0.5
BY_HASH, HELD_OUT = "by hash", "held out"  # not decided yet: any of the three; val or test


class RecordSource:
    """An iterable of (split, record) over everything a stage reads, in a fixed order. May be iterated again.

    Args:
        options: arguments of the bundled world's functions. The faults `wrong` and `flawed` are not used for implied held-out records.
        on_bad_line: overrides `data.on_bad_line`.
    """

    def __init__(self, data: DataConfig, kind: str, seed: int, *, on_bad_line: str = "", **options: Any):
        self.data, self.kind, self.seed, self.options = data, kind, seed, options
        self.on_bad_line = on_bad_line or data.on_bad_line
        self.readers: list[Reader] = []

    def __iter__(self) -> Iterator[tuple[str, Record]]:
        self.readers = []
        yield from self.of_world()
        yield from self.of_files()

    def of_world(self) -> Iterator[tuple[str, Record]]:
        """Yield (split, record) of the bundled world, whose splits are disjoint whatever else is read."""
        by_hash = self.kind == "documents" and not self.data.val and not self._all_world()
        held_out = self._held_out_of_world()
        sources = {TRAIN: self.data.train, VAL: held_out, TEST: self.data.test or self._test_of_world(held_out)}
        for split, named in sources.items():
            mark = BY_HASH if by_hash and split == TRAIN else split
            for source in filter(is_world, named):
                yield from ((mark, record) for record in self._from_world(source, split))

    def of_files(self) -> Iterator[tuple[str, Record]]:
        """Yield (split, record) of the files: BY_HASH without data.val, HELD_OUT where data.val is to be divided."""
        data = self.data
        of_val = HELD_OUT if share_for_test(data) else VAL
        for split, sources in ((TRAIN if data.val else BY_HASH, data.train), (of_val, data.val), (TEST, data.test)):
            yield from ((split, record) for record in self._from_files([s for s in sources if not is_world(s)]))

    @property
    def size(self) -> int:
        """Bytes of all files as stored on disk; 0 if unknown, as for standard input."""
        sources = [source for source in self.data.sources if not is_world(source)]
        return 0 if "-" in sources or not sources else sum(p.stat().st_size for p in expand(sources))

    @property
    def bytes_read(self) -> int:
        """Bytes of the files read so far."""
        return sum(reader.bytes_read for reader in self.readers)

    def _all_world(self) -> bool:
        return all(map(is_world, self.data.train))

    def _held_out_of_world(self) -> tuple[str, ...]:
        """Return data.val, or the world's held-out records where no validation data are given."""
        if self.data.val or not any(map(is_world, self.data.train)):
            return self.data.val
        if self.kind == "documents":
            return (f"world:{WORLD_HELD_OUT_DOCUMENTS}",) if self._all_world() else ()
        return (f"world:{WORLD_HELD_OUT}",)

    def _test_of_world(self, held_out: Sequence[str]) -> Sequence[str]:
        """Return as many records of the world for test as there are for val, unless there is to be no test split."""
        return () if self.data.test_fraction == 0 else held_out

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
        implied = (split == VAL and not self.data.val) or (split == TEST and not self.data.test and not self.data.val)
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


def share_for_test(data: DataConfig) -> float:
    """Return the share of the held-out records of files that is kept for test: half of those split off from data.train by default."""
    if data.test:
        return 0.0
    return data.test_fraction if data.test_fraction is not None else 0.0 if data.val else HALF


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
