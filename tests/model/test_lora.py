"""LoRA: a new adapter changes nothing, only the adapter is trained, merging is exact, disabling gives the reference model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from tinyllm.errors import UserError
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.transformer import CausalLM, initialise, set_dropout

SHAPE = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


@pytest.fixture
def model() -> CausalLM:
    model = CausalLM(SHAPE)
    initialise(model, 0)
    return model.eval()


def with_random_branches(model: CausalLM) -> CausalLM:
    """Give B random values: it starts at zero, where an adapter has no effect."""
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.3)
    return model


def test_new_adapter_changes_nothing(model: CausalLM) -> None:
    before = model(IDS)
    lora.attach(model, LoRAConfig())
    assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("shape", [(32,), (0, 32), (3, 32), (2, 5, 32), (2, 0, 32)])
def test_inputs_may_have_any_shape_in_front(model: CausalLM, shape: tuple[int, ...]) -> None:
    layer = lora.layers(with_random_branches(lora.attach(model, LoRAConfig())))["model.layers.0.mlp.up_proj"]
    x = torch.randn(shape)
    assert layer(x).shape == (*shape[:-1], 48)
    torch.testing.assert_close(layer(x), x @ layer.matrix().T)


def test_at_the_start_only_b_has_a_gradient_and_the_base_is_frozen(model: CausalLM) -> None:
    lora.attach(model, LoRAConfig())
    model(IDS).square().sum().backward()
    for layer in lora.layers(model).values():
        assert layer.weight.grad is None
        assert layer.lora_A.weight.grad.abs().sum() == 0
        assert layer.lora_B.weight.grad.abs().sum() > 0
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        n for n, _ in model.named_parameters() if ".lora_" in n
    }


@pytest.mark.parametrize("dora", [False, True])
def test_the_dropout_of_the_blocks_is_not_the_adapter_s(model: CausalLM, dora: bool) -> None:
    """Each acts at its own rate, in training only, and 0 changes nothing."""
    with_random_branches(lora.attach(model, LoRAConfig(dropout=0.5, dora=dora)))
    set_dropout(model, 0.0)
    still = model(IDS)
    assert torch.equal(model.train()(IDS), model.train()(IDS)) is False
    with lora.disabled(model):
        assert torch.equal(model(IDS), model(IDS))
    assert torch.equal(model.eval()(IDS), still)
    plain = with_random_branches(lora.attach(CausalLM(SHAPE), LoRAConfig(dora=dora))).train()
    set_dropout(plain, 0.0)
    assert torch.equal(plain(IDS), plain.eval()(IDS))
    set_dropout(plain, 0.5)
    assert not torch.equal(plain.train()(IDS), plain(IDS))
    assert {layer.lora_dropout.p for layer in lora.layers(plain).values()} == {0.0}


def with_biases(dora: bool, dropout: float = 0.0) -> lora.LoRALinear:
    """The query projection of a Qwen2, whose bias, magnitude and branch have all moved away from their start."""
    torch.manual_seed(2)
    model = CausalLM(SHAPE.model_validate(SHAPE.model_dump() | {"model_type": "qwen2"}))
    initialise(model, 0)
    with_random_branches(lora.attach(model, LoRAConfig(r=3, alpha=7, dropout=dropout, dora=dora)))
    layer = lora.layers(model)["model.layers.0.self_attn.q_proj"]
    with torch.no_grad():
        layer.bias.normal_()
        if dora:
            layer.lora_magnitude_vector.mul_(torch.linspace(0.5, 2, 32))
    return layer


def equation(layer: lora.LoRALinear, x: torch.Tensor, dropped: torch.Tensor) -> torch.Tensor:
    """PEFT's equation: b + W x + s B A dropped, or with DoRA b + W x + (m/|V| - 1) W dropped + m/|V| s B A dropped."""
    low = 7 / 3 * dropped @ layer.lora_A.weight.T @ layer.lora_B.weight.T
    if not layer.dora:
        return layer.bias + x @ layer.weight.T + low
    ratio = layer.lora_magnitude_vector / (layer.weight + 7 / 3 * layer.lora_B.weight @ layer.lora_A.weight).norm(dim=1)
    return layer.bias + x @ layer.weight.T + (ratio - 1) * (dropped @ layer.weight.T) + ratio * low


