"""Token shards: what is in them, that a repeat is byte-identical, that a kill shows nothing, that damage is refused."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tinyllm.data.records import read
from tinyllm.data.shards import open_shards, prepare
from tinyllm.errors import INTEGRITY, RESOURCES, USAGE, UserError
from tinyllm.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
WORDS = [
    "the",
    "old",
    "fox",
    "saw",
    "a",
    "red",
    "hen",
    "by",
    "the",
    "long",
    "river",
    "and",
    "ran",
    "home",
    "before",
    "night",
    "fell",
    "on",
    "the",
    "small",
    "farm",
]
TEXTS = [" ".join(WORDS[i % 7 : 3 + i % 11]) + f" {i} é" for i in range(300)]


class Bytes:
    """An encoder whose tokens are bytes + 1, so that expectations can be written down."""

    endoftext = 0
    vocab_size = 257
    sha256 = "ab" * 32

    def __init__(self, vocab_size: int = 257):
        self.vocab_size = vocab_size
        self.batches: list[int] = []

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        self.batches.append(len(texts))
        return [[byte + 1 for byte in text.encode()] for text in texts]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents_of(shards, split: str) -> list[str]:
    tokens = getattr(shards, split)
    starts = shards.document_starts(split)
    ends = [*(starts[1:] - 1), len(tokens) - 1]
    return [bytes(int(t) - 1 for t in tokens[a:b]).decode() for a, b in zip(starts, ends, strict=True)]


def test_every_byte_of_a_small_shard(tmp_path: Path) -> None:
    manifest = prepare(["ab", "", "c"], Bytes(), tmp_path / "s", val_documents=["é"], sources=[{"source": "x"}])
    assert (tmp_path / "s" / "train.bin").read_bytes() == b"\0\0" + b"b\0c\0" + b"\0\0" + b"d\0" + b"\0\0"
    assert (tmp_path / "s" / "val.bin").read_bytes() == b"\0\0" + bytes([0xC4, 0, 0xAA, 0]) + b"\0\0"
    assert json.loads((tmp_path / "s" / "manifest.json").read_text()) == {
        "version": 1,
        "tokenizer_sha256": "ab" * 32,
        "vocab_size": 257,
        "endoftext": 0,
        "dtype": "uint16",
        "val_fraction": None,
        "train": {
            "documents": 2,
            "tokens": 6,
            "bytes": 3,
            "longest": 2,
            "sha256": hashlib.sha256(b"\0\0b\0c\0\0\0d\0\0\0").hexdigest(),
        },
        "val": {
            "documents": 1,
            "tokens": 4,
            "bytes": 2,
            "longest": 2,
            "sha256": hashlib.sha256(b"\0\0\xc4\0\xaa\0\0\0").hexdigest(),
        },
        "sources": [{"source": "x"}],
    }
    shards = open_shards(tmp_path / "s", tokenizer_sha256="ab" * 32, vocab_size=257, verify=True)
    assert shards.manifest == manifest
    assert shards.train.tolist() == [0, 98, 99, 0, 100, 0]
    assert shards.train.dtype == np.uint16
    assert shards.document_starts("train").tolist() == [1, 4]
    assert not shards.train.flags.writeable


@pytest.mark.parametrize(("vocab_size", "name", "width"), [(65_536, "uint16", 2), (65_537, "uint32", 4)])
def test_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, name: str, width: int) -> None:
    manifest = prepare(["ab"], Bytes(vocab_size), tmp_path / "s", val_fraction=0)
    assert manifest.dtype == name
    assert (tmp_path / "s" / "train.bin").stat().st_size == 4 * width
    assert open_shards(tmp_path / "s").train.tolist() == [0, 98, 99, 0]


def test_the_split_is_a_function_of_the_text(tmp_path: Path) -> None:
    sides = {}
    for name, texts in (("all", TEXTS), ("backwards", TEXTS[::-1]), ("half", TEXTS[::2]), ("twice", TEXTS * 2)):
        prepare(texts, Bytes(), tmp_path / name, val_fraction=0.1)
        shards = open_shards(tmp_path / name)
        train, val = documents_of(shards, "train"), documents_of(shards, "val")
        assert sorted(train + val) == sorted(texts)
        assert shards.manifest.train.documents == len(train)
        assert shards.manifest.val.documents == len(val)
        assert not set(train) & set(val)
        for text in set(train + val):
            assert sides.setdefault(text, text in val) == (text in val)
    assert 15 <= sum(sides.values()) <= 45  # 30 of 300 expected
    assert documents_of(open_shards(tmp_path / "all"), "train") == [t for t in TEXTS if not sides[t]]  # order is kept


@pytest.mark.parametrize("val_fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("texts", [["a", "b"], ["a", "b", "a", "ccc", "a"], ["aa", "b", "c"] * 3])
def test_both_splits_get_a_document_when_there_are_two_texts(
    tmp_path: Path, texts: list[str], val_fraction: float
) -> None:
    manifest = prepare(texts, Bytes(), tmp_path / "s", val_fraction=val_fraction)
    shards = open_shards(tmp_path / "s", verify=True)
    for name, split in (("train", manifest.train), ("val", manifest.val)):
        held = documents_of(shards, name)
        assert len(held) == split.documents >= 1
        assert split.bytes == sum(len(t) for t in held)
        assert split.tokens == 1 + sum(len(t) + 1 for t in held)
        assert split.longest == max(map(len, held))
    train, val = documents_of(shards, "train"), documents_of(shards, "val")
    assert sorted(train + val) == sorted(texts)
    assert not set(train) & set(val)


def test_one_text_is_for_training(tmp_path: Path) -> None:
    for number, fraction in enumerate((0.0, 0.05, 0.999999)):
        manifest = prepare(["a", "a"], Bytes(), tmp_path / str(number), val_fraction=fraction)
        assert (manifest.train.documents, manifest.val.documents, manifest.val.tokens) == (2, 0, 1)
        assert open_shards(tmp_path / str(number)).document_starts("val").tolist() == []
    assert prepare(TEXTS, Bytes(), tmp_path / "none", val_fraction=0).val.documents == 0


def test_a_repeat_is_byte_identical_in_any_batches(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = prepare(iter(TEXTS), tokenizer, tmp_path / "a")
    again = prepare(TEXTS, tokenizer, tmp_path / "b", batch=7)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {
        "manifest.json",
        "train.bin",
        "val.bin",
    }
    assert first == again
    assert first.fingerprint == again.fingerprint
    other = prepare([*TEXTS, "one more"], tokenizer, tmp_path / "a")  # takes the place of the old ones
    assert other.fingerprint != first.fingerprint
    assert open_shards(tmp_path / "a").manifest == other
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_texts_survive_and_control_tokens_do_not_come_from_them(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"{text}<|endoftext|> <|im_start|>" for text in TEXTS]
    manifest = prepare(texts, tokenizer, tmp_path / "s", val_fraction=0)
    shards = open_shards(tmp_path / "s")
    starts = shards.document_starts("train")
    assert len(starts) == manifest.train.documents == 300
    assert tokenizer.decode(shards.train[starts[7] : starts[8] - 1].tolist()) == texts[7]
    assert manifest.train.bytes == sum(len(text.encode()) for text in texts)
    assert int(tokenizer.byte_lengths()[shards.train].sum()) == manifest.train.bytes


def test_batches_are_bounded_by_documents_and_characters(tmp_path: Path) -> None:
    encoder = Bytes()
    prepare(("x" for _ in range(25)), encoder, tmp_path / "s", batch=10)
    assert encoder.batches == [10, 10, 5]
    encoder.batches.clear()
    prepare(("x" * (1 << 20) for _ in range(9)), encoder, tmp_path / "s", batch=10)
    assert encoder.batches == [4, 4, 1]


def test_sources_may_be_told_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    reader = read([tmp_path / "x.txt"], "documents")
    manifest = prepare((d.text for d in reader), Bytes(), tmp_path / "s", sources=lambda: reader.report.sources())
    digest = hashlib.sha256(b"hello").hexdigest()
    assert manifest.sources == ({"source": str(tmp_path / "x.txt"), "sha256": digest, "bytes": 5, "records": 1},)


KILLED = """
import os, sys
from tinyllm.data.shards import prepare
from tests_bytes import Bytes
def documents():
    for i in range(100):
        if i == int(sys.argv[2]):
            os._exit(9)
        yield f"text {i}"
