"""Files that somebody made to do harm, and a look at what happens when they are opened: nothing but one error that names the file."""

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

sys.path.insert(0, str(Path(__file__).parent / "stages"))
import small

from tinyllm.errors import INTEGRITY, USAGE, UserError
from tinyllm.model import hub
from tinyllm.stages.common import tokenizer_of
from tinyllm.stages.machine import peak_memory_mb, reset_peak_memory
from tinyllm.stages.parents import find

SECONDS, MEGABYTES = 5.0, 150.0  # that a refusal may take
Build = Callable[[Path], None]  # makes a good folder bad
EVENTS: list[str] = []  # what an attack would have done
WATCHED = ("pickle.find_class", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "socket.connect")


def _watch(event: str, arguments: tuple) -> None:
    if event in WATCHED:
        EVENTS.append(f"{event} {arguments!r:.200}")
    elif event == "open" and "outside" in str(arguments[0]):
        EVENTS.append(f"opened {arguments[0]}")


sys.addaudithook(_watch)


class Payload:
    """Makes the canary file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.canary}",)


def good(folder: Path) -> Path:
    """A checkpoint, ready to be made bad."""
    return small.saved(small.rough(), folder)


def opened(folder: Path) -> None:
    """What `chat`, `eval` and `sft` do with a checkpoint."""
    parent = find("chat", folder, fast=False)
    tokenizer_of(hub.load_causal_lm(parent.folder), parent.folder)


@contextmanager
def watched() -> Iterator[None]:
    """Nothing is run, nothing outside is opened, and it takes neither long nor much memory."""
    EVENTS.clear()
    reset_peak_memory()
    before, began = peak_memory_mb(), time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS
    assert peak_memory_mb() - before < MEGABYTES
    assert not list(Path().rglob("canary"))
    assert EVENTS == []


def refusal(action: Callable[[], Any], *, codes: tuple[int, ...] = (USAGE, INTEGRITY)) -> UserError:
    """The one error, of reasonable length and with nothing in it that a terminal would act on."""
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
    try:
        yield
    except UserError as error:
        print(error)
        if error.code not in (USAGE, INTEGRITY):
            raise


# --- ways to make something bad --------------------------------------------------------------------------------------------------


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
    """The file itself lies outside."""

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
