"""Checks before training, and the state that a stopped run leaves: memory, disk, data, weights, signals."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.support import small
from tests.support.trained import cut, train_small
from tinyllm.errors import FAILED, RESOURCES, USAGE, UserError
from tinyllm.stages import pretrain, sft
from tinyllm.stages.config import PretrainConfig, SftConfig
from tinyllm.train import checkpoint, checkpointing, lock, run
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation

CALL = Invocation("written: down\n")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def texts(path: Path, count: int = 60) -> Path:
    return small.written(path, [{"text": f"{i}: {'red ' * (i % 7)}and {'blue ' * (i % 5)}."} for i in range(count)])


def pretraining(**train) -> PretrainConfig:
    sections = small.common(texts(Path("texts.jsonl")), **train)
    sections["data"] = {**sections["data"], "max_length": 32}
    return PretrainConfig(**sections, model=small.SHAPE, name="x")


def tuning(**train) -> SftConfig:
    if not Path("parent").exists():
        small.saved(small.rough(scale=0.1), Path("parent"))
    rows = [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(25)]
    return SftConfig(
        **small.common(small.written(Path("answers.jsonl"), rows), **train), parent=Path("parent"), name="x"
    )


def stopped_after(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """SIGTERM in the middle of a step."""
    original = Engine.step

    def watched(engine: Engine, batches, extra=None):
        if engine.updates + 1 == step:
            signal.raise_signal(signal.SIGTERM)
        return original(engine, batches, extra)

    monkeypatch.setattr(Engine, "step", watched)


# --- data -----------------------------------------------------------------------------------------------------------------------


def changed_data(config, go, monkeypatch: pytest.MonkeyPatch, file: Path, row: dict) -> Path:
    """Stop, append one record and resume: refused, unless allowed. Returns the run directory."""
    with monkeypatch.context() as patched:
        stopped_after(patched, 2)
        with pytest.raises(UserError, match="stopped after step 2"):
            go(config, CALL)
    with file.open("a") as lines:
        lines.write(json.dumps(row) + "\n")
    before = {p: p.read_bytes() for p in Path("runs").rglob("*") if p.is_file() and p.name not in ("lock", "run.log")}
    with pytest.raises(UserError, match="the data have changed since") as caught:
        go(config, CALL)
    assert caught.value.code == USAGE
    assert "--allow-data-change" in caught.value.fix
    assert all(path.read_bytes() == content for path, content in before.items()), "a refusal changes nothing"
    found = go(config, Invocation("written: down\n", allow_data_change=True))
    assert found["steps"] == config.train.steps
    assert go(config, CALL)["steps"] == config.train.steps  # once allowed, these are the data of the run
    return Path(found["run"])


def test_changed_data_are_refused_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tuning()
    changed_data(config, sft.run, monkeypatch, Path("answers.jsonl"), {"prompt": "new", "completion": "record"})


def test_a_run_keeps_its_tokenizer_when_its_text_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = pretraining()
    row = {"text": "xylophone xylophone xylophone " * 40}
    folder = changed_data(config, pretrain.run, monkeypatch, Path("texts.jsonl"), row)
    digests = {
        json.loads((path / checkpoint.MANIFEST).read_text())["files"]["tokenizer.json"]["sha256"]
        for path in checkpoint.steps(folder / "checkpoints")
    }
    assert len(digests) == 1


def test_a_run_without_checkpoints_can_be_restarted_with_another_config() -> None:
    """Nothing was computed, so another configuration of the same name is no conflict."""
    config = tuning()
    with pytest.raises(UserError, match="positions"):
        sft.run(config.model_copy(update={"data": config.data.model_copy(update={"max_length": 4096})}), CALL)
    assert sft.run(config, Invocation("another: configuration\n"))["steps"] == 4


# --- weights --------------------------------------------------------------------------------------------------------------------


def test_non_finite_weights_are_never_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite gradients, an update that overflows: only a look at the weights themselves sees it."""
    update = Engine._update

    def overflows(engine: Engine, rate: float) -> None:
        update(engine, rate)
        if engine.updates == 3:
            with torch.no_grad():
                next(iter(engine.trainable.values())).view(-1)[7] = float("inf")

    monkeypatch.setattr(Engine, "_update", overflows)
    with pytest.raises(
        UserError, match=r"after step 3 the weights are not finite \(model.embed_tokens.weight\)"
    ) as caught:
        train_small(Path("run"))
    assert caught.value.code == FAILED
    there = checkpoint.steps(Path("run/checkpoints"))
    assert [checkpoint.step_of(p) for p in there] == [0, 1, 2]
    for path in there:
        checkpoint.verify(path)
    assert run.read_facts(Path("run"))["status"] == "failed"


