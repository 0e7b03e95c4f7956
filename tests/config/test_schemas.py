"""Descriptions of expected values, and guesses of intended ones."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, TypeAdapter

from tinyllm.config.schemas import describe_schema, guess_value

RUN_NAME = Annotated[str, Field(pattern=r"^[\w][\w.~-]*$")]


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (Annotated[int, Field(ge=1)] | None, "an integer >= 1 or null"),
        (Annotated[float, Field(gt=0, le=1)], "a number > 0 and <= 1"),
        (Annotated[int, Field(multiple_of=8)], "an integer divisible by 8"),
        (Annotated[str, Field(pattern="^[a-z]+$")], 'a string matching "^[a-z]+$"'),
        (Annotated[str, Field(max_length=3)], "a string with at most 3 character(s)"),
        (Annotated[list[str], Field(min_length=1)], "a list of strings with at least 1 item(s)"),
        (Literal["auto"] | int, '"auto" or an integer'),
        (Literal["a", "b"], "one of a, b"),
        (tuple[float, int], "a list of 2 (a number, an integer)"),
        (dict[str, float], "a mapping of names to numbers"),
        (list[Annotated[int, Field(ge=2)]], "a list of (an integer >= 2)"),
        (Any, "any value"),
    ],
)
def test_description_of_a_schema(annotation: Any, text: str) -> None:
    schema = TypeAdapter(annotation).json_schema()
    assert describe_schema(schema, schema.get("$defs", {})) == text


@pytest.mark.parametrize(
    ("annotation", "value", "guess"),
    [
        (RUN_NAME, "my run", "my-run"),
        (RUN_NAME, "-lead", "lead"),
        (RUN_NAME, "a/b", "a-b"),
        (RUN_NAME, "我的 故事", "我的-故事"),
        (RUN_NAME, "..", None),
        (bool, "yes", True),
        (bool, 0, False),
        (int, 8.0, 8),
        (int, "1_000", 1000),
        (Annotated[int, Field(ge=1)], "0", None),
        (float, "1e-3", 1e-3),
        (str, 5, "5"),
        (list[str], "a", ["a"]),
        (Literal["cosine", "wsd"], "cosin", "cosine"),
        (Literal["on", "off"], True, "on"),
        (int, "x", None),
    ],
)
def test_guess_of_the_intended_value(annotation: Any, value: Any, guess: Any) -> None:
    found = guess_value(value, TypeAdapter(annotation).json_schema(), {})
    assert found == guess
    assert type(found) is type(guess)
