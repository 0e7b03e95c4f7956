"""Online stages end to end: missing models are errors, and every configured term is in the loss."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import small
from tinyllm import algorithms
from tinyllm.data.config import RecordConfig
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model.config import LoRAConfig
from tinyllm.model.transformer import SequenceScorer
from tinyllm.rollout.config import RolloutConfig
from tinyllm.stages import align_online
from tinyllm.stages.config import AlignOnlineConfig
from tinyllm.train import checkpoint
from tinyllm.train.config import TrainConfig
from tinyllm.train.engine import Engine
from tinyllm.train.run import Invocation

CALL = Invocation("written: down\n")
REWARD = {"rule.py:length": 1.0}
KL = {name: {"kl_coef": 0.5} for name in ("grpo", "gspo", "dapo", "dr_grpo", "ppo", "rloo")}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    small.saved(small.rough(), tmp_path / "parent")
    (tmp_path / "rule.py").write_text("def length(columns, text, finished):\n    return len(text) / 10\n")
    small.written(tmp_path / "prompts.jsonl", [{"prompt": f"What is {i}?", "answer": str(i % 10)} for i in range(40)])


def settings(name: str, rewards: dict[str, float], **changes) -> AlignOnlineConfig:
    rollout = RolloutConfig(group_size=4, minibatches=2, max_new_tokens=8, keep=True, temperature=0.7)
    base = small.common(Path("prompts.jsonl"), eval_every=1, save_every=1, keep=9)
    return AlignOnlineConfig(
        **base, parent=Path("parent"), algorithm=name, rewards=rewards, rollout=rollout, name="x", **changes
    )


@pytest.mark.parametrize("given", [None, Path("nowhere")])
def test_a_missing_reward_model_is_an_error_before_training(given: Path | None) -> None:
    with pytest.raises(UserError, match=r"no reward model yet|no run or checkpoint 'nowhere'") as caught:
        align_online.run(settings("grpo", {"reward_model": 1.0}, reward_model=given), CALL)
    assert caught.value.code == USAGE
    assert caught.value.fix
    assert not Path("runs/rlhf").exists()


def test_only_a_matching_reward_model_is_accepted() -> None:
    """A language model, a reward model with other tokens, one whose head is missing, one that does not fit its description."""

    def complaint(folder: Path) -> UserError:
        with pytest.raises(UserError) as caught:
            align_online.run(settings("grpo", {"reward_model": 1.0}, reward_model=folder), CALL)
        return caught.value

    assert "this is not a reward model" in complaint(Path("parent")).what
    other = small.tokenizer(("another text altogether, and more of another text",))
    foreign = small.saved(small.rough(SequenceScorer), Path("foreign"), other)
    assert "trained with another tokenizer" in complaint(foreign).what
    headless = small.saved(small.rough(SequenceScorer), Path("headless"))
    tensors = load_file(headless / "model.safetensors")
    tensors.pop("score.weight")
    save_file(tensors, headless / "model.safetensors")
    assert "score.weight is missing" in complaint(headless).what
    assert complaint(headless).code == INTEGRITY


def test_the_reward_is_the_score_of_the_reward_model_at_the_last_token() -> None:
    scorer = small.rough(SequenceScorer, seed=3)
    small.saved(scorer, Path("judge"))
    found = align_online.run(settings("grpo", {"reward_model": 2.0}, reward_model=Path("judge")), CALL)
    kept = load_file(Path(found["run"]) / "logs" / "rollouts" / "00000000.safetensors")
    for ids, mask, reward, finished in zip(kept["ids"], kept["mask"], kept["reward"], kept["finished"], strict=True):
        alone = ids[: int(mask.nonzero()[-1]) + 1][None]
        want = 2.0 * scorer(alone)[0, -1].item() - 0.5 * (not finished)
        assert reward.item() == pytest.approx(want, abs=1e-3)


@pytest.mark.parametrize("lora", [None, LoRAConfig(r=2)], ids=["full", "lora"])
@pytest.mark.parametrize("name", KL)
def test_the_kl_to_the_parent_is_measured_and_in_the_loss(name: str, lora: LoRAConfig | None) -> None:
    changes = {} if lora is None else {"lora": lora}
    run = Path(align_online.run(settings(name, REWARD, **changes, **{name: KL[name]}), CALL)["run"])
    rows = small.metrics(run)
    assert rows[0]["objective/kl"] == pytest.approx(0, abs=1e-4)  # nothing has moved yet
    assert abs(rows[2]["objective/kl"]) > 1e-4
    kept = [load_file(run / "logs" / "rollouts" / f"{n:08d}.safetensors") for n in (0, 1)]
    parent = small.rough()
    for rollout in kept:
        with torch.no_grad():
            want = parent.log_probs(rollout["ids"], rollout["mask"], temperature=0.7)
        torch.testing.assert_close(rollout["reference"], want, atol=1e-4, rtol=0)
    if name not in ("ppo", "rloo"):  # which have it in the reward
        assert rows[3]["kl"] > 1e-5


def test_with_dropout_the_first_ratios_are_only_near_1(capsys: pytest.CaptureFixture) -> None:
    base = settings("grpo", REWARD)
    config = base.model_copy(update={"train": base.train.model_copy(update={"dropout": 0.2})})
    first = small.metrics(Path(align_online.run(config, CALL)["run"]))[0]
    assert "acts in the loss only" in capsys.readouterr().err
    assert first["sampler_gap"] < 1e-3  # sampler and old log-probabilities are both without dropout
    assert first["approx_kl"] > 1e-3


@pytest.mark.parametrize("name", algorithms.names("online"))
def test_the_first_minibatch_is_on_policy_at_the_sampling_temperature(name: str) -> None:
    """Sampler, behaviour policy and loss divide by the same temperature: the ratio is 1, to rounding, and the second time it is not."""
    run = Path(align_online.run(settings(name, REWARD), CALL)["run"])
    first, second = small.metrics(run)[:2]
    assert first["sampler_gap"] < 1e-3
    assert first["ratio"] == pytest.approx(1, abs=1e-4)
    assert first["approx_kl"] < 1e-5
    assert second["approx_kl"] > 1e-4


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_a_resumed_run_equals_the_uninterrupted_one_with_critic_and_rollouts(name: str) -> None:
    config = settings(name, REWARD)
    run = Path(align_online.run(config, CALL)["run"])
    whole = run.rename(run.with_name("whole"))
    shutil.copytree(whole, run, symlinks=True)
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    align_online.run(config, CALL)
    names = ["model.safetensors", "trainer/optimizer.safetensors"] + ["trainer/critic.safetensors"] * (name == "ppo")
    for file in names:
        want, got = (load_file(folder / "checkpoints" / "step-00000004" / file) for folder in (whole, run))
        assert all(torch.equal(got[key], tensor) for key, tensor in want.items()), file


def test_the_critic_starts_from_the_reward_model() -> None:
    small.saved(small.rough(SequenceScorer, seed=3), Path("judge"))
    found = align_online.run(settings("ppo", {"reward_model": 1.0}, reward_model=Path("judge")), CALL)
    checkpoints = Path(found["run"]) / "checkpoints"
    first = load_file(checkpoints / "step-00000000" / "trainer" / "critic.safetensors")
    judge = load_file(Path("judge") / "model.safetensors")
    assert all(torch.equal(first[name], tensor) for name, tensor in judge.items())
    last = load_file(checkpoints / "step-00000004" / "trainer" / "critic.safetensors")
    assert all(not torch.equal(last[name], tensor) for name, tensor in judge.items())
    facts = json.loads((Path(found["run"]) / "run.json").read_text())
    assert facts["reward_model"]["checkpoint"] == "judge"


def test_the_rollout_of_another_number_of_ranks_is_sampled_anew(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Stopped in the middle of a rollout of two steps."""
    config, step = settings("grpo", REWARD), Engine.step

    def stopped(engine: Engine, *arguments: Any) -> dict[str, float]:
        if engine.updates == 2:
            signal.raise_signal(signal.SIGTERM)
        return step(engine, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "step", stopped)
        with pytest.raises(UserError, match="stopped after step 3 of 4") as caught:
            align_online.run(config, CALL)
    folder = Path(caught.value.where) / "checkpoints" / "step-00000003"
    (folder / "trainer" / "source-0-of-1.safetensors").rename(folder / "trainer" / "source-0-of-2.safetensors")
    (folder / checkpoint.MANIFEST).unlink()
    checkpoint._write_manifest(folder)
    capsys.readouterr()
    assert align_online.run(config, CALL)["steps"] == 4
    said = capsys.readouterr().err
    assert (
        "warning: the unfinished rollout belongs to another number of ranks or batch size; a new one is sampled" in said
    )


