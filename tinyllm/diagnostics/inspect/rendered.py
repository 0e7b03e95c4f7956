"""Records token by token: ids, text, and whether a token is trained on, ignored, an end token or truncated. No torch."""

from __future__ import annotations

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
    for at, (token, role) in enumerate(zip(ids, roles, strict=True)):
        held.append(token)
        closed = at + 1 == len(ids) or roles[at + 1] != role or token in tokenizer.special_ids
        text = _text(tokenizer, held)
        if text is not None or closed or len(held) == 4:  # a character has four bytes at most
            found.append(Piece(text if text is not None else tokenizer.decode(held), tuple(held), role))
            held = []
    return found


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str | None:
    """Return the text of tokens, control tokens by name; None if they end within a character."""
    if len(ids) == 1 and ids[0] in tokenizer.special_ids:
        return tokenizer.decode(ids, skip_special=False)
    try:
        return b"".join(map(tokenizer.text_bytes, ids)).decode()
    except UnicodeDecodeError:
        return None


# --- without a tokenizer ---------------------------------------------------------------------------------------------------------


def _turns(record: Record) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """Yield (name, [(role, text, whether it is trained on)]) of every row."""
    if isinstance(record, Document):
        yield "document", [("", record.text, True)]
    elif isinstance(record, Conversation):
        yield "conversation", [(m["role"], m["content"], m["role"] == "assistant") for m in record.messages]
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
