"""Checkpoints that are whole, and not what is needed: of another model, vocabulary, format or base; or changed before they were loaded.

The difference is listed by field, and no file is changed, moved or skipped.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.support import run_tree, small
from tests.train.test_damaged_checkpoints import contents, flipped, go_on, refused, start_from
from tinyllm.errors import INTEGRITY, USAGE
from tinyllm.io.files import sha256
from tinyllm.model import hub, lora, tensors
from tinyllm.model.config import LoRAConfig
from tinyllm.stages import sft
from tinyllm.stages.config import SftConfig
from tinyllm.stages.parents import find_checkpoint
from tinyllm.train import checkpoint


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run_tree.copy_to(tmp_path))
    return tmp_path


# --- whole, but not what the run or the stage needs ------------------------------------------------------------------------------


def closed(folder: Path) -> None:
    """A manifest that agrees with what is there now."""
    (folder / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(folder)


def of_another_shape(folder: Path) -> None:
    """A checkpoint that is good, of a wider model."""
    shape = small.SHAPE.model_copy(update={"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2})
    hub.save(small.CausalLM(shape), folder, bos=None, stop=(2,), pad=3)


def of_another_vocabulary(folder: Path) -> None:
    small.tokenizer(("another text altogether, and more of another text",)).save(folder, model_max_length=96)


def of_a_newer_format(folder: Path) -> None:
    run_tree.edit_json(folder / "manifest.json", version=2, parts=["a"])


def with_a_newer_state(folder: Path) -> None:
    run_tree.edit_json(folder / "trainer" / "state.json", format=9)


def without_a_tensor(folder: Path) -> None:
    found = load_file(folder / "model.safetensors")
    found.pop("model.norm.weight")
    save_file(found, folder / "model.safetensors", metadata={"format": "pt"})


OTHERS = {
    of_another_shape: "hidden_size: checkpoint 32, config 16; num_hidden_layers: checkpoint 2, config 1",
    of_another_vocabulary: "another vocabulary: sha256 ",
    of_a_newer_format: "written by a newer tinyllm: format 2, this one reads 1",
    with_a_newer_state: "written by a newer tinyllm: format 9, this one reads 1",
    without_a_tensor: "does not fit this model: model.norm.weight is missing",
}


@pytest.mark.parametrize("change", OTHERS)
def test_a_run_does_not_resume_from_another_model(runs: Path, change: Callable[[Path], None]) -> None:
    """It is intact, so it is not skipped: the difference is reported, and every file stays as it is."""
    run = run_tree.TALK
    shutil.rmtree(run / run_tree.LAST)
    folder = run / "checkpoints" / "step-00000002"
    change(folder)
    if change is not of_a_newer_format:
        closed(folder)
    before = contents(run / "checkpoints")
    error = refused(partial(go_on, run))
    assert OTHERS[change] in error.what
    assert error.where.startswith(str(folder))
    assert contents(run / "checkpoints") == before


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: run_tree.edit_json(f / "config.json", hidden_size=32), "hidden_size: weights 16, config.json 32"),
        (
            lambda f: run_tree.edit_json(f / "config.json", num_hidden_layers=3),
            "num_hidden_layers: weights 1, config.json 3",
        ),
        (lambda f: run_tree.edit_json(f / "config.json", vocab_size=290), "vocab_size: weights 283, config.json 290"),
        (
            lambda f: run_tree.edit_json(f / "config.json", model_type="llama"),
            "model_type: weights qwen3, config.json llama",
        ),
        (lambda f: run_tree.edit_json(f / "config.json", model_type="mamba"), "model_type 'mamba' cannot be loaded"),
        (of_a_newer_format, "written by a newer tinyllm"),
    ],
)
def test_differences_of_a_parent_are_listed_by_field(runs: Path, change: Callable[[Path], None], words: str) -> None:
    folder = run_tree.TALK / run_tree.LAST
    change(folder)
    if change is not of_a_newer_format:
        closed(folder)
    error = refused(partial(start_from, folder), code=USAGE if "mamba" in words else INTEGRITY)
    assert words in error.what
    assert "size mismatch" not in str(error)


def test_differences_of_an_adapter_are_listed_by_field(runs: Path) -> None:
    run = run_tree.ADAPTER
    shutil.rmtree(run / run_tree.LAST)
    folder = run / "checkpoints" / "step-00000002"
    model = lora.attach(hub.load_causal_lm(run_tree.BASE / run_tree.LAST), LoRAConfig(r=3, targets=("q_proj",)))
    lora.save(model, LoRAConfig(r=3, targets=("q_proj",)), folder, "x")
    closed(folder)
    what = refused(partial(go_on, run)).what
    assert "r: checkpoint 3, config 2; targets: checkpoint [q_proj], config [down_proj," in what


@pytest.mark.parametrize("drop", ["lora_A", "lora_B"])
def test_an_adapter_with_a_missing_tensor_is_refused(runs: Path, drop: str) -> None:
    run = run_tree.ADAPTER
    shutil.rmtree(run / run_tree.LAST)
    folder = run / "checkpoints" / "step-00000002"
    path = folder / "adapter_model.safetensors"
    found = load_file(path)
    name = next(key for key in found if drop in key)
    save_file({key: value for key, value in found.items() if key != name}, path)
    closed(folder)
    for action in (partial(go_on, run), partial(start_from, folder)):
        assert f"{name.removeprefix('base_model.model.')} is missing" in refused(action).what


# --- an adapter and its base -----------------------------------------------------------------------------------------------------


def test_an_adapter_records_the_hash_of_its_base(runs: Path) -> None:
    """The hash is what `sha256sum` prints for the base's file."""
    base, folder = run_tree.BASE / run_tree.LAST / "model.safetensors", run_tree.ADAPTER / run_tree.LAST
    assert tensors.metadata(folder / lora.WEIGHTS, lora.BASE_SHA256) == sha256(base)
    with safe_open(folder / lora.WEIGHTS, framework="pt") as file:
        assert file.metadata()["format"] == "pt"