def test_without_a_reward_model_the_critic_starts_from_the_decoder_of_the_policy() -> None:
    found = align_online.run(settings("ppo", REWARD), CALL)
    first = load_file(Path(found["run"]) / "checkpoints" / "step-00000000" / "trainer" / "critic.safetensors")
    parent = load_file(Path("parent") / "model.safetensors")
    decoder = {name for name in parent if name != "lm_head.weight"}
    assert set(first) == decoder | {"score.weight"}
    assert len(decoder) > 8
    assert all(torch.equal(first[name], parent[name]) for name in decoder)


@pytest.mark.parametrize("scorer", ["none", "of another shape"])
def test_the_critic_starts_from_the_decoder_of_the_policy_where_no_reward_model_has_its_shape(scorer: str) -> None:
    rewards, given = REWARD, None
    if scorer != "none":
        other = SequenceScorer(small.rough().config.model_copy(update={"num_hidden_layers": 2}))
        given, rewards = small.saved(other, Path("judge")), {"reward_model": 1.0}
    found = align_online.run(settings("ppo", rewards, reward_model=given), CALL)
    first = load_file(Path(found["run"]) / "checkpoints" / "step-00000000" / "trainer" / "critic.safetensors")
    decoder = {n: tensor for n, tensor in load_file(Path("parent") / "model.safetensors").items() if "model." in n}
    assert len(decoder) > 9
    assert all(torch.equal(first[name], tensor) for name, tensor in decoder.items())
    assert set(first) - set(decoder) == {"score.weight"}


