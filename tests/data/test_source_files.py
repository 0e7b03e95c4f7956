"""Files of all kinds: links, pipes, permissions, names and sizes. Memory is measured in a new process."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.malformed import GOOD, attempt
from tinyllm.data.records.reader import read_records
from tinyllm.data.sources.paths import expand
from tinyllm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


# --- kinds of files --------------------------------------------------------------------------------------------------------------


def test_file_deleted_after_listing_is_an_error(place: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (place / name).write_bytes(GOOD)
    reader = read_records([place], "documents")
    (place / "b.jsonl").unlink()
    records = iter(reader)
    assert [next(records).text, next(records).text] == ["a", "b"]
    with pytest.raises(UserError, match="cannot be read: No such file") as error:
        next(records)
    assert error.value.where == str(place / "b.jsonl")


def test_missing_read_permission_is_an_error(place: Path) -> None:
    """As a user without permissions; root always has them."""
    os.chmod(place, 0o755)
    (place / "shut").mkdir()
    (place / "shut" / "x.jsonl").write_bytes(GOOD)
    (place / "x.jsonl").write_bytes(GOOD)
    os.chmod(place / "x.jsonl", 0)
    os.chmod(place / "shut", 0)
    code = """
import os, sys
from tinyllm.data.records.reader import read_records
from tinyllm.errors import UserError
if os.geteuid() == 0:
    os.setresuid(65534, 65534, 65534)
os.chdir(sys.argv[1])
for source in ("x.jsonl", "shut", ".", "shut/x.jsonl", "*.jsonl"):
    try:
        print(source, [r.text for r in read_records([source], "documents")])
    except UserError as e:
        print(source, e.code, e.what, e.where)
"""
    for folder in place.parents:
        if "pytest-of-" in str(folder) or "forks-" in str(folder):
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
def test_file_names_that_are_not_utf8(place: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(place) + b"/caf\xe9 \x1b[2J\n.jsonl"))
    path.write_bytes(GOOD)
    for source in (path, place, str(place / "*.jsonl")):
        records, error, report = attempt(source, "documents")
        assert error is None
        assert len(records) == 2
        json.dumps(report.sources())
    path.write_bytes(b"{")
    assert attempt(place, "documents")[1].where == f"{place}/caf\\udce9 \\x1b[2J\n.jsonl:1"


def test_many_small_files_are_summarized_in_the_report(place: Path) -> None:
    for number in range(1000):
        (place / f"{number:05}.txt").write_text(f"file {number}")
    (place / "README.md").write_text("about this folder")
    (place / "table.csv").write_text("a,b")
    (place / "more").mkdir()
    (place / "linked").symlink_to(place / "more")
    started = time.process_time()
    records, _, report = attempt(place, "documents")
    assert [r.text for r in records] == [f"file {number}" for number in range(1000)]
    assert time.process_time() - started < 15
    assert report.skipped_files == [str(place / name) for name in ("README.md", "linked", "table.csv")]
    lines = report.lines()
    assert len(lines) == 5
    assert lines[3] == "997 more files: 997 documents, format text"


def test_what_a_folder_holds_beside_data_is_not_read(place: Path) -> None:
    for name in ("a.jsonl", ".hidden.jsonl", "README.md", "LICENSE.txt", "CHANGELOG.md", "table.csv"):
        (place / name).write_bytes(GOOD)
    (place / ".cache").mkdir()
    (place / ".cache" / "b.jsonl").write_bytes(GOOD)
    (place / "more").mkdir()
    (place / "more" / "c.jsonl.gz").write_bytes(GOOD)
    assert expand([place]) == [place / "a.jsonl", place / "more" / "c.jsonl.gz"]
    (place / "a.jsonl").unlink()
    (place / "more" / "c.jsonl.gz").unlink()
    assert expand([place]) == [place / "table.csv"]


def test_links_to_folders_are_not_followed(place: Path) -> None:
    (place / "a" / "b").mkdir(parents=True)
    (place / "a" / "b" / "x.txt").write_text("text")
    (place / "a" / "b" / "up").symlink_to(place / "a")
    (place / "linked.txt").symlink_to(place / "a" / "b" / "x.txt")  # links to files are followed
    assert expand([place]) == [place / "a" / "b" / "x.txt", place / "linked.txt"]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/fd")
def test_pipes_are_read_once() -> None:
    code = """
import os, sys
from tinyllm.data.records.reader import read_records
from tinyllm.errors import UserError
reader = read_records([sys.argv[1]], "documents")
reader.check_first_records()
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
from tinyllm.data.records.reader import read_records
from tinyllm.errors import UserError
try:
    print([len(d.text) for d in read_records([sys.argv[1]], "documents", on_bad_line="skip", encoding=sys.argv[2])][:9])
except UserError as e:
    print(e)
print(next(int(l.split()[1]) // 1024 for l in open("/proc/self/status") if l.startswith("VmHWM")))
"""


def _peak(path: Path, encoding: str = "utf-8") -> tuple[str, int]:
    """Read a file in a new process; return its output and its peak memory in MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, path, encoding],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    *output, peak = done.stdout.splitlines()
    return "\n".join(output), int(peak)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_gzip_bomb_is_refused_in_flat_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "x.jsonl.gz"
    with gzip.open(path, "wb") as file:
        for _ in range(100):
            file.write(b"a" * (1 << 20))
    assert path.stat().st_size < 1 << 20
    output, peak = _peak(path)
    assert re.match(r"error: [\d,]+ bytes of gzip expand to \d{2,3},\d{3},\d{3} or more, too many for text", output)
    assert peak < 300
    monkeypatch.setattr("tinyllm.data.sources.streams._BOMB_BYTES", 1 << 18)
    monkeypatch.setattr("tinyllm.data.sources.streams._BOMB_RATIO", 20)
    path.write_bytes(gzip.compress(b"\n" * (1 << 20)))
    assert "too many for text" in attempt(path, "documents")[1].what


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
@pytest.mark.parametrize("shape", ["line", "array", "string", "spaces", "utf16", "text", "gzip"])
def test_line_of_200_megabytes_is_refused_in_flat_memory(place: Path, shape: str) -> None:
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
    output, peak = _peak(place / name, encoding)
    if shape in ("array", "string"):
        assert "no value ends within 33,554,432 characters" in output
    else:
        assert output == "[2]"
    assert peak < (280 if shape in ("array", "string") else 160)  # docs/data.md: 250 and 130 MB
