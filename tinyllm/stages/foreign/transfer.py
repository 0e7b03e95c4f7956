"""One file from a hub, with a progress bar: of data and of models."""

from __future__ import annotations

from pathlib import Path

from tinyllm.console import ProgressBar, say
from tinyllm.data.hub.answers import Listing, RemoteFile
from tinyllm.data.hub.api import Hub
from tinyllm.data.hub.download import fetch


def download_file(
    connection: Hub, listing: Listing, remote: RemoteFile, to: Path, *, said_from: int = 0
) -> tuple[str, int]:
    """Download one file with a progress bar. Returns its SHA-256, and the bytes that an earlier attempt had downloaded.

    Args:
        said_from: bytes of a file from which on its end is said, too.
    """
    before: int | None = None
    with ProgressBar(f"{remote.path}:", remote.size) as bar:

        def show(done: int) -> None:
            nonlocal before
            before = done if before is None else before
            progress = f"{size_text(done)} of {size_text(remote.size)}"
            bar.update(done, f"{progress}, {size_text((done - before) / bar.elapsed)}/s", progress)

        sha256 = fetch(connection, listing, remote, to, show)
    before = before or 0
    if remote.size >= said_from:
        say(f"{remote.path}: {size_text(remote.size)}" + (f", {size_text(before)} of it earlier" if before else ""))
    return sha256, before


def size_text(count: float) -> str:
    """Return a number of bytes for people: `1.5 MB`."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "bytes" else f"{count:,.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
