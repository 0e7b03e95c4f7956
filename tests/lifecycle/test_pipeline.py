"""A lifecycle of two stages on a tiny scale: evaluation, gates, resumption; configurations of a lifecycle, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import FrameType

import pytest

from tinyllm import data
from tinyllm.cli.lifecycle import pipeline_configs, smoke_configs
from tinyllm.cli.options import Common
from tinyllm.data.records.detect import guess_kind
from tinyllm.data.splits import read_split
from tinyllm.errors import RESOURCES, UserError
from tinyllm.lifecycle import run
from tinyllm.lifecycle.pipeline import Pipeline
from tinyllm.lifecycle.stages import SMOKE_TEST

SHAPE = "{vocab_size: 400, hidden_size: 32, intermediate_size: 48, num_hidden_layers: 1, head_dim: 16}"
SMALL = [
    f"pretrain:model={SHAPE}",
    "data.train=['world:300']",
    "train.steps=4",
    "train.batch_size=4",
    "train.micro_batch_size=4",
    "train.eval_every=2",
    "train.eval_rows=8",
    "train.compile=off",
    "data.max_length=96",
]


def two_stages(*sets: str) -> dict:
    found = pipeline_configs("laptop", Common(set=[*SMALL, *sets], name="tiny"), [], 1, {})["tiny"]
    return {stage: found[stage] for stage in ("pretrain", "sft")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict], dict]:
    """Run a lifecycle. Return its folder, records and scorecard."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        pipeline = Pipeline("tiny", two_stages(), questions=16)
        records = pipeline.run()
        return folder, records, run.scorecard(pipeline, records, "laptop")


