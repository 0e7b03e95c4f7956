"""Evaluation of a stage: intervals against known numbers, metrics against counting by hand, and the same answers for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.support import small
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.lifecycle.evaluation import (
    EvaluationResult,
    Questions,
    evaluate,
    kl_divergence,
    language_modeling,
    mean,
    proportion,
    ratio,
)
from tinyllm.model.decoding import Completion

PROMPTS = [
    TokenPrompt(small.tokenizer().encode(text), {"n": len(text), "task": text[:4]})
    for text in ("What is red?", "red, blue")
] * 4


def questions() -> Questions:
    return Questions(
        PROMPTS, lambda c, text, f: len(text) / 10, lambda c, text, f: float(len(text) > 3), max_new_tokens=6
    )


def result(gold: list[float]) -> EvaluationResult:
    completions = [Completion(ids=[1, 2, 1, 2], finished=i % 2 == 0) for i in range(len(gold))]
    return EvaluationResult(completions, ["x"] * len(gold), gold, [float(g > 0) for g in gold])


def test_wilson_interval() -> None:
    """81 of 263: 0.2553 to 0.3662 (Newcombe 1998, table I, method 3)."""
    found = proportion(81, 263)
    assert (found["low"], found["high"]) == pytest.approx((0.2553, 0.3662), abs=2e-4)
    none = proportion(0, 20)
    assert none["low"] == pytest.approx(0, abs=1e-12)
    assert 0.1 < none["high"] < 0.2


def test_95_percent_of_the_intervals_of_a_mean_cover_it() -> None:
    rng, hits = np.random.default_rng(0), 0
    for _ in range(400):
        found = mean(rng.normal(3.0, 2.0, 60))
        hits += found["low"] <= 3.0 <= found["high"]
    assert 0.91 < hits / 400 < 0.98


def test_95_percent_of_the_intervals_of_a_ratio_cover_it() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(400):
        size = rng.integers(1, 50, 80)
        found = ratio(size * 2.0 + rng.normal(0, 3, 80), size)
        hits += found["low"] <= 2.0 <= found["high"]
    assert 0.91 < hits / 400 < 0.98


def test_metrics_against_counting_by_hand() -> None:
    found = result([1.0, 0.5, -0.5, 0.0]).metrics()
    assert found["gold"]["value"] == 0.25
    assert found["accuracy"]["value"] == 0.5
    assert found["stopped"]["value"] == 0.5
    assert found["length"]["value"] == 4
    assert found["distinct_2"]["value"] == 2 / 12  # (1, 2) and (2, 1), of three bigrams per answer


def test_questions_without_a_task_have_no_accuracy_by_task() -> None:
    prompts = [TokenPrompt([1], {"task": "color"}), TokenPrompt([1], {}), TokenPrompt([1], {"task": "color"})]
    asked = Questions(prompts, lambda *_: 0.0, lambda *_: 0.0)
    found = result([1.0, 1.0, -1.0]).accuracy_by_task(asked)
    assert {task: (metric["value"], metric["n"]) for task, metric in found.items()} == {"color": (0.5, 2)}


def test_the_win_rate_ignores_ties() -> None:
    found = result([1.0, 0.5, -0.5, 0.0]).win_rate(result([0.0, 0.5, 0.0, -1.0]))
    assert (found["value"], found["n"]) == (2 / 3, 3)


def test_a_win_rate_of_nothing_and_means_of_nothing_are_undefined() -> None:
    """A parent compared with itself has won nothing, which is not 0.5."""
    for found in (result([1.0]).win_rate(result([1.0])), proportion(0, 0), mean([]), ratio([], [])):
        assert math.isnan(found["value"])
        assert found == {"value": found["value"], "n": 0}


def test_every_question_has_one_answer_where_they_take_several_batches() -> None:
    found = evaluate(small.rough(), small.tokenizer(), replace(questions(), prompts=PROMPTS * 16), seed=0)
    ids = [answer.ids for answer in found.completions]
    assert len(ids) == len(found.gold) == 128
    assert ids[64:] != ids[:64], "the second batch has random numbers of its own"


def test_answers_depend_on_the_seed_only_and_kl_to_itself_is_zero() -> None:
    policy, other = small.rough(), small.rough(seed=1)
    asked = questions()
    first, again, later = (evaluate(policy, small.tokenizer(), asked, seed=s) for s in (0, 0, 1))
    assert [a.ids for a in first.completions] == [a.ids for a in again.completions]
    assert [a.ids for a in first.completions] != [a.ids for a in later.completions]
    assert kl_divergence(policy, policy, asked, first)["value"] == 0
    assert kl_divergence(policy, other, asked, first)["value"] > 0
    assert set(first.accuracy_by_task(asked)) == {"What", "red,"}


def test_kl_is_the_mean_log_ratio_of_the_sampled_answers() -> None:
    policy, other, asked = small.rough(), small.rough(seed=1), questions()
    evaluated = evaluate(policy, small.tokenizer(), asked, seed=0)
    want = []
    for prompt, answer in zip(PROMPTS, evaluated.completions, strict=True):
        ids = torch.tensor([[*prompt.ids, *answer.ids]])
        gap = [torch.log_softmax(m.logits(m(ids)), -1)[0, :-1].gather(1, ids[0, 1:, None]) for m in (policy, other)]
        want.append(float((gap[0] - gap[1])[len(prompt.ids) - 1 :].sum().detach()))
    assert kl_divergence(policy, other, asked, evaluated)["value"] == pytest.approx(sum(want) / len(want), abs=1e-4)


def test_one_value_and_equal_values_have_no_interval() -> None:
    for found in (mean([0.3]), mean([0.3] * 9), ratio([1.0], [2]), ratio([0.1, 0.2, 0.3], [1, 2, 3])):
        assert not {"low", "high"} & found.keys()
    assert {"low", "high"} <= mean([0.3, 0.4]).keys() & ratio([1.0, 2.0], [2, 2]).keys()


def test_perplexity_and_bits_per_byte_are_sums_over_all_documents() -> None:
    """Against the definition, one document at a time; documents longer than the context included."""
    policy, tokenizer = small.rough(), small.tokenizer()
    documents = [
        [*tokenizer.encode(text), tokenizer.endoftext] for text in ("red", "What is red? It is a color.", "7, 7")
    ]
    found = language_modeling(policy, tokenizer, documents, context=64)
    nats = 0.0
    for document in documents:
        ids = torch.tensor([[tokenizer.endoftext, *document]])
        log_probs = torch.log_softmax(policy.logits(policy(ids)), -1)[0, :-1]
        nats -= float(log_probs.gather(1, ids[0, 1:, None]).sum().detach())
    tokens, size = sum(map(len, documents)), sum(int(tokenizer.byte_lengths()[d].sum()) for d in documents)
    assert found["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-4)
    assert found["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
