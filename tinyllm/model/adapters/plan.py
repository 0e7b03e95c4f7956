"""What an adapter changes in a given model: which layers, with which settings, which rows and modules. Found before anything is changed.

Free of side effects: a plan that cannot be carried out is refused while the model is as it was.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.model.adapters import targets as adapter_targets
from tinyllm.model.adapters.targets import HEADS, leaf
from tinyllm.model.architectures import ARCHITECTURES, Architecture
from tinyllm.model.config import LoRAConfig
from tinyllm.model.hf_names import to_file
from tinyllm.model.transformer import CausalLM, Loaded

EMBEDDING, HEAD = "embed_tokens", "lm_head"
_IN_EVERY_CLASSIFIER = ("classifier", "score")  # PEFT lists both, whatever the model has


class Plan(NamedTuple):
    """The parts of a model that an adapter changes, by their full names."""

    targets: dict[str, LoRAConfig]
    """layers with a low-rank branch, and the settings of each"""
    rows: dict[str, tuple[int, ...]]
    """embedding and head of which some rows are trained"""
    whole: list[str]
    """modules that are trained whole"""
    head_follows: bool
    """whether a tied head applies the adapted matrix of the embedding; otherwise that of the base"""
    tied_whole: bool
    """whether embedding and head, one of them trained whole, stay one"""


def make_plan(model: nn.Module, config: LoRAConfig) -> Plan:
    """Return what `config` changes in `model`.

    Raises:
        UserError: no layer at all, a layer or a row that the model does not have, or settings that contradict each other for it.
    """
    targets, rows, tied = _targets(model, config), _rows(model, config), is_tied(model)
    _check_tied(model, config, targets)
    whole = _whole(model, config)
    ends = {leaf(name) for name in whole}
    by_end = {leaf(name) for name in targets}
    free = tied and HEAD not in by_end | rows.keys()
    # always for its rows, on demand for a branch, as in PEFT
    follows = free and (f"model.{EMBEDDING}" in rows or (config.tied and EMBEDDING in by_end))
    plan = Plan(targets, rows, whole, follows, tied and config.tied and bool(ends & {EMBEDDING, HEAD}))
    _check_rows(model, plan)
    return plan


def fitted(model: nn.Module, config: LoRAConfig) -> LoRAConfig:
    """Return the settings with all linear layers as targets, if they are the default ones and the model names its layers differently."""
    default = LoRAConfig().targets
    known = {leaf(name) for name in _linear(model)}
    fits = config.targets != default or known.issuperset(default)
    return config if fits else config.model_copy(update={"targets": (adapter_targets.ALL_LINEAR,)})


def check_names(model: nn.Module, config: LoRAConfig) -> None:
    """Refuse a name in the settings that fits nothing: what a user mistypes. PEFT's own files may list names of other models."""
    try:
        unknown = adapter_targets.unmatched(config, list(names(model)))
    except ValueError as error:
        raise UserError(str(error), where="lora", fix="use a list of names") from None
    if unknown:
        what = f"no linear layer is named {untrusted_files.short_repr(unknown[0])}"
        raise UserError(what, where="lora.targets", fix=f"use some of {_known(model)}")


def names(model: nn.Module) -> dict[str, str]:
    """Return the modules by the names that transformers and PEFT give them: {name there: name here}."""
    return {file_name(model, name): name for name, _ in model.named_modules() if name}


def file_name(model: nn.Module, name: str) -> str:
    """Return the name of a module or a tensor in Hugging Face's files."""
    row = row_of(model)
    return to_file(name, row) if row else name


def row_of(model: nn.Module) -> Architecture | None:
    """Return the architecture of a model; None for a part of one."""
    return ARCHITECTURES[model.config.model_type] if isinstance(model, Loaded) else None


def is_tied(model: nn.Module) -> bool:
    """Return whether a model's head and embedding share their weight."""
    return isinstance(model, CausalLM) and model.config.tie_word_embeddings


def weight_of(model: nn.Module, name: str) -> Tensor:
    """Return the weight of a layer, (rows, columns)."""
    return model.get_submodule(name).get_parameter("weight")


