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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model.config import LoRAConfig

_PREFIX = "base_model.model."  # what PEFT puts before every name
_HEADS, _ALL_LINEAR = {"lm_head", "score"}, "all-linear"


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
    found = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    leaves = {name.rpartition(".")[2] for name in found}
    targets = leaves - _HEADS if _ALL_LINEAR in config.targets else set(config.targets)
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
                f"no linear layer is called {target!r}", where="lora.targets", fix=f"choose among {', '.join(known)}"
            )
    model.requires_grad_(False)
    for name, linear in found.items():
        parent, _, leaf = name.rpartition(".")
        if leaf in targets:
            setattr(model.get_submodule(parent), leaf, LoRALinear(linear, config, generator))
    return model


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


def save(model: nn.Module, config: LoRAConfig, folder: Path, base: str, task: str = "CAUSAL_LM") -> None:
    """Write a PEFT adapter (`adapter_config.json`, `adapter_model.safetensors`) for the base model at path `base`."""
    tensors = {_PREFIX + k: v.contiguous() for k, v in model.state_dict().items() if is_branch(k)}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
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
    (folder / "adapter_config.json").write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def read_config(folder: Path) -> tuple[LoRAConfig, str]:
    """The adapter's settings, PEFT's own files included, and the path of its base model.

    Keys that change the mathematics and that we do not implement are refused; all others are PEFT's bookkeeping.
    """
    path = folder / "adapter_config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the adapter's description cannot be read: {error}", where=str(path), code=INTEGRITY) from None
    for key in ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias"):
        if found.get(key):
            raise UserError(f"adapters with {key} cannot be loaded", where=str(path), fix="merge it with PEFT first")
    if found.get("peft_type") != "LORA" or found.get("bias", "none") != "none":
        raise UserError(
            "only LoRA adapters without biases can be loaded", where=str(path), fix="merge it with PEFT first"
        )
    targets = found["target_modules"]
    if isinstance(targets, str) and targets == _ALL_LINEAR:
        targets = [targets]
    if isinstance(targets, str):
        raise UserError("target_modules is a pattern, not a list", where=str(path), fix="list the layer names")
    config = LoRAConfig(
        r=found["r"],
        alpha=float(found["lora_alpha"]),
        dropout=float(found.get("lora_dropout", 0.0)),
        targets=tuple(sorted(targets)),
        rslora=bool(found.get("use_rslora", False)),
        dora=bool(found.get("use_dora", False)),
    )
    return config, found.get("base_model_name_or_path") or ""


def load(model: nn.Module, folder: Path) -> LoRAConfig:
    """Attach the adapter in `folder` to `model`; every tensor must find its place."""
    config, _ = read_config(folder)
    attach(model, config)
    path = folder / "adapter_model.safetensors"
    try:
        tensors = {k.removeprefix(_PREFIX): v for k, v in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"the adapter's weights cannot be read: {error}", where=str(path), code=INTEGRITY) from None
    wanted = {k: v.shape for k, v in model.state_dict().items() if is_branch(k)}
    if wanted != (there := {k: v.shape for k, v in tensors.items()}):
        names = sorted(k for k in wanted.keys() | there.keys() if wanted.get(k) != there.get(k))
        raise UserError(
            f"the adapter does not fit this model: {names[0]} and {len(names) - 1} more",
            where=str(folder),
            code=INTEGRITY,
        )
    model.load_state_dict(tensors, strict=False)
    return config
