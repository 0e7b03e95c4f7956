"""Hugging Face's files: config.json, generation_config.json and model.safetensors, read and written.

What is written opens unchanged in transformers, vLLM, MLX and llama.cpp's converter; what transformers wrote for a llama, qwen2 or
qwen3 model opens here. Files are trusted as little as possible: safetensors only, no code, no path outside the folder, and every
tensor must have the name and shape that the config promises. Left out: quantised weights, other architectures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model import lora
from tinyllm.model.config import ModelConfig
from tinyllm.model.transformer import CausalLM, SequenceScorer

_CLASSES = {"qwen3": "Qwen3", "llama": "Llama", "qwen2": "Qwen2"}


def describe(model: CausalLM | SequenceScorer, *, bos: int | None, eos: int | None, pad: int | None) -> dict[str, Any]:
    """config.json as a dict. Old and new spellings side by side, because readers differ in which they know."""
    config = model.config
    task = "ForCausalLM" if isinstance(model, CausalLM) else "ForSequenceClassification"
    found: dict[str, Any] = {
        "architectures": [_CLASSES[config.model_type] + task],
        **config.model_dump(),
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "hidden_act": "silu",
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": "float32",
        "dtype": "float32",
        "use_cache": True,
    }
    if isinstance(model, SequenceScorer):
        found |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    return found


def save(
    model: CausalLM | SequenceScorer, folder: Path, *, bos: int | None, stop: tuple[int, ...], pad: int | None
) -> None:
    """Write config.json, model.safetensors and (for a language model) generation_config.json into an existing folder.

    stop: ids that end an answer; the first is `eos_token_id` in config.json, all of them are in generation_config.json.
    """
    write_json(folder / "config.json", describe(model, bos=bos, eos=stop[-1] if stop else None, pad=pad))
    if isinstance(model, CausalLM):
        write_json(
            folder / "generation_config.json", {"bos_token_id": bos, "eos_token_id": list(stop), "pad_token_id": pad}
        )
    save_file(tensors_of(model), folder / "model.safetensors", metadata={"format": "pt"})


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """The state dict as it is written: without adapter branches, and without a head that is tied to the embedding."""
    state = {k: v for k, v in model.state_dict().items() if not lora.is_branch(k)}
    if isinstance(model, CausalLM) and model.config.tie_word_embeddings:
        state.pop("lm_head.weight")
    return {k: v.detach().contiguous().cpu() for k, v in state.items()}


def read_config(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    """The model's shape, and all of config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(
            "no model here: config.json is missing", where=str(folder), fix="name a checkpoint directory", code=USAGE
        )
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"not JSON: {error}", where=str(path), code=INTEGRITY) from None
    kind = found.get("model_type")
    if kind not in _CLASSES:
        raise UserError(
            f"model_type {kind!r} cannot be loaded", where=str(path), fix=f"use one of {', '.join(_CLASSES)}"
        )
    _refuse_what_we_do_not_compute(found, path)
    rope = found.get("rope_parameters") or {}
    heads = found["num_attention_heads"]
    shape = {k: found[k] for k in ModelConfig.model_fields if k in found and found[k] is not None}
    shape |= {
        "head_dim": found.get("head_dim") or found["hidden_size"] // heads,
        "num_key_value_heads": found.get("num_key_value_heads") or heads,
        "rope_theta": float(found.get("rope_theta") or rope.get("rope_theta") or 10000.0),
        # absent means false in Hugging Face's files, whatever our own default is
        "tie_word_embeddings": bool(found.get("tie_word_embeddings", False)),
    }
    return ModelConfig(**shape), found


def _refuse_what_we_do_not_compute(found: dict[str, Any], path: Path) -> None:
    """A key that changes the mathematics must not be passed over in silence."""
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    unknown = {
        "hidden_act": found.get("hidden_act", "silu") != "silu",
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default",
        "attention_bias": bool(found.get("attention_bias")) and found["model_type"] != "qwen2",
        "mlp_bias": bool(found.get("mlp_bias")),
        "use_sliding_window": bool(found.get("use_sliding_window")),
        "quantization_config": bool(found.get("quantization_config")),
    }
    for key, wrong in unknown.items():
        if wrong:
            raise UserError(
                f"{key} = {found.get(key)!r} is not supported", where=str(path), fix="convert it to plain weights"
            )


