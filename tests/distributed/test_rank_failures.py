"""Two ranks train and one fails: the command ends quickly, names the rank, resumes, and ends with the same weights.

Whole commands, with faults from outside (`tests/support/faults/sitecustomize.py`).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import small
from tinyllm.train import checkpoint

pytestmark = pytest.mark.two_cores
PLANTS_FAULTS = Path(__file__).resolve().parents[1] / "support" / "faults"  # its sitecustomize.py
STEPS, TIMEOUT = 30, 5
SETTINGS = {
    "data.train": "[rows.jsonl]",
    "data.max_length": 64,
    "data.val_fraction": 0.2,
    "train.steps": STEPS,
    "train.batch_size": 8,
    "train.micro_batch_size": 4,
    "train.eval_every": 10,
    "train.save_every": 10,
    "train.keep": 9,
    "train.log_every": 1,
    "train.precision": "fp32",
    "train.compile": "off",
    "optim.learning_rate": 0.01,
    "optim.warmup_steps": 1,
}


@dataclass
class Ended:
    """How a command ended."""

    code: int
    err: str
    seconds: float  # since the last fault

    @property
    def errors(self) -> list[str]:
        """The lines that say what went wrong, without what to do about it."""
        return [line for line in self.err.splitlines() if line.startswith(("error", "restarting", "stopped after"))]


def command(*more: str, **settings: object) -> list[str]:
    sets = [x for key, value in {**SETTINGS, **settings}.items() for x in ("--set", f"{key}={value}")]
    return ["sft", "--checkpoint", "base", "--name", "x", "--device", "cpu", *sets, *more]


def start(folder: Path, *arguments: str, faults: str = "", **environment: str) -> subprocess.Popen[str]:
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TINYLLM_DIST_TIMEOUT": str(TIMEOUT), "NO_COLOR": "1"}
    path = os.pathsep.join(filter(None, [str(PLANTS_FAULTS), os.environ.get("PYTHONPATH", "")]))
    env |= {"PYTHONPATH": path, "FAULTS": faults, "FAULTS_NOTES": str(notes), **environment}
    whole = [sys.executable, "-m", "tinyllm", *arguments]
    return subprocess.Popen(whole, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(folder: Path, *arguments: str, faults: str = "", **environment: str) -> Ended:
    process = start(folder, *arguments, faults=faults, **environment)
    _, err = process.communicate(timeout=240)
    happened = [float(note.read_text()) for note in (folder / "notes").iterdir()]
    return Ended(process.returncode, err, time.time() - max(happened, default=time.time()))


def weights(folder: Path) -> str:
    path = folder / "runs" / "sft" / "full" / "x" / "checkpoints" / f"step-{STEPS:08d}" / "model.safetensors"
    return hashlib.sha256(path.read_bytes()).hexdigest()


def losses(folder: Path) -> list[float]:
    rows = small.metrics(folder / "runs" / "sft" / "full" / "x")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    return [row["loss"] for row in rows]


def status(folder: Path) -> str:
    return json.loads((folder / "runs" / "sft" / "full" / "x" / "run.json").read_text(encoding="utf-8"))["status"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and conversations."""
    folder = tmp_path_factory.mktemp("bare")
    small.saved(small.rough(scale=0.05), folder / "base")
    pairs = [("user", "What is {}?"), ("assistant", "red blue")]
    rows = [{"messages": [{"role": r, "content": t.format(i) * (1 + i % 3)} for r, t in pairs]} for i in range(40)]
    small.written(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture
def place(bare: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bare, tmp_path / "place"))


