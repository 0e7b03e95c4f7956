"""`tinyllm runs list | show`: what is in a table, in which order; broken, foreign and hostile directories; speed, and what is imported."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import family
import histories

from tinyllm.cli import run as command
from tinyllm.errors import USAGE
from tinyllm.stages import explain, runs
from tinyllm.train import lock


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def life(tmp_path: Path) -> Path:
    """All six runs, in the current folder."""
    return family.copied(tmp_path)


def tinyllm(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "NO_COLOR": "1", **environment}
    call = [sys.executable, "-m", "tinyllm", *arguments]
    return subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def listed(*, everything: bool = False, folder: Path | None = None) -> dict[str, dict]:
    return {row["name"]: row for row in runs.list_(folder, everything=everything)["runs"]}


# --- list ------------------------------------------------------------------------------------------------------------------------


def test_a_row_says_stage_status_steps_and_what_moved_as_explain_does(life: Path) -> None:
    rows = listed()
    assert list(rows) == [run.relative_to("runs").as_posix() for run in family.RUNS]  # in the order they were trained
    assert [row["stage"] for row in rows.values()] == ["pretrain", "sft", "sft-lora", "rm", "dpo", "ppo"]
    for row in rows.values():
        assert (row["status"], row["step"], row["steps"], row["faults"], row["pid"]) == ("completed", 4, 4, [], None)
        said = explain.run(Path(row["run"]))["moved"]
        assert row["moved"] == {key: said[key] for key in ("what", "from", "to")}
        assert row["seconds"] > 0


def test_the_size_is_that_of_the_files_each_counted_once(life: Path) -> None:
    before = listed()["rlhf/offline/dpo-pairs"]["bytes"]
    real = [p for p in family.DPO.rglob("*") if p.is_file() and not any(part.startswith("ckpt_") for part in p.parts)]
    links = 2 * len("step-00000004")
    assert before == sum(p.stat().st_size for p in real) + links
    os.link(family.DPO / family.LAST / "model.safetensors", family.DPO / "again.safetensors")
    assert listed()["rlhf/offline/dpo-pairs"]["bytes"] == before
    (family.DPO / "more").write_bytes(b"1234567")
    assert listed()["rlhf/offline/dpo-pairs"]["bytes"] == before + 7


def test_the_same_in_a_pipe_one_line_a_run(life: Path) -> None:
    done = tinyllm("runs", cwd=life)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["run", *(run.relative_to("runs").as_posix() for run in family.RUNS)]
    assert "rewards/margins 0 -> 0." in lines[5]
    assert "4/4" in lines[1]
    assert lines == tinyllm("runs", "list", cwd=life).stdout.splitlines()


def test_the_newest_is_last_and_only_a_folder_s_runs_if_one_is_named(life: Path) -> None:
    family.edit(family.BASE / "run.json", ended="2090-01-01T00:00:00+0000")
    family.edit(family.TALK / "run.json", ended="2090-01-01T00:00:00-0100")  # an hour later
    assert list(listed())[-2:] == ["pretrain/base", "sft/full/talk"]
    assert list(listed(folder=Path("runs/sft"))) == ["sft/peft/lora/talk", "sft/full/talk"]
    assert list(listed(folder=life / "runs/sft")) == ["sft/peft/lora/talk", "sft/full/talk"]
    assert command(["runs", "list", "runs/stf"]) == USAGE
    shutil.copytree(family.JUDGE, family.TALK / "logs/copy")  # what is inside a run is part of it
    assert len(listed()) == 6


def test_rehearsals_and_what_was_moved_aside_are_hidden(capsys: pytest.CaptureFixture) -> None:
    for name in ("pretrain/fast-dev-run", "rlhf/online/grpo-fast-dev-run", "pretrain/mine~1"):
        histories.write(Path("runs") / name, "pretrain")
    assert listed() == {}
    assert len(listed(everything=True)) == 3
    assert command(["runs", "list"]) == 0
    assert capsys.readouterr().out == "3 rehearsals or moved-aside runs hidden: --all\n"


@pytest.mark.parametrize("folder", ["", "runs", "runs/data/mine/shards"])
def test_no_runs_is_said_with_what_makes_one(folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    done = tinyllm("runs", "list", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "no runs yet: `tinyllm pretrain --fast-dev-run` makes one in a few seconds\n"
    assert json.loads(tinyllm("runs", "list", "--json", cwd=tmp_path).stdout)["runs"] == []


def test_a_run_is_running_while_somebody_holds_it_and_interrupted_after(tmp_path: Path) -> None:
    run = histories.write(Path("runs/pretrain/mine"), "pretrain")
    family.edit(run / "run.json", status="running", ended=None)
    assert listed()["pretrain/mine"]["status"] == "interrupted"
    lock.claim(run)
    try:
        row = json.loads(tinyllm("runs", "list", "--json", cwd=tmp_path).stdout)["runs"][0]
        assert (row["status"], row["pid"]) == ("running", os.getpid())
        assert f"running (pid {os.getpid()})" in tinyllm("runs", "list", cwd=tmp_path).stdout
    finally:
        lock.release(run)
    assert "interrupted" in tinyllm("runs", "list", cwd=tmp_path).stdout


def test_a_failed_run_says_why_in_its_first_words(capsys: pytest.CaptureFixture) -> None:
    run = histories.write(Path("runs/pretrain/mine"), "pretrain")
    family.edit(run / "run.json", status="failed", error="the loss is not a number at step 7, after " + "many " * 50)
    command(["runs", "list"])
    assert "failed: the loss is not a number at step 7, after man...  " in capsys.readouterr().out


def test_of_a_run_that_did_not_finish_the_newest_checkpoint_knows_the_figures(life: Path) -> None:
    kept = listed()["sft/full/talk"]["moved"]
    family.edit(family.TALK / "run.json", status="running", before=None, best=None, last=None, seconds=None, ended=None)
    row = listed()["sft/full/talk"]
    assert (row["status"], row["step"], row["moved"], row["seconds"]) == ("interrupted", 4, kept, None)


def leads_away(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


HARM = {
    "no run.json": (lambda run: (run / "run.json").unlink(), "damaged", "run.json is missing"),
    "half a run.json": (lambda run: (run / "run.json").write_text('{"status": "comp'), "damaged", "run.json: "),
    "run.json is a list": (lambda run: (run / "run.json").write_text("[1, 2]"), "damaged", "run.json: not a JSON object"),
    "run.json is nested": (lambda run: (run / "run.json").write_text("[" * 200_000), "damaged", "run.json: "),
    "run.json is no text": (lambda run: (run / "run.json").write_bytes(b"\xff\xfe{}"), "damaged", "run.json: "),
    "run.json is a folder": (lambda run: ((run / "run.json").unlink(), (run / "run.json").mkdir()), "damaged", "run.json is missing"),
    "run.json leads away": (lambda run: leads_away(run / "run.json"), "damaged", "run.json: leads out of its folder"),
    "no config.yaml": (lambda run: (run / "config.yaml").unlink(), "completed", "config.yaml is missing"),
    "half a config.yaml": (lambda run: (run / "config.yaml").write_text("train: {steps: 1"), "completed", "config.yaml: cannot be read"),
    "a billion values": (lambda run: (run / "config.yaml").write_text("a: &a [1]\ntrain: [*a, *a]"), "completed", "aliases"),
}  # fmt: skip


@pytest.mark.parametrize("harm", HARM)
def test_a_damaged_run_is_listed_as_such(harm: str, life: Path, capsys: pytest.CaptureFixture) -> None:
    spoil, status, word = HARM[harm]
    spoil(family.TALK)
    row = listed()["sft/full/talk"]
    assert row["status"] == status
    assert len(row["faults"]) == 1
    assert word in row["faults"][0]
    assert command(["runs", "list"]) == 0
    assert command(["runs", "show", "runs/sft/full/talk"]) == 0
    assert f"{status}: " in capsys.readouterr().out


NONSENSE = ["x", 7, -1.5, True, None, [], {}, [1], {"a": "b"}, float("nan"), 10**400, "2026-13-77T99:99:99+0000"]


VERBS = (["list"], ["show", "ppo-both"], ["verify", "ppo-both"], ["lineage", "ppo-both"])
LINES = ("train: %s", "train: {steps: %s}", "data: %s", "algorithm: %s", "lora: %s", "train: {}\ndata: {train: %s}")


@pytest.mark.parametrize("shift", range(len(NONSENSE)))
def test_facts_and_settings_of_another_kind_than_ours_are_passed_over(shift: int, life: Path) -> None:
    """Every key is in turn every kind of nonsense, once at the top and once one level down."""
    facts, settings = json.loads((family.PPO / "run.json").read_text()), (family.PPO / "config.yaml").read_text()

    def nonsense(number: int) -> object:
        return NONSENSE[(number + shift) % len(NONSENSE)]

    tops = {key: nonsense(number) for number, key in enumerate(facts)}
    below = {k: {i: nonsense(n) for n, i in enumerate(v)} if isinstance(v, dict) else v for k, v in facts.items()}
    entries = {**facts, "data": [nonsense(0), {"shards": nonsense(1)}, {"source": nonsense(2), "sha256": nonsense(3)}]}
    line = LINES[shift % len(LINES)] % json.dumps(nonsense(0))
    for found, config in ((tops, settings), (below, settings), (entries, settings), (facts, line)):
        (family.PPO / "run.json").write_text(json.dumps(found))
        (family.PPO / "config.yaml").write_text(config)
        for verb in VERBS:
            assert command(["runs", *verb]) in (0, 3), (verb, found, config)
    assert command(["runs", "show", "ppo-both", "--json"]) == 0


def test_links_to_other_runs_are_not_followed(life: Path) -> None:
    shutil.move(family.JUDGE, "elsewhere")
    family.JUDGE.symlink_to(life / "elsewhere")
    Path("runs/sft/round").symlink_to(life / "runs")
    assert "rlhf/rm/judge" not in listed()
    assert len(listed()) == 5
    assert runs.show("runs/rlhf/rm/judge")["status"] == "completed"  # the user named it


def test_what_a_terminal_would_act_on_is_spelled_out(tmp_path: Path) -> None:
    run = histories.write(Path("runs/pretrain") / "a\x1b[2Jb\u202ec", "pretrain", config={"extra": "\x07\x9b31m"})
    family.edit(
        run / "run.json", status="failed", error="red \x1b]0;title\x07", command=["tinyllm", "\x1b[31m", "\ud800"]
    )
    (run / "metrics.jsonl").write_text('{"step": 2}\nhalf\n{"step": 1}\n')
    os.rename(run, os.fsencode(run) + b"\xff")
    for verb in (["list"], ["show", os.fsdecode(os.fsencode(run.name) + b"\xff")], ["verify"], ["list", "--json"]):
        for environment in ({}, {"PYTHONIOENCODING": "ascii"}):
            done = tinyllm("runs", *verb, cwd=tmp_path, **environment)
            assert done.returncode == (3 if verb == ["verify"] else 0), done.stderr
            assert not [c for c in done.stdout if not c.isprintable() and c != "\n"]
            assert "\\x1b[2J" in done.stdout or "\\u001b[2J" in done.stdout


@pytest.mark.parametrize(("width", "left"), [(200, {"size", "ended", "stage"}), (90, {"stage"}), (40, set())])
def test_on_a_terminal_columns_go_before_names_are_cut_and_nothing_is_taken_for_markup(
    width: int, left: set[str], life: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    os.rename(family.BASE, family.BASE.with_name("[bold]base"))
    family.edit(family.TALK / "run.json", status="failed", error="\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    assert command(["runs", "list"]) == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    assert {"size", "ended", "stage"} & set(lines[0].split()) == left
    assert lines[1].startswith("pretrain/[bold]base" if width > 40 else "pretrain")


# --- what it costs ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "verb", [["list"], ["show", "ppo-both"], ["verify"], ["lineage", "ppo-both"]], ids=lambda v: v[0]
)
def test_none_of_them_imports_torch(verb: list[str], life: Path) -> None:
    code = (
        f"import sys; from tinyllm.cli import run; code = run({['runs', *verb]}); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=life, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "0 False", done.stdout + done.stderr


def test_a_hundred_runs_are_listed_in_no_time(tmp_path: Path) -> None:
    first = histories.write(Path("runs/sft/full/run0"), "sft")
    with (first / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": 101 + i, "split": "train", "loss": 1.0}) + "\n" for i in range(20_000))
    for i in range(1, 100):
        shutil.copytree(first, first.with_name(f"run{i}"), copy_function=os.link)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(tinyllm("runs", "list", "--json", cwd=tmp_path).stdout)["runs"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(found) == 100
    assert found[7]["step"] == 20_100
    # 0.35 s on the machine this was written on; reading every line of the metrics would take 10
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1.5


# --- show ------------------------------------------------------------------------------------------------------------------------


def test_show_has_everything_that_was_written_down(life: Path) -> None:
    facts = json.loads((family.PPO / "run.json").read_text())
    found = runs.show("ppo-both")
    for key in ("parent", "reward_model", "data", "tokenizer_sha256", "seed", "world_size", "parameters", "versions"):
        assert found[key] == facts[key]
    assert found["figures"] == {when: facts[when] for when in ("before", "best", "last")}
    assert found["command"] == " ".join(facts["command"])
    links = {name: os.readlink(family.PPO / "checkpoints" / name) for name in ("ckpt_best", "ckpt_latest")}
    for row in found["checkpoints"]:
        name = Path(row["path"]).name
        assert (row["best"], row["latest"]) == (name == links["ckpt_best"], name == links["ckpt_latest"])
        assert row["whole"]
        assert row["bytes"] == sum(p.stat().st_size for p in Path(row["path"]).rglob("*") if p.is_file())
    assert [row["step"] for row in found["checkpoints"]] == [0, 2, 4]


PATHS = ["runs/%s", "%s", "{here}/runs/%s", "runs/%s/checkpoints/ckpt_best", "{here}/runs/%s/checkpoints"]


@pytest.mark.parametrize("given", [path % "sft/full/talk" for path in PATHS])
def test_a_run_is_named_by_any_path_to_it(given: str, life: Path) -> None:
    assert runs.show(given.format(here=life))["name"] == "sft/full/talk"


def test_a_name_is_enough_where_there_is_one_of_it(life: Path, capsys: pytest.CaptureFixture) -> None:
    assert runs.show("judge")["name"] == "rlhf/rm/judge"
    for given, word in (
        ("talk", "any of sft/full/talk, sft/peft/lora/talk"),
        ("jugde", "fix: use rlhf/rm/judge"),
        ("", "there is no run"),
    ):
        assert command(["runs", "show", given]) == USAGE
        assert word in capsys.readouterr().err


def test_show_names_the_settings_that_the_bare_command_would_not_use(life: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["runs", "show", "ppo-both", "--json"]) == 0
    changed = json.loads(capsys.readouterr().out)["changed_settings"]
    assert changed["rollout.group_size"] == {"value": 4, "usual": 1}
    assert changed["reward_model"] == {"value": "runs/rlhf/rm/judge", "usual": None}
    assert changed["rewards.gold"] == {"usual": 1.0}
    assert not {"name", "seed", "algorithm"} & set(changed)
    command(["runs", "show", "ppo-both"])
    assert "rollout.group_size = 4  (usually 1)" in capsys.readouterr().out


def test_show_looks_at_sizes_and_not_at_contents(life: Path) -> None:
    weights = family.TALK / family.LAST / "model.safetensors"
    family.flip(weights)
    assert [row["whole"] for row in runs.show("sft/full/talk")["checkpoints"]] == [True, True, True]
    weights.write_bytes(weights.read_bytes()[:-3])
    rows = runs.show("sft/full/talk")["checkpoints"]
    assert [row["whole"] for row in rows] == [True, True, False]
    assert "model.safetensors: " in rows[2]["fault"]
