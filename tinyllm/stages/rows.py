"""Records as token rows of at most so many tokens, and what became of each on the way. No torch.

`data.too_long` says what happens to a longer record. Cut are: a conversation at its end; before an answer the beginning of the prompt,
as far as it leaves the answer half of the row; and then the answer at its end, each answer of a pair for itself. A prompt that is to be
answered is never cut, since that would be another question. Facts are gathered while rows are made, and judged in `preflight`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tinyllm.data.records import Conversation, Document, Judgement, Pair, Prompt, Record
from tinyllm.stages.sides import messages_of
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer

_BATCH = 1024  # conversations rendered together: their ids as Python objects take five times what the rows take
_TEMPLATES = ("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|eot_id|>", "<start_of_turn>", "[INST]", "[/INST]")

Masked = tuple[Any, Any]  # arrays: ids (T,) int64, what is learned (T,) bool


@dataclass(frozen=True)
class Room:
    """How many tokens a record may have, and what happens to one that has more.

    Args:
        max_length: `data.max_length`.
        too_long: `data.too_long`: truncate, drop or error.
        context: tokens the model takes, where that is known.
        max_new_tokens: kept free for the answer to a prompt.
    """

    max_length: int
    too_long: str = "truncate"
    context: int | None = None
    max_new_tokens: int = 0

    @classmethod
    def of(cls, given: Room | int) -> Room:
        return given if isinstance(given, Room) else cls(given)

    @property
    def limit(self) -> int:
        """The most tokens of a record."""
        return self.max_length if self.context is None else min(self.max_length, self.context - self.max_new_tokens)

    @property
    def cuts(self) -> bool:
        return self.too_long == "truncate"

    @property
    def where(self) -> str:
        return "data.max_length" if self.limit == self.max_length else "rollout.max_new_tokens"


@dataclass
class Facts:
    """What became of the records of one side, one entry each.

    Args:
        what: train, val, or whose records these are.
        answered: whether there are answers to learn from; prompts have none yet.
        end: the name of the token that ends an answer.
    """

    what: str
    room: Room
    total: int
    answered: bool = True
    end: str = "<|im_end|>"
    length: np.ndarray = field(init=False)  # (N,) tokens, before anything was cut; of a pair with its longer answer
    scored: np.ndarray = field(init=False)  # (N,) tokens that are learned
    kept: np.ndarray = field(init=False)  # (N,) it is trained on
    ends: np.ndarray = field(init=False)  # (N,) an end token is learned; of a pair, that of the chosen answer
    open: np.ndarray = field(init=False)  # (N,) an answer lost its end token
    equal: np.ndarray = field(init=False)  # (N,) chosen and rejected are one, once they are cut
    spelled: int = 0  # records with control tokens written out in their text
    spelling: str = ""  # one of those

    def __post_init__(self) -> None:
        self.length, self.scored = np.zeros(self.total, np.int64), np.zeros(self.total, np.int64)
        self.kept, self.ends, self.open, self.equal = (np.zeros(self.total, bool) for _ in range(4))

    @property
    def long(self) -> np.ndarray:
        return self.length > self.room.limit

    def line(self) -> str:
        """The count, and everything that is not as it was in the data, for people."""
        long, limit = self.long, f"{self.room.limit:,} tokens"
        lost = ~self.kept & ~self.equal
        counts = {
            f"cut to {limit}": self.kept & long,
            f"dropped as longer than {limit}": lost & long & (not self.room.cuts or not self.answered),
            "dropped with nothing left to learn": lost & (self.room.cuts | ~long) & self.answered,
            "dropped with equal answers": self.equal,
        }
        parts = [f"{int(which.sum()):,} {how}" for how, which in counts.items() if which.any()]
        return f"{self.what}: {int(self.kept.sum()):,} records" + (f" ({', '.join(parts)})" if parts else "")


# --- rows ------------------------------------------------------------------------------------------------------------------------


def conversations(
    found: Sequence[Conversation], tokenizer: Tokenizer, room: Room, what: str
) -> tuple[list[Masked], Facts]:
    """Rows with the mask of what the assistant says; none with nothing left to learn."""
    facts = _facts(found, tokenizer, room, what)
    rows: list[Masked] = []
    for start in range(0, len(found), _BATCH):
        part = slice(start, min(start + _BATCH, len(found)))
        whole = [_arrays(r) for r in chat.render_many(tokenizer, [c.messages for c in found[part]])]
        facts.length[part] = [len(ids) for ids, _ in whole]
        # the first token that is cut off belongs to an answer
        facts.open[part] = [len(mask) > room.limit and mask[room.limit] for _, mask in whole]
        cut = [(ids[: room.limit], mask[: room.limit]) for ids, mask in whole]
        facts.scored[part], facts.ends[part] = _learned(cut, tokenizer.stop_ids)
        facts.kept[part] = (facts.scored[part] > 0) & ((facts.length[part] <= room.limit) | room.cuts)
        rows += [row for row, keep in zip(cut, facts.kept[part].tolist(), strict=True) if keep]
    return rows, facts


def _arrays(rendered: chat.Rendered) -> Masked:
    return np.array(rendered.ids, np.int64), np.array(rendered.mask, bool)


def _learned(rows: Sequence[Masked], stop: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Of each row how many tokens are learned, and whether an end token is among them."""
    starts = np.cumsum([0, *(len(ids) for ids, _ in rows)])[:-1]
    mask = np.concatenate([mask for _, mask in rows])
    ends = mask & np.isin(np.concatenate([ids for ids, _ in rows]), stop)
    return np.add.reduceat(mask, starts, dtype=np.int64), np.logical_or.reduceat(ends, starts)


