"""Every script on every terminal: columns by display width, and output streams that are not UTF-8."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from tinyllm.cli.printing import eval as eval_printing
from tinyllm.cli.printing import runs as runs_printing
from tinyllm.cli.printing.text import columns, cut, pad

ROOT = Path(__file__).resolve().parents[2]
WORDS = {
    "latin": "naïve",
    "zh": "中文数据",
    "ar": "بيانات",
    "th": "ข้อมูลนี้",
    "ko": "데이터",
    "he": "נתונים",
    "emoji": "🙂🙂",
}


@pytest.mark.parametrize("word", WORDS.values(), ids=WORDS)
def test_columns_line_up_by_display_width(word: str, capsys: pytest.CaptureFixture) -> None:
    eval_printing._columns([("data", "n", "acc"), (word, "12", "0.5"), ("plain-name", "1,000", "0.25")])
    runs_printing._table({"run": "left", "step": "right"}, [[word, "1"], ["plain-name", "200"]])
    lines = capsys.readouterr().out.splitlines()
    ends = [cell_len(line[: line.rindex(last)]) for line, last in zip(lines[:3], ("acc", "0.5", "0.25"), strict=True)]
    assert len(set(ends)) == 1
    assert len({cell_len(line) for line in lines[3:]}) == 1
    assert columns(pad(word, 30)) == columns(pad(word, 30, "right")) == 30
    assert columns(cut(word * 20, 10)) <= 10
    assert cut(word * 20, 10).endswith("...")


_C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


@pytest.mark.parametrize("environment", [_C, {"PYTHONIOENCODING": "gbk"}, {"PYTHONIOENCODING": "ascii"}], ids=str)
def test_text_beyond_the_encoding_of_the_terminal_is_replaced(tmp_path: Path, environment: dict[str, str]) -> None:
    path = tmp_path / "x.csv"
    path.write_text("prompt,completion\n" + "".join(f"{word},{word} {i}\n" for i, word in enumerate(WORDS.values())))
    command = [sys.executable, "-m", "tinyllm", "data", "inspect", str(path), "--records", "7"]
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHON"))}
    environ |= environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, env=environ, cwd=tmp_path, timeout=60, check=False)
    assert (done.returncode, b"Error" in done.stderr) == (0, False), done.stderr
    assert done.stdout.count(b"assistant: ") == 6
    assert b"?" in done.stdout


def test_arguments_that_the_locale_cannot_represent(tmp_path: Path) -> None:
    environ = os.environ | _C | {"PYTHONPATH": str(ROOT)}
    environ.pop("PYTHONIOENCODING", None)
    command = [sys.executable, "-m", "tinyllm", "data", "inspect", "é.txt".encode()]
    done = subprocess.run(command, capture_output=True, env=environ, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().splitlines()[1] == "fix: put PYTHONUTF8=1 in front of the command"
    code = "from tinyllm.streams import decode_argument; import sys; print(ascii(decode_argument(sys.argv[1])))"
    command = [sys.executable, "-c", code, "é中 \udcff"]
    done = subprocess.run(
        [a.encode(errors="surrogateescape") for a in command], capture_output=True, env=environ, check=True, timeout=60
    )
    assert done.stdout.decode().strip() == r"'\xe9\u4e2d \ufffd'"
