"""The tasks of `tinyllm eval`: a function and a line of `TASKS` each.

A task reads sheets of one kind (`items`, `sheets`) and gives figures under the names lm-eval has for them. Its name also stands in
`EvalConfig.task`, so that the configuration accepts it without loading torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

from tinyllm.algorithms import next_token
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout import rewards
from tinyllm.stages.config import EvalConfig
from tinyllm.stages.evals import answers
from tinyllm.stages.evals.items import Choice, Question
from tinyllm.stages.evals.likelihood import Row, continuation_rows, fitted, log_likelihoods, text_rows
from tinyllm.stages.evals.sheets import Sheet
from tinyllm.stages.evals.statistics import SHARE, Estimate, mean, pass_at_k, share
from tinyllm.stages.pretrain import text_figures
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.progress import say


@dataclass
class Bench:
    """A model with all that a task needs beside its data."""

    model: CausalLM
    tokenizer: Tokenizer
    front: tuple[int, ...]
    """ids that the vocabulary puts in front of a text"""
    chats: bool
    """fine-tuned to chat"""
    config: EvalConfig

    @property
    def tokens(self) -> int:
        """In one forward pass."""
        return self.config.batch_size * self.config.data.max_length

    @cached_property
    def engine(self) -> Engine:
        # evaluation is always in float32: what is compared across machines must not depend on their arithmetic
        loss = partial(next_token.loss, next_token.Settings())
        return Engine(self.model, loss, OptimConfig(), 1, precision="fp32", seed=self.config.seed)

    def through_chat(self, sheet: Sheet) -> bool:
        """Whether a sheet is read through the chat template; texts and whole sentences never are."""
        if sheet.kind == "texts" or not sheet.items[0].turns:
            return False
        return sheet.talk and self.chats if self.config.template == "auto" else self.config.template == "chat"

    def writing(self, sheet: Sheet, temperature: float) -> answers.Writing:
        config = self.config
        by_chat = self.through_chat(sheet)
        return answers.Writing(config.max_new_tokens, temperature, config.seed, by_chat, config.until, self.tokens)


@dataclass(frozen=True)
class Score:
    """The figures of one task on one sheet, the most telling first."""

    figures: dict[str, Estimate]
    baseline: float
    """what the first figure is for a model that knows nothing"""
    counts: dict[str, float] = field(default_factory=dict)
    """what else was counted"""


# --- the tasks -------------------------------------------------------------------------------------------------------------------


def bits_per_byte(bench: Bench, sheet: Sheet) -> Score:
    """How well texts are predicted, every token counted once (see `text_figures`)."""
    found, uniform, _ = predicted(bench, sheet.items)
    figures = {
        "bits_per_byte": found["bits_per_byte"],
        "byte_perplexity": 2 ** found["bits_per_byte"],
        "perplexity": found["perplexity"],
    }
    estimates = {name: Estimate(value, higher_is_better=False) for name, value in figures.items()}
    return Score(estimates, uniform, {"tokens": found["tokens"], "bytes": found["bytes"]})


def predicted(bench: Bench, texts: Sequence[str]) -> tuple[dict[str, float], float, int]:
    """The figures of `text_figures`, bits a byte if all tokens were equally probable, and the tokens a window has at most."""
    config, tokenizer, shape = bench.config, bench.tokenizer, bench.model.config
    ids = [[*d, tokenizer.endoftext] for d in tokenizer.encode_batch(texts)]
    context = min(config.data.max_length, shape.max_position_embeddings)
    found = text_figures(bench.engine, ids, tokenizer, context, config.batch_size)
    return found, found["tokens"] * math.log2(shape.vocab_size) / found["bytes"], context


def choice(bench: Bench, sheet: Sheet) -> Score:
    """Multiple choice by log-likelihood. `acc`: the right choice is the most probable; `acc_norm` and `acc_bytes`: it is by character
    and by UTF-8 byte of the choice; `bpb`: bits a byte of the right choice, which moves long before the others do. As in lm-eval."""
    rows = _choice_rows(bench, sheet)
    limit = bench.model.config.max_position_embeddings
    places = [item.place for item in sheet.items for _ in item.choices]
    kept = [fitted(row, limit, place) for row, place in zip(rows, places, strict=True)]
    if cut := sum(len(new.ids) < len(row.ids) for new, row in zip(kept, rows, strict=True)):
        say(f"{sheet.name}: {cut:,} of {len(rows):,} rows are longer than {limit} tokens and lost their beginning")
    found = iter(log_likelihoods(bench.model, kept, tokens=bench.tokens))
    right: dict[str, list[float]] = {"acc": [], "acc_norm": [], "acc_bytes": []}
    bits: list[float] = []
    ties = 0
    for item in sheet.items:
        scores = [next(found) for _ in item.choices]
        by_length = [(s, s / len(c), s / len(c.encode())) for s, c in zip(scores, item.choices, strict=True)]
        for name, column in zip(right, zip(*by_length, strict=True), strict=True):
            right[name].append(float(column.index(max(column)) == item.right))
        bits.append(-by_length[item.right][2] / math.log(2))
        ties += scores.count(max(scores)) > 1
    if ties:  # a model that finds everything equally probable would look perfect where the right choice stands first
        say(f"{sheet.name}: {ties:,} of {len(sheet.items):,} are ties, decided for the first choice, as lm-eval does")
    baseline = sum(1 / len(item.choices) for item in sheet.items) / len(sheet.items)
    figures = {name: share(values) for name, values in right.items()}
    return Score(figures | {"bpb": replace(mean(bits, (0.0, math.inf)), higher_is_better=False)}, baseline)


def _choice_rows(bench: Bench, sheet: Sheet) -> list[Row]:
    """A row for every choice of every item, in their order."""
    items: list[Choice] = sheet.items
    if not items[0].context:
        return text_rows(bench.tokenizer, [bench.config.lead + text for item in items for text in item.choices])
    if not bench.through_chat(sheet):
        pairs = [(item.context, f" {text}") for item in items for text in item.choices]
        return continuation_rows(bench.tokenizer, bench.front, pairs)
    rows = []
    for item in items:
        for text in item.choices:
            answer = [chat.Message(role="assistant", content=text)]
            before, said = chat.completion_ids(bench.tokenizer, item.turns, answer)
            rows.append(Row((*before, *said[:-1]), len(before)))  # the end of the turn is no part of the choice
    return rows


def exact_match(bench: Bench, sheet: Sheet) -> Score:
    """Greedy answers, compared with the right one by a rule of `rollout.rewards`; right where it says 0.5 or more."""
    name, rule = bench.config.rule, rewards.find(bench.config.rule)
    (values,), ended = answers.judged(
        bench.model, bench.tokenizer, sheet.items, [rule], bench.writing(sheet, temperature=0)
    )
    metric = "exact_match" if name == "exact_answer" else name.rpartition(":")[2]
    figures = {metric: share([float(v >= RIGHT) for v in values]), "finished": share(ended)}
    return Score(figures, _silence(rule, sheet.items, whole=True))


def gold(bench: Bench, sheet: Sheet) -> Score:
    """The bundled world's own judgement of greedy answers, between -1 and 1."""
    rules = [rewards.gold, rewards.exact_answer]
    (worth, exact), ended = answers.judged(
        bench.model, bench.tokenizer, sheet.items, rules, bench.writing(sheet, temperature=0)
    )
    figures = {"gold": mean(worth, (-1.0, 1.0)), "exact_match": share(exact), "finished": share(ended)}
    return Score(figures, _silence(rewards.gold, sheet.items))


