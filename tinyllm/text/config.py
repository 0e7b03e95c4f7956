"""Settings of the chat format. No torch."""

from __future__ import annotations

import difflib

from pydantic import Field, field_validator

from tinyllm.config import Config

TEMPLATES = ("auto", "chatml", "plain")
_TAKEN = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token", "unk_token"}


class ChatFormatConfig(Config):
    """How conversations become text."""

    template: str = "auto"
    """auto: the checkpoint's own, and ChatML for one without; chatml; plain: text without chat tokens; or path/to/template.jinja"""
    system: str = ""
    """a system prompt for conversations that begin without one"""
    variables: dict[str, bool | int | float | str] = Field(default_factory=dict)
    """values of the template's own variables, such as {enable_thinking: false}; they become its defaults, also in what is saved"""

    @field_validator("variables")
    @classmethod
    def _names(cls, variables: dict[str, bool | int | float | str]) -> dict[str, bool | int | float | str]:
        for name in variables:
            if not (name.isascii() and name.isidentifier()) or name in _TAKEN:
                raise ValueError(f"{name!r} is no variable that a template leaves to its caller")
        return variables

    @field_validator("template")
    @classmethod
    def _known(cls, template: str) -> str:
        if template in TEMPLATES or template.endswith((".jinja", ".jinja2", ".j2")):
            return template
        near = difflib.get_close_matches(template, TEMPLATES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(
            f"expected one of {', '.join(TEMPLATES)}, or the path of a .jinja file, found {template!r}{hint}"
        )
