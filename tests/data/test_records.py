"""The reader: sources, reports, empty and generated files, and all real files."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.reading import refused, run_python, texts, trimmed
from tinyllm.data.records.formats import KINDS, TITLES
from tinyllm.data.records.reader import read_records, read_rows
from tinyllm.errors import UserError
from tinyllm.text.chat import ROLES, validate_messages


def test_sources_are_files_folders_and_patterns(tmp_path: Path) -> None:
    (tmp_path / "in" / ".hidden").mkdir(parents=True)
    for name in ("b.txt", "a.jsonl", "skip.png", ".hidden/c.txt"):
        (tmp_path / "in" / name).write_text(json.dumps({"text": name}))
    assert texts(tmp_path / "in") == ["a.jsonl", "b.txt"]
    assert texts(tmp_path / "in" / "*.txt", tmp_path / "in" / "a.jsonl") == ["b.txt", "a.jsonl"]
    with pytest.raises(UserError, match="no file matches"):
        read_records([tmp_path / "in" / "*.json"], "documents")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="0 data files"):
        read_records([tmp_path / "empty"], "documents")
    with pytest.raises(UserError, match="no such file") as error:
        read_records([tmp_path / "in" / "a.json"], "documents")
    assert error.value.fix == f"did you mean {tmp_path / 'in' / 'a.jsonl'}?"
    with pytest.raises(UserError, match="its folder does not exist"):
        read_records([tmp_path / "out" / "a.jsonl"], "documents")
    with pytest.raises(UserError, match="no data source"):
        read_records([], "documents")
    with pytest.raises(UserError, match="cannot be read"):
        read_records(["x" * 5000], "documents")


def test_standard_input_is_read_once() -> None:
    code = """
import sys
from tinyllm.data.records.reader import read_records
from tinyllm.errors import UserError
reader = read_records(["-"], "documents")
print([d.text for d in reader], reader.report.files[0].source)
try:
    list(reader)
except UserError as e:
    print(e.what)
