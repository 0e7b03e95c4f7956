"""Files in public formats, compared with an independent reading: plain json and a few lines for each format.

All records are compared: those of files of our own, and those of real files, which are skipped where they are not beside the checkout.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest

from tests.support import own_files
from tests.support.own_files import ROWS
from tinyllm.data.records.detect import guess_kind
from tinyllm.data.records.reader import read_records
from tinyllm.data.records.types import Conversation, Document, Pair, Prompt, UnpairedPreference
from tinyllm.evals.formats import FORMATS, Choice
from tinyllm.rollout.rewards import exact_answer

ROOT = Path(__file__).resolve().parents[2]


def raw(path: Path) -> Any:
    """Return the text of a plain text file, or the rows of any other file."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    if ".jsonl" in path.name:
        return [json.loads(line) for line in text.split("\n") if line]
    if ".json" in path.name:
        found = json.loads(text)
        return found if isinstance(found, list) else found["examples"]
    return text


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


NAMES = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "tool", "system": "system"}


def sharegpt(turns: list[dict[str, str]]) -> tuple:
    return tuple(turn(NAMES[t["from"]], t["value"]) for t in turns)


def alpaca(row: dict[str, str]) -> Conversation:
    prompt = row["instruction"] + (f"\n\n{row['input']}" if row["input"] else "")
    return Conversation((turn("user", prompt), turn("assistant", row["output"])))


def seed_task(row: dict[str, Any]) -> Iterator[Conversation]:
    return (alpaca({"instruction": row["instruction"], **instance}) for instance in row["instances"])


def dpo(row: dict[str, Any]) -> Pair:
    return Pair(sharegpt(row["conversations"]), sharegpt([row["chosen"]]), sharegpt([row["rejected"]]))


def kto(row: dict[str, Any]) -> UnpairedPreference:
    *before, last = [turn(t["role"], t["content"]) for t in row["messages"]]
    return UnpairedPreference(tuple(before), (last,), row["label"])


def persona(row: dict[str, Any]) -> Pair:
    sides = [(turn("assistant", row[f"answer_{side}_behavior"].strip()),) for side in ("matching", "not_matching")]
    return Pair((turn("user", row["question"]),), *sides)


def gsm8k(row: dict[str, str]) -> Prompt:
    final = row["answer"].split("\n#### ")[1]
    return Prompt((turn("user", row["question"]),), {"answer": final, "solution": row["answer"]})


def question(row: dict[str, Any]) -> Prompt:
    return Prompt((turn("user", row["question"]),), {k: v for k, v in row.items() if k != "question"})


def mmlu(row: dict[str, Any]) -> Prompt:
    prompt = "\n".join(
        [row["question"].strip(), *(f"{c}. {text}" for c, text in zip("ABCD", row["choices"], strict=True))]
    )
    columns = {"subject": row["subject"], "choices": row["choices"], "answer": "ABCD"[row["answer"]]}
    return Prompt((turn("user", prompt),), columns)


def bbh(row: dict[str, str]) -> Prompt:
    return Prompt((turn("user", row["input"]),), {"answer": row["target"], "target": row["target"]})


def toolcall(row: dict[str, Any]) -> Conversation:
    listed = {"tools": json.loads(row["tools"]), "source": ()}
    tools = (
        [] if row["tools"] == "[]" else [turn("system", "Tools:\n" + row["tools"]) | listed]
    )  # 92 of 240 rows have none
    return Conversation((*tools, *sharegpt(row["conversations"])))


def answered(row: dict[str, str]) -> Conversation:
    return Conversation((turn("user", row["question"]), turn("assistant", row["answer"])))


