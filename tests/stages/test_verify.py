"""`tinyllm verify`: right here, it finds what is broken and nothing else, and it looks at runs, adapters and folders from elsewhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
import planted
import small

from tinyllm import dist
from tinyllm.cli import run as command
from tinyllm.cli import verified
from tinyllm.errors import FAILED, INTEGRITY, OK, RESOURCES, USAGE, UserError
from tinyllm.model import hub
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import SequenceScorer
from tinyllm.stages import align_offline, checks, rm, verify
from tinyllm.stages.checks import files, objectives, outcome
from tinyllm.stages.checks.outcome import Compared, Outcome, Skipped
from tinyllm.stages.common import Call
from tinyllm.stages.config import AlignOfflineConfig, RmConfig
from tinyllm.train.engine import Engine

APART = {"ranks", "resume", "transformers"}  # seconds each: other processes, and a large import
SEEDED = (
    "import os, sys; sys.path.insert(0, {!r}); import planted; planted.PLANTS[os.environ['PLANT']].plant(setattr)\n"
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def looked(given: Path | None = None, leave_out: set[str] = APART) -> dict[str, Outcome]:
    """Every check but those, by name, with three objectives instead of all."""
    found: list[Outcome] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verify, "CHECKS", tuple(check for check in checks.CHECKS if check.name not in leave_out))
        patch.setattr(objectives, "names", lambda: ["next_token", "dpo", "grpo"])
        verify.run(given, "cpu", found.append)
    return {each.name: each for each in found}


def red(found: dict[str, Outcome]) -> set[str]:
    return {name for name, each in found.items() if each.status == "failed"}


def verified_in(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **environment}
    line = [sys.executable, "-m", "tinyllm", "verify", "--device", "cpu", *arguments]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


# --- this machine ----------------------------------------------------------------------------------------------------------------


def test_the_whole_command_says_what_it_compared_and_by_how_much(tmp_path: Path) -> None:
    done = verified_in(tmp_path, "--json")
    assert done.returncode == OK, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert [check["name"] for check in found["checks"]] == [c.name for c in checks.CHECKS if c.machine]
    assert [line.split()[1] for line in done.stderr.splitlines()] == [check["name"] for check in found["checks"]]
    rows = {check["name"]: check["compared"] for check in found["checks"] if check["status"] == "ok"}
    assert rows.keys() >= {"repeat", "micro-batches", "resume", "generation", "lora", "export"}
    for exact in ("repeat", "resume", "checkpoint", "tokenizer", "template", "export"):
        assert {row["difference"] for row in rows[exact]} == {0}, exact
    for rounded in {"micro-batches", "ranks", "generation"} & rows.keys():  # computed in two ways: not equal to the bit
        assert 0 < rows[rounded][-1]["difference"] < 5e-5, rounded
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name, plant in planted.PLANTS.items() if plant.here])
def test_what_is_broken_turns_its_check_red_and_no_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.PLANTS[name].plant(monkeypatch.setattr)
    assert red(looked()) == planted.PLANTS[name].here


def test_a_resume_without_optimizer_state_is_seen_from_its_other_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planting(tmp_path, "optimizer_state_dropped", monkeypatch.setenv)
    planted.PLANTS["optimizer_state_dropped"].plant(monkeypatch.setattr)
    found = looked(leave_out={c.name for c in checks.CHECKS} - {"resume"})
    weights, state = found["resume"].compared
    assert red(found) == {"resume"}
    assert weights.difference > 1e-3
    assert state.difference > 1e-3


def planting(folder: Path, name: str, put: Callable[[str, str], None]) -> None:
    """Every Python that is started from now on plants the mistake when it starts."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SEEDED.format(str(Path(__file__).parent)))
    put("PLANT", name)
    put("PYTHONPATH", os.pathsep.join([str(site), str(Path(verify.__file__).parents[2])]))


@pytest.mark.slow
@pytest.mark.parametrize("name", planted.PLANTS)
def test_the_whole_command_finds_it_and_exits_with_1(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    environment: dict[str, str] = {}
    planting(tmp_path, name, environment.__setitem__)
    done = verified_in(tmp_path, "--json", "--quiet", **environment)
    checked = json.loads(done.stdout)["checks"]
    assert {check["name"] for check in checked if check["status"] == "failed"} == planted.PLANTS[name].red
    assert done.returncode == FAILED
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {len(planted.PLANTS[name].red)} of {len(checked)} checks failed: ")
    assert all(name in first for name in planted.PLANTS[name].red)
    assert second.startswith("fix: ")


def test_a_check_that_breaks_is_red_and_the_others_are_still_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "describe", lambda *_, **__: 1 / 0)
    found = looked()
    assert red(found) == {"checkpoint", "export"}
    assert found["export"].reason == "ZeroDivisionError: division by zero"
    assert found["generation"].status == "ok"


