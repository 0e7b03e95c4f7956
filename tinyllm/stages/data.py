"""`tinyllm data prepare`: turn text into token shards, with the tokenizer that made them.

`runs/data/NAME/` holds `tokenizer/` and `shards/`. Pretraining calls the same function: preparing beforehand is optional, and what was
made from the same sources with the same settings is reused (see `prepared`). One process at a time prepares.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tinyllm import distributed as dist
from tinyllm.console import ProgressBar, say, show_reading
from tinyllm.data.records.report import first_files
from tinyllm.data.spelling import SpelledDocuments
from tinyllm.data.tokens import shards
from tinyllm.data.tokens.manifest import Manifest, Split
from tinyllm.data.tokens.shards import Shards
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.stages import prepared
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.continued import with_checkpoint
from tinyllm.stages.documents import Documents
from tinyllm.stages.parents import RUNS
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train import lock
from tinyllm.train.fast_dev_runs import empty_folder
from tinyllm.train.run import Invocation

TOKENIZER_CHARACTERS = 50_000_000  # of text are enough for a tokenizer to count pairs in


def prepare(config: PretrainConfig, invocation: Invocation) -> dict[str, Any]:
    """Prepare the data of a configuration. Returns the stage's result: counts, and how many bytes a token covers."""
    started = time.monotonic()
    config = with_checkpoint(config)
    folder = RUNS / "data" / config.name
    if invocation.fast and dist.is_main():
        remove_prepared(folder)
    if any(map(prepared.is_read_once, config.data.sources)):
        prepared.invalidate(folder)  # another text may be piped in now
    try:
        tokenizer, opened = ensure_prepared(config)
    except (
        UserError
    ) as error:  # pretraining refuses damaged shards and those of another tokenizer; here they are made again
        if error.code != INTEGRITY:
            raise
        say(f"{error.what}: preparing again")
        prepared.invalidate(folder)
        tokenizer, opened = ensure_prepared(config)
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
        "moved": {"what": "bytes per token", "from": None, "to": train.bytes_per_token},
    }


def ensure_prepared(config: PretrainConfig, *, replace: bool = False) -> tuple[Tokenizer, Shards]:
    """Return tokenizer and shards of a configuration. Rank 0 makes them unless they are current, while the other ranks wait.

    Args:
        replace: make them again where they were made with another tokenizer than that of the checkpoint `parent`.

    Raises: UserError for data that cannot be read or belong to another tokenizer (USAGE), damaged shards (INTEGRITY), a full disk or a
    process at work (RESOURCES).
    """
    folder = RUNS / "data" / config.name
    _refuse_other_tokenizer(config, folder, replace=replace)
    if dist.is_main() and not prepared.is_current(folder, config):
        lock.acquire(folder)
        try:
            if not prepared.is_current(folder, config):  # another process may have made them in the meantime
                _make(config, folder)
        finally:
            lock.release(folder)
    dist.barrier()
    tokenizer = Tokenizer.load(folder / "tokenizer")
    return tokenizer, shards.open_shards(folder / "shards", tokenizer_sha256=tokenizer.sha256)


def _refuse_other_tokenizer(config: PretrainConfig, folder: Path, *, replace: bool) -> None:
    made = folder / "tokenizer"
    if not (dist.is_main() and config.parent and config.tokenizer and made.is_dir()):
        return
    if Tokenizer.load(made).sha256 == Tokenizer.load(config.tokenizer).sha256:
        return
    if not replace:
        raise other_tokenizer(folder, config.parent)
    remove_prepared(folder)


def other_tokenizer(folder: Path, checkpoint: Path | None) -> UserError:
    """Return the error for prepared data that do not fit a checkpoint."""
    return UserError(
        f"the prepared data were made with another tokenizer than that of the checkpoint {checkpoint}",
        where=str(folder),
        fix="choose another --name, under which the text is prepared with the checkpoint's tokenizer",
    )


def remove_prepared(folder: Path) -> None:
    """Remove prepared data, those of an earlier fast-dev-run. Raises: UserError (RESOURCES) if another process is making them."""
    if not folder.is_dir():
        return
    lock.acquire(folder)
    try:
        prepared.invalidate(folder)  # first: a part of them must not look current
        empty_folder(folder)
    finally:
        lock.release(folder)


