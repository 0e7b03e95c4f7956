"""The one error users see, and the exit codes that go with it.

Everything a user can cause is a `UserError`: what went wrong, where, and one thing to do about it. `cli` prints it as two lines
and exits with its code; anything else is our own bug and keeps its traceback (shown with --debug).
"""

from __future__ import annotations

OK = 0
FAILED = 1  # the run itself failed (a non-finite loss, a gate that was missed)
USAGE = 2  # command line, config or data
INTEGRITY = 3  # a checkpoint or shard that is not what it claims to be
RESOURCES = 4  # disk, memory, device, port
INTERRUPTED = 130  # SIGINT
TERMINATED = 143  # SIGTERM


class UserError(Exception):
    """A mistake the user can mend.

    Args:
        what: one sentence without a final full stop, with the offending value in it.
        where: `file:line`, a config key or an option; may be empty.
        fix: one command or one edit.
        code: the exit code, one of the constants above.
    """

    def __init__(self, what: str, *, where: str = "", fix: str = "", code: int = USAGE):
        super().__init__(what)
        self.what, self.where, self.fix = (harmless(str(text), keep="\n") for text in (what, where, fix))
        self.code = code

    def __str__(self) -> str:
        place = f" ({self.where})" if self.where else ""
        fix = f"\nfix: {self.fix}" if self.fix else ""
        return f"error: {self.what}{place}{fix}"


def harmless(text: str, keep: str = "") -> str:
    """Text for a terminal, in which what would act on it (escape sequences, bidirectional overrides) is written out."""
    return "".join(
        c if c.isprintable() or c in keep else c.encode("unicode_escape", "surrogatepass").decode() for c in text
    )
