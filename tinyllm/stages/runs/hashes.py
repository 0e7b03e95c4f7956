"""What a run's lineage hash is made of: the hashes of its configuration, its data, its parents' weights.

Left out of all of them: code, versions and hardware, which shape the last digits and are in run.json; own reward functions.
"""

from __future__ import annotations

import hashlib
import json
import pkgutil
from pathlib import Path
from typing import Any

from tinyllm import algorithms
from tinyllm.stages.runs.read import read_json, typed
from tinyllm.train import checkpoint

_NO_MATTER = {  # settings that do not shape the result, or whose value says less than the hash that stands for it
    "": ("name", "device", "seed", "parent", "reward_model", "tokenizer"),
    "train": ("compile", "log_every", "save_every", "keep", "keep_every"),
    "rollout": ("keep",),
    "model": ("vocab_size",),  # an upper bound; the tokenizer decides
}

_IN_SHARDS = ("train", "val", "val_fraction", "format", "field", "on_bad_line", "encoding", "dedup")


def lineage_hash(
    *, config: str, data: str, tokenizer: str, seed: int, parent: Any = None, reward_model: Any = None
) -> str:
    """One hash for everything that shaped a run: sha256 of these as JSON with sorted keys.

    config: `config_hash`. data: `data_hash`. tokenizer: the run's `tokenizer_sha256`. seed: the run's.
    parent, reward_model: None, or [the lineage hash of that run, the step of the checkpoint that was taken from it]; of a model from
        elsewhere, which has no run, ["weights", `weights_hash`].

    Equal for two runs exactly when all of these are, whatever the runs are called and wherever they lie. Runs that are equal in this
    have equal weights up to rounding, which the device, the number of ranks and the versions of the libraries decide.
    """
    return _hash(
        {
            "config": config,
            "data": data,
            "parent": parent,
            "reward_model": reward_model,
            "seed": seed,
            "tokenizer": tokenizer,
        }
    )


def config_hash(config: dict[str, Any], *, of_shards: bool) -> str:
    """sha256 of config.yaml without what does not shape the result.

    Left out: the name; where and how fast it is computed (device, train.compile); what is logged and kept (train.log_every,
    train.save_every, train.keep, train.keep_every, rollout.keep); what has a hash or a place of its own (seed, parent, reward_model,
    tokenizer, model.vocab_size); sections of algorithms that were not the one. A file in data.train and data.val counts as "a file":
    its content is in `data_hash`. Of a pretraining run, whose shards hold the tokens themselves, what only made the shards is left out.
    """
    kept = {key: value for key, value in config.items() if key not in _NO_MATTER[""]}
    for section, keys in _NO_MATTER.items():
        if isinstance(kept.get(section), dict):
            kept[section] = {key: value for key, value in kept[section].items() if key not in keys}
    if "algorithm" in kept:
        others = {module.name for module in pkgutil.iter_modules(algorithms.__path__)} - {kept["algorithm"]}
        kept = {key: value for key, value in kept.items() if key not in others}
    data = typed(kept.get("data"), dict, {})
    if of_shards:
        kept["data"] = {key: value for key, value in data.items() if key not in _IN_SHARDS}
    elif data:
        sides = {side: [_without_path(s) for s in typed(data.get(side), list, [])] for side in ("train", "val")}
        kept["data"] = {**data, **sides}
    return _hash(kept)


def _without_path(source: Any) -> Any:
    return source if str(source).partition(":")[0] == "world" else "a file"


def data_hash(sources: list[Any]) -> str:
    """sha256 over the sources in order: the fingerprint of shards, sha256 and records of a file, name and seed of the world."""
    paths = ("shards", "source")
    return _hash(
        [
            {k: v for k, v in s.items() if k not in paths or ("sha256" not in s and "fingerprint" not in s)}
            for s in sources
        ]
    )


def weights_hash(folder: Path) -> str | None:
    """sha256 over names and sha256 of the files that are the model (from the manifest if there is one); the tokenizer counts apart.

    None where there is no model, or none that can be read.
    """
    listed = typed(read_json(folder / checkpoint.MANIFEST)[0].get("files"), dict, {})
    shapes = ("config.json", "adapter_config.json")
    try:
        there = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in shapes)
        names = [(p.name, typed(listed.get(p.name), dict, {}).get("sha256") or checkpoint.sha256(p)) for p in there]
    except OSError:
        return None
    return _hash(names) if names else None


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