def load_causal_lm(folder: Path, device: torch.device | str = "cpu", *, merged: bool = True) -> CausalLM:
    """A language model from a checkpoint directory; an adapter's directory loads its base and (merged or not) the adapter."""
    if (folder / "adapter_config.json").is_file():
        _, base = lora.read_config(folder)
        model = load_causal_lm(_base_folder(folder, base))
        lora.load(model, folder)
        return (lora.merge(model) if merged else model).to(device)
    config, _ = read_config(folder)
    return _fill(CausalLM(config), folder, device)


def load_scorer(folder: Path, device: torch.device | str = "cpu") -> SequenceScorer:
    """A reward model from its checkpoint directory."""
    config, found = read_config(folder)
    if (
        not str((found.get("architectures") or [""])[0]).endswith("ForSequenceClassification")
        or found.get("num_labels", 1) != 1
    ):
        raise UserError("this is not a reward model", where=str(folder), fix="train one with `tinyllm rm`")
    return _fill(SequenceScorer(config), folder, device)


def scorer_from(policy: CausalLM, seed: int) -> SequenceScorer:
    """A reward model or critic that starts from a language model's decoder and a fresh head."""
    scorer = SequenceScorer(policy.config).to(policy.lm_head.weight.device)
    scorer.model.load_state_dict(tensors_of(policy.model))
    std = 1 / (policy.config.hidden_size + 1) ** 0.5
    fresh = torch.randn(scorer.score.weight.shape, generator=torch.Generator().manual_seed(seed)) * std
    with torch.no_grad():
        scorer.score.weight.copy_(fresh)
    return scorer


def _base_folder(adapter: Path, base: str) -> Path:
    """An adapter names its base by a path: absolute, or relative to where the command runs or to a folder above the adapter."""
    for place in (Path(), adapter, *adapter.resolve().parents):
        if base and (place / base / "config.json").is_file():
            return place / base
    raise UserError(
        f"the adapter's base model {base!r} is not there",
        where=str(adapter),
        fix="restore that checkpoint",
        code=INTEGRITY,
    )


def _fill(model: nn.Module, folder: Path, device: torch.device | str) -> Any:
    """Give a model its weights, in float32 (masters are never kept in less)."""
    tied = isinstance(model, CausalLM) and model.config.tie_word_embeddings
    wanted = {k: v.shape for k, v in model.state_dict().items() if not (tied and k == "lm_head.weight")}
    found = read_tensors(folder)
    if tied:
        found.pop("lm_head.weight", None)
    problems = [f"{k} is missing" for k in wanted.keys() - found.keys()]
    problems += [f"{k} is unknown" for k in found.keys() - wanted.keys()]
    problems += [
        f"{k} is {tuple(found[k].shape)}, not {tuple(wanted[k])}"
        for k in wanted.keys() & found.keys()
        if found[k].shape != wanted[k]
    ]
    if problems:
        more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise UserError(
            f"the weights do not fit config.json: {sorted(problems)[0]}{more}", where=str(folder), code=INTEGRITY
        )
    model.load_state_dict({k: v.float() for k, v in found.items()}, strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.to(device)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of model.safetensors, or of the parts that model.safetensors.index.json names."""
    index = folder / "model.safetensors.index.json"
    names = ["model.safetensors"]
    if not (folder / names[0]).exists() and index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    found: dict[str, Tensor] = {}
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"the index names {name!r}, which is not a file beside it", where=str(index), code=INTEGRITY
            )
        try:
            with safe_open(folder / name, framework="pt") as file:
                found |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - safe_open is no dict
        except (OSError, SafetensorError) as error:
            raise UserError(f"the weights cannot be read: {error}", where=str(folder / name), code=INTEGRITY) from None
    return found


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
