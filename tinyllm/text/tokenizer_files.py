"""The files beside a tokenizer.json, kept as they came and written back.

tokenizer_config.json, special_tokens_map.json, chat_template.jinja, additional_chat_templates/, and the special ids of config.json and
generation_config.json. They are not trusted: templates are text here, and nothing is rendered or executed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models

from tinyllm.errors import RESOURCES, UserError
from tinyllm.io import strict_json, untrusted_files
from tinyllm.io.special_ids import GENERATION, IDS, SpecialIds, ids_in
from tinyllm.text import vocabulary

CONFIG, SPECIAL_MAP = "tokenizer_config.json", "special_tokens_map.json"
TEMPLATE, OTHER_TEMPLATES = "chat_template.jinja", "additional_chat_templates"
DEFAULT = "default"  # the name of the template that is used unless another is asked for
MOST_TEMPLATE_BYTES = 1 << 20  # the longest known has 30 kB
MOST_TEMPLATES = 64
_MOST_ENDS = 64  # ids that end a generation


@dataclass(frozen=True)
class TokenizerFiles:
    """What the files beside a tokenizer.json say."""

    config: Mapping[str, Any] = field(default_factory=dict)
    """tokenizer_config.json"""
    special_map: Mapping[str, Any] = field(default_factory=dict)
    """special_tokens_map.json"""
    templates: Mapping[str, str] = field(default_factory=dict)
    """name -> text of chat_template.jinja (`DEFAULT`) and of the files in additional_chat_templates"""
    ids: SpecialIds = field(default_factory=SpecialIds)
    lengths: Mapping[str, Any] = field(default_factory=dict)
    """truncation and padding of tokenizer.json. They are not applied: texts would be cut short or padded"""

    @property
    def template(self) -> str | None:
        """The chat template. As in transformers, files win over tokenizer_config.json."""
        return (self.templates or named_templates(self.config.get("chat_template"))).get(DEFAULT)

    def with_template(self, text: str) -> TokenizerFiles:
        """Return the files with one chat template in place of all that they have."""
        return replace(self, templates={DEFAULT: text}, config={**self.config, "chat_template": text})

    def with_tokens(self, whole: tokenizers.Tokenizer, names: Iterable[str]) -> TokenizerFiles:
        """Return the files with added tokens, where they list them."""
        if "added_tokens_decoder" not in self.config:
            return self
        added = whole.get_added_tokens_decoder()
        new = {str(i): vocabulary.flags(added[i]) for i in map(whole.token_to_id, names) if i is not None}
        return replace(
            self, config={**self.config, "added_tokens_decoder": {**self.config["added_tokens_decoder"], **new}}
        )

    def write(self, folder: Path, model_max_length: int) -> None:
        """Write everything but tokenizer.json and what belongs to the model.

        Args:
            model_max_length: the model's context in tokens, where tokenizer_config.json leaves it open (null).
        """
        config = dict(self.config)
        if config.get("model_max_length", 0) is None:
            config["model_max_length"] = model_max_length
        if config:
            write(folder / CONFIG, strict_json.dumps(config, ensure_ascii=False, indent=2) + "\n")
        if self.special_map:
            write(folder / SPECIAL_MAP, strict_json.dumps(self.special_map, ensure_ascii=False, indent=2) + "\n")
        for name, text in self.templates.items():
            if name == DEFAULT:
                write(folder / TEMPLATE, text)
            else:
                (folder / OTHER_TEMPLATES).mkdir(exist_ok=True)
                write(folder / OTHER_TEMPLATES / f"{name}.jinja", text)


def read(folder: Path, spec: Mapping[str, Any], base: Path | None = None) -> TokenizerFiles:
    """Read the files in the folder of a tokenizer.json with the content `spec`.

    Args:
        base: the base model of an adapter in this folder: it has the special ids, where the folder has neither file with them.

    Raises:
        UserError: a damaged file, or a template of more than `MOST_TEMPLATE_BYTES` (INTEGRITY); an unreadable file (RESOURCES).
    """
    config = _json(folder / CONFIG)
    for text in named_templates(config.get("chat_template"), str(folder / CONFIG)).values():
        _check_length(len(text), folder / CONFIG)
    has_ids = any((folder / name).is_file() for name in (GENERATION, "config.json"))
    model = folder if has_ids or base is None else base
    generation = _json(model / GENERATION)
    ends = generation.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if len(ids_in(ends)) < len(set(map(str, listed))) or len(listed) > _MOST_ENDS:
        what = f"eos_token_id {untrusted_files.short_repr(ends)} is not an id or a list of ids"
        raise vocabulary.broken(what, str(model / GENERATION))
    return TokenizerFiles(
        config=config,
        special_map=_json(folder / SPECIAL_MAP),
        templates=_template_files(folder),
        ids=SpecialIds(_config_ids(model / "config.json"), generation),
        lengths=_lengths(spec, folder / "tokenizer.json"),
    )


def named_templates(value: Any, where: str = "") -> dict[str, str]:
    """Return the templates in tokenizer_config.json by name: one text, a list of objects with `name` and `template`, or an object.

    Raises:
        UserError: anything else (INTEGRITY).
    """
    if value is None:
        return {}
    if isinstance(value, str):
        return {DEFAULT: value}
    if isinstance(value, list) and all(isinstance(one, dict) for one in value):
        value = {one.get("name"): one.get("template") for one in value}
    if not isinstance(value, dict) or not all(isinstance(part, str) for pair in value.items() for part in pair):
        raise vocabulary.broken(f"chat_template {untrusted_files.short_repr(value)} is not a template", where)
    return value


def write(file: Path, text: str) -> None:
    """Write a text as UTF-8, its line breaks as they are."""
    file.write_text(text, encoding="utf-8", newline="")


def _json(file: Path) -> dict[str, Any]:
    found = vocabulary.read_json(file) if file.is_file() else {}
    try:
        strict_json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:  # it could not be written back
        raise vocabulary.broken("a lone surrogate, which is not valid text", str(file)) from error
    return found


def _lengths(spec: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return truncation and padding of a tokenizer.json, after checking that the library reads them."""
    found = {key: spec[key] for key in ("truncation", "padding") if spec.get(key) is not None}
    if found:
        empty = json.loads(tokenizers.Tokenizer(models.BPE()).to_str())
        try:
            tokenizers.Tokenizer.from_str(strict_json.dumps(empty | found))
        except Exception as error:  # the library raises nothing narrower
            raise vocabulary.broken(f"not a valid tokenizer: {error}", str(file)) from error
    return found


