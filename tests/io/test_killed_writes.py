"""Files that are replaced in one rename: a process that is killed in the middle of writing leaves the old one or a whole new one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import kills
from tinyllm.html import report
from tinyllm.io import files
from tinyllm.lifecycle import records
from tinyllm.lifecycle.run import _write_reports
from tinyllm.train.run import Run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
CARD: dict[str, Any] = {"stages": ["none"]}
OLD = '{"step": 0, "loss": 3.0}\n{"step": 1, "loss": 2.0}\n'
CUT_AFTER = 4  # bytes
WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a text": ("note.txt", lambda folder: files.write_text_atomically(folder / "note.txt", "another text\n")),
    "record of a lifecycle": ("sft.json", lambda folder: records.write(folder / "sft.json", {"stage": "sft"})),
    "scorecard": ("scorecard.json", lambda folder: _reports(folder)),
    "report": ("report.html", lambda folder: _reports(folder)),
    "run.json": ("run.json", lambda folder: Run(folder, "a: 1\n", {}).close()),
    "config.yaml": ("config.yaml", lambda folder: Run(folder, "a: 1\n", {}).close()),
    "metrics.jsonl, when a run resumes": (
        "metrics.jsonl",
        lambda folder: Run(folder, "a: 1\n", {}).drop_metrics_after(0),
    ),
}


def _reports(folder: Path) -> None:
    report.page = lambda card: "<html>a page</html>\n"  # in the forked process
    _write_reports(folder, CARD)


@pytest.mark.parametrize("name", WRITERS)
def test_a_process_killed_in_the_middle_of_a_write_leaves_the_old_file(name: str, tmp_path: Path) -> None:
    file, write = WRITERS[name]
    folder, events, note = tmp_path / "run", tmp_path / "events", tmp_path / "note"
    folder.mkdir()
    (folder / file).write_text(OLD)
    assert kills.in_child(lambda: write(folder), lambda: kills.recorded(folder, events)) == 0
    assert (folder / file).read_text() != OLD, "it is written"
    opened = [path.name for path in kills.opened_for_writing(kills.read_events(events))]
    number = next(n for n, found in enumerate(opened, 1) if found in (file, f"{file}.new"))
    (folder / file).write_text(OLD)
    cut = kills.Write(number, f"{file}*", CUT_AFTER)
    status = kills.in_child(lambda: write(folder), lambda: kills.cut_off(folder, cut, note, killed=True))
    assert status in kills.CUT_OFF
    assert kills.is_torn(folder, cut, json.loads(note.read_text())["size"]), "it was killed there"
    assert (folder / file).read_text() == OLD
