"""A hub that is hostile, broken or no hub: a refusal by name, and nothing raw on the terminal or outside the folder."""

from __future__ import annotations

import contextlib
import json
import random
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_hub import COMMIT, NOTES, REPOSITORY, Ran
from tinyllm.data.hub import answers, pace

pytest.importorskip("httpx2", reason="the extra hub is not installed")
pytest.importorskip("huggingface_hub", minversion="2")

SHA1, SHA256 = "a" * 40, "b" * 64
ODD: list[Any] = [
    None,
    True,
    0,
    -1,
    5,
    10**30,
    1.5,
    float("nan"),
    "",
    "x",
    "/etc/passwd",
    "../../up.txt",
    "a/b.txt",
    "\x1b[2J\x07.txt",
    "\x9b2J.txt",
    "\u202etxt.exe.txt",
    "\ud800.txt",
    "n" * 300 + ".txt",
    "d/" * 600 + "x.txt",
    "con.txt",
    "[/red].txt",
    SHA1,
    SHA256,
    "A" * 64,
    "a/" + "b" * 62,
    "12",
    [],
    ["\x1b]0;t\x07"],
    [1],
    {},
    {"sha256": "\x1b" * 64},
    {"license": "\x1b[31mred"},
]


def facts() -> dict[str, Any]:
    """A listing that a hub could give."""
    files = [
        {"rfilename": "notes.txt", "size": len(NOTES), "blobId": SHA1},
        {"rfilename": "data/train.jsonl", "size": 400, "blobId": SHA1, "lfs": {"sha256": SHA256, "size": 400}},
        {"rfilename": "README.md", "size": 6, "blobId": SHA1},
    ]
    return {"id": REPOSITORY, "sha": COMMIT, "siblings": files, "cardData": {"license": "mit"}}


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of everything in a listing."""
    yield at
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in pairs:
        yield from places(inner, (*at, key))


def replaced(at: tuple[Any, ...], by: Any) -> Any:
    made = facts()
    if not at:
        return by
    holder: Any = made
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = by
    return made


def assert_orderly(ran: Ran, folder: Path) -> None:
    assert ran.code in (0, 2, 3, 4), ran.err
    assert "Traceback" not in ran.err
    assert "--debug" not in ran.err
    assert all(c.isprintable() or c == "\n" for c in ran.out + ran.err)
    assert ran.code == 0 or [line.split(":")[0] for line in ran.err.splitlines()][-2:] == ["error", "fix"]
    written = [path.relative_to(folder).parts[0] for path in folder.rglob("*")]
    assert set(written) <= {"runs", "token"}


def test_no_listing_breaks_the_command(serve: Callable, download: Callable, tmp_path: Path) -> None:
    """Each value of ODD in each place of a listing: more than 600 answers, of which some are listings, though not of these files."""
    fake = serve(sent={"notes.txt": b"other bytes", "data/train.jsonl": b"other bytes"})
    cases = [replaced(at, odd) for at in places(facts()) for odd in ODD]
    sample = [*cases[:: len(cases) // 30], *(replaced(("siblings", 0, "rfilename"), odd) for odd in ODD)]
    read = 0
    for case in cases:  # most are refused in the parser
        with contextlib.suppress(ValueError):
            listing = answers.parse(json.dumps(case).encode(), REPOSITORY)
            read += bool(listing.files)
            assert all(type(file.size) is int and file.size >= 0 for file in listing.files)
            assert all(set(file.sha256 or file.git_sha1 or "") <= set("0123456789abcdef") for file in listing.files)
    assert len(cases) > 600
    assert 30 < read < len(cases) - 30
    for case in sample:
        fake.answer = json.dumps(case).encode()
        assert_orderly(download(REPOSITORY, fake=fake), tmp_path)


NOT_JSON = [
    b"",
    b"<html>\x1b[2J",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"sha": ' + b"9" * 5_000 + b"}",
    b'{"sha": "' + COMMIT.encode() + b'", "siblings": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    b"null",
    b"NaN",
]


@pytest.mark.parametrize("text", NOT_JSON, ids=range(len(NOT_JSON)))
def test_answers_that_are_no_listing(text: bytes, serve: Callable, download: Callable, tmp_path: Path) -> None:
    ran = download(REPOSITORY, fake=serve(answer=text))
    assert (ran.code, "this server is not a hub" in ran.err) == (4, True)
    assert_orderly(ran, tmp_path)


@pytest.mark.parametrize(
    ("at", "value", "code", "words"),
    [
        (("cardData", "license"), "\x1b[31mred", 4, r"its license is '\x1b[31mred'"),
        (("cardData", "license"), 5, 4, "cardData.license is 5"),
        (("siblings", 1, "lfs", "sha256"), "a/../../" + "b" * 56, 4, "siblings.1.lfs.sha256 is 'a/../../bbb"),
        (("siblings", 1, "lfs", "sha256"), 5, 4, "siblings.1.lfs.sha256 is 5"),
        (("siblings", 0, "size"), "19", 4, "siblings.0.size is '19'"),
        (("siblings", 0, "size"), None, 4, "it gives no size for 'notes.txt'"),
        (("siblings", 0, "rfilename"), 7, 4, "siblings.0.rfilename is 7"),
        (("siblings", 0, "rfilename"), "n" * 300 + ".txt", 3, "lists a file with a name of 304 characters: 'nnn"),
        (("siblings", 0, "rfilename"), "\x1b[2J.txt", 3, r"characters that are not printable: '\x1b[2J.txt'"),
        (("siblings", 0, "rfilename"), "nul.txt", 3, "a name that not every system can store: 'nul.txt'"),
        (("sha",), "main", 4, "sha is 'main'"),
    ],
)
def test_what_is_wrong_with_a_listing_is_named(
    at: tuple[Any, ...], value: Any, code: int, words: str, serve: Callable, download: Callable
) -> None:
    fake = serve(answer=json.dumps(replaced(at, value)).encode())
    ran = download(REPOSITORY, fake=fake)
    assert (ran.code, words in ran.err) == (code, True), ran.err
    assert not fake.of("resolve")


@pytest.mark.parametrize(
    ("location", "why"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://127.0.0.1:99999999/x", "Port out of range"),
        ("http://example.org/x", "it is not https"),
        ("ftp://127.0.0.1/x", "it is not a URL"),
        ("file:///etc/passwd", "it is not a URL"),
        ("https://", "it is not a URL"),
        ("http://127.0.0.1:x/", "Port could not be cast"),
    ],
)
def test_redirects_that_are_not_followed(
    location: str, why: str, serve: Callable, download: Callable, tmp_path: Path
) -> None:
    ran = download(REPOSITORY, "--file", "notes.txt", fake=serve(location=location))
    assert (ran.code, f"a redirect to {location!r} was not followed: {why}" in ran.err) == (4, True), ran.err
    assert_orderly(ran, tmp_path)


def test_a_redirect_without_end_and_one_with_control_characters(
    serve: Callable, download: Callable, tmp_path: Path
) -> None:
    assert "more than 5 redirects" in download(REPOSITORY, "--file", "notes.txt", fake=serve(location="")).err
    ran = download(REPOSITORY, "--file", "notes.txt", fake=serve(location="https://\x1b[2J/"))
    assert ran.code == 4
    assert_orderly(ran, tmp_path)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("http://127.0.0.1:99999999", "Port out of range"),
        ("http://example.org", "it is not https"),
        ("https:///", "it is not a URL"),
    ],
)
def test_addresses_that_are_not_used(address: str, words: str, download: Callable) -> None:
    ran = download(REPOSITORY, HF_ENDPOINT=address)
    assert (ran.code, words in ran.err, "(HF_ENDPOINT)" in ran.err) == (2, True, True), ran.err


def test_a_token_with_other_characters_is_not_sent(serve: Callable, download: Callable) -> None:
    ran = download(REPOSITORY, fake=(fake := serve()), HF_TOKEN="hf_ключ")
    assert (ran.code, "(HF_TOKEN)" in ran.err, fake.asked) == (2, True, [])


# --- a server that is slow on purpose --------------------------------------------------------------------------------------------


def test_a_file_that_drips_is_given_up(
    serve: Callable, download: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each byte comes within the timeout, so that it never ends by itself; what has come is kept."""
    monkeypatch.setattr(pace, "WINDOW", 0.2)
    fake = serve(drip=0.05)
    ran = download(REPOSITORY, "--file", "data/train.jsonl", fake=fake)
    assert (ran.code, ran.seconds < 10) == (4, True)
    assert "it sent less than 1,000 bytes per second for 0 seconds" in ran.err
    assert "fix: run the same command again, it resumes from there" in ran.err
    assert len(fake.of("resolve")) == 4  # and three more tries
    (part,) = tmp_path.rglob("*.part")
    assert 4 <= part.stat().st_size < 100
    assert download(REPOSITORY, "--file", "notes.txt", fake=fake, TINYLLM_DOWNLOAD_RATE="5").code == 0
    ran = download(REPOSITORY, fake=fake, TINYLLM_DOWNLOAD_RATE="fast")
    assert (ran.code, "'fast' is not a number of bytes per second" in ran.err) == (2, True)


