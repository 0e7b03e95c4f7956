"""Hugging Face files: round trips, with transformers and PEFT as independent readers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.support import small
from tinyllm.errors import UserError
from tinyllm.model import hub, lora, tensors
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.decoding import Sampling, generate
from tinyllm.model.transformer import CausalLM, SequenceScorer

TINY = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 32,
}
SHAPES = {
    "qwen3-tied-gqa": ModelConfig(**TINY, num_key_value_heads=2),
    "qwen3-untied": ModelConfig(**TINY, num_key_value_heads=4, tie_word_embeddings=False),
    "llama-gqa": ModelConfig(
        **{**TINY, "head_dim": 8}, model_type="llama", num_key_value_heads=1, tie_word_embeddings=False
    ),
    "qwen2-tied": ModelConfig(**{**TINY, "head_dim": 8}, model_type="qwen2", num_key_value_heads=2),
}
IDS = torch.randint(0, 64, (2, 17), generator=torch.Generator().manual_seed(0))


def random_model(kind: type, config: ModelConfig) -> torch.nn.Module:
    model = kind(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.3 if p.ndim > 1 else 1))
    return model.eval()


def saved(model: torch.nn.Module, folder: Path) -> Path:
    hub.save(model, folder, bos=None, stop=(2, 0), pad=3)
    return folder


@pytest.mark.parametrize("name", SHAPES)
def test_save_and_load_round_trip_is_bitwise_exact(name: str, tmp_path: Path) -> None:
    model = random_model(CausalLM, SHAPES[name])
    again = hub.load_causal_lm(saved(model, tmp_path))
    assert torch.equal(again.logits(again(IDS)), model.logits(model(IDS)))
    assert again.config == model.config
    if SHAPES[name].tie_word_embeddings:
        assert again.lm_head.weight is again.model.embed_tokens.weight


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_transformers_loads_our_checkpoint_unchanged(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(CausalLM, SHAPES[name])
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(saved(model, tmp_path), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        torch.testing.assert_close(theirs(IDS).logits, model.logits(model(IDS)), atol=1e-5, rtol=1e-5)
    ours = generate(model, [IDS[0].tolist()], Sampling(30, temperature=0))[0].ids
    got = theirs.generate(
        IDS[:1], max_new_tokens=30, do_sample=False, eos_token_id=None, attention_mask=torch.ones(1, 17)
    )[0, 17:]
    assert got.tolist() == ours


@pytest.mark.parity
@pytest.mark.parametrize("name", SHAPES)
def test_checkpoint_saved_by_transformers_loads_here(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(CausalLM, SHAPES[name])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(saved(model, tmp_path))
    theirs.save_pretrained(tmp_path / "theirs")
    again = hub.load_causal_lm(tmp_path / "theirs")
    assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parity
def test_reward_model_has_the_same_scores_in_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = random_model(SequenceScorer, SHAPES["qwen3-tied-gqa"])
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(saved(model, tmp_path))
    ids, real = IDS.clone().clamp(min=4), torch.ones_like(IDS, dtype=torch.bool)
    ids[1, 12:], real[1, 12:] = 3, False  # padding
    with torch.no_grad():
        got = theirs(ids, attention_mask=real.long()).logits.squeeze(1)
        torch.testing.assert_close(got, model.rewards(ids, real), atol=1e-5, rtol=1e-5)
    again = hub.load_scorer(tmp_path)
    assert torch.equal(again(IDS), model(IDS))


@pytest.mark.parity
def test_adapters_are_exchanged_with_peft_in_both_directions(tmp_path: Path) -> None:
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    model = random_model(CausalLM, SHAPES["qwen3-tied-gqa"])
    base = tmp_path / "base"
    base.mkdir()
    saved(model, base)
    config = LoRAConfig(r=4, alpha=6, targets=("q_proj", "up_proj", "down_proj"))
    lora.attach(model, config)
    for layer in lora.layers(model).values():
        torch.nn.init.normal_(layer.lora_B.weight, std=0.2)
    ours = tmp_path / "ours"
    ours.mkdir()
    lora.save(model, config, ours, base.as_posix(), base_sha256=tensors.sha256(base))
    theirs = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), ours)
    with torch.no_grad():
        want = model.logits(model(IDS))
        torch.testing.assert_close(theirs(IDS).logits, want, atol=1e-5, rtol=1e-5)
    theirs.save_pretrained(tmp_path / "theirs")
    assert not tensors.metadata(
        tmp_path / "theirs" / lora.WEIGHTS, lora.BASE_SHA256
    )  # not kept by PEFT, and not required
    again = hub.load_causal_lm(tmp_path / "theirs", merged=False)
    with torch.no_grad():
        torch.testing.assert_close(again.logits(again(IDS)), want, atol=1e-6, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.filterwarnings("error:.*[Uu]nexpected keyword.*")
def test_peft_loads_our_adapter_without_warnings(tmp_path: Path) -> None:
    """The hash of the base is stored where PEFT does not look: it would warn about an unknown key in adapter_config.json."""
    peft = pytest.importorskip("peft")
    model = random_model(CausalLM, SHAPES["qwen3-tied-gqa"])
    base, ours = tmp_path / "base", tmp_path / "ours"
    for folder in (base, ours):
        folder.mkdir()
    saved(model, base)
    lora.save(lora.attach(model, LoRAConfig(r=2)), LoRAConfig(r=2), ours, base.as_posix(), base_sha256="0" * 64)
    theirs = peft.AutoPeftModelForCausalLM.from_pretrained(ours)
    assert theirs.peft_config["default"].r == 2
    with pytest.raises(UserError, match="trained on other weights"):
        hub.load_causal_lm(ours)


def test_bytes_of_a_safetensors_file_depend_only_on_its_content(tmp_path: Path) -> None:
    """The library writes the entries of the metadata in random order."""
    found = set()
    for number in range(20):
        notes = {"format": "pt", "base_sha256": "0" * 64, "a": "b"}
        tensors.write({"x": torch.ones(3), "y": torch.zeros(2)}, tmp_path / "a.safetensors", notes)
        found.add((tmp_path / "a.safetensors").read_bytes())
        assert tensors.metadata(tmp_path / "a.safetensors", "a") == "b", number
    assert len(found) == 1
    assert torch.equal(tensors.read([tmp_path / "a.safetensors"])["x"], torch.ones(3))


def test_links_into_the_store_of_huggingface_hub_are_followed(tmp_path: Path) -> None:
    """`snapshots/REVISION/NAME -> ../../blobs/HASH`."""
    model = random_model(CausalLM, SHAPES["qwen3-tied-gqa"])
    blobs, revision = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "123"
    blobs.mkdir(parents=True)
    revision.mkdir(parents=True)
    saved(model, blobs)
    for file in blobs.iterdir():
        (revision / file.name).symlink_to(f"../../blobs/{file.name}")
    assert torch.equal(hub.load_causal_lm(revision)(IDS), model(IDS))


def test_loading_does_not_import_the_compiler_of_torch(tmp_path: Path) -> None:
    """Which random numbers on the device "meta" would do, in two seconds."""
    small.saved(small.rough(), tmp_path / "model")
    code = (
        "import sys, torch\nfrom pathlib import Path\nfrom tinyllm.model import hub\nbefore = set(sys.modules)\n"
        "hub.load_causal_lm(Path('model'))\nprint(len({'sympy', 'torch._dynamo'} & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0", done.stderr


def test_restore_fills_a_model_of_the_same_shape_and_refuses_another(tmp_path: Path) -> None:
    config = SHAPES["qwen3-tied-gqa"]
    model = random_model(CausalLM, config)
    again, other = CausalLM(config).eval(), CausalLM(config.model_copy(update={"rope_theta": 123.0}))
    hub.restore(again, saved(model, tmp_path))
    assert torch.equal(again.logits(again(IDS)), model.logits(model(IDS)))
    with pytest.raises(UserError, match="another model: rope_theta: checkpoint"):
        hub.restore(other, tmp_path)


def test_scorer_starts_from_the_decoder_of_the_policy(tmp_path: Path) -> None:
    policy = random_model(CausalLM, SHAPES["qwen3-tied-gqa"])
    scorer = hub.scorer_from(policy, seed=0)
    assert torch.equal(scorer.model(IDS), policy(IDS))
    assert torch.equal(hub.scorer_from(policy, seed=0).score.weight, scorer.score.weight)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "mish"),
        ("model_type", "gpt_neox"),
        ("rope_parameters", {"rope_type": "yarn"}),
        ("quantization_config", {"bits": 4}),
    ],
)
def test_unsupported_values_of_config_json_are_refused(tmp_path: Path, key: str, value: object) -> None:
    saved(random_model(CausalLM, SHAPES["qwen3-tied-gqa"]), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(found | {key: value}))
    with pytest.raises(UserError):
        hub.load_causal_lm(tmp_path)


def test_weights_that_do_not_fit_config_json_are_refused_with_the_field(tmp_path: Path) -> None:
    saved(random_model(CausalLM, SHAPES["qwen3-tied-gqa"]), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(found | {"num_hidden_layers": 3}))
    with pytest.raises(UserError, match=r"num_hidden_layers: weights 2, config\.json 3") as caught:
        hub.load_causal_lm(tmp_path)
    assert caught.value.code == 3


def test_a_context_whose_rotary_tables_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    saved(random_model(CausalLM, SHAPES["qwen3-tied-gqa"]), tmp_path)
    found = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(found | {"max_position_embeddings": 2_200_000}))
    with pytest.raises(UserError, match="2200000 needs 268 MB for rotary tables alone") as caught:
        hub.load_causal_lm(tmp_path)
    assert caught.value.code == 3


def test_index_that_names_a_file_outside_its_folder_is_refused(tmp_path: Path) -> None:
    saved(random_model(CausalLM, SHAPES["qwen3-tied-gqa"]), tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "stolen.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../stolen.safetensors"}}))
    with pytest.raises(UserError, match="not a safetensors file in its folder"):
        hub.load_causal_lm(tmp_path)


def test_missing_weights_and_an_index_of_nothing_are_refused(tmp_path: Path) -> None:
    saved(random_model(CausalLM, SHAPES["qwen3-tied-gqa"]), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="the weights are missing"):
        hub.load_causal_lm(tmp_path)
    for named in ({}, {"a": 1}, [1]):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": named}))
        with pytest.raises(UserError, match="which is not a safetensors file in its folder"):
            hub.load_causal_lm(tmp_path)


def test_pickle_is_refused_without_being_loaded(tmp_path: Path) -> None:
    saved(random_model(CausalLM, SHAPES["qwen3-tied-gqa"]), tmp_path)
    torch.save({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="cannot be read"):
        hub.load_causal_lm(tmp_path)


def test_a_language_model_has_a_generation_config_with_every_end_and_a_reward_model_has_none(tmp_path: Path) -> None:
    for kind in (CausalLM, SequenceScorer):
        (tmp_path / kind.__name__).mkdir()
        hub.save(kind(SHAPES["qwen3-tied-gqa"]), tmp_path / kind.__name__, bos=1, stop=(2, 0), pad=3)
    written = json.loads((tmp_path / "CausalLM" / "generation_config.json").read_text())
    assert written == {"bos_token_id": 1, "eos_token_id": [2, 0], "pad_token_id": 3}
    assert not (tmp_path / "SequenceScorer" / "generation_config.json").exists()


# --- files as other programs leave them ----------------------------------------------------------------------------------------------


def rewritten(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    """Change the tensors of a saved model."""
    file = folder / tensors.WEIGHTS
    save_file(change(tensors.read([file])), file, metadata={"format": "pt"})
    return folder


def test_a_tied_model_whose_file_has_another_head_is_not_tied(tmp_path: Path) -> None:
    """As transformers loads it; an equal head changes nothing."""
    model = random_model(CausalLM, SHAPES["qwen3-tied-gqa"])
    embedding = model.lm_head.weight.detach()
    same = hub.load_causal_lm(rewritten(saved(model, tmp_path), lambda t: t | {"lm_head.weight": embedding.clone()}))
    assert same.config.tie_word_embeddings
    assert same.load_notes == ()
    other = hub.load_causal_lm(rewritten(tmp_path, lambda t: t | {"lm_head.weight": 2 * embedding}))
    assert not other.config.tie_word_embeddings
    assert "they are not tied" in other.load_notes[0]
    torch.testing.assert_close(other.logits(other(IDS)), 2 * model.logits(model(IDS)))
    (tmp_path / "again").mkdir()
    again = hub.load_causal_lm(saved(other, tmp_path / "again"))
    assert torch.equal(again.logits(again(IDS)), other.logits(other(IDS)))


def test_a_tied_model_whose_file_has_the_head_only(tmp_path: Path) -> None:
    model = random_model(CausalLM, SHAPES["qwen3-tied-gqa"])

    def move(there: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return there | {"lm_head.weight": there.pop("model.embed_tokens.weight")}

    again = hub.load_causal_lm(rewritten(saved(model, tmp_path), move))
    assert torch.equal(again.logits(again(IDS)), model.logits(model(IDS)))


def test_leftovers_in_a_file_change_nothing(tmp_path: Path) -> None:
    model = random_model(SequenceScorer, SHAPES["qwen3-tied-gqa"])
    left = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4), "lm_head.weight": torch.ones(64, 32)}
    again = hub.load_scorer(rewritten(saved(model, tmp_path), lambda there: there | left))
    assert torch.equal(again(IDS), model(IDS))
    with pytest.raises(UserError, match=r"'model\.other\.weight' is unknown"):
        hub.load_scorer(rewritten(tmp_path, lambda there: there | {"model.other.weight": torch.ones(4)}))


def test_a_file_that_was_saved_without_the_head(tmp_path: Path) -> None:
    """GPT-2's own checkpoint has no prefix `transformer.`, and the masks of its attention as tensors."""
    config = ModelConfig(
        model_type="gpt2",
        **{**TINY, "head_dim": 8},
        num_key_value_heads=4,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    model = random_model(CausalLM, config)
    saved(model, tmp_path)
    names = tensors.headers([tmp_path / tensors.WEIGHTS])
    assert names["transformer.h.1.attn.c_attn.weight"].shape == (32, 96)  # (in, out)
    mask = {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "h.0.attn.masked_bias": torch.ones(())}
    bare = rewritten(tmp_path, lambda t: {k.removeprefix("transformer."): v for k, v in t.items()} | mask)
    again = hub.load_causal_lm(bare)
    assert torch.equal(again.logits(again(IDS)), model.logits(model(IDS)))


def test_entries_of_config_json_that_nothing_here_reads_are_written_back(tmp_path: Path) -> None:
    model = random_model(CausalLM, SHAPES["qwen2-tied"])
    saved(model, tmp_path)
    path = tmp_path / "config.json"
    found = json.loads(path.read_text())
    other = {"max_window_layers": 28, "initializer_range": 0.01, "use_sliding_window": False, "sliding_window": 131072}
    path.write_text(json.dumps(found | other | {"transformers_version": "4.45.0", "auto_map": None}))
    (tmp_path / "again").mkdir()
    written = json.loads((saved(hub.load_causal_lm(tmp_path), tmp_path / "again") / "config.json").read_text())
    assert written == found | other
    scorer = hub.scorer_from(hub.load_causal_lm(tmp_path), 0)
    (tmp_path / "scorer").mkdir()
    assert json.loads((saved(scorer, tmp_path / "scorer") / "config.json").read_text())["initializer_range"] == 0.01


@pytest.mark.parity
def test_transformers_scores_the_end_of_an_answer_that_is_padding_as_well(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = hub.scorer_from(small.rough(scale=0.1), seed=0).eval()
    hub.save(model, tmp_path, bos=None, stop=(2,), pad=2)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    ids = torch.tensor([[5, 6, 7, 2]])
    with torch.no_grad():
        assert theirs(ids).logits.item() == pytest.approx(model(ids)[0, -1].item(), abs=1e-5)
    with pytest.raises(ValueError, match="padding"):
        theirs(ids.repeat(2, 1))
