"""Malformed files, and valid rows to edit, for the fuzz tests of readers and of whole commands."""

from __future__ import annotations

import codecs
import copy
import gzip
import json
import os
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.support.reading import trimmed
from tinyllm.data.records.reader import read_records
from tinyllm.data.records.report import Report
from tinyllm.data.records.types import Pair, Record, UnpairedPreference
from tinyllm.errors import UserError
from tinyllm.text.chat import validate_messages

USER, GPT = {"role": "user", "content": "What is red?"}, {"role": "assistant", "content": "A colour."}
HUMAN, BOT = {"from": "human", "value": "What is 7?"}, {"from": "gpt", "value": "A number."}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}]}
TOOL = {"role": "tool", "content": "4", "name": "f"}

# A valid row of every format, by kind.
ROWS: dict[str, list[dict[str, Any]]] = {
    "documents": [{"text": "Once upon a time."}, {"text": "café 猫", "title": "x"}],
    "conversations": [
        {"messages": [{"role": "system", "content": "Be kind."}, USER, GPT], "tools": [{"name": "f"}]},
        {"messages": [USER, CALL, TOOL, GPT]},
        {"messages": [USER, {"role": "assistant", "content": [{"type": "text", "text": "A colour."}], "weight": 1}]},
        {"conversations": [HUMAN, BOT, HUMAN, BOT], "system": "Be brief.", "tools": "[]"},
        {"prompt": "q", "completion": "a", "system": "s"},
        {"prompt": [USER], "completion": [GPT]},
        {"instruction": "add", "input": "1 2", "output": "3", "history": [["q", "r"]]},
        {"instruction": "add", "instances": [{"input": "1 2", "output": "3"}, {"input": "", "output": "4"}]},
        {"question": "1 + 1?", "answer": "2\n#### 2"},
        {"question": "Which?", "choices": ["a", "b"], "answer": 1},
        {"input": "not True is", "target": "False"},
    ],
    "pairs": [
        {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": 0.5},
        {"prompt": "q", "chosen": "good", "rejected": ["bad", "worse"]},
        {"prompt": [USER], "chosen": [GPT], "rejected": [{"role": "assistant", "content": "No."}]},
        {"chosen": [USER, GPT], "rejected": [USER, {"role": "assistant", "content": "No."}]},
        {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
        {"conversations": [HUMAN], "chosen": BOT, "rejected": {"from": "gpt", "value": "No."}},
        {"instruction": "q", "input": "i", "chosen": "a", "rejected": "b"},
        {"question": "q", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
    ],
    "unpaired": [
        {"prompt": "q", "completion": "a", "label": True},
        {"messages": [USER, GPT], "label": False},
        {"conversations": [HUMAN, BOT], "kto_tag": True},
        {"instruction": "q", "input": "", "output": "a", "label": True},
    ],
    "prompts": [
        {"prompt": "q", "answer": 4},
        {"question": "q", "answer": "so\n#### 4", "meta": {"a": [1]}},
        {"question": "Which?", "choices": ["a", "b"], "answer": "B"},
        {"messages": [USER, GPT, USER, GPT]},
        {"prompt": [USER], "completion": [GPT]},
    ],
}
CASES = [(kind, row) for kind, rows in ROWS.items() for row in rows]


def deep(depth: int, value: Any = 0) -> Any:
    for _ in range(depth):
        value = [value]
    return value


# Values to put at any position of a row. They are JSON text, so that they can be invalid as well.
ODD_VALUES = [
    "null", "true", "false", "0", "-1", "7", "0.5", "1e308", "1e999", "-1e999", "NaN", "Infinity", "-Infinity",
    "9" * 400, "9" * 4299, "9" * 5000, '""', '" "', '"\\n\\t"', '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"', '"\\ud83d\\ude00"',
    '"x"', '"user"', '"assistant"', '"asistant"', '"system"', '"<|im_end|>"', '"\\u001b]0;x\\u0007"', '"\\u202e"', "[]", "{}",
    "[[]]", "[{}]", "[null]", '["a", 1]', '{"": null}', '{"a": 1, "a": 2}', '{"role": "user"}', '{"from": 1, "value": 2}',
    '{"role": "user", "content": "q"}', '[{"role": "user", "content": "q"}]', '[{"role": "assistant", "content": "a"}]',
    '[{"type": "text"}]', '[{"type": "image_url", "image_url": {"url": "x"}}]', '[{"type": "text", "text": null}]',
    "[" * 50 + "]" * 50, "[" * 900 + "]" * 900, "[" * 100_000 + "]" * 100_000, '{"a":' * 900 + "1" + "}" * 900,
    "[1, 2", '{"a"', '"abc', "tru", "'x'", "1.", "01", "--1", "\ufeff", "\u00a0", "[,]", '{"a" 1}', "",
]  # fmt: skip


def places(value: Any, at: tuple = ()) -> Iterator[tuple]:
    """Yield the paths to all values inside a row, and to the row itself."""
    yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, one in inner:
        yield from places(one, (*at, key))


_MARK = "@@@here@@@"


def broken(row: dict[str, Any], at: tuple, odd: str) -> str:
    """Return the row as JSON, with `odd` at one position."""
    if not at:
        return odd
    row = copy.deepcopy(row)
    inside: Any = row
    for key in at[:-1]:
        inside = inside[key]
    inside[at[-1]] = _MARK
    return json.dumps(row, ensure_ascii=False).replace(json.dumps(_MARK), odd)


def lines(*rows: Any) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


GOOD = lines({"text": "a"}, {"text": "b"})
_TALK = lines({"messages": [USER, GPT]})


def _tampered(data: bytes, at: int, byte: int) -> bytes:
    return data[:at] + bytes([byte]) + data[at + 1 :]


_ZIPPED = gzip.compress(GOOD * 400, mtime=0)
FILES: dict[str, bytes] = {
    # empty
    "empty.txt": b"",
    "empty.jsonl": b"",
    "empty.json": b"",
    "empty.jsonl.gz": gzip.compress(b""),
    "empty_stored.gz": b"",
    "blank.txt": b"\n\r\n \t\n",
    "blank.jsonl": b"\n" * 1000,
    "only_bom.jsonl": codecs.BOM_UTF8,
    "empty_array.json": b"[]",
    "empty_object.json": b"{}",
    "empty_objects.jsonl": b"{}\n{}\n",
    "only_marks.txt": b"<|endoftext|>\n<|endoftext|>\n",
    # encodings
    "latin1.txt": "café au lait\nnaïve\n".encode("latin-1"),
    "latin1.jsonl": '{"text": "café"}\n'.encode("latin-1"),
    "latin1.json": '[{"text": "café"}]'.encode("latin-1"),
    "cp1252.txt": "“quoted” – café\n".encode("cp1252"),
    "gbk.txt": "学而时习之，不亦说乎？\n".encode("gbk") * 20,
    "sjis.txt": "これはテストです。\n".encode("shift_jis") * 20,
    "utf16.txt": "one\ntwo\n".encode("utf-16"),
    "utf16.jsonl": GOOD.decode().encode("utf-16"),
    "utf16.json": b"[" + '{"text": "a"}]'.encode("utf-16-le"),
    "utf16le.txt": "one two three\n".encode("utf-16-le"),
    "utf16be.jsonl": GOOD.decode().encode("utf-16-be"),
    "utf32.txt": "one\ntwo\n".encode("utf-32"),
    "utf8_cut.txt": "猫".encode()[:2],
    "utf8_overlong.txt": b"a\xc0\x80b\n",
    "utf8_surrogate.txt": b"a\xed\xa0\x80b\n",
    "late.jsonl": lines({"text": "a" * 1500}) * 1000 + b'{"text": "\xff"}\n',
    "nul.txt": b"one\ntw\0o\n",
    "nul.jsonl": b'{"text": "a\0b"}\n',
    "nul.json": b'[{"text": "a"},\n {"text": "b\0"}]',
    "nuls.txt": b"\0" * 5000,
    "random.txt": bytes(zlib.crc32(bytes([i % 256, i // 256])) % 256 for i in range(5000)),
    "random.jsonl": bytes(zlib.crc32(bytes([i % 256, i // 256, 1])) % 256 for i in range(5000)),
    "random.parquet": bytes(zlib.crc32(bytes([i % 256, i // 256, 2])) % 256 for i in range(5000)),
    # JSON
    "truncated.jsonl": GOOD + b'{"text": "cu',
    "truncated_key.jsonl": GOOD + b'{"te',
    "truncated.json": b'[{"text": "a"}, {"text": "b',
    "unclosed.json": b'[{"text": "a"}',
    "trailing.json": b'[{"text": "a"}]\nrubbish',
    "comma.json": b'[{"text": "a"},]',
    "no_comma.json": b'[{"text": "a"} {"text": "b"}]',
    "python.jsonl": b"{'text': 'a'}\n",
    "comment.jsonl": b'// rows\n{"text": "a"}\n',
    "nan.jsonl": b'{"text": NaN}\n',
    "infinity.json": b'[{"text": Infinity}]',
    "twice.jsonl": b'{"text": "a", "text": "b"}\n',
    "deep.jsonl": b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep.json": b"[" * 100_000,
    "deep_objects.jsonl": b'{"a":' * 100_000,
    "long_number.jsonl": b'{"text": ' + b"9" * 5000 + b"}\n",
    "surrogate.jsonl": b'{"text": "\\ud800"}\n',
    "surrogate_key.jsonl": b'{"\\udc00": "a"}\n',
    "scalars.jsonl": b'1\n"a"\nnull\ntrue\n[]\n',
    "scalars.json": b'[1, "a", null]',
    "string.json": b'"text"',
    "two_arrays.json": b'[{"text": "a"}][{"text": "b"}]',
    "columns.json": b'{"text": ["a", "b"]}',
    "two_tables.json": b'{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
    "huge_key.jsonl": b'{"' + b"k" * 100_000 + b'": 1}\n',
    "many_keys.jsonl": json.dumps({f"k{i}": i for i in range(20_000)}).encode() + b"\n",
    "escapes.jsonl": b'{"\\u001b[2J": "\\u202e"}\n',
    # one file of several kinds
    "mixed.jsonl": GOOD + _TALK + lines({"prompt": "q", "chosen": "a", "rejected": "b"}) + b"plain text\n",
    "mixed_types.jsonl": lines({"text": "a"}, {"text": 1}, {"text": None}, {"text": ["a"]}, {"text": {"a": 1}}),
    "text_then_json.txt": b"Once upon a time\n" + GOOD,
    "json_then_text.jsonl": GOOD + b"Once upon a time\n",
    "bom_inside.jsonl": GOOD + codecs.BOM_UTF8 + GOOD,
    "bom_crlf.jsonl": codecs.BOM_UTF8 + GOOD.replace(b"\n", b"\r\n"),
    "cr_only.txt": b"one\rtwo\rthree\r",
    # compressed
    "cut.jsonl.gz": _ZIPPED[:-9],
    "half.jsonl.gz": _ZIPPED[: len(_ZIPPED) // 2],
    "header.jsonl.gz": _ZIPPED[:10],
    "magic.jsonl.gz": b"\x1f\x8b",
    "crc.jsonl.gz": _tampered(_ZIPPED, -8, _ZIPPED[-8] ^ 1),
    "size.jsonl.gz": _tampered(_ZIPPED, -1, _ZIPPED[-1] ^ 1),
    "flipped.jsonl.gz": _tampered(_ZIPPED, len(_ZIPPED) // 2, _ZIPPED[len(_ZIPPED) // 2] ^ 8),
    "garbage_behind.jsonl.gz": _ZIPPED + b"rubbish",
    "not_packed.jsonl.gz": GOOD,
    "packed_twice.jsonl.gz": gzip.compress(_ZIPPED),
    "named_plain.jsonl": _ZIPPED,
    "latin1.jsonl.gz": gzip.compress('{"text": "café"}\n'.encode("latin-1")),
    # of other programs
    "table.csv": b'id,text\n1,"hello\n2,there\n',
    "table.tsv": b"id\ttext\n1\thello\n",
    "archive.txt": b"PK\x03\x04" + b"\0" * 50,
    "zstd.jsonl": b"\x28\xb5\x2f\xfd" + b"\0" * 50,
    "xz.jsonl": b"\xfd7zXZ\x00" + b"\0" * 50,
    "pdf.txt": b"%PDF-1.4\n",
    "tar.txt": b"a" * 257 + b"ustar" + b"\0" * 250,
    "lone_magic.parquet": b"PAR1",
    "no_footer.parquet": b"PAR1" + b"\0" * 100 + b"\xff\xff\xff\x7fPAR1",
    "text.parquet": b"this is no parquet\n",
    # conversations and pairs
    "role.jsonl": lines({"messages": [{"role": "asistant", "content": "x"}]}),
    "null.jsonl": lines({"messages": None}),
    "column.jsonl": lines({"message": [USER, GPT], "id": 1}),
    "no_answer.jsonl": lines({"messages": [USER]}, {"messages": [USER, {"role": "assistant", "content": " "}]}),
    "label.jsonl": lines({"messages": [USER, GPT], "label": "yes"}),
    "image.jsonl": lines({"messages": [USER, GPT], "images": ["x.png"]}),
    "weight.jsonl": lines({"messages": [USER, GPT | {"weight": 0}]}),
    "equal.jsonl": lines({"prompt": "q", "chosen": "a", "rejected": "a "}),
}  # fmt: skip
FINE = {  # (file, kind): its records, where it is read without an error
    ("not_packed.jsonl.gz", "documents"): 2, ("named_plain.jsonl", "documents"): 800, ("bom_crlf.jsonl", "documents"): 2,
    ("cr_only.txt", "documents"): 1, ("text_then_json.txt", "documents"): 1, ("bom_inside.jsonl", "documents"): 4,
    ("table.tsv", "documents"): 1, ("no_answer.jsonl", "prompts"): 2, ("label.jsonl", "conversations"): 1,
    ("label.jsonl", "prompts"): 1, ("equal.jsonl", "prompts"): 1,
}  # fmt: skip
SKIPPED = {  # those that remain where bad rows are skipped; every other file is an error then as well
    ("late.jsonl", "documents"): 1000, ("nul.txt", "documents"): 1, ("truncated.jsonl", "documents"): 2,
    ("truncated_key.jsonl", "documents"): 2, ("comment.jsonl", "documents"): 1, ("mixed.jsonl", "documents"): 2,
    ("mixed_types.jsonl", "documents"): 1, ("json_then_text.jsonl", "documents"): 2, ("table.csv", "documents"): 1,
}  # fmt: skip


def special_files(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield (name, path) of things that are not regular files, made in `folder`."""
    (folder / "loop").symlink_to(folder / "loop")
    yield "a link to itself", folder / "loop"
    (folder / "gone.jsonl").symlink_to(folder / "nowhere.jsonl")
    yield "a link to nothing", folder / "gone.jsonl"
    os.mkfifo(folder / "pipe.jsonl")
    yield "a named pipe", folder / "pipe.jsonl"
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "s.jsonl"))
    yield "a socket", folder / "s.jsonl"
    for device in ("/dev/zero", "/dev/null", "/dev/urandom", "/proc/self/mem"):
        yield device, Path(device)
    (folder / "ring" / "a").mkdir(parents=True)
    (folder / "ring" / "a" / "back").symlink_to(folder / "ring")
    yield "a ring of folders without data", folder / "ring"
    (folder / "images").mkdir()
    (folder / "images" / "x.png").write_bytes(b"\x89PNG")
    yield "a folder without text", folder / "images"
    (folder / "held").mkdir()
    os.mkfifo(folder / "held" / "x.jsonl")
    yield "a folder with a pipe in it", folder / "held"
    yield "nothing", folder / "nothing.jsonl"
    yield "no folder", folder / "no" / "nothing.jsonl"
    yield "an endless name", folder / ("x" * 5000)


def check(record: Record) -> None:
    """Check that a record is valid: text everywhere, known roles, an answer that is not empty."""
    if isinstance(record, Pair):
        assert trimmed(record.chosen[0]["content"]) != trimmed(record.rejected[0]["content"])
        _exchange(record.prompt, record.chosen)
        _exchange(record.prompt, record.rejected)
        assert record.margin is None or abs(record.margin) < float("inf")
    elif isinstance(record, UnpairedPreference):
        _exchange(record.prompt, record.completion)
        assert record.good in (True, False)
    elif hasattr(record, "text"):
        assert record.text.strip()
        record.text.encode()
    else:
        validate_messages(list(record.messages), "")
        assert all(m["content"].strip() for m in record.messages if m["role"] != "tool")


def _exchange(prompt: tuple, answer: tuple) -> None:
    assert [m["role"] for m in answer] == ["assistant"]
    assert answer[0]["content"].strip()
    assert prompt[-1]["role"] != "assistant"
    validate_messages([*prompt, *answer], "", require_assistant=True)


SECONDS = 5.0  # of processor time for one input


def attempt(path: Path | str, kind: str, mode: str = "error", **options: Any) -> tuple[list, UserError | None, Report]:
    """Read a file and check the records, or the error, and the time. Return (records, error, report)."""
    started, records, error = time.process_time(), [], None
    try:
        reader = read_records([path], kind, on_bad_line=mode, **options)
        records = list(reader)
        report = reader.report
    except UserError as raised:
        error, report = raised, Report(kind)
    assert time.process_time() - started < SECONDS
    if error is not None:
        message = str(error)
        assert error.code == 2
        assert error.fix
        assert len(message) < 20_000
        assert message.isprintable() or all(c.isprintable() or c == "\n" for c in message)
        message.encode()
    else:
        assert records
        assert report.complete
        assert report.records == len(records) == sum(file.records for file in report.files)
        for record in records:
            check(record)
        for line in report.lines():
            assert line.isprintable()
    return records, error, report
