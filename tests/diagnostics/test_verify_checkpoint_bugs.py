"""`tinyllm verify RUN`: each planted bug fails its own checks, on a run, an adapter, a reward model, a critic and a foreign folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import bugs_of_verify, run_tree, small
from tests.support.checked import failed, failures, parts, run_checks

TARGETS = {
    "full": run_tree.TALK,
    "adapter": run_tree.ADAPTER,
    "reward model": run_tree.JUDGE,
    "critic": run_tree.PPO,
    "foreign": Path("foreign"),
}
BUGS = [(kind, bug) for kind, bugs in bugs_of_verify.CHECKPOINT_BUGS.items() for bug in bugs]
ON_DISK = {"manifest: files"}  # test_flipped_bit_is_refused_with_exit_code_3


@pytest.fixture(autouse=True)
def _runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_tree.copy_to(tmp_path)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def foreign() -> Path:
    return small.saved(small.rough(), TARGETS["foreign"])


IDS = [f"{kind}: {bug.plant.__name__}" for kind, bug in BUGS]


@pytest.mark.parametrize(("kind", "bug"), BUGS, ids=IDS)
def test_planted_bug_fails_its_checks(
    kind: str, bug: bugs_of_verify.Bug, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug.plant(monkeypatch.setattr)
    found = run_checks(TARGETS[kind], only={part.partition(":")[0] for part in bug.in_process})
    expected = {name for name in bug.in_process if name.partition(":")[0] in found}
    assert expected
    assert failures(found.values()) >= expected


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "bug"), BUGS, ids=IDS)
def test_planted_bug_fails_its_checks_and_no_others(
    kind: str, bug: bugs_of_verify.Bug, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug.plant(monkeypatch.setattr)
    found = run_checks(TARGETS[kind])
    expected = {name for name in bug.in_process if name.partition(":")[0] in found}
    assert expected
    assert failures(found.values()) >= expected
    assert failed(found) <= bug.failing


def test_every_comparison_of_every_kind_of_checkpoint_is_seen_red(foreign: Path) -> None:
    planted = {name for _, bug in BUGS for name in bug.in_process} | ON_DISK
    for kind, target in TARGETS.items():
        found = run_checks(target)
        assert failed(found) == set(), kind
        own = {name for bug in bugs_of_verify.CHECKPOINT_BUGS[kind] for name in bug.in_process}
        assert parts(found.values()) <= planted, kind
        states = {
            name
            for name in parts(found.values())
            if name.startswith(("state: adapter", "state: trainer/critic", "lora"))
        }
        assert states <= own, kind