# (files, kind, format, independent reading of a row, records of all files, ignored columns)
READINGS: list[tuple[str, str, str, Callable[[Any], Any], int, list[str]]] = [
    ("pretrain/tinystories_train.jsonl.gz", "documents", "text", lambda row: Document(row["text"]), 2016, []),
    ("pretrain/zh_*.jsonl.gz", "documents", "text", lambda row: Document(row["text"]), 14_400, ["author", "title"]),
    ("sft/lf_alpaca_*.json.gz", "conversations", "alpaca", alpaca, 1599, []),
    ("sft/lf_identity.json.gz", "conversations", "alpaca", alpaca, 91, []),
    ("sft/lf_glaive_toolcall_*.json.gz", "conversations", "sharegpt", toolcall, 480, []),
    (
        "sft/fastchat_dummy_multiturn.json",
        "conversations",
        "sharegpt",
        lambda row: Conversation(sharegpt(row["conversations"])),
        500,
        ["id"],
    ),
    (
        "sft/self_instruct_seed_tasks.jsonl",
        "conversations",
        "seed-tasks",
        seed_task,
        175,
        ["id", "name", "is_classification"],
    ),
    ("preference/lf_dpo_*.json.gz", "pairs", "sharegpt-preference", dpo, 480, []),
    ("preference/lf_kto_en_demo.json.gz", "unpaired", "messages-label", kto, 240, []),
    ("preference/persona_*.jsonl.gz", "pairs", "persona", persona, 12_000, ["statement", "label_confidence"]),
    ("rl/gsm8k_train.jsonl.gz", "prompts", "question", gsm8k, 7473, []),
    ("rl/gsm8k_train.jsonl.gz", "conversations", "question-answer", answered, 7473, []),
    ("rl/mawps_train.jsonl.gz", "prompts", "question", question, 1537, []),
    ("rl/rg_*.jsonl.gz", "prompts", "question", question, 1200, []),
    ("eval/mmlu_*.jsonl.gz", "prompts", "multiple-choice", mmlu, 1816, []),
    ("eval/bbh/*.json", "prompts", "input-target", bbh, 4261, []),
]
OWN: list[tuple[str, str, str, Callable[[Any], Any], int, list[str]]] = [
    ("documents.jsonl.gz", "documents", "text", lambda row: Document(row["text"]), ROWS, []),
    ("poems.jsonl.gz", "documents", "text", lambda row: Document(row["text"]), ROWS, ["author", "title"]),
    ("alpaca.json.gz", "conversations", "alpaca", alpaca, ROWS, []),
    ("toolcalls.json.gz", "conversations", "sharegpt", toolcall, ROWS, []),
    ("turns.json", "conversations", "sharegpt", lambda row: Conversation(sharegpt(row["conversations"])), ROWS, ["id"]),
    ("seed_tasks.jsonl", "conversations", "seed-tasks", seed_task, 79, ["id", "name", "is_classification"]),
    ("pairs.json.gz", "pairs", "sharegpt-preference", dpo, ROWS, []),
    ("rated.json.gz", "unpaired", "messages-label", kto, ROWS, []),
    ("persona.jsonl.gz", "pairs", "persona", persona, ROWS, ["statement", "label_confidence"]),
    ("counted.jsonl.gz", "prompts", "question", gsm8k, ROWS, []),
    ("counted.jsonl.gz", "conversations", "question-answer", answered, ROWS, []),
    ("sums.jsonl.gz", "prompts", "question", question, ROWS, []),
    ("choices.jsonl.gz", "prompts", "multiple-choice", mmlu, ROWS, []),
    ("tasks.json", "prompts", "input-target", bbh, ROWS, []),
]
PLAIN = {  # documents, and how plain text was split
    "names.txt": (32_033, "every line end"),
    "sotu_train.txt.gz": (517, "blank lines, into documents of at least 2,000 characters"),
    "tinyshakespeare.txt": (498, "blank lines, into documents of at least 2,000 characters"),
    "wikitext2_valid.txt.gz": (313, "blank lines, into documents of at least 2,000 characters"),
    "zh_classics.txt.gz": (43, "blank lines, into documents of at least 2,000 characters"),
}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_files.write(tmp_path_factory.mktemp("own"))


@pytest.mark.parametrize(
    ("files", "kind", "format", "convert", "count", "ignored"),
    [*OWN, *READINGS],
    ids=[f"{r[0]}-{r[1]}" for r in OWN + READINGS],
)
def test_records_equal_an_independent_reading(
    request: pytest.FixtureRequest,
    own: Path,
    files: str,
    kind: str,
    format: str,
    convert: Callable[[Any], Any],
    count: int,
    ignored: list[str],
) -> None:
    found = 0
    folder = own if (own / files).is_file() else request.getfixturevalue("shared") / "data"
    for path in sorted(folder.glob(files)):
        expected = [convert(row) for row in raw(path)]
        if isinstance(expected[0], Iterator):
            expected = [record for several in expected for record in several]
        reader = read_records([path], kind)
        records = list(reader)
        assert records == expected
        (file,) = reader.report.files
        assert (file.format, file.rows, file.ignored) == (format, len(raw(path)), ignored)
        assert not reader.report.dropped
        found += len(records)
        if kind != "conversations" or format != "question-answer":
            assert guess_kind(path) == kind
    assert found == count


@pytest.mark.parametrize("name", PLAIN)
def test_plain_texts_are_split_without_loss(shared: Path, name: str) -> None:
    count, how = PLAIN[name]
    path = shared / "data" / "pretrain" / name
    text = raw(path)
    reader = read_records([path], "documents")
    texts = [record.text for record in reader]
    assert len(texts) == count
    assert f"plain text split at {how}" in reader.report.files[0].notes
    assert "".join("".join(texts).split()) == "".join(text.split())  # only white space between documents is lost
    assert text.lstrip().startswith(texts[0].lstrip())
    assert text.rstrip().endswith(texts[-1])
    if name == "names.txt":
        assert texts == text.splitlines()
        return
    assert sum(map(len, texts)) > 0.995 * len(text)
    # 2,000 with the trailing line ends and spaces
    assert all(len(one) > 1980 for one in texts[:-1])


