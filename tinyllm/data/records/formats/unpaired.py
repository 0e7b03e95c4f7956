"""Formats of unpaired preferences: conversations with a `label`, and both answers of a pair."""

from __future__ import annotations

from functools import partial

from tinyllm.data.records.formats import conversations, pairs
from tinyllm.data.records.formats.format import Convert, Format, Turns
from tinyllm.data.records.turns import Note, as_unpaired, refuse_media, with_system
from tinyllm.data.records.types import Pair, Record, Row, UnpairedPreference


def labeled(turns: Turns, row: Row, note: Note) -> list[Record]:
    refuse_media(row)
    return as_unpaired(row, with_system(row, turns(row, note), note), note)


def both_answers(convert: Convert, row: Row, note: Note) -> list[Record]:
    """Return the chosen answer of each pair as a good one and the rejected answer as a bad one."""
    found = [record for record in convert(row, note) if isinstance(record, Pair)]
    return [
        UnpairedPreference(p.prompt, answer, answer is p.chosen) for p in found for answer in (p.chosen, p.rejected)
    ]


LABELED = {
    f"{name}-label": Format((*f.needs, "label"), partial(labeled, f.turns), f.lacks, f.optional)
    for name, f in conversations.TURNS.items()
}
FORMATS = LABELED | {
    name: Format(
        f.needs, partial(both_answers, f.convert), f.lacks, tuple(column for column in f.optional if column != "margin")
    )
    for name, f in pairs.FORMATS.items()
}
