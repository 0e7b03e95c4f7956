"""Single records made visible: every token with its ids, and whether it is learned, ignored, an end token or cut off. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tinyllm.data.records import Conversation, Document, Judgement, Pair, Prompt, Record
from tinyllm.stages.rows import Room, left_out
from tinyllm.stages.sides import prompt_of
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer

TRAINED, IGNORED, STOP, CUT, GAP = "trained", "ignored", "stop", "cut", "gap"
MEANING = {TRAINED: "learned", STOP: "learned end token", IGNORED: "not learned", CUT: "cut off, never seen"}
_END = 400  # tokens shown of the beginning and of the end of a long row
_CHARACTERS = 2000  # the same where there is no tokenizer


@dataclass(frozen=True)
class Piece:
    """Some text of a row. Several tokens where one alone is no whole character; none where there is no tokenizer."""

    text: str
    ids: tuple[int, ...]
    role: str


@dataclass(frozen=True)
class Row:
    """One sequence: all its tokens, what is learned of them, and how much of it is kept."""

    name: str
    ids: Sequence[int]
    mask: Sequence[bool]
    start: int
    stop: int


def shown(record: Record, tokenizer: Tokenizer | None, room: Room) -> list[dict[str, Any]]:
    """The rows of a record: `name`, `length` in tokens (None without a tokenizer), `pieces`."""
    if tokenizer is None:
        return [_row(name, None, _plain(turns)) for name, turns in _turns(record)]
    return [
        _row(row.name, len(row.ids), pieces(tokenizer, row.ids, _roles(row, tokenizer.stop_ids)))
        for row in _rows(record, tokenizer, room)
    ]


def _row(name: str, length: int | None, found: Sequence[Piece]) -> dict[str, Any]:
    return {"name": name, "length": length, "pieces": [asdict(piece) for piece in found]}


def _rows(record: Record, tokenizer: Tokenizer, room: Room) -> Iterator[Row]:
    limit = room.limit
    if isinstance(record, Document):
        ids = [*tokenizer.encode(record.text), tokenizer.endoftext]
        yield Row("document", ids, [True] * len(ids), 0, len(ids))
    elif isinstance(record, Conversation):
        whole = chat.render(tokenizer, record.messages)
        yield _kept(Row("conversation", whole.ids, whole.mask, 0, limit), room)
    elif isinstance(record, Prompt):
        ids = chat.render(tokenizer, record.messages, generation_prompt=True).ids
        yield Row("prompt", ids, [False] * len(ids), 0, len(ids) if len(ids) <= limit else 0)
    else:
        sides = _answers(record)
        halves = [chat.completion_ids(tokenizer, record.prompt, answer) for _, answer in sides]
        longest = max(len(answer) for _, answer in halves)
        for (name, _), (prompt, answer) in zip(sides, halves, strict=True):
            start = left_out(len(prompt), longest, limit)
            mask = [False] * len(prompt) + [True] * len(answer)
            dropped = len(prompt) + longest > limit and not room.cuts
            yield Row(name, [*prompt, *answer], mask, start, 0 if dropped else start + limit)


def _kept(row: Row, room: Room) -> Row:
    return row if room.cuts or len(row.ids) <= room.limit else Row(row.name, row.ids, row.mask, 0, 0)


def _answers(record: Pair | Judgement) -> list[tuple[str, Sequence[chat.Message]]]:
    if isinstance(record, Pair):
        return [("chosen", record.chosen), ("rejected", record.rejected)]
    return [("good" if record.good else "bad", record.completion)]


def _roles(row: Row, stop: Sequence[int]) -> list[str]:
    return [
        CUT if not row.start <= i < row.stop else IGNORED if not learned else STOP if token in stop else TRAINED
        for i, (token, learned) in enumerate(zip(row.ids, row.mask, strict=True))
    ]


def pieces(tokenizer: Tokenizer, ids: Sequence[int], roles: Sequence[str]) -> list[Piece]:
    """Tokens as text, in order, with the middle of a long row left out. Tokens that only together are characters stand together."""
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
    """What these tokens spell, control tokens by name; None where they end within a character."""
    if len(ids) == 1 and ids[0] in tokenizer.special_ids:
        return tokenizer.decode(ids, skip_special=False)
    try:
        return b"".join(map(tokenizer.text_bytes, ids)).decode()
    except UnicodeDecodeError:
        return None


# --- without a tokenizer ---------------------------------------------------------------------------------------------------------


def _turns(record: Record) -> Iterator[tuple[str, list[tuple[str, str, bool]]]]:
    """(name, [(role, text, whether it is learned)]) of every row."""
    if isinstance(record, Document):
        yield "document", [("", record.text, True)]
    elif isinstance(record, Conversation):
        yield "conversation", [(m["role"], m["content"], m["role"] == "assistant") for m in record.messages]
    else:
        asked = [(m["role"], m["content"], False) for m in prompt_of(record)]
        if isinstance(record, Prompt):
            yield "prompt", asked
        else:
            for name, answer in _answers(record):
                yield name, [*asked, *((m["role"], m["content"], True) for m in answer)]


def _plain(turns: Sequence[tuple[str, str, bool]]) -> list[Piece]:
    found: list[Piece] = []
    for role, text, learned in turns:
        found += [Piece(f"{role}: ", (), IGNORED)] if role else []
        over = len(text) - 2 * _CHARACTERS
        kept = TRAINED if learned else IGNORED
        if over > 0:
            found += [Piece(text[:_CHARACTERS], (), kept), Piece(f"{over:,} characters", (), GAP)]
            text = text[-_CHARACTERS:]
        found += [Piece(text, (), kept), Piece("\n", (), IGNORED)]
    return found[:-1]