@pytest.mark.parametrize("dora", [False, True])
def test_dropout_acts_on_the_input_of_the_branches_and_the_bias_is_not_scaled(dora: bool) -> None:
    layer, x = with_biases(dora, dropout=0.4), torch.randn(5, 4, 32)
    torch.manual_seed(3)
    dropped = F.dropout(x, 0.4)
    assert 0.3 < float((dropped == 0).float().mean()) < 0.5
    torch.manual_seed(3)
    torch.testing.assert_close(layer.train()(x), equation(layer, x, dropped), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(layer.eval()(x), equation(layer, x, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dora", [False, True])
def test_merging_keeps_the_bias_as_it_is(dora: bool) -> None:
    layer, x = with_biases(dora).eval(), torch.randn(3, 32)
    adapted, bias = layer(x), layer.bias.detach().clone()
    merged = lora.merge(torch.nn.ModuleDict({"q_proj": layer}))["q_proj"]
    assert torch.equal(merged.bias, bias)
    torch.testing.assert_close(merged(x), adapted, atol=1e-5, rtol=1e-5)


def test_a_starts_uniform_in_one_over_the_root_of_its_inputs(model: CausalLM) -> None:
    """kaiming_uniform with a = sqrt(5): the bound is 1/sqrt(d_in) whatever the rank; a function of the seed."""
    for rank in (4, 64):
        lora.attach(model, LoRAConfig(r=rank), seed=5)
        drawn: dict[int, list[torch.Tensor]] = {}
        for layer in lora.layers(model).values():
            drawn.setdefault(layer.in_features, []).append(layer.lora_A.weight.detach().flatten())
        assert sorted(drawn) == [32, 48]
        for inputs, parts in drawn.items():
            a, bound = torch.cat(parts), inputs**-0.5
            assert 0.98 * bound < float(a.max()) <= bound
            assert 0.98 * bound < -float(a.min()) <= bound
            assert float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.06)
            assert abs(float(a.mean())) < 0.08 * bound
        first = lora.branches(model)
        again = lora.branches(lora.attach(CausalLM(SHAPE), LoRAConfig(r=rank), seed=5))
        other = lora.branches(lora.attach(CausalLM(SHAPE), LoRAConfig(r=rank), seed=6))
        assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
        assert not any(torch.equal(first[name], other[name]) for name in first if "lora_A" in name)
        lora.merge(model)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 4.0), (True, 8.0)])
def test_the_branch_is_scaled_by_alpha_over_r_or_its_root(model: CausalLM, rslora: bool, scale: float) -> None:
    config = LoRAConfig(r=4, alpha=16, rslora=rslora, targets=("q_proj",))
    lora.attach(model, config)
    with_random_branches(model)
    layer = lora.layers(model)["model.layers.0.self_attn.q_proj"]
    x = torch.randn(3, 32)
    want = x @ layer.weight.T + scale * (x @ layer.lora_A.weight.T) @ layer.lora_B.weight.T
    torch.testing.assert_close(layer(x), want)


def test_every_named_layer_is_adapted_square_or_not(model: CausalLM) -> None:
    lora.attach(model, LoRAConfig(r=3))
    assert len(lora.layers(model)) == 7 * SHAPE.num_hidden_layers
    assert {tuple(m.lora_B.weight.shape) for m in lora.layers(model).values()} == {(32, 3), (16, 3), (48, 3)}


def test_merging_keeps_the_output_and_disabling_restores_the_base(model: CausalLM) -> None:
    base = model(IDS)
    with_random_branches(lora.attach(model, LoRAConfig()))
    adapted = model(IDS)
    with lora.disabled(model) as reference:
        assert torch.equal(reference(IDS), base)
    assert torch.equal(model(IDS), adapted)
    assert not torch.allclose(adapted, base)
    merged = lora.merge(model)
    assert not lora.layers(merged)
    torch.testing.assert_close(merged(IDS), adapted, atol=1e-5, rtol=1e-5)


