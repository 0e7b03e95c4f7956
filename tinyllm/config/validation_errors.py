"""Messages for invalid settings: unknown keys, values of the wrong type or range, contradictory values.

Each message names source and line, the value found, the value expected, the value probably meant, and one edit that fixes it.
Left out: YAML syntax errors, which `yaml12` reports.
"""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tinyllm.config.base import Config, KeyPath, Location, class_at, dotted_keys, field_schema, section_class
from tinyllm.config.formatting import describe_value, format_value, shorten
from tinyllm.config.problems import Problem, Source
from tinyllm.config.schemas import describe_schema, guess_value, subschema
from tinyllm.config.suggestions import is_typo, suggest
from tinyllm.config.synonyms import CHOICE, Meaning, find_meaning
from tinyllm.config.yaml12 import Node

FILE_KEYS = ("extends", "fast_dev_run")  # allowed at the top level of a file besides the settings
VALIDATOR = "validator"  # kind of an error raised by the validator of a whole section
DEFAULT = Source("default")
Setters = Mapping[Location, tuple[Source, Node]]  # which source set a value


def unknown_key(
    cls: type[Config], path: KeyPath, source: Source, line: int, in_use: str = ""
) -> tuple[Problem, str | None]:
    """Report a key that is not a setting, and return the setting that was probably meant.

    in_use: the algorithm of the configuration, if it has one.
    """
    key, known = ".".join(path), dotted_keys(cls)
    found = find_key(key, (*known, *FILE_KEYS) if source.is_file else known, in_use)
    near, remark = found.key, found.remark
    label = source.spell(shorten(key))
    if not near:
        what = f"unknown key {label}{f': {remark}' if remark else _valid_keys(cls, path)}"
        return source.problem(what, f"remove {label}", line), None
    if found.convert:
        fix = f"set {source.spell(near)} instead, with its own kind of value"
    elif not source.is_file:
        fix = f"write {source.spell(near)} instead of {label}"
    elif near.rpartition(".")[0] == ".".join(path[:-1]):
        fix = f"write {near.rpartition('.')[2]} instead of {shorten(path[-1])}"
    else:
        fix = f"move it to {near}"
    what = f"unknown key {label}; did you mean {source.spell(near)}?{f' {remark}' if remark else ''}"
    return source.problem(what, fix, line), near


def find_key(word: str, known: Sequence[str], in_use: str = "") -> Meaning:
    """Return the setting that a word probably stands for.

    One typing mistake in a known key comes first, then the names of other tools, then similar names.
    """
    close = suggest(word, known)
    if close and is_typo(word, close):
        return Meaning(close)
    return find_meaning(word, known, in_use) or Meaning(close or "")


def _valid_keys(cls: type[Config], path: KeyPath) -> str:
    """Return the keys of the innermost section that exists, and how settings of a user's own algorithm are read."""
    ends = range(len(path) - 1, -1, -1)
    prefix, section = next((path[:end], found) for end in ends if (found := class_at(cls, path[:end])))
    place = f"in {'.'.join(prefix)}" if prefix else "at the top level"
    listed = f"; valid keys {place}: {shorten(', '.join(section.model_fields), 300)}"
    own = f"; a section of your own algorithm needs --{CHOICE} path/to/{shorten(path[0])}.py"
    return listed + (own if not prefix and CHOICE in cls.model_fields else "")


def invalid_value(
    cls: type[Config], path: KeyPath, value: Any, source: Source, line: int, inside: Location = ()
) -> Problem:
    """Report a value that its field does not accept. `inside` is the location of the invalid part within the field's value."""
    if class_at(cls, path[:-1]) is None:  # an entry of a free mapping
        path, inside = path[:-1], (path[-1], *inside)
    schema, definitions = field_schema(cls, path)
    default = schema.get("default")
    for part in inside:
        schema = subschema(schema, definitions, part)
    key = format_path(path, inside)
    wanted = describe_schema(schema, definitions)
    if isinstance(value, float) and not math.isfinite(value):
        wanted = wanted.replace("a number", "a finite number") if "a number" in wanted else "a finite number"
    guess = guess_value(value, schema, definitions)
    what = f"{key}: expected {wanted}, found {describe_value(value)}"
    if guess is not None:
        meant = format_value(guess)
        return source.problem(f"{what}; did you mean {meant}?", f"set {key} to {meant}", line)
    if not isinstance(value, dict) and class_at(cls, path):
        return source.problem(what, f"write the settings of {key} indented below it", line)
    if inside or default is None or isinstance(default, dict):
        example = "" if inside else _example(key, schema, source)
        return source.problem(what, f"set {key} to {wanted}{example}", line)
    return source.problem(what, f"set {key} to {format_value(default)} (the default)", line)


