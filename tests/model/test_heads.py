"""Log-probabilities against the plain formula: values, gradients, shift, temperature, masks."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.support import small
from tinyllm.model import heads, lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.heads import last_token, token_log_probs, token_scores
from tinyllm.model.transformer import Block, CausalLM, compile_blocks, initialise


def plain(
    hidden: torch.Tensor, head: torch.Tensor, ids: torch.Tensor, mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The definition: full logits, log-softmax, the state before each token predicts it."""
    log_p = torch.log_softmax(hidden @ head.T / temperature, -1)
    scored = log_p[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    return torch.nn.functional.pad(scored, (1, 0)) * mask


@pytest.fixture
def case() -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (3, 7), generator=generator)
    mask = torch.rand(3, 7, generator=generator) > 0.4
    mask[:, 0] = False
    return hidden, head, ids, mask


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("block", [1, 44, 10_000])
@pytest.mark.parametrize("kept", [0, 800, 1 << 26])
def test_values_and_gradients_are_the_definitions(
    case: tuple, temperature: float, block: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(heads._BLOCK_ELEMENTS, "cpu", block)  # 1, 4 or all rows at a time
    monkeypatch.setitem(heads._KEPT_BYTES, "cpu", kept)  # nothing, some blocks or all
    monkeypatch.setattr(heads, "_LEAST_ROWS", 1)
    hidden, head, ids, mask = case
    weights = torch.randn(3, 7, dtype=torch.float64)
    ours = token_log_probs(hidden, head, ids, mask, temperature=temperature)
    theirs = plain(hidden, head, ids, mask, temperature)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    got = torch.autograd.grad((ours * weights).sum(), (hidden, head), retain_graph=True)
    want = torch.autograd.grad((theirs * weights).sum(), (hidden, head))
    again = torch.autograd.grad((ours * weights).sum(), (hidden, head))  # what was kept is gone
    for a, b, c in zip(got, want, again, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
        torch.testing.assert_close(c, b, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_kept_changes_no_score(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32 by our own kernel, where there is a compiler."""
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 40, 8, generator=generator), torch.randn(300, 8, generator=generator) / 2
    ids, mask = torch.randint(0, 300, (2, 40), generator=generator), torch.arange(40).expand(2, 40) > 3
    found = []
    for kept in (0, 1 << 26):
        monkeypatch.setitem(heads._KEPT_BYTES, "cpu", kept)
        given = hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_()
        scores = token_scores(*given, ids, mask, temperature=0.8)
        found.append([*scores, *torch.autograd.grad(scores.log_probs.square().sum(), given)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 if dtype == torch.float32 else 1e-12, rtol=1e-6)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_a_total_does_not_need_the_states_of_the_last_tokens(case: tuple, softcap: float | None) -> None:
    hidden, head, ids, mask = case
    found = []
    for states in (hidden, hidden[:, :-1]):
        leaves = [states.detach().clone().requires_grad_(), head.detach().clone().requires_grad_()]
        total = heads.log_prob_total(*leaves, ids, mask, softcap=softcap)
        to_states, to_head = torch.autograd.grad(total, leaves)
        with torch.no_grad():
            torch.testing.assert_close(heads.log_prob_total(*leaves, ids, mask, softcap=softcap), total)
        found.append((total.detach(), to_states[:, : ids.shape[1] - 1], to_head))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)
    with pytest.raises(ValueError, match="are not of one batch"):
        heads.log_prob_total(hidden[:, :-2], head, ids, mask)


def test_shapes_of_different_batches_are_refused(case: tuple) -> None:
    hidden, head, ids, mask = case
    for given in (
        (hidden[:, 1:], ids, mask),
        (hidden, ids[:, 1:], mask),
        (hidden, ids, mask[:, 1:]),
        (hidden, ids, mask[:2]),
    ):
        short = given[0].shape != hidden.shape  # which a total takes for states without those of the last tokens
        for function in (token_log_probs, token_scores, *([] if short else [heads.log_prob_total])):
            with pytest.raises(ValueError, match="are not of one batch"):
                function(given[0], head, *given[1:])


def test_nothing_is_kept_that_nobody_learns_from(case: tuple) -> None:
    hidden, head, ids, mask = case
    found = token_log_probs(hidden, head, ids, mask)
    assert found.grad_fn.next_functions[1][0].kept
    with torch.no_grad():
        assert token_log_probs(hidden, head, ids, mask).grad_fn is None
    softcapped = token_log_probs(hidden, head, ids, mask, softcap=5.0)
    assert not softcapped.grad_fn.next_functions[1][0].kept


def test_gradient_in_float64(case: tuple) -> None:
    hidden, head, ids, mask = case
    assert torch.autograd.gradcheck(lambda h, w: token_log_probs(h, w, ids, mask, temperature=1.3), (hidden, head))


def test_entropy_is_that_of_the_distribution(case: tuple) -> None:
    hidden, head, ids, mask = case
    log_p = torch.log_softmax(hidden @ head.T, -1)
    want = torch.nn.functional.pad(-(log_p.exp() * log_p).sum(-1)[:, :-1], (1, 0)) * mask
    got = token_scores(hidden, head, ids, mask).entropy
    torch.testing.assert_close(got, want.detach(), atol=1e-12, rtol=0)


def test_uniform_logits_cost_ln_v() -> None:
    scores = token_log_probs(
        torch.zeros(1, 3, 4), torch.randn(50, 4), torch.tensor([[1, 2, 3]]), torch.tensor([[False, True, True]])
    )
    torch.testing.assert_close(scores, torch.tensor([[0.0, -3.912023, -3.912023]]))


def test_an_empty_mask_gives_zero_and_zero_gradients(case: tuple) -> None:
    hidden, head, ids, mask = case
    scores = token_log_probs(hidden, head, ids, torch.zeros_like(mask))
    assert scores.abs().sum() == 0
    gradients = torch.autograd.grad(scores.sum(), (hidden, head))
    assert all(g.abs().sum() == 0 for g in gradients)


def test_last_token_with_padding_on_either_side() -> None:
    values = torch.arange(8.0).view(2, 4)
    mask = torch.tensor([[True, True, False, False], [False, False, True, True]])
    assert last_token(values, mask).tolist() == [1.0, 7.0]


def test_bf16_keeps_the_softmax_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, head = torch.randn(2, 5, 64, generator=generator), torch.randn(999, 64, generator=generator) / 8
    ids = torch.randint(0, 999, (2, 5), generator=generator)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 0] = False
    exact = token_log_probs(hidden, head, ids, mask)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = token_log_probs(hidden, head, ids, mask)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < 0.05


@pytest.mark.parametrize("softcap", [None, 40.0])
def test_logits_of_bf16_are_not_rounded_to_bf16(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(2, 9, 64, generator=generator) * 3).bfloat16()
    head = nn.Linear(64, 20_000, bias=False)  # more rows than are widened at once
    head.weight = nn.Parameter(torch.randn(20_000, 64, generator=generator).bfloat16())
    ids, mask = torch.randint(0, 20_000, (2, 9), generator=generator), torch.ones(2, 9, dtype=torch.bool)
    mask[:, 0] = False
    exact = hidden.double() @ head.weight.detach().double().T
    assert exact.abs().max() > 64, "where the steps of bf16 are 0.5"
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = heads.logits(hidden, head)
        scored = token_log_probs(hidden, head.weight, ids, mask, softcap=softcap)
    assert (found.double() - exact).abs().max() < 1e-4
    capped = exact if softcap is None else softcap * torch.tanh(exact / softcap)
    log_p = capped[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    assert (scored[:, 1:].double() - log_p).abs().max() < 1e-4
    rounded = exact.bfloat16().double()[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    if softcap is None:
        assert (rounded - log_p).abs().max() > 0.1, "rounded logits would not be noticed"


def test_logits_of_bf16_have_a_gradient_and_may_be_none() -> None:
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(8, 9000, bias=False)
    hidden = torch.randn(3, 8, generator=generator, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        heads.logits(hidden, head).logsumexp(-1).sum().backward()
    assert hidden.grad is not None
    assert head.weight.grad is not None
    want = hidden.bfloat16().float().detach() @ head.weight.bfloat16().float().detach().T
    torch.testing.assert_close(head.weight.grad, want.softmax(-1).T @ hidden.detach(), atol=1e-2, rtol=0)
    for shape in ((0, 8), (2, 0, 8)):
        assert heads.logits(torch.zeros(shape), head).shape == (*shape[:-1], 9000)


@pytest.mark.parametrize("softcap", [None, 40.0, 400.0])  # near a low cap, rounding is hardly noticed
def test_gradients_of_bf16_come_from_logits_that_are_not_rounded(softcap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = (torch.randn(1, 33, 64, generator=generator) * 3).bfloat16().requires_grad_()
    head = torch.randn(500, 64, generator=generator).bfloat16().requires_grad_()
    ids, mask = torch.randint(0, 500, (1, 33), generator=generator), torch.arange(33)[None] > 0
    with torch.autocast("cpu", torch.bfloat16):
        token_log_probs(hidden, head, ids, mask, softcap=softcap).sum().backward()
    exact = [x.detach().double().requires_grad_() for x in (hidden, head)]
    logits = exact[0] @ exact[1].T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).sum().backward()
    for found, want in zip((hidden.grad, head.grad), (x.grad for x in exact), strict=True):
        assert found is not None
        assert want is not None
        assert (found.double() - want).norm() < 0.01 * want.norm()


@pytest.mark.parametrize(
    "changed",
    [
        {"targets": ("lm_head",)},
        {"targets": ("lm_head",), "dora": True},
        {"targets": ("embed_tokens",), "tied": True},
        {"token_rows": {"embed_tokens": (3, 5)}},
    ],
)
def test_logits_of_an_adapted_head_are_those_that_training_scores(changed: dict[str, Any]) -> None:
    tied = "lm_head" not in changed.get("targets", ())
    model = CausalLM(small.SHAPE.model_copy(update={"tie_word_embeddings": tied})).eval()
    lora.attach(model, LoRAConfig(**({"r": 2, "targets": ("q_proj",)} | changed)), seed=0)
    assert isinstance(model.lm_head, heads.AdaptedHead)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        hidden = torch.randn(1, 9, model.config.hidden_size, generator=generator) * 30
        ids, mask = torch.randint(0, len(model.lm_head.weight), (1, 9), generator=generator), torch.ones(1, 9) > 0
        mask[:, 0] = False
        with torch.autocast("cpu", torch.bfloat16):
            logits = heads.logits(hidden, model.lm_head)
            scored = token_log_probs(hidden, heads.head_matrix(model.lm_head), ids, mask)
    assert (logits.dtype, bool(logits.abs().max() > 64)) == (torch.float32, True)
    log_p = logits[:, :-1].log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(scored[:, 1:], log_p, atol=1e-4, rtol=0)


def test_a_compiled_total_is_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    """In float64, which no kernel of ours computes; blocks of two sizes, a head that learns and one that does not."""
    monkeypatch.setitem(heads._BLOCK_ELEMENTS, "cpu", 1)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 120, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    ids, mask = torch.randint(0, 50, (3, 120), generator=generator), torch.rand(3, 120, generator=generator) > 0.1
    mask[:, 0] = False
    assert int(mask.sum()) > heads._LEAST_ROWS
    wanted = heads.log_prob_total(hidden, head, ids, mask, temperature=0.7)
    found = heads.log_prob_total(hidden, head, ids, mask, temperature=0.7, compiled=True)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-12)
    torch.testing.assert_close(found, plain(hidden, head, ids, mask, 0.7).sum(), atol=1e-10, rtol=1e-12)
    gradients = [torch.autograd.grad(total, (hidden, head)) for total in (found, wanted)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=1e-10)
    frozen = heads.log_prob_total(hidden, head.detach(), ids, mask, temperature=0.7, compiled=True)
    torch.testing.assert_close(torch.autograd.grad(frozen, hidden)[0], gradients[0][0], atol=1e-11, rtol=1e-10)


@pytest.mark.slow
def test_compiled_blocks_in_bf16_have_the_gradients_of_others() -> None:
    """At 64 tokens, where those of keys were NaN on processors with AVX-512, see `compile_blocks`."""
    model = CausalLM(ModelConfig(num_hidden_layers=1)).train()
    initialise(model, 0)
    other = copy.deepcopy(model)
    compile_blocks(other)
    ids = torch.randint(0, model.config.vocab_size, (4, 65), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(65).expand(4, 65) > 0
    for m in (model, other):
        with torch.autocast("cpu", torch.bfloat16):
            m.log_prob_total(ids, mask).backward()
    for (name, a), b in zip(other.named_parameters(), model.parameters(), strict=True):
        assert (a.grad - b.grad).norm() <= 0.05 * b.grad.norm(), name


def test_compiling_a_model_compiles_its_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small.rough().double()
    ids = torch.arange(24).view(2, 12)
    mask = torch.arange(12).expand(2, 12) > 0
    wanted = model.log_prob_total(ids, mask)
    calls: list[torch.dtype] = []

    def counted(logits: torch.Tensor, targets: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        calls.append(dtype)
        return heads._pointwise_gap(logits, targets, dtype)

    monkeypatch.setattr(heads, "_compiled_gap", lambda: counted)
    monkeypatch.setattr(Block, "compile", lambda self, **_: None)
    torch.testing.assert_close(model.log_prob_total(ids, mask), wanted, atol=1e-10, rtol=1e-12)
    assert not calls
    compile_blocks(model)
    torch.testing.assert_close(model.log_prob_total(ids, mask), wanted, atol=1e-10, rtol=1e-12)
    assert calls == [torch.float64]
