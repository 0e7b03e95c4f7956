"""Faults of single files in a run directory: links, weights without a manifest, and metrics.

Does not import torch and loads no tensors: the size of a safetensors file is compared with its header.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from tinyllm.diagnostics.run_log import parse_row
from tinyllm.diagnostics.runs.record import of_type, read_json
from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.io.files import joint_sha256, sha256
from tinyllm.model.adapter_config import ADAPTER
from tinyllm.model.hf_config import CONFIG
from tinyllm.train.run import CHANGE

_MAX_HEADER_BYTES = 100 << 20  # of a safetensors file, by the specification
_WEIGHTS = ("model.safetensors", "adapter_model.safetensors", "model.safetensors.index.json")
_METADATA = "__metadata__"
Fault = tuple[Path, str]  # a file and what is wrong with it


def is_model(folder: Path) -> bool:
    """Return whether a folder contains a model or an adapter."""
    return any((folder / name).is_file() for name in (CONFIG, ADAPTER))


def text_sha256(path: Path) -> str:
    """Return the sha256 of a text with "\\n" line endings, as a run records that of its configuration."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def escaping_links(folder: Path) -> Iterator[Fault]:
    """Yield links that lead out of a checkpoint. They are never followed."""
    for path in folder.rglob("*"):
        try:
            untrusted_files.path_inside(folder, path.relative_to(folder).as_posix())
        except UserError as error:
            yield path, f"{error.what}; not followed"


def weight_faults(folder: Path) -> Iterator[Fault]:
    """Yield missing, truncated and empty weight files of a model, by their headers. A manifest does not say what must be there."""
    if not any((folder / name).is_file() for name in _WEIGHTS):
        yield folder, "it has no weights (safetensors files)"
    for path in sorted(folder.glob("*.safetensors")):
        if what := _size_fault(path):
            yield path, what
    for name in _indexed_files(folder):
        if not (folder / name).is_file():
            yield folder / name, "a file is missing"


def _indexed_files(folder: Path) -> list[str]:
    """Return the names of the weight files in the index. Only names: a path in the index might lead elsewhere."""
    listed = of_type(read_json(folder / _WEIGHTS[2])[0].get("weight_map"), dict, {})
    return sorted({Path(str(name)).name for name in listed.values()})


def _size_fault(path: Path) -> str:
    """Compare the size of a safetensors file with its header: eight bytes n, n bytes of JSON, then the tensors it describes."""
    try:
        length, header = _header(path)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA]
        expected, size = 8 + length + max(ends, default=0), path.stat().st_size
    except OSError as error:
        return f"it cannot be read: {error.strerror}"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "not a safetensors file"
    if expected != size:
        return f"{size} bytes, its header describes {expected}"
    return "" if ends else "it has no tensors"


def _header(path: Path) -> tuple[int, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return length, json.loads(file.read(length)) if length <= _MAX_HEADER_BYTES else None


def safetensors_metadata(path: Path, key: str) -> str:
    """Return an entry of a file's metadata, as `model.tensors.metadata` does with torch; "" where there is none."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return str(_header(path)[1][_METADATA].get(key) or "")
    return ""


def weights_sha256(folder: Path) -> str | None:
    """Return the hash of the weights in a folder, as `model.tensors.sha256` does with torch; None where they cannot be read."""
    whole = folder / _WEIGHTS[0]
    try:
        if whole.is_file():
            return sha256(whole)
        digests = [sha256(folder / name) for name in _indexed_files(folder)]
    except OSError:
        return None
    return joint_sha256(digests)


def metrics_faults(path: Path, *, until: int | None) -> Iterator[Fault]:
    """Yield damaged lines of metrics.jsonl, and steps that do not increase within a split; several changes of settings may share one.

    until: the last step of a completed run, which must have been logged; None: it did not complete, and its last line may be incomplete.
    """
    finished = until is not None
    try:
        lines = path.read_bytes().splitlines() if path.is_file() else []
    except OSError as error:
        yield path, f"it cannot be read: {error.strerror}"
        return
    if finished and not lines:
        yield path, "missing or empty, although the run is completed"
        return
    last: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        row = parse_row(line)
        if row is None:
            if finished or number < len(lines):
                yield path, f"line {number} is not a JSON object with a step"
            continue
        step, split = row["step"], str(row.get("split"))
        if step <= last.get(split, -1) and not (split == CHANGE and step == last[split]):
            yield path, f"line {number}: step {step} of {split} follows step {last[split]}"
        last[split] = step
    if until is not None and last.get("train", -1) < until:
        yield path, f"ends at step {last.get('train', 0)} of train, the run completed after step {until}"
