"""Settings of the chat format. No torch."""

from __future__ import annotations

import difflib

from pydantic import field_validator

from tinyllm.config import Config

TEMPLATES = ("auto", "chatml", "plain")


class ChatFormatConfig(Config):
    """How conversations become text."""

    template: str = "auto"
    """auto: the checkpoint's own, and ChatML for one without; chatml; plain: text without chat tokens; or path/to/template.jinja"""
    system: str = ""
    """a system prompt for conversations that begin without one"""

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
