"""LoRA (arXiv 2106.09685): the linear layers of a model gain a low-rank branch, in place.

y = W x + scaling * B(A(dropout(x))), scaling = alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv 2312.03732). The base weight keeps
its name, and the branch adds `lora_A.weight` (r, in) and `lora_B.weight` (out, r): PEFT's names without its prefix, so an adapter file
is a selection from the state dict. The reference policy of an adapted model is the same model inside `disabled(model)`.
DoRA (arXiv 2402.09353 Eq. 5) trains the norm of every weight row separately from its direction: y = m / |V| * V x, V = W + scaling B A.
|V|, the norm of each row, takes no gradient (section 4.3), and m, `lora_magnitude_vector` (out,), starts at |W|.
Left out: embeddings and heads (a tied head shares its weight), several adapters at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from tinyllm.config import differences
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.model import tensors
from tinyllm.model.adapter_config import ADAPTER, ALL_LINEAR
from tinyllm.model.adapter_config import read_adapter as read_config
from tinyllm.model.config import LoRAConfig

WEIGHTS = "adapter_model.safetensors"
BASE_SHA256 = "base_sha256"
_PREFIX = "base_model.model."  # PEFT's, before every tensor name
_HEADS = {"lm_head", "score"}

Model = TypeVar("Model", bound=nn.Module)


class LoRALinear(nn.Linear):
    """A linear layer with a low-rank branch, made by `attach` from an `nn.Linear` with which it shares weight and bias."""

    lora_magnitude_vector: nn.Parameter  # (out,), with DoRA only

    def __init__(self, base: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__(base.in_features, base.out_features, bias=base.bias is not None)
        self.weight, self.bias = base.weight, base.bias
        self.lora_A = nn.Linear(base.in_features, config.r, bias=False, device=base.weight.device)
        self.lora_B = nn.Linear(config.r, base.out_features, bias=False, device=base.weight.device)
        bound = 1 / math.sqrt(base.in_features)  # kaiming_uniform with a = sqrt(5), as PEFT
        initial = torch.rand(config.r, base.in_features, generator=generator) * 2 * bound - bound
        with torch.no_grad():
            self.lora_A.weight.copy_(initial)
            self.lora_B.weight.zero_()
        if config.dora:
            self.lora_magnitude_vector = nn.Parameter(base.weight.detach().norm(dim=1))
        self.lora_dropout = nn.Dropout(config.dropout)
        self.scaling, self.dora = config.scaling, config.dora
        self.enabled = True

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in) to (..., out), without the branch while it is disabled."""
        y = super().forward(x)
        if not self.enabled:
            return y
        dropped = self.lora_dropout(x)
        branch = self.scaling * self.lora_B(self.lora_A(dropped))
        if not self.dora:
            return y + branch
        ratio = self.lora_magnitude_vector / self.adapted().detach().norm(dim=1)
        # PEFT's form: without dropout this is ratio * (W x + branch); with it, dropped inputs keep their unscaled W x.
        return y + (ratio - 1) * nn.functional.linear(dropped, self.weight) + ratio * branch

    def adapted(self) -> Tensor:
        """Return W + scaling B A, (out, in), in the weight's dtype; the product is computed in fp32 at least."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        product = self.lora_B.weight.to(wide) @ self.lora_A.weight.to(wide)
        return self.weight + (self.scaling * product).to(self.weight.dtype)


def attach(model: Model, config: LoRAConfig, seed: int = 0) -> Model:
    """Adapt every linear layer named in `config.targets`, in place, freeze all other parameters, and return the model.

    Args:
        seed: for A, which is drawn at random; B is zero, so the model computes the same as before.

    Raises:
        UserError: a target matches no linear layer, or the head, which may be tied to the embedding.
    """
    generator = torch.Generator().manual_seed(seed)
    targets = _target_layers(model, config)
    model.requires_grad_(False)
    for name, linear in targets.items():
        adapted = LoRALinear(linear, config, generator).train(linear.training)  # or its dropout would act in evaluation
        model.set_submodule(name, adapted)
    return model


def _target_layers(model: nn.Module, config: LoRAConfig) -> dict[str, nn.Linear]:
    """Return the linear layers that `config.targets` names."""
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    leaves = {name.rpartition(".")[2] for name in found}
    targets = leaves - _HEADS if ALL_LINEAR in config.targets else set(config.targets)
    for target in sorted(targets):
        if target in _HEADS:
            raise UserError(
                f"LoRA on {target} is not supported: it may share its weight with the embedding",
                where="lora.targets",
                fix=f"remove {target}",
            )
        if target not in leaves:
            known = sorted(leaves - _HEADS)
            raise UserError(
                f"no linear layer is named {untrusted_files.short_repr(target)}",
                where="lora.targets",
                fix=f"use some of {', '.join(known)}",
            )
    return {name: linear for name, linear in found.items() if name.rpartition(".")[2] in targets}


def _branch_shapes(model: nn.Module, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes that `branches` will have once the adapter is attached."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, linear in _target_layers(model, config).items():
        shapes[f"{name}.lora_A.weight"] = (config.r, linear.in_features)
        shapes[f"{name}.lora_B.weight"] = (linear.out_features, config.r)
        if config.dora:
            shapes[f"{name}.lora_magnitude_vector"] = (linear.out_features,)
    return shapes


def is_branch(name: str) -> bool:
    """Return True for a name in the state dict that belongs to an adapter."""
    return ".lora_" in name


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the adapted layers of a model, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoRALinear)}


@contextmanager
def disabled(model: Model) -> Iterator[Model]:
    """Switch all branches off inside the context, which leaves the base model."""
    adapted = layers(model).values()
    for layer in adapted:
        layer.enabled = False
    try:
        yield model
    finally:
        for layer in adapted:
            layer.enabled = True


@torch.no_grad()
def merge(model: Model) -> Model:
    """Add every branch to its base weight, put plain linear layers back, in place, and return the model, all of it trainable."""
    for name, layer in layers(model).items():
        weight = layer.adapted()
        if layer.dora:
            weight *= (layer.lora_magnitude_vector / weight.norm(dim=1))[:, None]
        plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight, plain.bias = layer.weight, layer.bias
        plain.weight.copy_(weight)
        model.set_submodule(name, plain)
    return model.requires_grad_(True)


def save(
    model: nn.Module, config: LoRAConfig, folder: Path, base: str, *, base_sha256: str = "", task: str = "CAUSAL_LM"
) -> None:
    """Write a PEFT adapter, `adapter_config.json` and `adapter_model.safetensors`, into an existing folder.

    Args:
        base: path of the base model, as the adapter's file will name it.
        base_sha256: hash of the base's weights (`tensors.sha256`). It is written into the metadata of the safetensors file, which PEFT
            does not read; an unknown key in adapter_config.json would make PEFT warn.
        task: PEFT's task type, CAUSAL_LM or SEQ_CLS.
    """
    metadata = {"format": "pt"} | ({BASE_SHA256: base_sha256} if base_sha256 else {})
    tensors.write({_PREFIX + name: tensor for name, tensor in branches(model).items()}, folder / WEIGHTS, metadata)
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
    (folder / ADAPTER).write_text(strict_json.dumps(description, indent=2) + "\n", encoding="utf-8")


def other_base(adapter: Path, base: str, wanted: str, there: str, fix: str) -> UserError:
    """Return the error for an adapter that was trained on other base weights (sha256 `wanted`) than those at `base` (`there`)."""
    return UserError(
        f"the adapter was trained on other weights than those in {base}: "
        f"sha256 {untrusted_files.short_repr(wanted[:12])}, found {there[:12]}",
        where=str(adapter),
        fix=fix,
        code=INTEGRITY,
    )


def branches(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of an adapter's file, under the names of the state dict."""
    return {name: tensor for name, tensor in model.state_dict().items() if is_branch(name)}


