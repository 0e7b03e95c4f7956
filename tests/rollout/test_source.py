"""Rollouts: contents of samples, choice of prompts, agreement of sampler and training, dynamic sampling, kept files."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tinyllm.algorithms import grpo
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.errors import UserError
from tinyllm.mean import Mean
from tinyllm.model import decoding
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM, initialise, set_dropout
from tinyllm.rollout import source as rollout
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge, repetition
from tinyllm.rollout.rewards import Reward
from tinyllm.rollout.source import RolloutSource
from tinyllm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a few words to make a vocabulary of bytes"], 264)


@pytest.fixture
def policy(tokenizer: Tokenizer) -> CausalLM:
    model = CausalLM(
        ModelConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            head_dim=16,
            max_position_embeddings=64,
        )
    )
    initialise(model, 0)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # sharp enough that log-probabilities differ
    return model


def made(
    policy: CausalLM,
    tokenizer: Tokenizer,
    *,
    rank: int = 0,
    world_size: int = 1,
    reference: CausalLM | None = None,
    batch_size: int = 8,
    **changes,
) -> RolloutSource:
    config = RolloutConfig(**{"group_size": 4, "minibatches": 2, "epochs": 2, "max_new_tokens": 9, **changes})
    judge = Judge(
        tokenizer, [(Reward("length", lambda columns, text, finished: float(columns["n"])), 2.0)], None, 0.0, 0.5
    )
    return RolloutSource(
        policy,
        [TokenPrompt(list(range(5, 6 + n)), {"n": n}) for n in range(6)],
        judge,
        partial(grpo.compute_advantages, grpo.Settings()),
        config,
        reference=reference,
        stop=tokenizer.stop_ids,
        batch_size=batch_size,
        micro_batch_size=3,
        seed=0,
        rank=rank,
        world_size=world_size,
        autocast=nullcontext,
    )


def test_samples_are_prompt_and_answer_with_a_mask_of_the_answer(policy: CausalLM, tokenizer: Tokenizer) -> None:
    source = made(policy, tokenizer)
    samples, metrics = source.rollout(0)
    prompts = [p for p in source.prompts_of(0) for _ in range(4)]
    for row, prompt in enumerate(prompts):
        positions = samples.mask[row].nonzero().flatten().tolist()
        assert samples.ids[row, : len(prompt.ids)].tolist() == prompt.ids
        assert positions == list(range(len(prompt.ids), len(prompt.ids) + len(positions)))
        assert 1 <= len(positions) <= 9
        finished = int(samples.ids[row, positions[-1]]) in tokenizer.stop_ids
        assert bool(samples.finished[row]) == finished
        assert samples.reward[row] == 2.0 * prompt.columns["n"] - 0.5 * (not finished)
    assert samples.group.tolist() == [i // 4 for i in range(16)]
    assert metrics["length"].value == samples.mask.sum(1).double().mean()


def test_the_longest_allowed_answer_is_that_of_the_configuration(policy: CausalLM, tokenizer: Tokenizer) -> None:
    """Dr. GRPO divides by it. It is not the longest answer of the rollout, and a resumed rollout and the largest batch have it too."""
    source = made(policy, tokenizer)
    source.stop = tuple(range(policy.config.vocab_size))  # every answer ends at once
    batches = source(0)
    assert int(source._samples.mask.sum(1).max()) == 1
    assert (
        {b.max_new_tokens for b in batches} == {source._samples.max_new_tokens, source.largest().max_new_tokens} == {9}
    )
    again = made(policy, tokenizer)
    assert again.restore(1, source.state(1))
    assert {b.max_new_tokens for b in again(1)} == {9}


def test_sampler_and_training_forward_agree(policy: CausalLM, tokenizer: Tokenizer) -> None:
    samples, metrics = made(policy, tokenizer, temperature=0.7).rollout(0)
    torch.testing.assert_close(samples.sampler_log_probs, samples.old_log_probs, atol=1e-4, rtol=0)
    assert metrics["sampler_gap"].value < 1e-4


def test_answers_are_sampled_in_the_precision_of_training_where_that_is_faster(
    policy: CausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = partial(torch.autocast, "cpu", torch.bfloat16)
    source = made(policy, tokenizer)
    source.autocast = narrow
    for pays, largest, context in ((True, 0, torch.autocast), (False, 0, nullcontext), (True, 1 << 30, nullcontext)):
        monkeypatch.setattr("tinyllm.model.native.wide_products.pays", lambda pays=pays: pays)
        monkeypatch.setattr(sys.modules[decoding.gains_from_bfloat16.__module__], "COPIED_BYTES", largest)
        assert isinstance(source._precision(), context)
    assert decoding.gains_from_bfloat16(CausalLM(policy.config).to("meta"))
    monkeypatch.setattr(source, "_precision", narrow)
    samples, metrics = source.rollout(0)
    seed = int(source._random(0, 0).integers(1 << 62))
    found = {}
    for name, context in {"bf16": narrow, "fp32": nullcontext}.items():
        with context():
            answers = decoding.generate(
                policy,
                [p.ids for p in source.prompts_of(0) for _ in range(4)],
                decoding.Sampling(9, 1.0, stop=tokenizer.stop_ids, seed=seed),
            )
        found[name] = torch.tensor([p for answer in answers for p in answer.log_probs])
    assert torch.equal(samples.sampler_log_probs[samples.mask], found["bf16"])
    assert not torch.equal(found["bf16"], found["fp32"])
    assert 0 < metrics["sampler_gap"].value < 0.05
    assert next(policy.parameters()).dtype == torch.float32


def test_a_sampler_that_disagrees_stops_the_run(
    policy: CausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = decoding.generate

    def hotter(model: CausalLM, prompts: list, sampling: decoding.Sampling, *, streams: list) -> list:
        return honest(model, prompts, replace(sampling, temperature=2.0), streams=streams)

    monkeypatch.setattr(rollout, "generate", hotter)
    with pytest.raises(UserError, match="sampler and training disagree"):
        made(policy, tokenizer).rollout(0)


def test_minibatches_cover_every_sample_once_per_epoch(policy: CausalLM, tokenizer: Tokenizer) -> None:
    source = made(policy, tokenizer)
    for epoch in range(2):
        batches = source(2 * epoch) + source(2 * epoch + 1)
        assert all(len(b.ids) <= 3 for b in batches)
        rewards = sorted(x for b in batches for x in b.reward.tolist())
        assert rewards == sorted(source._samples.reward.tolist())
        assert len(rewards) == 16


def test_every_prompt_is_used_once_before_any_is_used_again(policy: CausalLM, tokenizer: Tokenizer) -> None:
    met = [p.columns["n"] for r in range(3) for p in made(policy, tokenizer).prompts_of(r)]
    assert sorted(met[:6]) == list(range(6))
    assert sorted(met[6:]) == list(range(6))
    ranks = [[p.columns["n"] for p in made(policy, tokenizer, rank=r, world_size=2).prompts_of(0)] for r in (0, 1)]
    assert [n for pair in zip(*ranks, strict=True) for n in pair] == met[:4]


@pytest.mark.parametrize("rounds", [1, 3])
def test_another_batch_size_continues_with_the_next_prompt(policy: CausalLM, tokenizer: Tokenizer, rounds: int) -> None:
    """After two rollouts the batch doubles: the prompts of one are those of the next two, and an unfinished one is dropped."""
    before = made(policy, tokenizer, sampling_rounds=rounds)
    after = made(policy, tokenizer, sampling_rounds=rounds, batch_size=16)
    for step in (8, 10):  # at the edge of a rollout, and inside it
        after.start_at(step, before.position(step))
        found = [p.columns["n"] for p in after.prompts_of(2 * rounds)]
        assert found == [p.columns["n"] for n in (0, 1) for p in before.prompts_of(2 * rounds + n)]
        assert after.position(step) == before.position(step)
    before(0)
    unfinished = before.state(1)
    assert not after.restore(1, unfinished)
    assert made(policy, tokenizer, sampling_rounds=rounds).restore(1, unfinished)


def test_a_rollout_depends_only_on_its_number(policy: CausalLM, tokenizer: Tokenizer) -> None:
    first, again, other = (made(policy, tokenizer).rollout(n)[0] for n in (3, 3, 4))
    assert torch.equal(first.ids, again.ids)
    assert torch.equal(first.old_log_probs, again.old_log_probs)
    assert first.ids.shape != other.ids.shape or not torch.equal(first.ids, other.ids)


def test_kl_is_zero_if_policy_is_reference(policy: CausalLM, tokenizer: Tokenizer) -> None:
    import copy

    samples, metrics = made(policy, tokenizer, reference=copy.deepcopy(policy)).rollout(0)
    assert torch.equal(samples.ref_log_probs, samples.old_log_probs)
    assert metrics["objective/kl"].value == 0


def test_indivisible_batch_sizes_are_refused(policy: CausalLM, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match=r"not a multiple of rollout\.group_size"):
        made(policy, tokenizer, group_size=5)


def test_dynamic_sampling_replaces_groups_of_equal_rewards(policy: CausalLM, tokenizer: Tokenizer) -> None:
    """The reward is 1 for even prompts and depends on the answer for odd ones: only their groups can differ."""

    def by_length(columns: dict, text: str, finished: bool) -> float:
        return float(sum(map(ord, text))) if columns["n"] % 2 else 1.0

    def source(rounds: int) -> RolloutSource:
        found = made(policy, tokenizer, sampling_rounds=rounds)
        found.judge = Judge(tokenizer, [(Reward("length", by_length), 1.0)], None, 0.0, 0.0)
        return found

    def constant(samples: object) -> int:
        return int((samples.reward.view(-1, 4).std(1) == 0).sum())

    plain, _ = source(1).rollout(0)
    chosen, metrics = source(6).rollout(0)
    assert constant(plain) > 0
    assert constant(chosen) == 0
    assert len(chosen.ids) == len(plain.ids)
    assert 1 < metrics["sampling_rounds"].value <= 6
    assert metrics["reward"].count > len(plain.ids)  # metrics cover everything that was sampled
    assert chosen.group.tolist() == plain.group.tolist()


def test_dynamic_sampling_keeps_equal_groups_after_the_last_round(policy: CausalLM, tokenizer: Tokenizer) -> None:
    source = made(policy, tokenizer, sampling_rounds=3)
    source.judge = Judge(tokenizer, [], None, 0.0, 0.0)
    samples, metrics = source.rollout(0)
    assert len(samples.ids) == 16
    assert metrics["sampling_rounds"].value == 3
    assert metrics["constant_groups"].value == 1.0


def test_overlong_answers_lose_reward_gradually(tokenizer: Tokenizer) -> None:
    judge = Judge(tokenizer, [], None, 0.0, 0.0, max_new_tokens=20, overlong_buffer=8)
    answers = [decoding.Completion(ids=[5] * n, finished=True) for n in (3, 12, 14, 20)]
    reward, _ = judge([TokenPrompt([1], {})] * 4, answers, torch.zeros(4, 24), torch.zeros(4, 24))
    assert reward.tolist() == [0.0, 0.0, -0.25, -1.0]


def test_kept_rollouts_hold_what_the_loss_receives(policy: CausalLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = made(policy, tokenizer)
    source.keep = tmp_path / "rollouts"
    samples, _ = source.rollout(3)
    found = load_file(tmp_path / "rollouts" / "00000003.safetensors")
    renamed = {"old": "old_log_probs", "sampled": "sampler_log_probs", "advantage": "advantages"}
    assert sorted(found) == ["advantage", "finished", "group", "ids", "mask", "old", "reward", "sampled"]
    assert all(torch.equal(value, getattr(samples, renamed.get(name, name))) for name, value in found.items())


def test_old_log_probs_are_those_of_the_training_forward_pass_to_the_bit(
    policy: CausalLM, tokenizer: Tokenizer
) -> None:
    """Not the sampler's, which differ in rounding; so that the first ratio is exactly 1."""
    source = made(policy, tokenizer, temperature=0.7)
    samples, _ = source.rollout(0)
    with torch.no_grad():
        parts = zip(samples.ids.split(3), samples.mask.split(3), strict=True)
        again = torch.cat([policy.log_probs(ids, mask, temperature=0.7) for ids, mask in parts])
    assert torch.equal(samples.old_log_probs, again)
    assert not torch.equal(samples.sampler_log_probs, again)