def bit_of_the_base(base: Path) -> None:
    found = load_file(base / "model.safetensors")
    found["model.norm.weight"].view(torch.int32)[0] ^= 1
    save_file(found, base / "model.safetensors", metadata={"format": "pt"})
    closed(base)


@pytest.mark.parametrize("stage", ["chat", "eval", "sft"])
def test_an_adapter_on_another_base_is_refused_with_both_hashes(runs: Path, stage: str) -> None:
    base, folder = run_tree.BASE / run_tree.LAST, run_tree.ADAPTER / run_tree.LAST
    wanted = sha256(base / "model.safetensors")[:12]
    bit_of_the_base(base)
    there = sha256(base / "model.safetensors")[:12]
    error = refused(lambda: hub.load_causal_lm(find_checkpoint(stage, folder, fast=False).folder))
    assert wanted in error.what
    assert there in error.what
    assert error.where == str(folder)
    refused(partial(start_from, folder))


def test_a_lora_run_does_not_resume_on_another_base(runs: Path) -> None:
    shutil.rmtree(run_tree.ADAPTER / run_tree.LAST)
    bit_of_the_base(run_tree.BASE / run_tree.LAST)
    refused(partial(go_on, run_tree.ADAPTER), code=USAGE)  # the parent's manifest has changed
    run_tree.edit_json(run_tree.ADAPTER / "run.json", parent=None)
    assert "trained on other weights" in refused(partial(go_on, run_tree.ADAPTER)).what


