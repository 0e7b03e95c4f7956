"""The launcher with ranks that are small scripts, failure attribution, and ranks that do not find each other or disagree."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import HashStore

from tinyllm import distributed as dist
from tinyllm.distributed.failure_attribution import RankState, find_failure
from tinyllm.distributed.launcher import launch
from tinyllm.distributed.rendezvous import Rendezvous
from tinyllm.errors import UserError

# --- who is to blame -------------------------------------------------------------------------------------------------------------


def reported(time: float, text: str = "ValueError: x", code: int = 1, **more: Any) -> dict[str, Any]:
    """What a rank has recorded: an exception, or with `mistake` a UserError."""
    found = {"time": time, "text": f"error: {text}\nfix: y", "code": code, "kind": text.partition(":")[0]}
    return {**found, "mistake": False, "lost": False, "waited": False, **more}


def lost(time: float, *, waited: bool = False) -> dict[str, Any]:
    return reported(time, "RuntimeError: [gloo] gone", lost=True, waited=waited)


AGAIN = "run the same command again to resume from the last checkpoint"
VERDICTS = [
    # (ranks, first line of the failure, exit code, started again)
    ([RankState(0, 0, done=True), RankState(1)], None, 0, False),
    ([RankState(0), RankState(1)], None, 0, False),
    ([RankState(0, 1, 5.0, error=lost(4.0)), RankState(1, -9, 4.5, step=7)],
     "rank 1 was killed after step 7 by signal 9 (SIGKILL, often: out of memory)", 1, True),
    ([RankState(0, 1, error=lost(1.0)), RankState(1, 1, error=reported(2.0), step=0)],
     "rank 1 before the first step: ValueError: x", 1, True),
    ([RankState(0, 1, error=reported(3.0), step=4), RankState(1, 1, error=reported(2.0, "KeyError: k"), step=4)],
     "rank 1 after step 4: KeyError: k", 1, True),
    ([RankState(0), RankState(1, 0, step=3)], "rank 1 exited after step 3 with code 0 before the run was finished", 1, True),
    ([RankState(0), RankState(1, 2)], "rank 1 exited with code 2 before the run was finished", 2, False),
    # mistakes: rank 0's are everyone's; another's own carries its number, and none is tried again
    ([RankState(0, 2, error=reported(2.0, "no file", 2, mistake=True)), RankState(1, 2, error=reported(1.0, "no file", 2, mistake=True))],
     "no file", 2, False),
    ([RankState(0, 1, error=lost(1.0)), RankState(1, 3, error=reported(2.0, "damaged", 3, mistake=True))], "rank 1: damaged", 3, False),
    ([RankState(0, 1, error=reported(1.0, "loss nan", 1, mistake=True)), RankState(1)], "loss nan", 1, False),
    ([RankState(0, 4, error=reported(1.0, "out of memory", 4)), RankState(1)], "rank 0: out of memory", 4, False),
    # whoever neither failed nor waits hangs
    ([RankState(0, 1, error=lost(1.0, waited=True), step=5), RankState(1, step=5)],
     "rank 1 hung after step 5: the others waited for it for 9 s", 1, True),
    ([RankState(0, 1, error=lost(1.0, waited=True)), RankState(1, step=5), RankState(2, step=4), RankState(3, 1, error=lost(1.1))],
     "rank 2 hung after step 4: the others waited for it for 9 s", 1, True),
    ([RankState(0, step=5), RankState(1, step=5, silent=9.5, stopped=True)],
     "rank 1 hung after step 5: no heartbeat for 9 s; the process is stopped", 1, True),
    ([RankState(0, -6, 3.0, backend="nccl", step=5), RankState(1, step=5)],
     "rank 1 hung after step 5: the others waited for it for 9 s", 1, True),
    ([RankState(0, -6, 3.0, backend="gloo", step=5, last_line="munmap_chunk(): invalid pointer"), RankState(1, step=5)],
     "rank 0 was killed after step 5 by signal 6 (SIGABRT, abort in native code): munmap_chunk(): invalid pointer", 1, True),
    ([RankState(0, 1, error=lost(2.0), step=1), RankState(1, 1, error=lost(1.0), step=1)],
     "rank 1 lost its connection to the other ranks after step 1: RuntimeError: [gloo] gone", 1, True),
    # stops: the rank that received the signal knows its name
    ([RankState(0, 130, error=reported(1.0, "stopped", 130, mistake=True)),
      RankState(1, 143, error=reported(2.0, "stopped", 143, mistake=True))],
     "stopped", 143, False),
    ([RankState(0, -15, 1.0)], "the process was killed by signal 15 (SIGTERM)", 143, False),
]  # fmt: skip


@pytest.mark.parametrize(("ranks", "line", "code", "again"), VERDICTS)
def test_the_rank_that_failed_first_is_reported(
    ranks: list[RankState], line: str | None, code: int, again: bool
) -> None:
    failure = find_failure(ranks, max_silence=9.0)
    if line is None:
        assert failure is None
        return
    assert (failure.line, failure.code, failure.restart) == (line, code, again)
    assert failure.text.startswith("error: ")


def test_a_follow_up_error_alone_is_uncertain() -> None:
    assert not find_failure([RankState(0, 1, error=lost(1.0)), RankState(1)], 9.0).certain
    assert find_failure([RankState(0, 1, error=reported(1.0)), RankState(1)], 9.0).certain


# --- the launcher ----------------------------------------------------------------------------------------------------------------

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from tinyllm import distributed as dist
from tinyllm.distributed import heartbeat
from tinyllm.errors import UserError
heartbeat.start()
rank, attempt = dist.rank(), len(list(Path(os.environ["TINYLLM_RANKS"]).parent.glob("tmp*"))) - 1
begun = heartbeat.training_has_begun()
heartbeat.beat(0)
def fall(how):
    time.sleep(0.2)
    Path("fallen").write_text(str(attempt))
    how()
def work():  # until another rank has fallen; then fail as torch does
    while not (Path("fallen").exists() and Path("fallen").read_text() == str(attempt)): time.sleep(0.01)
    heartbeat.report_error("error: RuntimeError: gone", 1, RuntimeError("[gloo] Connection closed by peer"))
    sys.exit(1)
def kill(): os.kill(os.getpid(), signal.SIGKILL)
def raised(text, code, error):
    heartbeat.report_error(text, code, error)
    sys.exit(code)
"""


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run two ranks of a script under the launcher: (exit code, stderr, seconds)."""

    def run(script: str, restarts: int = 0, *, ranks: int = 2, debug: bool = False) -> tuple[int, str, float]:
        path = tmp_path / "rank.py"
        path.write_text(RANK + script)
        monkeypatch.chdir(tmp_path)
        began = time.monotonic()
        code = launch(ranks, [sys.executable, str(path)], restarts, debug=debug)
        return code, capfd.readouterr().err, time.monotonic() - began

    return run


def test_ranks_that_end_normally(ranks: Callable[..., Any]) -> None:
    code, err, _ = ranks("if rank: time.sleep(0.5)\nheartbeat.report_end()")
    assert (code, err) == (0, "")


FAULTS = {
    "killed": ("kill()", 1, "rank 1 was killed after step 3 by signal 9 (SIGKILL, often: out of memory)"),
    "left": ("os._exit(5)", 5, "rank 1 exited after step 3 with code 5 before the run was finished"),
    "stopped": (
        "os.kill(os.getpid(), signal.SIGSTOP)",
        1,
        "rank 1 hung after step 3: no heartbeat for 1 s; the process is stopped",
    ),
    "aborted": (
        "print('bad\\nmunmap_chunk()', file=sys.stderr, flush=True); os.abort()",
        1,
        "rank 1 was killed after step 3 by signal 6 (SIGABRT, abort in native code): munmap_chunk()",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_when_one_rank_fails_all_end(fault: str, ranks: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a rank that would not end by itself."""
    monkeypatch.setenv("TINYLLM_DIST_TIMEOUT", "1" if fault == "stopped" else "60")
    others = "work()" if fault in ("left", "aborted") else "time.sleep(60)"
    damage, wanted, line = FAULTS[fault]
    note = "open(f'pid-{rank}', 'w').write(str(os.getpid()))\n"
    damage = f"Path('fallen').write_text('0'); {damage}"
    code, err, seconds = ranks(f"{note}if rank:\n  heartbeat.beat(3); time.sleep(0.2)\n  {damage}\n{others}")
    assert code == wanted
    assert err.splitlines()[0] == f"error: {line}"
    assert len(err.splitlines()) == 2  # and a fix
    assert seconds < 8
    for number in (0, 1):
        with pytest.raises(ProcessLookupError):
            os.kill(int(Path(f"pid-{number}").read_text()), 0)


