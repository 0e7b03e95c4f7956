"""SIGINT, SIGTERM and SIGHUP: one line and exit code 128 + number, within two seconds, in every phase of every command.

A signal raises `Stop` in the main thread, wherever that is, except in a section that is `holding` signals: a training step is finished
and saved first. Python runs signal handlers only between two of its own instructions, so a long call into C++ delays them, and a library
may swallow the exception. Therefore a thread, which the C-level handler wakes, ends the process if it is still there after `_GRACE`
seconds. All files are written so that this loses nothing. In a held section it only prints the line.

Nothing of this package is imported here: the handlers are installed before everything else.
"""

from __future__ import annotations

import _thread
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

STOPS = tuple(int(known) for known in signal.Signals if known.name in ("SIGINT", "SIGTERM", "SIGHUP"))
_ECHO = (
    1.0  # seconds in which a repeated signal counts once: schedulers, launchers and `timeout` send it to every process
)
_GRACE = 0.6  # seconds from a signal to the forced end
_AGAIN = 0.02  # seconds until a lost `Stop` is raised again
_NOTICE = 0.1  # seconds until the thread prints what the main thread has not


class Stop(BaseException):
    """A signal outside a held section, or a second one in it. Unwinds the stack, so that temporary files are removed.

    Args:
        number: of the signal.
        again: it is a second signal: what was being finished is abandoned.
    """

    hint = ""  # what follows the line: how to go on

    def __init__(self, number: int, *, again: bool = False):
        super().__init__(text_of(number))
        self.number, self.again = number, again


class _State:
    """The signal that this process has received, and what it is doing."""

    number = 0  # of the signal; 0: none
    at = 0.0  # when it came
    held = 0  # depth of `holding`
    line = ""  # to print in a held section
    said = False  # that line was printed
    kept = False  # the main thread has recorded the signal in a held section
    serial = 0  # changes when a signal was dealt with
    forgotten = -1.0  # when that was
    installed = False
    ending = False  # the last line is being printed
    announce: Callable[[str, int], object]


def text_of(number: int) -> str:
    """Return `stopped by SIGINT`."""
    return f"stopped by {signal.Signals(number).name}"


def code() -> int:
    """Return the exit code of the signal that was received, 128 + its number; 0 without one."""
    return 128 + _State.number if _State.number else 0


def install() -> None:
    """Handle the signals from here to the end of the process. SIGHUP stays ignored under nohup."""
    if _State.installed or threading.current_thread() is not threading.main_thread():
        return
    _State.installed, _State.announce = True, _print
    _take()
    sys.unraisablehook = _unraisable
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reading,), daemon=True, name="signals").start()
    if sys.platform != "win32":
        os.register_at_fork(after_in_child=_forget_in_child)


def announce_by(function: Callable[[str, int], object]) -> None:
    """Let `function(line, exit code)` print the last line of a process that is ended by the thread."""
    _State.announce = function


@contextmanager
def continued_by(hint: str) -> Iterator[None]:
    """Add to the line of a signal in this section how to go on."""
    try:
        yield
    except Stop as stop:
        stop.hint = stop.hint or hint
        raise


