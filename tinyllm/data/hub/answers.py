"""The answer of a hub that lists a data set or a model, checked before anything in it is used: types, checksums, file names, license.

The hub is not trusted: a mirror or a network's login page may answer in its place. What a file contains is checked by `download`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllm.data.sources.errors import preview
from tinyllm.data.sources.paths import SUFFIXES, TABLES

MAX_BYTES = 64_000_000  # of a listing: 200,000 files
_MAX_NAME = 237  # bytes of one part of a path: 255, less `.HASH.part`
_MAX_PATH = 1_000
_MAX_LICENSE = 200  # characters
_NOT_DATA = ("dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json")  # metadata of other programs
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices on Windows


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository, as the hub describes it: large files have `sha256`, others `git_sha1` (of the git blob)."""

    path: str
    size: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Kind:
    """What a repository holds: `dataset` or `model`."""

    name: str
    page: str
    """what precedes the repository in the address of its page"""
    is_wanted: Callable[[str], bool]
    """whether a file is ever downloaded"""
    missing: str
    """the error for a name that the hub does not know"""
    find: str
    """how to find the right name, with {endpoint} and {name}"""
    elsewhere: str
    """how to have files written to another place"""


@dataclass(frozen=True)
class Listing:
    """The files of a repository at one commit."""

    repository: str
    revision: str
    """the commit"""
    license: str | None
    files: tuple[RemoteFile, ...]
    """those that may be downloaded"""
    kind: Kind
    others: tuple[str, ...] = ()
    """names of all other files, which are only looked at"""


class _Checked(BaseModel):
    model_config = ConfigDict(strict=True)  # "12" is not a size


_Sha1 = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]


class _Stored(_Checked):
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Sibling(_Checked):
    rfilename: str
    size: Annotated[int, Field(ge=0)] | None = None
    blobId: _Sha1 | None = None  # noqa: N815
    lfs: _Stored | None = None


class _Card(_Checked):
    license: str | list[str] | None = None


class _Answer(_Checked):
    sha: _Sha1
    siblings: list[_Sibling]
    cardData: _Card | None = None  # noqa: N815


def parse(text: bytes, repository: str, kind: Kind | None = None) -> Listing:
    """Return the files that an answer lists, by default data files. Raises: ValueError, with the reason, for anything but a listing."""
    kind = kind or DATASET
    try:
        answer = _Answer.model_validate(json.loads(text))
    except ValidationError as error:
        raise ValueError(_reason(error)) from None
    except RecursionError:
        raise ValueError("its answer is nested too deeply") from None
    except ValueError:
        raise ValueError(f"its answer is not JSON: {preview(text[:80].decode(errors='replace'))}") from None
    files = []
    for entry in answer.siblings:
        if kind.is_wanted(entry.rfilename):
            if entry.size is None:
                raise ValueError(f"it gives no size for {preview(entry.rfilename)}")
            sha256 = entry.lfs.sha256 if entry.lfs else None
            files.append(RemoteFile(entry.rfilename, entry.size, sha256, None if sha256 else entry.blobId))
    others = tuple(entry.rfilename for entry in answer.siblings if not kind.is_wanted(entry.rfilename))
    return Listing(repository, answer.sha, _license(answer), tuple(files), kind, others)


def _reason(error: ValidationError) -> str:
    """`siblings.3.size is '12'`."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("str", "list[str]")) or "its answer"
    return f"{place} is missing" if first["type"] == "missing" else f"{place} is {preview(first['input'])}"


def _license(answer: _Answer) -> str | None:
    found = answer.cardData.license if answer.cardData else None
    text = ", ".join(found) if isinstance(found, list) else found
    if text is not None and not (text.isprintable() and len(text) <= _MAX_LICENSE):
        raise ValueError(f"its license is {preview(text)}")
    return text


# --- file names ------------------------------------------------------------------------------------------------------------------


def data_suffixes() -> tuple[str, ...]:
    """Return the suffixes of data files, also with .gz: those our readers open, except .md (a data set's card)."""
    return tuple(suffix for suffix in (*SUFFIXES, *TABLES) if suffix != ".md")


def is_data_file(path: str) -> bool:
    """Return whether our readers could open this file: never a script, a card, or a hidden file."""
    pure = PurePosixPath(path)
    hidden = any(part.startswith(".") and part != ".." for part in pure.parts)  # for ".." see path_fault
    return not hidden and pure.name not in _NOT_DATA and pure.name.lower().removesuffix(".gz").endswith(data_suffixes())


DATASET = Kind(
    "dataset",
    "datasets/",
    is_data_file,
    missing="the hub does not have it (404)",
    find="check the name and the revision",
    elsewhere="choose another --out",
)


def path_fault(path: str) -> str:
    """Return why a path from the network cannot be joined to a folder, on any operating system; an empty text if it can."""
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or re.search(r"[\\:]", path):
        return "outside its folder"
    if not path.isprintable():
        return "with characters that are not printable"
    if re.search(r'[*?"<>|]', path) or any(_RESERVED.fullmatch(part) or part[-1] in ". " for part in parts):
        return "with a name that not every system can store"
    if len(path) > _MAX_PATH or any(len(part.encode()) > _MAX_NAME for part in parts):
        return f"with a name of {len(path)} characters"
    return ""
