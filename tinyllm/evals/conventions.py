"""What stands around a text that is scored: a token in front of it, and the token that ends it.

Models differ in both. `start` and `score_end` of the settings decide; `auto` follows the checkpoint:

- In front of a whole text is BOS or, where texts of the model do not begin with one, the end-of-text token. It is not scored.
- In front of a context is what the checkpoint's own tokenizer.json puts there: BOS for most Llamas, nothing for models trained here.
- The end of a document is scored where the checkpoint's end token ends texts. Where it ends turns of a conversation, as `<|im_end|>`
  does, no document of its training ended so. lm-eval scores no end; the end of a sentence or choice is scored only if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tokenizers

from tinyllm.errors import UserError
from tinyllm.evals.settings import EvalSettings
from tinyllm.io import untrusted_files
from tinyllm.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Conventions:
    """Token ids around texts; each field has none or one."""

    start: tuple[int, ...]
    """in front of a whole text. None: the first token of a text is not scored, since nothing predicts it"""
    prefix: tuple[int, ...]
    """in front of the context of a choice"""
    document_end: tuple[int, ...]
    """scored after a document"""
    choice_end: tuple[int, ...]
    """scored after a sentence or choice that is compared"""
    names: dict[str, Any]
    """start, context_start and score_end as results report them"""

    def line(self) -> str:
        """Return the conventions of documents as a line for people."""
        start, end = self.names["start"], "scored" if self.names["score_end"] else "not scored"
        return f"texts start with {start or 'nothing: their first token is not scored'}; their end is {end}"


def conventions(tokenizer: Tokenizer, config: EvalSettings) -> Conventions:
    """Return the conventions for a checkpoint with this tokenizer.

    Raises:
        UserError: `start` names a token that the vocabulary does not have.
    """
    whole = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    start, prefix = _starts(config.start, whole, tokenizer)
    document_end = tokenizer.eos == tokenizer.endoftext if config.score_end == "auto" else config.score_end
    names = {
        "start": _name(whole, start),
        "context_start": _name(whole, prefix),
        "score_end": document_end,
    }
    ids = (tokenizer.endoftext,)
    return Conventions(start, prefix, ids if document_end else (), ids if config.score_end is True else (), names)


def _starts(setting: str, whole: tokenizers.Tokenizer, tokenizer: Tokenizer) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids in front of a whole text and in front of a context."""
    if setting == "auto":
        return (tokenizer.document_start,), _added_in_front(whole)
    if setting == "none":
        return (), ()
    found = {"bos": tokenizer.bos, "eos": tokenizer.eos}.get(setting, whole.token_to_id(setting))
    if found is None:
        what = "has no BOS token" if setting == "bos" else f"has no token {untrusted_files.short_repr(setting)}"
        raise UserError(f"the vocabulary {what}", where="start", fix="use auto, bos, eos, none or the text of a token")
    return (found,), (found,)


def _added_in_front(whole: tokenizers.Tokenizer) -> tuple[int, ...]:
    """Return the ids that a tokenizer.json puts in front of a text when special tokens are requested."""
    bare, special = whole.encode("a", add_special_tokens=False).ids, whole.encode("a").ids
    at = next((n for n in range(len(special)) if special[n : n + len(bare)] == bare), 0)
    return tuple(special[:at])


def _name(whole: tokenizers.Tokenizer, ids: tuple[int, ...]) -> str | None:
    return " ".join(whole.id_to_token(i) or str(i) for i in ids) or None
