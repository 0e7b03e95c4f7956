"""Run tests in forks of a pytest that has imported the package and collected its tests: a change costs no more than its tests.

In the fork, the code of the one function that a change is in is exchanged for the changed one. Whatever else a change touches (a default, a
class's or module's body, a function that is called while importing) needs a fresh import: `swap` declines it, and `forks.Forks` tests it.
Commands that tests start see nothing of the exchange, so the change is planted in the file, too.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from tests.support.forks import OPTIONS, Found, Watch, Worker, forked

_FUNCTION = 1  # CO_OPTIMIZED: set for functions, not for the bodies of classes and modules
Functions = dict[tuple[str, str, int], list[FunctionType]]


class Warm(Worker):
    """The pytest that waits with everything collected, seen from outside."""

    def __init__(self, folder: Path, files: Sequence[str]):
        super().__init__(folder, "tests.support.warm", *files)
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":  # nothing may be planted before everything has been imported
            raise RuntimeError(f"the tests cannot be collected: pytest ended with {self.process.wait()}")

    def run(self, file: str, before: str, after: str, only: Sequence[str], limit: float) -> Found | None:
        """Test with a file's text changed, `only` in this order; None where the change needs a fresh import."""
        request = {"file": file, "before": before, "after": after, "only": list(only), "limit": limit}
        found = self.ask(request)
        return None if found is None else Found(**found)


def _differences(old: CodeType, new: CodeType) -> Iterator[tuple[CodeType, CodeType] | None]:
    """Yield the outermost functions whose code differs, and None for a body of a class or module that does."""
    same = (old.co_code, old.co_names, old.co_varnames, old.co_freevars) == (
        *(new.co_code, new.co_names, new.co_varnames, new.co_freevars),
    )
    inner = [(a, b) for a, b in zip(old.co_consts, new.co_consts, strict=False) if isinstance(a, CodeType)]
    same = same and len(old.co_consts) == len(new.co_consts) and all(isinstance(b, CodeType) for _, b in inner)
    same = same and all(
        isinstance(a, CodeType) or (type(a), repr(a)) == (type(b), repr(b))
        for a, b in zip(old.co_consts, new.co_consts, strict=False)
    )
    nested = [pair for a, b in inner if isinstance(b, CodeType) for pair in _differences(a, b)]
    if old.co_flags & _FUNCTION:
        if not same or nested:
            yield old, new
    elif not same:
        yield None
    else:
        yield from nested


def swap(functions: Functions, path: str, before: str, after: str) -> bool:
    """Give functions their changed code; return False where something else has changed, too, or nothing is found."""
    pairs = list(_differences(compile(before, path, "exec"), compile(after, path, "exec")))
    found = []
    for pair in pairs:
        if pair is None or pair[0].co_freevars != pair[1].co_freevars:
            return False
        old, new = pair
        owners = functions.get((path, old.co_qualname, old.co_firstlineno), [])
        if not owners or any(len(owner.__closure__ or ()) != len(new.co_freevars) for owner in owners):
            return False
        found += [(owner, new) for owner in owners]
    for owner, new in found:
        owner.__code__ = new
    return bool(found)


class _Serving:
    """A plugin of pytest: once all is collected, answer requests instead of running the tests."""

    def __init__(self, requests: int, answers: int):
        self.requests, self.answers = os.fdopen(requests), os.fdopen(answers, "w")
        self._imports = Watch((), Path.cwd() / "tinyllm")

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        sys.settrace(None)
        imported = self._imports.entered()
        items = {item.nodeid: item for item in session.items}
        functions: Functions = defaultdict(list)
        for one in gc.get_objects():
            if type(one) is FunctionType:
                code = one.__code__
                if (code.co_filename, code.co_qualname) not in imported:
                    functions[code.co_filename, code.co_qualname, code.co_firstlineno].append(one)
        gc.freeze()
        print("ready", file=self.answers, flush=True)
        for line in self.requests:
            request = json.loads(line)
            path = str(Path.cwd() / "tinyllm" / request["file"])
            chosen = [items[name] for name in request["only"] if name in items]

            def test(folder: Path, request: dict = request, path: str = path, chosen: list = chosen) -> None:
                if swap(functions, path, request["before"], request["after"]):
                    _run(session, chosen, folder)

            found = forked(test, request["limit"])
            print(
                json.dumps(None if found["code"] == -1 and not found["late"] else found), file=self.answers, flush=True
            )
        return True


def _run(session: pytest.Session, chosen: Sequence[pytest.Item], folder: Path) -> None:
    watch = Watch((), None)
    session.config.pluginmanager.register(watch)
    for item, following in zip(chosen, [*chosen[1:], None], strict=True):
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if watch.failed:
            break
    watch.write(folder, 1 if watch.failed else 0)


if __name__ == "__main__":
    pipes = os.dup(0), os.dup(1)
    with open(os.devnull, "r+") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pytest.main([*OPTIONS, "-p", "no:timeout", *sys.argv[1:]], plugins=[_Serving(*pipes)])
