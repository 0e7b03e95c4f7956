"""The compiled kernels of a training step against the formulas, forward and backward, and whole models with and without them."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.model.test_decoding import FEATURES, made
from tinyllm.model import heads, kernels
from tinyllm.model.native import kernels as native_kernels
from tinyllm.model.transformer import RMSNorm

pytestmark = pytest.mark.skipif(native_kernels.library() is None, reason="there is no C compiler")

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2e-2}


def generated(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def gradients(function, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Return the value of a function and its gradients, weighed so that no two elements have the same."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    value = function(*leaves)
    return value, *torch.autograd.grad(value, leaves, generated(*value.shape, seed=9).to(value.dtype))


def assert_same(function, formula, *inputs: Tensor, error: float) -> None:
    """Compare with the formula in float64. Errors are relative to the largest element."""
    found = gradients(function, *inputs)
    wanted = gradients(formula, *(x.double() for x in inputs))
    for a, b in zip(found, wanted, strict=True):
        assert (a.double() - b).abs().max() <= error * b.abs().max(), (a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (70, 128), (300, 130)])
def test_normalization(rows: int, width: int, dtype: torch.dtype) -> None:
    x, gain = generated(2, rows, width, dtype=dtype) * 3, generated(width, seed=1) + 1
    formula = lambda x, gain: F.rms_norm(x, (width,), gain, 1e-3)  # noqa: E731
    assert_same(lambda x, gain: kernels.rms_norm(x, gain, 1e-3), formula, x, gain, error=8 * DTYPES[dtype])


def test_normalization_of_a_wide_stream_in_autocast() -> None:
    x, gain = generated(2, 5, 32), generated(32, seed=1)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = gradients(lambda x, gain: kernels.rms_norm(x, gain, 1e-6), x, gain)
    wanted = gradients(lambda x, gain: F.rms_norm(x, (32,), gain, 1e-6), x, gain)
    assert [a.dtype for a in narrow] == [torch.bfloat16, torch.float32, torch.float32]
    for a, b in zip(narrow, wanted, strict=True):
        torch.testing.assert_close(a.float(), b, atol=0.05, rtol=0.02)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("width", "rotated", "rows"), [(64, 64, 1), (64, 64, 3), (12, 8, 3), (6, 0, 3), (8, 8, 3)])
def test_heads(width: int, rotated: int, rows: int, normalized: bool, dtype: torch.dtype) -> None:
    x = generated(3, 37, 5 * width, dtype=dtype)
    gain = generated(width, seed=1) + 1
    angles = generated(rows, 1, 37, rotated // 2, seed=2) * 9
    cos, sin = (angles.cos(), angles.sin()) if rotated else (None, None)

    def formula(x: Tensor, gain: Tensor) -> Tensor:
        apart = x.view(3, 37, 5, width)
        apart = (F.rms_norm(apart, (width,), gain, 1e-5) if normalized else apart + 0 * gain).transpose(1, 2)
        first, second, rest = apart.split((rotated // 2, rotated // 2, width - rotated), -1)
        if cos is None or sin is None:
            return apart
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)

    def ours(x: Tensor, gain: Tensor) -> Tensor:
        found = kernels.heads(x, width, gain if normalized else None, 1e-5, cos, sin)
        return found if normalized else found + 0 * gain.to(found.dtype)

    assert_same(ours, formula, x, gain, error=8 * DTYPES[dtype])
    wide = torch.cat((generated(3, 37, 4, dtype=dtype), x, x), -1)[..., 4 : 4 + 5 * width]  # part of a larger product
    torch.testing.assert_close(ours(wide, gain), ours(x, gain), rtol=0, atol=0)
    assert_same(lambda x, gain: ours(x.mT.contiguous().mT, gain), formula, x, gain, error=8 * DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
def test_gate(dtype: torch.dtype) -> None:
    gate, up = generated(5, 61, 31, dtype=dtype) * 20, generated(5, 61, 31, seed=1, dtype=dtype)
    gate[0, 0, :4] = torch.tensor([-300.0, 300.0, 0.0, -88.0])
    ours = lambda gate, up: kernels.gated(gate, up, F.silu)  # noqa: E731
    formula = lambda gate, up: F.silu(gate) * up  # noqa: E731
    assert_same(ours, formula, gate, up, error=4 * DTYPES[dtype])
    together = torch.cat((gate, up), -1)
    torch.testing.assert_close(ours(*together.chunk(2, -1)), ours(gate, up), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("length", "width", "shared"), [(2, 8, 1), (7, 8, 2), (64, 16, 1), (130, 6, 3)])
def test_attention(length: int, width: int, shared: int, dtype: torch.dtype) -> None:
    q = generated(2, 2 * shared, length, width, dtype=dtype) * 2
    k, v = (generated(2, 2, length, width, seed=seed, dtype=dtype) * 2 for seed in (1, 2))
    formula = partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True)
    assert_same(kernels.explicit_attention, formula, q, k, v, error=4 * DTYPES[dtype])


@pytest.mark.parametrize("wide", [(0,), (2,), (1, 2)])
def test_attention_of_an_adapter_whose_products_are_float32_in_autocast(wide: tuple[int, ...]) -> None:
    narrow = [generated(1, 2, 20, 8, seed=seed, dtype=torch.bfloat16) for seed in range(3)]
    mixed = [x.float() if i in wide else x for i, x in enumerate(narrow)]
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = gradients(kernels.explicit_attention, *mixed), gradients(kernels.explicit_attention, *narrow)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a.bfloat16(), b)


def test_attention_of_scores_that_are_not_finite_and_of_more_keys_than_the_function_has_room_for() -> None:
    q, k, v = (generated(1, 1, 8, 4, seed=seed) for seed in range(3))
    k[0, 0, 3] = torch.nan
    found = kernels.explicit_attention(q, k, v)
    wanted = F.scaled_dot_product_attention(q[..., :3, :], k[..., :3, :], v[..., :3, :], is_causal=True)
    torch.testing.assert_close(found[..., :3, :], wanted)
    assert found[..., 3:, :].isnan().all()
    for length in (1024, 1025):
        x = torch.ones(1, 1, length, 1)
        assert native_kernels.covers_attention(x, x, x) == (length <= 1024)
        assert not native_kernels.covers_attention(x, x, x[:, :0])


def loss_and_gradients(function, rows: int, vocabulary: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    hidden = generated(3, rows, 16).to(dtype)
    head = generated(vocabulary, 16, seed=1).to(dtype)
    ids = torch.randint(0, vocabulary, (3, rows), generator=torch.Generator().manual_seed(2))
    mask = torch.rand(3, rows, generator=torch.Generator().manual_seed(3)) < 0.7
    mask[:, 0] = False
    leaves = hidden.requires_grad_(), head.requires_grad_()
    total = function(*leaves, ids, mask)
    return total.detach(), *torch.autograd.grad(3 * total, leaves)


def summed(hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    scores = (hidden @ head.T).log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    return (scores * mask[:, 1:]).sum()


@pytest.mark.parametrize("vocabulary", [5, 1000, 5000])
@pytest.mark.parametrize("rows", [2, 9, 150])
def test_the_total_of_log_probabilities(rows: int, vocabulary: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(heads._BLOCK_ELEMENTS, "cpu", 1)  # several blocks
    wanted = loss_and_gradients(summed, rows, vocabulary, torch.float64)
    several = lambda *batch: heads.token_log_probs(*batch).sum()  # noqa: E731
    for function in (heads.log_prob_total, several):
        for library in (native_kernels.library(), None):  # the compiled functions, and torch's
            with monkeypatch.context() as patch:
                patch.setattr(native_kernels, "library", lambda found=library: found)
                for a, b in zip(loss_and_gradients(function, rows, vocabulary, torch.float32), wanted, strict=True):
                    torch.testing.assert_close(a.double(), b, atol=1e-5 * float(b.abs().max()), rtol=1e-5)
                narrow = loss_and_gradients(function, rows, vocabulary, torch.bfloat16)
                for a, b in zip(narrow, wanted, strict=True):
                    assert (a.double() - b).abs().max() <= 0.03 * b.abs().max()


def test_a_temperature_divides_the_logits_of_the_total_and_a_frozen_head_has_no_gradient() -> None:
    at = {"temperature": 0.7}
    hidden, head = generated(2, 9, 16).requires_grad_(), generated(20, 16, seed=1)
    ids, mask = torch.arange(18).view(2, 9), torch.ones(2, 9, dtype=torch.bool)
    mask[:, 0] = False
    (found,) = torch.autograd.grad(heads.log_prob_total(hidden, head, ids, mask, **at), hidden)
    (wanted,) = torch.autograd.grad(summed(hidden / 0.7, head, ids, mask), hidden)
    torch.testing.assert_close(found, wanted)


def test_entropies_and_logits_that_are_not_finite() -> None:
    logits = generated(6, 300) * 4
    logits[1, 5], logits[2, 5] = -torch.inf, torch.nan
    logits[3], logits[4, 7] = -torch.inf, torch.inf
    targets = torch.tensor([0, 5, 1, 1, 1, 1])
    values, entropies, gaps = torch.empty(6), torch.empty(6), torch.empty(6, 300)
    native_kernels.log_probabilities(logits.clone(), targets, values, entropies, gaps)
    p = logits[[0, 1, 5]].double().softmax(-1)
    kept = values[[0, 1, 5]].double()
    torch.testing.assert_close(kept, p.log().gather(1, targets[[0, 1, 5], None])[:, 0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(entropies[[0, 1, 5]].double(), -torch.special.xlogy(p, p).sum(1), atol=1e-6, rtol=1e-6)
    wanted = F.one_hot(targets[[0, 1, 5]], 300) - p
    torch.testing.assert_close(gaps[[0, 1, 5]].double(), wanted, atol=1e-7, rtol=1e-6)
    assert not values[2:5].isfinite().any()
    assert not gaps[2:5].isfinite().all(1).any()
    native_kernels.log_probabilities(logits, targets, None, None, logits)  # in their place
    torch.testing.assert_close(logits, gaps, equal_nan=True, rtol=0, atol=0)


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_every_architecture_has_the_same_loss_and_gradients_with_and_without_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = {"num_key_value_heads": 4} if name == "gpt2" else {}
    model = made(0.3, **FEATURES[name], **more).train()
    ids = torch.randint(0, model.config.vocab_size, (3, 14), generator=torch.Generator().manual_seed(0))
    mask, documents = torch.ones_like(ids, dtype=torch.bool), (torch.arange(14) // 5 + 1).expand(3, 14)
    mask[:, 0] = False

    def found(library) -> tuple[Tensor, ...]:
        monkeypatch.setattr(native_kernels, "library", lambda: library)
        total = model.log_prob_total(ids, mask, attend=documents)
        return total.detach(), *torch.autograd.grad(total, tuple(model.parameters()))

    for a, b in zip(found(native_kernels.library()), found(None), strict=True):
        assert (a - b).abs().max() <= 2e-5 * max(1.0, float(b.abs().max()))


def test_gradients_do_not_depend_on_the_number_of_threads() -> None:
    norm, x, threads = RMSNorm(64, 1e-6), generated(50, 99, 64), torch.get_num_threads()
    found = []
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(gradients(lambda x, gain: kernels.rms_norm(x, gain, 1e-6), x, norm.weight))
    finally:
        torch.set_num_threads(threads)
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_other_dtypes_and_compilations_by_torch_are_left_to_torch() -> None:
    assert native_kernels.covers(torch.ones(1), torch.ones(1, dtype=torch.bfloat16))
    assert not native_kernels.covers(torch.ones(1), dtype=torch.float16)
    assert not native_kernels.covers(torch.ones(1).double())
    assert not native_kernels.covers(torch.ones(1).half())
    assert not native_kernels.covers(torch.ones(1, device="meta"))
    with FakeTensorMode():
        assert not native_kernels.covers(torch.ones(1))
    for width in (512, 513):
        assert native_kernels.covers_heads(torch.ones(1, 1, width), width, None, None, None) == (width <= 512)


def test_float16_in_autocast() -> None:
    x, gain = generated(2, 8, 64), generated(64, seed=1)
    with torch.autocast("cpu", torch.float16):
        found = kernels.rms_norm(x, gain, 1e-6)
    torch.testing.assert_close(found, F.rms_norm(x, (64,), gain, 1e-6).half(), atol=0.01, rtol=0.01)
    for rows in (2, 150):
        narrow = loss_and_gradients(heads.log_prob_total, rows, 1000, torch.float16)
        for a, b in zip(narrow, loss_and_gradients(summed, rows, 1000, torch.float64), strict=True):
            assert (a.double() - b).abs().max() <= 0.01 * b.abs().max()


def test_shapes_and_strides_that_the_functions_do_not_expect() -> None:
    x = generated(3, 64)
    for gain in (torch.full((1,), 2.0).expand(64), generated(64, 2)[:, 0]):
        torch.testing.assert_close(kernels.rms_norm(x, gain, 1e-6), F.rms_norm(x, (64,), gain, 1e-6))
        tokens = generated(1, 2, 128)
        wanted = F.rms_norm(tokens.view(1, 2, 2, 64), (64,), gain, 1e-6).transpose(1, 2)
        torch.testing.assert_close(kernels.heads(tokens, 64, gain, 1e-6, None, None), wanted)
    odd = generated(1, 4, 64).transpose(0, 1)  # (4, 1, 64), of which the second stride means nothing
    torch.testing.assert_close(kernels.heads(odd, 16, None, 0.0, None, None), odd.view(4, 1, 4, 16).transpose(1, 2))
    torch.testing.assert_close(kernels.gated(x, x[:1], F.silu), F.silu(x) * x[:1])
    for wrong in (
        lambda: kernels.rms_norm(x, torch.ones(8), 1e-6),
        lambda: kernels.heads(generated(1, 2, 70), 16, None, 0.0, None, None),
        lambda: kernels.heads(generated(1, 2, 64), 16, torch.ones(8), 0.0, None, None),
    ):
        with pytest.raises(RuntimeError):
            wrong()


@pytest.mark.parametrize("shift", [0, 40, -60])
def test_targets_of_other_dtypes_and_outside_the_vocabulary(shift: int) -> None:
    hidden, head = generated(2, 9, 16).requires_grad_(), generated(50, 16, seed=1).requires_grad_()
    ids, mask = torch.arange(18).view(2, 9) + shift, torch.ones(2, 9, dtype=torch.bool)
    mask[:, 0] = False
    for function in (heads.log_prob_total, heads.token_log_probs):
        if shift:
            with pytest.raises(IndexError, match="in a vocabulary of 50"):
                function(hidden, head, ids, mask)
        else:
            torch.testing.assert_close(function(hidden, head, ids.int(), mask).sum(), summed(hidden, head, ids, mask))


def test_a_total_has_one_backward_pass() -> None:
    hidden, head = generated(2, 9, 16).requires_grad_(), generated(50, 16, seed=1).requires_grad_()
    ids, mask = torch.arange(18).view(2, 9), torch.arange(9).expand(2, 9) > 0
    total = heads.log_prob_total(hidden, head, ids, mask)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()


def test_the_dtype_of_heads_is_that_of_products() -> None:
    """An adapter's product can be float32 in autocast; policy and reference must use the same kernel of attention."""
    with torch.autocast("cpu", torch.bfloat16):
        for tokens in (generated(1, 3, 32), generated(1, 3, 32).bfloat16()):
            assert kernels.heads(tokens, 16, torch.ones(16), 1e-6, None, None).dtype == torch.bfloat16
