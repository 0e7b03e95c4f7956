"""The files of a model on a hub that are downloaded: settings, tokenizer, chat template and safetensors, by name.

Left out: pickles (`pytorch_model.bin`), scripts, quantized and converted copies (GGUF, ONNX), and everything in subfolders.
"""

from __future__ import annotations

import re

from tinyllm.data.hub.answers import Kind, Listing, RemoteFile, path_fault
from tinyllm.data.sources.errors import preview
from tinyllm.errors import INTEGRITY, UserError
from tinyllm.io import foreign_weights
from tinyllm.io.hub_cache import ADAPTER, ADAPTER_WEIGHTS, CONFIG, INDEX, WEIGHTS

_SETTINGS = (CONFIG, "generation_config.json", "chat_template.jinja", "chat_template.json", "tinyllm.json", ADAPTER)
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
)
_PART = re.compile(r"model-\d{5}-of-\d{5}\.safetensors")


def is_model_file(path: str) -> bool:
    """Return whether a file of a model repository is ever downloaded."""
    return path in (*_SETTINGS, *_TOKENIZER, INDEX) or is_weights(path)


def is_weights(path: str) -> bool:
    """Return whether a file holds weights."""
    return path in (WEIGHTS, ADAPTER_WEIGHTS) or _PART.fullmatch(path) is not None


MODEL = Kind(
    "model",
    "",
    is_model_file,
    missing="no run and no folder here has this name, and the hub has no such model (404)",
    find="list your runs with `tinyllm runs list`, or look for the model at {endpoint}/models?search={name}",
    elsewhere="set HF_HOME to a folder that you can write to",
)


def choose(listing: Listing) -> list[RemoteFile]:
    """Return the files to download, in the order of names: one copy of the weights and all settings.

    Raises: UserError where the repository has no weights in safetensors (USAGE), or lists a name that cannot be stored (INTEGRITY).
    """
    names = {remote.path for remote in listing.files}
    for path in names:
        if fault := path_fault(path):
            what = f"{listing.repository} lists a file {fault}: {preview(path, 80)}"
            raise UserError(what, where=listing.revision[:12], fix="do not use this model", code=INTEGRITY)
    if ADAPTER_WEIGHTS not in names and WEIGHTS not in names and INDEX not in names:
        raise foreign_weights.error(listing.repository, [*names, *listing.others], listing.repository)
    one_file = WEIGHTS in names
    chosen = (r for r in listing.files if not (one_file and (r.path == INDEX or _PART.fullmatch(r.path))))
    return sorted(chosen, key=lambda remote: remote.path)
