"""The documents that a pretraining configuration names, as a stream that can be read several times."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from tinyllm.console import say
from tinyllm.data import world
from tinyllm.data.config import is_world
from tinyllm.data.record_source import WORLD_HELD_OUT_DOCUMENTS, share_for_test
from tinyllm.data.records.reader import Reader, configured_reader
from tinyllm.data.records.report import MAX_FILES, Report
from tinyllm.data.records.types import Document
from tinyllm.data.sources.paths import expand
from tinyllm.data.spelling import SpelledDocuments
from tinyllm.data.tokens.documents import split_threshold
from tinyllm.data.tokens.preparation import SPLIT_HASHES, split_hash, split_long_text
from tinyllm.data.tokens.shards import Shards
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.prepared import FileStamp, SourceFile, is_read_once
from tinyllm.text.tokenizer import Tokenizer

_FEW = 400  # documents


def held_out_documents(
    config: PretrainConfig, shards: Shards, tokenizer: Tokenizer, split: str, limit: int
) -> list[np.ndarray]:
    """Return at most `limit` documents of "val" or "test" as tokens, each with its end token.

    Those of data.test, and of the bundled world for test, are read here: they are not in the shards.
    """
    own = Documents(config, "test")
    if not own.sources:
        return shards.documents(split, limit, for_test=share_for_test(config.data))
    if split == "val":
        return shards.documents("val", limit)
    documents = SpelledDocuments(tokenizer, config.data.on_bad_line)
    by_source = documents.of(own.by_source())
    texts = list(itertools.islice(filter(None, itertools.chain.from_iterable(by_source.values())), limit))
    documents.tell()
    return [np.array([*ids, tokenizer.endoftext]) for ids in tokenizer.encode_batch(texts)]


class Documents:
    """The documents of one split. `facts` (for run.json) and `files` (for `prepared.json`) are those of the latest pass.

    Args:
        split: "train", "val" or "test".
    """

    def __init__(self, config: PretrainConfig, split: str):
        data = config.data
        self.config, self.split = config, split
        of_world = (f"world:{WORLD_HELD_OUT_DOCUMENTS}",) if all(map(is_world, data.train)) else ()
        held_out = data.val or of_world  # the bundled world has held-out documents of its own
        if split == "test":
            has_own = all(map(is_world, held_out)) and data.test_fraction != 0
            self.sources = data.test or (held_out if has_own else ())
        else:
            self.sources = data.train if split == "train" else held_out
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

    def trained_on(self, texts: Iterable[str]) -> Iterator[str]:
        """Yield those of all documents that preparation does not split off for val and test: what a tokenizer may learn from.

        One is split off and one is not, as in preparation. Documents are held until both have been read, and `_FEW` at most.
        """
        documents, fraction = filter(None, texts), self.config.data.val_fraction
        if self.split != "train" or Documents(self.config, "val").sources:
            yield from documents
            return
        first: list[str] = []
        hashes: list[int] = []
        for text in itertools.islice(documents, _FEW):
            first.append(text)
            hashes.append(split_hash(text))
            if min(hashes) < fraction * SPLIT_HASHES <= max(hashes):
                break
        threshold = split_threshold(min(hashes), max(hashes), fraction) if hashes else 0
        yield from (text for text in itertools.chain(first, documents) if split_hash(text) >= threshold)

    def sample(self, characters: int, texts: Iterable[str] | None = None) -> Iterator[str]:
        """Yield the first documents, about `characters` in all. Long ones are split, which saves a tokenizer's trainer much memory.

        Args:
            texts: the documents to take them from, if not all.
        """
        for text in itertools.chain.from_iterable(map(split_long_text, self if texts is None else texts)):
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
