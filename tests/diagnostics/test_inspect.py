"""`tinyllm data inspect`: the same tokens as the stages, bounded memory, and no control characters from data on the terminal."""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.support import foreign_tokenizers, small
from tinyllm import cli
from tinyllm.cli.printing import inspect as printing
from tinyllm.cli.resolve import STAGES, resolve
from tinyllm.data import world
from tinyllm.data.loading import length_limit, preference_dataset, sft_dataset, token_prompts, unpaired_dataset
from tinyllm.data.record_source import BY_HASH, SPLITS
from tinyllm.data.records.reader import read_records
from tinyllm.data.records.types import Conversation, Document
from tinyllm.data.splits import read_split
from tinyllm.data.tokenization import LengthLimit
from tinyllm.data.tokens import shards
from tinyllm.diagnostics import inspect
from tinyllm.diagnostics.inspect import Survey, figures, rendered
from tinyllm.diagnostics.inspect import page as inspect_page
from tinyllm.diagnostics.inspect.tokenizer import Vocabulary
from tinyllm.errors import OK, UNREAD, USAGE
from tinyllm.model import hub, lora
from tinyllm.model.config import LoRAConfig
from tinyllm.stages.config import data_kind
from tinyllm.text.tokenizer import Tokenizer

Look = Callable[..., tuple[int, str, str]]
NASTY = "\x1b[31m\x1b]0;title\x07\x9b2J\u202e\u2066\x00\x7f\r\u200b"
RAW = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]")


@cache
def of_world() -> Tokenizer:
    """Return a tokenizer trained on the bundled world, so that its records fit."""
    return Tokenizer.train((row["text"] for row in world.documents(600)), 1000)


@pytest.fixture
def look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Look:
    """`look("rows.jsonl", "--json")` -> exit code, stdout, stderr, in a folder with a tokenizer `tok` and a checkpoint `parent`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    small.tokenizer().save("tok", model_max_length=96)

    def command(*arguments: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.run(["data", "inspect", *arguments])
        return code, *capfd.readouterr()

    return command


def found(look: Look, *arguments: str) -> dict[str, Any]:
    return json.loads(look(*arguments, "--json")[1])


def talks(count: int = 30, answer: str = "It is a number.") -> list[dict[str, Any]]:
    turns = [
        ({"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": answer}) for i in range(count)
    ]
    return [{"messages": list(pair)} for pair in turns]


def spelled(row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return (role, text) of a row, neighbors of one role joined."""
    parts: list[tuple[str, str]] = []
    for piece in row["pieces"]:
        if parts and parts[-1][0] == piece["role"]:
            parts[-1] = (piece["role"], parts[-1][1] + piece["text"])
        else:
            parts.append((piece["role"], piece["text"]))
    return parts


# --- the report ----------------------------------------------------------------------------------------------------------------


def test_kind_format_counts_and_places_are_reported(look: Look, tmp_path: Path) -> None:
    rows = [*talks(30), {"messages": []}, *talks(5), {"messages": [{"role": "user", "content": "a"}]}]
    report = found(look, str(small.written(tmp_path / "a.jsonl", rows)), "--tokenizer", "tok", "--max-length", "64")
    assert (report["kind"], report["verb"]) == ("conversations", "sft")
    assert report["sources"][0] | {"notes": []} == {
        "source": str(tmp_path / "a.jsonl"),
        "format": "messages",
        "rows": 37,
        "records": 35,
        "notes": [],
    }
    assert sum(report["records"].values()) == 35
    assert sum(tally["count"] for tally in report["dropped"].values()) == 2
    assert {place for tally in report["dropped"].values() for place in tally["places"]} == {
        f"{tmp_path / 'a.jsonl'}:{line}" for line in (31, 37)
    }
    assert report["repeated"]["train"] + report["repeated"]["val"] == 5  # five rows repeat the first five
    assert report["repeated"]["prompts_in_both"] == report["repeated"]["val_in_train"] == 0