def test_own_plain_texts_are_split_without_loss(own: Path) -> None:
    found = {}
    for name in ("blocks.txt.gz", "names.txt"):
        reader = read_records([own / name], "documents")
        found[name] = [record.text for record in reader]
        assert "".join("".join(found[name]).split()) == "".join(raw(own / name).split())
        how = "every line end" if name == "names.txt" else PLAIN["sotu_train.txt.gz"][1]
        assert f"plain text split at {how}" in reader.report.files[0].notes
    assert found["names.txt"] == raw(own / "names.txt").splitlines()
    assert all(1980 < len(text) < 8000 for text in found["blocks.txt.gz"][:-1])
    assert len(found["blocks.txt.gz"]) > 20


@pytest.mark.parametrize("name", ["own", "shared"])
def test_plain_text_is_split_by_the_named_format(name: str, own: Path, request: pytest.FixtureRequest) -> None:
    path = own / "blocks.txt.gz"
    if name == "shared":
        path = request.getfixturevalue("shared") / "data" / "pretrain" / "zh_classics.txt.gz"
    text = raw(path)
    ways = {
        name: [d.text for d in read_records([path], "documents", format=name)]
        for name in ("lines", "paragraphs", "whole")
    }
    assert ways["lines"] == [line.rstrip() for line in text.split("\n") if line.strip()]
    assert ways["paragraphs"] == [block.strip("\n").rstrip() for block in text.split("\n\n") if block.strip()]
    assert ways["whole"] == [text.strip("\n").rstrip()]


@pytest.mark.parametrize(("name", "count", "each"), [("own", 1, ROWS), ("shared", 47, 300)])
def test_blimp_pairs_equal_an_independent_reading(
    name: str, count: int, each: int, own: Path, request: pytest.FixtureRequest
) -> None:
    files = [own / "acceptable.jsonl.gz"]
    if name == "shared":
        files = sorted((request.getfixturevalue("shared") / "data" / "eval" / "blimp").glob("*.jsonl.gz"))
    assert len(files) == count
    for path in files:
        rows = raw(path)
        expected = [Choice("", (row["sentence_good"], row["sentence_bad"]), 0) for row in rows]
        fitting = [name for name, known in FORMATS["choices"].items() if known.fits(rows[0])]
        assert fitting == ["blimp"]
        assert [item for row in rows for item in FORMATS["choices"]["blimp"].convert(row, "text")] == expected
        assert len(rows) == each


def test_every_file_has_an_independent_reading(shared: Path) -> None:
    """New files must be added to the tables above."""
    names = [str(p.relative_to(shared / "data")) for p in (shared / "data").rglob("*") if p.is_file()]
    patterns = [
        *(reading[0] for reading in READINGS),
        *(f"pretrain/{name}" for name in PLAIN),
        "eval/blimp/*",
        "README.md",
    ]
    assert [name for name in names if not any(fnmatch(name, pattern) for pattern in patterns)] == []
    assert len(names) == 106


@pytest.mark.parametrize(("name", "answers"), [("own", ["2", "4", "80"]), ("shared", ["72", "10", "50"])])
def test_final_answers_of_gsm8k_score_full_reward(
    name: str, answers: list[str], own: Path, request: pytest.FixtureRequest
) -> None:
    path = own / "counted.jsonl.gz"
    if name == "shared":
        path = request.getfixturevalue("shared") / "data" / "rl" / "gsm8k_train.jsonl.gz"
    prompts = list(read_records([path], "prompts"))
    assert [p.columns["answer"] for p in (prompts[0], prompts[1], prompts[-1])] == answers
    assert all(p.columns["answer"].replace(",", "").lstrip("-").replace(".", "", 1).isdigit() for p in prompts)
    for prompt in prompts:
        assert exact_answer(prompt.columns, f"The answer is {prompt.columns['answer']}.", True) == 1.0
        assert exact_answer(prompt.columns, prompt.columns["solution"], True) == 1.0


def test_benchmark_formats_prints_every_file(own: Path) -> None:
    command = [sys.executable, ROOT / "benchmarks" / "formats.py", own, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    table = json.loads(done.stdout)
    assert set(table) == {path.name for path in own.iterdir()}
    assert table["counted.jsonl.gz"]["records"] == ROWS
    assert table["counted.jsonl.gz"]["why"].startswith(f"{ROWS} repaired: answer set to the text after ####")
