"""What must hold for every algorithm, whatever its formula. A new file in `tinyllm/algorithms` is tested here without a line of its own."""

from __future__ import annotations

import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))
import zoo

from tinyllm.data.datasets import Answers
from tinyllm.data.packing import Packed
from tinyllm.model.heads import TokenScores
from tinyllm.model.transformer import CausalLM

STOPPED_GRADIENTS = (
    "cispo",
)  # their gradient is not that of their value; tests/algorithms/test_online.py has its closed form
every = pytest.mark.parametrize(("family", "name"), zoo.ALL)
token_losses = pytest.mark.parametrize(("family", "name"), [x for x in zoo.ALL if x[0] != "reward"])


def same(got: Tensor, want: Tensor, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(got, want, atol=tolerance * float(want.abs().max().clamp(min=1e-3)), rtol=0)


@every
def test_padding_changes_nothing(family: str, name: str) -> None:
    """Wider rows, and other ids under the padding: the same loss and gradient."""
    case = zoo.of(family, name)
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
def test_order_changes_nothing(family: str, name: str) -> None:
    case = zoo.of(family, name)
    loss, other = case.loss(), case.loss(case.part([4, 5, 0, 1, 3, 2]))
    same(other, loss)
    same(case.gradient(other), case.gradient(loss))


@every
@pytest.mark.parametrize("parts", [[(0, 1, 2), (3, 4, 5)], [(i,) for i in range(6)], [(5,), (0, 2, 1, 4, 3)]])
def test_micro_batches_and_company_change_nothing(family: str, name: str, parts: list) -> None:
    case = zoo.of(family, name)
    loss, cut = case.loss(), case.split(*parts)
    same(cut, loss)
    same(case.gradient(cut), case.gradient(loss))


@every
def test_the_gradient_is_the_slope(family: str, name: str) -> None:
    """In float64, along three random directions through all parameters: (L(w + h d) - L(w - h d)) / 2h."""
    if name in STOPPED_GRADIENTS:
        pytest.skip("its gradient is not that of its value")
    case = zoo.of(family, name)
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


@every
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_precision_changes_little(family: str, name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = zoo.of(family, name)
    want = case.loss()
    single = case.model.float()
    floats = {
        f.name: v.float()
        for f in fields(case.batch)
        if isinstance(v := getattr(case.batch, f.name), Tensor) and v.is_floating_point()
    }
    batch = replace(case.batch, **floats)
    with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
        got = case.loss(batch, single)
    assert abs(float(got) - float(want)) < tolerance * max(1.0, abs(float(want)))


class Table(CausalLM):
    """A policy that is a table of log-probabilities, so that the derivative by each of them can be looked at."""

    def __init__(self, model: CausalLM, batch) -> None:
        super().__init__(model.config)
        self.double()
        self.table = torch.nn.Parameter(
            model.log_probs(
                batch.ids, torch.ones_like(batch.mask).index_fill(1, torch.tensor(0), False)
            ).log_probs.detach()
        )

    def log_probs(self, ids: Tensor, mask: Tensor, **options) -> TokenScores:
        rows = self.table[: len(ids)]
        return TokenScores(rows * mask, torch.zeros_like(rows) if options.get("entropy") else None)


@token_losses
def test_every_answer_token_is_learned_from_and_nothing_else(family: str, name: str) -> None:
    """dL/dlp is nonzero at each token of an answer, its first and its end token included, and zero at prompt and padding."""
    case = zoo.of(family, name)
    batch = case.batch
    policy = case.model.policy if family == "online" and case.module.CRITIC else case.model
    if family == "online":  # on policy, where no token is clipped
        with torch.no_grad():
            batch = replace(batch, old=policy.log_probs(batch.ids, batch.mask).log_probs)
    table = Table(policy, batch)
    model = table
    if family == "online" and case.module.CRITIC:

        class Both(torch.nn.Module):
            def log_probs_and_values(self, ids: Tensor, mask: Tensor, **options) -> tuple[TokenScores, Tensor]:
                return table.log_probs(ids, mask, **options), batch.values

        model = Both()
    loss, _ = case.module.loss(case.settings, model, batch)
    gradient = torch.autograd.grad(loss.total, table.table)[0]
    learned, mask = gradient != 0, batch.mask
    if name == "kto":  # the second half only serves an estimate that takes no gradient
        learned, mask = learned[: len(batch.good)], mask[: len(batch.good)]
    if name == "orpo":  # its supervised term covers the chosen prompts by default
        case_mask = mask.clone()
        case_mask[: len(mask) // 2] = batch.real[: len(mask) // 2]
        case_mask[:, 0] = False
        mask = case_mask
    assert torch.equal(learned, mask)


@pytest.mark.parametrize("name", zoo.NAMES["online"])
def test_the_sign_of_the_advantage(name: str) -> None:
    """A small step against the gradient makes well-rewarded answers likelier than badly rewarded ones."""
    case = zoo.of("online", name)
    batch = case.batch
    policy = case.model.policy if case.module.CRITIC else case.model
    with torch.no_grad():
        on_policy = policy.log_probs(batch.ids, batch.mask).log_probs
    batch = replace(batch, old=on_policy, reference=None if batch.reference is None else on_policy)
    batch, _ = case.module.credit(case.settings, replace(batch, values=torch.zeros_like(batch.values)))
    gradient = torch.autograd.grad(case.loss(batch), policy.lm_head.weight)[0]
    with torch.no_grad():
        policy.lm_head.weight -= 1e-3 * gradient / gradient.norm()
        change = (policy.log_probs(batch.ids, batch.mask).log_probs - on_policy) * batch.mask
    assert float((change * batch.advantage).sum()) > 0


@pytest.mark.parametrize("name", zoo.NAMES["offline"])
def test_what_is_preferred_becomes_likelier_than_what_is_not(name: str) -> None:
    case = zoo.of("offline", name)
    gradient = torch.autograd.grad(case.loss(), case.model.lm_head.weight)[0]
    _, before = case.module.loss(case.settings, case.model, case.batch)
    with torch.no_grad():
        case.model.lm_head.weight -= 1e-3 * gradient / gradient.norm()
    _, after = case.module.loss(case.settings, case.model, case.batch)
    assert after["rewards/margins"].value > before["rewards/margins"].value


def test_packed_rows_are_the_rows_apart() -> None:
    """Loss and gradient of packed rows equal the separate rows'; without the documents' numbers they do not."""
    case = zoo.of("supervised", "next_token")
    rows = [(zoo.numbers(i, 3 + (5 * i) % 11), [t > i % 3 for t in range(3 + (5 * i) % 11)]) for i in range(9)]
    apart, packed = Answers(rows, pad=0), Packed(rows, pad=0, length=16)
    assert len(packed) < len(rows) // 2 + 2
    assert sorted(i for row in packed.bins for i in row) == list(range(9))
    separate = case.loss(apart.collate(range(9), 0, []))
    together = packed.collate(range(len(packed)), 0, [])
    loss = case.loss(together)
    same(loss, separate)
    same(case.gradient(loss), case.gradient(separate))
    leaking = case.loss(replace(together, documents=None))
    assert abs(float(leaking) - float(separate)) > 1e-3


def test_a_packed_document_does_not_see_its_neighbours() -> None:
    model = zoo.rough(0)
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]])
    attend = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 0]])
    hidden = model(ids, attend)
    changed = ids.clone()
    changed[0, :3] = torch.tensor([9, 9, 9])
    same(model(changed, attend)[:, 3:7], hidden[:, 3:7])
    same(hidden[:, 3:7], model(ids[:, 3:7]))


