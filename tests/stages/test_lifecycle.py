"""The whole life as a user would run it: one command in a subprocess, then single commands on what it left."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

STAGES = ["data", "pretrain", "eval", "sft", "sft-lora", "chat", "rm", "dpo", "orpo", "ppo", "gspo", "grpo"]
LOWER_IS_BETTER = {"pretrain", "eval", "sft", "sft-lora"}


def tinyllm(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "2", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [sys.executable, "-m", "tinyllm", *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=280
    )


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("life")
    done = tinyllm("lifecycle", "--smoke", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, json.loads(done.stdout)


def test_every_stage_ran_and_its_figure_moved_the_right_way(life: tuple[Path, dict]) -> None:
    _, found = life
    assert [row["stage"] for row in found["stages"]] == STAGES
    for row in found["stages"]:
        before, after = row["moved"]["from"], row["moved"]["to"]
        assert (after < before) == (row["stage"] in LOWER_IS_BETTER), row["moved"]
        assert before != after


def test_how_far_they_moved(life: tuple[Path, dict]) -> None:
    """Bounds that only learning passes, well inside what is usual (the README has the figures)."""
    moved = {row["stage"]: row["moved"] for row in life[1]["stages"]}
    assert moved["pretrain"]["to"] < 0.65 * moved["pretrain"]["from"]
    assert moved["sft"]["to"] < 0.7 * moved["sft"]["from"]
    assert moved["rm"]["to"] > 0.65
    assert abs(moved["dpo"]["from"]) < 1e-3  # policy = reference
    assert moved["dpo"]["to"] > 0.3
    dpo = next(row for row in life[1]["stages"] if row["stage"] == "dpo")
    assert dpo["before"]["loss"] == pytest.approx(0.6931, abs=2e-4)
    assert dpo["best"]["loss"] < 0.66
    for name in ("ppo", "gspo", "grpo"):
        assert moved[name]["to"] > moved[name]["from"] + 0.05


def test_memory_stays_within_its_bound(life: tuple[Path, dict]) -> None:
    assert 0 < life[1]["peak_memory_mb"] < 1500


def test_run_directories_are_a_complete_account(life: tuple[Path, dict]) -> None:
    folder, _ = life
    for place in ("pretrain", "sft/full", "sft/peft/lora", "rlhf/rm"):
        run = folder / "runs" / place / "fast-dev-run"
        facts = json.loads((run / "run.json").read_text())
        assert facts["status"] == "completed"
        assert (facts["parent"] is None) == (place == "pretrain")
        if facts["parent"]:
            assert len(facts["parent"]["manifest_sha256"]) == 64
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert {"step", "split", "loss", "lr", "grad_norm", "tokens", "tokens_per_second"} <= set(rows[1])
        assert {row["split"] for row in rows} == {"train", "eval"}
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


@pytest.mark.parity
def test_transformers_and_peft_open_what_was_written(life: tuple[Path, dict]) -> None:
    """No missing key, equal logits, equal greedy tokens, equal chat ids, through the auto classes and the links."""
    transformers, peft = pytest.importorskip("transformers"), pytest.importorskip("peft")
    import torch

    from tinyllm.model import hub
    from tinyllm.model.generate import Sampling, generate
    from tinyllm.text import chat
    from tinyllm.text.tokenizer import Tokenizer

    folder = life[0] / "runs" / "sft" / "full" / "fast-dev-run" / "checkpoints" / "ckpt_best"
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
    adapter = life[0] / "runs" / "sft" / "peft" / "lora" / "fast-dev-run" / "checkpoints" / "ckpt_best"
    base = life[0] / json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]
    adapted = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    mine = hub.load_causal_lm(adapter)
    with torch.no_grad():
        torch.testing.assert_close(adapted(row).logits, mine.logits(mine(row)), atol=1e-5, rtol=0)


def test_the_same_command_again_is_the_same_run(life: tuple[Path, dict], tmp_path: Path) -> None:
    """The rehearsal removes its own output first; seeds fix the rest: bit for bit the same weights."""
    shutil.copytree(life[0] / "runs", tmp_path / "runs", symlinks=True)
    weights = (
        tmp_path
        / "runs"
        / "rlhf"
        / "offline"
        / "dpo-fast-dev-run"
        / "checkpoints"
        / "ckpt_latest"
        / "model.safetensors"
    )
    done = [tinyllm("align-offline", "--fast-dev-run", "--json", cwd=tmp_path, OMP_NUM_THREADS="1") for _ in range(1)]
    first = weights.read_bytes()
    done.append(tinyllm("align-offline", "--fast-dev-run", "--json", cwd=tmp_path, OMP_NUM_THREADS="1"))
    assert all(d.returncode == 0 for d in done), done[-1].stderr
    assert weights.read_bytes() == first
    assert json.loads(done[0].stdout)["best"] == json.loads(done[1].stdout)["best"]


def test_a_stopped_run_goes_on_where_it_was(life: tuple[Path, dict], tmp_path: Path) -> None:
    """Trained in one go, and stopped half way and resumed: equal weights. Another configuration in the same place is refused."""
    shutil.copytree(life[0] / "runs", tmp_path / "runs", symlinks=True)
    parent = "runs/sft/full/fast-dev-run"
    common = [
        "align-offline",
        "--checkpoint",
        parent,
        "--set",
        "data.train=[world:300]",
        "--set",
        "data.max_length=128",
    ]
    common += [
        "--set",
        "train.batch_size=8",
        "--set",
        "train.micro_batch_size=4",
        "--set",
        "train.eval_every=4",
        "--set",
        "train.save_every=2",
    ]
    common += ["--set", "train.steps=8", "--set", "train.eval_rows=16", "--set", "train.keep=9"]
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


def test_chat_answers_and_stops(life: tuple[Path, dict]) -> None:
    done = tinyllm("chat", "--fast-dev-run", "-p", "Sort these digits: 5 2 9 1", "--json", cwd=life[0])
    assert done.returncode == 0, done.stderr
    exchange = json.loads(done.stdout)["exchanges"][0]
    assert exchange["finished"]
    assert exchange["answer"]


def test_two_ranks_by_nproc_and_under_torchrun(tmp_path: Path) -> None:
    """Both ways start; the loss curve is one rank's (the records of a step do not depend on the number of ranks)."""
    small = [
        "--set",
        "train.steps=6",
        "--set",
        "data.train=[world:300]",
        "--set",
        "train.eval_rows=8",
        "--set",
        "train.precision=fp32",
    ]
    command = ["pretrain", "--fast-dev-run", *small, "--json", "--quiet"]
    losses = {}
    for way in ("one", "nproc", "torchrun"):
        folder = tmp_path / way
        folder.mkdir()
        if way == "torchrun":
            launcher = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--nproc_per_node=2",
                "--standalone",
                "-m",
                "tinyllm",
            ]
            env = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*launcher, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=200
            )
        else:
            done = tinyllm(*command, *(["--nproc", "2"] if way == "nproc" else []), cwd=folder)
        assert done.returncode == 0, done.stderr[-2000:]
        rows = (folder / "runs" / "pretrain" / "fast-dev-run" / "metrics.jsonl").read_text().splitlines()
        losses[way] = [json.loads(r)["loss"] for r in rows]
        assert json.loads(done.stdout)["stage"] == "pretrain"
    assert losses["nproc"] == pytest.approx(losses["one"], abs=1e-4)
    assert losses["torchrun"] == pytest.approx(losses["nproc"], abs=1e-6)


def test_a_rank_s_exit_code_comes_through(tmp_path: Path) -> None:
    done = tinyllm("sft", "--nproc", "2", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("error: ") == 1
