"""`tinyllm.json` in a checkpoint: the stage that wrote it, and the kind of model it is.

A base model continues text, a chat model answers through the chat template, a reward model scores answers. The file travels with every
copy of the checkpoint and is listed in its manifest. config.json and adapter_config.json stay as transformers and PEFT define them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.text.tokenizer import Tokenizer

FILE, FORMAT = "tinyllm.json", 1
Kind = Literal["base", "chat", "reward_model"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_KIND_OF: dict[str, Kind] = {"pretrain": "base", "rm": "reward_model"}  # all other stages write chat models


@dataclass(frozen=True)
class Origin:
    """The stage that wrote a checkpoint (pretrain, sft, rm or an algorithm; empty if unknown) and the kind of its model."""

    stage: str
    kind: Kind


def write_origin(folder: Path, stage: str) -> None:
    """Write tinyllm.json into a checkpoint of `stage`."""
    found = {"format": FORMAT, "stage": stage, "kind": _KIND_OF.get(stage, "chat")}
    (folder / FILE).write_text(strict_json.dumps(found, indent=2) + "\n", encoding="utf-8", newline="\n")


def read_origin(folder: Path) -> Origin:
    """Return the origin of a checkpoint. Without tinyllm.json (older checkpoints, models from elsewhere) the kind is inferred.

    Raises: UserError (INTEGRITY) for a file that this version cannot read.
    """
    path = folder / FILE
    if not path.is_file():
        return Origin("", _inferred_kind(folder))
    found = untrusted_files.read_json(path)
    if newer := untrusted_files.newer_format(found.get("format"), FORMAT):
        raise UserError(newer, where=str(path), fix="update tinyllm", code=INTEGRITY)
    stage, kind = found.get("stage"), next((kind for kind in KINDS if kind == found.get("kind")), None)
    if not isinstance(stage, str) or kind is None:
        what = f"no known kind of model: {untrusted_files.short_repr(found.get('kind'))}, expected {', '.join(KINDS)}"
        raise UserError(what, where=str(path), fix="copy the checkpoint again", code=INTEGRITY)
    return Origin(stage, kind)


def is_chat_model(folder: Path, tokenizer: Tokenizer) -> bool:
    """Return True where a model is to be asked through its chat template, False where it continues plain text."""
    return tokenizer.chat_template is not None and read_origin(folder).kind == "chat"


def _inferred_kind(folder: Path) -> Kind:
    """Reward models are recognized by their architecture or task, base models by a path below runs/pretrain."""
    try:
        names = untrusted_files.read_json(folder / "config.json").get("architectures")
    except UserError:  # an adapter has none; anything else is reported when the model is loaded
        names = None
    if _task(folder) == "SEQ_CLS":
        return "reward_model"
    if isinstance(names, list) and names and str(names[0]).endswith("ForSequenceClassification"):
        return "reward_model"
    return "base" if "/pretrain/" in f"/{folder.as_posix()}/" else "chat"


def _task(folder: Path) -> str:
    """Return the task of an adapter; empty for a whole model, and for a file that is reported when the adapter is loaded."""
    try:
        return str(untrusted_files.read_json(folder / "adapter_config.json").get("task_type"))
    except UserError:
        return ""
