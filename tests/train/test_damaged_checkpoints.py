"""Damage by a disk, a copy or a crash: every kind of damage to every file of a checkpoint is found wherever it is read.

Three real runs (all weights, an adapter, a policy with its critic). `verify` names the file; a run resumes from the previous checkpoint,
to the same end; a stage that was to start from it refuses. Nothing damaged is ever loaded.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.support import run_tree
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model.config import LoRAConfig
from tinyllm.stages import align_offline, sft
from tinyllm.stages.config import AlignOfflineConfig, SftConfig
from tinyllm.train import checkpoint

SHARED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "tinyllm.json", "manifest.json")
SHARED += ("trainer/optimizer.safetensors", "trainer/state.json")
WEIGHTS = ("model.safetensors", "config.json", "generation_config.json")
BRANCHES = ("adapter_model.safetensors", "adapter_config.json")
FILES = {
    run_tree.TALK: (*SHARED, *WEIGHTS),
    run_tree.ADAPTER: (*SHARED, *BRANCHES),
    run_tree.PPO: (*SHARED, *WEIGHTS, "trainer/critic.safetensors"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    draw = random.Random(path.name)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero_tailed(path: Path) -> None:
    """Zero the second half, as after a power cut: the size is right, and the end was never written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


def gone(path: Path) -> None:
    path.unlink()


DAMAGE: dict[str, Callable[[Path], None]] = {f.__name__: f for f in (cut, emptied, flipped, zero_tailed, gone)}
CASES = [(run, file, damage) for run, files in FILES.items() for file in files for damage in DAMAGE]
IDS = [f"{run.parent.name}-{file}-{damage}" for run, file, damage in CASES]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run_tree.copy_to(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return one copy for all tests that only read; they restore what they change."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run_tree.copy_to(tmp_path_factory.mktemp("spare")))
        yield Path()


def go_on(run: Path) -> None:
    """The same command again."""
    stage, kind, source = {"dpo-pairs": (align_offline, AlignOfflineConfig, "pairs.jsonl")}.get(
        run.name, (sft, SftConfig, "talk.jsonl")
    )
    changes: dict[str, Any] = {"parent": run_tree.BASE}
    if run == run_tree.ADAPTER:
        changes["lora"] = LoRAConfig(r=2)
    run_tree.run_stage(stage, run_tree.make_config(kind, source, run.name, **changes))


def start_from(folder: Path) -> None:
    run_tree.run_stage(sft, run_tree.make_config(SftConfig, "talk.jsonl", "child", parent=folder))


def refused(action: Callable[[], Any], *, code: int = INTEGRITY) -> UserError:
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.code == code
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def learned(run: Path) -> list[dict[str, Any]]:
    """Return metrics.jsonl without measured times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


# --- every file, every damage ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "file", "damage"), CASES, ids=IDS)
def test_verify_and_stages_name_the_damaged_file(spare: Path, run: Path, file: str, damage: str) -> None:
    folder = run / run_tree.LAST
    kept = (folder / file).read_bytes()
    DAMAGE[damage](folder / file)
    try:
        for action in (
            partial(checkpoint.verify, folder),
            partial(start_from, folder),
            partial(start_from, folder.with_name(checkpoint.LATEST)),
        ):
            where = refused(action).where
            assert where == str(folder / file) or (file == "manifest.json" and where.startswith(str(folder)))
        assert not Path("runs/sft/full/child").exists()
    finally:
        (folder / file).write_bytes(kept)
    checkpoint.verify(folder)


RESUMED = [(run, file, damage) for run, file, damage in CASES if run == run_tree.TALK or file in BRANCHES]


@pytest.mark.parametrize(("run", "file", "damage"), RESUMED, ids=[f"{r.parent.name}-{f}-{h}" for r, f, h in RESUMED])
def test_a_run_resumes_from_the_previous_checkpoint_with_the_same_result(
    runs: Path, run: Path, file: str, damage: str, capsys: pytest.CaptureFixture
) -> None:
    want, rows = contents(run / run_tree.LAST), learned(run)
    shutil.rmtree(run / run_tree.LAST)
    damaged = run / "checkpoints" / "step-00000002"
    DAMAGE[damage](damaged / file)
    go_on(run)
    warning = next(line for line in capsys.readouterr().err.splitlines() if "damaged" in line)
    assert f"({damaged / (file if file != 'manifest.json' else '')}" in warning
    found = contents(run / run_tree.LAST)
    if "adapter_config.json" in want:  # it names its base by an absolute path, and the manifest has its hash
        ours, theirs = (json.loads(files.pop("adapter_config.json")) for files in (found, want))
        assert Path(ours.pop("base_model_name_or_path")) == (run_tree.BASE / run_tree.LAST).absolute()
        assert Path(theirs.pop("base_model_name_or_path")).parts[-5:] == (run_tree.BASE / run_tree.LAST).parts
        assert ours == theirs
        assert found.pop("manifest.json") != want.pop("manifest.json")
    assert found == want
    assert learned(run) == rows


# --- the checkpoint as a whole ---------------------------------------------------------------------------------------------------


def extra(folder: Path) -> str:
    (folder / "trainer" / "more.json").write_text("{}")
    return "trainer/more.json"


def linked_extra(folder: Path) -> str:
    (folder / "more").symlink_to("/etc")
    return "more"


def hollow(folder: Path) -> str:
    shutil.rmtree(folder)
    folder.mkdir()
    return "manifest.json"


def a_folder_for_a_file(folder: Path) -> str:
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    return "config.json"


@pytest.mark.parametrize("damage", [extra, linked_extra, hollow, a_folder_for_a_file])
def test_damage_to_the_directory_is_found(runs: Path, damage: Callable[[Path], str]) -> None:
    run = run_tree.TALK
    want = contents(run / run_tree.LAST)
    folder = run / "checkpoints" / "step-00000002"
    file = damage(folder)
    assert refused(partial(checkpoint.verify, folder)).where == str(folder / file)
    assert refused(partial(start_from, folder)).where == str(folder / file)
    shutil.rmtree(run / run_tree.LAST)
    go_on(run)
    assert contents(run / run_tree.LAST) == want


def test_every_byte_of_a_manifest_counts(spare: Path) -> None:
    """One bit of each in turn: a hash that does not match, a name that is not there, or no manifest at all."""
    folder = run_tree.TALK / run_tree.LAST
    path = folder / "manifest.json"
    kept = path.read_bytes()
    draw = random.Random(0)
    try:
        for place in range(len(kept)):
            content = bytearray(kept)
            content[place] ^= 1 << draw.randrange(8)
            path.write_bytes(content)
            assert str(folder) in refused(partial(checkpoint.verify, folder)).where, place
    finally:
        path.write_bytes(kept)
