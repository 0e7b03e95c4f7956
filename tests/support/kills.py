"""Forked processes that are killed at a file-system event or in the middle of a write, and what they leave behind.

A killed process leaves to the system what it has written, so nothing is flushed to the disk: waiting for a busy disk took most of the time.
The order of flushes and renames has a test of its own, `tests/train/test_flushing.py`.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch

from tinyllm.errors import UserError

REMOVALS = {"os.remove", "os.rmdir"}
EVENTS = {"open", "os.mkdir", "os.rename", "os.symlink", "os.truncate"} | REMOVALS
CUT_OFF = {signal.SIGKILL, signal.SIGXFSZ, 0x80 | signal.SIGXFSZ}  # statuses of a process that was killed in a write
_STEP = re.compile(r"step-(\d{8})")

Event = tuple[str, tuple]


def use_one_thread() -> None:
    """Compute in this thread from now on: a forked child would wait forever for the threads of its parent."""
    os.environ["OMP_NUM_THREADS"] = "1"  # which every stage reads
    torch.set_num_threads(1)


def in_child(go: Callable[[], None], arm: Callable[[], None] | None = None) -> int:
    """Return the status of a forked process that arms itself and goes; quiet, and gone at the end whatever happens."""
    pid = os.fork()
    if pid == 0:
        code = 9
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            os.fsync = lambda _: None
            if arm is not None:
                arm()
            go()
            code = 0
        except UserError as error:
            code = error.code
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1]


def watch(folder: Path, seen: Callable[[str, tuple], None]) -> None:
    """Call `seen` before every event that concerns `folder`."""

    def hook(event: str, arguments: tuple) -> None:
        named = any(str(folder) in str(a) for a in arguments if isinstance(a, str | Path))
        # removing a tree names its files relative to open folders
        inside = event in REMOVALS and isinstance(arguments[0], str) and not os.path.isabs(arguments[0])
        if event in EVENTS and (named or inside):
            seen(event, arguments)

    sys.addaudithook(hook)


def killed_at(folder: Path, number: int) -> None:
    """Kill this process before its event `number` in the folder."""
    left = [number]

    def seen(event: str, arguments: tuple) -> None:
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    watch(folder, seen)


def recorded(folder: Path, file: Path) -> None:
    """Write every event down, one a line, as it happens."""
    out = file.open("w")  # outside the folder

    def seen(event: str, arguments: tuple) -> None:
        print(json.dumps([event, [str(a) for a in arguments]]), file=out, flush=True)

    watch(folder, seen)


def read_events(file: Path) -> list[Event]:
    return [(event, tuple(arguments)) for event, arguments in map(json.loads, file.read_text().splitlines())]


# --- writes ----------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """A write to be cut off: of `file`, `offset` bytes after its beginning or, where it is appended to, after its present end.

    Args:
        number: of the events that open a file for writing, this one; of a file of tensors, the number of the call that writes it.
        tensors: safetensors writes the file. It reserves the whole size at once and raises no audit events.
    """

    number: int
    file: str
    offset: int
    tensors: bool = False


def opened_for_writing(events: list[Event]) -> list[Path]:
    return [Path(arguments[0]) for event, arguments in events if event == "open" and _writes(arguments)]


def _writes(arguments: tuple) -> bool:
    return bool(int(arguments[2]) & (os.O_WRONLY | os.O_RDWR))


def cut_off(folder: Path, write: Write, note: Path, *, killed: bool) -> None:
    """Kill this process in the middle of a write, or let the write fail there as on a full disk: files may not outgrow RLIMIT_FSIZE.

    `note` receives the size at which the file ends, and the checkpoints that were published before.
    """
    left = [write.number]

    def limit(size: int) -> None:
        note.write_text(json.dumps({"size": size, "published": sorted(published(folder))}))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed and not write.tensors else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def seen(event: str, arguments: tuple) -> None:
        if event == "open" and _writes(arguments):
            left[0] -= 1
            if left[0] == 0:
                path, appended = Path(arguments[0]), arguments[2] & os.O_APPEND and not arguments[2] & os.O_RDWR
                limit(write.offset + (path.stat().st_size if appended else 0))

    def serialize_file(tensors: dict, file: Path, metadata: dict | None = None) -> None:
        left[0] -= 1
        if left[0] == 0:
            assert Path(file).name == write.file, f"call {write.number} writes {file}"
            limit(write.offset)
            if killed:  # as a version that writes the file piece by piece leaves it
                Path(file).write_bytes(safetensors.torch.serialize(tensors, metadata)[: write.offset])
                os.kill(os.getpid(), signal.SIGKILL)
        original(tensors, file, metadata)

    if write.tensors:
        original, safetensors.torch.serialize_file = safetensors.torch.serialize_file, serialize_file
    else:
        watch(folder, seen)


def is_torn(folder: Path, write: Write, size: int) -> bool:
    """Return True if that file ends there: the process was in the middle of it."""
    return any(path.stat().st_size == size for path in folder.rglob(write.file) if path.is_file())


# --- what is left ----------------------------------------------------------------------------------------------------------------


def published(folder: Path) -> set[int]:
    """Return the steps of the checkpoints that have their final names."""
    found = folder / "checkpoints"
    names = os.listdir(found) if found.is_dir() else []
    return {int(match[1]) for name in names if (match := _STEP.fullmatch(name))}


def published_by(events: list[Event]) -> tuple[set[int], int]:
    """Return the steps whose checkpoints are there after these events, and the highest that was published; -1: none."""
    there, newest = set[int](), -1
    for _, (source, target, *_rest) in (event for event in events if event[0] == "os.rename"):
        if match := _STEP.fullmatch(Path(source).name):
            there.discard(int(match[1]))
        if match := _STEP.fullmatch(Path(target).name):
            there.add(int(match[1]))
            newest = max(newest, int(match[1]))
    return there, newest


def contents(folder: Path) -> dict[int, dict[str, str]]:
    """Return the sha256 of every file of every published checkpoint. Raises: ValueError where a manifest says otherwise.

    It hashes by itself, and does not ask the code that is examined.
    """
    found = {}
    for step in sorted(published(folder)):
        path = folder / "checkpoints" / f"step-{step:08d}"
        files = [file for file in path.rglob("*") if file.is_file()]
        found[step] = {f"{p.relative_to(path)}": hashlib.sha256(p.read_bytes()).hexdigest() for p in files}
        try:
            listed = json.loads((path / "manifest.json").read_text())["files"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"step {step} has no manifest") from error
        hashes = {name: digest for name, digest in found[step].items() if name != "manifest.json"}
        if not hashes or hashes != {name: entry["sha256"] for name, entry in listed.items()}:
            raise ValueError(f"step {step} is not what its manifest says")
    return found
