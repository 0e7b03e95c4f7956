"""Log-likelihoods of rows in batches that the ranks share."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tinyllm import distributed as dist
from tinyllm.data.datasets.batches import right_padded
from tinyllm.evals.rows import Row
from tinyllm.model.transformer import CausalLM


@torch.no_grad()
def log_likelihoods(model: CausalLM, rows: Sequence[Row], *, tokens: int) -> list[float]:
    """Return the sum of log p, in nats, over the scored tokens of each row, on every rank. Equal rows are scored once.

    Batches are formed before the ranks share them, so a row's value does not depend on the number of ranks.

    Args:
        tokens: in one forward pass, padding included (a single row may have more).
    """
    distinct = list(dict.fromkeys(rows))
    device, model = model.lm_head.weight.device, model.eval()
    found = [0.0] * len(distinct)
    for batch in batches([len(row.ids) for row in distinct], tokens)[dist.rank() :: dist.world_size()]:
        chosen = [distinct[i] for i in batch]
        width = max(len(row.ids) for row in chosen)  # padded further, rows could exceed the model's positions
        ids = right_padded([row.ids for row in chosen], 0)[:, :width].to(device)  # (B, T)
        scored = [[False] * row.start + [True] * (len(row.ids) - row.start) for row in chosen]
        mask = right_padded(scored, False)[:, :width].to(device)
        sums = model.log_probs(ids, mask).cpu().double().sum(1)
        for i, value in zip(batch, sums.tolist(), strict=True):
            found[i] = value
    value_of = dict(zip(distinct, sum_over_ranks(found, device), strict=True))
    return [value_of[row] for row in rows]


def batches(lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Return the indices of all rows, longest first, in batches of at most `tokens` tokens padded to the longest (or of one row)."""
    found: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):  # running out of memory shows in the first batch
        if not room:
            found.append([])
            room = max(1, tokens // max(1, lengths[i]))
        found[-1].append(i)
        room -= 1
    return found


def sum_over_ranks(values: Sequence[float], device: torch.device) -> list[float]:
    """Return, on every rank, values that are set on one rank each and 0 on the others."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return dist.sum_(torch.tensor(values, dtype=dtype, device=device)).tolist()
