"""Token shards: their contents, reproducibility, and refusal of damaged files. Kills are in test_restart.py."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support.byte_encoder import ByteEncoder
from tinyllm.data.records.reader import read_records
from tinyllm.data.tokens import preparation
from tinyllm.data.tokens.shards import Shards, open_shards, prepare
from tinyllm.errors import INTEGRITY, RESOURCES, USAGE, UserError
from tinyllm.text.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["the", "old", "fox", "saw", "a", "red", "hen", "by", "the", "long", "river", "and", "ran"]
TEXTS = [" ".join(WORDS[i % 7 : 3 + i % 11]) + f" {i} é" for i in range(300)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


def characters(encoder: ByteEncoder) -> list[int]:
    """Return the number of characters in each batch."""
    return [sum(map(len, batch)) for batch in encoder.batches]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def documents_of(shards: Shards, split: str) -> list[str]:
    found = shards.documents(split)
    assert all(tokens[-1] == shards.manifest.endoftext for tokens in found)
    return [bytes(int(t) - 1 for t in tokens[:-1]).decode() for tokens in found]


def test_files_of_a_small_shard_byte_by_byte(tmp_path: Path) -> None:
    texts = ["ab", "", "c", "ab"]
    manifest = prepare(texts, ByteEncoder(), tmp_path / "s", val_documents=["é"], sources=[{"source": "x"}])
    assert (tmp_path / "s" / "train.bin").read_bytes() == b"\0\0" + b"b\0c\0" + b"\0\0" + b"d\0" + b"\0\0"
    assert (tmp_path / "s" / "val.bin").read_bytes() == b"\0\0" + bytes([0xC4, 0, 0xAA, 0]) + b"\0\0"
    train = hashlib.sha256(b"\0\0b\0c\0\0\0d\0\0\0").hexdigest()
    val = hashlib.sha256(b"\0\0\xc4\0\xaa\0\0\0").hexdigest()
    assert json.loads((tmp_path / "s" / "manifest.json").read_text()) == {
        "version": 2,
        "tokenizer_sha256": "ab" * 32,
        "vocab_size": 257,
        "endoftext": 0,
        "dtype": "uint16",
        "val_fraction": None,
        "dedup": "exact",
        "removed": [{"source": "", "exact": 1, "near": 0}],
        "train": {
            "documents": 2,
            "tokens": 6,
            "bytes": 3,
            "bytes_per_token": 1.0,
            "longest": 2,
            "lengths": [1, 1],
            "files": [{"name": "train.bin", "tokens": 6, "sha256": train}],
            "sources": [{"source": "", "documents": 2, "tokens": 5, "bytes": 3}],
        },
        "val": {
            "documents": 1,
            "tokens": 4,
            "bytes": 2,
            "bytes_per_token": 1.0,
            "longest": 2,
            "lengths": [0, 1],
            "files": [{"name": "val.bin", "tokens": 4, "sha256": val}],
            "sources": [{"source": "", "documents": 1, "tokens": 3, "bytes": 2}],
        },
        "sources": [{"source": "x"}],
    }
    shards = open_shards(tmp_path / "s", tokenizer_sha256="ab" * 32, vocab_size=257, verify=True)
    assert shards.manifest == manifest
    assert shards.train[:].tolist() == [0, 98, 99, 0, 100, 0]
    assert shards.train.dtype == np.uint16
    assert [tokens.tolist() for tokens in shards.documents("train")] == [[98, 99, 0], [100, 0]]
    assert not shards.train[:].flags.writeable


@pytest.mark.parametrize(("vocab_size", "name", "width"), [(65_536, "uint16", 2), (65_537, "uint32", 4)])
def test_token_width_follows_the_vocabulary(tmp_path: Path, vocab_size: int, name: str, width: int) -> None:
    manifest = prepare(["ab"], ByteEncoder(vocab_size), tmp_path / "s", val_fraction=0)
    assert manifest.dtype == name
    assert (tmp_path / "s" / "train.bin").stat().st_size == 4 * width
    assert open_shards(tmp_path / "s").train[:].tolist() == [0, 98, 99, 0]


def test_the_split_is_a_function_of_the_text(tmp_path: Path) -> None:
    is_val: dict[str, bool] = {}
    for name, texts in (("all", TEXTS), ("backwards", TEXTS[::-1]), ("half", TEXTS[::2]), ("twice", TEXTS * 2)):
        prepare(texts, ByteEncoder(), tmp_path / name, val_fraction=0.1, dedup="none")
        shards = open_shards(tmp_path / name)
        train, val = documents_of(shards, "train"), documents_of(shards, "val")
        assert sorted(train + val) == sorted(texts)
        assert shards.manifest.train.documents == len(train)
        assert shards.manifest.val.documents == len(val)
        assert not set(train) & set(val)
        for text in set(train + val):
            assert is_val.setdefault(text, text in val) == (text in val)
    assert 15 <= sum(is_val.values()) <= 45  # 30 of 300 expected
    assert documents_of(open_shards(tmp_path / "all"), "train") == [t for t in TEXTS if not is_val[t]]  # order is kept


@pytest.mark.parametrize("val_fraction", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("texts", [["a", "b"], ["a", "b", "a", "ccc", "a"], ["aa", "b", "c"] * 3])
def test_two_texts_are_enough_for_two_splits(tmp_path: Path, texts: list[str], val_fraction: float) -> None:
    manifest = prepare(texts, ByteEncoder(), tmp_path / "s", val_fraction=val_fraction, dedup="none")
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


def test_a_single_text_is_for_training(tmp_path: Path) -> None:
    for number, fraction in enumerate((0.0, 0.05, 0.999999)):
        manifest = prepare(["a", "a"], ByteEncoder(), tmp_path / str(number), val_fraction=fraction, dedup="none")
        assert (manifest.train.documents, manifest.val.documents, manifest.val.tokens) == (2, 0, 1)
        assert open_shards(tmp_path / str(number)).documents("val") == []
    assert prepare(TEXTS, ByteEncoder(), tmp_path / "none", val_fraction=0).val.documents == 0


def test_result_is_byte_identical_for_any_chunk_size(tmp_path: Path, tokenizer: Tokenizer) -> None:
    first = prepare(iter(TEXTS), tokenizer, tmp_path / "a")
    again = prepare(TEXTS, tokenizer, tmp_path / "b", chunk_bytes=700)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {
        "manifest.json",
        "train.bin",
        "val.bin",
    }
    assert first == again
    assert first.fingerprint == again.fingerprint
    other = prepare([*TEXTS, "one more"], tokenizer, tmp_path / "a")  # replaces the old ones
    assert other.fingerprint != first.fingerprint
    assert open_shards(tmp_path / "a").manifest == other
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_texts_are_preserved_and_never_encode_to_control_tokens(tmp_path: Path, tokenizer: Tokenizer) -> None:
    texts = [f"{text}<|endoftext|> <|im_start|>" for text in TEXTS]
    manifest = prepare(texts, tokenizer, tmp_path / "s", val_fraction=0)
    shards = open_shards(tmp_path / "s")
    found = shards.documents("train")
    assert len(found) == manifest.train.documents == 300
    assert tokenizer.decode(found[7][:-1].tolist()) == texts[7]
    assert manifest.train.bytes == sum(len(text.encode()) for text in texts)
    assert int(tokenizer.byte_lengths()[shards.train[:]].sum()) == manifest.train.bytes


@pytest.mark.parametrize("end", ["\n", " ", ""])
def test_long_texts_are_encoded_in_pieces_as_one_document(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    monkeypatch.setattr(preparation, "PIECE", 200)
    text = end.join(TEXTS)  # of some 9,000 characters
    encoder = ByteEncoder()
    manifest = prepare([text, "short"], encoder, tmp_path / "s", val_fraction=0)
    assert documents_of(open_shards(tmp_path / "s"), "train") == [text, "short"]
    assert manifest.train.documents == 2
    sizes = characters(encoder)
    assert max(sizes) <= 200
    assert len(sizes) > 30
    prepare([text], tokenizer, tmp_path / "t", val_fraction=0)
    ids = open_shards(tmp_path / "t").documents("train")[0][:-1].tolist()
    assert tokenizer.decode(ids) == text
    if end:  # split where the vocabulary splits as well, the pieces have the ids of the whole
        assert ids == tokenizer.encode(text)


@pytest.mark.parametrize("encoder", ["library", "words"])
def test_both_encoders_give_the_same_shards(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    texts = [text.replace("hen", "𠮷😀") if i % 9 == 0 else text + "\n  'tis ½" for i, text in enumerate(TEXTS)]
    monkeypatch.setattr(preparation, "PIECE", 50)
    mixed = prepare(texts, tokenizer, tmp_path / "a", chunk_bytes=900)
    if encoder == "library":
        monkeypatch.setattr(Tokenizer, "words", lambda self, dtype: None)
    else:
        monkeypatch.setattr(preparation, "THREADS", 1)
        monkeypatch.setattr(
            preparation, "encode_in_batches", lambda *_: pytest.fail("a single thread encodes word by word")
        )
    assert prepare(texts, tokenizer, tmp_path / "b", chunk_bytes=900) == mixed


def test_vocabulary_with_leading_space_encodes_whole_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "PIECE", 200)
    encoder = ByteEncoder()
    monkeypatch.setattr(encoder, "leading_space", True)
    prepare([" ".join(TEXTS), "short"], encoder, tmp_path / "s", val_fraction=0)
    assert characters(encoder) == [len(" ".join(TEXTS)), len("short")]


def test_short_documents_are_encoded_in_batches(tmp_path: Path) -> None:
    encoder = ByteEncoder()
    prepare((f"{i}" for i in range(2000)), encoder, tmp_path / "s", val_fraction=0)
    assert characters(encoder) == [10 + 90 * 2 + 900 * 3 + 1000 * 4]


@pytest.mark.parametrize("shard_tokens", [97, 1000, 50_000])
def test_split_over_several_files_reads_like_one_file(tmp_path: Path, shard_tokens: int) -> None:
    whole = prepare(TEXTS, ByteEncoder(), tmp_path / "whole", val_fraction=0.1)
    cut = prepare(TEXTS, ByteEncoder(), tmp_path / "cut", val_fraction=0.1, shard_tokens=shard_tokens)
    for name, split in (("train", cut.train), ("val", cut.val)):
        count = -(-split.tokens // shard_tokens)
        names = [f"{name}-{number:05d}.bin" for number in range(count)] if count > 1 else [f"{name}.bin"]
        assert [file.name for file in split.files] == names
        assert [file.tokens for file in split.files] == [shard_tokens] * (count - 1) + [
            split.tokens - shard_tokens * (count - 1)
        ]
        joined = b"".join((tmp_path / "cut" / file).read_bytes() for file in names)
        assert joined == (tmp_path / "whole" / f"{name}.bin").read_bytes()
    assert sorted(os.listdir(tmp_path / "cut")) == sorted(
        ["manifest.json", *(file.name for split in (cut.train, cut.val) for file in split.files)]
    )
    opened, other = open_shards(tmp_path / "cut", verify=True), open_shards(tmp_path / "whole")
    assert documents_of(opened, "train") == documents_of(other, "train")
    assert documents_of(opened, "val") == documents_of(other, "val")
    assert (cut.fingerprint == whole.fingerprint) == (shard_tokens == 50_000 or cut.train.files == whole.train.files)


def test_lengths_are_counted_by_powers_of_two(tmp_path: Path) -> None:
    sizes = [1, 2, 3, 4, 7, 8, 15, 16, 1023, 1024]
    manifest = prepare(["x" * n for n in sizes], ByteEncoder(), tmp_path / "s", val_fraction=0)
    assert manifest.train.lengths == (1, 2, 2, 2, 1, 0, 0, 0, 0, 1, 1)
    assert manifest.train.longest == 1024


def test_sources_keep_their_order_and_counts(tmp_path: Path) -> None:
    named = {"a": TEXTS[:100], "b": TEXTS[90:110], "c": [], "d": ["x" * 7]}
    manifest = prepare(named, ByteEncoder(), tmp_path / "s", val_fraction=0.2)
    opened = open_shards(tmp_path / "s")
    assert [source.source for source in manifest.train.sources] == ["a", "b", "c", "d"]
    assert [r.exact for r in manifest.removed] == [0, 10, 0, 0]
    for split in ("train", "val"):
        info, start = getattr(manifest, split), 1
        for source in info.sources:
            tokens = getattr(opened, split)[start : start + source.tokens]
            found = np.split(tokens, np.flatnonzero(tokens == 0) + 1)[:-1]
            assert len(found) == source.documents
            start += source.tokens
        assert start == info.tokens
    kept = documents_of(opened, "train")
    assert kept == [text for text in [*TEXTS[:110], "x" * 7] if text in set(kept)]


def test_limited_documents_come_from_every_source(tmp_path: Path) -> None:
    named = {"a": TEXTS[:200], "b": TEXTS[200:300]}
    prepare(named, ByteEncoder(), tmp_path / "s", val_fraction=0)
    found = open_shards(tmp_path / "s").documents("train", 9)
    texts = [bytes(int(t) - 1 for t in d[:-1]).decode() for d in found]
    assert texts == [*TEXTS[:6], *TEXTS[200:203]]
    assert len(open_shards(tmp_path / "s").documents("train", 1000)) == 300


def test_sources_may_be_a_function_called_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("hello")
    reader = read_records([tmp_path / "x.txt"], "documents")
    manifest = prepare((d.text for d in reader), ByteEncoder(), tmp_path / "s", sources=lambda: reader.report.sources())
    digest = hashlib.sha256(b"hello").hexdigest()
    assert manifest.sources == ({"source": str(tmp_path / "x.txt"), "sha256": digest, "bytes": 5, "records": 1},)


def test_failing_source_leaves_no_shards(tmp_path: Path) -> None:
    def broken() -> Iterator[str]:
        yield "a"
        raise UserError("bad row", fix="fix the file")

    with pytest.raises(UserError, match="bad row"):
        prepare(broken(), ByteEncoder(), tmp_path / "deep" / "s")
    assert os.listdir(tmp_path / "deep") == []
    with pytest.raises(UserError, match="0 documents to prepare"):
        prepare(["", ""], ByteEncoder(), tmp_path / "deep" / "s")
    with pytest.raises(UserError, match="half of a surrogate pair at character 1"):
        prepare(["a\ud800"], ByteEncoder(), tmp_path / "deep" / "s")
    assert os.listdir(tmp_path / "deep") == []
    with pytest.raises(UserError, match="0 documents to train on"):
        prepare(["a", "b"], ByteEncoder(), tmp_path / "deep" / "s", val_documents=["b", "a"])
    assert os.listdir(tmp_path / "deep") == [".s.work"]  # finished chunks stay for the next run


def test_other_files_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for out in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(UserError, match="contains no shards") as error:
            prepare(["a"], ByteEncoder(), out)
        assert error.value.code == USAGE
    with pytest.raises(UserError, match="cannot be written") as error:
        prepare(["a"], ByteEncoder(), tmp_path / "file" / "s")
    assert error.value.code == RESOURCES
    with pytest.raises(UserError, match="val_fraction 1 is not in"):
        prepare(["a"], ByteEncoder(), tmp_path / "s", val_fraction=1)
    (tmp_path / "empty").mkdir()
    assert prepare(["a"], ByteEncoder(), tmp_path / "empty").train.documents == 1


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    prepare(TEXTS, ByteEncoder(), tmp_path / "s", val_fraction=0.3)
    return tmp_path / "s"


@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
@pytest.mark.parametrize("change", [-1000, -2, -1, 1, 2])
def test_shard_of_the_wrong_size_is_refused(shards: Path, name: str, change: int) -> None:
    size = (shards / name).stat().st_size
    assert size > 1000
    os.truncate(shards / name, size + change)
    with pytest.raises(UserError) as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(shards / name)
    expected = f"a shard of {size + change:,} bytes; its manifest says {size // 2:,} tokens"
    assert error.value.what.startswith(expected)


@pytest.mark.parametrize("name", ["train.bin", "val.bin", "manifest.json"])
def test_missing_file_is_refused(shards: Path, name: str) -> None:
    (shards / name).unlink()
    with pytest.raises(UserError) as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(shards / name)


def test_verify_finds_one_flipped_bit(shards: Path) -> None:
    data = bytearray((shards / "val.bin").read_bytes())
    data[100] ^= 1
    (shards / "val.bin").write_bytes(data)
    open_shards(shards)
    with pytest.raises(UserError, match="does not match its sha256") as error:
        open_shards(shards, verify=True)
    assert error.value.code == INTEGRITY
    assert error.value.where == str(shards / "val.bin")


def test_other_tokenizers_and_smaller_models_are_refused(shards: Path) -> None:
    with pytest.raises(UserError) as error:
        open_shards(shards, tokenizer_sha256="cd" * 32)
    assert "ab" * 32 in error.value.what
    assert "cd" * 32 in error.value.what
    assert error.value.code == INTEGRITY
    with pytest.raises(UserError, match="vocabulary of 257, but the model's has 256"):
        open_shards(shards, vocab_size=256)
    open_shards(shards, vocab_size=320)  # embeddings may be padded


@pytest.mark.parametrize(
    "edit",
    [
        {"version": 1},
        {"version": "2"},
        {"dtype": "float16"},
        {"dtype": ["uint16"]},
        {"removed": [{"source": "", "exact": -1, "near": 0}]},
        {"train": {}},
        {"train": None},
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


@pytest.mark.parametrize(
    "edit",
    [
        {"tokens": "4"},
        {"tokens": 0},
        {"documents": 7},
        {"bytes": 1},
        {"bytes_per_token": 2.0},
        {"lengths": []},
        {"sources": []},
        {"files": []},
        {"files": [{"name": "../s/val.bin", "tokens": 1, "sha256": ""}]},
        {"files": [{"name": "train.bin", "tokens": 1, "sha256": ""}]},
        {"files": [{"name": "val.bin"}]},
        {"files": [{"name": "val.bin", "tokens": 2, "sha256": ""}]},
        {"sha256": ""},
    ],
)
def test_damaged_splits_are_refused(shards: Path, edit: dict) -> None:
    file = shards / "manifest.json"
    manifest = json.loads(file.read_text())
    names = edit.get("files") or []
    if names and names[0].get("tokens") == 1:
        names[0]["tokens"] = manifest["val"]["tokens"]  # all else adds up
    file.write_text(json.dumps(manifest | {"val": manifest["val"] | edit}))
    with pytest.raises(UserError, match="damaged manifest") as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY


@pytest.mark.parametrize("content", ["", "[]", "null", "{", "[" * 100_000, "\xff"])
def test_invalid_manifests_are_refused(shards: Path, content: str) -> None:
    (shards / "manifest.json").write_text(content, encoding="latin-1")
    with pytest.raises(UserError, match="damaged manifest") as error:
        open_shards(shards)
    assert error.value.code == INTEGRITY
    shutil.rmtree(shards)
    with pytest.raises(UserError, match="no prepared data here") as error:
        open_shards(shards)
    assert error.value.code == USAGE


def test_shards_do_not_import_torch() -> None:
    code = "import sys, tinyllm.data.records.reader, tinyllm.data.tokens.shards; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0
