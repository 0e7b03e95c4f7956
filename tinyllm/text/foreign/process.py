"""Renders conversations with a foreign chat template, in a process of its own that is limited in time, memory and output.

The process is started once for a template and kept. It costs 0.2 s, and then a few dozen microseconds a conversation more than
rendering here. What is limited is in `worker`; that its answers arrive is watched here.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from tinyllm.errors import UserError
from tinyllm.text.foreign.worker import FAILED

MOST_CHARACTERS = 64 * 1024  # of a template; those of known models have at most 20,000
SECONDS = 10.0  # for one conversation, which takes less than a millisecond
MEMORY = 512 * 1024 * 1024  # bytes; the process needs 60 MB
_AHEAD = 256  # conversations sent before their answers are read
_USE_OURS = "use this program's template instead: --set chat.template=chatml"
_START = "from tinyllm.text.foreign.worker import main; main()"


class TemplateProcess:
    """A running process with one template.

    Args:
        names: special tokens by name, such as `eos_token`.
        control: the texts of all control tokens.
        seconds: for the trial, and for each conversation; by default `SECONDS`.

    Raises:
        UserError: a template that is too long, or renders no conversation within the limits.
    """

    def __init__(
        self, template: str, names: Mapping[str, str], control: Sequence[str], *, seconds: float | None = None
    ):
        if len(template) > MOST_CHARACTERS:
            what = f"the chat template has {len(template):,} characters, at most {MOST_CHARACTERS:,} are accepted"
            raise UserError(what, where="chat template", fix=_USE_OURS)
        self.seconds, self._owner = SECONDS if seconds is None else seconds, os.getpid()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="ascii",
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PYTHONIOENCODING": "ascii"},
            start_new_session=True,  # Ctrl-C is for this process
        )
        atexit.register(self.close)
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()
        setting = {"template": template, "names": dict(names), "control": list(control)}
        self._send(setting | {"seconds": self.seconds, "memory": MEMORY})
        self.description = self._receive()
        if reason := self.description.get(FAILED):
            self.close()
            raise UserError(f"the chat template cannot be used: {reason}", where="chat template", fix=_USE_OURS)

    @property
    def usable(self) -> bool:
        """Return whether the process runs, and belongs to this one: not to a parent that was forked."""
        return self._process.poll() is None and self._owner == os.getpid()

    def layouts(self, requests: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield the answer to each request, see `worker`. Both are plain JSON.

        Raises: UserError where the process takes too long, or ends.
        """
        waiting, requests = 0, iter(requests)
        for request in islice(requests, _AHEAD):
            self._send(request)
            waiting += 1
        while waiting:
            yield self._receive()
            waiting -= 1
            for request in islice(requests, 1):
                self._send(request)
                waiting += 1

    def close(self) -> None:
        """End the process."""
        atexit.unregister(self.close)
        if self._owner != os.getpid():
            return
        self._process.kill()  # does nothing where it has ended
        self._process.wait()
        assert self._process.stdin is not None
        with suppress(OSError):  # what was not sent yet
            self._process.stdin.close()

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except OSError:  # it ended; `_receive` says why
            return

    def _receive(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=2 * self.seconds + 5)  # the process watches its own time, where it can
        except queue.Empty:
            line = ""
        if not line.endswith("\n"):
            status = self._exit_status()
            self.close()
            what = f"the chat template did not render a conversation within {self.seconds:g} s and {MEMORY >> 20} MB"
            if status > 0:  # killed processes have a negative one: an error of ours, which is not the template's fault
                what = f"the process that renders the chat template ended with exit status {status}; please report it"
            raise UserError(what, where="chat template", fix=_USE_OURS)
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def _exit_status(self) -> int:
        """Return the status of a process that closed its output; 0 for one that still runs."""
        try:
            return self._process.wait(timeout=1)
        except subprocess.TimeoutExpired:
            return 0

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line)
        self._lines.put("")