def pass_at(bench: Bench, sheet: Sheet) -> Score:
    """The chance that one of k sampled answers is right, estimated from `samples` of them (`statistics.pass_at_k`)."""
    config, rule = bench.config, rewards.find(bench.config.rule)
    how, n = bench.writing(sheet, config.temperature), config.samples
    (values,), ended = answers.judged(bench.model, bench.tokenizer, sheet.items, [rule], how, samples=n)
    right = [sum(v >= RIGHT for v in values[i : i + n]) for i in range(0, len(values), n)]
    figures = {f"pass@{k}": mean([pass_at_k(n, c, k) for c in right], SHARE) for k in config.k}
    return Score(figures | {"finished": share(ended)}, _silence(rule, sheet.items, whole=True), {"samples": n})


RIGHT = 0.5  # a rule's value from which an answer counts as right


def _silence(rule: rewards.Reward, questions: Sequence[Question], *, whole: bool = False) -> float:
    """What saying nothing is worth."""
    values = [float(rule(question.columns, "", True)) for question in questions]
    return sum(float(v >= RIGHT) if whole else v for v in values) / len(values)


@dataclass(frozen=True)
class Task:
    reads: str
    """the kind of sheet"""
    measure: Callable[[Bench, Sheet], Score]
    rules: Callable[[EvalConfig], tuple[str, ...]] = lambda config: ()
    """names of the rules whose columns every question must have"""


TASKS: dict[str, Task] = {
    "bits_per_byte": Task("texts", bits_per_byte),
    "choice": Task("choices", choice),
    "exact_match": Task("questions", exact_match, lambda config: (config.rule,)),
    "gold": Task("questions", gold, lambda config: ("gold",)),
    "pass@k": Task("questions", pass_at, lambda config: (config.rule,)),
}
