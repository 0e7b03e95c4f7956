"""`tinyllm verify` without RUN: it passes here, each planted bug fails its own checks and no others, and what is printed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.support import bugs_of_verify
from tests.support.checked import failed, failures, parts, run_checks
from tinyllm import distributed as dist
from tinyllm.cli import run as command
from tinyllm.cli.printing import verify as printing
from tinyllm.diagnostics import checks, verify
from tinyllm.diagnostics.checks import export, forward, result, target
from tinyllm.diagnostics.checks.result import CheckResult, CheckSkipped, Comparison, Effect
from tinyllm.errors import FAILED, OK, RESOURCES, USAGE, UserError
from tinyllm.model import hub
from tinyllm.model.architectures import ARCHITECTURES
from tinyllm.model.transformer import CausalLM

ROOT = Path(__file__).resolve().parents[2]
SITE_CUSTOMIZE = """
import os, sys
sys.path.insert(0, {!r})
from tests.support import bugs_of_verify
bugs_of_verify.BUGS[os.environ["PLANTED_BUG"]].plant(setattr)
"""


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def verify_command(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1", **environment}
    line = [sys.executable, "-m", "tinyllm", "verify", "--device", "cpu", *arguments]
    return subprocess.run(line, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


def plant_in_subprocesses(folder: Path, name: str, setenv: Callable[[str, str], None]) -> None:
    """Make every Python process that is started from now on plant the bug at its start."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(SITE_CUSTOMIZE.format(str(ROOT)))
    setenv("PLANTED_BUG", name)
    setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT)]))


@pytest.mark.slow
def test_command_reports_every_comparison_with_its_difference(tmp_path: Path) -> None:
    done = verify_command(tmp_path, "--json")
    assert done.returncode == OK, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["passed"]
    assert [check["name"] for check in found["checks"]] == [c.name for c in checks.CHECKS if c.on_machine]
    assert [line.split()[1] for line in done.stderr.splitlines()] == [check["name"] for check in found["checks"]]
    rows = {check["name"]: check["compared"] for check in found["checks"] if check["status"] == "ok"}
    assert rows.keys() >= {"repeat", "micro-batches", "resume", "generation", "lora", "export"}
    for exact in ("repeat", "resume", "checkpoint", "tokenizer", "template", "export"):
        assert {row["difference"] for row in rows[exact]} == {0}, exact
    for rounded in {"micro-batches", "ranks", "generation"} & rows.keys():  # two computations: not equal to the bit
        assert 0 < max(row["difference"] for row in rows[rounded]) < 5e-5, rounded
    assert not list(tmp_path.iterdir())
    planted = {name for bug in bugs_of_verify.BUGS.values() for name in bug.in_process | bug.in_subprocess}
    present = parts(found["checks"])
    assert present <= planted, "what no bug makes red"
    run = {check["name"] for check in found["checks"] if check["status"] != "skipped"}
    assert {name for name in planted if name.partition(":")[0] in run} <= present | run, "what does not exist"


# --- planted bugs ----------------------------------------------------------------------------------------------------------------


IN_PROCESS = [name for name, bug in bugs_of_verify.BUGS.items() if bug.in_process]


@pytest.mark.parametrize("name", IN_PROCESS)
def test_planted_bug_fails_its_checks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bug = bugs_of_verify.BUGS[name]
    bug.plant(monkeypatch.setattr)
    only = {part.partition(":")[0] for part in bug.in_process}
    assert failures(run_checks(only=only).values()) >= bug.in_process


@pytest.mark.slow
@pytest.mark.parametrize("name", IN_PROCESS)
def test_planted_bug_fails_its_checks_and_no_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bugs_of_verify.BUGS[name].plant(monkeypatch.setattr)
    found, bug = run_checks(), bugs_of_verify.BUGS[name]
    assert failures(found.values()) >= bug.in_process
    assert failed(found) <= bug.failing


