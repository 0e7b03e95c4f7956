"""adapter_config.json: what is not understood is refused by name, what is understood is kept; names are matched as PEFT matches them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model import hub, lora
from tinyllm.model.adapter_config import described, read_adapter, settings_of
from tinyllm.model.adapters import targets
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.transformer import CausalLM, initialise

PLAIN = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
SHAPE = ModelConfig(
    vocab_size=40,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
NAMES = [f"model.layers.{i}.{part}" for i in (0, 1, 10) for part in ("self_attn.q_proj", "mlp.up_proj")] + ["lm_head"]


def written(folder: Path, **changes: Any) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps(PLAIN | changes))
    return folder


REFUSED = {  # PEFT's key -> values that change the computation
    "peft_type": ["IA3", "TRAINABLE_TOKENS", None],
    "task_type": ["SEQ_2_SEQ_LM", "TOKEN_CLS"],
    "bias": ["all", "lora_only"],
    "lora_bias": [True],
    "init_lora_weights": ["loftq", "corda", "lora_ga", "pissa_niter_16", "mica", "new", 3],
    "use_qalora": [True],
    "arrow_config": [{"top_k": 2}],
    "kasa_config": [{"beta": 1e-4}],
    "monteclora_config": [{"num_samples": 4}],
    "velora_config": [{"rank": 2}],
    "alora_invocation_tokens": [[1, 2]],
    "megatron_config": [{"a": 1}],
    "target_parameters": [["mlp.experts.gate_up_proj"]],
    "layer_replication": [[[0, 4], [2, 5]]],
    "use_bdlora": [{"nblocks": 2}],
    "use_something_new": [True, "fast", [1], {"a": 1}, 0.5],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in REFUSED.items() for value in values])
def test_what_changes_the_computation_is_refused_by_name(key: str, value: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_adapter(written(tmp_path, **{key: value}))
    assert caught.value.code == USAGE
    assert caught.value.fix
    assert key in caught.value.what or str(value) in caught.value.what or "LoRA" in caught.value.what
    assert "\n" not in caught.value.what


def test_every_entry_that_peft_writes_for_a_plain_adapter_is_read(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")
    entries = peft.LoraConfig(**{k: v for k, v in PLAIN.items() if k != "peft_type"}).to_dict()
    assert len(entries) > 35
    found = settings_of(json.loads(json.dumps(entries, default=list)), tmp_path)
    assert found == LoRAConfig(r=4, alpha=8, targets=("q_proj",))


BAD = {
    "a rank of a pattern": {"rank_pattern": {"q_proj": 0}},
    "a rank that is text": {"rank_pattern": {"q_proj": "2"}},
    "patterns that are a list": {"alpha_pattern": [1]},
    "a negative block": {"layers_to_transform": [-1]},
    "blocks of a pattern": {"layers_to_transform": [1], "target_modules": ".*q_proj"},
    "a row twice": {"trainable_token_indices": [3, 3]},
    "rows and the whole": {"trainable_token_indices": [3], "modules_to_save": ["embed_tokens"]},
}


@pytest.mark.parametrize("name", BAD)
def test_settings_that_contradict_each_other_are_a_damaged_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        read_adapter(written(tmp_path, **BAD[name]))
    assert caught.value.code == INTEGRITY


UNFIT = {
    "no module": {"target_modules": ["w_proj"]},
    "no module of a pattern": {"target_modules": "q_proj|k_proj"},
    "no pattern": {"target_modules": "(q_proj"},
    "a pattern without end": {"target_modules": r"(\w+[.]?)+X"},
    "an exclusion without end": {"exclude_modules": r"(\w+[.]?)+X"},
    "a rank pattern without end": {"rank_pattern": {r"(\w+[.]?)+X": 2}},
    "a norm": {"target_modules": ["norm"]},
    "an unknown whole module": {"modules_to_save": ["v_head"]},
    "a row beyond the vocabulary": {"trainable_token_indices": [40]},
    "rows of no embedding": {"trainable_token_indices": {"q_proj": [1]}},
    "a rank above the matrix": {"init_lora_weights": "pissa", "r": 33},
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_adapter_that_does_not_fit_is_refused_before_anything_is_changed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinyllm.io.patterns.SECONDS", 0.2)
    model = CausalLM(SHAPE)
    initialise(model, 0)
    before = dict(model.named_modules())
    lora.save(lora.attach(CausalLM(SHAPE), LoRAConfig(r=4, targets=("q_proj",))), LoRAConfig(r=4), tmp_path, "x")
    with pytest.raises(UserError) as caught:
        lora.load(model, written(tmp_path, **UNFIT[name]))
    assert caught.value.code == INTEGRITY
    assert caught.value.where.startswith(str(tmp_path))
    assert dict(model.named_modules()) == before
    assert all(p.requires_grad for p in model.parameters())


def test_what_a_user_mistypes_is_refused_though_peft_s_files_may_name_other_models() -> None:
    model = CausalLM(SHAPE)
    for config in (LoRAConfig(targets=("q_proj", "c_attn")), LoRAConfig(rank_pattern={"c_attn": 2})):
        with pytest.raises(UserError, match="c_attn") as caught:
            lora.attach(model, config)
        assert caught.value.code == USAGE


def test_dropout_on_a_head_is_refused_in_training() -> None:
    with pytest.raises(UserError, match="dropout"):
        lora.attach(CausalLM(SHAPE), LoRAConfig(targets=("lm_head",), dropout=0.1))


@pytest.mark.parametrize(
    "config",
    [
        LoRAConfig(targets=".*q_proj"),
        LoRAConfig(targets=("all-linear",), exclude=("q_proj",)),
        LoRAConfig(layers=(1, 0), layers_pattern=("layers",)),
        LoRAConfig(rank_pattern={"q_proj": 2}, alpha_pattern={"k_proj": 3.5}, rslora=True),
        LoRAConfig(modules_to_save=("norm",), token_rows=(3, 1)),
        LoRAConfig(token_rows={"lm_head": (1,)}, init="gaussian"),
        LoRAConfig(targets=("embed_tokens",), tied=True, init="olora"),
    ],
    ids=lambda config: str(config.model_dump(exclude_defaults=True)),
)
def test_settings_survive_the_file(config: LoRAConfig, tmp_path: Path) -> None:
    model = lora.attach(CausalLM(SHAPE), config)
    lora.save(model, config, tmp_path, "x")
    found, _ = read_adapter(tmp_path)
    again = described(found, layers=lora.adapted(model), base="x", tied=True)
    assert again == json.loads((tmp_path / "adapter_config.json").read_text())
    lora.restore(model, config, tmp_path)
    with pytest.raises(UserError, match="other settings"):
        lora.restore(model, config.model_copy(update={"alpha": 1.0}), tmp_path)


# --- names -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({"targets": ("q_proj",)}, [".*q_proj"]),
        ({"targets": ("proj",)}, []),
        ({"targets": ("model.layers.1.mlp.up_proj",)}, [r".*\.1\.mlp.*"]),
        ({"targets": ("1.mlp.up_proj",)}, [r".*\.1\.mlp.*"]),
        ({"targets": ("layers.0.self_attn.q_proj", "up_proj")}, [r".*\.0\.self.*", ".*up_proj"]),
        ({"targets": "q_proj"}, []),
        ({"targets": r".*\.1\..*"}, [r".*\.1\..*"]),
        ({"targets": ("q_proj", "up_proj"), "layers": (1,)}, [r".*\.1\..*"]),
        ({"targets": ("model.layers.0.mlp.up_proj", "q_proj"), "layers": (1,)}, [r".*\.0\.mlp.*", r".*\.1\.self.*"]),
        ({"targets": ("q_proj",), "layers": (1,), "layers_pattern": ("h",)}, []),
        ({"targets": ("all-linear",)}, [r".*_proj"]),
        ({"targets": "ALL-linear", "exclude": r".*\.10\..*"}, [r".*\.[01]\..*"]),
        ({"targets": ("q_proj", "up_proj"), "exclude": ("up_proj",)}, [".*q_proj"]),
        ({"targets": ("q_proj", "up_proj"), "exclude": ("proj",)}, [".*_proj"]),
        ({"targets": ("q_proj", "up_proj"), "modules_to_save": ("mlp",)}, [".*q_proj"]),
        ({"targets": ("lm_head",)}, ["lm_head"]),
    ],
)
def test_targets_are_those_of_peft(settings: dict[str, Any], want: list[str]) -> None:
    found = list(targets.selected(LoRAConfig(**settings), NAMES, NAMES))
    assert found == [name for name in NAMES if any(re.fullmatch(pattern, name) for pattern in want)]


@pytest.mark.parametrize(
    ("pattern", "ranks"),
    [
        ({"q_proj": 2}, {"q_proj": 2, "up_proj": 8}),
        ({"proj": 2}, {"q_proj": 8, "up_proj": 8}),
        ({".*proj": 2, "q_proj": 3}, {"q_proj": 2, "up_proj": 2}),
        ({"q_proj": 3, ".*proj": 2}, {"q_proj": 3, "up_proj": 2}),
        ({"^model.layers.0.mlp.up_proj": 2}, {"q_proj": 8, "up_proj": 2}),
        ({"layers.0.self_attn.q_proj": 4}, {"q_proj": 4, "up_proj": 8}),
        ({"^up_proj": 2}, {"q_proj": 8, "up_proj": 8}),
    ],
)
def test_the_first_pattern_that_matches_the_end_of_a_name_counts(
    pattern: dict[str, int], ranks: dict[str, int]
) -> None:
    config = LoRAConfig(r=8, alpha=4, targets=("q_proj", "up_proj"), rank_pattern=pattern)
    found = targets.selected(config, NAMES[:2], NAMES[:2])
    assert {targets.leaf(name): settings.r for name, settings in found.items()} == ranks
    config = LoRAConfig(
        r=8, alpha=8, targets=("q_proj", "up_proj"), alpha_pattern={k: float(v) for k, v in pattern.items()}
    )
    found = targets.selected(config, NAMES[:2], NAMES[:2])
    assert {targets.leaf(name): settings.scaling * 8 for name, settings in found.items()} == ranks


def test_default_targets_are_all_linear_layers_where_a_model_names_them_differently(tmp_path: Path) -> None:
    shape = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 1}
    config = ModelConfig(model_type="gpt2", num_attention_heads=4, num_key_value_heads=4, head_dim=8, **shape)
    model = lora.attach(CausalLM(config), LoRAConfig(r=2))
    assert len(lora.layers(model)) == 4
    lora.save(model, LoRAConfig(r=2), tmp_path, "x")
    entries = json.loads((tmp_path / "adapter_config.json").read_text())
    assert entries["target_modules"] == ["c_attn", "c_fc", "c_proj"]
    assert entries["fan_in_fan_out"] is True
    again = CausalLM(config)
    lora.load(again, tmp_path)
    lora.restore(model, LoRAConfig(r=2), tmp_path)
    assert lora.branches(again).keys() == lora.branches(model).keys()


# --- the base in another dtype ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"dora": True}, {"init": "pissa"}, {"targets": ("embed_tokens", "lm_head")}])
def test_a_frozen_base_in_bf16_keeps_master_weights_of_the_adapter_in_fp32(settings: dict[str, Any]) -> None:
    model = CausalLM(SHAPE.model_copy(update={"tie_word_embeddings": False}))
    initialise(model, 0)
    model.bfloat16()
    ids, mask = torch.tensor([[3, 1, 4, 1, 5]]), torch.tensor([[False, True, True, True, True]])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        base = model.log_probs(ids, mask)
    model = lora.attach(model, LoRAConfig(r=2, modules_to_save=("q_norm",), **settings))
    trained = [p for p in model.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}
    with torch.autocast("cpu", torch.bfloat16):
        loss = -model.log_probs(ids, mask).sum()
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in trained)
    assert loss.item() == pytest.approx(4 * 3.7, rel=0.1)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for tensor in lora.branches(model).values():
            tensor.add_(0.3)
        assert not torch.allclose(model.log_probs(ids, mask), base, atol=0.02)
        with lora.disabled(model):
            assert torch.equal(model.log_probs(ids, mask), base)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_is_untrained_until_something_has_moved() -> None:
    model = lora.attach(CausalLM(SHAPE), LoRAConfig(r=2, targets=("q_proj", "embed_tokens")))
    assert lora.is_untrained(model)
    with torch.no_grad():
        model.model.embed_tokens.lora_embedding_A[0, 3] = 1.0
    assert not lora.is_untrained(model)
    assert not lora.is_untrained(lora.attach(CausalLM(SHAPE), LoRAConfig(r=2, modules_to_save=("norm",))))


def test_a_merged_model_with_two_matrices_is_saved_with_two(tmp_path: Path) -> None:
    model = CausalLM(SHAPE)
    initialise(model, 0)
    lora.attach(model, LoRAConfig(r=2, targets=("embed_tokens",)))
    with torch.no_grad():
        model.model.embed_tokens.lora_embedding_A.normal_()
    lora.merge(model)
    assert not model.config.tie_word_embeddings
    hub.save(model, tmp_path, bos=None, stop=(1,), pad=0)
    again = hub.load_causal_lm(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.model.embed_tokens.weight)
