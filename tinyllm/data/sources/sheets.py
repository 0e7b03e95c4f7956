"""Rows of the first sheet of an Excel workbook (.xlsx), through openpyxl.

The first row names the columns, and every value becomes text: dates as ISO 8601, numbers without their cell format, empty cells as "".
Left out: other sheets, .xls, .ods, pipes.
"""

from __future__ import annotations

import datetime
import zipfile
from collections.abc import Iterator
from typing import Any

from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.json_rows import LocatedRow
from tinyllm.data.sources.streams import is_bomb
from tinyllm.data.sources.tables import named_rows
from tinyllm.errors import UserError

_SAVE = "open it in a spreadsheet program and save it as CSV (UTF-8)"


def sheet_rows(source: Source) -> Iterator[LocatedRow]:
    """Yield the rows of the first sheet as objects. Raises: UserError without openpyxl, and for a damaged workbook."""
    try:
        import openpyxl
    except ImportError as e:
        fix = "pip install 'tinyllm-lifecycle[xlsx]'"
        raise UserError("reading xlsx needs openpyxl, which is not installed", where=source.name, fix=fix) from e
    if not source.is_plain:
        raise UserError("xlsx cannot be read from gzip or from a pipe", where=source.name, fix="save it to a file")
    try:
        with zipfile.ZipFile(source.path) as parts:
            size, stored = (sum(getattr(p, key) for p in parts.infolist()) for key in ("file_size", "compress_size"))
        if is_bomb(size, stored):
            raise UserError(
                f"{stored:,} bytes of xlsx unpack to {size:,}, too many for text", where=source.name, fix=_SAVE
            )
        values, formulas = (openpyxl.load_workbook(source.path, read_only=True, data_only=v) for v in (True, False))
        sheet = values.worksheets[0]
        if len(values.worksheets) > 1:
            source.notes.append(f"the sheet {sheet.title!r}, without {len(values.worksheets) - 1} more")
        pairs = zip(sheet.iter_rows(values_only=True), formulas.worksheets[0].iter_rows(values_only=True), strict=True)
        yield from named_rows(source, _cells(source, pairs), "a sheet of")
    except UserError:
        raise
    except Exception as e:  # openpyxl raises many kinds for a damaged file
        what = f"damaged workbook: {str(e).partition(chr(10))[0][:200]}"
        raise UserError(what, where=source.name, fix=_SAVE) from e


def _cells(source: Source, pairs: Iterator[tuple[Any, Any]]) -> Iterator[tuple[str, list[str] | BadRow]]:
    for number, (values, formulas) in enumerate(pairs, 1):
        location = f"{source.name}:{number}"
        if any(value is None and formula is not None for value, formula in zip(values, formulas, strict=False)):
            yield location, BadRow("formula without a value", "a formula without a stored value", _SAVE)
        elif any(value is not None for value in values):
            yield location, [_text(value) for value in values]


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else str(value)
