"""The run directory: metrics that are dropped on resume, parents, and times."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.trained import planned, train_small
from tinyllm.distributed.launcher import launch
from tinyllm.errors import INTEGRITY, RESOURCES, USAGE, UserError
from tinyllm.train.engine import Engine
from tinyllm.train.fast_dev_runs import is_fast_dev_run
from tinyllm.train.run import Invocation, Run, read_facts


def test_an_incomplete_line_and_repeated_steps_are_dropped(tmp_path: Path) -> None:
    run = Run(tmp_path / "default", "name: default\n", {})
    for step in (1, 2, 3):
        run.log({"step": step, "loss": 0.5})
    with run.metrics.open("a") as file:
        file.write('{"step": 2, "lo')  # killed here
    run.drop_metrics_after(2)
    assert run.metrics.read_text().splitlines() == ['{"step": 1, "loss": 0.5}', '{"step": 2, "loss": 0.5}']
    run.finish("completed")


def parent(digest: str) -> dict:
    return {"parent": {"checkpoint": "runs/sft/full/a", "manifest_sha256": digest}}


def test_a_run_with_another_parent_is_not_continued(tmp_path: Path) -> None:
    run = Run(tmp_path / "default", "name: default\n", parent("a" * 64))
    (run.checkpoints / "step-00000001").mkdir(parents=True)
    Run(tmp_path / "default", "name: default\n", parent("a" * 64))
    with pytest.raises(UserError, match="began from") as caught:
        Run(tmp_path / "default", "name: default\n", parent("b" * 64))
    assert "--no-resume" in caught.value.fix
    assert read_facts(tmp_path / "default")["parent"]["manifest_sha256"] == "a" * 64


def test_the_seconds_of_all_sessions_add_up(tmp_path: Path) -> None:
    first = Run(tmp_path / "default", "name: default\n", {})
    first.started -= 100
    first.finish("stopped")
    Run(tmp_path / "default", "name: default\n", {}).finish("completed")
    assert 100 <= read_facts(tmp_path / "default")["seconds"] < 110


# --- what is continued -----------------------------------------------------------------------------------------------------------

CONFIG = "name: default\nseed: 0\ntrain:\n  steps: 4\n"


def begun(folder: Path, config: str = CONFIG, **facts: object) -> Run:
    """A run with one checkpoint."""
    run = Run(folder, config, facts)
    (run.checkpoints / "step-00000002").mkdir(parents=True)
    run.finish("completed")
    run.close()
    return run


def test_comments_and_layout_of_the_configuration_are_no_difference(tmp_path: Path) -> None:
    folder = begun(tmp_path / "default").folder
    text = "# the first one\ntrain: {steps: 4}\nname: default\nseed: 0  # as ever\n"
    (folder / "config.yaml").write_text(text)
    Run(folder, CONFIG, {}).close()
    assert (folder / "config.yaml").read_text() == text, "the user's comments stay"
    assert read_facts(folder)["config_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(UserError, match="different configuration: seed: 0 -> 1"):
        Run(folder, CONFIG.replace("seed: 0", "seed: 1"), {})


@pytest.mark.parametrize("damage", ["missing", "empty", "cannot be read"])
def test_without_run_json_nothing_is_continued_unless_allowed(tmp_path: Path, damage: str) -> None:
    """The data could be others by now: nobody knows with which the run began."""
    data = {"data": [{"source": "a.txt", "sha256": "0" * 64}]}
    folder = begun(tmp_path / "default", **data).folder
    path = folder / "run.json"
    path.unlink() if damage == "missing" else path.write_text("" if damage == "empty" else '{"status"')
    other = {"data": [{"source": "a.txt", "sha256": "1" * 64}]}
    for facts in (data, other):
        with pytest.raises(UserError, match=damage) as caught:
            Run(folder, CONFIG, facts)
        assert caught.value.code == INTEGRITY
        assert "--allow-data-change" in caught.value.fix
    Run(folder, Invocation(CONFIG, allow_data_change=True), other).close()
    assert read_facts(folder)["data"] == other["data"]


@pytest.mark.parametrize("damage", ["", "\x00", "- a list\n", None])
def test_without_a_configuration_only_the_recorded_one_is_continued(tmp_path: Path, damage: str | None) -> None:
    folder = begun(tmp_path / "default").folder
    path = folder / "config.yaml"
    path.unlink() if damage is None else path.write_text(damage)
    with pytest.raises(UserError, match=r"not the settings that the run began with") as caught:
        Run(folder, CONFIG.replace("seed: 0", "seed: 1"), {})
    assert caught.value.code == INTEGRITY
    Run(folder, CONFIG, {}).close()
    assert path.read_text() == CONFIG


# --- fast-dev-runs ---------------------------------------------------------------------------------------------------------------


def test_only_the_option_makes_a_fast_dev_run(tmp_path: Path) -> None:
    """A run with such a name is a run like any other: it resumes, and is never removed."""
    folder = begun(tmp_path / "my-fast-dev-run").folder
    assert not is_fast_dev_run(folder, read_facts(folder))
    Run(folder, CONFIG, {}).close()
    assert (folder / "checkpoints" / "step-00000002").is_dir()
    with pytest.raises(UserError, match="was not started with --fast-dev-run, and is not removed"):
        Run(folder, Invocation(CONFIG, fast=True), {})
    assert (folder / "checkpoints" / "step-00000002").is_dir()


def test_a_fast_dev_run_replaces_the_one_before_it(tmp_path: Path) -> None:
    call = Invocation(CONFIG, fast=True)
    folder = tmp_path / "fast-dev-run"
    first = Run(folder, call, {})
    (first.checkpoints / "step-00000002").mkdir(parents=True)
    (folder / "extra").symlink_to(tmp_path)
    first.finish("completed")
    first.close()
    assert is_fast_dev_run(folder, read_facts(folder))
    Run(folder, call, {}).close()
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "lock", "logs", "run.json"}
    assert tmp_path.is_dir()
    old = {"status": "completed", "command": ["tinyllm", "pretrain", "--name", "fast-dev-run"]}  # allowed once
    (folder / "run.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="is not removed"):
        Run(folder, call, {})


TOGETHER = """
import sys, time
from pathlib import Path
from tinyllm.errors import UserError
from tinyllm.train import fast_dev_runs, lock, run

