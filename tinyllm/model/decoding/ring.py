"""What the rows of a batch have in each column: keys and values, ids, log-probabilities, random numbers, and what may be attended to.

All rows write their next token to the same column of the ring. A row that enters at column t has its prompt in the columns before t and its
completion from t on, so a step is the same few operations whatever has entered and left. Columns are counted without end; a column's place
is its number modulo the capacity, which no row exceeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from tinyllm import allocator
from tinyllm.model.config import ModelConfig
from tinyllm.model.decoding.one_token import Columns
from tinyllm.model.decoding.prefill import Prefilled


class Ring:
    """The tensors of a batch.

    Args:
        rows: B, slots of the batch.
        capacity: columns.
        column: the first that is written.
        uneven: prompts have several lengths.
        penalized: which tokens a row has is kept as well.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        column: int,
        *,
        uneven: bool,
        penalized: bool,
        dtype: torch.dtype,
        device: torch.device,
    ):
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self.capacity, self.column, self.dtype, self.device = capacity, column, dtype, device
        # zeros: what a row may not see is multiplied by a probability of 0, which makes NaN of what is not a number
        self.keys, self.values = (_zeros(shape, dtype, device) for _ in range(2))
        wide = torch.promote_types(dtype, torch.float32)
        self.ids = torch.zeros(rows, capacity, dtype=torch.long, device=device)
        self.log_probs = torch.zeros(rows, capacity, dtype=wide, device=device)
        self.uniforms = torch.zeros(rows, capacity, device=device)
        self.seen = torch.zeros(rows, config.vocab_size, dtype=torch.bool, device=device) if penalized else None
        self.windows = {window: self._limit(window) for window in map(config.window, range(config.num_hidden_layers))}
        self.wrapped = False  # some row begins before column 0
        # where rows differ in what they see: the column of each row's first token, and by window 0 or -inf for each column
        self.first: Tensor | None = None
        self.masks: dict[int | None, Tensor] = {}
        if uneven or any(self.windows.values()):
            self._become_uneven()

    @property
    def place(self) -> int:
        """The place of the column that is written."""
        return self.column % self.capacity

    @property
    def positions(self) -> int | Tensor:
        """The position of the column's tokens in their texts, (B,) or one for all."""
        return self.column if self.first is None else self.column - self.first

    def advance_masks(self) -> int:
        """Let all rows see this column, and return how many columns are read."""
        for window, mask in self.masks.items():
            mask[:, self.place] = 0.0
            if window is not None:
                mask[:, (self.column - window) % self.capacity] = -torch.inf
        return self.capacity if self.wrapped or self.column >= self.capacity else self.place + 1

    def columns(self) -> Columns:
        """Return what the computation of this column's tokens reads and writes."""
        end = self.advance_masks()
        masks = {name: self.masks[limit][:, :end] for name, limit in self.windows.items()} if self.masks else {}
        return Columns(
            self.keys.flatten(1, 2)[..., :end, :].unbind(0),
            self.values.flatten(1, 2)[..., :end, :].unbind(0),
            self.keys[..., self.place, :].unbind(0),
            self.values[..., self.place, :].unbind(0),
            masks,
        )

    def enter(self, slot: int, prompt: Sequence[int], prefilled: Prefilled) -> None:
        """Put a prompt into the columns before this one."""
        start, done = self.column - len(prompt), 0
        self.wrapped |= start < 0
        for mask in self.masks.values():
            mask[slot] = -torch.inf
        for part in self._parts(start, self.column):
            size = part.stop - part.start
            self.keys[:, slot, :, part] = prefilled.keys[:, :, done : done + size]
            self.values[:, slot, :, part] = prefilled.values[:, :, done : done + size]
            for window, mask in self.masks.items():
                hidden = 0 if window is None else min(size, max(0, len(prompt) - window - done))
                mask[slot, part.start + hidden : part.stop] = 0.0
            done += size
        if self.first is not None:
            self.first[slot] = start
        if self.seen is not None:
            self.seen[slot] = False
            self.seen[slot, list(prompt)] = True

    def differ(self) -> None:
        """Prepare for a row that does not see the same columns as the others."""
        if self.first is None:
            self._become_uneven()

    def write(self, values: Tensor, slot: int, numbers: Tensor) -> None:
        """Write numbers (n,) into this column and those after it, of one of the tensors (B, columns)."""
        done = 0
        for part in self._parts(self.column, self.column + len(numbers)):
            values[slot, part] = numbers[done : done + part.stop - part.start]
            done += part.stop - part.start

    def read(self, values: Tensor, slot: int, start: int, end: int) -> list:
        """Return what one of the tensors (B, columns) has in a row's columns from `start` to before `end`."""
        return [number for part in self._parts(start, end) for number in values[slot, part].tolist()]

    def forget(self, slots: Sequence[int]) -> None:
        """Let rows that are done begin here: their positions would grow beyond the tables."""
        if slots and self.first is not None:
            self.first[slots] = self.column

    def keep(self, slots: Sequence[int]) -> None:
        """Keep the rows of some slots and drop the others."""
        kept = torch.tensor(slots, device=self.device)
        self.keys, self.values = self.keys.index_select(1, kept), self.values.index_select(1, kept)
        self.ids, self.log_probs, self.uniforms = (
            values.index_select(0, kept) for values in (self.ids, self.log_probs, self.uniforms)
        )
        self.masks = {window: mask.index_select(0, kept) for window, mask in self.masks.items()}
        self.first = None if self.first is None else self.first.index_select(0, kept)
        self.seen = None if self.seen is None else self.seen.index_select(0, kept)

    def _limit(self, window: int | None) -> int | None:
        """Return the window if it is shorter than any text."""
        return window if window is not None and window < self.capacity else None

    def _become_uneven(self) -> None:
        """Make the masks. So far all rows see all columns before this one."""
        rows = len(self.ids)
        self.first = torch.zeros(rows, dtype=torch.long, device=self.device)
        mask = torch.full((rows, self.capacity), -torch.inf, dtype=self.dtype, device=self.device)
        mask[:, : self.column] = 0.0
        self.masks = {window: mask.clone() for window in set(self.windows.values())}

    def _parts(self, start: int, end: int) -> Iterator[slice]:
        """Yield the places of columns `start` up to `end`, which are one slice or two."""
        while start < end:
            place = start % self.capacity
            size = min(end - start, self.capacity - place)
            yield slice(place, place + size)
            start += size


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    count = math.prod(shape)
    pages = allocator.zeros_in_huge_pages(count * dtype.itemsize) if device.type == "cpu" else None
    if pages is None:
        return torch.zeros(shape, dtype=dtype, device=device)
    return torch.frombuffer(pages, dtype=dtype, count=count).view(shape)
