"""Bytes to rows: the same records in every layout, plain text split into documents, and damaged files."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

import pytest

from tests.support.reading import refused, run_python, texts
from tinyllm.data.records.reader import read_records
from tinyllm.data.sources import files, streams

LAYOUTS = {
    "lines.jsonl": b'{"text": "a"}\n\n{"text": "b"}',
    "crlf.jsonl": b'\xef\xbb\xbf{"text": "a"}\r\n{"text": "b"}\r\n',
    "array.json": b'[{"text": "a"},\n {"text": "b"}]\n',
    "array.jsonl": b'[{"text": "a"}, {"text": "b"}]',
    "lines.json": b'{"text": "a"}\n{"text": "b"}\n',
    "pretty.json": b'{\n "text": "a"\n}\n{\n "text": "b"\n}\n',
    "wrapped.json": b'{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}',
    "bom.json": b'\xef\xbb\xbf\n[{"text": "a"}, {"text": "b"}]',
    "no_suffix": b'{"text": "a"}\n{"text": "b"}\n',
    "wrong_suffix.txt": b'{"text": "a"}\n{"text": "b"}\n',
    "marked.txt": b"a\n<|endoftext|>\nb\n",
    "marked_crlf.txt": b"\xef\xbb\xbfa\r\n<|endoftext|>\r\nb\r\n<|endoftext|>\r\n",
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("zipped", [False, True])
def test_all_layouts_give_the_same_documents(tmp_path: Path, name: str, zipped: bool) -> None:
    stored = gzip.compress(LAYOUTS[name]) if zipped else LAYOUTS[name]
    path = tmp_path / (name + ".gz" if zipped and name != "no_suffix" else name)
    path.write_bytes(stored)
    reader = read_records([path], "documents")
    assert [d.text for d in reader] == ["a", "b"] == [d.text for d in reader]
    (file,) = reader.report.files
    assert reader.report.complete
    assert file.records == reader.report.records == 2
    assert (file.sha256, file.bytes) == (hashlib.sha256(stored).hexdigest(), len(stored))
    assert ("byte order mark dropped" in file.notes) == LAYOUTS[name].startswith(b"\xef\xbb\xbf")
    assert reader.report.sources() == [
        {"source": str(path), "sha256": file.sha256, "bytes": file.bytes, "records": file.records}
    ]


def test_parquet_rows_and_damage(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["a", "b", ""]}), path)
    reader = read_records([path], "documents")
    assert [d.text for d in reader] == ["a", "b"]
    assert reader.report.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert reader.report.dropped["empty text"].locations == [f"{path}:3"]
    path.write_bytes(path.read_bytes()[:-9])
    assert refused(path).what.startswith("damaged parquet file")


def test_plain_text_is_split_at_blank_lines_after_2_000_characters(tmp_path: Path) -> None:
    paragraph = "word " * 99 + "end"  # 498 characters; five of them and their blank lines pass 2,000
    path = tmp_path / "x.txt"
    path.write_text("\n\n\n" + "\n\n".join([paragraph] * 12) + "\n\n")
    reader = read_records([path], "documents")
    assert [d.text for d in reader] == ["\n\n".join([paragraph] * n) for n in (5, 5, 2)]
    assert reader.report.files[0].notes == [
        "plain text split at blank lines, into documents of at least 2,000 characters"
    ]
    path.write_text("\n".join(["abcd fghi"] * 450))  # without blank lines: 201 lines of ten characters pass 2,000
    assert [len(text.split("\n")) for text in texts(path)] == [201, 201, 48]
    path.write_text("\n\n" + "\n".join(["abcd fghi"] * 1000))  # no blank line for long: 801 lines pass 8,000
    assert [len(text.split("\n")) for text in texts(path)] == [801, 199]


def test_carriage_returns_within_lines_are_noted(tmp_path: Path) -> None:
    path = tmp_path / "mac.txt"
    path.write_bytes(b"one\rtwo\rthree\r\n")
    reader = read_records([path], "documents")
    assert [d.text for d in reader] == ["one\rtwo\rthree"]
    note = "2 carriage returns within lines kept; as line ends: tr '\\r' '\\n' < FILE > NEW"
    assert note in reader.report.files[0].notes


def test_end_of_text_lines_take_precedence_over_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("a\n\n" + "b\n" * 3000 + " <|endoftext|> \n\n<|endoftext|>\nc <|endoftext|> d\n")
    assert texts(path) == ["a\n\n" + "b\n" * 2999 + "b", "c <|endoftext|> d"]


@pytest.mark.parametrize("name", ["x.jsonl", "x.txt", "x.json"])
@pytest.mark.parametrize(
    ("encoding", "line", "offset", "byte"),
    [("latin-1", 2, 19, "0xe9"), ("cp1252", 2, 19, "0xe9"), ("utf-16", 1, 0, "0xff")],
)
def test_other_encodings_are_refused_with_the_byte_offset(
    tmp_path: Path, name: str, encoding: str, line: int, offset: int, byte: str
) -> None:
    path = tmp_path / name
    path.write_bytes('{"text": "a"}\n{"café": 1}\n'.encode(encoding))
    error = refused(path)
    assert error.what.startswith(f"not UTF-8: byte {byte} at byte offset {offset}")
    assert error.where == f"{path}:{line}"
    guess = "utf-16" if encoding == "utf-16" else "latin-1"
    skip = "skip bad rows: --set data.on_bad_line=skip"
    assert error.fix == f"name its encoding, perhaps --set data.encoding={guess}, or {skip}"


def test_characters_across_reads_and_invalid_bytes_in_an_array(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    start = '[{"text": "' + "é" * 700_000 + '"},\n'  # one character crosses the end of the first MiB
    path.write_bytes(start.encode() + b'{"text": "a"}]')
    assert [len(text) for text in texts(path)] == [700_000, 1]
    path.write_bytes(start.encode() + b'{"text": "\xff"}]')
    error = refused(path)
    assert error.where == f"{path}:2"
    assert error.what == f"not UTF-8: byte 0xff at byte offset {len(start.encode()) + 10}"
    assert error.fix == "fix the file"  # bad rows of an array cannot be skipped, and most of it is UTF-8


def test_binary_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_bytes(b"ab\nc\0d\n")
    assert refused(path).what == "not text: a NUL byte at byte offset 4"
    path.write_bytes(gzip.compress(b"hello\n" * 1000)[:-12])
    assert refused(path).what.startswith("damaged gzip data")
    path.write_bytes(b"\x1f\x8bgarbage")
    assert refused(path).what.startswith("damaged gzip data")


BAD_LINES = {
    '{"text": "trunc': "not JSON (Unterminated string starting at at column 10)",
    "{'text': 1}": "not JSON (Expecting property name enclosed in double quotes at column 2)",
    '{"text": NaN}': "not JSON (NaN is not a JSON number)",
    '{"text": -Infinity}': "not JSON (-Infinity is not a JSON number)",
    '{"text": "a", "text": "b"}': "not JSON (the key 'text' twice in one object)",
    '{"text": ' + "[" * 100_000 + "}": "not JSON (nested too deeply)",
    '{"text": ' + "9" * 5000 + "}": "not JSON (a number with thousands of digits)",
    '{"text": "\\ud800"}': "half of a surrogate pair (\\ud800 to \\udfff), which is not a character",
    '{"\\uDFFF": 1}': "half of a surrogate pair (\\ud800 to \\udfff), which is not a character",
    '"text"': "expected an object with named columns, found a text",
    "[1]": "expected an object with named columns, found a list",
    "null": "expected an object with named columns, found null",
    "7": "expected an object with named columns, found a number",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_lines_are_located_or_skipped(tmp_path: Path, line: str) -> None:
    good = '{"text": "\\ud83d\\ude00"}\n'  # a complete surrogate pair is one character
    path = tmp_path / "x.jsonl"
    path.write_text(good * 6 + line + "\n" + good)
    error = refused(path)
    assert str(error).splitlines()[0] == f"error: {BAD_LINES[line]} ({path}:7)"
    assert "--set data.on_bad_line=skip" in error.fix
    skipping = read_records([path], "documents", on_bad_line="skip")
    assert [d.text for d in skipping] == ["\U0001f600"] * 7
    ((_, tally),) = skipping.report.dropped.items()
    assert (tally.count, tally.locations) == (1, [f"{path}:7"])


BAD_ARRAYS = {
    '[{"text": "a"},\n {"text": "b"}': "',' or ']' after an element of the array at character 31) (FILE:2)",
    '[{"text": "a"}\n {"text": "b"}]': "',' or ']' after an element of the array at character 17) (FILE:2)",
    '[{"text": "a"},\n]': "Expecting value at character 17) (FILE:2)",
    '[{"text": "a"}]\n]': "Extra data after the end of the array at character 17) (FILE:2)",
    '[{"text": "a"},\n{"text": NaN}]': "NaN is not a JSON number) (FILE:2)",
    '[\n{"text": "a" "b"}]': "Expecting ',' delimiter at character 16) (FILE:2)",
    '[\n{"text": "a"}, 7]': "expected an object with named columns, found a number (FILE:2)",
    '{\n"text": "a",\n}': "FILE:3)",
}


@pytest.mark.parametrize("content", BAD_ARRAYS, ids=range(len(BAD_ARRAYS)))
def test_broken_arrays_are_refused_with_the_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    expected = BAD_ARRAYS[content].replace("FILE", str(path))
    assert str(refused(path)).splitlines()[0].endswith(expected)


def test_arrays_are_streamed_and_their_lines_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    path.write_text("[\n" + ",\n".join(json.dumps({"text": "é" * n}) for n in range(1, 2000)) + "\n]")  # 12 MB
    monkeypatch.setattr("tinyllm.data.sources.json_rows.HEAD", 1000)
    reader = iter(read_records([path], "documents"))
    assert [len(next(reader).text) for _ in range(1500)] == list(range(1, 1501))
    path.write_text(path.read_text().replace('"}\n]', '"}\n7]'))
    assert refused(path).where == f"{path}:2001"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS")
def test_overlong_line_is_refused_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    with path.open("wb") as file:
        file.write(b'{"text": "ok"}\n{"text": "')
        for _ in range(200):
            file.write(b"a" * (1 << 20))
        file.write(b'"}\n{"text": "after"}\n')
    code = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (600 << 20, 600 << 20))
from tests.support.reading import refused, run_python, texts
from tinyllm.data.records.reader import read_records
from tinyllm.errors import UserError
try:
    print([d.text for d in read_records([sys.argv[1]], "documents", on_bad_line=sys.argv[2])])
except UserError as e:
    print(e)
# not ru_maxrss: a child inherits its parent's
print(next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""
    for mode, expected in (
        ("error", "error: a line of 209,715,213 bytes; the limit is 33,554,432"),
        ("skip", "['ok', 'a"),
    ):
        done = run_python(code, path, mode)
        assert done.stdout.decode().startswith(expected), done.stderr
        assert int(done.stdout.split()[-1]) < 300
    path.rename(tmp_path / "x.txt")
    done = run_python(code, tmp_path / "x.txt", "error")
    assert done.stdout.decode().startswith("error: a line of")


def test_line_of_exactly_the_limit_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_ROW", 20)
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "%s"}\n{"text": "b"}\n' % ("a" * 8))
    assert texts(path) == ["a" * 8, "b"]
    path.write_text('{"text": "%s"}\n{"text": "b"}\n' % ("a" * 9))
    assert refused(path).what == "a line of 22 bytes; the limit is 20"


def test_text_of_many_short_lines_is_told_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("\n".join(f"Anna Bell {i}" for i in range(1000)))
    reader = read_records([path], "documents")
    assert len(list(reader)) == 7
    assert reader.report.files[0].notes[-1] == (
        "1,000 lines in 7 documents; if each is a document of its own: data.format=lines"
    )
    assert len(texts(path, format="lines")) == 1000
    path.write_text("\n".join("" if i % 470 == 5 else f"这是第{i}行的一句话，讲一个很短的故事。" for i in range(6187)))
    reader = read_records([path], "documents")
    count = len(list(reader))
    assert (
        reader.report.files[0]
        .notes[-1]
        .endswith(f"lines in {count} documents; if each is a document of its own: data.format=lines or paragraphs")
    )
    path.write_text("\n".join(["A long line of prose that goes on for more than a hundred characters, " * 2] * 100))
    reader = read_records([path], "documents")
    list(reader)
    assert len(reader.report.files[0].notes) == 1


@pytest.mark.parametrize("name", ["x.txt.gz", "x.jsonl.gz", "x.csv.gz", "x.txt"])
def test_endless_blank_lines_are_refused(tmp_path: Path, name: str) -> None:
    content = b"\n" * (files.MAX_BLANK + 10) + b" \r\n" * files.MAX_BLANK
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    error = refused(path, on_bad_line="skip")
    assert error.what == "more than 100,000 blank lines in a row"
    assert error.where == f"{path}:{files.MAX_BLANK + 1}"


def test_a_parquet_file_of_endless_equal_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "x.parquet"
    parquet.write_table(pyarrow.table({"text": ["same"] * 2_000_000}), path)
    assert path.stat().st_size < 2_000_000 / 50
    monkeypatch.setattr(streams, "_BOMB_BYTES", 1 << 19)  # in place of 64 MiB
    assert "2,000,000 rows, too many for the size of the file" in refused(path).what
