"""Rows of the public formats as items, and the errors for rows that are not."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tinyllm.data.config import DataConfig
from tinyllm.errors import UserError
from tinyllm.evals.benchmark import read_all
from tinyllm.evals.config import EvalConfig
from tinyllm.evals.conventions import Conventions
from tinyllm.evals.evaluator import Evaluator
from tinyllm.evals.settings import EvalSettings

PAIR = {"sentence_good": "The cats sleep.", "sentence_bad": "The cats sleeps.", "UID": "agreement"}
MULTIPLE = {"subject": "s", "question": "What is 1 + 1? ", "choices": ["1", "2", "3"], "answer": 1}
LETTERED = {"input": "Which one?\nOptions:\n(A) this\n(B) that", "target": "(B)"}
DASHED = {"input": "Is it so?\nOptions:\n- Yes\n- No", "target": "No"}
MATHS = {"question": "How many?", "answer": "2 + 3 = 5\n#### 5", "meta": {"source": "x"}}


def config(*sources: Path | str, **more: Any) -> EvalSettings:
    data = {key: more.pop(key) for key in ("field", "on_bad_line", "format") if key in more}
    return EvalConfig(data=DataConfig(train=(), val=tuple(map(str, sources)), **data), **more)


def written(path: Path, *rows: Any) -> Path:
    text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def only(path: Path, kind: str, **more: Any) -> Any:
    (benchmark,) = read_all([kind], config(path, **more))
    (item,) = benchmark.items
    return item


def test_blimp_pairs(tmp_path: Path) -> None:
    item = only(written(tmp_path / "p.jsonl.gz", PAIR), "choices")
    assert (item.context, item.choices, item.correct) == ("", ("The cats sleep.", "The cats sleeps."), 0)


@pytest.mark.parametrize("answer", [1, "B", "b"])
def test_mmlu_compares_the_choices_or_their_letters(tmp_path: Path, answer: Any) -> None:
    path = written(tmp_path / "m.jsonl", MULTIPLE | {"answer": answer})
    item = only(path, "choices")
    assert (item.context, item.choices) == ("Question: What is 1 + 1?\nAnswer:", ("1", "2", "3"))
    assert item.correct == 1
    item = only(path, "choices", options="letters")
    assert (item.context, item.choices) == ("What is 1 + 1?\nA. 1\nB. 2\nC. 3\nAnswer:", ("A", "B", "C"))
    assert item.correct == 1


def test_bbh_as_choices_and_as_questions(tmp_path: Path) -> None:
    for row, options in ((LETTERED, ("(A)", "(B)")), (DASHED, ("Yes", "No"))):
        path = tmp_path / "b.json"
        path.write_text(json.dumps({"canary": "keep out", "examples": [row]}))
        item = only(path, "choices")
        assert (item.context, item.choices, item.correct) == (f"Q: {row['input']}\nA:", options, 1)
        item = only(path, "questions")
        assert item.columns["answer"] == row["target"]


def test_questions_keep_their_columns(tmp_path: Path) -> None:
    item = only(written(tmp_path / "g.jsonl", MATHS), "questions")
    assert item.text == "Question: How many?\nAnswer:"
    assert item.turns == ({"role": "user", "content": "How many?"},)
    assert item.columns == {"answer": "5", "solution": MATHS["answer"], "meta": {"source": "x"}}
    item = only(written(tmp_path / "p.jsonl", {"prompt": "2 + 3 =", "answer": 5}), "questions")
    assert (item.text, item.columns["answer"]) == ("2 + 3 =", "5")


def test_columns_can_be_renamed(tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", {"ask": "How?", "label": "So."})
    item = only(path, "questions", field={"question": "ask", "answer": "label"})
    assert (item.turns[0]["content"], item.columns) == ("How?", {"answer": "So."})


def test_each_file_goes_to_every_task_that_can_read_it(tmp_path: Path) -> None:
    files = [written(tmp_path / "p.jsonl", PAIR), written(tmp_path / "b.jsonl", LETTERED)]
    benchmarks = read_all(["choices", "questions"], config(*files))
    assert [(s.name, s.kind, s.format) for s in benchmarks] == [
        ("p", "choices", "blimp"),
        ("b", "choices", "bbh"),
        ("b", "questions", "bbh"),
    ]
    with pytest.raises(UserError, match="none of the 1 sources contains questions"):
        read_all(["choices", "questions"], config(files[0]))


def test_the_bundled_world_has_every_kind() -> None:
    texts, choices, questions = read_all(["texts", "choices", "questions"], config("world:5"))
    assert [len(s.items) for s in (texts, choices, questions)] == [5, 5, 5]
    assert {"answer", "task"} <= set(questions.items[0].columns)
    assert len(choices.items[0].choices) == 2
    with pytest.raises(UserError, match="does not specify a number of records"):
        read_all(["texts"], config("world:many"))


def test_rows_beyond_the_limit_are_only_counted(tmp_path: Path) -> None:
    (benchmark,) = read_all(["choices"], config(written(tmp_path / "p.jsonl", *[PAIR] * 7), rows=3))
    assert (len(benchmark.items), benchmark.total) == (3, 7)


def test_files_with_the_same_name_are_named_by_their_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    paths = [written(tmp_path / "a" / "p.jsonl", PAIR), written(tmp_path / "p.jsonl", PAIR)]
    assert [s.name for s in read_all(["choices"], config(*paths))] == [str(p) for p in paths]


BAD = [
    ("choices", [PAIR, PAIR | {"sentence_bad": " "}], "sentence_bad is empty"),
    ("choices", [PAIR, PAIR | {"sentence_good": 3}], "sentence_good: expected a text"),
    ("choices", [PAIR, {"sentence_good": "a"}], "no 'sentence_bad'"),
    ("choices", [PAIR, '{"sentence_good": '], "not JSON"),
    ("choices", [MULTIPLE, MULTIPLE | {"answer": 3}], "a number from 0 to 2 or a letter from A to C"),
    ("choices", [MULTIPLE, MULTIPLE | {"answer": True}], "found True"),
    ("choices", [MULTIPLE, MULTIPLE | {"choices": ["1"]}], "two or more texts"),
    ("choices", [LETTERED, LETTERED | {"target": "(C)"}], "none of the options (A), (B)"),
    ("choices", [LETTERED, LETTERED | {"input": "no list"}], "no options"),
    ("questions", [MATHS, {"question": "How?"}], "no 'answer'"),
    ("questions", [MATHS, MATHS | {"answer": ""}], "answer: expected a string or a number"),
]


def test_a_first_row_that_cannot_be_read_is_named_or_skipped(tmp_path: Path) -> None:
    for rows in (["{not json"], ["{not json", PAIR]):
        path = written(tmp_path / "bad.jsonl", *rows)
        with pytest.raises(UserError) as caught:
            read_all(["choices"], config(path))
        assert caught.value.where == f"{path}:1"
        assert "JSON" in caught.value.what
    (benchmark,) = read_all(["choices"], config(path, on_bad_line="skip"))
    assert len(benchmark.items) == 1


def test_nothing_to_evaluate_on_is_said() -> None:
    with pytest.raises(UserError, match="no data to evaluate on") as caught:
        read_all(["choices"], config())
    assert caught.value.where == "data.val"


@pytest.mark.parametrize(
    ("template", "chat_model", "conversational", "used"),
    [
        ("auto", True, True, True),
        ("auto", False, True, False),
        ("auto", True, False, False),
        ("chat", False, False, True),
        ("plain", True, True, False),
    ],
)
def test_the_chat_template_is_used_for_conversations_of_a_chat_model_or_on_request(
    tmp_path: Path, template: str, chat_model: bool, conversational: bool, used: bool
) -> None:
    (benchmark,) = read_all(["questions"], config(written(tmp_path / "q.jsonl", MATHS)))
    benchmark = replace(benchmark, conversational=conversational)
    evaluator = Evaluator(
        small.rough(), small.tokenizer(), Conventions((), (), (), (), {}), chat_model, config(template=template)
    )
    assert evaluator.uses_chat_template(benchmark) is used
    assert not evaluator.uses_chat_template(replace(benchmark, kind="texts"))


@pytest.mark.parametrize(("kind", "rows", "words"), BAD, ids=[words for *_, words in BAD])
def test_a_bad_row_is_an_error_with_file_line_and_fix_or_is_skipped_and_counted(
    tmp_path: Path, kind: str, rows: list, words: str
) -> None:
    path = written(tmp_path / "bad.jsonl", *rows)
    with pytest.raises(UserError) as caught:
        read_all([kind], config(path))
    assert words in caught.value.what
    assert caught.value.where == f"{path}:2"
    assert caught.value.fix
    (benchmark,) = read_all([kind], config(path, on_bad_line="skip"))
    assert (len(benchmark.items), sum(benchmark.dropped.values())) == (1, 1)


@pytest.mark.parametrize(
    ("kind", "rows", "what", "fix"),
    [
        ("choices", [MATHS], "question, answer, meta", "add --task exact_match"),
        ("questions", [MULTIPLE], "columns subject, question, choices", "add --task choice"),
        ("choices", [{"a": 1}], "columns a", "--set data.field.question=COLUMN"),
        ("questions", ["plain words"], "plain text", "add --task bits_per_byte"),
    ],
)
def test_the_error_for_a_file_that_no_task_reads_names_one_that_can(
    tmp_path: Path, kind: str, rows: list, what: str, fix: str
) -> None:
    path = written(tmp_path / ("x.txt" if isinstance(rows[0], str) else "x.jsonl"), *rows)
    with pytest.raises(UserError) as caught:
        read_all([kind], config(path))
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where.startswith(f"{path}:1")
