"""Progress in a pipe: at once or after ten seconds, never more often, and the last line always; on a terminal a live bar."""

from __future__ import annotations

import sys

import pytest

from tinyllm import console
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


def test_on_a_terminal_no_lines_are_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with ProgressBar("prepare", 0, line_at_once=True) as bar:
        bar.update(3, "3 rows", last=True)
        assert bar._live is not None
        assert bar._live[0].tasks[0].fields == {"numbers": "3 rows"}
    assert "prepare 3 rows" not in capsys.readouterr().err