def test_best_by_must_name_a_held_out_metric(tmp_path: Path) -> None:
    config = settings("grpo", REWARD).model_copy(update={"best_by": "rewards/gold"})
    with pytest.raises(UserError, match="best_by is 'rewards/gold'") as caught:
        align_online.run(config, CALL)
    assert caught.value.what.endswith("held-out figures: reward, rewards/length, finished")
    Path("brief.py").write_text("def brief(columns, text, finished):\n    return -len(text)\n")
    config = settings("grpo", {**REWARD, "brief.py:brief": 0.0}).model_copy(update={"best_by": "rewards/brief"})
    found = align_online.run(config, CALL)
    rows = small.metrics(Path(found["run"]), "eval")
    best = max(rows, key=lambda row: row["rewards/brief"])  # the first of equals
    assert {name: best[name] for name in found["best"]} == found["best"]
    assert best["reward"] < max(row["reward"] for row in rows)  # another evaluation than the best by reward


def test_two_rewards_of_one_file_are_two_figures_and_both_count() -> None:
    Path("two.py").write_text(
        "def correct(columns, text, finished):\n    return 10.0\n"
        "def form(columns, text, finished):\n    return 1.0 if columns['answer'] != '7' else None\n"
    )
    config = settings("grpo", {"two.py:correct": 1.0, "two.py:form": 1.0}, best_by="rewards/correct")
    found = align_online.run(config, CALL)
    before = found["before"]
    assert before["rewards/correct"] == 10.0
    assert before["rewards/form"] == 1.0
    share = before["rewards/form/applied"]
    assert before["reward"] == pytest.approx(10 + share - 0.5 * (1 - before["finished"]), abs=1e-6)


