"""`tinyllm data tokenizer`: train a tokenizer or import one, and report how well it fits the text.

It is written to `runs/data/NAME/tokenizer` (or `--out`), in the files that `AutoTokenizer` reads, with `source.json`, which records what
it was made from. `tinyllm pretrain --set tokenizer=FOLDER` uses it.
"""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tinyllm import __version__
from tinyllm.console import say
from tinyllm.data.tokens.manifest import MANIFEST, read_manifest
from tinyllm.errors import UserError
from tinyllm.io import strict_json
from tinyllm.io.files import sha256, write_text_atomically, writing
from tinyllm.stages import data
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.documents import Documents
from tinyllm.stages.parents import RUNS
from tinyllm.text import importing, measuring
from tinyllm.text.tokenizer import Tokenizer
from tinyllm.train.fast_dev_runs import FAST_DEV_RUN

SOURCE = "source.json"
_REPORT_CHARACTERS = 10_000_000  # of text are measured
_WRITTEN_FILES = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja", SOURCE}


def run(
    config: PretrainConfig, *, against: Sequence[Path] = (), out: Path | None = None, report: Path | None = None
) -> dict[str, Any]:
    """Train or import (`config.tokenizer`) a tokenizer, write and measure it.

    Args:
        against: other tokenizers, measured on the same text.
        out: the folder to write to; runs/data/NAME/tokenizer by default.
        report: measure this tokenizer instead, and write nothing.

    Raises: UserError for unreadable texts or tokenizers and a folder with other files (USAGE), and a full disk (RESOURCES).
    """
    started = time.monotonic()
    others = _load_named(against)  # first: a wrong path must not cost a training
    documents, sample = Documents(config, "train"), list[str]()
    folder = None if report else out or RUNS / "data" / config.name / "tokenizer"
    if config.name == FAST_DEV_RUN and folder and not out:
        data.remove_prepared(folder.parent)
    if folder:
        _refuse_other_files(folder)
    if report:
        tokenizer, origin = Tokenizer.load(report), {"made": "read"} | _file_facts(report)
    elif config.tokenizer:
        tokenizer, origin = (
            data.import_tokenizer(config.tokenizer),
            {"made": "imported"} | _file_facts(config.tokenizer),
        )
    else:
        tokenizer, origin = _train(config, documents, sample), {"made": "trained"}
    measured: Iterable[str] = sample
    if not sample or config.data.val:
        measured = Documents(config, "val" if config.data.val else "train").sample(_REPORT_CHARACTERS)
    metrics = measuring.measure({"": tokenizer, **others}, measured)
    if folder:
        facts = {**origin, "sha256": tokenizer.sha256, "vocab_size": tokenizer.vocab_size, "tinyllm": __version__}
        if origin["made"] == "trained":
            facts["sources"] = documents.facts or [{"source": name} for name in config.data.train]
        _write(tokenizer, folder, config.model.max_position_embeddings, facts)
    given = report or config.tokenizer
    return {
        "schema_version": 1,
        "stage": "tokenizer",
        "name": _name(given) if given else "trained",
        **origin,
        "folder": folder.as_posix() if folder else None,
        "sha256": tokenizer.sha256,
        "text": list(config.data.val or config.data.train),
        "held_out": bool(config.data.val),
        **metrics.pop("").to_dict(),
        "against": {name: other.to_dict() for name, other in metrics.items()},
        "seconds": round(time.monotonic() - started, 2),
    }


def _file_facts(path: Path) -> dict[str, Any]:
    found = importing.read(path)
    return {"kind": found.kind, "file": found.file.as_posix(), "file_sha256": sha256(found.file)}


def _train(config: PretrainConfig, documents: Documents, sample: list[str]) -> Tokenizer:
    """Train on the first training documents. Those that will be measured go to `sample`: standard input can be read only once."""
    say(f"training a tokenizer of at most {config.model.vocab_size:,} tokens")
    texts = documents.trained_on(_collecting(documents, sample))
    return Tokenizer.train(documents.sample(data.TOKENIZER_CHARACTERS, texts), config.model.vocab_size)


def _collecting(texts: Iterable[str], sample: list[str]) -> Iterator[str]:
    left = _REPORT_CHARACTERS
    for text in texts:
        if left > 0:
            sample.append(text)
            left -= len(text)
        yield text


def _load_named(paths: Sequence[Path]) -> dict[str, Tokenizer]:
    """Load tokenizers by the name of their folder, which is more telling than tokenizer.json."""
    found: dict[str, Tokenizer] = {}
    for path in paths:
        name = _name(path)
        found[name if name not in found else path.as_posix()] = Tokenizer.load(path)
    return found


def _name(path: Path) -> str:
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    return folder.parent.name if folder.name == "tokenizer" else folder.name


def _refuse_other_files(folder: Path) -> None:
    fix = "choose another --out" if folder.name != "tokenizer" else "choose another --name or --out"
    if folder.exists() and not folder.is_dir():
        raise UserError("not a folder but a file", where=str(folder), fix=fix)
    others = [path.name for path in folder.iterdir() if path.name not in _WRITTEN_FILES] if folder.is_dir() else []
    if others:
        raise UserError(f"the folder holds other files: {', '.join(sorted(others)[:3])}", where=str(folder), fix=fix)


def _refuse_other_shards(tokenizer: Tokenizer, folder: Path) -> None:
    """Refuse a tokenizer beside shards that were made with another one: `pretrain` would read them with it."""
    manifest = folder.parent / "shards" / MANIFEST
    if folder.name != "tokenizer" or not manifest.is_file():
        return
    if read_manifest(manifest).tokenizer_sha256 != tokenizer.sha256:
        what = "the shards here were made with another tokenizer"
        raise UserError(what, where=str(manifest.parent), fix="choose another --name or --out")


def _write(tokenizer: Tokenizer, folder: Path, model_max_length: int, facts: dict[str, Any]) -> None:
    """Write all files or none: into a folder beside `folder`, which is then renamed."""
    _refuse_other_shards(tokenizer, folder)
    draft = folder.absolute().with_name(f".{folder.absolute().name}.partial-{uuid.uuid4().hex[:12]}")
    old = draft.with_name(f"{draft.name}-old")
    try:
        with writing(folder, "the tokenizer cannot be written", "choose another --out"):
            tokenizer.save(draft, model_max_length=model_max_length)
            write_text_atomically(draft / SOURCE, strict_json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
            if folder.exists():
                os.replace(folder, old)
            os.replace(draft, folder)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