def pairs(
    found: Sequence[Pair], tokenizer: Tokenizer, room: Room, what: str
) -> tuple[list[tuple[list[int], list[int], list[int], float]], Facts]:
    """(prompt, chosen, rejected, margin); none whose answers are equal."""
    facts, kept = _facts(found, tokenizer, room, what), []
    for i, pair in enumerate(found):
        prompt, chosen = chat.completion_ids(tokenizer, pair.prompt, pair.chosen)
        _, rejected = chat.completion_ids(tokenizer, pair.prompt, pair.rejected)
        prompt, (chosen, rejected) = _exchange(facts, i, prompt, [chosen, rejected], tokenizer.stop_ids)
        facts.equal[i] = chosen == rejected
        if facts.equal[i]:
            facts.kept[i], facts.scored[i] = False, 0
        if facts.kept[i]:
            kept.append((prompt, chosen, rejected, pair.margin or 0.0))
    return kept, facts


def judgements(
    found: Sequence[Judgement], tokenizer: Tokenizer, room: Room, what: str
) -> tuple[list[tuple[list[int], list[int], bool]], Facts]:
    """(prompt, answer, whether it is a good one), cut as `pairs` are."""
    facts, kept = _facts(found, tokenizer, room, what), []
    for i, judgement in enumerate(found):
        prompt, answer = chat.completion_ids(tokenizer, judgement.prompt, judgement.completion)
        prompt, (answer,) = _exchange(facts, i, prompt, [answer], tokenizer.stop_ids)
        if facts.kept[i]:
            kept.append((prompt, answer, judgement.good))
    return kept, facts


def _exchange(
    facts: Facts, i: int, prompt: list[int], answers: list[list[int]], stop: Sequence[int]
) -> tuple[list[int], list[list[int]]]:
    """Prompt and answers cut to the room there is."""
    longest, limit = max(map(len, answers)), facts.room.limit
    facts.length[i] = len(prompt) + longest
    prompt = prompt[left_out(len(prompt), longest, limit) :]
    cut = [answer[: limit - len(prompt)] for answer in answers]
    facts.scored[i] = sum(map(len, cut))
    facts.open[i] = any(len(short) < len(whole) for short, whole in zip(cut, answers, strict=True))
    facts.ends[i] = cut[0][-1] in stop
    facts.kept[i] = facts.room.cuts or facts.length[i] <= limit
    return prompt, cut


def left_out(prompt: int, longest: int, limit: int) -> int:
    """How many tokens of the beginning of a prompt make room for the answer."""
    return 0 if prompt + longest <= limit else max(0, prompt - max(limit // 2, limit - longest))


def prompts(
    found: Sequence[Prompt], tokenizer: Tokenizer, room: Room, what: str
) -> tuple[list[tuple[list[int], dict[str, Any]]], Facts]:
    """(ids up to the assistant's header, the columns that rewards read); none that leaves no room for an answer."""
    facts = _facts(found, tokenizer, room, what, answered=False)
    rendered = chat.render_many(tokenizer, [p.messages for p in found], generation_prompt=True)
    facts.length[:] = [len(r.ids) for r in rendered]
    facts.kept[:] = ~facts.long
    kept = [
        (r.ids, {"prompt": list(p.messages), **p.columns})
        for r, p, keep in zip(rendered, found, facts.kept.tolist(), strict=True)
        if keep
    ]
    return kept, facts


def _facts(found: Sequence[Record], tokenizer: Tokenizer, room: Room, what: str, *, answered: bool = True) -> Facts:
    end = tokenizer.decode([tokenizer.stop_ids[0]], skip_special=False)
    facts = Facts(what, room, len(found), answered, end)
    facts.spelled, facts.spelling = spelled(found, tokenizer)
    return facts


def spelled(found: Sequence[Record], tokenizer: Tokenizer) -> tuple[int, str]:
    """How many records have control tokens of a chat template in their text, as if one had been applied; and one of those tokens."""
    own = [i for i in (tokenizer.bos, tokenizer.endoftext) if i is not None]
    marks = tuple(dict.fromkeys([*_TEMPLATES, *(tokenizer.decode([i], skip_special=False) for i in own)]))
    count, first = 0, ""
    for record in found:
        there = next((mark for m in messages_of(record) for mark in marks if mark in m["content"]), "")
        count, first = count + bool(there), first or there
    return count, first


def documents(found: Sequence[Document], tokenizer: Tokenizer, room: Room, what: str) -> Facts:
    """Texts, each with its end: none is cut or dropped, longer ones go over several rows."""
    facts = Facts(what, room, len(found), end=tokenizer.decode([tokenizer.endoftext], skip_special=False))
    for start in range(0, len(found), _BATCH):
        part = slice(start, min(start + _BATCH, len(found)))
        facts.length[part] = [len(ids) + 1 for ids in tokenizer.encode_batch([d.text for d in found[part]])]
    facts.scored[:], facts.kept[:], facts.ends[:] = facts.length, True, True
    return facts
