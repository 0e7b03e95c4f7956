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
    if (qk_norm, bias) == IMPLIED[kind]:
        assert ModelConfig(**given).qk_norm is qk_norm
    else:
        with pytest.raises(ValidationError, match=f"contradicts model_type {kind}, where it is always"):
            ModelConfig(**given)


def test_the_refusal_names_the_sources_and_the_types_that_have_the_feature() -> None:
    overrides = [("model.model_type", "llama", "--set"), ("model.qk_norm", "true", "--set")]
    with pytest.raises(UserError) as caught:
        load(PretrainConfig, overrides=overrides)
    assert caught.value.what == (
        "model: qk_norm true contradicts model_type llama, where it is always false; it needs model_type qwen3 "
        "(model.qk_norm from --set, model.model_type from --set)"
    )
    assert caught.value.fix == "change model.qk_norm"


@pytest.mark.parametrize("value", ["gpt2", "[llama]", "3"])
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
    folder = written(tmp_path, kind, attention_bias=True)
    if kind == "qwen2":
        assert read_config(folder)[0].attention_bias
    else:
        with pytest.raises(UserError, match="attention_bias = True is not supported"):
            read_config(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("auto_map", {"AutoModelForCausalLM": "modeling.Model"}),
        ("hidden_act", "gelu"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "llama3", "rope_theta": 1e4}),
        ("mlp_bias", True),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("quantization_config", {"bits": 4}),
    ],
)
@pytest.mark.parametrize("kind", IMPLIED)
def test_values_of_config_json_that_change_the_computation_are_refused(
    kind: str, key: str, value: object, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{key} = .* is not supported") as caught:
        read_config(written(tmp_path, kind, **{key: value}))
    assert caught.value.fix == f"use a {kind} checkpoint without it"


def test_values_of_config_json_that_change_nothing_are_accepted(tmp_path: Path) -> None:
    harmless = {"layer_types": ["full_attention"] * 2, "rope_scaling": {"type": "default"}, "use_sliding_window": False}
    nulls = dict.fromkeys(("auto_map", "rope_parameters", "mlp_bias", "quantization_config", "attention_bias"))
    assert read_config(written(tmp_path, "llama", **harmless, **nulls))[0] == ModelConfig(model_type="llama", **SHAPE)


@pytest.mark.parametrize("kind", IMPLIED)
@pytest.mark.parametrize("other", IMPLIED)
def test_the_tensors_of_another_architecture_are_recognized(kind: str, other: str) -> None:
    shapes = {name: tuple(t.shape) for name, t in CausalLM(ModelConfig(model_type=kind, **SHAPE)).state_dict().items()}
    said = field_differences(ModelConfig(model_type=other, **SHAPE), shapes)
    assert said == ("" if kind == other else f"model_type: weights {kind}, config.json {other}")