def _config_ids(file: Path) -> dict[str, Any]:
    """Return the special ids of config.json; nothing if it cannot be read, which is reported when the model is loaded."""
    try:
        found = untrusted_files.read_json(file) if file.is_file() else {}
    except UserError:
        return {}
    valid = {key: found[key] for key in IDS if key in found}
    return {key: value for key, value in valid.items() if value is None or ids_in(value)}


def _template_files(folder: Path) -> dict[str, str]:
    others = sorted((folder / OTHER_TEMPLATES).glob("*.jinja"))
    if len(others) > MOST_TEMPLATES:
        raise vocabulary.broken(f"more than {MOST_TEMPLATES} chat templates", str(folder / OTHER_TEMPLATES))
    files = {path.stem: path for path in others}
    if (folder / TEMPLATE).is_file():
        files = {DEFAULT: folder / TEMPLATE} | files
    return {name: _text(path, folder) for name, path in files.items()}


def _text(file: Path, folder: Path) -> str:
    untrusted_files.path_inside(folder, file.relative_to(folder).as_posix())
    try:
        with file.open("rb") as opened:
            data = opened.read(MOST_TEMPLATE_BYTES + 1)
    except OSError as error:
        what, fix = f"cannot be read: {error.strerror}", "give yourself read permission"
        raise UserError(what, where=str(file), fix=fix, code=RESOURCES) from error
    _check_length(len(data), file)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise vocabulary.broken(f"not UTF-8: {error.reason}", str(file)) from error


def _check_length(length: int, file: Path) -> None:
    if length > MOST_TEMPLATE_BYTES:
        raise vocabulary.broken(f"a chat template of more than {MOST_TEMPLATE_BYTES:,} bytes", str(file))
