"""What a CPU computes, computed on a GPU: every stage, losses and gradients, resuming, one rank, sampling, shared prompts.

    pytest -m gpu tests/gpu

Skipped without CUDA. With TEST_DEVICE=cpu everything runs on a CPU, which shows that the tests themselves are right.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.model.test_decoding import FEATURES, PROMPTS, STOP, made
from tests.model.test_prefixes import batch
from tests.support import small
from tinyllm.cli.app import app
from tinyllm.io.files import sha256
from tinyllm.model import kernels
from tinyllm.model.decoding import Sampling, generate, graphs
from tinyllm.model.prefixes import SharedPrompts
from tinyllm.model.transformer import CausalLM
from tinyllm.train.engine import replicate_model

DEVICE = os.environ.get("TEST_DEVICE", "cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a GPU with CUDA"),
]
ROOT = Path(__file__).resolve().parents[2]
ROUNDING = 1e-4  # of the largest entry, in float32
ARCHITECTURES = sorted(FEATURES)


@pytest.fixture(scope="module")
def device() -> torch.device:
    return torch.device(DEVICE)


def built(name: str, device: torch.device) -> CausalLM:
    """A small model of an architecture, with windows where it has them."""
    more: dict[str, object] = {"num_key_value_heads": 4} if name == "gpt2" else {}
    if name in ("mistral", "gemma2", "gemma3_text"):
        more["sliding_window"] = 12
    return made(0.3, **(FEATURES[name] | more)).to(device)


def assert_close(found: Tensor, wanted: Tensor, rounding: float = ROUNDING) -> None:
    wanted = wanted.to(found.device)
    assert (found - wanted).abs().max() <= rounding * max(1.0, float(wanted.abs().max()))


# --- numbers ---------------------------------------------------------------------------------------------------------------------


def learned(model: CausalLM, rows: tuple[Tensor, ...], **layout: Tensor | None) -> list[Tensor]:
    """Return the log-probabilities of rows, and the gradients of their weighed sum."""
    ids, mask = (x.to(model.lm_head.weight.device) for x in rows[:2])
    given = {name: x if x is None else x.to(ids.device) for name, x in layout.items()}
    found = model.log_probs(ids, mask, **given)
    weights = torch.randn(ids.shape, generator=torch.Generator().manual_seed(1)).to(found)
    return [found.detach(), *torch.autograd.grad((found * weights).sum(), list(model.parameters()))]


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_loss_and_gradients_are_those_of_a_cpu(name: str, packed: bool, device: torch.device) -> None:
    rows = batch(53)
    documents = 1 + (torch.arange(rows[0].shape[1]) // 20).expand(rows[0].shape) if packed else None
    if documents is not None:  # the first token of a document is not scored
        rows = (rows[0], rows[1] & (torch.arange(rows[0].shape[1]) % 20 > 0), rows[2])
    there, here = (learned(built(name, place), rows, attend=documents) for place in (device, torch.device("cpu")))
    for a, b in zip(there, here, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_prompts_give_what_plain_rows_give(name: str, device: torch.device) -> None:
    rows = batch(53)
    assert SharedPrompts.of(*(x.to(device) for x in rows)) is not None
    model = built(name, device)
    for a, b in zip(learned(model, rows, group=rows[2]), learned(model, rows, group=None), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_packed_rows_in_bf16_are_their_documents(name: str, device: torch.device) -> None:
    """On a GPU without a mask, where the architecture allows that."""
    model = built(name, device)
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0):
        assert kernels.documents_kernel(device, torch.bfloat16, model.config.head_dim) is not None
    ids, length = batch(53)[0].to(device), 20
    ids = ids[:, : ids.shape[1] // length * length]
    alone = ids.reshape(-1, length)
    documents = 1 + (torch.arange(ids.shape[1], device=device) // length).expand(ids.shape)
    scored = (torch.arange(ids.shape[1], device=device) % length > 0).expand(ids.shape)
    with torch.autocast(device.type, torch.bfloat16):
        packed = learned(model, (ids, scored), attend=documents)[0].reshape(-1, length)
        apart = learned(model, (alone, scored.reshape(-1, length)))[0]
    assert apart.abs().mean() > 0
    assert (packed - apart).abs().mean() < 0.02


def test_bf16_is_near_float32(device: torch.device) -> None:
    rows = batch(53)
    model = made(0.1).to(device)
    plain = learned(model, rows, group=rows[2])[0]
    with torch.autocast(device.type, torch.bfloat16):
        narrow = learned(model, rows, group=rows[2])[0]
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - plain).abs().mean() < 0.02


# --- sampling --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", [False, True], ids=["eager", "graphs"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_decoding_is_the_forward_pass_without_a_cache(
    name: str, recorded: bool, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINYLLM_CUDA_GRAPHS", "1" if recorded else "0")
    monkeypatch.setattr(graphs, "AFTER", 3)
    model = built(name, device)
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, Sampling(20, temperature=0), rows=4), strict=True):
        assert len(completion.ids) == 20
        ids = torch.tensor([[*prompt, *completion.ids]], device=device)
        with torch.no_grad():
            logits = model.logits(model(ids))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, ids[0, len(prompt) :, None])[:, 0]
        assert (logits.max(1).values - chosen).max() < 1e-3, "not the best token, and no tie up to rounding"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_samples_are_those_of_a_cpu_with_the_same_log_probabilities(name: str, device: torch.device) -> None:
    """In float64: in float32 some of thousands of tokens lie so near a border that rounding decides."""
    sampling = Sampling(24, stop=STOP, seed=2)
    there, here = (
        generate(built(name, place).double(), PROMPTS, sampling, rows=6) for place in (device, torch.device("cpu"))
    )
    assert [c.ids for c in there] == [c.ids for c in here]
    for a, b in zip(there, here, strict=True):
        assert_close(torch.tensor(a.log_probs), torch.tensor(b.log_probs))


def test_sampling_in_bf16_reports_the_log_probabilities_of_a_forward_pass(device: torch.device) -> None:
    model = made(0.1).to(device).bfloat16()
    for prompt, completion in zip(PROMPTS, generate(model, PROMPTS, Sampling(24, seed=2)), strict=True):
        ids = torch.tensor([[*prompt, *completion.ids]], device=device)
        mask = torch.arange(ids.shape[1], device=device)[None] >= len(prompt)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            scored = model.log_probs(ids, mask)[0, len(prompt) :].cpu()
        assert (scored - torch.tensor(completion.log_probs)).abs().mean() < 0.05


# --- commands --------------------------------------------------------------------------------------------------------------------

STAGES = {  # in an order in which every parent comes before its children
    "pretrain": ["pretrain"],
    "sft": ["sft"],
    "sft-lora": ["sft", "--lora"],
    "rm": ["rm"],
    "dpo": ["align-offline", "--algorithm=dpo"],
    "grpo": ["align-online", "--algorithm=grpo"],
    "ppo": ["align-online", "--algorithm=ppo"],
}
SHORT = {"train.steps": 6, "train.eval_rows": 16, "train.eval_every": 3, "train.save_every": 3, "train.log_every": 1}


@pytest.fixture(scope="module", params=["bf16", "fp32"])
def precision(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def place(precision: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the stages of one precision follow each other."""
    folder, before = tmp_path_factory.mktemp(precision), Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def words(verb: list[str], device: torch.device, **settings: Any) -> list[str]:
    """A command line with a few short steps."""
    sets = [f"--set={key}={value}" for key, value in {**SHORT, **settings}.items()]
    return [*verb, f"--device={device.type}", "--json", *sets]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_to_its_end(
    stage: str, precision: str, place: Path, device: torch.device, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"train.precision": precision, "optim.warmup_steps": 1}
    app(words([*STAGES[stage], "--fast-dev-run"], device, **settings), standalone_mode=False, prog_name="tinyllm")
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == SHORT["train.steps"]
    assert (place / found["checkpoint"]).exists()
    rows = small.metrics(place / found["run"])
    assert len(rows) == SHORT["train.steps"]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in rows)
    assert len({row["loss"] for row in rows}) > 1
    if device.type == "cuda":
        assert all(row["gpu_memory_mb"] > 0 for row in rows)