def test_a_damaged_base_is_found_through_its_adapter(runs: Path) -> None:
    """A rotary base of another size would change every answer, and stands in no tensor."""
    base = run_tree.BASE / run_tree.LAST
    path = base / "config.json"
    path.write_text(path.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 10001.0'))
    assert refused(partial(find_checkpoint, "chat", run_tree.ADAPTER, fast=False)).where == str(path)


@pytest.mark.parametrize("replaced", [False, True])
def test_an_adapter_finds_a_base_that_became_decayed(runs: Path, replaced: bool) -> None:
    """Its run was extended from before the decay, and may have reached the same step again, with other weights."""
    base, adapter = run_tree.BASE / run_tree.LAST, run_tree.ADAPTER / run_tree.LAST
    entries = json.loads(
        (adapter / "adapter_config.json").read_text()
    )  # the recorded path is that of the runs copied here
    (adapter / "adapter_config.json").write_text(json.dumps(entries | {"base_model_name_or_path": base.as_posix()}))
    wanted = hub.load_causal_lm(adapter).state_dict()
    aside = checkpoint.set_aside(base.resolve(), checkpoint.DECAYED)
    if replaced:
        shutil.copytree(aside, base)
        bit_of_the_base(base)
    found = hub.load_causal_lm(adapter).state_dict()
    assert len(found) > 8
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def test_an_adapter_finds_its_own_base_from_any_directory(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the command runs, something else may have the base's path."""
    elsewhere = runs / "elsewhere"
    other = elsewhere / run_tree.BASE / run_tree.LAST
    shutil.copytree(run_tree.BASE / run_tree.LAST, other)
    bit_of_the_base(other)
    want = hub.load_causal_lm(run_tree.ADAPTER / run_tree.LAST).state_dict()
    monkeypatch.chdir(elsewhere)
    got = hub.load_causal_lm(runs / run_tree.ADAPTER / run_tree.LAST).state_dict()
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_the_merged_base_of_a_second_adapter_is_verified(runs: Path) -> None:
    start = partial(
        run_tree.run_stage,
        sft,
        run_tree.make_config(
            SftConfig, "talk.jsonl", "second", parent=run_tree.ADAPTER / run_tree.LAST, lora=LoRAConfig(r=2)
        ),
    )
    folder = start() / run_tree.LAST
    base = Path(json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"])
    checkpoint.verify(base)
    want = hub.load_causal_lm(run_tree.ADAPTER / run_tree.LAST)
    assert torch.equal(hub.load_causal_lm(base).model.norm.weight, want.model.norm.weight)
    flipped(base / "model.safetensors")
    where = refused(partial(find_checkpoint, "chat", folder, fast=False)).where
    assert where == str(base.relative_to(Path.cwd()) / "model.safetensors")


# --- between looking and loading -------------------------------------------------------------------------------------------------


def test_loaded_weights_do_not_change_with_the_file(runs: Path) -> None:
    """The library gives tensors that share their memory with the file."""
    folder = run_tree.TALK / run_tree.LAST
    model = hub.load_causal_lm(folder)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with (folder / "model.safetensors").open("r+b") as file:  # in place: the same file
        size = file.seek(0, 2)
        file.seek(size // 2)
        file.write(b"\x55" * (size - size // 2))
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


ARMED: list[Path] = []  # the folder whose weights are to change once they have been loaded
OPENED: list[str] = []


def _watch(event: str, arguments: tuple) -> None:
    """After the weights were opened a second time (the first was to verify them), the tokenizer is about to be read."""
    if event == "open" and ARMED:
        OPENED.append(Path(str(arguments[0])).name)
        if OPENED[-1] == "tokenizer.json" and OPENED.count("model.safetensors") > 1:
            path = ARMED.pop() / "model.safetensors"
            content = path.read_bytes()
            path.write_bytes(content[:-1] + b"\x01")


sys.addaudithook(_watch)


def test_files_that_change_between_verification_and_loading_are_refused(runs: Path) -> None:
    folder = run_tree.TALK / run_tree.LAST
    parent = find_checkpoint("rm", folder, fast=False)
    parent.check_unchanged()
    OPENED.clear()
    ARMED.append(folder)
    error = refused(partial(start_from, folder))
    assert not ARMED
    assert (error.what, error.where) == ("changed while it was being read", str(folder / "model.safetensors"))
    refused(parent.check_unchanged)


def test_the_base_of_an_adapter_must_not_change_while_loading(runs: Path) -> None:
    parent = find_checkpoint("rm", run_tree.ADAPTER / run_tree.LAST, fast=False)
    parent.check_unchanged()
    path = run_tree.BASE / run_tree.LAST / "config.json"
    path.write_text(path.read_text())
    assert refused(parent.check_unchanged).where == str(path)
