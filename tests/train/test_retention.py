"""Random sequences of saves, damage, links and pruning: a valid checkpoint, milestones and linked ones stay."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.errors import UserError
from tinyllm.train import checkpoint

ACTIONS = st.lists(
    st.tuples(st.sampled_from(["save", "save", "best", "cut", "flip", "resume"]), st.integers(0, 9)), max_size=14
)


def good(path: Path) -> bool:
    try:
        checkpoint.verify(path)
    except UserError:
        return False
    return True


def fill(folder: Path) -> None:
    (folder / "weights").write_text("abc")


@settings(max_examples=150, deadline=None)
@given(ACTIONS, st.integers(1, 3), st.sampled_from([0, 2, 3]))
def test_a_valid_checkpoint_is_always_kept(actions: list[tuple[str, int]], keep: int, keep_every: int) -> None:
    folder = Path(tempfile.mkdtemp()).resolve()
    try:
        _play(folder, actions, keep, keep_every)
    finally:
        shutil.rmtree(folder)


def _play(folder: Path, actions: list[tuple[str, int]], keep: int, keep_every: int) -> None:
    step, milestones = 0, set()
    for action, number in actions:
        there = checkpoint.steps(folder)
        if action in ("save", "best"):
            step += 1
            path = checkpoint.save(folder, step, fill)
            checkpoint.link(folder, checkpoint.LATEST, path)
            if action == "best":
                checkpoint.link(folder, checkpoint.BEST, path)
            before = checkpoint.steps(folder)
            checkpoint.prune(folder, keep, keep_every)
            if keep_every and step % keep_every == 0:
                milestones.add(path)
            kept = {*before[-keep:], *(milestones & set(before)), (folder / checkpoint.BEST).resolve()}
            assert checkpoint.steps(folder) == [p for p in before if p in kept], "the newest `keep`, and no others"
            assert good(path), "what was just written stays"
        elif there and action in ("cut", "flip"):
            damaged = there[number % len(there)]
            (damaged / "weights").write_text("ab" if action == "cut" else "abd")
            before = {p for p in there if good(p)}
            checkpoint.prune(folder, keep, keep_every)
            if before:
                assert any(good(p) for p in checkpoint.steps(folder)), "pruning has removed the last good one"
        elif there and action == "resume":  # as train.checkpointing does
            found = _resume(folder, there, milestones)
            if found is None:
                return
            step = checkpoint.step_of(found)
        _look(folder, milestones)


def _resume(folder: Path, there: list[Path], milestones: set[Path]) -> Path | None:
    """Find the newest valid checkpoint, set the damaged ones aside, and let the best lead to something."""
    skipped: list[Path] = []
    found = checkpoint.newest(folder, lambda error, path: skipped.append(path))
    assert (found is None) == (not any(good(p) for p in there))
    if found is None:
        return None
    for path in skipped:
        milestones.discard(path)
        checkpoint.set_aside(path)
    if not (folder / checkpoint.BEST).exists():  # it may be one of those set aside
        checkpoint.link(folder, checkpoint.BEST, found)
    assert checkpoint.steps(folder)[-1] == found
    return found


def _look(folder: Path, milestones: set[Path]) -> None:
    best = folder / checkpoint.BEST
    if best.is_symlink():
        assert best.exists(), "pruning has removed the best"
    assert all(path.exists() for path in milestones)
    assert not list(folder.glob(".unfinished*"))


@pytest.mark.parametrize("damage", ["truncated", "missing", "without its manifest"])
def test_nothing_is_removed_unless_the_newest_has_all_its_files(tmp_path: Path, damage: str) -> None:
    paths = [checkpoint.save(tmp_path, step, fill) for step in (1, 2, 3)]
    file = paths[-1] / (checkpoint.MANIFEST if damage == "without its manifest" else "weights")
    whole = file.read_text()
    file.write_text("ab") if damage == "truncated" else file.unlink()
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == paths
    file.write_text(whole)
    (paths[0] / "weights").unlink()  # an older one does not matter
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.steps(tmp_path) == paths[-1:]