def test_one_core_has_no_ranks_to_compare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "cores", lambda: 1)
    found = looked(leave_out={c.name for c in checks.CHECKS} - {"ranks"})
    assert (found["ranks"].status, found["ranks"].reason) == (
        "skipped",
        "two ranks need two cores, this process may use 1",
    )


def test_without_transformers_the_line_that_brings_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "find_spec", lambda name: None)
    with pytest.raises(Skipped, match=r"transformers is not installed \(pip install transformers\)"):
        files.transformers(None)


def test_a_device_that_is_not_there(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has one")
    assert command(["verify", "--device", "cuda"]) == RESOURCES
    assert "device cuda was asked for and is not there" in capsys.readouterr().err
    assert command(["verify", "--device", "gpu"]) == USAGE
    assert "fix: use one of auto, cpu, cuda, mps" in capsys.readouterr().err


def test_several_ranks_are_not_a_place_to_start_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="verify starts its own ranks"):
        verify.run(None, "cpu", print)


@pytest.mark.parametrize("difference", [2.0, float("nan"), float("inf")])
def test_what_is_not_a_small_number_has_not_passed(difference: float) -> None:
    compared = Compared("this and that", difference, 1.0)
    assert not compared.passed
    assert json.loads(json.dumps(Outcome("x", "failed", [compared]).facts(), allow_nan=False))


def test_differences() -> None:
    one, two = torch.tensor([1.0, 4.0]), torch.tensor([1.5, 4.0])
    assert outcome.furthest(one, two) == 0.5
    assert outcome.furthest(one, two[:1]) == outcome.furthest(one[:0], two[:0]) == float("inf")
    assert outcome.furthest_of({"a": one}, {"a": two}, relative=True) == 0.125
    assert outcome.furthest_of({"a": one}, {"b": two}) == outcome.furthest_of({}, {}) == float("inf")
    lost = outcome.furthest_of({"a": one, "b": one * float("nan")}, {"a": two, "b": one})
    assert lost != lost


# --- what is printed -------------------------------------------------------------------------------------------------------------

FOUND = {
    "stage": "verify",
    "of": "this machine",
    "machine": {"device": "cpu", "threads": 1, "torch": "2.13.0", "platform": "Linux x86_64"},
    "passed": False,
    "seconds": 12.34,
    "checks": [
        Outcome(
            "lora", "failed", [Compared("merged", 0.43, 1e-4, "nats"), Compared("off", 0, 0, "nats")], "", 1.0
        ).facts(),
        Outcome("transformers", "skipped", [], "transformers is not installed").facts(),
    ],
}
VERDICT = "verify: 0 ok, 1 failed, 1 skipped in 12.3 s (cpu, 1 thread, torch 2.13.0, Linux x86_64)"


def test_a_pipe_gets_plain_lines_as_the_checks_are_done(capsys: pytest.CaptureFixture) -> None:
    watch = verified.watcher(as_json=False, quiet=False)
    watch(Outcome("lora", "failed", [Compared("merged", 0.43, 1e-4, "nats"), Compared("off", 0, 0, "nats")]))
    watch(Outcome("transformers", "skipped", reason="transformers is not installed"))
    with pytest.raises(UserError) as caught:
        verified.show(FOUND, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "failed  lora          0.43 >  0.0001 nats       merged",
        "failed  lora          0 <= 0 nats               off",
        "skipped transformers  transformers is not installed",
        VERDICT,
        "  this machine",
    ]
    assert caught.value.code == FAILED
    assert caught.value.what == "1 of 2 checks failed: lora (0.43 nats, allowed 0.0001: merged)"


