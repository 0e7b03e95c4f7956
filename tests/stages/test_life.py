"""A life of two stages on a tiny scale: examined, judged, resumable; the command's refusals; the user's files sorted by kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.cli.lives import lives
from tinyllm.cli.options import Common
from tinyllm.data.records import kind_of
from tinyllm.errors import UserError
from tinyllm.stages import lifecycle
from tinyllm.stages.life import Life

SMALL = [
    "data.train=['world:300']",
    "train.steps=4",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.eval_every=2",
    "train.eval_rows=8",
    "data.max_length=96",
]


def two_stages(name: str = "tiny", **more: object) -> dict:
    found = lives("laptop", Common(set=SMALL, name=name, **more), [], 1, {})[name]
    return {stage: found[stage] for stage in ("pretrain", "sft")}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_life_is_examined_judged_and_not_lived_twice(here: Path, capsys: pytest.CaptureFixture) -> None:
    resolved = two_stages()
    life = Life("tiny", resolved, questions=16)
    records = life.go()
    assert [r["stage"] for r in records] == ["pretrain", "sft"]
    assert set(records[1]["figures"]) >= {"bits_per_byte", "gold", "accuracy", "win_rate", "kl", "stopped"}
    assert records[1]["figures"]["gold"]["n"] == 16
    assert not records[0]["gates"][0]["passed"]  # four steps do not beat a 5-gram model
    card = lifecycle.scorecard(life, records, "laptop")
    json.dumps(card)
    assert not card["passed"]
    assert len(card["prompts"][0]["answers"]) == 2
    capsys.readouterr()
    again = Life("tiny", two_stages(), questions=16)
    assert [r["figures"] for r in again.go()] == [r["figures"] for r in records]
    assert capsys.readouterr().err.count("done already") == 2
    # another configuration of a stage is another stage: the run directory refuses it, and the first is not looked at again
    changed = two_stages()
    other = lives("laptop", Common(set=[*SMALL, "optim.learning_rate=0.5"], name="tiny"), [], 1, {})["tiny"]
    with pytest.raises(UserError, match="another configuration"):
        Life("tiny", {**changed, "sft": other["sft"]}, questions=16).go()


def test_a_stage_whose_parent_changed_is_done_again(here: Path, capsys: pytest.CaptureFixture) -> None:
    Life("tiny", two_stages(), questions=8).go()
    record = here / "runs" / "lifecycle" / "tiny" / "pretrain.json"
    kept = json.loads(record.read_text())
    kept["manifest_sha256"] = "0" * 64
    record.write_text(json.dumps(kept))
    capsys.readouterr()
    Life("tiny", two_stages(), questions=8).go()
    assert "done already" not in capsys.readouterr().err.split("--- sft")[0]


def test_seeds_are_lives_of_their_own() -> None:
    found = lives("laptop", Common(seed=3), [], 2, {})
    assert list(found) == ["laptop-seed3", "laptop-seed4"]
    assert {r.config.seed for r in found["laptop-seed4"].values()} == {4}
    assert found["laptop-seed4"]["dpo"].config.parent == Path("runs/sft/full/laptop-seed4")
    assert found["laptop-seed4"]["ppo"].config.reward_model == Path("runs/rlhf/rm/laptop-seed4")
    assert found["laptop-seed4"]["sft"].config.flawed > 0


def test_a_setting_for_one_stage_is_that_stage_s_alone() -> None:
    found = lives("laptop", Common(set=["sft:flawed=0.1", "dpo:dpo.beta=0.7", "train.steps=3"]), [], 1, {})["laptop"]
    assert found["sft"].config.flawed == 0.1
    assert found["sft-lora"].config.flawed == 0.4
    assert found["dpo"].config.dpo.beta == 0.7
    assert {r.config.train.steps for r in found.values()} == {3}
    with pytest.raises(UserError, match="there is no stage 'sfd'"):
        lives("laptop", Common(set=["sfd:flawed=0.1"]), [], 1, {})


ROWS = {
    "documents": {"text": "a story"},
    "conversations": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    "pairs": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "prompts": {"question": "1 + 1?", "answer": "#### 2"},
}


def files(folder: Path, *kinds: str) -> list[str]:
    for kind in kinds:
        (folder / f"{kind}.jsonl").write_text(json.dumps(ROWS[kind]) + "\n")
    return [str(folder / f"{kind}.jsonl") for kind in kinds]


@pytest.mark.parametrize("kind", ROWS)
def test_what_a_file_is_for_is_found_by_looking_inside(tmp_path: Path, kind: str) -> None:
    assert kind_of(files(tmp_path, kind)[0]) == kind
    (tmp_path / "plain.txt").write_text("Once upon a time.\n")
    assert kind_of(tmp_path / "plain.txt") == "documents"


def test_one_s_own_files_go_where_they_belong(tmp_path: Path) -> None:
    given = files(tmp_path, "prompts", "documents", "conversations")
    found = lives("laptop", Common(), given, 1, {})["laptop-own"]
    assert list(found) == ["pretrain", "sft", "sft-lora", "ppo", "gspo", "grpo"]  # no pairs: nothing that needs them
    assert found["grpo"].config.data.train == (given[0],)
    assert found["pretrain"].config.data.train == (given[1],)
    assert found["ppo"].config.rewards == {"exact_answer": 1.0}
    with pytest.raises(UserError, match="there are no conversations"):
        lives("laptop", Common(), files(tmp_path, "documents"), 1, {})
    named = lives("laptop", Common(), [f"documents={given[0]}", *given[1:]], 1, {})["laptop-own"]
    assert named["pretrain"].config.data.train == (given[0], given[1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "labtop"], "use --preset laptop"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--set", "train.stepz=3"], "train.steps"),
        (["--seeds", "0"], "0"),
        (["--smoke", "--name", "mine"], "the rehearsal takes no"),
    ],
)
def test_what_cannot_be_lived_is_refused_at_once(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "tinyllm", "lifecycle", *arguments],
        cwd=tmp_path,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert not any(line.endswith(" torch") for line in done.stderr.splitlines())
