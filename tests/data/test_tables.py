"""Tables: CSV, TSV and xlsx files as people's programs write them, and those that are refused."""

from __future__ import annotations

import csv
import gzip
import io
import random
import time
from pathlib import Path

import pytest

from tests.support.reading import refused
from tinyllm.data.records.detect import guess_kind
from tinyllm.data.records.reader import read_records
from tinyllm.data.sources.errors import BadRow
from tinyllm.data.sources.files import Source
from tinyllm.data.sources.rows import rows
from tinyllm.errors import UserError

EXCEL = '\ufeffprompt;answer\r\nHow many legs has a cat?;Four.\r\n"Write ""hi"" twice";"""hi""\n""hi"""\r\nPreis in €;1,50\r\n'
TABLE = 'prompt\tanswer\nHow many legs has a cat?\tFour.\n"Write ""hi"" twice"\t"""hi""\n""hi"""\nPreis in €\t1,50\n'
RIGHT = [("How many legs has a cat?", "Four."), ('Write "hi" twice', '"hi"\n"hi"'), ("Preis in €", "1,50")]


def cells(path: Path, delimiter: str | None = None) -> list[tuple[str, dict | BadRow]]:
    """Return (line, row) of all rows of a table; the line is the part of its location after the file."""
    source = Source(path)
    try:
        return [(where.removeprefix(f"{path}:"), row) for where, row in rows(source, delimiter=delimiter)]
    finally:
        source.close()


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize(
    ("name", "text"), [("excel.csv", EXCEL), ("table.tsv", TABLE), ("t.CSV", TABLE), ("t.tsv.gz", TABLE)]
)
def test_the_same_rows_from_excel_and_from_a_tsv(tmp_path: Path, name: str, text: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    read = [row for _, row in cells(path)]
    assert [(row["prompt"], row["answer"]) for row in read] == RIGHT
    conversations = list(read_records([path], "conversations"))
    assert [(c.messages[0]["content"], c.messages[1]["content"]) for c in conversations] == RIGHT
    assert [p.columns["answer"] for p in read_records([path], "prompts")] == [answer for _, answer in RIGHT]
    assert guess_kind(path) == "prompts"


def test_every_table_that_csv_writes_is_read_back(tmp_path: Path) -> None:
    rng = random.Random(0)
    alphabet = ["a", "é", "€", ",", ";", "\t", "|", '"', "\n", " ", "x", "1", "", "{", "[", "'"]
    for case in range(300):
        mark, width = rng.choice(",;\t|"), rng.randint(2, 4)
        names = [f"c{i}" for i in range(width)]
        table = [["".join(rng.choices(alphabet, k=rng.randint(0, 6))) for _ in names] for _ in range(rng.randint(1, 6))]
        out = io.StringIO()
        quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
        csv.writer(out, delimiter=mark, quoting=quoting, lineterminator=rng.choice(["\n", "\r\n"])).writerows(
            [names, *table]
        )
        path = written(tmp_path / f"{case}.csv", out.getvalue())
        assert [list(row.values()) for _, row in cells(path)] == table, (case, out.getvalue())


def test_locations_are_the_physical_lines(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", 'a,b\n\n"1\n1",2\n3\n"4\n\n4",5,6\n7,8\n')
    found = cells(path)
    assert [where for where, _ in found] == ["3", "5", "6", "9"]
    assert isinstance(found[1][1], BadRow)
    assert "1 cell, but the header has 2" in found[1][1].detail
    assert "3 cells, but the header has 2" in found[2][1].detail
    assert found[3][1] == {"a": "7", "b": "8"}


def test_a_quote_that_is_not_closed_takes_its_line_only(tmp_path: Path) -> None:
    body = "".join(f"q{i},a{i}\n" for i in range(50))
    path = written(tmp_path / "x.csv", f'prompt,answer\nq,a\nhello,"open\n{body}')
    error = refused(path, "conversations")
    assert error.where == f"{path}:3"
    assert error.what == "a quote that opens here is never closed"
    reader = read_records([path], "conversations", on_bad_line="skip")
    assert len(list(reader)) == 51
    assert reader.report.dropped["broken quotes"].locations == [f"{path}:3"]
    # in the second line of a row, and before a good quoted cell
    path = written(tmp_path / "y.csv", 'a,b\n"1\n1","open\n3,4\n5,"six"\n')
    assert [(where, isinstance(row, BadRow)) for where, row in cells(path)] == [("3", True), ("4", False), ("5", False)]
    path = written(tmp_path / "z.csv", 'a,b\n1,"say "hi" to her"\n3,4\n')
    (where, bad), (_, good) = cells(path)
    assert (where, bad.detail) == ("2", "text after the closing quote of a quoted cell that opens here")
    assert good == {"a": "3", "b": "4"}


def test_many_open_quotes_end_in_bounded_time(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "a,b\n" + '1,"2\n' * 2001)
    with pytest.raises(UserError, match="rows with broken quotes"):
        cells(path)


def test_quotes_in_a_tsv_that_has_no_quoting_are_text(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", 'prompt\tanswer\n"Hello" she said\t5" pipe\n"open\tx\n')
    assert [tuple(row.values()) for _, row in cells(path)] == [('"Hello" she said', '5" pipe'), ('"open', "x")]


@pytest.mark.parametrize(
    ("text", "what", "line"),
    [
        ("How many legs?,Four.\nWhat is red?,A color.\n", "the first row must name the columns", 1),
        ("1,2.5\n3,4\n", "the first row must name the columns", 1),
        ("prompt,answer,prompt\na,b,c\n", "two columns are named 'prompt'", 1),
        ("a,b;c,d\n1,2;3,4\n", "the delimiter of this table is ambiguous", 1),
        ("text\nHello, world\n", "2 cells, but the header has 1: text", 2),
        ("prompt,answer\na,b\nc\0,d\n", "not text: a NUL byte at byte offset 19", 3),
        ("prompt,answer\n\ra\r,b\n", "a carriage return outside quotes", 2),
        ("", "0 conversations in", 0),
        ("prompt,answer\n", "0 conversations in", 0),
    ],
)
def test_refused_tables_are_told_by_line(tmp_path: Path, text: str, what: str, line: int) -> None:
    path = written(tmp_path / "x.csv", text)
    error = refused(path, "conversations")
    assert error.what.startswith(what)
    assert not line or error.where == f"{path}:{line}"


def test_an_ambiguous_delimiter_is_named(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", "a,b;c,d\n1,2;3,4\n")
    assert "data.delimiter=semicolon" in refused(path).fix
    assert cells(path, "semicolon")[0][1] == {"a,b": "1,2", "c,d": "3,4"}
    text = written(tmp_path / "x.txt", "frage|antwort\n1|2\n")
    assert cells(text, "pipe")[0][1] == {"frage": "1", "antwort": "2"}
    assert cells(written(tmp_path / "y.txt", "prompt;answer\n1;2\n"))[0][1] == {"prompt": "1", "answer": "2"}


def test_a_first_line_that_names_the_delimiter_to_excel_is_no_row(tmp_path: Path) -> None:
    for first, mark in (("sep=;\r\n", ";"), ('"sep=,"\n', ","), ("SEP=\t\n", "\t")):
        table = mark.join(("prompt", "answer")) + "\r\n" + mark.join(("a", '"b;,c"')) + "\r\n"
        path = written(tmp_path / "x.csv", "\ufeff" + first + table)
        assert cells(path) == [("3", {"prompt": "a", "answer": "b;,c"})]
    error = refused(written(tmp_path / "y.csv", "sep=:\na:b\n1:2\n"))
    assert (error.what, error.where) == (
        "the first line names a delimiter that is not supported: ':'",
        f"{tmp_path}/y.csv:1",
    )


def test_a_header_without_all_names_is_told(tmp_path: Path) -> None:
    path = written(tmp_path / "x.tsv", '"prompt"\t"answer"\n"1"\t"a"\t"b"\n"2"\t"c"\t"d"\n')  # write.table of R
    first, second = (bad.fix for _, bad in cells(path))
    assert first == "name all columns in the first line, or put quotes around the cell with a tab in it"
    assert second == "put quotes around the cell with a tab in it"


def test_a_line_that_is_not_text_takes_all_of_its_row(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b'prompt,answer\na,"one\ntw\xf6\nthree,not a row\nfour"\nc,d\n\xf6,e\nf,g\n')
    found = cells(path)
    assert [where for where, _ in found] == ["3", "6", "7", "8"]
    assert [row for _, row in found if isinstance(row, dict)] == [
        {"prompt": "c", "answer": "d"},
        {"prompt": "f", "answer": "g"},
    ]


def test_names_of_many_columns_are_compared_in_linear_time(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n1\n")
    started = time.process_time()
    ((_, bad),) = cells(path)
    assert isinstance(bad, BadRow)
    assert time.process_time() - started < 20


def test_spaces_after_the_delimiter(tmp_path: Path) -> None:
    for text in ('"prompt", "answer"\n"a", "b"\n', '"prompt", "answer"\n"a", "b, c"\n'):
        ((_, row),) = cells(written(tmp_path / "x.csv", text))
        assert row["answer"] in ("b", "b, c")
    ((_, row),) = cells(written(tmp_path / "y.csv", "prompt,answer\n a, b\n"))
    assert row == {"prompt": " a", "answer": " b"}  # indentation is text


def test_pandas_index_and_trailing_delimiters_of_excel(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", ",prompt,answer,,\n0,a,b,,\n1,c,d,,note\n")
    assert [row for _, row in cells(path)] == [
        {"column 1": "0", "prompt": "a", "answer": "b"},
        {"column 1": "1", "prompt": "c", "answer": "d", "column 5": "note"},
    ]


def test_values_of_formats_are_read_from_text(tmp_path: Path) -> None:
    path = written(tmp_path / "kto.csv", "prompt,completion,label\na,b,True\nc,d,0\n007,1,false\n")
    assert [r.good for r in read_records([path], "unpaired")] == [True, False, False]
    assert guess_kind(path) == "unpaired"
    messages = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'
    quoted = messages.replace('"', '""')
    path = written(tmp_path / "m.csv", f'messages\n"{quoted}"\n')
    (record,) = read_records([path], "conversations")
    assert record.messages[1]["content"] == "b"
    path = written(tmp_path / "p.csv", "messages\n\"[{'role': 'user', 'content': 'a'}]\"\n")
    error = refused(path, "conversations")
    assert error.what.startswith("messages: expected a list as JSON")
    assert "df.to_json" in error.fix
    path = written(tmp_path / "mc.csv", 'question,choices,answer\nq,"[""x"", ""y""]",1\n')
    (record,) = read_records([path], "conversations")
    assert record.messages[1]["content"] == "B"
    path = written(tmp_path / "rm.csv", "prompt,chosen,rejected,margin\na,b,c,0.5\nd,[e],f,\n")
    assert [(p.chosen[0]["content"], p.margin) for p in read_records([path], "pairs")] == [("b", 0.5), ("[e]", None)]


def test_tables_in_other_encodings(tmp_path: Path) -> None:
    path = written(tmp_path / "x.csv", EXCEL.removeprefix("\ufeff"), "cp1252")
    assert "data.encoding=cp1252" in refused(path, "conversations").fix
    read = list(read_records([path], "conversations", encoding="windows-1252"))
    assert read[2].messages[0]["content"] == "Preis in €"
    path = written(tmp_path / "y.csv", EXCEL, "utf-16-le")  # Excel's "Unicode text"
    assert "data.encoding=utf-16" in refused(path, "conversations").fix
    assert len(list(read_records([path], "conversations", encoding="utf-16"))) == 3


def test_the_first_sheet_of_a_workbook(tmp_path: Path) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    path, book = tmp_path / "x.xlsx", openpyxl.Workbook()
    for row in (
        ["prompt", "answer", "n"],
        ["a\nb", 1.5, True],
        [None, None, None],
        ["c", "1,50", 7],
        ["=1+1", "x", None],
    ):
        book.active.append(row)
    book.create_sheet("more")
    book.save(path)
    found = cells(path)
    assert [row for _, row in found[:2]] == [
        {"prompt": "a\nb", "answer": "1.5", "n": "true"},
        {"prompt": "c", "answer": "1,50", "n": "7"},
    ]
    assert (found[2][0], found[2][1].detail) == ("5", "a formula without a stored value")
    assert len(list(read_records([path], "conversations", on_bad_line="skip"))) == 2
    path.write_bytes(path.read_bytes()[:-200])
    assert refused(path, "conversations").what.startswith("damaged workbook")


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("x.xls", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600), "this is an Office file of before 2007"),
        ("x.ods", b"PK\x03\x04mimetypeapplication/vnd.oasis.opendocument.spreadsheet", "this is an OpenDocument"),
        ("x.xls", b"<table><tr><td>a</td></tr></table>", "not a .xls file, in spite of its name"),
        ("x.xlsx", b"prompt,answer\na,b\n", "not a .xlsx file, in spite of its name"),
        ("x.docx", b"PK\x03\x04word/document.xml", "this is a Word document"),
    ],
)
def test_other_tables_are_refused_by_name(tmp_path: Path, name: str, content: bytes, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert refused(path).what.startswith(what)
