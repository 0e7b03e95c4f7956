"""Settings of the data of a stage. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from tinyllm.config import Config
from tinyllm.data.sources.streams import Encoding


def is_world(source: str) -> bool:
    """Return whether an entry of data.train or data.val is the bundled world."""
    return source == "world" or source.startswith("world:")


class DataConfig(Config):
    """Sources of records and how to read them."""

    train: tuple[str, ...] = ("world:20000",)
    """files, folders, globs, `-` for standard input, or `world:N`: N records of the bundled world"""
    val: tuple[str, ...] = ()
    """the same for validation; if empty, `world` has held-out records of its own and val_fraction of the files is split off"""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    format: str | None = None
    """the format of the records, where it is not detected correctly"""
    field: dict[str, str] = Field({})
    """column name of the format: column name in the files"""
    on_bad_line: Literal["error", "skip"] = "error"
    encoding: Encoding = "utf-8"
    """text encoding of the files"""
    max_length: int = Field(256, ge=8)
    """tokens per row; longer records are truncated, and their number is reported"""


class TextConfig(DataConfig):
    """Sources of raw text and how to prepare it."""

    weights: tuple[float, ...] = ()
    """share of the training tokens of each entry of train, on any scale, as in [3, 1]; if empty, in proportion to their size"""
    dedup: Literal["none", "exact", "near"] = "exact"
    """drop documents equal, or nearly equal (MinHash), to an earlier one; none keeps all copies"""

    @model_validator(mode="after")
    def _check_sources(self) -> TextConfig:
        if self.weights and len(self.weights) != len(self.train):
            raise ValueError(f"{len(self.weights)} weights for {len(self.train)} entries of train: give one for each")
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(
                f"weights {list(self.weights)} must all be more than 0; leave a source out of train instead"
            )
        for name, sources in (("train", self.train), ("val", self.val)):
            if twice := [source for number, source in enumerate(sources) if source in sources[:number]]:
                raise ValueError(f"{name} names {twice[0]!r} twice; name it once (in train, it may have a weight)")
        return self


class RecordConfig(DataConfig):
    """Sources of conversations, pairs or prompts, and how to treat those that are too long."""

    too_long: Literal["truncate", "drop", "error"] = "truncate"
    """records of more than max_length tokens are truncated (answers at the end, prompts at the beginning), dropped, or refused, and
    counted; prompts for rollouts are never truncated but dropped"""
