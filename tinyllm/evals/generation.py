"""Generate answers to questions that the ranks share, and score each with reward rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tinyllm import distributed as dist
from tinyllm.console import say
from tinyllm.errors import UserError
from tinyllm.evals.formats import Question
from tinyllm.evals.judging import answered, judged
from tinyllm.evals.likelihood import sum_over_ranks
from tinyllm.model.decoding import Completion, Sampling, generate
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.rewards import Reward
from tinyllm.rollout.scoring import Answered
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class GenerationSettings:
    max_new_tokens: int
    temperature: float
    seed: int
    chat: bool
    """use the chat template, not a continuation of plain text"""
    until: tuple[str, ...]
    """strings that end a plain continuation"""
    start: tuple[int, ...]
    """ids in front of a plain question"""
    system: str = ""
    """a system prompt for questions without one"""


def prompt_ids(
    model: CausalLM, tokenizer: Tokenizer, questions: Sequence[Question], settings: GenerationSettings
) -> list[list[int]]:
    """Return the token ids to continue. Prompts that leave no room for an answer lose their beginning, and are counted in a message."""
    room = model.config.max_position_embeddings - settings.max_new_tokens
    if room < 1:
        context = model.config.max_position_embeddings
        what = f"max_new_tokens {settings.max_new_tokens} leaves no room for a prompt in a context of {context}"
        raise UserError(what, where="max_new_tokens", fix="lower it: --set max_new_tokens=64")
    if settings.chat:
        turns = [chat.with_system(question.turns, settings.system) for question in questions]
        found = [r.ids for r in chat.render_many(tokenizer, turns, generation_prompt=True, name="question")]
    else:
        found = [[*settings.start, *ids] for ids in tokenizer.encode_batch([q.text for q in questions])]
    if cut := sum(len(ids) > room for ids in found):
        say(f"{cut:,} questions are longer than {room} tokens; their beginning is cut off")
    return [ids[-room:] for ids in found]


def generate_and_score(
    model: CausalLM,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    rules: Sequence[Reward],
    settings: GenerationSettings,
    *,
    samples: int = 1,
) -> tuple[list[list[float]], list[float]]:
    """Generate `samples` answers per question and score them.

    An answer's random numbers depend on its place among all answers, not on the number of ranks.

    Returns:
        for each rule its values of all answers, those to one question next to each other; and 1 for every answer that ended, else 0.
    """
    prompts = [ids for ids in prompt_ids(model, tokenizer, questions, settings) for _ in range(samples)]
    repeated = [question for question in questions for _ in range(samples)]
    values = [[0.0] * len(prompts) for _ in range(len(rules) + 1)]
    mine = range(dist.rank(), len(prompts), dist.world_size())
    sampling = Sampling(settings.max_new_tokens, settings.temperature, stop=tokenizer.stop_ids, seed=settings.seed)
    found = generate(model, [prompts[i] for i in mine], sampling, streams=mine)
    rows = [_answered(tokenizer, repeated[i], answer, settings) for i, answer in zip(mine, found, strict=True)]
    for column, rule in zip(values, rules, strict=False):
        for i, value in zip(mine, judged(rule, rows), strict=True):
            column[i] = value
    for i, row in zip(mine, rows, strict=True):
        values[-1][i] = float(row.finished)
    device = model.lm_head.weight.device
    *by_rule, ended = [sum_over_ranks(column, device) for column in values]
    return by_rule, ended


def _answered(tokenizer: Tokenizer, question: Question, answer: Completion, settings: GenerationSettings) -> Answered:
    text, finished = _text_of(tokenizer, answer, settings)
    return answered(question, text, finished, answer.ids)


def _text_of(tokenizer: Tokenizer, answer: Completion, settings: GenerationSettings) -> tuple[str, bool]:
    """Return the text of an answer and whether it ended. Plain text has no end of turn: it ends where the next question would begin."""
    text = tokenizer.decode(answer.ids)
    if settings.chat:
        return text, answer.finished
    start = len(text) - len(text.lstrip())
    ends = [at for stop in settings.until if (at := text.find(stop, start)) >= 0]
    return text[: min(ends, default=len(text))], answer.finished or bool(ends)
