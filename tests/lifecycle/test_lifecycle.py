"""The smoke test as a user runs it: one command in a subprocess, then single commands on its runs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents import pages, run_directories
from tinyllm.lifecycle.stages import SMOKE_TEST

pytestmark = pytest.mark.timeout(600)  # a minute on two quiet cores; four where other work takes one of them
LOWER_IS_BETTER = {"pretrain", "eval", "sft", "sft-lora"}


def python_module(*command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "NO_COLOR": "1", **environment}  # OMP_NUM_THREADS: see conftest.py
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=env, capture_output=True, text=True, timeout=580
    )


def tinyllm(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    return python_module("tinyllm", *arguments, cwd=cwd, **environment)


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("smoke")
    done = tinyllm("lifecycle", "--smoke", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout)


def test_every_stage_ran_and_improved_its_metric(smoke: tuple[Path, dict]) -> None:
    _, found = smoke
    assert [row["stage"] for row in found["stages"]] == list(SMOKE_TEST)
    for row in found["stages"]:
        before, after = row["moved"]["from"], row["moved"]["to"]
        if row["stage"] in ("data", "eval"):  # they do not train: there is nothing to compare with
            assert before is None
            continue
        assert row["stage"] == "chat" or row["moved"]["split"] == "test"
        assert (after < before) == (row["stage"] in LOWER_IS_BETTER), row["moved"]
        assert before != after


def test_metrics_improve_by_more_than_chance(smoke: tuple[Path, dict]) -> None:
    """Bounds that only learning passes."""
    moved = {row["stage"]: row["moved"] for row in smoke[1]["stages"]}
    assert moved["pretrain"]["to"] < 0.65 * moved["pretrain"]["from"]
    assert moved["sft"]["to"] < 0.7 * moved["sft"]["from"]
    assert moved["rm"]["to"] > 0.65
    assert abs(moved["dpo"]["from"]) < 1e-3  # policy = reference
    assert moved["dpo"]["to"] > 0.3
    dpo = next(row for row in smoke[1]["stages"] if row["stage"] == "dpo")
    assert dpo["before"]["loss"] == pytest.approx(0.6931, abs=2e-4)
    assert dpo["best"]["loss"] < 0.66
    for name in ("ppo", "gspo", "grpo"):
        assert moved[name]["to"] > moved[name]["from"] + 0.02  # of 128 test prompts
        row = next(row for row in smoke[1]["stages"] if row["stage"] == name)
        assert row["best"]["reward"] > row["before"]["reward"] + 0.05


def test_peak_memory_is_bounded(smoke: tuple[Path, dict]) -> None:
    assert 0 < smoke[1]["peak_memory_mb"] < 1500


def test_run_directories_and_checkpoints_are_complete(smoke: tuple[Path, dict]) -> None:
    folder, _ = smoke
    for place in ("pretrain", "sft/full", "sft/peft/lora", "rlhf/rm"):
        run = folder / "runs" / place / "fast-dev-run"
        facts = json.loads((run / "run.json").read_text())
        assert facts["status"] == "completed"
        assert (facts["parent"] is None) == (place == "pretrain")
        if facts["parent"]:
            assert len(facts["parent"]["manifest_sha256"]) == 64
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {"step", "split", "loss", "lr", "grad_norm", "tokens", "tokens_per_second"} <= set(
            next(row for row in rows if row["split"] == "train")
        )
        assert {row["split"] for row in rows} == {"train", "eval", "test"}
        checkpoint = run / "checkpoints" / "ckpt_best"
        assert checkpoint.is_symlink()
        names = {p.name for p in checkpoint.iterdir()}
        assert {"manifest.json", "trainer", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"} <= names
        weights = (
            {"adapter_config.json", "adapter_model.safetensors"}
            if "lora" in place
            else {"config.json", "model.safetensors"}
        )
        assert weights <= names
    for name in ("offline/dpo", "offline/orpo", "online/ppo", "online/gspo", "online/grpo"):
        assert (
            folder / "runs" / "rlhf" / f"{name}-fast-dev-run" / "checkpoints" / "ckpt_latest" / "model.safetensors"
        ).is_file()


ERRORS_IN_THE_GUIDE = {  # old, new, what is reported; in the English guide or the Chinese one
    "a file": ("| `logs/run.log` |", "| `logs/training.log` |", "logs/training.log"),
    "a file of a checkpoint": ("    ├── tinyllm.json ", "    ├── stage.json ", "stage.json"),
    "a key of run.json": ("`tokenizer_sha256`", "`tokenizer_hash`", "tokenizer_sha256"),
    "a key of every train line": ("| `grad_norm` |", "| `gradient_norm` |", "gradient_norm"),
    "a metric that is not logged": ("`log_odds_ratio`", "`odds_ratio`", "odds_ratio"),
    "a metric of an algorithm": ("`sequence_ratio`", "`ratio_of_sequences`", "sequence_ratio"),
}


def test_run_directories_are_as_documented(smoke: tuple[Path, dict]) -> None:
    runs, documents = smoke[0] / "runs", pages.load()
    seen = run_directories.compare(documents, runs)
    assert not seen.wrong, "\n".join(seen.wrong)
    assert seen.count > 800
    for name, (old, new, reported) in ERRORS_IN_THE_GUIDE.items():
        for page in run_directories.GUIDES:
            assert old in documents[page], (name, page)
            wrong = run_directories.compare({**documents, page: documents[page].replace(old, new)}, runs).wrong
            assert any(reported in line and line.startswith(page) for line in wrong), (name, page)


@pytest.mark.parity
def test_transformers_and_peft_load_the_checkpoints(smoke: tuple[Path, dict]) -> None:
    """No missing keys, equal logits, equal greedy tokens, equal chat ids, with the auto classes and through the links."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    import torch

    from tinyllm.model import hub
    from tinyllm.model.decoding import Sampling, generate
    from tinyllm.text import chat
    from tinyllm.text.tokenizer import Tokenizer

    folder = smoke[0] / "runs" / "sft" / "full" / "fast-dev-run" / "checkpoints" / "ckpt_best"
    theirs, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    ours, tokenizer = hub.load_causal_lm(folder), Tokenizer.load(folder)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Who lives in Fernby?\n"}]
    ids = chat.render(tokenizer, messages, generation_prompt=True).ids
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    assert auto.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
    row = torch.tensor([ids])
    with torch.no_grad():
        torch.testing.assert_close(theirs(row).logits, ours.logits(ours(row)), atol=1e-5, rtol=0)
    got = generate(ours, [ids], Sampling(24, temperature=0, stop=tokenizer.stop_ids))[0].ids
    want = theirs.generate(row, attention_mask=torch.ones_like(row), max_new_tokens=24, do_sample=False)[
        0, len(ids) :
    ].tolist()
    assert got == want
    adapter = smoke[0] / "runs" / "sft" / "peft" / "lora" / "fast-dev-run" / "checkpoints" / "ckpt_best"
    base = smoke[0] / json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    mine = hub.load_causal_lm(adapter)
    with torch.no_grad():
        torch.testing.assert_close(adapted(row).logits, mine.logits(mine(row)), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_command_repeated_writes_the_same_weights(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    """A fast-dev-run replaces its previous output. In a process of its own it trains the weights of the smoke test, bit for bit."""
    shutil.copytree(smoke[0] / "runs", tmp_path / "runs", symlinks=True)
    run = Path("runs/rlhf/offline/dpo-fast-dev-run")
    weights = run / "checkpoints" / "ckpt_latest" / "model.safetensors"
    before = (tmp_path / run / "run.json").stat().st_mtime_ns
    done = tinyllm("align-offline", "--fast-dev-run", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / run / "run.json").stat().st_mtime_ns > before
    assert (tmp_path / weights).read_bytes() == (smoke[0] / weights).read_bytes()
    row = next(row for row in smoke[1]["stages"] if row["stage"] == "dpo")
    assert json.loads(done.stdout)["best"] == row["best"]


@pytest.mark.slow  # test_resume.py stops every kind of run, in a process of its own
def test_an_interrupted_run_resumes_to_the_same_weights(smoke: tuple[Path, dict], tmp_path: Path) -> None:
    """Equal weights without and with an interruption. Another configuration in the same place is refused."""
    shutil.copytree(smoke[0] / "runs", tmp_path / "runs", symlinks=True)
    parent = "runs/sft/full/fast-dev-run"
    sets = ("data.train=[world:300]", "data.max_length=128", "train.batch_size=8", "train.micro_batch_size=4")
    sets += ("train.eval_every=4", "train.save_every=2", "train.steps=8", "train.eval_rows=16", "train.keep=9")
    common = ["align-offline", "--checkpoint", parent, *(part for s in sets for part in ("--set", s))]
    whole = tinyllm(*common, "--name", "whole", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert whole.returncode == 0, whole.stderr
    runs = tmp_path / "runs" / "rlhf" / "offline"
    shutil.copytree(runs / "dpo-whole", runs / "dpo-cut", symlinks=True)
    cut = runs / "dpo-cut"
    (cut / "config.yaml").write_text((cut / "config.yaml").read_text().replace("name: whole", "name: cut"))
    for step in ("step-00000006", "step-00000008"):
        shutil.rmtree(cut / "checkpoints" / step)
    again = tinyllm(*common, "--name", "cut", cwd=tmp_path, OMP_NUM_THREADS="1")
    assert again.returncode == 0, again.stderr
    assert "resuming" in again.stderr
    end = Path("checkpoints") / "step-00000008" / "model.safetensors"
    assert (cut / end).read_bytes() == (runs / "dpo-whole" / end).read_bytes()
    other = tinyllm(*common, "--name", "cut", "--set", "dpo.beta=0.5", cwd=tmp_path)
    assert other.returncode == 2
    assert "dpo.beta: 0.1 -> 0.5" in other.stderr


def test_chat_answers_and_ends_with_eos(smoke: tuple[Path, dict]) -> None:
    done = tinyllm("chat", "--fast-dev-run", "-p", "Sort these digits: 5 2 9 1", "--json", cwd=smoke[0])
    assert done.returncode == 0, done.stderr
    exchange = json.loads(done.stdout)["exchanges"][0]
    assert exchange["finished"]
    assert exchange["answer"]


@pytest.mark.slow
@pytest.mark.two_cores
def test_two_ranks_by_nproc_and_under_torchrun(tmp_path: Path) -> None:
    """Both give the loss curve of one rank: the records of a step do not depend on the number of ranks."""
    sets = ("train.steps=6", "data.train=[world:300]", "train.eval_rows=8", "train.precision=fp32")
    command = ["pretrain", "--fast-dev-run", "--json", "--quiet", *(part for s in sets for part in ("--set", s))]
    torchrun = ["torch.distributed.run", "--nproc_per_node=2", "--standalone", "-m", "tinyllm"]
    losses = {}
    for name, module, more in (
        ("one", ["tinyllm"], []),
        ("nproc", ["tinyllm"], ["--nproc", "2"]),
        ("run", torchrun, []),
    ):
        folder = tmp_path / name
        folder.mkdir()
        if name != "one":  # the same shards
            shutil.copytree(tmp_path / "one" / "runs" / "data", folder / "runs" / "data")
        done = python_module(*module, *command, *more, cwd=folder, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr[-2000:]
        rows = (folder / "runs" / "pretrain" / "fast-dev-run" / "metrics.jsonl").read_text().splitlines()
        losses[name] = [json.loads(r)["loss"] for r in rows]
        assert json.loads(done.stdout)["stage"] == "pretrain"
    assert losses["nproc"] == pytest.approx(losses["one"], abs=1e-4)
    assert losses["run"] == pytest.approx(losses["nproc"], abs=1e-6)
    shutil.copytree(tmp_path / "one" / "runs" / "data", tmp_path / "srun" / "runs" / "data")
    assert_two_tasks_of_srun_agree(command, tmp_path / "srun", tmp_path / "run")


def assert_two_tasks_of_srun_agree(command: list[str], folder: Path, other: Path) -> None:
    """Two processes with SLURM's variables are two ranks: the same bytes of weights as under torchrun."""
    job = {
        "SLURM_JOB_ID": "9",
        "SLURM_STEP_ID": "3",
        "SLURM_NTASKS": "2",
        "SLURM_JOB_NODELIST": "n1",
        "SLURM_NODEID": "0",
    }
    env = {**os.environ, **job, "OMP_NUM_THREADS": "1"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-m", "tinyllm", *command],
            cwd=folder,
            env={**env, "SLURM_PROCID": rank, "SLURM_LOCALID": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    (out, log), second = [task.communicate(timeout=120) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], log + second[1]
    assert json.loads(out)["stage"] == "pretrain"
    assert second == ("", "")
    run = "runs/pretrain/fast-dev-run"
    weights = f"{run}/checkpoints/ckpt_best/model.safetensors"
    assert (folder / weights).read_bytes() == (other / weights).read_bytes()
    assert json.loads((folder / run / "run.json").read_text())["world_size"] == 2


@pytest.mark.two_cores
def test_the_command_exits_with_the_code_of_its_ranks(tmp_path: Path) -> None:
    done = tinyllm("sft", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
