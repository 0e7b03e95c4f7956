"""Reference values of the gates against counting by hand: a reward model's accuracy, its correlation with gold, and the ceiling."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.support import small
from tinyllm.data import ngram, world
from tinyllm.data.config import DataConfig
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.data.loading import preference_dataset
from tinyllm.data.splits import read_split
from tinyllm.lifecycle.baselines import ngram_bits_per_byte, pairs_of, reward_model_metrics
from tinyllm.lifecycle.evaluation import EvaluationResult, Questions
from tinyllm.model.decoding import Completion
from tinyllm.model.transformer import SequenceScorer


def answered(count: int, seed: int) -> tuple[Questions, EvaluationResult]:
    dice = np.random.default_rng(seed)
    prompts = [TokenPrompt(dice.integers(5, 200, 3).tolist(), {}) for _ in range(count)]
    answers = [Completion(ids=dice.integers(5, 200, 1 + i % 5).tolist(), finished=True) for i in range(count)]
    gold = dice.normal(size=count).tolist()
    return Questions(prompts, lambda *_: 0.0, lambda *_: 0.0), EvaluationResult(answers, ["x"] * count, gold, gold)


def test_a_reward_model_is_measured_row_by_row(tmp_path) -> None:
    """More rows than fit into one batch, of unequal lengths: padding and the last batch count as they should."""
    scorer, tokenizer = small.rough(SequenceScorer), small.tokenizer()
    config = SimpleNamespace(data=DataConfig(train=(str(small.pairs(tmp_path / "pairs.jsonl", 80)),)))
    records = read_split(config.data, "pairs", 0).train
    questions, result = answered(66, seed=0)

    def reward(ids: list[int]) -> float:
        return float(scorer(torch.tensor([ids]))[0, -1].detach())

    pairs = preference_dataset(records, tokenizer, config.data.max_length, "pairs").pairs
    right = [reward([*p.prompt, *p.chosen]) > reward([*p.prompt, *p.rejected]) for p in pairs]
    rewards = [reward([*p.ids, *c.ids]) for p, c in zip(questions.prompts, result.completions, strict=True)]
    centered = [np.asarray(x) - np.mean(x) for x in (rewards, result.gold)]
    want = float(centered[0] @ centered[1] / math.sqrt((centered[0] ** 2).sum() * (centered[1] ** 2).sum()))
    assert len(records) > 64
    assert 0 < sum(right) < len(records)
    found = reward_model_metrics(scorer, tokenizer, config, records, questions, result)
    assert found == pytest.approx(
        {"pairs": len(records), "accuracy": np.mean(right), "answers": 66, "correlation": want}
    )
    nothing = reward_model_metrics(scorer, tokenizer, config, [], questions, result)
    assert math.isnan(nothing["accuracy"])
    assert nothing["pairs"] == 0


def test_at_most_a_thousand_test_pairs_are_measured(tmp_path) -> None:
    own, few = small.pairs(tmp_path / "pairs.jsonl", 1005), small.pairs(tmp_path / "few.jsonl", 30)
    config = SimpleNamespace(data=DataConfig(train=(str(few),), test=(str(own),)), seed=0, noise=0.0)
    assert len(pairs_of(config)) == 1000


def test_constant_rewards_have_no_correlation() -> None:
    questions, result = answered(3, seed=1)
    config = SimpleNamespace(data=DataConfig(train=("own.jsonl",)))
    flat = EvaluationResult(result.completions, result.texts, [0.5] * 3, result.correct)
    found = reward_model_metrics(small.rough(SequenceScorer), small.tokenizer(), config, [], questions, flat)
    assert math.isnan(found["correlation"])


def test_the_ceiling_is_how_often_the_label_of_the_world_is_the_better_answer() -> None:
    questions, result = answered(3, seed=1)
    scorer, tokenizer = small.rough(SequenceScorer), small.tokenizer()
    config = SimpleNamespace(data=DataConfig(train=("world:100",)), noise=0.5, seed=0)
    ceiling = reward_model_metrics(scorer, tokenizer, config, [], questions, result)["ceiling"]
    gaps = [
        world.gold(row, row["chosen"][0]["content"], True) - world.gold(row, row["rejected"][0]["content"], True)
        for row in world.pairs(2000, seed=1, split="test", noise=0.5)
    ]
    assert ceiling == pytest.approx(np.mean([0.5 if gap == 0 else gap > 0 for gap in gaps]), abs=0.04)
    assert 0.5 < ceiling < 1


def test_bits_per_byte_of_the_ngram_model() -> None:
    tokenizer = small.tokenizer()
    end = tokenizer.endoftext
    documents = [[*tokenizer.encode(text), end] for text in ("What is red?", "red, blue")]
    train = np.array([*tokenizer.encode("red, blue and red, blue"), end] * 9, dtype=np.uint16)
    written = np.array([token for document in documents for token in document])
    nats = ngram.surprisal(train, written, tokenizer.vocab_size, 3, end)
    found = ngram_bits_per_byte(SimpleNamespace(train=train), tokenizer, documents, order=3)
    assert found == pytest.approx(nats.sum() / math.log(2) / len("What is red?red, blue"))
    assert math.isnan(ngram_bits_per_byte(SimpleNamespace(train=train), tokenizer, []))
