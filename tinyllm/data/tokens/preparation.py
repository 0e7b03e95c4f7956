"""Documents to tokens, on all cores, in chunks that are kept on disk.

A chunk is about a megabyte of consecutive documents: a few numbers for each document, and all tokens. Its file is named after a hash of
the texts and of the tokenizer, so a run that was killed finds the chunks it had finished, and after an edit only the changed chunks are
encoded again.

One thread reads. Another encodes word by word (`text.words`), and a third passes the remaining chunks to the tokenizers library, which
releases Python's lock and spreads a batch over all cores. The ids are the same, so it does not matter which of them encodes a chunk.
Reading and looking up words hold the lock for some 50 ms per megabyte, which limits the speed on many cores. Several processes would
not be limited by it, but each needs the memory of an interpreter.
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

from tinyllm.data.tokens import dedup
from tinyllm.data.tokens.manifest import writing
from tinyllm.errors import UserError
from tinyllm.text.words import Words

VERSION = 1  # of a chunk file; part of its name
CHUNK_BYTES = 1 << 20  # of text; four chunks are in memory at a time
CHUNK_DOCUMENTS = 1 << 14
PIECE = 1 << 16  # characters encoded together; the library needs some hundred bytes per token meanwhile
THREADS = 2  # that encode
FIELDS = np.dtype([("key", "<u8"), ("split_hash", "<u8"), ("tokens", "<u4"), ("bytes", "<u4")])
SPLIT_HASHES = 1 << 48  # split hashes are below this


class Encoder(Protocol):
    """The part of `tinyllm.text.tokenizer.Tokenizer` that preparation uses."""

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
    """Return uint16, or uint32 for a vocabulary over 65,536."""
    return np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")


def split_hash(text: str) -> int:
    """Return the number below SPLIT_HASHES that decides the split of a document."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 16


def document_hashes(text: str) -> tuple[int, int]:
    """Return `split_hash`, and the key by which exact duplicates are found: `split_hash` and `key` of FIELDS."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 16, int.from_bytes(digest[8:16], "big")


@dataclass(frozen=True)
class Chunk:
    """A chunk on disk, and the numbers of its documents."""

    path: Path
    fields: np.ndarray
    """(documents,) of dtype FIELDS: two hashes of the text, tokens without the end token, UTF-8 bytes"""
    near_keys: np.ndarray
    """(documents, BANDS) uint64; BANDS is 0 where near duplicates are not removed"""


@dataclass
class _Texts:
    """The documents of a chunk before it is encoded."""

    texts: list[str] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    def add(self, text: str) -> int:
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            raise UserError(f"not text: half of a surrogate pair at character {e.start}", fix="remove it") from e
        self.texts.append(text)
        self.digests.append(hashlib.sha256(data).digest())
        self.sizes.append(len(data))
        return len(data)


class ChunkEncoder:
    """Encode documents to chunks in a folder, or find these chunks there."""

    def __init__(self, folder: Path, tokenizer: Encoder, *, near: bool, chunk_bytes: int = CHUNK_BYTES):
        self.folder, self.tokenizer, self.near, self.chunk_bytes = folder, tokenizer, near, chunk_bytes
        self.dtype = token_type(tokenizer)
        self._words_lock = threading.Lock()

    def encode(self, documents: Iterable[str]) -> Generator[Chunk, None, None]:
        """Yield the chunks of these documents, in order; empty documents are skipped.

        Raises: UserError, also from reading `documents`. Finished chunks stay for the next run.
        """
        self._words = self.tokenizer.words(self.dtype)
        pending: deque[Future[Chunk]] = deque()
        slots = threading.Semaphore(THREADS + 1)  # bounds the texts in memory; encoded chunks are small
        with ThreadPoolExecutor(THREADS, "encode") as threads:
            for texts in self._group(documents):
                slots.acquire()
                pending.append(threads.submit(self._chunk, texts))
                pending[-1].add_done_callback(lambda _: slots.release())
                while pending and pending[0].done():
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()

    def tokens(self, path: Path, documents: int) -> np.ndarray:
        """Return all tokens of the chunk at `path`, end tokens included."""
        content = self._read(path, documents)
        if content is None:
            raise UserError("a finished chunk has changed", where=str(path), fix="run the same command again")
        return content[2]

    def _group(self, documents: Iterable[str]) -> Iterator[_Texts]:
        group, size = _Texts(), 0
        for text in filter(None, documents):
            size += group.add(text)
            if size >= self.chunk_bytes or len(group.texts) >= CHUNK_DOCUMENTS:
                yield group
                group, size = _Texts(), 0
        if group.texts:
            yield group

    def _chunk(self, group: _Texts) -> Chunk:
        made_from = (VERSION, self.tokenizer.sha256, self.tokenizer.endoftext, self.dtype.str, self.near)
        name = hashlib.sha256(repr(made_from).encode() + b"".join(group.digests)).hexdigest()
        path = self.folder / name[:40]
        content = self._read(path, len(group.texts))
        if content is not None:
            return Chunk(path, content[0], content[1])
        tokens, lengths = self._encode(group.texts)
        assert np.count_nonzero(tokens == self.tokenizer.endoftext) == len(lengths), "a text encodes to <|endoftext|>"
        fields = np.empty(len(lengths), FIELDS)
        digests = np.frombuffer(b"".join(group.digests), ">u8").reshape(-1, 4)
        fields["split_hash"], fields["key"] = digests[:, 0] >> np.uint64(16), digests[:, 1]
        fields["tokens"], fields["bytes"] = lengths, group.sizes
        near_keys = np.empty((len(fields), 0), np.uint64)
        if self.near:
            near_keys = dedup.near_keys(tokens, lengths, fields["key"])
        self._write(path, fields.tobytes() + near_keys.tobytes() + tokens.tobytes())
        return Chunk(path, fields, near_keys)

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        words = self._words
        if words is not None and words.useful and self._words_lock.acquire(blocking=False):
            try:
                return encode_by_words(texts, words, self.tokenizer, self.dtype)
            finally:
                self._words_lock.release()
        return encode_in_batches(texts, self.tokenizer, self.dtype)

    def _write(self, path: Path, data: bytes) -> None:
        draft = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
        with writing(path):
            with draft.open("wb") as file:
                file.write(hashlib.sha256(data).digest())
                file.write(data)
            os.replace(draft, path)

    def _read(self, path: Path, documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return fields, near keys and tokens of a chunk; None if it does not exist or is damaged."""
        try:
            data = path.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(memoryview(data)[32:]).digest() != data[:32]:
            return None
        bands = dedup.BANDS if self.near else 0
        offset = 32 + documents * FIELDS.itemsize
        fields = np.frombuffer(data, FIELDS, documents, 32)
        near_keys = np.frombuffer(data, "<u8", documents * bands, offset).reshape(documents, bands)
        return fields.copy(), near_keys.copy(), np.frombuffer(data, self.dtype, -1, offset + documents * bands * 8)


