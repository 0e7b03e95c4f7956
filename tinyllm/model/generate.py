"""Batched sampling with a key-value cache: prompts of any lengths in, completions and their log-probabilities out.

Prompts are padded on the left so that all rows write at the same column. Rows that have stopped leave the batch (their cache rows are
dropped once half are done), so a batch costs what its unfinished rows cost. One seeded generator per call: same seed, same text.
Left out: beam search, speculative decoding, repetition penalties.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.errors import UserError
from tinyllm.model.transformer import CausalLM, KVCache


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """0 is greedy"""
    top_k: int = 0
    """0 keeps all"""
    top_p: float = 1.0
    stop: tuple[int, ...] = ()
    """ids that end a completion; the one that did is part of it"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, good, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            ("temperature", 0 <= self.temperature < float("inf"), "0 (greedy) or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
        ):
            if not good:
                raise UserError(f"{name} is {getattr(self, name)}", where="sampling", fix=f"make it {rule}")


@dataclass
class Completion:
    """What was sampled for one prompt."""

    ids: list[int] = field(default_factory=list)  # the stop token included
    log_probs: list[float] = field(default_factory=list)  # of the distribution at `temperature`, before top-k and top-p
    finished: bool = False  # ended by a stop token, not by the length


def generate(model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
    """Complete every prompt (token ids). Prompt and answer together must fit the model's context."""
    done = [Completion() for _ in prompts]
    for rows, ids, log_probs in steps(model, prompts, sampling):
        for row, token, log_prob in zip(rows, ids, log_probs, strict=True):
            done[row].ids.append(token)
            done[row].log_probs.append(log_prob)
            done[row].finished = token in sampling.stop
    return done


@torch.no_grad()
def steps(
    model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    """One decoding step at a time, for streaming: (row numbers still writing, their new ids, the ids' log-probabilities)."""
    if not prompts or not sampling.max_new_tokens:
        return
    room = model.config.max_position_embeddings - max(map(len, prompts))
    if min(map(len, prompts)) == 0 or room < 1:
        problem = "a prompt is empty" if room >= 1 else f"a prompt has {max(map(len, prompts))} tokens"
        raise UserError(
            f"{problem}; the context holds {model.config.max_position_embeddings}", fix="shorten the prompt"
        )
    was_training = model.training
    model.eval()
    try:
        yield from _decode(model, prompts, sampling, min(sampling.max_new_tokens, room))
    finally:
        model.train(was_training)


def _decode(model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling, new_tokens: int):
    weight = model.lm_head.weight
    ids, attend = left_padded(prompts, weight.device)
    even = bool(attend.all())  # no padding anywhere: causal attention needs no mask at all
    dtype = (
        torch.get_autocast_dtype(weight.device.type) if torch.is_autocast_enabled(weight.device.type) else weight.dtype
    )
    cache = KVCache(model.config, len(prompts), ids.shape[1] + new_tokens, weight.device, dtype)
    generator = torch.Generator(device=weight.device).manual_seed(sampling.seed)
    stop = torch.tensor(sampling.stop, dtype=torch.long, device=weight.device)
    rows = torch.arange(len(prompts), device=weight.device)  # which prompt each row of the batch belongs to
    writing = torch.ones(len(prompts), dtype=torch.bool, device=weight.device)
    for _ in range(new_tokens):
        with torch.compiler.set_stance(
            "force_eager"
        ):  # blocks compiled for training would be compiled again at every length
            hidden = model(ids, None if even else attend, cache)[:, -1]
        log_probs = F.log_softmax(_tempered(model.logits(hidden).float(), sampling.temperature), dim=-1)
        ids = _choose(log_probs, sampling, generator)  # (rows, 1)
        chosen = log_probs.gather(1, ids).squeeze(1)
        yield rows[writing].tolist(), ids[writing, 0].tolist(), chosen[writing].tolist()
        writing = writing & ~torch.isin(ids[:, 0], stop)
        left = int(writing.sum())
        if not left:
            return
        if left <= len(rows) // 2:
            rows, ids, attend = rows[writing], ids[writing], attend[writing]
            cache.keep(writing.nonzero().squeeze(1))
            writing = writing[writing]
        if not even:
            attend = F.pad(attend, (0, 1), value=True)


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """ids (B, T) and attend (B, T) bool, padded on the left with id 0 (never attended to)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], dtype=torch.long)
    attend = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts])
    return ids.to(device), attend.to(device)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    return logits / temperature if temperature not in (0.0, 1.0) else logits


def _choose(log_probs: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Token ids (B, 1) from (B, V): greedy, or sampled from what top-k and top-p leave."""
    if sampling.temperature == 0:
        return log_probs.argmax(-1, keepdim=True)
    if sampling.top_k and sampling.top_k < log_probs.shape[1]:
        worst = log_probs.topk(sampling.top_k).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < worst, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = log_probs.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p  # the first token always stays
        log_probs = log_probs.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return torch.multinomial(log_probs.exp(), 1, generator=generator)
