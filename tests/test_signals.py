"""Signals in processes of their own: one line and 128 + number within a second, whatever the main thread is doing."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tinyllm import signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")

BEGIN = """
import gc, hashlib, os, signal, sys, threading, time
from pathlib import Path
from tinyllm import signals, streams
streams.open_streams(); signals.install()
def ready(): Path(sys.argv[1]).touch()
def native(seconds):  # one call into C that releases the lock of the interpreter and notices no signal
    threading.Timer(0.05, ready).start()
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", int(seconds * 1_000_000))
def work():
    {body}
try:
    try:
        work()
    finally:
        Path(sys.argv[1] + ".unwound").touch()
except signals.Stop as stop:
    signals.end(stop.number, stop.hint)
print("went on", file=sys.stderr, flush=True)
os._exit(0)
"""
LOST = """
    class Swallows:
        def __del__(self): ready(); time.sleep(0.5)
    s = Swallows(); del s
    time.sleep(20)
"""
CASES = {  # the body, the signals with pauses before them, exit code, output, seconds at most, whether the stack was unwound
    "python code": ("ready()\n    time.sleep(20)", [signal.SIGINT], 130, "stopped by SIGINT\n", 2.0, True),
    "SIGTERM": ("ready()\n    time.sleep(20)", [signal.SIGTERM], 143, "stopped by SIGTERM\n", 2.0, True),
    "SIGHUP": ("ready()\n    time.sleep(20)", [signal.SIGHUP], 129, "stopped by SIGHUP\n", 2.0, True),
    "a call into C": ("native(30)", [signal.SIGINT], 130, "stopped by SIGINT\n", 2.0, False),
    "in a destructor": (LOST.strip(), [signal.SIGINT], 130, "stopped by SIGINT\n", 2.0, True),
    "a library that swallows everything": (
        "while True:\n        try: ready(); time.sleep(20)\n        except BaseException: pass",
        [signal.SIGINT], 130, "stopped by SIGINT\n", 2.0, False,
    ),
    "with a hint": (
        "with signals.continued_by('go on'):\n        ready(); time.sleep(20)",
        [signal.SIGINT], 130, "stopped by SIGINT; go on\n", 2.0, True,
    ),
    "a held section": (
        "with signals.holding('soon'):\n        ready(); time.sleep(1.2); print('saved', file=sys.stderr)",
        [signal.SIGTERM], 143, "soon\nsaved\nstopped by SIGTERM\n", 2.5, True,
    ),
    "a held section that is one call into C": (
        "with signals.holding('soon'):\n        native(3); print(signals.code(), file=sys.stderr)",
        [signal.SIGINT], 130, "soon\n130\nstopped by SIGINT\n", 20.0, True,
    ),
    "a second signal in a held section": (
        "with signals.holding('soon'):\n        ready(); time.sleep(20)",
        [signal.SIGINT, 0.5, signal.SIGINT, 0.8, signal.SIGINT], 130, "soon\nstopped by SIGINT\n", 2.0, True,
    ),
    "an interruptible part of a held section": (
        "with signals.holding('soon'):\n        with signals.interruptible():\n            ready(); time.sleep(20)",
        [signal.SIGINT], 130, "stopped by SIGINT\n", 2.0, True,
    ),
    "dealt with": (
        "try: ready(); time.sleep(20)\n    except signals.Stop: signals.forget(); time.sleep(1.5)",
        [signal.SIGINT], 0, "went on\n", 3.0, True,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, float, bool]]:
    """Run all cases beside each other: they only wait."""
    folder = tmp_path_factory.mktemp("signals")
    with ThreadPoolExecutor(len(CASES)) as threads:
        return dict(zip(CASES, threads.map(lambda name: outcome(name, folder), CASES), strict=True))


def outcome(name: str, folder: Path) -> tuple[int, str, float, bool]:
    body, sent, *_ = CASES[name]
    flag = folder / name
    command = [sys.executable, "-c", BEGIN.replace("{body}", body), str(flag)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # which nohup ignores
    )
    while not flag.exists() and process.poll() is None:
        time.sleep(0.01)
    at = 0.0
    for number in sent:
        if isinstance(number, float):
            time.sleep(number)
        else:
            at = time.monotonic()
            process.send_signal(number)
    _, words = process.communicate(timeout=60)
    return process.returncode, words, time.monotonic() - at, Path(f"{flag}.unwound").exists()


@pytest.mark.parametrize("name", CASES)
def test_a_signal_ends_the_process_with_its_line_and_code(name: str, outcomes: dict) -> None:
    _, _, code, words, seconds, unwound = CASES[name]
    found = outcomes[name]
    assert found[:2] == (code, words)
    assert found[2] < seconds
    assert found[3] == unwound


def test_without_the_command_line_signals_are_recorded_in_held_sections_only() -> None:
    before = [signal.getsignal(number) for number in signals.STOPS]
    seen = []
    with pytest.raises(signals.Stop) as caught, signals.holding():  # noqa: PT012
        signal.raise_signal(signal.SIGTERM)
        seen.append(signals.code())
    assert seen == [143]
    assert caught.value.number == signal.SIGTERM
    assert [signal.getsignal(number) for number in signals.STOPS] == before
    with signals.holding():
        assert signals.code() == 0


def test_sighup_stays_ignored_under_nohup(tmp_path: Path) -> None:
    script = BEGIN.replace("{body}", "ready(); time.sleep(0.6)")
    process = subprocess.Popen(
        ["nohup", sys.executable, "-c", script, str(tmp_path / "ready")], stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGHUP)
    assert process.wait(20) == 0
    assert "went on" in process.stderr.read()


def test_the_first_instructions_of_the_command_print_no_traceback() -> None:
    """From the import of the command line on. Earlier, Python itself is starting."""
    code = """
import os, runpy, signal, sys
class Finder:
    def find_spec(self, name, *_):
        if name == "tinyllm.cli": os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
sys.argv = ["tinyllm", "runs"]
runpy.run_module("tinyllm", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (130, "stopped by SIGINT\n")
