"""TRL and PEFT as independent oracles: the same loss and the same gradient on the same weights and records.

In float64, within 1e-5: transformers normalises in float32 whatever the model's type is, so more digits cannot agree.
"""

from __future__ import annotations

import pytest
import torch

for package in ("transformers", "trl", "peft"):
    pytest.importorskip(package)
from tests.parity import cases, tiny  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", cases.CASES)
def test_loss_and_gradient_equal_the_oracle(name: str) -> None:
    ours, oracle, _ = cases.CASES[name]()
    found = tiny.difference(ours, oracle)
    assert found.loss < TOLERANCE, f"loss {ours.loss}, oracle {oracle.loss}"
    assert found.gradient < TOLERANCE
