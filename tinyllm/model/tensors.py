"""Tensors in safetensors files, inspected before they are loaded: names, shapes and dtypes cost no memory, tensors do.

The library checks the header against the file: offsets that overlap or point outside, sizes that overflow, surplus bytes. Checked
here: the size of the header, the files that belong to a checkpoint, the dtypes that are weights, and completeness.
Left out: pickles, in files of any name.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyllm.errors import FAILED, INTEGRITY, UserError
from tinyllm.io import files, strict_json, untrusted_files

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LFS_POINTER = b"version https://git-lfs"
_COPY = "copy this file again from its source"
_MAX_HEADER_BYTES = 10 << 20  # enough for a hundred thousand tensors
_WEIGHT_DTYPES = {"F64", "F32", "F16", "BF16"}  # narrower ones are quantized, with scales in other tensors
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BLOCK = 1 << 22  # numbers examined or converted at once, so that no copy of a whole tensor is made


Named = tuple[str, Tensor]


class Header(NamedTuple):
    """Shape and dtype of a tensor that was not loaded."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors names it: F32, BF16


def files_of(folder: Path) -> list[Path]:
    """Return `model.safetensors` of a folder, or the parts that its index names.

    Raises:
        UserError: an index that is damaged or names a file outside the folder (INTEGRITY).
    """
    index = folder / _INDEX
    if (folder / WEIGHTS).exists() or not index.is_file():
        return [folder / WEIGHTS]
    parts = untrusted_files.read_json(index, fix=_COPY).get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) and all(isinstance(p, str) for p in parts.values()) else ()
    for name in names or ("",):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"the index names {untrusted_files.short_repr(name)}, which is not a safetensors file in its folder",
                where=str(index),
                code=INTEGRITY,
            )
    return [folder / name for name in sorted(names)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file after checking its header. The library ships no type for what it opens."""
    with _reading(path):
        _header(path)
        with safe_open(path, framework="pt") as file:
            yield file


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Refuse a path outside its folder, and turn the errors of reading a file into a UserError (INTEGRITY)."""
    untrusted_files.path_inside(path.parent, path.name)
    if not path.is_file():
        raise UserError(_missing(path), where=str(path), fix=_COPY, code=INTEGRITY)
    try:
        yield
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        what, fix = _unreadable(path, error)
        raise UserError(f"the weights cannot be read: {what}", where=str(path), fix=fix, code=INTEGRITY) from None


def _missing(path: Path) -> str:
    """Return the error for weights that are not there, with the number of parts that are."""
    parts = [other.name for other in path.parent.glob("*-of-*.safetensors")] if path.parent.is_dir() else []
    there = (
        f", {len(parts)} other part{'s are' if len(parts) > 1 else ' is'} there"
        if path.name != WEIGHTS
        else f", and {_INDEX} of its {len(parts)} parts"
    )
    return f"the weights are missing{there if parts else ''}"


def _unreadable(path: Path, error: Exception) -> tuple[str, str]:
    """Return why a file is no safetensors file, and what to do: cut files and pointers of Git LFS are what is usually there instead."""
    try:
        with path.open("rb") as file:
            start = file.read(len(_LFS_POINTER))
    except OSError:
        return str(error), ""
    if start == _LFS_POINTER:
        return "it is a pointer of Git LFS, the file itself was not fetched", f"run `git lfs pull` in {path.parent}"
    if not start:
        return "it is empty", _COPY
    return (
        f"it ends too early ({path.stat().st_size:,} bytes)" if "not fully covered" in str(error) else str(error)
    ), _COPY


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """Return the header of a file as it is written, and where the tensors begin."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _MAX_HEADER_BYTES:
            raise SafetensorError(f"its header has {size:,} bytes")
        # of a key given twice the library takes the last
        return json.loads(file.read(size), object_pairs_hook=untrusted_files.unique_keys), 8 + size


def _entries(path: Path) -> dict[str, tuple[Header, int]]:
    """Return every tensor of a file with the byte at which it starts, in the order of the file. The library has checked the offsets."""
    with _opened(path):
        found, start = _header(path)
    entries = {
        name: (Header(tuple(entry["shape"]), entry["dtype"]), start + entry["data_offsets"][0])
        for name, entry in found.items()
        if name != "__metadata__"
    }
    return dict(sorted(entries.items(), key=lambda item: item[1][1]))


def headers(paths: Sequence[Path]) -> dict[str, Header]:
    """Return shape and dtype of every tensor in the files, by name.

    Raises:
        UserError: a file that is missing or damaged, a name in two files, or a dtype that is not supported (INTEGRITY).
    """
    found: dict[str, Header] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                part = file.get_slice(name)
                if name in found or part.get_dtype() not in _WEIGHT_DTYPES:
                    why = "in two files" if name in found else f"of dtype {part.get_dtype()}, which is not supported"
                    raise UserError(f"{untrusted_files.short_repr(name)} is {why}", where=str(path), code=INTEGRITY)
                found[name] = Header(tuple(part.get_shape()), part.get_dtype())
    return found


def stream(paths: Sequence[Path], *, names: Container[str] | None = None, finite: bool = True) -> Iterator[Named]:
    """Yield the tensors of the files with their names, one at a time, on the CPU.

    Each is read straight into memory of its own: the library's share memory with the file, which counts as this process's while it is
    mapped, and change when the file changes.

    Args:
        names: the tensors to read; None: all.
        finite: refuse a tensor that holds a NaN or an infinity.

    Raises:
        UserError: a file that is missing or damaged, or a tensor that is not finite (INTEGRITY).
    """
    for path in paths:
        entries = _entries(path)
        with _reading(path), path.open("rb", buffering=0) as file:
            for name, (header, start) in entries.items():
                if names is not None and name not in names:
                    continue
                tensor = torch.empty(header.shape, dtype=_dtype(header))
                _read_into(tensor, file, start)
                if finite and not is_finite(tensor):
                    raise UserError(
                        f"{untrusted_files.short_repr(name)} is not finite", where=str(path), code=INTEGRITY
                    )
                yield name, tensor


def read(paths: Sequence[Path], *, finite: bool = True) -> dict[str, Tensor]:
    """Return all tensors of the files, by name; see `stream`."""
    return dict(stream(paths, finite=finite))


def _dtype(header: Header) -> torch.dtype:
    """Return the dtype of a tensor. Raises: ValueError for one that no file of ours holds."""
    if header.dtype not in _DTYPES:
        raise ValueError(f"dtype {header.dtype} is not supported")
    return _DTYPES[header.dtype]


def _read_into(tensor: Tensor, file: io.FileIO, start: int) -> None:
    """Fill a tensor with the bytes of a file from `start` on. Raises: ValueError if the file ends before."""
    file.seek(start)
    rest = tensor.reshape(-1).view(torch.uint8).numpy().data
    while rest:
        count = file.readinto(rest)
        if not count:
            raise ValueError("it ends inside a tensor")
        rest = rest[count:]


def is_finite(tensor: Tensor) -> bool:
    """Return whether no number of a tensor is NaN or infinite."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(_BLOCK))


def metadata(path: Path, key: str) -> str:
    """Return an entry of the file's metadata, or "" where there is none."""
    with _opened(path) as file:
        return (file.metadata() or {}).get(key, "")


def write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose bytes depend only on its content.

    The library writes the entries of the metadata in random order; they are put in order afterwards.
    """
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(metadata))
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        start, end = header.index(b"{", 1), header.index(b"}") + 1
        ordered = strict_json.dumps(dict(sorted(metadata.items())), separators=(",", ":")).encode()
        assert len(ordered) == end - start, "metadata must be plain names and hashes"
        file.seek(8 + start)
        file.write(ordered)


def sha256(folder: Path) -> str:
    """Return one hash for the weights in a folder: that of `model.safetensors`, or the hash over the hashes of its parts."""
    digests = []
    for path in files_of(folder):
        with _opened(path):
            digests.append(files.sha256(path))
    return files.joint_sha256(digests)


def mismatch(wanted: Mapping[str, Sequence[int]], there: Mapping[str, Sequence[int]]) -> str:
    """Describe the first tensor that is missing, unknown or of another shape, and count the others; "" if there is none.

    Args:
        wanted: shapes by name that the model has.
        there: shapes by name that the file has.
    """
    found = [f"{name} is missing" for name in wanted.keys() - there.keys()]
    found += [f"{untrusted_files.short_repr(name)} is unknown" for name in there.keys() - wanted.keys()]
    both = wanted.keys() & there.keys()
    found += [f"{k} is {tuple(there[k])}, not {tuple(wanted[k])}" for k in both if tuple(there[k]) != tuple(wanted[k])]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{min(found)}{more}" if found else ""


def fill(module: nn.Module, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Copy tensors into a module, in place.

    Args:
        found: the tensors, by name.
        wanted: the part of the module's state dict that they must match exactly.
        where: their file, for messages.

    Raises:
        UserError: a tensor is missing, unknown or of another shape (INTEGRITY); nothing was copied then.
    """
    problem = mismatch({k: v.shape for k, v in wanted.items()}, {k: v.shape for k, v in found.items()})
    if problem:
        raise UserError(f"does not fit this model: {problem}", where=str(where), code=INTEGRITY)
    module.load_state_dict(found, strict=False)


def copy_into(
    wanted: Mapping[str, Tensor],
    paths: Sequence[Path],
    where: Path,
    names: Mapping[str, str] | None = None,
    transposed: Container[str] = (),
) -> None:
    """Copy the tensors of files into `wanted`, in place, one at a time; see `fill`.

    Args:
        names: {name in `wanted`: name in the files}; None: the same. Tensors in the files that are not in it are skipped.
        transposed: names in `wanted` of tensors that the files store as (in, out).
    """
    there = headers(paths)
    ours = {theirs: name for name, theirs in (names or {name: name for name in there}).items()}
    shapes = {n: there[t].shape[::-1] if n in transposed else there[t].shape for t, n in ours.items()}
    if problem := mismatch({name: tensor.shape for name, tensor in wanted.items()}, shapes):
        raise UserError(f"does not fit this model: {problem}", where=str(where), code=INTEGRITY)
    with torch.no_grad():
        for theirs, tensor in stream(paths, names=ours):
            name = ours[theirs]
            wanted[name].copy_(tensor.T if name in transposed else tensor)


def main_dtype(paths: Sequence[Path]) -> torch.dtype:
    """Return the dtype that most numbers of the files have; float32 for float64, since weights are never wider here."""
    counts = dict.fromkeys(_WEIGHT_DTYPES, 0)
    for header in headers(paths).values():
        counts[header.dtype] += math.prod(header.shape)
    dtype = _DTYPES[max(sorted(counts), key=counts.__getitem__)]
    return torch.float32 if dtype == torch.float64 else dtype


def rounded(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in another dtype. Raises: UserError (FAILED) for a number that is too large for it, which would become infinite."""
    found = tensor.to(dtype)
    if dtype == torch.float16 and not is_finite(found):
        what = f"{name} holds {tensor.abs().max().item():.4g}, and float16 ends at {torch.finfo(dtype).max:.0f}"
        raise UserError(what, where="train.save_dtype", fix="set it to bf16 or fp32", code=FAILED)
    return found