@contextmanager
def holding(line: str = "") -> Iterator[None]:
    """Record a signal instead of raising it; at the end of the section raise it, unless `forget` was called.

    Args:
        line: printed at once when a signal comes.
    """
    outer = not _State.held
    earlier = {} if _State.installed or not outer else _take()
    if earlier:
        forget()
    line_before, _State.line = _State.line, line or _State.line
    _State.held += 1
    try:
        yield
        if outer and _State.number:
            raise Stop(_State.number)
    finally:
        _State.held -= 1
        _State.line = line_before
        for number, handler in earlier.items():
            signal.signal(number, handler)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise signals at once inside a held section, also one that is already recorded: here nothing can be lost."""
    held, _State.held = _State.held, 0
    try:
        if held and _State.number:
            raise Stop(_State.number)
        yield
    finally:
        _State.held = held


def forget() -> None:
    """Declare the received signal dealt with: the process goes on."""
    _State.number, _State.said, _State.kept = 0, False, False
    _State.serial, _State.forgotten = _State.serial + 1, time.monotonic()


def end(number: int, hint: str = "") -> NoReturn:
    """Print the last line and end the process now, without the cleaning up of libraries, which may wait for their threads."""
    if not _State.ending:  # else the other thread prints
        _State.ending = True
        _State.announce(text_of(number) + f"; {hint}" * bool(hint), 128 + number)
    os._exit(128 + number)


def _take() -> dict[int, Callable[[int, FrameType | None], object] | int | None]:
    """Install the handler. Returns the handlers before."""
    earlier = {}
    for number in STOPS:
        before = signal.getsignal(number)
        if number in (signal.SIGINT, signal.SIGTERM) or before is not signal.SIG_IGN:
            earlier[number] = before
            signal.signal(number, _receive)
    return earlier


def _receive(number: int, frame: FrameType | None) -> None:
    """Handle a signal, in the main thread."""
    again = bool(_State.number)
    if again and time.monotonic() - _State.at <= _ECHO:
        return
    if again:
        raise Stop(number, again=True)
    _State.number, _State.at = number, time.monotonic()
    if not _State.held:
        raise Stop(number)
    _State.kept = True
    _say_held()


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """Repeat a signal in a moment if it came in a destructor or the callback of a weak reference, where exceptions are lost."""
    stop = unraisable.exc_value
    if isinstance(stop, Stop):
        threading.Timer(_AGAIN, _repeat, (stop,)).start()
    else:
        sys.__unraisablehook__(unraisable)


def _repeat(stop: Stop) -> None:
    if not stop.again:
        _State.number = 0
    main = threading.main_thread().ident
    if os.name == "posix" and main is not None:
        signal.pthread_kill(main, stop.number)  # also interrupts a call that waits
    else:
        _thread.interrupt_main(signal.Signals(stop.number))


def _say_held() -> None:
    """Print the line of a held section, once."""
    if _State.line and not _State.said:
        _State.said = True
        write(_State.line)


def write(line: str) -> None:
    """Print a line on stderr: not by `print`, which the handler may have interrupted, and never waiting for a reader."""
    try:
        if os.name != "posix" or select.select((), (2,), (), 0)[1]:
            os.write(2, line.encode() + b"\n")
    except (OSError, ValueError):
        return


def _print(line: str, exit_code: int) -> None:
    """Print the last line, before the command line is imported. A launcher prints for its ranks."""
    if "TINYLLM_RANKS" not in os.environ:
        write(line)


def _watch(reading: int) -> None:
    """The thread: look after every signal."""
    first = last = 0.0
    serial = -1
    while True:
        for number in os.read(reading, 64):
            now = time.monotonic()
            if number not in STOPS or now - _State.forgotten < _NOTICE:  # dealt with before this thread woke up
                continue
            if serial != _State.serial:  # an earlier signal was dealt with
                first, last, serial = now, now, _State.serial
            elif now - last <= _ECHO:
                continue
            last = now
            threading.Thread(target=_look_after, args=(number, now, serial, now > first), daemon=True).start()


def _look_after(number: int, came: float, serial: int, again: bool) -> None:
    """Print the line of a held section; where nothing is held, or the signal is the second, end the process."""
    time.sleep(_NOTICE)
    if _State.held and not again:
        _say_held()
    time.sleep(max(0.0, came + _GRACE - time.monotonic()))
    if _State.serial != serial or ((_State.held or _State.kept) and not again):
        return
    end(number)


def _forget_in_child() -> None:
    """A forked child has the handlers of its parent, but not the thread."""
    signal.set_wakeup_fd(-1)
    for number in STOPS:
        if signal.getsignal(number) is _receive:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _State.installed, _State.number, _State.held = False, 0, 0
