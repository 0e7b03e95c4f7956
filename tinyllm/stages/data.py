"""`tinyllm data prepare`: text to token shards, with the tokenizer that made them.

`runs/data/NAME/` holds `tokenizer/` and `shards/`. Pretraining calls the same function, so preparing beforehand is a matter of
convenience: what was made from the same sources with the same settings is found again by its fingerprint.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllm import dist
from tinyllm.data import records, shards, world
from tinyllm.data.shards import Shards
from tinyllm.stages.common import Call
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.parents import RUNS
from tinyllm.stages.reading import is_world
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.progress import say
from tinyllm.train.run import FAST_DEV_RUN

_RECORD = "prepared.json"
_TOKENIZER_CHARACTERS = 50_000_000  # of text are enough to count pairs in


def prepare(config: PretrainConfig, call: Call) -> dict[str, Any]:
    """The stage: prepare, and say how the text compares with its tokens."""
    started = time.monotonic()
    folder = RUNS / "data" / config.name
    if config.name == FAST_DEV_RUN and dist.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    tokenizer, opened = ensure(config)
    train = opened.manifest.train
    return {
        "schema_version": 1,
        "stage": "data",
        "run": opened.path.parent.as_posix(),
        "seconds": round(time.monotonic() - started, 2),
        "documents": {"train": train.documents, "val": opened.manifest.val.documents},
        "tokens": {"train": train.tokens, "val": opened.manifest.val.tokens},
        "bytes": {"train": train.bytes, "val": opened.manifest.val.bytes},
        "vocab_size": tokenizer.vocab_size,
        # before: one token a byte; after: what the merges learned from this text made of it
        "moved": {"what": "bytes per token", "from": 1.0, "to": train.bytes / max(1, train.tokens - train.documents)},
    }


def ensure(config: PretrainConfig) -> tuple[Tokenizer, Shards]:
    """Tokenizer and shards for a configuration: those that are there, or made now (by rank 0, while the others wait)."""
    folder = RUNS / "data" / config.name
    wanted = fingerprint(config)
    if dist.is_main() and not _holds(folder, wanted):
        _make(config, folder, wanted)
    dist.barrier()
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return tokenizer, shards.open_shards(folder / "shards", tokenizer_sha256=tokenizer.sha256)


def fingerprint(config: PretrainConfig) -> str:
    """A hash of everything that shapes the shards: the files' content, the reading options, the tokenizer."""
    data, digest = config.data, hashlib.sha256()
    tokenizer = Tokenizer.load(config.tokenizer).sha256 if config.tokenizer else config.model.vocab_size
    settings = [data.val_fraction, data.format, dict(data.field), data.on_bad_line, tokenizer]
    if any(is_world(s) for s in (*data.train, *data.val)):
        settings.append(config.seed)
    digest.update(json.dumps(settings).encode())
    for side in (data.train, data.val):
        digest.update(b"|")
        for source in side:
            if is_world(source) or source == "-":
                digest.update(source.encode())
                continue
            for path in records.expand([source]):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _holds(folder: Path, wanted: str) -> bool:
    try:
        return json.loads((folder / _RECORD).read_text(encoding="utf-8"))["fingerprint"] == wanted
    except (OSError, ValueError, KeyError):
        return False


def _make(config: PretrainConfig, folder: Path, wanted: str) -> None:
    (folder / _RECORD).unlink(missing_ok=True)  # first: half-made shards must not be taken for finished ones
    folder.mkdir(parents=True, exist_ok=True)
    train, val = _Texts(config, "train"), _Texts(config, "val")
    if config.tokenizer:
        tokenizer = Tokenizer.load(config.tokenizer).with_chat_tokens()
    else:
        say(f"training a tokenizer of at most {config.model.vocab_size} tokens")
        tokenizer = Tokenizer.train(train.sample(_TOKENIZER_CHARACTERS), config.model.vocab_size)
    tokenizer.save(folder / "tokenizer", model_max_length=config.model.max_position_embeddings)
    manifest = shards.prepare(
        train,
        tokenizer,
        folder / "shards",
        val_fraction=config.data.val_fraction,
        val_documents=val if val.sources else None,
        sources=lambda: train.facts + val.facts,
    )
    facts = {"fingerprint": wanted, "config": config.model_dump(mode="json"), "sources": train.facts + val.facts}
    (folder / _RECORD).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    say(f"{folder}: {manifest.train.tokens:,} tokens to train on, {manifest.val.tokens:,} to validate with")


class _Texts:
    """The documents of one side, as often as they are asked for."""

    def __init__(self, config: PretrainConfig, split: str):
        data = config.data
        self.config, self.split = config, split
        self.sources = data.train if split == "train" else data.val
        if split == "val" and not data.val and all(map(is_world, data.train)):
            self.sources = ("world:500",)  # the world holds out its own
        self.facts: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[str]:
        self.facts = []
        for source in self.sources:
            if is_world(source):
                count = int(source.partition(":")[2] or 20000)
                self.facts.append({"source": source, "seed": self.config.seed})
                yield from (row["text"] for row in world.documents(count, seed=self.config.seed, split=self.split))
                continue
            data = self.config.data
            reader = records.read(
                [source], "documents", format=data.format, field=data.field, on_bad_line=data.on_bad_line
            )
            for record in reader:
                yield record.text
            for line in reader.report.lines():
                say(line)
            self.facts += reader.report.sources()

    def sample(self, characters: int) -> Iterator[str]:
        """The first documents, up to about so many characters."""
        seen = itertools.accumulate(map(len, self), initial=0)
        return (text for text, before in zip(self, seen, strict=False) if before < characters)
