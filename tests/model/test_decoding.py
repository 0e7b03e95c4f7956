"""The decoding engine: rows that enter and leave, streams of random numbers, and one token a row for every architecture."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch

from tests.support import small
from tinyllm.model import lora, sampling_memory
from tinyllm.model.architectures import ARCHITECTURES
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.decoding import Completion, Sampling, choosing, engine, generate, stream
from tinyllm.model.rope_scaling import RopeScaling
from tinyllm.model.sampling_memory import together
from tinyllm.model.transformer import CausalLM

VOCABULARY = 53
STOP = tuple(range(0, VOCABULARY, 9))
PROMPTS = [[5 + i % 7, *range(1, 1 + (i * 5) % 11)] for i in range(15)]
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}


def made(scale: float = 0.4, seed: int = 3, **settings: object) -> CausalLM:
    """A model with weights of order one, whose next tokens are neither certain nor random."""
    model = CausalLM(ModelConfig(**(SHAPE | settings)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (scale if p.ndim > 1 else 1))
    return model.eval()


def scored(model: CausalLM, prompt: Sequence[int], found: Completion, temperature: float = 1.0) -> torch.Tensor:
    """Log-probabilities of a completion by the forward pass of training."""
    ids = torch.tensor([[*prompt, *found.ids]])
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    mask[:, len(prompt) :] = True
    with torch.no_grad():
        return model.log_probs(ids, mask, temperature=temperature)[0, len(prompt) :]


def assert_scored(model: CausalLM, prompts: Sequence[Sequence[int]], found: Sequence[Completion], atol: float) -> None:
    for prompt, completion in zip(prompts, found, strict=True):
        wanted = scored(model, prompt, completion)
        torch.testing.assert_close(torch.tensor(completion.log_probs).to(wanted), wanted, atol=atol, rtol=0)


# --- rows that enter and leave -------------------------------------------------------------------------------------------------------

WINDOWED = {"model_type": "gemma2", "sliding_window": 6, "layer_types": ("sliding_attention", "full_attention")}


@cache
def alone(windowed: bool) -> tuple[CausalLM, Sampling, list[Completion]]:
    model, sampling = made(**(WINDOWED if windowed else {})), Sampling(24, stop=STOP, seed=7)
    return model, sampling, [generate(model, [prompt], sampling, streams=[i])[0] for i, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("windowed", [False, True], ids=["full", "windowed"])
@pytest.mark.parametrize("rows", [1, 2, 3, 8, 15])
def test_a_row_is_the_same_whatever_enters_and_leaves_beside_it(rows: int, windowed: bool) -> None:
    model, sampling, wanted = alone(windowed)
    found = generate(model, PROMPTS, sampling, rows=rows)
    assert [c.ids for c in found] == [c.ids for c in wanted]
    assert [c.finished for c in found] == [c.finished for c in wanted]
    assert len({len(c.ids) for c in found}) > 3
    assert_scored(model, PROMPTS, found, 1e-4)


def test_the_order_of_the_prompts_changes_no_completion() -> None:
    model, sampling = made(), Sampling(24, stop=STOP, seed=7)
    order = np.random.default_rng(0).permutation(len(PROMPTS)).tolist()
    found = generate(model, PROMPTS, sampling, rows=4)
    other = generate(model, [PROMPTS[i] for i in order], sampling, streams=order, rows=3)
    assert [c.ids for c in other] == [found[i].ids for i in order]


def test_equal_prompts_are_computed_once_and_have_different_completions() -> None:
    model, widths = made(), []
    model.register_forward_hook(lambda module, given, out: widths.append(given[0].shape))
    prompts = [prompt for prompt in PROMPTS[:3] for _ in range(5)]
    found = generate(model, prompts, Sampling(12, seed=1), rows=4)
    assert sum(rows for rows, _ in widths) == 3  # nothing else goes through the module
    assert all(len({tuple(c.ids) for c in found[start : start + 5]}) == 5 for start in (0, 5, 10))


def test_rows_that_are_done_are_computed_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[int] = []
    original = engine.Engine._logits

    def counted(self: engine.Engine) -> torch.Tensor:
        computed.append(len(self.ids))
        return original(self)

    monkeypatch.setattr(engine.Engine, "_logits", counted)
    model = made()
    found = generate(model, PROMPTS * 8, Sampling(48, stop=STOP, seed=7), rows=16)
    needed = sum(len(c.ids) - 1 for c in found)
    assert sum(computed) < 1.5 * needed  # all rows to the end of the longest would be three times as many
    assert max(computed) == 16


def test_a_penalty_sees_the_tokens_of_its_own_row_only() -> None:
    model, sampling = made(), Sampling(20, temperature=0.0, repetition_penalty=1.5, stop=STOP)
    alone = [generate(model, [prompt], sampling)[0].ids for prompt in PROMPTS]
    assert [c.ids for c in generate(model, PROMPTS, sampling, rows=3)] == alone


@pytest.mark.slow
def test_a_text_that_is_rotated_in_another_way_from_some_length_on_enters_again() -> None:
    factors = {"short_factor": (1.0,) * 4, "long_factor": (9.0, 5.0, 3.0, 2.0), "original_max_position_embeddings": 16}
    model = made(model_type="llama", qk_norm=False, rope_scaling=RopeScaling(rope_type="longrope", **factors))
    for rows in (2, 6):
        found = generate(model, PROMPTS[:6], Sampling(24, seed=5), rows=rows)
        for prompt, completion in zip(PROMPTS[:6], found, strict=True):
            assert len(completion.ids) == 24
            for n, (token, log_prob) in enumerate(zip(completion.ids, completion.log_probs, strict=True)):
                with torch.no_grad():  # rotated by the length that the text had then
                    hidden = model(torch.tensor([[*prompt, *completion.ids[:n]]]))[0, -1]
                    wanted = model.logits(hidden).log_softmax(-1)[token].item()
                assert log_prob == pytest.approx(wanted, abs=1e-4)


def test_a_row_that_enters_again_goes_on_with_its_random_numbers() -> None:
    """With equal factors nothing changes at that length, so the text is that of a model without this rule."""
    same = (1.0,) * 4
    factors = {
        "short_factor": same,
        "long_factor": same,
        "original_max_position_embeddings": 16,
        "attention_factor": 1.0,
    }
    scaled = made(model_type="llama", qk_norm=False, rope_scaling=RopeScaling(rope_type="longrope", **factors))
    found, plain = (
        generate(model, PROMPTS, Sampling(24, seed=5), rows=4) for model in (scaled, made(model_type="llama"))
    )
    assert [c.ids for c in found] == [c.ids for c in plain]


def test_a_stream_is_the_completion_one_token_at_a_time() -> None:
    model = made()
    for prompt in PROMPTS[:6]:
        sampling = Sampling(20, temperature=0.8, stop=STOP, seed=4)
        assert list(stream(model, prompt, sampling)) == generate(model, [prompt], sampling)[0].ids
    assert list(stream(model, [1], Sampling(0))) == []


def test_the_batch_fits_the_room_for_keys_and_values() -> None:
    config = ModelConfig(num_hidden_layers=30, num_key_value_heads=3, num_attention_heads=9, hidden_size=576)
    assert together(ModelConfig(), 1000, 160, "cpu", 4) == 64
    assert together(ModelConfig(), 5, 160, "cpu", 4) == 5
    one = 2 * 30 * 3 * 64 * 2048 * 4
    assert together(config, 1000, 2048, "cpu", 4) == (1 << 29) // one == 5
    assert together(config, 1000, 1 << 20, "cpu", 4) == 1  # a row is decoded whatever it takes


def test_probabilities_that_are_not_finite_are_refused() -> None:
    model = made()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    for sampling in (Sampling(4), Sampling(4, temperature=0.0)):
        with pytest.raises(engine.UserError, match="not finite"):
            generate(model, PROMPTS, sampling)


# --- random numbers ------------------------------------------------------------------------------------------------------------------


def test_numbers_are_a_function_of_seed_stream_and_position() -> None:
    found = choosing.uniforms(9, [0, 5, 2], 40)
    assert torch.equal(found[1:2], choosing.uniforms(9, [5], 40))
    assert torch.equal(found[:, :7], choosing.uniforms(9, [0, 5, 2], 7))
    assert len(found.unique()) == found.numel()
    assert not torch.equal(found, choosing.uniforms(8, [0, 5, 2], 40))
    many = choosing.uniforms(1, range(200), 500).double()
    assert many.min() >= 0
    assert many.max() < 1
    assert many.mean().item() == pytest.approx(0.5, abs=0.005)
    assert many.var().item() == pytest.approx(1 / 12, abs=0.002)


@pytest.mark.parametrize("blocks", [False, True])
def test_the_inverse_of_the_distribution(blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of evenly spaced numbers are the probabilities; the ends of the range give tokens that are possible."""
    monkeypatch.setattr(choosing, "_LARGE", 0 if blocks else 1 << 30)
    p = torch.randn(150, generator=torch.Generator().manual_seed(0)).mul(3).softmax(-1)
    p[:3] = p[70:140] = p[149] = 0
    n = 1 << 16
    drawn = choosing.invert(p.expand(n, -1), torch.arange(n)[:, None] / n).squeeze(1)
    shares = torch.bincount(drawn, minlength=150) / n
    torch.testing.assert_close(shares, p / p.sum(), atol=2 / n + 1e-5, rtol=0)
    assert not shares[p == 0].any()
    ends = choosing.invert(p.expand(2, -1), torch.tensor([[0.0], [1 - 2**-23]])).squeeze(1)
    assert ends.tolist() == [3, 148]
    for k in range(40):  # at the borders of blocks rounding errors would name tokens that are impossible
        p[torch.randperm(150, generator=torch.Generator().manual_seed(k))[:20]] = 0 if k % 2 else 0.01
        border = (p.cumsum(0)[63] / p.sum() + torch.arange(-64, 64) * 2.0**-23).clamp(0, 1 - 2**-23)[:, None]
        assert p[choosing.invert(p.expand(128, -1), border).squeeze(1)].min() > 0


