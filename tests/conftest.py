"""Fixtures shared by all tests. Real inputs are used where they lie beside the checkout, and the tests that want them skip elsewhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "2")  # two cores: ranks x threads never exceeds them


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data, models and tokenizers that may lie beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("no shared/ folder beside this checkout")
    return folder
