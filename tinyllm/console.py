"""Messages and progress bars on stderr, from rank 0: a live bar on a terminal, a line every ten seconds in a pipe."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tinyllm import distributed as dist
from tinyllm.errors import escape_unprintable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

_SECONDS_BETWEEN_LINES = 10.0
_SHORTEST_BAR, _LONGEST_BAR = 8, 24  # characters


class Quiet:
    """The option --quiet: only results and errors are printed."""

    on = False


class Log:
    """The log file of the current run, to which `say` appends; set by `train.run.Run`."""

    path: Path | None = None


def say(text: str) -> None:
    """Print one line on stderr from rank 0, unless --quiet is given, and append it to the run's log."""
    if not dist.is_main():
        return
    text = _safe(text)
    if Log.path is not None:
        with (
            suppress(OSError),
            Log.path.open("a", encoding="utf-8", errors="backslashreplace") as file,
        ):  # a full disk is reported by what needs it
            file.write(text + "\n")
    if not Quiet.on:
        write_line(text)


def write_line(text: str) -> None:
    """Print one line on stderr. Nothing happens where it is closed, full, or read by nobody (`streams`)."""
    text = _safe(text)
    if sys.stderr is not None:  # `print` would choose stdout
        with suppress(OSError, ValueError):  # of a stream that is not ours
            print(text, file=sys.stderr, flush=True)


def _safe(text: str) -> str:
    """Return text whose names and messages from files, servers and models do nothing to a terminal, now or when the log is shown."""
    return escape_unprintable(text, keep="\n\t")


def _live_bar(console: Console) -> Progress:
    """Return a bar in one line: title, bar and remaining time whole, and as much of the numbers as fits beside them."""
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.table import Column
    from rich.text import Text

    class Numbers(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(task.fields["numbers"], no_wrap=True, overflow="ellipsis")

    def whole() -> Column:
        return Column(no_wrap=True)

    bar = BarColumn(max(_SHORTEST_BAR, min(_LONGEST_BAR, console.width // 5)), table_column=whole())
    title = TextColumn("{task.description}", markup=False, table_column=whole())
    return Progress(title, bar, TimeRemainingColumn(table_column=whole()), Numbers(), console=console, transient=True)


class ProgressBar:
    """A progress bar.

        with ProgressBar("prepare", total=size) as bar:
            bar.update(read, "12 MB of text")

    Args:
        total: the value of `completed` at the end; 0 if unknown.
        start: the value of `completed` at the beginning, for the estimate of the remaining time.
        line_at_once: print the first line at the first update, and not after ten seconds.
    """

    def __init__(self, title: str, total: int, *, start: int = 0, line_at_once: bool = False):
        self.title, self.total, self.start = escape_unprintable(title), total, start
        self.started = time.monotonic()
        self._last_line = float("-inf") if line_at_once else self.started
        self._live: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> ProgressBar:
        if dist.is_main() and not Quiet.on and sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console

            console = Console(stderr=True)
            live = _live_bar(console)
            live.start()
            self._live = live, live.add_task(self.title, total=self.total or None, completed=self.start, numbers="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live[0].stop()

    @property
    def elapsed(self) -> float:
        """Seconds since the start, never zero."""
        return max(1e-9, time.monotonic() - self.started)

    def eta(self, completed: int) -> str:
        """Return the estimated remaining time, as `eta 1m05s`."""
        left = self.elapsed / max(1, completed - self.start) * (self.total - completed)
        return f"eta {int(left // 60)}m{int(left % 60):02d}s"

    def update(self, completed: int, numbers: str, line: str = "", *, last: bool = False) -> None:
        """Show that `completed` of `total` is done.

        Args:
            numbers: the text beside the bar.
            line: the text of a line in a pipe; `numbers` by default.
            last: print the line now, whenever the line before was printed.
        """
        if self._live is not None:
            live, task = self._live
            live.update(task, completed=completed, numbers=numbers)
        elif last or time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            say(f"{self.title} {line or numbers}")


def show_reading(bar: ProgressBar, read: int, done: int) -> None:
    """Update the bar of a pass over files: `read` bytes of the files, and `done` bytes of text processed."""
    numbers = f"{done / 1e6:,.0f} MB of text, {done / 1e6 / bar.elapsed:.1f} MB/s"
    line = f"{read / bar.total:.0%} {numbers} {bar.eta(read)}" if bar.total else numbers
    bar.update(read, numbers, line)
