"""Answers written to questions: prompts as token ids, generation in batches that the ranks share, and what a rule says of each answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyllm import dist
from tinyllm.errors import UserError
from tinyllm.model.generate import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.rewards import Reward
from tinyllm.stages.evals.items import Question
from tinyllm.stages.evals.likelihood import batches, shared
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.progress import say


@dataclass(frozen=True)
class Writing:
    """How answers are written."""

    max_new_tokens: int
    temperature: float
    seed: int
    chat: bool
    """through the chat template, or as a continuation of plain text"""
    until: tuple[str, ...]
    """texts at which a plain continuation is cut off"""
    tokens: int
    """in one batch, prompts and answers together"""


def prompts_of(model: CausalLM, tokenizer: Tokenizer, questions: Sequence[Question], how: Writing) -> list[list[int]]:
    """Token ids to continue. Those that leave no room for the answer lose their beginning, and are counted aloud."""
    room = model.config.max_position_embeddings - how.max_new_tokens
    if room < 1:
        what = f"max_new_tokens {how.max_new_tokens} leaves no room in a context of {room + how.max_new_tokens}"
        raise UserError(what, where="max_new_tokens", fix="lower it: --set max_new_tokens=64")
    if how.chat:
        found = [r.ids for r in chat.render_many(tokenizer, [q.turns for q in questions], generation_prompt=True)]
    else:
        before = tokenizer.endoftext if tokenizer.bos is None else tokenizer.bos
        found = [[before, *ids] for ids in tokenizer.encode_batch([q.text for q in questions])]
    if cut := sum(len(ids) > room for ids in found):
        say(f"{cut:,} questions are longer than {room} tokens and lost their beginning")
    return [ids[-room:] for ids in found]


def judged(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    rules: Sequence[Reward],
    how: Writing,
    *,
    samples: int = 1,
) -> tuple[list[list[float]], list[float]]:
    """What each rule says of each answer, `samples` answers a question, and whether the answer ended by itself.

    Batches and their random numbers do not depend on the number of ranks, so neither do the answers.

    Returns:
        for every rule the values of all answers, those to one question next to each other; 1 for every answer that ended, else 0.
    """
    prompts = [ids for ids in prompts_of(model, tokenizer, questions, how) for _ in range(samples)]
    asked = [question for question in questions for _ in range(samples)]
    values = [[0.0] * len(prompts) for _ in range(len(rules) + 1)]
    everything = batches([len(ids) + how.max_new_tokens for ids in prompts], how.tokens)
    for number in range(dist.rank(), len(everything), dist.world_size()):
        batch = everything[number]
        sampling = Sampling(how.max_new_tokens, how.temperature, stop=tokenizer.stop_ids, seed=_seed(how.seed, number))
        for i, answer in zip(batch, generate(model, [prompts[i] for i in batch], sampling), strict=True):
            text, finished = _said(tokenizer, answer, how)
            for column, rule in zip(values, rules, strict=False):
                column[i] = float(rule(asked[i].columns, text, finished))
            values[-1][i] = float(finished)
    device = model.lm_head.weight.device
    *by_rule, ended = [shared(column, device) for column in values]
    return by_rule, ended


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _said(tokenizer: Tokenizer, answer: Completion, how: Writing) -> tuple[str, bool]:
    """The answer's text and whether it came to an end. Plain text has no end of a turn: it ends where the next question would begin."""
    text = tokenizer.decode(answer.ids)
    if how.chat:
        return text, answer.finished
    start = len(text) - len(text.lstrip())
    ends = [at for stop in how.until if (at := text.find(stop, start)) >= 0]
    return text[: min(ends, default=len(text))], answer.finished or bool(ends)
