"""Ranks started by `srun` and `mpirun`: their variables as SLURM 22.05, Open MPI 4.1 and MPICH 4.0 set them."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tinyllm import cli
from tinyllm import distributed as dist
from tinyllm.distributed import ranks, schedulers
from tinyllm.errors import UserError
from tinyllm.stages.common import set_up
from tinyllm.stages.config import SftConfig

STEP = {
    "SLURM_JOB_ID": "4242",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "7",
    "SLURM_STEP_NUM_TASKS": "7",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3),1",
    "SLURM_STEP_NODELIST": "node[008-010],gpu5",
    "SLURM_JOB_NODELIST": "login1,node[008-010],gpu5",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
OPEN_MPI = {
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "3",
    "PMIX_NAMESPACE": "1738997761",
}
MPICH = {"PMI_SIZE": "4", "PMI_RANK": "1", "MPI_LOCALNRANKS": "2", "MPI_LOCALRANKID": "1"}
MASTER = {"MASTER_ADDR": "h", "MASTER_PORT": "29500"}
ONE_NODE = {
    "SLURM_NTASKS": "2",
    "SLURM_JOB_NODELIST": "n1",
    "SLURM_NODEID": "0",
    "SLURM_STEP_ID": "3",
    "SLURM_JOB_ID": "9",
}


@pytest.fixture(autouse=True)
def nothing_launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No rank variables before a test, and none left by it: `check_environment` sets them."""
    before = dict(os.environ)
    monkeypatch.setattr(ranks, "_launched", None)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("node[001-003,007],gpu5", "node001 node002 node003 node007 gpu5"),
        ("n1", "n1"),
        ("a-1.cluster,b_2", "a-1.cluster b_2"),
        ("r[1-2]n[09-11]x,z", "r1n09x r1n10x r1n11x r2n09x r2n10x r2n11x z"),
        ("node[8-10]", "node8 node9 node10"),
        ("", ""),
    ],
)
def test_node_lists_are_expanded(text: str, names: str) -> None:
    assert list(schedulers.hosts(text)) == names.split()


@pytest.mark.parametrize("text", ["node[001-", "node]", "node[a-b]", "a b", "n[1-2", "n[]", "n\x1b[1]", "[[1]]"])
def test_other_texts_are_no_node_lists(text: str) -> None:
    with pytest.raises(UserError, match="is not a list of nodes"):
        list(schedulers.hosts(text))


def test_a_list_of_very_many_nodes_is_not_expanded_as_a_whole() -> None:
    assert list(itertools.islice(schedulers.hosts("n[1-999999999999]"), 2)) == ["n1", "n2"]


def test_a_step_of_srun_becomes_the_variables_of_torchrun() -> None:
    found = schedulers.variables(STEP)
    port = found.pop("MASTER_PORT")
    assert found == {
        "RANK": "5",
        "WORLD_SIZE": "7",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "node008",
    }
    assert 20_000 <= int(port) < 30_000
    rank_6 = {**STEP, "SLURM_PROCID": "6", "SLURM_NODEID": "3", "SLURM_LOCALID": "0"}
    assert schedulers.variables(rank_6)["MASTER_PORT"] == port
    assert schedulers.variables(rank_6)["LOCAL_WORLD_SIZE"] == "1"
    others = [{**STEP, "SLURM_STEP_ID": "1"}, {**STEP, "SLURM_JOB_ID": "4243"}]
    assert port not in {schedulers.variables(other)["MASTER_PORT"] for other in others}


