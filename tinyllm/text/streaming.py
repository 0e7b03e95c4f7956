"""Text for a terminal: token ids decoded one at a time, and characters removed that a terminal would act on."""

from __future__ import annotations

import codecs

from tinyllm.text.tokenizer import Tokenizer


class StreamDecoder:
    """Decoder of one id at a time. The joined results of `push` and `flush` are `printable(tokenizer.decode(ids))`."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_next = tokenizer.leading_space

    def push(self, token_id: int) -> str:
        """Return the text that this token completes: whole characters only, and only printable ones."""
        return self._clean(self._utf8.decode(self._tokenizer.text_bytes(token_id)))

    def flush(self) -> str:
        """Return what is left of an unfinished character, U+FFFD or nothing, and reset the decoder."""
        text = self._clean(self._utf8.decode(b"", final=True))
        self._strip_next = self._tokenizer.leading_space
        return text

    def _clean(self, text: str) -> str:
        if self._strip_next and text:
            self._strip_next = False
            text = text.removeprefix(" ")
        return printable(text)


_UNPRINTABLE = dict.fromkeys(
    [*range(0x09), *range(0x0B, 0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
)


def printable(text: str) -> str:
    """Return `text` without C0 controls except \\n and \\t, DEL, C1 controls and bidirectional overrides."""
    return text.translate(_UNPRINTABLE)
