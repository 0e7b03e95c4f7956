"""Files as a system has them (links, pipes, devices, rights, names, size), and whole commands on whatever is wrong: exit 0 or 2."""

from __future__ import annotations

import codecs
import gzip
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "stages"))
import malformed
import small
from malformed import FILES, GOOD, attempt

from tinyllm.data.files import expand
from tinyllm.data.records import read
from tinyllm.data.shards import open_shards
from tinyllm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


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


def test_a_mark_and_line_ends_of_windows_change_no_byte_of_a_shard(place: Path) -> None:
    rows = malformed.lines(*({"text": f"café {i}\n\nend"} for i in range(40)))
    (place / "a.jsonl").write_bytes(rows)
    (place / "b.jsonl").write_bytes(codecs.BOM_UTF8 + rows.replace(b"\n", b"\r\n"))
    found = commands(
        place, [["data", "prepare", "--set", f"data.train=[{n}.jsonl]", *_TINY, "--name", n] for n in "ab"]
    )
    assert [run["code"] for run in found] == [0, 0]
    assert "byte order mark dropped, 40 CRLF line ends read as LF" in found[1]["err"]
    for name in ("train.bin", "val.bin"):
        first, second = ((place / "runs" / "data" / n / "shards" / name).read_bytes() for n in "ab")
        assert first == second


def test_prepare_reads_the_encoding_that_is_named(place: Path) -> None:
    texts = [f"第{i}章。学而时习之，不亦说乎？" for i in range(40)]
    for encoding in ("utf-8", "gb18030"):
        (place / f"{encoding}.txt").write_text("\n<|endoftext|>\n".join(texts), encoding=encoding)
    (place / "west.jsonl").write_bytes(b'{"text": "\x93caf\xe9\x94"}\n{"text": "b"}\n')

    def prepare(name: str, encoding: str, run: str) -> list[str]:
        settings = ["--set", f"data.train=[{name}]", "--set", f"data.encoding={encoding}"]
        return ["data", "prepare", *settings, *_TINY, "--name", run]

    found = commands(
        place,
        [
            prepare("utf-8.txt", "utf-8", "a"),
            prepare("gb18030.txt", "gb18030", "b"),
            prepare("gb18030.txt", "utf-8", "c"),
            prepare("west.jsonl", "latin-1", "d"),
        ],
    )
    assert [run["code"] for run in found] == [0, 0, 2, 0]
    assert "fix: name its encoding, perhaps --set data.encoding=gb18030" in found[2]["err"]

    def shards(name: str) -> bytes:
        return b"".join(
            (place / "runs" / "data" / name / "shards" / f"{side}.bin").read_bytes() for side in ("train", "val")
        )

    assert shards("a") == shards("b")
    before = shards("d")
    (again,) = commands(place, [prepare("west.jsonl", "cp1252", "d")])  # other text, so it is made anew
    assert again["code"] == 0
    assert shards("d") != before


def test_bad_rows_behind_good_ones_stop_a_stage(place: Path) -> None:
    """Those that the first look does not reach."""
    small.saved(small.rough(), place / "parent")
    good = [{"messages": [malformed.USER | {"content": f"What is {i}?"}, malformed.GPT]} for i in range(30)]
    given, paths = [], []
    for number, odd in enumerate(malformed.ODD_VALUES[::5]):
        path = place / f"{number}.jsonl"
        bad = malformed.broken(good[0], ("messages", 1, "content"), odd)
        path.write_text(
            malformed.lines(*good).decode() + bad + "\n" + malformed.lines(*good).decode(), encoding="utf-8"
        )
        given.append(["sft", "--checkpoint", "parent", "--set", f"data.train=[{path}]", "--set", "train.steps=1", "--device", "cpu",
                      "--set", "data.max_length=64", "--set", "train.batch_size=4", "--name", f"n{number}"])  # fmt: skip
        paths.append(path)
    found = commands(place, given)
    assert {run["code"] for run in found} == {0, 2}
    for run, path in zip(found, paths, strict=True):
        assert "Traceback" not in run["err"]
        assert run["code"] == 0 or f"({path}:31)\nfix: " in run["err"], run["err"]


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
