"""Invariants of every algorithm. A new file in `tinyllm/algorithms` is tested here without further code."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.algorithms import cases
from tinyllm.data.datasets.datasets import SFTDataset
from tinyllm.data.datasets.packing import PackedSFTDataset
from tinyllm.model.heads import TokenScores
from tinyllm.model.transformer import CausalLM

STOPPED_GRADIENTS = (
    "cispo",
)  # their gradient is not that of their value; tests/algorithms/test_online.py has its closed form
every = pytest.mark.parametrize(("family", "name"), cases.ALL)
token_losses = pytest.mark.parametrize(("family", "name"), [x for x in cases.ALL if x[0] != "reward"])


def same(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, atol=tolerance * float(want.abs().max().clamp(min=1e-3)), rtol=0)


@every
def test_padding_changes_neither_loss_nor_gradient(family: str, name: str) -> None:
    """Wider rows, and other ids under the padding: the same loss and gradient."""
    case = cases.of(family, name)
    wide = {
        f.name: F.pad(v, (0, 16))
        for f in fields(case.batch)
        if isinstance(v := getattr(case.batch, f.name), Tensor) and v.ndim == 2
    }
    wide["ids"] = wide["ids"].clone()
    wide["ids"][:, -16:] = 7
    loss, padded = case.loss(), case.loss(replace(case.batch, **wide))
    same(padded, loss)
    same(case.gradient(padded), case.gradient(loss))


@every
def test_order_of_records_changes_neither_loss_nor_gradient(family: str, name: str) -> None:
    case = cases.of(family, name)
    loss, other = case.loss(), case.loss(case.part([4, 5, 0, 1, 3, 2]))
    same(other, loss)
    same(case.gradient(other), case.gradient(loss))


@every
@pytest.mark.parametrize("parts", [[(0, 1, 2), (3, 4, 5)], [(i,) for i in range(6)], [(5,), (0, 2, 1, 4, 3)]])
def test_micro_batches_change_neither_loss_nor_gradient(family: str, name: str, parts: list) -> None:
    case = cases.of(family, name)
    loss, cut = case.loss(), case.split(*parts)
    same(cut, loss)
    same(case.gradient(cut), case.gradient(loss))


@every
def test_gradient_equals_finite_differences(family: str, name: str) -> None:
    """In float64, along three random directions through all parameters: (L(w + h d) - L(w - h d)) / 2h."""
    if name in STOPPED_GRADIENTS:
        pytest.skip("its gradient is not that of its value")
    case = cases.of(family, name)
    gradient = case.gradient(case.loss())
    parameters = list(case.model.parameters())
    start = torch.nn.utils.parameters_to_vector(parameters).detach().clone()
    for seed in range(3):
        direction = torch.randn(start.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        around = []
        with torch.no_grad():
            for step in (1e-6, -1e-6):
                torch.nn.utils.vector_to_parameters(start + step * direction, parameters)
                around.append(case.loss())
        torch.nn.utils.vector_to_parameters(start, parameters)
        slope = (around[0] - around[1]) / 2e-6
        torch.testing.assert_close(slope, gradient @ direction, rtol=1e-5, atol=1e-7)


def inside_the_bounds(case: cases.Case) -> Any:
    """Return the batch with no ratio so close to where it is clipped that rounding decides."""
    batch, policy = case.batch, case.model.policy if case.algorithm.needs_critic else case.model
    with torch.no_grad():
        now = policy.log_probs(batch.ids, batch.mask)
    ratio = (now - batch.old_log_probs).exp()
    close = ((ratio > 0.7) & (ratio < 0.9)) | ((ratio > 1.1) & (ratio < 1.4))
    return replace(batch, old_log_probs=now.where(close, batch.old_log_probs))


@every
@pytest.mark.parametrize(
    ("dtype", "least", "relative", "turned"), [(torch.float32, 1e-5, 1e-5, 1e-9), (torch.bfloat16, 0.01, 0.03, 2e-3)]
)
def test_lower_precision_changes_loss_and_gradient_little(
    family: str, name: str, dtype: torch.dtype, least: float, relative: float, turned: float
) -> None:
    """The loss by a part of itself, which neither 0 nor the other sign is within; the gradient by its direction and length."""
    case = cases.of(family, name)
    batch = inside_the_bounds(case) if family == "online" else case.batch
    want = case.loss(batch)
    gradient, bound = case.gradient(want), least + relative * abs(float(want.detach()))
    assert bound < abs(float(want.detach())), "0 would do"
    single = case.model.float()
    floats = {
        f.name: v.float()
        for f in fields(batch)
        if isinstance(v := getattr(batch, f.name), Tensor) and v.is_floating_point()
    }
    batch = replace(batch, **floats)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        got = case.loss(batch, single)
    assert abs(float(got.detach()) - float(want.detach())) < bound
    lower = case.gradient(got, single).double()
    assert 1 - F.cosine_similarity(gradient, lower, dim=0).item() < turned
    assert lower.norm().item() == pytest.approx(gradient.norm().item(), rel=relative)


class Table(CausalLM):
    """A policy whose log-probabilities are parameters, to read the derivative with respect to each."""

    def __init__(self, model: CausalLM, batch) -> None:
        super().__init__(model.config)
        self.double()
        self.table = torch.nn.Parameter(
            model.log_probs(batch.ids, torch.ones_like(batch.mask).index_fill(1, torch.tensor(0), False)).detach()
        )

    def log_probs(self, ids: Tensor, mask: Tensor, **options) -> Tensor:
        return self.table[: len(ids)] * mask

    def log_prob_total(self, ids: Tensor, mask: Tensor, **options) -> Tensor:
        return self.log_probs(ids, mask).sum()

    def token_scores(self, ids: Tensor, mask: Tensor, **options) -> TokenScores:
        log_probs = self.log_probs(ids, mask)
        return TokenScores(log_probs, torch.zeros_like(log_probs))


@token_losses
def test_exactly_the_answer_tokens_have_a_derivative(family: str, name: str) -> None:
    """dL/dlp is nonzero at each token of an answer, including its first and its end token, and zero at prompt and padding."""
    case = cases.of(family, name)
    batch = case.batch
    policy = case.model.policy if family == "online" and case.algorithm.needs_critic else case.model
    if family == "online":  # on policy, where no token is clipped
        with torch.no_grad():
            batch = replace(batch, old_log_probs=policy.log_probs(batch.ids, batch.mask))
    table = Table(policy, batch)
    model = table
    if family == "online" and case.algorithm.needs_critic:

        class Both(torch.nn.Module):
            def token_scores_and_values(self, ids: Tensor, mask: Tensor, **options) -> tuple[TokenScores, Tensor]:
                return table.token_scores(ids, mask), batch.values

        model = Both()
    loss, _ = case.algorithm.loss(case.settings, model, batch)
    gradient = torch.autograd.grad(loss.total, table.table)[0]
    learned, mask = gradient != 0, batch.mask
    if name == "kto":  # the mismatched rows serve an estimate without gradient
        learned, mask = learned[: len(batch.good)], mask[: len(batch.good)]
    if name == "orpo":  # its supervised term covers the chosen prompts by default
        case_mask = mask.clone()
        case_mask[: len(mask) // 2] = batch.real[: len(mask) // 2]
        case_mask[:, 0] = False
        mask = case_mask
    assert torch.equal(learned, mask)


@pytest.mark.parametrize("name", cases.NAMES["online"])
def test_sign_of_the_advantage(name: str) -> None:
    """A small step against the gradient raises the log-probability of answers with positive advantages."""
    case = cases.of("online", name)
    batch = case.batch
    policy = case.model.policy if case.algorithm.needs_critic else case.model
    with torch.no_grad():
        on_policy = policy.log_probs(batch.ids, batch.mask)
    batch = replace(batch, old_log_probs=on_policy, ref_log_probs=None if batch.ref_log_probs is None else on_policy)
    batch, _ = case.algorithm.compute_advantages(case.settings, replace(batch, values=torch.zeros_like(batch.values)))
    gradient = torch.autograd.grad(case.loss(batch), policy.lm_head.weight)[0]
    with torch.no_grad():
        policy.lm_head.weight -= 1e-3 * gradient / gradient.norm()
        change = (policy.log_probs(batch.ids, batch.mask) - on_policy) * batch.mask
    assert float((change * batch.advantages).sum()) > 0


@pytest.mark.parametrize("name", cases.NAMES["offline"])
def test_a_step_raises_the_preference_margin(name: str) -> None:
    case = cases.of("offline", name)
    gradient = torch.autograd.grad(case.loss(), case.model.lm_head.weight)[0]
    _, before = case.algorithm.loss(case.settings, case.model, case.batch)
    with torch.no_grad():
        case.model.lm_head.weight -= 1e-3 * gradient / gradient.norm()
    _, after = case.algorithm.loss(case.settings, case.model, case.batch)
    assert after["rewards/margins"].value > before["rewards/margins"].value


def test_packed_rows_equal_separate_rows() -> None:
    """Packed and separate rows have equal loss and gradient; without document numbers they do not."""
    case = cases.of("supervised", "next_token")
    rows = [(cases.numbers(i, 3 + (5 * i) % 11), [t > i % 3 for t in range(3 + (5 * i) % 11)]) for i in range(9)]
    apart, packed = SFTDataset(rows, pad=0), PackedSFTDataset(rows, pad=0, length=16)
    assert len(packed) < len(rows) // 2 + 2
    assert sorted(i for row in packed.bins for i in row) == list(range(9))
    separate = case.loss(apart.collate(range(9), 0, []))
    together = packed.collate(range(len(packed)), 0, [])
    loss = case.loss(together)
    same(loss, separate)
    same(case.gradient(loss), case.gradient(separate))
    leaking = case.loss(replace(together, documents=None))
    assert abs(float(leaking) - float(separate)) > 1e-3


def test_packed_documents_do_not_attend_to_each_other() -> None:
    model = cases.rough(0)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    attend = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])
    hidden = model(ids, attend)
    changed = ids.clone()
    changed[0, :3] = torch.tensor([9, 9, 9])
    same(model(changed, attend)[:, 3:7], hidden[:, 3:7])
    same(hidden[:, 3:7], model(ids[:, 3:7]))


@pytest.mark.parametrize("kind", ["left", "right", "both"])
def test_padding_on_either_side_leaves_scores_unchanged(kind: str) -> None:
    """Log-probabilities and rewards of rows padded left, right or on both sides equal those of the unpadded rows."""
    model, scorer = cases.rough(0), cases.rough(1, cases.SequenceScorer)
    rows = [cases.numbers(i, n) for i, n in enumerate((3, 7, 5))]
    width = 12
    left = {"left": [width - len(r) for r in rows], "right": [0, 0, 0], "both": [2, 4, 1]}[kind]
    ids, real = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.bool)
    for row, (tokens, start) in enumerate(zip(rows, left, strict=True)):
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        real[row, start : start + len(tokens)] = True
    mask = real & F.pad(real[:, :-1], (1, 0))  # a row's first token has nothing before it
    scores, rewards = model.log_probs(ids, mask, attend=real), scorer.rewards(ids, real, real)
    for row, (tokens, start) in enumerate(zip(rows, left, strict=True)):
        alone = torch.tensor([tokens])
        want = model.log_probs(alone, torch.arange(len(tokens))[None] > 0)
        same(scores[row, start : start + len(tokens)], want[0])
        same(rewards[row], scorer.rewards(alone, alone > 0)[0])