# A GPU adds in any order unless this is asked of it; the setting of cuBLAS is read when a process begins.
EXACTLY = """
import json, signal, sys
import torch
from tinyllm import signals
from tinyllm.cli.app import app
from tinyllm.errors import UserError
from tinyllm.train.engine import Engine

torch.use_deterministic_algorithms(True)
stop, words = int(sys.argv[1]), json.loads(sys.argv[2])
step = Engine.step


def stopped(engine, batches, extra=None):
    if engine.updates + 1 == stop:
        signal.raise_signal(signal.SIGTERM)
    return step(engine, batches, extra)


Engine.step = stopped
signals.install()
try:
    app(words, standalone_mode=False, prog_name="tinyllm")
except UserError as error:
    sys.exit(error.code)
"""


def process(command: list[str], folder: Path) -> int:
    """Run a command and return its exit code; what it wrote is shown where a test fails."""
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    environment = {**os.environ, "PYTHONPATH": paths, "NO_COLOR": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    print(done.stdout[-2000:], done.stderr[-4000:])
    return done.returncode


def weights(run: Path) -> dict[str, str]:
    """Return the hashes of everything that training goes on from."""
    last = (run / "checkpoints" / "ckpt_latest").resolve()
    assert last.name == f"step-{SHORT['train.steps']:08d}"
    return {path.relative_to(last).as_posix(): sha256(path) for path in sorted(last.rglob("*.safetensors"))}


@pytest.mark.parametrize(("stage", "kind"), [("pretrain", "fp32"), ("pretrain", "bf16"), ("sft-lora", "bf16")])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    stage: str, kind: str, device: torch.device, tmp_path: Path
) -> None:
    settings = {"train.precision": kind, "train.dropout": 0.1, "optim.warmup_steps": 1, "train.batch_size": 4}
    settings |= {"train.micro_batch_size": 2, "data.max_length": 48, "train.save_every": 99}
    if stage == "pretrain":
        shape = small.SHAPE.model_dump(include={"hidden_size", "intermediate_size", "num_hidden_layers", "head_dim"})
        settings |= {f"model.{key}": value for key, value in shape.items()} | {"model.vocab_size": 300}
        settings["data.train"] = "[world:200]"
    else:
        small.saved(small.rough(scale=0.1), tmp_path / "parent")
        rows = [{"prompt": f"What is {i}?", "completion": "red, " * (1 + i % 5)} for i in range(40)]
        small.written(tmp_path / "answers.jsonl", rows)
        settings["data.train"] = "[answers.jsonl]"
    verb = STAGES[stage] + ([] if stage == "pretrain" else ["--checkpoint=parent"])

    def run(name: str, stop: int) -> int:
        line = words([*verb, f"--name={name}"], device, **settings)
        return process([sys.executable, "-c", EXACTLY, str(stop), json.dumps(line)], tmp_path)

    assert run("whole", 0) == 0
    assert run("stopped", 2) == 143  # SIGTERM in the second step, which is finished
    assert run("stopped", 0) == 0
    whole, stopped = (next((tmp_path / "runs").rglob(f"{name}/metrics.jsonl")).parent for name in ("whole", "stopped"))
    assert len(json.loads((stopped / "run.json").read_text())["sessions"]) == 2
    assert weights(whole) == weights(stopped)
    assert len(weights(whole)) >= 2  # the model and the optimizer


