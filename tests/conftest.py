"""Fixtures shared by all tests, and the division of the cores between parallel workers.

`pytest -n 2` runs two workers of one thread each. A test marked `two_cores` starts ranks or threads of its own; it runs while no other
test does, so that ranks times threads never exceeds two cores.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_LONGEST_FIRST = (  # so that no worker is left with a long file at the end
    "lifecycle/test_lifecycle.py",
    "distributed/test_rank_failures.py",
    "train/test_resume.py",
    "diagnostics/test_verify.py",
    "train/test_checkpointing.py",
    "stages/test_align_online.py",
    "train/test_engine.py",
    "parity/test_command_line.py",
    "model/test_generate.py",
)
os.environ.setdefault("OMP_NUM_THREADS", "1" if WORKER else "2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the files that take longest first. `--no-loadscope-reorder` keeps this order under xdist."""
    rank = {name: number for number, name in enumerate(_LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get("/".join(item.path.parts[-2:]), len(rank)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold the cores for one test, its fixtures included: shared, or alone if it is marked `two_cores`."""
    if not WORKER:
        return (yield)
    with cores(alone=item.get_closest_marker("two_cores") is not None):
        return (yield)


@contextmanager
def cores(*, alone: bool) -> Iterator[None]:
    """Lock the cores of all workers of this session. Everybody queues at a turnstile, so that `alone` does not wait forever."""
    import fcntl  # POSIX only, as are the tests that need it

    stem = Path(tempfile.gettempdir()) / f"tinyllm-tests-{os.environ['PYTEST_XDIST_TESTRUNUID']}"
    with open(f"{stem}.turnstile", "w") as turnstile, open(f"{stem}.cores", "w") as lock:
        fcntl.flock(turnstile, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if alone else fcntl.LOCK_SH)
        fcntl.flock(turnstile, fcntl.LOCK_UN)
        yield


def pytest_sessionfinish() -> None:
    if WORKER:
        for path in Path(tempfile.gettempdir()).glob(f"tinyllm-tests-{os.environ['PYTEST_XDIST_TESTRUNUID']}.*"):
            path.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of real data, models and tokenizers that may lie beside the checkout."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs real data or a real model of others: no shared/ folder beside this checkout")
    return folder