@pytest.mark.parametrize(
    ("name", "check"),
    [
        ("resume_starts_over", "resume"),
        pytest.param("optimizer_state_not_restored", "resume", marks=pytest.mark.slow),
        pytest.param("every_rank_trains_on_all_rows", "ranks", marks=pytest.mark.two_cores),
    ],
)
def test_bug_in_other_processes_fails_its_check(
    name: str, check: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_in_subprocesses(tmp_path, name, monkeypatch.setenv)
    assert failures(run_checks(only=[check]).values()) == bugs_of_verify.BUGS[name].in_subprocess


@pytest.mark.slow
@pytest.mark.parametrize("name", bugs_of_verify.BUGS)
def test_command_reports_planted_bug_and_exits_with_1(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    environment: dict[str, str] = {}
    plant_in_subprocesses(tmp_path, name, environment.__setitem__)
    done = verify_command(tmp_path, "--json", "--quiet", **environment)
    checked = json.loads(done.stdout)["checks"]
    bug = bugs_of_verify.BUGS[name]
    assert failures(checked) >= bug.in_process | bug.in_subprocess
    expected = {check["name"] for check in checked if check["status"] == "failed"}
    assert expected == bug.failing
    assert done.returncode == FAILED
    first, second = done.stderr.splitlines()
    assert first.startswith(f"error: {len(expected)} of {len(checked)} checks failed: ")
    assert all(name in first for name in expected)
    assert second.startswith("fix: ")


def test_exception_fails_its_checks_and_the_others_still_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "describe", lambda *_, **__: 1 / 0)
    found = run_checks(only=["checkpoint", "generation", "export"])
    assert failed(found) == {"checkpoint", "export"}
    assert found["export"].reason == "ZeroDivisionError: division by zero"
    assert found["generation"].status == "ok"


# --- skipped and refused ---------------------------------------------------------------------------------------------------------


def test_ranks_are_skipped_on_one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "cores", lambda: 1)
    found = run_checks(only=["ranks"])["ranks"]
    assert (found.status, found.reason) == ("skipped", "two ranks need two CPU cores; available to this process: 1")


def test_transformers_is_skipped_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(CheckSkipped, match=r"transformers is not installed \(pip install transformers\)"):
        export.transformers(None)


def test_unavailable_and_unknown_devices_are_refused(capsys: pytest.CaptureFixture) -> None:
    if torch.cuda.is_available():
        pytest.skip("CUDA is available")
    assert command(["verify", "--device", "cuda"]) == RESOURCES
    assert "cuda" in capsys.readouterr().err.lower()
    assert command(["verify", "--device", "gpu"]) == USAGE
    assert capsys.readouterr().err.splitlines() == [
        "error: unknown device 'gpu' (--device)",
        "fix: use one of auto, cpu, cuda, mps",
    ]


def test_launch_with_several_ranks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="verify starts its own ranks"):
        verify.run(None, "cpu", print)


# --- differences -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difference", [2.0, float("nan"), float("inf")])
def test_large_or_non_finite_difference_does_not_pass(difference: float) -> None:
    comparison = Comparison("a", "a vs b", difference, 1.0, n=1)
    assert not comparison.passed
    assert Comparison("a", "a vs b", 1.0, 1.0, n=1).passed
    assert json.loads(json.dumps(CheckResult("x", "failed", [comparison]).to_json(), allow_nan=False))


@pytest.mark.parametrize("value", [0.0, 0.9, float("nan"), float("inf")])
def test_comparison_of_nothing_does_not_pass(value: float) -> None:
    assert not Comparison("a", "a vs b", 0.0, 1.0, n=0).passed
    effects = [Effect("large enough", 1.0, 1.0), Effect("too small", value, 1.0)]
    assert Comparison("a", "a vs b", 0.0, 1.0, n=1, effects=effects[:1]).passed
    assert not Comparison("a", "a vs b", 0.0, 1.0, n=1, effects=effects).passed


def test_comparison_of_nothing_is_named_in_the_error() -> None:
    nothing = Comparison("a", "a vs b", 0.0, 0.1, n=5, effects=[Effect("adapter", 0.0, 1e-3)])
    for comparison, why in (
        (nothing, "effect of adapter 0 <  0.001"),
        (replace(nothing, n=0, effects=()), "no values compared"),
    ):
        found = {**FOUND, "checks": [CheckResult("lora", "failed", [comparison]).to_json()]}
        with pytest.raises(UserError) as caught:
            printing.show(found, as_json=True)
        assert caught.value.what == f"1 of 1 checks failed: lora (nothing under test: {why}: a vs b)"