def test_a_non_finite_gradient_names_the_records_of_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    backward = Engine._backward

    def exploding(engine: Engine, batch: object) -> dict:
        found = backward(engine, batch)
        if engine.updates == 4:
            next(iter(engine.trainable.values())).grad.view(-1)[0] = float("inf")
        return found

    monkeypatch.setattr(Engine, "_backward", exploding)
    config = tuning(steps=6, save_every=1, eval_every=6, keep=9)
    with pytest.raises(
        UserError, match=r"step 5: loss [\d.]+, gradient norm inf at learning rate .*the weights were not updated"
    ) as caught:
        sft.run(config, CALL)
    assert caught.value.where.startswith("records ")
    assert len(caught.value.where.split(",")) == 8
    there = checkpoint.steps(Path("runs/sft/full/x/checkpoints"))
    assert [checkpoint.step_of(p) for p in there] == [0, 1, 2, 3, 4]


# --- memory and disk ------------------------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from tinyllm.cli import main
main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux" or torch.version.cuda is not None, reason="RLIMIT_AS; the libraries of CUDA need more of it"
)
def test_too_little_memory_is_found_before_the_first_step() -> None:
    words = " ".join(f"{i * 7919 % 1009}" for i in range(60_000))
    small.written(Path("long.jsonl"), [{"text": words[i : i + 2000]} for i in range(0, len(words), 2000)])
    sets = ["data.train=[long.jsonl]", "train.batch_size=400", "train.micro_batch_size=400", "train.steps=4"]
    sets += ["train.precision=fp32", "model.num_hidden_layers=12", "train.eval_rows=1"]
    sets += ["train.activation_checkpointing=off"]
    command = [sys.executable, "-c", LIMITED, "pretrain", "--name", "big", *(w for s in sets for w in ("--set", s))]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == RESOURCES, done.stderr[-1500:]
    assert "error: out of memory: weights, gradients and optimizer state take about" in done.stderr
    assert "a micro-batch of 400 rows of 257 tokens" in done.stderr
    assert "fix: lower train.micro_batch_size (the results do not change), then data.max_length" in done.stderr
    assert "Traceback" not in done.stderr
    assert not Path("runs/pretrain/big/metrics.jsonl").exists(), "nothing was computed"


