"""Generation: cached equals uncached, batched equals alone, stopping, sampling."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from tests.support import small
from tinyllm.errors import UserError
from tinyllm.evals.settings import EvalSettings
from tinyllm.model import hub
from tinyllm.model.config import ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import CausalLM
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages.config import ChatConfig

KINDS = {"qwen3": 2, "llama": 4, "qwen2": 1}


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> CausalLM:
    shape = ModelConfig(
        model_type=request.param,
        vocab_size=53,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=KINDS[request.param],
        head_dim=8,
        max_position_embeddings=64,
    )
    model = CausalLM(shape)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.4 if p.ndim > 1 else 1))
    return model.eval()


PROMPTS = [[5, 6, 7], [1], [9, 8, 7, 6, 5, 4, 3]]


def greedy_uncached(model: CausalLM, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(n):
            ids.append(int(model.logits(model(torch.tensor([ids])))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_decoding_with_cache_and_left_padding_equals_decoding_without(model: CausalLM) -> None:
    together = generate(model, PROMPTS, Sampling(20, temperature=0))
    for prompt, completion in zip(PROMPTS, together, strict=True):
        assert completion.ids == greedy_uncached(model, prompt, 20)


def test_unequal_prompts_decode_beyond_the_length_of_the_first_table_of_rotations() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    prompts = [torch.randint(0, 32, (length,)).tolist() for length in (506, 511)]
    sampling = Sampling(max_new_tokens=8, temperature=0)
    model = CausalLM(ModelConfig(vocab_size=32, num_hidden_layers=1, max_position_embeddings=1024, **sizes))
    together = generate(model, prompts, sampling)  # tables have 512 rows at first
    assert [c.ids for c in together] == [generate(model, [p], sampling)[0].ids for p in prompts]


@pytest.mark.parametrize("temperature", [1e-40, 1e-8, 9e-6, -1.0, float("nan"), float("inf")])
def test_temperatures_that_float32_cannot_divide_by_are_refused(temperature: float) -> None:
    with pytest.raises(UserError, match=r"temperature .* is out of range"):
        Sampling(8, temperature=temperature)
    if temperature > 0:
        for config in (ChatConfig, EvalSettings, RolloutConfig):
            with pytest.raises(ValidationError, match="temperature"):
                config(temperature=temperature)


def test_the_least_temperature_and_the_least_top_p_are_greedy(model: CausalLM) -> None:
    want = generate(model, PROMPTS, Sampling(8, temperature=0))
    for least in (Sampling(8, temperature=1e-5), Sampling(8, temperature=1e4, top_p=1e-300), Sampling(8, top_k=1)):
        found = generate(model, PROMPTS, least)
        assert [c.ids for c in found] == [c.ids for c in want]
        assert all(math.isfinite(p) for c in found for p in c.log_probs)
    for top_p in (0.0, -0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="top_p"):
            Sampling(8, top_p=top_p)


def test_reported_log_probs_equal_those_of_the_training_forward(model: CausalLM) -> None:
    for prompt, completion in zip(
        PROMPTS, generate(model, PROMPTS, Sampling(12, temperature=0.8, seed=4)), strict=True
    ):
        ids = torch.tensor([prompt + completion.ids])
        mask = torch.tensor([[False] * len(prompt) + [True] * len(completion.ids)])
        scored = model.log_probs(ids, mask, temperature=0.8)[0, len(prompt) :]
        torch.testing.assert_close(torch.tensor(completion.log_probs), scored, atol=1e-4, rtol=0)


def test_finished_rows_leave_the_batch_and_the_others_are_unchanged(model: CausalLM) -> None:
    free = generate(model, PROMPTS, Sampling(20, temperature=0))
    stop = free[0].ids[4]
    stopped = generate(model, PROMPTS, Sampling(20, temperature=0, stop=(stop,)))
    for a, b in zip(free, stopped, strict=True):
        end = a.ids.index(stop) + 1 if stop in a.ids else 20
        assert b.ids == a.ids[:end]
        assert b.finished == (stop in a.ids)
    assert stopped[0].finished


def test_same_seed_gives_the_same_tokens(model: CausalLM) -> None:
    first, again, other = (generate(model, PROMPTS, Sampling(16, seed=s)) for s in (1, 1, 2))
    assert [c.ids for c in first] == [c.ids for c in again]
    assert [c.ids for c in first] != [c.ids for c in other]


def test_top_k_one_and_tiny_top_p_are_greedy(model: CausalLM) -> None:
    greedy = [c.ids for c in generate(model, PROMPTS, Sampling(10, temperature=0))]
    assert [c.ids for c in generate(model, PROMPTS, Sampling(10, top_k=1))] == greedy
    assert [c.ids for c in generate(model, PROMPTS, Sampling(10, top_p=1e-6))] == greedy
    assert [c.ids for c in generate(model, PROMPTS, Sampling(10, top_k=10**6, seed=7))] == [
        c.ids for c in generate(model, PROMPTS, Sampling(10, seed=7))
    ]


def test_samples_follow_the_distribution(model: CausalLM) -> None:
    """Compare 10,000 first tokens with the softmax at temperature 2: chi-square per degree of freedom is near one."""
    ids = torch.tensor([PROMPTS[0]])
    p = torch.softmax(model.logits(model(ids))[0, -1].detach() / 2.0, -1)
    drawn = generate(model, [PROMPTS[0]] * 10_000, Sampling(1, temperature=2.0, seed=5))
    counts = torch.bincount(torch.tensor([c.ids[0] for c in drawn]), minlength=53)
    chi = ((counts - 10_000 * p) ** 2 / (10_000 * p)).sum() / 52
    assert 0.4 < chi < 1.8


def test_completions_end_with_the_context_and_full_or_empty_prompts_are_refused(model: CausalLM) -> None:
    assert generate(model, [], Sampling(5)) == []
    assert generate(model, [[1]], Sampling(0))[0].ids == []
    assert len(generate(model, [[1] * 60], Sampling(50))[0].ids) == 4  # to the end of the context, no further
    for bad in ([[1] * 64], [[]]):
        with pytest.raises(UserError):
            generate(model, bad, Sampling(5))


@pytest.mark.parametrize("wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_k": -1}])
def test_settings_out_of_range_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        Sampling(**wrong)


def test_greedy_tokens_of_stories260k_are_the_golden_ones(shared: Path) -> None:
    folder = shared / "models" / "stories260k"
    golden = json.loads((folder / "golden.json").read_text())["greedy_from_bos_199"]
    model = hub.load_causal_lm(folder / "hf")
    got = generate(model, [[golden[0]]], Sampling(199, temperature=0))[0].ids
    assert got == golden[1:]


@pytest.mark.parity
def test_the_repetition_penalty_is_that_of_transformers() -> None:
    processors = pytest.importorskip("transformers").generation.logits_process
    model, prompts, penalty = small.rough(), [[5, 6, 7, 5], [8, 9]], 1.7
    found = generate(model, prompts, Sampling(12, temperature=0.0, repetition_penalty=penalty))
    process = processors.RepetitionPenaltyLogitsProcessor(penalty)
    for prompt, completion in zip(prompts, found, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            for token, log_prob in zip(completion.ids, completion.log_probs, strict=True):
                scores = process(ids, model.logits(model(ids))[:, -1]).log_softmax(-1)
                assert token == scores.argmax().item()
                assert log_prob == pytest.approx(scores.max().item(), abs=1e-5)
                ids = torch.cat((ids, torch.tensor([[token]])), dim=1)
    assert found != generate(model, prompts, Sampling(12, temperature=0.0))
