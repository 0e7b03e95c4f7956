"""A checkpoint is on the disk before its rename publishes it: the order of the calls to the system, by the files' inodes."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tinyllm.train import checkpoint

Call = tuple[str, int, int]  # what, the inode, the size of a file at that time


class Calls:
    """Records every fsync and every rename of this process, and makes them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.made: list[Call] = []
        flush, rename = os.fsync, os.replace

        def fsync(handle: int) -> None:
            self.made.append(("flush", *_identity(os.fstat(handle))))
            flush(handle)

        def replace(source: Path, target: Path) -> None:
            self.made.append(("rename", *_identity(os.stat(source))))
            rename(source, target)

        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "replace", replace)

    def place(self, what: str, path: Path) -> int:
        """Return the place of a call among all of them. Raises: ValueError where it was not made on the file as it is now."""
        return self.made.index((what, *_identity(path.stat())))


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_ino, found.st_size if stat.S_ISREG(found.st_mode) else 0


def fill(folder: Path) -> None:
    (folder / "weights").write_text("abc")
    (folder / "trainer").mkdir()
    (folder / "trainer" / "state").write_text("a longer text")


@pytest.mark.skipif(os.name == "nt", reason="folders cannot be flushed")
def test_all_is_flushed_before_the_rename_and_the_folder_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    path = checkpoint.save(tmp_path, 7, fill)
    renamed, manifest = calls.place("rename", path), calls.place("flush", path / checkpoint.MANIFEST)
    content = [calls.place("flush", path / name) for name in ("weights", "trainer/state", "trainer")]
    assert max(content) < manifest, "the manifest is the last file"
    assert manifest < calls.place("flush", path) < renamed, "its name is on the disk as well"
    assert renamed < calls.place("flush", tmp_path), "and the rename"
