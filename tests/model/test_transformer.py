"""The decoder in all architectures: causality, padding on either side, shapes and parameter counts, initialization, kernels."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from tinyllm.model.config import ModelConfig
from tinyllm.model.kernels import attention, explicit_attention, rms_norm, rotate
from tinyllm.model.rope import Rotary
from tinyllm.model.transformer import CausalLM, RMSNorm, SequenceScorer, initialise, set_dropout

TINY = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "head_dim": 8}
SHAPES = {
    "qwen3": ModelConfig(**TINY, num_attention_heads=4, num_key_value_heads=2),
    "llama": ModelConfig(
        **TINY, model_type="llama", num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=False
    ),
    "qwen2": ModelConfig(**TINY, model_type="qwen2", num_attention_heads=4, num_key_value_heads=1),
}


def random_model(config: ModelConfig, seed: int = 0) -> CausalLM:
    """Return a model with weights of order one: at a std of 0.02 all log-probabilities are about -ln V, which hides mistakes."""
    model = CausalLM(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * (0.5 if p.ndim > 1 else 1))
    return model.eval()


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> CausalLM:
    return random_model(SHAPES[request.param])


def ids(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 61, (rows, length), generator=torch.Generator().manual_seed(1))


def test_default_model_has_the_documented_number_of_parameters() -> None:
    assert ModelConfig().parameters() == 1_377_920


@pytest.mark.parametrize("name", SHAPES)
def test_parameter_arithmetic_equals_the_allocated_number(name: str) -> None:
    model = CausalLM(SHAPES[name])
    assert sum(p.numel() for p in model.parameters()) == SHAPES[name].parameters()


def test_tokens_do_not_see_the_future(model: CausalLM) -> None:
    x = ids(2, 9)
    y = x.clone()
    y[:, 6:] = (y[:, 6:] + 1) % 61
    before, after = model(x), model(y)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6], after[:, 6])


def test_left_padding_changes_nothing(model: CausalLM) -> None:
    x = ids(1, 7)
    padded = torch.cat([torch.full((1, 4), 3), x], 1)
    attend = torch.tensor([[False] * 4 + [True] * 7])
    torch.testing.assert_close(model(padded, attend)[:, 4:], model(x), atol=1e-12, rtol=0)


def test_right_padding_changes_nothing_with_or_without_a_mask(model: CausalLM) -> None:
    x = ids(1, 7)
    padded = torch.cat([x, torch.full((1, 4), 3)], 1)
    attend = torch.tensor([[True] * 7 + [False] * 4])
    torch.testing.assert_close(model(padded)[:, :7], model(x), atol=1e-12, rtol=0)
    torch.testing.assert_close(model(padded, attend)[:, :7], model(x), atol=1e-12, rtol=0)


def test_rows_do_not_see_each_other(model: CausalLM) -> None:
    x = ids(3, 8)
    torch.testing.assert_close(model(x)[1:2], model(x[1:2]), atol=1e-12, rtol=0)


def test_rotary_products_depend_on_the_distance_only() -> None:
    """q at position m and k at position n: their product is a function of m - n (arXiv 2104.09864 Eq. 16)."""
    q, k = torch.randn(2, 1, 1, 1, 8).double()
    cos, sin = (table[0, 0].double() for table in Rotary(10000.0, 8, None, 64).span(0, 16, torch.device("cpu")))

    def product(m: int, n: int) -> torch.Tensor:
        return (rotate(q, cos[m], sin[m]) * rotate(k, cos[n], sin[n])).sum()

    torch.testing.assert_close(product(3, 1), product(9, 7), atol=1e-5, rtol=0)
    assert abs(product(3, 1) - product(3, 2)) > 1e-3
    assert not torch.equal(rotate(q, cos[1], sin[1]), q)


def test_rms_norm_closed_form() -> None:
    norm = RMSNorm(2, 0.0)
    torch.testing.assert_close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3.0, 4.0]) / (12.5**0.5))


def test_loss_of_a_new_model_is_ln_v() -> None:
    """Logits are near zero at any depth."""
    model = CausalLM(ModelConfig())
    initialise(model, 0)
    x = torch.randint(0, 4096, (2, 64))
    mask = torch.ones_like(x, dtype=torch.bool)
    mask[:, 0] = False
    loss = -model.log_probs(x, mask).sum() / mask.sum()
    assert abs(loss.item() - 8.3178) < 0.1


def test_initialisation_is_a_function_of_the_seed() -> None:
    models = [CausalLM(SHAPES["qwen3"]) for _ in range(3)]
    for model, seed in zip(models, (1, 1, 2), strict=True):
        initialise(model, seed)
    first, same, other = (m.state_dict()["model.layers.0.mlp.up_proj.weight"] for m in models)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_dropout_is_active_in_training_mode_only() -> None:
    model = random_model(SHAPES["qwen3"])
    set_dropout(model, 0.5)
    x = ids(1, 6)
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_scores_are_read_at_the_last_real_token() -> None:
    scorer = SequenceScorer(SHAPES["qwen3"]).eval()
    x = ids(2, 6)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    scores = scorer(x)
    assert scorer.rewards(x, real).tolist() == [scores[0, 5].item(), scores[1, 3].item()]


@pytest.mark.parametrize(
    "wrong", [{"num_attention_heads": 3, "num_key_value_heads": 2}, {"head_dim": 7}, {"num_hidden_layers": 0}]
)
def test_impossible_shapes_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        ModelConfig(**wrong)


def test_gradients_of_norm_and_rotation_match_finite_differences() -> None:
    """RMSNorm and rotation in float64 against finite differences."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, generator=generator, dtype=torch.float64, requires_grad=True)
    cos, sin = torch.randn(2, 1, 1, 4, 3, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    assert torch.autograd.gradcheck(lambda x: rotate(x, cos, sin), (x,))
    torch.testing.assert_close(rms_norm(x, weight, 1e-3), torch.nn.functional.rms_norm(x, (6,), weight, 1e-3))


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_explicit_attention_equals_scaled_dot_product_attention(kv_heads: int) -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    k, v = (
        torch.randn(2, kv_heads, 9, 8, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    ours = explicit_attention(q, k, v)
    theirs = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(ours, theirs)
    weights = torch.randn(ours.shape, generator=generator, dtype=torch.float64)
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), (q, k, v)) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b)
    together = theirs.transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(q, k, v, None), together)  # either implementation
    half = [x.detach().bfloat16() for x in (q, k, v)]
    torch.testing.assert_close(attention(*half, None).double(), together, atol=0.05, rtol=0.05)


def test_padding_may_extend_beyond_the_last_position() -> None:
    """Batches are padded to widths of 16, beyond the model's positions; the states of real tokens do not change."""
    model = CausalLM(
        ModelConfig(vocab_size=31, hidden_size=16, intermediate_size=24, head_dim=8, max_position_embeddings=20)
    )
    initialise(model, 0)
    ids = torch.randint(1, 31, (2, 20), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(torch.nn.functional.pad(ids, (0, 12)))[:, :20], model(ids))
