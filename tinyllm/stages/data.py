"""`tinyllm data prepare`: text to token shards, with the tokenizer that made them.

`runs/data/NAME/` holds `tokenizer/` and `shards/`. Pretraining calls the same function, so preparing beforehand is a matter of
convenience: what was made from the same sources with the same settings is found again (`prepared`). One process at a time makes it.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tinyllm import dist
from tinyllm.data import records, shards, world
from tinyllm.data.manifest import Manifest, Split
from tinyllm.data.parts import pieces
from tinyllm.data.shards import Shards
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.stages import prepared
from tinyllm.stages.call import Call
from tinyllm.stages.config import PretrainConfig, is_world
from tinyllm.stages.meter import Meter
from tinyllm.stages.parents import RUNS
from tinyllm.stages.prepared import Seen, Stamp
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import lock
from tinyllm.train.progress import say
from tinyllm.train.run import FAST_DEV_RUN

_TOKENIZER_CHARACTERS = 50_000_000  # of text are enough to count pairs in


def prepare(config: PretrainConfig, call: Call) -> dict[str, Any]:
    """The stage: prepare, and say how the text compares with its tokens."""
    started = time.monotonic()
    folder = RUNS / "data" / config.name
    if config.name == FAST_DEV_RUN and dist.is_main():
        shutil.rmtree(folder, ignore_errors=True)
    if any(map(prepared.read_once, (*config.data.train, *config.data.val))):
        prepared.forget(folder)  # what is piped in now need not be what was piped in then
    try:
        tokenizer, opened = ensure(config)
    except UserError as error:  # pretraining refuses what is damaged, or of another tokenizer; here it is made again
        if error.code != INTEGRITY:
            raise
        say(f"{error.what}: made again")
        prepared.forget(folder)
        tokenizer, opened = ensure(config)
    train, val = opened.manifest.train, opened.manifest.val
    return {
        "schema_version": 1,
        "stage": "data",
        "run": opened.path.parent.as_posix(),
        "seconds": round(time.monotonic() - started, 2),
        "documents": {"train": train.documents, "val": val.documents},
        "tokens": {"train": train.tokens, "val": val.tokens},
        "bytes": {"train": train.bytes, "val": val.bytes},
        "removed": {
            "exact": sum(source.exact for source in opened.manifest.removed),
            "near": sum(source.near for source in opened.manifest.removed),
        },
        "sources": {source.source: source.tokens for source in train.sources},
        "vocab_size": tokenizer.vocab_size,
        # before: one token a byte; after: what the merges learned from this text made of it
        "moved": {"what": "bytes per token", "from": 1.0, "to": train.bytes_per_token},
    }


def ensure(config: PretrainConfig) -> tuple[Tokenizer, Shards]:
    """Tokenizer and shards for a configuration: those that are there, or made now (by rank 0, while the others wait)."""
    folder = RUNS / "data" / config.name
    if dist.is_main() and not prepared.holds(folder, config):
        lock.claim(folder)
        try:
            if not prepared.holds(folder, config):  # another process may have made it in the meantime
                _make(config, folder)
        finally:
            lock.release(folder)
    dist.barrier()
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return tokenizer, shards.open_shards(folder / "shards", tokenizer_sha256=tokenizer.sha256)


def fingerprint(config: PretrainConfig) -> str:
    """A hash of everything that shapes the shards: the files' content, the reading options, the tokenizer."""
    return prepared.fingerprint(config, RUNS / "data" / config.name)


def _make(config: PretrainConfig, folder: Path) -> None:
    prepared.forget(folder)  # first: half-made shards must not be taken for finished ones
    train, val = Texts(config, "train"), Texts(config, "val")
    if config.tokenizer:
        tokenizer = imported(config.tokenizer)
    else:
        say(f"training a tokenizer of at most {config.model.vocab_size} tokens")
        tokenizer = Tokenizer.train(train.sample(_TOKENIZER_CHARACTERS), config.model.vocab_size)
    tokenizer.save(folder / "tokenizer", model_max_length=config.model.max_position_embeddings)
    with Meter("prepare", train.size + val.size) as meter:
        manifest = shards.prepare(
            train.by_source(),
            tokenizer,
            folder / "shards",
            val_fraction=config.data.val_fraction,
            val_documents=val.by_source() if val.sources else None,
            sources=lambda: train.facts + val.facts,
            dedup=config.data.dedup,
            progress=lambda size: meter.update(train.read + val.read, size),
        )
    prepared.write(folder, config, train.seen + val.seen, train.facts + val.facts)
    for line in _described(manifest):
        say(line)


