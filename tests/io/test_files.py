"""Hashes as `sha256sum` prints them, files that are replaced in one rename, and errors that name the file."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import pytest

from tinyllm.errors import RESOURCES, UserError
from tinyllm.io import files


def test_the_hash_of_one_file_is_its_own_and_of_several_that_of_their_hashes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello")
    digest = files.sha256(tmp_path / "a")
    assert digest == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    assert files.joint_sha256([digest]) == digest
    assert files.joint_sha256([digest, "b" * 64]) == hashlib.sha256((digest + "b" * 64).encode()).hexdigest()


def test_a_failed_replacement_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.json"
    files.write_text_atomically(path, "old\n")

    def refused(*_: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(UserError, match="cannot be written: Permission denied") as caught:
        files.write_text_atomically(path, "new\n")
    assert (caught.value.code, caught.value.where) == (RESOURCES, str(path))
    assert path.read_bytes() == b"old\n"


@pytest.mark.parametrize(("number", "fix"), [(errno.ENOSPC, "free disk space"), (errno.EROFS, "choose another --out")])
def test_the_fix_is_disk_space_only_where_the_disk_is_full(tmp_path: Path, number: int, fix: str) -> None:
    with (
        pytest.raises(UserError, match="the page cannot be written") as caught,
        files.writing(tmp_path / "x", "the page cannot be written", "choose another --out"),
    ):
        raise OSError(number, os.strerror(number))
    assert caught.value.fix.startswith(fix)
