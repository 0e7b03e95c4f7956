"""Run tests in forks of one process that has imported torch and pytest, but nothing of the package: seconds less per run.

`Forks(folder)` starts that process in a copy of the package. Each `run` forks it; the child imports the package as it lies in the folder
at that moment, collects and tests. Commands that tests start see the same files, for they inherit the folder as their path.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO, Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = (
    "tinyllm",
    "tests",
    "benchmarks",
    "configs",
    "docs",
    "pyproject.toml",
    "README.md",
    "README.zh.md",
    "CONTRIBUTING.md",
    "Makefile",
)
PRELOADED = (
    *(
        "torch",
        "torch.nn.functional",
        "torch.distributed",
        "numpy",
        "pydantic",
        "typer",
        "rich.console",
        "rich.table",
        "yaml",
    ),
    *(
        "safetensors.torch",
        "tokenizers",
        "jinja2",
        "pytest",
        "_pytest.assertion.rewrite",
        "hypothesis",
        "pyarrow",
        "transformers",
    ),
)
OPTIONS = ("-q", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0")


@dataclass(frozen=True)
class Found:
    """The end of one run of tests."""

    code: int = -1  # pytest's, -1 where the limit ended it
    failed: str = ""  # the first test that failed
    error: str = ""  # the name of its exception
    broken: str = ""  # why the tests could not be collected
    late: bool = False
    seconds: float = 0.0  # of computing
    output: str = ""  # the last of what pytest printed
    tests: Mapping[str, tuple[float, list[str]]] = field(default_factory=dict)  # passed: seconds, functions entered
    failures: Sequence[str] = ()


class Copy:
    """The package and its tests in a folder of their own, where mistakes are planted."""

    def __init__(self, folder: Path):
        self.folder, self._planted = folder, 0
        folder.parent.chmod(0o755)  # a test gives up its privileges, and still imports the package
        for name in COPIED:
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.tmp"))
            else:
                shutil.copy2(source, folder / name)
        self.tests = Forks(folder)

    @contextlib.contextmanager
    def planted(self, file: str, text: str) -> Iterator[None]:
        """Put another text in place of a file of the package, with a time that no cached bytecode fits."""
        path = self.folder / "tinyllm" / file
        source, changed = path.read_text(encoding="utf-8"), path.stat().st_mtime
        self._planted += 1
        path.write_text(text, encoding="utf-8")
        os.utime(path, (changed + self._planted, changed + self._planted))
        try:
            yield
        finally:
            path.write_text(source, encoding="utf-8")
            os.utime(path, (changed, changed))


class Worker:
    """A process that is asked in lines of JSON and answers in lines of JSON."""

    def __init__(self, folder: Path, *command: str):
        environment = {**os.environ, "PYTHONPATH": str(folder), "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, request: Any) -> Any:
        """Raises: RuntimeError if the process has ended."""
        questions, answers = self.process.stdin, self.process.stdout
        assert questions is not None
        assert answers is not None
        print(json.dumps(request), file=questions, flush=True)
        line = answers.readline()
        if not line:
            raise RuntimeError(f"the process that runs the tests has ended with {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        self.process.communicate()


class Forks(Worker):
    """The process that is forked, seen from outside."""

    def __init__(self, folder: Path):
        super().__init__(folder, "tests.support.forks")

    def run(
        self, targets: Sequence[str], *options: str, only: Sequence[str] = (), limit: float = 240, trace: bool = False
    ) -> Found:
        """Test `targets`, of these `only` in this order if any are given, for `limit` seconds at most."""
        request = {"arguments": [*OPTIONS, *options, *targets], "only": list(only), "limit": limit, "trace": trace}
        return Found(**self.ask(request))


class Watch:
    """A plugin of pytest: chooses and orders the tests, notes the first failure and, if asked, the functions that each test enters."""

    def __init__(self, only: Sequence[str], package: Path | None):
        self.only = {name: number for number, name in enumerate(only)}
        self.failed = self.error = self.broken = self._raised = ""
        self.failures: list[str] = []
        self.tests: dict[str, tuple[float, list[str]]] = {}
        self._package, self._before = package, self._spent()
        self._entered: set[tuple[str, str]] = set()
        self._shared: set[tuple[str, str]] = set()  # entered by fixtures, which serve other tests of the file, too
        if package:
            self._files = {str(path) for path in package.rglob("*.py")}
            threading.settrace(self._trace)
            sys.settrace(self._trace)

    def _trace(self, frame: FrameType, event: str, argument: object) -> None:
        code = frame.f_code
        if code.co_filename in self._files:
            self._entered.add((code.co_filename, code.co_qualname))

    @pytest.hookimpl(trylast=True)  # after conftest's
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self.only:
            items[:] = sorted((i for i in items if i.nodeid in self.only), key=lambda item: self.only[item.nodeid])

    def pytest_collection_finish(self) -> None:
        self._entered.clear()  # what imports enter says nothing about a test

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and not self.broken:
            self.broken = str(report.longrepr).strip()[-300:]

    def pytest_runtest_makereport(self, call: pytest.CallInfo) -> None:
        self._raised = call.excinfo.typename if call.excinfo else ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name, when, spent = report.nodeid, report.when, self._spent()
        if report.failed:
            self.failures.append(name)
            self.tests.pop(name, None)
            if not self.failed:
                self.failed, self.error = name, self._raised
        elif when == "setup":
            self._shared |= self._entered if self._package else set()
        elif when == "call" and report.passed:
            self.tests[name] = (spent - self._before, self._names(self._entered | self._shared))
        self._before = spent
        self._entered.clear()

    @staticmethod
    def _spent() -> float:
        return sum(os.times()[:4])  # seconds of computing, of commands that have ended, too

    def entered(self) -> set[tuple[str, str]]:
        """Return the functions entered since the last test, as (path, qualified name)."""
        return set(self._entered)

    def write(self, folder: Path, code: int) -> None:
        """Leave what was found in `folder`."""
        found = {name: getattr(self, name) for name in ("failed", "error", "broken", "failures", "tests")}
        (folder / "found").write_text(json.dumps({"code": code, **found}), encoding="utf-8")

    def _names(self, entered: set[tuple[str, str]]) -> list[str]:
        if not self._package:
            return []
        names = {f"{Path(file).relative_to(self._package)}:{name.split('.<locals>')[0]}" for file, name in entered}
        return sorted(names)


def _test(request: dict, folder: Path) -> None:
    watch = Watch(request["only"], Path.cwd() / "tinyllm" if request["trace"] else None)
    code = pytest.main(request["arguments"], plugins=[watch])
    sys.settrace(None)
    watch.write(folder, int(code))


def forked(test: Callable[[Path], None], limit: float) -> dict:
    """Fork, and test in the child until `limit` seconds of computing, or ten times as long in all; return what it left behind.

    Computing is limited, not time, because a machine may be busy with other work.
    """
    began, parent = time.monotonic(), os.getppid()
    with tempfile.TemporaryDirectory(prefix="forks-", ignore_cleanup_errors=True) as name:
        folder = Path(name).resolve()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                _prepare(folder, limit)
                test(folder)
            os._exit(0)
        ended, status, used = os.wait4(child, os.WNOHANG)
        while not ended and time.monotonic() - began < 60 + 10 * limit and os.getppid() == parent:
            time.sleep(0.01)
            ended, status, used = os.wait4(child, os.WNOHANG)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child, signal.SIGKILL)  # and what it has left running
        if not ended:
            _, status, used = os.wait4(child, 0)
        found, output = folder / "found", folder / "output"
        said = output.read_text(encoding="utf-8", errors="replace")[-2000:] if output.exists() else ""
        common = {"seconds": used.ru_utime + used.ru_stime, "output": said, "late": False}
        if found.exists():
            return {"code": -1, **common, **json.loads(found.read_text(encoding="utf-8"))}
        late = not ended or os.waitstatus_to_exitcode(status) in (-signal.SIGXCPU, -signal.SIGKILL)
        return {"code": -1, **common, "late": late, "broken": "" if late else "the process that tested has died"}


def _prepare(folder: Path, limit: float) -> None:
    """Give a child a process group, temporary files, output and a limit of its own."""
    os.setpgid(0, 0)
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    with open(os.devnull) as nothing, open(folder / "output", "w") as output:
        os.dup2(nothing.fileno(), 0)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    spent = sum(os.times()[:2])
    resource.setrlimit(resource.RLIMIT_CPU, (int(spent + limit) + 1, int(spent + limit) + 5))


def serve(requests: IO[str], answers: IO[str]) -> None:
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # those of extras
            importlib.import_module(name)
    assert not any(name.partition(".")[0] == "tinyllm" for name in sys.modules)
    for line in requests:
        request = json.loads(line)
        found = forked(partial(_test, request), request["limit"])
        with contextlib.suppress(BrokenPipeError):  # nobody asks any more
            print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    serve(sys.stdin, sys.stdout)