def _described(manifest: Manifest) -> Iterator[str]:
    """What came out, for people."""
    train, val = manifest.train, manifest.val
    yield (
        f"{train.tokens:,} tokens to train on, {val.tokens:,} to validate with "
        f"({train.documents:,} and {val.documents:,} documents), {train.bytes_per_token:.2f} bytes a token"
    )
    if len(train.sources) > 1:
        yield "of " + ", ".join(f"{s.source} {s.tokens / max(1, train.tokens - 1):.1%}" for s in train.sources)
    yield f"document lengths in tokens: {_histogram(train)}"
    if manifest.dedup != "none":
        exact, near = (sum(getattr(r, kind) for r in manifest.removed) for kind in ("exact", "near"))
        kinds = f"{exact:,} exact" + (f", {near:,} near" if manifest.dedup == "near" else "")
        each = [f"{r.source} {r.exact + r.near:,}" for r in manifest.removed if r.exact or r.near]
        yield f"removed: {kinds} duplicates" + (f" ({', '.join(each)})" if len(manifest.removed) > 1 and each else "")


def _histogram(split: Split) -> str:
    shares = [(1 << power, count / max(1, split.documents)) for power, count in enumerate(split.lengths)]
    return (
        ", ".join(f"{low:,}+ {share:.0%}" for low, share in shares if share >= 0.005) + f"; at most {split.longest:,}"
    )


def imported(path: Path) -> Tokenizer:
    """A vocabulary from elsewhere for a model that is trained here; what was added to it or left out is said."""
    plain = Tokenizer.load(path)
    tokenizer = plain.for_new_model()
    say(f"{path}: {plain.vocab_size:,} tokens, {len(plain.special_ids)} of them control tokens")
    if added := sorted(tokenizer.special_ids - plain.special_ids):
        names = [f"{tokenizer.decode([i], skip_special=False)} {i}" for i in added]
        say(f"added for chat: {', '.join(names)}; a model needs {tokenizer.vocab_size:,} rows")
    if plain.bos is not None and plain.bos != plain.endoftext:
        start, end = (plain.decode([i], skip_special=False) for i in (plain.bos, plain.endoftext))
        say(f"a document begins behind the {end} of the one before; {start} is not used")
    return tokenizer


class Texts:
    """The documents of one side, as often as they are asked for. `facts` and `seen` are of the latest pass."""

    def __init__(self, config: PretrainConfig, split: str):
        data = config.data
        self.config, self.split = config, split
        self.sources = data.train if split == "train" else data.val
        if split == "val" and not data.val and all(map(is_world, data.train)):
            self.sources = ("world:500",)  # the world holds out its own
        self._told: set[str] = set()
        self._begin()

    def _begin(self) -> None:
        self.facts: list[dict[str, Any]] = []
        self.seen: list[Seen] = []
        self._readers: list[records.Reader] = []

    @property
    def size(self) -> int:
        """Bytes of all files as they are stored; 0 where not all sources are files."""
        if not self.sources or any(is_world(source) or prepared.read_once(source) for source in self.sources):
            return 0
        return sum(path.stat().st_size for path in records.expand(self.sources))

    @property
    def read(self) -> int:
        """Bytes read in the latest pass, as they are stored."""
        return sum(reader.read for reader in self._readers)

    def by_source(self) -> Mapping[str, Iterator[str]]:
        """The documents of each source by its name, to be read in this order."""
        self._begin()
        return {source: self._documents(source) for source in self.sources}

    def __iter__(self) -> Iterator[str]:
        return itertools.chain.from_iterable(self.by_source().values())

    def sample(self, characters: int) -> Iterator[str]:
        """The first documents, up to about so many characters; long ones in pieces, which take a trainer far less memory."""
        for text in itertools.chain.from_iterable(map(pieces, self)):
            yield text
            characters -= len(text)
            if characters <= 0:
                return

    def _documents(self, source: str) -> Iterator[str]:
        data, seed = self.config.data, self.config.seed
        if is_world(source):
            self.facts.append({"source": source, "seed": seed})
            count = int(source.partition(":")[2] or 20000)
            yield from (row["text"] for row in world.documents(count, seed=seed, split=self.split))
            return
        reader = records.read(
            [source],
            "documents",
            format=data.format,
            field=data.field,
            on_bad_line=data.on_bad_line,
            encoding=data.encoding,
        )
        self._readers.append(reader)
        before = {str(path): Stamp.of(path) for path in reader.paths}
        for record in reader:
            yield record.text
        for line in reader.report.lines() if source not in self._told else ():
            say(line)
        self._told.add(source)
        self.facts += reader.report.sources()
        for file in () if prepared.read_once(source) else reader.report.files:
            stamp = before[file.source]  # not trusted if the file was written to while it was read
            self.seen.append(Seen(file.source, file.sha256, stamp if stamp == Stamp.of(file.source) else None))
