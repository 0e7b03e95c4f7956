"""The compiled part of a decoding step against torch's operations."""

from __future__ import annotations

import math

import pytest
import torch

from tests.model.test_decoding import FEATURES, PROMPTS, STOP, assert_scored, made
from tinyllm.model.decoding import Sampling, choosing, generate, native, one_token
from tinyllm.model.decoding.ring import Ring

COVERED = ("qwen3", "llama", "qwen2", "mistral", "smollm3", "phi3", "partial", "many heads", "wide", "untied")
SEVERAL = {"num_attention_heads": 6, "num_key_value_heads": 2}

pytestmark = pytest.mark.skipif(native.library() is None, reason="there is no C compiler")


@pytest.mark.parametrize("name", COVERED)
def test_a_step_equals_that_of_torch(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = FEATURES[name] | ({"no_rope_layers": (1, 0)} if name == "smollm3" else {})
    if name == "mistral":
        settings = settings | {"sliding_window": 5}
    model = made(0.3, **settings)
    assert native.covers(one_token.OneToken(model, torch.float32, 64))
    for rows in (1, 6):
        found = generate(model, PROMPTS, Sampling(24, stop=STOP, seed=2), rows=rows)
        assert_scored(model, PROMPTS, found, 1e-5)
        with monkeypatch.context() as patch:
            patch.setattr(native, "library", lambda: None)
            plain = generate(model, PROMPTS, Sampling(24, stop=STOP, seed=2), rows=rows)
        assert [c.ids for c in found] == [c.ids for c in plain]


@pytest.mark.parametrize("width", [8, 32, 48, 64, 128, 256])
def test_heads_of_every_width_share_their_keys(width: int) -> None:
    model = made(0.2, head_dim=width, **SEVERAL)
    found = generate(model, PROMPTS, Sampling(12, temperature=0.0), rows=5)
    assert_scored(model, PROMPTS, found, 1e-5)


def test_what_it_does_not_cover_is_left_to_torch() -> None:
    for name in ("gemma2", "gemma3_text", "olmo2", "granite", "gpt2"):
        settings = FEATURES[name] | ({"num_key_value_heads": 4} if name == "gpt2" else {})
        if name == "granite":
            settings = settings | {"residual_multiplier": 0.5}
        assert not native.covers(one_token.OneToken(made(**settings), torch.float32, 64))
    assert not native.covers(one_token.OneToken(made().double(), torch.float64, 64))
    assert not native.covers(one_token.OneToken(made(head_dim=512), torch.float32, 64))


def step(model: torch.nn.Module, rows: int) -> native.NativeStep:
    device = torch.device("cpu")
    ring = Ring(model.config, rows, 16, 4, uneven=False, penalized=False, dtype=torch.float32, device=device)
    functions = native.library()
    assert functions is not None
    return native.NativeStep(one_token.OneToken(model, torch.float32, 16), ring, functions)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 3.0, 1e-5])
def test_tokens_are_drawn_as_torch_draws_them(temperature: float) -> None:
    rows, generator = 4096, torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 53, generator=generator) * 3
    logits[:, 7] = -torch.inf
    uniform = torch.rand(rows, 5, generator=generator)[:, 2]
    ids, log_probs = step(made(), rows).choose(logits, Sampling(temperature=temperature), uniform)
    wanted, expected = choosing.choose(logits.double(), Sampling(temperature=temperature), uniform)
    assert (ids == wanted).float().mean() > 0.999  # the others are at a boundary, within rounding
    same = ids == wanted
    torch.testing.assert_close(log_probs[same].double(), expected[same], atol=2e-6, rtol=1e-6)
    assert not (ids == 7).any()


def test_the_ends_of_the_range_and_numbers_that_are_not_finite() -> None:
    logits = torch.zeros(5, 53)
    logits[:, :3] = logits[:, 50:] = -200.0
    logits[2, 9], logits[3, 9], logits[4] = torch.nan, torch.inf, -torch.inf
    uniform = torch.tensor([0.0, 1 - 2**-23, 0.5, 0.5, 0.5])
    ids, log_probs = step(made(), 5).choose(logits, Sampling(), uniform)
    assert ids[:2].tolist() == [3, 49]
    torch.testing.assert_close(log_probs[:2], torch.full((2,), -math.log(47)), atol=1e-5, rtol=0)
    assert log_probs[2:].isnan().all()
    assert ids.min() >= 0
    assert ids.max() < 53
