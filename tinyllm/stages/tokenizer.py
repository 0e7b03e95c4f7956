"""`tinyllm data tokenizer`: train a vocabulary, or import one, and say how it fits the text.

It is written to `runs/data/NAME/tokenizer` (or `--out`), in the files that `AutoTokenizer` reads, with `source.json`: what it was made
from. `tinyllm pretrain --set tokenizer=FOLDER` takes it from there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyllm import __version__
from tinyllm.data.manifest import MANIFEST, read_manifest
from tinyllm.errors import RESOURCES, UserError
from tinyllm.stages import data
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.parents import RUNS
from tinyllm.text import importing, measuring
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.progress import say
from tinyllm.train.run import FAST_DEV_RUN

SOURCE = "source.json"
_TRAIN_CHARACTERS = 50_000_000  # of text are enough to count pairs in
_REPORT_CHARACTERS = 10_000_000  # of text are measured
_OURS = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", SOURCE}


def run(
    config: PretrainConfig, *, against: Sequence[Path] = (), out: Path | None = None, report: Path | None = None
) -> dict[str, Any]:
    """Train (or import `config.tokenizer`), write and measure; with `report`, only measure that one.

    Args:
        against: other vocabularies, measured on the same text.
        out: the folder to write to; runs/data/NAME/tokenizer by default.
    """
    started = time.monotonic()
    others = _labelled(against)  # first: a wrong path must not cost a training
    texts, kept = data.Texts(config, "train"), list[str]()
    folder = None if report else out or RUNS / "data" / config.name / "tokenizer"
    if config.name == FAST_DEV_RUN and folder and not out:
        shutil.rmtree(folder.parent, ignore_errors=True)
    if folder:
        _refuse_what_is_there(folder)
    given = report or config.tokenizer
    if report:
        tokenizer, made = Tokenizer.load(report), {"made": "read"}
    elif config.tokenizer:
        tokenizer, made = data.imported(config.tokenizer), {"made": "imported"}
    else:
        tokenizer, made = _trained(config, texts, kept), {"made": "trained"}
    if given:
        found = importing.read(given)
        made |= {"kind": found.kind, "file": found.file.as_posix(), "file_sha256": _sha256(found.file)}
    measured: Iterable[str] = kept
    if not kept or config.data.val:
        measured = data.Texts(config, "val" if config.data.val else "train").sample(_REPORT_CHARACTERS)
    figures = measuring.measure({"": tokenizer, **others}, measured)
    result = {
        "schema_version": 1,
        "stage": "tokenizer",
        "name": _name(given) if given else "trained",
        **made,
        "folder": folder.as_posix() if folder else None,
        "sha256": tokenizer.sha256,
        "text": list(config.data.val or config.data.train),
        "held_out": bool(config.data.val),
        **figures.pop("").to_dict(),
        "against": {name: other.to_dict() for name, other in figures.items()},
    }
    if folder:
        source: dict[str, Any] = {
            **made,
            "sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "tinyllm": __version__,
        }
        if made["made"] == "trained":
            source["sources"] = texts.facts or [{"source": name} for name in config.data.train]
        _write(tokenizer, folder, config.model.max_position_embeddings, source)
    return result | {"seconds": round(time.monotonic() - started, 2)}


def _trained(config: PretrainConfig, texts: data.Texts, kept: list[str]) -> Tokenizer:
    """Trained on the first documents; `kept` gets as many as are measured, since standard input comes only once."""
    say(f"training a tokenizer of at most {config.model.vocab_size:,} tokens")
    return Tokenizer.train(_keeping(texts.sample(_TRAIN_CHARACTERS), kept), config.model.vocab_size)


def _keeping(texts: Iterable[str], kept: list[str]) -> Iterator[str]:
    left = _REPORT_CHARACTERS
    for text in texts:
        if left > 0:
            kept.append(text)
            left -= len(text)
        yield text


def _labelled(paths: Sequence[Path]) -> dict[str, Tokenizer]:
    """By the name of their folder, which says more than tokenizer.json."""
    found: dict[str, Tokenizer] = {}
    for path in paths:
        name = _name(path)
        found[name if name not in found else path.as_posix()] = Tokenizer.load(path)
    return found


def _name(path: Path) -> str:
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.parent.name if folder.name == "tokenizer" else folder.name


def _refuse_what_is_there(folder: Path) -> None:
    fix = "choose another --out" if folder.name != "tokenizer" else "choose another --name or --out"
    if folder.exists() and not folder.is_dir():
        raise UserError("this is a file", where=str(folder), fix=fix)
    strange = sorted(path.name for path in folder.iterdir() if path.name not in _OURS) if folder.is_dir() else []
    if strange:
        raise UserError(f"this folder holds other things: {', '.join(strange[:3])}", where=str(folder), fix=fix)


def _refuse_other_shards(tokenizer: Tokenizer, folder: Path) -> None:
    """Shards beside the tokenizer are what `pretrain` reads with it."""
    beside = folder.parent / "shards" / MANIFEST
    if folder.name == "tokenizer" and beside.is_file() and read_manifest(beside).tokenizer_sha256 != tokenizer.sha256:
        what = "there are shards here that were made with another tokenizer"
        raise UserError(what, where=str(beside.parent), fix="choose another --name or --out")


def _write(tokenizer: Tokenizer, folder: Path, model_max_length: int, source: dict[str, Any]) -> None:
    """All files or none: into a folder beside it, which is then renamed."""
    _refuse_other_shards(tokenizer, folder)
    partial = folder.absolute().with_name(f".{folder.absolute().name}.partial-{uuid.uuid4().hex[:12]}")
    try:
        tokenizer.save(partial, model_max_length=model_max_length)
        (partial / SOURCE).write_text(json.dumps(source, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        if folder.exists():
            os.replace(folder, partial.with_name(partial.name + "-old"))
        os.replace(partial, folder)
    except OSError as error:
        what, fix = f"the tokenizer cannot be written: {error.strerror}", "choose another --out"
        raise UserError(what, where=str(folder), fix=fix, code=RESOURCES) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(partial.with_name(partial.name + "-old"), ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
