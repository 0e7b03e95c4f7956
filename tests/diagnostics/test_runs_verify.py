"""`tinyllm runs verify`: intact runs pass; every kind of damage is reported with its file and exit code 3, and nothing else is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import run_tree, small
from tests.support.run_damage import DAMAGE, ROWS, SHARDS, STEP, edit_line, file_in, replace_tokenizer, truncate
from tinyllm.cli import run as command
from tinyllm.cli.printing.text import size
from tinyllm.diagnostics.runs.record import read_record
from tinyllm.diagnostics.runs.verify import RunVerifier, verify_runs
from tinyllm.errors import INTEGRITY, OK, USAGE
from tinyllm.train import checkpoint, lock


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The six runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return run_tree.copy_to(tmp_path)


def verified(*given: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """Return problems and notes as (path, what)."""
    result = verify_runs(given)
    return tuple([(entry["path"], entry["what"]) for entry in result[kind]] for kind in ("problems", "notes"))


def test_intact_runs_have_no_problems_and_every_byte_is_read(tree: Path) -> None:
    answer = verify_runs(())
    assert (answer["problems"], answer["notes"]) == ([], [])
    assert (answer["runs"], answer["checkpoints"]) == (6, 6 * len(run_tree.STEPS))
    read = [p for folder in [*tree.glob("runs/**/step-*"), SHARDS] for p in folder.rglob("*") if p.is_file()]
    assert answer["bytes"] == sum(p.stat().st_size for p in read)
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", "runs", "verify"], cwd=tree, capture_output=True, text=True, timeout=60
    )
    assert answer["files"] == len(read) > 100
    summary = f"6 runs, 18 checkpoints, {len(read)} files, {size(answer['bytes'])}: 0 problems\n"
    assert (done.returncode, done.stdout, done.stderr) == (OK, summary, "")


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_reported_with_its_file_and_nothing_else_is(name: str, capsys: pytest.CaptureFixture) -> None:
    damage, expected = DAMAGE[name]
    damage()
    assert command(["runs", "verify"]) == INTEGRITY
    *lines, summary = capsys.readouterr().out.splitlines()
    assert len(lines) == len(expected), lines
    for line, (path, what) in zip(lines, expected, strict=True):
        assert line.startswith(f"BROKEN {path.as_posix()}: "), line
        assert what in line
    assert summary.startswith("6 runs, ")
    assert summary.endswith(f": {len(expected)} problem{'s' * (len(expected) != 1)}")
    assert command(["runs", "verify", "--json"]) == INTEGRITY
    assert len(json.loads(capsys.readouterr().out)["problems"]) == len(expected)


def test_every_row_of_the_documented_table_is_seen_red() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/reliability.md").read_text(encoding="utf-8")
    table = text.partition("**Verify** prints a line per problem")[2].partition("|---|---|\n")[2].partition("\n\n")[0]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines()] == list(ROWS)
    assert sorted(name for names in ROWS.values() for name in names) == sorted(DAMAGE)


def test_only_named_runs_are_verified(capsys: pytest.CaptureFixture) -> None:
    run_tree.flip_last_byte(file_in(run_tree.TALK, "model.safetensors"))
    assert command(["runs", "verify", "judge", "dpo-pairs"]) == OK
    assert re.fullmatch(r"2 runs, 6 checkpoints, 57 files, \d+ KB: 0 problems\n", capsys.readouterr().out)
    assert command(["runs", "verify", "runs/sft"]) == INTEGRITY
    assert re.search(r"\n2 runs, 6 checkpoints, .*: 1 problem\n$", capsys.readouterr().out)


@pytest.mark.parametrize("name", ["jugde", "notes", "empty", "runs/data"])
def test_what_is_not_a_run_is_refused(name: str, capsys: pytest.CaptureFixture) -> None:
    Path("notes").mkdir()
    Path("notes/readme.txt").write_text("not a run")
    Path("empty").mkdir()
    shutil.rmtree(SHARDS)
    assert command(["runs", "verify", "judge", name]) == USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert name in printed.err.splitlines()[0]


@pytest.mark.parametrize("folders", ["empty", "runs", "runs/sft/full/mine/logs"])
def test_verifying_nothing_is_a_problem(
    folders: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "elsewhere" / folders).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert command(["runs", "verify"]) == INTEGRITY
    assert capsys.readouterr().out.splitlines() == [
        "BROKEN runs: there are no runs to verify",
        "0 runs, 0 checkpoints, 0 files, 0 B: 1 problem",
    ]


def test_run_that_has_not_trained_needs_no_checkpoint() -> None:
    run_tree.edit_json(run_tree.DPO / "run.json", status="failed")
    shutil.rmtree(run_tree.DPO / "checkpoints")
    (run_tree.DPO / "metrics.jsonl").unlink()
    assert verified(str(run_tree.DPO)) == ([], [((run_tree.DPO / "checkpoints").as_posix(), "has no checkpoint yet")])


def test_run_without_logs_is_a_note() -> None:
    shutil.rmtree(run_tree.DPO / "logs")
    assert verified(str(run_tree.DPO)) == ([], [((run_tree.DPO / "logs").as_posix(), "missing")])


def test_shards_of_an_older_version_are_a_note() -> None:
    run_tree.edit_json(SHARDS / "manifest.json", version=1)
    problems, notes = verified(str(run_tree.BASE))
    what = "not checked: shards of version 1, which this tinyllm does not read"
    assert (problems, notes) == ([], [(SHARDS.as_posix(), what)])


def test_killed_run_may_end_in_an_incomplete_line_and_running_run_may_lack_a_link() -> None:
    run_tree.edit_json(run_tree.TALK / "run.json", status="running")
    edit_line(run_tree.TALK / "metrics.jsonl", -1, lambda line: line[:20])
    assert verified() == ([], [])
    lock.acquire(run_tree.TALK)
    try:
        (run_tree.TALK / "checkpoints/ckpt_best").unlink()  # about to be created again
        assert verified(str(run_tree.TALK)) == ([], [])
    finally:
        lock.release(run_tree.TALK)
    assert [path for path, _ in verified(str(run_tree.TALK))[0]] == [
        (run_tree.TALK / "checkpoints/ckpt_best").as_posix()
    ]


def test_checkpoint_removed_during_verification_is_ignored() -> None:
    verifier = RunVerifier()
    verifier.checkpoint(run_tree.TALK / "checkpoints/step-00000099", read_record(run_tree.TALK))
    assert (verifier.problems, verifier.checkpoints) == ({}, 0)


# --- parents and bases -----------------------------------------------------------------------------------------------------------


def test_retrained_parent_is_a_problem_and_moved_parent_a_note() -> None:
    """Runs with full weights are not affected; an adapter is then on the wrong base, although it would load."""
    there, aside = run_tree.BASE, run_tree.BASE.with_name("base~1")
    os.rename(there, aside)
    run_tree.train_base(seed=1)
    problems, notes = verified()
    assert [(path, "adapter" in what or "lora" in what) for path, what in problems] == [
        ((there / STEP).as_posix(), True)
    ]
    assert ((there / STEP).as_posix(), f"the parent of sft/full/talk has moved to {aside / STEP}") in notes
    shutil.rmtree(aside)
    problems, _ = verified(str(run_tree.TALK))
    assert problems == [
        ((there / STEP).as_posix(), "not the checkpoint that sft/full/talk was trained from (sha256 differs)")
    ]


def test_missing_parent_is_a_note_and_missing_base_a_problem() -> None:
    shutil.rmtree(run_tree.BASE)
    problems, notes = verified()
    adapters = [(run_tree.ADAPTER / f"checkpoints/step-{n:08d}").as_posix() for n in run_tree.STEPS]
    assert [path for path, _ in problems] == adapters
    assert all("base model" in what and "does not exist" in what for _, what in problems)
    parent = (run_tree.BASE / STEP).as_posix()
    assert notes == [
        (parent, "the parent of sft/full/talk is gone"),
        (parent, "the parent of sft/peft/lora/talk is gone"),
    ]


def test_moved_base_is_reported_with_its_new_path() -> None:
    os.rename(run_tree.BASE, run_tree.BASE.with_name("renamed"))
    problems, notes = verified(str(run_tree.ADAPTER))
    assert len(problems) == len(run_tree.STEPS)
    assert all(f"the same files are at {run_tree.BASE.with_name('renamed') / STEP}" in what for _, what in problems)
    assert notes == [
        (
            (run_tree.BASE / STEP).as_posix(),
            f"the parent of sft/peft/lora/talk has moved to {run_tree.BASE.with_name('renamed') / STEP}",
        )
    ]


def test_damaged_base_is_a_problem_of_the_adapter() -> None:
    run_tree.flip_last_byte(file_in(run_tree.BASE, "model.safetensors"))
    assert verified(str(run_tree.ADAPTER))[0] == [
        (file_in(run_tree.BASE, "model.safetensors").as_posix(), "the content has changed (sha256 differs)")
    ]


def test_base_of_an_older_adapter_is_compared_by_manifest() -> None:
    other = run_tree.train_base("other", seed=1)
    shutil.copytree(other / STEP, run_tree.BASE / STEP, dirs_exist_ok=True)
    files = sorted((run_tree.ADAPTER / "checkpoints").glob("step-*/adapter_model.safetensors"))
    for path in files:  # as an earlier version wrote it: without the hash of its base
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.loads(raw[8 : 8 + length])
        header["__metadata__"].pop("base_sha256")
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        path.write_bytes(len(text).to_bytes(8, "little") + text + raw[8 + length :])
        (path.parent / checkpoint.MANIFEST).unlink()
        checkpoint._write_manifest(path.parent)
    problems, _ = verified(str(run_tree.ADAPTER))
    assert problems == [
        (
            (run_tree.BASE / STEP).as_posix(),
            "not the checkpoint that sft/peft/lora/talk was trained from (sha256 differs)",
        )
    ]


def test_copied_adapter_is_compared_with_its_base() -> None:
    shutil.copytree(run_tree.ADAPTER / STEP, "mine")
    assert verified("mine") == ([], [])
    shutil.rmtree(run_tree.BASE)
    run_tree.train_base(seed=1)
    assert verified("mine")[0] == [
        ((run_tree.BASE / STEP).as_posix(), "not the checkpoint that mine was trained from (sha256 differs)")
    ]


def test_replaced_fast_dev_run_parent_is_a_note() -> None:
    run, parent = (
        Path("runs/sft/full/fast-dev-run"),
        {"checkpoint": str(run_tree.BASE / STEP), "manifest_sha256": "0" * 64},
    )
    os.rename(run_tree.TALK, run)
    run_tree.edit_json(run / "run.json", parent=parent, fast_dev_run=True)
    problems, notes = verified(str(run))
    assert problems == []
    assert notes == [
        (
            (run_tree.BASE / STEP).as_posix(),
            "the parent of sft/full/fast-dev-run has been replaced by a later fast-dev-run",
        )
    ]


def test_checkpoint_set_aside_as_damaged_is_a_note() -> None:
    aside = checkpoint.set_aside(run_tree.TALK / "checkpoints/step-00000002")
    run_tree.flip_last_byte(aside / "model.safetensors")
    assert verified() == ([], [(aside.as_posix(), "was set aside as damaged")])


def test_missing_data_are_a_note() -> None:
    shutil.rmtree("runs/data")
    assert verified() == ([], [(SHARDS.as_posix(), "the data of pretrain/base are gone")])


def test_runs_in_another_folder_are_compared_with_their_own_parents(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tree / "elsewhere"
    (elsewhere / "runs").mkdir(parents=True)
    monkeypatch.chdir(elsewhere)
    assert verified(str(tree / "runs")) == ([], [])


# --- checkpoints without a run ---------------------------------------------------------------------------------------------------


def test_single_checkpoint_is_compared_with_its_manifest(capsys: pytest.CaptureFixture) -> None:
    shutil.copytree(run_tree.TALK / STEP, "mine")
    assert command(["runs", "verify", "mine", f"{run_tree.JUDGE / STEP}", str(SHARDS), "runs/data/base"]) == OK
    assert re.fullmatch(r"0 runs, 2 checkpoints, 2\d files, \d+ KB: 0 problems\n", capsys.readouterr().out)
    run_tree.flip_last_byte(Path("mine/model.safetensors"))
    assert command(["runs", "verify", "mine"]) == INTEGRITY
    assert "BROKEN mine/model.safetensors: " in capsys.readouterr().out


def test_tokenizer_of_a_single_checkpoint_is_compared_with_its_run() -> None:
    replace_tokenizer(run_tree.DPO / STEP)
    [(path, what)] = verified(str(run_tree.DPO / STEP))[0]
    assert path == file_in(run_tree.DPO, "tokenizer.json").as_posix()
    assert "not the tokenizer of this run" in what


def model_without_manifest(folder: Path) -> Path:
    return small.saved(small.rough(), folder)


@pytest.mark.parametrize(
    ("damage", "path", "what"),
    [
        (lambda f: truncate(f / "model.safetensors"), "model.safetensors", "its header describes"),
        (lambda f: (f / "model.safetensors").unlink(), "", "it has no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\xff" * 99), "model.safetensors", "not a safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "model.safetensors", "not a safetensors file"),
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
def test_model_without_manifest_is_checked_by_file_sizes(
    damage: Callable[[Path], object], path: str, what: str
) -> None:
    folder = model_without_manifest(Path("theirs"))
    note = ("theirs", "has no manifest, so only the sizes of its weight files were checked")
    assert verified("theirs") == ([], [note])
    damage(folder)
    problems, notes = verified("theirs")
    assert [p for p, _ in problems] == [(folder / path).as_posix()]
    assert what in problems[0][1]
    assert notes == [note]
