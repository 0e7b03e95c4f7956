"""Duplicates: planted copies are removed, unrelated texts are kept, and no copy of a validation document is trained on."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from tinyllm.data.tokens import dedup
from tinyllm.data.tokens.shards import open_shards, prepare
from tinyllm.text.tokenizer import Tokenizer

WORDS = 3000


def texts(count: int, seed: int, words: int = 200) -> list[str]:
    """Return unrelated texts of frequent and rare words (Zipf)."""
    rng = np.random.default_rng(seed)
    chosen = np.minimum(rng.zipf(1.3, (count, words)), WORDS)
    return [" ".join(f"w{word}" for word in row) for row in chosen]


def edited(text: str, share: float, seed: int) -> str:
    """Return the text with a share of its words replaced."""
    rng, words = np.random.default_rng(seed), text.split()
    for at in rng.choice(len(words), round(share * len(words)), replace=False):
        words[at] = f"x{rng.integers(WORDS)}"
    return " ".join(words)


class WordEncoder:
    """An encoder whose tokens are words."""

    endoftext, vocab_size, sha256, leading_space = 0, 1 << 20, "cd" * 32, False
    words = staticmethod(lambda dtype: None)

    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode_batch(self, batch: list[str]) -> list[list[int]]:
        return [[self.ids.setdefault(word, len(self.ids) + 1) for word in text.split(" ")] for text in batch]

    def decode(self, tokens: np.ndarray) -> str:
        words = {i: word for word, i in self.ids.items()}
        return " ".join(words[int(i)] for i in tokens[:-1])


def kept(folder: Path, encoder: WordEncoder, split: str) -> list[str]:
    return [encoder.decode(tokens) for tokens in open_shards(folder).documents(split)]


def similarity(a: str, b: str) -> float:
    """Return the Jaccard similarity of the 5-word shingles."""
    x, y = ({tuple(words[i : i + 5]) for i in range(len(words) - 4)} for words in (a.split(), b.split()))
    return len(x & y) / len(x | y)


@pytest.mark.parametrize("pass_keys", [1 << 20, 50])
def test_duplicate_positions_equal_those_found_with_a_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pass_keys: int
) -> None:
    monkeypatch.setattr(dedup, "_PASS_KEYS", pass_keys)  # with 50: 21 passes over the file
    monkeypatch.setattr(dedup, "_BLOCK", 64)
    keys = np.random.default_rng(0).integers(0, 600, 1000).astype("<u8") * 0x9E3779B97F4A7C15
    keys.tofile(tmp_path / "keys")
    seen: set[int] = set()
    expected = [i for i, key in enumerate(keys.tolist()) if key in seen or seen.add(key)]
    found = np.concatenate(list(dedup.duplicate_positions(tmp_path / "keys")))
    assert sorted(found.tolist()) == expected
    assert len(expected) > 400


def test_exact_duplicates_keep_the_first_copy_and_are_counted_by_source(tmp_path: Path) -> None:
    unique, encoder = texts(50, 0), WordEncoder()
    named = {"a": unique[:30] + unique[:10], "b": unique[20:] + unique[5:6]}
    manifest = prepare(named, encoder, tmp_path / "s", val_fraction=0, chunk_bytes=5000)
    assert kept(tmp_path / "s", encoder, "train") == unique
    assert [(r.source, r.exact, r.near) for r in manifest.removed] == [("a", 10, 0), ("b", 11, 0)]
    everything = prepare(named, encoder, tmp_path / "all", val_fraction=0, dedup="none")
    assert everything.train.documents == 71
    assert [(r.source, r.exact, r.near) for r in everything.removed] == [("a", 0, 0), ("b", 0, 0)]


def test_near_duplicates_recall_and_precision(tmp_path: Path) -> None:
    """300 originals; copies with 1 % of the words changed (similarity 0.9), with 30 % (0.1), truncated, and exact ones."""
    originals, encoder = texts(300, 1), WordEncoder()
    close = [edited(text, 0.01, seed) for seed, text in enumerate(originals[:100])]
    far = [edited(text, 0.3, seed) for seed, text in enumerate(originals[100:200])]
    cut = [text[: int(len(text) * 0.95)].rpartition(" ")[0] for text in originals[200:250]]
    same = originals[250:]
    assert np.mean([similarity(a, b) for a, b in zip(originals, close, strict=False)]) == pytest.approx(0.9, abs=0.02)
    assert max(similarity(a, b) for a, b in zip(originals[100:], far, strict=False)) < 0.35
    manifest = prepare([*originals, *close, *far, *cut, *same], encoder, tmp_path / "s", val_fraction=0, dedup="near")
    remaining = Counter(kept(tmp_path / "s", encoder, "train"))
    found = {
        name: 1 - sum(remaining[t] for t in some) / len(some)
        for name, some in (("close", close), ("far", far), ("cut", cut))
    }
    assert manifest.removed[0].exact == 50
    assert found["close"] >= 0.99  # recall; expected 1 - (1 - 0.9^8)^16 = 99.99 %
    assert found["cut"] == 1.0
    assert found["far"] == 0.0  # precision
    assert all(remaining[text] == 1 for text in originals)


def test_detection_probability_follows_the_similarity() -> None:
    """The probability is 1 - (1 - s^8)^16, for the similarity s of each pair."""
    originals, encoder = texts(400, 2), WordEncoder()
    for share in (0.01, 0.02, 0.04, 0.08):
        copies = [edited(text, share, seed) for seed, text in enumerate(originals)]
        first, second = (keys_of(some, encoder) for some in (originals, copies))
        found = (first == second).any(1).mean()
        expected = np.mean([1 - (1 - similarity(a, b) ** 8) ** 16 for a, b in zip(originals, copies, strict=True)])
        assert found == pytest.approx(expected, abs=0.06)  # the standard error is 0.025


def keys_of(some: list[str], encoder: WordEncoder) -> np.ndarray:
    ids = encoder.encode_batch(some)
    tokens = np.array([i for one in ids for i in (*one, 0)], np.uint32)
    return dedup.near_keys(tokens, np.array([len(one) for one in ids]), np.arange(len(ids), dtype=np.uint64))


def test_documents_shorter_than_a_shingle_are_compared_as_a_whole() -> None:
    encoder = WordEncoder()
    keys = keys_of(["a b c d", "a b c d", "", "a b c d e", "a b c d e", "a b c d e f g"], encoder)
    assert not (keys[0] == keys[1]).any()  # they were given different exact keys
    assert (keys[3] == keys[4]).all()
    assert len(np.unique(keys[:4])) == 1 + 1 + 1 + dedup.BANDS  # one key in all bands for each of the first three
    alone = keys_of(["a b c d e"], encoder)
    assert (keys[3] == alone[0]).all()  # independent of the other documents in the batch


def test_no_duplicate_of_a_validation_document_is_trained_on(tmp_path: Path) -> None:
    originals, encoder = texts(150, 3), WordEncoder()
    copies = [edited(text, 0.01, seed) for seed, text in enumerate(originals)]
    mixed = [text for pair in zip(copies, originals, strict=True) for text in pair]
    prepare(mixed, encoder, tmp_path / "split", val_fraction=0.3, dedup="near")
    train, val = (kept(tmp_path / "split", encoder, split) for split in ("train", "val"))
    assert len(val) > 25
    assert max(similarity(a, b) for a in train for b in val) < 0.5
    manifest = prepare(mixed, encoder, tmp_path / "given", val_documents={"held out": originals[:40]}, dedup="near")
    assert kept(tmp_path / "given", encoder, "val") == originals[:40]  # all validation documents are kept
    train = kept(tmp_path / "given", encoder, "train")
    assert not {*originals[:40], *copies[:40]} & set(train)
    assert len(train) == 110
    assert [(r.source, r.exact, r.near) for r in manifest.removed] == [("held out", 0, 0), ("", 40, 150)]


def test_near_removes_few_documents_of_the_bundled_world(tmp_path: Path) -> None:
    from tinyllm.data import world

    found = [row["text"] for row in world.documents(1500, seed=0, split="train")]
    tokenizer = Tokenizer.train(found, 1000)
    prepare(found, tokenizer, tmp_path / "s", val_fraction=0, dedup="near")
    remaining = {tokenizer.decode(d[:-1].tolist()) for d in open_shards(tmp_path / "s").documents("train")}
    dropped = [text for text in found if text not in remaining]
    assert len(dropped) < 0.1 * len(found)


def test_near_keys_are_pinned() -> None:
    keys = keys_of([" ".join(f"w{i}" for i in range(50))], WordEncoder())
    assert keys.shape == (1, dedup.BANDS)
    assert hex(int(np.bitwise_xor.reduce(keys[0]))) == "0x210c5791facd6eec"
    assert all(len({*pair}) == 2 for pair in combinations(keys[0].tolist(), 2))