prepare(documents(), Bytes(), sys.argv[1], batch=10)
"""


@pytest.mark.parametrize("at", [0, 35, 99])
@pytest.mark.parametrize("before", [False, True])
def test_a_killed_run_shows_nothing(tmp_path: Path, at: int, before: bool) -> None:
    work = tmp_path / "work"
    work.mkdir()
    if before:
        prepare(["old", "older"], Bytes(), work / "s")
    old = contents(work / "s") if before else None
    module = tmp_path / "tests_bytes.py"
    module.write_text(
        "class Bytes:\n endoftext, vocab_size, sha256 = 0, 257, 'ab' * 32\n"
        " def encode_batch(self, texts):\n  return [[b + 1 for b in t.encode()] for t in texts]\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
    command = [sys.executable, "-c", KILLED, str(work / "s"), str(at)]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == 9
    assert [name for name in os.listdir(work) if not name.startswith(".")] == (["s"] if before else [])
    if before:
        assert contents(work / "s") == old
    else:
        with pytest.raises(UserError, match="no prepared data here"):
            open_shards(work / "s")
    (left,) = (path for path in work.iterdir() if path.name.startswith("."))
    for path in (*left.iterdir(), left):
        os.utime(path, (0, 0))  # long ago
    prepare((f"text {i}" for i in range(100)), Bytes(), work / "s")
    assert os.listdir(work) == ["s"]  # and the leftovers are gone
    prepare((f"text {i}" for i in range(100)), Bytes(), tmp_path / "clean")
    assert contents(work / "s") == contents(tmp_path / "clean")


def test_a_failing_source_leaves_everything_as_it_was(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "a"
        raise UserError("bad row", fix="mend it")

    with pytest.raises(UserError, match="bad row"):
        prepare(broken(), Bytes(), tmp_path / "deep" / "s", batch=1)
    assert os.listdir(tmp_path / "deep") == []
    with pytest.raises(UserError, match="0 documents to prepare"):
        prepare(["", ""], Bytes(), tmp_path / "deep" / "s")
    assert os.listdir(tmp_path / "deep") == []


def test_other_things_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(UserError, match="holds no shards") as error:
            prepare(["a"], Bytes(), out)
        assert error.value.code == USAGE
    with pytest.raises(UserError, match="cannot be written") as error:
        prepare(["a"], Bytes(), tmp_path / "file" / "s")
    assert error.value.code == RESOURCES
    with pytest.raises(UserError, match="val_fraction 1 is not in"):
        prepare(["a"], Bytes(), tmp_path / "s", val_fraction=1)
    (tmp_path / "empty").mkdir()
    assert prepare(["a"], Bytes(), tmp_path / "empty").train.documents == 1


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    prepare(TEXTS, Bytes(), tmp_path / "s", val_fraction=0.3)
    return tmp_path / "s"


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [-1000, -2, -1, 1, 2])
def test_a_shard_of_another_size_is_refused(shards: Path, name: str, change: int) -> None:
    size = (shards / name).stat().st_size
    assert size > 1000
    os.truncate(shards / name, size + change)
    with pytest.raises(UserError) as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(shards / name)
    expected = f"shard of {size + change:,} bytes, where the manifest says {size // 2:,} tokens"
    assert error.value.what.startswith(expected)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "manifest.json"])
def test_a_missing_file_is_refused(shards: Path, name: str) -> None:
    (shards / name).unlink()
    with pytest.raises(UserError) as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(shards / name)


def test_one_flipped_bit_is_found_by_verify(shards: Path) -> None:
    data = bytearray((shards / "val.bin").read_bytes())
    data[100] ^= 1
    (shards / "val.bin").write_bytes(data)
    open_shards(shards)
    with pytest.raises(UserError, match="differs from its sha256") as error:
        open_shards(shards, verify=True)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(shards / "val.bin")


def test_other_tokenizers_and_smaller_models_are_refused(shards: Path) -> None:
    with pytest.raises(UserError) as error:
        open_shards(shards, tokenizer_sha256="cd" * 32)
    assert "ab" * 32 in error.value.what
    assert "cd" * 32 in error.value.what
    assert error.value.code == INTEGRITY
    with pytest.raises(UserError, match="vocabulary of 257, the model has 256"):
        open_shards(shards, vocab_size=256)
    open_shards(shards, vocab_size=320)  # embeddings may be padded


@pytest.mark.parametrize(
    "edit",
    [
        {"version": 2},
        {"version": "1"},
        {"dtype": "float16"},
        {"dtype": ["uint16"]},
        {"train": {}},
        {"train": None},
        {"val": {"documents": 1, "tokens": "4", "bytes": 2, "longest": 2, "sha256": ""}},
        {"val": {"documents": 1, "tokens": 0, "bytes": 2, "longest": 2, "sha256": ""}},
        {"vocab_size": "many"},
        {"vocab_size": True},
        {"endoftext": 0.5},
        {"extra": 1},
        {"sources": None},
    ],
)
def test_damaged_manifests_are_refused(shards: Path, edit: dict) -> None:
    file = shards / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | edit))
    with pytest.raises(UserError) as error:
        open_shards(shards, vocab_size=300)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(file)


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, "\xff"])
def test_manifests_that_are_none_are_refused(shards: Path, content: str) -> None:
    (shards / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="damaged manifest") as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY
    shutil.rmtree(shards)
    with pytest.raises(UserError, match="no prepared data here") as error:
        open_shards(shards)
    assert error.value.code == USAGE


def test_no_torch_is_needed() -> None:
    code = "import sys, tinyllm.data.records, tinyllm.data.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
