"""Datasets of tokenized records: the length of a record, and how records are collated into a batch.

`batches.Source` decides which records make up a step. Rows are padded on the right; `mask` marks the tokens that are scored.
Left out: anything that reads files or text (see `records` and `shards`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tinyllm.data.datasets.batches import PreferenceBatch, TokenBatch, UnpairedBatch, right_padded
from tinyllm.data.tokens.memmap import Tokens
from tinyllm.data.tokens.mixing import Mixture
from tinyllm.errors import UserError


class PretrainDataset:
    """Token streams cut into rows of `length` + 1 tokens, in which every token but the first is predicted.

    Each pass over a stream cuts at another offset, so that no token is always at the edge of a row.

    Args:
        tokens: the streams, concatenated.
        length: scored tokens in a row.
        shifted: cut each pass at another offset; otherwise always at the start of the stream.
        sources: number of tokens of each stream, not counting the very first token, as in a manifest. Each stream then begins with
            the last token of the stream before. None: there is one stream.
        weights: share of the rows drawn from each stream.

    Raises:
        UserError: a stream is shorter than one row.
    """

    def __init__(
        self,
        tokens: np.ndarray | Tokens,
        length: int,
        *,
        seed: int,
        shifted: bool = True,
        sources: Mapping[str, int] | None = None,
        weights: Sequence[float] = (1.0,),
    ):
        self.tokens, self.width, self.seed, self.shifted = tokens, length, seed, shifted
        sizes = {"": len(tokens) - 1} if sources is None else sources
        rows = {source: (size - (length - 1 if shifted else 0)) // length for source, size in sizes.items()}
        for source, size in sizes.items():
            if rows[source] < 1:
                raise UserError(
                    f"{source}: {size:,} tokens are too few for one row of {length}".removeprefix(": "),
                    where="data",
                    fix="add text, or lower data.max_length",
                )
        self.firsts = np.cumsum([0, *sizes.values()])[:-1]
        self.mixture = Mixture(list(rows.values()), weights)

    def __len__(self) -> int:
        return len(self.mixture)

    def length(self, index: int) -> int:
        return self.width

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> TokenBatch:
        source, lap, row = self.mixture.locate(np.asarray(indices), epoch)
        laps = list(zip(source.tolist(), lap.tolist(), strict=True))
        offsets = {one: self._offset(*one) for one in set(laps)}
        starts = self.firsts[source] + row * self.width + np.array([offsets[one] for one in laps])
        ids = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.width + 1)].astype(np.int64))
        mask = torch.ones(ids.shape, dtype=torch.bool)
        mask[:, 0] = False
        return TokenBatch(ids, mask)

    def _offset(self, source: int, lap: int) -> int:
        key = [self.seed, (source << 32) + lap]
        return int(np.random.Generator(np.random.Philox(key=key)).integers(self.width)) if self.shifted else 0


class SFTDataset:
    """Conversations as token rows. The mask marks the assistant's tokens."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int):
        self.rows = [(np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=bool)) for ids, mask in rows]
        self.pad = pad

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, index: int) -> int:
        return len(self.rows[index][0])

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> TokenBatch:
        chosen = [self.rows[i] for i in indices]
        ids = right_padded([ids for ids, _ in chosen], self.pad)
        mask = right_padded([mask for _, mask in chosen], False)
        mask[:, 0] = False
        return TokenBatch(ids, mask)


def scored_documents(
    documents: Iterable[Sequence[int] | np.ndarray], context: int, begin: int | None
) -> list[tuple[list[int], list[bool]]]:
    """Return rows (ids, mask) that score every token of every document once, each document after an unscored `begin` token. Without
    one, the first token of a document is not scored.

    A document longer than `context` is split into windows that overlap by half, so every token sees at least half a context.
    """
    rows: list[tuple[list[int], list[bool]]] = []
    for document in documents:
        ids = [*([] if begin is None else [begin]), *(int(i) for i in document)]
        start, scored = 0, 1
        while scored < len(ids):
            row = ids[start : start + context]
            rows.append((row, [position >= scored for position in range(start, start + len(row))]))
            scored = start + len(row)
            start = scored - context // 2
    return rows


@dataclass(frozen=True)
class TokenPair:
    """A preference pair as token ids."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    margin: float = 0.0


class PreferenceDataset:
    """Preference pairs.

    Attributes:
        ref_log_probs: (N, 2), summed log-probabilities of the chosen and the rejected answer under the reference; None until scored.
    """

    def __init__(self, pairs: Sequence[TokenPair], pad: int):
        self.pairs, self.pad = pairs, pad
        self.ref_log_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        pair = self.pairs[index]
        return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> PreferenceBatch:
        chosen = [self.pairs[i] for i in indices]
        rows = [(p.prompt, p.chosen) for p in chosen] + [(p.prompt, p.rejected) for p in chosen]
        whole = [self.pairs[i] for i in step]
        return PreferenceBatch(
            ids=right_padded([[*prompt, *answer] for prompt, answer in rows], self.pad),
            mask=right_padded([[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows], False),
            real=right_padded([[True] * (len(prompt) + len(answer)) for prompt, answer in rows], False),
            margin=torch.tensor([p.margin for p in chosen]),
            ref_log_probs=None if self.ref_log_probs is None else self.ref_log_probs[list(indices)].T.reshape(-1),
            tokens_per_pair=sum(len(p.prompt) - 1 + len(p.chosen) for p in whole) / len(whole),
            answer_tokens_per_pair=sum(len(p.chosen) for p in whole) / len(whole),
        )


@dataclass(frozen=True)
class TokenUnpaired:
    """An answer labeled good or bad, as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]
    good: bool


class UnpairedDataset:
    """Answers labeled good or bad.

    Attributes:
        ref_log_probs: (N, 2), summed log-probabilities of the answer and of the mismatched answer under the reference; None until
            scored.
    """

    def __init__(self, items: Sequence[TokenUnpaired], pad: int):
        self.items, self.pad = items, pad
        self.ref_log_probs: Tensor | None = None

    def __len__(self) -> int:
        return len(self.items)

    def mismatched(self, index: int) -> int:
        """Return the record that supplies the mismatched answer: half the dataset away, where the prompt differs (answers to one prompt
        are neighbors). It is fixed, so that the reference is scored once."""
        return (index + max(1, len(self.items) // 2)) % len(self.items)

    def length(self, index: int) -> int:
        return len(self.items[index].prompt) + len(self.items[index].answer)

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> UnpairedBatch:
        rows = [(self.items[i].prompt, self.items[i].answer) for i in indices]
        rows += [(self.items[i].prompt, self.items[self.mismatched(i)].answer) for i in indices]
        return UnpairedBatch(
            ids=right_padded([[*prompt, *answer] for prompt, answer in rows], self.pad),
            mask=right_padded([[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows], False),
            good=torch.tensor([self.items[i].good for i in indices]),
            ref_log_probs=None if self.ref_log_probs is None else self.ref_log_probs[list(indices)].T.reshape(-1),
        )


@dataclass(frozen=True)
class TokenPrompt:
    """A prompt to answer: ids up to and including the assistant's header, and the columns that rewards read."""

    ids: list[int]
    columns: Mapping[str, Any]
    place: str = ""
    """file and line of the record, if known"""
    plain: bool = False
    """the data give the prompt as a text, not as messages"""
