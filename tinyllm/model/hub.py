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
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyllm.config import differences
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import lora, tensors
from tinyllm.model.config import ModelConfig
from tinyllm.model.described import (
    ADAPTER,
    CLASSES,
    CONFIG,
    base_folder,
    check_shapes,
    field_differences,
    read_adapter,
    read_config,
)
from tinyllm.model.transformer import CausalLM, SequenceScorer

START_OVER = "choose another --name, or add --no-resume to move the old run aside"


def describe(model: CausalLM | SequenceScorer, *, bos: int | None, eos: int | None, pad: int | None) -> dict[str, Any]:
    """config.json as a dict. Old and new spellings side by side, because readers differ in which they know."""
    config = model.config
    task = "ForCausalLM" if isinstance(model, CausalLM) else "ForSequenceClassification"
    found: dict[str, Any] = {
        "architectures": [CLASSES[config.model_type] + task],
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


def load_causal_lm(folder: Path, device: torch.device | str = "cpu", *, merged: bool = True) -> CausalLM:
    """A language model from a checkpoint directory; an adapter's directory loads its base and (merged or not) the adapter."""
    if (folder / ADAPTER).is_file():
        model = load_causal_lm(_base_of(folder))
        lora.load(model, folder)
        return (lora.merge(model) if merged else model).to(device)
    config, _ = read_config(folder)
    return _loaded(CausalLM, config, folder, device)


def load_scorer(folder: Path, device: torch.device | str = "cpu") -> SequenceScorer:
    """A reward model from its checkpoint directory."""
    config, found = read_config(folder)
    kind = found.get("architectures")
    name = kind[0] if isinstance(kind, list) and kind else ""
    if not str(name).endswith("ForSequenceClassification") or found.get("num_labels", 1) != 1:
        raise UserError("this is not a reward model", where=str(folder), fix="train one with `tinyllm rm`")
    return _loaded(SequenceScorer, config, folder, device)


def restore(model: CausalLM | SequenceScorer, folder: Path) -> None:
    """Put a checkpoint's weights into a model, in place. UserError (INTEGRITY) where it is a checkpoint of another model."""
    config, _ = read_config(folder)
    if different := differences(config, model.config):
        raise UserError(
            f"a checkpoint of another model: {different}", where=str(folder / CONFIG), fix=START_OVER, code=INTEGRITY
        )
    tensors.fill(model, tensors.read(tensors.files_of(folder)), tensors_of(model), folder)


def scorer_from(policy: CausalLM, seed: int) -> SequenceScorer:
    """A reward model or critic that starts from a language model's decoder and a fresh head."""
    scorer = SequenceScorer(policy.config).to(policy.lm_head.weight.device)
    scorer.model.load_state_dict(tensors_of(policy.model))
    std = 1 / (policy.config.hidden_size + 1) ** 0.5
    fresh = torch.randn(scorer.score.weight.shape, generator=torch.Generator().manual_seed(seed)) * std
    with torch.no_grad():
        scorer.score.weight.copy_(fresh)
    return scorer


def _base_of(adapter: Path) -> Path:
    """The folder of an adapter's base model, which must hold the weights that the adapter was trained on."""
    base = base_folder(adapter, read_adapter(adapter)[1])
    wanted = tensors.note(adapter / lora.WEIGHTS, lora.BASE_SHA256)
    if wanted and wanted != (there := tensors.sha256(base)):  # PEFT's own do not record it
        fix = "restore that checkpoint, or train the adapter again on this one"
        raise lora.other_base(adapter, base.as_posix(), wanted, there, fix)
    return base


def _loaded(kind: type[nn.Module], config: ModelConfig, folder: Path, device: torch.device | str) -> Any:
    """A model with the weights in `folder`, in float32 (masters are never kept in less), and nothing that was not in the file."""
    files = tensors.files_of(folder)
    shapes = {name: seen.shape for name, seen in tensors.look(files).items()}
    check_shapes(config, shapes, folder)
    model = kind(config)
    tied = isinstance(model, CausalLM) and config.tie_word_embeddings
    if tied:
        shapes.pop("lm_head.weight", None)
    wanted = {name: tensor.shape for name, tensor in tensors_of(model).items()}
    if problem := tensors.misfits(wanted, shapes):
        fields = field_differences(config, shapes)
        raise UserError(
            f"the weights do not fit config.json: {f'{fields}; ' if fields else ''}{problem}",
            where=str(folder),
            code=INTEGRITY,
        )
    found = tensors.read(files)
    model.load_state_dict({name: found[name].float() for name in wanted}, strict=False, assign=True)
    if tied:
        model.lm_head.weight = model.model.embed_tokens.weight
    return model.to(device)


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
