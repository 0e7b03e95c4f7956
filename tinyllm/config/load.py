"""Configurations merged from their sources, later ones first.

In increasing precedence: defaults of the fields; the file named by `extends:`; the YAML file; `fast_dev_run:` sections, on request;
`TINYLLM_*` environment variables; command line options. Sections are merged key by key; everything else, lists and free mappings
included, is replaced. Files and command line may write `train.steps` for `steps` inside `train`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from tinyllm.config.base import (
    Config,
    KeyPath,
    Location,
    class_at,
    default_tree,
    dump,
    find_field,
    flatten,
    is_optional,
    is_text,
    section_class,
)
from tinyllm.config.files import read_documents
from tinyllm.config.formatting import shorten
from tinyllm.config.problems import Problem, Source, combine
from tinyllm.config.synonyms import CHOICE
from tinyllm.config.validation_errors import VALIDATOR, explain_errors, format_path, invalid_value, unknown_key
from tinyllm.config.yaml12 import Node, has_surrogate, parse, parse_scalar, write
from tinyllm.errors import UserError

RESERVED_ENVIRONMENT = frozenset(
    {"TINYLLM_HOME", "TINYLLM_DEBUG", "TINYLLM_DIST_TIMEOUT", "TINYLLM_RANKS"}
)  # not settings
_PREFIX = "TINYLLM_"
_MAX_PROBLEMS = 200  # after which no more are looked for

T = TypeVar("T", bound=Config)


@dataclass(frozen=True)
class Resolved(Generic[T]):
    """A configuration and the origin of each value: "default", "pretrain.yaml:12", "env TINYLLM_SEED", "--set"."""

    config: T
    origins: dict[str, str]  # for every key of `flatten(config)`
    notes: tuple[str, ...] = ()  # what is to be said about it before it is used

    def to_yaml(self) -> str:
        """Return the whole configuration as a self-contained YAML file."""
        return write(dump(self.config))

    def changed(self) -> dict[str, Any]:
        """Return the values that were set by something other than a default, by dotted key."""
        return {key: value for key, value in flatten(self.config).items() if self.origins[key] != "default"}


def load(
    cls: type[T],
    *,
    files: Sequence[Path] = (),
    environ: Mapping[str, str] = {},
    overrides: Sequence[tuple[str, str, str]] = (),
    borrowed: Sequence[tuple[str, str, str]] = (),
    fast: bool = False,
) -> Resolved[T]:
    """Merge and validate a configuration.

    Args:
        files: YAML files; later ones override earlier ones.
        environ: environment variables; `TINYLLM_TRAIN__BATCH_SIZE` sets `train.batch_size`.
        overrides: (dotted key, value as YAML, origin such as "--set"); the value of a text field is taken literally.
        borrowed: the same from files of another kind; the environment overrides them.
        fast: apply the files' `fast_dev_run:` sections; otherwise only their keys are checked.

    Raises:
        UserError: with all problems.
    """
    problems: list[Problem] = []
    documents = [document for path in files for document in read_documents(Path(path), problems)]
    merger = _Merger(cls, problems)
    for document in documents:
        merger.add(document.settings, document.source)
    for document in documents:
        merger.add(document.fast_dev_run, document.source, apply=fast)
    for key, text, origin in borrowed:
        merger.add_text(key, text, Source(origin))
    for name in sorted(environ):
        if name.upper().startswith(_PREFIX) and name.upper() not in RESERVED_ENVIRONMENT:
            key = name[len(_PREFIX) :].lower().replace("__", ".")
            merger.add_text(key, environ[name], Source(f"env {name}", spell=_variable_name))
    for key, text, origin in overrides:
        merger.add_text(key, text, Source(origin))
    return merger.resolve()


def parse_set(text: str, option: str = "--set") -> tuple[str, str]:
    """Split `train.steps=100` into ("train.steps", "100"). Raises UserError, naming `option`, if key or `=` is missing."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        fix = f"write {option} {shorten(key) or 'train.steps'}=VALUE"
        raise UserError(f'expected KEY=VALUE, found "{shorten(text)}"', where=option, fix=fix)
    return key, value


def _variable_name(key: str) -> str:
    return _PREFIX + key.replace(".", "__").upper()