def shapes(model: nn.Module, plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the adapter's tensors, under their names in the state dict."""
    found: dict[str, tuple[int, ...]] = {}
    for name, settings in plan.targets.items():
        rows, columns = weight_of(model, name).shape
        embedding = isinstance(model.get_submodule(name), nn.Embedding)
        if embedding:
            found[f"{name}.lora_embedding_A"] = (settings.r, rows)
            found[f"{name}.lora_embedding_B"] = (columns, settings.r)
        else:
            found[f"{name}.lora_A.weight"] = (settings.r, columns)
            found[f"{name}.lora_B.weight"] = (rows, settings.r)
        if settings.dora:
            found[f"{name}.lora_magnitude_vector"] = (columns if embedding else rows,)
    for name, ids in plan.rows.items():
        found[f"{name}.token_adapter.trainable_tokens_delta"] = (len(ids), weight_of(model, name).shape[1])
    for name in plan.whole:
        found |= {f"{name}.{key}": tuple(p.shape) for key, p in model.get_submodule(name).named_parameters()}
    if plan.tied_whole:
        found |= dict.fromkeys((f"{HEAD}.weight", f"model.{EMBEDDING}.weight"), tuple(weight_of(model, HEAD).shape))
    return found


def _linear(model: nn.Module) -> list[str]:
    """Return the linear layers of the model itself, by their names in files."""
    own = {name: module for name, module in model.named_modules() if ".lora_" not in name}
    return [file_name(model, name) for name, module in own.items() if isinstance(module, nn.Linear)]


def _known(model: nn.Module) -> str:
    return ", ".join(sorted({leaf(name) for name in _linear(model)} - set(HEADS)))


def _targets(model: nn.Module, config: LoRAConfig) -> dict[str, LoRAConfig]:
    try:
        chosen = adapter_targets.selected(config, list(known := names(model)), _linear(model))
    except ValueError as error:
        raise UserError(str(error), where="lora.targets", fix="use a list of names") from None
    found = {known[name]: settings for name, settings in chosen.items()}
    if not found:
        what = f"no linear layer is named {untrusted_files.short_repr(config.targets)}"
        raise UserError(what, where="lora.targets", fix=f"use a list of some of {_known(model)}")
    for name, settings in found.items():
        if not isinstance(model.get_submodule(name), nn.Linear | nn.Embedding):
            what = f"{name} is neither a linear layer nor an embedding"
            raise UserError(what, where="lora.targets", fix=f"remove it, or add {leaf(name)} to lora.exclude")
        largest = min(weight_of(model, name).shape)
        if settings.init in ("pissa", "olora") and settings.r > largest:
            what = f"{settings.init} needs a rank of at most {largest} for {name}, found {settings.r}"
            raise UserError(what, where="lora.r", fix=f"set lora.r to {largest} or less")
        if settings.init == "olora" and (row := row_of(model)) and row.transposed:
            what = f"olora is not defined for {row.class_name}, whose files store weights transposed"
            raise UserError(what, where="lora.init", fix="use pissa")
    return found


def _check_tied(model: nn.Module, config: LoRAConfig, found: dict[str, LoRAConfig]) -> None:
    embedding = next((settings for name, settings in found.items() if leaf(name) == EMBEDDING), None)
    if embedding is None or not config.tied or not is_tied(model):
        return
    if embedding.dora:
        what = "DoRA on a head that shares its weight with the embedding is not supported"
        raise UserError(what, where="lora.tied", fix="leave lora.tied out")
    head = adapter_targets.selected(config.model_copy(update={"targets": (HEAD,), "layers": ()}), [HEAD], [])
    if head and head[HEAD].scaling != embedding.scaling:
        what = f"{EMBEDDING} and {HEAD} share what the adapter adds, and have other strengths"
        raise UserError(what, where="lora.alpha_pattern", fix=f"leave {HEAD} out of the patterns")


def _check_rows(model: nn.Module, plan: Plan) -> None:
    """Refuse a layer of which some rows are trained, and that is adapted or trained whole as well. So does PEFT."""
    rows = {leaf(name) for name in plan.rows} | ({HEAD} if is_tied(model) and plan.rows else set())
    for where, parts in (("targets", plan.targets), ("modules_to_save", plan.whole)):
        for name in (name for name in parts if leaf(name) in rows):
            what = f"{leaf(name)} is in lora.{where} and in lora.token_rows"
            raise UserError(what, where="lora.token_rows", fix=f"leave it out of lora.{where}")


def _rows(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for module, rows in config.rows().items():
        fits = [
            name
            for theirs, name in names(model).items()
            if leaf(name) in (EMBEDDING, HEAD) and (name.endswith(module) or theirs.endswith(module))
        ]
        if not fits and isinstance(config.token_rows, dict):
            what = f"no embedding or head is named {untrusted_files.short_repr(module)}"
            raise UserError(what, where="lora.token_rows", fix=f"use {EMBEDDING} and {HEAD}")
        for name in fits:
            count = weight_of(model, name).shape[0]
            if max(rows, default=0) >= count:
                what = f"the model has {count} tokens, and no row {max(rows)}"
                raise UserError(what, where="lora.token_rows", fix=f"use ids below {count}")
            found[name] = rows
    embedding = found.get(f"model.{EMBEDDING}")
    if is_tied(model) and embedding and HEAD in found:
        if found[HEAD] == embedding:
            del found[HEAD]  # it follows the embedding
        elif config.tied:
            what = f"{EMBEDDING} and {HEAD} share their weight and train different rows"
            raise UserError(what, where="lora.token_rows", fix="give both the same ids, or leave lora.tied out")
    return found


def _whole(model: nn.Module, config: LoRAConfig) -> list[str]:
    saved = {theirs: name for theirs, name in names(model).items() if adapter_targets.is_saved(config, theirs)}
    missing = [end for end in config.modules_to_save if not any(theirs.endswith(end) for theirs in saved)]
    if unknown := [name for name in missing if name not in _IN_EVERY_CLASSIFIER]:
        what = f"the model has no module {untrusted_files.short_repr(unknown[0])}"
        raise UserError(what, where="lora.modules_to_save", fix=f"use some of {EMBEDDING}, {HEAD}, norm")
    return list(saved.values())
