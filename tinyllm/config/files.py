"""Configuration files: reading them, and following `extends:` to the files that they are based on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from tinyllm.config.formatting import describe_value, shorten
from tinyllm.config.problems import Problem, Source
from tinyllm.config.suggestions import suggest
from tinyllm.config.validation_errors import FILE_KEYS
from tinyllm.config.yaml12 import Node, read_file

_EXTENDS, _FAST_DEV_RUN = FILE_KEYS


@dataclass(frozen=True)
class Document:
    """One YAML file: its settings, and those that apply only to a fast-dev-run."""

    source: Source
    settings: dict[str, Node]
    fast_dev_run: dict[str, Node]


def read_documents(path: Path, problems: list[Problem], chain: tuple[Path, ...] = ()) -> list[Document]:
    """Return the files that a file extends, outermost first, and the file itself. Problems are appended to `problems`.

    `chain` is the way from the file named by the user to this one.
    """
    source = Source(_label(path), is_file=True)
    if not path.exists():
        problems.append(source.problem(*_missing_file(path)))
        return []
    node, found = read_file(path, source.name)
    problems += found
    if node is None or node.value is None:
        return []
    if not isinstance(node.value, dict):
        what = f"expected a mapping of settings, found {describe_value(node.plain())}"
        problems.append(source.problem(what, "write `key: value` lines", node.line))
        return []
    settings = dict(node.value)
    extends, fast = settings.pop(_EXTENDS, None), settings.pop(_FAST_DEV_RUN, None)
    if fast and not isinstance(fast.value, dict | None):
        what = f"{_FAST_DEV_RUN}: expected a mapping of settings, found {describe_value(fast.plain())}"
        problems.append(source.problem(what, f"write `{_FAST_DEV_RUN}:` with settings indented below it", fast.line))
    fast_dev_run = fast.value if fast and isinstance(fast.value, dict) else {}
    chain = (*chain, path)
    parent = _extended_path(extends, source, chain, problems) if extends else None
    parents = read_documents(parent, problems, chain) if parent else []
    return [*parents, Document(source, settings, fast_dev_run)]


def _extended_path(extends: Node, source: Source, chain: tuple[Path, ...], problems: list[Problem]) -> Path | None:
    """Return the file that the last of the chain extends, or None if there is a problem."""
    name, folder = extends.value, chain[-1].parent
    if not isinstance(name, str) or not name or "\0" in name:
        what = f"{_EXTENDS}: expected the path of a YAML file, found {describe_value(extends.plain())}"
        problems.append(source.problem(what, f"write `{_EXTENDS}: base.yaml`", extends.line))
        return None
    path = folder / name
    if not path.exists():
        what, fix = _missing_file(path)
        problems.append(source.problem(f"{_EXTENDS}: {what}", fix, extends.line))
        return None
    if path.resolve() in {step.resolve() for step in chain}:
        cycle = " -> ".join(_label(step) for step in (*chain, path))
        problems.append(source.problem(f"circular {_EXTENDS}: {cycle}", "remove this line", extends.line))
        return None
    return path


def _missing_file(path: Path) -> tuple[str, str]:
    """Return message and fix for a file that does not exist."""
    siblings = sorted(p.name for p in path.parent.glob("*.y*ml")) if path.parent.is_dir() else []
    near = suggest(path.name, siblings)
    if near is None:
        return f"file {_label(path)} does not exist", "correct the path"
    return f"file {_label(path)} does not exist; did you mean {near}?", f"write {near} instead of {shorten(path.name)}"


def _label(path: Path) -> str:
    """Return a path for messages: relative if it is below the working directory."""
    relative = os.path.relpath(path)
    return shorten(str(path) if relative.startswith("..") else relative, 200)
