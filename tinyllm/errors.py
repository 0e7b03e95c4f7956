"""`UserError`, the only error that users see, and the exit codes.

Everything a user can cause is a `UserError`: what went wrong, where, and one thing to do about it. `cli` prints it in two lines and exits
with its code. Any other exception is a bug of ours and keeps its traceback (shown with --debug).
"""

from __future__ import annotations

OK = 0
FAILED = 1  # the run itself failed: a non-finite loss, a missed gate
USAGE = 2  # command line, configuration or data
INTEGRITY = 3  # a checkpoint or shard that is damaged or not what it claims to be
RESOURCES = 4  # disk, memory, device, port
INTERRUPTED = 130  # SIGINT
TERMINATED = 143  # SIGTERM
HUNG_UP = 129  # SIGHUP: the terminal was closed
UNREAD = 141  # a result whose reader closed the pipe, as of a program that SIGPIPE kills
STOPS = (INTERRUPTED, TERMINATED, HUNG_UP)


class UserError(Exception):
    """A mistake that the user can fix.

    Args:
        what: one sentence without a final full stop, with the offending value in it.
        where: `file:line`, a configuration key or an option; may be empty.
        fix: one command or one edit.
        code: the exit code, one of the constants above.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", code: int = USAGE):
        super().__init__(what)
        self.what, self.where, self.fix = (escape_unprintable(str(text), keep="\n") for text in (what, where, fix))
        self.code = code

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        before, after = ("", "next: ") if self.code in STOPS else ("error: ", "fix: ")  # a signal is no error
        fix = f"\n{after}{self.fix}" if self.fix else ""
        return f"{before}{self.what}{place}{fix}"


def one_line(error: str) -> str:
    """Return the text of an error as run.json holds it, with its fix in the same line."""
    return "; ".join(line for line in error.removeprefix("error: ").splitlines() if line.strip())


def escape_unprintable(text: str, keep: str = "") -> str:
    """Return text with characters that act on a terminal (escape sequences, bidirectional overrides) written as escapes.

    Args:
        keep: unprintable characters that stay as they are.
    """
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
