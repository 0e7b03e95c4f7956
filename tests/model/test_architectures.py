"""The table of architectures: features implied by a model_type, combinations that are refused, and the config.json of each type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from tinyllm.config import dump, flatten, load
from tinyllm.config.yaml12 import write
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model.architectures import ARCHITECTURES
from tinyllm.model.config import ModelConfig
from tinyllm.model.features import FEATURES, ModelType
from tinyllm.model.hf_config import config_entries, field_differences, read_config
from tinyllm.model.rope_scaling import RopeScaling
from tinyllm.model.transformer import CausalLM
from tinyllm.stages.config import PretrainConfig

SHAPE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
IMPLIED = {"qwen3": (True, False), "llama": (False, False), "qwen2": (False, True)}  # qk_norm, attention_bias


def test_every_model_type_has_a_row_and_every_feature_a_field() -> None:
    assert tuple(ARCHITECTURES) == get_args(ModelType)
    assert set(FEATURES) <= set(ModelConfig.model_fields)
    assert ModelConfig() == ModelConfig(**vars(ARCHITECTURES["qwen3"].features))


@pytest.mark.parametrize("kind", IMPLIED)
def test_features_default_to_those_of_the_model_type(kind: str) -> None:
    config = ModelConfig(model_type=kind, **SHAPE)
    assert (config.qk_norm, config.attention_bias) == IMPLIED[kind]
    assert (config.norm, config.activation) == ("rms_norm", "silu")
    explicit = ModelConfig(model_type=kind, qk_norm=config.qk_norm, attention_bias=config.attention_bias, **SHAPE)
    assert explicit == config
    names = CausalLM(config).state_dict()
    assert ("model.layers.0.self_attn.q_norm.weight" in names) == config.qk_norm
    assert [f"model.layers.1.self_attn.{p}_proj.bias" in names for p in "qkvo"] == [config.attention_bias] * 3 + [False]


@pytest.mark.parametrize("kind", IMPLIED)
@pytest.mark.parametrize(("qk_norm", "bias"), [(a, b) for a in (False, True) for b in (False, True)])
def test_features_that_contradict_the_model_type_are_refused(kind: str, qk_norm: bool, bias: bool) -> None:
    given = {"model_type": kind, "qk_norm": qk_norm, "attention_bias": bias}
    stated = kind in ("qwen3", "llama")  # their files say whether there are biases
    if (qk_norm, bias) == IMPLIED[kind] or (stated and qk_norm == IMPLIED[kind][0]):
        found = ModelConfig(**given, **SHAPE)
        assert (found.qk_norm, found.attention_bias) == (qk_norm, bias)
        assert ("model.layers.0.self_attn.o_proj.bias" in CausalLM(found).state_dict()) == (bias and stated)
    else:
        with pytest.raises(ValidationError, match=f"contradicts model_type {kind}, where it is always"):
            ModelConfig(**given)


def test_the_refusal_names_the_sources_and_the_types_that_have_the_feature() -> None:
    overrides = [("model.model_type", "llama", "--set"), ("model.qk_norm", "true", "--set")]
    with pytest.raises(UserError) as caught:
        load(PretrainConfig, overrides=overrides)
    assert caught.value.what == (
        "model: qk_norm true contradicts model_type llama, where it is always false; it needs model_type qwen3 or gemma3_text or olmo2 "
        "(model.qk_norm from --set, model.model_type from --set)"
    )
    assert caught.value.fix == "change model.qk_norm"


@pytest.mark.parametrize("value", ["gpt_neox", "[llama]", "3"])
def test_an_unknown_model_type_is_the_only_problem_reported(value: str) -> None:
    with pytest.raises(UserError, match=r"model\.model_type: expected one of qwen3, llama, qwen2") as caught:
        load(PretrainConfig, overrides=[("model.model_type", value, "--set")])
    assert "qk_norm" not in caught.value.what


@pytest.mark.parametrize("kind", IMPLIED)
def test_a_resolved_configuration_leaves_out_what_the_model_type_implies(kind: str, tmp_path: Path) -> None:
    """So that a run of an earlier version, whose config.yaml has no features, is resumed, and not taken for another configuration."""
    resolved = load(PretrainConfig, overrides=[("model.model_type", kind, "--set")])
    assert not set(FEATURES) & set(dump(resolved.config)["model"])
    assert not {f"model.{name}" for name in FEATURES} & set(flatten(resolved.config))
    path = tmp_path / "config.yaml"
    path.write_text(resolved.to_yaml())
    assert load(PretrainConfig, files=[path]).config == resolved.config
    explicit = dump(resolved.config)
    explicit["model"] |= dict(zip(("qk_norm", "attention_bias"), IMPLIED[kind], strict=True))
    path.write_text(write(explicit))
    assert load(PretrainConfig, files=[path]).to_yaml() == resolved.to_yaml()


@pytest.mark.parametrize("kind", IMPLIED)
def test_entries_of_config_json(kind: str) -> None:
    """Key for key, in this order: readers differ in which spelling they know."""
    entries = config_entries(ModelConfig(model_type=kind, **SHAPE))
    assert list(entries.items()) == [
        ("model_type", kind),
        *SHAPE.items(),
        ("max_position_embeddings", 512),
        ("rms_norm_eps", 1e-6),
        ("rope_theta", 10000.0),
        ("tie_word_embeddings", True),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 10000.0}),
        ("hidden_act", "silu"),
        ("attention_bias", False),  # for qwen2, too: its class has the biases, and does not know the key
        ("attention_dropout", 0.0),
    ]


def written(folder: Path, kind: str, **changes: Any) -> Path:
    entries = config_entries(ModelConfig(model_type=kind, **SHAPE)) | changes
    kept = {key: value for key, value in entries.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(kept))
    return folder


@pytest.mark.parametrize("kind", IMPLIED)
def test_config_json_is_read_back(kind: str, tmp_path: Path) -> None:
    assert read_config(written(tmp_path, kind))[0] == ModelConfig(model_type=kind, **SHAPE)


def test_keys_of_config_json_that_are_missing_have_the_defaults_of_hugging_face(tmp_path: Path) -> None:
    missing = ("tie_word_embeddings", "rope_theta", "rope_parameters", "head_dim", "num_key_value_heads", "hidden_act")
    config, _ = read_config(written(tmp_path, "llama", **dict.fromkeys(missing, ...)))
    assert (config.tie_word_embeddings, config.rope_theta, config.head_dim, config.num_key_value_heads) == (
        False,
        10000.0,
        32 // 4,
        4,
    )
    newer = {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert read_config(written(tmp_path, "llama", **newer))[0].rope_theta == 5e5
    missing = {"hidden_size": ..., "vocab_size": None}
    with pytest.raises(UserError, match="vocab_size, hidden_size is missing") as caught:
        read_config(written(tmp_path, "llama", **missing))
    assert caught.value.code == INTEGRITY


@pytest.mark.parametrize("kind", IMPLIED)
def test_attention_bias_in_config_json_counts_only_where_the_class_reads_it(kind: str, tmp_path: Path) -> None:
    for said in (False, True):
        found = read_config(written(tmp_path, kind, attention_bias=said))[0]
        assert (found.attention_bias, found.output_bias) == ((True, False) if kind == "qwen2" else (said, True))
    with pytest.raises(UserError, match="attention_bias = True is not supported"):
        read_config(written(tmp_path, "mistral", attention_bias=True))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
        ("hidden_act", "mish"),
        ("hidden_act", 3),
        ("rope_scaling", {"type": "mrope", "mrope_section": [1, 1, 2]}),
        ("rope_scaling", {"type": "linear", "factor": 2.0, "mrope_section": [1, 1, 2]}),
        ("rope_parameters", [1]),
        ("rope_parameters", {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}),
        ("partial_rotary_factor", 0.5),
        ("clip_qkv", 8.0),
        ("quantization_config", {"bits": 4}),
    ],
)
@pytest.mark.parametrize("kind", ["qwen3", "llama", "qwen2", "mistral", "olmo2"])
def test_values_of_config_json_that_change_the_computation_are_refused(
    kind: str, key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{key} = .* is not supported") as caught:
        read_config(written(tmp_path, kind, **{key: value}))
    assert caught.value.fix == f"use a {kind} checkpoint without it"


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("qwen3", "mlp_bias", True),
        ("llama", "use_sliding_window", True),
        ("llama", "layer_types", ["full_attention", "sliding_attention"]),
        ("gemma2", "use_bidirectional_attention", True),
        ("gemma3_text", "attn_logit_softcapping", 50.0),
        ("gpt2", "scale_attn_by_inverse_layer_idx", True),
        ("gpt2", "scale_attn_weights", False),
        ("gpt2", "add_cross_attention", True),
    ],
)
def test_keys_that_only_other_architectures_read_are_refused(
    kind: str, key: str, value: object, tmp_path: Path
) -> None:
    shape = SHAPE | {"num_key_value_heads": 4} if kind == "gpt2" else SHAPE
    entries = config_entries(ModelConfig(model_type=kind, **shape)) | {key: value}
    (tmp_path / "config.json").write_text(json.dumps(entries))
    with pytest.raises(UserError, match=f"{key} = .* is not supported"):
        read_config(tmp_path)


def test_code_beside_a_class_that_transformers_has_is_not_needed(tmp_path: Path) -> None:
    """Phi-3's checkpoints carry code of the time before transformers knew them, which transformers does not run either."""
    own = {"architectures": ["Phi3ForCausalLM"], "auto_map": {"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}}
    assert read_config(written(tmp_path, "phi3", **own))[0] == ModelConfig(model_type="phi3", **SHAPE)
    with pytest.raises(UserError, match=r"auto_map = .* is not supported"):
        read_config(written(tmp_path, "phi3", **(own | {"architectures": ["OtherForCausalLM"]})))


@pytest.mark.parametrize("kind", get_args(ModelType))
def test_config_json_of_every_architecture_is_read_back(kind: str, tmp_path: Path) -> None:
    """With every feature that its file can state at another value than the class has by itself."""
    shape = SHAPE | {"num_key_value_heads": 4} if kind == "gpt2" else SHAPE
    row = ARCHITECTURES[kind]  # type: ignore[index]
    changed = {name: value for name, value in CHANGES.items() if name in row.keys}
    for changes in ({}, changed, *({name: changed[name]} for name in changed if name != "layer_types")):
        config = ModelConfig(model_type=kind, **shape, **changes)
        (tmp_path / "config.json").write_text(json.dumps(config_entries(config)))
        assert read_config(tmp_path)[0] == config, changes


CHANGES = {
    "activation": "relu",
    "attention_bias": True,
    "mlp_bias": True,
    "rope_scaling": RopeScaling(rope_type="linear", factor=4.0),
    "partial_rotary_factor": 0.5,
    "rope_local_base_freq": 20000.0,
    "no_rope_layers": (1, 0),
    "sliding_window": 7,
    "layer_types": ("sliding_attention", "full_attention"),
    "query_pre_attn_scalar": 20,
    "attention_multiplier": 0.3,
    "attn_logit_softcapping": 9.0,
    "final_logit_softcapping": 8.0,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.5,
    "logits_scaling": 3.0,
}


def test_every_feature_that_a_file_can_state_is_changed_above() -> None:
    assert set(CHANGES) == {name for row in ARCHITECTURES.values() for name in row.keys} & set(FEATURES)


def test_null_means_none_where_a_feature_may_be_none(tmp_path: Path) -> None:
    """Mistral's class has a window of 4096 by itself; files of later versions say null."""
    assert read_config(written(tmp_path, "mistral", sliding_window=None))[0].sliding_window is None
    assert read_config(written(tmp_path, "mistral", sliding_window=...))[0].sliding_window == 4096
    gemma = {"attn_logit_softcapping": None, "final_logit_softcapping": ...}
    found = read_config(written(tmp_path, "gemma2", **gemma))[0]
    assert (found.attn_logit_softcapping, found.final_logit_softcapping) == (None, 30.0)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": ("full_attention",)}, "layer_types names 1 layers, but num_hidden_layers is 2"),
        ({"layer_types": ("sliding_attention", "full_attention")}, "there is no sliding_window"),
        (
            {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
            "rope_type llama3 needs original_max_position_embeddings",
        ),
    ],
)
def test_layers_and_rules_that_are_incomplete_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelConfig(**SHAPE, **changes)


def test_a_shape_that_gpt2_cannot_state_is_refused() -> None:
    with pytest.raises(ValidationError, match="num_key_value_heads is 2, and gpt2 always has 4 with this width"):
        ModelConfig(model_type="gpt2", **SHAPE)


def test_values_of_config_json_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    harmless = {"layer_types": ["full_attention"] * 2, "rope_scaling": {"type": "default"}, "use_sliding_window": False}
    nulls = dict.fromkeys(("auto_map", "rope_parameters", "mlp_bias", "quantization_config", "attention_bias"))
    assert read_config(written(tmp_path, "llama", **harmless, **nulls))[0] == ModelConfig(model_type="llama", **SHAPE)
    assert read_config(written(tmp_path, "qwen3", mlp_bias=False, partial_rotary_factor=1.0))[0] == ModelConfig(**SHAPE)


@pytest.mark.parametrize("kind", IMPLIED)
@pytest.mark.parametrize("other", IMPLIED)
def test_the_tensors_of_another_architecture_are_recognized(kind: str, other: str) -> None:
    shapes = {name: tuple(t.shape) for name, t in CausalLM(ModelConfig(model_type=kind, **SHAPE)).state_dict().items()}
    said = field_differences(ModelConfig(model_type=other, **SHAPE), shapes)
    assert said == ("" if kind == other else f"model_type: weights {kind}, config.json {other}")
