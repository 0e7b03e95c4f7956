"""Progress in a pipe: at once or after ten seconds, never more often, and the last line always; on a terminal a live bar."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from tinyllm import console
from tinyllm.cli.printing import text as printing
from tinyllm.console import ProgressBar, show_reading


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(console.time, "monotonic", lambda: now[0])
    return now


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().err.splitlines()


def test_lines_come_every_ten_seconds_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressBar("sft", 30, start=10, line_at_once=True) as bar:
        for step in range(11, 31):
            clock[0] += 4
            bar.update(step, f"{step}/30", f"step {step} {bar.eta(step)}", last=step == 30)
    assert lines(capsys) == [
        "sft step 11 eta 1m16s",
        "sft step 14 eta 1m04s",
        "sft step 17 eta 0m52s",
        "sft step 20 eta 0m40s",
        "sft step 23 eta 0m28s",
        "sft step 26 eta 0m16s",
        "sft step 29 eta 0m04s",
        "sft step 30 eta 0m00s",
    ]


@pytest.mark.parametrize(
    ("total", "line"),
    [(40_000_000, "prepare 25% 12 MB of text, 1.2 MB/s eta 0m30s"), (0, "prepare 12 MB of text, 1.2 MB/s")],
)
def test_reading_shows_share_and_rate(
    total: int, line: str, clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressBar("prepare", total) as bar:
        for _ in range(10):
            clock[0] += 1
            show_reading(bar, 10_000_000, 12_000_000)
    assert lines(capsys) == [line]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_title_and_remaining_time_are_whole_on_a_narrow_terminal(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    with ProgressBar("sft (LoRA)", 400) as bar:
        bar.update(
            120, "120/400 loss 0.6931 rewards/accuracies 0.500 rewards/margins 0.000 rewards/chosen 0.000 lr 1e-4"
        )
        live, _ = bar._live
        shown = ["".join(s.text for s in line) for line in live.console.render_lines(live.get_renderable())]
    assert len(shown) == 1
    assert shown[0].startswith("sft (LoRA) ━")
    assert re.search(r" (-|\d):[-\d]+:[-\d]+ 120/400 ", shown[0])
    assert ("…" in shown[0]) == (width < 140)


def test_on_a_terminal_no_lines_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar("prepare", 0, line_at_once=True) as bar:
        bar.update(3, "3 rows", last=True)
        assert bar._live is not None
        assert bar._live[0].tasks[0].fields == {"numbers": "3 rows"}
    assert "prepare 3 rows" not in capsys.readouterr().err


TEXT = "license \x1b[31mred\x9b2J \u202etxt.exe \ud800 中文"
SHOWN = r"license \x1b[31mred\x9b2J \u202etxt.exe \ud800 中文"


def test_nothing_that_is_said_acts_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names of files, licenses and messages come from elsewhere. The log is shown by `cat` one day."""
    monkeypatch.setattr(console.Log, "path", tmp_path / "log.txt")
    console.say(TEXT)
    with ProgressBar(TEXT, 1, line_at_once=True) as bar:
        bar.update(1, "1/1")
    assert lines(capsys) == [SHOWN, f"{SHOWN} 1/1"]
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").splitlines() == [SHOWN, f"{SHOWN} 1/1"]
    console.write_line("error: a\tb\nfix: c")
    assert lines(capsys) == ["error: a\tb", "fix: c"]


def test_a_name_is_not_markup(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar("[/red]x", 2) as bar:
        bar.update(1, "[bold]1")
    assert "[/red]x" in capsys.readouterr().err


def test_json_on_a_terminal_is_the_same_json(capsys: pytest.CaptureFixture[str]) -> None:
    found = {"name": TEXT, "tall": "\U000e0001", "rows": [1, None]}
    printing.json_object(found)
    printed = capsys.readouterr().out
    assert json.loads(printed) == found
    assert all(c.isprintable() for c in printed.rstrip("\n"))
    assert "中文" in printed
    printing.line(TEXT)
    assert capsys.readouterr().out == SHOWN + "\n"
