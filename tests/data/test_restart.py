"""Preparation killed at every file-system event: no incomplete shards are visible, and the next run ends like an undisturbed one.

One interpreter imports everything and forks a child for each event; an audit hook kills the child there.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.byte_encoder import ByteEncoder
from tinyllm.data.tokens.shards import open_shards, prepare
from tinyllm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
SWEEP = """
import json, os, shutil, signal, sys
from pathlib import Path
from tests.support.byte_encoder import ByteEncoder
from tinyllm.data.tokens.shards import prepare

EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir"}
folder, has_old = Path(sys.argv[1]), sys.argv[2] == "True"
out = folder / "work" / "s"

def make(target):
    encoder = ByteEncoder()
    texts = (f"text {i % 50} and so on" for i in range(60))
    prepare(texts, encoder, target, dedup="near", chunk_bytes=400, shard_tokens=500)
    return len(encoder.batches)

def contents(shards):
    return {path.name: path.read_bytes() for path in sorted(shards.iterdir())}

def child(number):
    count = [0]
    def hook(event, args):
        if event in EVENTS and str(args[0]).startswith(str(folder / "work")):
            count[0] += 1
            if count[0] == number:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)
    make(out)

(folder / "work").mkdir()
found = {"events": 0, "chunks": make(folder / "clean"), "encoded_again": [], "missing": 0}
clean = contents(folder / "clean")
for number in range(1, 10_000):
    shutil.rmtree(folder / "work")
    (folder / "work").mkdir()
    if has_old:
        prepare(["old", "older"], ByteEncoder(), out)
        old = contents(out)
    process = os.fork()
    if not process:
        child(number)
        os._exit(0)
    status = os.waitpid(process, 0)[1]
    if not os.WIFSIGNALED(status):
        break
    found["events"] = number
    assert [p.name for p in (folder / "work").iterdir() if not p.name.startswith(".")] in ([], ["s"]), number
    if out.exists():
        assert contents(out) in ((old, clean) if has_old else (clean,)), number
    else:
        found["missing"] += 1
    found["encoded_again"].append(make(out))
    assert contents(out) == clean, number
    assert os.listdir(folder / "work") == ["s"], number  # the working folder is removed
assert contents(out) == clean
print(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
@pytest.mark.parametrize("has_old", [pytest.param(False, marks=pytest.mark.slow), True])
def test_preparation_recovers_from_a_kill_at_any_file_system_event(tmp_path: Path, has_old: bool) -> None:
    command = [sys.executable, "-c", SWEEP, str(tmp_path), str(has_old)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, timeout=120, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["events"] > 50
    assert found["chunks"] == 3  # each encoded in one batch
    assert set(found["encoded_again"]) == {0, 1, 2, 3}
    assert sum(batches == 0 for batches in found["encoded_again"]) > 25  # killed after the last chunk
    # old shards are replaced by two renames; a kill between them leaves none, but the chunks to make them from
    assert (found["missing"] <= 2) == has_old


def interrupted(out: Path, texts: list[str], **settings: object) -> list[Path]:
    """Run a preparation that fails at the end of its documents; return the chunks it leaves."""

    def documents():
        yield from texts
        raise UserError("bad row", fix="fix the file")

    with pytest.raises(UserError, match="bad row"):
        prepare(documents(), ByteEncoder(), out, chunk_bytes=100, **settings)
    return sorted((out.parent / f".{out.name}.work" / "parts").iterdir())


TEXTS = [f"document {i:04d}" for i in range(40)]  # 13 bytes each: eight in a chunk


def test_after_an_edit_only_changed_chunks_are_encoded_again(tmp_path: Path) -> None:
    assert len(interrupted(tmp_path / "s", TEXTS)) == 5
    changed = [*TEXTS[:17], "Document 0017", *TEXTS[18:], "one more"]
    encoder = ByteEncoder()
    manifest = prepare(changed, encoder, tmp_path / "s", chunk_bytes=100, val_fraction=0)
    assert sorted(encoder.texts) == sorted([*changed[16:24], "one more"])
    assert manifest == prepare(changed, ByteEncoder(), tmp_path / "clean", val_fraction=0)
    assert sorted(os.listdir(tmp_path)) == ["clean", "s"]


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-2], lambda data: data[:40] + b"\1" + data[41:], lambda data: b""]
)
def test_damaged_chunk_is_encoded_again(tmp_path: Path, damage) -> None:
    for chunk in interrupted(tmp_path / "s", TEXTS)[:2]:
        chunk.write_bytes(damage(chunk.read_bytes()))
    encoder = ByteEncoder()
    manifest = prepare(TEXTS, encoder, tmp_path / "s", chunk_bytes=100)
    assert len(encoder.texts) == 16
    assert manifest == prepare(TEXTS, ByteEncoder(), tmp_path / "clean")
    assert open_shards(tmp_path / "s", verify=True).manifest == manifest


def test_chunks_of_another_tokenizer_or_setting_are_not_reused(tmp_path: Path) -> None:
    interrupted(tmp_path / "s", TEXTS)
    other = ByteEncoder()
    other.sha256 = "ef" * 32
    prepare(TEXTS, other, tmp_path / "s", chunk_bytes=100)
    assert sorted(other.texts) == TEXTS  # chunks are encoded in parallel
    interrupted(tmp_path / "s", TEXTS)
    encoder = ByteEncoder()
    prepare(TEXTS, encoder, tmp_path / "s", chunk_bytes=100, dedup="near")
    assert sorted(encoder.texts) == TEXTS
