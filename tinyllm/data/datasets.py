"""Prepared records: token rows, and how some of them become a batch.

A data set is a list of records behind numbers: `length(i)` lets like lengths be batched together, `collate` makes the batch. Which
numbers make up a step is `batches.Source`'s business. All rows are padded on the right; `mask` marks the tokens that are scored.
Left out: anything that reads files or text (records, shards).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tinyllm.data.batches import Judged, Pairs, Rows, right_padded
from tinyllm.data.mixing import Mixture
from tinyllm.data.tokens import Tokens
from tinyllm.errors import UserError


class Windows:
    """Streams of tokens cut into rows of `length` + 1: each token of a stream but its first is predicted from those before it.

    Every pass over a stream cuts at another offset, so that no token always stands at a window's edge.

    Args:
        tokens: the streams, one behind the other.
        sources: the tokens of each, behind the first token, as in a manifest; each is then a stream of its own, which begins with the
            last token of the one before. None: one stream.
        weights: the share of rows that each source gets.
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

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Rows:
        source, lap, row = self.mixture.find(np.asarray(indices), epoch)
        laps = list(zip(source.tolist(), lap.tolist(), strict=True))
        offsets = {one: self._offset(*one) for one in set(laps)}
        starts = self.firsts[source] + row * self.width + np.array([offsets[one] for one in laps])
        ids = torch.from_numpy(self.tokens[starts[:, None] + np.arange(self.width + 1)].astype(np.int64))
        mask = torch.ones(ids.shape, dtype=torch.bool)
        mask[:, 0] = False
        return Rows(ids, mask)

    def _offset(self, source: int, lap: int) -> int:
        key = [self.seed, (source << 32) + lap]
        return int(np.random.Generator(np.random.Philox(key=key)).integers(self.width)) if self.shifted else 0


class Answers:
    """Conversations as token rows with the mask of what the assistant said."""

    def __init__(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad: int):
        self.rows = [(np.asarray(ids, dtype=np.int64), np.asarray(mask, dtype=bool)) for ids, mask in rows]
        self.pad = pad

    def __len__(self) -> int:
        return len(self.rows)

    def length(self, index: int) -> int:
        return len(self.rows[index][0])

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Rows:
        chosen = [self.rows[i] for i in indices]
        ids = right_padded([ids for ids, _ in chosen], self.pad)
        mask = right_padded([mask for _, mask in chosen], False)
        mask[:, 0] = False
        return Rows(ids, mask)


def scored_documents(
    documents: Iterable[Sequence[int]], context: int, begin: int
) -> list[tuple[list[int], list[bool]]]:
    """Rows that score every token of every document once, each document behind the token `begin` that is not scored.

    A document longer than `context` is read through windows that overlap by half, so no token is judged with less than half a context.
    """
    rows: list[tuple[list[int], list[bool]]] = []
    for document in documents:
        ids = [begin, *(int(i) for i in document)]
        start, scored = 0, 1
        while scored < len(ids):
            row = ids[start : start + context]
            rows.append((row, [position >= scored for position in range(start, start + len(row))]))
            scored = start + len(row)
            start = scored - context // 2
    return rows


@dataclass(frozen=True)
class TokenPair:
    """One preference as token ids."""

    prompt: Sequence[int]
    chosen: Sequence[int]
    rejected: Sequence[int]
    margin: float = 0.0


class Preferences:
    """Preference pairs; `reference` (N, 2), once it is known, holds each answer's log-probability under the reference."""

    def __init__(self, pairs: Sequence[TokenPair], pad: int):
        self.pairs, self.pad = pairs, pad
        self.reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.pairs)

    def length(self, index: int) -> int:
        pair = self.pairs[index]
        return len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Pairs:
        chosen = [self.pairs[i] for i in indices]
        rows = [(p.prompt, p.chosen) for p in chosen] + [(p.prompt, p.rejected) for p in chosen]
        whole = [self.pairs[i] for i in step]
        return Pairs(
            ids=right_padded([[*prompt, *answer] for prompt, answer in rows], self.pad),
            mask=right_padded([[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows], False),
            real=right_padded([[True] * (len(prompt) + len(answer)) for prompt, answer in rows], False),
            margin=torch.tensor([p.margin for p in chosen]),
            reference=None if self.reference is None else self.reference[list(indices)].T.reshape(-1),
            tokens_per_pair=sum(len(p.prompt) - 1 + len(p.chosen) for p in whole) / len(whole),
            answer_tokens_per_pair=sum(len(p.chosen) for p in whole) / len(whole),
        )


@dataclass(frozen=True)
class TokenJudgement:
    """One judged answer as token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]
    good: bool


class Judgements:
    """Judged answers; `reference` (N, 2), once it is known, as in `Preferences`: of the answer, and of the one from another record."""

    def __init__(self, items: Sequence[TokenJudgement], pad: int):
        self.items, self.pad = items, pad
        self.reference: Tensor | None = None

    def __len__(self) -> int:
        return len(self.items)

    def other(self, index: int) -> int:
        """The record whose answer stands in for a mismatched one: half the data away, where the prompt is another (answers to one
        prompt are neighbours). Fixed, so that the reference can be scored once."""
        return (index + max(1, len(self.items) // 2)) % len(self.items)

    def length(self, index: int) -> int:
        return len(self.items[index].prompt) + len(self.items[index].answer)

    def collate(self, indices: Sequence[int], epoch: int, step: Sequence[int]) -> Judged:
        rows = [(self.items[i].prompt, self.items[i].answer) for i in indices]
        rows += [(self.items[i].prompt, self.items[self.other(i)].answer) for i in indices]
        return Judged(
            ids=right_padded([[*prompt, *answer] for prompt, answer in rows], self.pad),
            mask=right_padded([[False] * len(prompt) + [True] * len(answer) for prompt, answer in rows], False),
            good=torch.tensor([self.items[i].good for i in indices]),
            reference=None if self.reference is None else self.reference[list(indices)].T.reshape(-1),
        )
