"""Log-likelihoods of texts and of continuations, by the conventions of lm-eval 0.4.13 (`lm_eval/api/model.py`), many rows a forward.

- A whole text: log p of all its tokens behind one that is not scored, BOS or, without one, the end-of-text token.
- A continuation: log p of its tokens given the context. Spaces that end the context are moved to the continuation, context and
  continuation are encoded as one text, and the continuation's tokens begin at len(encode(context)). In front of a context stands what
  the vocabulary's own tokenizer.json puts in front of a text: BOS for most Llamas, nothing for the models made here.
- A row that does not fit loses the beginning of its context; what is scored is never cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tokenizers
import torch

from tinyllm import dist
from tinyllm.data.batches import right_padded
from tinyllm.errors import UserError
from tinyllm.model.transformer import CausalLM
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Row:
    """Tokens of which those from `start` on are scored; `start` is at least 1."""

    ids: tuple[int, ...]
    start: int


def text_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> list[Row]:
    """Whole texts."""
    before = tokenizer.endoftext if tokenizer.bos is None else tokenizer.bos
    return [Row((before, *ids), 1) for ids in tokenizer.encode_batch(texts)]


def continuation_rows(tokenizer: Tokenizer, front: Sequence[int], pairs: Sequence[tuple[str, str]]) -> list[Row]:
    """(context, continuation) each; a context is not empty. `front`: see `front_of`."""
    moved = [(context.rstrip(), context[len(context.rstrip()) :] + more) for context, more in pairs]
    contexts = tokenizer.encode_batch([context for context, _ in moved])
    wholes = tokenizer.encode_batch([context + more for context, more in moved])
    rows = []
    for context, whole in zip(contexts, wholes, strict=True):
        # A vocabulary that joins the last of the context to the first of the continuation leaves it fewer tokens, but at least one.
        start = len(front) + min(len(context), len(whole) - 1)
        ids = (*front, *whole)
        rows.append(Row(ids, start) if start else Row((tokenizer.endoftext, *ids), 1))
    return rows


def front_of(folder: Path) -> tuple[int, ...]:
    """The ids that tokenizer.json in `folder` puts in front of every text when special tokens are asked for."""
    whole = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare, special = whole.encode("a", add_special_tokens=False).ids, whole.encode("a").ids
    at = next((n for n in range(len(special)) if special[n : n + len(bare)] == bare), 0)
    return tuple(special[:at])


def fitted(row: Row, limit: int, place: str) -> Row:
    """The last `limit` tokens of a row. UserError where what is scored and one token before it are more than that."""
    cut = len(row.ids) - limit
    if cut <= 0:
        return row
    if row.start - cut < 1:
        raise UserError(
            f"{len(row.ids) - row.start} tokens to score, and the model reads {limit}",
            where=place,
            fix="leave this row out, or shorten it",
        )
    return Row(row.ids[cut:], row.start - cut)


@torch.no_grad()
def log_likelihoods(model: CausalLM, rows: Sequence[Row], *, tokens: int) -> list[float]:
    """Nats: the sum of log p over each row's scored tokens, on every rank. Equal rows are scored once.

    Batches are made of rows of like length before the ranks share them, so a row is computed in the same company by any number of ranks.

    Args:
        tokens: in one forward pass, padding included (one row may have more).
    """
    distinct = list(dict.fromkeys(rows))
    device, model = model.lm_head.weight.device, model.eval()
    found = [0.0] * len(distinct)
    for batch in batches([len(row.ids) for row in distinct], tokens)[dist.rank() :: dist.world_size()]:
        chosen = [distinct[i] for i in batch]
        width = max(len(row.ids) for row in chosen)  # padded further, rows could outgrow the model's positions
        ids = right_padded([row.ids for row in chosen], 0)[:, :width].to(device)
        scored = [[False] * row.start + [True] * (len(row.ids) - row.start) for row in chosen]
        mask = right_padded(scored, False)[:, :width].to(device)
        sums = model.log_probs(ids, mask).log_probs.cpu().double().sum(1)
        for i, value in zip(batch, sums.tolist(), strict=True):
            found[i] = value
    value_of = dict(zip(distinct, shared(found, device), strict=True))
    return [value_of[row] for row in rows]


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """The numbers of all records, longest first, in batches of at most `tokens` tokens as padded to the longest (or of one record)."""
    found: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # too little memory shows at once, not at the end
        if not room:
            found.append([])
            room = max(1, tokens // max(1, lengths[i]))
        found[-1].append(i)
        room -= 1
    return found


def shared(values: Sequence[float], device: torch.device) -> list[float]:
    """Values of which each is set on one rank and 0 on the others, on every rank."""
    wide = torch.float32 if device.type == "mps" else torch.float64
    return dist.sum_(torch.tensor(values, dtype=wide, device=device)).tolist()
