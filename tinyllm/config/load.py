"""Putting a configuration together from its sources, later ones on top.

The fields' defaults; the file named by `extends:`; the YAML file; `fast_dev_run:` sections, on request; `TINYLLM_*`
variables; command line options. Sections are merged key by key; anything else, a list or a free mapping included,
replaces what was there. In files as on the command line `train.steps` may be written for `steps` inside `train`.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tinyllm.config import base, complaints, hints, yaml12
from tinyllm.config.base import Config, KeyPath, Location, dump, flat
from tinyllm.config.complaints import Source
from tinyllm.config.yaml12 import Node, Problem
from tinyllm.errors import UserError

RESERVED_ENVIRONMENT = frozenset(
    {"TINYLLM_HOME", "TINYLLM_DEBUG", "TINYLLM_DIST_TIMEOUT", "TINYLLM_RANKS"}
)  # not settings
_PREFIX = "TINYLLM_"
_ENOUGH = 200  # problems, after which no more are looked for
_EXTENDS, _FAST = complaints.FILE_KEYS

T = TypeVar("T", bound=Config)


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A configuration and the origins of its values: "default", "pretrain.yaml:12", "env TINYLLM_SEED", "--set"."""

    config: T
    origins: dict[str, str]  # of every key of `flat(config)`

    def to_yaml(self) -> str:
        """The whole configuration as a file that stands alone."""
        return yaml12.write(dump(self.config))

    def changed(self) -> dict[str, Any]:
        """The values that something other than a default has set, by dotted key."""
        return {key: value for key, value in flat(self.config).items() if self.origins[key] != "default"}


def load(
    cls: type[T],
    *,
    files: Sequence[Path] = (),
    environ: Mapping[str, str] = {},
    overrides: Sequence[tuple[str, str, str]] = (),
    fast: bool = False,
) -> Resolved[T]:
    """Put a configuration together.

    Args:
        files: later ones on top.
        environ: of the process; `TINYLLM_TRAIN__BATCH_SIZE` means `train.batch_size`.
        overrides: (dotted key, value as YAML, origin such as "--set"); for a text field the value as it stands.
        fast: put the files' `fast_dev_run:` sections on top of the files; otherwise only their keys are checked.

    Raises:
        UserError: with everything that is wrong.
    """
    problems: list[Problem] = []
    documents = [document for path in files for document in _documents(Path(path), problems, ())]
    merge = _Merge(cls, problems)
    for document in documents:
        merge.take(document.body, document.source)
    for document in documents:
        merge.take(document.rehearsal, document.source, apply=fast)
    for name in sorted(environ):
        if name.upper().startswith(_PREFIX) and name.upper() not in RESERVED_ENVIRONMENT:
            key = name[len(_PREFIX) :].lower().replace("__", ".")
            merge.take_text(key, environ[name], Source(f"env {name}", spell=_as_variable))
    for key, raw, origin in overrides:
        merge.take_text(key, raw, Source(origin))
    return merge.resolve()


def parse_set(text: str) -> tuple[str, str]:
    """`train.steps=100` -> ("train.steps", "100"). UserError where there is no key or no `=`."""
    key, equals, raw = text.partition("=")
    key = key.strip()
    if not equals or not key:
        fix = f"write --set {hints.shown(key) or 'train.steps'}=VALUE"
        raise UserError(f'expected KEY=VALUE, found "{hints.shown(text)}"', where="--set", fix=fix)
    return key, raw


def _as_variable(key: str) -> str:
    return _PREFIX + key.replace(".", "__").upper()


@dataclass(frozen=True)
class _Document:
    """One YAML file: its settings, and those that only a rehearsal takes."""

    source: Source
    body: dict[str, Node]
    rehearsal: dict[str, Node]


