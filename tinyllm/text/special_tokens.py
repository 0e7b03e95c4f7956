"""Which tokens of a vocabulary start, end, pad and structure texts: the checkpoint's own, found where transformers finds them.

tokenizer_config.json; special_tokens_map.json where it has no `added_tokens_decoder`; then the vocabulary itself, and the ids of
generation_config.json and config.json. Left out: the defaults of tokenizer classes in transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import AddedToken

from tinyllm.errors import UserError
from tinyllm.io import untrusted_files
from tinyllm.text import vocabulary
from tinyllm.text.tokenizer_files import TokenizerFiles

ENDOFTEXT = "<|endoftext|>"  # ends a document; trained on
IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
PAD = "<|pad|>"  # never an end token: programs that recognize padding by its id would lose the end of every text
CONTROL_TOKENS = (ENDOFTEXT, IM_START, IM_END, PAD)  # ids 0, 1, 2, 3 of a trained vocabulary

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
TURN_ENDS = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<|end|>",
    "<|eot|>",
)  # end an answer, not a document
DOCUMENT_ENDS = (ENDOFTEXT, "<|end_of_text|>", "</s>", "<eos>")  # where no end, or the end of a turn, is named


@dataclass(frozen=True)
class Named:
    """Special tokens by name."""

    roles: Mapping[str, str]
    """key of `ROLES` -> token"""
    others: frozenset[str] = frozenset()
    """other tokens that a file calls special"""


def named(files: TokenizerFiles, own: Mapping[str, Any], whole: tokenizers.Tokenizer, where: str) -> Named:
    """Return the special tokens that the files of a tokenizer name.

    Args:
        own: names that the vocabulary itself has, by role.
        where: path of tokenizer_config.json, for messages.

    Raises:
        UserError: a token that is not in the vocabulary (INTEGRITY).
    """
    config = dict(files.config)
    if "added_tokens_decoder" not in config:
        config |= {key: value for key, value in files.special_map.items() if key.endswith(("_token", "_tokens"))}
    padding = files.lengths.get("padding")
    if isinstance(padding, dict) and "pad_token" not in config:
        config["pad_token"] = padding.get("pad_token")
    roles = {}
    for key in ROLES:
        token = _content(config[key] if key in config else own.get(key))
        if token is None:
            token = _by_id(key, config, files, whole)
        if token is None:
            continue
        if not isinstance(token, str) or not vocabulary.contains(whole, token):
            raise vocabulary.broken(f"{key} {untrusted_files.short_repr(token)} is not in the vocabulary", where)
        roles[key] = token
    others = {token for token in _other_tokens(config) if vocabulary.contains(whole, token)}
    return Named(roles, frozenset(others) - set(roles.values()))


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _by_id(key: str, config: Mapping[str, Any], files: TokenizerFiles, whole: tokenizers.Tokenizer) -> str | None:
    """Return a token by its id in the model's files, where the tokenizer's do not speak of it. An end there must be."""
    if key == "unk_token" or (key != "eos_token" and (key in config or files.config)):
        return None
    ids = files.ids.ends if key == "eos_token" else files.ids.entry(f"{key}_id")
    return next((token for i in ids if (token := _token(whole, i)) is not None), None)


def _token(whole: tokenizers.Tokenizer, token_id: int) -> str | None:
    return whole.id_to_token(token_id) if token_id < 1 << 32 else None


def _other_tokens(config: Mapping[str, Any]) -> Iterator[str]:
    """Yield further tokens that a tokenizer_config.json calls special."""
    for key, value in config.items():
        if key in ("additional_special_tokens", "extra_special_tokens"):
            found = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
        elif key.endswith("_token") and key not in ROLES:
            found = [value]
        else:
            continue
        yield from (token for token in map(_content, found) if isinstance(token, str))


def add_tokens(config: Mapping[str, Any], whole: tokenizers.Tokenizer, where: str) -> None:
    """Apply the `added_tokens_decoder` of a tokenizer_config.json, which overrides the flags in tokenizer.json, in place.

    Raises:
        UserError: an entry that is not a token, or one that cannot have its id (INTEGRITY).
    """
    given = config.get("added_tokens_decoder") or {}
    there = {token.content: vocabulary.flags(token) for token in whole.get_added_tokens_decoder().values()}
    try:
        added = {int(i): AddedToken(**token) for i, token in sorted(given.items(), key=lambda entry: int(entry[0]))}
    except (TypeError, ValueError, AttributeError) as error:
        raise vocabulary.broken(f"added_tokens_decoder: {error}", where) from error
    for token_id, token in added.items():
        if there.get(token.content) != vocabulary.flags(token):
            (whole.add_special_tokens if token.special else whole.add_tokens)([token])
        if not vocabulary.contains(whole, token.content) or whole.token_to_id(token.content) != token_id:
            name = untrusted_files.short_repr(token.content)
            raise vocabulary.broken(f"added token {name} cannot have id {token_id}", where)


def end_of_document(roles: Mapping[str, str], added: Mapping[str, int], where: str) -> int:
    """Return the id that ends a document: the end token, or the base model's where that ends a turn.

    Raises:
        UserError: none is known (USAGE).
    """
    end = roles.get("eos_token")
    first = [end] if end is not None and end not in TURN_ENDS else []
    for token in (*first, *DOCUMENT_ENDS, *TURN_ENDS):
        if token in added and (token not in TURN_ENDS or token == end):
            return added[token]
    raise UserError(
        "the vocabulary has no known end-of-text token", where=where, fix="add eos_token to tokenizer_config.json"
    )


def stop_ids(named: tuple[int, ...], eos: int, endoftext: int, im_end: int | None) -> tuple[int, ...]:
    """Return the ids that end a generation.

    Args:
        named: those in the model's files.
        endoftext: ends a document, and a generation where the model's files name no end.
        im_end: `<|im_end|>` where the chat template is ours, in which it ends an answer.
    """
    found = [im_end, *((*named, eos) if named else (eos, endoftext))]
    return tuple(dict.fromkeys(i for i in found if i is not None))


def starts_with(bos: str | None, config: Mapping[str, Any], spec: Mapping[str, Any]) -> bool:
    """Return whether the model's texts begin with the token `bos`: the post-processor of its tokenizer.json says so.

    A vocabulary without post-processor (sentencepiece, llama2.c) begins with BOS unless its configuration denies it.
    """
    processor = spec["post_processor"]
    if bos is None or processor is None:
        return bos not in (None, IM_START) and config.get("add_bos_token") is not False
    first = [part["single"][0] for part in vocabulary.parts(processor, "TemplateProcessing") if part["single"]]
    return any(part.get("SpecialToken", {}).get("id") == bos for part in first)
