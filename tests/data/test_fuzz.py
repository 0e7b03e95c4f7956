"""Whatever a file holds: sound records, or one error of two lines that says where. Never a traceback, never half a shard.

Inputs are files made to be wrong (`malformed`), every place of a sound row with every odd value in it, and what hypothesis makes of
sound files. Most are read in this process; some by whole commands.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
import malformed
from malformed import CASES, FILES, FINE, GOOD, ODD_VALUES, ROWS

from tinyllm.data.files import expand
from tinyllm.data.records import KINDS, Report, read
from tinyllm.data.shards import open_shards
from tinyllm.data.streams import ENCODINGS
from tinyllm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 5.0  # that one input may take
FUZZ = settings(
    max_examples=300, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
MANY = settings(FUZZ, max_examples=3000)


def attempt(path: Path | str, kind: str, mode: str = "error", **options: Any) -> tuple[list, UserError | None, Report]:
    """Read everything, and hold what comes out to what every reading must keep."""
    started, records, error = time.monotonic(), [], None
    try:
        reader = read([path], kind, on_bad_line=mode, **options)
        records = list(reader)
        report = reader.report
    except UserError as raised:
        error, report = raised, Report(kind)
    assert time.monotonic() - started < SECONDS
    if error is not None:
        said = str(error)
        assert error.code == 2
        assert error.fix
        assert len(said) < 20_000
        assert said.isprintable() or all(c.isprintable() or c == "\n" for c in said)
        said.encode()
    else:
        assert records
        assert report.complete
        assert report.records == len(records) == sum(file.records for file in report.files)
        for record in records:
            malformed.check(record)
        for line in report.lines():
            assert line.isprintable()
    return records, error, report


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


# --- files that are wrong --------------------------------------------------------------------------------------------------------

_NAMED_WHOLE = (
    r"gz$|parquet$|csv$|tsv$|archive|zstd|xz|pdf|tar|empty|blank|only|two_tables"  # their faults are not of a line
)


@pytest.mark.parametrize("name", FILES)
def test_malformed_files(place: Path, name: str) -> None:
    path = place / name
    path.write_bytes(FILES[name])
    for kind in KINDS:
        for mode in ("error", "skip"):
            _, error, _ = attempt(path, kind, mode)
            if error is None:
                assert mode == "skip" or name in FINE or kind != "documents"
                continue
            assert str(path) in str(error)
            if mode == "error" and kind == "documents" and not re.search(_NAMED_WHOLE, name):
                assert re.fullmatch(rf"{re.escape(str(path))}:\d+", error.where), error
        assert (name in FINE) == (attempt(path, "documents")[1] is None)


def test_special_files(place: Path) -> None:
    for name, path in malformed.special_files(place):
        _, error, _ = attempt(path, "documents")
        assert error is not None, name
        assert str(path) in str(error), name


ENCODED = {encoding: "naïve" if encoding in ("latin-1", "cp1252") else "猫" for encoding in ENCODINGS}
ENCODED |= {"cp1251": "кот", "koi8-r": "кот", "euc-kr": "고양이", "shift_jis": "ねこ", "euc-jp": "ねこ", "big5": "貓"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json", "x.jsonl.gz"])
def test_a_named_encoding_is_read_and_is_byte_for_byte_what_utf8_gives(place: Path, name: str, encoding: str) -> None:
    word = ENCODED[encoding]
    rows = [
        {"text": f"{word} {i}\n" + "a" * (i * 97 % 2000)} for i in range(1500)
    ]  # a MiB and more: over several reads
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
    assert (f"read as {encoding}" in report.files[0].notes) == (encoding != "utf-8")


def test_bytes_that_are_none_of_a_named_encoding(place: Path) -> None:
    path = place / "x.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": "\x81\xff"}\n{"text": "b"}\n')
    for encoding in ("cp1252", "gb18030", "shift_jis", "euc-kr"):
        _, error, _ = attempt(path, "documents", encoding=encoding)
        assert error.where == f"{path}:2"
        assert error.what == f"not {encoding}: bytes that stand for no character in it"
        records, error, report = attempt(path, "documents", "skip", encoding=encoding)
        assert [r.text for r in records] == ["a", "b"]
        assert report.dropped[f"not {encoding}"].count == 1
    with pytest.raises(UserError, match="'utf8' is no data") as wrong:
        read([path], "documents", encoding="utf8")
    assert wrong.value.fix == "did you mean 'utf-8'?"


def test_a_mark_and_line_ends_of_windows_change_no_token(place: Path) -> None:
    plain = GOOD + "café\n".join(['{"text": "', '"}\n']).replace("\n", "", 1).encode()
    (place / "a.jsonl").write_bytes(plain)
    (place / "b.jsonl").write_bytes(codecs.BOM_UTF8 + plain.replace(b"\n", b"\r\n"))
    (place / "c.jsonl").write_bytes(codecs.BOM_UTF8 + GOOD + codecs.BOM_UTF8 + plain[len(GOOD) :])  # two files in one
    plainly, marked, joined = (attempt(place / f"{name}.jsonl", "documents")[0] for name in "abc")
    assert plainly == marked == joined
    assert attempt(place / "b.jsonl", "documents")[2].files[0].notes == [
        "byte order mark dropped",
        "3 CRLF line ends read as LF",
    ]


# --- every place, every value ----------------------------------------------------------------------------------------------------


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


def test_odd_values_in_places_of_sound_rows(place: Path) -> None:
    for kind, row in CASES:  # each is sound before it is broken
        (place / "x.jsonl").write_text(json.dumps(row))
        assert attempt(place / "x.jsonl", kind)[1] is None
    assert _sweep(place, 29) > 2000


@pytest.mark.slow
def test_every_odd_value_in_every_place(place: Path) -> None:
    assert _sweep(place, 1) > 50_000


# --- what hypothesis makes of sound files ----------------------------------------------------------------------------------------

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


def test_edited_files(place: Path) -> None:
    FUZZ(given(**examples)(lambda **example: _edited_file(place, **example)))()


@pytest.mark.slow
def test_many_edited_files(place: Path) -> None:
    MANY(given(**examples)(lambda **example: _edited_file(place, **example)))()


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
            with contextlib.suppress(pyarrow.ArrowInvalid):  # contents that are now a text, now a list, are no column
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


def test_parquet_columns_that_json_does_not_have(place: Path) -> None:
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
        assert attempt(place / name, "documents")[1].what == "parquet cannot be read packed or from a pipe"


# --- files as the system gives them ----------------------------------------------------------------------------------------------


def test_a_file_that_vanishes_after_it_was_listed(place: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (place / name).write_bytes(GOOD)
    reader = read([place], "documents")
    (place / "b.jsonl").unlink()
    records = iter(reader)
    assert [next(records).text, next(records).text] == ["a", "b"]
    with pytest.raises(UserError, match="cannot be read: No such file") as error:
        next(records)
    assert error.value.where == str(place / "b.jsonl")


def test_what_may_not_be_read(place: Path) -> None:
    """As somebody without rights, which root never is."""
    os.chmod(place, 0o755)
    (place / "shut").mkdir()
    (place / "shut" / "x.jsonl").write_bytes(GOOD)
    (place / "x.jsonl").write_bytes(GOOD)
    os.chmod(place / "x.jsonl", 0)
    os.chmod(place / "shut", 0)
    code = """
