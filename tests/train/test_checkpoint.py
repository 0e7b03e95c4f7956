"""Checkpoints are complete or absent."""

from __future__ import annotations

from pathlib import Path

import pytest

from tinyllm.errors import UserError
from tinyllm.train import checkpoint


def write(text: str):
    def fill(folder: Path) -> None:
        (folder / "weights").write_text(text)
        (folder / "trainer").mkdir()
        (folder / "trainer" / "state").write_text(text * 2)

    return fill


def no_warning(error: UserError, path: Path) -> None:
    raise AssertionError(f"{path}: {error}")


def test_a_saved_checkpoint_verifies(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 7, write("abc"))
    assert path.name == "step-00000007"
    checkpoint.verify(path)
    assert checkpoint.newest(tmp_path, no_warning) == path
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000007"]


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda f: (f / "weights").write_text("abd"), "sha256 differs"),
        (lambda f: (f / "weights").write_text("ab"), "2 bytes"),
        (lambda f: (f / "trainer" / "state").unlink(), "missing"),
        (lambda f: (f / "extra").write_text("x"), "not in the manifest"),
        (lambda f: (f / "manifest.json").write_text("{"), "no readable manifest"),
        (lambda f: (f / "manifest.json").unlink(), "no readable manifest"),
    ],
)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_used(tmp_path: Path, damage, word: str) -> None:
    good = checkpoint.save(tmp_path, 1, write("abc"))
    bad = checkpoint.save(tmp_path, 2, write("abc"))
    damage(bad)
    with pytest.raises(UserError, match=word) as caught:
        checkpoint.verify(bad)
    assert caught.value.code == 3
    heard: list[Path] = []
    assert checkpoint.newest(tmp_path, lambda error, path: heard.append(path)) == good
    assert heard == [bad]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    good = checkpoint.save(tmp_path, 1, write("abc"))

    def full(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left") as caught:
        checkpoint.save(tmp_path, 2, full)
    assert caught.value.code == 4
    assert list(tmp_path.iterdir()) == [good]


def test_links_are_relative_and_replaced_atomically(tmp_path: Path) -> None:
    first, second = (checkpoint.save(tmp_path, n, write("abc")) for n in (1, 2))
    for target in (first, second):
        checkpoint.link(tmp_path, checkpoint.BEST, target)
    assert (tmp_path / checkpoint.BEST).readlink() == Path("step-00000002")


def test_pruning_keeps_the_newest_and_linked_checkpoints(tmp_path: Path) -> None:
    paths = [checkpoint.save(tmp_path, n, write("abc")) for n in range(1, 7)]
    checkpoint.link(tmp_path, checkpoint.BEST, paths[1])
    (tmp_path / ".unfinished-00000009-deadbeef").mkdir()
    checkpoint.prune(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [paths[1], paths[4], paths[5]]
    assert not list(tmp_path.glob(".unfinished*"))
    checkpoint.prune(tmp_path, 0)
    assert checkpoint.steps(tmp_path) == [paths[1], paths[5]]
