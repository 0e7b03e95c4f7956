"""Which tokenizer a look at data counts with: the one named, that of the checkpoint a stage would start from, or none. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import USAGE, UserError, harmless
from tinyllm.model import described
from tinyllm.stages.parents import BEFORE, RUNS, find
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, where it is from, and how many positions the model has that it belongs to; all of it unknown by default."""

    tokenizer: Tokenizer | None = None
    folder: str = ""
    context: int | None = None

    def to_dict(self) -> dict[str, Any] | None:
        if self.tokenizer is None:
            return None
        known = {"vocab_size": self.tokenizer.vocab_size, "sha256": self.tokenizer.sha256}
        return {"folder": harmless(self.folder), **known, "context": self.context}


def vocabulary(config: Any, place: str, tokenizer: Path | None, checkpoint: Path | None) -> Vocabulary:
    """The tokenizer for a stage's data.

    Args:
        place: the name `parents` knows the stage by.
        tokenizer, checkpoint: what was asked for; at most one.

    Raises: UserError where what was asked for is not there.
    """
    if tokenizer is not None:  # as pretraining would take it: with chat tokens
        return Vocabulary(Tokenizer.load(tokenizer).for_new_model(), str(tokenizer))
    if place == "pretrain" and checkpoint is None:
        return _of_text(config)
    given = checkpoint or (None if place == "pretrain" else config.parent)
    folder = _parent(place, given) or _parent("sft", None)
    return Vocabulary() if folder is None else _beside(folder)


def _parent(place: str, given: Path | None) -> Path | None:
    """The checkpoint that a stage would start from; None where there is none and none was named."""
    try:
        return find(place if place in BEFORE else "eval", given, fast=False).folder
    except UserError as error:
        if given is not None or error.code != USAGE:
            raise
        return None


def _beside(folder: Path) -> Vocabulary:
    context, path = None, folder / described.CONFIG
    if path.is_file():
        context = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    return Vocabulary(Tokenizer.load(folder), folder.as_posix(), context if isinstance(context, int) else None)


def _of_text(config: Any) -> Vocabulary:
    """Of raw text: the tokenizer in the configuration, the one its preparation made, or that of the newest pretrained model."""
    if config.tokenizer is not None:
        return Vocabulary(Tokenizer.load(config.tokenizer).for_new_model(), str(config.tokenizer))
    made = RUNS / "data" / config.name / "tokenizer"
    if (made / "tokenizer.json").is_file():
        return Vocabulary(Tokenizer.load(made), made.as_posix())
    folder = _parent("sft", None)
    return Vocabulary() if folder is None else Vocabulary(Tokenizer.load(folder), folder.as_posix())