class _Merger(Generic[T]):
    """The merged values, the source of each, and the problems found so far."""

    def __init__(self, cls: type[T], problems: list[Problem]):
        self.cls, self.problems = cls, problems
        self.has_unreadable = bool(problems)  # a missing key may be in what could not be read
        self.tree = default_tree(cls)
        self.setters: dict[Location, tuple[Source, Node]] = {}
        self.unknown: dict[int, tuple[KeyPath, Source, int]] = {}  # by their place among the problems
        self.suggested: set[str] = set()  # keys that were misspelled, and so are not missing

    def add(self, mapping: dict[str, Node], source: Source, *, apply: bool = True) -> None:
        """Check the settings of a mapping and, unless `apply` is false, override the present values with them."""
        seen: dict[KeyPath, int] = {}
        for path, node in self._settings((), mapping, source):
            if path in seen:
                what = f"{format_path(path)} is set twice, on lines {seen[path]} and {node.line}"
                fix = f"remove one of the two {format_path(path[-1:])} entries"
                self.problems.append(source.problem(what, fix, node.line))
            seen[path] = node.line
            if apply:
                self._set(path, node, source)

    def add_text(self, key: str, text: str, source: Source) -> None:
        """Override one value with text from the command line or environment."""
        if has_surrogate(text):
            what = f"{shorten(key)}: value is not valid UTF-8"
            self.problems.append(source.problem(what, "encode the value as UTF-8"))
            return
        found = find_field(self.cls, tuple(key.split(".")))
        node = _literal_text(found[1], text) if found else Node(None, 0)
        if node is None:
            node, wrong = parse(text, "")
            self.has_unreadable |= node is None
            self.problems += [source.problem(f"{shorten(key)}: {p.what}", p.fix) for p in wrong]
        if node is not None:
            self.add({key: node}, source)

    def _settings(self, prefix: KeyPath, mapping: dict[str, Node], source: Source) -> Iterator[tuple[KeyPath, Node]]:
        """Yield the settings of a mapping, section by section. Invalid ones are reported and skipped."""
        for key, node in mapping.items():
            path = (*prefix, *key.split("."))
            found = find_field(self.cls, path)
            if len(self.problems) >= _MAX_PROBLEMS:
                return
            if found is None:
                self.unknown[len(self.problems)] = (path, source, node.line)
                self.problems.append(source.problem("unknown key", ""))
                continue
            path, field = found
            kind = _node_kind(field, node)
            if kind == "section" and isinstance(node.value, dict):
                yield from self._settings(path, node.value, source)
            elif kind == "value" and (inside := _find_nan(node)) is not None:
                self.problems.append(invalid_value(self.cls, path, math.nan, source, node.line, inside))
            elif kind == "value":
                yield path, node
            elif kind == "invalid":
                self.problems.append(invalid_value(self.cls, path, node.plain(), source, node.line))

    def _set(self, path: KeyPath, node: Node, source: Source) -> None:
        target = self.tree
        for end, name in enumerate(path[:-1], 1):
            if not isinstance(target.get(name), dict):  # a section or mapping that was None
                inner = class_at(self.cls, path[:end])
                target[name] = default_tree(inner) if inner else {}
            target = target[name]
        value, inner = node.plain(), class_at(self.cls, path)
        if inner and value == {}:
            value = target.get(path[-1]) or default_tree(inner)
        else:
            self.setters = {other: by for other, by in self.setters.items() if other[: len(path)] != path}
        self.setters[path] = (source, node)
        target[path[-1]] = value

    def resolve(self) -> Resolved[T]:
        """Validate the merged values."""
        self._explain_unknown_keys()
        config: T | None = None
        try:
            config = self.cls.model_validate_json(json.dumps(self.tree))
        except ValidationError as error:
            self._report(error)
        if config is None or self.problems:
            raise combine(self.problems)
        return Resolved(config, {key: self._origin(tuple(key.split("."))) for key in flatten(config)})

    def _explain_unknown_keys(self) -> None:
        """Report them last: which key was meant may depend on the algorithm, which any source can set."""
        algorithm = self.tree.get(CHOICE)
        for place, (path, source, line) in self.unknown.items():
            in_use = algorithm if isinstance(algorithm, str) else ""
            self.problems[place], near = unknown_key(self.cls, path, source, line, in_use)
            self.suggested |= {near} if near else set()

    def _report(self, error: ValidationError) -> None:
        """Add pydantic's errors, except those that are consequences of problems already found."""
        had_problems = bool(self.problems)
        errors = error.errors(include_url=False)
        for kind, path, problem in explain_errors(self.cls, errors[:_MAX_PROBLEMS], self.tree, self.setters):
            if kind == "missing" and (self.has_unreadable or ".".join(path) in self.suggested):
                continue
            if kind == VALIDATOR and had_problems:
                continue
            self.problems.append(problem)

    def _origin(self, path: KeyPath) -> str:
        """Return the source of a value; for a free mapping, all sources that set a part of it."""
        by = [source.origin(node.line) for other, (source, node) in self.setters.items() if other[: len(path)] == path]
        return " + ".join(dict.fromkeys(by)) or "default"


def _node_kind(field: FieldInfo, node: Node) -> Literal["section", "value", "invalid", "empty"]:
    """Return how a node relates to its field: a section to descend into, a value, an empty section, or invalid."""
    if section_class(field) is None:
        return "value"
    if isinstance(node.value, dict):
        return "section" if node.value else "value"
    if node.value is not None:
        return "invalid"
    return "value" if is_optional(field) else "empty"  # `train:` with nothing below it


def _literal_text(field: FieldInfo, text: str) -> Node | None:
    """Return the value of a text field as it was typed, without enclosing quotes; None if it must be parsed as YAML."""
    if not is_text(field):
        return None
    if text[:1] in ('"', "'"):
        node, wrong = parse(text, "")
        if node and isinstance(node.value, str) and not wrong:
            return node
    return Node(None if is_optional(field) and parse_scalar(text) is None else text, 0)


def _find_nan(node: Node) -> Location | None:
    """Return the location of a nan in a value, or None."""
    if isinstance(node.value, dict | list):
        parts = list(node.value) if isinstance(node.value, dict) else range(len(node.value))
        children = [(part, child) for part in parts if (child := node.child(part))]
        return next(((part, *inside) for part, child in children if (inside := _find_nan(child)) is not None), None)
    return () if isinstance(node.value, float) and math.isnan(node.value) else None
