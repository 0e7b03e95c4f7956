"""STAGE.json of a lifecycle: what was measured of a finished stage. A damaged one counts as missing, with a warning."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tinyllm.console import say
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.io.files import write_text_atomically

_MAX_BYTES = 64 << 20  # it holds every answer
_Seconds = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Answer(_Part):
    ids: list[int]
    log_probs: list[float]
    finished: bool


class _Paper(_Part):
    answers: list[_Answer]
    texts: list[str]
    gold: list[float]
    right: list[float]

    @model_validator(mode="after")
    def _one_each(self) -> _Paper:
        if len({len(part) for part in (self.answers, self.texts, self.gold, self.right)}) > 1:
            raise ValueError("answers, texts, gold and right have different lengths")
        return self


class _Result(_Part):
    tokens: int
    moved: dict[str, Any]


class _Last(_Part):
    step: int
    figures: dict[str, dict[str, float]]
    measured: dict[str, Any]


class _Record(_Part):
    stage: str
    marks: dict[str, Any]
    manifest_sha256: str
    seconds: _Seconds
    examined_seconds: _Seconds
    peak_memory_mb: float
    result: _Result
    measured: dict[str, Any]
    figures: dict[str, dict[str, float]]
    splits: dict[str, Any] = {}  # what follows is missing from records of 0.1, whose exam is out of date as well
    best_step: int = 0
    last: _Last | None = None


class _PolicyRecord(_Record):
    by_task: dict[str, Any]
    paper: _Paper


def write(path: Path, record: dict[str, Any]) -> None:
    """Write the record of a stage in one rename. Raises: UserError (RESOURCES)."""
    write_text_atomically(path, strict_json.dumps(record, indent=1) + "\n")


def read(path: Path, stage: str, *, policy: bool) -> dict[str, Any] | None:
    """Return the record of a stage; None where there is none, or a damaged one, which is reported.

    Args:
        policy: the stage trains a model that answers, so its answers are in the record.

    Raises: UserError (RESOURCES) if the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = strict_json.restored(
            untrusted_files.read_json(path, max_bytes=_MAX_BYTES, nan=True)  # earlier versions wrote NaN
        )
        (_PolicyRecord if policy else _Record).model_validate(found)
        if found["stage"] != stage:
            raise UserError(f"it is of the stage {found['stage']!r:.80}", code=INTEGRITY)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        why = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    except UserError as error:
        if error.code != INTEGRITY:
            raise
        why = error.what
    else:
        return found
    say(f"warning: {path} is damaged ({why}); {stage} is evaluated again")
    return None
