"""The chat template of a stage: the checkpoint's own, or the one that `chat.template` chooses. One decision, said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinyllm.errors import RESOURCES, UserError
from tinyllm.text import chat
from tinyllm.text.config import ChatFormatConfig
from tinyllm.text.foreign import template_defaults
from tinyllm.text.foreign.process import MOST_CHARACTERS
from tinyllm.text.foreign.rendering import chat_format
from tinyllm.text.template import CHAT_TEMPLATE, PLAIN_TEMPLATE, PLAIN_WITHOUT_BOS
from tinyllm.text.tokenizer import Tokenizer

Variables = Mapping[str, template_defaults.Value]

_KEY, _VARIABLES = "chat.template", "chat.variables"


@dataclass(frozen=True)
class Chosen:
    """A tokenizer with the chat template of a stage, and the line that says which; empty for a checkpoint's own ChatML."""

    tokenizer: Tokenizer
    line: str = ""


def choose(config: ChatFormatConfig, tokenizer: Tokenizer, *, trains: bool) -> Chosen:
    """Return the tokenizer with the template to use.

    Args:
        trains: the stage trains a model on conversations; only then are chat tokens added to a vocabulary that has none. Their rows of
            the embedding are `new_ids`.

    Raises:
        UserError: a file that cannot be read, a template that cannot be used, a system prompt that it has no turn for, a variable that
            it does not read (USAGE).
    """
    choose_one = _CHOICES.get(config.template)
    if choose_one:
        chosen = choose_one(tokenizer, config.variables, trains)
    else:
        chosen = _from_file(Path(config.template), tokenizer, config.variables, trains)
    _check_read(chosen.tokenizer, config.variables)
    if config.system.strip() and not _has_system_turn(chosen.tokenizer):
        what = "the chat template has no system turn"
        raise UserError(what, where="chat.system", fix=f"leave it out, or add --set {_KEY}=chatml")
    return chosen


def _check_read(tokenizer: Tokenizer, variables: Variables) -> None:
    reads = chat_format(tokenizer).description["variables"] if chat.is_foreign(tokenizer) else ()
    for name in variables:
        if name not in reads:
            fix = "leave it out, or look its name up in the template"
            raise UserError(f"the chat template does not read {name!r}", where=_VARIABLES, fix=fix)


def _has_system_turn(tokenizer: Tokenizer) -> bool:
    return not chat.is_foreign(tokenizer) or bool(chat_format(tokenizer).description["system"])


def _auto(tokenizer: Tokenizer, variables: Variables, trains: bool) -> Chosen:
    if chat.is_foreign(tokenizer):
        assert tokenizer.chat_template is not None
        return _foreign(tokenizer, tokenizer.chat_template, "the checkpoint's own", variables, trains)
    if tokenizer.chat_template is not None or not trains:
        return Chosen(tokenizer)
    found = _chatml(tokenizer)
    return Chosen(found.tokenizer, f"{found.line}; the checkpoint has none (without new tokens: --set {_KEY}=plain)")


def _chatml(tokenizer: Tokenizer, *_: Any) -> Chosen:
    try:
        extended = tokenizer.with_chat_tokens()
    except UserError as error:
        fix = f"use text without new tokens: --set {_KEY}=plain"
        raise UserError(error.what, where=error.where, fix=fix, code=error.code) from error
    found = extended.with_chat_template(CHAT_TEMPLATE, end_of_turn=extended.im_end)
    if found is tokenizer:
        return Chosen(tokenizer)
    added = [f"{extended.decode([i], skip_special=False)} {i}" for i in extended.new_ids]
    instead = " instead of the checkpoint's own" if chat.is_foreign(tokenizer) else ""
    return Chosen(found, f"chat template: ChatML{instead}" + (f", with new tokens {', '.join(added)}" if added else ""))


def _plain(tokenizer: Tokenizer, variables: Variables, trains: bool) -> Chosen:
    template = PLAIN_TEMPLATE if tokenizer.document_start == tokenizer.bos else PLAIN_WITHOUT_BOS
    return _foreign(tokenizer, template, "plain text", variables, trains)


def _from_file(path: Path, tokenizer: Tokenizer, variables: Variables, trains: bool) -> Chosen:
    try:
        if path.stat().st_size > 4 * MOST_CHARACTERS:
            what = f"{path.stat().st_size:,} bytes are too many for a chat template"
            raise UserError(what, where=str(path), fix="name the file of a template")
        template = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(
            "no such file", where=str(path), fix=f"name an existing file: --set {_KEY}=template.jinja"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8: {error.reason}", where=str(path), fix="save the template as UTF-8") from error
    except OSError as error:
        what, fix = f"cannot be read: {error.strerror}", "give yourself read permission"
        raise UserError(what, where=str(path), fix=fix, code=RESOURCES) from error
    if template == CHAT_TEMPLATE:
        return _chatml(tokenizer)
    return _foreign(tokenizer, template, str(path), variables, trains)


def _foreign(tokenizer: Tokenizer, template: str, name: str, variables: Variables, trains: bool) -> Chosen:
    """Return a tokenizer with a template other than ours, which stops where the template ends a turn."""
    own, (inherited, body) = tokenizer.chat_template == template, template_defaults.split(template)
    values = inherited | dict(variables)
    wanted = template_defaults.join(values, body)
    changed = wanted != template_defaults.join(inherited, body)
    if changed:
        own, template = False, wanted
    found = tokenizer if own else tokenizer.with_chat_template(template)
    try:
        form = chat_format(found)
    except UserError as error:
        if changed:
            _blame_variables(tokenizer, template_defaults.join(inherited, body), variables, error)
        raise
    if form.end_of_turn is not None and form.end_of_turn not in found.stop_ids:
        found = found.with_chat_template(template, end_of_turn=form.end_of_turn)
    line = (f"chat template: {name}", form.line(trains=trains), template_defaults.described(values))
    return Chosen(found, "; ".join(filter(None, line)))


def _blame_variables(tokenizer: Tokenizer, template: str, variables: Variables, error: UserError) -> None:
    """Raise UserError if a template fails only with the variables that were given."""
    without = tokenizer.with_chat_template(template)
    try:
        chat_format(without)
    except UserError:
        return
    _check_read(without, variables)
    what = f"{error.what}; without {template_defaults.described(variables)} it can be used"
    raise UserError(what, where=_VARIABLES, fix="correct the value, or leave it out") from error


_CHOICES = {"auto": _auto, "chatml": _chatml, "plain": _plain}
