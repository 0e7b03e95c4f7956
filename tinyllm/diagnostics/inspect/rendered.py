"""Records token by token: ids, text, and whether a token is trained on, ignored, an end token or truncated. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyllm.data.records.types import Conversation, Document, Pair, Prompt, Record, UnpairedPreference, prompt_of
from tinyllm.data.tokenization import LengthLimit, prompt_tokens_cut
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer

TRAINED, IGNORED, STOP, CUT, GAP = "trained", "ignored", "stop", "cut", "gap"
MEANING = {TRAINED: "trained", STOP: "trained end token", IGNORED: "not trained", CUT: "truncated"}
_END = 400  # tokens shown at the beginning and at the end of a long row
_CHARACTERS = 2000  # the same without a tokenizer


@dataclass(frozen=True)
class Piece:
    """Text of a row: usually one token, several if only together they form a character; without a tokenizer no ids."""

    text: str
    ids: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Row:
    """One sequence: its tokens, which of them are trained on, and the range that is kept."""

    name: str
    ids: Sequence[int]
    mask: Sequence[bool]
    start: int
    stop: int


def shown(record: Record, tokenizer: Tokenizer | None, limit: LengthLimit) -> list[dict[str, Any]]:
    """Return the rows of a record: `name`, `length` in tokens (None without a tokenizer), `pieces`."""
    if tokenizer is None:
        return [_row(name, None, _plain(turns)) for name, turns in _turns(record)]
    return [
        _row(row.name, len(row.ids), pieces(tokenizer, row.ids, _roles(row, tokenizer.stop_ids)))
        for row in _rows(record, tokenizer, limit)
    ]


def _row(name: str, length: int | None, found: Sequence[Piece]) -> dict[str, Any]:
    return {"name": name, "length": length, "pieces": [asdict(piece) for piece in found]}


def _rows(record: Record, tokenizer: Tokenizer, limit: LengthLimit) -> Iterator[Row]:
    if isinstance(record, Document):
        ids = [*tokenizer.encode(record.text), tokenizer.endoftext]
        yield Row("document", ids, [True] * len(ids), 0, len(ids))
    elif isinstance(record, Conversation):
        whole = chat.render(tokenizer, record.messages)
        yield _kept(Row("conversation", whole.ids, whole.mask, 0, limit.tokens), limit)
    elif isinstance(record, Prompt):
        ids = chat.render(tokenizer, record.messages, generation_prompt=True).ids
        yield Row("prompt", ids, [False] * len(ids), 0, len(ids) if len(ids) <= limit.tokens else 0)
    else:
        sides = _answers(record)
        halves = [chat.completion_ids(tokenizer, record.prompt, answer) for _, answer in sides]
        longest = max(len(answer) for _, answer in halves)
        for (name, _), (prompt, answer) in zip(sides, halves, strict=True):
            start = prompt_tokens_cut(len(prompt), longest, limit.tokens)
            mask = [False] * len(prompt) + [True] * len(answer)
            dropped = len(prompt) + longest > limit.tokens and not limit.truncates
            yield Row(name, [*prompt, *answer], mask, start, 0 if dropped else start + limit.tokens)


def _kept(row: Row, limit: LengthLimit) -> Row:
    return row if limit.truncates or len(row.ids) <= limit.tokens else Row(row.name, row.ids, row.mask, 0, 0)


def _answers(record: Pair | UnpairedPreference) -> list[tuple[str, Sequence[chat.Message]]]:
    if isinstance(record, Pair):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    return [("good" if record.good else "bad", record.completion)]


def _roles(row: Row, stop: Sequence[int]) -> list[str]:
    return [
        CUT if not row.start <= i < row.stop else IGNORED if not trained else STOP if token in stop else TRAINED
        for i, (token, trained) in enumerate(zip(row.ids, row.mask, strict=True))
    ]


def pieces(tokenizer: Tokenizer, ids: Sequence[int], roles: Sequence[str]) -> list[Piece]:
    """Return tokens as text, in order, without the middle of a long row. Tokens that only together form a character are one piece."""
    if len(ids) > 2 * _END:
        gap = Piece(f"{len(ids) - 2 * _END:,} tokens", (), GAP)
        return [
            *pieces(tokenizer, ids[:_END], roles[:_END]),
            gap,
            *pieces(tokenizer, ids[-_END:], roles[-_END:]),
        ]
    found: list[Piece] = []
    held: list[int] = []
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for at, (token, role) in enumerate(zip(ids, roles, strict=True)):
        if token in tokenizer.special_ids:
            text += tokenizer.decode([token], skip_special=False)
        else:
            text += decoder.decode(tokenizer.text_bytes(token))
        held.append(token)
        after = ids[at + 1] if at + 1 < len(ids) and roles[at + 1] == role else None
        closed = after is None or token in tokenizer.special_ids or after in tokenizer.special_ids
        if closed or not decoder.getstate()[0]:  # no character is open: one that a cut has split ends here as U+FFFD
            found.append(Piece(text + decoder.decode(b"", final=True), tuple(held), role))
            held, text = [], ""
    return found


# --- without a tokenizer ---------------------------------------------------------------------------------------------------------


def _turns(record: Record) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """Yield (name, [(role, text, whether it is trained on)]) of every row."""
    if isinstance(record, Document):
        yield "document", [("", record.text, True)]
    elif isinstance(record, Conversation):
        yield "conversation", [(m["role"], m["content"], chat.is_trained(m)) for m in record.messages]
    else:
        prompt = [(m["role"], m["content"], False) for m in prompt_of(record)]
        if isinstance(record, Prompt):
            yield "prompt", prompt
        else:
            for name, answer in _answers(record):
                yield name, [*prompt, *((m["role"], m["content"], True) for m in answer)]


def _plain(turns: Sequence[tuple[str, str, bool]]) -> list[Piece]:
    found: list[Piece] = []
    for role, text, trained in turns:
        found += [Piece(f"{role}: ", (), IGNORED)] if role else []
        over = len(text) - 2 * _CHARACTERS
        kept = TRAINED if trained else IGNORED
        if over > 0:
            found += [Piece(text[:_CHARACTERS], (), kept), Piece(f"{over:,} characters", (), GAP)]
            text = text[-_CHARACTERS:]
        found += [Piece(text, (), kept), Piece("\n", (), IGNORED)]
    return found[:-1]
