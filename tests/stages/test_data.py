"""`tinyllm data prepare`: its report, which files it reads again, mixing by weight, and a kill midway."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import small
from tinyllm.data.tokens.shards import open_shards
from tinyllm.errors import RESOURCES, UserError
from tinyllm.stages import data, prepared, pretrain
from tinyllm.stages.config import PretrainConfig
from tinyllm.stages.documents import Documents
from tinyllm.train import lock
from tinyllm.train.run import Invocation

WORDS = ["red", "blue", "green", "seven", "eleven", "colour", "number", "town", "river", "night"]
LONG_AGO = 1_000_000_000


def rows(count: int, what: str) -> list[dict[str, str]]:
    return [{"text": f"{what} {i} is {' '.join(WORDS[(i + k) % 10] for k in range(12))}."} for i in range(count)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with two sources that were written long ago and have some documents in common."""
    monkeypatch.chdir(tmp_path)
    small.written(tmp_path / "a.jsonl", rows(120, "A"))
    small.written(tmp_path / "b.jsonl", rows(40, "B") + rows(10, "A"))
    for name in ("a.jsonl", "b.jsonl"):
        os.utime(tmp_path / name, (LONG_AGO, LONG_AGO))
    return tmp_path


def config(*sources: str, **settings: object) -> PretrainConfig:
    own = {"train": sources, "max_length": 16, "val_fraction": 0.2, **settings}
    shape = small.SHAPE.model_copy(update={"vocab_size": 300})
    return PretrainConfig(**{**small.common(Path("unused"), steps=6), "model": shape, "data": own})


def opened(found: PretrainConfig) -> list[str]:
    """The source files that `ensure_prepared` reads."""
    code = (
        "import sys, json; from pathlib import Path; from tinyllm.stages import data\n"
        "from tinyllm.stages.config import PretrainConfig\n"
        "read = []\n"
        "sys.addaudithook(lambda e, a: read.append(str(a[0])) if e == 'open' and str(a[0]).endswith('.jsonl') else None)\n"
        "data.ensure_prepared(PretrainConfig.model_validate_json(sys.argv[1]))\n"
        "print(json.dumps(read))"
    )
    command = [sys.executable, "-c", code, found.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_unchanged_files_are_not_read_again(place: Path) -> None:
    asked = config("a.jsonl", "b.jsonl")
    data.ensure_prepared(asked)
    shards = place / "runs" / "data" / "default" / "shards"
    made = (shards / "manifest.json").stat().st_mtime_ns
    before = data.fingerprint(asked)
    assert opened(asked) == []
    os.utime(place / "a.jsonl", (LONG_AGO + 5, LONG_AGO + 5))  # touched: read once, found to be the same, remembered
    assert opened(asked) == ["a.jsonl"]
    assert opened(asked) == []
    assert data.fingerprint(asked) == before
    assert (shards / "manifest.json").stat().st_mtime_ns == made
    text = (place / "a.jsonl").read_text()
    (place / "a.jsonl").write_text(text.replace("A 7 is", "A 7 Is"))  # of the same size
    assert data.fingerprint(asked) != before
    data.ensure_prepared(asked)
    assert (shards / "manifest.json").stat().st_mtime_ns != made
    # written a moment ago: a second change within the same tick of the clock would not show in its time
    assert opened(asked) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"dedup": "none"}, True),
        ({"dedup": "near"}, True),
        ({"val_fraction": 0.3}, True),
        ({"val": ("b.jsonl",)}, True),
        ({"weights": (3.0, 1.0)}, False),  # rows are drawn by weight, shards are not
        ({"max_length": 32}, False),
    ],
)
def test_settings_that_shape_shards_make_them_again(place: Path, change: dict, again: bool) -> None:
    first = config("a.jsonl", "b.jsonl")
    data.ensure_prepared(first)
    folder = place / "runs" / "data" / "default"
    assert prepared.is_current(folder, first)
    changed = config("a.jsonl", "b.jsonl", **change)
    assert prepared.is_current(folder, changed) == (not again)
    data.ensure_prepared(changed)
    assert prepared.is_current(folder, changed)


def test_two_sources_differ_from_one_pattern_with_the_same_files(place: Path) -> None:
    data.ensure_prepared(config("a.jsonl", "b.jsonl"))
    folder = place / "runs" / "data" / "default"
    assert not prepared.is_current(
        folder, config("?.jsonl")
    )  # the same files, but weights could not be assigned to them
    (place / "elsewhere").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (place / name).rename(place / "elsewhere" / name)
    assert prepared.is_current(
        folder, config("elsewhere/a.jsonl", "elsewhere/b.jsonl")
    )  # where they lie does not count


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"files": 3}', '{"files": [{"path": 1}]}'])
def test_a_damaged_record_makes_the_shards_again(place: Path, damage: str) -> None:
    asked = config("a.jsonl")
    data.ensure_prepared(asked)
    record = place / "runs" / "data" / "default" / prepared.RECORD
    record.write_text(damage)
    data.ensure_prepared(asked)
    assert prepared.is_current(record.parent, asked)