def delayed(function):
    def wait(*arguments, **options):
        time.sleep(0.2)
        found = function(*arguments, **options)
        time.sleep(0.2)
        return found
    return wait

for module, name in ((fast_dev_runs, "remove"), (lock, "_write_owner"), (run.Run, "_move_aside")):
    setattr(module, name, delayed(getattr(module, name)))
print("ready", flush=True)
sys.stdin.readline()
try:
    opened = run.Run(Path("run"), run.Invocation("a: 1\\n", fast=sys.argv[1] == "fast", resume=sys.argv[1] == "fast"), {})
except UserError as error:
    print(error.code, error.what, flush=True)
else:
    print("open", flush=True)
    sys.stdin.readline()
    opened.close()
"""


@pytest.mark.parametrize("kind", ["fast", "no-resume"])
def test_of_two_runs_started_together_one_gets_the_directory(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock holds across the removal of the earlier run, and the other process learns who has it. Delays are planted around it."""
    monkeypatch.chdir(tmp_path)
    first = Run(Path("run"), Invocation("a: 1\n", fast=kind == "fast"), {})
    first.log({"step": 0})
    first.close()
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen([sys.executable, "-c", TOGETHER, kind], **pipes) for _ in range(2)]
    try:
        for process in both:
            assert process.stdout.readline() == "ready\n"
        for process in both:
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.stdout.readline() for process in both]
    finally:
        for process in both:
            process.kill()
            process.communicate()
    winner = said.index("open\n")
    refusal = said[1 - winner]
    assert refusal.startswith(f"{RESOURCES} directory is in use by another process: pid {both[winner].pid} on "), said
    assert (tmp_path / "run~1").is_dir() == (kind == "no-resume")
    assert not (tmp_path / "run~2").exists()