def test_a_terminal_gets_a_table_and_a_line_of_progress_a_check(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    verified.watcher(as_json=False, quiet=False)(Outcome("lora", "ok", seconds=1.25))
    with pytest.raises(UserError):
        verified.show(FOUND, as_json=False)
    printed = capsys.readouterr()
    assert printed.err == "ok      lora            1.2 s\n"
    for words in (["lora", "merged", "0.43", "0.0001 nats", "1.0", "failed"], ["transformers", "skipped"]):
        assert any(all(word in line for word in words) for line in printed.out.splitlines()), words
    assert VERDICT in printed.out


# --- the user's own --------------------------------------------------------------------------------------------------------------


def a_run(**changes: object) -> Path:
    """DPO on the small model: a run of four steps."""
    small.saved(small.rough(), Path("parent"))
    settings = AlignOfflineConfig(**small.common(small.pairs(Path("pairs.jsonl"))), parent=Path("parent"), **changes)
    return Path(align_offline.run(settings, Call("written: down\n"))["run"])


@pytest.mark.parametrize("adapter", [None, LoRAConfig(r=2)], ids=["full", "lora"])
def test_a_run_of_ones_own(adapter: LoRAConfig | None, monkeypatch: pytest.MonkeyPatch) -> None:
    found = looked(a_run(lora=adapter))
    assert red(found) == set()
    assert list(found) == [c.name for c in checks.CHECKS if c.checkpoint and c.name not in APART]
    assert {name for name, each in found.items() if each.status == "skipped"} == (set() if adapter else {"lora"})
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    assert (
        f"step-00000004 that change when loaded and saved again: {weights}, trainer/opt"
        in found["state"].compared[0].what
    )
    assert (found["lora"].status == "ok") == bool(adapter)


@pytest.mark.parametrize("drops", ["state", "weights"])
def test_a_state_that_does_not_survive_loading_is_red(drops: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run()
    right = Engine.restore

    def restore(self: Engine, tensors: dict, updates: int) -> None:
        right(self, {k: v for k, v in tensors.items() if drops != "state" or not k.startswith("exp_avg_sq.")}, updates)
        if drops == "weights":
            next(iter(self.trained.values())).data.view(-1)[0] += 1e-6

    monkeypatch.setattr(Engine, "restore", restore)
    found = looked(run)
    assert red(found) == {"state"}
    parameters = len(list(small.rough().parameters()))
    assert found["state"].compared[0].difference == (parameters if drops == "state" else 1)


def test_an_adapter_merged_wrongly_is_red_on_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    run = a_run(lora=LoRAConfig(r=2))
    planted.merged_twice_as_strong(monkeypatch.setattr)
    assert red(looked(run)) == {"lora"}


@pytest.mark.parametrize("named", ["run", "checkpoint"])
def test_one_flipped_bit_in_a_run_is_refused_with_3(named: str, capsys: pytest.CaptureFixture) -> None:
    run = a_run()
    damaged = sorted((run / "checkpoints").glob("step-*"))[0] / "tokenizer.json"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    assert command(["verify", str(run if named == "run" else damaged.parent), "--device", "cpu"]) == INTEGRITY
    error, fix = capsys.readouterr().err.splitlines()[-2:]
    assert error == f"error: the content is not what was written (sha256 differs) ({damaged})"
    assert fix.startswith("fix: restore it from a copy")


def test_a_folder_from_elsewhere_has_no_manifest_and_no_state() -> None:
    found = looked(small.saved(small.rough(), Path("elsewhere")))
    assert red(found) == set()
    assert {name: each.reason for name, each in found.items() if each.status == "skipped"} == {
        "manifest": "a model from elsewhere has no manifest",
        "state": "this checkpoint has no optimizer state",
        "lora": "this checkpoint is no adapter",
    }


def test_a_reward_model_is_compared_by_its_scores() -> None:
    small.saved(small.rough(), Path("parent"))
    settings = RmConfig(**small.common(small.pairs(Path("pairs.jsonl"))), parent=Path("parent"))
    found = looked(Path(rm.run(settings, Call("written: down\n"))["run"]))
    assert red(found) == set()
    assert found["export"].compared[0].what.startswith("scores before saving and after loading")
    assert found["generation"].reason == "a reward model writes no text"
    assert found["state"].status == "ok"


@pytest.mark.parity
@pytest.mark.parametrize("kind", ["writes", "judges"])
def test_transformers_reads_the_users_own(kind: str) -> None:
    pytest.importorskip("transformers")
    model = small.rough() if kind == "writes" else small.rough(SequenceScorer)
    found = looked(small.saved(model, Path("elsewhere")), leave_out={"resume", "ranks"})
    assert red(found) == set()
    assert 0 < found["transformers"].compared[0].difference < 1e-4


def test_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["verify", "nowhere"]) == USAGE
    assert "no checkpoint at nowhere" in capsys.readouterr().err