@pytest.fixture(scope="module")
def straight(bare: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """An undisturbed run with one rank and one with two."""
    found = {}
    for ranks in (1, 2):
        found[ranks] = Path(shutil.copytree(bare, tmp_path_factory.mktemp("straight") / "place"))
        done = run(found[ranks], *command("--nproc", str(ranks)))
        assert done.code == 0, done.err
    return found


@pytest.mark.slow
def test_restarts_after_three_kinds_of_failure_give_the_same_weights(place: Path, straight: dict[int, Path]) -> None:
    """--no-resume applies to the first start only; restarts resume."""
    old = place / "runs" / "sft" / "full" / "x" / "checkpoints"
    old.mkdir(parents=True)
    (old.parent / "metrics.jsonl").touch()
    faults = "1:15:kill,0:22:raise,1:25:stop"
    done = run(place, *command("--nproc", "2", "--max-restarts", "4", "--no-resume"), faults=faults)
    assert done.code == 0, done.err
    assert done.errors == [
        "restarting (1 of 4): rank 1 was killed after step 15 by signal 9 (SIGKILL, often: out of memory)",
        "restarting (2 of 4): rank 0 after step 22: ValueError: planted",
        f"restarting (3 of 4): rank 1 hung after step 25: no heartbeat for {TIMEOUT} s; the process is stopped",
    ]
    assert [line for line in done.err.splitlines() if line.startswith("resuming")] == [
        f"resuming runs/sft/full/x after step {step} of {STEPS}" for step in (10, 20, 20)
    ]
    assert weights(place) == weights(straight[2])
    assert losses(place) == losses(straight[2])
    assert sorted(p.name for p in (place / "runs" / "sft" / "full").iterdir()) == ["x", "x~1"]
    assert status(place) == "completed"


FAULTS = {  # fault: exit code, first and only error, what becomes of the run
    "0:5:full": (4, "error: the checkpoint of step 10 could not be written", "failed"),
    "1:15:raise": (1, "error: rank 1 after step 15: ValueError: planted", "failed"),
    "1:15:kill": (1, "error: rank 1 was killed after step 15 by signal 9 (SIGKILL, often: out of memory)", "failed"),
    "0:15:kill": (1, "error: rank 0 was killed after step 15 by signal 9 (SIGKILL, often: out of memory)", "running"),
    "1:15:user": (3, "error: rank 1: planted (by a test)", "failed"),
    "1:15:leave": (1, "error: rank 1 after step 15: SystemExit: 0", "failed"),
    "1:15:vanish": (1, "error: rank 1 exited after step 15 with code 0 before the run was finished", "failed"),
    "0:15:stop": (
        1,
        f"error: rank 0 hung after step 15: no heartbeat for {TIMEOUT} s; the process is stopped",
        "running",
    ),
    "1:15:stop": (
        1,
        f"error: rank 1 hung after step 15: no heartbeat for {TIMEOUT} s; the process is stopped",
        "failed",
    ),
    "1:15:term": (143, "stopped after step 1", "stopped"),
}


@pytest.mark.parametrize(
    "fault", [f if i < 1 else pytest.param(f, marks=pytest.mark.slow) for i, f in enumerate(FAULTS)]
)
def test_a_failed_rank_ends_the_command(fault: str, place: Path) -> None:
    """Once, in two lines, with its own exit code, and without waiting for any timeout."""
    code, first, becomes = FAULTS[fault]
    waits = TIMEOUT if fault.endswith("stop") else 60
    done = run(place, *command("--nproc", "2"), faults=fault, TINYLLM_DIST_TIMEOUT=str(waits))
    assert done.code == code, done.err
    assert len(done.errors) == 1, done.err
    assert done.errors[0].startswith(first)
    assert done.err.splitlines()[-1].startswith("next: " if code == 143 else "fix: ")
    assert "Traceback" not in done.err
    assert done.seconds < 15
    assert status(place) == becomes


@pytest.mark.slow
def test_debug_shows_the_output_of_every_rank(place: Path) -> None:
    done = run(place, *command("--nproc", "2", "--debug"), faults="1:15:raise")
    assert done.code == 1
    assert done.errors == ["error: rank 1 after step 15: ValueError: planted"]
    assert done.err.count("Traceback") >= 2
    assert "ValueError: planted\nby a test" in done.err


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_resumes(place: Path, straight: dict[int, Path]) -> None:
    process = start(place, *command("--nproc", "2", **{"train.steps": 100_000, "train.log_every": 1}))
    metrics = place / "runs" / "sft" / "full" / "x" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count("\n") > 12):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=15)
    assert process.returncode == 143, err
    assert "error: " not in err
    assert err.count("a checkpoint was saved") == 1
    assert "--nproc 2" in err.splitlines()[-1]  # the command that resumes
    newest = checkpoint.newest(metrics.parent / "checkpoints", print)
    assert checkpoint.step_of(newest) == small.metrics(metrics.parent)[-1]["step"]


def cut(folder: Path, step: int, place: Path) -> None:
    """The run directory as it was after `step`."""
    shutil.copytree(folder / "runs", place / "runs", symlinks=True)
    for path in checkpoint.steps(place / "runs" / "sft" / "full" / "x" / "checkpoints"):
        if checkpoint.step_of(path) > step:
            shutil.rmtree(path)


@pytest.mark.parametrize(("before", "after"), [(2, 1), pytest.param(1, 2, marks=pytest.mark.slow)])
def test_a_run_resumes_with_another_number_of_ranks(
    before: int, after: int, place: Path, straight: dict[int, Path]
) -> None:
    cut(straight[before], 10, place)
    done = run(place, *command("--nproc", str(after)))
    assert done.code == 0, done.err
    assert f"after step 10 of {STEPS}" in done.err
    assert losses(place) == pytest.approx(losses(straight[1]), abs=1e-5)


def by_hand(places: list[Path], *arguments: list[str]) -> list[str]:
    """Two ranks, each with its own command in its own folder, that contradict each other: the lines that say so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    ranks = [
        start(place, *given, RANK=n, LOCAL_RANK=n, TINYLLM_DIST_TIMEOUT="60", **common)
        for n, place, given in zip("01", places, arguments, strict=True)
    ]
    ends = [(process.communicate(timeout=60)[1], process.returncode) for process in ranks]
    assert [code for _, code in ends] == [2, 2], ends
    assert not any((place / "runs").exists() for place in places)
    return [line for err, _ in ends for line in err.splitlines() if line.startswith("error")]


def test_ranks_with_different_settings_do_not_start(place: Path) -> None:
    output = by_hand([place] * 2, *(command("--seed", str(n), **{"train.eval_every": 10 + n}) for n in (0, 1)))
    assert len(output) == 1  # by whichever comes first
    assert output[0].startswith("error: the ranks disagree: ")
    assert "seed: rank 0 has 0, rank 1 has 1" in output[0]
    assert "train.eval_every: rank 0 has 10, rank 1 has 11" in output[0]


@pytest.mark.slow
def test_ranks_with_different_data_do_not_start(place: Path, bare: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bare, tmp_path / "other"))
    lines = (other / "rows.jsonl").read_text().splitlines(keepends=True)
    (other / "rows.jsonl").write_text("".join(lines[:-1]))
    output = by_hand([place, other], command(), command())
    assert len(output) == 1
    assert "data.0.records: rank 0 has 40, rank 1 has 39" in output[0]


def test_options_that_exclude_several_ranks(place: Path) -> None:
    """Share standard input, or be restarted by us where torchrun has started them."""
    done = run(place, *command("--nproc", "2", **{"data.train": "[-]"}))
    assert (done.code, done.errors) == (2, ["error: several processes cannot share standard input (data.train)"])
    under = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    done = run(place, *command("--max-restarts", "1"), **under)
    assert (done.code, done.errors) == (
        2,
        ["error: --max-restarts applies to ranks started by --nproc (--max-restarts)"],
    )
