"""Files in the formats of public data sets, with rows of our own: the bundled world's questions, and numbers."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tinyllm.data import world

ROWS = 40  # of every file
Row = dict[str, Any]


def _questions() -> list[tuple[str, str, str]]:
    """Return (question, right answer, another answer)."""
    rows = [row for row in world.pairs(4 * ROWS, seed=3) if len(row["prompt"]) == 1]
    return [tuple(row[key][-1]["content"] for key in ("prompt", "chosen", "rejected")) for row in rows[:ROWS]]  # type: ignore[misc]


def _turns(*contents: str) -> list[Row]:
    return [{"from": ("human", "gpt")[i % 2], "value": content} for i, content in enumerate(contents)]


def _toolcall(i: int, question: str, answer: str) -> Row:
    tools = json.dumps([{"name": "find", "parameters": {"properties": {"key": {"type": "string"}}}}]) if i % 3 else "[]"
    called = [
        {"from": "human", "value": question},
        {"from": "function_call", "value": json.dumps({"name": "find", "arguments": {"key": str(i)}})},
        {"from": "observation", "value": answer},
        {"from": "gpt", "value": answer},
    ]
    return {"conversations": called if i % 3 else _turns(question, answer), "tools": tools}


def _seed_task(i: int, question: str, answer: str) -> Row:
    instances = [{"input": "" if n == 0 else f"case {n}", "output": f"{answer} {n}"} for n in range(1 + i % 3)]
    return {
        "id": f"task_{i}",
        "name": "facts",
        "instruction": question,
        "instances": instances,
        "is_classification": False,
    }


def _persona(i: int, question: str) -> Row:
    sides = {"answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}
    return {"question": question, "statement": question.rstrip("?"), "label_confidence": i / ROWS, **sides}


def _counted(i: int) -> Row:
    return {
        "question": f"{i} red and {i + 2} blue balls are how many?",
        "answer": f"{i} + {i + 2} = {2 * i + 2}\n#### {2 * i + 2}",
    }


def _choices(i: int) -> Row:
    return {
        "question": f" What is {i} plus 1? ",
        "choices": [str(i + n) for n in range(4)],
        "answer": 1,
        "subject": "sums",
    }


ASKED = list(enumerate(_questions()))
FILES: dict[str, Callable[[], Iterable[Row]]] = {
    "documents.jsonl.gz": lambda: ({"text": row["text"]} for row in world.documents(ROWS)),
    "poems.jsonl.gz": lambda: ({"text": r["text"], "author": "x", "title": "y"} for r in world.documents(ROWS, seed=1)),
    "alpaca.json.gz": lambda: (
        {"instruction": q, "input": f"Hint {i}." if i % 2 else "", "output": a} for i, (q, a, _) in ASKED
    ),
    "toolcalls.json.gz": lambda: (_toolcall(i, q, a) for i, (q, a, _) in ASKED),
    "turns.json": lambda: ({"id": f"{i}", "conversations": _turns(q, a, "And?", "No.")} for i, (q, a, _) in ASKED),
    "seed_tasks.jsonl": lambda: (_seed_task(i, q, a) for i, (q, a, _) in ASKED),
    "pairs.json.gz": lambda: (
        {"conversations": _turns(q), "chosen": _turns("", a)[1], "rejected": _turns("", b)[1]} for _, (q, a, b) in ASKED
    ),
    "rated.json.gz": lambda: (
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "label": i % 2 == 0}
        for i, (q, a, _) in ASKED
    ),
    "persona.jsonl.gz": lambda: (_persona(i, q) for i, (q, _, _) in ASKED),
    "counted.jsonl.gz": lambda: map(_counted, range(ROWS)),
    "sums.jsonl.gz": lambda: ({"question": f"{i} + 1 = ?", "answer": str(i + 1), "level": i % 3} for i in range(ROWS)),
    "choices.jsonl.gz": lambda: map(_choices, range(ROWS)),
    "tasks.json": lambda: ({"input": f"Is {i} even?", "target": "yes" if i % 2 == 0 else "no"} for i in range(ROWS)),
    "acceptable.jsonl.gz": lambda: (
        {"sentence_good": f"There are {i} cats.", "sentence_bad": f"There is {i} cats."} for i in range(ROWS)
    ),
}


def write(folder: Path) -> Path:
    """Write every file, and texts that are split in each of the ways, and return the folder."""
    for name, rows in FILES.items():
        found = list(rows())
        if ".jsonl" in name:
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        else:
            text = json.dumps({"examples": found} if name == "tasks.json" else found, ensure_ascii=False)
        data = text.encode()
        (folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    stories = [record["text"].strip() for record in world.documents(200, seed=2)]
    (folder / "blocks.txt.gz").write_bytes(gzip.compress("\n\n".join(stories).encode()))
    (folder / "names.txt").write_text("".join(f"name{i * 7919 % 1000:03}\n" for i in range(500)), "utf-8")
    return folder