@pytest.fixture
def here(finished: tuple[Path, list[dict], dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the finished lifecycle."""
    shutil.copytree(finished[0] / "runs", tmp_path / "runs", symlinks=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def figures(records: list[dict]) -> list[str]:
    """Return the figures of each stage as text, in which undefined ones are equal."""
    return [json.dumps([r["figures"], r["last"]]) for r in records]


def test_every_stage_is_evaluated_and_gated(finished: tuple[Path, list[dict], dict]) -> None:
    _, records, card = finished
    assert [r["stage"] for r in records] == ["pretrain", "sft"]
    assert set(records[1]["figures"]) >= {"bits_per_byte", "gold", "accuracy", "win_rate", "kl", "stopped"}
    assert records[1]["figures"]["gold"]["n"] == 16
    assert not records[0]["gates"][0]["passed"]  # four steps do not beat a 5-gram model
    json.dumps(card)
    assert not card["passed"]
    assert len(card["prompts"][0]["answers"]) == 2


def test_a_stage_that_got_worse_shows_its_last_checkpoint_beside_the_parent_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    configs = pipeline_configs("laptop", Common(set=[*SMALL, "sft:optim.learning_rate=5"], name="worse"), [], 1, {})
    pipeline = Pipeline("worse", {stage: configs["worse"][stage] for stage in ("pretrain", "sft")}, questions=16)
    records = pipeline.run()
    pretrain, sft = records
    assert (sft["best_step"], sft["last"]["step"]) == (0, 4)
    assert sft["last"]["figures"]["bits_per_byte"]["value"] > 1.5 * sft["figures"]["bits_per_byte"]["value"]
    assert sft["figures"]["bits_per_byte"]["value"] == pytest.approx(pretrain["figures"]["bits_per_byte"]["value"])
    assert sft["figures"]["win_rate"]["n"] == 0  # the parent, compared with itself
    assert "sft: nothing improved on its parent: the best checkpoint is the one before the first step" in (
        capsys.readouterr().err
    )
    card = run.scorecard(pipeline, records, "laptop")
    assert card["last"].keys() == {"sft"}
    assert [(s["best_step"], s["last_step"]) for s in card["stages"]] == [(4, 4), (0, 4)]
    assert card["splits"]["sft"]["overlap"]["selection/exam"] == {"questions": 0, "last questions": 0}
    by_name = {gate["name"]: gate for gate in sft["gates"]}
    assert by_name["improves on pretrained"]["last"]["n"] == 16
    pipeline.close()


def test_finished_stages_are_not_repeated(
    finished: tuple[Path, list[dict], dict], here: Path, capsys: pytest.CaptureFixture
) -> None:
    again = Pipeline("tiny", two_stages(), questions=16)
    assert figures(again.run()) == figures(finished[1])
    assert capsys.readouterr().err.count("already done") == 2
    assert again.samples() == finished[2]["prompts"]  # from the records, without sampling again


def test_another_configuration_in_the_same_place_is_refused(here: Path) -> None:
    other = two_stages("optim.learning_rate=0.5")["sft"]
    with pytest.raises(UserError, match="a different configuration"):
        Pipeline("tiny", {**two_stages(), "sft": other}, questions=16).run()


def test_a_stage_whose_record_names_another_checkpoint_is_evaluated_again(
    here: Path, capsys: pytest.CaptureFixture
) -> None:
    record = here / "runs" / "lifecycle" / "tiny" / "pretrain.json"
    kept = json.loads(record.read_text())
    record.write_text(json.dumps(kept | {"manifest_sha256": "0" * 64}))
    Pipeline("tiny", two_stages(), questions=16).run()
    pretraining, _, sft = capsys.readouterr().err.partition("--- sft")
    assert "already done" not in pretraining
    assert "already done" in sft  # the checkpoint itself is unchanged
    assert json.loads(record.read_text())["manifest_sha256"] == kept["manifest_sha256"]


def test_a_damaged_record_is_reported_and_written_again(
    finished: tuple[Path, list[dict], dict], here: Path, capsys: pytest.CaptureFixture
) -> None:
    record = here / "runs" / "lifecycle" / "tiny" / "pretrain.json"
    kept = json.loads(record.read_text())
    record.write_text('{"a": 1}')
    pipeline = Pipeline("tiny", {"pretrain": two_stages()["pretrain"]}, questions=16)
    assert figures(pipeline.run()) == figures(finished[1])[:1]
    assert "warning: runs/lifecycle/tiny/pretrain.json is damaged (stage: Field required" in capsys.readouterr().err
    assert json.loads(record.read_text())["paper"] == kept["paper"]
    assert not list(record.parent.glob("*.new"))


def test_a_lifecycle_belongs_to_one_process(here: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom tinyllm.train import lock\n"
        "for name in ('tiny', 'fast-dev-run'):\n    lock.acquire(Path('runs/lifecycle', name))\nprint(flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"in use by another process: pid {other.pid}") as caught:
            Pipeline("tiny", two_stages(), questions=16)
        assert caught.value.code == RESOURCES
        with pytest.raises(UserError, match=f"in use by another process: pid {other.pid}"):
            run.smoke_test({})  # its stages empty the folders of the one before
        other.stdin.close()
    Pipeline("tiny", two_stages(), questions=16).close()
    assert run.smoke_test({})["stages"] == []


def test_a_stage_whose_parent_changed_is_trained_again(
    finished: tuple[Path, list[dict], dict], here: Path, capsys: pytest.CaptureFixture
) -> None:
    shutil.rmtree(here / "runs" / "pretrain" / "tiny")
    longer = two_stages("train.steps=5")["pretrain"]
    records = Pipeline("tiny", {**two_stages(), "pretrain": longer}, questions=16).run()
    assert "the parent checkpoint has changed" in capsys.readouterr().err
    assert records[1]["manifest_sha256"] != finished[1][1]["manifest_sha256"]
    assert records[1]["marks"]["parent"] == records[0]["manifest_sha256"]


def test_each_seed_is_a_lifecycle_with_runs_of_its_own() -> None:
    found = pipeline_configs("laptop", Common(seed=3), [], 2, {})
    assert list(found) == ["laptop-seed3", "laptop-seed4"]
    assert {r.config.seed for r in found["laptop-seed4"].values()} == {4}
    assert found["laptop-seed4"]["dpo"].config.parent == Path("runs/sft/full/laptop-seed4")
    assert found["laptop-seed4"]["ppo"].config.reward_model == Path("runs/rlhf/rm/laptop-seed4")
    assert found["laptop-seed4"]["sft"].config.flawed > 0


def test_a_setting_with_a_stage_in_front_is_for_that_stage_alone() -> None:
    sets = ["sft:flawed=0.1", "dpo:dpo.beta=0.7", "train.steps=3"]
    found = pipeline_configs("laptop", Common(set=sets), [], 1, {})["laptop"]
    assert found["sft"].config.flawed == 0.1
    assert found["sft-lora"].config.flawed == 0.4
    assert found["dpo"].config.dpo.beta == 0.7
    assert {r.config.train.steps for r in found.values()} == {3}
    with pytest.raises(UserError, match="unknown stage 'sfd'"):
        pipeline_configs("laptop", Common(set=["sfd:flawed=0.1"]), [], 1, {})


@pytest.mark.parametrize(
    ("given", "fix"),
    [
        ("sft.train.steps=5", "sft:train.steps=5"),
        ("sft-lora.flawed=0.1", "sft-lora:flawed=0.1"),
        ("dpo.train.steps=5", "dpo:train.steps=5"),
        ("dpo.beta=0.7", "dpo:dpo.beta=0.7"),
        ("model.hidden_size=64", "pretrain:model.hidden_size=64"),
        ("lora.r=4", "sft-lora:lora.r=4"),
    ],
)
def test_a_setting_of_one_stage_without_its_stage_is_refused_with_the_stage(given: str, fix: str) -> None:
    with pytest.raises(UserError, match="is a setting of one stage") as refused:
        pipeline_configs("laptop", Common(set=[given]), [], 1, {})
    assert refused.value.fix == f"use --set {fix}"
    pipeline_configs("laptop", Common(set=[fix]), [], 1, {})  # what the fix says is accepted


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
def test_the_kind_of_a_file_is_detected_from_its_first_record(tmp_path: Path, kind: str) -> None:
    assert guess_kind(files(tmp_path, kind)[0]) == kind
    (tmp_path / "plain.txt").write_text("Once upon a time.\n")
    assert guess_kind(tmp_path / "plain.txt") == "documents"


def test_files_go_to_the_stages_that_train_on_their_kind(tmp_path: Path) -> None:
    given = files(tmp_path, "prompts", "documents", "conversations")
    found = pipeline_configs("laptop", Common(), given, 1, {})["laptop-own"]
    assert list(found) == ["pretrain", "sft", "sft-lora", "ppo", "gspo", "grpo"]  # no pairs: no rm, dpo, orpo
    assert found["grpo"].config.data.train == (given[0],)
    assert found["pretrain"].config.data.train == (given[1],)
    assert found["ppo"].config.rewards == {"exact_answer": 1.0}
    with pytest.raises(UserError, match="no file contains conversations"):
        pipeline_configs("laptop", Common(), files(tmp_path, "documents"), 1, {})
    named = pipeline_configs("laptop", Common(), [f"documents={given[0]}", *given[1:]], 1, {})["laptop-own"]
    assert named["pretrain"].config.data.train == (given[0], given[1])


def test_a_skipped_table_is_named_and_suggested(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    (folder / "essay.txt").write_text("A text of its own.\n")
    (folder / "faq.csv").write_text("prompt,answer\nHow?,Like this\nWhy?,Because\n")
    with pytest.raises(UserError, match="no file contains conversations") as error:
        pipeline_configs("laptop", Common(), [str(folder)], 1, {})
    assert re.search("to be named one by one: .*my data/faq.csv", capfd.readouterr().err)
    option = f"conversations={folder / 'faq.csv'}"
    assert error.value.fix.endswith(f"--data '{option}'")
    named = pipeline_configs("laptop", Common(), [str(folder), option], 1, {})["laptop-own"]
    assert named["sft"].config.data.train == (str(folder / "faq.csv"),)
    assert len(read_split(named["sft"].config.data, "conversations", 0).train) == 1


def test_a_folder_may_hold_files_of_several_kinds(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = files(tmp_path, "documents", "conversations", "pairs")
    found = pipeline_configs("laptop", Common(), [str(tmp_path)], 1, {})["laptop-own"]
    assert [found[stage].config.data.train for stage in ("pretrain", "sft", "rm")] == [(path,) for path in given]
    said = capsys.readouterr().err
    assert f"{given[2]}: pairs, for rm, dpo, orpo" in said
    assert "no prompts: skipping ppo, gspo, grpo; questions of the exam are the last ones of test" in said


def test_the_smoke_test_takes_the_users_files(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    given = files(tmp_path, "documents", "conversations", "pairs", "prompts")
    found = smoke_configs(None, None, given, {})
    assert list(found) == [name for name in SMOKE_TEST if name not in ("eval", "chat")]
    assert all("world" not in source for one in found.values() for source in one.config.data.train)
    assert [found[name].config.rewards for name in ("ppo", "grpo")] == [{"reward_model": 1.0}, {"exact_answer": 1.0}]
    assert "leaves out eval and chat" in capsys.readouterr().err
    assert "rm" not in smoke_configs(None, None, given[:2], {})
    assert list(smoke_configs(None, None, [], {})) == list(SMOKE_TEST)


def written(folder: Path, name: str, rows: list[dict]) -> str:
    (folder / name).write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(folder / name)


def test_own_data_are_measured_on_their_test_split_and_never_on_the_world(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = [f"{a}加{b}等于几？😀" for a in range(8) for b in range(5)]
    given = [
        written(tmp_path, "text.jsonl", [{"text": f"{question} قطة صغيرة"} for question in ask]),
        written(tmp_path, "talks.jsonl", [{"prompt": question, "completion": "不知道。"} for question in ask]),
        written(tmp_path, "pairs.jsonl", [{"prompt": q, "chosen": "不知道。", "rejected": "قطة"} for q in ask]),
    ]
    sets = [text for text in SMALL if not text.startswith("data.train")]
    configs = pipeline_configs("laptop", Common(set=sets, name="own"), given, 1, {})["own"]
    pipeline = Pipeline("own", {stage: configs[stage] for stage in ("pretrain", "sft", "rm")}, questions=8)
    entered: set[str] = set()
    world = str(Path(data.world.__file__).parent)

    def note_world(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(world):
            entered.add(frame.f_code.co_name)

    sys.setprofile(note_world)
    try:
        records = pipeline.run()
    finally:
        sys.setprofile(None)
    assert not entered
    pairs = read_split(configs["rm"].config.data, "pairs", 0)
    assert 0 < records[2]["measured"]["pairs"] == len(pairs.test) < 8
    card = run.scorecard(pipeline, records, "laptop")
    assert card["sources"] == {
        "bits per byte, perplexity": f"test split of {given[0]} (documents)",
        "answers": f"test split of {given[1]} (conversations: the last question of each)",
        "gates of sft": f"test split of {given[1]} (conversations)",
        "gates of rm": f"test split of {given[2]} (pairs)",
    }
    assert [p["expected"] for p in card["prompts"]] == ["不知道。"] * len(card["prompts"])


def test_figures_of_the_world_say_so(finished: tuple[Path, list[dict], dict]) -> None:
    assert set(finished[2]["sources"].values()) == {
        f"the bundled world ({kind}), test split" for kind in ("documents", "prompts", "conversations")
    }


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--preset", "labtop"], "use --preset laptop"),
        (["--data", "missing.jsonl"], "missing.jsonl"),
        (["--set", "train.stepz=3"], "train.steps"),
        (["--seeds", "0"], "0"),
        (["--smoke", "--name", "mine"], "the smoke test has settings of its own, without --name"),
    ],
)
def test_wrong_options_are_refused_without_torch(tmp_path: Path, arguments: list[str], words: str) -> None:
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
