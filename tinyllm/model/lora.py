"""LoRA (arXiv 2106.09685): the layers of a model gain a low-rank branch, in place.

y = W x + scaling * B(A(dropout(x))), scaling = alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732). The base weight keeps
its name, and the branch adds `lora_A.weight` (r, in) and `lora_B.weight` (out, r): PEFT's names without its prefix, so an adapter file
is a selection from the state dict. The reference policy of an adapted model is the same model inside `disabled(model)`.
DoRA (arXiv 2402.09353 Eq. 5) trains the norm of every weight row separately from its direction: y = m / |V| * V x, V = W + scaling B A.
|V|, the norm of each row, takes no gradient (section 4.3), and m, `lora_magnitude_vector` (out,), starts at |W|.
PiSSA and OLoRA start from factors of W, which the branch takes from the weight: W itself stays as it is (`LoRALinear.initial_A`).
An adapter may also train modules whole (`modules_to_save`), whose frozen values are kept beside them, and rows of the embedding.
Left out: several adapters at once, biases, variants whose base depends on data (`model.adapter_config` refuses them by name).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from tinyllm.config import differences
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import untrusted_files
from tinyllm.model import adapter_targets, tensors
from tinyllm.model.adapted_layers import (
    ADAPTED,
    Adapted,
    EmbeddingWithRows,
    HeadWithRows,
    LoRAEmbedding,
    LoRALinear,
    TiedHead,
)
from tinyllm.model.adapter_config import ADAPTER, CAUSAL_LM, described, settings_of, written
from tinyllm.model.adapter_config import read_adapter as read_config
from tinyllm.model.adapter_targets import HEADS, leaf
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import CausalLM

WEIGHTS = "adapter_model.safetensors"
BASE_SHA256 = "base_sha256"
_PREFIX = "base_model.model."  # PEFT's, before every tensor name
_FROZEN = "frozen_"  # before the name of a parameter that is trained whole: the buffer with its value in the base
_EMBEDDING, _HEAD = "embed_tokens", "lm_head"

Model = TypeVar("Model", bound=nn.Module)


# --- attaching -------------------------------------------------------------------------------------------------------------------


def attach(model: Model, config: LoRAConfig, seed: int = 0) -> Model:
    """Adapt every layer that `config` names, in place, freeze all other parameters, and return the model.

    Args:
        seed: for A, which is drawn at random; B is zero, so the model computes the same as before.

    Raises:
        UserError: a setting that fits nothing in the model.
    """
    if unknown := adapter_targets.unmatched(config, _names(model)):
        known = sorted({leaf(name) for name in _linear(model)} - set(HEADS))
        what = f"no linear layer is named {untrusted_files.short_repr(unknown[0])}"
        raise UserError(what, where="lora.targets", fix=f"use some of {', '.join(known)}")
    targets = _targets(model, config)
    if config.dropout and (config.tied or any(leaf(name) == _HEAD for name in targets)):
        what = "lora.dropout cannot act on an adapted head, whose logits are never formed"
        raise UserError(what, where="lora.dropout", fix="set lora.dropout to 0, or leave lm_head out of lora.targets")
    _attach(model, config, targets, torch.Generator().manual_seed(seed))
    return model


def _attach(model: nn.Module, config: LoRAConfig, targets: dict[str, LoRAConfig], generator: torch.Generator) -> None:
    model.requires_grad_(False)
    for name, settings in targets.items():
        base = model.get_submodule(name)
        assert isinstance(base, nn.Linear | nn.Embedding)
        kind = LoRALinear if isinstance(base, nn.Linear) else LoRAEmbedding
        # in the mode of what it replaces, or its dropout would act in evaluation
        model.set_submodule(name, kind(base, settings, generator).train(base.training))
    for name, rows in _rows(model, config).items():
        base = model.get_submodule(name)
        with_rows = HeadWithRows(base, rows) if isinstance(base, nn.Linear) else EmbeddingWithRows(base, rows)
        model.set_submodule(name, with_rows.train(base.training))
    if _head_follows(model, config):
        head, embedding = model.get_submodule(_HEAD), model.get_submodule(f"model.{_EMBEDDING}")
        model.set_submodule(_HEAD, TiedHead(head, embedding).train(head.training))
    _train_whole(model, config)


def _names(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _linear(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]


def _targets(model: nn.Module, config: LoRAConfig) -> dict[str, LoRAConfig]:
    """Return the layers that an adapter changes, with the settings of each.

    Raises:
        UserError: none, one that is no linear layer or embedding, or settings that contradict each other for this model.
    """
    try:
        found = adapter_targets.selected(config, _names(model), _linear(model))
    except ValueError as error:
        raise UserError(str(error), where="lora.targets", fix="use a list of names") from None
    if not found:
        known = ", ".join(sorted({leaf(name) for name in _linear(model)} - set(HEADS)))
        what = f"no linear layer is named {untrusted_files.short_repr(config.targets)}"
        raise UserError(what, where="lora.targets", fix=f"use a list of some of {known}")
    for name, settings in found.items():
        layer = model.get_submodule(name)
        if not isinstance(layer, nn.Linear | nn.Embedding):
            what = f"{name} is neither a linear layer nor an embedding"
            raise UserError(what, where="lora.targets", fix=f"remove it, or add {leaf(name)} to lora.exclude")
        largest = min(layer.weight.shape)
        if settings.init in ("pissa", "olora") and settings.r > largest:
            what = f"{settings.init} needs a rank of at most {largest} for {name}, found {settings.r}"
            raise UserError(what, where="lora.r", fix=f"set lora.r to {largest} or less")
    _check_tied(model, config, found)
    return found


def _check_tied(model: nn.Module, config: LoRAConfig, found: dict[str, LoRAConfig]) -> None:
    embedding = next((settings for name, settings in found.items() if leaf(name) == _EMBEDDING), None)
    if embedding is None:
        return
    if config.rows().get(_EMBEDDING):
        what = f"{_EMBEDDING} is in lora.targets and in lora.token_rows"
        raise UserError(what, where="lora.token_rows", fix="adapt the whole embedding, or train some of its rows")
    if config.tied and _is_tied(model):
        if embedding.dora:
            what = "DoRA on a head that shares its weight with the embedding is not supported"
            raise UserError(what, where="lora.tied", fix="leave lora.tied out")
        head = adapter_targets.selected(config.model_copy(update={"targets": (_HEAD,)}), [_HEAD], [])
        if head and head[_HEAD].scaling != embedding.scaling:
            what = f"{_EMBEDDING} and {_HEAD} share what the adapter adds, and have other strengths"
            raise UserError(what, where="lora.alpha_pattern", fix=f"leave {_HEAD} out of the patterns")


def _rows(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Return the layers of which some rows are trained, by their full names, without a head that only follows the embedding.

    Raises:
        UserError: a layer or a row that the model does not have.
    """
    found: dict[str, tuple[int, ...]] = {}
    for module, rows in config.rows().items():
        names = [n for n in _names(model) if n.endswith(module) and leaf(n) in (_EMBEDDING, _HEAD)]
        if not names and isinstance(config.token_rows, dict):
            what = f"no embedding or head is named {untrusted_files.short_repr(module)}"
            raise UserError(what, where="lora.token_rows", fix=f"use {_EMBEDDING} and {_HEAD}")
        for name in names:
            count = model.get_submodule(name).weight.shape[0]
            if max(rows) >= count:
                what = f"the model has {count} tokens, and no row {max(rows)}"
                raise UserError(what, where="lora.token_rows", fix=f"use ids below {count}")
            found[name] = rows
    ids = config.rows()
    if _is_tied(model) and ids.get(_EMBEDDING) and ids.get(_HEAD, ids[_EMBEDDING]) == ids[_EMBEDDING]:
        found.pop(_HEAD, None)
    elif config.tied and ids.get(_EMBEDDING) and ids.get(_HEAD):
        what = f"{_EMBEDDING} and {_HEAD} share their weight and train different rows"
        raise UserError(what, where="lora.token_rows", fix="give both the same ids, or leave lora.tied out")
    return found