# --- ranks -----------------------------------------------------------------------------------------------------------------------


def test_torchrun_starts_one_rank(device: torch.device, tmp_path: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1", "-m", "tinyllm"]
    line = words(["pretrain", "--fast-dev-run"], device, **{"data.train": "[world:200]", "optim.warmup_steps": 1})
    assert process([*launcher, *line], tmp_path) == 0
    assert len(small.metrics(tmp_path / "runs/pretrain/fast-dev-run")) == SHORT["train.steps"]


def test_the_gradients_of_one_rank_with_nccl_are_those_without(device: torch.device) -> None:
    """A command joins no process group for a single rank, so the hooks of several are added to a model here."""
    rows = batch(53)
    alone = made(0.3).to(device)
    replicated = copy.deepcopy(alone)
    backend = "nccl" if device.type == "cuda" else "gloo"
    index = torch.device("cuda", torch.cuda.current_device()) if device.type == "cuda" else device
    torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        hooks = replicate_model(replicated, index)
        hooks.set_requires_gradient_sync(True)
        ids, mask = (x.to(device) for x in rows[:2])
        for model in (alone, replicated):
            model.log_prob_total(ids, mask).backward()
        total = torch.full((3,), 2.0, device=device)
        torch.distributed.all_reduce(total)
        assert total.tolist() == [2.0, 2.0, 2.0]
    finally:
        torch.distributed.destroy_process_group()
    for (name, a), b in zip(replicated.named_parameters(), alone.parameters(), strict=True):
        assert a.grad is not None, name
        assert b.grad is not None
        assert_close(a.grad, b.grad, 1e-5)
