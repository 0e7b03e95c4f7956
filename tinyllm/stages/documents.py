"""The documents that a pretraining configuration names, as a stream that can be read several times."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

from tinyllm.console import say
from tinyllm.data import world
from tinyllm.data.config import is_world
from tinyllm.data.records.reader import Reader, configured_reader
from tinyllm.data.records.report import MAX_FILES, Report
from tinyllm.data.records.types import Document
from tinyllm.data.sources.paths import expand
from tinyllm.data.tokens.preparation import split_long_text
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.prepared import FileStamp, SourceFile, is_read_once


class Documents:
    """The documents of one split. `facts` (for run.json) and `files` (for `prepared.json`) are those of the latest pass.

    Args:
        split: "train" or "val".
    """

    def __init__(self, config: PretrainConfig, split: str):
        data = config.data
        self.config, self.split = config, split
        self.sources = data.train if split == "train" else data.val
        if split == "val" and not data.val and all(map(is_world, data.train)):
            self.sources = ("world:500",)  # the bundled world has validation documents of its own
        self._reported: set[str] = set()
        self._read_so_far = Report("documents")
        self._start_pass()

    def _start_pass(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.files: list[SourceFile] = []
        self._readers: list[Reader] = []

    @property
    def size(self) -> int:
        """Bytes of all files as they are stored; 0 unless all sources are files."""
        if not self.sources or any(is_world(source) or is_read_once(source) for source in self.sources):
            return 0
        return sum(path.stat().st_size for path in expand(self.sources))

    @property
    def bytes_read(self) -> int:
        """Bytes read in the latest pass, as they are stored."""
        return sum(reader.bytes_read for reader in self._readers)

    def by_source(self) -> Mapping[str, Iterator[str]]:
        """Return the documents of each source by its name. The iterators must be read in this order."""
        self._start_pass()
        return {source: self._read(source) for source in self.sources}

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.by_source().values())

    def sample(self, characters: int) -> Iterator[str]:
        """Yield the first documents, about `characters` in all. Long ones are split, which saves a tokenizer's trainer much memory."""
        for text in itertools.chain.from_iterable(map(split_long_text, self)):
            yield text
            characters -= len(text)
            if characters <= 0:
                return

    def _read(self, source: str) -> Iterator[str]:
        data, seed = self.config.data, self.config.seed
        if is_world(source):
            self.facts.append({"source": source, "seed": seed})
            count = int(source.partition(":")[2] or 20000)
            yield from (row["text"] for row in world.documents(count, seed=seed, split=self.split))
            return
        reader = configured_reader([source], "documents", data)
        self._readers.append(reader)
        before = {str(path): FileStamp.of(path) for path in reader.paths}
        for record in reader:
            assert isinstance(record, Document)
            yield record.text
        self._report(source, reader.report)
        self.facts += reader.report.sources()
        for file in () if is_read_once(source) else reader.report.files:
            stamp = before[file.source]
            unchanged = stamp == FileStamp.of(file.source)  # while it was read
            self.files.append(SourceFile(file.source, file.sha256, stamp if unchanged else None))

    def _report(self, source: str, report: Report) -> None:
        """Print what was read from a source, in its first complete pass; of many sources together, after the last one."""
        if source in self._reported:
            return
        self._reported.add(source)
        self._read_so_far.merge(report)
        files = {source for source in self.sources if not is_world(source)}
        if len(files) <= MAX_FILES:
            lines = report.lines()
        else:
            lines = self._read_so_far.lines() if files <= self._reported else []
        for line in lines:
            say(line)
