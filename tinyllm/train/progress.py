"""What a person sees while a run goes on: a live bar on a terminal, a plain line now and then in a pipe. On stderr, from rank 0."""

from __future__ import annotations

import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from tinyllm import dist
from tinyllm.dist import watch

_SECONDS_BETWEEN_LINES = 10.0
_HIDDEN = ("lr", "grad_norm", "tokens", "tokens_per_second", "loss")


class Quiet:
    """Set by --quiet: results and errors only."""

    on = False


class Log:
    """The file of the run under way that keeps what was said; set by `train.run.Run`."""

    path: Path | None = None


def say(text: str) -> None:
    """One line for the person, from rank 0, kept in the run's log."""
    if not dist.is_main():
        return
    if Log.path is not None:
        with (
            suppress(OSError),
            Log.path.open("a", encoding="utf-8") as file,
        ):  # a full disk is found out by what matters
            file.write(text + "\n")
    if not Quiet.on:
        print(text, file=sys.stderr, flush=True)


class Progress:
    """`with Progress("pretrain", total) as bar: bar.update(step, metrics)`."""

    def __init__(self, title: str, total: int, start: int = 0):
        self.title, self.total, self.start = title, total, start
        self.began = time.monotonic()
        self.last_line = 0.0
        self.bar = None

    def __enter__(self) -> Progress:
        watch.beat(self.start)
        if dist.is_main() and not Quiet.on and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeRemainingColumn())
            self.bar = Bar(*columns, TextColumn("{task.fields[numbers]}"), console=Console(stderr=True), transient=True)
            self.bar.start()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.start, numbers="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def update(self, step: int, metrics: dict[str, float]) -> None:
        """Show that `step` steps are done."""
        watch.beat(step)
        if self.bar is not None:
            self.bar.update(self.task, completed=step, numbers=_numbers(metrics, 3))
            return
        now = time.monotonic()
        if step == self.total or now - self.last_line >= _SECONDS_BETWEEN_LINES:
            self.last_line = now
            left = (now - self.began) / max(1, step - self.start) * (self.total - step)
            say(
                f"{self.title} step {step}/{self.total} {_numbers(metrics, 6)} eta {int(left // 60)}m{int(left % 60):02d}s"
            )


def _numbers(metrics: dict[str, float], most: int) -> str:
    """loss first, then the algorithm's own figures, then the rate and the speed."""
    own = [f"{k} {v:.3f}" for k, v in metrics.items() if k not in _HIDDEN][:most]
    shown = [f"loss {metrics['loss']:.4f}", *own, f"lr {metrics['lr']:.1e}"]
    if "tokens_per_second" in metrics:
        shown.append(f"{metrics['tokens_per_second']:,.0f} tok/s")
    return " ".join(shown)
