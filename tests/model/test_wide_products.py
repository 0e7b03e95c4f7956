"""Products of bfloat16 matrices with float32 sums against float64, and the gradients that are computed with them."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.model.test_decoding import FEATURES, made
from tinyllm.model import heads, kernels, lora
from tinyllm.model.adapter_config import LoRAConfig
from tinyllm.model.native import wide_products

needs_mkl = pytest.mark.skipif(not wide_products.available(), reason="torch has no such product here")


def generated(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stored(x: Tensor, how: str) -> Tensor:
    """Return the matrix with its rows, its columns or parts of wider rows one after the other."""
    if how == "columns":
        return x.T.contiguous().T
    return torch.cat((x, x), 1)[:, : x.shape[1]] if how == "apart" else x.contiguous()


@needs_mkl
@pytest.mark.parametrize("a_stored", ["rows", "columns", "apart"])
@pytest.mark.parametrize("b_stored", ["rows", "columns", "apart"])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (1, 5, 3), (7, 1, 20), (33, 70, 130), (300, 2, 1)])
def test_a_product_has_float32_sums(m: int, n: int, k: int, a_stored: str, b_stored: str) -> None:
    a, b = stored(generated(m, k).bfloat16(), a_stored), stored(generated(k, n, seed=1).bfloat16(), b_stored)
    before, wanted = generated(m, n, seed=2), a.double() @ b.double()
    found = wide_products.multiply(a, b, before.clone())
    assert (found - wanted).abs().max() <= 2e-6 * max(1.0, float(wanted.abs().max()))
    within = torch.cat((before, before), 1)  # written between other numbers
    found = wide_products.multiply(a, b, within[:, :n], accumulate=True)
    assert (found - (wanted + before)).abs().max() <= 4e-6 * max(1.0, float(wanted.abs().max()))
    torch.testing.assert_close(within[:, n:], before, rtol=0, atol=0)


@needs_mkl
def test_shapes_and_layouts_that_do_not_fit_are_refused() -> None:
    narrow = torch.ones(4, 6, dtype=torch.bfloat16)
    for a, b, out in (
        (narrow, narrow, torch.empty(4, 6)),
        (narrow, narrow.T, torch.empty(4, 5)),
        (narrow, narrow.T, torch.empty(4, 4, dtype=torch.bfloat16)),
        (narrow, narrow.T, torch.empty(4, 4).T),
        (narrow, narrow.T, torch.empty(4, 8)[:, ::2]),
        (narrow, narrow[:, :1].expand(4, 6).T, torch.empty(4, 4)),
        (narrow, narrow.T, torch.empty(4, 4, device="meta")),
    ):
        with pytest.raises(ValueError, match=r"is not written to|are not multiplied"):
            wide_products.multiply(a, b, out)


@needs_mkl
def test_tensors_without_memory_of_their_own_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where new tensors are those of tracing, or of another dtype or device than usual."""
    wide_products.available.cache_clear()
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.float64)
        with torch.device("meta"), FakeTensorMode():
            assert wide_products.available()
    finally:
        torch.set_default_dtype(before)
    monkeypatch.setattr(wide_products, "pays", lambda: True)
    narrow = torch.ones(4, 6, dtype=torch.bfloat16)
    assert wide_products.covers(narrow, narrow[:, :3], narrow.T)
    for wrong in (torch.ones(4, 6), torch.ones(6).bfloat16(), narrow[:, ::2], narrow[:0], narrow.to("meta")):
        assert not wide_products.covers(wrong)
    with FakeTensorMode():
        assert not wide_products.covers(torch.ones(4, 6, dtype=torch.bfloat16))
    assert not wide_products.covers(narrow.requires_grad_())


