"""Texts and continuations as rows of tokens to score, as lm-eval 0.4.13 does (`lm_eval/api/model.py`).

- A whole text: all its tokens are scored, after a start token that is not.
- A continuation: its tokens are scored given the context. Trailing spaces of the context are moved to the continuation, both are encoded
  as one text, and the continuation starts at len(encode(context)).
- What stands in front of texts and contexts, and whether their end is scored: see `conventions`.
- A row that does not fit loses the beginning of its context; scored tokens are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyllm.errors import UserError
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """Token ids; those from `start` on are scored. `start` is at least 1."""

    ids: tuple[int, ...]
    start: int


def text_rows(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    start: Sequence[int] | None = None,
    end: Sequence[int] = (),
    places: Sequence[str] = (),
) -> list[Row]:
    """Return rows that score whole texts.

    Args:
        start, end: ids around each text, see `Conventions`. By default a text starts as a document does.
        places: of the texts, for errors.

    Raises:
        UserError: nothing of a text is scored, because it has one token and no start.
    """
    first = (tokenizer.document_start,) if start is None else tuple(start)
    rows = [Row((*first, *ids, *end), 1) for ids in tokenizer.encode_batch(texts)]
    for number, row in enumerate(rows):
        if len(row.ids) < 2:
            what = "a text of one token has nothing to score without a start token"
            raise UserError(what, where=places[number] if places else "", fix="set start to auto")
    return rows


def continuation_rows(
    tokenizer: Tokenizer, prefix: Sequence[int], pairs: Sequence[tuple[str, str]], *, end: Sequence[int] = ()
) -> list[Row]:
    """Return rows that score continuations.

    Args:
        prefix, end: ids around each row; see `Conventions`.
        pairs: (context, continuation); contexts are not empty.
    """
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + more) for context, more in pairs]
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    wholes = tokenizer.encode_batch([context + more for context, more in moved])
    rows = []
    for context, whole in zip(contexts, wholes, strict=True):
        # a token that spans the boundary leaves the continuation fewer tokens, but at least one
        start = len(prefix) + min(len(context), len(whole) - 1)
        ids = (*prefix, *whole, *end)
        rows.append(Row(ids, start) if start else Row((tokenizer.endoftext, *ids), 1))
    return rows


def truncated(row: Row, limit: int, place: str) -> Row:
    """Return the last `limit` tokens of a row.

    Raises: UserError if the scored tokens and one before them are more than that.
    """
    cut = len(row.ids) - limit
    if cut <= 0:
        return row
    if row.start - cut < 1:
        what = f"{len(row.ids) - row.start} tokens to score, but the model has {limit} positions"
        raise UserError(what, where=place, fix="leave this row out, or shorten it")
    return Row(row.ids[cut:], row.start - cut)
