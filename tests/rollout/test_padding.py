"""Rollouts of prompts of unequal length: left padding is not attended to, and nothing after an end token is trained on."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from tinyllm.algorithms import grpo
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.mean import Mean
from tinyllm.model.config import ModelConfig
from tinyllm.model.decoding import Completion, Sampling, generate
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge, generate_and_score
from tinyllm.rollout.rewards import Reward
from tinyllm.rollout.source import RolloutSource
from tinyllm.text.tokenizer import Tokenizer

PROMPTS = [TokenPrompt(list(range(5, 6 + n)), {}) for n in (0, 9, 3, 6, 1)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a few words to make a vocabulary of bytes"], 264)


def rough(tokenizer: Tokenizer, kind: type = CausalLM, seed: int = 0) -> torch.nn.Module:
    """Weights of order one; end tokens are more likely than others, so that answers end at different lengths."""
    model = kind(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            max_position_embeddings=64,
            tie_word_embeddings=False,
        )
    )
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1))
        if kind is CausalLM:
            model.lm_head.weight[list(tokenizer.stop_ids)] *= 3
    return model.eval()


def source(policy: CausalLM | ActorCritic, tokenizer: Tokenizer, scorer: SequenceScorer | None = None) -> RolloutSource:
    return RolloutSource(
        policy,
        PROMPTS,
        Judge(tokenizer, [], scorer, 1.0, 0.5),
        partial(grpo.compute_advantages, grpo.Settings()),
        RolloutConfig(group_size=4, minibatches=1, max_new_tokens=12, temperature=0.8),
        reference=None,
        stop=tokenizer.stop_ids,
        batch_size=40,
        micro_batch_size=7,
        seed=0,
        autocast=nullcontext,
    )


def test_batched_generation_equals_generation_of_single_prompts(tokenizer: Tokenizer) -> None:
    policy, sampling = rough(tokenizer), Sampling(12, temperature=0, stop=tokenizer.stop_ids)
    alone = [generate(policy, [prompt.ids], sampling)[0] for prompt in PROMPTS]
    assert [a.ids for a in generate(policy, [p.ids for p in PROMPTS], sampling)] == [a.ids for a in alone]
    assert len({tuple(a.ids) for a in alone}) > 2
    judge = Judge(tokenizer, [(Reward("length", lambda columns, text, finished: len(text)), 1.0)], None, 0.0, 0.5)
    worth = [len(tokenizer.decode(a.ids)) - 0.5 * (not a.finished) for a in alone]
    found = generate_and_score(policy, PROMPTS, judge, sampling, rows=3)
    assert found["reward"].value == pytest.approx(sum(worth) / 5)
    assert found["length"].value == pytest.approx(sum(len(a.ids) for a in alone) / 5)


def test_a_probe_is_given_prompts_and_answers_and_its_metrics_are_pooled(tokenizer: Tokenizer) -> None:
    policy, sampling = rough(tokenizer), Sampling(12, temperature=0, stop=tokenizer.stop_ids)
    seen: list[tuple[list[int], int]] = []

    def probe(prompts: Sequence[TokenPrompt], answers: Sequence[Completion]) -> dict[str, Mean]:
        seen.extend((prompt.ids, len(answer.ids)) for prompt, answer in zip(prompts, answers, strict=True))
        return {"probe": Mean(torch.tensor(float(len(prompts))), torch.tensor(1.0))}

    judge = Judge(tokenizer, [], None, 0.0, 0.5)
    found = generate_and_score(policy, PROMPTS, judge, sampling, rows=3, probe=probe)
    assert [ids for ids, _ in seen] == [prompt.ids for prompt in PROMPTS]
    assert found["length"].value == pytest.approx(sum(length for _, length in seen) / 5)
    assert found["probe"].value == 2.5  # batches of 3 and 2


def test_a_reward_model_of_weight_0_is_not_added(tokenizer: Tokenizer) -> None:
    scorer = rough(tokenizer, SequenceScorer)
    with torch.no_grad():
        scorer.score.weight.fill_(torch.inf)  # times 0 it is not a number
    answers = [Completion(ids=[5, tokenizer.im_end], finished=True), Completion(ids=[5, 6], finished=False)]
    ids = torch.full((2, 16), 5)
    reward, _ = Judge(tokenizer, [], scorer, 0.0, 0.5)(PROMPTS[:2], answers, ids, torch.ones(2, 16, dtype=torch.bool))
    assert reward.tolist() == [0.0, -0.5]


def test_mask_ends_with_the_end_token(tokenizer: Tokenizer) -> None:
    samples, metrics = source(rough(tokenizer), tokenizer).rollout(0)
    assert 0.2 < metrics["finished"].value < 1
    assert len({int(n) for n in samples.mask.sum(1)}) > 3
    stop = torch.tensor(tokenizer.stop_ids)
    for ids, mask, finished in zip(samples.ids, samples.mask, samples.finished, strict=True):
        answer = ids[mask]
        ends = torch.isin(answer, stop).nonzero().flatten().tolist()
        assert ends == ([len(answer) - 1] if finished else [])
        assert finished or len(answer) == 12
        assert not ids[int(mask.nonzero()[-1]) + 1 :].any()  # padding, and nothing sampled after the end


def test_sampler_log_probs_equal_the_training_forward_of_single_rows(tokenizer: Tokenizer) -> None:
    policy = rough(tokenizer)
    samples, metrics = source(policy, tokenizer).rollout(0)
    assert metrics["sampler_gap"].value < 1e-4
    for ids, mask, sampled in zip(samples.ids, samples.mask, samples.sampler_log_probs, strict=True):
        end = int(mask.nonzero()[-1]) + 1
        want = policy.log_probs(ids[None, :end], mask[None, :end], temperature=0.8)[0]
        torch.testing.assert_close(sampled[:end], want.detach(), atol=1e-4, rtol=0)


def test_values_are_read_before_each_token_and_samples_have_no_graph(tokenizer: Tokenizer) -> None:
    model = ActorCritic(rough(tokenizer), rough(tokenizer, SequenceScorer, 4))
    samples, _ = source(model, tokenizer).rollout(0)
    for ids, mask, values in zip(samples.ids, samples.mask, samples.values, strict=True):
        for t in mask.nonzero().flatten().tolist():
            assert values[t].item() == pytest.approx(model.critic(ids[None, :t])[0, -1].item(), abs=1e-4)
    assert not any(t.requires_grad for t in vars(samples).values() if isinstance(t, torch.Tensor))


def test_minibatches_hold_whole_answers(tokenizer: Tokenizer) -> None:
    rollout = source(rough(tokenizer), tokenizer)
    batches = rollout(0)
    assert sum(len(b.ids) for b in batches) == 40
    got = sorted((b.ids[i][b.mask[i]].tolist(), float(b.reward[i])) for b in batches for i in range(len(b.ids)))
    whole = rollout._samples
    want = sorted((whole.ids[i][whole.mask[i]].tolist(), float(whole.reward[i])) for i in range(40))
    assert got == want


def test_reward_model_is_read_at_the_last_token_of_each_row(tokenizer: Tokenizer) -> None:
    scorer = rough(tokenizer, SequenceScorer, 4)
    samples, _ = source(rough(tokenizer), tokenizer, scorer).rollout(0)
    for ids, mask, reward, finished in zip(samples.ids, samples.mask, samples.reward, samples.finished, strict=True):
        row = ids[: int(mask.nonzero()[-1]) + 1][None]
        want = scorer(row)[0, -1].item() - 0.5 * (not finished)
        assert reward.item() == pytest.approx(want, abs=1e-4)


def test_unfinished_answers_pay_the_penalty(tokenizer: Tokenizer) -> None:
    judge = Judge(tokenizer, [], None, 0.0, 0.5)
    answers = [Completion(ids=[5, tokenizer.im_end], finished=True), Completion(ids=[5, 6], finished=False)]
    reward, _ = judge(PROMPTS[:2], answers, torch.zeros(2, 16), torch.zeros(2, 16))
    assert reward.tolist() == [0.0, -0.5]