def test_largest_difference() -> None:
    one, two = torch.tensor([1.0, 4.0]), torch.tensor([1.5, 4.0])
    infinite, nan = float("inf"), one * float("nan")
    by_name = result.max_difference_by_name
    assert result.max_difference(one, two) == 0.5
    assert result.max_difference(one, two[:1]) == result.max_difference(one[:0], two[:0]) == infinite
    assert by_name({"a": one}, {"a": two}, relative=True) == 0.125
    assert by_name({"a": one}, {"b": two}) == by_name({}, {}) == infinite
    for tensors in ({"a": one, "b": nan}, {"b": nan, "a": one}):  # NaN is found wherever it stands
        found = by_name(tensors, {"a": two, "b": one})
        assert found != found


# --- what is printed -------------------------------------------------------------------------------------------------------------

LORA = CheckResult(
    "lora",
    "failed",
    [
        Comparison("merged", "merged weights", 0.43, 1e-4, "nats", n=1234, effects=(Effect("adapter", 0.5, 1e-3),)),
        Comparison("disabled", "disabled", 0, 0, "nats", n=1),
    ],
    "",
    1.0,
)
TRANSFORMERS = CheckResult("transformers", "skipped", [], "transformers is not installed")
FOUND = {
    "stage": "verify",
    "of": "this machine",
    "machine": {"device": "cpu", "threads": 1, "torch": "2.13.0", "platform": "Linux x86_64"},
    "passed": False,
    "seconds": 12.34,
    "checks": [LORA.to_json(), TRANSFORMERS.to_json()],
}
SUMMARY = "verify: 0 ok, 1 failed, 1 skipped in 12.3 s (cpu, 1 thread, torch 2.13.0, Linux x86_64)"


def test_a_pipe_gets_a_line_per_comparison_and_a_summary(capsys: pytest.CaptureFixture) -> None:
    on_result = printing.watcher(as_json=False, quiet=False)
    on_result(LORA)
    on_result(TRANSFORMERS)
    with pytest.raises(UserError) as caught:
        printing.show(FOUND, as_json=False)
    assert capsys.readouterr().out.splitlines() == [
        "failed  lora          0.43 >  0.0001 nats       merged weights [of 1,234; adapter 0.5 >= 0.001]",
        "failed  lora          0 <= 0 nats               disabled [of 1]",
        "skipped transformers  transformers is not installed",
        SUMMARY,
        "  this machine",
    ]
    assert caught.value.code == FAILED
    assert caught.value.what == "1 of 2 checks failed: lora (0.43 nats, allowed 0.0001: merged weights)"


def test_a_terminal_gets_progress_lines_and_a_table(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "120")
    printing.watcher(as_json=False, quiet=False)(CheckResult("lora", "ok", seconds=1.25))
    with pytest.raises(UserError):
        printing.show(FOUND, as_json=False)
    printed = capsys.readouterr()
    assert printed.err == "ok      lora            1.2 s\n"
    for words in (["lora", "merged", "0.43", "0.0001 nats", "1.0", "failed"], ["transformers", "skipped"]):
        assert any(all(word in line for word in words) for line in printed.out.splitlines()), words
    assert SUMMARY in printed.out


@pytest.mark.parametrize("kind", [kind for kind, row in ARCHITECTURES.items() if row.absent.get("sliding_window")])
def test_the_tiny_models_have_windows_that_their_texts_exceed(kind: str, tmp_path: Path) -> None:
    small = target.small_model(kind)
    without = CausalLM(small.config.model_copy(update={"sliding_window": None})).eval()
    without.load_state_dict(small.state_dict())
    texts = target.small_target(torch.device("cpu"), tmp_path)
    gap = (forward.token_log_probs(small, texts) - forward.token_log_probs(without, texts)).abs().max()
    assert gap > 0.1, "a reader that ignores the window would pass"
