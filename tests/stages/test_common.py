"""Figures over two ranks are those of one: held-out losses, perplexity, rewards, whitening, and the gradient itself."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import ranks

pytestmark = pytest.mark.two_cores

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    torch.set_num_threads(1)
    return json.loads(json.dumps(ranks.everything()))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks") / "found.json"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "USE_LIBUV": "0"}
    started = [
        subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "support" / "ranks.py"), str(out)],
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        output = [process.communicate(timeout=60)[1] for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], output[0][-2000:] + output[1][-2000:]
    return json.loads(out.read_text())


def close(got: Any, want: Any) -> None:
    if isinstance(want, list) and isinstance(want[0], dict):
        for a, b in zip(got, want, strict=True):
            close(a, b)
        return
    assert got == pytest.approx(want, abs=1e-5, rel=1e-5)


@pytest.mark.parametrize("what", ["documents", "held_out", "step", "moments", "answers"])
def test_two_ranks_compute_what_one_computes(what: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    close(two[what], one[what])


def test_document_figures_do_not_depend_on_the_rows_in_a_forward_pass(one: dict[str, Any]) -> None:
    for figures in one["documents"][1:]:
        close(figures, one["documents"][0])
