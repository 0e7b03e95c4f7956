"""Whole commands on malformed data: exit code 0, or 2 with an error, a fix and no shards. The full volume runs with `-m slow`."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import malformed, small
from tests.support.malformed import FILES, FINE, SKIPPED
from tinyllm import cli
from tinyllm.data.records.formats import TITLES
from tinyllm.data.tokens.shards import open_shards

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return one folder for all examples of a test."""
    return tmp_path_factory.mktemp("fuzz")


# Runs many commands in one process, as the command line runs one, and prints the outcome of each.
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
    "unpaired": ["align-offline", "--algorithm", "kto"],
    "prompts": ["align-online"],
}


def run_commands(place: Path, given: list[list[str]]) -> list[dict[str, Any]]:
    """Run commands in one new process; return `code`, `err` and `torch` (whether it was imported) of each."""
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


def check_outcome(run: dict[str, Any], path: Path, folder: Path) -> None:
    """Check for exit code 0 with valid shards, or 2 with an error, a fix and no shards."""
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


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_prepare_on_malformed_files_exits_0_or_2(place: Path, every: int) -> None:
    small.tokenizer().save(place / "tokenizer", model_max_length=96)
    tokenizer = {"error": _TINY, "skip": ["--set", f"tokenizer={place / 'tokenizer'}"]}  # to be trained, and given
    given = []
    for name in list(FILES)[::every]:
        (place / name).write_bytes(FILES[name])
        for mode in ("error", "skip"):
            settings = ["--set", f"data.train=[{place / name}]", "--set", f"data.on_bad_line={mode}", *tokenizer[mode]]
            given.append(["data", "prepare", *settings, "--name", f"{name}-{mode}".replace(".", "_")])
    found = run_commands(place, given)
    assert len(found) >= 196 // every
    for arguments, run in zip(given, found, strict=True):
        name = arguments[-1].rpartition("-")[0]
        path = next(place / file for file in FILES if file.replace(".", "_") == name)
        check_outcome(run, path, place / "runs" / "data" / arguments[-1])
        readable = FINE | (SKIPPED if arguments[-1].endswith("-skip") else {})
        assert run["code"] == 2 or (path.name, "documents") in readable, run
    assert {run["code"] for run in found} == {0, 2}


def test_byte_order_mark_and_crlf_do_not_change_shards(place: Path) -> None:
    rows = malformed.lines(*({"text": f"café {i}\n\nend"} for i in range(40)))
    (place / "a.jsonl").write_bytes(rows)
    (place / "b.jsonl").write_bytes(codecs.BOM_UTF8 + rows.replace(b"\n", b"\r\n"))
    found = run_commands(
        place, [["data", "prepare", "--set", f"data.train=[{n}.jsonl]", *_TINY, "--name", n] for n in "ab"]
    )
    assert [run["code"] for run in found] == [0, 0]
    assert "byte order mark dropped, 40 CRLF line ends read as LF" in found[1]["err"]
    for name in ("train.bin", "val.bin"):
        first, second = ((place / "runs" / "data" / n / "shards" / name).read_bytes() for n in "ab")
        assert first == second


def test_prepare_reads_the_named_encoding(place: Path) -> None:
    texts = [f"第{i}章。学而时习之，不亦说乎？" for i in range(40)]
    for encoding in ("utf-8", "gb18030"):
        (place / f"{encoding}.txt").write_text("\n<|endoftext|>\n".join(texts), encoding=encoding)
    (place / "west.jsonl").write_bytes(b'{"text": "\x93caf\xe9\x94"}\n{"text": "b"}\n')

    def prepare(name: str, encoding: str, run: str) -> list[str]:
        settings = ["--set", f"data.train=[{name}]", "--set", f"data.encoding={encoding}"]
        return ["data", "prepare", *settings, *_TINY, "--name", run]

    found = run_commands(
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
    (again,) = run_commands(place, [prepare("west.jsonl", "cp1252", "d")])  # other text: prepared again
    assert again["code"] == 0
    assert shards("d") != before


def test_bad_rows_after_the_first_stop_a_stage(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """The check of first records does not reach them. In this process, since torch is needed in any case."""
    monkeypatch.chdir(place)
    small.saved(small.rough(), place / "parent")
    good = [{"messages": [malformed.USER | {"content": f"What is {i}?"}, malformed.GPT]} for i in range(30)]
    codes = set()
    for number, odd in enumerate(malformed.ODD_VALUES[::5]):
        path = place / f"{number}.jsonl"
        bad = malformed.broken(good[0], ("messages", 1, "content"), odd)
        path.write_text(
            malformed.lines(*good).decode() + bad + "\n" + malformed.lines(*good).decode(), encoding="utf-8"
        )
        settings = [
            f"data.train=[{path}]",
            "train.steps=1",
            "train.eval_rows=4",
            "data.max_length=64",
            "train.batch_size=4",
        ]
        options = ["--checkpoint", "parent", "--device", "cpu", "--name", f"n{number}"]
        capfd.readouterr()
        code = cli.run(["sft", *options, *(part for setting in settings for part in ("--set", setting))])
        codes.add(code)
        err = capfd.readouterr().err
        assert "Traceback" not in err
        assert code == 0 or f"({path}:31)\nfix: " in err, err
    assert codes == {0, 2}


def test_every_stage_refuses_a_bad_first_record_before_importing_torch(place: Path) -> None:
    given, paths = [], []
    for name in ("empty.jsonl", "blank.txt", "latin1.jsonl", "column.jsonl", "role.jsonl", "deep.jsonl", "table.csv"):
        (place / name).write_bytes(FILES[name])
        for kind, stage in _STAGES.items():
            if (name, kind) in (("role.jsonl", "prompts"),):
                continue
            given.append([*stage, "--set", f"data.train=[{place / name}]"])
            paths.append(place / name)
    for run, path, arguments in zip(run_commands(place, given), paths, given, strict=True):
        assert (run["code"], run["torch"]) == (2, False), (arguments, run)
        assert str(path) in run["err"]
        assert "Traceback" not in run["err"]
    assert not list(place.glob("runs/*/*/shards"))


@pytest.mark.parametrize("stage", [["data", "prepare"], *_STAGES.values()], ids=lambda stage: stage[0])
def test_every_command_refuses_an_empty_file_before_torch_is_imported(place: Path, stage: list[str]) -> None:
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
    assert (error, fix) == (
        f"error: 0 {TITLES[kind]} in e.txt",
        "fix: add data to the file, or remove it from the command",
    )
    assert not any(line.split("|")[-1].strip().split(".")[0] == "torch" for line in imports)
    assert after.children_user + after.children_system - before.children_user - before.children_system < 3


@pytest.mark.slow
def test_prepare_in_separate_processes(place: Path) -> None:
    """About forty malformed files, and everything that is not a regular file."""
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
        check_outcome(
            {"code": done.returncode, "err": done.stderr, "torch": False}, path, place / "runs" / "data" / f"n{number}"
        )