def test_adapter_file_round_trip(model: CausalLM, tmp_path: Path) -> None:
    other = CausalLM(SHAPE)
    other.load_state_dict(model.state_dict())
    config = LoRAConfig(r=5, alpha=7, targets=("q_proj", "down_proj"), rslora=True)
    with_random_branches(lora.attach(model, config))
    lora.save(model, config, tmp_path, "base")
    loaded = lora.load(other.eval(), tmp_path)
    assert loaded.model_dump(exclude={"targets"}) == config.model_dump(exclude={"targets"})
    assert set(loaded.targets) == set(config.targets)
    assert torch.equal(other(IDS), model(IDS))


def test_all_linear_adapts_every_layer_except_the_head(model: CausalLM) -> None:
    lora.attach(model, LoRAConfig(targets=("all-linear",)))
    assert len(lora.layers(model)) == 7 * SHAPE.num_hidden_layers


def test_dora_is_magnitude_times_direction(model: CausalLM) -> None:
    """y = m / |W + s B A| (W + s B A) x, row by row; it starts as the identity, and |.| takes no gradient."""
    before = model(IDS)
    lora.attach(model, LoRAConfig(r=4, alpha=8, targets=("down_proj",), dora=True))
    torch.testing.assert_close(model(IDS), before, atol=1e-5, rtol=1e-5)
    with_random_branches(model)
    layer = lora.layers(model)["model.layers.0.mlp.down_proj"]
    with torch.no_grad():
        layer.lora_magnitude_vector.mul_(torch.linspace(0.5, 2, 32))
    x = torch.randn(3, 48)
    direction = layer.weight + 2.0 * layer.lora_B.weight @ layer.lora_A.weight
    length = direction.norm(dim=1)
    m = layer.lora_magnitude_vector
    torch.testing.assert_close(layer(x), x @ direction.T * (m / length), atol=1e-5, rtol=1e-5)
    held = x @ direction.T * (m / length.detach())
    got = torch.autograd.grad(layer(x).square().sum(), [layer.lora_B.weight, m], retain_graph=True)
    want = torch.autograd.grad(held.square().sum(), [layer.lora_B.weight, m])
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=1e-3, rtol=1e-4)


