"""Every setting of every algorithm changes the gradient; further closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from tests.algorithms import cases
from tinyllm.algorithms import common, grpo, gspo, ppo
from tinyllm.data.datasets.batches import Samples

WITH = {"ipo_sum": {"variant": "ipo"}, "variant": {"label_smoothing": 0.1}}  # settings that only act with others


def values(algorithm: Any, name: str, default: Any) -> list[tuple[Any, Any]]:
    """Pairs of values of a setting whose gradients must differ; for a choice, the default with every other."""
    kind = algorithm.settings.model_fields[name].annotation
    if get_origin(kind) is Literal:
        return [(default, choice) for choice in get_args(kind) if choice != default]
    if isinstance(default, bool):
        return [(default, not default)]
    if "clip" in name:
        return [(1e-6, 1e3)]  # everything is clipped, nothing is
    return [(default, default / 2 or 0.1)]


def gradient(family: str, name: str, changes: dict[str, Any]) -> torch.Tensor:
    """Gradient of the loss, with advantages computed from these settings."""
    case = cases.of(family, name)
    settings = case.settings.model_copy(update=changes)
    batch = case.batch
    if family == "online":
        batch = batch if case.algorithm.uses_reference(settings) else replace(batch, ref_log_probs=None)
        batch, _ = case.algorithm.compute_advantages(settings, batch)
    found, _ = case.algorithm.loss(settings, case.model, batch)
    return case.gradient(found.total / found.count)


def knobs() -> list[tuple[str, str, str, Any, Any]]:
    found = []
    for family, name in cases.ALL:
        algorithm, defaults = cases.algorithms.load(name, family), cases.of(family, name).settings
        for field in algorithm.settings.model_fields:
            found += [(family, name, field, *two) for two in values(algorithm, field, getattr(defaults, field))]
    return found


@pytest.mark.parametrize(("family", "name", "field", "one", "other"), knobs(), ids=str)
def test_every_setting_changes_the_gradient(family: str, name: str, field: str, one: Any, other: Any) -> None:
    beside = WITH.get(field, {})
    before, after = (gradient(family, name, {**beside, field: value}) for value in (one, other))
    assert (after - before).abs().max() > 1e-6 * before.abs().max()


@pytest.mark.parametrize("name", cases.NAMES["online"])
def test_a_configured_kl_needs_the_reference(name: str) -> None:
    algorithm = cases.algorithms.load(name, "online")
    if "kl_coef" in algorithm.settings.model_fields:
        assert algorithm.uses_reference(algorithm.settings(kl_coef=0.1))
        assert not algorithm.uses_reference(algorithm.settings(kl_coef=0.0))
    else:
        assert not algorithm.uses_reference(algorithm.settings())


def samples() -> Samples:
    return cases.of("online", "grpo").batch


@pytest.mark.parametrize("weighted", [False, True])
def test_gspo_kl_is_k3_averaged_over_tokens_and_answers(weighted: bool) -> None:
    batch, policy = samples(), cases.rough(0)
    losses = [
        gspo.loss(gspo.Settings(kl_coef=coef, kl_weighted=weighted), policy, batch)[0].total / 6 for coef in (0.0, 0.4)
    ]
    log_p = policy.log_probs(batch.ids, batch.mask)
    rows = []
    for i in range(6):
        d = (log_p[i] - batch.ref_log_probs[i])[batch.mask[i]]
        weight = (log_p[i] - batch.old_log_probs[i])[batch.mask[i]].exp() if weighted else 1.0
        rows.append((weight * ((-d).exp() - 1 + d)).mean())
    torch.testing.assert_close(losses[1] - losses[0], 0.4 * torch.stack(rows).mean(), atol=1e-12, rtol=1e-9)


def test_grpo_weighted_kl_is_k3_times_the_ratio() -> None:
    batch, policy = samples(), cases.rough(0)
    losses = [grpo.loss(grpo.Settings(kl_coef=coef), policy, batch)[0].total / 6 for coef in (0.0, 0.4)]
    log_p = policy.log_probs(batch.ids, batch.mask)
    d, ratio = log_p - batch.ref_log_probs, (log_p - batch.old_log_probs).exp()
    per_token = ratio * ((-d).exp() - 1 + d) * batch.mask
    want = 0.4 * (per_token.sum(1) / batch.mask.sum(1)).mean()
    torch.testing.assert_close(losses[1] - losses[0], want, atol=1e-12, rtol=1e-9)


def test_ppo_k3_estimates_the_kl_from_policy_to_reference() -> None:
    batch = samples()
    rewards = ppo.token_rewards(ppo.Settings(kl_coef=0.3, kl_estimator="k3"), batch)
    d = batch.old_log_probs - batch.ref_log_probs
    want = -0.3 * ((-d).exp() - 1 + d) * batch.mask
    ends = [int(row.nonzero()[-1]) for row in batch.mask]
    for i, end in enumerate(ends):
        want[i, end] += batch.reward[i]
    torch.testing.assert_close(rewards, want, atol=1e-12, rtol=0)


def test_returns_are_advantages_plus_values_and_not_whitened() -> None:
    batch = samples()
    plain, white = (ppo.compute_advantages(ppo.Settings(whiten=whiten), batch)[0] for whiten in (False, True))
    torch.testing.assert_close(plain.returns, plain.advantages + batch.values * batch.mask, atol=1e-12, rtol=0)
    torch.testing.assert_close(white.returns, plain.returns, atol=1e-12, rtol=0)
    torch.testing.assert_close(white.advantages, common.masked_whiten(plain.advantages, batch.mask), atol=1e-12, rtol=0)


def test_ppo_equals_its_formula_off_policy() -> None:
    case = cases.of("online", "ppo")
    batch, model = case.batch, case.model
    settings = ppo.Settings(clip=0.05, value_clip=0.1, vf_coef=0.7)
    log_p = model.policy.log_probs(batch.ids, batch.mask)
    scores = model.critic(batch.ids)
    terms, clipped = [], 0
    for i, t in batch.mask.nonzero().tolist():
        rho, a, r = (log_p[i, t] - batch.old_log_probs[i, t]).exp(), batch.advantages[i, t], batch.returns[i, t]
        surrogate = torch.maximum(-a * rho, -a * rho.clamp(0.95, 1.05))
        clipped += surrogate.item() != (-a * rho).item()
        v, v_old = scores[i, t - 1], batch.values[i, t]
        near = v_old + (v - v_old).clamp(-0.1, 0.1)
        terms.append(surrogate + 0.7 * 0.5 * torch.maximum((v - r) ** 2, (near - r) ** 2))
    assert 0 < clipped < len(terms)
    found, _ = ppo.loss(settings, model, batch)
    torch.testing.assert_close(found.total / found.count, torch.stack(terms).mean(), atol=1e-10, rtol=1e-9)


def test_selected_rows_keep_their_last_token() -> None:
    """Columns of padding are cut off, whatever column an answer ends in."""
    batch = samples()
    for end in range(1, 40):
        mask = torch.zeros(6, 48, dtype=torch.bool)
        mask[2, end] = True
        wide = replace(batch, ids=torch.arange(48).expand(6, 48), mask=mask)
        others = {
            n: torch.zeros(6, 48)
            for n in ("sampler_log_probs", "old_log_probs", "ref_log_probs", "advantages", "values")
        }
        picked = replace(wide, **others, returns=None).rows([2])
        assert picked.ids[picked.mask].tolist() == [end]