assert not {"torch", "tokenizers", "numpy"} & set(sys.modules)
"""
    expected = b"['a', 'b'] standard input\nstandard input can be read only once\n"
    for stdin in (b'{"text": "a"}\n{"text": "b"}\n', gzip.compress(b"a\n<|endoftext|>\nb")):
        done = run_python(code, stdin=stdin)
        assert done.stdout == expected, done.stderr


@pytest.mark.parametrize("name", ["x.txt", "x.jsonl", "x.json", "x.txt.gz"])
@pytest.mark.parametrize("content", [b"", b"\n \r\n\t\n", b"\xef\xbb\xbf"])
def test_empty_files_are_refused(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    for kind in KINDS:
        assert refused(path, kind).what == f"0 {TITLES[kind]} in {path}"
    assert "1  empty file" in refused(path, on_bad_line="skip").what
    path.write_text("[]")
    if name == "x.json":
        assert refused(path).what == f"0 documents in {path}"


def test_reading_is_lazy_and_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"text": "a"}\nbroken\n')
    reader = read_records([path], "documents")
    records = iter(reader)
    assert next(records).text == "a"
    assert not reader.report.complete
    assert reader.report.records == 1
    before = len(os.listdir("/dev/fd"))
    records.close()
    assert len(os.listdir("/dev/fd")) == before - 1


def test_read_rows_returns_rows_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"b": [2]}\n')
    assert list(read_rows(path)) == [{"a": 1}, {"b": [2]}]
    for content, what in (("", "0 rows"), ("{", "not JSON"), ('{"a": 1}\n7', "found a number")):
        path.write_text(content)
        with pytest.raises(UserError, match=what):
            list(read_rows(path))
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(UserError, match="expected JSON, found plain text"):
        list(read_rows(tmp_path / "x.txt"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["text", "messages", "role", "content", "from", "value", "conversations", "prompt", "completion", "chosen",
         "rejected", "instruction", "input", "output", "history", "instances", "question", "answer", "label", "margin",
         "system", "tools", "tool_calls", "type", "function"]
    ), inner | st.sampled_from(["user", "assistant", "gpt", "human", "system", "x"]), max_size=4),
    max_leaves=12,
)  # fmt: skip


text = st.sampled_from(["yes", "no", "", " ", "<|im_end|>", "\n\nHuman: q\n\nAssistant: a", "\x1b[2J"])
turns = st.lists(
    st.builds(lambda role, content: {"role": role, "content": content}, st.sampled_from(["user", *ROLES]), text)
    | st.builds(lambda role, content: {"from": role, "value": content}, st.sampled_from(["human", "gpt"]), text),
    max_size=5,
)
text_or_turns = text | turns


def columns(*names: str, of: st.SearchStrategy) -> st.SearchStrategy:
    return st.fixed_dictionaries({name: of for name in names}, optional={"system": text})


IRREGULAR_ROWS = {  # the right columns, with turns and answers in any order, empty or equal
    "conversations": columns("prompt", "completion", of=text_or_turns) | columns("messages", of=turns),
    "pairs": columns("prompt", "chosen", "rejected", of=text_or_turns)
    | columns("prompt", "chosen", "rejected", of=text)
    | st.builds(lambda both, a, b: {"chosen": both + a, "rejected": both + b}, turns, turns, turns),
    "prompts": columns("prompt", of=text_or_turns) | columns("conversations", of=turns),
}


def check(records: list, kind: str) -> None:
    for record in records:
        if kind == "documents":
            record.text.encode()
        elif kind == "pairs":
            for answer in (record.chosen, record.rejected):
                assert [m["role"] for m in answer] == ["assistant"]
                assert answer[0]["content"].strip()
            assert record.prompt[-1]["role"] != "assistant"
            assert trimmed(record.chosen[0]["content"]) != trimmed(record.rejected[0]["content"])
            validate_messages([*record.prompt, *record.chosen], "", require_assistant=True)
        else:
            assert (record.messages[-1]["role"] == "assistant") == (kind == "conversations")
            assert all(m["content"].strip() for m in record.messages if m["role"] != "tool")
            validate_messages(list(record.messages), "")


@pytest.mark.parametrize("kind", IRREGULAR_ROWS)
def test_irregular_rows_become_valid_records_or_are_counted(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    kept: list[int] = []

    @settings(max_examples=150, deadline=None, derandomize=True, database=None)
    @given(row=IRREGULAR_ROWS[kind])
    def one(row: dict) -> None:
        path = tmp_path_factory.getbasetemp() / "odd.jsonl"
        path.write_text(json.dumps(row))
        reader = read_records([path], kind, on_bad_line="skip")
        records: list = []
        with contextlib.suppress(UserError):  # if the row was dropped, no record is left
            records = list(reader)
        check(records, kind)
        assert len(records) + sum(tally.count for tally in reader.report.dropped.values()) == 1
        kept.append(len(records))

    one()
    assert 8 <= sum(kept) <= len(kept) - 8  # both outcomes occur


@settings(max_examples=250, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(
    rows=st.lists(json_values.map(json.dumps).map(str.encode) | st.binary(max_size=30), max_size=4),
    kind=st.sampled_from(KINDS),
    suffix=st.sampled_from([".jsonl", ".json", ".txt", ""]),
    joined=st.sampled_from([b"\n", b"\r\n", b",", b"\n,"]),
    around=st.sampled_from([(b"", b""), (b"[", b"]"), (b"\xef\xbb\xbf", b"\n"), (b"[", b"")]),
    mode=st.sampled_from(["error", "skip"]),
)
def test_any_input_gives_records_or_a_user_error(tmp_path_factory, rows, kind, suffix, joined, around, mode) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(around[0] + joined.join(rows) + around[1])
    reader = read_records([path], kind, on_bad_line=mode)
    records, error = [], None
    try:
        records = list(reader)
    except UserError as raised:
        error = raised
    if error:
        assert (error.code, bool(error.fix), "\x1b" in str(error)) == (2, True, False)
        return
    assert records
    assert reader.report.records == len(records)
    check(records, kind)


REAL = [  # (path, kind, options, records)
    ("pretrain/tinystories_train.jsonl.gz", "documents", {}, 2016),
    ("pretrain/tinyshakespeare.txt", "documents", {}, 498),
    ("pretrain/names.txt", "documents", {}, 32_033),
    ("pretrain/names.txt", "documents", {"format": "stretches"}, 114),
    ("pretrain/wikitext2_valid.txt.gz", "documents", {}, 313),
    ("pretrain/sotu_train.txt.gz", "documents", {}, 517),
    ("pretrain/zh_classics.txt.gz", "documents", {}, 43),
    ("pretrain/zh_tang9k.jsonl.gz", "documents", {}, 9000),
    ("pretrain/zh_songci_train.jsonl.gz", "documents", {}, 5400),
    ("sft/lf_alpaca_en_demo.json.gz", "conversations", {}, 799),
    ("sft/lf_alpaca_zh_demo.json.gz", "conversations", {}, 800),
    ("sft/lf_glaive_toolcall_en_demo.json.gz", "conversations", {}, 240),
    ("sft/lf_glaive_toolcall_zh_demo.json.gz", "conversations", {}, 240),
    ("sft/fastchat_dummy_multiturn.json", "conversations", {}, 500),
    ("sft/self_instruct_seed_tasks.jsonl", "conversations", {}, 175),
    ("sft/lf_identity.json.gz", "conversations", {}, 91),
    ("preference/lf_dpo_en_demo.json.gz", "pairs", {}, 240),
    ("preference/lf_dpo_zh_demo.json.gz", "pairs", {}, 240),
    ("preference/persona_*.jsonl.gz", "pairs", {}, 12_000),
    ("preference/lf_dpo_en_demo.json.gz", "prompts", {}, 240),
    ("rl/gsm8k_train.jsonl.gz", "prompts", {}, 7473),
    ("rl/gsm8k_train.jsonl.gz", "conversations", {}, 7473),
    ("rl/mawps_train.jsonl.gz", "prompts", {}, 1537),
    ("rl/rg_*.jsonl.gz", "prompts", {}, 1200),
    ("eval/mmlu_*.jsonl.gz", "prompts", {}, 1816),
    ("eval/blimp", "documents", {"field": {"text": "sentence_good"}}, 14_100),
    ("eval/bbh", "prompts", {"field": {"prompt": "input"}}, 4261),
]


@pytest.mark.parametrize(("path", "kind", "options", "count"), REAL)
def test_real_files_are_read_completely(shared: Path, path: str, kind: str, options: dict, count: int) -> None:
    reader = read_records([shared / "data" / path], kind, **options)
    records = list(reader)
    assert len(records) == reader.report.records == count
    assert not reader.report.dropped
    if kind == "conversations":
        for record in records:
            validate_messages(list(record.messages), path, require_assistant=True)


def test_contents_of_real_files(shared: Path) -> None:
    data = shared / "data"
    kept = texts(data / "pretrain" / "tinyshakespeare.txt")
    whole = (data / "pretrain" / "tinyshakespeare.txt").read_text()
    assert "".join(kept).replace("\n", "") == whole.replace("\n", "")  # only line ends between documents are lost
    first = next(iter(read_records([data / "rl" / "gsm8k_train.jsonl.gz"], "prompts")))
    assert first.columns["answer"] == "72"
    assert first.columns["solution"].endswith("#### 72")
    assert first.messages[0]["content"].startswith("Natalia sold clips")
    toolcall = next(iter(read_records([data / "sft" / "lf_glaive_toolcall_en_demo.json.gz"], "conversations")))
    assert [m["role"][0] for m in toolcall.messages] == list("suauataua")
    assert '"search_recipes"' in toolcall.messages[0]["content"]
    assert '"search_recipes"' in toolcall.messages[4]["content"]
    persona = next(iter(read_records([data / "preference" / "persona_interest-in-art.jsonl.gz"], "pairs")))
    assert (persona.chosen[0]["content"], persona.rejected[0]["content"]) == ("Yes", "No")
    error = refused(data / "preference" / "lf_kto_en_demo.json.gz", "conversations")
    assert error.what.startswith("expected conversations, found unpaired preferences")
    unpaired = list(read_records([data / "preference" / "lf_kto_en_demo.json.gz"], "unpaired"))
    assert len(unpaired) == 240
    assert {u.good for u in unpaired} == {True, False}