def test_dora_can_be_merged_disabled_and_loaded_from_its_file(model: CausalLM, tmp_path: Path) -> None:
    base, other = model(IDS), CausalLM(SHAPE)
    other.load_state_dict(model.state_dict())
    config = LoRAConfig(r=4, dora=True)
    with_random_branches(lora.attach(model, config))
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.lora_magnitude_vector.mul_(1.3)
    adapted = model(IDS)
    with lora.disabled(model) as reference:
        assert torch.equal(reference(IDS), base)
    lora.save(model, config, tmp_path, "base")
    assert lora.load(other.eval(), tmp_path).dora
    assert torch.equal(other(IDS), adapted)
    torch.testing.assert_close(lora.merge(model)(IDS), adapted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", ["norm", "mlp", "w_proj"])
def test_what_is_no_linear_layer_is_refused_as_a_target(model: CausalLM, target: str) -> None:
    with pytest.raises(UserError):
        lora.attach(model, LoRAConfig(targets=("q_proj", target)))


def test_adapter_of_another_shape_is_refused(model: CausalLM, tmp_path: Path) -> None:
    lora.save(lora.attach(model, LoRAConfig()), LoRAConfig(), tmp_path, "base")
    deeper = CausalLM(SHAPE.model_copy(update={"num_hidden_layers": 3}))
    with pytest.raises(UserError, match="does not fit"):
        lora.load(deeper, tmp_path)


@pytest.mark.parametrize("harm", ["missing", "cut", "other rank"])
def test_damaged_adapter_file_is_refused_with_its_path(model: CausalLM, tmp_path: Path, harm: str) -> None:
    lora.save(lora.attach(model, LoRAConfig(r=4)), LoRAConfig(r=4), tmp_path, "base")
    path = tmp_path / "adapter_model.safetensors"
    if harm == "missing":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        path = tmp_path / "adapter_config.json"
        path.write_text(path.read_text().replace('"r": 4', '"r": 5'))
    with pytest.raises(UserError) as caught:
        lora.load(CausalLM(SHAPE), tmp_path)
    assert caught.value.code == 3
    assert str(tmp_path) in caught.value.where


@pytest.mark.parametrize("init", ["pissa", "olora"])
@pytest.mark.parametrize("dora", [False, True])
def test_factors_of_the_weight_are_its_best_or_first_ones_and_leave_the_function_as_it_was(
    model: CausalLM, init: str, dora: bool
) -> None:
    """PiSSA: the r largest singular values; OLoRA: the first r columns of Q, times the scale that its branch has."""
    before = model(IDS).detach()
    config = LoRAConfig(r=4, alpha=8, targets=("q_proj", "down_proj"), init=init, dora=dora)
    lora.attach(model, config)
    torch.testing.assert_close(model(IDS), before, atol=1e-4, rtol=1e-4)
    layer = lora.layers(model)["model.layers.0.mlp.down_proj"]
    taken = 2.0 * layer.lora_B.weight @ layer.lora_A.weight
    u, values, v = torch.linalg.svd(layer.weight, full_matrices=False)
    q, r = torch.linalg.qr(layer.weight)
    want = u[:, :4] @ torch.diag(values[:4]) @ v[:4] if init == "pissa" else 2.0 * q[:, :4] @ r[:4]
    torch.testing.assert_close(taken, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(layer.remaining(), layer.weight - taken, atol=1e-5, rtol=1e-4)
    with lora.disabled(model):
        assert torch.equal(model(IDS), before)
    with torch.no_grad():
        layer.lora_B.weight.add_(0.1)
    moved = model(IDS).detach()
    assert not torch.allclose(moved, before, atol=1e-2)
    torch.testing.assert_close(lora.merge(model)(IDS), moved, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        {"modules_to_save": ("norm", "lm_head")},
        {"modules_to_save": ("embed_tokens",), "tied": True},
        {"targets": ("embed_tokens", "q_proj"), "tied": True},
        {"targets": ("lm_head",)},
        {"token_rows": (3, 9)},
        {"token_rows": {"lm_head": (3, 9)}},
    ],
    ids=lambda settings: str(settings),
)
def test_the_reference_is_the_base_and_switching_off_loses_nothing(model: CausalLM, settings: dict) -> None:
    base = model.logits(model(IDS))
    lora.attach(model, LoRAConfig(r=2, **settings))
    torch.testing.assert_close(model.logits(model(IDS)), base, atol=1e-6, rtol=0)
    for tensor in lora.branches(model).values():
        tensor.add_(0.1)
    adapted = model.logits(model(IDS))
    assert not torch.allclose(adapted, base, atol=1e-2)
    with lora.disabled(model) as reference:
        assert torch.equal(reference.logits(reference(IDS)), base)
    assert torch.equal(model.logits(model(IDS)), adapted)
    mask = torch.ones_like(IDS, dtype=torch.bool).index_fill(1, torch.tensor(0), False)
    want = adapted.log_softmax(-1)[:, :-1].gather(-1, IDS[:, 1:, None])[..., 0]
    torch.testing.assert_close(model.log_probs(IDS, mask)[:, 1:], want, atol=1e-5, rtol=1e-5)
    merged = lora.merge(model)
    torch.testing.assert_close(merged.logits(merged(IDS)), adapted, atol=1e-5, rtol=1e-5)


def test_the_reference_of_a_part_that_is_trained_whole_is_the_base_within_one_autocast(model: CausalLM) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        before = model(IDS)
    lora.attach(model, LoRAConfig(modules_to_save=("o_proj",)))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.add_(1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):  # which keeps casts of weights
        trained = model(IDS)
        with lora.disabled(model) as reference:
            assert torch.equal(reference(IDS), before)
        assert torch.equal(model(IDS), trained)