def test_a_rank_that_hangs_outside_collectives_is_reported(ranks: Callable[..., Any]) -> None:
    """The error of the waiting rank, which reveals the hang, is not printed."""
    waited = "RuntimeError('[gloo] Timed out waiting 2000ms for recv operation to complete')"
    code, err, _ = ranks(
        f"heartbeat.beat(4)\nif rank == 0:\n  heartbeat.report_error('error: mine', 1, {waited}); sys.exit(1)\nwork()"
    )
    assert code == 1
    assert err.startswith("error: rank 1 hung after step 4: the others waited for it for 600 s\n")


def test_the_first_error_is_printed_and_the_rest_only_with_debug(ranks: Callable[..., Any]) -> None:
    victim = (
        "time.sleep(0.3); heartbeat.report_error('error: RuntimeError: gone', 1, RuntimeError('gloo')); sys.exit(1)"
    )
    report = "heartbeat.report_error('error: torn\\nfix: repair', 3, UserError(''))"
    culprit = f"print('noise', file=sys.stderr); {report}; time.sleep(0.6); sys.exit(3)"
    script = f"if rank == 0:\n  {victim}\n{culprit}"
    code, err, _ = ranks(script)
    assert (code, err) == (3, "error: rank 1: torn\nfix: repair\n")
    code, err, _ = ranks(script, debug=True)
    assert (code, err) == (3, "noise\nerror: rank 1: torn\nfix: repair\n")


