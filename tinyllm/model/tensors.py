"""Tensors in safetensors files, which are looked at before they are loaded: names, shapes and kinds cost nothing, memory does.

The library checks the header against the file (offsets that overlap or point outside, sizes that overflow, more bytes than tensors).
Here: how large a header may be, which files belong to a checkpoint, which kinds of numbers are weights, and whether all is there.
Left out: pickles, in whatever file they come.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tinyllm import foreign
from tinyllm.errors import INTEGRITY, UserError

WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_MOST_HEADER = 10 << 20  # bytes: a hundred thousand tensors
_KINDS = {"F64", "F32", "F16", "BF16"}  # narrower ones have scales beside them, which make them another model


class Seen(NamedTuple):
    """A tensor that was not loaded."""

    shape: tuple[int, ...]
    kind: str


def files_of(folder: Path) -> list[Path]:
    """`model.safetensors`, or the parts that its index names."""
    index = folder / _INDEX
    if (folder / WEIGHTS).exists() or not index.is_file():
        return [folder / WEIGHTS]
    parts = foreign.read_json(index).get("weight_map")
    names = set(parts.values()) if isinstance(parts, dict) and all(isinstance(p, str) for p in parts.values()) else ()
    for name in names or ("",):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(
                f"the index names {foreign.short(name)}, which is not a file beside it",
                where=str(index),
                code=INTEGRITY,
            )
    return [folder / name for name in sorted(names)]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    foreign.inside(path.parent, path.name)
    if not path.is_file():
        raise UserError("the weights are missing", where=str(path), fix="name a complete checkpoint", code=INTEGRITY)
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MOST_HEADER:
                raise SafetensorError(f"a header of {size:,} bytes")
            json.loads(file.read(size), object_pairs_hook=foreign.once_each)  # the library lets the last of two win
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise UserError(f"the weights cannot be read: {error}", where=str(path), code=INTEGRITY) from None


def look(paths: Sequence[Path]) -> dict[str, Seen]:
    """What the files hold, by name."""
    found: dict[str, Seen] = {}
    for path in paths:
        with _opened(path) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no dict
                part = file.get_slice(name)
                if name in found or part.get_dtype() not in _KINDS:
                    why = "in two files" if name in found else f"of kind {part.get_dtype()}"
                    raise UserError(f"{foreign.short(name)} is {why}", where=str(path), code=INTEGRITY)
                found[name] = Seen(tuple(part.get_shape()), part.get_dtype())
    return found


def read(paths: Sequence[Path], *, finite: bool = True) -> dict[str, Tensor]:
    """The tensors themselves: copies, since the library's share their memory with the file, and change when it does.

    finite: refuse one that holds a NaN or an infinity.
    """
    found: dict[str, Tensor] = {}
    for path in paths:
        with _opened(path) as file:
            found |= {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        for name in (name for name, tensor in found.items() if finite and not torch.isfinite(tensor).all()):
            raise UserError(f"{foreign.short(name)} is not finite", where=str(path), code=INTEGRITY)
    return found


def note(path: Path, key: str) -> str:
    """An entry of the file's own metadata; empty where there is none."""
    with _opened(path) as file:
        return (file.metadata() or {}).get(key, "")


def write(tensors: Mapping[str, Tensor], path: Path, notes: Mapping[str, str]) -> None:
    """A file whose bytes depend on nothing but its content: the library writes several notes in an order that changes every time."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=dict(notes))
    with path.open("r+b") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))
        start, end = header.index(b"{", 1), header.index(b"}") + 1
        ordered = json.dumps(dict(sorted(notes.items())), separators=(",", ":")).encode()
        assert len(ordered) == end - start, "notes are plain names and hashes"
        file.seek(8 + start)
        file.write(ordered)


def sha256(folder: Path) -> str:
    """One hash for the weights in a folder: of `model.safetensors` what `sha256sum` prints, of parts the hash over theirs."""
    digests = []
    for path in files_of(folder):
        with _opened(path), path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def misfits(wanted: Mapping[str, Sequence[int]], there: Mapping[str, Sequence[int]]) -> str:
    """The first tensor that is missing, unknown or of another shape, and how many more are; empty if none is."""
    found = [f"{name} is missing" for name in wanted.keys() - there.keys()]
    found += [f"{foreign.short(name)} is unknown" for name in there.keys() - wanted.keys()]
    both = wanted.keys() & there.keys()
    found += [f"{k} is {tuple(there[k])}, not {tuple(wanted[k])}" for k in both if tuple(there[k]) != tuple(wanted[k])]
    more = f" and {len(found) - 1} more" if len(found) > 1 else ""
    return f"{min(found)}{more}" if found else ""


def fill(module: nn.Module, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], where: Path) -> None:
    """Copy `found` into `module`, in place: exactly the tensors of `wanted`, which is a part of its state dict.

    Raises: UserError (INTEGRITY), with nothing copied, where one is missing, unknown or of another shape.
    """
    problem = misfits({k: v.shape for k, v in wanted.items()}, {k: v.shape for k, v in found.items()})
    if problem:
        raise UserError(f"does not fit this model: {problem}", where=str(where), code=INTEGRITY)
    module.load_state_dict(found, strict=False)
