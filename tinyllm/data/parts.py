"""From documents to tokens, on all cores: parts on disk, named after what they were made from.

A part is a megabyte of neighbouring documents: a row of facts for each, and all their tokens. Its name is a hash of its texts and
of the tokenizer, so a run that was killed finds again what it had finished, and after an edit only the parts that changed are made anew.
While one thread reads, another encodes word by word (`text.words`), and what it leaves undone a third gives to the tokenizers library,
which does without Python's lock and spreads a batch over all cores. The ids are the same, so it does not matter who makes which part.
Reading and looking up words hold the lock for some 50 ms a megabyte, which bounds the speed on many cores; several processes would not, and
take an interpreter's memory each.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
import uuid
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from tinyllm.data import dedup
from tinyllm.data.files import writing
from tinyllm.errors import UserError
from tinyllm.text.words import Words

VERSION = 1  # of a part's content: part of its name
PART_BYTES = 1 << 20  # of text; four of them are in memory at a time
PART_DOCUMENTS = 1 << 14
PIECE = 1 << 16  # characters encoded together; the library takes some hundred bytes a token for the time
THREADS = 2  # that encode
ROW = np.dtype([("key", "<u8"), ("place", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
PLACES = 1 << 48


class Encoder(Protocol):
    """What preparation needs of `tinyllm.text.tokenizer.Tokenizer`."""

    @property
    def endoftext(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def leading_space(self) -> bool: ...
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]: ...
    def words(self, dtype: np.dtype) -> Words | None: ...


def token_type(tokenizer: Encoder) -> np.dtype:
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


@dataclass(frozen=True)
class Part:
    """One part on disk, and what is known of its documents."""

    path: Path
    rows: np.ndarray  # (documents,) of ROW: hash of the text, place in [0, PLACES), tokens without the end, UTF-8 bytes
    near: np.ndarray  # (documents, BANDS) uint64; BANDS is 0 where near duplicates are not looked for


@dataclass
class _Texts:
    """Documents of a part that is being filled."""

    texts: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, text: str) -> int:
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            raise UserError(f"half of a surrogate pair at character {e.start}: not text", fix="remove it") from e
        self.texts.append(text)
        self.digests.append(hashlib.sha256(data).digest())
        self.sizes.append(len(data))
        return len(data)


class Parts:
    """Makes parts in a folder, or finds them there."""

    def __init__(self, folder: Path, tokenizer: Encoder, *, near: bool, part_bytes: int = PART_BYTES):
        self.folder, self.tokenizer, self.near, self.part_bytes = folder, tokenizer, near, part_bytes
        self.dtype = token_type(tokenizer)
        self._by_words = threading.Lock()

    def of(self, documents: Iterable[str]) -> Generator[Part, None, None]:
        """The parts of these documents, in order; empty ones are passed over.

        Raises: UserError, also while `documents` is read; finished parts then stay for the next run.
        """
        self._words = self.tokenizer.words(self.dtype)
        made: deque[Future[Part]] = deque()
        room = threading.Semaphore(THREADS + 1)  # for texts; what is made of them is small
        with ThreadPoolExecutor(THREADS, "encode") as threads:
            for texts in self._filled(documents):
                room.acquire()
                made.append(threads.submit(self._made, texts))
                made[-1].add_done_callback(lambda _: room.release())
                while made and made[0].done():
                    yield made.popleft().result()
            while made:
                yield made.popleft().result()

    def tokens(self, path: Path, documents: int) -> np.ndarray:
        """All tokens of the part at `path` with so many documents, their ends included."""
        found = self._read(path, documents)
        if found is None:
            raise UserError("a finished part has changed", where=str(path), fix="run the same command again")
        return found[2]

    def _filled(self, documents: Iterable[str]) -> Iterator[_Texts]:
        held, size = _Texts(), 0
        for text in filter(None, documents):
            size += held.add(text)
            if size >= self.part_bytes or len(held.texts) >= PART_DOCUMENTS:
                yield held
                held, size = _Texts(), 0
        if held.texts:
            yield held

    def _made(self, held: _Texts) -> Part:
        facts = (VERSION, self.tokenizer.sha256, self.tokenizer.endoftext, self.dtype.str, self.near)
        name = hashlib.sha256(repr(facts).encode() + b"".join(held.digests)).hexdigest()
        path = self.folder / name[:40]
        found = self._read(path, len(held.texts))
        if found is not None:
            return Part(path, found[0], found[1])
        tokens, lengths = self._encoded(held.texts)
        assert np.count_nonzero(tokens == self.tokenizer.endoftext) == len(lengths), "a text held <|endoftext|>"
        rows = np.empty(len(lengths), ROW)
        digests = np.frombuffer(b"".join(held.digests), ">u8").reshape(-1, 4)
        rows["place"], rows["key"] = digests[:, 0] >> np.uint64(16), digests[:, 1]
        rows["tokens"], rows["bytes"] = lengths, held.sizes
        near = dedup.near_keys(tokens, lengths, rows["key"]) if self.near else np.empty((len(rows), 0), np.uint64)
        self._write(path, rows.tobytes() + near.tobytes() + tokens.tobytes())
        return Part(path, rows, near)

    def _encoded(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        words = self._words
        if words is not None and words.useful and self._by_words.acquire(blocking=False):
            try:
                return by_words(texts, words, self.tokenizer, self.dtype)
            finally:
                self._by_words.release()
        return by_batches(texts, self.tokenizer, self.dtype)

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        with writing(path):
            with draft.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            os.replace(draft, path)

    def _read(self, path: Path, documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Rows, keys and tokens; None where there is no such part, or only a damaged one."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(memoryview(data)[32:]).digest() != data[:32]:
            return None
        bands = dedup.BANDS if self.near else 0
        near = 32 + documents * ROW.itemsize
        rows = np.frombuffer(data, ROW, documents, 32)
        keys = np.frombuffer(data, "<u8", documents * bands, near).reshape(documents, bands)
        return rows.copy(), keys.copy(), np.frombuffer(data, self.dtype, -1, near + documents * bands * 8)


def by_words(texts: Sequence[str], words: Words, tokenizer: Encoder, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """(all tokens, each document followed by its end; tokens of each document without it, int64 (documents,))."""
    end, width = np.array([tokenizer.endoftext], dtype).tobytes(), dtype.itemsize
    found: list[bytes] = []
    lengths = np.zeros(len(texts), np.int64)
    for number, text in enumerate(texts):
        for piece in pieces(text):
            data = words.encode(piece)
            if data is None:
                data = np.array(tokenizer.encode_batch([piece])[0], dtype).tobytes()
            found.append(data)
            lengths[number] += len(data) // width
        found.append(end)
    return np.frombuffer(b"".join(found), dtype), lengths


def by_batches(texts: Sequence[str], tokenizer: Encoder, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The same from the tokenizers library."""
    lengths = np.zeros(len(texts), np.int64)
    found: list[np.ndarray] = []
    for batch in _batches(texts, whole=tokenizer.leading_space):
        ids = tokenizer.encode_batch([piece for _, piece, _ in batch])
        for (number, _, last), one in zip(batch, ids, strict=True):
            lengths[number] += len(one)
            if last:
                one.append(tokenizer.endoftext)
        found.append(np.fromiter(itertools.chain.from_iterable(ids), dtype, sum(map(len, ids))))
    return np.concatenate(found), lengths


def _batches(texts: Sequence[str], *, whole: bool) -> Iterator[list[tuple[int, str, bool]]]:
    """(document, piece of its text, whether it is the last piece), as many together as PIECE characters hold."""
    batch: list[tuple[int, str, bool]] = []
    characters = 0
    for number, text in enumerate(texts):
        cut = [text] if whole else list(pieces(text))
        for at, piece in enumerate(cut):
            if batch and characters + len(piece) > PIECE:
                yield batch
                batch, characters = [], 0
            batch.append((number, piece, at == len(cut) - 1))
            characters += len(piece)
    if batch:
        yield batch


def pieces(text: str) -> Iterator[str]:
    """A long text cut where most vocabularies split anyway: behind the end of a line, or in front of a space.

    Not so for a vocabulary that puts a space in front of whatever it encodes: it takes every text as a whole.
    """
    start = 0
    while len(text) - start > PIECE:
        half, end = start + PIECE // 2, start + PIECE
        cut = text.rfind("\n", half, end) + 1 or text.rfind(" ", half, end)
        cut = cut if cut > start else end
        yield text[start:cut]
        start = cut
    yield text[start:]
