"""The documents against the code, and every check of them seen red: an error of its kind is planted into a copy of the pages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.documents import checks, gate_tables, pages, statements
from tests.documents.checks import Check, Seen

PAGES = pages.load()
GUIDE, CHINESE, README = "docs/lifecycle.md", "docs/lifecycle.zh.md", "README.md"
CHECKS: dict[str, tuple[Check, int]] = {  # name -> the check, and the fewest things that it must have looked at
    "options": (checks.options, 500),
    "keys": (checks.keys, 200),
    "tables of keys": (checks.key_tables, 35),
    "tables of gates": (gate_tables.gates, 18),
    "columns": (gate_tables.columns, 18),
    "files": (checks.files, 150),
    "links": (checks.links, 90),
    "translation of the guide": (checks.translation_of_the_guide, 200),
    "translation of the README": (checks.translation_of_the_readme, 15),
    "statements": (lambda pages: Seen(*statements.wrong_statements(pages)), 70),
    "defaults": (lambda pages: Seen(*statements.stated_defaults(pages)), 10),
}


@dataclass(frozen=True)
class Error:
    check: str
    page: str
    old: str
    new: str
    found: str  # in what the check says


ERRORS = {
    "an option that no command has": Error("options", GUIDE, "`--no-resume` moves", "`--start-over` moves", "--start-over"),
    "an option of a script": Error("options", README, "`--seeds 3`", "`--seed-count 3`", "--seed-count"),
    "a misspelled key": Error("keys", "docs/data.md", "--set data.on_bad_line=skip ", "--set data.on_bad_lines=skip ", "data.on_bad_lines"),
    "a key in a sentence": Error("keys", GUIDE, "set a larger `train.steps`", "set a larger `train.max_steps`", "train.max_steps"),
    "a key in Chinese": Error("keys", CHINESE, "`data.weights`", "`data.weight`", "data.weight"),
    "a key in a table": Error("tables of keys", GUIDE, "| `track_kl` |", "| `trace_kl` |", "trace_kl"),
    "a gate that is renamed": Error("tables of gates", GUIDE, "| KL within bound |", "| KL in bounds |", "KL in bounds"),
    "a bound of a gate": Error("tables of gates", GUIDE, "is at most 12 nats", "is at most 10 nats", "KL within bound"),
    "a bound of a gate in Chinese": Error("tables of gates", CHINESE, "胜率至少为 58%", "胜率至少为 55%", "wins against parent"),
    "stages of a gate": Error("tables of gates", GUIDE, "grpo | improves reward |", "rloo | improves reward |", "improves"),
    "a column of the scorecard": Error("columns", GUIDE, "| win rate vs parent |", "| win rate |", "win rate"),
    "a test that does not exist": Error("files", "docs/reliability.md", "/test_lock.py", "/test_locks.py", "test_locks"),
    "a module that does not exist": Error("files", README, "-m tests.parity.table", "-m tests.parity.tables", "tests.parity.tables"),
    "a configuration that does not exist": Error("files", GUIDE, "`configs/chat/chat.yaml`", "`configs/chat.yaml`", "configs/chat.yaml"),
    "a link to no file": Error("links", README, "(docs/world.md)", "(docs/worlds.md)", "worlds"),
    "a link to no heading": Error("links", GUIDE, "data.md#formats", "data.md#form", "data.md#form"),
    "a link to no heading in Chinese": Error("links", CHINESE, "(#14-验收指标)", "(#14-指标)", "#14-指标"),
    "a command in one language": Error(
        "translation of the guide", CHINESE, "tinyllm lifecycle --name second", "tinyllm lifecycle --name first", "--name first"
    ),
    "a number in one language": Error("translation of the guide", CHINESE, "默认 512，", "默认 256，", "256"),
    "a section in one language": Error("translation of the guide", GUIDE, "### 3.18 ", "### 3.19 ", "3.19"),
    "a command in one README": Error("translation of the README", "README.zh.md", "tinyllm rm ", "tinyllm reward ", "tinyllm reward"),
    "a default": Error("statements", GUIDE, "Default 512, minimum", "Default 256, minimum", "the code 512"),
    "a default that is a word": Error("statements", "docs/data.md", "| `exact` (default)", "| `near` (default)", "the code exact"),
    "a count": Error("statements", "docs/reliability.md", "each of 26 configurations", "each of 23 configurations", "the code 26"),
    "a count in words": Error("statements", GUIDE, "Trains nine stages", "Trains ten stages", "the code 9"),
    "a bound that a test asserts": Error("statements", "docs/data.md", "within ten seconds", "within five seconds", "the code 10"),
    "a sentence that is gone": Error("statements", "docs/world.md", "**24 people**", "**people**", "nothing says"),
    "a default that no statement knows": Error(
        "defaults", GUIDE, "Wilson intervals for proportions", "Wilson intervals (default 7) for proportions", "no statement"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_the_documents_agree_with_the_code(name: str) -> None:
    check, fewest = CHECKS[name]
    seen = check(PAGES)
    assert not seen.wrong, "\n".join(seen.wrong)
    assert seen.count >= fewest, f"only {seen.count} were looked at"


@pytest.mark.parametrize("name", ERRORS)
def test_a_planted_error_is_found(name: str) -> None:
    error = ERRORS[name]
    text = PAGES[error.page]
    assert error.old in text, "the page no longer says what was to be changed"
    check, _ = CHECKS[error.check]
    wrong = check({**PAGES, error.page: text.replace(error.old, error.new)}).wrong
    assert any(error.found in line for line in wrong), wrong


def test_every_check_has_a_planted_error() -> None:
    assert {error.check for error in ERRORS.values()} == set(CHECKS)


def test_a_check_that_sees_nothing_is_noticed() -> None:
    empty = dict.fromkeys(PAGES, "")
    assert checks.options(empty).count == checks.links(empty).count == checks.files(empty).count == 0
    assert statements.wrong_statements(empty)[0]
