"""Builders of malicious files, and checks that opening them raises one error and has no side effects."""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model import hub
from tinyllm.stages.common import load_tokenizer
from tinyllm.stages.parents import find_checkpoint
from tinyllm.train.memory import peak_memory_mb, reset_peak_memory

# Limits of a refusal, on a slow machine that is busy; a hostile file that is not refused early takes minutes.
CPU_SECONDS, SECONDS, MEGABYTES = 20.0, 90.0, 150.0
Build = Callable[[Path], None]  # turns a valid folder into a malicious one
EVENTS: list[str] = []  # suspicious audit events
WATCHED = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def _watch(event: str, arguments: tuple) -> None:
    if event in WATCHED:
        EVENTS.append(f"{event} {arguments!r:.200}")
    elif event == "open" and "outside" in str(arguments[0]):
        EVENTS.append(f"opened {arguments[0]}")


sys.addaudithook(_watch)


class Payload:
    """Object that creates the canary file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def good(folder: Path) -> Path:
    """Return a valid checkpoint."""
    return small.saved(small.rough(), folder)


def opened(folder: Path) -> None:
    """Open a checkpoint as `chat`, `eval` and `sft` do."""
    parent = find_checkpoint("chat", folder, fast=False)
    load_tokenizer(hub.load_causal_lm(parent.folder), parent.folder)


@contextmanager
def watched() -> Iterator[None]:
    """Check that nothing is executed, nothing outside is opened, and time and memory stay within the limits."""
    EVENTS.clear()
    reset_peak_memory()
    before, began, cpu = peak_memory_mb(), time.monotonic(), time.process_time()
    yield
    assert time.process_time() - cpu < CPU_SECONDS
    assert time.monotonic() - began < SECONDS
    assert peak_memory_mb() - before < MEGABYTES
    assert not list(Path().rglob("canary"))
    assert EVENTS == []


def refusal(action: Callable[[], Any], *, codes: tuple[int, ...] = (USAGE, INTEGRITY)) -> UserError:
    """Return the one error that an action raises. It must be short and free of control characters."""
    with watched(), pytest.raises(UserError) as caught:
        action()
    error = caught.value
    assert error.code in codes
    assert len(str(error)) < 1000
    assert str(error).replace("\n", "").isprintable()
    starts = [line.partition(":")[0] for line in str(error).splitlines() if not line.startswith("  ")]
    assert starts in (["error"], ["error", "fix"])
    return error


@contextmanager
def harmless_or_refused() -> Iterator[None]:
    """Accept a UserError about usage or integrity, and print it."""
    try:
        yield
    except UserError as error:
        print(error)
        if error.code not in (USAGE, INTEGRITY):
            raise


# --- builders -------------------------------------------------------------------------------------------------------------------


def header(entries: Any, body: bytes = b"", *, size: int | None = None) -> bytes:
    raw = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(raw) if size is None else size) + raw + body


def tensor(shape: list[int], start: int, end: int, kind: str = "F32") -> dict[str, Any]:
    return {"dtype": kind, "shape": shape, "data_offsets": [start, end]}


def raw(name: str, content: bytes) -> Build:
    return lambda folder: (folder / name).write_bytes(content) and None


def edited(change: Callable[[dict[str, Any]], Any], name: str = "tokenizer.json") -> Build:
    def build(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return build


def linked(name: str, *, target: str = "") -> Build:
    """Move a file out of the folder and link to it."""

    def build(folder: Path) -> None:
        (folder.parent / "outside").mkdir()
        (folder / name).rename(folder.parent / "outside" / name)
        (folder / name).symlink_to(target or f"../outside/{name}")

    return build


def piped(name: str) -> Build:
    def build(folder: Path) -> None:
        if sys.platform == "win32":
            pytest.skip("there are no named pipes in folders here")
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return build


def sparse(name: str, size: int = 400_000_000) -> Build:
    def build(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate(size)

    return build