def fingerprint(config: PretrainConfig) -> str:
    """Return a hash of everything that shapes the shards: the content of the files, the reading options and the tokenizer."""
    return prepared.fingerprint(config, RUNS / "data" / config.name)


def _make(config: PretrainConfig, folder: Path) -> None:
    prepared.invalidate(folder)  # first: unfinished shards must not look current
    train, val = Documents(config, "train"), Documents(config, "val")
    if config.tokenizer and config.parent:
        tokenizer = Tokenizer.load(config.tokenizer)  # exactly as it is: the model has no embeddings for more tokens
    elif config.tokenizer:
        tokenizer = import_tokenizer(config.tokenizer)
    else:
        say(f"training a tokenizer of at most {config.model.vocab_size} tokens")
        tokenizer = Tokenizer.train(
            train.sample(TOKENIZER_CHARACTERS, train.trained_on(train)), config.model.vocab_size
        )
    tokenizer.save(folder / "tokenizer", model_max_length=config.model.max_position_embeddings)
    of_train, of_val = (SpelledDocuments(tokenizer, config.data.on_bad_line) for _ in (train, val))
    try:
        with ProgressBar("prepare", train.size + val.size) as bar:
            manifest = shards.prepare(
                of_train.of(train.by_source()),
                tokenizer,
                folder / "shards",
                val_fraction=config.data.val_fraction,
                val_documents=of_val.of(val.by_source()) if val.sources else None,
                sources=lambda: train.facts + val.facts,
                dedup=config.data.dedup,
                progress=lambda size: show_reading(bar, train.bytes_read + val.bytes_read, size),
            )
    finally:
        of_train.tell()
        of_val.tell()
    prepared.record(folder, config, train.files + val.files, train.facts + val.facts)
    for line in _summary(manifest):
        say(line)


def _summary(manifest: Manifest) -> Iterator[str]:
    train, val = manifest.train, manifest.val
    yield (
        f"{train.tokens:,} tokens for training, {val.tokens:,} for validation "
        f"({train.documents:,} and {val.documents:,} documents), {train.bytes_per_token:.2f} bytes per token"
    )
    if len(train.sources) > 1:
        total = max(1, train.tokens - 1)
        first, more = first_files([f"{s.source} {s.tokens / total:.1%}" for s in train.sources])
        others = sum(s.tokens for s in train.sources[len(first) :]) / total
        yield "shares: " + ", ".join([*first, *[f"{more} {others:.1%}"] * bool(more)])
    yield f"document lengths in tokens: {_histogram(train)}"
    if manifest.dedup != "none":
        exact, near = (sum(getattr(r, kind) for r in manifest.removed) for kind in ("exact", "near"))
        kinds = f"{exact:,} exact" + (f", {near:,} near" if manifest.dedup == "near" else "")
        first, more = first_files([f"{r.source} {r.exact + r.near:,}" for r in manifest.removed if r.exact or r.near])
        each = [*first, *[more] * bool(more)]
        yield f"removed: {kinds} duplicates" + (f" ({', '.join(each)})" if len(manifest.removed) > 1 and each else "")


def _histogram(split: Split) -> str:
    shares = [(1 << power, count / max(1, split.documents)) for power, count in enumerate(split.lengths)]
    shown = ", ".join(f"{low:,}+ {share:.0%}" for low, share in shares if share >= 0.005)
    return f"{shown}; longest {split.longest:,}"


def import_tokenizer(path: Path) -> Tokenizer:
    """Return a tokenizer from elsewhere for a model that is trained here, and report which tokens were added."""
    plain = Tokenizer.load(path)
    tokenizer = plain.for_new_model()
    say(f"{path}: {plain.vocab_size:,} tokens, {len(plain.special_ids)} of them control tokens")
    if added := sorted(tokenizer.special_ids - plain.special_ids):
        names = [f"{tokenizer.decode([i], skip_special=False)} {i}" for i in added]
        say(f"added for chat: {', '.join(names)}; the model needs {tokenizer.vocab_size:,} embeddings")
    if plain.bos is not None and plain.bos != plain.endoftext:
        start, end = (plain.decode([i], skip_special=False) for i in (plain.bos, plain.endoftext))
        say(f"documents are separated by {end}; {start} is not used")
    return tokenizer
