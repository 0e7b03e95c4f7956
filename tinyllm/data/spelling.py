"""Records with a character that the model's vocabulary cannot spell: refused, or dropped and counted (`data.on_bad_line`).

Only few vocabularies lack one (SmolLM2's has no token for some control characters); with all others nothing is checked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tinyllm.console import say
from tinyllm.data.records.types import Prompt, Record, messages_of
from tinyllm.errors import UserError, escape_unprintable
from tinyllm.text.tokenizer import Tokenizer


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
        fix = "remove the character, or leave out such records: --set data.on_bad_line=skip"
        raise UserError(reason, where=place, fix=fix)
    if len(faults) == len(records):
        what = f"all {len(records):,} {name} records have characters that the vocabulary cannot spell: {reason}"
        raise UserError(what, where=place, fix="use other data, or a model whose vocabulary spells every byte")
    say(
        f"{name}: dropped {len(faults):,} of {len(records):,} records with characters that the vocabulary cannot spell, "
        f"first {place}: {escape_unprintable(reason)}"
    )
    return [record for record, reason in zip(records, reasons, strict=True) if reason is None]


def _reason(record: Record, tokenizer: Tokenizer) -> str | None:
    found = tokenizer.unspellable([message["content"] for message in messages_of(record)])
    return next((reason for reason in found if reason is not None), None)
