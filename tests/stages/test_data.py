"""`tinyllm data prepare`: what it says, what it reads again and what not, sources by weight, and a kill in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import small

from tinyllm.data.shards import open_shards
from tinyllm.errors import RESOURCES, UserError
from tinyllm.stages import data, prepared, pretrain
from tinyllm.stages.call import Call
from tinyllm.stages.config import PretrainConfig
from tinyllm.train import lock

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
    """The source files that `ensure` reads."""
    code = (
        "import sys, json; from pathlib import Path; from tinyllm.stages import data\n"
        "from tinyllm.stages.config import PretrainConfig\n"
        "read = []\n"
        "sys.addaudithook(lambda e, a: read.append(str(a[0])) if e == 'open' and str(a[0]).endswith('.jsonl') else None)\n"
        "data.ensure(PretrainConfig.model_validate_json(sys.argv[1]))\n"
        "print(json.dumps(read))"
    )
    command = [sys.executable, "-c", code, found.model_dump_json()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return json.loads(done.stdout)


def test_files_that_were_not_touched_are_not_read_again(place: Path) -> None:
    asked = config("a.jsonl", "b.jsonl")
    data.ensure(asked)
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
    data.ensure(asked)
    assert (shards / "manifest.json").stat().st_mtime_ns != made
    # written a moment ago: a second change within the same tick of the clock would not show in its time
    assert opened(asked) == ["a.jsonl"]


@pytest.mark.parametrize(
    ("change", "anew"),
    [
        ({"dedup": "none"}, True),
        ({"dedup": "near"}, True),
        ({"val_fraction": 0.3}, True),
        ({"val": ("b.jsonl",)}, True),
        ({"weights": (3.0, 1.0)}, False),  # rows are drawn by weight, shards are not
        ({"max_length": 32}, False),
    ],
)
def test_what_shapes_shards_makes_them_anew(place: Path, change: dict, anew: bool) -> None:
    first = config("a.jsonl", "b.jsonl")
    data.ensure(first)
    folder = place / "runs" / "data" / "default"
    assert prepared.holds(folder, first)
    changed = config("a.jsonl", "b.jsonl", **change)
    assert prepared.holds(folder, changed) == (not anew)
    data.ensure(changed)
    assert prepared.holds(folder, changed)


def test_two_sources_are_another_thing_than_one_pattern(place: Path) -> None:
    data.ensure(config("a.jsonl", "b.jsonl"))
    folder = place / "runs" / "data" / "default"
    assert not prepared.holds(folder, config("?.jsonl"))  # the same files, but weights could not be told apart
    (place / "elsewhere").mkdir()
    for name in ("a.jsonl", "b.jsonl"):
        (place / name).rename(place / "elsewhere" / name)
    assert prepared.holds(folder, config("elsewhere/a.jsonl", "elsewhere/b.jsonl"))  # where they lie does not count


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"files": 3}', '{"files": [{"path": 1}]}'])
def test_a_damaged_record_makes_everything_anew(place: Path, damage: str) -> None:
    asked = config("a.jsonl")
    data.ensure(asked)
    record = place / "runs" / "data" / "default" / prepared.RECORD
    record.write_text(damage)
    data.ensure(asked)
    assert prepared.holds(record.parent, asked)


def test_what_was_removed_is_said_by_source(place: Path, capsys: pytest.CaptureFixture) -> None:
    found = data.prepare(config("a.jsonl", "b.jsonl"), Call(""))
    said = capsys.readouterr().err
    assert "removed: 10 exact duplicates (b.jsonl 10)" in said
    assert "a.jsonl: 120 documents, format text" in said
    assert "document lengths in tokens: 16+" in said
    assert found["removed"] == {"exact": 10, "near": 0}
    assert sum(found["documents"].values()) == 160
    assert set(found["sources"]) == {"a.jsonl", "b.jsonl"}
    assert found["moved"]["to"] > 1.5
    manifest = open_shards(place / "runs" / "data" / "default" / "shards").manifest
    assert [r.exact for r in manifest.removed] == [0, 10]
    assert sum(found["bytes"].values()) == sum(len(row["text"]) for row in rows(120, "A") + rows(40, "B"))
    near = data.prepare(config("a.jsonl", "b.jsonl", dedup="near"), Call(""))
    assert f"removed: 10 exact, {near['removed']['near']} near duplicates" in capsys.readouterr().err


def test_pretraining_takes_rows_by_weight(place: Path, capsys: pytest.CaptureFixture) -> None:
    asked = config("a.jsonl", "b.jsonl", weights=(1.0, 3.0))
    found = pretrain.run(asked, Call(""))
    facts = json.loads((Path(found["run"]) / "run.json").read_text())["data"][0]["mixture"]
    assert [(row["source"], round(row["share"], 2)) for row in facts] == [("a.jsonl", 0.25), ("b.jsonl", 0.75)]
    tokens = {s.source: s.tokens for s in data.ensure(asked)[1].manifest.train.sources}
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


def test_a_second_process_is_told_that_the_first_is_at_work(place: Path) -> None:
    code = "from pathlib import Path; from tinyllm.train import lock; lock.claim(Path('runs/data/default')); print(1, flush=True); input()"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "1\n"
        with pytest.raises(UserError, match=f"pid {other.pid}") as error:
            data.ensure(config("a.jsonl"))
        assert error.value.code == RESOURCES
        other.communicate("\n", timeout=20)
    data.ensure(config("a.jsonl"))
    assert lock.holder(Path("runs/data/default")) is None


@pytest.mark.skipif(sys.platform == "win32", reason="named pipes")
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_what_is_piped_in_is_read_every_time(place: Path, name: str) -> None:
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
from tinyllm.data import shards
shards.prepare.__kwdefaults__["part_bytes"] = 1000
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
def test_the_command_killed_midway_ends_like_one_that_was_not(place: Path) -> None:
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


def test_nothing_to_prepare_is_said_at_once_and_without_torch(place: Path) -> None:
    (place / "a.jsonl").write_text("")
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *command()[1:]], capture_output=True, text=True, timeout=60
    )
    assert time.monotonic() - began < 5  # 0.6 s on an idle machine
    lines = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert done.returncode == 2
    assert lines[-2:] == ["error: 0 documents in a.jsonl", "fix: put data in it or leave it out"]
    assert not [line for line in done.stderr.splitlines() if line.rpartition("|")[2].strip() == "torch"]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_memory_does_not_follow_the_text(place: Path) -> None:
    """Of ten times the text, the command takes no more than a little more memory, though it trains a tokenizer as well."""
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
