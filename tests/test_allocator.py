"""The allocator's settings: chosen once, before a process does anything, and a training step takes less memory with them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm import allocator

pytestmark = pytest.mark.skipif(not allocator._is_glibc(), reason="settings of glibc")
RESTARTED = (
    "import os; from tinyllm import allocator; allocator.restart(); print(os.getpid(), os.environ['GLIBC_TUNABLES'])"
)
STEP = """
import torch
from tinyllm import allocator
from tinyllm.mean import Mean
from tinyllm.model import lora
from tinyllm.model.config import LoRAConfig, ModelConfig
from tinyllm.model.transformer import CausalLM
from tinyllm.train.config import OptimConfig
from tinyllm.train.engine import Engine
from tinyllm.train.memory import peak_memory_mb
torch.manual_seed(0)
shape = ModelConfig(vocab_size=300, hidden_size=384, intermediate_size=1024, num_hidden_layers=24, num_attention_heads=6,
                    num_key_value_heads=6, head_dim=64, max_position_embeddings=1024)
engine = Engine(lora.attach(CausalLM(shape), LoRAConfig()),
                lambda model, ids: (Mean(-model.log_probs(ids, ids > 0).sum(), (ids > 0).sum()), {}),
                OptimConfig(), 10, precision="fp32", seed=0)
engine.set_checkpointing(True)
ids = torch.randint(1, 300, (2, 1024))
ids[:, 0] = 0
before = peak_memory_mb()
engine.step([ids])
print(peak_memory_mb() - before)
"""


def ran(code: str, **env: str) -> tuple[int, list[str]]:
    clean = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**clean, **env}
    ) as process:
        assert process.stdout is not None
        words = process.stdout.read().split()
    assert process.returncode == 0
    return process.pid, words


def test_a_process_replaces_itself_once_with_all_settings() -> None:
    pid, (found, settings) = ran(RESTARTED)
    assert int(found) == pid
    assert settings.split(":")[:2] == ["glibc.malloc.tcache_count=0", "glibc.malloc.mxfast=0"]


def test_settings_of_the_user_stay() -> None:
    _, (_, settings) = ran(RESTARTED, GLIBC_TUNABLES="glibc.malloc.check=0")
    assert settings == "glibc.malloc.check=0"


def test_a_command_ends_as_it_does_without(tmp_path: Path) -> None:
    """Arguments, the directory, the exit code and the streams are those of the first process."""
    command = [sys.executable, "-m", "tinyllm", "sft", "--checkpoint", "no where", "--set", "data.train=[a b.jsonl]"]
    clean = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    found = [
        subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        for env in (clean, {**clean, "GLIBC_TUNABLES": ""})
    ]
    assert found[0].returncode == found[1].returncode == 2
    assert found[0].stderr == found[1].stderr
    assert "'no where'" in found[0].stderr


def test_a_program_from_standard_input_is_not_started_again(tmp_path: Path) -> None:
    """Nothing would be left of it."""
    program = "import sys\nsys.argv = ['tinyllm', 'eval', '--checkpoint', 'nope']\nfrom tinyllm.__main__ import main\nmain()\n"
    clean = {key: value for key, value in os.environ.items() if key != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-"], cwd=tmp_path, env=clean, input=program, capture_output=True, text=True)
    assert (done.returncode, "'nope'" in done.stderr) == (2, True)


def test_another_compilation_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """musl knows the name of glibc's version and has no value for it."""

    def confstr(name: str) -> str:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "confstr", confstr)
    allocator.reserve_small_blocks.__wrapped__()
    assert not allocator._is_glibc()


def test_training_reserves_blocks_once() -> None:
    code = STEP.replace(
        "engine.step([ids])", "Engine(engine.model, engine.loss, OptimConfig(), 10, precision='fp32', seed=0)"
    )
    code += "print(allocator.reserve_small_blocks.cache_info().misses)"
    assert ran(code)[1][1] == "1"


@pytest.mark.slow
def test_a_step_takes_less_memory() -> None:
    settings = ran(RESTARTED)[1][1]
    unreserved = STEP.replace("torch.manual_seed(0)", "allocator.reserve_small_blocks = lambda: None")
    default, with_settings, with_blocks = (
        int(ran(code, GLIBC_TUNABLES=value)[1][0])
        for code, value in ((unreserved, ""), (unreserved, settings), (STEP, settings))
    )
    assert with_settings < 0.8 * default
    assert with_blocks < 0.8 * with_settings


def test_zeros_in_huge_pages_are_zeros_that_can_be_written() -> None:
    assert allocator.zeros_in_huge_pages(1 << 20) is None
    found = allocator.zeros_in_huge_pages(5 << 20)
    assert (found is not None) == (sys.platform == "linux")
    if found is not None:
        assert found[:] == bytes(5 << 20)
        found[-1] = 7
        assert found[-1] == 7
