"""Rows that share a prompt: computed once, the states and gradients are those of plain rows; and when nothing is shared."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.model.test_decoding import FEATURES, made
from tinyllm.mean import Mean
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig
from tinyllm.model.prefixes import SharedPrompts, plain_rows
from tinyllm.model.transformer import CausalLM, set_activation_checkpointing
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine

WINDOWED = ("mistral", "gemma2", "gemma3_text")


def batch(vocabulary: int, prompts: int = 3, answers: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and group of prompts of 7, 16, 25, ... tokens, each with answers of 1 to 13 tokens, in random order."""
    generator = torch.Generator().manual_seed(0)
    numbers = partial(torch.randint, 0, vocabulary, generator=generator)
    rows = [
        (group, prompt, numbers((1 + int(numbers((1,))) % 13,)))
        for group in range(prompts)
        for prompt in [numbers((7 + 9 * group,))]
        for _ in range(answers)
    ]
    ids, width = torch.zeros(len(rows), 48, dtype=torch.long), torch.arange(48)
    mask = torch.zeros(len(rows), 48, dtype=torch.bool)
    for i, (_, prompt, answer) in enumerate(rows):
        length = len(prompt) + len(answer)
        ids[i, :length] = torch.cat((prompt, answer))
        mask[i] = (width >= len(prompt)) & (width < length)
    order = torch.randperm(len(rows), generator=generator)
    return ids[order], mask[order], torch.tensor([group for group, _, _ in rows])[order]


def learned(model: CausalLM, ids: Tensor, mask: Tensor, group: Tensor | None) -> list[Tensor]:
    """Return log-probabilities, entropies, and the gradients of their weighed sum."""
    scores = model.token_scores(ids, mask, group=group, temperature=0.8)
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(1)).to(scores.log_probs.dtype)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [*(x.detach() for x in scores), *torch.autograd.grad((scores.log_probs * weights).sum(), trained)]


def assert_shared(model: CausalLM, error: float) -> None:
    rows = batch(model.config.vocab_size)
    shared = SharedPrompts.of(*rows)
    assert shared is not None
    assert shared.tokens.shape == (1, 3 * 32 + 24 * 16)
    for a, b in zip(learned(model, *rows), learned(model, *rows[:2], None), strict=True):
        assert (a - b).abs().max() <= error * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_states_and_gradients_are_those_of_plain_rows(name: str) -> None:
    more: dict[str, object] = {"num_key_value_heads": 4} if name == "gpt2" else {}
    model = made(0.3, **FEATURES[name], **more, **({"sliding_window": 12} if name in WINDOWED else {}))
    assert_shared(model.double(), 1e-12)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_in_float32_and_with_activation_checkpointing(checkpointing: bool) -> None:
    model = made(0.3).train()
    set_activation_checkpointing(model, checkpointing)
    assert_shared(model, 1e-6 * 10)


def test_with_an_adapter() -> None:
    model = made(0.1)
    lora.attach(model, LoRAConfig(r=4))
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1)
    assert_shared(model.double(), 1e-12)


def test_in_bfloat16_rows_are_computed_as_ever() -> None:
    """What is compared with the policy may have been computed in other batches: rounding must not tell them apart."""
    model = made(0.1)
    ids, mask, group = batch(model.config.vocab_size)
    with torch.autocast("cpu", torch.bfloat16):
        shared, plain = (model.log_probs(ids, mask, group=g) for g in (group, None))
    torch.testing.assert_close(shared, plain, rtol=0, atol=0)


def test_answers_that_are_too_long_for_their_prompt_and_edges_of_the_layout() -> None:
    def of(prompt: int, answer: int, width: int | None = None, rows: int = 8) -> SharedPrompts | None:
        width = width or prompt + answer
        place = torch.arange(width).expand(rows, width)
        mask = (place >= prompt) & (place < prompt + answer)
        return SharedPrompts.of(torch.ones(rows, width, dtype=torch.long), mask, torch.zeros(rows, dtype=torch.int32))

    assert of(64, 192) is not None
    assert of(64, 208) is None, "attention to it costs more than the prompt"
    assert of(512, 768) is not None
    assert of(512, 1024) is None, "its mask is too large"
    odd = of(37, 3, 40)
    assert odd is not None
    assert odd.prompts == (1, 40)
    assert of(37, 3, rows=0) is None


def test_answers_do_not_see_each_other() -> None:
    model = made(0.3).double()
    ids, mask, group = batch(model.config.vocab_size)
    before = model.log_probs(ids, mask, group=group)
    changed = ids.clone()
    changed[0, int(mask[0].int().argmax())] += 1
    after = model.log_probs(changed % model.config.vocab_size, mask, group=group)
    assert not torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1:], before[1:], atol=1e-12, rtol=0)


def test_what_is_not_shared() -> None:
    ids, mask, group = batch(53)
    assert SharedPrompts.of(ids, mask, torch.arange(len(ids))) is None, "every row is alone"
    assert SharedPrompts.of(ids, mask, torch.zeros_like(group)) is None, "other prompts"
    wrong = ids.clone()
    wrong[group == 1, 3] = torch.arange(8) % 2
    assert SharedPrompts.of(wrong, mask, group) is None, "prompts that differ in a token"
    unscored = mask.clone()
    unscored[5] = False
    assert SharedPrompts.of(ids, unscored, group) is None, "a row without an answer says nothing of its prompt"
    with plain_rows():
        assert SharedPrompts.of(ids, mask, group) is None
    assert SharedPrompts.of(ids, mask, group) is not None
    long = torch.arange(48).ge(2).expand(24, 48)
    assert SharedPrompts.of(ids, long, group) is None, "hardly anything would be saved"


def test_rotations_that_depend_on_the_length_are_not_shared() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0}
    model = made(0.3, max_position_embeddings=16, rope_scaling=scaling).double()
    assert model.model.forgetful
    rows = batch(model.config.vocab_size)
    for a, b in zip(learned(model, *rows), learned(model, *rows[:2], None), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_memory_is_probed_with_plain_rows() -> None:
    """Other batches may share less than the longest one."""
    model = made(0.3).train()
    ids, mask, group = batch(model.config.vocab_size)
    seen: list[bool] = []

    def loss(model: CausalLM, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Mean, dict[str, Mean]]:
        seen.append(SharedPrompts.of(*batch) is not None)
        return Mean(-model.log_probs(*batch[:2], group=batch[2]).sum(), batch[1].sum()), {}

    engine = Engine(model, loss, OptimConfig(optimizer="adamw"), 2, precision="fp32", seed=0)
    engine.probe_memory((ids, mask, group))
    engine.step([(ids, mask, group)])
    assert seen == [False, True]