def _is_tied(model: nn.Module) -> bool:
    return isinstance(model, CausalLM) and model.config.tie_word_embeddings


def _head_follows(model: nn.Module, config: LoRAConfig) -> bool:
    """Return whether the head applies the matrix of the adapted embedding: always for its rows, on demand for a branch, as in PEFT."""
    if not isinstance(model, CausalLM) or not _is_tied(model) or isinstance(model.lm_head, ADAPTED):
        return False
    embedding = model.model.embed_tokens
    return isinstance(embedding, EmbeddingWithRows) or (isinstance(embedding, LoRAEmbedding) and config.tied)


def _train_whole(model: nn.Module, config: LoRAConfig) -> None:
    """Make the parameters of `modules_to_save` trainable copies, and keep the frozen values beside them.

    Raises:
        UserError: a name that the model does not have.
    """
    names = [name for name in _names(model) if adapter_targets.is_saved(config, name)]
    missing = [saved for saved in config.modules_to_save if not any(name.endswith(saved) for name in names)]
    if unknown := [name for name in missing if name not in ("classifier", "score")]:  # PEFT's list for every classifier
        what = f"the model has no module {untrusted_files.short_repr(unknown[0])}"
        raise UserError(what, where="lora.modules_to_save", fix=f"use some of {_EMBEDDING}, {_HEAD}, norm")
    both = _is_tied(model) and config.tied and any(leaf(name) in (_EMBEDDING, _HEAD) for name in names)
    for owner in {id(module): module for name in names for module in model.get_submodule(name).modules()}.values():
        for key, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_buffer(f"{_FROZEN}{key}", parameter.detach(), persistent=False)
            owner.register_parameter(key, nn.Parameter(parameter.detach().float().clone()))
    if both and isinstance(model, CausalLM):
        embedding = next(leaf(name) == _EMBEDDING for name in names)
        source, other = (model.model.embed_tokens, model.lm_head) if embedding else (model.lm_head, model.model.embed_tokens)
        if f"{_FROZEN}weight" not in dict(other.named_buffers(recurse=False)):
            other.register_buffer(f"{_FROZEN}weight", other.weight.detach(), persistent=False)
        other.weight = source.weight


