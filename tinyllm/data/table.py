"""What is known of every document while text is prepared, on disk: a row of facts each, and the keys that duplicates are found by.

Everything that is decided about documents is decided here, with the table complete. In memory is one byte a document.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tinyllm.data import dedup
from tinyllm.data.files import writing
from tinyllm.data.manifest import Removed
from tinyllm.data.parts import PLACES, ROW, Part

KEPT, EXACT, NEAR = range(3)


@dataclass(frozen=True)
class Stretch:
    """Neighbouring rows of the table: the documents of one part."""

    part: Path
    source: str
    given: bool  # for validation, by the user
    start: int
    stop: int


class Table:
    """What is known of every document, in files: a row each, and the keys that duplicates are found by."""

    def __init__(self, folder: Path, duplicates: str):
        keys = {"none": 0, "exact": 1, "near": 1 + dedup.BANDS}[duplicates]
        self.stretches: list[Stretch] = []
        self.documents = self.bytes = 0
        self._paths = [folder / "rows", *(folder / f"keys-{number:02d}" for number in range(keys))]
        with writing(folder):
            self._files = [path.open("wb") for path in self._paths]

    def close(self) -> None:
        for file in self._files:
            file.close()

    def read(
        self, source: str, parts: Generator[Part, None, None], progress: Callable[[int], None], *, given: bool
    ) -> None:
        """Take in all documents of one source."""
        with closing(parts):  # so that its threads have ended when something fails
            for part in parts:
                columns = [part.rows, part.rows["key"], *part.near.T]
                with writing(self._paths[0]):
                    for file, column in zip(self._files, columns, strict=False):
                        file.write(column.tobytes())
                stop = self.documents + len(part.rows)
                self.stretches.append(Stretch(part.path, source, given, self.documents, stop))
                self.documents, self.bytes = stop, self.bytes + int(part.rows["bytes"].sum())
                progress(self.bytes)

    def rows(self, stretch: Stretch) -> np.ndarray:
        count, offset = stretch.stop - stretch.start, stretch.start * ROW.itemsize
        return np.fromfile(self._paths[0], ROW, count, offset=offset)

    def marks(self) -> np.ndarray:
        """Which documents stay and why others do not: uint8 (documents,)."""
        marks = np.full(self.documents, KEPT, np.uint8)
        for path in reversed(self._paths[1:]):  # the first, the same text, has the last word
            for again in dedup.repeats(path):
                marks[again] = EXACT if path == self._paths[1] else NEAR
        return marks

    def removed(self, marks: np.ndarray, sources: Iterable[str]) -> tuple[Removed, ...]:
        """How many documents of each source do not stay, and why."""
        counts = {source: np.zeros(3, np.int64) for source in sources}
        for stretch in self.stretches:
            counts[stretch.source] += np.bincount(marks[stretch.start : stretch.stop], minlength=3)
        return tuple(Removed(source, int(found[EXACT]), int(found[NEAR])) for source, found in counts.items())

    def threshold(self, marks: np.ndarray, val_fraction: float) -> int:
        """Documents with a place below it are for validation.

        Chance may leave a small set with an empty side: it moves just so far that the document next in line changes over.
        """
        lowest, highest = PLACES, 0
        for stretch in self.stretches:
            places = self.rows(stretch)["place"][marks[stretch.start : stretch.stop] == KEPT]
            lowest = min(lowest, int(places.min(initial=PLACES)))
            highest = max(highest, int(places.max(initial=0)))
        return min(max(math.ceil(val_fraction * PLACES), lowest + 1), highest)
