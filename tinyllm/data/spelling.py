"""Records with a character that the model's vocabulary cannot spell: refused, or dropped and counted (`data.on_bad_line`).

Only few vocabularies lack one (SmolLM2's has no token for some control characters); with all others nothing is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from tinyllm.console import say
from tinyllm.data.records.types import Document, Prompt, Record, messages_of
from tinyllm.errors import UserError, escape_unprintable
from tinyllm.text.tokenizer import Tokenizer

_FIX = "remove the character, or leave out such {}: --set data.on_bad_line=skip"


class SpelledDocuments:
    """The documents of pretraining that a vocabulary can spell, as they are read: the others are refused, or dropped and counted.

    Args:
        on_bad_line: see `spelled`.
    """

    def __init__(self, tokenizer: Tokenizer, on_bad_line: str):
        self.tokenizer, self.on_bad_line = tokenizer, on_bad_line
        self.missing = bytes(tokenizer.missing_bytes)
        self.read = self.dropped = self.unread = 0  # documents; sources that have not been read to the end
        self.first = ""

    def of(self, by_source: Mapping[str, Iterable[str]]) -> Mapping[str, Iterable[str]]:
        """Return the same sources without what cannot be spelled. Raises: UserError, while they are read, with `error`."""
        if not self.missing:
            return by_source
        self.unread += len(by_source)
        return {name: self._of(name, texts) for name, texts in by_source.items()}

    def tell(self) -> None:
        """Say how many documents were dropped. Raises: UserError if all of them were."""
        if not self.dropped:
            return
        what = f"{self.dropped:,} of {self.read:,} documents with characters that the vocabulary cannot spell, first {self.first}"
        if self.dropped == self.read and not self.unread:
            raise UserError(what, fix="use other data, or a model whose vocabulary spells every byte")
        say(f"dropped {escape_unprintable(what)}")

    def _of(self, source: str, texts: Iterable[str]) -> Iterator[str]:
        for number, text in enumerate(texts, start=1):
            self.read += 1
            reason = self._reason(text)
            if reason is None:
                yield text
                continue
            place = f"{source}{', ' * bool(source)}document {number:,}"
            if self.on_bad_line == "error":
                raise UserError(reason, where=place, fix=_FIX.format("documents"))
            self.dropped += 1
            self.first = self.first or f"{place}: {reason}"
        self.unread -= 1

    def _reason(self, text: str) -> str | None:
        """Return why a text cannot be encoded; it is encoded to find out only where it has a byte without a token."""
        data = text.encode("utf-8", "surrogatepass")
        if len(data.translate(None, self.missing)) == len(data):
            return None
        return self.tokenizer.unspellable([text])[0]


def spelled(records: Sequence[Any], tokenizer: Tokenizer, name: str, on_bad_line: str) -> Sequence[Any]:
    """Return the records that a vocabulary can spell.

    Args:
        name: the split, for messages.
        on_bad_line: `error`, or `skip` to drop the others, which are counted aloud.

    Raises:
        UserError: a record that cannot be spelled, with its place and the character; all of them with `skip` (USAGE).
    """
    if tokenizer.spells_all:
        return records
    reasons = [_reason(record, tokenizer) for record in records]
    faults = [(number, reason) for number, reason in enumerate(reasons) if reason is not None]
    if not faults:
        return records
    number, reason = faults[0]
    record = records[number]
    place = record.place if isinstance(record, Prompt) and record.place else f"{name} record {number + 1}"
    if on_bad_line == "error":
        raise UserError(reason, where=place, fix=_FIX.format("records"))
    if len(faults) == len(records):
        what = f"all {len(records):,} {name} records have characters that the vocabulary cannot spell: {reason}"
        raise UserError(what, where=place, fix="use other data, or a model whose vocabulary spells every byte")
    say(
        f"{name}: dropped {len(faults):,} of {len(records):,} records with characters that the vocabulary cannot spell, "
        f"first {place}: {escape_unprintable(reason)}"
    )
    return [record for record, reason in zip(records, reasons, strict=True) if reason is None]


def _reason(record: Record, tokenizer: Tokenizer) -> str | None:
    texts = [record.text] if isinstance(record, Document) else [message["content"] for message in messages_of(record)]
    found = tokenizer.unspellable(texts)
    return next((reason for reason in found if reason is not None), None)
