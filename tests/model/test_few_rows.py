"""Products of few rows with weights that are read as bfloat16."""

from __future__ import annotations

import pytest
import torch

from tests.model.test_decoding import FEATURES, PROMPTS, STOP, assert_scored, made
from tinyllm.model import lora, sampling_memory
from tinyllm.model.config import LoRAConfig
from tinyllm.model.decoding import Sampling, few_rows, generate, native, packed
from tinyllm.model.decoding.engine import Engine
from tinyllm.model.decoding.one_token import OneToken
from tinyllm.model.transformer import CausalLM

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are used where they are, as large ones."""
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 0)


def published(**settings: object) -> CausalLM:
    """A model whose weights bfloat16 holds, in float32."""
    return made(0.3, **settings).bfloat16().float()


def narrow(model: CausalLM) -> dict[object, few_rows.FewRows]:
    functions = native.library()
    assert functions is not None
    with torch.no_grad():
        return dict(few_rows.narrow_products(OneToken(model, torch.float32, 64), functions))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(4, 1), (7, 33), (53, 32), (2, 640), (129, 48)])
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_products_are_those_of_the_wide_weight(rows: int, outputs: int, inputs: int, bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=generator).bfloat16()
    x, out = torch.randn(rows, inputs, generator=generator), torch.full((rows, outputs), torch.nan)
    before = torch.randn(rows, outputs, generator=generator)
    added = torch.randn(outputs, generator=generator) if bias else None
    functions = native.library()
    assert functions is not None
    product = few_rows.FewRows(weight, added, functions)
    wanted = x.double() @ weight.double().T + (0 if added is None else added)
    torch.testing.assert_close(product.into(out, x).double(), wanted, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(product.added(before.clone(), x).double(), before + wanted, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["qwen3", "llama", "qwen2", "mistral", "phi3", "many heads", "untied"])
@pytest.mark.parametrize("rows", [1, 4])
def test_completions_are_scored_alike(name: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FEATURES[name] | ({"sliding_window": 5} if name == "mistral" else {})
    model = published(**settings)
    assert len(narrow(model)) == 4 * model.config.num_hidden_layers + 1
    found = generate(model, PROMPTS, Sampling(20, stop=STOP, seed=2), rows=rows)
    assert_scored(model, PROMPTS, found, 1e-5)
    monkeypatch.setattr(few_rows, "_ROWS", 0)
    monkeypatch.setattr(packed, "_operations", lambda: ())
    assert [c.ids for c in found] == [
        c.ids for c in generate(model, PROMPTS, Sampling(20, stop=STOP, seed=2), rows=rows)
    ]


@pytest.mark.parametrize(("rows", "tokens", "used"), [(4, 16, True), (5, 16, False), (4, 15, False)])
def test_only_few_rows_and_long_texts_read_narrow_weights(
    rows: int, tokens: int, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    wanted = few_rows.narrow_products
    monkeypatch.setattr(few_rows, "narrow_products", lambda *given: calls.append(given) or wanted(*given))
    generate(published(), PROMPTS, Sampling(tokens), rows=rows)
    assert bool(calls) == used
    assert len(calls) <= 1


def test_a_weight_that_would_lose_something_stays_as_it_is() -> None:
    model = published(intermediate_size=160)  # the first 4,096 numbers of a matrix are looked at before the others
    weight = model.model.layers[1].mlp.up_proj.weight  # beside gate_proj, with which it is one product
    with torch.no_grad():
        weight[-1, -1] += 2.0**-12
    found = narrow(model)
    assert len(found) == 8
    assert sum(len(product.weight) == 320 for product in found.values()) == 1
    assert_scored(model, PROMPTS, generate(model, PROMPTS, Sampling(12, seed=1), rows=2), 1e-5)
    assert not narrow(made(0.3))


def test_numbers_that_are_not_finite_are_kept() -> None:
    model = published()
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 1e-40])
    special = special.bfloat16().float()
    with torch.no_grad():
        model.model.layers[0].mlp.down_proj.weight[0, :5] = special
    down = next(product for product in narrow(model).values() if product.weight.shape == (32, 48))
    torch.testing.assert_close(down.weight[0, :5].float(), special, equal_nan=True, atol=0, rtol=0)


def test_adapters_are_left_to_the_layers() -> None:
    model = published()
    lora.attach(model, LoRAConfig(r=2, targets=("q_proj", "down_proj"), token_rows=()))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.3)
    assert len(narrow(model)) == 5  # o_proj and gate beside up of two layers, and the head
    assert_scored(model, PROMPTS, generate(model, PROMPTS, Sampling(12, seed=1), rows=1), 2e-5)


def test_a_copied_model_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 1 << 30)
    model = published()
    assert not narrow(model)
    engine = Engine(model, Sampling(4), slots=1, capacity=20)
    assert engine.weights.layers[0].qkv.matrix is not None
