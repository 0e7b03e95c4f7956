"""YAML 1.2 scalars, line numbers, refused documents, and round trips."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.config import yaml12


def problems_in(text: str) -> list[tuple[int, str]]:
    return [(problem.line, problem.what) for problem in yaml12.parse(text, "a.yaml")[1]]


def test_line_numbers() -> None:
    node, problems = yaml12.parse("a: 1\nb:\n  c:\n    - 1\n\n    - 2\nd: >\n  x\n  y\n", "a.yaml")
    assert problems == []
    assert node.plain() == {"a": 1, "b": {"c": [1, 2]}, "d": "x y\n"}
    assert [node.child(key).line for key in "abd"] == [1, 2, 7]
    assert node.child("b").child("c").child(1).line == 6
    assert node.child("b").child("x") is None
    assert node.child("b").child("c").child(2) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("yes", "yes"), ("off", "off"), ("y", "y"), ("", None), ("~", None),
        ("null", None), ("0", 0), ("-12", -12), ("+1", 1), ("0123", "0123"), ("0o17", 15), ("0x1F", 31),
        ("1_000", "1_000"), ("12:30:45", "12:30:45"), ("2024-01-01", "2024-01-01"), ("3e-4", 3e-4), ("1E5", 1e5),
        (".5", 0.5), ("1.", 1.0), ("-.inf", float("-inf")), ("+.INF", float("inf")), ("inf", "inf"), ("nan", "nan"),
        ("1e", "1e"), ("1.2.3", "1.2.3"), ("\u0661", "\u0661"), ("1 2", "1 2"),
    ],
)  # fmt: skip
def test_scalars(text: str, value: Any) -> None:
    assert yaml12.parse_scalar(text) == value
    assert type(yaml12.parse_scalar(text)) is type(value)
    node, _ = yaml12.parse(f"a: {text}", "a.yaml")
    assert node.plain() == {"a": value}
    assert yaml12.parse(f"a: '{text}'", "a.yaml")[0].plain() == {"a": text}


@pytest.mark.parametrize(
    ("text", "line", "what"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key a, on lines 1 and 3"),
        ("a: {b: 1, b: 2}", 1, "duplicate key b, twice on line 1"),
        ("a:\n\tb: 1", 2, "invalid YAML: tab where YAML requires spaces"),
        ("a:\t1", 1, "invalid YAML: tab where YAML requires spaces"),
        ("a: 1\nb: c: d", 2, "invalid YAML: second ': ' on one line"),
        ("a: 1\n  b: 2", 2, "invalid YAML: line continues the value above it"),
        ("a:\n   b: 1\n  c: 2", 3, "invalid YAML: indentation does not match the lines above"),
        ("a: 1\nb: [1, 2\nc: 3", 2, "invalid YAML: unclosed bracket or missing comma"),
        ("a: 1\nb: 'x\nc: 2", 2, "invalid YAML: unclosed quote"),
        ("a: 1\nb\nc: 2", 2, "invalid YAML: missing colon after a key"),
        ("a: @x", 1, "invalid YAML: value starts with a character reserved by YAML"),
        ("a: \x1b", 1, "character U+001B is not allowed in YAML"),
        ("a: 1\n---\nb: 2", 2, "second document in one file"),
        ("a: !!python/object:os.system {}", 1, "tag tag:yaml.org,2002:python/object:os.system is not allowed"),
        ("a: !!str 5", 1, "tag tag:yaml.org,2002:str is not allowed"),
        ("a: *b", 1, "alias *b is used before or inside its anchor &b"),
        ("a: &b [*b]", 1, "alias *b is used before or inside its anchor &b"),
        ("? [a]\n: 1", 1, "mapping key is not a scalar"),
        ('a: "\\ud800"', 1, "string is not valid Unicode"),
        ('a: 1\nb: "\\UFFFFFFFF"', 2, "escape sequence is not a Unicode character"),
        ("a: " + "9" * 5000, 1, "integer has 5000 digits"),
        ("a: " + "[" * 41 + "]" * 41, 1, "lists and mappings are nested more than 40 deep"),
    ],
)
def test_refused_documents(text: str, line: int, what: str) -> None:
    assert problems_in(text) == [(line, what)]


def test_all_duplicate_keys_are_reported() -> None:
    assert [line for line, _ in problems_in("a: 1\na: 2\nb: {c: 1,\n  c: 2}\n")] == [2, 4]


def test_aliases_are_expanded_up_to_a_limit() -> None:
    assert yaml12.parse("a: &x {b: 1}\nc: *x\n", "a.yaml")[0].plain() == {"a": {"b": 1}, "c": {"b": 1}}
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n"
    laughs += "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
    assert problems_in(laughs) == [(5, "more than 50,000 values (aliases expanded)")]
    chain = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))
    assert "nested more than 40 deep" in problems_in(chain)[0][1]


@pytest.mark.parametrize("text", ["[" * 10**6, "{a: " * 250_000, "- " * 500_000, "&a " * 300_000, "'" * 10**6])
def test_hostile_documents_are_refused_quickly(text: str) -> None:
    begun = time.monotonic()
    yaml12.parse(text, "a.yaml")
    assert time.monotonic() - begun < 20


@given(st.text(alphabet=st.sampled_from("ab:- \n\t#&*!|>'\"%@`{}[],?~01e.\\ux\ud800\x00é"), max_size=40))
@settings(max_examples=400, deadline=None)
def test_no_text_raises(text: str) -> None:
    node, problems = yaml12.parse(text, "a.yaml")
    assert node is not None or problems


@pytest.mark.parametrize(
    ("raw", "where", "what"),
    [
        (None, "x.yaml", "file does not exist"),
        (b"a: 1\nb: \xe9\n", "x.yaml:2", "byte 8 is not valid UTF-8"),
        (b"a: 1\n" * 210_000, "x.yaml", "file is larger than 1,048,576 bytes"),
        (b"\xff\xfea\x00", "x.yaml:1", "byte 0 is not valid UTF-8"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, raw: bytes | None, where: str, what: str) -> None:
    path = tmp_path / "x.yaml"
    if raw is not None:
        path.write_bytes(raw)
    node, problems = yaml12.read_file(path, "x.yaml")
    assert node is None
    assert [(problem.where, problem.what) for problem in problems] == [(where, what)]


def test_a_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")
    assert yaml12.read_file(path, "x.yaml")[0].plain() == {"a": 1, "b": "x"}


def test_written_documents_read_the_same_in_yaml_1_1_and_1_2() -> None:
    values = {
        "a": "1e3",
        "on": ["no", "0o17", "012", 3e-4, 1e22, None, True, 7],
        "t": "12:30",
        "s": [],
        "m": {},
        "i": 1e-8,
    }
    text = yaml12.write(values)
    assert yaml12.parse(text, "a.yaml")[0].plain() == yaml.safe_load(text) == values
    shared = [1]
    assert "&" not in yaml12.write({"a": shared, "b": shared})
