"""Rows for added tokens: old rows and logits stay, new rows are average ones, and only they are trained under LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tinyllm.errors import UserError
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.resize import grow_vocabulary
from tinyllm.model.transformer import CausalLM, initialise

IDS = torch.tensor([[3, 1, 4, 1, 5, 9, 2, 6]])


def made(tied: bool) -> CausalLM:
    config = ModelConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
    )
    model = CausalLM(config)
    initialise(model, 0)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_old_rows_are_kept_to_the_bit_and_new_ones_are_average(tied: bool, tmp_path: Path) -> None:
    model, before = made(tied), made(tied)
    assert list(grow_vocabulary(model, 43, seed=3)) == [40, 41, 42]
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    for grown, old in (
        (model.model.embed_tokens.weight, before.model.embed_tokens.weight),
        (model.lm_head.weight, before.lm_head.weight),
    ):
        assert grown.shape == (43, 32)
        assert torch.equal(grown[:40], old)
        away = (grown[40:] - old.mean(0)) / old.std(0)
        assert 0.005 < float(away.std()) < 0.02
        assert float(away.abs().max()) < 0.05
        assert not torch.equal(grown[40], grown[41])
    assert torch.equal(model.logits(model(IDS))[..., :40], before.logits(before(IDS)))
    again, other = made(tied), made(tied)
    grow_vocabulary(again, 43, seed=3)
    grow_vocabulary(other, 43, seed=4)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(other.lm_head.weight, model.lm_head.weight)
    hub.save(model, tmp_path, bos=None, stop=(1,), pad=0)
    opened = hub.load_causal_lm(tmp_path)
    assert opened.config.vocab_size == opened.model.config.vocab_size == 43
    assert torch.equal(opened.lm_head.weight, model.lm_head.weight)


@torch.no_grad()
@pytest.mark.parametrize("tied", [True, False])
def test_rows_that_had_no_token_are_drawn_around_those_that_have_one(tied: bool) -> None:
    """Embeddings are often larger than the vocabulary, by rows of zeros or of noise."""
    model, before = made(tied), made(tied)
    for found in (model, before):
        for weight in (found.model.embed_tokens.weight, found.lm_head.weight):
            weight[36:] = 1000.0
    assert list(grow_vocabulary(model, 41, seed=3, spare=(36, 37, 40))) == [40]
    for grown, old in (
        (model.model.embed_tokens.weight, before.model.embed_tokens.weight),
        (model.lm_head.weight, before.lm_head.weight),
    ):
        kept = [*range(36), 38, 39]
        assert torch.equal(grown[kept], old[kept])
        away = (grown[36:38] - old[:36].mean(0)) / old[:36].std(0)
        assert float(away.abs().max()) < 0.05
        assert not torch.equal(grown[36], grown[37])
        assert float(((grown[40] - old[:36].mean(0)) / old[:36].std(0)).abs().max()) < 0.05


@pytest.mark.parametrize("tokens", [40, 12])
def test_a_model_that_has_the_rows_is_left_as_it_is(tokens: int) -> None:
    model = made(True)
    weight = model.lm_head.weight
    assert not grow_vocabulary(model, tokens)
    assert model.lm_head.weight is weight
    assert model.config.vocab_size == 40


@pytest.mark.parametrize("tied", [True, False])
def test_under_lora_the_rows_of_new_tokens_are_trained_and_no_others(tied: bool, tmp_path: Path) -> None:
    base = made(tied)
    new = grow_vocabulary(base, 42)
    (tmp_path / "base").mkdir()
    hub.save(base, tmp_path / "base", bos=None, stop=(1,), pad=0)
    config = LoRAConfig(r=2, targets=("q_proj",))
    model = lora.attach(base, config, token_rows=new)
    ids = torch.tensor([[3, 40, 4, 41, 5]])
    mask = torch.tensor([[False, True, True, True, True]])
    start = model.log_probs(ids, mask)
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 2 * (32 + 32) + (1 if tied else 2) * 2 * 32
    (-start.sum()).backward()
    assert all(p.grad is not None for p in trained)
    with torch.no_grad():
        for p in trained:
            p -= 0.02 * p.grad
    after = model.log_probs(ids, mask)
    assert after.sum() > start.sum() + 0.01
    assert all(torch.equal(p, frozen[name]) for name, p in model.named_parameters() if name in frozen)
    with lora.disabled(model):
        assert torch.equal(model.log_probs(ids, mask), start)
    rows = model.model.embed_tokens.token_adapter.trainable_tokens_delta
    rows = rows if tied else model.lm_head.token_adapter.trainable_tokens_delta
    hidden = model(ids)
    torch.testing.assert_close(model.logits(hidden)[..., 40:], hidden @ rows.T)
    folder = tmp_path / "adapter"
    folder.mkdir()
    settings = lora.with_token_rows(config, new)
    lora.save(model, settings, folder, "../base")
    for merged in (False, True):
        torch.testing.assert_close(hub.load_causal_lm(folder, merged=merged).log_probs(ids, mask), after)


@pytest.mark.parametrize("tied", [True, False])
def test_rows_of_tokens_are_no_targets_in_the_file_of_an_adapter_of_all_linear_layers(
    tied: bool, tmp_path: Path
) -> None:
    base = made(tied)
    new = grow_vocabulary(base, 42)
    (tmp_path / "base").mkdir()
    hub.save(base, tmp_path / "base", bos=None, stop=(1,), pad=0)
    config = LoRAConfig(r=2, targets=("all-linear",))
    model = lora.attach(base, config, token_rows=new)
    folder = tmp_path / "adapter"
    folder.mkdir()
    lora.save(model, lora.with_token_rows(config, new), folder, "../base")
    targets = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
    assert set(targets) == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    ids = torch.tensor([[3, 40, 4, 41, 5]])
    assert torch.equal(hub.load_causal_lm(folder, merged=False)(ids), model(ids))


def test_rows_that_the_model_does_not_have_are_refused() -> None:
    with pytest.raises(UserError, match="no row 40"):
        lora.attach(made(True), LoRAConfig(), token_rows=(7, 40))
    with pytest.raises(UserError, match=r"lora\.targets and in lora\.token_rows"):
        lora.attach(made(True), LoRAConfig(targets=("embed_tokens",), token_rows=(7,)))


def test_new_rows_join_those_of_each_module() -> None:
    found = lora.with_token_rows(LoRAConfig(token_rows={"lm_head": (3,)}), (40, 41))
    assert found.rows() == {"embed_tokens": (40, 41), "lm_head": (3, 40, 41)}
    assert lora.with_token_rows(LoRAConfig(token_rows=(3,)), (40,)).token_rows == (3, 40)
