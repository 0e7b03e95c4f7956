"""Registry of optimizers. Each file of this folder is one; its name is the value of `optim.optimizer`.

A file defines `build(model, config) -> optimizers`, which together update every trainable parameter once. With settings of its own it
also defines `Settings` (a Config), which becomes the section `optim.NAME`, and takes them as a third argument. The state of an optimizer
must be tensors in `optimizer.state[parameter]`; then it is saved and resumed without further code. Files import torch inside functions
only, so that settings are validated without it.
"""

from __future__ import annotations

import pkgutil
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

from tinyllm.config import Config

if TYPE_CHECKING:
    import torch


class ChoosesOptimizer(Protocol):
    """An `OptimConfig`; that class imports this registry."""

    @property
    def optimizer(self) -> str: ...


def names() -> list[str]:
    """Return the names of all optimizers, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def settings() -> dict[str, type[Config]]:
    """Return the settings class of every optimizer that has one, by name."""
    found = {name: vars(_module(name)).get("Settings") for name in names()}
    return {name: kind for name, kind in found.items() if kind is not None}


def build(model: torch.nn.Module, config: ChoosesOptimizer) -> list[torch.optim.Optimizer]:
    """Build the optimizers chosen by an `OptimConfig`; together they update every trainable parameter once."""
    module = _module(config.optimizer)
    own = [vars(config)[config.optimizer]] if "Settings" in vars(module) else []
    found: list[torch.optim.Optimizer] = module.build(model, config, *own)
    return found


def _module(name: str) -> ModuleType:
    return import_module(f"{__name__}.{name}")
