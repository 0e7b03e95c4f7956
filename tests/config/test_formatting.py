"""Formatting of untrusted text and values for messages."""

from __future__ import annotations

from typing import Any

import pytest

from tinyllm.config.formatting import describe_value, format_value, shorten


def test_text_is_escaped_and_cut() -> None:
    assert shorten("a\x1b[2J\u202e\nb") == "a\\x1b[2J\\u202e\\nb"
    assert len(shorten("x" * 1000)) == 60


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"), (True, "true"), (1e-08, "1e-08"), ("a", '"a"'), ("\ud800", '"\\ud800"'), ([], "an empty list"),
        (["a"], "a list of 1 item"), ([1, 2], "a list of 2 items"),
        ({}, "an empty mapping"), ({"a": 1, "b": 2}, "a mapping with keys a, b"),
    ],
)  # fmt: skip
def test_description_of_a_value(value: Any, text: str) -> None:
    assert describe_value(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("cosine", "cosine"),
        ("8", '"8"'),
        ("true", '"true"'),
        ("a:b", "a:b"),
        ("a: b", '"a: b"'),
        ("#x", '"#x"'),
        ([0.9, "x"], "[0.9, x]"),
    ],
)
def test_a_value_is_written_as_in_yaml(value: Any, text: str) -> None:
    assert format_value(value) == text