# --- the adapter of a model ------------------------------------------------------------------------------------------------------


def is_branch(name: str) -> bool:
    """Return True for a name in the state dict that only an adapter has."""
    return ".lora_" in name or ".token_adapter." in name


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the adapted linear layers of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


def adapted(model: nn.Module) -> dict[str, Adapted]:
    """Return all layers of a model that have a part of an adapter, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, ADAPTED)}


def _trained_whole(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return the parameters that are trained whole, by name: the module that has each, and its name there."""
    found: dict[str, tuple[nn.Module, str]] = {}
    for name, module in model.named_modules():
        for key, _ in module.named_buffers(recurse=False):
            if key.startswith(_FROZEN):
                own = key.removeprefix(_FROZEN)
                found[f"{name}.{own}"] = (module, own)
    return found


def branches(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file, under the names of the state dict."""
    whole = _trained_whole(model)
    return {name: tensor for name, tensor in model.state_dict().items() if is_branch(name) or name in whole}


def is_untrained(model: nn.Module) -> bool:
    """Return True for an adapter that changes nothing yet: every product of factors is zero, and nothing else is trained."""
    products = (m.lora_B.weight if isinstance(m, LoRALinear) else m.lora_embedding_A for m in _low_rank(model))
    return len(_low_rank(model)) == len(adapted(model)) and not _trained_whole(model) and not any(map(Tensor.any, products))


def _low_rank(model: nn.Module) -> list[LoRALinear | LoRAEmbedding]:
    return [layer for layer in adapted(model).values() if isinstance(layer, LoRALinear | LoRAEmbedding)]


@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Switch the adapter off inside the context, which leaves the base model."""
    found, whole = adapted(model).values(), _trained_whole(model).values()
    for layer in found:
        layer.enabled = False
    _swap(whole)
    try:
        yield model
    finally:
        for layer in found:
            layer.enabled = True
        _swap(whole)


def _swap(whole: Iterator[tuple[nn.Module, str]]) -> None:
    """Exchange what is trained whole with its frozen values."""
    swapped: set[int] = set()
    for module, key in whole:
        parameter, frozen = module.get_parameter(key), module.get_buffer(f"{_FROZEN}{key}")
        if id(parameter) not in swapped:
            swapped.add(id(parameter))
            trained = parameter.data
            parameter.data = frozen
            module.register_buffer(f"{_FROZEN}{key}", trained, persistent=False)


@torch.no_grad()
def merge(model: Model) -> Model:
    """Put the adapter into the weights and plain layers back, in place, and return the model, all of it trainable.

    A head and an embedding that shared their weight, and whose adapters differ, have one each afterwards.
    """
    shared = model.lm_head.weight is model.model.embed_tokens.weight if isinstance(model, CausalLM) else False
    follows = isinstance(model, CausalLM) and isinstance(model.lm_head, TiedHead)
    for name, layer in adapted(model).items():
        weight = layer.matrix()
        plain: nn.Linear | nn.Embedding
        if isinstance(layer, nn.Linear):
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.bias = layer.bias
        else:
            plain = nn.Embedding(layer.num_embeddings, layer.embedding_dim, device="meta")
        plain.weight = layer.weight
        if shared and leaf(name) in (_HEAD, _EMBEDDING):
            plain.weight = nn.Parameter(weight.clone())
        else:
            plain.weight.copy_(weight)
        model.set_submodule(name, plain.train(layer.training))
    for module, key in _trained_whole(model).values():
        delattr(module, f"{_FROZEN}{key}")
    if isinstance(model, CausalLM) and follows:
        head = nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=model.lm_head.bias is not None, device="meta")
        head.weight, head.bias = model.model.embed_tokens.weight, model.lm_head.bias
        model.lm_head = head.train(model.lm_head.training)
    if isinstance(model, CausalLM) and model.config.tie_word_embeddings:
        if model.lm_head.weight is not model.model.embed_tokens.weight:
            model.config = model.model.config = model.config.model_copy(update={"tie_word_embeddings": False})
    return model.requires_grad_(True)


