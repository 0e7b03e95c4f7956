"""Continued pretraining: `pretrain --checkpoint` takes model and tokenizer from a checkpoint. No torch.

The optimizer and the schedule are new, and the data are prepared with the checkpoint's tokenizer, exactly as it is.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tinyllm.config import Resolved, flatten
from tinyllm.errors import UserError
from tinyllm.model.adapter_config import ADAPTER, base_folder, read_adapter
from tinyllm.model.config import ModelConfig
from tinyllm.model.hf_config import read_config
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.parents import named_base, named_checkpoint
from tinyllm.text.tokenizer import Tokenizer

_TYPED = ("--", "env ")  # how the origin of a setting begins that is in no file


def with_checkpoint(config: PretrainConfig, *, fast: bool = False) -> PretrainConfig:
    """Return the settings with the model and the tokenizer of the checkpoint `parent`; unchanged without one.

    Raises: UserError (USAGE) for another tokenizer, and for rows longer than the model's positions.
    """
    if config.parent is None:
        return config
    folder = named_checkpoint("pretrain", config.parent, fast=fast)
    model = model_of(folder, config.base and named_base(config.base, weights=False))
    if config.tokenizer and Tokenizer.load(config.tokenizer).sha256 != Tokenizer.load(folder).sha256:
        what = f"tokenizer {config.tokenizer} is not the tokenizer of the checkpoint {config.parent}"
        raise UserError(what, where="tokenizer", fix="leave it out: the checkpoint's own is used")
    if config.data.max_length > model.max_position_embeddings:
        what = f"data.max_length {config.data.max_length} is more than the model's {model.max_position_embeddings} positions"
        raise UserError(what, where="data.max_length", fix=f"set it to {model.max_position_embeddings}")
    return config.model_copy(update={"model": model, "tokenizer": config.tokenizer or folder})


def resolve_checkpoint(resolved: Resolved, shipped: Path, *, fast: bool) -> Resolved:
    """Return a resolved configuration of pretraining with the model and the tokenizer of its checkpoint.

    Args:
        shipped: the folder of the shipped configurations, whose model is only a default.
        fast: --fast-dev-run, for which the model in every file is a default.

    Raises: UserError (USAGE) for settings of the model that contradict the checkpoint, typed ones always; see also `with_checkpoint`.
    """
    config = with_checkpoint(resolved.config, fast=fast)
    if config is resolved.config:
        return resolved
    given, taken = (
        {key: value for key, value in flatten(c).items() if key.startswith("model.")} for c in (resolved.config, config)
    )
    for key, value in given.items():
        origin = resolved.origins[key]
        upper_bound = key == "model.vocab_size" and value >= taken[key]  # for a file that trained the tokenizer
        default = fast or upper_bound or origin == "default" or _is_below(origin, shipped)
        if value == taken.get(key, value) or (default and not origin.startswith(_TYPED)):
            continue
        what = f"{key} is {value}, that of the checkpoint {config.parent} is {taken[key]}"
        raise UserError(what, where=origin, fix="leave out the section model: the checkpoint's is used")
    origin = f"checkpoint {config.parent}"
    origins = {**resolved.origins, **dict.fromkeys((*taken, "tokenizer"), origin)}
    return replace(resolved, config=config, origins={key: origins.get(key, origin) for key in flatten(config)})


def model_of(folder: Path, base: Path | None) -> ModelConfig:
    """Return the shape of a model; of an adapter, that of its base."""
    if (folder / ADAPTER).is_file():
        folder = base_folder(folder, read_adapter(folder)[1], base)
    return read_config(folder)[0]


def _is_below(origin: str, folder: Path) -> bool:
    """Return whether an origin, `path:line`, is a file below a folder."""
    return Path(origin.rpartition(":")[0]).resolve().is_relative_to(folder.resolve())