def test_a_rank_whose_draft_of_a_checkpoint_another_rank_removed_does_not_report_that(
    ranks: Callable[..., Any],
) -> None:
    """The rank that could not write is reported, also where the other one notices first."""
    code, err, _ = ranks("""
import torch
from tinyllm.train import checkpoint
dist.start(torch.device("cpu"))
def write(draft):
    if rank == 0: raise OSError(28, "No space left on device")
    while draft.exists(): time.sleep(0.01)
    (draft / "source").write_text("")
try: checkpoint.save(Path("checkpoints"), 5, write)
except UserError as error:
    if rank == 0: time.sleep(0.5)
    raised(str(error), error.code, error)
except Exception as error:
    raised("error: gone", 1, error)
""")
    assert code == 4
    assert err.startswith("error: the checkpoint of step 5 could not be written"), err
    assert "No space left on device" in err


def test_restarts_resume_and_are_counted(ranks: Callable[..., Any]) -> None:
    """Each start knows that training has begun."""
    count = "open(f'begun-{rank}-{attempt}', 'w').write(str(begun))\n"
    code, err, _ = ranks(
        f"{count}if attempt == 2: heartbeat.report_end(); sys.exit()\nif rank: heartbeat.beat(attempt); fall(kill)\nwork()",
        3,
    )
    assert code == 0
    assert err.splitlines() == [
        "restarting (1 of 3): rank 1 was killed before the first step by signal 9 (SIGKILL, often: out of memory)",
        "restarting (2 of 3): rank 1 was killed after step 1 by signal 9 (SIGKILL, often: out of memory)",
    ]
    assert [Path(f"begun-0-{n}").read_text() for n in range(3)] == ["False", "True", "True"]


def test_failures_that_are_not_restarted(ranks: Callable[..., Any]) -> None:
    """More often than asked; after a mistake; when the same exception comes back at the same step."""
    code, err, _ = ranks("if rank == 0: fall(kill)\nwork()", 1)
    assert code == 1
    assert [line.partition(":")[0] for line in err.splitlines()] == ["restarting (1 of 1)", "error", "fix"]

    code, err, _ = ranks("if rank: fall(lambda: raised('error: bad', 2, UserError('')))\nwork()", 3)
    assert (code, err) == (2, "error: rank 1: bad\n")

    same = "if rank:\n  heartbeat.beat({step}); fall(lambda: raised('error: E: same', 1, ValueError()))\nwork()"
    code, err, _ = ranks(same.format(step=6), 3)
    assert (code, err.count("restarting")) == (1, 1)
    assert err.endswith("error: rank 1 after step 6: E: same; the same failure as before, not restarted\n")
    code, err, _ = ranks(same.format(step="attempt"), 2)
    assert (code, err.count("restarting")) == (1, 2)


