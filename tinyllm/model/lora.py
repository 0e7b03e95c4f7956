"""LoRA (arXiv 2106.09685): the layers of a model gain a low-rank branch, in place.

y = W x + scaling * B(A(dropout(x))), scaling = alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732). The base weight keeps
its name, and the branch adds `lora_A.weight` (r, in) and `lora_B.weight` (out, r): PEFT's names without its prefix, so an adapter file
is a selection from the state dict. The reference policy of an adapted model is the same model inside `disabled(model)`.
DoRA (arXiv 2402.09353 Eq. 5) trains the norm of every weight row separately from its direction: y = m / |V| * V x, V = W + scaling B A.
|V|, the norm of each row, takes no gradient (section 4.3), and m, `lora_magnitude_vector` (out,), starts at |W|.
PiSSA and OLoRA start from factors of W, which the branch takes from the weight: W itself stays as it is (`LoRALinear.start_a`).
An adapter may also train modules whole (`modules_to_save`), whose frozen values are kept beside them, and rows of the embedding.
Left out: several adapters at once, biases, variants whose base depends on data (`model.adapter_config` refuses them by name).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tinyllm.config import differences
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import untrusted_files
from tinyllm.model import tensors
from tinyllm.model.adapter_config import ADAPTER, CAUSAL_LM, SEQ_CLS, described, settings_of, write
from tinyllm.model.adapter_config import read_adapter as read_config
from tinyllm.model.adapters.layers import (
    ADAPTED,
    Adapted,
    EmbeddingWithRows,
    HeadWithRows,
    LoRAEmbedding,
    LoRALinear,
    TiedHead,
)
from tinyllm.model.adapters.names import PREFIX, beside_the_adapter, from_file, in_file, of_tied_head, shapes_here
from tinyllm.model.adapters.plan import (
    EMBEDDING,
    HEAD,
    Plan,
    check_names,
    file_name,
    fitted,
    is_tied,
    make_plan,
    row_of,
    shapes,
    weight_of,
)
from tinyllm.model.adapters.targets import leaf
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import CausalLM, Linear, SequenceScorer

WEIGHTS = "adapter_model.safetensors"
SCORE = "score"
BASE_SHA256 = "base_sha256"
_FROZEN = "frozen_"  # before the name of a parameter that is trained whole: the buffer with its value in the base

Model = TypeVar("Model", bound=nn.Module)


# --- attaching -------------------------------------------------------------------------------------------------------------------


def attach(model: Model, config: LoRAConfig, seed: int = 0, *, token_rows: Sequence[int] = ()) -> Model:
    """Adapt every layer that `config` names, in place, freeze all other parameters, and return the model.

    Args:
        seed: for A, which is drawn at random; B is zero, so the model computes the same as before.
        token_rows: ids of further tokens whose rows are trained; see `with_token_rows`.

    Raises:
        UserError: a setting that fits nothing in the model.
    """
    config = with_token_rows(fitted(model, config), token_rows)
    check_names(model, config)
    plan = make_plan(model, config)
    if config.dropout and (config.tied or any(leaf(name) == HEAD for name in plan.targets)):
        what = "lora.dropout cannot act on an adapted head, whose logits are never formed"
        raise UserError(what, where="lora.dropout", fix="set lora.dropout to 0, or leave lm_head out of lora.targets")
    _attach(model, plan, torch.Generator().manual_seed(seed))
    return model


def attach_scorer(model: SequenceScorer, config: LoRAConfig, seed: int = 0) -> LoRAConfig:
    """Adapt a reward model, in place, and return its settings: the score is new, so it is trained whole, as PEFT does."""
    if SCORE not in config.modules_to_save:
        config = config.model_copy(update={"modules_to_save": (*config.modules_to_save, SCORE)})
    attach(model, config, seed)
    return config


def with_token_rows(config: LoRAConfig, ids: Sequence[int]) -> LoRAConfig:
    """Return the settings with further token rows, for tokens that were added to the vocabulary; those trained whole are left out."""
    if not ids:
        return config
    rows = {name: tuple(dict.fromkeys((*config.rows().get(name, ()), *ids))) for name in (EMBEDDING, HEAD)}
    rows = {name: found for name, found in rows.items() if name not in config.modules_to_save}
    same = len(rows) == 2 and rows[EMBEDDING] == rows[HEAD]
    return config.model_copy(update={"token_rows": rows[EMBEDDING] if same else rows})


def _attach(model: nn.Module, plan: Plan, generator: torch.Generator) -> None:
    model.requires_grad_(False)
    for name, settings in plan.targets.items():
        _replace(model, name, partial(_low_rank_layer, settings=settings, generator=generator))
    for name, rows in plan.rows.items():
        _replace(model, name, partial(_layer_with_rows, rows=rows))
    if plan.head_follows and isinstance(model, CausalLM):
        embedding = model.model.embed_tokens
        assert isinstance(embedding, LoRAEmbedding | EmbeddingWithRows)
        model.lm_head = TiedHead(model.lm_head, embedding).train(model.lm_head.training)
    _train_whole(model, plan)


def _replace(model: nn.Module, name: str, make: Callable[[nn.Module], nn.Module]) -> None:
    base = model.get_submodule(name)
    # in the mode of what it replaces, or its dropout would act in evaluation
    model.set_submodule(name, make(base).train(base.training))


def _low_rank_layer(base: nn.Module, settings: LoRAConfig, generator: torch.Generator) -> nn.Module:
    if isinstance(base, nn.Linear):
        return LoRALinear(base, settings, generator)
    assert isinstance(base, nn.Embedding)
    return LoRAEmbedding(base, settings, generator)


def _layer_with_rows(base: nn.Module, rows: tuple[int, ...]) -> nn.Module:
    if isinstance(base, nn.Linear):
        return HeadWithRows(base, rows)
    assert isinstance(base, nn.Embedding)
    return EmbeddingWithRows(base, rows)


def _train_whole(model: nn.Module, plan: Plan) -> None:
    """Make the parameters of whole modules trainable copies, and keep the frozen values beside them."""
    owners = {id(module): module for name in plan.whole for module in model.get_submodule(name).modules()}
    for owner in owners.values():
        for key, parameter in list(owner.named_parameters(recurse=False)):
            owner.register_buffer(f"{_FROZEN}{key}", parameter.detach(), persistent=False)
            owner.register_parameter(key, nn.Parameter(parameter.detach().float().clone()))
    if plan.tied_whole and isinstance(model, CausalLM):
        pair = (model.model.embed_tokens, model.lm_head)
        source, other = pair if any(leaf(name) == EMBEDDING for name in plan.whole) else pair[::-1]
        other.register_buffer(f"{_FROZEN}weight", source.get_buffer(f"{_FROZEN}weight"), persistent=False)
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
    return (
        len(_low_rank(model)) == len(adapted(model))
        and not _trained_whole(model)
        and not any(map(Tensor.any, products))
    )


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


def _swap(whole: Collection[tuple[nn.Module, str]]) -> None:
    """Exchange what is trained whole with its frozen values."""
    swapped: set[int] = set()
    for module, key in whole:
        parameter, frozen = module.get_parameter(key), module.get_buffer(f"{_FROZEN}{key}")
        if id(parameter) not in swapped:
            swapped.add(id(parameter))
            trained = parameter.data
            parameter.data = frozen
            module.register_buffer(f"{_FROZEN}{key}", trained, persistent=False)
    if swapped:
        torch.clear_autocast_cache()  # it knows a weight by its parameter, which has another value now


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
            plain = Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            plain.bias = layer.bias
        else:
            plain = nn.Embedding(layer.num_embeddings, layer.embedding_dim, device="meta")
        plain.weight = layer.weight
        if shared and leaf(name) in (HEAD, EMBEDDING):
            plain.weight = nn.Parameter(weight.clone())
        else:
            plain.weight.copy_(weight)
        model.set_submodule(name, plain.train(layer.training))
    for module, key in _trained_whole(model).values():
        delattr(module, f"{_FROZEN}{key}")
    if isinstance(model, CausalLM) and follows:
        head = nn.Linear(
            model.config.hidden_size, model.config.vocab_size, bias=model.lm_head.bias is not None, device="meta"
        )
        head.weight, head.bias = model.model.embed_tokens.weight, model.lm_head.bias
        model.lm_head = head.train(model.lm_head.training)
    if isinstance(model, CausalLM) and model.lm_head.weight is not model.model.embed_tokens.weight:
        model.config = model.model.config = model.config.model_copy(update={"tie_word_embeddings": False})
    return model.requires_grad_(True)


# --- files -----------------------------------------------------------------------------------------------------------------------


def save(model: nn.Module, config: LoRAConfig, folder: Path, base: str, *, base_sha256: str = "") -> None:
    """Write a PEFT adapter, `adapter_config.json` and `adapter_model.safetensors`, into an existing folder.

    Args:
        base: path of the base model, as the adapter's file will name it.
        base_sha256: hash of the base's weights (`tensors.sha256`). It is written into the metadata of the safetensors file, which PEFT
            does not read; an unknown key in adapter_config.json would make PEFT warn.
    """
    metadata = {"format": "pt"} | ({BASE_SHA256: base_sha256} if base_sha256 else {})
    # copies: the library writes no two names of one memory
    content = {name: tensor.clone() for name, tensor in (branches(model) | of_tied_head(model)).items()}
    tensors.write(in_file(model, content), folder / WEIGHTS, metadata)
    write(folder, _description(model, config, base))


def _description(model: nn.Module, config: LoRAConfig, base: str) -> dict[str, Any]:
    task = SEQ_CLS if isinstance(model, SequenceScorer) else CAUSAL_LM
    low_rank = [name for name, layer in adapted(model).items() if isinstance(layer, LoRALinear | LoRAEmbedding)]
    layers, row = [file_name(model, name) for name in low_rank], row_of(model)  # rows of tokens are named elsewhere
    found = described(fitted(model, config), layers=layers, base=base, task=task, tied=is_tied(model))
    return found | {"fan_in_fan_out": bool(row and row.transposed)}


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
        plan = make_plan(model, config)
    except UserError as error:
        raise UserError(error.what, where=str(folder / ADAPTER), code=INTEGRITY) from None
    wanted = shapes(model, plan)
    headers = {name: header.shape for name, header in tensors.headers([path]).items()}
    there = shapes_here(model, headers, wanted)
    extra = beside_the_adapter(model, there, wanted, str(path))
    if problem := tensors.mismatch(wanted, {name: shape for name, shape in there.items() if name not in extra}):
        raise UserError(f"does not fit this model: {problem}", where=str(path), code=INTEGRITY)
    _attach(model, plan, torch.Generator().manual_seed(0))
    found = from_file(model, tensors.read([path]), wanted)
    with torch.no_grad():
        for name, layer in extra.items():
            if layer:
                weight_of(model, layer).copy_(found[name])
    tensors.fill(model, {name: tensor for name, tensor in found.items() if name not in extra}, branches(model), path)
    return config


def load_scorer(model: SequenceScorer, folder: Path) -> LoRAConfig:
    """Attach the adapter of a reward model; see `load`. Its score is trained whole, or it would be that of `model`."""
    path = folder / WEIGHTS
    if f"{PREFIX}{SCORE}.weight" not in tensors.headers([path]):
        what = "this adapter has no trained score"
        raise UserError(what, where=str(path), fix=f"train it with {SCORE} in modules_to_save", code=INTEGRITY)
    return load(model, folder)


def restore(model: nn.Module, config: LoRAConfig, folder: Path) -> None:
    """Load a checkpoint's adapter into a model that has an adapter attached, in place.

    Raises:
        UserError: an adapter with other settings, or one that cannot be read (INTEGRITY).
    """
    there, _ = read_config(folder)
    path = folder / ADAPTER
    here = settings_of(_description(model, config, ""), path)
    if different := differences(there, here):
        raise UserError(f"this is an adapter with other settings: {different}", where=str(path), code=INTEGRITY)
    weights, own = folder / WEIGHTS, branches(model)
    found = from_file(model, tensors.read([weights]), own)
    sizes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    extra = beside_the_adapter(model, sizes, own, str(weights))
    tensors.fill(model, {name: tensor for name, tensor in found.items() if name not in extra}, own, weights)
