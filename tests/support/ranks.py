"""Figures that must not depend on the number of ranks: computed in the test's own process, and again by two ranks.

As a script: `ranks.py OUT`, started once a rank; rank 0 writes them to OUT.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tests.support import small
from tinyllm import distributed as dist
from tinyllm.algorithms import common, dpo, next_token
from tinyllm.data.datasets.batches import Source
from tinyllm.data.datasets.datasets import PreferenceDataset, SFTDataset, TokenPair, TokenPrompt
from tinyllm.mean import values
from tinyllm.model.transformer import initialise
from tinyllm.rollout.judge import Judge
from tinyllm.rollout.judging import evaluate_policy
from tinyllm.rollout.rewards import Reward
from tinyllm.stages.align_offline import reference_log_probs
from tinyllm.stages.held_out import pooled_loss, score_documents
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

DOCUMENTS = [[5 + (i * j) % 200 for j in range(1, 3 + 7 * i)] + [0] for i in range(7)]


def engine(loss: Any = None, **optim: Any) -> Engine:
    loss = loss or partial(next_token.loss, next_token.Settings())
    return Engine(small.rough(), loss, OptimConfig(warmup_steps=0, **optim), 10, precision="fp32", seed=0)


def pairs() -> PreferenceDataset:
    found = [TokenPair([7, 8, 9 + i], [20 + i] * (1 + i), [40 + i] * (5 - i)) for i in range(3)]
    return PreferenceDataset(found, pad=3)


def source(data: Any, batch: int, micro: int) -> Source:
    return Source(data, batch, micro, seed=1, rank=dist.rank(), world_size=dist.world_size())


def held_out() -> dict[str, float]:
    """Three pairs, and one: then the second rank has none."""
    data = pairs()
    data.ref_log_probs = reference_log_probs(small.rough(seed=1), data, 2)
    made = engine(partial(dpo.loss, dpo.Settings()))
    with torch.no_grad():
        three, one = (pooled_loss(made, source(data, 2, 1), rows) for rows in (3, 1))
    return {f"{rows}/{name}": mean.value for rows, found in ((3, three), (1, one)) for name, mean in found.items()}


def one_step() -> dict[str, float]:
    """Rows of very unequal lengths and shares of scored tokens; plain gradient descent, so that the gradient's size is seen."""
    rows = [([5 + (7 * i + j) % 200 for j in range(3 + 5 * i)], [j > i for j in range(3 + 5 * i)]) for i in range(8)]
    made = engine(clip_norm=1e9)
    initialise(made.model, 0)
    made.optimizers = [torch.optim.SGD(made.model.parameters(), lr=1.0)]
    figures = made.step(source(SFTDataset(rows, 3), 8, 1)(0))
    norms = {name: p.detach().double().norm().item() for name, p in made.trainable.items()}
    return {"loss": figures["loss"], "grad_norm": figures["grad_norm"], **norms}


def whitening() -> list[float]:
    """Mean and variance of what all ranks hold, a quarter of it masked."""
    values = torch.linspace(-3, 8, 24, dtype=torch.float64).square().view(4, 6)[dist.rank() :: dist.world_size()]
    mask = torch.arange(6).expand_as(values) % 4 > 0
    return [float(x) for x in common.masked_mean_variance(values, mask)]


def answers(count: int) -> dict[str, float]:
    prompts = [TokenPrompt([5 + i] * (1 + i), {"worth": 1.0 + i * i}) for i in range(count)]
    judge = Judge(small.tokenizer(), [(Reward("worth", lambda columns, *_: columns["worth"]), 1.0)], None, 0.0, 0.0)
    return values(evaluate_policy(small.rough(), prompts, judge, small.tokenizer(), temperature=0.0, max_new_tokens=6))


def everything() -> dict[str, Any]:
    texts = small.tokenizer()
    with torch.no_grad():
        figures = [values(score_documents(engine(), DOCUMENTS, texts, 24, rows)) for rows in (1, 2, 7)]
    return {
        "documents": figures,
        "held_out": held_out(),
        "step": one_step(),
        "moments": whitening(),
        "answers": [answers(5), answers(1)],  # of one, the second rank has none
    }


if __name__ == "__main__":
    dist.start(torch.device("cpu"))
    torch.set_num_threads(1)
    found = everything()
    if dist.is_main():
        Path(sys.argv[1]).write_text(json.dumps(found))
    dist.barrier()
    dist.stop()
