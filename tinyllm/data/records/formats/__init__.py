"""The accepted formats of records, by kind.

Each file of this folder holds the formats of one kind: functions that turn a row into records, and a table `FORMATS` at
the foot. To add a format, add a function and a row to one of these tables. The first format of the table that fits the
first row of a file is used for the whole file (`records.detect`).

The formats of `unpaired` are derived: every conversation format with a column `label`, and every pair format.
"""

from __future__ import annotations

from typing import Literal, get_args

from tinyllm.data.records.formats import conversations, documents, pairs, prompts, unpaired
from tinyllm.data.records.formats.format import Format

DataKind = Literal["documents", "conversations", "pairs", "unpaired", "prompts"]

FORMATS: dict[str, dict[str, Format]] = {
    "documents": documents.FORMATS,
    "conversations": conversations.FORMATS,
    "pairs": pairs.FORMATS,
    "unpaired": unpaired.FORMATS,
    "prompts": prompts.FORMATS,
}
KINDS: tuple[DataKind, ...] = get_args(DataKind)
KIND_ALIASES: dict[str, DataKind] = {"judgements": "unpaired"}  # the name until 0.1; to be removed after 0.2
TITLES: dict[str, str] = {kind: kind for kind in KINDS} | {"unpaired": "unpaired preferences"}  # the kinds in sentences
COLUMN_ALIASES = {"kto_tag": "label"}  # LLaMA-Factory's name
