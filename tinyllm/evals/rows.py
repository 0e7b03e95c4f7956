"""Texts and continuations as rows of tokens to score, by the conventions of lm-eval 0.4.13 (`lm_eval/api/model.py`).

- A whole text: all its tokens are scored, after one that is not: BOS or, without one, the end-of-text token.
- A continuation: its tokens are scored given the context. Trailing spaces of the context are moved to the continuation, both are encoded
  as one text, and the continuation starts at len(encode(context)). In front of the context is what the vocabulary's own tokenizer.json puts
  there: BOS for most Llamas, nothing for models trained here.
- A row that does not fit loses the beginning of its context; scored tokens are never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers

from tinyllm.errors import UserError
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """Token ids; those from `start` on are scored. `start` is at least 1."""

    ids: tuple[int, ...]
    start: int


def text_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Row]:
    """Return rows that score whole texts."""
    return [Row((tokenizer.document_start, *ids), 1) for ids in tokenizer.encode_batch(texts)]


def continuation_rows(tokenizer: Tokenizer, prefix: Sequence[int], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """Return rows that score continuations.

    Args:
        prefix: see `prefix_ids`.
        pairs: (context, continuation); contexts are not empty.
    """
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + more) for context, more in pairs]
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    wholes = tokenizer.encode_batch([context + more for context, more in moved])
    rows = []
    for context, whole in zip(contexts, wholes, strict=True):
        # a token that spans the boundary leaves the continuation fewer tokens, but at least one
        start = len(prefix) + min(len(context), len(whole) - 1)
        ids = (*prefix, *whole)
        rows.append(Row(ids, start) if start else Row((tokenizer.endoftext, *ids), 1))
    return rows


def prefix_ids(folder: Path) -> tuple[int, ...]:
    """Return the ids that tokenizer.json in `folder` puts in front of a text when special tokens are requested."""
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare, special = whole.encode("a", add_special_tokens=False).ids, whole.encode("a").ids
    at = next((n for n in range(len(special)) if special[n : n + len(bare)] == bare), 0)
    return tuple(special[:at])


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
