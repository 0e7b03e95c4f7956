"""KTO, SimPO, RLOO and CISPO against their papers' formulas, written as loops over rows and tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from tests.algorithms import cases
from tinyllm.algorithms import cispo, common, kto, rloo, simpo
from tinyllm.data.datasets.datasets import TokenUnpaired, UnpairedDataset


def sequence(model: torch.nn.Module, prompt: list[int], answer: list[int]) -> torch.Tensor:
    """log p of each token of the answer, one row at a time, full softmax."""
    ids = torch.tensor([[*prompt, *answer]])
    log_p = torch.log_softmax(model.logits(model(ids)), -1)[0, :-1].gather(1, ids[0, 1:, None]).squeeze(1)
    return log_p[len(prompt) - 1 :]


# --- SimPO -----------------------------------------------------------------------------------------------------------------------


def test_simpo_equals_its_formula() -> None:
    case = cases.of("offline", "simpo")
    settings = simpo.Settings(beta=1.7, gamma=0.6)
    rows = []
    for p in cases._preferences().pairs:
        average = [sequence(case.model, p.prompt, a).mean() for a in (p.chosen, p.rejected)]
        rows.append(-torch.sigmoid(1.7 * (average[0] - average[1]) - 0.6).log())
    found, _ = simpo.loss(settings, case.model, case.batch)
    torch.testing.assert_close(found.total / found.count, torch.stack(rows).mean(), atol=1e-10, rtol=1e-10)


def test_simpo_loss_with_equal_answers() -> None:
    """l_chosen = l_rejected: -log sigmoid(-gamma)."""
    case = cases.of("offline", "simpo")
    pairs = cases._preferences()
    pairs.pairs = [replace(p, rejected=p.chosen) for p in pairs.pairs]
    found, _ = simpo.loss(simpo.Settings(gamma=0.5), case.model, pairs.collate(range(6), 0, range(6)))
    assert float(found.total / found.count) == pytest.approx(math.log(1 + math.exp(0.5)), abs=1e-9)


# --- KTO -------------------------------------------------------------------------------------------------------------------------


def unpaired(reference: torch.nn.Module) -> UnpairedDataset:
    items = [
        TokenUnpaired(cases.numbers(i, 2 + i % 3), cases.numbers(60 + i, 1 + (2 * i) % 5), i % 3 == 0) for i in range(6)
    ]
    data = UnpairedDataset(items, pad=0)
    scores = [
        [sequence(reference, x.prompt, y.answer).sum() for y in (x, items[data.mismatched(i)])]
        for i, x in enumerate(items)
    ]
    data.ref_log_probs = torch.tensor(scores, dtype=torch.float64)
    return data


def test_kto_equals_its_formula_with_one_z_for_the_whole_step() -> None:
    model = cases.rough(0)
    data = unpaired(cases.near(model, 3, 0.1))
    settings = kto.Settings(beta=0.4, desirable_weight=1.3, undesirable_weight=0.8)
    moved = [
        [
            float((sequence(model, x.prompt, y.answer).sum() - data.ref_log_probs[i, k]).detach())
            for k, y in enumerate((x, data.items[data.mismatched(i)]))
        ]
        for i, x in enumerate(data.items)
    ]
    z = max(0.0, sum(m[1] for m in moved) / 6)
    assert z > 0
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    want = [
        1.3 * (1 - sigmoid(0.4 * (m[0] - z))) if x.good else 0.8 * (1 - sigmoid(0.4 * (z - m[0])))
        for x, m in zip(data.items, moved, strict=True)
    ]
    parts = kto.prepare(settings, model, [data.collate(part, 0, range(6)) for part in ((0, 1), (2, 3, 4), (5,))])
    assert all(float(p.kl.detach()) == pytest.approx(z, abs=1e-9) for p in parts)
    found = [kto.loss(settings, model, part)[0] for part in parts]
    assert float(sum(f.total for f in found) / sum(f.count for f in found)) == pytest.approx(sum(want) / 6, abs=1e-9)


def test_kto_loss_is_one_half_if_policy_is_reference_and_z_has_no_gradient() -> None:
    model = cases.rough(0)
    data = unpaired(model)
    batch = kto.prepare(kto.Settings(), model, [data.collate(range(6), 0, range(6))])[0]
    found, metrics = kto.loss(kto.Settings(), model, batch)
    assert float(found.total / found.count) == pytest.approx(0.5, abs=1e-9)
    assert metrics["rewards/margins"].value == pytest.approx(0, abs=1e-9)
    assert not batch.kl.requires_grad


def test_kto_z_is_never_negative() -> None:
    model = cases.rough(0)
    data = unpaired(model)
    data.ref_log_probs = data.ref_log_probs + 5.0
    batch = kto.prepare(kto.Settings(), model, [data.collate(range(6), 0, range(6))])[0]
    assert float(batch.kl) == 0.0


def test_mismatched_answers_belong_to_another_prompt() -> None:
    items = [TokenUnpaired([i // 2], [10 + i], i % 2 == 0) for i in range(10)]  # two answers a prompt, as pairs give
    data = UnpairedDataset(items, pad=0)
    assert all(items[data.mismatched(i)].prompt != items[i].prompt for i in range(10))
    batch = data.collate([3], 0, [3])
    assert batch.ids[0, :2].tolist() == [1, 13]
    assert batch.ids[1, :2].tolist() == [1, 18]
    assert batch.mask.tolist()[1][:3] == [False, True, False]


# --- RLOO ------------------------------------------------------------------------------------------------------------------------


def test_leave_one_out_advantages() -> None:
    reward, group = torch.tensor([1.0, 2.0, 6.0, 5.0, 7.0, 9.0]).double(), torch.tensor([0, 0, 0, 1, 1, 2])
    want = torch.tensor([1 - 4, 2 - 3.5, 6 - 1.5, -2, 2, 0]).double()
    torch.testing.assert_close(common.leave_one_out_advantages(reward, group), want, atol=1e-12, rtol=0)


def test_rloo_equals_its_formula_with_the_kl_in_the_reward() -> None:
    case = cases.of("online", "rloo")
    batch, settings = case.batch, rloo.Settings(clip=0.5, kl_coef=0.3)
    batch, _ = rloo.compute_advantages(settings, batch)
    log_p = case.model.log_probs(batch.ids, batch.mask)
    worth = [
        float(batch.reward[i] - 0.3 * (batch.old_log_probs - batch.ref_log_probs)[i][batch.mask[i]].sum())
        for i in range(6)
    ]
    rows = []
    for i in range(6):
        sibling = i + 1 if i % 2 == 0 else i - 1
        s, a = (log_p[i] - batch.old_log_probs[i])[batch.mask[i]].sum().exp(), worth[i] - worth[sibling]
        rows.append(-torch.minimum(s * a, s.clamp(0.5, 1.5) * a))
    found, _ = rloo.loss(settings, case.model, batch)
    torch.testing.assert_close(found.total / found.count, torch.stack(rows).mean(), atol=1e-10, rtol=1e-10)


# --- CISPO -----------------------------------------------------------------------------------------------------------------------


def test_cispo_gradient_is_a_bounded_weight_times_the_score() -> None:
    case = cases.of("online", "cispo")
    batch, settings = case.batch, cispo.Settings(clip_high=0.1)
    log_p = case.model.log_probs(batch.ids, batch.mask)
    weight = (log_p - batch.old_log_probs).exp().detach()
    assert 0 < int((weight[batch.mask] > 1.1).sum()) < int(batch.mask.sum())
    want = -(weight.clamp(max=1.1) * batch.advantages * log_p)[batch.mask].sum() / batch.mask.sum()
    found, metrics = cispo.loss(settings, case.model, batch)
    head = case.model.lm_head.weight
    got, expected = (torch.autograd.grad(x, head, retain_graph=True)[0] for x in (found.total / found.count, want))
    torch.testing.assert_close(got, expected, atol=1e-10, rtol=1e-9)
    assert metrics["clip_fraction"].value == pytest.approx(float((weight[batch.mask] >= 1.1).double().mean()))
