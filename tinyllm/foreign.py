"""Files that somebody else wrote, or that a disk has changed: read with suspicion, and refused in one sentence that names them.

Nothing in them is executed, nothing outside the folder they lie in is opened, and none is read that is larger than its kind ever is.
Left out: tensors (`model.tensors`), the settings a user writes (`config.yaml12`), records (`data.files`).
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from tinyllm.errors import INTEGRITY, RESOURCES, UserError

MOST_BYTES = 4 << 20  # of a JSON file that describes something: Gemma's tokenizer_config.json has 1.2 MB
MOST_SETTINGS = 256 << 10  # of a run's config.yaml


def read_json(path: Path, *, most: int = MOST_BYTES, nan: bool = False, fix: str = "") -> dict[str, Any]:
    """The JSON object in a file.

    Raises: UserError (INTEGRITY) for a link out of the folder, more than `most` bytes, what is not JSON (NaN is not, unless `nan`, nor
    is a key given twice) and what is not an object; (RESOURCES) where it cannot be read.
    """
    inside(path.parent, path.name)
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise UserError("not a file", where=str(path), fix=fix, code=INTEGRITY)
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise UserError(
            f"cannot be read: {error.strerror}", where=str(path), fix="give yourself read permission", code=RESOURCES
        ) from error
    if len(raw) > most:
        raise UserError(f"larger than {most:,} bytes, as no such file is", where=str(path), fix=fix, code=INTEGRITY)
    try:
        found = json.loads(raw, parse_constant=float if nan else _no_number, object_pairs_hook=once_each)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=str(path), fix=fix, code=INTEGRITY) from error
    if not isinstance(found, dict):
        raise UserError("not a JSON object", where=str(path), fix=fix, code=INTEGRITY)
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """The settings in a run's config.yaml, which `config.yaml12.write` wrote; empty where the file is something else.

    Plain values only, and no aliases, with which a few lines can stand for more than memory holds.
    """
    import yaml  # not needed by most commands

    class Plain(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    try:
        inside(path.parent, path.name)
        if not path.is_file() or path.stat().st_size > MOST_SETTINGS:
            return {}
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=Plain)
    except (UserError, OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    return found if isinstance(found, dict) else {}


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number")


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For `object_pairs_hook`: which of two values was meant, nobody can say."""
    found = dict(pairs)
    if len(found) < len(pairs):
        key, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {short(key)} is given twice")
    return found


def inside(folder: Path, name: str) -> Path:
    """The file `name` of `folder`; UserError (INTEGRITY) where the name or a link leads out of it.

    huggingface_hub keeps what it has downloaded as `snapshots/REVISION/NAME -> ../../blobs/HASH`: that store is part of the folder.
    """
    path = folder / name
    try:
        real, home = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a null byte
        raise UserError(f"not a path: {error}", where=str(path), code=INTEGRITY) from None
    store = home.parents[1] / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(store)):
        raise UserError(
            f"leads out of its folder, to {real}",
            where=str(path),
            fix="put the file itself there, if you trust it",
            code=INTEGRITY,
        )
    return path


def short(value: Any) -> str:
    """A foreign value for a message, whatever its size."""
    return reprlib.repr(value)