def _documents(path: Path, problems: list[Problem], trail: tuple[Path, ...]) -> list[_Document]:
    """The file and, before it, those it extends. `trail` leads from the file the user named to this one."""
    source = Source(_label(path), lined=True)
    if not path.exists():
        problems.append(source.problem(*_no_file(path)))
        return []
    node, wrong = yaml12.read_file(path, source.name)
    problems += wrong
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, dict):
        what = f"expected a mapping of settings, found {hints.found(node.plain())}"
        problems.append(source.problem(what, "write `key: value` lines", node.line))
        return []
    body = dict(node.value)
    extends, fast = body.pop(_EXTENDS, None), body.pop(_FAST, None)
    if fast and not isinstance(fast.value, dict | None):
        what = f"{_FAST}: expected a mapping of settings, found {hints.found(fast.plain())}"
        problems.append(source.problem(what, f"write `{_FAST}:` and settings below it", fast.line))
    rehearsal = fast.value if fast and isinstance(fast.value, dict) else {}
    trail = (*trail, path)
    base_path = _extended(extends, source, trail, problems) if extends else None
    before = _documents(base_path, problems, trail) if base_path else []
    return [*before, _Document(source, body, rehearsal)]


def _extended(extends: Node, source: Source, trail: tuple[Path, ...], problems: list[Problem]) -> Path | None:
    """The file that the last of the trail extends, if it can be."""
    name, folder = extends.value, trail[-1].parent
    if not isinstance(name, str) or not name or "\0" in name:
        what = f"{_EXTENDS}: expected the path of a YAML file, found {hints.found(extends.plain())}"
        problems.append(source.problem(what, f"write `{_EXTENDS}: base.yaml`", extends.line))
        return None
    path = folder / name
    if not path.exists():
        what, fix = _no_file(path)
        problems.append(source.problem(f"{_EXTENDS}: {what}", fix, extends.line))
        return None
    if path.resolve() in {step.resolve() for step in trail}:
        circle = " -> ".join(_label(step) for step in (*trail, path))
        problems.append(source.problem(f"{_EXTENDS} goes in a circle: {circle}", "remove this line", extends.line))
        return None
    return path


def _no_file(path: Path) -> tuple[str, str]:
    """What to say about a file that does not exist, and what to do."""
    there = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = hints.suggest(path.name, there)
    if near is None:
        return f"there is no file {_label(path)}", "correct the path"
    return f"there is no file {_label(path)}; did you mean {near}?", f"write {near} instead of {hints.shown(path.name)}"


def _label(path: Path) -> str:
    """A path for messages: relative where it lies below the working directory."""
    relative = os.path.relpath(path)
    return hints.shown(str(path) if relative.startswith("..") else relative, 200)


