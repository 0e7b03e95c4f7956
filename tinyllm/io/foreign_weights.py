"""Weights in formats that are never opened here, recognized by the names of files: refused, with the command that converts them."""

from __future__ import annotations

from collections.abc import Iterable

from tinyllm.errors import UserError
from tinyllm.io.shell import quote

_CONVERT = (
    "import sys; from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; source, to = sys.argv[1:]; "
    "M.from_pretrained(source, dtype='auto').save_pretrained(to); T.from_pretrained(source).save_pretrained(to)"
)
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def error(name: str, files: Iterable[str], where: str) -> UserError:
    """Return the error for a model without safetensors.

    Args:
        name: a name of the hub or an absolute path, as transformers takes it.
        files: the names of all its files.
        where: the place of the error.
    """
    weights = sorted(file for file in files if "/" not in file and "training_args" not in file)
    if pickles := [file for file in weights if file.endswith(_PICKLES)]:
        what = f"its weights are a pickle, {pickles[0]}, which can run any code when it is opened and is never read"
        folder = f"{name.rstrip('/').rpartition('/')[2]}-safetensors"
        command = f'python -c "{_CONVERT}" {quote(name)} {quote(folder)}'
        fix = f"if you trust it, convert it with transformers, then use {quote(folder)}: {command}"
        return UserError(what, where=where, fix=fix)
    if gguf := [file for file in weights if file.lower().endswith(".gguf")]:
        what = f"it has only GGUF files, such as {gguf[0]}, which are quantized for inference and cannot be trained"
        return UserError(what, where=where, fix="name the model that it was made from: its page says which")
    return UserError(
        "it has no model.safetensors and no adapter_model.safetensors",
        where=where,
        fix="name a folder or a repository with config.json and model.safetensors",
    )


def is_foreign(files: Iterable[str]) -> bool:
    """Return whether there are weights among the files, none of them safetensors."""
    names = list(files)
    found = any(name.lower().endswith((*_PICKLES, ".gguf")) for name in names)
    return found and not any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