def test_a_single_process_is_restarted(ranks: Callable[..., Any]) -> None:
    script = "assert 'RANK' not in os.environ\nif attempt == 0: os.abort()\nheartbeat.report_end()"
    code, err, _ = ranks(script, 1, ranks=1)
    assert code == 0
    assert err.endswith(
        "restarting (1 of 1): the process was killed before the first step by signal 6 (SIGABRT, abort in native code)\n"
    )


def test_a_taken_port_is_replaced(ranks: Callable[..., Any]) -> None:
    """Not a restart: nothing has happened yet."""
    taken = "class PortTakenError(UserError): pass\nopen('ports', 'a').write(os.environ['MASTER_PORT'] + '\\n')\n"
    end = "if attempt == 0:\n  heartbeat.report_error('error: port', 4, PortTakenError('')); sys.exit(4)\nheartbeat.report_end()"
    code, err, _ = ranks(f"if rank: time.sleep(0.5); heartbeat.report_end(); sys.exit()\n{taken}{end}")
    assert (code, err) == (0, "")
    assert len(set(Path("ports").read_text().split())) == 2


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start the same launcher in a process of its own; nothing of it is left when the test ends, however that ends."""
    processes = []

    def start(script: str, **environment: str) -> subprocess.Popen[str]:
        (tmp_path / "rank.py").write_text(RANK + script)
        code = "import sys; from tinyllm.distributed.launcher import launch; sys.exit(launch(2, [sys.executable, 'rank.py']))"
        env = {**os.environ, **environment}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                cwd=tmp_path,
                env=env,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        )
        return processes[-1]

    yield start
    for pid in [p.pid for p in processes if p.poll() is None] + [int(f.read_text()) for f in tmp_path.glob("pid-*")]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in processes:
        process.communicate()


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


ORDERLY = """
def stop(number, frame):
    time.sleep(0.3)
    open(f"heard-{rank}", "a").write(f"{number} ")
    heartbeat.report_error("error: stopped after step 7", 128 + number, UserError(""))
    sys.exit(128 + number)
