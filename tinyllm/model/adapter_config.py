"""adapter_config.json: the settings of a PEFT adapter and its base model, read, checked and written without torch.

Keys that change the computation and are not implemented are refused by name, and so is a key that is not known here and says anything
but no. The others are PEFT's bookkeeping. The list of keys is that of `LoraConfig` in PEFT 0.21.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tinyllm.config import validate
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import hub_cache, strict_json, untrusted_files
from tinyllm.model.adapters.targets import ALL_LINEAR, is_all_linear, leaf
from tinyllm.model.config import LoRAConfig
from tinyllm.model.hf_config import CONFIG, COPY

ADAPTER = "adapter_config.json"
CAUSAL_LM, SEQ_CLS = "CAUSAL_LM", "SEQ_CLS"
MERGE = "merge it with PEFT first"
_KEYS = {  # field of `LoRAConfig` -> PEFT's key
    "r": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "targets": "target_modules",
    "exclude": "exclude_modules",
    "layers": "layers_to_transform",
    "layers_pattern": "layers_pattern",
    "rank_pattern": "rank_pattern",
    "alpha_pattern": "alpha_pattern",
    "modules_to_save": "modules_to_save",
    "token_rows": "trainable_token_indices",
    "tied": "ensure_weight_tying",
    "rslora": "use_rslora",
    "dora": "use_dora",
    "init": "init_lora_weights",
}
_BOOKKEEPING = {  # what does not change the computation, or only together with a key that is refused
    "peft_type",
    "task_type",
    "peft_version",
    "auto_mapping",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "fan_in_fan_out",  # how the base stores its weights; factors have one layout
    "megatron_core",
    "loftq_config",
    "corda_config",
    "eva_config",
    "lora_ga_config",
    "qalora_group_size",
    "runtime_config",
}
_UNSET: tuple[Any, ...] = (None, False, "none", "", 0)
# ways to start that leave the base as it was: the file then holds all that was trained
_STARTS = {None: "default", True: "default", False: "default", "gaussian": "gaussian"}
_STARTS |= {"orthogonal": "default", "eva": "default", "pissa": "pissa", "olora": "olora"}


def read_adapter(folder: Path) -> tuple[LoRAConfig, str]:
    """Return the settings of a PEFT adapter and the path of its base model.

    Raises:
        UserError: an adapter of an unsupported kind (USAGE); a missing or damaged file, or a missing key (INTEGRITY).
    """
    path = folder / ADAPTER
    found = read_entries(folder)
    if not isinstance(found.get("base_model_name_or_path") or "", str):
        what = f"base_model_name_or_path {untrusted_files.short_repr(found['base_model_name_or_path'])} is not a path"
        raise UserError(what, where=str(path), fix=COPY, code=INTEGRITY)
    return settings_of(found, path), hub_cache.base_of(found) or ""


def read_entries(folder: Path) -> dict[str, Any]:
    """Return adapter_config.json as it is. Raises: UserError (INTEGRITY) for a missing or damaged file."""
    path = folder / ADAPTER
    if not path.is_file():
        raise UserError("adapter_config.json is missing", where=str(path), fix=COPY, code=INTEGRITY)
    return untrusted_files.read_json(path, fix=COPY)


def settings_of(found: Mapping[str, Any], path: Path) -> LoRAConfig:
    """Return the settings that the entries of adapter_config.json state; see `read_adapter`."""
    _check_kind(found, path)
    values = {ours: found[theirs] for ours, theirs in _KEYS.items() if found.get(theirs) not in (None, [], {})}
    if missing := [_KEYS[key] for key in ("r", "alpha", "targets") if key not in values]:
        raise UserError(f"{missing[0]} is missing", where=str(path), fix=COPY, code=INTEGRITY)
    for key in ("layers", "layers_pattern"):
        if isinstance(values.get(key), int | str):
            values[key] = [values[key]]
    if isinstance(values.get("token_rows"), list):
        values["token_rows"] = {"embed_tokens": values["token_rows"]}
    values["init"] = _start(found.get("init_lora_weights"), path)
    config = validate(LoRAConfig, values, where=path, fix=COPY, code=INTEGRITY)
    if isinstance(config.targets, str):
        return config.model_copy(update={"targets": (ALL_LINEAR,)}) if is_all_linear(config) else config
    return config.model_copy(update={"targets": tuple(sorted(config.targets))})


def _check_kind(found: Mapping[str, Any], path: Path) -> None:
    kind, task = found.get("peft_type"), found.get("task_type")
    if kind != "LORA":
        what = f"only LoRA adapters can be loaded, and this is {untrusted_files.short_repr(kind)}"
        raise UserError(what, where=str(path), fix=MERGE)
    if task not in (None, CAUSAL_LM, SEQ_CLS):
        what = f"adapters for the task {untrusted_files.short_repr(task)} cannot be loaded"
        raise UserError(what, where=str(path), fix=f"use one for {CAUSAL_LM} or {SEQ_CLS}")
    known = _BOOKKEEPING | set(_KEYS.values())
    for key in (key for key, value in found.items() if key not in known and _says_something(value)):
        what = f"adapters with {untrusted_files.short_repr(key)[1:-1]} {untrusted_files.short_repr(found[key])} cannot be loaded"
        raise UserError(what, where=str(path), fix=MERGE)


def _says_something(value: Any) -> bool:
    return value not in ([], {}) and not any(value is unset or value == unset for unset in _UNSET)


def _start(value: Any, path: Path) -> str:
    key = value.lower() if isinstance(value, str) else value
    if isinstance(key, str | bool | None) and key in _STARTS:
        return _STARTS[key]
    what = f"adapters with init_lora_weights {untrusted_files.short_repr(value)} cannot be loaded: their base was changed when they began"
    fix = "save it with PEFT's save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge it with PEFT first"
    raise UserError(what, where=str(path), fix=fix)


# --- writing ---------------------------------------------------------------------------------------------------------------------


def write(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write adapter_config.json into an existing folder."""
    (folder / ADAPTER).write_text(strict_json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def described(
    config: LoRAConfig, *, layers: Collection[str], base: str, task: str = CAUSAL_LM, tied: bool
) -> dict[str, Any]:
    """Return adapter_config.json. Settings that are PEFT's defaults are left out.

    Args:
        layers: names of the adapted layers.
        base: path of the base model, or its name on a hub at a commit.
        task: PEFT's task type.
        tied: whether head and embedding of the model share their weight.
    """
    rows = config.rows()
    if rows and not isinstance(config.token_rows, dict) and (tied or task == SEQ_CLS):
        rows.pop("lm_head")
    only = rows["embed_tokens"] if rows.keys() == {"embed_tokens"} else None
    more: dict[str, Any] = {
        "exclude": config.exclude if isinstance(config.exclude, str) else list(config.exclude),
        "layers": list(config.layers),
        "layers_pattern": list(config.layers_pattern),
        "rank_pattern": config.rank_pattern,
        "alpha_pattern": config.alpha_pattern,
        "modules_to_save": list(config.modules_to_save),
        "token_rows": {k: list(v) for k, v in rows.items()} if only is None else list(only),
        "tied": config.tied,
        "init": "" if config.init == "default" else config.init,
    }
    name = hub_cache.parse(base) or hub_cache.HubName(base)
    return {
        "peft_type": "LORA",
        "task_type": task,
        "base_model_name_or_path": name.repository,
        **({"revision": name.revision} if name.revision else {}),
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": written_targets(config, layers),
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        **{_KEYS[key]: value for key, value in more.items() if value},
    }


def written_targets(config: LoRAConfig, layers: Collection[str]) -> list[str] | str:
    """Return `target_modules`: as configured, or for all-linear the names of the adapted layers."""
    if is_all_linear(config):
        return sorted({leaf(name) for name in layers})
    return config.targets if isinstance(config.targets, str) else sorted(config.targets)


# --- the base --------------------------------------------------------------------------------------------------------------------


def decayed_sibling(checkpoint: Path) -> Path:
    """Return the name that a run gives this checkpoint when it is extended from before the decay of its learning rate."""
    return checkpoint.with_name(f"decayed-{checkpoint.name}")


def base_folder(adapter: Path, base: str, given: Path | None = None) -> Path:
    """Return the folder of an adapter's base model.

    Args:
        adapter: the adapter's folder.
        base: absolute, or relative to the adapter, to a folder above it or to the working directory. The end of an absolute path is
            looked for beside the adapter first: runs may have been moved, or copied, together. Or the name of a model of a hub that
            is in the cache.
        given: where the base lies, if not there.

    Raises:
        UserError: it does not exist, or is itself an adapter (INTEGRITY).
    """
    if given is not None:
        if not _is_model(given):
            what = f"{given} holds no model"
            raise UserError(what, where="--base", fix="name the folder with the base model's config.json")
        return given
    found = next((folder for folder in _places(adapter, base) if _is_model(folder)), None)
    remote = hub_cache.parse(base) if found is None else None
    found = hub_cache.snapshot(remote) if remote else found
    if found is None or not _is_model(found):
        what = f"the adapter's base model {untrusted_files.short_repr(base)} does not exist"
        fix = f"download it, by `tinyllm verify {remote}`" if remote else "restore that checkpoint"
        fix += ", or add --base and the folder where it lies"
        raise UserError(what, where=str(adapter), fix=fix, code=INTEGRITY)
    if (found / ADAPTER).is_file():
        what = f"the adapter's base {found} is itself an adapter"
        raise UserError(what, where=str(adapter), fix="merge that one with PEFT first", code=INTEGRITY)
    here = Path.cwd()
    return found.relative_to(here) if found.is_relative_to(here) else found


_SHORTEST = 4  # parts of a path that tell a run's checkpoint from others: STAGE/RUN/checkpoints/STEP


def _places(adapter: Path, base: str) -> list[Path]:
    """Return the folders where the base may be, the likeliest first."""
    path = Path(base)
    if not path.name:
        return []
    above = adapter.resolve().parents
    parts = path.parts[1:] if path.is_absolute() else ()
    ends = [Path(*parts[start:]) for start in range(len(parts) - _SHORTEST + 1)]
    found = [place / end for place in above for end in ends]  # the nearest first
    found += [place / path for place in (adapter, *above, Path())]
    return [*found, *map(decayed_sibling, found)]


def _is_model(folder: Path) -> bool:
    try:
        return (folder / CONFIG).is_file()
    except (OSError, ValueError):  # not a valid file name
        return False
