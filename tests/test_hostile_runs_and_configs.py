"""Malicious run directories (manifests, training state, logs, settings) and configurations are refused without side effects."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import run_tree
from tests.support.hostile import (
    Build,
    Payload,
    edited,
    harmless_or_refused,
    linked,
    opened,
    piped,
    raw,
    refusal,
    sparse,
    watched,
)
from tinyllm.cli.printing import results
from tinyllm.config import load
from tinyllm.diagnostics import explain
from tinyllm.errors import INTEGRITY, USAGE
from tinyllm.io.files import sha256
from tinyllm.stages import sft
from tinyllm.stages.config import SftConfig
from tinyllm.stages.parents import find_checkpoint
from tinyllm.train import checkpoint

RUN = run_tree.TALK


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(run_tree.copy_to(tmp_path))
    return tmp_path


def listed(*names: str, **entry: Any) -> Build:
    """Add files that do not belong to the checkpoint to its manifest."""

    def build(folder: Path) -> None:
        (Path("outside")).mkdir()
        (Path("outside") / "file").write_text("x")
        found = json.loads((folder / "manifest.json").read_text())
        digest = sha256(Path("outside") / "file")
        found["files"] |= {name: {"size": 1, "sha256": digest} | entry for name in names}
        (folder / "manifest.json").write_text(json.dumps(found, indent=2) + "\n")

    return build


MANIFESTS: dict[str, Build] = {
    "a path out of the folder": listed("../../../../../../outside/file"),
    "an absolute path": listed("/etc/passwd"),
    "terminal escape sequences in a name": listed("\x1b[2J"),
    "an invalid hash": listed("config.json", sha256=["x"]),
    "a negative size": listed("config.json", size=-1),
    "a size that is a string": listed("config.json", size="1"),
    "a list": raw("manifest.json", b"[]"),
    "files that are a list": raw("manifest.json", b'{"version": 1, "files": ["a"]}'),
    "a hash instead of an entry": raw("manifest.json", b'{"version": 1, "files": {"config.json": "x"}}'),
    "no files": raw("manifest.json", b'{"version": 1, "files": {}}'),
    "deep nesting": raw("manifest.json", b'{"files":' * 100_000),
    "hundreds of megabytes": sparse("manifest.json"),
    "a version of a thousand digits": raw("manifest.json", b'{"version": ' + b"9" * 1000 + b', "files": {}}'),
    "a version that is a string": raw("manifest.json", b'{"version": "1", "files": {}}'),
    "a pipe": piped("model.safetensors"),
    "a link out of the folder": linked("config.json"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifests(name: str, runs: Path) -> None:
    folder = RUN / run_tree.LAST
    MANIFESTS[name](folder)
    error = refusal(lambda: opened(folder), codes=(INTEGRITY,))
    assert error.where.startswith(str(folder))


def resume() -> None:
    """Repeat the command that made the run."""
    run_tree.run_stage(sft, run_tree.make_config(SftConfig, "talk.jsonl", "talk", parent=run_tree.BASE))


def state(**changes: Any) -> Build:
    """Change the training state, and the manifest with it."""

    def build(folder: Path) -> None:
        path = folder / "trainer" / "state.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        (folder / "manifest.json").unlink()
        checkpoint._write_manifest(folder)

    return build


STATES: dict[str, Build] = {
    f"{key} {value!r:.30}": state(**{key: value})
    for key, values in {
        "updates": (-1, "2", 2.5, True, None, [], 10**30, 3),
        "tokens": (-1, "x", None, float("nan"), 10**400),
        "history": (None, [], {}, {"best": 3}, {"before": {"loss": "x"}, "best": {}, "last": {}}, "x"),
        "format": (9, "x", None),
    }.items()
    for value in values
}


@pytest.mark.parametrize("name", STATES)
def test_hostile_states_on_resume(name: str, runs: Path) -> None:
    shutil.rmtree(RUN / run_tree.LAST)
    folder = RUN / "checkpoints" / "step-00000002"
    STATES[name](folder)
    error = refusal(resume, codes=(INTEGRITY,))
    assert error.where == str(folder / "trainer" / "state.json")


@pytest.mark.parametrize("harm", ["pickle", "missing", "unknown", "shape", "nan"])
def test_hostile_optimizer_state_on_resume(harm: str, runs: Path) -> None:
    shutil.rmtree(RUN / run_tree.LAST)
    folder = RUN / "checkpoints" / "step-00000002"
    path = folder / "trainer" / "optimizer.safetensors"
    found = load_file(path)
    name = next(key for key in found if key.startswith("exp_avg."))
    if harm == "missing":
        del found[name]
    elif harm == "unknown":
        found["exp_avg.model.hook"] = torch.ones(1)
    elif harm == "shape":
        found[name] = torch.ones(3)
    elif harm == "nan":
        found[name].fill_(float("nan"))
    save_file(found, path)
    if harm == "pickle":
        path.write_bytes(pickle.dumps(Payload(runs / "canary")))
    (folder / "manifest.json").unlink()
    checkpoint._write_manifest(folder)
    assert refusal(resume, codes=(INTEGRITY,)).where == str(path)


RUN_JSON: dict[str, Build] = {
    "a list": raw("run.json", b"[]"),
    "a string": raw("run.json", b'"completed"'),
    "an empty file": raw("run.json", b""),
    "not UTF-8": raw("run.json", b"\xff\xfe\xfa"),
    "deep nesting": raw("run.json", b'{"a":' * 100_000),
    "hundreds of megabytes": sparse("run.json"),
}
for _key, _values in {
    "status": (3, ["completed"], None, "\x1b[2J"),
    "ended": (3, ["x"], None, {}, "9999"),
    "seconds": ("x", -1, [1], {}, "nan"),
    "parent": ("x", 3, [1], {"checkpoint": 3}, {"checkpoint": "\x1b[2J", "manifest_sha256": 7}),
    "data": ("x", 3, {}, [3], [{"source": []}], [{"source": "talk.jsonl", "sha256": 3}]),
    "versions": ("x", 3, [1]),
    "tokens": ("x", -1, 10**400),
    "best": ("x", 3, {"loss": "x"}),
    "started": (3, {}),
}.items():
    for _value in _values:
        RUN_JSON[f"{_key} {_value!r:.30}"] = edited(lambda f, k=_key, v=_value: f.update({k: v}), "run.json")


@pytest.mark.parametrize("name", RUN_JSON)
def test_hostile_run_json(name: str, runs: Path, capsys: pytest.CaptureFixture) -> None:
    """run.json is read when looking for a parent, explaining and resuming."""
    RUN_JSON[name](RUN)
    for action in (
        lambda: find_checkpoint("rm", None, fast=False),
        lambda: results.result(explain.run(RUN), as_json=False),
        resume,
    ):
        with watched(), harmless_or_refused():
            action()
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err


def lines(*rows: str) -> Build:
    return lambda run: (run / "metrics.jsonl").open("a").write("\n".join(rows) + "\n") and None


ALIAS_BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
NESTED_ALIASES = "a0: &a0 {x: 1, y: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{x: *a{i}, y: *a{i}}}\n" for i in range(20))
LOGS: dict[str, Build] = {
    "terminal escape sequences in names": lines(
        json.dumps({"step": 5, "split": "train", "\x1b]0;x\x07": 1.0, "loss": float("inf")}),
        '{"step": 6, "split": "\x1b[2J", "loss": 1}',
        '{"step": 6, "split": "eval", "loss": "\x1b[2J"}',
    ),
    "invalid steps": lines(
        *(f'{{"step": {x}, "split": "train", "loss": 1}}' for x in ("-5", "true", "1e9", "[]", "9" * 400, "null"))
    ),
    "invalid metrics": lines(
        *(f'{{"step": 5, "split": "train", "loss": {x}, "lr": {x}}}' for x in ("[]", '"x"', "NaN", "1e999", "9" * 400))
    ),
    "deep nesting": lines('{"step": 5, "split": "train", "loss": ' + "[" * 100_000),
    "not UTF-8": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe" * 99) and None,
    "an alias bomb in the settings": raw("config.yaml", (NESTED_ALIASES + "train: *a20\n").encode()),
    "settings of the wrong type": raw("config.yaml", b"train: {steps: x, keep: [1]}\noptim: 3\nrewards: [1]\n"),
    "a Python tag in the settings": raw("config.yaml", b"!!python/object/apply:os.system ['touch canary']\n"),
    "deeply nested settings": raw("config.yaml", b"[" * 10_000),
    "settings of two megabytes": raw("config.yaml", b"train: {a: " + b"x" * 2_000_000 + b"}"),
    "terminal escape sequences in the settings": raw(
        "config.yaml", b'train: {steps: 4}\nalgorithm: "\\e[2J"\nrollout: {}\n'
    ),
}


@pytest.mark.parametrize("name", LOGS)
def test_hostile_logs_and_settings_of_a_run(name: str, runs: Path, capsys: pytest.CaptureFixture) -> None:
    """Both are read by `explain` and when a run is resumed."""
    LOGS[name](RUN)
    for action in (lambda: results.result(explain.run(RUN), as_json=False), resume):
        with watched(), harmless_or_refused():
            action()
    output = capsys.readouterr()
    assert "\x1b" not in output.out + output.err
    assert len(output.out + output.err) < 20_000


# --- configurations --------------------------------------------------------------------------------------------------------------

YAML = {
    "a Python tag": "!!python/object/apply:os.system ['touch canary']\n",
    "a Python tag on a value": "name: !!python/name:os.system\n",
    "an alias bomb": ALIAS_BOMB + "name: *i\n",
    "two megabytes": "name: " + "x" * 2_000_000,
    "deep nesting": "[" * 100_000,
    "deep nesting of mappings": "".join("  " * i + "a:\n" for i in range(1000)),
    "80,000 keys": "".join(f"key{i}: 1\n" for i in range(80_000)),
    "an integer of 900,000 digits": "seed: " + "9" * 900_000,
    "an alias inside its anchor": "name: &a [*a]\n",
    "extends a device": "extends: /dev/zero\n",
    "a path out of the folder": "name: ../../outside\n",
}


@pytest.mark.parametrize("name", YAML)
def test_hostile_configurations(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("hostile.yaml")
    path.write_text(YAML[name])
    error = refusal(lambda: load(SftConfig, files=[path]), codes=(USAGE,))
    assert ("/dev/zero" if "device" in name else "hostile.yaml") in str(error)
