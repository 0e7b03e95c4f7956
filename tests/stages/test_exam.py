"""The exam: intervals against known numbers, marks against counting by hand, and the same answers for the same seed."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import small

from tinyllm.model.generate import Completion
from tinyllm.rollout.judge import TokenPrompt
from tinyllm.stages.exam import Paper, Questions, average, divergence, ratio, reading, share, sit

PROMPTS = [
    TokenPrompt(small.tokenizer().encode(text), {"n": len(text), "task": text[:4]})
    for text in ("What is red?", "red, blue")
] * 4


def questions() -> Questions:
    return Questions(
        PROMPTS, lambda c, text, f: len(text) / 10, lambda c, text, f: float(len(text) > 3), max_new_tokens=6
    )


def paper(gold: list[float]) -> Paper:
    answers = [Completion(ids=[1, 2, 1, 2], finished=i % 2 == 0) for i in range(len(gold))]
    return Paper(answers, ["x"] * len(gold), gold, [float(g > 0) for g in gold])


def test_wilson_s_interval() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    found = share(81, 263)
    assert (found["low"], found["high"]) == pytest.approx((0.2553, 0.3662), abs=2e-4)
    none = share(0, 20)
    assert none["low"] == pytest.approx(0, abs=1e-12)
    assert 0.1 < none["high"] < 0.2


def test_a_mean_s_interval_covers_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        found = average(rng.normal(3.0, 2.0, 60))
        hits += found["low"] <= 3.0 <= found["high"]
    assert 0.91 < hits / 400 < 0.98


def test_a_ratio_s_interval_covers_as_often_as_it_says() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        size = rng.integers(1, 50, 80)
        found = ratio(size * 2.0 + rng.normal(0, 3, 80), size)
        hits += found["low"] <= 2.0 <= found["high"]
    assert 0.91 < hits / 400 < 0.98


def test_figures_count_what_they_say() -> None:
    found = paper([1.0, 0.5, -0.5, 0.0]).figures()
    assert found["gold"]["value"] == 0.25
    assert found["accuracy"]["value"] == 0.5
    assert found["stopped"]["value"] == 0.5
    assert found["length"]["value"] == 4
    assert found["distinct_2"]["value"] == 2 / 12  # (1, 2) and (2, 1), of three pairs an answer


def test_wins_are_of_decided_questions() -> None:
    found = paper([1.0, 0.5, -0.5, 0.0]).against(paper([0.0, 0.5, 0.0, -1.0]))
    assert (found["value"], found["n"]) == (2 / 3, 3)
    assert paper([1.0]).against(paper([1.0]))["n"] == 0


def test_the_same_seed_gives_the_same_answers_and_kl_is_zero_against_oneself() -> None:
    policy, other = small.rough(), small.rough(seed=1)
    asked = questions()
    first, again, later = (sit(policy, small.tokenizer(), asked, seed=s) for s in (0, 0, 1))
    assert [a.ids for a in first.answers] == [a.ids for a in again.answers]
    assert [a.ids for a in first.answers] != [a.ids for a in later.answers]
    assert divergence(policy, policy, asked, first)["value"] == 0
    assert divergence(policy, other, asked, first)["value"] > 0
    assert set(first.by_task(asked)) == {"What", "red,"}


def test_kl_is_that_of_the_sampled_answers() -> None:
    policy, other, asked = small.rough(), small.rough(seed=1), questions()
    marked = sit(policy, small.tokenizer(), asked, seed=0)
    want = []
    for prompt, answer in zip(PROMPTS, marked.answers, strict=True):
        ids = torch.tensor([[*prompt.ids, *answer.ids]])
        gap = [torch.log_softmax(m.logits(m(ids)), -1)[0, :-1].gather(1, ids[0, 1:, None]) for m in (policy, other)]
        want.append(float((gap[0] - gap[1])[len(prompt.ids) - 1 :].sum()))
    assert divergence(policy, other, asked, marked)["value"] == pytest.approx(sum(want) / len(want), abs=1e-4)


def test_reading_pools_over_tokens_and_bytes() -> None:
    """Against the definition, one document at a time; documents longer than the context included."""
    policy, tokenizer = small.rough(), small.tokenizer()
    documents = [
        [*tokenizer.encode(text), tokenizer.endoftext] for text in ("red", "What is red? It is a colour.", "7, 7")
    ]
    found = reading(policy, tokenizer, documents, context=64)
    nats = 0.0
    for document in documents:
        ids = torch.tensor([[tokenizer.endoftext, *document]])
        nats -= float(torch.log_softmax(policy.logits(policy(ids)), -1)[0, :-1].gather(1, ids[0, 1:, None]).sum())
    tokens, size = sum(map(len, documents)), sum(int(tokenizer.byte_lengths()[d].sum()) for d in documents)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