# --- one token a row -----------------------------------------------------------------------------------------------------------------

FEATURES = {
    **{name: {"model_type": name} for name in ARCHITECTURES},
    "partial": {"model_type": "phi3", "partial_rotary_factor": 0.5},
    "many heads": {"num_attention_heads": 8},
    "wide": {"head_dim": 16},
    "untied": {"tie_word_embeddings": False},
}


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize("name", FEATURES)
def test_one_token_a_row_equals_the_forward_pass(name: str, copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Temperature 1, so that log-probabilities of unlikely tokens are compared, too."""
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 1 << 30 if copied else 0)
    settings = FEATURES[name]
    if name in ("gemma2", "gemma3_text"):
        settings = settings | {"sliding_window": 5, "layer_types": ("sliding_attention", "full_attention")}
    if name == "gpt2":
        settings = settings | {"num_key_value_heads": 4}
    model = made(0.2, **settings)
    found = generate(model, PROMPTS, Sampling(24, stop=STOP, seed=2), rows=6)
    assert_scored(model, PROMPTS, found, 1e-5)


@pytest.mark.parametrize("copied", [True, False])
@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(r=2),
        LoRAConfig(r=2, dora=True),
        LoRAConfig(r=2, init="pissa"),
        LoRAConfig(r=2, targets=("q_proj", "down_proj", "lm_head", "embed_tokens"), token_rows=()),
        LoRAConfig(r=2, modules_to_save=("embed_tokens",), token_rows=()),
        LoRAConfig(r=2, token_rows=(3, 4)),
    ],
    ids=["lora", "dora", "pissa", "ends", "saved", "rows"],
)
def test_an_adapter_is_part_of_the_weights_and_stays_as_it_is(
    config: LoRAConfig, copied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 1 << 30 if copied else 0)
    model = made(0.3)
    lora.attach(model, config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(torch.randn(p.shape, generator=generator) * 0.1)
    before = copy.deepcopy(model.state_dict())
    found = generate(model, PROMPTS, Sampling(16, stop=STOP, seed=2), rows=6)
    assert_scored(model, PROMPTS, found, 2e-5)
    with lora.disabled(model):
        plain = generate(model, PROMPTS, Sampling(16, stop=STOP, seed=2), rows=6)
        assert_scored(model, PROMPTS, plain, 2e-5)
    assert [c.ids for c in plain] != [c.ids for c in found]
    after = model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(dtype: torch.dtype) -> None:
    model = made(0.3).to(dtype)
    found = generate(model, PROMPTS, Sampling(16, stop=STOP, seed=2), rows=6)
    context = torch.autocast("cpu", dtype, enabled=dtype != torch.float64)
    with context:
        gaps = torch.cat(
            [(torch.tensor(c.log_probs) - scored(model, p, c)).abs() for p, c in zip(PROMPTS, found, strict=True)]
        )
    assert gaps.mean() < {torch.bfloat16: 0.03, torch.float16: 0.005, torch.float64: 1e-6}[dtype]


def test_weights_that_were_updated_are_those_that_are_sampled_from() -> None:
    model = small.rough()
    prompts = [[5, 6], [7]]
    first = generate(model, prompts, Sampling(12, seed=1))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05)
    second = generate(model, prompts, Sampling(12, seed=1))
    assert first != second
    assert_scored(model, prompts, second, 1e-5)


# --- what the model is afterwards ----------------------------------------------------------------------------------------------------


def backward(model: CausalLM) -> None:
    ids = torch.randint(0, VOCABULARY, (2, 20))
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[:, 0] = False
    model.log_probs(ids, mask).sum().backward()


def test_training_goes_on_after_a_text_that_fills_a_new_table_of_rotations() -> None:
    model = made(max_position_embeddings=512)
    generate(model, [[1] * 500], Sampling(12))
    backward(model.train())
    model = made(max_position_embeddings=512)
    with torch.inference_mode():
        generate(model, [[1] * 5], Sampling(3))
    backward(model.train())


@pytest.mark.parametrize("copied", [True, False])
def test_an_adapter_in_training_mode_samples_without_dropout(copied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling_memory, "COPIED_BYTES", 1 << 30 if copied else 0)
    model = lora.attach(made(0.3), LoRAConfig(r=2, dropout=0.5))
    with torch.no_grad():
        for layer in lora.layers(model).values():
            layer.lora_B.weight.add_(
                torch.randn(layer.lora_B.weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2
            )
    model.train()
    model.model.layers[0].mlp.eval()
    modes = [module.training for module in model.modules()]
    found = generate(model, PROMPTS, Sampling(16, seed=2))
    text = list(stream(model, PROMPTS[0], Sampling(16, seed=2)))
    assert text == found[0].ids
    assert [module.training for module in model.modules()] == modes
    assert_scored(model.eval(), PROMPTS, found, 1e-5)


def test_a_short_prompt_beside_a_long_one_is_rotated_by_its_own_length() -> None:
    factors = {"short_factor": (1.0,) * 4, "long_factor": (9.0, 5.0, 3.0, 2.0), "original_max_position_embeddings": 16}
    model = made(model_type="llama", qk_norm=False, rope_scaling=RopeScaling(rope_type="longrope", **factors))
    prompts = [[1, 2, 3], [4] * 20, [5, 6]]
    together, alone = generate(model, prompts, Sampling(8, temperature=0.0)), []
    for prompt in prompts:
        alone += generate(model, [prompt], Sampling(8, temperature=0.0))
    assert [c.ids for c in together] == [c.ids for c in alone]


def test_stop_tokens_that_are_no_tokens_and_prompts_of_another_vocabulary() -> None:
    model = made()
    free, stopped = (generate(model, PROMPTS, Sampling(8, stop=stop)) for stop in ((), (-1, VOCABULARY, 10**6)))
    assert free == stopped
    with pytest.raises(engine.UserError, match="the vocabulary has 53"):
        generate(model, [[1, VOCABULARY]], Sampling(4))
    with pytest.raises(engine.UserError, match="the vocabulary has 53"):
        generate(model, [[-1]], Sampling(4))


def test_seeds_of_every_size_differ() -> None:
    seeds = [0, 1, (1 << 62) + 1, (1 << 63) + 1, (1 << 63), (1 << 64) - 1]
    found = [tuple(choosing.uniforms(seed, [3], 4)[0].tolist()) for seed in seeds]
    assert len(set(found)) == len(seeds)