# --- files -----------------------------------------------------------------------------------------------------------------------


def save(
    model: nn.Module, config: LoRAConfig, folder: Path, base: str, *, base_sha256: str = "", task: str = CAUSAL_LM
) -> None:
    """Write a PEFT adapter, `adapter_config.json` and `adapter_model.safetensors`, into an existing folder.

    Args:
        base: path of the base model, as the adapter's file will name it.
        base_sha256: hash of the base's weights (`tensors.sha256`). It is written into the metadata of the safetensors file, which PEFT
            does not read; an unknown key in adapter_config.json would make PEFT warn.
        task: PEFT's task type, CAUSAL_LM or SEQ_CLS.
    """
    metadata = {"format": "pt"} | ({BASE_SHA256: base_sha256} if base_sha256 else {})
    # copies: the library writes no two names of one memory
    content = {_PREFIX + name: tensor.clone() for name, tensor in (branches(model) | _of_tied_head(model)).items()}
    tensors.write(content, folder / WEIGHTS, metadata)
    tied = _is_tied(model)
    text = written(config, layers=adapted(model).keys(), base=base, task=task, tied=tied)
    (folder / ADAPTER).write_text(text, encoding="utf-8")


def _of_tied_head(model: nn.Module) -> dict[str, Tensor]:
    """Return what PEFT writes for a head that shares the branch of the embedding: the same factors, transposed."""
    if not isinstance(model, CausalLM) or not isinstance(model.lm_head, TiedHead):
        return {}
    embedding = model.lm_head.embedding
    if not isinstance(embedding, LoRAEmbedding):
        return {}
    a, b = embedding.lora_embedding_A.detach(), embedding.lora_embedding_B.detach()
    return {f"{_HEAD}.lora_A.weight": b.T.clone(), f"{_HEAD}.lora_B.weight": a.T.clone()}


def other_base(adapter: Path, base: str, wanted: str, there: str, fix: str) -> UserError:
    """Return the error for an adapter that was trained on other base weights (sha256 `wanted`) than those at `base` (`there`)."""
    return UserError(
        f"the adapter was trained on other weights than those in {base}: "
        f"sha256 {untrusted_files.short_repr(wanted[:12])}, found {there[:12]}",
        where=str(adapter),
        fix=fix,
        code=INTEGRITY,
    )


def load(model: nn.Module, folder: Path) -> LoRAConfig:
    """Attach the adapter in `folder` to `model`, in place, and return its settings.

    Raises:
        UserError: an adapter that cannot be read or does not fit the model (INTEGRITY), found before any tensor is allocated; an
            adapter of an unsupported kind (USAGE).
    """
    config, _ = read_config(folder)
    path = folder / WEIGHTS
    try:
        targets = _targets(model, config)
        wanted = _shapes(model, config, targets)
    except UserError as error:
        raise UserError(error.what, where=str(folder / ADAPTER), code=INTEGRITY) from None
    there = {name.removeprefix(_PREFIX): header.shape for name, header in tensors.headers([path]).items()}
    extra = _of_base(model, there, wanted, path)
    if problem := tensors.mismatch(wanted, {name: shape for name, shape in there.items() if name not in extra}):
        raise UserError(f"does not fit this model: {problem}", where=str(path), code=INTEGRITY)
    _attach(model, config, targets, torch.Generator().manual_seed(0))
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.read([path]).items()}
    with torch.no_grad():
        for name in (name for name, module in extra.items() if module):
            model.get_submodule(extra[name]).weight.copy_(found[name])
    tensors.fill(model, {name: tensor for name, tensor in found.items() if name not in extra}, branches(model), path)
    return config


