"""Registry entry of an algorithm, built from the attributes of its file. Neither torch nor an algorithm is imported here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from tinyllm.config import Config
from tinyllm.data.records.formats import KIND_ALIASES, DataKind
from tinyllm.errors import UserError

if TYPE_CHECKING:
    from torch import nn

    from tinyllm.data.datasets.batches import Samples, ScoredSamples
    from tinyllm.mean import Mean

Family = Literal["supervised", "reward", "offline", "online"]
_DATA: dict[Family, DataKind] = {"supervised": "conversations", "reward": "pairs", "online": "prompts"}
_OFFLINE_DATA: tuple[DataKind, ...] = ("pairs", "unpaired")


class Loss(Protocol):
    """`loss(settings, model, batch) -> (loss, metrics)`; online algorithms also take `temperature`.

    Files declare their own settings class, model and batch; which these are follows from the family, DATA and CRITIC.
    """

    def __call__(
        self, settings: Config, model: nn.Module, batch: Any, **options: float
    ) -> tuple[Mean, dict[str, Mean]]: ...


class ComputeAdvantages(Protocol):
    """`compute_advantages(settings, samples) -> (samples with advantages, metrics)`."""

    def __call__(self, settings: Config, samples: Samples) -> tuple[ScoredSamples, dict[str, Mean]]: ...


class Prepare(Protocol):
    """`prepare(settings, model, batches) -> batches`: all micro-batches of a step on this rank, before the first is trained on."""

    def __call__(self, settings: Config, model: nn.Module, batches: Sequence[Any]) -> list[Any]: ...


@dataclass(frozen=True)
class Algorithm:
    """An algorithm as stages use it."""

    name: str
    """name on the command line and of its section in a configuration: the stem of its file"""
    family: Family
    data: DataKind
    """kind of records it trains on"""
    settings: type[Config]
    loss: Loss
    compute_advantages: ComputeAdvantages | None
    """online only"""
    prepare: Prepare | None
    uses_reference: Callable[[Config], bool]
    """whether batches need log-probabilities under the reference"""
    needs_critic: bool
    """the model is an `ActorCritic`, and samples have values"""
    needs_group: bool
    """an answer's advantage is relative to the other answers to its prompt"""
    config: str | None
    """default configuration, relative to configs/; None: that of the family's default algorithm"""
    in_lifecycle: bool
    """`tinyllm lifecycle` runs it"""
    module: ModuleType


def from_module(module: ModuleType, name: str, family: Family | None, where: str) -> Algorithm:
    """Build the registry entry of an algorithm's module.

    Args:
        family: the family it must belong to; None: any.
        where: the file, for error messages.

    Raises:
        UserError: an attribute is missing or invalid, or the algorithm belongs to another family.
    """
    found = vars(module)
    found_family = _family(found, where)
    if family is not None and family != found_family:
        fix = f"use tinyllm align-{found_family}" if found_family in ("offline", "online") else "choose another file"
        raise UserError(f"FAMILY is {found_family!r}, where {family!r} is needed", where=where, fix=fix)
    _check(found, found_family, where)
    return Algorithm(
        name=name,
        family=found_family,
        data=KIND_ALIASES.get(found["DATA"], found["DATA"]) if found_family == "offline" else _DATA[found_family],
        settings=found["Settings"],
        loss=found["loss"],
        compute_advantages=found.get("compute_advantages"),
        prepare=found.get("prepare"),
        uses_reference=found.get("uses_reference", _no_reference),
        needs_critic=found.get("CRITIC", False),
        needs_group=found.get("NEEDS_GROUP", False),
        config=found.get("CONFIG"),
        in_lifecycle=found.get("IN_LIFECYCLE", False),
        module=module,
    )


def _no_reference(settings: Config) -> bool:
    return False


def _family(found: dict[str, Any], where: str) -> Family:
    known = get_args(Family)
    if found.get("FAMILY") not in known:
        what = f"FAMILY is {found['FAMILY']!r}" if "FAMILY" in found else "FAMILY is missing"
        raise UserError(what, where=where, fix=f"set FAMILY to one of {', '.join(known)}")
    return found["FAMILY"]


def _check(found: dict[str, Any], family: Family, where: str) -> None:
    """Raise a UserError for a missing or invalid attribute."""
    functions = ("loss", "compute_advantages") if family == "online" else ("loss",)
    missing = [name for name in ("Settings", *functions) if name not in found]
    if missing:
        fix = f"define {', '.join(missing)} as in docs/algorithms.md, your own algorithm"
        raise UserError(f"the {family} algorithm does not define {', '.join(missing)}", where=where, fix=fix)
    if not (isinstance(found["Settings"], type) and issubclass(found["Settings"], Config)):
        raise UserError("Settings is not a tinyllm.config.Config", where=where, fix="write class Settings(Config)")
    for name in functions:
        if not callable(found[name]):
            raise UserError(f"{name} is not a function", where=where, fix=f"write def {name}(settings, ...)")
    if family == "offline" and KIND_ALIASES.get(found.get("DATA", ""), found.get("DATA")) not in _OFFLINE_DATA:
        what = f"DATA is {found['DATA']!r}" if "DATA" in found else "DATA is missing"
        raise UserError(what, where=where, fix=f"set DATA to one of {', '.join(_OFFLINE_DATA)}")
