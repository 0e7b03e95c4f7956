"""Folders of models from elsewhere that are not quite what they should be: above a model, other formats, damaged or missing parts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import small
from tinyllm import cli
from tinyllm.errors import INTEGRITY, RESOURCES, USAGE, UserError
from tinyllm.io import foreign_weights
from tinyllm.model import hub
from tinyllm.stages.parents import find_checkpoint

PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    """A model in two parts, as transformers writes it."""
    folder = small.saved(small.rough(), tmp_path / "parts")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    where = {name: PARTS[i % 2] for i, name in enumerate(names)}
    for part in PARTS:
        save_file({n: weights[n] for n in names if where[n] == part}, folder / part, metadata={"format": "pt"})
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}), encoding="utf-8")
    return folder


def error_of(name: str | Path, stage: str = "chat") -> UserError:
    with pytest.raises(UserError) as caught:
        hub.load_causal_lm(find_checkpoint(stage, Path(name), fast=False).folder)
    return caught.value


def test_a_model_in_parts_is_loaded_whole(sharded: Path) -> None:
    found, made = hub.load_causal_lm(find_checkpoint("chat", sharded, fast=False).folder), small.rough()
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), made.parameters(), strict=True))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "what", "fix"),
    [
        (lambda f: (f / PARTS[1]).unlink(), "missing, 1 other part is there", "copy this file"),
        (lambda f: cut(f / PARTS[1]), "ends too early", "copy this file"),
        (lambda f: (f / PARTS[1]).write_bytes(b""), "it is empty", "copy this file"),
        (
            lambda f: (f / PARTS[1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
            "Git LFS",
            "git lfs pull",
        ),
        (lambda f: (f / INDEX).unlink(), f"and {INDEX} of its 2 parts", "copy this file"),
        (lambda f: (f / INDEX).write_text("{"), "not JSON", "copy this file"),
        (lambda f: edit(f / "config.json", num_hidden_layers=2), "num_hidden_layers: weights 1, config.json 2", "copy"),
        (lambda f: edit(f / "config.json", vocab_size=310), "vocab_size: weights 300, config.json 310", "copy"),
    ],
)
def test_damaged_parts_are_named(damage: Callable[[Path], None], what: str, fix: str, sharded: Path) -> None:
    damage(sharded)
    error = error_of(sharded)
    assert (error.code, what in error.what, fix in error.fix) == (INTEGRITY, True, True), error


def edit(path: Path, **values: int) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values), encoding="utf-8")


@pytest.mark.parametrize("stage", ["chat", "verify"])
def test_a_folder_above_a_model_names_the_model(stage: str, sharded: Path, tmp_path: Path) -> None:
    deep = tmp_path / "above" / "unpacked"
    deep.mkdir(parents=True)
    shutil.move(sharded, deep / "m")
    option = "" if stage == "verify" else "--checkpoint "
    for name in ("above", "above/unpacked"):
        error = error_of(name, stage)
        assert (error.code, error.fix) == (USAGE, f"use {option}above/unpacked/m")
        assert f"{name} is not the folder of a model" in error.what
    small.saved(small.rough(), deep / "n")
    assert "one of above/unpacked/m, above/unpacked/n" in error_of("above", stage).fix
    error = error_of("above/unpacked/n/model.safetensors", stage)
    assert (error.what, error.fix) == ("above/unpacked/n/model.safetensors is a file", f"use {option}above/unpacked/n")


@pytest.mark.parametrize("stage", ["sft", "chat"])
def test_a_mistyped_path_names_the_model_beside_it(stage: str, sharded: Path, tmp_path: Path) -> None:
    small.saved(small.rough(), tmp_path / "runs" / "sft" / "full" / "mine" / "checkpoints" / "step-00000001")
    for typed in (tmp_path / "partz", "./part"):
        error = error_of(typed, stage)
        assert (error.code, error.fix) == (USAGE, f"use --checkpoint {sharded if typed != './part' else 'parts'}")
    error = error_of(tmp_path / "other", stage)
    assert "config.json" in error.fix
    assert "mine" not in error.fix


def test_a_mistyped_run_elsewhere_names_the_run_beside_it(tmp_path: Path) -> None:
    run = tmp_path / "other" / "mine"
    small.saved(small.rough(), run / "checkpoints" / "step-00000001")
    (run / "run.json").write_text("{}")
    assert error_of("other/mien").fix == "use --checkpoint other/mine"


def test_a_large_folder_is_listed_once(sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looking a model up among the entries of a folder must not list the folder for each of them."""
    lists = []
    listed = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: lists.append(path) or listed(path))
    for number in range(40):
        Path("many", f"entry{number}").mkdir(parents=True)
    error_of("many/entry")
    error_of("many")
    assert len(lists) < 20


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("gone"), lambda path: os.mkfifo(path)])
def test_what_is_no_folder_is_said(make: Callable[[Path], None]) -> None:
    make(Path("odd"))
    error = error_of("odd")
    assert error.code == USAGE
    assert ("which does not exist" in error.what) or ("odd is a file" in error.what)
    if Path("odd").is_symlink():
        error = error_of("odd/x")  # not a model of a hub
        assert error.code == USAGE


