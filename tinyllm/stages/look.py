"""A look at the first record of every file, before torch is imported: most of what is wrong with data is wrong from the first line on.

Left out: standard input and other pipes, which can be read once only; `eval`, whose files may be of any kind.
"""

from __future__ import annotations

from typing import Any

from tinyllm.data import records
from tinyllm.stages.config import AlignOfflineConfig, AlignOnlineConfig, PretrainConfig, RmConfig, SftConfig, is_world

_KINDS: dict[type, str] = {
    PretrainConfig: "documents",
    SftConfig: "conversations",
    RmConfig: "pairs",
    AlignOnlineConfig: "prompts",
    AlignOfflineConfig: "",
}
# An algorithm says it in its file, which needs torch; of one that is not listed here the data are looked at later.
_OFFLINE = {"dpo": "pairs", "orpo": "pairs", "simpo": "pairs", "kto": "judgements"}


def look(config: Any) -> None:
    """Raises: UserError for data that the stage of this configuration would refuse at once."""
    kind = _KINDS.get(type(config))
    if kind == "":
        kind = _OFFLINE.get(config.algorithm)
    if kind is None:
        return
    data = config.data
    for source in dict.fromkeys((*data.train, *data.val)):
        if not is_world(source) and source != "-":
            options = {"format": data.format, "field": data.field, "on_bad_line": data.on_bad_line}
            records.read([source], kind, encoding=data.encoding, **options).look()
