"""Figures of a vocabulary on a text: bytes per token, tokens per document, the share of tokens in use, and exact reconstruction.

Several vocabularies are measured in one pass, on the same text. Left out: fertility per word (not every script has words), speed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tinyllm.text.streaming import printable
from tinyllm.text.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # encoded together
LONGEST = 10  # number of longest tokens reported


@dataclass
class Figures:
    """Counts of one vocabulary on a text."""

    tokenizer: Tokenizer
    documents: int = 0
    bytes: int = 0
    tokens: int = 0
    inexact: int = 0
    """documents that decoding does not reconstruct"""
    first_inexact: str = ""
    counts: np.ndarray = field(init=False)  # int64 (vocab_size,), uses of each token

    def __post_init__(self) -> None:
        self.counts = np.zeros(self.tokenizer.vocab_size, dtype=np.int64)

    def add(self, texts: list[str]) -> None:
        """Count some documents."""
        encoded = self.tokenizer.encode_batch(texts)
        self.documents += len(texts)
        self.bytes += sum(len(text.encode()) for text in texts)
        self.tokens += sum(map(len, encoded))
        ids = np.fromiter(itertools.chain.from_iterable(encoded), dtype=np.int64)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        for text, row in zip(texts, encoded, strict=True):
            if self.tokenizer.decode(row) != text:
                self.inexact += 1
                self.first_inexact = self.first_inexact or printable(text[:80])

    def to_dict(self) -> dict[str, object]:
        """Return the figures under stable names, for --json. Shares are of all tokens except control tokens, which no text uses."""
        tokenizer = self.tokenizer
        lengths, longest = tokenizer.byte_lengths(), []
        for i in np.argsort(-lengths, kind="stable")[:LONGEST].tolist():
            text = tokenizer.text_bytes(i).decode("utf-8", "replace")
            longest.append({"id": i, "text": text, "bytes": int(lengths[i]), "used": int(self.counts[i])})
        usable = tokenizer.vocab_size - len(tokenizer.special_ids)
        used = int(np.count_nonzero(self.counts))
        return {
            "vocab_size": tokenizer.vocab_size,
            "control_tokens": [tokenizer.decode([i], skip_special=False) for i in sorted(tokenizer.special_ids)],
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens,
            "bytes_per_token": self.bytes / max(1, self.tokens),
            "tokens_per_document": self.tokens / max(1, self.documents),
            "used_tokens": used,
            "unused_share": 1 - used / max(1, usable),
            "inexact_documents": self.inexact,
            "first_inexact": self.first_inexact,
            "longest_tokens": longest,
        }


def measure(tokenizers: Mapping[str, Tokenizer], texts: Iterable[str]) -> dict[str, Figures]:
    """Measure vocabularies, by name, in one pass of `texts`. Memory does not grow with the text.

    Raises:
        UserError: a lone surrogate in a text.
    """
    found = {name: Figures(tokenizer) for name, tokenizer in tokenizers.items()}
    for batch in _batches(texts):
        for figures in found.values():
            figures.add(batch)
    return found


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
