"""`tinyllm runs list`: rows, order, status; damaged and hostile run directories; terminals; cost."""

from __future__ import annotations

import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import run_tree
from tests.support.synthetic_runs import write_run
from tinyllm.cli import run as command
from tinyllm.diagnostics import explain
from tinyllm.diagnostics.runs.listing import list_runs, show_run
from tinyllm.errors import USAGE
from tinyllm.train import lock


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The six runs, in the current folder."""
    return run_tree.copy_to(tmp_path)


def tinyllm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "NO_COLOR": "1"}
    call = [sys.executable, "-m", "tinyllm", *arguments]
    return subprocess.run(call, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def rows(*, everything: bool = False, folder: Path | None = None) -> dict[str, dict]:
    return {row["name"]: row for row in list_runs(folder, everything=everything)["runs"]}


# --- rows ------------------------------------------------------------------------------------------------------------------------


def test_rows_have_stage_status_steps_and_the_main_metric_of_explain(tree: Path) -> None:
    found = rows()
    assert list(found) == [run.relative_to("runs").as_posix() for run in run_tree.RUNS]  # in the order of training
    assert [row["stage"] for row in found.values()] == ["pretrain", "sft", "sft-lora", "rm", "dpo", "ppo"]
    for row in found.values():
        assert (row["status"], row["step"], row["steps"], row["faults"], row["pid"]) == ("completed", 4, 4, [], None)
        moved = explain.run(Path(row["run"]))["moved"]
        assert row["moved"] == {key: moved[key] for key in ("what", "from", "to")}
        assert row["seconds"] > 0


def test_size_counts_every_file_once(tree: Path) -> None:
    before = rows()["rlhf/offline/dpo-pairs"]["bytes"]
    in_links = [p for p in run_tree.DPO.rglob("*") if any(part.startswith("ckpt_") for part in p.parts)]
    files = [p for p in run_tree.DPO.rglob("*") if p.is_file() and p not in in_links]
    links = 2 * len("step-00000004")
    assert before == sum(p.stat().st_size for p in files) + links
    os.link(run_tree.DPO / run_tree.LAST / "model.safetensors", run_tree.DPO / "again.safetensors")
    assert rows()["rlhf/offline/dpo-pairs"]["bytes"] == before
    (run_tree.DPO / "more").write_bytes(b"1234567")
    assert rows()["rlhf/offline/dpo-pairs"]["bytes"] == before + 7


def test_a_pipe_gets_one_line_per_run(tree: Path, capsys: pytest.CaptureFixture) -> None:
    assert command(["runs"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    names = [run.relative_to("runs").as_posix() for run in run_tree.RUNS]
    assert err == ""
    assert [line.split()[0] for line in lines] == ["run", *names]
    assert "rewards/margins 0 -> 0." in lines[5]
    assert "4/4" in lines[1]
    assert command(["runs", "list"]) == 0
    assert capsys.readouterr().out == out


def test_newest_run_is_last_and_a_folder_limits_the_list(tree: Path) -> None:
    run_tree.edit_json(run_tree.BASE / "run.json", ended="2090-01-01T00:00:00+0000")
    run_tree.edit_json(run_tree.TALK / "run.json", ended="2090-01-01T00:00:00-0100")  # an hour later
    assert list(rows())[-2:] == ["pretrain/base", "sft/full/talk"]
    assert list(rows(folder=Path("runs/sft"))) == ["sft/peft/lora/talk", "sft/full/talk"]
    assert list(rows(folder=tree / "runs/sft")) == ["sft/peft/lora/talk", "sft/full/talk"]
    assert command(["runs", "list", "runs/stf"]) == USAGE
    shutil.copytree(run_tree.JUDGE, run_tree.TALK / "logs/copy")  # part of the run that contains it
    assert len(rows()) == 6


def test_fast_dev_runs_and_moved_aside_runs_are_hidden(capsys: pytest.CaptureFixture) -> None:
    for name in ("pretrain/fast-dev-run", "rlhf/online/grpo-fast-dev-run", "pretrain/mine~1"):
        write_run(Path("runs") / name, "pretrain")
    assert rows() == {}
    assert len(rows(everything=True)) == 3
    assert command(["runs", "list"]) == 0
    assert capsys.readouterr().out == "3 fast-dev-runs or moved-aside runs hidden: tinyllm runs list --all\n"


@pytest.mark.parametrize("folder", ["", "runs", "runs/data/mine/shards"])
def test_without_runs_the_command_that_trains_one_is_printed(folder: str, capsys: pytest.CaptureFixture) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    assert command(["runs", "list"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("no runs yet: `tinyllm pretrain --fast-dev-run`")
    assert command(["runs", "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == []


# --- status ----------------------------------------------------------------------------------------------------------------------


def test_run_is_running_while_its_lock_is_held_and_interrupted_afterwards(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    run = write_run(Path("runs/pretrain/mine"), "pretrain")
    run_tree.edit_json(run / "run.json", status="running", ended=None)
    assert rows()["pretrain/mine"]["status"] == "interrupted"
    lock.acquire(run)
    try:
        row = json.loads(tinyllm("runs", "list", "--json", cwd=tmp_path).stdout)["runs"][0]  # another process
        assert (row["status"], row["pid"]) == ("running", os.getpid())
        command(["runs", "list"])
        assert f"running (pid {os.getpid()})" in capsys.readouterr().out
    finally:
        lock.release(run)
    command(["runs", "list"])
    assert "interrupted" in capsys.readouterr().out


READER = """
import json, os, sys
from tinyllm.cli import run
from tinyllm.train import lock
run(["runs", "list", "--json"])  # as who started it; what it imports, the other user need not be able to read
if sys.argv[1] == "nobody":
    os.setgid(65534)
    os.setuid(65534)
