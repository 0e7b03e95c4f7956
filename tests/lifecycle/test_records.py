"""STAGE.json of a lifecycle: a damaged one counts as missing and is named, in whatever way it is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tinyllm.errors import RESOURCES, UserError
from tinyllm.lifecycle import records

METRIC = {"value": 0.5, "low": math.nan, "high": 1.0, "n": 2}
RECORD = {
    "stage": "sft",
    "marks": {"config": "0", "parent": None, "exam": [2, 2, 0]},
    "manifest_sha256": "0" * 64,
    "seconds": 1.5,
    "examined_seconds": 2,
    "peak_memory_mb": 300,
    "result": {"tokens": 10, "moved": {}},
    "measured": {},
    "figures": {"gold": METRIC},
    "by_task": {},
    "paper": {
        "answers": [{"ids": [1], "log_probs": [], "finished": True}] * 2,
        "texts": ["a", "b"],
        "gold": [0.5, 1],
        "right": [1.0, 0.0],
    },
}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sft.json"
    records.write(path, RECORD)
    found = records.read(path, "sft", policy=True)
    assert found is not None
    assert math.isnan(found["figures"]["gold"].pop("low"))
    assert found == RECORD | {"figures": {"gold": {"value": 0.5, "high": 1.0, "n": 2}}}
    assert [p.name for p in tmp_path.iterdir()] == ["sft.json"]


def test_a_record_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "sft.json"
    path.write_text(json.dumps(RECORD))
    assert "NaN" in path.read_text()
    assert records.read(path, "sft", policy=True) is not None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"a": 1}', "stage: Field required"),
        ("[1]", "not a JSON object"),
        ("", "not JSON"),
        (json.dumps(RECORD)[:-40], "not JSON"),
        ({"marks": None}, "marks: Input should be a valid dictionary"),
        ({"stage": "rm"}, "it is of the stage 'rm'"),
        ({"paper": RECORD["paper"] | {"texts": ["a"]}}, "paper: Value error, answers, texts"),
        ({"paper": RECORD["paper"] | {"answers": [{"ids": ["x"]}] * 2}}, "paper.answers.0.ids.0: Input should be a valid"),
        ({"result": {"tokens": "many", "moved": {}}}, "result.tokens: Input should be a valid integer"),
        ({"figures": {"gold": 1.0}}, "figures.gold: Input should be a valid dictionary"),
        ({"seconds": -1}, "seconds: Input should be greater"),
    ],
)  # fmt: skip
def test_a_damaged_record_counts_as_missing(
    content: str | dict, why: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "sft.json"
    path.write_text(content if isinstance(content, str) else json.dumps(RECORD | content))
    assert records.read(path, "sft", policy=True) is None
    line = capsys.readouterr().err
    assert line.startswith(f"warning: {path} is damaged ({why}")
    assert line.endswith("); sft is evaluated again\n")


def test_a_missing_record_is_no_warning_and_a_folder_is_one(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "sft.json"
    assert records.read(path, "sft", policy=True) is None
    assert capsys.readouterr().err == ""
    path.mkdir()
    assert records.read(path, "sft", policy=True) is None
    assert "not a file" in capsys.readouterr().err
    with pytest.raises(UserError) as caught:
        records.write(path, RECORD)
    assert caught.value.code == RESOURCES
