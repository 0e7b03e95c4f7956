"""Names and layouts of tensors in Hugging Face's files, where they differ from those of the modules here. Free of torch.

Most architectures need no translation. GPT-2 has names of its own and stores weights transposed; some files lack the prefix of the
decoder, since they were saved without the head; and some have tensors that no model reads.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from tinyllm.model.architectures import Architecture

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# Buffers that older versions of transformers saved: they are computed from config.json.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(bias|masked_bias)$|\.masked_bias$")
_LAYER = re.compile(r"\.(\d+)\.")


def to_file(name: str, row: Architecture) -> str:
    """Return the name that a tensor or module has in files of an architecture."""
    layer = _LAYER.search(name)
    general = _LAYER.sub(".*.", name, count=1)
    for ours, theirs in row.names:
        if general == ours or general.startswith(f"{ours}."):
            found = theirs + general.removeprefix(ours)
            return found.replace("*", layer[1]) if layer else found
    return name


def is_transposed(name: str, row: Architecture) -> bool:
    """Return whether files store the weight of this name of ours as (in, out)."""
    module, _, kind = name.rpartition(".")
    return kind == "weight" and module.rpartition(".")[2] in row.transposed


def translated(wanted: Iterable[str], there: Collection[str], row: Architecture) -> dict[str, str]:
    """Return the names here of the tensors in a file: {ours: theirs}. Buffers are left out, unknown tensors keep their names.

    Args:
        wanted: names that the model has.
        there: names in the file.
    """
    ours = {to_file(name, row): name for name in wanted}
    prefix = next((f"{name.split('.')[0]}." for name in ours if name not in ("lm_head.weight", "score.weight")), "")
    bare = not any(name.startswith(prefix) for name in there)
    found: dict[str, str] = {}
    for theirs in sorted(there):
        if not _BUFFERS.search(theirs):
            whole = prefix + theirs if bare and prefix + theirs in ours else theirs
            found[ours.get(whole, theirs)] = theirs
    return found