import os, sys
from tinyllm.data.records import read
from tinyllm.errors import UserError
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
os.chdir(sys.argv[1])
for source in ("x.jsonl", "shut", ".", "shut/x.jsonl", "*.jsonl"):
    try:
        print(source, [r.text for r in read([source], "documents")])
    except UserError as e:
        print(source, e.code, e.what, e.where)
"""
    for folder in (place.parent, place.parent.parent):
        os.chmod(folder, 0o755)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, place], capture_output=True, cwd=ROOT, timeout=60, check=True
        )
    finally:
        os.chmod(place / "shut", 0o755)
    assert done.stdout.decode().splitlines() == [
        "x.jsonl 2 cannot be read: Permission denied x.jsonl",
        "shut 2 cannot be read: Permission denied shut",
        ". 2 cannot be read: Permission denied .",
        "shut/x.jsonl 2 cannot be read: Permission denied shut/x.jsonl",
        "*.jsonl 2 cannot be read: Permission denied x.jsonl",
    ]


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no text")
def test_file_names_that_are_no_text(place: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9 \x1b[2J\n.jsonl"))
    path.write_bytes(GOOD)
    for source in (path, place, str(place / "*.jsonl")):
        records, error, report = attempt(source, "documents")
        assert error is None
        assert len(records) == 2
        json.dumps(report.sources())
    path.write_bytes(b"{")
    assert attempt(place, "documents")[1].where == f"{place}/caf\\udce9 \\x1b[2J\n.jsonl:1"


def test_many_small_files(place: Path) -> None:
    for number in range(1000):
        (place / f"{number:05}.txt").write_text(f"file {number}")
    (place / "README.md").write_text("about this folder")
    (place / "table.csv").write_text("a,b")
    (place / "more").mkdir()
    (place / "linked").symlink_to(place / "more")
    started = time.process_time()
    records, _, report = attempt(place, "documents")
    assert [r.text for r in records] == [f"file {number}" for number in range(1000)]
    assert time.process_time() - started < 3
    assert report.passed_over == [str(place / name) for name in ("README.md", "linked", "table.csv")]
    said = report.lines()
    assert len(said) == 12
    assert said[10] == "990 more files: 990 documents, format text"


def test_folders_are_walked_once_whatever_their_links(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "x.txt").write_text("text")
    (place / "a" / "b" / "up").symlink_to(place / "a")
    (place / "linked.txt").symlink_to(place / "a" / "b" / "x.txt")  # a link to a file is that file
    assert expand([place]) == [place / "a" / "b" / "x.txt", place / "linked.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd")
def test_a_pipe_is_read_once() -> None:
    code = """
