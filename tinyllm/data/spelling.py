"""Records with a character that the model's vocabulary cannot spell: refused, or dropped and counted (`data.on_bad_line`).

Only few vocabularies lack one (SmolLM2's has no token for some control characters); with all others nothing is checked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tinyllm.console import say
from tinyllm.data.records.types import Document, Record, messages_of
from tinyllm.errors import UserError, escape_unprintable
from tinyllm.text.tokenizer import Tokenizer

CANNOT = "characters that the vocabulary cannot spell"
_FIX = "remove the character, or leave out such {}: --set data.on_bad_line=skip"


class CannotSpell(UserError):  # noqa: N818
    """Records that a vocabulary cannot spell, and that are not to be dropped."""


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
        what = f"{self.dropped:,} of {self.read:,} documents with {CANNOT}, first {self.first}"
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
    kept, faults = told_apart(records, tokenizer, name)
    if not faults:
        return records
    if error := refusal(faults, len(kept), name, on_bad_line):
        raise error
    first = faults[0]
    count = f"{len(faults):,} of {len(records):,} records with {CANNOT}"
    say(f"{name}: dropped {count}, first {first.place}: {escape_unprintable(first.reason)}")
    return kept


@dataclass(frozen=True)
class Fault:
    """A record that cannot be spelled: where it is, and why."""

    place: str
    reason: str


def told_apart(records: Sequence[Any], tokenizer: Tokenizer, name: str) -> tuple[Sequence[Any], list[Fault]]:
    """Return the records that a vocabulary can spell, and what is wrong with the others.

    Args:
        name: the split, for the place of a record that did not come from a file.
    """
    if tokenizer.spells_all:
        return records, []
    kept, faults = [], []
    for number, record in enumerate(records, start=1):
        reason = _reason(record, tokenizer)
        if reason is None:
            kept.append(record)
        else:
            faults.append(Fault(record.place or f"{name} record {number}", reason))
    return kept, faults


def refusal(faults: Sequence[Fault], kept: int, name: str, on_bad_line: str) -> CannotSpell | None:
    """Return the error of a stage for records that cannot be spelled; None where they are dropped.

    Args:
        kept: the number of other records of the split `name`.
    """
    if not faults or (kept and on_bad_line != "error"):
        return None
    first = faults[0]
    if on_bad_line == "error":
        return CannotSpell(first.reason, where=first.place, fix=_FIX.format("records"))
    what = f"all {len(faults):,} {name} records have {CANNOT}: {first.reason}"
    return CannotSpell(what, where=first.place, fix="use other data, or a model whose vocabulary spells every byte")


def _reason(record: Record, tokenizer: Tokenizer) -> str | None:
    texts = [record.text] if isinstance(record, Document) else [message["content"] for message in messages_of(record)]
    found = tokenizer.unspellable(texts)
    return next((reason for reason in found if reason is not None), None)