def restore(model: nn.Module, config: LoRAConfig, folder: Path) -> None:
    """Load a checkpoint's adapter into a model that has an adapter attached, in place.

    Raises:
        UserError: an adapter with other settings, or one that cannot be read (INTEGRITY).
    """
    there, _ = read_config(folder)
    path = folder / ADAPTER
    here = settings_of(described(config, layers=adapted(model).keys(), base="", task=CAUSAL_LM, tied=_is_tied(model)), path)
    if different := differences(there, here):
        raise UserError(f"this is an adapter with other settings: {different}", where=str(path), code=INTEGRITY)
    weights, own = folder / WEIGHTS, branches(model)
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.read([weights]).items()}
    shapes, wanted = ({name: tuple(tensor.shape) for name, tensor in part.items()} for part in (found, own))
    extra = _of_base(model, shapes, wanted, weights)
    tensors.fill(model, {name: tensor for name, tensor in found.items() if name not in extra}, own, weights)


def _shapes(model: nn.Module, config: LoRAConfig, targets: dict[str, LoRAConfig]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `branches` will have once the adapter is attached."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, settings in targets.items():
        rows, columns = model.get_submodule(name).weight.shape
        if isinstance(model.get_submodule(name), nn.Embedding):
            shapes[f"{name}.lora_embedding_A"] = (settings.r, rows)
            shapes[f"{name}.lora_embedding_B"] = (columns, settings.r)
            magnitudes = columns
        else:
            shapes[f"{name}.lora_A.weight"] = (settings.r, columns)
            shapes[f"{name}.lora_B.weight"] = (rows, settings.r)
            magnitudes = rows
        if settings.dora:
            shapes[f"{name}.lora_magnitude_vector"] = (magnitudes,)
    for name, ids in _rows(model, config).items():
        shapes[f"{name}.token_adapter.trainable_tokens_delta"] = (len(ids), model.get_submodule(name).weight.shape[1])
    whole = [name for name in _names(model) if adapter_targets.is_saved(config, name)]
    for name in whole:
        shapes |= {f"{name}.{key}": tuple(p.shape) for key, p in model.get_submodule(name).named_parameters()}
    if _is_tied(model) and config.tied and any(leaf(name) in (_EMBEDDING, _HEAD) for name in whole):
        shapes[f"{_HEAD}.weight"] = shapes[f"model.{_EMBEDDING}.weight"] = tuple(model.get_submodule(_HEAD).weight.shape)
    return shapes


def _of_base(
    model: nn.Module, there: dict[str, tuple[int, ...]], wanted: dict[str, tuple[int, ...]], path: Path
) -> dict[str, str]:
    """Return the tensors in a file that are not the adapter's own: name -> the module whose base weight it is, or "".

    PEFT saves embedding and head of the base where they are adapted, and the factors of a head that shares the embedding's.

    Raises:
        UserError: a base weight of another shape than the model's (INTEGRITY).
    """
    found: dict[str, str] = {}
    for name in there.keys() - wanted.keys():
        owner = name.removesuffix(".weight").removesuffix(".base_layer")
        if leaf(owner) in (_EMBEDDING, _HEAD) and name.endswith(".weight") and owner in _names(model):
            shape = tuple(model.get_submodule(owner).weight.shape)
            if there[name] != shape:
                what = f"it was trained on a model with {there[name][0]} tokens, and the base has {shape[0]}"
                fix = "resize the base model's embedding to that, with the tokenizer beside the adapter, and name it with --base"
                raise UserError(what, where=str(path), fix=fix, code=INTEGRITY)
            found[name] = owner
    rank = wanted.get(f"model.{_EMBEDDING}.lora_embedding_A")
    if rank and f"{_HEAD}.lora_A.weight" not in wanted:
        tied = {f"{_HEAD}.lora_A.weight": (rank[0], -1), f"{_HEAD}.lora_B.weight": (-1, rank[0])}
        found |= {name: "" for name in tied.keys() & there.keys()}
    return found
