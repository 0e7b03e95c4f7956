"""Everything that a rollout measures is without dropout: sampler, old and reference log-probabilities, values, held-out figures.

The models stand in training mode with dropout in their blocks, and in their adapter where they have one; the expected figures are those of
the same weights without any.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch

from tests.support import small
from tinyllm.algorithms import grpo
from tinyllm.data.datasets.datasets import TokenPrompt
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import ActorCritic, CausalLM, SequenceScorer, set_dropout
from tinyllm.rollout.config import RolloutConfig
from tinyllm.rollout.judge import Judge
from tinyllm.rollout.source import RolloutSource

PROMPTS = [TokenPrompt(list(range(5, 7 + n)), {}) for n in range(4)]
TEMPERATURE = 0.8


def adapted() -> CausalLM:
    """A policy whose adapter has moved, with dropout in its branches."""
    torch.manual_seed(1)
    model = lora.attach(small.rough(), LoRAConfig(r=2, dropout=0.5))
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    return model


def still(model: torch.nn.Module) -> torch.nn.Module:
    """A copy without any dropout."""
    found = copy.deepcopy(model).eval()
    for module in found.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return found


def training(model: torch.nn.Module) -> torch.nn.Module:
    """The model in training mode, with dropout in its blocks."""
    set_dropout(model, 0.5)
    return model.train()


def source(model: torch.nn.Module, reference: object) -> RolloutSource:
    texts = small.tokenizer()
    return RolloutSource(
        model,
        PROMPTS,
        Judge(texts, [], None, 0.0, 0.5),
        partial(grpo.compute_advantages, grpo.Settings()),
        RolloutConfig(group_size=2, minibatches=1, max_new_tokens=6, temperature=TEMPERATURE, tolerance=99),
        reference=reference,
        stop=texts.stop_ids,
        batch_size=8,
        micro_batch_size=3,
        seed=0,
        autocast=nullcontext,
    )


@pytest.mark.parametrize("kind", ["frozen copy", "adapter switched off"])
@torch.no_grad()
def test_log_probs_of_a_rollout_are_without_dropout(kind: str) -> None:
    if kind == "frozen copy":
        policy, other = small.rough(), small.rough(seed=7)
        want, base = still(policy), still(other)
        reference = training(other)
    else:
        policy = adapted()
        want, base = still(policy), small.rough()
        reference = partial(lora.disabled, policy)
    assert not torch.allclose(training(policy)(torch.arange(9)[None]), want(torch.arange(9)[None]), atol=1e-2)
    rollout = source(policy, reference)
    samples, metrics = rollout.rollout(0)
    old, ref = (m.log_probs(samples.ids, samples.mask, temperature=TEMPERATURE) for m in (want, base))
    torch.testing.assert_close(samples.sampler_log_probs, old, atol=1e-4, rtol=0)
    torch.testing.assert_close(samples.old_log_probs, old, atol=1e-4, rtol=0)
    torch.testing.assert_close(samples.ref_log_probs, ref, atol=1e-4, rtol=0)
    assert (old - ref).abs().max() > 0.1
    assert metrics["objective/kl"].value == pytest.approx(float((old - ref).sum(1).mean()), abs=1e-4)


@torch.no_grad()
def test_held_out_entropy_and_kl_are_without_dropout() -> None:
    policy = adapted()
    want, base = still(policy), small.rough()
    rollout = source(training(policy), partial(lora.disabled, policy))
    answers = generate(want, [p.ids for p in PROMPTS], Sampling(6, TEMPERATURE, stop=small.tokenizer().stop_ids))
    policy.train()
    found = rollout.probe(PROMPTS, answers)
    entropies, distances = [], []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor([[*prompt.ids, *answer.ids]])
        both = [(m.logits(m(ids)) / TEMPERATURE).log_softmax(-1)[0, len(prompt.ids) - 1 : -1] for m in (want, base)]
        entropies.append(-(both[0].exp() * both[0]).sum(-1))
        chosen = [log_p.gather(1, ids[0, len(prompt.ids) :, None]).sum() for log_p in both]
        distances.append(chosen[0] - chosen[1])
    assert found["entropy"].value == pytest.approx(float(torch.cat(entropies).mean()), abs=1e-4)
    assert found["objective/kl"].value == pytest.approx(float(torch.stack(distances).mean()), abs=1e-3)


@torch.no_grad()
def test_values_of_a_rollout_are_without_dropout() -> None:
    model = ActorCritic(small.rough(), small.rough(SequenceScorer, seed=4))
    critic = still(model.critic)
    samples, _ = source(training(model), None).rollout(0)
    want = torch.nn.functional.pad(critic(samples.ids)[:, :-1], (1, 0))
    torch.testing.assert_close(samples.values[samples.mask], want[samples.mask], atol=1e-4, rtol=0)
    model.critic.train()
    assert not torch.allclose(model.critic(samples.ids), critic(samples.ids), atol=1e-2)


@pytest.mark.parametrize("mode", [True, False])
def test_sampling_leaves_the_mode_of_the_model_as_it_was(mode: bool) -> None:
    policy = small.rough().train(mode)
    generate(policy, [[5, 6]], Sampling(2))
    assert {module.training for module in policy.modules()} == {mode}
