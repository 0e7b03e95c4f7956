"""Batched sampling with a key-value cache: prompts of any length in, completions and their log-probabilities out.

Prompts are padded on the left, so that all rows append at the same column. Finished rows are dropped from the batch and the cache once
they are half of it, so a batch costs little more than its unfinished rows. One seeded generator per call: same seed, same text.
Left out: beam search, speculative decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from tinyllm.config.sampling import LEAST_TEMPERATURE
from tinyllm.errors import FAILED, UserError
from tinyllm.model.kernels import compute_dtype, computing_with
from tinyllm.model.transformer import CausalLM, KVCache


@dataclass(frozen=True)
class Sampling:
    """Settings of sampling. UserError for a value out of range."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    """divides the logits; 0 is greedy"""
    top_k: int = 0
    """sample among so many of the most probable tokens; 0 keeps all"""
    top_p: float = 1.0
    """sample among the most probable tokens that together reach this probability; 1 keeps all"""
    repetition_penalty: float = 1.0
    """divides positive logits of tokens that the prompt or the completion has, and multiplies negative ones (arXiv 1909.05858); 1: off"""
    stop: tuple[int, ...] = ()
    """ids that end a completion, and are part of it"""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, valid, rule in (
            ("max_new_tokens", self.max_new_tokens >= 0, "0 or more"),
            (
                "temperature",
                self.temperature == 0 or LEAST_TEMPERATURE <= self.temperature < float("inf"),
                f"0 (greedy), or {LEAST_TEMPERATURE:g} or more",
            ),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < float("inf"), "above 0"),
        ):
            if not valid:
                raise UserError(
                    f"{name} {getattr(self, name)} is out of range", where="sampling", fix=f"set it to {rule}"
                )


@dataclass
class Completion:
    """The sampled continuation of one prompt."""

    ids: list[int] = field(default_factory=list)  # with the stop token
    log_probs: list[float] = field(default_factory=list)  # in nats, at `temperature`, before top-k and top-p
    finished: bool = False  # by a stop token, not by the length


def generate(model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling) -> list[Completion]:
    """Sample a completion of every prompt, in the order of the prompts.

    Args:
        prompts: token ids, at least one each. A completion ends where the longest prompt and it would exceed the model's context.

    Raises:
        UserError: an empty prompt, or one that fills the context.
    """
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
    """Yield one decoding step at a time, for streaming: the indices of unfinished prompts, their new ids and log-probabilities.

    The model is in evaluation mode while the generator runs. Arguments and errors are those of `generate`.
    """
    if not prompts or not sampling.max_new_tokens:
        return
    longest, context = max(map(len, prompts)), model.config.max_position_embeddings
    if longest >= context:
        what = f"a prompt of {longest} tokens leaves no room in a context of {context}"
        raise UserError(what, fix="shorten the prompt")
    if min(map(len, prompts)) == 0:
        raise UserError("a prompt is empty", fix="give it at least one token")
    was_training = model.training
    model.eval()
    try:
        yield from _decode(model, prompts, sampling, min(sampling.max_new_tokens, context - longest))
    finally:
        model.train(was_training)


def _decode(
    model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling, new_tokens: int
) -> Iterator[tuple[list[int], list[int], list[float]]]:
    weight = model.lm_head.weight
    ids, attend = left_padded(prompts, weight.device)
    text, forgetful = ids, model.model.forgetful  # all tokens so far, where they are needed again
    even = bool(attend.all())  # without padding, causal attention needs no mask
    with computing_with(model):
        cache = KVCache(model.config, len(prompts), ids.shape[1] + new_tokens, weight.device, compute_dtype(weight))
    generator = torch.Generator(device=weight.device).manual_seed(sampling.seed)
    stop = torch.tensor(sampling.stop, dtype=torch.long, device=weight.device)
    rows = torch.arange(len(prompts), device=weight.device)  # the prompt of each row of the batch
    writing = torch.ones(len(prompts), dtype=torch.bool, device=weight.device)
    seen = _seen(prompts, weight) if sampling.repetition_penalty != 1 else None  # (rows, V)
    for step in range(new_tokens):
        if forgetful and step:
            text = torch.cat((text, ids), dim=1)
            if any(model.model.forgets_at(len(prompts[row]) + step) for row in rows.tolist()):
                cache.length, ids = 0, text
        # Blocks that were compiled for training would be compiled again at every length.
        with torch.compiler.set_stance("force_eager"), computing_with(model):
            hidden = model(ids, None if even else attend, cache)[:, -1]
            logits = model.logits(hidden).float()
        if seen is not None:
            penalty = sampling.repetition_penalty
            logits = torch.where(seen, torch.where(logits < 0, logits * penalty, logits / penalty), logits)
        log_probs = F.log_softmax(_scaled(logits, sampling.temperature), dim=-1)
        if not log_probs.amax(-1).isfinite().all():  # argmax would return some token
            what = "the model's probabilities of the next token are not finite"
            raise UserError(what, fix="use another checkpoint: the weights of this one overflow", code=FAILED)
        ids = _choose(log_probs, sampling, generator)  # (rows, 1)
        chosen = log_probs.gather(1, ids).squeeze(1)
        if seen is not None:
            seen = seen.scatter(1, ids, True)
        yield rows[writing].tolist(), ids[writing, 0].tolist(), chosen[writing].tolist()
        writing = writing & ~torch.isin(ids[:, 0], stop)
        left = int(writing.sum())
        if not left:
            return
        if left <= len(rows) // 2:
            rows, ids, attend, text = rows[writing], ids[writing], attend[writing], text[writing]
            seen = seen[writing] if seen is not None else None
            cache.keep(writing.nonzero().squeeze(1))
            writing = writing[writing]
        if not even:
            attend = F.pad(attend, (0, 1), value=True)


def _seen(prompts: Sequence[Sequence[int]], weight: Tensor) -> Tensor:
    """Return which tokens each prompt has, (B, V) bool."""
    seen = torch.zeros(len(prompts), len(weight), dtype=torch.bool, device=weight.device)
    for row, prompt in zip(seen, prompts, strict=True):
        row[list(prompt)] = True
    return seen


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) and attend (B, T) bool, padded on the left with id 0, which is never attended to."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(p)) + list(p) for p in prompts], dtype=torch.long)
    attend = torch.tensor([[False] * (longest - len(p)) + [True] * len(p) for p in prompts])
    return ids.to(device), attend.to(device)


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits / temperature if temperature not in (0.0, 1.0) else logits


def _choose(log_probs: Tensor, sampling: Sampling, generator: torch.Generator) -> Tensor:
    """Return token ids (B, 1) chosen by log-probabilities (B, V): the best, or a sample of those that top-k and top-p keep."""
    if sampling.temperature == 0:
        return log_probs.argmax(-1, keepdim=True)
    if sampling.top_k and sampling.top_k < log_probs.shape[1]:
        worst = log_probs.topk(sampling.top_k).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < worst, -torch.inf)
    if sampling.top_p < 1:
        ordered, order = log_probs.softmax(-1).sort(descending=True)
        outside = ordered.cumsum(-1) - ordered >= sampling.top_p
        outside[:, 0] = False  # the most probable token is always kept, also where top_p is 0 in float32
        log_probs = log_probs.masked_fill(outside.scatter(1, order, outside), -torch.inf)
    return torch.multinomial(log_probs.exp(), 1, generator=generator)
