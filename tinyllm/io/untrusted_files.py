"""Read JSON and YAML files from untrusted sources. Invalid ones are refused with an error that names the file.

Nothing in them is executed, nothing outside their folder is opened, and none is read beyond the size that files of its kind have.
Left out: tensors (`model.tensors`), configurations written by the user (`config.yaml12`), records (`data.sources`).
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from tinyllm.errors import INTEGRITY, RESOURCES, UserError

MAX_JSON_BYTES = 4 << 20  # Gemma's tokenizer_config.json has 1.2 MB
MAX_YAML_BYTES = 256 << 10  # of a run's config.yaml


def read_json(path: Path, *, max_bytes: int = MAX_JSON_BYTES, nan: bool = False, fix: str = "") -> dict[str, Any]:
    """Return the JSON object in a file.

    Args:
        nan: accept NaN and infinities.
        fix: the suggestion in errors about the content.

    Raises: UserError (INTEGRITY) for a link out of the folder, more than `max_bytes`, invalid JSON, a repeated key, and anything but an
    object; (RESOURCES) if the file cannot be read.
    """
    path_inside(path.parent, path.name)
    if path.exists() and not path.is_file():  # reading a pipe would block
        raise UserError("not a file", where=str(path), fix=fix, code=INTEGRITY)
    try:
        with path.open("rb") as file:
            raw = file.read(max_bytes + 1)
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            fix="check the permissions of the file",
            code=RESOURCES,
        ) from error
    if len(raw) > max_bytes:
        raise UserError(f"larger than {max_bytes:,} bytes", where=str(path), fix=fix, code=INTEGRITY)
    try:
        found = json.loads(raw, parse_constant=float if nan else _refuse_constant, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=str(path), fix=fix, code=INTEGRITY) from error
    if not isinstance(found, dict):
        raise UserError("not a JSON object", where=str(path), fix=fix, code=INTEGRITY)
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the settings in a run's config.yaml, as `config.yaml12.write` writes it; empty if the file is anything else.

    Only plain values are read. Aliases are refused, because a few lines of them can expand to more than the memory holds.
    """
    import yaml  # not needed by most commands

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    try:
        path_inside(path.parent, path.name)
        if not path.is_file() or path.stat().st_size > MAX_YAML_BYTES:
            return {}
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
    except (UserError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the pairs as a dict, for json's `object_pairs_hook`. Raises: ValueError for a repeated key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {short_repr(key)} is given twice")
    return found


def path_inside(folder: Path, name: str) -> Path:
    """Return the path of the file `name` in `folder`. Raises: UserError (INTEGRITY) if the name or a link leads out of the folder.

    huggingface_hub stores downloads as `snapshots/REVISION/NAME -> ../../blobs/HASH`; `blobs` counts as part of the folder.
    """
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null byte
        raise UserError(f"not a valid path: {error}", where=str(path), code=INTEGRITY) from None
    store = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(store)):
        raise UserError(
            f"leads out of its folder, to {real}",
            where=str(path),
            fix="replace the link by the file itself, if you trust it",
            code=INTEGRITY,
        )
    return path


def newer_format(version: Any, known: int) -> str:
    """Return the error for a file whose format is newer than the one this version knows; empty if it is not."""
    if type(version) is not int or version <= known:
        return ""
    return f"written by a newer tinyllm: format {short_repr(version)}, this one reads {known}"


def short_repr(value: Any) -> str:
    """Return a short repr of an untrusted value of any size, for error messages."""
    return reprlib.repr(value)
