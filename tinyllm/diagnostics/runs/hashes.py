"""Lineage hashes: hashes of configuration, data and parent weights, and one hash over all of them.

Not included: code, versions and hardware, which affect rounding and are recorded in run.json; the user's own rewards and algorithms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tinyllm import algorithms
from tinyllm.diagnostics.runs.record import of_type, read_json
from tinyllm.io import strict_json
from tinyllm.io.files import sha256
from tinyllm.train import checkpoint
from tinyllm.train.changes import FREE, SAME

_IGNORED = {  # settings by section that do not affect the result, or are covered by a hash of their content
    "": ("name", "device", "seed", "parent", "reward_model", "tokenizer"),
    "train": ("compile", "activation_checkpointing", "log_every", "save_every", "keep", "keep_every"),
    "rollout": ("keep",),
    "model": ("vocab_size",),  # an upper bound; the tokenizer determines the size
}

_SHARD_SETTINGS = ("train", "val", "val_fraction", "format", "field", "on_bad_line", "encoding", "dedup")


def lineage_hash(
    *,
    config: str,
    data: str,
    tokenizer: str,
    seed: int,
    parent: Any = None,
    reward_model: Any = None,
    changes: Sequence[dict[str, Any]] = (),
) -> str:
    """Return the lineage hash of a run: sha256 of the arguments as JSON with sorted keys.

    Two runs have the same hash exactly if all arguments are equal, whatever their names and places. They then have equal weights up to
    rounding, which depends on the device, the number of ranks and the library versions.

    Args:
        config: `config_hash`.
        data: `data_hash`.
        tokenizer: the run's `tokenizer_sha256`.
        seed: the run's seed.
        parent, reward_model: None, or [lineage hash of that run, step of the checkpoint used]; for a model without a run,
            ["weights", `weights_hash`].
        changes: settings that were changed when the run was resumed, see `effective_changes`.
    """
    found = {
        "config": config,
        "data": data,
        "parent": parent,
        "reward_model": reward_model,
        "seed": seed,
        "tokenizer": tokenizer,
    }
    return _hash(found | ({"changes": list(changes)} if changes else {}))


def effective_changes(changes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the changes that affect the result: a run with any of them differs from one that had the last settings from the beginning.

    More steps do not count where the schedule is the one of the longer run.
    """
    ignored = {f"{section}.{key}" for section in ("train",) for key in _IGNORED[section]} | {"device"} | FREE
    return [c for c in changes if c["key"] not in ignored and c.get("schedule") != SAME]


def config_hash(config: dict[str, Any], *, of_shards: bool) -> str:
    """Return the sha256 of a configuration without the settings that do not affect the result.

    Left out: the name; where and how fast it is computed (device, train.compile, train.activation_checkpointing); what is logged
    and kept (train.log_every,
    train.save_every, train.keep, train.keep_every, rollout.keep); what is hashed separately (seed, parent, reward_model, tokenizer,
    model.vocab_size); data.test; sections of other algorithms. A file in data.train and data.val counts as "a file": its content is in
    `data_hash`.

    of_shards: the run was trained on token shards (pretraining). Settings that only affect their preparation are left out too.
    """
    kept = {key: value for key, value in config.items() if key not in _IGNORED[""]}
    for section, keys in _IGNORED.items():
        if isinstance(kept.get(section), dict):
            kept[section] = {key: value for key, value in kept[section].items() if key not in keys}
    if "algorithm" in kept:
        kept["algorithm"] = algorithms.name_of(str(kept["algorithm"]))
        others = {*algorithms.names("offline"), *algorithms.names("online")} - {kept["algorithm"]}
        kept = {key: value for key, value in kept.items() if key not in others}
    data = dict(of_type(kept.get("data"), dict, {}))
    data.pop("test", None)  # nothing is trained on it or chosen by it
    if data.get("test_fraction") is None:  # as in versions without it
        data.pop("test_fraction", None)
    if of_shards:
        kept["data"] = {key: value for key, value in data.items() if key not in _SHARD_SETTINGS}
    elif data:
        splits = {split: [_without_path(s) for s in of_type(data.get(split), list, [])] for split in ("train", "val")}
        kept["data"] = {**data, **splits}
    return _hash(kept)


def _without_path(source: Any) -> Any:
    return source if str(source).partition(":")[0] == "world" else "a file"


def data_hash(sources: list[Any]) -> str:
    """Return the sha256 over all sources in order, without paths.

    Shards count by their fingerprint, files by sha256 and number of records, the bundled world by name and seed.
    """
    paths = ("shards", "source")
    return _hash(
        [
            {k: v for k, v in s.items() if k not in paths or ("sha256" not in s and "fingerprint" not in s)}
            for s in sources
        ]
    )


def weights_hash(folder: Path) -> str | None:
    """Return the sha256 over names and hashes of the weights and config files in a folder, from its manifest if it has one.

    Without the tokenizer, which is hashed separately. None where there is no model that can be read.
    """
    listed = of_type(read_json(folder / checkpoint.MANIFEST)[0].get("files"), dict, {})
    configs = ("config.json", "adapter_config.json")
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix == ".safetensors" or p.name in configs)
        named = [(p.name, of_type(listed.get(p.name), dict, {}).get("sha256") or sha256(p)) for p in files]
    except OSError:
        return None
    return _hash(named) if named else None


def _hash(value: Any) -> str:
    text = strict_json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
