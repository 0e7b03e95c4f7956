"""`tinyllm runs lineage`: the whole tree, what has become of each link, and a hash that is equal exactly when what shaped the run is."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import family
import small

from tinyllm.cli import run as command
from tinyllm.errors import OK, USAGE
from tinyllm.stages.runs.hashes import config_hash, data_hash, lineage_hash
from tinyllm.stages.runs.lineage import lineage
from tinyllm.train import checkpoint

STEP = family.LAST


@pytest.fixture(autouse=True)
def life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All six runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return family.copied(tmp_path)


def nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree["children"]:
        yield from nodes(child)


def statuses(given: Path) -> dict[str, str]:
    return {node["name"]: node["status"] for node in nodes(lineage(str(given))["tree"])}


def hash_of(run: Path) -> str:
    found = lineage(str(run))
    assert found["lineage"] is not None, found["tree"]["unknown"]
    return found["lineage"]


# --- the tree --------------------------------------------------------------------------------------------------------------------


def test_the_tree_goes_up_to_pretraining_and_the_data_and_has_two_parents_where_there_were_two() -> None:
    found = lineage("ppo-both")["tree"]
    parent, judge, prompts = found["children"]
    assert [(n["kind"], n["name"], n["step"]) for n in (found, parent, judge)] == [
        ("run", "rlhf/online/ppo-both", None),
        ("parent", "sft/full/talk", 4),
        ("reward model", "rlhf/rm/judge", 4),
    ]
    pretrain, talk = parent["children"]
    assert (pretrain["kind"], pretrain["name"]) == ("parent", "pretrain/base")
    [shards] = pretrain["children"]
    assert (shards["kind"], shards["path"]) == ("data", "runs/data/base/shards")
    assert [source["path"] for source in shards["children"]] == ["texts.jsonl"]
    assert (prompts["path"], talk["path"]) == ("prompts.jsonl", "talk.jsonl")
    assert {node["status"] for node in nodes(found)} == {"ok"}
    for node in (parent, judge, pretrain):
        assert node["recorded"] == node["now"] == checkpoint.fingerprint(Path(node["path"]) / STEP)
    # talk is the parent of judge, too, and is not spelled out twice
    again = judge["children"][0]
    assert (again["name"], again["repeated"], again["children"]) == ("sft/full/talk", True, [])
    assert again["lineage"] == parent["lineage"] == hash_of(family.TALK)


def test_it_is_printed_as_a_tree(capsys: pytest.CaptureFixture) -> None:
    assert command(["runs", "lineage", "ppo-both"]) == OK
    *lines, last = capsys.readouterr().out.splitlines()
    assert [re.split(r"(?<=\w)  ", line)[0] for line in lines] == [
        "run rlhf/online/ppo-both",
        "├─ parent sft/full/talk step 4",
        "│  ├─ parent pretrain/base step 4",
        "│  │  └─ data runs/data/base/shards",
        "│  │     └─ data texts.jsonl",
        "│  └─ data talk.jsonl",
        "├─ reward model rlhf/rm/judge step 4",
        "│  ├─ parent sft/full/talk step 4",
        "│  └─ data pairs.jsonl",
        "└─ data prompts.jsonl",
    ]
    assert "(as above)" in lines[7]
    assert last == f"lineage {hash_of(family.PPO)}"


def test_each_link_says_what_has_become_of_it(capsys: pytest.CaptureFixture) -> None:
    os.rename(family.BASE, family.BASE.with_name("renamed"))
    shutil.rmtree(family.JUDGE)
    with Path("talk.jsonl").open("a") as file:
        file.write("\n")
    family.edit(Path("runs/data/base/shards/manifest.json"), tokenizer_sha256="0" * 64)
    found = {node["path"]: node for node in nodes(lineage("ppo-both")["tree"])}
    assert {Path(path).name: node["status"] for path, node in found.items()} == {
        "ppo-both": "ok",
        "talk": "ok",
        "renamed": "moved",
        "shards": "changed",
        "texts.jsonl": "ok",
        "talk.jsonl": "changed",
        "step-00000004": "gone",
        "prompts.jsonl": "ok",
    }
    assert found["runs/pretrain/renamed"]["moved_to"] == f"runs/pretrain/renamed/{STEP}"
    assert command(["runs", "lineage", "ppo-both"]) == OK
    out = capsys.readouterr().out
    assert f"moved to runs/pretrain/renamed/{STEP}" in out
    gone = f"its reward model {family.JUDGE / STEP} is gone"
    assert out.splitlines()[-1] == f"lineage unknown: rlhf/online/ppo-both: {gone}"


def test_a_parent_that_changed_is_named_and_makes_the_hash_unknown() -> None:
    before = hash_of(family.TALK)
    os.rename(family.BASE, family.BASE.with_name("base~1"))
    family.base(seed=1)
    assert hash_of(family.TALK) == before  # found again under its other name
    shutil.rmtree(family.BASE.with_name("base~1"))
    found = lineage(str(family.TALK))
    parent = found["tree"]["children"][0]
    assert parent["status"] == "changed"
    assert parent["now"] == checkpoint.fingerprint(family.BASE / STEP) != parent["recorded"]
    assert found["lineage"] is None
    assert "is changed" in found["tree"]["unknown"]


def test_moving_the_whole_tree_changes_nothing(life: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_of(family.PPO)
    shutil.copytree(life / "runs", life / "copy/runs", symlinks=True)
    monkeypatch.chdir(life / "runs")
    found = lineage(str(life / "copy" / family.PPO))
    assert found["lineage"] == before
    kinds = {node["kind"]: node["status"] for node in nodes(found["tree"])}
    assert (kinds["parent"], kinds["reward model"]) == ("ok", "ok")


@pytest.mark.parametrize("absolute", [False, True])
def test_ancestors_in_a_circle_end(absolute: bool, life: Path, capsys: pytest.CaptureFixture) -> None:
    for run, parent in ((family.TALK, family.JUDGE), (family.JUDGE, family.TALK)):
        path = life / parent / STEP if absolute else parent / STEP
        family.edit(run / "run.json", parent={"checkpoint": str(path), "manifest_sha256": None})
    for run in (family.TALK, family.JUDGE, family.PPO):
        found = lineage(str(run))
        assert found["lineage"] is None
        assert "it is its own ancestor" in found["tree"]["unknown"]
        assert len(list(nodes(found["tree"]))) < 12
    assert command(["runs", "lineage", "judge"]) == OK
    assert command(["runs", "verify", "judge"]) == OK


def test_a_hundred_generations_are_too_many() -> None:
    facts = json.loads((family.TALK / "run.json").read_text())
    previous = family.TALK
    for i in range(100):
        run = Path(f"runs/sft/full/g{i}")
        (run / STEP).mkdir(parents=True)
        shutil.copy(family.TALK / "config.yaml", run)
        parent = {"checkpoint": str(previous / STEP), "manifest_sha256": None}
        (run / "run.json").write_text(json.dumps({**facts, "parent": parent}))
        previous = run
    assert lineage("g59")["lineage"] is not None
    found = lineage("g99")
    assert found["lineage"] is None
    assert "more than 64 generations" in found["tree"]["unknown"]
    assert sum(node["kind"] != "data" for node in nodes(found["tree"])) == 65


def test_without_a_record_there_is_no_hash_and_the_reason_is_given() -> None:
    facts = (family.TALK / "run.json").read_text()
    for key in ("seed", "tokenizer_sha256", "data", "parent"):
        (family.TALK / "run.json").write_text(facts)
        family.edit(family.TALK / "run.json", **{key: None})
        found = lineage(str(family.TALK))
        assert found["lineage"] is None
        assert f"no {key.partition('_')[0]} on record" in found["tree"]["unknown"]
        assert found["tree"]["unknown"] == lineage(str(family.DPO))["tree"]["unknown"]  # nor has its child one


def test_a_run_or_checkpoint_can_be_named_and_one_that_was_copied_elsewhere_is_known_by_its_manifest() -> None:
    shutil.copytree(family.TALK / "checkpoints/step-00000002", "deployed")
    for given, step in ((family.TALK, None), (family.TALK / STEP, 4), (Path("deployed"), 2)):
        found = lineage(str(given))
        assert (found["tree"]["name"], found["tree"]["step"], found["lineage"]) == (
            "sft/full/talk",
            step,
            hash_of(family.TALK),
        )
    assert command(["runs", "lineage", "nowhere"]) == USAGE


def test_a_model_from_elsewhere_is_known_by_its_weights() -> None:
    """It has no record, so what is there now stands for what was there; where it lies does not matter, what is in it does."""
    shutil.copytree(family.BASE / STEP, "theirs", ignore=shutil.ignore_patterns("manifest.json", "trainer"))
    run = family.talk("own", Path("theirs"))
    [parent, _] = lineage(str(run))["tree"]["children"]
    assert (parent["kind"], parent["name"], parent["status"]) == ("parent", "theirs", "unrecorded")
    first = hash_of(run)
    assert first not in (None, hash_of(family.TALK))
    os.rename("theirs", "elsewhere")
    assert (statuses(run)["theirs"], lineage(str(run))["lineage"]) == ("gone", None)
    family.edit(run / "run.json", parent={"checkpoint": "elsewhere", "manifest_sha256": None})
    assert hash_of(run) == first
    family.flip(Path("elsewhere/model.safetensors"))
    assert hash_of(run) != first


# --- the hash --------------------------------------------------------------------------------------------------------------------


def test_the_same_in_another_folder_under_another_name_has_the_same_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other/place"
    other.mkdir(parents=True)
    family.data(other)
    for name in ("texts", "talk"):
        os.rename(other / f"{name}.jsonl", other / f"my-{name}.jsonl")
    first = (hash_of(family.BASE), hash_of(family.TALK))
    monkeypatch.chdir(other)
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    base = family.trained(
        family.pretrain,
        family.settings(
            family.PretrainConfig, "my-texts.jsonl", "mine", model=shape, train={"keep": 3, "log_every": 2}
        ),
    )
    talk = family.trained(
        family.sft, family.settings(family.SftConfig, str(other / "my-talk.jsonl"), "mine", parent=base, device="cpu")
    )
    assert (hash_of(base), hash_of(talk)) == first


def with_one_more_record() -> Path:
    lines = Path("talk.jsonl").read_text().splitlines(keepends=True)
    Path("talk.jsonl").write_text("".join([*lines, lines[0]]))
    return family.talk("b")


def with_another_learning_rate() -> Path:
    optim = small.common(Path("talk.jsonl"))["optim"]
    return family.talk("b", optim=optim.model_copy(update={"learning_rate": 2e-2}))


def with_another_grandparent() -> Path:
    parent = family.talk("c", parent=family.base("other", seed=1))
    return family.trained(family.rm, family.settings(family.RmConfig, "pairs.jsonl", "b", parent=parent))


def with_other_data_in_the_middle() -> Path:
    """It ends with the same data on record as the run it is compared with, and began with others."""
    kept = Path("talk.jsonl").read_text()
    Path("talk.jsonl").write_text(kept.replace("red", "blue"))
    run = family.talk("b", train={"save_every": 1})
    shutil.rmtree(run / family.LAST)
    Path("talk.jsonl").write_text(kept)
    return family.talk("b", train={"save_every": 1}, call={"allow_data_change": True})


CHANGES = {
    "seed": lambda: family.talk("b", seed=1),
    "steps": lambda: family.talk("b", train={"steps": 3}),
    "learning rate": with_another_learning_rate,
    "data": with_one_more_record,
    "other data in the middle": with_other_data_in_the_middle,
    "another parent": lambda: family.talk("b", parent=family.base("other", seed=1)),
    "another step of the parent": lambda: family.talk("b", parent=family.BASE / "checkpoints/step-00000002"),
    "the parent's parent": with_another_grandparent,
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_one_change_gives_another_hash(change: str) -> None:
    run = CHANGES[change]()
    same_stage = family.JUDGE if "rm" in run.parts else family.TALK
    assert hash_of(run) != hash_of(same_stage)


def test_a_second_time_gives_the_same_hash() -> None:
    """What the changes above are compared with: nothing but the change makes the difference."""
    assert hash_of(family.talk("b")) == hash_of(family.TALK)


def test_which_settings_count() -> None:
    base = {
        "name": "a", "seed": 0, "device": "cpu", "parent": "x", "algorithm": "grpo", "grpo": {"clip": 0.2}, "ppo": {"clip": 0.2},
        "train": {"steps": 4, "keep": 2, "log_every": 1, "save_every": 2, "compile": "off", "precision": "fp32"},
        "data": {"train": ["world:20"], "val": [], "max_length": 64}, "rollout": {"keep": True, "epochs": 1},
    }  # fmt: skip

    def hashed(**changes: Any) -> str:
        found = {
            key: value if not isinstance(value, dict) else {**value, **changes.get(key, {})}
            for key, value in base.items()
        }
        return config_hash(found | {k: v for k, v in changes.items() if not isinstance(v, dict)}, of_shards=False)

    for same in (
        {"name": "b"}, {"seed": 1}, {"device": "cuda"}, {"parent": "y"}, {"ppo": {"clip": 0.3}}, {"rollout": {"keep": False}},
        {"train": {"keep": 3, "log_every": 5, "save_every": 1, "compile": "auto", "keep_every": 10}},
    ):  # fmt: skip
        assert hashed(**same) == hashed(), same
    for other in (
        {"algorithm": "ppo"}, {"grpo": {"clip": 0.3}}, {"train": {"steps": 5}}, {"train": {"precision": "bf16"}}, {"task": ["sort"]},
        {"data": {"train": ["world:21"]}}, {"data": {"val": ["own.jsonl"]}}, {"data": {"max_length": 65}}, {"rollout": {"epochs": 2}},
    ):  # fmt: skip
        assert hashed(**other) != hashed(), other
    assert (
        hashed(data={"train": ["a.jsonl"]})
        == hashed(data={"train": ["b/c.jsonl"]})
        != hashed(data={"train": ["a", "b"]})
    )
    of_shards = [
        config_hash({**base, "data": {**base["data"], "train": [s]}}, of_shards=True) for s in ("a", "world:9")
    ]
    assert of_shards[0] == of_shards[1] != config_hash({**base, "data": {"max_length": 65}}, of_shards=True)
    weighted = config_hash({**base, "data": {**base["data"], "weights": [1.0, 2.0]}}, of_shards=True)
    assert weighted != of_shards[0]  # the mixture is made while training, not in the shards


def test_data_count_by_content_and_order() -> None:
    one, two = (
        {"source": "a", "sha256": "1", "bytes": 1, "records": 1},
        {"source": "b", "sha256": "2", "bytes": 1, "records": 1},
    )
    assert data_hash([one, two]) == data_hash([{**one, "source": "x"}, two]) != data_hash([two, one])
    world = {"source": "world:20", "seed": 0}
    assert data_hash([world]) != data_hash([{**world, "seed": 1}]) != data_hash([{**world, "source": "world:21"}])
    shards = {"shards": "runs/data/a/shards", "fingerprint": "1"}
    assert data_hash([shards]) == data_hash([{**shards, "shards": "b"}]) != data_hash([{**shards, "fingerprint": "2"}])


def test_the_hash_is_what_its_docstring_says() -> None:
    """A fixed value: a hash that was written down must still be found after an update."""
    given = {"config": "c", "data": "d", "tokenizer": "t", "seed": 0}
    assert lineage_hash(**given, parent=["p", 4]) == "55d39558801aeb5a9d99b2645ec68e94ddd3d01d2cd6de96b20e53d92a48c60e"
    parts = [lineage_hash(**{**given, key: "x"}) for key in given] + [
        lineage_hash(**given, parent=["p", n]) for n in (4, 5)
    ]
    assert len({lineage_hash(**given), lineage_hash(**given, reward_model=["p", 4]), *parts}) == 8
