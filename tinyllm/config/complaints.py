"""What is said about settings that cannot be: unknown keys, values of the wrong kind, values in contradiction.

Every complaint names the source and line, what was found, what was expected and what was probably meant, and one edit.
Left out: YAML that cannot be read at all, which `yaml12` complains about.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tinyllm.config import base, hints
from tinyllm.config.base import Config, KeyPath, Location
from tinyllm.config.yaml12 import Node, Problem
from tinyllm.errors import UserError

FILE_KEYS = ("extends", "fast_dev_run")  # what a file may say at its top level besides settings
_MOST_SHOWN = 20  # problems in one message


@dataclass(frozen=True)
class Source:
    """Where a value comes from: a file, which has lines; or a variable or option, which may spell keys differently."""

    name: str
    lined: bool = False
    spell: Callable[[str], str] = str

    def problem(self, what: str, fix: str, line: int = 0) -> Problem:
        return Problem(what, fix, self.name, line if self.lined else 0)

    def origin(self, line: int) -> str:
        return f"{self.name}:{line}" if self.lined else self.name


DEFAULT = Source("default")
Setters = Mapping[Location, tuple[Source, Node]]


def failure(problems: Iterable[Problem]) -> UserError:
    """One error for all problems, in the order of their sources and lines."""
    found = list(dict.fromkeys(problems))
    sources = [problem.source for problem in found]
    found.sort(key=lambda problem: (sources.index(problem.source), problem.line))
    first = found[0]
    if len(found) == 1:
        return UserError(first.what, where=first.place, fix=first.fix)
    lines = [f"\n  {problem.place}: {problem.what}" for problem in found[:_MOST_SHOWN]]
    if len(found) > _MOST_SHOWN:
        lines.append(f"\n  and {len(found) - _MOST_SHOWN} more")
    return UserError(f"{len(found)} problems in the configuration{''.join(lines)}", fix=f"in {first.place} {first.fix}")


def unknown(cls: type[Config], path: KeyPath, source: Source, line: int) -> tuple[Problem, str | None]:
    """A key that is no setting, and the one that was probably meant."""
    key, known = ".".join(path), base.names(cls)
    near = hints.suggest(key, (*known, *FILE_KEYS) if source.lined else known)
    label = source.spell(hints.shown(key))
    if near is None:
        ends = range(len(path) - 1, -1, -1)
        above, there = next((path[:end], owner) for end in ends if (owner := base.owner(cls, path[:end])))
        keys = ", ".join(there.model_fields)
        what = f"unknown key {label}; {'.'.join(above) or 'the top level'} has {hints.shown(keys, 300)}"
        return source.problem(what, f"remove {label}", line), None
    if not source.lined:
        fix = f"write {source.spell(near)} instead of {label}"
    elif near.rpartition(".")[0] == ".".join(path[:-1]):
        fix = f"write {near.rpartition('.')[2]} instead of {hints.shown(path[-1])}"
    else:
        fix = f"move it to {near}"
    return source.problem(f"unknown key {label}; did you mean {source.spell(near)}?", fix, line), near


def mismatch(cls: type[Config], path: KeyPath, value: Any, source: Source, line: int, inside: Location = ()) -> Problem:
    """A value that its field does not take. `inside` leads from the field's value to the part of it that is wrong."""
    if base.owner(cls, path[:-1]) is None:  # an entry of a free mapping
        path, inside = path[:-1], (path[-1], *inside)
    schema, definitions = base.schema(cls, path)
    default = schema.get("default")
    for part in inside:
        schema = hints.inner(schema, definitions, part)
    key = dotted(path, inside)
    wanted = hints.expected(schema, definitions)
    if isinstance(value, float) and not math.isfinite(value):
        wanted = wanted.replace("a number", "a finite number") if "a number" in wanted else "a finite number"
    guess = hints.meant(value, schema, definitions)
    what = f"{key}: expected {wanted}, found {hints.found(value)}"
    if guess is not None:
        meant = hints.written(guess)
        return source.problem(f"{what}; did you mean {meant}?", f"set {key} to {meant}", line)
    if not isinstance(value, dict) and base.owner(cls, path):
        return source.problem(what, f"write the settings of {key} below it, indented", line)
    if inside or default is None or isinstance(default, dict):
        return source.problem(what, f"set {key} to {wanted}", line)
    return source.problem(what, f"set {key} to {hints.written(default)}, its default", line)


