"""`tinyllm runs verify`: what is intact is called so; every kind of damage is named, with its file and exit code 3, and nothing else is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import family
import small

from tinyllm.cli import run as command
from tinyllm.errors import INTEGRITY, OK, USAGE
from tinyllm.stages.runs.read import read
from tinyllm.stages.runs.verify import Check, verify
from tinyllm.train import checkpoint, lock

STEP = family.LAST
SHARDS = Path("runs/data/base/shards")


@pytest.fixture(autouse=True)
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All six runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return family.copied(tmp_path)


def found(*given: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Problems and notes, as (path, what)."""
    answer = verify(given)
    return tuple([(entry["path"], entry["what"]) for entry in answer[kind]] for kind in ("problems", "notes"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def other_tokenizer(folder: Path, *, manifest: bool = True) -> None:
    """Another vocabulary, as if it belonged there."""
    small.tokenizer(("quite another text, and more of quite another text",)).save(folder, model_max_length=96)
    if manifest:
        (folder / checkpoint.MANIFEST).unlink()
        checkpoint._write_manifest(folder)


def edit_line(path: Path, number: int, change: Callable[[str], str]) -> None:
    lines = path.read_text().splitlines()
    lines[number] = change(lines[number])
    path.write_text("\n".join(lines) + "\n")


def test_an_intact_life_has_no_problems_and_all_of_it_was_read(life: Path) -> None:
    answer = verify(())
    assert (answer["problems"], answer["notes"]) == ([], [])
    assert (answer["runs"], answer["checkpoints"]) == (6, 6 * len(family.STEPS))
    read = [p for folder in [*life.glob("runs/**/step-*"), SHARDS] for p in folder.rglob("*") if p.is_file()]
    assert answer["bytes"] == sum(p.stat().st_size for p in read)
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", "runs", "verify"], cwd=life, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (OK, "6 runs, 18 checkpoints, 0 problems\n", "")


def at(run: Path, name: str) -> Path:
    return run / STEP / name


# what is done -> the files that are named, and what is said of each
HARM: dict[str, tuple[Callable[[], object], list[tuple[Path, str]]]] = {
    "a byte of weights": (
        lambda: family.flip(at(family.TALK, "model.safetensors")),
        [(at(family.TALK, "model.safetensors"), "sha256 differs")],
    ),
    "weights cut": (
        lambda: cut(at(family.JUDGE, "model.safetensors")),
        [(at(family.JUDGE, "model.safetensors"), "bytes, the manifest says")],
    ),
    "two files of one checkpoint": (
        lambda: (cut(at(family.DPO, "config.json")), at(family.DPO, "trainer/state.json").unlink()),
        [(at(family.DPO, "trainer/state.json"), "a file is missing"), (at(family.DPO, "config.json"), "bytes")],
    ),
    "a file too many": (
        lambda: at(family.DPO, "pytorch_model.bin").write_text("x"),
        [(at(family.DPO, "pytorch_model.bin"), "not in the manifest")],
    ),
    "no manifest": (
        lambda: at(family.DPO, "manifest.json").unlink(),
        [(at(family.DPO, "manifest.json"), "no readable manifest")],
    ),
    "a manifest of nonsense": (
        lambda: at(family.DPO, "manifest.json").write_text('{"files": {"config.json": [1]}}'),
        [(at(family.DPO, "manifest.json"), "no readable manifest")],
    ),
    "a link out of a checkpoint": (
        lambda: (
            shutil.move(at(family.DPO, "model.safetensors"), "outside"),
            at(family.DPO, "model.safetensors").symlink_to(Path("outside").absolute()),
        ),
        [(at(family.DPO, "model.safetensors"), "leads out of its folder")],
    ),
    "another tokenizer": (
        lambda: other_tokenizer(family.DPO / STEP),
        [(at(family.DPO, "tokenizer.json"), "it is not the tokenizer of this run")],
    ),
    "another tokenizer on record": (
        lambda: family.edit(family.DPO / "run.json", tokenizer_sha256="0" * 64),
        [(family.DPO / f"checkpoints/step-{n:08d}/tokenizer.json", "run.json says 000000000000") for n in family.STEPS],
    ),
    "half a run.json": (
        lambda: (family.PPO / "run.json").write_text('{"status": "compl'),
        [(family.PPO / "run.json", "not JSON")],
    ),
    "no config.yaml": (
        lambda: (family.PPO / "config.yaml").unlink(),
        [(family.PPO / "config.yaml", "is missing")],
    ),
    "a config.yaml that was edited": (
        lambda: (family.PPO / "config.yaml").write_text((family.PPO / "config.yaml").read_text() + "\n# later\n"),
        [(family.PPO / "config.yaml", "not the configuration that the run began with")],
    ),
    "another parent on record": (
        lambda: family.edit(
            family.JUDGE / "run.json", parent={"checkpoint": str(family.TALK / STEP), "manifest_sha256": "0" * 64}
        ),
        [(family.TALK / STEP, "it is not what rlhf/rm/judge was trained from")],
    ),
    "another reward model on record": (
        lambda: family.edit(
            family.PPO / "run.json", reward_model={"checkpoint": str(family.JUDGE / STEP), "manifest_sha256": "0" * 64}
        ),
        [(family.JUDGE / STEP, "it is not what rlhf/online/ppo-both was trained from")],
    ),
    "a byte of the shards": (
        lambda: family.flip(next(iter(sorted(SHARDS.glob("train*.bin"))))),
        [(next(iter(sorted((family.whole() / SHARDS).glob("train*.bin")))).relative_to(family.whole()), "differs")],
    ),
    "other shards": (
        lambda: family.edit(family.BASE / "run.json", data=[{"shards": SHARDS.as_posix(), "fingerprint": "0" * 64}]),
        [(SHARDS, "these are not the data that pretrain/base was trained on")],
    ),
    "a link to nowhere": (
        lambda: relinked("ckpt_latest", "step-00000099"),
        [(family.TALK / "checkpoints/ckpt_latest", "leads to step-00000099, which is no checkpoint of this run")],
    ),
    "a link out of the run": (
        lambda: relinked("ckpt_best", str(Path(family.BASE / STEP).absolute())),
        [(family.TALK / "checkpoints/ckpt_best", "which is no checkpoint of this run")],
    ),
    "no link": (
        lambda: (family.TALK / "checkpoints/ckpt_best").unlink(),
        [(family.TALK / "checkpoints/ckpt_best", "it is missing")],
    ),
    "steps that fall": (
        lambda: edit_line(family.TALK / "metrics.jsonl", 4, lambda line: line.replace('"step": 3', '"step": 2')),
        [(family.TALK / "metrics.jsonl", "line 5: step 2 of train comes after step 2")],
    ),
    "half a line": (
        lambda: edit_line(family.TALK / "metrics.jsonl", 2, lambda line: line[:20]),
        [(family.TALK / "metrics.jsonl", "line 3 is no object with a step")],
    ),
    "half a last line, completed": (
        lambda: edit_line(family.TALK / "metrics.jsonl", -1, lambda line: line[:20]),
        [(family.TALK / "metrics.jsonl", "is no object with a step")],
    ),
    "no metrics": (
        lambda: (family.TALK / "metrics.jsonl").unlink(),
        [(family.TALK / "metrics.jsonl", "missing or empty")],
    ),
}


def relinked(name: str, target: str) -> None:
    link = family.TALK / "checkpoints" / name
    link.unlink()
    link.symlink_to(target)


@pytest.mark.parametrize("harm", HARM)
def test_damage_is_named_with_its_file_and_nothing_else_is(harm: str, capsys: pytest.CaptureFixture) -> None:
    spoil, wanted = HARM[harm]
    spoil()
    assert command(["runs", "verify"]) == INTEGRITY
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == len(wanted), lines
    for line, (path, what) in zip(lines, wanted, strict=True):
        assert line.startswith(f"BROKEN {path.as_posix()}: "), line
        assert what in line
    assert summary == f"6 runs, 18 checkpoints, {len(wanted)} problems"
    assert command(["runs", "verify", "--json"]) == INTEGRITY
    assert len(json.loads(capsys.readouterr().out)["problems"]) == len(wanted)


def test_only_what_is_named_is_checked(capsys: pytest.CaptureFixture) -> None:
    family.flip(at(family.TALK, "model.safetensors"))
    assert command(["runs", "verify", "judge", "dpo-pairs"]) == OK
    assert capsys.readouterr().out == "2 runs, 6 checkpoints, 0 problems\n"
    assert command(["runs", "verify", "runs/sft"]) == INTEGRITY
    assert capsys.readouterr().out.endswith("2 runs, 6 checkpoints, 1 problems\n")
    assert command(["runs", "verify", "jugde"]) == USAGE


def test_no_runs_is_no_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert command(["runs", "verify"]) == OK
    assert capsys.readouterr().out == "0 runs, 0 checkpoints, 0 problems\n"


def test_a_killed_run_may_end_in_half_a_line_and_one_under_way_may_lose_a_checkpoint() -> None:
    family.edit(family.TALK / "run.json", status="running")
    edit_line(family.TALK / "metrics.jsonl", -1, lambda line: line[:20])
    assert found() == ([], [])
    lock.claim(family.TALK)
    try:
        (family.TALK / "checkpoints/ckpt_best").unlink()  # about to be made again
        assert found(str(family.TALK)) == ([], [])
    finally:
        lock.release(family.TALK)
    assert [path for path, _ in found(str(family.TALK))[0]] == [(family.TALK / "checkpoints/ckpt_best").as_posix()]


def test_a_checkpoint_that_is_cleared_while_it_is_read_was_never_there() -> None:
    check = Check()
    check.checkpoint(family.TALK / "checkpoints/step-00000099", read(family.TALK))
    assert (check.problems, check.checkpoints) == ({}, 0)


# --- parents and bases -----------------------------------------------------------------------------------------------------------


def test_a_parent_that_was_trained_again_is_told_from_one_that_was_only_moved_aside() -> None:
    """Both are as before for those who kept their own weights; an adapter is on the wrong base, although it would load."""
    there, aside = family.BASE, family.BASE.with_name("base~1")
    os.rename(there, aside)
    family.base(seed=1)
    problems, notes = found()
    assert [(path, "adapter" in what or "lora" in what) for path, what in problems] == [
        ((there / STEP).as_posix(), True)
    ]
    assert ((there / STEP).as_posix(), f"the parent of sft/full/talk has moved to {aside / STEP}") in notes
    shutil.rmtree(aside)
    problems, _ = found(str(family.TALK))
    assert problems == [((there / STEP).as_posix(), "it is not what sft/full/talk was trained from (sha256 differs)")]


def test_a_parent_that_is_gone_is_a_note_and_a_base_that_is_gone_a_problem() -> None:
    shutil.rmtree(family.BASE)
    problems, notes = found()
    adapters = [(family.ADAPTER / f"checkpoints/step-{n:08d}").as_posix() for n in family.STEPS]
    assert [path for path, _ in problems] == adapters
    assert all("base model" in what and "is not there" in what for _, what in problems)
    parent = (family.BASE / STEP).as_posix()
    assert notes == [
        (parent, "the parent of sft/full/talk is gone"),
        (parent, "the parent of sft/peft/lora/talk is gone"),
    ]


def test_where_the_base_has_gone_is_said() -> None:
    os.rename(family.BASE, family.BASE.with_name("renamed"))
    problems, notes = found(str(family.ADAPTER))
    assert all(f"the same files are at {family.BASE.with_name('renamed') / STEP}" in what for _, what in problems)
    assert notes == [
        (
            (family.BASE / STEP).as_posix(),
            f"the parent of sft/peft/lora/talk has moved to {family.BASE.with_name('renamed') / STEP}",
        )
    ]


def test_an_adapter_is_not_whole_without_a_whole_base() -> None:
    family.flip(at(family.BASE, "model.safetensors"))
    assert found(str(family.ADAPTER))[0] == [
        (at(family.BASE, "model.safetensors").as_posix(), "the content is not what was written (sha256 differs)")
    ]


def test_a_base_is_known_by_its_weights_or_of_an_older_adapter_by_its_manifest() -> None:
    other = family.base("other", seed=1)
    shutil.copytree(other / STEP, family.BASE / STEP, dirs_exist_ok=True)
    files = sorted((family.ADAPTER / "checkpoints").glob("step-*/adapter_model.safetensors"))
    for path in files:  # as an earlier version would have written it: without a word on its base
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header["__metadata__"].pop("base_sha256")
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
        (path.parent / checkpoint.MANIFEST).unlink()
        checkpoint._write_manifest(path.parent)
    problems, _ = found(str(family.ADAPTER))
    assert problems == [
        ((family.BASE / STEP).as_posix(), "it is not what sft/peft/lora/talk was trained from (sha256 differs)")
    ]


def test_an_adapter_that_was_copied_elsewhere_still_knows_its_base() -> None:
    shutil.copytree(family.ADAPTER / STEP, "mine")
    assert found("mine") == ([], [])
    shutil.rmtree(family.BASE)
    family.base(seed=1)
    assert found("mine")[0] == [
        ((family.BASE / STEP).as_posix(), "it is not what mine was trained from (sha256 differs)")
    ]


def test_a_rehearsal_takes_the_place_of_the_one_before_it_and_that_is_no_damage() -> None:
    run, parent = (
        Path("runs/sft/full/fast-dev-run"),
        {"checkpoint": str(family.BASE / STEP), "manifest_sha256": "0" * 64},
    )
    os.rename(family.TALK, run)
    family.edit(run / "run.json", parent=parent)
    problems, notes = found(str(run))
    assert problems == []
    assert notes == [
        ((family.BASE / STEP).as_posix(), "the parent of sft/full/fast-dev-run has been rehearsed again since")
    ]


def test_what_was_set_aside_as_damaged_is_a_note() -> None:
    aside = checkpoint.set_aside(family.TALK / "checkpoints/step-00000002")
    family.flip(aside / "model.safetensors")
    assert found() == ([], [(aside.as_posix(), "set aside earlier as damaged")])


def test_data_that_are_gone_are_a_note() -> None:
    shutil.rmtree("runs/data")
    assert found() == ([], [(SHARDS.as_posix(), "the data of pretrain/base are gone")])


def test_another_folder_s_runs_are_checked_against_their_own_parents(
    life: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = life / "elsewhere"
    (elsewhere / "runs").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert found(str(life / "runs")) == ([], [])


# --- checkpoints without a run ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_on_its_own_is_checked_by_its_manifest(capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(family.TALK / STEP, "mine")
    assert command(["runs", "verify", "mine", f"{family.JUDGE / STEP}", str(SHARDS), "runs/data/base"]) == OK
    assert capsys.readouterr().out == "0 runs, 2 checkpoints, 0 problems\n"
    family.flip(Path("mine/model.safetensors"))
    assert command(["runs", "verify", "mine"]) == INTEGRITY
    assert "BROKEN mine/model.safetensors: " in capsys.readouterr().out


def test_of_a_checkpoint_of_a_run_the_tokenizer_is_known() -> None:
    other_tokenizer(family.DPO / STEP)
    [(path, what)] = found(str(family.DPO / STEP))[0]
    assert path == at(family.DPO, "tokenizer.json").as_posix()
    assert "not the tokenizer of this run" in what


def foreign(folder: Path) -> Path:
    return small.saved(small.rough(), folder)


@pytest.mark.parametrize(
    ("spoil", "path", "what"),
    [
        (lambda f: cut(f / "model.safetensors"), "model.safetensors", "its header describes"),
        (lambda f: (f / "model.safetensors").unlink(), "", "there are no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "model.safetensors", "no safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors", "no safetensors file"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "tokenizer.json", ""),
        (
            lambda f: (
                shutil.move(f / "model.safetensors", "outside"),
                (f / "model.safetensors").symlink_to(Path("outside").absolute()),
            ),
            "model.safetensors",
            "leads out of its folder",
        ),
        (
            lambda f: (
                os.rename(f / "model.safetensors", f / "model-1-of-2.safetensors"),
                (f / "model.safetensors.index.json").write_text(
                    '{"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}'
                ),
            ),
            "model-2-of-2.safetensors",
            "a file is missing",
        ),
    ],
)
def test_a_model_from_elsewhere_has_no_manifest_which_is_said_and_is_measured(
    spoil: Callable[[Path], object], path: str, what: str
) -> None:
    folder = foreign(Path("theirs"))
    note = ("theirs", "it has no manifest: nothing says what its files should be")
    assert found("theirs") == ([], [note])
    spoil(folder)
    problems, notes = found("theirs")
    assert [p for p, _ in problems] == [(folder / path).as_posix()]
    assert what in problems[0][1]
    assert notes == [note]
