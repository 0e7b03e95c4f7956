"""Whole checkpoints in Hugging Face's layout: config.json, generation_config.json and model.safetensors, written and read.

What is written opens unchanged in transformers, vLLM, MLX and llama.cpp's converter, and every architecture of `model.architectures`
that transformers wrote opens here. Files are not trusted: safetensors only, no code, no path outside the folder, and every tensor must
have the name and shape that config.json describes. Left out: quantized weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyllm.config import differences
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import strict_json
from tinyllm.io.special_ids import GENERATION, IDS, SpecialIds
from tinyllm.model import lora, tensors
from tinyllm.model.adapter_config import ADAPTER, SEQ_CLS, base_folder, decayed_sibling, read_adapter, read_entries
from tinyllm.model.architectures import ARCHITECTURES, Architecture
from tinyllm.model.config import ModelConfig
from tinyllm.model.hf_config import (
    CONFIG,
    COPY,
    check_shapes,
    config_entries,
    field_differences,
    read_config,
)
from tinyllm.model.hf_names import EMBEDDING, HEAD, is_transposed, to_file, translated
from tinyllm.model.transformer import CausalLM, SequenceScorer

# Entries of a config.json that was loaded which do not hold for what is written: rules of rope that were resolved, and code.
_NOT_KEPT = {
    "auto_map",
    "_name_or_path",
    "transformers_version",
    "quantization_config",
    "rope_scaling",
    "sliding_window_pattern",
}
MASTER = Path("trainer") / "weights.safetensors"  # float32 weights, beside a model.safetensors in less
START_OVER = "choose another --name, or add --no-resume to move the old run aside"
AnyModel = TypeVar("AnyModel", CausalLM, SequenceScorer)


def describe(
    model: CausalLM | SequenceScorer,
    *,
    bos: int | None,
    eos: int | None,
    pad: int | None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Return config.json as a dict. bos, eos and pad are token ids; None is written as null. `dtype` is that of the weights' file."""
    row = ARCHITECTURES[model.config.model_type]
    scorer = row.class_name if row.scorer_name is None else row.scorer_name or row.class_name
    language_model = row.lm_name or f"{row.class_name}ForCausalLM"
    name = language_model if isinstance(model, CausalLM) else f"{scorer}ForSequenceClassification"
    found: dict[str, Any] = {
        "architectures": [name],
        **config_entries(model.config),
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "torch_dtype": str(dtype).removeprefix("torch."),
        "dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }
    if isinstance(model, SequenceScorer):
        found |= {"num_labels": 1, "id2label": {"0": "reward"}, "label2id": {"reward": 0}, "problem_type": "regression"}
    others = {key: value for key, value in model.loaded_config.items() if key not in _NOT_KEPT}
    return {**found, **{key: value for key, value in others.items() if key not in found}}


def save(
    model: CausalLM | SequenceScorer,
    folder: Path,
    *,
    bos: int | None,
    stop: tuple[int, ...],
    pad: int | None,
    original: SpecialIds | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write config.json, model.safetensors and, for a language model, generation_config.json into an existing folder.

    Args:
        bos: id of the token that opens a text, None without one.
        stop: ids that end an answer. The last is `eos_token_id` in config.json, all of them are in generation_config.json.
        pad: id of the padding token, None without one.
        original: the ids and generation settings of a model from elsewhere, written in place of these as far as its files had them.
        dtype: of model.safetensors.

    Raises:
        UserError: a weight that is too large for float16 (FAILED).
    """
    config = describe(model, bos=bos, eos=stop[-1] if stop else None, pad=pad, dtype=dtype)
    generation: Mapping[str, Any] = {"bos_token_id": bos, "eos_token_id": list(stop), "pad_token_id": pad}
    if original is not None:
        ids = original.config or config
        config = {key: ids[key] if key in IDS else v for key, v in config.items() if key not in IDS or key in ids}
        generation = original.generation or generation
    if isinstance(model, SequenceScorer) and config.get("pad_token_id") in stop:
        config["pad_token_id"] = None  # transformers would score the token before an end that is padding, too
    write_json(folder / CONFIG, config)
    if isinstance(model, CausalLM):
        write_json(folder / GENERATION, generation)
    row, written = ARCHITECTURES[model.config.model_type], {}
    for name, tensor in tensors_of(model).items():
        rounded = tensors.rounded(name, tensor, dtype)
        written[to_file(name, row)] = rounded.T.contiguous() if is_transposed(name, row) else rounded
    save_file(written, folder / tensors.WEIGHTS, metadata={"format": "pt"})


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return the state dict as it is written, on the CPU: without LoRA branches, and without a head that is tied to the embedding."""
    return {k: v.detach().contiguous().cpu() for k, v in _own_state(model).items()}


def file_dtype(folder: Path, base: Path | None = None) -> torch.dtype:
    """Return the dtype of the weights in a checkpoint directory; of an adapter, that of its base model, see `load_causal_lm`."""
    if (folder / ADAPTER).is_file():
        folder = base_folder(folder, read_adapter(folder)[1], base)
    return tensors.main_dtype(tensors.files_of(folder))


def _own_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of the state dict that are written, where they are."""
    state = {k: v for k, v in model.state_dict().items() if not lora.is_branch(k)}
    if isinstance(model, CausalLM) and model.config.tie_word_embeddings:
        state.pop(HEAD)
    return state


def load_causal_lm(
    folder: Path,
    device: torch.device | str = "cpu",
    *,
    merged: bool = True,
    base: Path | None = None,
    narrow: bool = False,
) -> CausalLM:
    """Load a language model, in float32.

    Args:
        folder: a checkpoint directory, or an adapter's, which loads its base model and then the adapter.
        merged: add an adapter to the weights; otherwise it stays a branch that can be switched off.
        base: the folder of an adapter's base model, where it is not the one that the adapter names.
        narrow: keep the matrices of a half-precision file in bfloat16, for weights that will not be trained and are computed with in
            bfloat16 only. An adapter is always merged into float32: its update would be lost in the rounding.

    Raises:
        UserError: see `read_config`; weights that are damaged or do not fit config.json, or an adapter of other weights (INTEGRITY).
    """
    if (folder / ADAPTER).is_file():
        if is_scorer(folder):
            raise UserError("this is a reward model", where=str(folder), fix="name a language model")
        model = load_causal_lm(_checked_base(folder, base))
        lora.load(model, folder)
        return (lora.merge(model) if merged else model).to(device)
    config, found = read_config(folder)
    return _load_weights(CausalLM, config, found, folder, device, narrow=narrow)


def load_scorer(
    folder: Path, device: torch.device | str = "cpu", *, merged: bool = True, base: Path | None = None
) -> SequenceScorer:
    """Load a reward model from its checkpoint directory, in float32. Arguments are those of `load_causal_lm`.

    Raises:
        UserError: a checkpoint of another kind (USAGE); see also `load_causal_lm`.
    """
    if not is_scorer(folder):
        raise UserError("this is not a reward model", where=str(folder), fix="train one with `tinyllm rm`")
    if (folder / ADAPTER).is_file():
        below = _checked_base(folder, base)
        model = load_scorer(below) if is_scorer(below) else scorer_from(load_causal_lm(below), seed=0)
        lora.load_scorer(model, folder)
        return (lora.merge(model) if merged else model).to(device)
    config, found = read_config(folder)
    return _load_weights(SequenceScorer, config, found, folder, device)


def is_scorer(folder: Path) -> bool:
    """Return whether a folder holds a reward model, or the adapter of one."""
    if (folder / ADAPTER).is_file():
        return read_entries(folder).get("task_type") == SEQ_CLS
    found = read_config(folder)[1]
    classes = found.get("architectures")
    name = classes[0] if isinstance(classes, list) and classes else ""
    return str(name).endswith("ForSequenceClassification") and found.get("num_labels", 1) == 1


def restore(model: CausalLM | SequenceScorer, folder: Path) -> None:
    """Load a checkpoint's weights into a model, in place.

    Raises:
        UserError: a checkpoint of another shape or architecture, or damaged weights (INTEGRITY).
    """
    config, _ = read_config(folder)
    if different := differences(config, model.config):
        raise UserError(
            f"this is a checkpoint of another model: {different}",
            where=str(folder / CONFIG),
            fix=START_OVER,
            code=INTEGRITY,
        )
    wanted, row = _own_state(model), ARCHITECTURES[config.model_type]
    if (exact := folder / MASTER).is_file():
        tensors.copy_into(wanted, [exact], folder)
        return
    files = tensors.files_of(folder)
    names = translated(wanted, tensors.headers(files), row)
    tensors.copy_into(wanted, files, folder, names, {name for name in names if is_transposed(name, row)})


def scorer_from(policy: CausalLM, seed: int, *, copied: bool = True) -> SequenceScorer:
    """Return a reward model or critic with a language model's decoder, and a head drawn from N(0, 1/(D+1)).

    Args:
        copied: leave the language model its own decoder, and take a float32 copy without an adapter.
    """
    scorer = without_weights(SequenceScorer, policy.config)
    if copied:
        own = _own_state(policy.model)
        scorer.model.load_state_dict({k: v.detach().to(torch.float32, copy=True) for k, v in own.items()}, assign=True)
    else:
        scorer.model = policy.model
    scorer.score = nn.Linear(policy.config.hidden_size, 1, bias=False)
    scorer.to(policy.lm_head.weight.device)
    scorer.loaded_config = policy.loaded_config
    std = 1 / (policy.config.hidden_size + 1) ** 0.5
    head = torch.randn(scorer.score.weight.shape, generator=torch.Generator().manual_seed(seed)) * std
    with torch.no_grad():
        scorer.score.weight.copy_(head)
    return scorer


def _checked_base(adapter: Path, given: Path | None) -> Path:
    """Return the folder of an adapter's base model, after checking that it holds the weights the adapter was trained on."""
    base = base_folder(adapter, read_adapter(adapter)[1], given)
    wanted = tensors.metadata(adapter / lora.WEIGHTS, lora.BASE_SHA256)
    if wanted and wanted != (there := tensors.sha256(base)):  # adapters that PEFT saved do not record it
        aside = decayed_sibling(base)
        if aside.is_dir() and tensors.sha256(aside) == wanted:
            return aside
        fix = "restore that checkpoint, or train the adapter again on this one"
        raise lora.other_base(adapter, base.as_posix(), wanted, there, fix)
    return base


def frozen_copy(model: CausalLM, *, narrow: bool) -> CausalLM:
    """Return a copy of a language model without an adapter that is not trained, in evaluation mode.

    Args:
        narrow: keep matrices in bfloat16 that lose nothing by it, as those from a bfloat16 file. What is computed in bfloat16 is the same.
    """
    found = without_weights(CausalLM, model.config)
    weights: dict[str, Tensor] = {}
    for name, tensor in _own_state(model).items():
        half = tensor.to(torch.bfloat16) if narrow and tensor.ndim > 1 else tensor
        weights[name] = half if half is not tensor and torch.equal(half.to(tensor.dtype), tensor) else tensor.clone()
    _assign(found, weights)
    return found.to(model.lm_head.weight.device).eval().requires_grad_(False)


def without_weights(kind: type[AnyModel], config: ModelConfig) -> AnyModel:
    """Return a model whose weights take no memory until they are assigned."""
    with torch.device("meta"):
        return kind(config)


def _assign(model: CausalLM | SequenceScorer, weights: dict[str, Tensor]) -> None:
    """Let a model without weights have these."""
    model.load_state_dict(weights, strict=False, assign=True)
    if isinstance(model, CausalLM) and model.config.tie_word_embeddings:
        model.lm_head.weight = model.model.embed_tokens.weight


def _kept(tensor: Tensor, *, narrow: bool) -> Tensor:
    """Return a weight in the dtype in which it is kept: vectors (norms, biases) are float32 always, they take no memory."""
    half = tensor.dtype in (torch.float16, torch.bfloat16) and tensor.ndim > 1
    return tensor.to(torch.bfloat16 if narrow and half else torch.float32)


def _load_weights(
    kind: type[AnyModel],
    config: ModelConfig,
    found: dict[str, Any],
    folder: Path,
    device: torch.device | str,
    *,
    narrow: bool = False,
) -> AnyModel:
    """Return a model with the weights in `folder`. Of one tensor at a time there are two copies, if its dtype changes.

    Args:
        found: the content of config.json.
        narrow: see `load_causal_lm`.
    """
    row, files = ARCHITECTURES[config.model_type], tensors.files_of(folder)
    headers = tensors.headers(files)
    check_shapes(config, {name: header.shape for name, header in headers.items()}, folder)
    model = without_weights(kind, config)
    wanted = {name: tensor.shape for name, tensor in _own_state(model).items()}
    names = translated(wanted, headers, row)
    head = _other_head(model, names)
    shapes = {
        name: headers[theirs].shape[::-1] if is_transposed(name, row) else headers[theirs].shape
        for name, theirs in names.items()
    }
    if problem := tensors.mismatch(wanted, shapes):
        fields = field_differences(config, shapes)
        raise UserError(
            f"the weights do not fit config.json: {f'{fields}; ' if fields else ''}{problem}",
            where=str(folder),
            fix=COPY,
            code=INTEGRITY,
        )
    weights = {
        name: _kept(tensor, narrow=narrow)
        for name, tensor in _translated(files, names | ({HEAD: head} if head else {}), row)
    }
    if head and torch.equal(weights[HEAD], weights[EMBEDDING]):
        weights.pop(HEAD)
    elif head:
        model = without_weights(kind, config.model_copy(update={"tie_word_embeddings": False}))
        model.load_notes += (f"config.json says tie_word_embeddings, but {head} is another matrix: they are not tied",)
    _assign(model, weights)
    model.loaded_config = found
    return model.to(device)


def _other_head(model: nn.Module, names: dict[str, str]) -> str:
    """Remove a head that the model does not have from the tensors of its file, and return its name where it must be compared.

    As in transformers: a tied model may have both matrices in its file, or only the head; a reward model may keep that of the language
    model it was made of.

    Args:
        names: {name here: name in the file}, changed in place.
    """
    tied = isinstance(model, CausalLM) and model.config.tie_word_embeddings
    if HEAD not in names or (isinstance(model, CausalLM) and not tied):
        return ""
    head = names.pop(HEAD)
    if tied and EMBEDDING not in names:
        names[EMBEDDING] = head
        return ""
    return head if tied else ""


def _translated(files: Sequence[Path], names: dict[str, str], row: Architecture) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors of files, one at a time, under the names here, (out, in): `names` is {ours: theirs}."""
    ours = {theirs: name for name, theirs in names.items()}
    for theirs, tensor in tensors.stream(files, names=ours):
        name = ours[theirs]
        yield name, tensor.T.contiguous() if is_transposed(name, row) else tensor


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file with an indent of two, a final line break and text as it is, not escaped."""
    path.write_text(strict_json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
