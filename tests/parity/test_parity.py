"""TRL and PEFT as independent oracles: the same loss and the same gradient on the same weights and records.

In float64, within 1e-5: transformers normalises in float32 whatever the model's type is, so more digits cannot agree. Gradients are
compared entry by entry. Every comparison is seen to fail: with each mistake of `bugs` planted on our side, the gradient is at least
`FAR` from the oracle's.
"""

from __future__ import annotations

import pytest
import torch

for package in ("transformers", "trl", "peft"):
    pytest.importorskip(package)
from tests.parity import bugs, cases, tiny  # noqa: E402

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]
TOLERANCE = 1e-5
FAR = 1e-3


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", cases.CASES)
def test_loss_and_gradient_equal_the_oracle(name: str) -> None:
    case = cases.of(name)
    ours, oracle = case.ours(tiny.NONE), case.oracle()
    found = tiny.difference(ours, oracle)
    assert found.loss < TOLERANCE, f"loss {ours.loss}, oracle {oracle.loss}"
    assert found.gradient < TOLERANCE
    assert ours.tokens > 15
    assert ours.norm > 0.05
    assert (ours.clipped is not None) == (name in cases.ROLLOUTS)
    if ours.clipped is not None:
        assert 0.05 < ours.clipped < 0.6, "all or nothing is clipped"


@pytest.mark.parametrize("name", cases.CASES)
def test_every_mistake_is_far_from_the_oracle(name: str) -> None:
    case = cases.of(name)
    planted = bugs.bugs(name, case.settings)
    assert len(planted) >= 3
    apart = {what: tiny.difference(case.ours(bug), case.oracle()).gradient for what, bug in planted.items()}
    assert {what: gap for what, gap in apart.items() if not gap > FAR} == {}