def test_a_directory_that_is_moved_while_it_is_written_is_an_error(tmp_path: Path) -> None:
    """No second directory begins under the old name."""
    run = Run(tmp_path / "run", CONFIG, {})
    run.log({"step": 1})
    (tmp_path / "run").rename(tmp_path / "away")
    with pytest.raises(UserError, match="moved or removed while the run was writing to it") as caught:
        run.log({"step": 2})
    assert caught.value.code == RESOURCES
    if sys.platform == "linux":
        assert f"move it back from {tmp_path / 'away'}" in caught.value.fix
    with pytest.raises(UserError, match="moved or removed"):
        run.finish("failed")
    assert not (tmp_path / "run").exists()
    run.close()


def test_a_directory_that_is_moved_back_resumes_at_its_newest_checkpoint(tmp_path: Path) -> None:
    followed: list[int] = []

    def moving(engine: Engine) -> dict[str, float]:
        followed.append(engine.updates)
        if engine.updates == 3:
            (tmp_path / "run").rename(tmp_path / "away")
        return planned(engine)

    def heard(engine: Engine) -> dict[str, float]:
        followed.append(engine.updates)
        return planned(engine)

    with pytest.raises(UserError, match="moved or removed while the run was writing to it") as caught:
        train_small(tmp_path / "run", steps=4, evaluate=moving)
    assert caught.value.code == RESOURCES
    assert not (tmp_path / "run").exists()
    assert followed == [0, 1, 2, 3]
    (tmp_path / "away").rename(tmp_path / "run")
    followed.clear()
    train_small(tmp_path / "run", steps=4, evaluate=heard)
    assert followed == [3, 4], "step 2 was the newest checkpoint"


def test_moving_a_run_aside_overwrites_nothing(tmp_path: Path) -> None:
    for session in range(3):
        run = Run(tmp_path / "run", Invocation(f"a: {session}\n", resume=False), {})
        run.log({"step": session})
        run.close()
    texts = {path.name: (path / "metrics.jsonl").read_text() for path in tmp_path.iterdir()}
    assert texts == {name: f'{{"step": {step}}}\n' for name, step in (("run~1", 0), ("run~2", 1), ("run", 2))}


@pytest.mark.parametrize("role", ["parent", "reward_model"])
def test_a_run_with_another_parent_or_reward_model_is_refused(role: str, tmp_path: Path) -> None:
    facts = {role: {"checkpoint": "runs/x", "manifest_sha256": "a" * 64}}
    begun(tmp_path / "run", **facts)
    Run(tmp_path / "run", CONFIG, facts).close()
    with pytest.raises(UserError, match=f"its {role.replace('_', ' ')} is now runs/x") as caught:
        Run(tmp_path / "run", CONFIG, {role: {"checkpoint": "runs/x", "manifest_sha256": "b" * 64}})
    assert caught.value.code == USAGE


SHARING = """
import sys
from pathlib import Path
import torch
from tinyllm import distributed as dist
from tinyllm.distributed import heartbeat
from tinyllm.train.run import Run
folder = Path(sys.argv[1])
dist.start(torch.device("cpu"))
Path(f"{folder}-{dist.rank()}").write_text(str(Run(folder, "name: x\\n", {}).tested))
dist.barrier()
heartbeat.report_end()
dist.stop()
"""


@pytest.mark.two_cores
def test_every_rank_knows_what_the_first_one_read_of_earlier_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"test": {"loss": 2.5}}')
    (tmp_path / "rank.py").write_text(SHARING)
    assert launch(2, [sys.executable, str(tmp_path / "rank.py"), str(tmp_path / "run")], 0) == 0
    assert [(tmp_path / f"run-{rank}").read_text() for rank in (0, 1)] == ["{'loss': 2.5}"] * 2