import os, sys
from tinyllm.data.records import read
from tinyllm.errors import UserError
reader = read([sys.argv[1]], "documents")
reader.look()
print([r.text for r in reader])
try:
    list(reader)
except UserError as e:
    print(e.what)
"""
    for name in ("/dev/stdin", "/dev/fd/0"):
        done = subprocess.run([sys.executable, "-c", code, name], input=GOOD, capture_output=True, cwd=ROOT, check=True)
        assert done.stdout.decode().splitlines() == ["['a', 'b']", "a pipe can be read only once"]


# --- size ------------------------------------------------------------------------------------------------------------------------

_MEASURED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))
from tinyllm.data.records import read
from tinyllm.errors import UserError
try:
    print([len(d.text) for d in read([sys.argv[1]], "documents", on_bad_line="skip", encoding=sys.argv[2])][:9])
except UserError as e:
    print(e)
print(next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""


def _peak(path: Path, encoding: str = "utf-8") -> tuple[str, int]:
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, path, encoding],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *said, peak = done.stdout.splitlines()
    return "\n".join(said), int(peak)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_gzip_bomb(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "x.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(400):
            file.write(b"a" * (1 << 20))
    assert path.stat().st_size < 1 << 20
    said, peak = _peak(path)
    assert re.match(r"error: \d{3},\d{3} bytes of gzip have become \d{2,3},\d{3},\d{3}, which no text does", said)
    assert peak < 300
    monkeypatch.setattr("tinyllm.data.streams._BOMB_BYTES", 1 << 21)
    monkeypatch.setattr("tinyllm.data.streams._BOMB_RATIO", 20)
    path.write_bytes(gzip.compress(b"\n" * (1 << 23)))
    assert "which no text does" in attempt(path, "documents")[1].what


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("shape", ["line", "array", "string", "spaces", "utf16", "text", "gzip"])
def test_one_line_of_200_megabytes(place: Path, shape: str) -> None:
    piece, begin, end = b"a" * (1 << 20), b'{"text": "', b'"}\n{"text": "ok"}\n'
    name = {"array": "x.json", "string": "x.json", "text": "x.txt", "gzip": "x.jsonl.gz"}.get(shape, "x.jsonl")
    if shape in ("array", "string"):
        begin, end = b'[{"text": "', b'"}, {"text": "ok"}]'
    if shape == "string":
        piece = "猫".encode() * (1 << 18)
    if shape == "spaces":
        piece, begin, end = b" " * (1 << 20), b'{"text": "ok"}\n', b""
    if shape == "text":
        begin, end = b"", b"\nok\n"
    encoding = "utf-16-le" if shape == "utf16" else "utf-8"
    if shape == "utf16":
        begin, end = (part.decode().encode("utf-16-le") for part in (begin, end))
        piece = b"a\0" * (1 << 19)
    if shape == "gzip":
        piece = os.urandom(3 << 18).hex().encode()[: 1 << 20]
    with (gzip.open if shape == "gzip" else open)(place / name, "wb") as file:
        file.write(begin)
        for _ in range(200):
            file.write(piece)
        file.write(end)
    said, peak = _peak(place / name, encoding)
    if shape in ("array", "string"):
        assert "no value that ends within 33,554,432 characters" in said
    else:
        assert said == "[2]"
    assert peak < 600


# --- whole commands --------------------------------------------------------------------------------------------------------------

# Runs many commands in one process, as the command line runs one, and says what became of each.
_COMMANDS = """
import contextlib, io, json, sys
from tinyllm import cli
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.run(json.loads(line))
    print(json.dumps({"code": code, "err": err.getvalue(), "torch": "torch" in sys.modules}), flush=True)
