"""Completions of prompts: all of them when they are done, or one token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tinyllm.errors import UserError
from tinyllm.model.decoding.completion import Completion, Sampling
from tinyllm.model.decoding.engine import Engine, Row
from tinyllm.model.decoding.prefill import products_dtype
from tinyllm.model.decoding.slots import together
from tinyllm.model.transformer import CausalLM


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    streams: Sequence[int] | None = None,
    rows: int | None = None,
) -> list[Completion]:
    """Sample a completion of every prompt, in the order of the prompts.

    A completion is a function of the weights, the prompt, the settings and the number of its stream, up to the rounding of products
    that depends on how many rows are computed together.

    Args:
        prompts: token ids, at least one each. Equal prompts are computed once. A completion ends where the context does.
        streams: of the random numbers of each prompt; its place among the prompts if not given.
        rows: decoded together; chosen by the device and by memory if not given.

    Raises:
        UserError: an empty prompt, or one that fills the context; probabilities that are not finite.
    """
    waiting = _rows(model, prompts, sampling, streams or range(len(prompts)))
    found = [row.completion for row in waiting]
    waiting = [row for row in waiting if row.limit]
    if waiting:
        engine = _engine(model, waiting, sampling, rows)
        engine.submit(waiting)
        for _ in engine.run():
            pass
    return found


def stream(model: CausalLM, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """Yield the ids of the completion of one prompt as they are sampled, a stop token too. Errors are those of `generate`."""
    rows = _rows(model, [prompt], sampling, [0])
    if not rows[0].limit:
        return
    engine = _engine(model, rows, sampling, None, checked_every=1)
    engine.submit(rows)
    told = 0
    while engine.busy:
        engine.advance()
        ids = engine.written(rows[0])
        yield from ids[told:]
        told = len(ids)


def _rows(model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling, streams: Sequence[int]) -> list[Row]:
    context = model.config.max_position_embeddings
    rows = []
    for prompt, number in zip(prompts, streams, strict=True):
        if not prompt:
            raise UserError("a prompt is empty", fix="give it at least one token")
        if len(prompt) >= context:
            what = f"a prompt of {len(prompt)} tokens leaves no room in a context of {context}"
            raise UserError(what, fix="shorten the prompt")
        rows.append(Row(tuple(prompt), min(sampling.max_new_tokens, context - len(prompt)), number))
    return rows


def _engine(
    model: CausalLM, waiting: Sequence[Row], sampling: Sampling, rows: int | None, *, checked_every: int | None = None
) -> Engine:
    capacity = max(len(row.prompt) + row.limit for row in waiting)
    device, width = model.lm_head.weight.device.type, products_dtype(model).itemsize
    slots = rows or together(model.config, len(waiting), capacity, device, width)
    return Engine(model, sampling, slots=slots, capacity=capacity, checked_every=checked_every)
