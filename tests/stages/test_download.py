"""Downloads from a hub on 127.0.0.1: whole commands, resumption, verification and refusals."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fake_hub import COMMIT, FILES, NOTES, REPOSITORY, STORY, Ran
from tinyllm import cli
from tinyllm.data.hub import answers, api
from tinyllm.data.hub import download as fetching
from tinyllm.data.hub.catalog import CATALOG, KnownDataset

pytest.importorskip("httpx2", reason="the extra hub is not installed")
pytest.importorskip("huggingface_hub", minversion="2")

WAITS = fetching._RETRY_DELAYS


def in_a_process(*arguments: str, cwd: Path, **environment: str) -> Ran:
    """The same as a command of its own."""
    env = {**os.environ, "HF_HOME": str(cwd / "hf"), "NO_PROXY": "127.0.0.1", **environment}
    began = time.monotonic()
    command = [sys.executable, "-m", "tinyllm", "data", "download", *arguments]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


PLACE = "runs/data/downloads/some-one--tales.v1"


def test_a_download_records_its_files(serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve()
    ran = in_a_process(REPOSITORY, "--json", cwd=tmp_path, HF_ENDPOINT=fake.address)
    found = ran.result
    folder = tmp_path / PLACE
    assert f"using the network: {fake.address}, data set {REPOSITORY} at main" in ran.err
    assert f"unpinned: main is {COMMIT} today" in ran.err
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "data/train.jsonl",
        "notes.txt",
        ".source.json",
    }
    assert (folder / "data/train.jsonl").read_bytes() == STORY
    assert (folder / "notes.txt").read_bytes() == NOTES
    assert (found["folder"], found["bytes"], found["pinned"]) == (PLACE, len(STORY) + len(NOTES), False)
    source = json.loads((folder / ".source.json").read_text())
    assert (source["repository"], source["revision"], source["licence"]) == (REPOSITORY, COMMIT, "mit")
    assert {file["path"]: file["sha256"] for file in source["files"]} == {
        "data/train.jsonl": hashlib.sha256(STORY).hexdigest(),
        "notes.txt": hashlib.sha256(NOTES).hexdigest(),
    }
    assert all(f"/resolve/{COMMIT}/" in path for path, _, _ in fake.of("/datasets/some-one/tales.v1/resolve"))
    assert len(fake.asked) == 3  # the listing and two files, and nothing else

    again = download(REPOSITORY, "--revision", COMMIT, "--json", fake=fake)
    assert [file["state"] for file in again.result["files"]] == ["there", "there"]
    assert again.result["pinned"] is True
    assert len(fake.asked) == 4  # the listing alone

    (folder / "notes.txt").write_bytes(NOTES[:-1] + b"?")  # same size
    mended = download(REPOSITORY, "--json", fake=fake)
    assert [file["state"] for file in mended.result["files"]] == ["there", "downloaded"]
    assert (folder / "notes.txt").read_bytes() == NOTES


def test_only_the_named_files_are_downloaded(serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve()
    found = download(REPOSITORY, "--file", "*.txt", "--out", "here", "--json", fake=fake).result
    assert [file["path"] for file in found["files"]] == ["notes.txt"]
    assert sorted(path.name for path in (tmp_path / "here").iterdir()) == [".source.json", "notes.txt"]


def test_a_broken_connection_is_resumed(serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve(cuts=[100_000, 50_000])
    found = download(REPOSITORY, "--file", "data/*", "--json", fake=fake).result
    assert (tmp_path / PLACE / "data/train.jsonl").read_bytes() == STORY
    assert [asked[1] for asked in fake.of("train.jsonl")] == [None, "bytes=100000-", "bytes=150000-"]
    assert found["files"][0]["state"] == "downloaded"


def test_a_second_command_resumes_a_partial_download(serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve(cuts=[100_000, 0, 0, 0, 0])
    ran = download(REPOSITORY, "--file", "data/*", fake=fake)
    assert ran.code == 4
    assert f"100,000 of {len(STORY):,} bytes received" in ran.err
    assert "fix: run the same command again" in ran.err
    folder = tmp_path / PLACE / "data"
    (part,) = folder.glob("*.part")
    assert part.read_bytes() == STORY[:100_000]
    assert not (folder / "train.jsonl").exists()
    assert not (folder.parent / ".source.json").exists()
    found = download(REPOSITORY, "--file", "data/*", "--json", fake=fake).result
    assert found["files"][0]["state"] == "resumed"
    assert fake.of("train.jsonl")[-1][1] == "bytes=100000-"
    assert (folder / "train.jsonl").read_bytes() == STORY
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("beginning", [STORY[:70_000], STORY + b"more"], ids=["no ranges", "too long a part"])
def test_a_part_that_cannot_be_resumed_is_downloaded_again(
    beginning: bytes, serve: Callable, download: Callable, tmp_path: Path
) -> None:
    """A server without ranges sends the whole file; a part that is too long is discarded."""
    fake = serve(ranges=False)
    part = tmp_path / PLACE / "data" / f"train.jsonl.{hashlib.sha256(STORY).hexdigest()[:12]}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(beginning)
    ran = download(REPOSITORY, "--file", "data/*", fake=fake)
    if len(beginning) < len(STORY):
        assert ran.code == 0, ran.err
        assert (part.parent / "train.jsonl").read_bytes() == STORY
    else:
        assert ran.code == 3
    assert not part.exists()


@pytest.mark.parametrize("name", ["data/train.jsonl", "notes.txt"])  # known by sha256, and by git's sha1
def test_files_with_another_checksum_are_refused(
    name: str, serve: Callable, download: Callable, tmp_path: Path
) -> None:
    wrong = b"X" + FILES[name][1:]
    fake = serve(sent={name: wrong})
    ran = download(REPOSITORY, "--file", name, fake=fake)
    assert ran.code == 3
    assert "checksum" in ran.err
    assert [path.name for path in (tmp_path / PLACE).rglob("*") if path.is_file()] == ["lock"]
    fake.sent.clear()
    assert download(REPOSITORY, "--file", name, fake=fake).code == 0


@pytest.mark.parametrize(
    ("status", "code", "word", "where"),
    [
        (404, 2, "does not have it", "api"),
        (401, 2, "set HF_TOKEN", "api"),
        (403, 2, "accept them at", "api"),
        (429, 4, "too many requests", "api"),
        (503, 4, "answer 503", "api"),
        (404, 2, "does not have it", "notes.txt"),
        (401, 2, "set HF_TOKEN", "notes.txt"),
        (500, 4, "answer 500", "notes.txt"),
    ],
)
def test_error_responses_of_the_hub(
    status: int, code: int, word: str, where: str, serve: Callable, download: Callable, tmp_path: Path
) -> None:
    ran = download(REPOSITORY, fake=serve(status={where: status}))
    assert ran.code == code, ran.err
    assert word in ran.err
    assert [line.split(":")[0] for line in ran.err.splitlines()][-2:] == ["error", "fix"]
    assert ran.seconds < 10
    assert not (tmp_path / PLACE / ".source.json").exists()


def test_a_wrong_token_and_an_unknown_revision(serve: Callable, download: Callable) -> None:
    assert "valid token" in download(REPOSITORY, fake=serve(status={"api": 401}), HF_TOKEN="hf_wrong").err
    ran = download(REPOSITORY, "--revision", "v9", fake=serve(status={"api": 404}, code="RevisionNotFound"))
    assert (ran.code, "no such revision" in ran.err) == (2, True)
    ran = download(REPOSITORY, fake=serve(status={"api": 401}, code="GatedRepo"))
    assert (ran.code, "accept them at" in ran.err) == (2, True)


def test_the_token_is_sent_to_the_hub_only(serve: Callable, download: Callable, tmp_path: Path) -> None:
    store = serve()
    fake = serve(elsewhere=store.address)
    assert download(REPOSITORY, fake=fake, HF_TOKEN="hf_secret").code == 0
    assert (tmp_path / PLACE / "data/train.jsonl").read_bytes() == STORY
    assert {asked[2] for asked in fake.asked} == {"Bearer hf_secret"}
    assert [(path, sent) for path, _, sent in store.asked] == [("/store/data/train.jsonl", None)]


def test_a_silent_server_times_out_and_a_slow_one_does_not(serve: Callable, download: Callable) -> None:
    assert download(REPOSITORY, fake=serve(delay=0.7), HF_HUB_DOWNLOAD_TIMEOUT="3").code == 0
    slower = serve(delay=1.6)
    ran = download(REPOSITORY, "--file", "notes.txt", "--out", "other", fake=slower, HF_HUB_DOWNLOAD_TIMEOUT="1")
    assert ran.code == 4
    assert "0 of 19 bytes received" in ran.err
    assert ran.seconds < 12
    ran = download(REPOSITORY, fake=serve(thinking=1.6), HF_HUB_ETAG_TIMEOUT="1")
    assert (ran.code, "cannot be reached" in ran.err) == (4, True)
    assert sum(WAITS) < 5
    assert "not a number of seconds" in download(REPOSITORY, HF_HUB_ETAG_TIMEOUT="soon", fake=slower).err


def test_without_a_network(download: Callable, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"  # nobody listens
        ran = in_a_process("gsm8k", cwd=tmp_path, HF_ENDPOINT=address)
    assert (ran.code, "cannot be reached" in ran.err, ran.seconds < 10) == (4, True, True)
    ran = download("GSM8K", HF_ENDPOINT="https://no-such-host.invalid")  # capitals as in the paper
    assert (ran.code, "cannot be reached" in ran.err, ran.seconds < 10) == (4, True, True)
    assert not (tmp_path / "runs").exists()


def test_an_unresponsive_hub_times_out(download: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 < api._CONNECT_SECONDS < 10
    monkeypatch.setattr(api, "_CONNECT_SECONDS", 1.0)
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        crowd = []
        for _ in range(4):  # fills the queue: further connections are neither taken nor refused
            crowd.append(socket.socket())
            crowd[-1].setblocking(False)
            crowd[-1].connect_ex(full.getsockname())
        ran = download("gsm8k", HF_ENDPOINT=f"http://127.0.0.1:{full.getsockname()[1]}")
        for one in crowd:
            one.close()
    assert (ran.code, ran.seconds < 3) == (4, True), ran.err


def test_offline_mode(serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve()
    ran = download(REPOSITORY, fake=fake, HF_HUB_OFFLINE="1")
    assert (ran.code, "HF_HUB_OFFLINE" in ran.err, "using the network" in ran.err) == (4, True, False)
    assert fake.asked == []
    download(REPOSITORY, fake=fake)
    asked = len(fake.asked)
    found = download(REPOSITORY, "--json", fake=fake, HF_HUB_OFFLINE="1").result
    assert [file["state"] for file in found["files"]] == ["there", "there"]
    (tmp_path / PLACE / "notes.txt").write_bytes(b"changed")
    assert download(REPOSITORY, fake=fake, HF_HUB_OFFLINE="1").code == 4
    assert len(fake.asked) == asked


@pytest.mark.parametrize(
    "name",
    ["../../escaped.txt", "/etc/escaped.txt", "a/../../escaped.txt", "a\\..\\escaped.txt", "C:escaped.txt", "a//b.txt"],
)
def test_paths_outside_the_folder_are_refused(name: str, serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve(files={name: b"x", "good.txt": b"y"}, large=set())
    ran = download(REPOSITORY, fake=fake)
    assert (ran.code, "outside its folder" in ran.err) == (3, True)
    assert list(tmp_path.rglob("*escaped*")) == []
    assert not fake.of("resolve")
    assert download(REPOSITORY, "--file", "good.txt", fake=fake).code == 0


def test_scripts_are_never_downloaded(serve: Callable, download: Callable, tmp_path: Path) -> None:
    fake = serve()
    ran = download(REPOSITORY, "--file", "loader.py", fake=fake)
    assert (ran.code, "only data files are downloaded" in ran.err) == (2, True)
    assert not fake.of("resolve")
    assert download(REPOSITORY, fake=serve(files={"a.py": b"x", "README.md": b"x", ".hidden.txt": b"x"})).code == 2
    assert [
        answers.is_data_file(f"x/{name}") for name in ("a.jsonl.gz", "a.parquet", "a.TXT", "a.py", "a.pkl", "a.gz")
    ] == [
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_a_file_without_a_checksum_is_refused(serve: Callable, download: Callable) -> None:
    ran = download(REPOSITORY, "--file", "notes.txt", fake=serve(checksums=False))
    assert (ran.code, "no checksum" in ran.err) == (3, True)


def test_files_that_differ_from_the_catalog_are_refused(serve: Callable, download: Callable) -> None:
    """A hub that offers something else under the pinned name is caught before a byte is fetched."""
    name = "tinystories-small"
    path = CATALOG[name].files[0].path
    fake = serve(files={path: STORY}, large={path})
    ran = download(name, fake=fake)
    assert (ran.code, "expected" in ran.err) == (3, True)
    assert not fake.of("resolve")
    assert fake.of("/api/")[0][0].endswith(f"roneneldan/TinyStories/revision/{CATALOG[name].revision}")
    # alpaca-cleaned has no pinned checksum: the hub's own decides
    path = CATALOG["alpaca-cleaned"].files[0].path
    found = download("alpaca-cleaned", "--json", fake=serve(files={path: STORY}, large={path})).result
    assert found["use"].endswith("data.train=[runs/data/downloads/alpaca-cleaned/alpaca_data_cleaned.json]'")


def test_a_response_that_is_not_a_hub_listing(serve: Callable, download: Callable) -> None:
    assert "not a hub" in download(REPOSITORY, fake=serve(status={"api": 200})).err
    ran = download(REPOSITORY, HF_ENDPOINT="nonsense")
    assert (ran.code, "HF_ENDPOINT" in ran.err) == (2, True)


def test_invalid_names_and_a_missing_library(download: Callable, tmp_path: Path) -> None:
    assert "did you mean gsm8k?" in download("gsm8").err
    assert download("../x").code == 2
    assert download("--file", "x").code == 2
    (tmp_path / "httpx2.py").write_text("raise ImportError('gone', name='httpx2')\n")
    ran = in_a_process("gsm8k", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (ran.code, "pip install 'tinyllm-lifecycle[hub]'" in ran.err) == (4, True)


def test_the_catalog_is_listed_without_network_and_library(download: Callable, tmp_path: Path) -> None:
    (tmp_path / "huggingface_hub.py").write_text("raise ImportError\n")
    found = in_a_process("--json", cwd=tmp_path, PYTHONPATH=str(tmp_path), HF_ENDPOINT="http://127.0.0.1:9").result
    assert {row["name"] for row in found["sets"]} == set(CATALOG)
    shown = download().out
    assert all(name in shown for name in CATALOG)
    assert shown.count("unpinned") == sum(known.revision is None for known in CATALOG.values())


@pytest.mark.parametrize("known", CATALOG.values(), ids=CATALOG)
def test_every_entry_of_the_catalog_is_valid(known: KnownDataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert known.revision is None or re.fullmatch(r"[0-9a-f]{40}", known.revision)
    for file in known.files:
        assert answers.is_data_file(file.path)
        assert not answers.path_fault(file.path.replace("*", "x"))
        assert file.sha256 is None or re.fullmatch(r"[0-9a-f]{64}", file.sha256)
        assert file.size is None or file.size > 0
    used = known.use.format(folder="F")
    program, verb, *options = shlex.split(used)
    assert program == "tinyllm"
    assert cli.run([verb, *options, "--dry-run", "--json"]) == 0  # a command that is understood
    values = json.loads(capsys.readouterr().out)["values"]
    assert "F/" in str(values["data.val" if verb == "eval" else "data.train"]["value"])
    for name in re.findall(r"\[F/([^\]]+)\]", used):
        prefix = name.partition("*")[0]
        assert any(
            file.path.partition("*")[0].startswith(prefix) or prefix.startswith(file.path.partition("*")[0])
            for file in known.files
        )


def test_downloaded_files_can_be_read_as_records(serve: Callable, download: Callable, tmp_path: Path) -> None:
    from tinyllm.data.records.reader import read_records

    fake = serve(files={"part.jsonl.gz": gzip.compress(STORY)}, large={"part.jsonl.gz"})
    found = download(REPOSITORY, "--json", fake=fake).result
    reader = read_records([str(tmp_path / found["folder"])], "documents")
    assert sum(1 for _ in reader) == 20_000


def test_the_documented_catalog_is_up_to_date() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "data.md"
    rows = {
        line.split("|")[1].strip(): line
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("|")
    }
    for name, known in CATALOG.items():
        version = known.revision[:7] if known.revision else "(unpinned)"
        size = f"{known.size / 1e6:,.1f} MB" if known.size else ""
        facts = [name, known.stage, size, known.license, f"{known.repository} {version}"]
        assert [cell.strip() for cell in rows[name].strip("|").split("|")] == facts