def test_one_byte_then_nothing_is_no_progress(serve: Callable, download: Callable) -> None:
    """A connection that breaks after every byte would go on for ever if a byte counted."""
    fake = serve(cuts=[1] * 50)
    ran = download(REPOSITORY, "--file", "data/train.jsonl", fake=fake)
    assert (ran.code, len(fake.of("resolve"))) == (4, 4)


class _Headers(socketserver.BaseRequestHandler):
    """A status line, and then a header that grows by a byte now and then."""

    def handle(self) -> None:
        try:
            self.request.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
            while True:
                self.request.sendall(b"x")
                time.sleep(0.05)
        except OSError:
            return


def test_a_header_that_drips_is_given_up(download: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "WINDOW", 0.5)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Headers) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        ran = download(REPOSITORY, HF_ENDPOINT=address, HF_HUB_DOWNLOAD_TIMEOUT="1")
        server.shutdown()
    assert (ran.code, ran.seconds < 5) == (4, True), ran.err
    assert "cannot be reached: it sent less than 1,000 bytes per second" in ran.err


@pytest.mark.slow
def test_random_listings(serve: Callable, download: Callable, tmp_path: Path) -> None:
    """Several faults at once, through the whole command."""
    chance = random.Random(0)
    fake = serve(sent={"notes.txt": b"other bytes", "data/train.jsonl": b"other bytes"})
    everywhere = list(places(facts()))[1:]
    for _ in range(400):
        made: Any = facts()
        for at in chance.sample(everywhere, chance.randint(1, 3)):
            with contextlib.suppress(KeyError, IndexError, TypeError):  # an earlier fault has taken this place away
                holder = made
                for key in at[:-1]:
                    holder = holder[key]
                holder[at[-1]] = chance.choice(ODD)
        fake.answer = json.dumps(made).encode()
        assert_orderly(download(REPOSITORY, fake=fake), tmp_path)