for number in (signal.SIGINT, signal.SIGTERM): signal.signal(number, stop)
open(f"pid-{rank}", "w").write(str(os.getpid()))
while True: time.sleep(0.01)
"""


def ready(folder: Path) -> Callable[[], bool]:
    return lambda: all((folder / f"pid-{n}").exists() and (folder / f"pid-{n}").read_text() for n in (0, 1))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_reaches_every_rank_once(number: int, code: int, tmp_path: Path, launched: Callable[..., Any]) -> None:
    """A terminal sends Ctrl-C to the whole process group of the command; the ranks are in none of it."""
    process = launched(ORDERLY)
    until(ready(tmp_path))
    groups = {os.getpgid(int((tmp_path / f"pid-{n}").read_text())) for n in (0, 1)}
    assert process.pid not in groups
    os.killpg(process.pid, number)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (code, "error: stopped after step 7\n")
    assert [(tmp_path / f"heard-{n}").read_text() for n in (0, 1)] == [f"{int(number)} "] * 2


def test_a_second_signal_kills_the_ranks(tmp_path: Path, launched: Callable[..., Any]) -> None:
    process = launched(ORDERLY.replace("time.sleep(0.3)", "open('deaf', 'w'); time.sleep(60)"))
    until(ready(tmp_path))
    process.send_signal(signal.SIGTERM)
    until((tmp_path / "deaf").exists)
    process.send_signal(signal.SIGTERM)  # `timeout` sends it to the process and to its group
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=5)
    assert (process.returncode, err) == (143, "stopped by SIGTERM; progress since the last checkpoint is lost\n")


def test_a_suspended_launcher_suspends_the_ranks(tmp_path: Path, launched: Callable[..., Any]) -> None:
    process = launched(ORDERLY, TINYLLM_DIST_TIMEOUT="1")
    until(ready(tmp_path))
    pids = [int((tmp_path / f"pid-{n}").read_text()) for n in (0, 1)]

    def states() -> set[str]:
        return {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in (*pids, process.pid)}

    process.send_signal(signal.SIGTSTP)
    until(lambda: states() == {"T"})
    time.sleep(1.5)
    process.send_signal(signal.SIGCONT)
    until(lambda: "T" not in states())
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143


@pytest.mark.slow
def test_time_in_which_the_launcher_slept_is_no_silence_of_the_ranks(
    tmp_path: Path, launched: Callable[..., Any]
) -> None:
    """As on a laptop that slept, where the ranks wake up a little later."""
    process = launched(ORDERLY, TINYLLM_DIST_TIMEOUT="3")
    until(ready(tmp_path))
    pids = [int((tmp_path / f"pid-{n}").read_text()) for n in (0, 1)]
    time.sleep(0.3)  # between two heartbeats, of which the launcher has seen the first
    for pid in (*pids, process.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(3.5)
    process.send_signal(signal.SIGCONT)
    time.sleep(0.4)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    time.sleep(2.6)  # in which a failure would be settled
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (143, "error: stopped after step 7\n")  # as the script words it


def test_ranks_stop_when_their_launcher_is_killed(tmp_path: Path, launched: Callable[..., Any]) -> None:
    process = launched(ORDERLY)
    until(ready(tmp_path))
    process.kill()
    until(lambda: all((tmp_path / f"heard-{n}").exists() for n in (0, 1)))
    assert (tmp_path / "heard-1").read_text().startswith(f"{int(signal.SIGTERM)} ")


# --- ranks that cannot find each other --------------------------------------------------------------------------------------------

FAULTY = [
    ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', not a number"),
    ({"WORLD_SIZE": "-2"}, "WORLD_SIZE is '-2', not a number"),
    ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 of 2: ranks count from 0 to 1"),
    ({"RANK": "1"}, "RANK is 1 of 1: ranks count from 0 to 0"),
    ({"WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "1"}, "WORLD_SIZE is 2 and RANK is not set"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": "1"}, "WORLD_SIZE is 2 and MASTER_ADDR is not set"),
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x"}, "WORLD_SIZE is 2 and MASTER_PORT is not set"),
    (
        {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "x", "MASTER_PORT": "70000"},
        "MASTER_PORT is 70000: the largest port is 65535",
    ),
    ({"LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "2"}, "LOCAL_RANK is 3 of 2: ranks count from 0 to 1"),
    ({"TINYLLM_DIST_TIMEOUT": "soon"}, "'soon' is not a number of seconds"),
]


@pytest.mark.parametrize(("variables", "what"), FAULTY)
def test_invalid_environment_variables_are_refused(
    variables: dict[str, str], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        dist.check_environment()
    assert (caught.value.what, caught.value.code) == (what, 2)
    assert caught.value.fix


def test_the_command_checks_the_environment_before_waiting(tmp_path: Path) -> None:
    env = {**os.environ, "RANK": "x", "WORLD_SIZE": "2"}
    done = subprocess.run(
        [sys.executable, "-m", "tinyllm", "pretrain"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=15
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: RANK is 'x', not a number (env RANK)\nfix: ")
    assert done.stdout == ""


RANKS = """
import json, os, sys, torch
from tinyllm import distributed as dist
from tinyllm.cli import run
from tinyllm.errors import UserError
code = 0
try:
    dist.start(torch.device("cpu"))
    {then}
except UserError as error:
    code = error.code
    print(error, file=sys.stderr)