def test_a_held_out_reward_that_is_not_a_number_stops_before_anything_is_saved() -> None:
    """It would be `ckpt_best` for ever: nothing is more than NaN."""
    Path("nan.py").write_text(
        "def ratio(columns, text, finished):\n    return float('nan') if columns['held'] and text not in ('', 'x') else 1.0\n"
    )
    small.written(Path("train.jsonl"), [{"prompt": f"Say {i}.", "answer": "x", "held": 0} for i in range(9)])
    small.written(Path("val.jsonl"), [{"prompt": f"Tell {i}.", "answer": "x", "held": int(i > 4)} for i in range(9)])
    data = RecordConfig(train=("train.jsonl",), val=("val.jsonl",), max_length=80)
    for weights in ({"nan.py:ratio": 1.0}, {"nan.py:ratio": 0.0, "rule.py:length": 1.0}):
        with pytest.raises(
            UserError, match=r"the reward ratio returned nan, not a finite number, for val\.jsonl:\d "
        ) as caught:
            align_online.run(settings("grpo", weights).model_copy(update={"data": data}), CALL)
        assert caught.value.where == "nan.py:1"
        assert not list(Path("runs").rglob("ckpt_best"))


@pytest.mark.parametrize("rewards", [{}, {"rule.py:length": 0.0}])
def test_nothing_to_learn_from_is_refused(rewards: dict[str, float]) -> None:
    with pytest.raises(UserError, match="there is nothing to learn from"):
        settings("grpo", rewards)


@pytest.mark.parametrize("name", algorithms.names("online"))
def test_a_group_of_one_is_refused_where_answers_are_compared(name: str) -> None:
    rollout = RolloutConfig(group_size=1)
    if algorithms.load(name, "online").needs_critic:
        assert AlignOnlineConfig(algorithm=name, rollout=rollout).rollout.group_size == 1
        return
    with pytest.raises(UserError, match="group_size is 1") as caught:
        AlignOnlineConfig(algorithm=name, rollout=rollout)
    assert "--set rollout.group_size" in caught.value.fix


@pytest.mark.parametrize(
    ("batch", "minibatches", "group", "ranks", "nearest"),
    [
        (16, 2, 3, 1, 15),
        (16, 1, 5, 1, 15),
        (64, 2, 24, 1, 60),
        (10, 2, 8, 2, 8),
        (2, 1, 8, 1, 8),
        (7, 1, 7, 2, 14),
        (16, 2, 8, 2, 0),
    ],
)
def test_the_nearest_batch_of_whole_groups_is_named(
    batch: int, minibatches: int, group: int, ranks: int, nearest: int
) -> None:
    rollout = RolloutConfig(group_size=group, minibatches=minibatches)
    if not nearest:
        rollout.check_batch(batch, ranks)
        return
    with pytest.raises(UserError, match=r"is not a multiple of rollout\.group_size") as caught:
        rollout.check_batch(batch, ranks)
    assert caught.value.fix == f"set train.batch_size to {nearest}"
    rollout.check_batch(nearest, ranks)


@pytest.mark.parametrize(
    ("batch", "micro", "group", "fix"),
    [
        (128, 128, 6, {"batch_size": 126}),  # 129 is no multiple of 128
        (16, 4, 3, {"batch_size": 12}),
        (256, 128, 6, {"batch_size": 255, "micro_batch_size": 85}),  # the nearest multiple of 128 is 384
    ],
)
def test_the_named_batch_is_one_of_whole_micro_batches(batch: int, micro: int, group: int, fix: dict[str, int]) -> None:
    rollout = RolloutConfig(group_size=group)
    with pytest.raises(UserError) as caught:
        rollout.check_batch(batch, micro_batch_size=micro)
    assert caught.value.fix == "set " + " and ".join(f"train.{name} to {value}" for name, value in fix.items())
    train = TrainConfig(**{"micro_batch_size": micro} | fix)
    rollout.check_batch(train.batch_size, micro_batch_size=train.micro_batch_size)
