"""Products of several rows with packed weights."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from tests.model.test_decoding import FEATURES, PROMPTS, STOP, assert_scored, made
from tinyllm.model import sampling_memory
from tinyllm.model.decoding import Sampling, few_rows, generate, native, packed
from tinyllm.model.decoding.one_token import OneToken

pytestmark = pytest.mark.skipif(
    native.library() is None or not packed._operations(), reason="there is no C compiler, or no MKL"
)


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are used where they are, as large ones."""
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 0)


@pytest.mark.parametrize("name", ["qwen3", "qwen2", "phi3", "untied"])
@pytest.mark.parametrize("rows", [2, 3, 6])
def test_products_are_those_of_the_weights(name: str, rows: int) -> None:
    weights = OneToken(made(0.3, **FEATURES[name]), torch.float32, 64)
    found = packed.packed_products(weights, 6)
    assert len(found) == 4 * len(weights.layers) + 1
    generator = torch.Generator().manual_seed(rows)
    with torch.inference_mode():
        for product, faster in found.items():
            wide = torch.cat([weight.double() for weight in product.weights])
            x = torch.randn(rows, wide.shape[1], generator=generator)
            before = torch.randn(rows, len(wide), generator=generator)
            wanted = x.double() @ wide.T + (0 if product.bias is None else product.bias)
            out = torch.full((rows, len(wide)), torch.nan)
            torch.testing.assert_close(faster.into(out, x).double(), wanted, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(faster.added(before.clone(), x).double(), before + wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2", "mistral", "smollm3", "phi3", "many heads", "untied"])
@pytest.mark.parametrize("rows", [2, 6, 15])
def test_completions_are_scored_alike(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FEATURES[name] | ({"sliding_window": 5} if name == "mistral" else {})
    model = made(0.3, **settings)
    used = []
    before = packed.Packed.into

    def counted(*given: object) -> torch.Tensor:
        used.append(1)
        return before(*given)

    monkeypatch.setattr(packed.Packed, "into", counted)
    found = generate(model, PROMPTS, Sampling(24, stop=STOP, seed=2), rows=rows)
    assert used
    assert_scored(model, PROMPTS, found, 1e-5)
    monkeypatch.setattr(packed, "_operations", lambda: ())
    count = len(used)
    plain = generate(model, PROMPTS, Sampling(24, stop=STOP, seed=2), rows=rows)
    assert len(used) == count
    assert [c.ids for c in found] == [c.ids for c in plain]


def test_weights_are_packed_again_for_half_as_many_rows_and_never_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made_for, steps = made(0.3), [], []
    before, step = packed.packed_products, native.NativeStep.__init__
    monkeypatch.setattr(packed, "packed_products", lambda *given: made_for.append(given[1]) or before(*given))

    def watched(self: native.NativeStep, weights: object, ring: object, functions: object, faster: dict) -> None:
        sizes = {product.rows for product in faster.values() if isinstance(product, packed.Packed)}
        steps.append((len(ring.ids), *sizes))
        step(self, weights, ring, functions, faster)

    monkeypatch.setattr(native.NativeStep, "__init__", watched)
    generate(model, PROMPTS, Sampling(60, stop=STOP, seed=2), rows=15)
    assert made_for
    assert made_for == sorted(made_for, reverse=True)
    assert all(2 * later <= earlier for earlier, later in pairwise(made_for))
    assert 1 not in made_for
    assert all(len(found) == 1 or found[1] // 2 < found[0] <= found[1] for found in steps)
    assert any(len(found) == 2 for found in steps)


def test_when_packing_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = OneToken(made(0.3), torch.float32, 64)
    assert packed.pays(weights, 2, 16)
    assert not packed.pays(weights, 1, 16)
    assert not packed.pays(weights, 2, 15)
    monkeypatch.setattr(sampling_memory, "PACKED_BYTES", weights.size - 1)
    assert not packed.pays(weights, 2, 16)
    assert few_rows.pays(weights, 4, 16)
    monkeypatch.setattr(sampling_memory, "NARROWED_BYTES", weights.size - 1)
    assert not few_rows.pays(weights, 4, 16)


def test_copied_weights_are_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 1 << 30)
    assert not packed.packed_products(OneToken(made(0.3), torch.float32, 64), 4)
