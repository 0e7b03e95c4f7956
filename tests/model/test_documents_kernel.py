"""Attention of packed rows without a mask. The kernel itself needs CUDA: here torch's plain attention computes each document."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.model.test_decoding import FEATURES, made
from tinyllm.model import kernels, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.positions import document_bounds
from tinyllm.model.transformer import CausalLM, set_activation_checkpointing

DOCUMENTS = torch.tensor([[1] * 7 + [2] * 9 + [3] * 4 + [0] * 4, [1] * 24, [4] + [5] * 20 + [6] * 3])
CPU = torch.device("cpu")


class Documents:
    """The signature of `varlen_attn` in torch 2.12 and later; with `shares_heads` unset, that of 2.11."""

    def __init__(self, shares_heads: bool):
        self.shares_heads, self.calls, self.longest = shares_heads, 0, 0

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float | None = None,
        window_size: tuple[int, int] = (-1, -1),
        enable_gqa: bool = False,
    ) -> Tensor:
        self.calls += 1
        assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
        assert query.dim() == key.dim() == value.dim() == 3
        assert query.dtype == key.dtype == value.dtype
        assert int(cu_seq_q[-1]) == len(query) == len(key)
        assert enable_gqa == self.shares_heads
        assert enable_gqa or query.shape[1] == key.shape[1]
        before, behind = window_size
        parts, bounds = [], cu_seq_q.tolist()
        for first, last in itertools.pairwise(bounds):
            assert last - first <= max_q == max_k
            q, k, v = (x[first:last].transpose(0, 1)[None] for x in (query, key, value))
            distance = torch.arange(last - first)[:, None] - torch.arange(last - first)[None]
            seen = distance >= -behind if behind >= 0 else torch.ones_like(distance, dtype=torch.bool)
            if before >= 0:
                seen &= distance <= before
            parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=enable_gqa))
        return torch.cat([part[0].transpose(0, 1) for part in parts])


def learned(model: CausalLM, attend: Tensor) -> list[Tensor]:
    """Log-probabilities of the tokens of documents, and the gradients of their weighed sum."""
    ids = torch.randint(5, 53, attend.shape, generator=torch.Generator().manual_seed(4))
    mask = F.pad(attend[:, 1:] == attend[:, :-1], (1, 0)) & attend.bool()
    model.zero_grad()
    found = model.log_probs(ids, mask, attend=attend)
    (found * torch.randn(found.shape, generator=torch.Generator().manual_seed(5)).to(found)).sum().backward()
    return [found.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("shares_heads", [True, False])
@pytest.mark.parametrize("name", [name for name in sorted(FEATURES) if name != "gemma2"])
def test_losses_and_gradients_are_those_with_a_mask(
    name: str, shares_heads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    more: dict[str, object] = {"num_key_value_heads": 4} if name == "gpt2" else {}
    if name in ("mistral", "gemma3_text"):
        more["sliding_window"] = 5
    model = made(0.3, **(FEATURES[name] | more)).double()
    wanted = learned(model, DOCUMENTS)
    kernel = Documents(shares_heads)
    monkeypatch.setattr(kernels, "documents_kernel", lambda *_: kernels.DocumentsKernel(kernel, shares_heads))
    found = learned(model, DOCUMENTS)
    assert kernel.calls == model.config.num_hidden_layers
    assert len(found) == len(wanted)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)
    model.train()
    set_activation_checkpointing(model, True)
    for a, b in zip(learned(model, DOCUMENTS), wanted, strict=True):
        torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_limited_scores_need_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Documents(True)
    monkeypatch.setattr(kernels, "documents_kernel", lambda *_: kernels.DocumentsKernel(kernel, True))
    learned(made(0.3, **FEATURES["gemma2"]), DOCUMENTS)
    assert not kernel.calls


@pytest.mark.slow
def test_a_compiled_block_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the operations of the kernel traced, and numbers of documents that change."""
    model = made(0.3).double()
    documents = [DOCUMENTS, DOCUMENTS[:, :20].contiguous(), DOCUMENTS[[1, 1, 0]]]
    wanted = [learned(model, attend) for attend in documents]
    kernel = Documents(True)
    monkeypatch.setattr(kernels, "documents_kernel", lambda *_: kernels.DocumentsKernel(kernel, True))
    for layer in model.model.layers:
        layer.compile(backend="eager")
    for attend, expected in zip(documents, wanted, strict=True):
        for a, b in zip(learned(model, attend), expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-7)


def test_bounds_are_where_documents_begin() -> None:
    assert document_bounds(DOCUMENTS).tolist() == [0, 7, 16, 20, 24, 48, 49, 69, 72]
    assert document_bounds(torch.ones(2, 5).bool()).tolist() == [0, 5, 10]


def test_where_the_kernel_is_used() -> None:
    assert kernels.documents_kernel(CPU, torch.bfloat16, 64) is None
    for dtype, width in ((torch.float32, 64), (torch.bfloat16, 60), (torch.bfloat16, 512)):
        assert kernels.documents_kernel(torch.device("cuda"), dtype, width) is None


@pytest.mark.parametrize(
    ("capability", "used"), [((7, 5), False), ((8, 0), True), ((9, 0), True), ((12, 0), True)], ids=str
)
def test_it_needs_an_ampere_card(capability: tuple[int, int], used: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    found = kernels.documents_kernel(torch.device("cuda"), torch.bfloat16, 64)
    assert (found is not None) == used
    if found is not None:
        from torch.nn.attention.varlen import varlen_attn

        assert found == (varlen_attn, True)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    assert kernels.documents_kernel(torch.device("cuda"), torch.bfloat16, 64) is None


@pytest.mark.parametrize("name", ["qwen3", "llama"])
@pytest.mark.parametrize("targets", [("q_proj", "k_proj", "v_proj"), ("v_proj",)], ids=["all", "values"])
def test_an_adapter_whose_products_are_float32_in_autocast(
    name: str, targets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made(0.2, **FEATURES[name])
    lora.attach(model, LoRAConfig(r=2, dora=True, targets=targets, token_rows=()))
    with torch.autocast("cpu", torch.bfloat16):
        wanted = learned(model, DOCUMENTS)[0]
        kernel = Documents(True)
        monkeypatch.setattr(kernels, "documents_kernel", lambda *_: kernels.DocumentsKernel(kernel, True))
        found = learned(model, DOCUMENTS)[0]
    assert kernel.calls == 2
    assert (found - wanted).abs().mean() < 0.02
