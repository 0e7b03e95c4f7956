"""Manifests, states, logs and settings of runs, and configurations, that somebody made to do harm: refused, and nothing done."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from hostile import Build, Payload, edited, harmless_or_refused, linked, opened, piped, raw, refusal, sparse, watched

sys.path.insert(0, str(Path(__file__).parent / "stages"))
import family

from tinyllm.cli import show
from tinyllm.config import load
from tinyllm.errors import INTEGRITY, USAGE
from tinyllm.stages import explain, sft
from tinyllm.stages.config import SftConfig
from tinyllm.stages.parents import find
from tinyllm.train import checkpoint

RUN = family.TALK


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(family.copied(tmp_path))
    return tmp_path


def listed(*names: str, **entry: Any) -> Build:
    """A manifest that lists more files than there are."""

    def build(folder: Path) -> None:
        (Path("outside")).mkdir()
        (Path("outside") / "file").write_text("x")
        found = json.loads((folder / "manifest.json").read_text())
        digest = checkpoint.sha256(Path("outside") / "file")
        found["files"] |= {name: {"size": 1, "sha256": digest} | entry for name in names}
        (folder / "manifest.json").write_text(json.dumps(found, indent=2) + "\n")

    return build


MANIFESTS: dict[str, Build] = {
    "a name that leads out": listed("../../../../../../outside/file"),
    "an absolute name": listed("/etc/passwd"),
    "a name that acts on a terminal": listed("\x1b[2J"),
    "a hash that is none": listed("config.json", sha256=["x"]),
    "a negative size": listed("config.json", size=-1),
    "a size that is text": listed("config.json", size="1"),
    "a list": raw("manifest.json", b"[]"),
    "files that are a list": raw("manifest.json", b'{"version": 1, "files": ["a"]}'),
    "files that are text": raw("manifest.json", b'{"version": 1, "files": {"config.json": "x"}}'),
    "no files": raw("manifest.json", b'{"version": 1, "files": {}}'),
    "endless nesting": raw("manifest.json", b'{"files":' * 100_000),
    "hundreds of megabytes": sparse("manifest.json"),
    "a version of a thousand digits": raw("manifest.json", b'{"version": ' + b"9" * 1000 + b', "files": {}}'),
    "a version that is text": raw("manifest.json", b'{"version": "1", "files": {}}'),
    "a pipe": piped("model.safetensors"),
    "a link that leads out": linked("config.json"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_hostile_manifests(name: str, runs: Path) -> None:
    folder = RUN / family.LAST
    MANIFESTS[name](folder)
    error = refusal(lambda: opened(folder), codes=(INTEGRITY,))
    assert error.where.startswith(str(folder))


def go_on() -> None:
    """The command that made the run, again."""
    family.trained(sft, family.settings(SftConfig, "talk.jsonl", "talk", parent=family.BASE))


def state(**changes: Any) -> Build:
    """A checkpoint that somebody made, its manifest included."""

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
    shutil.rmtree(RUN / family.LAST)
    folder = RUN / "checkpoints" / "step-00000002"
    STATES[name](folder)
    error = refusal(go_on, codes=(INTEGRITY,))
    assert error.where == str(folder / "trainer" / "state.json")


@pytest.mark.parametrize("harm", ["pickle", "missing", "unknown", "shape", "nan"])
def test_hostile_optimizer_state_on_resume(harm: str, runs: Path) -> None:
    shutil.rmtree(RUN / family.LAST)
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
    assert refusal(go_on, codes=(INTEGRITY,)).where == str(path)


FACTS: dict[str, Build] = {
    "a list": raw("run.json", b"[]"),
    "text": raw("run.json", b'"completed"'),
    "nothing": raw("run.json", b""),
    "no text": raw("run.json", b"\xff\xfe\xfa"),
    "endless nesting": raw("run.json", b'{"a":' * 100_000),
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
        FACTS[f"{_key} {_value!r:.30}"] = edited(lambda f, k=_key, v=_value: f.update({k: v}), "run.json")


@pytest.mark.parametrize("name", FACTS)
def test_hostile_facts_of_a_run(name: str, runs: Path, capsys: pytest.CaptureFixture) -> None:
    """Whoever looks for a parent, goes on, explains or lists meets run.json. It decides little, and none of it by force."""
    FACTS[name](RUN)
    for action in (
        lambda: find("rm", None, fast=False),
        lambda: show.result(explain.run(RUN), as_json=False),
        go_on,
    ):
        with watched(), harmless_or_refused():
            action()
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err


def lines(*rows: str) -> Build:
    return lambda run: (run / "metrics.jsonl").open("a").write("\n".join(rows) + "\n") and None


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ECHOES = "a0: &a0 {x: 1, y: 1}\n" + "".join(f"a{i + 1}: &a{i + 1} {{x: *a{i}, y: *a{i}}}\n" for i in range(20))
LOGS: dict[str, Build] = {
    "names that act on a terminal": lines(
        json.dumps({"step": 5, "split": "train", "\x1b]0;x\x07": 1.0, "loss": float("inf")}),
        '{"step": 6, "split": "\x1b[2J", "loss": 1}',
        '{"step": 6, "split": "eval", "loss": "\x1b[2J"}',
    ),
    "steps that are none": lines(
        *(f'{{"step": {x}, "split": "train", "loss": 1}}' for x in ("-5", "true", "1e9", "[]", "9" * 400, "null"))
    ),
    "figures that are none": lines(
        *(f'{{"step": 5, "split": "train", "loss": {x}, "lr": {x}}}' for x in ("[]", '"x"', "NaN", "1e999", "9" * 400))
    ),
    "endless nesting": lines('{"step": 5, "split": "train", "loss": ' + "[" * 100_000),
    "no text": lambda run: (run / "metrics.jsonl").write_bytes(b"\xff\xfe" * 99) and None,
    "settings that laugh": raw("config.yaml", (ECHOES + "train: *a20\n").encode()),
    "settings of another type": raw("config.yaml", b"train: {steps: x, keep: [1]}\noptim: 3\nrewards: [1]\n"),
    "settings as code": raw("config.yaml", b"!!python/object/apply:os.system ['touch canary']\n"),
    "settings nested without end": raw("config.yaml", b"[" * 10_000),
    "settings of two megabytes": raw("config.yaml", b"train: {a: " + b"x" * 2_000_000 + b"}"),
    "settings that act on a terminal": raw("config.yaml", b'train: {steps: 4}\nalgorithm: "\\e[2J"\nrollout: {}\n'),
}


@pytest.mark.parametrize("name", LOGS)
def test_hostile_logs_and_settings_of_a_run(name: str, runs: Path, capsys: pytest.CaptureFixture) -> None:
    """`explain` and the command that goes on read them."""
    LOGS[name](RUN)
    for action in (lambda: show.result(explain.run(RUN), as_json=False), go_on):
        with watched(), harmless_or_refused():
            action()
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err
    assert len(said.out + said.err) < 20_000


# --- configurations --------------------------------------------------------------------------------------------------------------

YAML = {
    "code": "!!python/object/apply:os.system ['touch canary']\n",
    "code in a value": "name: !!python/name:os.system\n",
    "an alias bomb": LAUGHS + "name: *i\n",
    "two megabytes": "name: " + "x" * 2_000_000,
    "endless nesting": "[" * 100_000,
    "endless nesting of mappings": "".join("  " * i + "a:\n" for i in range(1000)),
    "a million keys": "".join(f"key{i}: 1\n" for i in range(80_000)),
    "a number without end": "seed: " + "9" * 900_000,
    "a circle": "name: &a [*a]\n",
    "a file to include": "extends: /dev/zero\n",
    "a name that leads out": "name: ../../outside\n",
}


@pytest.mark.parametrize("name", YAML)
def test_hostile_configurations(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("hostile.yaml")
    path.write_text(YAML[name])
    error = refusal(lambda: load(SftConfig, files=[path]), codes=(USAGE,))
    assert ("/dev/zero" if "include" in name else "hostile.yaml") in str(error)