@pytest.mark.parametrize(
    ("sets", "expected"), [(["data.dedup=exact"], 60), (["data.dedup=none"], 66), (["data.val=[held.jsonl]"], 62)]
)
def test_documents_are_counted_as_preparation_does(look: Look, sets: list[str], expected: int) -> None:
    texts = [f"Text {i} tells of a river.{' ' * (i % 2)}" for i in range(60)]
    small.written(Path("a.jsonl"), [{"text": text} for text in [*texts, *texts[:6]]])
    small.written(
        Path("held.jsonl"), [{"text": text} for text in [*texts[:3], "One more.", "One more.", "And another."]]
    )
    given = ["a.jsonl", *(part for one in ["data.val_fraction=0.2", *sets] for part in ("--set", one))]
    report = found(look, *given, "--kind", "documents")
    data = resolve(STAGES["pretrain"], None, ["data.train=[a.jsonl]", *given[2::2]], {}, {}, fast=False).config.data
    sources = {"train": data.train, "val": data.val}
    texts_of = {name: [r.text for r in read_records(list(of), "documents")] for name, of in sources.items() if of}
    made = shards.prepare(
        texts_of["train"],
        small.tokenizer(),
        Path("out"),
        val_fraction=data.val_fraction,
        val_documents=texts_of.get("val"),
        dedup=data.dedup,
    )
    share = 0.0 if data.val else 0.5
    parts = {split: len(shards.open_shards("out").documents(split, for_test=share)) for split in ("val", "test")}
    assert report["records"] == {"train": made.train.documents, "val": made.val.documents, "test": None if share else 0}
    assert found(look, *given, "--kind", "documents", "--tokenizer", "tok")["records"] == report["records"] | parts
    assert report["removed"]["exact"] == sum(one.exact for one in made.removed)
    assert made.train.documents + sum(parts.values()) == expected
    assert bool(parts["test"]) == bool(share)


def test_every_token_has_its_role(look: Look, tmp_path: Path) -> None:
    turns = [
        *talks(1)[0]["messages"],
        {"role": "user", "content": "And red?"},
        {"role": "assistant", "content": "A colour."},
    ]
    path = small.written(tmp_path / "a.jsonl", [{"messages": turns}, *talks(9)])
    (row,) = found(look, str(path), "--tokenizer", "tok", "--max-length", "96", "--records", "1")["examples"][0]["rows"]
    assert spelled(row) == [
        ("ignored", "<|im_start|>user\nWhat is 0?<|im_end|>\n<|im_start|>assistant\n"),
        ("trained", "It is a number."),
        ("stop", "<|im_end|>"),
        ("ignored", "\n<|im_start|>user\nAnd red?<|im_end|>\n<|im_start|>assistant\n"),
        ("trained", "A colour."),
        ("stop", "<|im_end|>"),
        ("ignored", "\n"),
    ]
    assert row["length"] == sum(len(piece["ids"]) for piece in row["pieces"])


def test_truncated_tokens_are_marked(look: Look, tmp_path: Path) -> None:
    rows = [*talks(9), {"prompt": "x", "completion": "y"}][:9]
    rows[5] = {"messages": [{"role": "user", "content": "zq" * 40}, {"role": "assistant", "content": "red"}]}
    report = found(look, str(small.written(tmp_path / "a.jsonl", rows)), "--tokenizer", "tok", "--max-length", "64")
    parts = spelled(report["examples"][-1]["rows"][0])
    assert [role for role, _ in parts] == ["ignored", "cut"]
    assert parts[1][1].endswith("<|im_start|>assistant\nred<|im_end|>\n")
    assert sum(len(p["ids"]) for p in report["examples"][-1]["rows"][0]["pieces"] if p["role"] != "cut") == 64
    assert {name: report["fit"][name] for name in ("longer", "dropped", "never_trained")} == {
        "longer": 1,
        "dropped": 1,
        "never_trained": 1,
    }
    pair = {"prompt": "What is red?", "chosen": "zq" * 60, "rejected": "blue"}
    report = found(
        look, str(small.written(tmp_path / "b.jsonl", [pair] * 2)), "--tokenizer", "tok", "--max-length", "64"
    )
    chosen, rejected = report["examples"][0]["rows"]
    assert [role for role, _ in spelled(chosen)] == ["ignored", "trained", "cut"]
    assert spelled(rejected)[-2:] == [("trained", "blue"), ("stop", "<|im_end|>")]


