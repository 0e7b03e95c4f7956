"""Texts that a vocabulary cannot encode: characters whose bytes have no token, and lone surrogates.

Vocabularies such as SmolLM2's lack tokens for bytes that their training text had not. Most of these never occur in UTF-8; the others are
control characters and parts of rare scripts. A text with one is refused with the character and its place, and is never cut in silence.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers

from tinyllm.errors import UserError
from tinyllm.text import vocabulary


def reason(error: BaseException, encoder: tokenizers.Tokenizer, texts: Sequence[str]) -> BaseException:
    """Return the exception to raise for an error of the library, which names neither the text nor the character."""
    if not _is_ours(error):
        return vocabulary.given_up(error, "the tokenizer")
    return next((found for text in texts if (found := _fault(encoder, text)) is not None), error)


def faults(encoder: tokenizers.Tokenizer, texts: Sequence[str]) -> list[str | None]:
    """Return for each text why it cannot be encoded, or None."""
    if _encodes(encoder, texts):
        return [None] * len(texts)
    found = (_fault(encoder, text) for text in texts)
    return [None if fault is None else fault.what for fault in found]


def lone_surrogate(error: UnicodeEncodeError) -> UserError:
    """Return the error for a text that is not valid Unicode."""
    bad = ord(error.object[error.start])
    what = f"lone surrogate U+{bad:04X} at character {error.start}, which is not valid text"
    return UserError(what, fix="remove that character")


def _fault(encoder: tokenizers.Tokenizer, text: str) -> UserError | None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return lone_surrogate(error)
    if _encodes(encoder, [text]):
        return None
    missing = {char for char in set(text) if not _encodes(encoder, [char])}
    at = next((i for i, char in enumerate(text) if char in missing), None)
    if at is None:  # the normalizer joins characters into one that is missing
        at = next(i for i in range(len(text)) if not _encodes(encoder, [text[: i + 1]]))
    start = max(0, at - 20)
    around = f"{'…' * (start > 0)}{text[start : at + 20]}{'…' * (at + 20 < len(text))}"
    what = (
        f"the vocabulary has no token for {text[at]!r} (U+{ord(text[at]):04X}) at character {at} of the text {around!r}"
    )
    return UserError(what, fix="remove that character, or use a model whose vocabulary spells every byte")


def _encodes(encoder: tokenizers.Tokenizer, texts: Sequence[str]) -> bool:
    try:
        encoder.encode_batch_fast(texts, add_special_tokens=False)
    except BaseException as error:
        if not _is_ours(error):
            raise vocabulary.given_up(error, "the tokenizer") from error
        return False
    return True


def _is_ours(error: BaseException) -> bool:
    """Return True for the library's errors about a lone surrogate and about a byte without a token."""
    return isinstance(error, TypeError) or vocabulary.UNSPELLABLE in str(error)