class _Merge:
    """The values so far, who set them, and what was wrong."""

    def __init__(self, cls: type[Config], problems: list[Problem]):
        self.cls, self.problems = cls, problems
        self.unread = bool(problems)  # what is missing may stand in what could not be read
        self.tree = base.defaults(cls)
        self.setters: dict[Location, tuple[Source, Node]] = {}
        self.meant: set[str] = set()  # keys that were misspelt, and so are not missing

    def take(self, mapping: dict[str, Node], source: Source, *, apply: bool = True) -> None:
        """Put a mapping on top of what is there."""
        seen: dict[KeyPath, int] = {}
        for path, node in self._settings((), mapping, source):
            if path in seen:
                what = f"{complaints.dotted(path)} is set twice, in lines {seen[path]} and {node.line}"
                fix = f"remove one of the two {complaints.dotted(path[-1:])}"
                self.problems.append(source.problem(what, fix, node.line))
            seen[path] = node.line
            if apply:
                self._set(path, node, source)

    def take_text(self, key: str, raw: str, source: Source) -> None:
        """Put one value on top, written as on a command line."""
        if yaml12.lone_surrogate(raw):
            what = f"{hints.shown(key)}: the value is not UTF-8"
            self.problems.append(source.problem(what, "write the value in UTF-8"))
            return
        place = base.find(self.cls, tuple(key.split(".")))
        node = _verbatim(place[1], raw) if place else Node(None, 0)
        if node is None:
            node, wrong = yaml12.parse(raw, "")
            self.unread |= node is None
            self.problems += [source.problem(f"{hints.shown(key)}: {p.what}", p.fix) for p in wrong]
        if node is not None:
            self.take({key: node}, source)

    def _settings(self, prefix: KeyPath, mapping: dict[str, Node], source: Source) -> Iterator[tuple[KeyPath, Node]]:
        """What a mapping sets, section by section. What cannot be is complained about and left out."""
        for key, node in mapping.items():
            path = (*prefix, *key.split("."))
            place = base.find(self.cls, path)
            if len(self.problems) >= _ENOUGH:
                return
            if place is None:
                problem, near = complaints.unknown(self.cls, path, source, node.line)
                self.problems.append(problem)
                self.meant |= {near} if near else set()
                continue
            path, field = place
            kind = _kind(field, node)
            if kind == "section" and isinstance(node.value, dict):
                yield from self._settings(path, node.value, source)
            elif kind == "value" and (way := _nan(node)) is not None:
                self.problems.append(complaints.mismatch(self.cls, path, math.nan, source, node.line, way))
            elif kind == "value":
                yield path, node
            elif kind == "wrong":
                self.problems.append(complaints.mismatch(self.cls, path, node.plain(), source, node.line))

    def _set(self, path: KeyPath, node: Node, source: Source) -> None:
        target = self.tree
        for end, name in enumerate(path[:-1], 1):
            if not isinstance(target.get(name), dict):  # a section or mapping that was None comes to be
                inner = base.owner(self.cls, path[:end])
                target[name] = base.defaults(inner) if inner else {}
            target = target[name]
        value, inner = node.plain(), base.owner(self.cls, path)
        if inner and value == {}:
            value = target.get(path[-1]) or base.defaults(inner)
        else:
            self.setters = {other: by for other, by in self.setters.items() if other[: len(path)] != path}
        self.setters[path] = (source, node)
        target[path[-1]] = value

    def resolve(self) -> Resolved:
        try:
            config = self.cls.model_validate_json(json.dumps(self.tree))
        except ValidationError as error:
            self._complain(error)
            config = None
        if config is None or self.problems:
            raise complaints.failure(self.problems)
        return Resolved(config, {key: self._origin(tuple(key.split("."))) for key in flat(config)})

    def _complain(self, error: ValidationError) -> None:
        """Add what pydantic found, less what only follows from problems there are already."""
        before = bool(self.problems)
        errors = error.errors(include_url=False)
        for kind, path, problem in complaints.explain(self.cls, errors[:_ENOUGH], self.tree, self.setters):
            if kind == "missing" and (self.unread or ".".join(path) in self.meant):
                continue
            if kind == "across" and before:
                continue
            self.problems.append(problem)

    def _origin(self, path: KeyPath) -> str:
        """Who set a value; of a free mapping, everybody who set a part of it."""
        by = [source.origin(node.line) for other, (source, node) in self.setters.items() if other[: len(path)] == path]
        return " + ".join(dict.fromkeys(by)) or "default"


def _kind(field: FieldInfo, node: Node) -> Literal["section", "value", "wrong", "nothing"]:
    """What a node is to its field: a section to go into, a value, or neither."""
    if base.section(field) is None:
        return "value"
    if isinstance(node.value, dict):
        return "section" if node.value else "value"
    if node.value is not None:
        return "wrong"
    return "value" if base.optional(field) else "nothing"  # `train:` with nothing below it is a section without keys


def _verbatim(field: FieldInfo, raw: str) -> Node | None:
    """The value of a text field as it was typed, or what its quotes hold; None where it has to be read as YAML."""
    if not base.text_only(field):
        return None
    if raw[:1] in ('"', "'"):
        node, wrong = yaml12.parse(raw, "")
        if node and isinstance(node.value, str) and not wrong:
            return node
    return Node(None if base.optional(field) and yaml12.scalar(raw) is None else raw, 0)


def _nan(node: Node) -> Location | None:
    """The way to a nan in a value, if there is one."""
    if isinstance(node.value, dict | list):
        parts = list(node.value) if isinstance(node.value, dict) else range(len(node.value))
        children = [(part, child) for part in parts if (child := node.child(part))]
        return next(((part, *way) for part, child in children if (way := _nan(child)) is not None), None)
    return () if isinstance(node.value, float) and math.isnan(node.value) else None
