"""LoRA as surgery: linear layers of a finished model gain a low-rank branch, in place (arXiv 2106.09685).

y = W x + scaling * B(A(dropout(x))), scaling = alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732). The base weight keeps
its name, the branch adds `lora_A.weight` (r, in) and `lora_B.weight` (out, r): PEFT's names less its prefixes, so an adapter file
is a selection from the state dict. The reference policy of an adapted model is the same model inside `disabled(model)`.
DoRA (arXiv 2402.09353 Eq. 5) trains the length of every output row apart from its direction: y = m / |V| * V x, V = W + scaling B A, where
|V| (the norm of each row) takes no gradient (section 4.3), and m, `lora_magnitude_vector` (out,), starts at |W|.
Left out: embeddings and heads (a tied head shares its weight), several adapters at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tinyllm import foreign
from tinyllm.config import differences
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model import tensors
from tinyllm.model.config import LoRAConfig
from tinyllm.model.described import ADAPTER, ALL_LINEAR
from tinyllm.model.described import read_adapter as read_config

WEIGHTS = "adapter_model.safetensors"
BASE_SHA256 = "base_sha256"
_PREFIX = "base_model.model."  # what PEFT puts before every name
_HEADS = {"lm_head", "score"}


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank branch. Made from an `nn.Linear` by `attach`, which shares its weight."""

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, config.r, bias=False, device=base.weight.device)
        self.lora_B = nn.Linear(config.r, base.out_features, bias=False, device=base.weight.device)
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform with a = sqrt(5), as PEFT
        first = torch.rand(config.r, base.in_features, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            self.lora_A.weight.copy_(first)
            self.lora_B.weight.zero_()
        if config.dora:
            self.lora_magnitude_vector = nn.Parameter(base.weight.detach().norm(dim=1))  # (out,)
        self.lora_dropout = nn.Dropout(config.dropout)
        self.scaling, self.dora = config.scaling, config.dora
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if not self.enabled:
            return y
        dropped = self.lora_dropout(x)
        branch = self.scaling * self.lora_B(self.lora_A(dropped))
        if not self.dora:
            return y + branch
        ratio = self.lora_magnitude_vector / self.adapted().detach().norm(dim=1)
        # PEFT's form: without dropout it is ratio * (W x + branch); with it, what is dropped keeps its untouched W x
        return y + (ratio - 1) * nn.functional.linear(dropped, self.weight) + ratio * branch

    def adapted(self) -> Tensor:
        """W + scaling B A (out, in), in the weight's own dtype, with at least fp32 for the product."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        product = self.lora_B.weight.to(wide) @ self.lora_A.weight.to(wide)
        return self.weight + (self.scaling * product).to(self.weight.dtype)


def attach(model: nn.Module, config: LoRAConfig, seed: int = 0) -> nn.Module:
    """Adapt every linear layer named in `config.targets`, freeze everything else, and return the same model.

    Raises UserError where a target matches no linear layer, or matches the head (which may be tied to the embedding).
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = _chosen(model, config)
    model.requires_grad_(False)
    for name, linear in chosen.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoRALinear(linear, config, generator))
    return model


def _chosen(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Linear]:
    """The linear layers that `config.targets` names."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    leaves = {name.rpartition(".")[2] for name in found}
    targets = leaves - _HEADS if ALL_LINEAR in config.targets else set(config.targets)
    for target in sorted(targets):
        if target in _HEADS:
            raise UserError(
                f"LoRA on {target} is not offered: it may share its weight",
                where="lora.targets",
                fix=f"remove {target}",
            )
        if target not in leaves:
            known = sorted(leaves - _HEADS)
            raise UserError(
                f"no linear layer is called {foreign.short(target)}",
                where="lora.targets",
                fix=f"choose among {', '.join(known)}",
            )
    return {name: linear for name, linear in found.items() if name.rpartition(".")[2] in targets}


def _branch_shapes(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """What `branches` will be once the adapter is attached."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, linear in _chosen(model, config).items():
        shapes[f"{name}.lora_A.weight"] = (config.r, linear.in_features)
        shapes[f"{name}.lora_B.weight"] = (linear.out_features, config.r)
        if config.dora:
            shapes[f"{name}.lora_magnitude_vector"] = (linear.out_features,)
    return shapes