def dotted(path: KeyPath, inside: Location = ()) -> str:
    return hints.shown(".".join(path) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in inside), 120)


def explain(
    cls: type[Config], errors: Iterable[Mapping[str, Any]], tree: Mapping[str, Any], setters: Setters
) -> Iterable[tuple[str, KeyPath, Problem]]:
    """(kind of pydantic's error, key, problem) for each of its errors; those about members of one union are equal."""
    for error in errors:
        path, rest = _split(cls, error["loc"])
        kind = error["type"]
        if kind == "missing" and not rest:
            yield kind, path, _missing(cls, path, setters)
            continue
        if base.owner(cls, path):
            yield "across", path, _across(cls, path, error, setters)
            continue
        value, inside = _part(tree, path, rest)
        source, line = setter(setters, path, inside)
        if kind in ("value_error", "assertion_error"):
            what = f"{dotted(path, inside)}: {error['ctx']['error']}, found {hints.found(value)}"
            problem = source.problem(what, f"change {dotted(path, inside)}", line)
        elif rest and (rest[-1] == "[key]" or (kind in ("missing", "extra_forbidden") and isinstance(rest[-1], str))):
            key = dotted(path, tuple(part for part in rest if part != "[key]"))
            problem = source.problem(f"{key}: {error['msg'].lower()}", f"change {dotted(path)}", line)
        else:
            problem = mismatch(cls, path, value, source, line, inside)
        yield kind, path, problem


def setter(setters: Setters, path: KeyPath, inside: Location = ()) -> tuple[Source, int]:
    """Who set a value, or the whole that it is a part of, and in which line."""
    whole = (*path, *inside)
    for end in range(len(whole), 0, -1):
        if whole[:end] in setters:
            source, found = setters[whole[:end]]
            node: Node | None = found
            for part in whole[end:]:
                node = node.child(part) if node else None
            return (source, node.line) if node else (DEFAULT, 0)
    return DEFAULT, 0


def _split(cls: type[Config], loc: Location) -> tuple[KeyPath, Location]:
    """pydantic's location as the path of a field or section, and what leads on from there."""
    path: list[str] = []
    for part in map(str, loc):
        path.append(part)
        inner = base.section(cls.model_fields[part])
        if inner is None:
            break
        cls = inner
    return tuple(path), tuple(loc[len(path) :])


def _part(tree: Mapping[str, Any], path: KeyPath, rest: Location) -> tuple[Any, Location]:
    """The value that an error is about, and the way to it; `rest` also holds pydantic's names for members of unions."""
    value: Any = tree
    for key in path:
        value = value[key]
    inside: list[str | int] = []
    for part in rest:
        is_item = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if is_item or (isinstance(value, dict) and part in value):
            value = value[part]
            inside.append(part)
    return value, tuple(inside)


def _missing(cls: type[Config], path: KeyPath, setters: Setters) -> Problem:
    files = [source for source, _ in setters.values() if source.lined]
    source = Source(files[-1].name if files else "configuration")
    return source.problem(
        f"{dotted(path)} is missing: expected {hints.expected(*base.schema(cls, path))}", f"add {dotted(path)}"
    )


def _across(cls: type[Config], path: KeyPath, error: Mapping[str, Any], setters: Setters) -> Problem:
    """Values that are fine one by one. The fields that the message mentions are looked up, to name their sources."""
    said = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
    known = base.names(cls)
    said_keys = [word.strip(".") for word in re.findall(r"[\w.]+", said)]
    keys = [key for word in dict.fromkeys(said_keys) for key in (".".join((*path, word)), word) if key in known][:4]
    origins = {key: setter(setters, tuple(key.split("."))) for key in keys}
    chosen = {key: place for key, place in origins.items() if place[0] is not DEFAULT}
    source, line = next(iter(chosen.values()), (DEFAULT, 0))
    whence = ", ".join(f"{key} from {place[0].origin(place[1])}" for key, place in origins.items())
    prefix = f"{dotted(path)}: " if path else ""
    return source.problem(
        f"{prefix}{said}{f' ({whence})' if whence else ''}",
        f"change {next(iter(chosen or origins), dotted(path))}",
        line,
    )