def test_removed_duplicates_are_reported_by_source(place: Path, capsys: pytest.CaptureFixture) -> None:
    found = data.prepare(config("a.jsonl", "b.jsonl"), Invocation(""))
    output = capsys.readouterr().err
    assert "removed: 10 exact duplicates (b.jsonl 10)" in output
    assert "a.jsonl: 120 documents, format text" in output
    assert "document lengths in tokens: 16+" in output
    assert found["removed"] == {"exact": 10, "near": 0}
    assert sum(found["documents"].values()) == 160
    assert set(found["sources"]) == {"a.jsonl", "b.jsonl"}
    assert found["moved"]["to"] > 1.5
    manifest = open_shards(place / "runs" / "data" / "default" / "shards").manifest
    assert [r.exact for r in manifest.removed] == [0, 10]
    assert sum(found["bytes"].values()) == sum(len(row["text"]) for row in rows(120, "A") + rows(40, "B"))
    near = data.prepare(config("a.jsonl", "b.jsonl", dedup="near"), Invocation(""))
    assert f"removed: 10 exact, {near['removed']['near']} near duplicates" in capsys.readouterr().err


def test_many_sources_are_reported_together(place: Path, capsys: pytest.CaptureFixture) -> None:
    names = [f"{number:02}.jsonl" for number in range(14)]
    for name in names:
        small.written(place / name, rows(5, name))
    (place / names[9]).write_text('{"text": ""}\n' + (place / names[9]).read_text())
    data.ensure_prepared(config(*names))
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if re.match(r"\d\d.jsonl", line)] == [
        f"{name}: 5 documents, format text" for name in names[:3]
    ]
    assert lines.count("11 more files: 55 documents, format text") == 1
    assert [line for line in lines if line.startswith("dropped 1: ") and "09.jsonl:1" in line]
    (shares,) = [line.split(", ") for line in lines if line.startswith("shares: ")]
    assert (len(shares), shares[-1].partition("files ")[0]) == (4, "11 more ")
    assert sum(float(share.split()[-1].rstrip("%")) for share in shares) == pytest.approx(100, abs=0.3)