print(os.access("runs/pretrain/mine/lock", os.W_OK), flush=True)
run(["runs", "list", "--json"])
"""


def seen_by(user: str, cwd: Path) -> list:
    """Status and pid of the run as its owner sees it, whether `user` may write its lock, and status and pid as `user` sees it."""
    done = subprocess.run([sys.executable, "-c", READER, user], cwd=cwd, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    mine, found, theirs = re.fullmatch(r"(\{.*\})\s*(True|False)\s*(\{.*\})\s*", done.stdout, re.DOTALL).groups()
    return [*((r["status"], r["pid"]) for o in (mine, theirs) for r in json.loads(o)["runs"]), found == "True"]


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() != 0, reason="becomes another user")
def test_a_live_run_is_running_to_other_users_and_unknown_where_its_lock_may_not_be_read(tmp_path: Path) -> None:
    run = write_run(Path("runs/pretrain/mine"), "pretrain")
    run_tree.edit_json(run / "run.json", status="running", ended=None)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(folder.stat().st_mode | 0o055)
    lock.acquire(run)
    try:
        running = ("running", os.getpid())
        assert seen_by("nobody", tmp_path) == [running, running, False]
        (run / lock.NAME).chmod(0o600)
        assert seen_by("nobody", tmp_path) == [running, ("unknown", None), False]
    finally:
        lock.release(run)
    (run / lock.NAME).chmod(0o644)
    assert seen_by("nobody", tmp_path) == [("interrupted", None), ("interrupted", None), False]


@pytest.mark.skipif(sys.platform != "linux", reason="mount")
def test_a_live_run_is_running_on_a_read_only_mount(tmp_path: Path) -> None:
    """The run writes to its folder, and the list is read where the same folder is mounted read-only."""
    run, elsewhere = write_run(Path("there/runs/pretrain/mine"), "pretrain"), tmp_path / "elsewhere"
    run_tree.edit_json(run / "run.json", status="running", ended=None)
    elsewhere.mkdir()
    if subprocess.run(["mount", "--bind", "there", str(elsewhere)], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", str(elsewhere)], check=True)
        for held, want in ((True, ("running", os.getpid())), (False, ("interrupted", None))):
            lock.acquire(run) if held else lock.release(run)
            assert seen_by("me", elsewhere) == [want, want, False]
    finally:
        lock.release(run)
        subprocess.run(["umount", "-l", str(elsewhere)], check=True)


def test_failed_run_has_the_start_of_its_error(capsys: pytest.CaptureFixture) -> None:
    run = write_run(Path("runs/pretrain/mine"), "pretrain")
    error = "the loss is not a number at step 7, after " + "many " * 50
    run_tree.edit_json(run / "run.json", status="failed", error=error)
    command(["runs", "list"])
    assert "failed: the loss is not a number at step 7, after man...  " in capsys.readouterr().out


def test_the_error_of_a_failed_run_is_one_line(capsys: pytest.CaptureFixture) -> None:
    write_run(Path("runs/sft/full"), "sft", facts={"status": "failed", "error": "error: a (b)\nfix: c"})
    command(["runs", "list"])
    assert "failed: a (b); fix: c  " in capsys.readouterr().out


def test_unfinished_run_has_the_metrics_of_its_newest_checkpoint(tree: Path) -> None:
    moved = rows()["sft/full/talk"]["moved"]
    unfinished = dict.fromkeys(("before", "best", "last", "seconds", "ended"))
    run_tree.edit_json(run_tree.TALK / "run.json", status="running", **unfinished)
    row = rows()["sft/full/talk"]
    assert (row["status"], row["step"], row["moved"], row["seconds"]) == ("interrupted", 4, moved, None)


# --- damaged and hostile directories ---------------------------------------------------------------------------------------------


def remove(name: str) -> Callable[[Path], object]:
    return lambda run: (run / name).unlink()


def write(name: str, text: str | bytes) -> Callable[[Path], object]:
    return lambda run: (run / name).write_bytes(text.encode() if isinstance(text, str) else text)


def replace_by_link(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").symlink_to("/etc/passwd")


def replace_by_folder(run: Path) -> None:
    (run / "run.json").unlink()
    (run / "run.json").mkdir()


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {  # -> damage, status, part of the fault
    "run.json is missing": (remove("run.json"), "damaged", "run.json is missing"),
    "run.json is incomplete": (write("run.json", '{"status": "comp'), "damaged", "run.json: "),
    "run.json is a list": (write("run.json", "[1, 2]"), "damaged", "run.json: not a JSON object"),
    "run.json is nested": (write("run.json", "[" * 200_000), "damaged", "run.json: "),
    "run.json is binary": (write("run.json", b"\xff\xfe{}"), "damaged", "run.json: "),
    "run.json is a folder": (replace_by_folder, "damaged", "run.json is missing"),
    "run.json is a link": (replace_by_link, "damaged", "run.json: leads out of its folder"),
    "config.yaml is missing": (remove("config.yaml"), "completed", "config.yaml is missing"),
    "config.yaml is incomplete": (
        write("config.yaml", "train: {steps: 1"),
        "completed",
        "config.yaml: cannot be read",
    ),
    "config.yaml has aliases": (write("config.yaml", "a: &a [1]\ntrain: [*a, *a]"), "completed", "aliases"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_run_is_listed_with_its_fault(name: str, tree: Path, capsys: pytest.CaptureFixture) -> None:
    damage, status, fault = DAMAGE[name]
    damage(run_tree.TALK)
    row = rows()["sft/full/talk"]
    assert row["status"] == status
    assert len(row["faults"]) == 1
    assert fault in row["faults"][0]
    assert command(["runs", "list"]) == 0
    assert command(["runs", "show", "runs/sft/full/talk"]) == 0
    assert f"{status}: " in capsys.readouterr().out


NONSENSE = ["x", 7, -1.5, True, None, [], {}, [1], {"a": "b"}, float("nan"), 10**400, "2026-13-77T99:99:99+0000"]
VERBS = (["list"], ["show", "ppo-both"], ["verify", "ppo-both"], ["lineage", "ppo-both"])
LINES = ("train: %s", "train: {steps: %s}", "data: %s", "algorithm: %s", "lora: %s", "train: {}\ndata: {train: %s}")


@pytest.mark.parametrize("shift", range(len(NONSENSE)))
def test_values_of_unexpected_types_are_ignored(shift: int, tree: Path) -> None:
    """Every key has in turn every unexpected value, once at the top level and once one level down."""
    facts, settings = json.loads((run_tree.PPO / "run.json").read_text()), (run_tree.PPO / "config.yaml").read_text()

    def nonsense(number: int) -> object:
        return NONSENSE[(number + shift) % len(NONSENSE)]

    top = {key: nonsense(number) for number, key in enumerate(facts)}
    below = {k: {i: nonsense(n) for n, i in enumerate(v)} if isinstance(v, dict) else v for k, v in facts.items()}
    entries = {**facts, "data": [nonsense(0), {"shards": nonsense(1)}, {"source": nonsense(2), "sha256": nonsense(3)}]}
    line = LINES[shift % len(LINES)] % json.dumps(nonsense(0))
    for found, config in ((top, settings), (below, settings), (entries, settings), (facts, line)):
        (run_tree.PPO / "run.json").write_text(json.dumps(found))
        (run_tree.PPO / "config.yaml").write_text(config)
        for verb in VERBS:
            assert command(["runs", *verb]) in (0, 3), (verb, found, config)
    assert command(["runs", "show", "ppo-both", "--json"]) == 0


def test_links_to_runs_are_not_followed(tree: Path) -> None:
    shutil.move(run_tree.JUDGE, "elsewhere")
    run_tree.JUDGE.symlink_to(tree / "elsewhere")
    Path("runs/sft/round").symlink_to(tree / "runs")
    assert "rlhf/rm/judge" not in rows()
    assert len(rows()) == 5
    assert show_run("runs/rlhf/rm/judge")["status"] == "completed"  # named by the user


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("verb", ["list", "show", "verify", "list --json"])
def test_control_characters_are_escaped(verb: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(Path("runs/pretrain") / "a\x1b[2Jb\u202ec", "pretrain", config={"extra": "\x07\x9b31m"})
    words = ["tinyllm", "\x1b[31m", "\ud800"]
    run_tree.edit_json(run / "run.json", status="failed", error="red \x1b]0;title\x07", command=words)
    (run / "metrics.jsonl").write_text('{"step": 2}\nhalf\n{"step": 1}\n')
    os.rename(run, os.fsencode(run) + b"\xff")
    name = [os.fsdecode(os.fsencode(run.name) + b"\xff")] if verb == "show" else []
    stdout = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stdout)
        assert command(["runs", *verb.split(), *name]) == (3 if verb == "verify" else 0)
    stdout.flush()
    printed = stdout.buffer.getvalue().decode(encoding)
    assert not [c for c in printed if not c.isprintable() and c != "\n"]
    assert "\\x1b[2J" in printed or "\\u001b[2J" in printed


@pytest.mark.parametrize(("width", "left"), [(200, {"size", "ended", "stage"}), (90, {"stage"}), (40, set())])
def test_a_narrow_terminal_drops_columns_before_it_cuts_names(
    width: int, left: set[str], tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    os.rename(run_tree.BASE, run_tree.BASE.with_name("[bold]base"))  # not markup
    run_tree.edit_json(run_tree.TALK / "run.json", status="failed", error="\x1b[2J")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    assert command(["runs", "list"]) == 0
    lines = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert max(map(len, lines)) <= width
    assert "\x1b" not in "".join(lines)
    assert {"size", "ended", "stage"} & set(lines[0].split()) == left
    assert lines[1].startswith("pretrain/[bold]base" if width > 40 else "pretrain")


# --- cost ------------------------------------------------------------------------------------------------------------------------


def test_no_command_imports_torch(tree: Path) -> None:
    code = (
        "import sys\nfrom tinyllm.cli import run\n"
        f"for verb in {[list(verb) for verb in VERBS]}:\n"
        "    print('result', run(['runs', *verb]), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=60)
    results = [line for line in done.stdout.splitlines() if line.startswith("result")]
    assert results == ["result 0 False"] * len(VERBS), done.stdout + done.stderr


def test_a_hundred_runs_are_listed_in_seconds(tmp_path: Path) -> None:
    first = write_run(Path("runs/sft/full/run0"), "sft")
    with (first / "metrics.jsonl").open("a") as file:
        file.writelines(json.dumps({"step": 101 + i, "split": "train", "loss": 1.0}) + "\n" for i in range(20_000))
    for i in range(1, 100):
        shutil.copytree(first, first.with_name(f"run{i}"), copy_function=os.link)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = json.loads(tinyllm("runs", "list", "--json", cwd=tmp_path).stdout)["runs"]
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert len(found) == 100
    assert found[7]["step"] == 20_100
    # measured: 0.35 s; reading all lines of the metrics would take 10 s. The limit leaves room for slower machines
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 4.5


def test_without_a_subcommand_the_options_are_those_of_list(tree: Path, capsys: pytest.CaptureFixture) -> None:
    for options in (["--all"], ["--json"], ["--all", "--json"], ["--quiet"], []):
        assert command(["runs", *options]) == command(["runs", "list", *options]) == 0
        whole = capsys.readouterr().out
        assert whole[: len(whole) // 2] == whole[len(whole) // 2 :]
    assert command(["runs", "--json", "show", "talk"]) == 2
    assert "fix: write `tinyllm runs show --json`" in capsys.readouterr().err


def test_list_takes_a_folder_below_runs_and_a_name(tree: Path, capsys: pytest.CaptureFixture) -> None:
    for given, count in (("sft", 2), ("talk", 2), ("rlhf/rm", 1), ("runs/rlhf/rm", 1)):
        assert command(["runs", "list", given, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["runs"]) == count, given