def test_the_longest_records_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rehearsal, before any step, is of as many rows as a micro-batch has, and of the longest."""
    small.saved(small.rough(scale=0.1), Path("parent"))
    rows = [{"prompt": f"What is {i}?", "completion": "red, " * (12 if i % 9 == 4 else 1 + i % 3)} for i in range(20)]
    sections = small.common(small.written(Path("answers.jsonl"), rows), micro_batch_size=2)
    sections["data"] = {**sections["data"], "max_length": 96, "val_fraction": 0.1}
    probe, step, measured, trained = Engine.probe_memory, Engine.step, list[torch.Tensor](), list[torch.Tensor]()

    def probed(engine: Engine, batch) -> None:
        assert not trained
        measured.append(batch.ids)
        probe(engine, batch)

    def watched(engine: Engine, batches, extra=None):
        trained.extend(batch.ids for batch in batches)
        return step(engine, batches, extra)

    monkeypatch.setattr(Engine, "probe_memory", probed)
    monkeypatch.setattr(Engine, "step", watched)
    sft.run(SftConfig(**sections, parent=Path("parent"), name="x"), CALL)
    pad = small.tokenizer().pad
    (ids,) = measured
    records = {tuple(row[row != pad].tolist()) for batch in trained for row in batch}  # four steps of 8: every one
    lengths = sorted(map(len, records))
    assert sorted((ids != pad).sum(1).tolist()) == lengths[-2:]
    assert lengths[-1] > 2 * lengths[0]
    assert ids.shape == (2, max(batch.shape[1] for batch in trained)), "no micro-batch of the run is larger"


def test_probing_memory_changes_nothing() -> None:
    """Weights, optimizer state and random numbers are the same with and without it."""
    with_it = train_small(Path("with"))
    original = Engine.probe_memory
    try:
        Engine.probe_memory = lambda engine, batch: None
        without = train_small(Path("without"))
    finally:
        Engine.probe_memory = original
    digests = [
        {k: v["sha256"] for k, v in json.loads((f.checkpoint / checkpoint.MANIFEST).read_text())["files"].items()}
        for f in (with_it, without)
    ]
    assert digests[0] == digests[1]


def test_too_little_disk_space_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpointing, "free_bytes", lambda folder: 10_000)
    with pytest.raises(
        UserError, match=r"checkpoints of about [\d,]+ bytes need [\d,]+ bytes more, and 10,000 are free"
    ) as caught:
        train_small(Path("run"))
    assert caught.value.code == RESOURCES
    assert not checkpoint.steps(Path("run/checkpoints"))


@contextlib.contextmanager
def small_disk(folder: Path, size: str):
    """A real file system of that size, where we may make one."""
    folder.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True
    ).returncode:
        pytest.skip("needs the right to mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="mount")
def test_a_full_disk_during_a_save_leaves_earlier_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checkpointing.CheckpointManager, "check_disk_space", lambda self: None
    )  # it was there when the run began
    with small_disk(Path("disk"), "400k") as disk:
        with pytest.raises(UserError, match=r"could not be written after [\d,]+ bytes: .*No space left") as caught:
            train_small(disk / "run")
        assert caught.value.code == RESOURCES
        there = checkpoint.steps(disk / "run" / "checkpoints")
        assert there, "earlier ones stay"
        for path in there:
            checkpoint.verify(path)
        assert not list((disk / "run" / "checkpoints").glob(".unfinished*"))
        subprocess.run(["mount", "-o", "remount,size=40m", str(disk)], check=True)
        again = train_small(disk / "run")
    assert again.best == train_small(Path("straight")).best


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_an_unwritable_directory_is_refused_before_training(place: str) -> None:
    Path("file").write_text("no folder")
    with pytest.raises(UserError, match="cannot be written to") as caught:
        train_small(Path(place))
    assert caught.value.code == RESOURCES


# --- resuming elsewhere ---------------------------------------------------------------------------------------------------------


def test_damaged_best_and_newest_checkpoints_are_renamed() -> None:
    whole = train_small(Path("whole"))
    folder = cut(Path("whole"), Path("cut"), 3)
    newest = folder / "checkpoints" / "step-00000003"
    (newest / "model.safetensors").write_bytes(b"")
    checkpoint.link(folder / "checkpoints", checkpoint.BEST, newest)
    again = train_small(folder, keep=9)
    assert again.best == whole.best
    assert (folder / "checkpoints" / checkpoint.BEST).resolve().name == "step-00000002"
    assert (folder / "checkpoints" / "damaged-step-00000003" / "model.safetensors").read_bytes() == b""
    for path in checkpoint.steps(folder / "checkpoints"):
        checkpoint.verify(path)


def test_a_changed_environment_is_reported_on_resume(capsys: pytest.CaptureFixture) -> None:
    train_small(Path("whole"))
    folder = cut(Path("whole"), Path("cut"), 2)
    path = folder / "checkpoints" / "step-00000002"
    state = json.loads((path / "trainer" / "state.json").read_text())
    before = {"world_size": 2, "threads": 64, "device": "cuda", "torch": "1.0"}
    (path / "trainer" / "state.json").write_text(json.dumps({**state, **before}))
    (path / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(path)
    train_small(folder)
    output = capsys.readouterr().err
    now = {"world_size": 1, "threads": torch.get_num_threads(), "device": "cpu", "torch": torch.__version__}
    changed = ", ".join(f"{key.replace('_', ' ')} changed from {before[key]} to {now[key]}" for key in before)
    assert f"warning: from here on equal only up to rounding, not bitwise: {changed}" in output


def test_a_checkpoint_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    train_small(Path("run"), steps=2)
    for path in checkpoint.steps(Path("run/checkpoints")):
        state = json.loads((path / "trainer" / "state.json").read_text())
        (path / "trainer" / "state.json").write_text(json.dumps({**state, "format": 99}))
        (path / checkpoint.MANIFEST).unlink()
        checkpoint._write_manifest(path)
    with pytest.raises(UserError, match="written by a newer tinyllm: format 99, this one reads 1"):
        train_small(Path("run"), steps=2)


# --- signals --------------------------------------------------------------------------------------------------------------------

COMMAND = (
    "sft",
    "--name",
    "x",
    "--checkpoint",
    "parent",
    "--set",
    "data.train=[answers.jsonl]",
    "--set",
    "data.max_length=64",
)
LOOP = (
    "train.steps=4000",
    "train.batch_size=8",
    "train.save_every=7",
    "train.eval_every=11",
    "train.log_every=1",
    "train.compile=off",
)


def started(*more: str) -> subprocess.Popen:
    tuning()
    sets = [word for setting in (*LOOP, "train.precision=fp32", "optim.warmup_steps=1") for word in ("--set", setting)]
    command = [sys.executable, "-m", "tinyllm", *COMMAND, *sets, *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def lines_of(file: Path) -> int:
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_a_signal_finishes_the_step_saves_and_prints_the_command(number: int, code: int) -> None:
    """During a step, an evaluation and a save. The run resumes each time."""
    for turn in range(2):
        process, metrics = started(), Path("runs/sft/full/x/metrics.jsonl")
        before = lines_of(metrics)
        while lines_of(metrics) < before + 5 + 9 * turn and process.poll() is None:
            time.sleep(0.01)
        time.sleep(0.013 * turn)
        process.send_signal(number)
        began = time.monotonic()
        output = process.communicate(timeout=60)[1]
        assert process.returncode == code, output[-800:]
        assert time.monotonic() - began < 20
        assert "a checkpoint was saved" in output
        assert f"next: continue with `tinyllm {shlex.join(process.args[3:])}`" in output
        newest = checkpoint.steps(Path("runs/sft/full/x/checkpoints"))[-1]
        checkpoint.verify(newest)
        logged = [json.loads(line) for line in metrics.read_text().splitlines()]
        assert checkpoint.step_of(newest) == max(row["step"] for row in logged), "not one step is lost"
        facts = run.read_facts(Path("runs/sft/full/x"))
        assert facts["status"] == "stopped"
        assert lock.owner(Path("runs/sft/full/x")) is None
    steps = [row["step"] for row in logged if row["split"] == "train"]
    assert steps == list(range(1, len(steps) + 1)), "every step once, over all sessions"


def test_a_signal_before_the_first_step_stops_the_command() -> None:
    process = started()
    assert any(line.startswith("starting from parent") for line in process.stderr)  # behind what was fitted to it
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[1]
    assert process.returncode == 143, output
    assert "Traceback" not in output


def test_a_second_signal_ends_at_once_and_leaves_no_partial_files() -> None:
    process, metrics = started(), Path("runs/sft/full/x/metrics.jsonl")
    while lines_of(metrics) < 12 and process.poll() is None:
        time.sleep(0.01)
    for _ in range(3):  # the second comes too soon to be another one
        process.send_signal(signal.SIGINT)
        time.sleep(0.6)
    output = process.communicate(timeout=60)[1]
    assert process.returncode in (130, -signal.SIGINT), output  # the last one may come while Python is leaving
    for path in checkpoint.steps(Path("runs/sft/full/x/checkpoints")):
        checkpoint.verify(path)


@pytest.mark.slow
def test_two_runs_in_one_directory_are_refused() -> None:
    first, metrics = started(), Path("runs/sft/full/x/metrics.jsonl")
    try:
        while lines_of(metrics) < 3 and first.poll() is None:
            time.sleep(0.01)
        second = started()
        output = second.communicate(timeout=60)[1]
        assert second.returncode == RESOURCES
        assert f"directory is in use by another process: pid {first.pid} on " in output
    finally:
        first.kill()
        first.communicate()
    third = started("--set", "train.steps=3", "--no-resume")  # the dead owner's lock is free
    output = third.communicate(timeout=60)[1]
    assert third.returncode == 0, output
    assert Path("runs/sft/full/x~1").is_dir()
