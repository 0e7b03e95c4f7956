"""Standard streams: progress that cannot be written is dropped, a result that cannot be written is an error with a code of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tinyllm import streams
from tinyllm.errors import RESOURCES, UNREAD, UserError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/dev/full")
LIST = ["data", "download"]  # prints a table, and needs neither torch nor a network


def started(arguments: list[str], **streams: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "tinyllm", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, timeout=120, text=True, **{"stderr": subprocess.PIPE, **streams})
    return done.returncode, done.stderr or ""


def closing(*numbers: int) -> Callable[[], None]:
    return lambda: [os.close(number) for number in numbers] and None


def pipe_without_reader() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def test_a_result_that_nobody_reads_ends_with_141_and_no_words() -> None:
    assert started(LIST, stdout=pipe_without_reader()) == (UNREAD, "")
    assert started(["--help"], stdout=pipe_without_reader()) == (UNREAD, "")


def test_a_result_that_cannot_be_written_is_named() -> None:
    with open("/dev/full", "w") as full:
        code, words = started(LIST, stdout=full)
        assert (code, words.splitlines()[0]) == (
            RESOURCES,
            "error: the result cannot be written to standard output: No space left on device",
        )
        assert len(words.splitlines()) == 2
        assert started(["pretrain", "--dry-run", "--json"], stdout=full)[0] == RESOURCES
    code, words = started(LIST, preexec_fn=closing(1))
    assert (code, words.splitlines()[0]) == (
        RESOURCES,
        "error: the result cannot be written to standard output: it is closed",
    )


def test_errors_that_cannot_be_written_keep_their_code() -> None:
    with open("/dev/full", "w") as full:
        assert started(["nonsense"], stderr=full)[0] == 2
    assert started(["nonsense"], stdout=subprocess.DEVNULL, preexec_fn=closing(0, 1, 2))[0] == 2
    assert started(["nonsense"], stderr=pipe_without_reader())[0] == 2


def test_a_run_whose_progress_nobody_reads_is_trained_to_the_end(tmp_path: Path) -> None:
    """`tinyllm pretrain ... 2>&1 | head -1`: the run is complete, and `&&` does not take the lost result for one."""
    pipe = pipe_without_reader()
    small = ["pretrain", "--fast-dev-run", "--set", "train.steps=2", "--set", "data.train=[world:40]"]
    code, _ = started(small, stdout=pipe, stderr=pipe, cwd=tmp_path)
    assert code == UNREAD
    facts = json.loads((tmp_path / "runs/pretrain/fast-dev-run/run.json").read_text())
    assert facts["status"] == "completed"


def test_progress_is_dropped_and_results_raise_once() -> None:
    with open("/dev/full", "w") as full:
        progress = streams._Progress(full.fileno(), "w", closefd=False)
        assert progress.write(b"abc") == 3
        results = streams._Results(full.fileno(), "w", closefd=False)
        with pytest.raises(UserError) as caught:
            results.write(b"abc")
        assert caught.value.code == RESOURCES
        assert results.write(b"abc") == 3


def test_a_full_pipe_that_is_not_blocking_delays_results_and_drops_progress() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    while True:
        try:
            os.write(writing, b"x" * 4096)
        except BlockingIOError:
            break
    assert streams._Progress(writing, "w", closefd=False).write(b"abc") == 3
    code = "import os, time; time.sleep(0.3); os.read(0, 1 << 20)"
    with subprocess.Popen([sys.executable, "-c", code], stdin=reading):
        assert streams._Results(writing, "w").write(b"abc") == 3
