"""Which modules an adapter changes, and with which rank and strength: PEFT's rules, on the names of the modules. Free of torch.

- A list of targets names modules by their full name or its end (`q_proj`, `layers.3.mlp.up_proj`); a string is a regular expression
  for the whole name. `all-linear` is every linear layer except the head.
- `layers` limits a list, but not the full names in it, to blocks of these numbers.
- What is excluded, or trained whole (`modules_to_save`), is not adapted.
- The keys of `rank_pattern` and `alpha_pattern` are regular expressions for the end of a name; the first that matches counts.

Source: `check_target_module_exists` and `get_pattern_key` of PEFT 0.21.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from tinyllm.io import patterns
from tinyllm.model.config import LoRAConfig

ALL_LINEAR = "all-linear"
HEADS = ("lm_head", "score")
_PLAIN = re.compile(r"[\w.-]*")
_BLOCK = re.compile(r".*?\.[^.]*\.(\d{1,9})\.")  # the first number in a name is that of the block


def leaf(name: str) -> str:
    """Return the last part of a module's name."""
    return name.rpartition(".")[2]


def selected(config: LoRAConfig, names: Sequence[str], linear: Collection[str]) -> dict[str, LoRAConfig]:
    """Return the modules that an adapter changes, with the settings of each: its own rank and strength.

    Args:
        names: all modules of the model.
        linear: those of them that are linear layers, which `all-linear` selects.

    Raises:
        ValueError: a pattern that cannot be used.
    """
    hit = _targets(config, names, linear)
    chosen = [name for name in names if name in hit and not _excluded(config, name, names)]
    ranks = _by_pattern(config.rank_pattern, chosen)
    alphas = _by_pattern(config.alpha_pattern, chosen)
    return {
        name: config.model_copy(
            update={
                "r": config.rank_pattern.get(ranks.get(name, ""), config.r),
                "alpha": config.alpha_pattern.get(alphas.get(name, ""), config.alpha),
            }
        )
        for name in chosen
    }


def unmatched(config: LoRAConfig, names: Sequence[str]) -> list[str]:
    """Return the targets of a list that name no module, and the patterns of ranks and strengths that match none."""
    targets = () if isinstance(config.targets, str) else config.targets
    found = [t for t in targets if t != ALL_LINEAR and not any(_ends_with(name, t) for name in names)]
    for keys in (config.rank_pattern, config.alpha_pattern):
        hit = set(_by_pattern(keys, names).values())
        found += [key for key in keys if key not in hit]
    return found


def is_saved(config: LoRAConfig, name: str) -> bool:
    """Return True for a module that is trained whole. PEFT compares the ends of names: `norm` is also `input_layernorm`."""
    return any(name.endswith(saved) for saved in config.modules_to_save)


def is_all_linear(config: LoRAConfig) -> bool:
    """Return True where the targets are all linear layers except the head."""
    targets = config.targets
    return targets.lower() == ALL_LINEAR if isinstance(targets, str) else ALL_LINEAR in targets


def _targets(config: LoRAConfig, names: Sequence[str], linear: Collection[str]) -> frozenset[str]:
    targets = config.targets
    if is_all_linear(config):
        return frozenset(name for name in linear if leaf(name) not in HEADS and _in_layers(config, name))
    if isinstance(targets, str):
        return patterns.fullmatches((targets,), tuple(names))[targets]
    whole, ends = set(targets), tuple(f".{target}" for target in targets)
    return frozenset(
        name for name in names if name in whole or (name.endswith(ends) and ends and _in_layers(config, name))
    )


def _in_layers(config: LoRAConfig, name: str) -> bool:
    if not config.layers:
        return True
    if not config.layers_pattern:
        found = _BLOCK.match(name)
    else:
        tries = (re.match(rf"(?:^|.*?\.){re.escape(part)}\.(\d{{1,9}})\.", name) for part in config.layers_pattern)
        found = next((match for match in tries if match), None)
    return found is not None and int(found[1]) in config.layers


def _excluded(config: LoRAConfig, name: str, names: Sequence[str]) -> bool:
    exclude = config.exclude
    if isinstance(exclude, str):
        if exclude and name in patterns.fullmatches((exclude,), tuple(names))[exclude]:
            return True
    elif any(_ends_with(name, part) for part in exclude):
        return True
    return any(f".{saved}." in f".{name}." for saved in config.modules_to_save)


def _ends_with(name: str, part: str) -> bool:
    return name == part or name.endswith(f".{part}")


def _by_pattern(keys: Mapping[str, float], names: Sequence[str]) -> dict[str, str]:
    """Return name -> the first key that matches it."""
    regular = {key: rf"(.*\.)?({key})" for key in keys if not _PLAIN.fullmatch(key)}
    hits = patterns.fullmatches(tuple(regular.values()), tuple(names)) if regular else {}

    def matches(key: str, name: str) -> bool:
        return name in hits[regular[key]] if key in regular else _ends_with(name, key)

    found = {name: next((key for key in keys if matches(key, name)), None) for name in names}
    return {name: key for name, key in found.items() if key is not None}
