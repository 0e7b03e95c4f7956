"""Rows from a queue, decoded together: a row enters when there is room and leaves when it is done, so the batch stays full.

Nothing is read back from the device but every few steps, to see which rows are done.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tinyllm.errors import FAILED, UserError
from tinyllm.model.decoding import few_rows, graphs, native, packed
from tinyllm.model.decoding.choosing import choose, penalized, uniforms
from tinyllm.model.decoding.completion import Completion, Sampling
from tinyllm.model.decoding.few_rows import FewRows
from tinyllm.model.decoding.one_token import OneToken
from tinyllm.model.decoding.packed import Packed
from tinyllm.model.decoding.prefill import Prefilled, prefill, products_dtype
from tinyllm.model.decoding.products import Head, Product
from tinyllm.model.decoding.ring import Ring
from tinyllm.model.transformer import CausalLM

_CHECKED_EVERY = {"cpu": 4, "cuda": 16, "mps": 16}  # steps, for rows that are done; a check waits for the device
_IDLE = 8  # the batch is refilled, or made smaller, when one row in so many is done


@dataclass(eq=False)
class Row:
    """A prompt to complete."""

    prompt: tuple[int, ...]
    limit: int
    """new tokens, at most"""
    stream: int
    """of the random numbers"""
    completion: Completion = field(default_factory=Completion)
    start: int = 0
    """the column of the first token that is sampled while the row is where it is"""
    end: int = 0
    """the column behind the last one it may fill there"""

    @property
    def text(self) -> tuple[int, ...]:
        """The prompt, and what was sampled before the row entered."""
        return (*self.prompt, *self.completion.ids)

    @property
    def remaining(self) -> int:
        """New tokens, at most, from when the row entered."""
        return self.limit - len(self.completion.ids)


class Engine:
    """Decodes rows with one model, which is in evaluation mode, and one kind of sampling.

    Args:
        slots: rows decoded together.
        capacity: tokens of prompt and completion of a row, at most.
        checked_every: steps after which rows that are done leave.
    """

    def __init__(
        self, model: CausalLM, sampling: Sampling, *, slots: int, capacity: int, checked_every: int | None = None
    ):
        self.model, self.sampling, self.slots, self.capacity = model, sampling, slots, capacity
        self.device = model.lm_head.weight.device
        self.checked_every = checked_every or _CHECKED_EVERY[self.device.type]
        self.weights = OneToken(model, products_dtype(model), capacity + self.checked_every + 1)
        self._functions = native.library() if native.covers(self.weights) else None
        self._native: native.NativeStep | None = None  # of the ring as it is
        self._graph: graphs.GraphStep | None = None  # of the ring
        self._alike = 0  # steps with the same rows
        self._narrow: Mapping[Product | Head, FewRows] = {}
        self._packed: Mapping[Product | Head, Packed] = {}
        self._packed_for = 0  # rows
        self.queue: deque[Row] = deque()
        self.rows: list[Row | None] = []  # of each slot; None: done
        self.checked = 0  # up to this column
        self._prefilled: dict[tuple[int, ...], Prefilled] = {}  # prompts of which some rows still wait
        self._stops = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=self.device)
        self._stops[[token for token in sampling.stop if 0 <= token < model.config.vocab_size]] = True

    def submit(self, rows: Sequence[Row]) -> None:
        """Put rows at the end of the queue."""
        self.queue.extend(rows)

    @property
    def busy(self) -> bool:
        """Whether a row waits or is decoded."""
        return bool(self.queue) or any(row is not None for row in self.rows)

    def run(self) -> Iterator[Row]:
        """Decode until all rows are done; yield each row when it is."""
        while self.busy:
            yield from self.advance()

    def written(self, row: Row) -> list[int]:
        """Return the ids of a row's completion up to the last check."""
        if row not in self.rows:
            return row.completion.ids
        return row.completion.ids + self.ring.read(
            self.ring.ids, self.rows.index(row), row.start, min(self.checked, row.end)
        )

    def advance(self) -> list[Row]:
        """Let rows enter, decode up to the next check, and return the rows that are done."""
        done = self._admit() if self.queue else []
        ends = [row.end for row in self.rows if row is not None]
        if not ends:
            return done
        with torch.inference_mode():
            for _ in range(min(self.checked_every, min(ends) - 1 - self.ring.column)):
                logits = self._logits()
                self.ring.column += 1
                self._choose(logits, slice(None))
            return done + self._check()

    def _logits(self) -> Tensor:
        """Return the logits (B, V) that follow the ids of this column."""
        if self._native is None and self._functions is not None:
            self._native = native.NativeStep(
                self.weights, self.ring, self._functions, self._prepared_products(self._functions)
            )
        if self._native is not None:
            return self._native(self.ids)
        self._alike += 1
        if self._graph is None and self._alike > graphs.AFTER and graphs.wanted(self.weights, self.ring):
            self._graph = graphs.GraphStep(self.weights, self.ring)
        if self._graph is not None:
            return self._graph(self.ids)
        return self.weights(self.ids, self.ring.positions, self.ring.columns())

    def _prepared_products(self, functions: ctypes.CDLL) -> Mapping[Product | Head, FewRows | Packed]:
        """Return products that are faster than those of the weights as they are, for the rows of the ring."""
        rows, left = len(self.rows), max((row.remaining for row in self.rows if row is not None), default=0)
        if not self._narrow and few_rows.pays(self.weights, self.slots, left):
            self._narrow = few_rows.narrow_products(self.weights, functions)
        if self._narrow:
            return self._narrow
        if not self._packed_for // 2 < rows <= self._packed_for and packed.pays(self.weights, rows, left):
            self._packed = {}  # its memory is needed
            self._packed, self._packed_for = packed.packed_products(self.weights, rows), rows
        return self._packed if self._packed_for // 2 < rows <= self._packed_for else {}

    def _choose(self, logits: Tensor, slots: slice | list[int]) -> None:
        """Choose the tokens of the current column for some slots, from logits (n, V)."""
        ring, place = self.ring, self.ring.place
        if ring.seen is not None:
            logits = penalized(logits, ring.seen[slots], self.sampling.repetition_penalty)
        chosen_by = choose
        if self._native is not None and isinstance(slots, slice) and self.sampling.of_all:
            chosen_by = self._native.choose
        ids, log_probs = chosen_by(logits, self.sampling, ring.uniforms[slots, place])
        ring.ids[slots, place], ring.log_probs[slots, place] = ids, log_probs
        self.ids = ring.ids[:, place]
        if ring.seen is not None:
            ring.seen.scatter_(1, self.ids[:, None], True)

    # --- rows that are done --------------------------------------------------------------------------------------------------------

    def _check(self) -> list[Row]:
        """Return the rows that are done, and make the batch smaller if they are many and none waits."""
        since, self.checked = self.checked, self.ring.column + 1
        places = torch.arange(since, self.checked, device=self.device) % self.capacity
        finite = self.ring.log_probs[:, places].isfinite().all(1).tolist()
        stops = self._stops[self.ring.ids[:, places]].int()
        stop_columns = (since + torch.where(stops.any(1), stops.argmax(1), len(places))).tolist()
        done: list[Row] = []
        for slot, row in enumerate(self.rows):
            if row is None:
                continue
            if not finite[slot]:  # argmax would return some token
                what = "the model's probabilities of the next token are not finite"
                raise UserError(what, fix="use another checkpoint: the weights of this one overflow", code=FAILED)
            stopped = stop_columns[slot] < self.checked
            if stopped or self.checked >= row.end:
                self._leave(slot, row, stop_columns[slot] + 1 if stopped else row.end, finished=stopped)
                if stopped or not row.remaining:
                    done.append(row)
                else:  # its text is rotated in another way from here on
                    self.queue.appendleft(row)
        self.ring.forget([slot for slot, row in enumerate(self.rows) if row is None])
        self._make_smaller()
        return done

    def _leave(self, slot: int, row: Row, end: int, *, finished: bool) -> None:
        """Add what a row has sampled up to column `end` to its completion, and free its slot."""
        row.completion.ids += self.ring.read(self.ring.ids, slot, row.start, end)
        row.completion.log_probs += self.ring.read(self.ring.log_probs, slot, row.start, end)
        row.completion.finished = finished
        self.rows[slot] = None

    def _make_smaller(self) -> None:
        alive = [slot for slot, row in enumerate(self.rows) if row is not None]
        many = len(self.rows) - len(alive) >= max(1, len(self.rows) // _IDLE)
        if not alive:
            self.rows = []
        elif many and not self.queue:
            self.ring.keep(alive)
            self._native = self._graph = None
            self._alike = 0
            self.ids = self.ring.ids[:, self.ring.place]
            self.rows = [self.rows[slot] for slot in alive]

    # --- rows that enter -----------------------------------------------------------------------------------------------------------

    def _admit(self) -> list[Row]:
        """Let waiting rows enter if enough slots are free, sample their first tokens, and return those that are done with it."""
        free = [slot for slot, row in enumerate(self.rows) if row is None] if self.rows else list(range(self.slots))
        if len(free) < min(len(self.queue), max(1, self.slots // _IDLE)):
            return []
        entering = [self.queue.popleft() for _ in range(min(len(free), len(self.queue)))]
        prompts, slots = [row.text for row in entering], free[: len(entering)]
        hidden = self._prefill(prompts)
        with torch.inference_mode():
            self._native = None
            if not self.rows:
                self._begin(prompts)
            else:
                self.ring.differ()
            self._enter(slots, entering, prompts)
            self._choose(self.weights.logits(hidden), slots)
            self.checked = self.ring.column
            return self._check()

    def _prefill(self, prompts: Sequence[tuple[int, ...]]) -> Tensor:
        """Compute the prompts that are not yet, each once; return the states behind all of them, (n, D)."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._prefilled]
        self._prefilled |= prefill(self.model, new)
        return torch.stack([self._prefilled[prompt].hidden for prompt in prompts])

    def _begin(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Make a batch whose rows all enter now."""
        self._graph, self._alike = None, 0
        rows, lengths = self.slots if self.queue else len(prompts), {len(prompt) for prompt in prompts}
        self.rows = [None] * rows
        self.ring = Ring(
            self.model.config,
            rows,
            self.capacity,
            max(lengths),
            uneven=len(lengths) > 1,
            penalized=self.sampling.repetition_penalty != 1,
            dtype=self.weights.dtype,
            device=self.device,
        )

    def _enter(self, slots: Sequence[int], entering: Sequence[Row], prompts: Sequence[tuple[int, ...]]) -> None:
        """Put rows into free slots, with their prompts and their random numbers."""
        streams = [row.stream for row in entering] if self.sampling.temperature else []
        numbers = uniforms(self.sampling.seed, streams, max(row.limit for row in entering)).to(self.device)
        for i, (slot, row, prompt) in enumerate(zip(slots, entering, prompts, strict=True)):
            self.ring.enter(slot, prompt, self._prefilled[prompt])
            if streams:
                self.ring.write(self.ring.uniforms, slot, numbers[i, len(row.completion.ids) : row.limit])
            row.start, row.end = self.ring.column, self.ring.column + self._stay(row)
            self.rows[slot] = row
        waiting = (
            self.queue[0].text if self.queue else None
        )  # the group of a prompt may be divided between two admissions
        self._prefilled = {prompt: found for prompt, found in self._prefilled.items() if prompt == waiting}

    def _stay(self, row: Row) -> int:
        """Return how many tokens a row samples before it is done, or must enter again since its text is rotated in another way."""
        if not self.model.model.forgetful:
            return row.remaining
        now = len(row.text)
        grown = range(now + 1, now + row.remaining)
        return next((i for i, length in enumerate(grown, 1) if self.model.model.forgets_at(length)), row.remaining)