def load(model: nn.Module, folder: Path) -> LoRAConfig:
    """Attach the adapter in `folder` to `model`, in place, and return its settings.

    Raises:
        UserError: an adapter that cannot be read or does not fit the model (INTEGRITY), found before any tensor is allocated; an
            adapter of an unsupported kind (USAGE).
    """
    config, _ = read_config(folder)
    path = folder / WEIGHTS
    try:
        wanted = _branch_shapes(model, config)
    except UserError as error:
        raise UserError(f"target_modules: {error.what}", where=str(folder / ADAPTER), code=INTEGRITY) from None
    shapes = {name.removeprefix(_PREFIX): header.shape for name, header in tensors.headers([path]).items()}
    if problem := tensors.mismatch(wanted, shapes):
        raise UserError(f"does not fit this model: {problem}", where=str(path), code=INTEGRITY)
    attach(model, config)
    _load_branches(model, path)
    return config


def restore(model: nn.Module, config: LoRAConfig, folder: Path) -> None:
    """Load a checkpoint's adapter into a model that has an adapter attached, in place.

    Raises:
        UserError: an adapter with other settings, or one that cannot be read (INTEGRITY).
    """
    there, _ = read_config(folder)
    adapted = {name.rpartition(".")[2] for name in layers(model)}
    here = config.model_copy(update={"targets": tuple(sorted(adapted))})
    if different := differences(there, here):
        raise UserError(
            f"this is an adapter with other settings: {different}", where=str(folder / ADAPTER), code=INTEGRITY
        )
    _load_branches(model, folder / WEIGHTS)


def _load_branches(model: nn.Module, path: Path) -> None:
    found = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.read([path]).items()}
    tensors.fill(model, found, branches(model), path)
