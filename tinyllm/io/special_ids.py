"""The special token ids in a model's files: three entries of config.json, and generation_config.json with its sampling settings.

Read with the tokenizer, and written back as they came with the model, so both rooms know this class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

GENERATION = "generation_config.json"
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True)
class SpecialIds:
    """Special token ids as a model's files have them."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """the entries `IDS` of config.json that were there: an id, a list of ids, or None"""
    generation: Mapping[str, Any] = field(default_factory=dict)
    """content of generation_config.json; empty where there was none"""

    @property
    def ends(self) -> tuple[int, ...]:
        """The ids that end a generation in transformers: those of generation_config.json, or else of config.json."""
        return ids_in((self.generation or self.config).get("eos_token_id"))

    def entry(self, key: str) -> tuple[int, ...]:
        """Return the ids of one entry, of generation_config.json or else of config.json."""
        return ids_in(self.generation.get(key)) or ids_in(self.config.get(key))

    def with_ends(self, ends: tuple[int, ...]) -> SpecialIds:
        """Return the same ids with others that end a generation."""
        found = self.generation or {key: value for key, value in self.config.items() if value is not None}
        # transformers may derive a file with this mark again from config.json.
        generation = {key: value for key, value in found.items() if key != "_from_model_config"}
        return SpecialIds(self.config, {**generation, "eos_token_id": list(ends)})


def ids_in(value: Any) -> tuple[int, ...]:
    """Return the ids of an entry that is an id, a list of ids, or nothing; anything else in it is left out."""
    values = value if isinstance(value, list) else [value]
    return tuple(dict.fromkeys(i for i in values if type(i) is int and i >= 0))
