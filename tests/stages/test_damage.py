"""What a disk, a copy or a crash can do to a checkpoint: every file of it, harmed in every way, is found out wherever it is read.

Three real runs (all weights, an adapter, a policy with its critic). `verify` names the file; a run goes on from the checkpoint before,
to the same end; a stage that was to start from it refuses. Nothing damaged is ever loaded.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import family

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.model.config import LoRAConfig
from tinyllm.stages import align_offline, sft
from tinyllm.stages.config import AlignOfflineConfig, SftConfig
from tinyllm.train import checkpoint

SHARED = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "manifest.json")
SHARED += ("trainer/optimizer.safetensors", "trainer/state.json")
WEIGHTS = ("model.safetensors", "config.json", "generation_config.json")
BRANCHES = ("adapter_model.safetensors", "adapter_config.json")
FILES = {
    family.TALK: (*SHARED, *WEIGHTS),
    family.ADAPTER: (*SHARED, *BRANCHES),
    family.PPO: (*SHARED, *WEIGHTS, "trainer/critic.safetensors"),
}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    """One bit, anywhere."""
    content = bytearray(path.read_bytes())
    draw = random.Random(path.name)
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def zero_tailed(path: Path) -> None:
    """What a file system leaves after a power cut: the size is right, and the end was never written."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2].ljust(len(content), b"\0"))


def gone(path: Path) -> None:
    path.unlink()


HARMS: dict[str, Callable[[Path], None]] = {f.__name__: f for f in (cut, emptied, flipped, zero_tailed, gone)}
CASES = [(run, file, harm) for run, files in FILES.items() for file in files for harm in HARMS]
IDS = [f"{run.parent.name}-{file}-{harm}" for run, file, harm in CASES]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(family.copied(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One copy for all that only look: they put back what they took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(family.copied(tmp_path_factory.mktemp("spare")))
        yield Path()


def go_on(run: Path) -> None:
    """The same command again."""
    stage, kind, source = {"dpo-pairs": (align_offline, AlignOfflineConfig, "pairs.jsonl")}.get(
        run.name, (sft, SftConfig, "talk.jsonl")
    )
    changes: dict[str, Any] = {"parent": family.BASE}
    if run == family.ADAPTER:
        changes["lora"] = LoRAConfig(r=2)
    family.trained(stage, family.settings(kind, source, run.name, **changes))


def start_from(folder: Path) -> None:
    family.trained(sft, family.settings(SftConfig, "talk.jsonl", "child", parent=folder))


def refused(action: Callable[[], Any], *, code: int = INTEGRITY) -> UserError:
    with pytest.raises(UserError) as caught:
        action()
    assert caught.value.code == code
    return caught.value


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def learned(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl, less what a clock says."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


# --- every file, every harm ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("run", "file", "harm"), CASES, ids=IDS)
def test_verify_and_a_stage_that_starts_from_it_name_the_file(spare: Path, run: Path, file: str, harm: str) -> None:
    folder = run / family.LAST
    kept = (folder / file).read_bytes()
    HARMS[harm](folder / file)
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


RESUMED = [(run, file, harm) for run, file, harm in CASES if run == family.TALK or file in BRANCHES]


@pytest.mark.parametrize(("run", "file", "harm"), RESUMED, ids=[f"{r.parent.name}-{f}-{h}" for r, f, h in RESUMED])
def test_a_run_goes_on_from_the_checkpoint_before_to_the_same_end(
    runs: Path, run: Path, file: str, harm: str, capsys: pytest.CaptureFixture
) -> None:
    want, rows = contents(run / family.LAST), learned(run)
    shutil.rmtree(run / family.LAST)
    damaged = run / "checkpoints" / "step-00000002"
    HARMS[harm](damaged / file)
    go_on(run)
    warning = next(line for line in capsys.readouterr().err.splitlines() if "damaged" in line)
    assert f"({damaged / (file if file != 'manifest.json' else '')}" in warning
    assert contents(run / family.LAST) == want
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


@pytest.mark.parametrize("harm", [extra, linked_extra, hollow, a_folder_for_a_file])
def test_harm_to_the_whole_is_found_out_too(runs: Path, harm: Callable[[Path], str]) -> None:
    run = family.TALK
    want = contents(run / family.LAST)
    folder = run / "checkpoints" / "step-00000002"
    file = harm(folder)
    assert refused(partial(checkpoint.verify, folder)).where == str(folder / file)
    assert refused(partial(start_from, folder)).where == str(folder / file)
    shutil.rmtree(run / family.LAST)
    go_on(run)
    assert contents(run / family.LAST) == want


def test_every_byte_of_a_manifest_counts(spare: Path) -> None:
    """One bit of each in turn: a hash that does not match, a name that is not there, or no manifest at all."""
    folder = family.TALK / family.LAST
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