def test_the_home_folder_is_understood(sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert find_checkpoint("chat", Path("~/parts"), fast=False).folder.resolve() == sharded.resolve()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_said(sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir()
    sharded.rename(tmp_path / "locked" / "parts")
    (tmp_path / "locked").chmod(0)
    error = error_of("locked/parts")
    (tmp_path / "locked").chmod(0o700)
    assert (error.code, "permission denied" in error.what) == (RESOURCES, True)


def test_a_name_like_no_run_also_offers_a_folder_and_a_hub(tmp_path: Path) -> None:
    assert "or name the folder of a model, or owner/name of a hub" in error_of("smollm").fix
    small.saved(small.rough(), tmp_path / "runs" / "sft" / "full" / "mine" / "checkpoints" / "step-00000001")
    run = tmp_path / "runs" / "sft" / "full" / "mine"
    (run / "checkpoints" / "ckpt_best").symlink_to("step-00000001")
    (run / "run.json").write_text('{"stage": "sft", "status": "completed"}')
    assert error_of("smollm").fix == "use --checkpoint sft/full/mine, the only run, or name the folder of another model"


def test_a_mistyped_parent_is_the_first_thing_that_is_said(
    sharded: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.run(["sft", "--checkpoint", str(tmp_path / "partz"), "--set", "train.steps=5"]) == USAGE
    said = capfd.readouterr().err
    assert said.startswith("error: there is no run or checkpoint")
    assert "warning" not in said


def test_other_formats_are_refused_with_what_helps(sharded: Path, tmp_path: Path) -> None:
    for part in (*PARTS, INDEX):
        (sharded / part).unlink()
    (sharded / "pytorch_model.bin").write_bytes(b"pickle")
    for name in (sharded, sharded / "pytorch_model.bin"):
        error = error_of(name)
        assert (error.code, "pytorch_model.bin, which can run any code" in error.what) == (USAGE, True), error
        assert error.fix.endswith(
            f" {sharded} parts-safetensors"
        )  # an absolute path: the command works from any folder
    (sharded / "pytorch_model.bin").rename(sharded / "m.Q4_0.gguf")
    for name in (sharded, sharded / "m.Q4_0.gguf"):
        assert "only GGUF files, such as m.Q4_0.gguf" in error_of(name).what


def test_a_pickle_beside_safetensors_does_not_matter(sharded: Path) -> None:
    (sharded / "pytorch_model.bin").write_bytes(b"pickle")
    assert find_checkpoint("chat", sharded, fast=False).folder == Path("parts")
    assert not foreign_weights.is_foreign(["config.json", "tokenizer.json"])


@pytest.mark.slow
def test_the_command_that_converts_a_pickle(sharded: Path, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import subprocess
    import sys

    weights = {name: tensor for part in PARTS for name, tensor in load_file(sharded / part).items()}
    for part in (*PARTS, INDEX):
        (sharded / part).unlink()
    torch.save(weights, sharded / "pytorch_model.bin")
    command = error_of(sharded).fix.partition(": python ")[2]
    subprocess.run(f"{sys.executable} {command}", shell=True, cwd=tmp_path, check=True)
    found = load_file(tmp_path / "parts-safetensors" / "model.safetensors")
    assert all(torch.equal(found[name], weights[name]) for name in found)
    assert find_checkpoint("chat", Path("parts-safetensors"), fast=False)