def test_the_fewest_variables_of_a_step_on_one_node() -> None:
    found = schedulers.variables({**ONE_NODE, "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("1", "2", "2")
    assert found["MASTER_ADDR"] == "127.0.0.1"


def without(variables: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name not in names}


@pytest.mark.parametrize(
    "variables",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_NODELIST": "n[1-2]"}, id="salloc's shell"),
        pytest.param(without(STEP, "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS") | {"SLURM_PROCID": "0"}, id="batch script"),
        pytest.param({**STEP, "SLURM_STEP_ID": "4294967290"}, id="interactive step"),
        pytest.param({**STEP, "SLURM_STEP_ID": "4294967291"}, id="batch step"),
        pytest.param({**STEP, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, id="srun -n1 in a job of 7"),
        pytest.param({**STEP, "RANK": "0", "WORLD_SIZE": "1"}, id="torchrun in a step"),
        pytest.param({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2", **MASTER}, id="torchrun under mpirun"),
        pytest.param({"OMPI_COMM_WORLD_SIZE": "1", "OMPI_COMM_WORLD_RANK": "0"}, id="mpirun -n 1"),
        pytest.param({"PMI_SIZE": "1", "PMI_RANK": "0"}, id="mpiexec -n 1"),
    ],
)
def test_these_are_not_ranks_of_a_scheduler(variables: dict[str, str]) -> None:
    assert schedulers.variables(variables) == {}


@pytest.mark.parametrize(
    ("variables", "what", "where"),
    [
        ({**STEP, "SLURM_PROCID": "x"}, "SLURM_PROCID is 'x', not a number", "SLURM_PROCID"),
        (without(STEP, "SLURM_PROCID"), "SLURM_PROCID is not set", "SLURM_PROCID"),
        ({**STEP, "SLURM_PROCID": "7"}, "SLURM_PROCID is 7 of 7", "SLURM_PROCID"),
        ({**STEP, "SLURM_LOCALID": "2"}, "SLURM_LOCALID is 2 of 2", "SLURM_LOCALID"),
        ({**STEP, "SLURM_STEP_ID": "nine"}, "SLURM_STEP_ID is 'nine', not a number", "SLURM_STEP_ID"),
        ({**STEP, "SLURM_STEP_NODELIST": "n[1-"}, "'n[1-' is not a list of nodes", "SLURM_STEP_NODELIST"),
        ({**STEP, "SLURM_STEP_TASKS_PER_NODE": "2(x2)"}, "'2(x2)', do not add up to 7", "SLURM_STEP_TASKS_PER_NODE"),
        ({**STEP, "WORLD_SIZE": "8"}, "WORLD_SIZE is '8', and srun started 7 processes: expected 7", "WORLD_SIZE"),
        ({**STEP, "RANK": "0"}, "RANK is '0', and srun started 7 processes: expected 5", "RANK"),
        (without(STEP, "SLURM_JOB_ID"), "srun started 7 processes and does not tell a free port", "MASTER_PORT"),
        ({**OPEN_MPI, "OMPI_COMM_WORLD_LOCAL_SIZE": "4", "OMPI_COMM_WORLD_SIZE": "8"}, "the host name", "MASTER_ADDR"),
        (MPICH, "mpirun started 4 processes and does not tell the host name of rank 0", "MASTER_ADDR"),
        (without(MPICH, "PMI_RANK"), "PMI_RANK is not set", "PMI_RANK"),
        (without(MPICH, "MPI_LOCALRANKID"), "MPI_LOCALRANKID is not set", "MPI_LOCALRANKID"),
    ],
)
def test_incomplete_and_contradictory_variables_are_refused(variables: dict[str, str], what: str, where: str) -> None:
    with pytest.raises(UserError) as caught:
        schedulers.variables(variables)
    assert what in caught.value.what
    assert (caught.value.where, caught.value.code) == (f"env {where}", 2)
    assert any(word in caught.value.fix for word in ("torchrun", "RANK=0"))


def test_variables_that_the_user_exports_for_all_tasks_are_kept() -> None:
    """Job scripts often export WORLD_SIZE and the address, and leave the rank to the program."""
    found = schedulers.variables({**STEP, "WORLD_SIZE": "7", **MASTER})
    assert (found["RANK"], found["WORLD_SIZE"]) == ("5", "7")
    assert not MASTER.keys() & found.keys()


def test_ranks_of_mpirun() -> None:
    found = schedulers.variables(OPEN_MPI)
    assert (found["RANK"], found["LOCAL_RANK"], found["MASTER_ADDR"]) == ("3", "3", "127.0.0.1")
    found = schedulers.variables({**MPICH, **MASTER})
    assert (found["RANK"], found["WORLD_SIZE"], found["LOCAL_WORLD_SIZE"]) == ("1", "4", "2")


def test_the_innermost_launcher_counts() -> None:
    """mpirun in a job starts its helpers with srun, one a node; `srun --mpi=pmi2` sets the variables of both."""
    helper = {
        **STEP,
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "1(x2)",
        "SLURM_PROCID": "1",
        "SLURM_NODEID": "1",
    }
    helper |= {"SLURM_LOCALID": "0", "SLURM_STEP_NODELIST": "n[1-2]"}
    assert schedulers.variables({**helper, **OPEN_MPI})["WORLD_SIZE"] == "4"
    assert schedulers.variables({**helper, **MPICH, **MASTER})["WORLD_SIZE"] == "4"
    found = schedulers.variables({**STEP, "PMI_RANK": "5", "PMI_SIZE": "7"})
    assert (found["RANK"], found["WORLD_SIZE"], found["MASTER_ADDR"]) == ("5", "7", "node008")


def test_threads_and_gpus_of_tasks_that_srun_binds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task bound to 4 of 28 cores uses 4 threads, not 4 / 2; a task that sees one of two GPUs uses number 0."""
    monkeypatch.setattr(ranks, "cores", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "28")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "2")
    dist.check_environment()
    assert (dist.local_world_size(), dist.threads_per_rank(), dist.is_overloaded()) == (2, 4, False)
    assert (dist.gpu(visible=1), dist.gpu(visible=2)) == (0, 1)
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "4")  # shared by the tasks
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    assert dist.threads_per_rank() == 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert dist.threads_per_rank() == 3
    assert dist.gpu(visible=1) == 1  # which does not exist, and is refused


def test_more_ranks_than_cores_are_a_warning(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for there, warned in ((3, False), (2, True)):
        monkeypatch.setattr(ranks, "cores", lambda there=there: there)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        assert dist.is_overloaded() == warned
    monkeypatch.setattr(dist, "cores", lambda: 2)
    set_up(SftConfig(device="cpu"))
    assert "warning: 3 ranks share 2 cores; --nproc 2 is faster" in capsys.readouterr().err


def test_tasks_that_a_batch_script_leaves_idle_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in without(STEP, "SLURM_STEP_ID").items():
        monkeypatch.setenv(name, value)
    dist.check_environment()
    assert (dist.world_size(), dist.launched(), dist.idle_tasks()) == (1, None, 7)
    monkeypatch.delenv("SLURM_PROCID")  # the shell of salloc
    assert dist.idle_tasks() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "fix"),
    [
        (["data", "prepare"], "prepare runs as one process, and 7 were started (env WORLD_SIZE)", "without srun"),
        (["data", "download", "mmlu"], "download runs as one process, and 7 were started", "without srun"),
        (["lifecycle", "--smoke"], "lifecycle runs as one process, and 7 were started", "without srun"),
        (
            ["pretrain", "--nproc", "2"],
            "--nproc 2, and 7 ranks have been started already (--nproc)",
            "leave out --nproc",
        ),
    ],
)
def test_commands_that_several_tasks_cannot_run(
    arguments: list[str], error: str, fix: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {**STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "_checked", False)
    assert cli.run(arguments) == 2
    assert error in (printed := capsys.readouterr().err)
    assert fix in printed
