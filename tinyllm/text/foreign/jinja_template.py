"""A chat template in Jinja, compiled and rendered as transformers does it (5.23, `utils/chat_template_utils.py`).

The sandbox keeps a template from reaching Python's internals, not from using time and memory: `worker` renders in a process
with limits. Left out: `documents`, tools as Python functions, images.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from tinyllm.text.foreign import template_defaults

REASONING = (
    "reasoning_content",
    "thinking",
    "reasoning",
)  # names of a message's reasoning; templates read the first two


class TemplateFailedError(Exception):
    """A template that cannot be compiled or rendered; the message says why."""


@dataclass(frozen=True, slots=True)
class Text:
    """A rendered conversation, and the spans [start, end) of its `{% generation %}` blocks, in characters."""

    text: str
    blocks: list[tuple[int, int]]


class Template:
    """A compiled template.

    Args:
        names: special tokens by name, such as `eos_token`, which templates use as variables.

    Raises:
        TemplateFailedError: not a template, or one that nests too deeply.
    """

    def __init__(self, source: str, names: Mapping[str, str]):
        self._environment = _environment()
        self._source, self._names = source, dict(names)
        try:
            self._compiled = self._environment.from_string(source)
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, OverflowError) as error:
            raise TemplateFailedError(f"it cannot be compiled: {_first_line(error)}") from error

    def variables(self) -> list[str]:
        """Return the names that the template reads and its caller may set; not those that are only set in front of it."""
        _, body = template_defaults.split(self._source)
        return sorted(meta.find_undeclared_variables(self._environment.parse(body)))

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None, *, generation_prompt: bool, limit: int
    ) -> Text:
        """Return the text of a conversation.

        Args:
            messages: of JSON types; entries that are None are left out.
            limit: of the length of the text, in characters.

        Raises:
            TemplateFailedError: the template raises an exception, or the text is longer than `limit`.
        """
        pieces: list[str] = []
        blocks = self._environment.blocks = _Blocks()
        try:
            for piece in self._compiled.generate(
                messages=[_message(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=generation_prompt,
                **self._names,
            ):
                pieces.append(piece)
                blocks.written += len(piece)
                if blocks.written > limit:
                    raise TemplateFailedError(f"it writes more than {limit:,} characters")
        except TemplateFailedError:
            raise
        except MemoryError as error:
            raise TemplateFailedError("it needs more memory than it may use") from error
        except Exception as error:  # a template can raise anything that an operation on its values raises
            raise TemplateFailedError(_first_line(error)) from error
        text = "".join(pieces)
        if any(text[start : start + len(block)] != block for start, block in blocks.found):
            raise TemplateFailedError("a {% generation %} block inside a macro, whose place in the text is not known")
        return Text(text, [(start, start + len(block)) for start, block in blocks.found])


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message without nulls, and with its reasoning under the names that templates read."""
    found = {key: value for key, value in message.items() if value is not None}
    reasoning = next((found[key] for key in REASONING if key in found), None)
    return found if reasoning is None else {"thinking": reasoning, **found, "reasoning_content": reasoning}


def _first_line(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it calls itself without end"
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


# --- the environment -------------------------------------------------------------------------------------------------------------


class _Blocks:
    """The `{% generation %}` blocks of the text that is being rendered: where each begins, and what it wrote."""

    def __init__(self) -> None:
        self.written = 0
        self.found: list[tuple[int, str]] = []


class _Environment(ImmutableSandboxedEnvironment):
    blocks = _Blocks()


class _Generation(Extension):
    """`{% generation %}` … `{% endgeneration %}`: what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's interface)
    environment: _Environment

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Any) -> str:
        text = str(caller())
        blocks = self.environment.blocks
        blocks.found.append((blocks.written, text))
        return text


class _Namespace(Namespace):
    """jinja2's namespace without names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # so that `namespace(self=…)` works, as in jinja2
        found = dict(*args[1:], **values)
        for name in found:
            _check_name(name)
        Namespace.__init__(args[0], found)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace cannot have the attribute {name!r}")


def _raise_exception(message: Any) -> NoReturn:
    raise jinja2.TemplateError(str(message))


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _strftime_now(format: str) -> str:
    return datetime.datetime.now().strftime(format)  # the local time, as in transformers


def _dict(*args: Any, **values: Any) -> dict[Any, Any]:
    return dict(*args, **values)


def _environment() -> _Environment:
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _dict,
        "namespace": _Namespace,
    }
    return made