def test_the_gap_between_sampler_and_training_is_a_mean_of_sizes(
    policy: CausalLM, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Nats per token of the answers, whatever their sign. Too large a one stops the run at its start, NaN always."""
    honest = decoding.generate

    def shifted(*given: object, **how: object) -> list:
        found = honest(*given, **how)
        for answer in found:
            answer.log_probs = [p + shift * (-1) ** n for n, p in enumerate(answer.log_probs)]
        return found

    monkeypatch.setattr(rollout, "generate", shifted)
    shift = 0.05
    assert made(policy, tokenizer).rollout(0)[1]["sampler_gap"].value == pytest.approx(0.05, abs=1e-4)
    for shift in (0.11, float("nan")):  # noqa: B007
        with pytest.raises(UserError, match="sampler and training disagree"):
            made(policy, tokenizer).rollout(0)
    capsys.readouterr()
    shift, later = 0.11, made(policy, tokenizer)
    assert [later.rollout(number)[1]["sampler_gap"].value for number in (1, 2)] == pytest.approx([0.11, 0.11], abs=1e-4)
    said = capsys.readouterr().err
    assert said.count("warning: sampler and training disagree by 0.11 nats a token") == 1  # not for every rollout
    shift = float("nan")
    with pytest.raises(UserError, match="sampler and training disagree"):
        later.rollout(3)


def test_every_epoch_has_another_order_and_every_rollout_and_rank_other_answers(
    policy: CausalLM, tokenizer: Tokenizer
) -> None:
    source = made(policy, tokenizer)
    epochs = [[b.old_log_probs[0, 9:].tolist() for step in steps for b in source(step)] for steps in ((0, 1), (2, 3))]
    assert epochs[0] != epochs[1]
    alike = [TokenPrompt([5, 6, 7], {"n": 1})] * 6
    found = []
    for number, rank in ((0, 0), (1, 0), (0, 1)):
        other = made(policy, tokenizer, rank=rank, world_size=2)
        other.prompts = alike
        samples, _ = other.rollout(number)
        found.append(samples.ids[:, 3:].flatten().tolist())
    assert found[0] != found[1]
    assert found[0] != found[2]


def test_dynamic_sampling_stops_when_there_is_enough_and_fills_up_behind_what_is_useful(
    policy: CausalLM, tokenizer: Tokenizer
) -> None:
    """Four groups are needed. Where every group differs one round is enough; where few do, these come first."""
    answered = iter(range(10_000))
    source = made(policy, tokenizer, sampling_rounds=5)
    source.judge = Judge(tokenizer, [(Reward("number", lambda c, t, f: float(next(answered))), 1.0)], None, 0.0, 0.0)
    samples, metrics = source.rollout(0)
    assert metrics["sampling_rounds"].value == 1
    assert metrics["reward"].count == 16
    source = made(policy, tokenizer, sampling_rounds=2)
    rare = lambda c, t, f: float(next(answered) % 2) if c["n"] == 3 else 1.0  # noqa: E731
    source.judge = Judge(tokenizer, [(Reward("rare", rare), 1.0)], None, 0.0, 0.0)
    samples, metrics = source.rollout(0)
    differs = (samples.reward.view(-1, 4).std(1) > 0).tolist()
    assert 0 < sum(differs) < 4
    assert differs == sorted(differs, reverse=True)
    assert metrics["sampling_rounds"].value == 2


def test_repetition_is_the_share_of_bigrams_seen_before_in_the_answer() -> None:
    ids = torch.tensor([[7, 7, 7, 1, 2, 1, 2, 1], [9, 9, 1, 2, 3, 4, 0, 0], [9, 9, 1, 2, 0, 0, 0, 0]])
    mask = torch.zeros(3, 8, dtype=torch.bool)
    mask[0, 3:], mask[1, 2:6], mask[2, 2:4] = True, True, True
    # 12 21 12 21: two of four were there before; 12 23 34: none of three; 12: none of one, though other rows have it
    assert repetition(ids, mask).value == pytest.approx(2 / 8)


def once(policy: CausalLM, tokenizer: Tokenizer, **changes) -> RolloutSource:
    return made(policy, tokenizer, **{"minibatches": 1, "epochs": 1, "batch_size": 16, **changes})


def test_a_rollout_of_one_step_is_not_scored_twice(policy: CausalLM, tokenizer: Tokenizer) -> None:
    """The step's own log-probabilities are those of the behavior policy: same loss, gradient and gap, without a forward pass."""
    found = {}
    for scored in (False, True):
        source = once(policy, tokenizer)
        source._may_skip_scoring = lambda number, scored=scored: not scored
        batches = source(1)
        assert {batch.only_step for batch in batches} == {not scored}
        policy.zero_grad()
        total, metrics = 0.0, dict[str, Mean]()
        generator = torch.Generator().manual_seed(1)
        for batch in batches:
            batch = replace(batch, advantages=torch.randn(batch.ids.shape, generator=generator) * batch.mask)
            loss, more = grpo.loss(grpo.Settings(), policy, batch)
            loss.total.backward()
            total += float(loss.total.detach())
            metrics = {name: metrics[name] + mean if metrics else mean for name, mean in more.items()}
        gap = source.metrics.get("sampler_gap") or metrics["sampler_gap"]
        assert ("sampler_gap" in source.metrics) == scored
        found[scored] = total, [p.grad.clone() for p in policy.parameters()], gap.value, metrics["ratio"].value
    assert found[False][0] == pytest.approx(found[True][0], abs=1e-5)
    for a, b in zip(found[False][1], found[True][1], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert max(float(gradient.abs().max()) for gradient in found[False][1]) > 0.01
    assert 0 < found[False][2] < 1e-5
    assert found[False][2] == pytest.approx(found[True][2], abs=1e-6)
    assert found[False][3] == 1.0


def test_when_a_rollout_is_scored(policy: CausalLM, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = once(policy, tokenizer)
    assert [source._may_skip_scoring(n) for n in (0, 1, 9, 10, 11)] == [False, True, True, False, True]
    assert not made(policy, tokenizer)._may_skip_scoring(1), "several steps learn from it"
    assert not once(policy, tokenizer, reference=policy)._may_skip_scoring(1)
    source.keep = tmp_path
    assert not source._may_skip_scoring(1)
    source.keep = None
    set_dropout(policy, 0.1)
    assert not source._may_skip_scoring(1)
    set_dropout(policy, 0.0)
    assert source._may_skip_scoring(1)


def test_answers_of_a_group_are_side_by_side(policy: CausalLM, tokenizer: Tokenizer) -> None:
    """A minibatch has the same answers as before, and its micro-batches few different prompts."""
    source = made(policy, tokenizer)
    for step in range(4):
        groups = torch.cat([batch.group for batch in source(step)]).tolist()
        assert groups == sorted(groups)
        assert len(groups) == 8
    first, second = (torch.cat([batch.ids[:, :16].sum(1) for batch in source(step)]).tolist() for step in (0, 1))
    whole = source._samples.rows(range(16)).ids[:, :16].sum(1).tolist()
    assert sorted(first + second) == sorted(whole)