"""
_TINY = ["--set", "model.vocab_size=300"]
_STAGES = {
    "documents": ["pretrain"],
    "conversations": ["sft"],
    "pairs": ["rm"],
    "judgements": ["align-offline", "--algorithm", "kto"],
    "prompts": ["align-online"],
}


def commands(place: Path, given: list[list[str]]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS],
        input="".join(json.dumps(arguments) + "\n" for arguments in given),
        capture_output=True,
        text=True,
        cwd=place,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def sound(run: dict[str, Any], path: Path, folder: Path) -> None:
    """Exit 0 with shards that verify, or 2 with two lines and no shards."""
    assert run["code"] in (0, 2), run
    assert "Traceback" not in run["err"]
    assert not run["torch"]
    if run["code"] == 0:
        open_shards(folder / "shards", verify=True)
        return
    *_, error, fix = [line for line in run["err"].splitlines() if not line.startswith("    ")]
    assert error.startswith("error: "), run
    assert fix.startswith("fix: ")
    assert str(path) in error
    assert not (folder / "shards").exists()


def test_prepare_on_every_malformed_file(place: Path) -> None:
    given = []
    for name, data in FILES.items():
        (place / name).write_bytes(data)
        for mode in ("error", "skip"):
            setting = ["--set", f"data.train=[{place / name}]", "--set", f"data.on_bad_line={mode}"]
            given.append(["data", "prepare", *setting, *_TINY, "--name", f"{name}-{mode}".replace(".", "_")])
    found = commands(place, given)
    assert len(found) == 2 * len(FILES) >= 120
    for arguments, run in zip(given, found, strict=True):
        name = arguments[-1].rpartition("-")[0]
        path = next(place / file for file in FILES if file.replace(".", "_") == name)
        sound(run, path, place / "runs" / "data" / arguments[-1])
    assert {run["code"] for run in found} == {0, 2}


def test_every_stage_refuses_before_torch(place: Path) -> None:
    """What is wrong with the first record. That these are whole commands, and fast, `test_an_empty_file` shows."""
    given, paths = [], []
    for name in ("empty.jsonl", "blank.txt", "latin1.jsonl", "column.jsonl", "role.jsonl", "deep.jsonl", "table.csv"):
        (place / name).write_bytes(FILES[name])
        for kind, stage in _STAGES.items():
            if (name, kind) in (("role.jsonl", "prompts"),):
                continue
            given.append([*stage, "--set", f"data.train=[{place / name}]"])
            paths.append(place / name)
    for run, path, arguments in zip(commands(place, given), paths, given, strict=True):
        assert (run["code"], run["torch"]) == (2, False), (arguments, run)
        assert str(path) in run["err"]
        assert "Traceback" not in run["err"]
    assert not list(place.glob("runs/*/*/shards"))


@pytest.mark.parametrize("stage", [["data", "prepare"], *_STAGES.values()], ids=lambda stage: stage[0])
def test_an_empty_file(place: Path, stage: list[str]) -> None:
    (place / "e.txt").touch()
    command = [sys.executable, "-X", "importtime", "-m", "tinyllm", *stage, "--set", "data.train=[e.txt]"]
    before = os.times()
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=False
    )
    after = os.times()
    kind = "documents" if stage[0] == "data" else next(k for k, s in _STAGES.items() if s == stage)
    assert done.returncode == 2
    *imports, error, fix = [line for line in done.stderr.splitlines() if not line.startswith("training a tok")]
    assert (error, fix) == (f"error: 0 {kind} in e.txt", "fix: put data in it or leave it out")
    assert not any(line.split("|")[-1].strip().split(".")[0] == "torch" for line in imports)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 1


@pytest.mark.slow
def test_a_process_for_each_of_many_commands(place: Path) -> None:
    """As a user does it: forty files, and the ones that are no files."""
    paths = [place / name for name in list(FILES)[::3]]
    for path in paths:
        path.write_bytes(FILES[path.name])
    (place / "special").mkdir()
    paths += [path for name, path in malformed.special_files(place / "special") if name != "an endless name"]
    for number, path in enumerate(paths):
        command = [sys.executable, "-m", "tinyllm", "data", "prepare", "--set", f"data.train=[{path}]", *_TINY]
        done = subprocess.run(
            [*command, "--name", f"n{number}"],
            capture_output=True,
            text=True,
            cwd=place,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            timeout=60,
            check=False,
        )
        sound(
            {"code": done.returncode, "err": done.stderr, "torch": False}, path, place / "runs" / "data" / f"n{number}"
        )
