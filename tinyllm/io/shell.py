"""Words and commands as they can be pasted into bash and zsh."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable

_NOT_TEXT = {"true", "false", "null"}  # words that YAML does not read as text


def quote(word: object) -> str:
    """Return a word as a shell reads it back. zsh also expands a leading `=`, which `shlex.quote` leaves as it is."""
    text = str(word)
    return f"'{text}'" if text.startswith("=") and shlex.quote(text) == text else shlex.quote(text)


def join(words: Iterable[object]) -> str:
    """Return a command line of these words."""
    return " ".join(map(quote, words))


def set_option(key: str, value: str) -> str:
    """Return `--set KEY=VALUE` for a text value, in quotes of YAML and of the shell where these are needed."""
    plain = re.fullmatch(r"[A-Za-z_][\w./-]*(?: [\w./-]+)*", value) and value.lower() not in _NOT_TEXT
    return f"--set {quote(f'{key}={value if plain else json.dumps(value, ensure_ascii=False)}')}"
