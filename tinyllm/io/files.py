"""File hashes, atomic writes, and errors of the file system as `UserError`.

A file is written under another name and then renamed: a reader, or a process that is killed midway, finds the old content or the new.
Left out: fsync, directories and resumed parts. Checkpoints (`train.checkpoint`), shards (`data.tokens.shards`), token parts
(`data.tokens.preparation`) and downloads (`data.hub.download`) need those, each in its own way. `distributed.heartbeat` lies on the
same floor as this module and must not raise, so it writes by itself.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinyllm.errors import RESOURCES, UserError

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content in hexadecimal, as `sha256sum` prints it. Raises: OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def joint_sha256(digests: Sequence[str]) -> str:
    """Return one hash for several files: the file's own where there is one, else the SHA-256 of their hexadecimal hashes in a row."""
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


@contextmanager
def writing(
    path: Path, what: str = "cannot be written", fix: str = "check the permissions of its folder"
) -> Iterator[None]:
    """Turn an OSError raised while writing `path` into a UserError (RESOURCES).

    Args:
        what: the error message, to which the system's reason is appended.
        fix: what to do where the disk is not full.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            fix = "free disk space, then run the same command again"
        raise UserError(f"{what}: {error.strerror}", where=str(path), fix=fix, code=RESOURCES) from error


def write_text_atomically(path: Path, text: str) -> None:
    """Replace the content of `path` in one rename. The draft is `NAME.new` in the same folder.

    A lone surrogate, from the name of a file that is not UTF-8, is written as JSON's escape.

    Raises: UserError (RESOURCES).
    """
    draft = path.with_name(f"{path.name}.new")
    with writing(path):
        draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="\n")
        os.replace(draft, path)


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the disk that holds `folder`, or its nearest existing parent."""
    existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(existing).free
