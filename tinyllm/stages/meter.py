"""How far reading has come: a live bar on a terminal, a plain line every ten seconds in a pipe. On stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from tinyllm import dist
from tinyllm.train.progress import Quiet, say

_SECONDS_BETWEEN_LINES = 10.0


class Meter:
    """`with Meter("prepare", total) as meter: meter.update(read, done)`.

    Args:
        total: bytes to read; 0 where nobody knows.
    """

    def __init__(self, title: str, total: int):
        self.title, self.total = title, total
        self.began = self.last_line = time.monotonic()
        self.bar: Any = None

    def __enter__(self) -> Meter:
        if dist.is_main() and not Quiet.on and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (TextColumn("{task.description}"), BarColumn(24), TextColumn("{task.fields[numbers]}"))
            self.bar = Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total or None, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, read: int, done: int) -> None:
        """So many bytes of the files were read, and so many of text are done with."""
        now = time.monotonic()
        spent = max(1e-9, now - self.began)
        numbers = f"{done / 1e6:,.0f} MB of text, {done / 1e6 / spent:.1f} MB/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=read, numbers=numbers)
        elif now - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = now
            if self.total:
                left = spent * (self.total - read) / max(1, read)
                numbers = f"{read / self.total:.0%} {numbers} eta {int(left // 60)}m{int(left % 60):02d}s"
            say(f"{self.title} {numbers}")