@needs_mkl
def test_what_uses_them_has_the_same_results_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this processor does not multiply bfloat16 itself the function is used all the same: it is slower then, not wrong."""
    hidden, head = generated(3, 40, 32), generated(70, 32, seed=1)
    ids, mask = torch.arange(120).view(3, 40) % 70, torch.arange(40).expand(3, 40) > 0

    def found(pays: bool) -> list[Tensor]:
        monkeypatch.setattr(wide_products, "pays", lambda: pays)
        leaves = [hidden.clone().requires_grad_(), head.clone().requires_grad_(), generated(32, 32).requires_grad_()]
        with torch.autocast("cpu", torch.bfloat16):
            x = kernels.linear(leaves[0], leaves[2], None)
            total = heads.log_prob_total(x, leaves[1], ids, mask)
            each = heads.token_log_probs(x, leaves[1], ids, mask)
        assert total.dtype == each.dtype == torch.float32
        return [total.detach(), each.detach(), *torch.autograd.grad(total + (each * each.detach()).sum(), leaves)]

    for a, b in zip(found(True), found(False), strict=True):
        assert a.dtype == b.dtype == torch.float32
        assert (a - b).abs().max() <= 0.01 * b.abs().max()


@needs_mkl
def test_the_gradient_of_a_weight_is_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_products, "pays", lambda: True)
    x, weight, upstream = generated(2, 50, 24), generated(16, 24, seed=1), generated(2, 50, 16, seed=2).bfloat16()

    def gradients(function) -> tuple[Tensor, ...]:
        leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            value = function(*leaves, None)
        return value, *torch.autograd.grad(value, leaves, upstream)

    ours, plain = gradients(kernels.linear), gradients(F.linear)
    wanted = upstream.flatten(0, 1).double().T @ x.bfloat16().flatten(0, 1).double()
    assert (ours[2] - wanted).abs().max() <= 1e-5 < (plain[2] - wanted).abs().max()
    for a, b in zip(ours[:2], plain[:2], strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b)
    upstream = upstream[:1, :1, :1].expand(2, 50, 16)  # as that of a sum
    for a, b in zip(gradients(kernels.linear), gradients(F.linear), strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)
    upstream = generated(2, 16, 50, seed=2).bfloat16().transpose(1, 2)  # neither contiguous nor a view of rows
    x = torch.cat((x, x), 2)[..., ::2]
    for a, b in zip(gradients(kernels.linear), gradients(F.linear), strict=True):
        torch.testing.assert_close(a, b, atol=0.02, rtol=0.02)


@needs_mkl
@pytest.mark.parametrize("name", ["qwen2", "llama", "phi3"])
def test_gradients_of_blocks_are_not_rounded_also_where_an_adapter_was_merged(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wide_products, "pays", lambda: True)
    model = made(0.3, **FEATURES[name]).train()
    merged = lora.merge(lora.attach(copy.deepcopy(model), LoRAConfig(r=2)))
    ids = torch.randint(0, model.config.vocab_size, (3, 14), generator=torch.Generator().manual_seed(0))
    mask = torch.arange(14).expand(3, 14) > 0
    for m in (model, merged):
        with torch.autocast("cpu", torch.bfloat16):
            m.log_prob_total(ids, mask).backward()
        matrices = {name: p.grad for name, p in m.named_parameters() if "_proj.weight" in name}
        biased = {
            name.removesuffix("bias") + "weight" for name, _ in m.named_parameters() if name.endswith("_proj.bias")
        }
        rounded = {name for name, g in matrices.items() if torch.equal(g, g.bfloat16().float())}
        assert rounded == biased


@needs_mkl
def test_a_bias_of_a_layer_that_is_trained_is_added() -> None:
    x, weight, bias = generated(2, 24), generated(16, 24, seed=1).requires_grad_(), torch.full((16,), 50.0)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(kernels.linear(x, weight, bias), F.linear(x, weight, bias), rtol=0, atol=0)


def test_weights_that_are_frozen_or_not_float32_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wide_products, "pays", lambda: True)
    x, weight = generated(2, 24), generated(16, 24, seed=1)

    def is_ours(x: Tensor, weight: Tensor, enabled: bool = True) -> bool:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            return "_Linear" in type(kernels.linear(x, weight, None).grad_fn).__name__

    assert is_ours(x, weight.clone().requires_grad_())
    assert not is_ours(x.clone().requires_grad_(), weight)
    assert not is_ours(x, weight.clone().requires_grad_(), enabled=False)
    assert not is_ours(x, weight.bfloat16().requires_grad_())
    assert not is_ours(x[0], weight.clone().requires_grad_())
    with torch.no_grad():
        assert not is_ours(x, weight.clone().requires_grad_())