def test_the_tokens_of_one_character_are_one_piece() -> None:
    texts = small.tokenizer()
    record = Conversation(({"role": "user", "content": "日本"}, {"role": "assistant", "content": "é😀\x1b"}))
    (row,) = rendered.shown(record, texts, LengthLimit(96))
    assert [(p["text"], len(p["ids"])) for p in row["pieces"] if p["role"] == "trained"] == [
        ("é", 2),
        ("😀", 4),
        ("\x1b", 1),
    ]
    assert "".join(p["text"] for p in row["pieces"]) == texts.decode(
        [i for p in row["pieces"] for i in p["ids"]], skip_special=False
    )
    (cut,) = rendered.shown(Document("ab " * 5000), texts, LengthLimit(96))
    assert sum(len(p["ids"]) for p in cut["pieces"]) == 800
    assert [p["text"] for p in cut["pieces"] if p["role"] == "gap"] == [f"{cut['length'] - 800:,} tokens"]


STAGE_SEES = {
    "sft": ("conversations", sft_dataset),
    "rm": ("pairs", preference_dataset),
    "kto": ("unpaired", unpaired_dataset),
    "grpo": ("prompts", token_prompts),
}


@pytest.mark.parametrize("key", STAGE_SEES)
def test_counts_equal_those_of_the_training_stage(key: str) -> None:
    """With a stage's configuration: the same records in the same splits, and the same trained tokens."""
    kind, make = STAGE_SEES[key]
    sets = ["data.train=[world:150]", "data.max_length=40", "seed=3"] + ["wrong=0.5"] * (key == "sft")
    config = resolve(STAGES[key], None, sets, {}, {}, fast=False).config
    report = inspect.run(config, kind, STAGES[key].place, Vocabulary(of_world(), "tok", 96), shown=2)
    train, val, test, *_ = read_split(config.data, kind, 3, **inspect.world_options(config, kind))
    room = length_limit(config.data, 96, config.rollout.max_new_tokens if key == "grpo" else 0)
    made = [make(side, of_world(), room, what) for side, what in ((train, "train"), (val, "val"), (test, "test"))]
    assert report["records"] == {"train": len(train), "val": len(val), "test": len(test)}
    assert sum(report["records"].values()) - report["fit"]["dropped"] == sum(map(len, made))
    assert 0 < report["fit"]["longer"] < sum(report["records"].values())
    if key in ("sft", "rm"):  # in batches of one, so that nothing is padding
        learned = [int(m.collate([i], 0, [i]).mask.sum()) for m in made for i in range(len(m))]
        known = report["lengths"]["trained"]
        total = sum(report["records"].values())
        assert known["max"] == max(learned)
        assert round(known["mean"] * total) == pytest.approx(sum(learned), abs=total * 0.005)
    ids = [i for piece in report["examples"][0]["rows"][0]["pieces"] for i in piece["ids"]]
    first = list(made[0].rows[0][0]) if key == "sft" else made[0][0].ids if key == "grpo" else None
    assert first is None or ids[: len(first)] == first


@pytest.mark.parametrize("key", ["pretrain", "sft", "sft-lora", "rm", "dpo", "orpo", "kto", "ppo", "grpo"])
def test_the_bundled_world_has_no_findings(key: str) -> None:
    config = resolve(
        STAGES[key], None, ["data.train=[world:300]", "task=[]"][: 1 + (key in ("ppo", "grpo"))], {}, {}, fast=False
    ).config
    kind = data_kind(config)
    report = inspect.run(config, kind, key, Vocabulary(of_world(), "tok", 256), shown=1)
    assert [f for f in report["findings"] if f["rule"] != "small_data"] == []
    assert not report["refused"]


# --- on a terminal, in a pipe, on a page --------------------------------------------------------------------------------------------


def nasty(folder: Path) -> Path:
    """Write a file with control characters wherever the report shows data: text, names of files and columns, places."""
    turns = [{"role": "user", "content": f"a {NASTY}"}, {"role": "assistant", "content": f"<b>x</b>{NASTY}"}]
    rows = [{"messages": turns, f"c{NASTY}": 1}, *talks(8), {"messages": [], f"d{NASTY}": 1}]
    return small.written(folder / f"e\x1b[2J\u202e{'x'}.jsonl", rows)


