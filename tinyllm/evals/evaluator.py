"""The model as tasks see it: predicts texts, scores choices, answers questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from tinyllm.algorithms import next_token
from tinyllm.console import say
from tinyllm.errors import FAILED, UserError
from tinyllm.evals.benchmark import Benchmark
from tinyllm.evals.conventions import Conventions
from tinyllm.evals.formats import Choice
from tinyllm.evals.generation import GenerationSettings, generate_and_score
from tinyllm.evals.likelihood import log_likelihoods
from tinyllm.evals.rows import Row, continuation_rows, text_rows, truncated
from tinyllm.evals.settings import EvalSettings
from tinyllm.mean import values
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.rewards import Reward
from tinyllm.stages.held_out import score_documents
from tinyllm.text import chat
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine


@dataclass
class Evaluator:
    """A model with its tokenizer and the settings of an evaluation. Every rank calls the same methods and gets the same results."""

    model: CausalLM
    tokenizer: Tokenizer
    conventions: Conventions
    is_chat_model: bool
    """fine-tuned on conversations"""
    config: EvalSettings

    @property
    def context(self) -> int:
        """Tokens in a window of a text."""
        return min(self.config.data.max_length, self.model.config.max_position_embeddings)

    @property
    def tokens_per_batch(self) -> int:
        return self.config.batch_size * self.config.data.max_length

    @cached_property
    def _engine(self) -> Engine:
        # evaluation is always in float32, so that metrics compare across machines
        loss = partial(next_token.loss, next_token.Settings())
        return Engine(self.model, loss, OptimConfig(), 1, precision="fp32", seed=self.config.seed)

    def uses_chat_template(self, benchmark: Benchmark) -> bool:
        """Return whether items are rendered with the chat template. Texts and whole sentences never are."""
        if benchmark.kind == "texts" or not benchmark.items[0].turns:
            return False
        if self.config.template == "auto":
            return benchmark.conversational and self.is_chat_model
        return self.config.template == "chat"

    def text_metrics(self, texts: Sequence[str]) -> dict[str, float]:
        """Return loss, perplexity, bits per byte, tokens and bytes of texts, every token scored once; see `score_documents`."""
        around = self.conventions
        ids = [[*d, *around.document_end] for d in self.tokenizer.encode_batch(texts)]
        sizes = [len(text.encode()) for text in texts]
        found = values(
            score_documents(
                self._engine,
                ids,
                self.tokenizer,
                self.context,
                self.config.batch_size,
                sizes=sizes,
                start=around.start,
                title="eval",
            )
        )
        if not math.isfinite(found["loss"]):
            raise _overflow(f"the loss of {len(texts):,} texts ({found['tokens']:,.0f} tokens) is {found['loss']}")
        return found

    def uniform_bits_per_byte(self, metrics: dict[str, float]) -> float:
        """Return the bits per byte of the same texts if all tokens were equally probable."""
        return metrics["tokens"] * math.log2(self.model.config.vocab_size) / metrics["bytes"]

    def score_choices(self, benchmark: Benchmark) -> list[list[float]]:
        """Return the log-likelihood, in nats, of every choice of every item. Rows that are too long are truncated, with a message."""
        limit = self.model.config.max_position_embeddings
        rows = self._choice_rows(benchmark)
        places = [item.place for item in benchmark.items for _ in item.choices]
        kept = [truncated(row, limit, place) for row, place in zip(rows, places, strict=True)]
        if cut := sum(len(new.ids) < len(row.ids) for new, row in zip(kept, rows, strict=True)):
            say(f"{benchmark.name}: {cut:,} of {len(rows):,} rows exceed {limit} tokens; their beginning is cut off")
        found = log_likelihoods(self.model, kept, tokens=self.tokens_per_batch)
        for value, place in zip(found, places, strict=True):
            if not math.isfinite(value):
                raise _overflow(f"the log-likelihood of a choice is {value}", place)
        scores = iter(found)
        return [[next(scores) for _ in item.choices] for item in benchmark.items]

    def _choice_rows(self, benchmark: Benchmark) -> list[Row]:
        """Return one row per choice, in the order of the items."""
        items: list[Choice] = benchmark.items
        around = self.conventions
        if not items[0].context:
            texts = [self.config.lead + text for item in items for text in item.choices]
            places = [item.place for item in items for _ in item.choices]
            return text_rows(self.tokenizer, texts, start=around.start, end=around.choice_end, places=places)
        if not self.uses_chat_template(benchmark):
            pairs = [(item.context, f" {text}") for item in items for text in item.choices]
            return continuation_rows(self.tokenizer, around.prefix, pairs, end=around.choice_end)
        rows = []
        for item in items:
            for text in item.choices:
                answer = [chat.Message(role="assistant", content=text)]
                turns = chat.with_system(item.turns, self.config.chat.system)
                prompt, completion = chat.completion_ids(self.tokenizer, turns, answer)
                scored = completion if around.choice_end else completion[:-1]  # with the end of the turn, or without
                rows.append(Row((*prompt, *scored), len(prompt)))
        return rows

    def answer(
        self, benchmark: Benchmark, rules: Sequence[Reward], *, temperature: float, samples: int = 1
    ) -> tuple[list[list[float]], list[float]]:
        """Generate answers to all questions and score them; see `generate_and_score`."""
        settings = GenerationSettings(
            self.config.max_new_tokens,
            temperature,
            self.config.seed,
            self.uses_chat_template(benchmark),
            self.config.until,
            self.conventions.start,
            self.config.chat.system,
        )
        return generate_and_score(self.model, self.tokenizer, benchmark.items, rules, settings, samples=samples)


def _overflow(what: str, where: str = "") -> UserError:
    """Return the error for a model that gives no finite figure: with NaN, no choice is the best one."""
    return UserError(
        what, where=where, fix="evaluate another checkpoint: the weights of this one overflow", code=FAILED
    )