def test_pretraining_mixes_sources_by_weight(place: Path, capsys: pytest.CaptureFixture) -> None:
    asked = config("a.jsonl", "b.jsonl", weights=(1.0, 3.0))
    found = pretrain.run(asked, Invocation(""))
    facts = json.loads((Path(found["run"]) / "run.json").read_text())["data"][0]["mixture"]
    assert [(row["source"], round(row["share"], 2)) for row in facts] == [("a.jsonl", 0.25), ("b.jsonl", 0.75)]
    tokens = {s.source: s.tokens for s in data.ensure_prepared(asked)[1].manifest.train.sources}
    for row, share in zip(facts, (0.25, 0.75), strict=True):
        assert row["tokens"] == tokens[row["source"]]
        # 6 steps of 8 rows of 16 tokens; the last row of a source may be cut off, the windows' offset takes another
        assert row["epochs"] == pytest.approx(6 * 8 * 16 * share / tokens[row["source"]], rel=0.06)
    assert "b.jsonl: 75." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"train": ("a", "b"), "weights": (1.0,)}, "1 weights for 2 entries of train"),
        ({"train": ("a", "b"), "weights": (1.0, 0.0)}, "must all be more than 0"),
        ({"train": ("a", "b", "a")}, "train names 'a' twice"),
        ({"train": ("a",), "val": ("b", "b")}, "val names 'b' twice"),
        ({"train": ("a",), "dedup": "exactly"}, "dedup"),
    ],
)
def test_sources_and_weights_must_fit(settings: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        PretrainConfig(data=settings)


def test_a_second_process_is_refused_while_the_first_prepares(place: Path) -> None:
    code = "from pathlib import Path; from tinyllm.train import lock; lock.acquire(Path('runs/data/default'))"
    code += "; print(1, flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(UserError, match=f"pid {other.pid}") as error:
            data.ensure_prepared(config("a.jsonl"))
        assert error.value.code == RESOURCES
        other.communicate("\n", timeout=20)
    data.ensure_prepared(config("a.jsonl"))
    assert lock.owner(Path("runs/data/default")) is None


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_piped_text_is_read_every_time(place: Path, name: str) -> None:
    (place / "tokenizer").mkdir()
    small.tokenizer().save(place / "tokenizer", model_max_length=96)
    settings = (
        f"data.train=[{name}, a.jsonl]",
        "tokenizer=tokenizer",
        "model.max_position_embeddings=256",
        "data.val_fraction=0.2",
    )
    options = [part for one in settings for part in ("--set", one)]
    for text, documents in ((rows(5, "one"), 125), (rows(9, "another"), 129), (rows(9, "another"), 129)):
        given = "".join(json.dumps(row) + "\n" for row in text)
        command = [sys.executable, "-m", "tinyllm", "data", "prepare", "--json", *options]
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        assert sum(json.loads(done.stdout)["documents"].values()) == documents


def command(*more: str) -> list[str]:
    settings = ("data.train=[a.jsonl, b.jsonl]", "model.vocab_size=300", "model.max_position_embeddings=256", *more)
    return [sys.executable, "-m", "tinyllm", "data", "prepare", *(part for one in settings for part in ("--set", one))]


KILLED = """
import os, signal, sys
from tinyllm.data.tokens import shards
shards.prepare.__kwdefaults__["chunk_bytes"] = 1000
renames = []
def hook(event, args):
    if event == "os.rename" and "parts" in str(args[0]):
        renames.append(args)
        if len(renames) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(hook)
from tinyllm.cli import main
sys.argv = ["tinyllm", *sys.argv[1:]]
main()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_a_killed_command_resumes_to_the_same_shards(place: Path) -> None:
    options = command()[3:]
    killed = subprocess.run([sys.executable, "-c", KILLED, *options], capture_output=True, text=True, timeout=60)
    assert killed.returncode == -9, killed.stderr
    run = place / "runs" / "data" / "1.4M_pretrain_fast"
    assert sorted(p.name for p in run.iterdir() if not p.name.startswith(".")) == ["lock", "tokenizer"]
    finished = [part.name for part in (run / ".shards.work" / "parts").iterdir() if "." not in part.name]
    assert len(finished) in (3, 4)  # the other thread may have been about to rename the fourth
    assert subprocess.run(command(), capture_output=True, timeout=60).returncode == 0
    assert subprocess.run(command("name=clean"), capture_output=True, timeout=60).returncode == 0
    for name in ("shards/train.bin", "shards/val.bin", "shards/manifest.json", "tokenizer/tokenizer.json"):
        assert (run / name).read_bytes() == (run.parent / "clean" / name).read_bytes(), name
    assert not (run / ".shards.work").exists()


def test_missing_sources_are_reported_without_torch(place: Path) -> None:
    (place / "a.jsonl").write_text("")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command()[1:]], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < 20  # 0.6 s on an idle machine
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert lines[-2:] == ["error: 0 documents in a.jsonl", "fix: add data to the file, or remove it from the command"]
    assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_grow_with_the_text(place: Path) -> None:
    """With ten times the text the command needs little more memory, even though it trains a tokenizer."""
    peaks = []
    for size in (400, 4000):
        small.written(
            place / "a.jsonl", [{"text": f"{i} " + row["text"] * 20} for i, row in enumerate(rows(size, "A"))]
        )
        code = "import sys; from tinyllm.cli import run\nrun(sys.argv[1:])\nprint([l for l in open('/proc/self/status') if 'HWM' in l][0])"
        options = [*command()[3:], "--set", f"name=n{size}"]
        done = subprocess.run(
            [sys.executable, "-c", code, *options], capture_output=True, text=True, timeout=100, check=True
        )
        peaks.append(int(done.stdout.split("VmHWM:")[1].split()[0]))
    assert (place / "a.jsonl").stat().st_size > 6_000_000
    assert peaks[1] < 1.25 * peaks[0]
    assert peaks[1] < 130_000  # kB


@pytest.mark.parametrize("count", [2, 3, 40, 900])
def test_the_tokenizer_learns_from_training_documents_only(tmp_path: Path, count: int) -> None:
    """The sample of its trainer is what train.bin holds: no document that selects or examines."""
    rows = [{"text": f"document {i} tells of {i * 7919 % 1000} {'rivers' if i % 2 else 'hills'}"} for i in range(count)]
    made = config(str(small.written(tmp_path / "a.jsonl", rows)), val_fraction=0.2)
    tokenizer, opened = data.ensure_prepared(made)
    documents = Documents(made, "train")
    sampled = list(documents.sample(10**6, documents.trained_on(documents)))
    assert sampled == [tokenizer.decode(one[:-1].tolist()) for one in opened.documents("train")]
    assert 0 < len(sampled) < count
    given = made.model_copy(update={"data": made.data.model_copy(update={"val": (made.data.train[0],)})})
    documents = Documents(given, "train")
    assert len(list(documents.trained_on(documents))) == count  # data.val is of its own
