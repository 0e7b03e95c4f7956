"""`tinyllm runs lineage`: the tree, the status of every link, and a hash that changes with anything that affects the result."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import run_tree, small
from tinyllm.cli import run as command
from tinyllm.cli.printing.runs import tree as printed_tree
from tinyllm.diagnostics.runs.hashes import config_hash, data_hash, lineage_hash
from tinyllm.diagnostics.runs.lineage import trace_lineage
from tinyllm.errors import OK, USAGE
from tinyllm.train import checkpoint

STEP = run_tree.LAST


@pytest.fixture(autouse=True)
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The six runs, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return run_tree.copy_to(tmp_path)


def nodes(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for child in tree["children"]:
        yield from nodes(child)


def statuses(given: Path) -> dict[str, str]:
    return {node["name"]: node["status"] for node in nodes(trace_lineage(str(given))["tree"])}


def hash_of(run: Path) -> str:
    found = trace_lineage(str(run))
    assert found["lineage"] is not None, found["tree"]["unknown"]
    return found["lineage"]


# --- the tree --------------------------------------------------------------------------------------------------------------------


def test_tree_reaches_pretraining_and_data_and_has_both_parents_of_ppo() -> None:
    found = trace_lineage("ppo-both")["tree"]
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
    # talk is also the parent of judge, and is expanded only once
    again = judge["children"][0]
    assert (again["name"], again["repeated"], again["children"]) == ("sft/full/talk", True, [])
    assert again["lineage"] == parent["lineage"] == hash_of(run_tree.TALK)


def test_tree_is_printed(capsys: pytest.CaptureFixture) -> None:
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
    assert last == f"lineage {hash_of(run_tree.PPO)}"


def test_many_unchanged_files_are_one_line() -> None:
    common = {"seed": None, "recorded": "a" * 64, "now": "b" * 64, "moved_to": None, "children": []}
    files = [
        {"kind": "data", "name": f"{i:02}.txt", "status": "changed" if i == 7 else "ok"} | common for i in range(20)
    ]
    lines = list(printed_tree({"kind": "data", "name": "shards", "status": "ok", **common, "children": files}))
    assert [line.split()[2] for line in lines[1:5]] == ["00.txt", "01.txt", "02.txt", "07.txt"]
    assert lines[5:] == ["└─ 16 more files  ok"]
    few = list(printed_tree({"kind": "data", "name": "shards", "status": "ok", **common, "children": files[:8]}))
    assert (len(few), few[-1].split()[2]) == (9, "07.txt")


def test_every_link_has_its_status(capsys: pytest.CaptureFixture) -> None:
    os.rename(run_tree.BASE, run_tree.BASE.with_name("renamed"))
    shutil.rmtree(run_tree.JUDGE)
    with Path("talk.jsonl").open("a") as file:
        file.write("\n")
    run_tree.edit_json(Path("runs/data/base/shards/manifest.json"), tokenizer_sha256="0" * 64)
    found = {node["path"]: node for node in nodes(trace_lineage("ppo-both")["tree"])}
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
    gone = f"its reward model {run_tree.JUDGE / STEP} is gone"
    assert out.splitlines()[-1] == f"lineage unknown: rlhf/online/ppo-both: {gone}"


def test_bundled_world_is_made_and_not_compared(capsys: pytest.CaptureFixture) -> None:
    run_tree.edit_json(run_tree.TALK / "run.json", data=[{"source": "world:20", "seed": 3}])
    assert statuses(run_tree.TALK)["world:20"] == "made"
    assert command(["runs", "lineage", "sft/full/talk"]) == OK
    assert "data world:20 seed 3  made" in capsys.readouterr().out


def test_changed_parent_makes_the_hash_unknown() -> None:
    before = hash_of(run_tree.TALK)
    os.rename(run_tree.BASE, run_tree.BASE.with_name("base~1"))
    run_tree.train_base(seed=1)
    assert hash_of(run_tree.TALK) == before  # found under its new name
    shutil.rmtree(run_tree.BASE.with_name("base~1"))
    found = trace_lineage(str(run_tree.TALK))
    parent = found["tree"]["children"][0]
    assert parent["status"] == "changed"
    assert parent["now"] == checkpoint.fingerprint(run_tree.BASE / STEP) != parent["recorded"]
    assert found["lineage"] is None
    assert "is changed" in found["tree"]["unknown"]


def test_moving_all_runs_together_changes_nothing(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = hash_of(run_tree.PPO)
    shutil.copytree(tree / "runs", tree / "copy/runs", symlinks=True)
    monkeypatch.chdir(tree / "runs")
    found = trace_lineage(str(tree / "copy" / run_tree.PPO))
    assert found["lineage"] == before
    kinds = {node["kind"]: node["status"] for node in nodes(found["tree"])}
    assert (kinds["parent"], kinds["reward model"]) == ("ok", "ok")


@pytest.mark.parametrize("absolute", [False, True])
def test_cyclic_ancestors_are_reported(absolute: bool, tree: Path, capsys: pytest.CaptureFixture) -> None:
    for run, parent in ((run_tree.TALK, run_tree.JUDGE), (run_tree.JUDGE, run_tree.TALK)):
        path = tree / parent / STEP if absolute else parent / STEP
        run_tree.edit_json(run / "run.json", parent={"checkpoint": str(path), "manifest_sha256": None})
    for run in (run_tree.TALK, run_tree.JUDGE, run_tree.PPO):
        found = trace_lineage(str(run))
        assert found["lineage"] is None
        assert "it is its own ancestor" in found["tree"]["unknown"]
        assert len(list(nodes(found["tree"]))) < 12
    assert command(["runs", "lineage", "judge"]) == OK
    assert command(["runs", "verify", "judge"]) == OK


def test_generations_are_limited() -> None:
    facts = json.loads((run_tree.TALK / "run.json").read_text())
    previous = run_tree.TALK
    for i in range(100):
        run = Path(f"runs/sft/full/g{i}")
        (run / STEP).mkdir(parents=True)
        shutil.copy(run_tree.TALK / "config.yaml", run)
        parent = {"checkpoint": str(previous / STEP), "manifest_sha256": None}
        (run / "run.json").write_text(json.dumps({**facts, "parent": parent}))
        previous = run
    assert trace_lineage("g59")["lineage"] is not None
    found = trace_lineage("g99")
    assert found["lineage"] is None
    assert "more than 64 generations" in found["tree"]["unknown"]
    assert sum(node["kind"] != "data" for node in nodes(found["tree"])) == 65


def test_missing_record_makes_the_hash_unknown_with_its_reason() -> None:
    facts = (run_tree.TALK / "run.json").read_text()
    for key in ("seed", "tokenizer_sha256", "data", "parent"):
        (run_tree.TALK / "run.json").write_text(facts)
        run_tree.edit_json(run_tree.TALK / "run.json", **{key: None})
        found = trace_lineage(str(run_tree.TALK))
        assert found["lineage"] is None
        assert f"no {key.partition('_')[0]} on record" in found["tree"]["unknown"]
        assert (
            found["tree"]["unknown"] == trace_lineage(str(run_tree.DPO))["tree"]["unknown"]
        )  # nor has its child a hash


def test_run_is_found_by_checkpoint_or_by_the_manifest_of_a_copy() -> None:
    shutil.copytree(run_tree.TALK / "checkpoints/step-00000002", "deployed")
    for given, step in ((run_tree.TALK, None), (run_tree.TALK / STEP, 4), (Path("deployed"), 2)):
        found = trace_lineage(str(given))
        assert (found["tree"]["name"], found["tree"]["step"], found["lineage"]) == (
            "sft/full/talk",
            step,
            hash_of(run_tree.TALK),
        )
    assert command(["runs", "lineage", "nowhere"]) == USAGE


def test_parent_without_manifest_counts_by_its_weights() -> None:
    """Its present content counts, as nothing was recorded. Its path does not."""
    shutil.copytree(run_tree.BASE / STEP, "theirs", ignore=shutil.ignore_patterns("manifest.json", "trainer"))
    run = run_tree.train_talk("own", Path("theirs"))
    [parent, _] = trace_lineage(str(run))["tree"]["children"]
    assert (parent["kind"], parent["name"], parent["status"]) == ("parent", "theirs", "unrecorded")
    first = hash_of(run)
    assert first not in (None, hash_of(run_tree.TALK))
    os.rename("theirs", "elsewhere")
    assert (statuses(run)["theirs"], trace_lineage(str(run))["lineage"]) == ("gone", None)
    run_tree.edit_json(run / "run.json", parent={"checkpoint": "elsewhere", "manifest_sha256": None})
    assert hash_of(run) == first
    run_tree.flip_last_byte(Path("elsewhere/model.safetensors"))
    assert hash_of(run) != first


# --- the hash --------------------------------------------------------------------------------------------------------------------


def test_hash_does_not_depend_on_folder_or_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other/place"
    other.mkdir(parents=True)
    run_tree.write_records(other)
    for name in ("texts", "talk"):
        os.rename(other / f"{name}.jsonl", other / f"my-{name}.jsonl")
    first = (hash_of(run_tree.BASE), hash_of(run_tree.TALK))
    monkeypatch.chdir(other)
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    base = run_tree.run_stage(
        run_tree.pretrain,
        run_tree.make_config(
            run_tree.PretrainConfig, "my-texts.jsonl", "mine", model=shape, train={"keep": 3, "log_every": 2}
        ),
    )
    talk = run_tree.run_stage(
        run_tree.sft,
        run_tree.make_config(run_tree.SftConfig, str(other / "my-talk.jsonl"), "mine", parent=base, device="cpu"),
    )
    assert (hash_of(base), hash_of(talk)) == first


def with_one_more_record() -> Path:
    lines = Path("talk.jsonl").read_text().splitlines(keepends=True)
    Path("talk.jsonl").write_text("".join([*lines, lines[0]]))
    return run_tree.train_talk("b")


def with_another_learning_rate() -> Path:
    optim = small.common(Path("talk.jsonl"))["optim"]
    return run_tree.train_talk("b", optim=optim.model_copy(update={"learning_rate": 2e-2}))


def with_another_grandparent() -> Path:
    parent = run_tree.train_talk("c", parent=run_tree.train_base("other", seed=1))
    return run_tree.run_stage(run_tree.rm, run_tree.make_config(run_tree.RmConfig, "pairs.jsonl", "b", parent=parent))


def with_other_data_in_the_middle() -> Path:
    """The run started with other data, and ends with the same data in run.json as the run it is compared with."""
    kept = Path("talk.jsonl").read_text()
    Path("talk.jsonl").write_text(kept.replace("red", "blue"))
    run = run_tree.train_talk("b", train={"save_every": 1})
    shutil.rmtree(run / run_tree.LAST)
    Path("talk.jsonl").write_text(kept)
    return run_tree.train_talk("b", train={"save_every": 1}, call={"allow_data_change": True})


CHANGES = {
    "seed": lambda: run_tree.train_talk("b", seed=1),
    "steps": lambda: run_tree.train_talk("b", train={"steps": 3}),
    "learning rate": with_another_learning_rate,
    "data": with_one_more_record,
    "other data in the middle": with_other_data_in_the_middle,
    "another parent": lambda: run_tree.train_talk("b", parent=run_tree.train_base("other", seed=1)),
    "another step of the parent": lambda: run_tree.train_talk("b", parent=run_tree.BASE / "checkpoints/step-00000002"),
    "the parent's parent": with_another_grandparent,
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_gives_another_hash(change: str) -> None:
    run = CHANGES[change]()
    same_stage = run_tree.JUDGE if "rm" in run.parts else run_tree.TALK
    assert hash_of(run) != hash_of(same_stage)


def test_repeated_run_has_the_same_hash() -> None:
    """So only the changes above make the difference."""
    assert hash_of(run_tree.train_talk("b")) == hash_of(run_tree.TALK)


def test_config_hash_ignores_settings_that_do_not_affect_the_result() -> None:
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


def test_data_hash_depends_on_content_and_order() -> None:
    one, two = (
        {"source": "a", "sha256": "1", "bytes": 1, "records": 1},
        {"source": "b", "sha256": "2", "bytes": 1, "records": 1},
    )
    assert data_hash([one, two]) == data_hash([{**one, "source": "x"}, two]) != data_hash([two, one])
    world = {"source": "world:20", "seed": 0}
    assert data_hash([world]) != data_hash([{**world, "seed": 1}]) != data_hash([{**world, "source": "world:21"}])
    shards = {"shards": "runs/data/a/shards", "fingerprint": "1"}
    assert data_hash([shards]) == data_hash([{**shards, "shards": "b"}]) != data_hash([{**shards, "fingerprint": "2"}])


def test_lineage_hash_has_a_fixed_value() -> None:
    """Hashes that users recorded must stay valid after an update."""
    given = {"config": "c", "data": "d", "tokenizer": "t", "seed": 0}
    assert lineage_hash(**given, parent=["p", 4]) == "55d39558801aeb5a9d99b2645ec68e94ddd3d01d2cd6de96b20e53d92a48c60e"
    parts = [lineage_hash(**{**given, key: "x"}) for key in given] + [
        lineage_hash(**given, parent=["p", n]) for n in (4, 5)
    ]
    assert len({lineage_hash(**given), lineage_hash(**given, reward_model=["p", 4]), *parts}) == 8
