"""Run one part in a process of its own, and write what it was, when, on what, and what it counted.

A record is `PART.json` in the folder of the evidence; `PART.txt` beside it is the output as it comes. It is written when the part has
ended, in one rename, so that a part which was interrupted has none and is run again.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.evidence.parts import BY_NAME, EVERYTHING, Part
from tinyllm.io import strict_json
from tinyllm.io.files import write_text_atomically

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "transformers", "trl", "peft", "tokenizers", "safetensors", "numpy", "pydantic", "pytest")
LIMIT = 3 * 3600  # seconds of one part
LONGEST = 40_000  # characters of output that a record keeps, the end


def code(folders: Sequence[str]) -> str:
    """Return a hash of all files (of folders, or named) that a result depends on; documents are not among them. It needs no git."""
    joint = hashlib.sha256()
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")) or [ROOT / folder]:
            if path.is_file() and "__pycache__" not in path.parts:
                joint.update(f"{path.relative_to(ROOT).as_posix()}\0".encode())
                joint.update(hashlib.sha256(path.read_bytes()).digest())
    return joint.hexdigest()[:16]


def git(*words: str) -> str | None:
    """Return the output of git in this checkout; None without git or without a history."""
    try:
        done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    """Return the version of Python, of this package and of every package of `PACKAGES` that is installed."""
    import tinyllm

    found = {"tinyllm": tinyllm.__version__, "python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cores": cores,
        "threads": os.environ.get("OMP_NUM_THREADS", "one a core"),
        "platform": f"{platform.system()} {platform.machine()}",
    }


def load(out: Path, name: str) -> dict[str, Any] | None:
    path = out / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def is_current(out: Path, part: Part) -> bool:
    """A record of this code exists, and it is of a part that came to its end."""
    record = load(out, part.name)
    return bool(record and record["code"] == code(part.depends) and record["exit_code"] in (0, 1))


def missing(out: Path, part: Part) -> str:
    """Return why the part cannot run here, "" if it can."""
    if part.needs:
        parent = part.needs.rpartition(".")[0]
        if importlib.util.find_spec(parent or part.needs) is None or importlib.util.find_spec(part.needs) is None:
            return f"{part.needs} is not installed"
    if part.after:
        before = load(out, part.after)
        if before is None or before["code"] != code(BY_NAME[part.after].depends) or before["exit_code"] not in (0, 1):
            return f"the part `{part.after}` must come first"
    return ""


def run(part: Part, out: Path, given: dict[str, Any]) -> dict[str, Any]:
    """Run the part and return its record."""
    before = _version(part)  # files may change while the part runs
    version = before["code"]
    own = out / f"{part.name}-{version}.json"  # what the command itself writes as JSON
    known = load(out, part.name)
    if not part.resumes or (known and known["code"] == version):  # only a part that was interrupted goes on
        own.unlink(missing_ok=True)
    folder = _folder(part, out)
    shown = part.command.format(out="FOLDER", json="FILE", **given)
    words = shlex.split(part.command.format(out=shlex.quote(str(out)), json=shlex.quote(str(own)), **given))
    started = time.time()
    stdout, code_ = _output(_python(words), folder, out / f"{part.name}.txt")
    counts, details = part.read(stdout, own)
    record = {
        "part": part.name,
        "command": shown,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "seconds": round(time.time() - started, 1),
        "exit_code": code_,
        "passed": code_ == 0 and bool(counts.get(part.saw)) and not any(counts.get(name) for name in part.bad),
        **before,
        "machine": machine(),
        "counts": counts,
        "details": details,
        "output": _without_paths(stdout, out)[-LONGEST:],
    }
    write_text_atomically(out / f"{part.name}.json", strict_json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    return record


def _version(part: Part) -> dict[str, Any]:
    return {
        "commit": git("rev-parse", "--short=12", "HEAD"),
        "dirty": bool(git("status", "--porcelain", "--", *EVERYTHING)),
        "code": code(part.depends),
        "versions": versions(),
    }


def _folder(part: Part, out: Path) -> Path:
    """Return the folder to run in. What an earlier version of the code left there is removed."""
    shutil.rmtree(out / part.name, ignore_errors=True)
    if not part.where:
        return ROOT
    folder, now = out / part.where, code(("tinyllm", "configs"))
    mark = folder / "code.txt"
    if folder.exists() and (not mark.is_file() or mark.read_text() != now):
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(now)
    return folder


def _python(words: list[str]) -> list[str]:
    """Return the command with this interpreter in front: of `tinyllm …`, `pytest …`, `python FILE …` and `python -m MODULE …`."""
    if words[0] != "python":
        return [sys.executable, "-m", *words]
    rest = words[1:]
    return [sys.executable, *(rest if rest[0] == "-m" else [str(ROOT / rest[0]), *rest[1:]])]


def _output(command: list[str], folder: Path, file: Path) -> tuple[str, int | None]:
    """Return standard output and the exit code; None after `LIMIT` seconds. Both streams go to the file as they come."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "NO_COLOR": "1", "COLUMNS": "100"}
    with file.open("w", encoding="utf-8") as log, file.with_suffix(".err").open("w", encoding="utf-8") as errors:
        try:
            code_ = subprocess.run(
                command, cwd=folder, env=environment, stdout=log, stderr=errors, timeout=LIMIT
            ).returncode
        except subprocess.TimeoutExpired:
            code_ = None
    return file.read_text("utf-8", errors="replace"), code_


def _without_paths(text: str, out: Path) -> str:
    for path, short in ((out, "FOLDER"), (ROOT, "."), (Path(sys.executable), "python"), (Path.home(), "~")):
        text = text.replace(str(path), short)
    return text