dist.stop(clean=code == 0)
os._exit(code)
"""


def by_hand(cases: dict[str, list[dict[str, str]]], then: str = "pass") -> dict[str, list[tuple[int, str]]]:
    """All cases at once: of each, its processes with their variables, to (exit code, first line of stderr)."""
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
        "TINYLLM_DIST_TIMEOUT": "10",
        "TORCH_CPP_LOG_LEVEL": "FATAL",
    }
    script = RANKS.format(then=then)
    started = {
        name: [
            subprocess.Popen(
                [sys.executable, "-c", script], env={**os.environ, **common, **own}, stderr=subprocess.PIPE, text=True
            )
            for own in processes
        ]
        for name, processes in cases.items()
    }
    found = {}
    for name, processes in started.items():
        errors = [process.communicate(timeout=60)[1] for process in processes]
        found[name] = [(p.returncode, e.partition("\n")[0]) for p, e in zip(processes, errors, strict=True)]
    return found


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_ranks_that_do_not_find_each_other_fail_quickly() -> None:
    """Instead of waiting for ten minutes."""
    with socket.socket() as mute:  # accepts, and never answers
        mute.bind(("0.0.0.0", 0))
        mute.listen()
        taken, port = str(mute.getsockname()[1]), free_port()
        found = by_hand(
            {
                "taken": [{"RANK": n, "MASTER_PORT": taken, "TINYLLM_DIST_TIMEOUT": "4"} for n in "01"],
                "sizes": [{"RANK": n, "MASTER_PORT": port, "WORLD_SIZE": size} for n, size in ("02", "13")],
            }
        )
    assert found["taken"] == [
        (4, f"error: rank 0 cannot listen on port {taken}: it is in use (env MASTER_PORT)"),
        (4, f"error: rank 1 cannot reach rank 0: another program listens at 127.0.0.1:{taken} (env MASTER_PORT)"),
    ]
    differ = (2, "error: the ranks disagree: WORLD_SIZE: rank 0 has 2, rank 1 has 3")
    assert found["sizes"] == [differ, differ]


@pytest.mark.slow  # half a minute: they wait for those who do not come
def test_missing_and_duplicate_ranks_are_reported() -> None:
    ports = [free_port() for _ in range(4)]
    found = by_hand(
        {
            "twins": [{"RANK": n, "MASTER_PORT": ports[1], "WORLD_SIZE": "3"} for n in "011"],
            "alone": [{"RANK": "0", "MASTER_PORT": ports[2]}],
            "no master": [{"RANK": "1", "MASTER_PORT": ports[3]}],
            "no address": [{"RANK": "1", "MASTER_PORT": "1", "MASTER_ADDR": "nosuchhost.invalid"}],
        }
    )
    missing = (4, "error: rank 2 of 3 did not join within 10 s")
    assert found["twins"][0] == missing
    assert sorted(found["twins"][1:]) == [(2, "error: two processes have rank 1 (env RANK)"), missing]
    assert found["alone"] == [(4, "error: rank 1 of 2 did not join within 10 s")]
    assert found["no master"][0][0] == 4
    assert "nothing listens at 127.0.0.1" in found["no master"][0][1]
    assert found["no address"][0][0] == 4
    assert "'nosuchhost.invalid' is not a valid address" in found["no address"][0][1]


def test_ranks_compare_their_facts() -> None:
    port = free_port()
    facts = '{"same": [1, {"a": 2.5}], "train": {"steps": 5, "lr": [1, int(os.environ["LR"])]}}'
    then = f"dist.barrier(); dist.require_equal({facts}); print('after', file=sys.stderr)"
    found = by_hand({"x": [{"RANK": n, "LR": n, "MASTER_PORT": port} for n in "01"]}, then)["x"]
    assert found == [(2, "error: the ranks disagree: train.lr.1: rank 0 has 0, rank 1 has 1")] * 2


def test_waiting_for_a_rank_that_works_alone_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 0 may prepare data for an hour. The store is one of this process, and the ranks are threads."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TINYLLM_DIST_TIMEOUT", "0.2")
    store, arrived = HashStore(), []

    def rank(number: int) -> None:
        found = object.__new__(Rendezvous)
        found.store, found.calls = store, 0
        found.barrier()
        arrived.append(number)

    threads = [threading.Thread(target=rank, args=(number,), daemon=True) for number in (0, 1)]
    threads[1].start()
    time.sleep(0.8)
    assert threads[1].is_alive(), "it waits"
    threads[0].start()
    for thread in threads:
        thread.join(20)
    assert sorted(arrived) == [0, 1]


def test_a_single_process_has_nothing_to_compare() -> None:
    dist.require_equal({"x": 1})
    dist.barrier()
    assert dist.broadcast_text("x") == "x"
    assert not dist.stop()
