"""The files of vocabularies that were made here: they follow from the vocabulary, so nothing of them is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import tokenizers

from tinyllm.io.special_ids import SpecialIds
from tinyllm.text import vocabulary
from tinyllm.text.template import CHAT_TEMPLATE
from tinyllm.text.tokenizer_files import DEFAULT, TokenizerFiles

TOKENIZER_CLASS = "PreTrainedTokenizerFast"  # of transformers: reads tokenizer.json as it is
OWN_TEMPLATES = (  # sha256 of every chat template that a version wrote, the newest last: a changed template gets a line
    "9ee42f2351dc48d7dd824123fd5d2ef585f27a11b9443f832aca250c134212e7",
    "2ef682989d114117861514c3962d953d9648d535e1a53c7f91a883cb98ef1777",
)
_FREE = ("model_max_length", "chat_template")  # entries that do not follow from the vocabulary alone


def own_files(whole: tokenizers.Tokenizer, roles: Mapping[str, str], *, has_chat_tokens: bool) -> TokenizerFiles:
    """Return the files beside the tokenizer.json of a vocabulary that was made here.

    Args:
        roles: start, end and padding tokens, by their keys in tokenizer_config.json.
        has_chat_tokens: with our chat template.
    """
    added = {str(i): vocabulary.flags(token) for i, token in sorted(whole.get_added_tokens_decoder().items())}
    names = {key: roles[key] for key in ("bos_token", "eos_token", "pad_token") if key in roles}
    if whole.model.unk_token is not None:
        names["unk_token"] = whole.model.unk_token
    config: dict[str, Any] = {
        "tokenizer_class": TOKENIZER_CLASS,
        **names,
        "model_max_length": None,  # the model's, known when it is saved
        "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": added,
    }
    if not has_chat_tokens:
        return TokenizerFiles(config)
    # In both files: older readers know only the config, newer ones prefer chat_template.jinja.
    return TokenizerFiles(config | {"chat_template": CHAT_TEMPLATE}, templates={DEFAULT: CHAT_TEMPLATE})


def are_own(
    files: TokenizerFiles, whole: tokenizers.Tokenizer, roles: Mapping[str, str], *, has_chat_tokens: bool
) -> bool:
    """Return whether files are those that `own_files` makes, this version's or an earlier one's; also where there are none."""
    if not files.config:
        return files == TokenizerFiles()
    expected = own_files(whole, roles, has_chat_tokens=has_chat_tokens)
    same = _fixed(files.config) == _fixed(expected.config)
    return same and not files.special_map and not files.lengths and is_own_template(files.template, expected.template)


def own_ids(bos: int | None, stop: tuple[int, ...], pad: int | None) -> SpecialIds:
    """Return the ids that a model which was made here has in its files."""
    generation = {"bos_token_id": bos, "eos_token_id": list(stop), "pad_token_id": pad}
    return SpecialIds(generation | {"eos_token_id": stop[-1]}, generation)


def is_own_template(template: str | None, expected: str | None = CHAT_TEMPLATE) -> bool:
    """Return whether a chat template is ours, of this version or an earlier one; None where `expected` is None."""
    if template is None or expected is None:
        return template == expected
    return template == expected or hashlib.sha256(template.encode()).hexdigest() in OWN_TEMPLATES


def _fixed(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _FREE}
