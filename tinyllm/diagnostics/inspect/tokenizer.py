"""The tokenizer of an inspection: the one named, that of the checkpoint a stage would start from, or none. No torch."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyllm.console import say
from tinyllm.errors import USAGE, UserError, escape_unprintable
from tinyllm.model import hf_config
from tinyllm.stages.parents import PARENT_PLACES, RUNS, Parent, find_checkpoint, tokenizer_of
from tinyllm.text.chat_format import choose
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer, its folder, and the context of its model, as far as they are known."""

    tokenizer: Tokenizer | None = None
    folder: str = ""
    context: int | None = None

    def to_dict(self) -> dict[str, Any] | None:
        if self.tokenizer is None:
            return None
        known = {"vocab_size": self.tokenizer.vocab_size, "sha256": self.tokenizer.sha256}
        return {"folder": escape_unprintable(self.folder), **known, "context": self.context}


def vocabulary(config: Any, place: str, tokenizer: Path | None, checkpoint: Path | None) -> Vocabulary:
    """Return the tokenizer for a stage's data.

    Args:
        place: the name of the stage in `parents`.
        tokenizer, checkpoint: given by the user; at most one.

    Raises: UserError if the given path does not exist.
    """
    if tokenizer is not None:  # as pretraining uses it: with chat tokens
        return Vocabulary(Tokenizer.load(tokenizer).for_new_model(), str(tokenizer))
    if place == "pretrain" and checkpoint is None:
        return _of_text(config)
    given = checkpoint or (None if place == "pretrain" else config.parent)
    parent = _parent(place, given, config.base) or _parent("sft", None)
    if parent is None:
        return Vocabulary()
    found = _beside(parent)
    if place == "pretrain" or found.tokenizer is None:
        return found
    chosen = choose(config.chat, found.tokenizer, trains=True)
    if chosen.line:
        say(chosen.line)
    return replace(found, tokenizer=chosen.tokenizer)


def _parent(place: str, given: Path | None, base: Path | None = None) -> Parent | None:
    """Return the checkpoint that a stage would start from; None if none exists and none was given."""
    try:
        stage = place if place in PARENT_PLACES else "eval"
        return find_checkpoint(stage, given, fast=False, base=base, weights=False)
    except UserError as error:
        if given is not None or error.code != USAGE:
            raise
        return None


def _beside(parent: Parent) -> Vocabulary:
    folder = parent.folder
    context, path = None, (parent.base or folder) / hf_config.CONFIG
    if path.is_file():
        context = json.loads(path.read_text(encoding="utf-8")).get("max_position_embeddings")
    tokenizer = tokenizer_of(folder, parent.base)
    return Vocabulary(tokenizer, folder.as_posix(), context if isinstance(context, int) else None)


def _of_text(config: Any) -> Vocabulary:
    """Return the tokenizer for raw text: of the configuration, of its prepared data, or of the newest pretrained model."""
    if config.tokenizer is not None:
        return Vocabulary(Tokenizer.load(config.tokenizer).for_new_model(), str(config.tokenizer))
    made = RUNS / "data" / config.name / "tokenizer"
    if (made / "tokenizer.json").is_file():
        return Vocabulary(Tokenizer.load(made), made.as_posix())
    parent = _parent("sft", None)
    return Vocabulary() if parent is None else Vocabulary(Tokenizer.load(parent.folder), parent.folder.as_posix())