def _example(key: str, schema: Mapping[str, Any], source: Source) -> str:
    """Return an example of a mapping, as it is typed in its source: that of the field, or the default; empty if there is none."""
    example = next(iter(schema.get("examples", ())), schema.get("default"))
    if not isinstance(example, dict) or not example:
        return ""
    text = format_value(example)
    return f": --set {shlex.quote(f'{key}={text}')}" if source.name == "--set" else f", e.g. {text}"


def format_path(path: KeyPath, inside: Location = ()) -> str:
    """Format a location: `data.files[1]`."""
    return shorten(".".join(path) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in inside), 120)


def explain_errors(
    cls: type[Config], errors: Iterable[Mapping[str, Any]], tree: Mapping[str, Any], setters: Setters
) -> Iterable[tuple[str, KeyPath, Problem]]:
    """Yield (error type, key, problem) for each of pydantic's errors. Errors about members of one union give equal problems."""
    for error in errors:
        path, rest = _split_location(cls, error["loc"])
        kind = error["type"]
        if kind == "missing" and not rest:
            yield kind, path, _missing_key(cls, path, setters)
            continue
        if class_at(cls, path):
            yield VALIDATOR, path, _validator_error(cls, path, error, setters)
            continue
        value, inside = _invalid_part(tree, path, rest)
        source, line = find_source(setters, path, inside)
        if kind in ("value_error", "assertion_error"):
            what = f"{format_path(path, inside)}: {error['ctx']['error']}, found {describe_value(value)}"
            problem = source.problem(what, f"change {format_path(path, inside)}", line)
        elif rest and (rest[-1] == "[key]" or (kind in ("missing", "extra_forbidden") and isinstance(rest[-1], str))):
            key = format_path(path, tuple(part for part in rest if part != "[key]"))
            problem = source.problem(f"{key}: {error['msg'].lower()}", f"change {format_path(path)}", line)
        else:
            problem = invalid_value(cls, path, value, source, line, inside)
        yield kind, path, problem


def find_source(setters: Setters, path: KeyPath, inside: Location = ()) -> tuple[Source, int]:
    """Return source and line of a value, or of the innermost value around it that was set."""
    whole = (*path, *inside)
    for end in range(len(whole), 0, -1):
        if whole[:end] in setters:
            source, found = setters[whole[:end]]
            node: Node | None = found
            for part in whole[end:]:
                node = node.child(part) if node else None
            return (source, node.line) if node else (DEFAULT, 0)
    return DEFAULT, 0


def _split_location(cls: type[Config], loc: Location) -> tuple[KeyPath, Location]:
    """Split pydantic's location into the path of a field or section and the location within its value."""
    path: list[str] = []
    for part in map(str, loc):
        path.append(part)
        inner = section_class(cls.model_fields[part])
        if inner is None:
            break
        cls = inner
    return tuple(path), tuple(loc[len(path) :])


def _invalid_part(tree: Mapping[str, Any], path: KeyPath, rest: Location) -> tuple[Any, Location]:
    """Return the invalid value and its location. `rest` also contains pydantic's names for members of unions."""
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


def _missing_key(cls: type[Config], path: KeyPath, setters: Setters) -> Problem:
    files = [source for source, _ in setters.values() if source.is_file]
    source = Source(files[-1].name if files else "configuration")
    key = format_path(path)
    return source.problem(f"missing key {key}: expected {describe_schema(*field_schema(cls, path))}", f"add {key}")


def _validator_error(cls: type[Config], path: KeyPath, error: Mapping[str, Any], setters: Setters) -> Problem:
    """Report values that are valid one by one but not together. Names the sources of all fields that the message mentions."""
    message = str(error["ctx"]["error"]) if "ctx" in error else error["msg"]
    known = dotted_keys(cls)
    words = [word.strip(".") for word in re.findall(r"[\w.]+", message)]
    keys = [key for word in dict.fromkeys(words) for key in (".".join((*path, word)), word) if key in known][:4]
    sources = {key: find_source(setters, tuple(key.split("."))) for key in keys}
    set_by_user = {key: found for key, found in sources.items() if found[0] is not DEFAULT}
    source, line = next(iter(set_by_user.values()), (DEFAULT, 0))
    origins = ", ".join(f"{key} from {found.origin(at)}" for key, (found, at) in sources.items())
    prefix = f"{format_path(path)}: " if path else ""
    return source.problem(
        f"{prefix}{message}{f' ({origins})' if origins else ''}",
        f"change {next(iter(set_by_user or sources), format_path(path))}",
        line,
    )
