"""Problems in a configuration, the sources they come from, and the single error that reports them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tinyllm.errors import UserError

_MAX_SHOWN = 20  # problems in one error


@dataclass(frozen=True)
class Problem:
    """A mistake in a configuration and its fix. `line` is 0 if the source has no lines."""

    what: str
    fix: str
    source: str = ""
    line: int = 0

    @property
    def where(self) -> str:
        return f"{self.source}:{self.line}" if self.line else self.source


@dataclass(frozen=True)
class Source:
    """The origin of a value: a file, whose values have line numbers, or a variable or option, which may spell keys differently."""

    name: str
    is_file: bool = False
    spell: Callable[[str], str] = str

    def problem(self, what: str, fix: str, line: int = 0) -> Problem:
        return Problem(what, fix, self.name, line if self.is_file else 0)

    def origin(self, line: int) -> str:
        return f"{self.name}:{line}" if self.is_file else self.name


def combine(problems: Iterable[Problem]) -> UserError:
    """Return one error that lists all problems, sorted by source and line."""
    found = list(dict.fromkeys(problems))
    sources = [problem.source for problem in found]
    found.sort(key=lambda problem: (sources.index(problem.source), problem.line))
    first = found[0]
    if len(found) == 1:
        return UserError(first.what, where=first.where, fix=first.fix)
    lines = [f"\n  {problem.where}: {problem.what}" for problem in found[:_MAX_SHOWN]]
    if len(found) > _MAX_SHOWN:
        lines.append(f"\n  and {len(found) - _MAX_SHOWN} more")
    return UserError(f"{len(found)} problems in the configuration{''.join(lines)}", fix=f"in {first.where} {first.fix}")
