"""adapter_config.json: the settings of a PEFT adapter and its base model, read and checked without torch.

Keys that change the computation and are not implemented are refused by name; all others are PEFT's bookkeeping.
"""

from __future__ import annotations

from pathlib import Path

from tinyllm.config import validate
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import hub_cache, untrusted_files
from tinyllm.model.config import LoRAConfig
from tinyllm.model.hf_config import CONFIG, COPY

ADAPTER = "adapter_config.json"
ALL_LINEAR = "all-linear"


def read_adapter(folder: Path) -> tuple[LoRAConfig, str]:
    """Return the settings of a PEFT adapter and the path of its base model.

    Keys that change the computation and are not implemented are refused; all others are PEFT's bookkeeping.

    Raises:
        UserError: an adapter of an unsupported kind (USAGE); a missing or damaged file, or a missing key (INTEGRITY).
    """
    path = folder / ADAPTER
    if not path.is_file():
        raise UserError("adapter_config.json is missing", where=str(path), fix=COPY, code=INTEGRITY)
    found = untrusted_files.read_json(path, fix=COPY)
    others = ("rank_pattern", "alpha_pattern", "fan_in_fan_out", "modules_to_save", "lora_bias")
    for key in (*others, "layer_replication", "alora_invocation_tokens"):
        if found.get(key):
            raise UserError(f"adapters with {key} cannot be loaded", where=str(path), fix="merge it with PEFT first")
    if found.get("peft_type") != "LORA" or found.get("bias", "none") != "none":
        raise UserError(
            "only LoRA adapters without biases can be loaded", where=str(path), fix="merge it with PEFT first"
        )
    targets = found.get("target_modules")
    if isinstance(targets, str) and targets != ALL_LINEAR:
        raise UserError("target_modules is a pattern, not a list", where=str(path), fix="list the layer names")
    names = {"r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "rslora": "use_rslora", "dora": "use_dora"}
    values = {ours: found[theirs] for ours, theirs in names.items() if found.get(theirs) is not None}
    values["targets"] = [targets] if isinstance(targets, str) else targets
    base = found.get("base_model_name_or_path") or ""
    missing = [names[key] for key in ("r", "alpha") if key not in values]
    if missing or not isinstance(base, str):
        what = (
            f"{missing[0]} is missing"
            if missing
            else f"base_model_name_or_path {untrusted_files.short_repr(base)} is not a path"
        )
        raise UserError(what, where=str(path), fix=COPY, code=INTEGRITY)
    config = validate(LoRAConfig, values, where=path, fix=COPY, code=INTEGRITY)
    return config.model_copy(update={"targets": tuple(sorted(config.targets))}), base


def decayed_sibling(checkpoint: Path) -> Path:
    """Return the name that a run gives this checkpoint when it is extended from before the decay of its learning rate."""
    return checkpoint.with_name(f"decayed-{checkpoint.name}")


def base_folder(adapter: Path, base: str) -> Path:
    """Return the folder of an adapter's base model.

    Args:
        adapter: the adapter's folder.
        base: absolute, or relative to the adapter, to a folder above it or to the working directory; or the name of a model of a hub
            that is in the cache.

    Raises:
        UserError: it does not exist, or is itself an adapter (INTEGRITY).
    """
    places = (adapter, *adapter.resolve().parents, Path())
    names = (base, str(decayed_sibling(Path(base)))) if Path(base).name else ()
    found = next((place / name for name in names for place in places if _is_model(place / name)), None)
    remote = hub_cache.parse(base) if found is None else None
    found = hub_cache.complete_snapshot(remote) if remote else found
    if found is None:
        what = f"the adapter's base model {untrusted_files.short_repr(base)} does not exist"
        fix = f"download it, by `tinyllm verify {remote}`" if remote else "restore that checkpoint"
        raise UserError(what, where=str(adapter), fix=fix, code=INTEGRITY)
    if (found / ADAPTER).is_file():
        what = f"the adapter's base {found} is itself an adapter"
        raise UserError(what, where=str(adapter), fix="merge that one with PEFT first", code=INTEGRITY)
    here = Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


def _is_model(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):  # not a valid file name
        return False
