"""A resumed run equals the uninterrupted one bit for bit: every training stage, stopped after every step.

Each run is stopped by a real SIGTERM in the middle of step k (the step is finished, a checkpoint written), then started again with
the same call. Compared with the undisturbed run's: the digest of every batch from there on, torch's random state after every step, and
all files of the last checkpoint (weights, optimiser, counters, history), by the hashes in its manifest, and every figure logged.
"""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import small
from tinyllm import algorithms
from tinyllm.errors import TERMINATED, UserError
from tinyllm.io.files import sha256
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import SequenceScorer
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages import align_offline, align_online, pretrain, rm, sft
from tinyllm.stages import config as settings
from tinyllm.train import checkpoint
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation

CALL = Invocation("written: down\n")
STEPS = 5  # of eight of 20 records: the third and the fifth step lie across the edge of an epoch
ONLINE_STEPS = (
    6  # rollouts of four steps (two minibatches, twice): stopped in the middle, at the edge and in the next one
)
COMPILED_STEPS = 12  # compiled after the tenth: stopped before that, in that step and afterwards


def digest(batches: list[Any]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for field in fields(batch):
            value = getattr(batch, field.name)
            found.update(value.numpy().tobytes() if isinstance(value, torch.Tensor) else repr(value).encode())
    return found.hexdigest()


class Watched:
    """Looks at every step of every engine; ends the process's patience in the middle of step `stop`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.seen: dict[int, tuple[str, str]] = {}
        self.stop = 0
        step = Engine.step

        def watched(engine: Engine, batches: list[Any], extra: Any = None) -> dict[str, float]:
            number, before = engine.updates + 1, digest(batches)
            if number == self.stop:
                signal.raise_signal(signal.SIGTERM)
            figures = step(engine, batches, extra)
            self.seen[number] = (before, hashlib.sha256(torch.get_rng_state().numpy().tobytes()).hexdigest())
            return figures

        monkeypatch.setattr(Engine, "step", watched)

    def run(self, go: Callable[[], dict[str, Any]], stop: int = 0) -> tuple[dict[int, tuple[str, str]], dict[str, str]]:
        """What was seen, and the hash of each file of the last checkpoint."""
        self.seen, self.stop = {}, stop
        if stop:
            with pytest.raises(UserError) as caught:
                go()
            assert caught.value.code == TERMINATED
            self.seen, self.stop = {}, 0
        found = Path(go()["run"]) / "checkpoints"
        last = checkpoint.steps(found)[-1]
        files = json.loads((last / checkpoint.MANIFEST).read_text(encoding="utf-8"))["files"]
        return self.seen, {"step": last.name, **{name: entry["sha256"] for name, entry in files.items()}}


def logged(runs: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl without the speed."""
    (path,) = runs.rglob("metrics.jsonl")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.chdir(tmp_path)
    small.saved(small.rough(scale=0.1), tmp_path / "parent")
    small.saved(small.rough(SequenceScorer, seed=3, scale=0.1), tmp_path / "judge")
    rows = [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(25)]
    small.written(tmp_path / "answers.jsonl", rows)
    small.pairs(tmp_path / "pairs.jsonl", 25)
    small.written(tmp_path / "judged.jsonl", [{**r, "label": i % 2 == 0} for i, r in enumerate(rows)])
    small.written(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": str(i % 10)} for i in range(9)])
    texts = [{"text": f"{i}: {'red ' * (i % 7)}and {'blue ' * (i % 5)}are colours."} for i in range(40)]
    small.written(tmp_path / "texts.jsonl", texts)
    return Watched(monkeypatch)


def common(data: str, **changes: Any) -> dict[str, Any]:
    """Dropout, accumulation of two micro-batches, a warm-up that lasts beyond the first stops, no checkpoint of its own but the last."""
    steps = changes.pop("steps", STEPS)
    found = small.common(Path(data), steps=steps, eval_every=3, save_every=99, dropout=0.1, **changes)
    return found | {"optim": OptimConfig(learning_rate=1e-2, warmup_steps=3), "parent": Path("parent")}


def pretrained(**changes: Any) -> dict[str, Any]:
    own = {key: changes.pop(key) for key in ("packing",) if key in changes}
    sections = common("texts.jsonl", **changes)
    del sections["parent"]
    sections["data"] = {**sections["data"], "max_length": 32}
    return pretrain.run(settings.PretrainConfig(**sections, **own, model=small.SHAPE, name="x"), CALL)


def tuned(**changes: Any) -> dict[str, Any]:
    own = {key: changes.pop(key) for key in ("lora", "packing") if key in changes}
    return sft.run(settings.SftConfig(**common("answers.jsonl", **changes), **own, name="x"), CALL)


def rewarded(**own: Any) -> dict[str, Any]:
    return rm.run(settings.RmConfig(**common("pairs.jsonl"), **own, name="x"), CALL)


def offline(name: str, **own: Any) -> dict[str, Any]:
    kind = algorithms.load(name, "offline").data
    data = "pairs.jsonl" if kind == "pairs" else "judged.jsonl"
    return align_offline.run(settings.AlignOfflineConfig(**common(data), algorithm=name, **own, name="x"), CALL)


def online(name: str, **own: Any) -> dict[str, Any]:
    rollout = RolloutConfig(group_size=4, minibatches=2, epochs=2, max_new_tokens=8, **own.pop("rollout", {}))
    sections = common("prompts.jsonl", steps=ONLINE_STEPS)
    config = settings.AlignOnlineConfig(
        **sections, algorithm=name, rollout=rollout, name="x", **{"rewards": {"exact_answer": 1.0}, **own}
    )
    return align_online.run(config, CALL)


LORA = LoRAConfig(r=2, dropout=0.1)
EVERYWHERE = LoRAConfig(
    r=4,
    targets=("q_proj", "down_proj"),
    rank_pattern={"down_proj": 2},
    layers=(0,),
    modules_to_save=("norm",),
    token_rows={"embed_tokens": (5, 3)},
    init="pissa",
)
STAGES: dict[str, tuple[Callable[[], dict[str, Any]], int]] = {
    "pretrain": (pretrained, STEPS),
    "pretrain, packed": (lambda: pretrained(packing=True), STEPS),
    "pretrain, bf16": (lambda: pretrained(precision="bf16"), STEPS),
    "pretrain, compiled": (lambda: pretrained(compile="on", steps=COMPILED_STEPS), COMPILED_STEPS),
    "sft": (tuned, STEPS),
    "sft, packed": (lambda: tuned(packing=True, batch_size=2, micro_batch_size=1), STEPS),
    "sft, lora": (lambda: tuned(lora=LORA), STEPS),
    "sft, dora": (lambda: tuned(lora=LORA.model_copy(update={"dora": True})), STEPS),
    "sft, lora of every part": (lambda: tuned(lora=EVERYWHERE), STEPS),
    "rm": (rewarded, STEPS),
    "rm, lora": (lambda: rewarded(lora=LORA), STEPS),
    **{name: (lambda name=name: offline(name), STEPS) for name in algorithms.names("offline")},
    "dpo, lora": (lambda: offline("dpo", lora=LORA), STEPS),
    **{name: (lambda name=name: online(name), ONLINE_STEPS) for name in algorithms.names("online")},
    "grpo, lora": (lambda: online("grpo", lora=LORA), ONLINE_STEPS),
    "ppo, reward model": (
        lambda: online("ppo", rewards={"reward_model": 1.0}, reward_model=Path("judge")),
        ONLINE_STEPS,
    ),
    "dapo, dynamic sampling": (lambda: online("dapo", rollout={"sampling_rounds": 3}), ONLINE_STEPS),
}


SLOW = {"pretrain, compiled"}
# What has the loop of another one: without `-m slow` it stops twice, in the middle of an epoch or rollout and at its edge.
ALIKE = {*algorithms.names("offline"), *algorithms.names("online")} - {"dpo", "kto", "ppo"}
ALIKE |= {name for name in STAGES if "," in name} - {"pretrain, packed", "dapo, dynamic sampling"} - SLOW
STOPS = [pytest.param(name, (2, 4), id=name) for name in STAGES if name in ALIKE]
STOPS += [
    pytest.param(
        name,
        range(1, steps),
        id=f"{name}, every step" if name in ALIKE else name,
        marks=[pytest.mark.slow] * (name in ALIKE | SLOW),
    )
    for name, (_, steps) in STAGES.items()
]


@pytest.mark.parametrize(("stage", "stops"), STOPS)
def test_a_run_stopped_after_any_step_resumes_bit_for_bit(
    stage: str, stops: Sequence[int], watched: Watched, tmp_path: Path
) -> None:
    go, steps = STAGES[stage]
    runs = tmp_path / "runs"
    seen, files = watched.run(go)
    assert sorted(seen) == list(range(1, steps + 1))
    assert len({before for before, _ in seen.values()}) == steps, "every step has its own batch"
    figures = logged(runs)
    runs.rename(tmp_path / "undisturbed")
    for k in stops:
        resumed, again = watched.run(go, stop=k)
        assert resumed == {number: entry for number, entry in seen.items() if number > k}
        assert again == files, f"stopped after step {k}"
        assert logged(runs) == figures, "not a line twice, missing or different"
        runs.rename(tmp_path / f"stopped-{k}")


def test_the_comparison_detects_one_changed_bit(watched: Watched, tmp_path: Path) -> None:
    """The weights after the stop, changed in their last bit (and the manifest with them): the comparison above must notice."""
    seen, files = watched.run(tuned)
    (tmp_path / "runs").rename(tmp_path / "undisturbed")
    watched.stop = 2
    with pytest.raises(UserError):
        tuned()
    folder = tmp_path / "runs" / "sft" / "full" / "x" / "checkpoints" / "step-00000002"
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].view(torch.int32)[0] ^= 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(folder)
    resumed, again = watched.run(tuned)
    assert resumed == {number: entry for number, entry in seen.items() if number > 2}
    assert again["model.safetensors"] != files["model.safetensors"]


@pytest.mark.slow
def test_two_ranks_resume_in_the_middle_of_a_rollout(watched: Watched, tmp_path: Path) -> None:
    """Whole commands: every rank has its own share of the rollout, and finds it again."""
    sets = [
        "rollout.minibatches=2",
        "rollout.epochs=2",
        "rollout.group_size=4",
        "rollout.max_new_tokens=8",
        "train.steps=400",
    ]
    sets += ["data.train=[prompts.jsonl]", "data.max_length=64", "train.batch_size=8", "train.micro_batch_size=2"]
    sets += [
        "rewards={exact_answer: 1.0}",
        "best_by=reward",
        "train.log_every=1",
        "train.eval_every=1000",
        "train.save_every=1000",
    ]
    sets += ["train.dropout=0.1", "train.precision=fp32", "optim.warmup_steps=1", "rollout.tolerance=9"]

    def command(name: str) -> list[str]:
        words = [
            "align-online",
            "--algorithm",
            "grpo",
            "--checkpoint",
            "parent",
            "--nproc",
            "2",
            "--quiet",
            "--name",
            name,
        ]
        return [sys.executable, "-m", "tinyllm", *words, *(word for setting in sets for word in ("--set", setting))]

    subprocess.run(command("whole"), check=True, capture_output=True, timeout=200)
    runs, stops = tmp_path / "runs" / "rlhf" / "online", []
    while len(stops) < 3:
        process, metrics = (
            subprocess.Popen(command("cut"), stderr=subprocess.PIPE, text=True),
            runs / "grpo-cut" / "metrics.jsonl",
        )
        goal = (stops[-1] if stops else 0) + 21
        while process.poll() is None and not (
            metrics.exists() and f'"step": {goal}, "split": "train"' in metrics.read_text()
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        output = process.communicate(timeout=60)[1]
        assert process.returncode == TERMINATED, output
        stops.append(checkpoint.step_of(checkpoint.steps(runs / "grpo-cut" / "checkpoints")[-1]))
    subprocess.run(command("cut"), check=True, capture_output=True, timeout=200)
    assert any(step % 4 for step in stops), f"{stops}: none lay in the middle of a rollout"
    ends = [runs / f"grpo-{name}" / "checkpoints" / "step-00000400" for name in ("whole", "cut")]
    for file in ("model.safetensors", "trainer/optimizer.safetensors"):
        assert sha256(ends[0] / file) == sha256(ends[1] / file)
