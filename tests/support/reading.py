"""Helpers of tests that read data files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tinyllm.data.records.reader import read_records
from tinyllm.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def trimmed(text: str) -> str:
    """Return a text without blank lines in front and white space behind, as it is rendered."""
    return re.sub(r"\A\s*[\r\n]", "", text.rstrip())


def texts(*sources: object, **options: object) -> list[str]:
    """Read sources as documents and return their texts."""
    return [document.text for document in read_records(list(sources), "documents", **options)]


def refused(path: Path, kind: str = "documents", **options: object) -> UserError:
    """Read a file that must be refused with exit code 2 and a fix; return the error."""
    with pytest.raises(UserError) as error:
        list(read_records([path], kind, **options))
    assert error.value.code == 2
    assert error.value.fix
    return error.value


def run_python(code: str, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess:
    """Run Python code in a new process, with the package of this checkout."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, cwd=ROOT, timeout=60, check=False)