@pytest.mark.parametrize(
    "more", [(), ("--tokenizer", "tok"), ("--json",), ("--max-length", "16", "--tokenizer", "tok")]
)
def test_control_characters_in_data_do_not_reach_the_terminal(
    look: Look, tmp_path: Path, more: tuple[str, ...]
) -> None:
    _, out, err = look(str(nasty(tmp_path)), *more)
    assert not RAW.search(out)
    assert not RAW.search(err)
    assert r"\x1b[31m" in out.replace("\\u001b", r"\x1b")


@pytest.mark.parametrize("more", [(), ("--tokenizer", "tok")])
def test_on_a_terminal_roles_are_colors_and_there_are_no_other_control_characters(
    tmp_path: Path, look: Look, more: tuple[str, ...]
) -> None:
    from rich.console import Console

    report = found(look, str(nasty(tmp_path)), *more)
    screen = io.StringIO()
    printing.show(
        report, Console(file=screen, force_terminal=True, color_system="standard", soft_wrap=True, _environ={})
    )
    plain = re.sub("\x1b\\[[0-9;]*m", "", screen.getvalue())
    assert "\x1b[32m" in screen.getvalue()  # trained tokens in green
    assert not RAW.search(plain)
    assert "[[" not in plain


def test_in_a_pipe_brackets_mark_trained_tokens(look: Look, tmp_path: Path) -> None:
    code, out, _ = look(
        str(small.written(tmp_path / "a.jsonl", talks(40))),
        "--tokenizer",
        "tok",
        "--set",
        "train.batch_size=8",
        "--set",
        "train.micro_batch_size=8",
    )
    assert code == OK
    assert "<|im_start|>assistant\n[[It is a number.]][[!<|im_end|>]]\n" in out
    assert "no problems found" in out
    assert max(map(len, out.splitlines())) < 140
    assert "\x1b" not in out


