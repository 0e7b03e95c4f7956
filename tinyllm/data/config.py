"""Settings of the data of a stage. No torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from tinyllm.config import Config
from tinyllm.data.sources.encodings import Encoding, canonical
from tinyllm.data.sources.tables import Delimiter, delimiter_name


def is_world(source: str) -> bool:
    """Return whether an entry of data.train, data.val or data.test is the bundled world."""
    return source == "world" or source.startswith("world:")


def _as_tuple(value: Any) -> Any:
    """Return a single string or a list as a tuple, and anything else unchanged for the validation to refuse."""
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list) else value


Sources = Annotated[tuple[str, ...], BeforeValidator(_as_tuple)]
"""sources of data; a single one needs no list"""


class DataConfig(Config):
    """Sources of records and how to read them."""

    train: Sources = ("world:20000",)
    """files, folders, globs, `-` for standard input, or `world:N`: N records of the bundled world"""
    val: Sources = ()
    """the same for validation; if empty, `world` has held-out records of its own and val_fraction of the files is split off"""
    val_fraction: float = Field(0.05, gt=0, lt=1)
    test: Sources = ()
    """the same for the figures that are reported: nothing is chosen by them; if empty, see test_fraction"""
    test_fraction: float | None = Field(None, ge=0, lt=1)
    """share of the held-out records that is kept for test; by default half of those split off from train, none of an explicit val"""
    format: str | None = None
    """the format of the records, where it is not detected correctly"""
    field: dict[str, str] = Field({})
    """column name of the format: column name in the files"""
    on_bad_line: Literal["error", "skip"] = "error"
    encoding: Annotated[Encoding, BeforeValidator(canonical)] = "utf-8"
    """text encoding of the files"""
    delimiter: Annotated[Delimiter, BeforeValidator(delimiter_name)] | None = None
    """of tables (CSV, TSV), where it is not detected; a text file with it is read as a table"""
    max_length: int = Field(256, ge=8)
    """tokens per row; longer records are truncated, and their number is reported"""

    @property
    def sources(self) -> tuple[str, ...]:
        """All entries of train, val and test."""
        return (*self.train, *self.val, *self.test)

    @model_validator(mode="after")
    def _check_test(self) -> DataConfig:
        if self.test and self.test_fraction is not None:
            raise ValueError(f"test_fraction {self.test_fraction:g} divides nothing beside test; remove one of them")
        return self


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
        for name, sources in (("train", self.train), ("val", self.val), ("test", self.test)):
            if twice := [source for number, source in enumerate(sources) if source in sources[:number]]:
                raise ValueError(f"{name} names {twice[0]!r} twice; name it once (in train, it may have a weight)")
        return self


class RecordConfig(DataConfig):
    """Sources of conversations, pairs or prompts, and how to treat those that are too long."""

    too_long: Literal["truncate", "drop", "error"] = "truncate"
    """records of more than max_length tokens are truncated (answers at the end, prompts at the beginning), dropped, or refused, and
    counted; prompts for rollouts are never truncated but dropped"""
