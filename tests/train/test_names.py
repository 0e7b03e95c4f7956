"""What a user may write for a run or a checkpoint, and what is said about a name that is none."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tinyllm.errors import USAGE, UserError
from tinyllm.stages.parents import can_start_from
from tinyllm.train import names
from tinyllm.train.names import RUNS, Found, find


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def made(place: str, kind: str = "chat", steps: tuple[int, ...] = (5, 10)) -> Path:
    """A run directory as `find` sees one: names of files, and the kind of its model."""
    run = RUNS / place
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    (run / "config.yaml").write_text("name: x\n")
    for step in steps:
        folder = run / "checkpoints" / f"step-{step:08d}"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        (folder / "tinyllm.json").write_text(json.dumps({"format": 1, "stage": "x", "kind": kind}))
    for link, step in (("ckpt_best", steps[:1]), ("ckpt_latest", steps[-1:])):
        if step:
            (run / "checkpoints" / link).symlink_to(f"step-{step[0]:08d}")
    return run


def language_model(run: Path) -> bool:
    return can_start_from("chat", run)


@pytest.mark.parametrize(
    "name",
    [
        "runs/sft/full/mine",
        "runs/sft/full/mine/",
        "./runs/sft/full/mine",
        "{here}/runs/sft/full/mine",
        "sft/full/mine",
        "sft/full/mine/",
        "full/mine",
        "mine",
        "mine/",
        "runs/mine",
        "runs/sft/full/mine/checkpoints",
        "sft/full/mine/logs",
    ],
)
def test_every_way_to_write_a_run(name: str, tmp_path: Path) -> None:
    run = made("sft/full/mine")
    (run / "logs").mkdir()
    made("sft/full/other")
    found = find(name.format(here=tmp_path))
    assert found.run is not None
    assert found.run.resolve() == run.resolve()
    assert found.checkpoint is None


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("runs/sft/full/mine/checkpoints/step-00000005", "step-00000005"),
        ("runs/sft/full/mine/checkpoints/ckpt_latest", "ckpt_latest"),
        ("sft/full/mine/checkpoints/ckpt_best", "ckpt_best"),
        ("sft/full/mine/best", "ckpt_best"),
        ("mine/latest", "ckpt_latest"),
        ("mine/last/", "ckpt_latest"),
        ("mine/ckpt_best", "ckpt_best"),
        ("mine/step-00000010", "step-00000010"),
        ("runs/sft/full/mine/best", "ckpt_best"),
    ],
)
def test_every_way_to_write_a_checkpoint(name: str, target: str) -> None:
    run = made("sft/full/mine")
    assert find(name) == Found(find(name).run, run / "checkpoints" / target)
    assert find(name).run == run


def test_a_model_from_elsewhere_has_no_run() -> None:
    folder = Path("models/qwen")
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert find("models/qwen") == Found(None, folder)


@pytest.mark.parametrize("name", ["dpo-mine", "offline/dpo-mine", "mine", "offline/mine"])
def test_an_alignment_run_is_found_with_and_without_its_algorithm(name: str) -> None:
    run = made("rlhf/offline/dpo-mine")
    assert find(name).run == run


def test_a_name_of_several_runs_is_refused_with_all_of_them() -> None:
    for place in ("pretrain/mine", "sft/full/mine", "rlhf/online/grpo-mine"):
        made(place)
    with pytest.raises(UserError, match="there are 3 runs named 'mine'") as caught:
        find("mine", option="--checkpoint")
    assert caught.value.code == USAGE
    assert caught.value.fix == "use one of pretrain/mine, rlhf/online/grpo-mine, sft/full/mine"
    assert find("full/mine").run == RUNS / "sft/full/mine"


def test_a_run_that_the_command_cannot_use_does_not_make_a_name_ambiguous() -> None:
    made("sft/full/mine")
    made("rlhf/rm/mine", kind="reward_model")
    made("pretrain/mine", kind="base", steps=())
    assert find("mine", accepts=language_model).run == RUNS / "sft/full/mine"
    assert find("mine", accepts=partial(can_start_from, "reward model")).run == RUNS / "rlhf/rm/mine"
    with pytest.raises(UserError, match="there are 3 runs"):
        find("mine")


@pytest.mark.parametrize(
    ("name", "accepts", "fix"),
    [
        ("talkk", language_model, "use --checkpoint sft/full/talk"),
        ("sft/full/takl", language_model, "use --checkpoint sft/full/talk"),
        ("sft/talk", language_model, "use --checkpoint sft/full/talk"),
        ("talk-rr", language_model, "use --checkpoint sft/full/talk"),  # the nearest name is no language model
        ("talk-rr", partial(can_start_from, "reward model"), "use --checkpoint rlhf/rm/talk-r"),
        ("talk-empt", language_model, "use --checkpoint sft/full/talk"),  # the nearest has no checkpoint
        ("with spac", language_model, "use --checkpoint 'sft/full/with space'"),
        ("runs/sft/full/talk/config.yaml", language_model, "use --checkpoint sft/full/talk"),
    ],
)
def test_a_wrong_name_is_told_the_nearest_that_the_command_accepts(
    name: str, accepts: Callable[[Path], bool], fix: str
) -> None:
    for place in ("pretrain/base", "sft/full/talk", "sft/full/with space"):
        made(place)
    made("sft/full/talk-empty", steps=())
    made("rlhf/rm/talk-r", kind="reward_model")
    with pytest.raises(UserError, match="there is no run or checkpoint") as caught:
        find(name, option="--checkpoint", accepts=accepts)
    assert caught.value.fix == fix
    assert accepts(RUNS / fix.rpartition("checkpoint ")[2].strip("'"))


def test_a_folder_of_runs_is_not_one_of_them() -> None:
    made("sft/full/a")
    made("sft/full/b")
    both = "use one of sft/full/a, sft/full/b"
    of_many = "choose one of the 2 listed by `tinyllm runs list --all`, such as sft/full/b"
    for name, fix in (("runs/sft", both), ("sft", both), ("full", of_many)):
        with pytest.raises(UserError) as caught:
            find(name)
        assert caught.value.fix == fix, name
    with pytest.raises(UserError, match="sft is a folder of 2 runs"):
        find("sft")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "/", "x" * 5000, "a\0b", "../../etc", "mine/best", "best", "runs", "~"]
)
def test_names_that_nothing_has_are_refused_without_a_traceback(name: str) -> None:
    with pytest.raises(UserError) as caught:
        find(name, option="--checkpoint")
    assert caught.value.code == USAGE
    is_path = name.startswith((".", "/", "~"))
    model = "or name the folder of a model, or owner/name of a hub"
    assert caught.value.fix.startswith("check the path: " if is_path else f"run `{names.MAKE}` first, {model}")


def test_a_missing_choice_names_those_that_exist() -> None:
    made("sft/full/mine")
    with pytest.raises(UserError, match="there is no checkpoint 'step-00000007'") as caught:
        find("mine/step-00000007")
    assert caught.value.fix == "use one of best, latest, step-00000005, step-00000010"


def test_a_path_wins_over_a_name() -> None:
    made("sft/full/mine")
    Path("mine").mkdir()
    (Path("mine") / "config.json").write_text("{}")
    assert find("mine") == Found(None, Path("mine"))
    (Path("mine") / "config.json").unlink()  # an empty folder of that name is not what is meant
    assert find("mine").run == RUNS / "sft/full/mine"