class Page(HTMLParser):
    """Parse a page as a browser would, and check that tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "line", "rect"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    ("column", "missing", "options"),
    [
        ("answer", "task", ["--set", "rewards={exact_answer: 1.0}"]),
        ("anwser", "answer", ["--set", "data.field.answer=anwser", "--set", "rewards={exact_answer: 1.0}"]),
        ("solution_text", "answer", []),
    ],
)
def test_prompts_that_the_default_reward_cannot_score_are_a_warning(
    look: Look, tmp_path: Path, column: str, missing: str, options: list[str]
) -> None:
    rows = [{"prompt": f"What is {i}+{i}?", column: str(2 * i)} for i in range(300)]
    path = str(small.written(tmp_path / "sums.jsonl", rows))
    arguments = (path, "--kind", "prompts", "--set", "data.val_fraction=0.2", "--set", "train.batch_size=8")
    code, out, _ = look(*arguments)
    assert code == OK
    assert f"warning: align-online with the default reward would stop: gold needs a column {missing!r}" in out
    assert ("did you mean" in out) == (column == "anwser")
    (fix,) = re.findall("  fix: (.*)", out)
    if options:
        assert shlex.split(fix) == options
        code, out, _ = look(*arguments, *options)
        assert (code, out.count("no problems found")) == (OK, 1)
        assert "rewards/exact_answer" in out


@pytest.mark.parametrize("kind", ["conversations", "pairs", "unpaired", "prompts", "documents"])
def test_the_page_is_self_contained(look: Look, kind: str) -> None:
    look("world:60", "--kind", kind, "--tokenizer", "tok", "--max-length", "64", "--html", "page.html")
    text = Path("page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == []
    assert (
        "content",
        "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'",
    ) in page.attributes
    assert not {"script", "link", "img", "iframe", "object", "form"} & set(page.tags)
    assert not [a for a in page.attributes if a[0] == "src" or a[0].startswith("on")]
    assert all(value.startswith("#") for name, value in page.attributes if name == "href")
    assert "url(" not in text
    assert "svg" in page.tags
    assert "prefers-color-scheme: dark" in text
    assert any(re.fullmatch(r"id [\d ]+, (not )?trained", value) for name, value in page.attributes if name == "title")


def test_text_from_data_is_escaped_on_the_page(look: Look, tmp_path: Path) -> None:
    look(str(nasty(tmp_path)), "--tokenizer", "tok", "--html", "page.html")
    text = Path("page.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not RAW.search(text)
    assert "b" not in [tag for tag in page.tags if tag == "b" and "x" in page.open]
    assert "<b>x</b>" in page.text
    assert "<b>x</b>" not in text
    assert '<i class="odd">\\u202e</i>' in text
    assert '<i class="nl">↵</i>\n' in text


def test_a_path_that_cannot_be_written_is_reported(look: Look) -> None:
    code, out, err = look("world:9", "--kind", "pairs", "--html", "nowhere/page.html")
    assert (code, out) == (USAGE, "")
    assert "no such folder: nowhere" in err
    Path("folder").mkdir()
    code, _, err = look("world:9", "--kind", "pairs", "--html", "folder")
    assert code == 4
    assert err.startswith("error: the page cannot be written")


# --- sizes -----------------------------------------------------------------------------------------------------------------------


def test_the_sample_is_uniform_bounded_and_independent_of_order() -> None:
    found = [Document(f"text {i} " * (1 + i % 7)) for i in range(3000)]
    picked = []
    for order in (found, found[::-1]):
        one = Survey(max_records=200)
        for record in order:
            one.add(BY_HASH, record)
        one.settle(0.05, 0.5)
        picked.append({r.text for split in SPLITS for r in one.records(split)})
    assert len(picked[0]) == 200
    assert picked[0] == picked[1]
    sevenths = [sum(int(text.split()[1]) % 7 == i for text in picked[0]) for i in range(7)]
    assert max(sevenths) < 60
    large = Survey(max_records=200, max_characters=1000)
    for record in found:
        large.add(BY_HASH, record)
        assert large.characters <= 1000
    assert len(large.sample) > 10


def test_a_sample_is_reported_and_counts_are_of_all_records(
    look: Look, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect, "SAMPLE", 50)
    path = small.written(tmp_path / "a.jsonl", talks(400, "red, blue, " * 9))
    code, out, _ = look(str(path), "--tokenizer", "tok", "--max-length", "48")
    assert code == USAGE  # every answer is truncated
    assert "lengths measured on a sample of 50 of 400 records" in out
    assert "(of 50 sampled records)" in out
    report = found(look, str(path), "--tokenizer", "tok")
    assert report["sample"] == {"records": 50, "of": 400}
    assert sum(report["records"].values()) == 400
    assert sum(b["records"] for b in report["lengths"]["histogram"]) == 50


@pytest.mark.parametrize(
    "values", [[0], [7, 7, 7], [1, 2, 3, 1000], list(range(100)), [10**9, 1], [5] * 1000 + [10**6]]
)
def test_every_record_is_in_one_bin_of_the_histogram(values: list[int]) -> None:
    bins = figures.histogram(values)
    assert sum(b["records"] for b in bins) == len(values)
    assert len(bins) <= figures.BINS + 1
    for b in bins:
        inside = [v for v in values if b["from"] <= v and (b["to"] is None or v <= b["to"])]
        assert len(inside) == b["records"]
    assert figures.histogram([]) == []


def test_quantiles_are_lengths_of_records() -> None:
    found = figures.quantiles_of(range(1, 101))
    assert found == {"min": 1, "p10": 10, "p50": 50, "p90": 90, "p99": 99, "max": 100, "mean": 50.5}


# --- sources, tokenizers, stages ------------------------------------------------------------------------------------------------------


def test_a_bad_row_is_a_finding_and_other_rows_are_read(look: Look, tmp_path: Path) -> None:
    path = small.written(tmp_path / "a.jsonl", talks(5))
    path.write_text(path.read_text() + "not json\n" + path.read_text().replace("What", "Who"))
    code, out, _ = look(str(path))
    assert code == USAGE
    assert "tinyllm sft would stop: not JSON" in out
    assert f"{path}:6" in out
    assert "data.on_bad_line=skip" in out
    assert "10 of 11 rows" in out
    code, out, _ = look(str(path), "--set", "data.on_bad_line=skip")
    assert code == OK
    assert "dropped 1: not JSON" in out


def test_without_a_tokenizer_characters_are_counted_and_the_option_is_named(look: Look, tmp_path: Path) -> None:
    code, out, _ = look(str(small.written(tmp_path / "a.jsonl", talks(40))))
    assert code == OK
    assert "no tokenizer: lengths in characters and words only" in out
    assert "--tokenizer DIR" in out
    assert "[[It is a number.]]" in out
    report = found(look, str(tmp_path / "a.jsonl"))
    assert report["tokenizer"] is report["fit"] is None
    assert report["lengths"]["unit"] == "characters"
    assert report["lengths"]["words"]["max"] == 7


@pytest.mark.parametrize("kind", ["conversations", "documents"])
def test_a_record_that_the_vocabulary_cannot_spell_is_treated_as_in_training(
    kind: str, look: Look, tmp_path: Path
) -> None:
    folder = foreign_tokenizers.write("smollm2", tmp_path / "tok")  # no token for U+0006
    rows = talks(6) if kind == "conversations" else [{"text": f"a word {i}"} for i in range(60)]
    if kind == "conversations":
        rows[2]["messages"][1]["content"] = "wo\x06rd"
    else:
        rows[2]["text"] = "wo\x06rd"
    path = str(small.written(tmp_path / "a.jsonl", rows))
    code, out, err = look(path, "--tokenizer", str(folder))
    assert code == USAGE
    assert "no token for" in out + err
    assert "data.on_bad_line=skip" in out + err
    code, out, err = look(path, "--tokenizer", str(folder), "--set", "data.on_bad_line=skip")
    assert code == OK, out + err
    assert "dropped 1: characters that the vocabulary cannot spell (" in out


def test_tokenizer_and_context_come_from_the_newest_pretrained_run(look: Look, tmp_path: Path) -> None:
    small.saved(small.rough(), tmp_path / "given")
    shape = "{vocab_size: 300, hidden_size: 16, num_hidden_layers: 1, max_position_embeddings: 96}"
    rows = [{"text": f"What is {i}? It is a number. " * 5} for i in range(20)]
    settings = [f"data.train=[{small.written(tmp_path / 't.jsonl', rows)}]", f"model={shape}", "data.max_length=32"]
    more = [
        "train.steps=1",
        "train.compile=off",
        "train.precision=fp32",
        "train.batch_size=4",
        "train.micro_batch_size=4",
    ]
    assert cli.run(["pretrain", *(part for s in [*settings, *more] for part in ("--set", s))]) == OK
    path = str(small.written(tmp_path / "a.jsonl", talks(40)))
    report = found(look, path, "--max-length", "64")
    assert report["tokenizer"]["folder"].startswith("runs/pretrain/")
    assert report["tokenizer"]["context"] == 96
    assert found(look, path, "--checkpoint", "given")["tokenizer"]["folder"] == "given"
    assert found(look, path)["findings"][0]["rule"] == "context"  # 256 by default
    assert look(path, "--checkpoint", "given", "--tokenizer", "tok")[0] == USAGE


@pytest.mark.parametrize(
    ("arguments", "kind", "verb"),
    [
        (("--config", "configs/sft/full/1.4M_sft_full.yaml"), "conversations", "sft"),
        (("--config", "configs/rlhf/rm/1.4M_rm.yaml"), "pairs", "rm"),
        (("--config", "configs/rlhf/offline/kto/1.4M_kto.yaml"), "unpaired", "align-offline"),
        (("--config", "configs/rlhf/online/dapo/1.4M_dapo.yaml"), "prompts", "align-online"),
        (("--config", "configs/pretrain/1.4M_pretrain_fast.yaml"), "documents", "pretrain"),
        (("--config", "my_orpo.yaml"), "pairs", "align-offline"),
        (("--config", "mine.yaml", "--kind", "conversations"), "conversations", "sft"),
        (("--kind", "pairs"), "pairs", "align-offline"),
        (("--kind", "judgements"), "unpaired", "align-offline"),  # the name until 0.1
    ],
)
def test_the_stage_follows_from_the_configuration_or_the_kind(
    look: Look, arguments: tuple, kind: str, verb: str
) -> None:
    for name in ("my_orpo.yaml", "mine.yaml"):
        Path(name).write_text("seed: 3\n")
    report = found(look, *arguments, "--set", "data.train=[world:20]", "--records", "1")
    assert (report["kind"], report["verb"]) == (kind, verb)
    assert report["records"]["train"] == 20 * (1 + (kind == "unpaired"))


def test_fields_and_encoding_count_while_the_kind_is_found(look: Look) -> None:
    Path("gb.csv").write_bytes("frage;antwort;id\n你好世界;很高兴;1\n早上好;你好;2\n".encode("gb18030"))
    code, _, err = look("gb.csv")
    assert (code, err.splitlines()[1]) == (
        USAGE,
        "fix: name its encoding, perhaps --set data.encoding=gb18030, or skip bad rows: --set data.on_bad_line=skip",
    )
    code, _, err = look("gb.csv", "--set", "data.encoding=gb18030")
    assert (code, err.splitlines()[1]) == (
        USAGE,
        "fix: name the columns: --field prompt=frage --field completion=antwort",
    )
    options = ("--set", "data.encoding=GBK", "--field", "prompt=frage", "--field", "completion=antwort")
    report = found(look, "gb.csv", *options)
    assert (report["kind"], sum(report["records"].values())) == ("conversations", 2)
    Path("odd.csv").write_text("Meine Frage,no: 1\na,b\nc,d\n")
    code, _, err = look("odd.csv")
    assert "--field 'prompt=Meine Frage' --field 'completion=no: 1'" in err
    report = found(look, "odd.csv", "--field", "prompt=Meine Frage", "--field", "completion=no: 1")
    assert report["kind"] == "conversations"
    code, _, err = look("odd.csv", "--kind", "conversations")
    pasted = shlex.split(err.partition("fix: name the columns: ")[2])
    assert found(look, "odd.csv", *pasted)["kind"] == "conversations"


def test_a_cut_inside_a_character_garbles_that_character_only() -> None:
    texts = small.tokenizer()
    text = "ab龘靐齉龗爨🐈xé"
    ids = texts.encode(text)
    garbled = set()
    for cut in range(1, len(ids)):
        shown = rendered.pieces(texts, ids, ["trained"] * cut + ["cut"] * (len(ids) - cut))
        assert [i for piece in shown for i in piece.ids] == ids
        whole = "".join(piece.text for piece in shown).replace("\ufffd", "")
        garbled.add(len(text) - len(whole))
    assert garbled == {0, 1}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ((), "no data to inspect"),
        (("world:10",), "--kind"),
        (("-",), "--kind"),
        (("a.jsonl", "--kind", "talks"), "unknown kind of data"),
        (("a.jsonl", "--kind", "pairs"), "expected pairs, found conversations"),
        (("--config", "configs/rlhf/rm/1.4M_rm.yaml", "--kind", "prompts"), "reads pairs"),
        (("--config", "mine.yaml"), "the stage cannot be determined"),
        (("q.jsonl",), "--field prompt=q --field completion=a"),
        (("t.jsonl",), "--field prompt=q --field completion=a\n"),
        (("three.jsonl",), "as in --field prompt=COLUMN --field completion=COLUMN\n"),
        (("a.jsonl", "--tokenizer", "nowhere"), "nowhere"),
        (("a.jsonl", "--checkpoint", "nowhere"), "no run or checkpoint 'nowhere'"),
        (("nothing.jsonl",), "no such file"),
    ],
)
def test_wrong_options_are_refused(look: Look, arguments: tuple[str, ...], word: str) -> None:
    small.written(Path("a.jsonl"), talks(3))
    small.written(Path("q.jsonl"), [{"q": "a", "a": "b"}])
    small.written(Path("three.jsonl"), [{"q": "a", "a": "b", "c": "d"}])
    small.written(Path("t.jsonl"), [{"ticket_id": "7", "q": "a", "a": "b"}])
    Path("mine.yaml").write_text("seed: 3\n")
    code, out, err = look(*arguments)
    assert (code, out) == (USAGE, "")
    assert err.startswith("error: ")
    assert word in err
    assert "fix: " in err


def test_questions_with_short_answers_can_be_seen_as_conversations(look: Look) -> None:
    Path("q.csv").write_text("question,answer\nWhat is 1?,one\nWhat is 2?,two\nWhat is 3?,three\n")
    code, out, err = look("q.csv", "--tokenizer", "tok")
    assert code == OK, err
    assert "as `tinyllm align-online` reads them" in out
    assert "add --kind conversations" in err
    code, out, err = look("q.csv", "--tokenizer", "tok", "--kind", "conversations")
    assert (code, "as `tinyllm sft` reads them" in out, "--kind" in err) == (OK, True, False)


def test_columns_can_be_renamed_and_standard_input_is_read_without_torch(look: Look, tmp_path: Path) -> None:
    text = "".join(json.dumps({"q": f"What is {i}?", "a": "red"}) + "\n" for i in range(20))
    arguments = [
        "data",
        "inspect",
        "-",
        "--kind",
        "conversations",
        "--field",
        "prompt=q",
        "--field",
        "completion=a",
        "--json",
    ]
    code = f"import sys\nfrom tinyllm.cli import run\ncode = run({[*arguments, '--tokenizer', 'tok']!r})\n"
    code += "assert 'torch' not in sys.modules\nsys.exit(code)"
    done = subprocess.run(
        [sys.executable, "-c", code], input=text, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == OK, done.stderr
    report = json.loads(done.stdout)
    assert report["sources"][0]["format"] == "prompt-completion"
    assert sum(report["records"].values()) == 20


def test_the_page_has_the_findings_and_counts_of_the_report(look: Look, tmp_path: Path) -> None:
    path = small.written(tmp_path / "a.jsonl", talks(40, "red, blue, " * 9))
    report = found(look, str(path), "--tokenizer", "tok", "--max-length", "48")
    text = inspect_page.page(report)
    page = Page()
    page.feed(text)
    assert "tinyllm sft would stop" in page.text
    for finding in report["findings"]:
        assert finding["what"] in page.text
    assert f"{report['records']['train']:,}" in page.text


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_closed_pipe_ends_the_command_without_an_error(look: Look, tmp_path: Path, more: tuple[str, ...]) -> None:
    path = small.written(tmp_path / "a.jsonl", talks(400))
    command = [sys.executable, "-m", "tinyllm", "data", "inspect", str(path), "--records", "400", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout.read(5)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == UNREAD


def test_data_are_shown_with_the_length_that_fits_the_checkpoint(look: Look, tmp_path: Path) -> None:
    model, folder = small.rough(), tmp_path / "elsewhere"  # 96 positions, which is less than the shipped length
    folder.mkdir()
    words = small.tokenizer()
    hub.save(model, folder, bos=None, stop=words.stop_ids, pad=words.pad)
    words.save(folder, model_max_length=96)
    small.written(tmp_path / "rows.jsonl", talks())
    assert STAGES["sft"].config().data.max_length > 96
    assert found(look, "rows.jsonl", "--checkpoint", str(folder))["fit"]["max_length"] == 96
    small.written(tmp_path / "texts.jsonl", [{"text": f"What is {i}? It is a number. " * 5} for i in range(20)])
    assert STAGES["pretrain"].config().data.max_length > 96
    report = found(
        look, "texts.jsonl", "--checkpoint", str(folder)
    )  # pretraining that continues it fits the length, too
    assert (report["fit"]["max_length"], report["refused"]) == (96, False)
    lora.attach(model, LoRAConfig(r=2), seed=0)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    lora.save(model, LoRAConfig(r=2), adapter, "some/where")  # without a tokenizer, as PEFT writes it
    code, _, err = look("rows.jsonl", "--checkpoint", str(adapter))
    assert (code == OK, "--base" in err) == (False, True)
    there = found(look, "rows.jsonl", "--checkpoint", str(adapter), "--base", str(folder))
    assert (there["fit"]["max_length"], there["tokenizer"]["context"]) == (96, 96)


def test_a_system_prompt_is_shown_and_counted(look: Look, tmp_path: Path) -> None:
    small.written(tmp_path / "rows.jsonl", talks())
    given = ("rows.jsonl", "--tokenizer", "tok", "--max-length", "90")
    plain, told = found(look, *given), found(look, *given, "--set", "chat.system=Be brief.")
    assert told["lengths"]["tokens"]["mean"] > plain["lengths"]["tokens"]["mean"] + 5
    assert "Be brief." in "".join(piece["text"] for piece in told["examples"][0]["rows"][0]["pieces"])
    assert told["split"] == plain["split"]  # which split a record is in does not change
