"""Single files of a run directory, and what is wrong with each: links, weights without a manifest, metrics.

Nothing is imported that takes long, and nothing is unpacked: a safetensors file is measured by its own header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyllm import foreign
from tinyllm.errors import UserError
from tinyllm.stages.runs.read import read_json, typed
from tinyllm.train import checkpoint

_HEADER = 100 << 20  # bytes of description a safetensors file may have, by its specification
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json")
_NOTES = "__metadata__"
Fault = tuple[Path, str]


def is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or (folder / "adapter_config.json").is_file()


def text_hash(path: Path) -> str:
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def links_out(folder: Path) -> Iterator[Fault]:
    """Links inside a checkpoint that lead out of it: never followed, since anything might be there."""
    for path in folder.rglob("*"):
        try:
            foreign.inside(folder, path.relative_to(folder).as_posix())
        except UserError as error:
            yield path, f"it {error.what}; not followed"


def unlisted(folder: Path) -> Iterator[Fault]:
    """Of a model without a manifest: that there are weights, and that no file of them was cut."""
    if not any((folder / name).is_file() for name in _WEIGHTS):
        yield folder, "there are no weights (safetensors) in it"
    for path in sorted(folder.glob("*.safetensors")):
        if what := _cut(path):
            yield path, what
    for name in _parts(folder):
        if not (folder / name).is_file():
            yield folder / name, "a file is missing"


def _parts(folder: Path) -> list[str]:
    """The files that weights in several parts are in; of names, not of paths that an index might lead elsewhere with."""
    listed = typed(read_json(folder / _WEIGHTS[2])[0].get("weight_map"), dict, {})
    return sorted({Path(str(name)).name for name in listed.values()})


def _cut(path: Path) -> str:
    """What is wrong with the length of a safetensors file: eight bytes n, n bytes of JSON, then the tensors it describes."""
    try:
        length, header = _header(path)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != _NOTES]
        wanted, there = 8 + length + max(ends, default=0), path.stat().st_size
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "it is no safetensors file"
    return "" if wanted == there else f"{there} bytes, its header describes {wanted}"


def _header(path: Path) -> tuple[int, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length, json.loads(file.read(length)) if length <= _HEADER else None


def note(path: Path, key: str) -> str:
    """An entry of a safetensors file's own metadata, as `model.tensors.note` reads it with torch; empty where there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return str(_header(path)[1][_NOTES].get(key) or "")
    return ""


def weights_sha256(folder: Path) -> str | None:
    """What `model.tensors.sha256` says of the weights in a folder; None where they cannot be read."""
    whole = folder / _WEIGHTS[0]
    try:
        if whole.is_file():
            return checkpoint.sha256(whole)
        digests = [checkpoint.sha256(folder / name) for name in _parts(folder)]
    except OSError:
        return None
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def metrics(path: Path, *, finished: bool) -> Iterator[Fault]:
    """Every line an object, steps rising within a split. The last line of a run that was killed may be half written."""
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
    except OSError as error:
        yield path, f"it cannot be read: {error.strerror}"
        return
    if finished and not lines:
        yield path, "it is missing or empty, and the run is completed"
    last: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        found = _step_and_split(line)
        if found is None:
            if finished or number < len(lines):
                yield path, f"line {number} is no object with a step"
            continue
        step, split = found
        if step <= last.get(split, -1):
            yield path, f"line {number}: step {step} of {split} comes after step {last[split]}"
        last[split] = step


def _step_and_split(line: bytes) -> tuple[int, str] | None:
    try:
        row = json.loads(line)
        step = typed(row["step"], int)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return None if step is None else (step, str(row.get("split")))
