"""Completions of prompts: all of them when they are done, or one token by token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tinyllm.errors import UserError
from tinyllm.model.decoding.completion import Completion, Sampling
from tinyllm.model.decoding.engine import Engine, Row
from tinyllm.model.decoding.prefill import products_dtype
from tinyllm.model.native import wide_products
from tinyllm.model.sampling_memory import COPIED_BYTES, together
from tinyllm.model.transformer import CausalLM


def gains_from_bfloat16(model: CausalLM) -> bool:
    """Return whether a batch is decoded faster with products in bfloat16 than in float32.

    On a CPU the small operations of a float32 step are compiled (`decoding.native`). That is worth more, unless products take most of the
    time and the processor multiplies bfloat16.
    """
    weight = next(model.parameters())
    size = sum(p.numel() * p.element_size() for p in model.model.parameters())
    return weight.device.type != "cpu" or (size > COPIED_BYTES and wide_products.pays())


def generate(
    model: CausalLM,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    streams: Sequence[int] | None = None,
    rows: int | None = None,
) -> list[Completion]:
    """Sample a completion of every prompt, in the order of the prompts.

    The model is in evaluation mode meanwhile. A completion is a function of the weights, the prompt, the settings and the number of its
    stream, up to the rounding of products that depends on how many rows are computed together.

    Args:
        prompts: token ids, at least one each. Equal prompts are computed once. A completion ends where the context does.
        streams: of the random numbers of each prompt; its place among the prompts if not given.
        rows: decoded together; chosen by the device and by memory if not given.

    Raises:
        UserError: an empty prompt, or one that fills the context; probabilities that are not finite.
    """
    waiting = _rows(model, prompts, sampling, range(len(prompts)) if streams is None else streams)
    found = [row.completion for row in waiting]
    waiting = [row for row in waiting if row.limit]
    if waiting:
        engine = _engine(model, waiting, sampling, rows)
        engine.submit(waiting)
        with _evaluating(model):
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
        with _evaluating(model):
            engine.advance()
        ids = engine.written(rows[0])
        yield from ids[told:]
        told = len(ids)


@contextmanager
def _evaluating(model: CausalLM) -> Iterator[None]:
    """Put the parts of a model that are in training mode into evaluation mode, and back."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _rows(model: CausalLM, prompts: Sequence[Sequence[int]], sampling: Sampling, streams: Sequence[int]) -> list[Row]:
    context = model.config.max_position_embeddings
    rows = []
    for prompt, number in zip(prompts, streams, strict=True):
        if not prompt:
            raise UserError("a prompt is empty", fix="give it at least one token")
        if not 0 <= min(prompt) <= max(prompt) < model.config.vocab_size:
            what = f"a prompt has the token {max(prompt)}, and the vocabulary has {model.config.vocab_size}"
            raise UserError(what, fix="use the tokenizer of this model")
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
    slots = max(1, rows) if rows is not None else together(model.config, len(waiting), capacity, device, width)
    return Engine(model, sampling, slots=slots, capacity=capacity, checked_every=checked_every)