def encode_by_words(
    texts: Sequence[str], words: Words, tokenizer: Encoder, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Encode documents word by word.

    Returns: all tokens, each document followed by its end token; and the tokens of each document without it, int64 (documents,).
    """
    end, width = np.array([tokenizer.endoftext], dtype).tobytes(), dtype.itemsize
    encoded: list[bytes] = []
    lengths = np.zeros(len(texts), np.int64)
    for number, text in enumerate(texts):
        for piece in split_long_text(text):
            data = words.encode(piece)
            if data is None:
                data = np.array(tokenizer.encode_batch([piece])[0], dtype).tobytes()
            encoded.append(data)
            lengths[number] += len(data) // width
        encoded.append(end)
    return np.frombuffer(b"".join(encoded), dtype), lengths


def encode_in_batches(texts: Sequence[str], tokenizer: Encoder, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Encode documents with the tokenizers library; same result as `encode_by_words`."""
    lengths = np.zeros(len(texts), np.int64)
    encoded: list[np.ndarray] = []
    for batch in _batches(texts, whole=tokenizer.leading_space):
        ids = tokenizer.encode_batch([piece for _, piece, _ in batch])
        for (number, _, last), one in zip(batch, ids, strict=True):
            lengths[number] += len(one)
            if last:
                one.append(tokenizer.endoftext)
        encoded.append(np.fromiter(itertools.chain.from_iterable(ids), dtype, sum(map(len, ids))))
    return np.concatenate(encoded), lengths


def _batches(texts: Sequence[str], *, whole: bool) -> Iterator[list[tuple[int, str, bool]]]:
    """Yield lists of (document, piece of its text, whether it is the last piece), of at most PIECE characters together."""
    batch: list[tuple[int, str, bool]] = []
    characters = 0
    for number, text in enumerate(texts):
        parts = [text] if whole else list(split_long_text(text))
        for at, piece in enumerate(parts):
            if batch and characters + len(piece) > PIECE:
                yield batch
                batch, characters = [], 0
            batch.append((number, piece, at == len(parts) - 1))
            characters += len(piece)
    if batch:
        yield batch


def split_long_text(text: str) -> Iterator[str]:
    """Yield a text in pieces of at most PIECE characters, split where most vocabularies split: after a line end, before a space.

    Not for vocabularies that put a space before every text they encode; these need the whole text.
    """
    start = 0
    while len(text) - start > PIECE:
        half, end = start + PIECE // 2, start + PIECE
        cut = text.rfind("\n", half, end) + 1 or text.rfind(" ", half, end)
        cut = cut if cut > start else end
        yield text[start:cut]
        start = cut
    yield text[start:]
