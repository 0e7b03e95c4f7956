"""Formats of documents: a column `text`, or plain text."""

from __future__ import annotations

from tinyllm.data.records.formats.format import Format
from tinyllm.data.records.turns import Dropped, Note, text_of
from tinyllm.data.records.types import Document, Record, Row
from tinyllm.data.sources.rows import TEXT_FORMATS


def document(row: Row, note: Note) -> list[Record]:
    text = text_of(row, "text")
    if not text.strip():
        raise Dropped("empty text")
    return [Document(text)]


FORMATS = {name: Format(("text",), document) for name in ("text", *TEXT_FORMATS)}
