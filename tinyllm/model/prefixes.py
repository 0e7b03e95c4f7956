"""Rows that begin with the same prompt: the answers of a group, whose prompt is computed once in a training forward pass.

The tokens of a batch are laid out as one sequence, first every distinct prompt, then every answer. What acts on single tokens
(projections, norms, MLPs) needs to know nothing of it. In attention an answer sees its prompt and itself, at the positions that it has in
a row of its own, so states and gradients are those of plain rows up to rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple, Self

import torch
from torch import Tensor

_WIDTH = 16  # prompts and answers are padded to a multiple: few distinct shapes
_WORTH = 0.85  # of the tokens of plain rows, at most; with more left, splitting attention costs what is saved
_LONGEST = (
    3  # times as long as the prompt an answer may be: without its causal half, attention then costs half as much again
)
_SCORES = 1 << 20  # of an answer, at most: a mask of that size is kept for every layer


_sharing = ContextVar("sharing", default=True)


@contextmanager
def plain_rows() -> Iterator[None]:
    """Compute every row by itself: for measurements that hold whatever rows share."""
    token = _sharing.set(False)
    try:
        yield
    finally:
        _sharing.reset(token)


class SharedPrompts(NamedTuple):
    """U prompts of P tokens and R answers of A tokens, both padded on the right."""

    tokens: Tensor  # (1, U P + R A) int64
    lengths: Tensor  # (R,) int64, tokens of each answer's prompt
    which: Tensor  # (R,) int64, the prompt of each answer
    places: Tensor  # (R, T) int64, where the tokens of the plain rows are in the sequence
    prompts: tuple[int, int]  # U, P
    answers: tuple[int, int]  # R, A

    @classmethod
    def of(cls, ids: Tensor, mask: Tensor, group: Tensor) -> Self | None:
        """Return the layout of rows `ids` (R, T); None where there is little to share.

        Args:
            mask: (R, T) bool; an answer reaches from the first token to the last one that is set.
            group: (R,) int64, equal for rows that may begin with the same prompt. They are compared.
        """
        if not _sharing.get() or not len(ids):
            return None
        rows, width = ids.shape
        numbers, which = group.long().unique(return_inverse=True)
        place = torch.arange(width, device=ids.device)
        lengths, ends = mask.int().argmax(1), width - mask.flip(1).int().argmax(1)
        longest, answer = (_padded(n) for n in torch.stack((lengths.max(), (ends - lengths).max())).tolist())
        longest = min(longest, width)
        tokens = len(numbers) * longest + rows * answer
        large = answer > _LONGEST * longest or answer * (longest + answer) > _SCORES
        if large or tokens > _WORTH * rows * width:
            return None
        first = torch.full_like(numbers, rows).scatter_reduce(
            0, which, torch.arange(rows, device=ids.device), "amin"
        )  # a row of each group
        of_prompt = place[:longest] < lengths[:, None]
        start = ids[:, :longest]
        same = ((start == start[first][which]) | ~of_prompt).all(1) & (lengths == lengths[first][which])
        if not bool((same & mask.any(1)).all()):
            return None
        at = (lengths[:, None] + torch.arange(answer, device=ids.device)).clamp(max=width - 1)
        sequence = torch.cat((start[first].flatten(), ids.gather(1, at).flatten()))
        own = len(numbers) * longest + torch.arange(rows, device=ids.device)[:, None] * answer
        behind = (place - lengths[:, None]).clamp(max=answer - 1)
        places = torch.where(behind < 0, which[:, None] * longest + place, own + behind)
        return cls(sequence[None], lengths, which, places, (len(numbers), longest), (rows, answer))

    def positions(self) -> tuple[Tensor, Tensor]:
        """Return the positions of the prompts' tokens (P,), and of the answers' (R, A)."""
        device = self.tokens.device
        answers = self.lengths[:, None] + torch.arange(self.answers[1], device=device)
        return torch.arange(self.prompts[1], device=device), answers

    def sequence_positions(self) -> Tensor:
        """Return the positions of the sequence's tokens, (U P + R A,)."""
        prompt, answer = self.positions()
        return torch.cat((prompt.repeat(self.prompts[0]), answer.flatten()))

    def mask(self, window: int | None) -> Tensor:
        """Return (R, 1, A, P + A) bool: a token of an answer sees its prompt and its answer up to itself, within the window."""
        prompt, answer = self.positions()
        rows = len(self.lengths)
        seen = (prompt < self.lengths[:, None])[:, None].expand(rows, self.answers[1], -1)
        own = answer[:, :, None] >= answer[:, None, :]  # (R, A, A)
        seen = torch.cat((seen, own), -1)
        if window is not None:
            keys = torch.cat((prompt.expand(rows, -1), answer), 1)
            seen = seen & (keys[:, None, :] > answer[:, :, None] - window)
        return seen[:, None]

    def rows(self, states: Tensor) -> Tensor:
        """Return the states (R, T, D) of plain rows from those of the sequence (1, U P + R A, D). Behind answers they mean nothing."""
        return states[0].index_select(0, self.places.flatten()).view(*self.places.shape, -1)


def _padded(length: int) -> int:
    return -(-length // _WIDTH) * _WIDTH
