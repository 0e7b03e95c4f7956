"""Data that several test files of this folder use."""

from __future__ import annotations

import pytest

from tinyllm.data import world


@pytest.fixture(scope="session")
def world_texts() -> list[str]:
    """Return 6,000 train documents of the bundled world."""
    return [record["text"] for record in world.documents(6000)]
