"""The forward pass over prompts: the keys and values of their tokens, and the state behind the last one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from tinyllm.model.kernels import compute_dtype, computing_with
from tinyllm.model.transformer import CausalLM, KVCache

_TOKENS = {"cpu": 1024, "cuda": 1 << 16, "mps": 1 << 14}  # of one forward pass, with padding


class Prefilled(NamedTuple):
    """A prompt behind which tokens can be sampled."""

    keys: Tensor  # (L, K, T, head_dim)
    values: Tensor
    hidden: Tensor  # (D,) final hidden state of the last token


def products_dtype(model: CausalLM) -> torch.dtype:
    """Return the dtype in which a model computes when it is called inside `computing_with`, or in autocast."""
    with computing_with(model):
        return compute_dtype(next(model.model.layers.parameters()))


@torch.no_grad()
def prefill(model: CausalLM, prompts: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], Prefilled]]:
    """Yield every prompt with what it gives, those of similar length together.

    Prompts are padded on the right, where causal attention needs no mask. Where the rotation depends on the length of a text, all texts of
    a forward pass have one length.
    """
    device, dtype = model.lm_head.weight.device, products_dtype(model)
    tokens = _TOKENS[device.type]
    for part in _parts(sorted(prompts, key=len), tokens, equal=model.model.forgetful):
        lengths = [len(prompt) for prompt in part]
        ids = torch.tensor([[*prompt, *[0] * (lengths[-1] - len(prompt))] for prompt in part], device=device)
        cache = KVCache(model.config, len(part), lengths[-1], device, dtype)
        with _uncompiled(model), computing_with(model):
            hidden = model(ids, None, cache)
        for row, (prompt, length) in enumerate(zip(part, lengths, strict=True)):
            yield (
                prompt,
                Prefilled(cache.keys[:, row, :, :length], cache.values[:, row, :, :length], hidden[row, length - 1]),
            )


def _uncompiled(model: CausalLM) -> AbstractContextManager[None]:
    """Return the context in which blocks that were compiled for training run as they are: they would be compiled anew at every length."""
    compiled = any(layer._compiled_call_impl is not None for layer in model.model.layers)
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def _parts(prompts: Sequence[tuple[int, ...]], tokens: int, *, equal: bool) -> Iterator[Sequence[tuple[int, ...]]]:
    """Yield the prompts, which are in order of their length, in parts that have at most so many tokens, or one prompt.

    Args:
        equal: the prompts of a part have one length.
    """
    first = 0
    for last in range(1, len(prompts) + 1):
        if (
            last == len(prompts)
            or (last + 1 - first) * len(prompts[last]) > tokens
            or (equal and len(prompts[last]) > len(prompts[first]))
        ):
            yield prompts[first:last]
            first = last