@pytest.mark.parametrize("kind", ["left", "right", "both"])
def test_padding_on_either_side(kind: str) -> None:
    """Log-probabilities and rewards of rows padded left, right or on both sides are those of the rows alone."""
    model, scorer = zoo.rough(0), zoo.rough(1, zoo.SequenceScorer)
    rows = [zoo.numbers(i, n) for i, n in enumerate((3, 7, 5))]
    width = 12
    left = {"left": [width - len(r) for r in rows], "right": [0, 0, 0], "both": [2, 4, 1]}[kind]
    ids, real = torch.zeros(3, width, dtype=torch.long), torch.zeros(3, width, dtype=torch.bool)
    for row, (tokens, start) in enumerate(zip(rows, left, strict=True)):
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        real[row, start : start + len(tokens)] = True
    mask = real & F.pad(real[:, :-1], (1, 0))  # a row's first token has nothing before it
    scores, rewards = model.log_probs(ids, mask, attend=real).log_probs, scorer.rewards(ids, real, real)
    for row, (tokens, start) in enumerate(zip(rows, left, strict=True)):
        alone = torch.tensor([tokens])
        want = model.log_probs(alone, torch.arange(len(tokens))[None] > 0).log_probs
        same(scores[row, start : start + len(tokens)], want[0])
        same(rewards[row], scorer.rewards(alone, alone > 0)[0])
