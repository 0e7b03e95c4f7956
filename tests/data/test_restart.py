"""Preparation that is killed, at every file-system event there is: nothing half-made is visible, and the next run ends as a clean one.

One interpreter imports everything and forks a child for each event; an audit hook kills it there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.data.shards import open_shards, prepare
from tinyllm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
import json, os, shutil, signal, sys
from pathlib import Path
from tinyllm.data.shards import open_shards, prepare
from tinyllm.errors import UserError

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}
place, before = Path(sys.argv[1]), sys.argv[2] == "True"
out = place / "work" / "s"

class Bytes:
    endoftext, vocab_size, sha256, leading_space = 0, 257, "ab" * 32, False
    words = staticmethod(lambda dtype: None)
    batches = 0
    def encode_batch(self, texts):
        self.batches += 1
        return [[b + 1 for b in text.encode()] for text in texts]

def texts():
    return (f"text {i % 90} and so on" for i in range(100))

def make(target):
    encoder = Bytes()
    prepare(texts(), encoder, target, dedup="near", part_bytes=400, shard_tokens=500)
    return encoder.batches

def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

def child(number):
    count = [0]
    def hook(event, args):
        if event in EVENTS and str(args[0]).startswith(str(place / "work")):
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    make(out)

(place / "work").mkdir()
whole = make(place / "clean")
clean = contents(place / "clean")
found = {"events": 0, "whole": whole, "again": [], "missing": 0}
for number in range(1, 10_000):
    shutil.rmtree(place / "work")
    (place / "work").mkdir()
    if before:
        prepare(["old", "older"], Bytes(), out)
        old = contents(out)
    process = os.fork()
    if not process:
        child(number)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    if not os.WIFSIGNALED(status):
        break
    found["events"] = number
    assert [p.name for p in (place / "work").iterdir() if not p.name.startswith(".")] in ([], ["s"]), number
    if out.exists():
        assert contents(out) in ((old, clean) if before else (clean,)), number
    else:
        found["missing"] += 1
    found["again"].append(make(out))
    assert contents(out) == clean, number
    assert os.listdir(place / "work") == ["s"], number  # and the leftovers are gone
assert contents(out) == clean
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("before", [False, True])
def test_a_kill_at_any_file_system_event(tmp_path: Path, before: bool) -> None:
    command = [sys.executable, "-c", SWEEP, str(tmp_path), str(before)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["events"] > 60
    assert found["whole"] == 5  # parts, each encoded at one go
    assert max(found["again"]) == 5
    assert (
        sum(batches == 0 for batches in found["again"]) > 30
    )  # killed behind the last part: nothing was encoded again
    assert set(found["again"]) >= {0, 1, 2, 3, 4, 5}
    # old shards are replaced by two renames; a kill between them leaves none, and the parts to make them from
    assert (found["missing"] <= 2) == before


class Bytes:
    endoftext, vocab_size, sha256, leading_space = 0, 257, "ab" * 32, False
    words = staticmethod(lambda dtype: None)

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        self.texts += texts
        return [[byte + 1 for byte in text.encode()] for text in texts]


def interrupted(out: Path, texts: list[str], **settings: object) -> list[Path]:
    """The parts that a run leaves which fails at the end of its documents."""

    def documents():
        yield from texts
        raise UserError("bad row", fix="mend it")

    with pytest.raises(UserError, match="bad row"):
        prepare(documents(), Bytes(), out, part_bytes=100, **settings)
    return sorted((out.parent / f".{out.name}.work" / "parts").iterdir())


TEXTS = [f"document {i:04d}" for i in range(40)]  # 13 bytes each: eight a part


def test_after_an_edit_only_the_parts_that_changed_are_made_again(tmp_path: Path) -> None:
    assert len(interrupted(tmp_path / "s", TEXTS)) == 5
    changed = [*TEXTS[:17], "Document 0017", *TEXTS[18:], "one more"]
    encoder = Bytes()
    manifest = prepare(changed, encoder, tmp_path / "s", part_bytes=100, val_fraction=0)
    assert sorted(encoder.texts) == sorted([*changed[16:24], "one more"])
    assert manifest == prepare(changed, Bytes(), tmp_path / "clean", val_fraction=0)
    assert sorted(os.listdir(tmp_path)) == ["clean", "s"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-2], lambda data: data[:40] + b"\1" + data[41:], lambda data: b""]
)
def test_a_damaged_part_is_made_again(tmp_path: Path, damage) -> None:
    for part in interrupted(tmp_path / "s", TEXTS)[:2]:
        part.write_bytes(damage(part.read_bytes()))
    encoder = Bytes()
    manifest = prepare(TEXTS, encoder, tmp_path / "s", part_bytes=100)
    assert len(encoder.texts) == 16
    assert manifest == prepare(TEXTS, Bytes(), tmp_path / "clean")
    assert open_shards(tmp_path / "s", verify=True).manifest == manifest


def test_parts_of_another_tokenizer_or_kind_are_not_taken(tmp_path: Path) -> None:
    interrupted(tmp_path / "s", TEXTS)
    other = Bytes()
    other.sha256 = "ef" * 32
    prepare(TEXTS, other, tmp_path / "s", part_bytes=100)
    assert sorted(other.texts) == TEXTS  # parts are encoded side by side
    interrupted(tmp_path / "s", TEXTS)
    encoder = Bytes()
    prepare(TEXTS, encoder, tmp_path / "s", part_bytes=100, dedup="near")
    assert sorted(encoder.texts) == TEXTS
