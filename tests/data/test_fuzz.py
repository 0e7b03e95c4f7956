"""Readers on malformed input: valid records, or one error with its location. Never a traceback.

Inputs are malformed files (`tests.support.malformed`), valid rows with an odd value at any position, and valid files edited by hypothesis.
All are read in this process; whole commands are in `test_malformed_commands`. The full volume runs with `-m slow`.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import malformed
from tests.support.malformed import CASES, FILES, FINE, GOOD, ODD_VALUES, ROWS, SKIPPED, attempt
from tinyllm.data.records.formats import KINDS
from tinyllm.data.records.reader import read_records
from tinyllm.data.sources import files, streams
from tinyllm.data.sources.encodings import ENCODINGS
from tinyllm.errors import UserError

FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


# --- malformed files -------------------------------------------------------------------------------------------------------------

# errors of these files have no line
_WITHOUT_LINE = r"gz$|parquet$|csv$|tsv$|archive|zstd|xz|pdf|tar|empty|blank|only|two_tables"


@pytest.mark.parametrize("name", FILES)
def test_malformed_files_give_records_or_one_located_error(place: Path, name: str) -> None:
    path = place / name
    path.write_bytes(FILES[name])
    for kind in KINDS:
        for mode, readable in (("error", FINE), ("skip", FINE | SKIPPED)):
            records, error, _ = attempt(path, kind, mode)
            assert len(records) == readable.get((name, kind), 0), (kind, mode)
            if error is None:
                continue
            assert str(path) in str(error)
            another_kind = kind != "documents" and error.what.startswith("expected ")  # of the whole file
            if mode == "error" and not another_kind and not re.search(_WITHOUT_LINE, name):
                assert re.search(rf"{re.escape(str(path))}:\d+\b", str(error)), error


ENCODED = {encoding: "é" for encoding in ENCODINGS}
ENCODED |= dict.fromkeys([name for name in ENCODINGS if name.startswith(("utf", "gb"))], "猫")
ENCODED |= dict.fromkeys(("cp1251", "koi8-r", "koi8-u", "cp866", "iso8859-5"), "кот")
ENCODED |= {"euc-kr": "고양이", "cp949": "고양이", "shift_jis": "ねこ", "cp932": "ねこ", "euc-jp": "ねこ"}
ENCODED |= dict.fromkeys(("big5", "cp950", "big5hkscs"), "貓") | dict.fromkeys(("cp1253", "iso8859-7"), "γάτα")
ENCODED |= {"cp1255": "חתול", "cp1256": "قطة", "iso8859-6": "قطة", "cp874": "แมว"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json", "x.jsonl.gz"])
def test_every_encoding_gives_the_same_documents(
    place: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    for module in (files, streams):
        monkeypatch.setattr(module, "HEAD", 1 << 14)  # in place of 1 MiB, so that small files need several reads
    word = ENCODED[encoding]
    rows = [{"text": f"{word} {i}\n" + "a" * (i * 97 % 2000)} for i in range(60)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if name == "x.json":
        text = "[" + ",\n".join(text.splitlines()) + "]"
    if name == "x.txt":
        text = "\n<|endoftext|>\n".join(row["text"] for row in rows)
    pack = gzip.compress if name.endswith("gz") else bytes
    (place / name).write_bytes(pack(text.encode(encoding)))
    records, error, report = attempt(place / name, "documents", encoding=encoding)
    assert error is None
    assert [r.text.rstrip() for r in records] == [row["text"].rstrip() for row in rows]
    noted = any(note.startswith(f"read as {encoding}") for note in report.files[0].notes)
    assert noted == (encoding != "utf-8")


def test_bytes_invalid_in_the_named_encoding_are_a_bad_row(place: Path) -> None:
    path = place / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\x81\xff"}\n{"text": "b"}\n')
    for encoding in ("cp1252", "gb18030", "shift_jis", "euc-kr"):
        _, error, _ = attempt(path, "documents", encoding=encoding)
        assert error.where == f"{path}:2"
        assert error.what == f"not {encoding}: bytes without a character in it"
        records, error, report = attempt(path, "documents", "skip", encoding=encoding)
        assert [r.text for r in records] == ["a", "b"]
        assert report.dropped[f"not {encoding}"].count == 1
    with pytest.raises(UserError, match="'utf9' is not a value of") as wrong:
        read_records([path], "documents", encoding="utf9")
    assert wrong.value.fix == "did you mean 'utf-8'?"


def test_byte_order_mark_and_crlf_do_not_change_documents(place: Path) -> None:
    plain = GOOD + "café\n".join(['{"text": "', '"}\n']).replace("\n", "", 1).encode()
    (place / "a.jsonl").write_bytes(plain)
    (place / "b.jsonl").write_bytes(codecs.BOM_UTF8 + plain.replace(b"\n", b"\r\n"))
    (place / "c.jsonl").write_bytes(
        codecs.BOM_UTF8 + GOOD + codecs.BOM_UTF8 + plain[len(GOOD) :]
    )  # two concatenated files
    plain_records, marked, joined = (attempt(place / f"{name}.jsonl", "documents")[0] for name in "abc")
    assert plain_records == marked == joined
    assert attempt(place / "b.jsonl", "documents")[2].files[0].notes == [
        "byte order mark dropped",
        "3 CRLF line ends read as LF",
    ]


# --- odd values at any position --------------------------------------------------------------------------------------------------


def _sweep(place: Path, every: int) -> int:
    tried = 0
    combinations = ((k, r, at, odd) for k, r in CASES for at in malformed.places(r) for odd in ODD_VALUES)
    for number, (kind, row, at, odd) in enumerate(combinations):
        if number % every:
            continue
        text = malformed.broken(row, at, odd)
        for name, content in (("x.jsonl", text), ("x.json", f"[{text}]")):
            (place / name).write_text(content, encoding="utf-8")
            for mode in ("error", "skip"):
                _, error, _ = attempt(place / name, kind, mode)
                assert error is None or str(place / name) in str(error)
                tried += 1
    return tried


def test_odd_values_inside_valid_rows(place: Path) -> None:
    for kind, row in CASES:  # each is valid before it is edited
        (place / "x.jsonl").write_text(json.dumps(row))
        assert attempt(place / "x.jsonl", kind)[1] is None
    assert _sweep(place, 17) > 3000


@pytest.mark.slow
def test_every_odd_value_at_every_position(place: Path) -> None:
    assert _sweep(place, 1) > 50_000


# --- files edited by hypothesis --------------------------------------------------------------------------------------------------

_SEEDS = [(kind, malformed.lines(*rows, *rows)) for kind, rows in ROWS.items()]
_SEEDS += [("documents", b"One day.\n\nA word.\n<|endoftext|>\nThe end.\n" * 40)]
_INSERTED = [b"\0", b"\n", b"\r", b'"', b"\\", b"{", b"}", b"[", b"]", b",", b"\xff", b"\xef\xbb\xbf", b"\xc3", b"\\ud800",
             b"NaN", b"\x1b[2J", b"\x1f\x8b", b"<|endoftext|>", b"9" * 5000, b"[" * 3000, b"\xe2\x80\xa8", b" " * 70_000]  # fmt: skip
edits = st.lists(
    st.tuples(
        st.sampled_from(["insert", "delete", "flip", "cut", "double"]),
        st.floats(0, 1),
        st.integers(0, 255),
        st.sampled_from(_INSERTED),
    ),
    max_size=4,
)


def edited(data: bytes, edits: list[tuple[str, float, int, bytes]]) -> bytes:
    for what, where, number, inserted in edits:
        at = int(where * len(data))
        if what == "insert":
            data = data[:at] + inserted + data[at:]
        elif what == "delete":
            data = data[:at] + data[at + number :]
        elif what == "flip" and at < len(data):
            data = data[:at] + bytes([data[at] ^ (number or 1)]) + data[at + 1 :]
        elif what == "cut":
            data = data[:at]
        elif what == "double":
            data = data[:at] + data[at // 2 :]
    return data


_NAMES = ["x.jsonl", "x.json", "x.txt", "x", "x.jsonl.gz", "x.parquet"]
examples = {
    "seed": st.sampled_from(_SEEDS),
    "edits": edits,
    "name": st.sampled_from(_NAMES),
    "kind": st.none() | st.sampled_from(KINDS),
    "mode": st.sampled_from(["error", "skip"]),
    "packed": st.sampled_from(["no", "inside", "outside"]),
    "encoding": st.sampled_from(["utf-8", "utf-8", "utf-8", *ENCODINGS]),
}


def _edited_file(
    place: Path,
    seed: tuple[str, bytes],
    edits: list,
    name: str,
    kind: str | None,
    mode: str,
    packed: str,
    encoding: str,
) -> None:
    data = edited(seed[1], edits)
    if packed == "inside":
        data = gzip.compress(data, mtime=0)
    elif packed == "outside":
        data = edited(gzip.compress(seed[1], mtime=0), edits)
    (place / name).write_bytes(data)
    attempt(place / name, kind or seed[0], mode, encoding=encoding)


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_edited_files(place: Path, count: int) -> None:
    settings(FUZZ, max_examples=count)(given(**examples)(lambda **example: _edited_file(place, **example)))()


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_random_bytes(place: Path, count: int) -> None:
    @settings(FUZZ, max_examples=count)
    @given(data=st.binary(max_size=400), name=st.sampled_from(_NAMES), kind=st.sampled_from(KINDS))
    def one(data: bytes, name: str, kind: str) -> None:
        (place / name).write_bytes(data)
        attempt(place / name, kind)
        (place / name).write_bytes(b"\x1f\x8b\x08" + data)
        attempt(place / name, kind, "skip")

    one()


@pytest.mark.parametrize("count", [150, pytest.param(3000, marks=pytest.mark.slow)])
def test_edited_parquet(place: Path, count: int) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    wholes = []
    for kind, rows in ROWS.items():
        for row in rows:
            with contextlib.suppress(pyarrow.ArrowInvalid):  # a column cannot hold both texts and lists
                kept = io.BytesIO()
                parquet.write_table(pyarrow.Table.from_pylist([row] * 3), kept)
                wholes.append((kind, kept.getvalue()))
    path = place / "x.parquet"
    for kind, whole in wholes:
        path.write_bytes(whole)
        _, error, _ = attempt(path, kind)
        assert error is None, error

    @settings(FUZZ, max_examples=count)
    @given(whole=st.sampled_from(wholes), edits=edits)
    def one(whole: tuple[str, bytes], edits: list) -> None:
        path.write_bytes(edited(whole[1], edits))
        attempt(path, whole[0], "skip")

    one()


def test_parquet_column_types_without_a_json_equivalent(place: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = place / "x.parquet"
    for column in (
        pyarrow.array([b"a"]),
        pyarrow.array([0], pyarrow.timestamp("ns")),
        pyarrow.array([[("a", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int32())),
        pyarrow.array([float("nan")]),
        pyarrow.array([None]),
        pyarrow.array(["a"]).dictionary_encode(),
        pyarrow.StringArray.from_buffers(1, pyarrow.py_buffer(b"\0\0\0\0\1\0\0\0"), pyarrow.py_buffer(b"\xff")),
    ):
        for name in ("text", "margin", "answer", "messages"):
            others = {"prompt": ["q"], "chosen": ["a"], "rejected": ["b"]} if name == "margin" else {}
            others |= {"question": ["q"]} if name == "answer" else {}
            parquet.write_table(pyarrow.table({name: column, **others}), path)
            for kind in KINDS:
                attempt(path, kind)
    for name in ("x.parquet.gz", "pipe"):
        (place / name).write_bytes(gzip.compress(path.read_bytes()))
        assert attempt(place / name, "documents")[1].what == "parquet cannot be read from gzip or from a pipe"
