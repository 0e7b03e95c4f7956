"""Features of the decoder by closed forms and invariants: rules of rope, windows, soft caps, norms, scales. transformers is the oracle in
tests/parity."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tinyllm.model.config import ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.heads import token_scores
from tinyllm.model.kernels import attention, soft_capped
from tinyllm.model.rope import Rotary
from tinyllm.model.rope_scaling import RopeScaling
from tinyllm.model.transformer import CausalLM, KVCache

SHAPE: dict[str, Any] = {
    "vocab_size": 41,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
IDS = torch.randint(0, 41, (2, 24), generator=torch.Generator().manual_seed(3))


def model(**changes: Any) -> CausalLM:
    found = CausalLM(ModelConfig(**(SHAPE | changes)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in found.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return found.eval()


def wavelengths(scaling: RopeScaling | None, length: int = 1) -> torch.Tensor:
    return 2 * math.pi / Rotary(10000.0, 32, scaling, 128).frequencies(length)[0]


# --- rope ------------------------------------------------------------------------------------------------------------------------


def test_linear_scaling_stretches_every_wave() -> None:
    torch.testing.assert_close(wavelengths(RopeScaling(rope_type="linear", factor=4.0)), 4 * wavelengths(None))


def test_llama3_keeps_short_waves_and_stretches_long_ones() -> None:
    scaling = RopeScaling(
        rope_type="llama3", factor=8.0, original_max_position_embeddings=256, low_freq_factor=1.0, high_freq_factor=4.0
    )
    plain, ratio = wavelengths(None), wavelengths(scaling) / wavelengths(None)
    short, long = plain < 256 / 4, plain > 256
    torch.testing.assert_close(ratio[short], torch.ones_like(ratio[short]))
    torch.testing.assert_close(ratio[long], torch.full_like(ratio[long], 8.0))
    between = ratio[~short & ~long]
    assert len(between)
    assert ((between > 1) & (between < 8)).all()


def test_yarn_keeps_fast_waves_stretches_slow_ones_and_sharpens_attention() -> None:
    scaling = RopeScaling(rope_type="yarn", factor=16.0, original_max_position_embeddings=128)
    plain, ratio = wavelengths(None), wavelengths(scaling) / wavelengths(None)
    assert ratio[plain < 128 / 32].tolist() == pytest.approx([1.0] * int((plain < 128 / 32).sum()))
    assert ratio[plain > 2 * 128].tolist() == pytest.approx([16.0] * int((plain > 2 * 128).sum()))
    cos, sin = Rotary(10000.0, 32, scaling, 2048).span(0, 9, torch.device("cpu"))
    torch.testing.assert_close((cos**2 + sin**2).sqrt(), torch.full_like(cos, 0.1 * math.log(16) + 1))


def test_dynamic_scaling_begins_beyond_the_context() -> None:
    """NTK: the slowest wave of a text of n contexts is stretched by factor * n - (factor - 1)."""
    scaling = RopeScaling(rope_type="dynamic", factor=2.0)
    assert torch.equal(wavelengths(scaling, 128), wavelengths(None))
    ratio = wavelengths(scaling, 256) / wavelengths(None)
    assert float(ratio[0]) == 1.0
    assert float(ratio[-1]) == pytest.approx(2 * 2 - 1, rel=1e-5)


def test_longrope_has_one_set_of_factors_for_each_side_of_the_context() -> None:
    short, long = tuple(1.0 + i for i in range(16)), tuple(3.0 + i for i in range(16))
    given: dict[str, Any] = {"short_factor": short, "long_factor": long, "original_max_position_embeddings": 32}
    scaling = RopeScaling(rope_type="longrope", **given)
    for length, factors in ((32, short), (33, long)):
        torch.testing.assert_close(wavelengths(scaling, length), wavelengths(None) * torch.tensor(factors))
    assert Rotary(10000.0, 32, scaling, 128).frequencies(1)[1] == math.sqrt(1 + math.log(4) / math.log(32))


def test_generation_across_the_context_of_pretraining_equals_the_uncached_forward() -> None:
    """Earlier tokens are rotated in another way from then on, so that what is cached of them no longer holds."""
    factors = {"short_factor": (1.0,) * 4, "long_factor": (9.0, 5.0, 3.0, 2.0), "original_max_position_embeddings": 16}
    found = model(rope_scaling=RopeScaling(rope_type="longrope", **factors), model_type="llama", qk_norm=False)
    prompts = [IDS[0, :9].tolist(), IDS[1, :14].tolist()]
    for prompt, answer in zip(prompts, generate(found, prompts, Sampling(20, temperature=0)), strict=True):
        ids = list(prompt)
        for _ in range(20):
            ids.append(int(found.logits(found(torch.tensor([ids])))[0, -1].argmax()))
        assert answer.ids == ids[len(prompt) :]


def test_a_packed_row_is_rotated_by_the_length_of_each_document() -> None:
    factors = {"short_factor": (1.0,) * 4, "long_factor": (9.0, 5.0, 3.0, 2.0), "original_max_position_embeddings": 8}
    found = model(rope_scaling=RopeScaling(rope_type="longrope", **factors), model_type="llama", qk_norm=False)
    short, long = IDS[:1, :7], IDS[1:, :17]
    attend = torch.tensor([[1] * 7 + [2] * 17])
    packed = found(torch.cat((short, long), 1), attend)
    torch.testing.assert_close(packed[:, :7], found(short), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 7:], found(long), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("packed", [False, True])
def test_a_total_of_log_probabilities_is_that_of_the_whole_text_where_rotation_depends_on_its_length(
    packed: bool,
) -> None:
    factors = {"short_factor": (1.0,) * 4, "long_factor": (9.0, 5.0, 3.0, 2.0), "original_max_position_embeddings": 8}
    found = model(rope_scaling=RopeScaling(rope_type="longrope", **factors), model_type="llama", qk_norm=False)
    ids = IDS[:, :9]  # one token more than the context of the short factors
    attend = torch.tensor([1] * 3 + [2] * 6).expand(ids.shape) if packed else None
    mask = torch.arange(9).expand(ids.shape) > 0
    torch.testing.assert_close(
        found.log_prob_total(ids, mask, attend=attend), found.log_probs(ids, mask, attend=attend).sum()
    )


def test_layers_without_rope_do_not_see_the_order_of_earlier_tokens() -> None:
    shuffled = IDS[:1].clone()
    shuffled[0, :5] = shuffled[0, [3, 1, 4, 0, 2]]
    for layers, same in (((0, 0), True), ((1, 0), False)):
        found = model(model_type="smollm3", qk_norm=False, no_rope_layers=layers, num_hidden_layers=2)
        found.model.layers = (
            found.model.layers[:1] if same else found.model.layers
        )  # a second causal layer tells the order, too
        found.model.kinds = found.model.kinds[: len(found.model.layers)]
        difference = (found(shuffled)[0, -1] - found(IDS[:1])[0, -1]).abs().max()
        assert (difference < 1e-5) == same


# --- windows ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("types", [(), ("sliding_attention", "full_attention")])
def test_a_token_sees_its_window_and_no_further(types: tuple[str, ...]) -> None:
    """One layer of window w sees w - 1 tokens back, two layers twice as far; a layer with full attention sees all."""
    found = model(sliding_window=5, layer_types=types)
    changed = IDS[:1].clone()
    changed[0, 3] = (changed[0, 3] + 1) % 41
    moved = (found(changed) - found(IDS[:1])).abs().amax(-1)[0] > 1e-6
    reach = 23 if types else 3 + 2 * 4
    assert moved.tolist() == [3 <= t <= reach for t in range(24)]


def test_a_window_in_a_packed_row_and_in_the_cache() -> None:
    found = model(sliding_window=5)
    attend = torch.tensor([[1] * 9 + [2] * 15])
    packed = found(IDS[:1], attend)
    torch.testing.assert_close(packed[:, :9], found(IDS[:1, :9]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(packed[:, 9:], found(IDS[:1, 9:]), atol=1e-5, rtol=1e-5)
    cache = KVCache(found.config, 2, 24, torch.device("cpu"), torch.float32)
    steps = [found(IDS[:, :3], None, cache)] + [found(IDS[:, t : t + 1], None, cache) for t in range(3, 24)]
    torch.testing.assert_close(torch.cat(steps, 1), found(IDS), atol=1e-5, rtol=1e-5)


# --- soft caps, scales, norms ----------------------------------------------------------------------------------------------------


def test_soft_caps_limit_and_hardly_change_small_values() -> None:
    x = torch.tensor([-100.0, -0.01, 0.0, 0.01, 100.0])
    assert soft_capped(x, 2.0).tolist() == pytest.approx([-2.0, -0.01, 0.0, 0.01, 2.0], abs=1e-6)
    assert soft_capped(x, None) is x


def test_capped_attention_is_the_formula_and_without_a_limit_the_library() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 6, 8, generator=generator)
    k, v = torch.randn(2, 2, 2, 6, 8, generator=generator)
    torch.testing.assert_close(attention(q, k, v, None, softcap=1e6), attention(q, k, v, None), atol=1e-4, rtol=1e-4)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    scores = soft_capped(torch.einsum("bhtd,bhsd->bhts", q, k.repeat_interleave(2, 1)) * 0.7, 1.5)
    wanted = (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention(q, k, v, None, scale=0.7, softcap=1.5), wanted)
    torch.testing.assert_close(attention(q, k, v, mask[None, None], scale=0.7, softcap=1.5), wanted)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probabilities_of_capped_logits_and_their_gradients(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
    ids = torch.randint(0, 11, (2, 7), generator=generator)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[:, 0] = False
    weights = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    found = token_scores(hidden, head, ids, mask, temperature=temperature, softcap=2.0)
    log_p = (2.0 * torch.tanh(hidden[:, :-1] @ head.T / 2.0) / temperature).log_softmax(-1)
    wanted = log_p.gather(-1, ids[:, 1:, None])[..., 0]
    torch.testing.assert_close(found.log_probs[:, 1:], wanted)
    torch.testing.assert_close(found.entropy[:, 1:], -(log_p.exp() * log_p).sum(-1))
    ours = torch.autograd.grad((found.log_probs[:, 1:] * weights).sum(), (hidden, head))
    theirs = torch.autograd.grad((wanted * weights).sum(), (hidden, head))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_scales_of_embedding_residual_and_logits() -> None:
    plain, scaled = (
        model(model_type="granite", qk_norm=False),
        model(model_type="granite", qk_norm=False, logits_scaling=4.0),
    )
    torch.testing.assert_close(scaled.logits(scaled(IDS)), plain.logits(plain(IDS)) / 4.0)
    silent = model(model_type="granite", qk_norm=False, residual_multiplier=1e-12)
    torch.testing.assert_close(silent(IDS), silent.model.norm(silent.model.embed_tokens(IDS)))
    larger = model(model_type="granite", qk_norm=False, embedding_multiplier=3.0)
    torch.nn.init.zeros_(larger.model.layers[1].mlp.down_proj.weight)
    wanted = larger(IDS)
    larger.model.embed_tokens.weight.data /= 3.0
    assert not torch.allclose(larger(IDS), wanted, atol=1e-2)
    plain.load_state_dict(larger.state_dict())
    plain.model.embed_tokens.weight.data *= 9.0
    torch.testing.assert_close(plain(IDS), wanted, atol=1e-5, rtol=1e-5)


def test_a_gain_of_one_plus_weight_starts_at_one() -> None:
    fresh = CausalLM(ModelConfig(model_type="gemma2", **SHAPE))
    assert not any(p.any() for name, p in fresh.named_parameters() if "norm" in name)
    x = torch.randn(3, 32)
    torch.testing.assert_close(fresh.model.norm(x), x / x.square().mean(-1, keepdim=True).add(1e-6).sqrt())


@pytest.mark.parametrize("kind", ["mistral", "smollm3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "gpt2"])
def test_the_number_of_parameters_is_counted_without_a_model(kind: str) -> None:
    shape = SHAPE | {"num_key_value_heads": 4} if kind == "gpt2" else SHAPE
    for tied in (True, False):
        config = ModelConfig(model_type=kind, **shape, tie_word_embeddings=tied)
        assert config.parameters() == sum(p.numel() for p in CausalLM(config).parameters())