def is_branch(name: str) -> bool:
    """Whether a name of the state dict belongs to an adapter."""
    return ".lora_" in name


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@contextmanager
def disabled(model: nn.Module) -> Iterator[nn.Module]:
    """The base model, for as long as the context lasts."""
    adapted = layers(model).values()
    for layer in adapted:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer in adapted:
            layer.enabled = True


@torch.no_grad()
def merge(model: nn.Module) -> nn.Module:
    """Make every branch part of its base weight, and put plain linear layers back."""
    for name, layer in layers(model).items():
        weight = layer.adapted()
        if layer.dora:
            weight *= (layer.lora_magnitude_vector / weight.norm(dim=1))[:, None]
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        plain.weight.copy_(weight)
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, plain)
    return model.requires_grad_(True)


def save(
    model: nn.Module, config: LoRAConfig, folder: Path, base: str, *, base_sha256: str = "", task: str = "CAUSAL_LM"
) -> None:
    """Write a PEFT adapter (`adapter_config.json`, `adapter_model.safetensors`) for the base model at path `base`.

    base_sha256: of the base's weights (`tensors.sha256`). It stands in the weights' own metadata, which PEFT does not read: a key of
    ours in adapter_config.json would make it warn.
    """
    notes = {"format": "pt"} | ({BASE_SHA256: base_sha256} if base_sha256 else {})
    tensors.write({_PREFIX + name: tensor for name, tensor in branches(model).items()}, folder / WEIGHTS, notes)
    description = {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": sorted({name.rpartition(".")[2] for name in layers(model)}),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / ADAPTER).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def other_base(adapter: Path, base: str, wanted: str, there: str, fix: str) -> UserError:
    """The refusal of an adapter whose file names other base weights than those it is to be put on."""
    return UserError(
        f"the adapter was trained on other weights than {base} holds: sha256 {foreign.short(wanted[:12])}, there {there[:12]}",
        where=str(adapter),
        fix=fix,
        code=INTEGRITY,
    )


def branches(model: nn.Module) -> dict[str, Tensor]:
    """What an adapter's file holds, under the state dict's names."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_branch(name)}


def load(model: nn.Module, folder: Path) -> LoRAConfig:
    """Attach the adapter in `folder` to `model`; every tensor must find its place, before anything of its size is made."""
    config, _ = read_config(folder)
    path = folder / WEIGHTS
    try:
        wanted = _branch_shapes(model, config)
    except UserError as error:
        raise UserError(f"target_modules: {error.what}", where=str(folder / ADAPTER), code=INTEGRITY) from None
    if problem := tensors.misfits(wanted, {_bare(name): seen.shape for name, seen in tensors.look([path]).items()}):
        raise UserError(f"does not fit this model: {problem}", where=str(path), code=INTEGRITY)
    attach(model, config)
    _fill(model, path)
    return config


def restore(model: nn.Module, config: LoRAConfig, folder: Path) -> None:
    """Put a checkpoint's adapter into the model that it is attached to. UserError (INTEGRITY) where it is another one."""
    there, _ = read_config(folder)
    adapted = {name.rpartition(".")[2] for name in layers(model)}
    here = config.model_copy(update={"targets": tuple(sorted(adapted))})
    if different := differences(there, here):
        raise UserError(f"another adapter: {different}", where=str(folder / ADAPTER), code=INTEGRITY)
    _fill(model, folder / WEIGHTS)


def _fill(model: nn.Module, path: Path) -> None:
    found = {_bare(name): tensor for name, tensor in tensors.read([path]).items()}
    tensors.fill(model, found, branches(model), path)


def _bare(name: str) -> str:
    return name.removeprefix(_PREFIX)
