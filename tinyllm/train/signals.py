"""SIGINT and SIGTERM during training: the current step is finished and saved before the run stops."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tinyllm import distributed as dist
from tinyllm.console import Quiet
from tinyllm.errors import INTERRUPTED, TERMINATED

_ECHO_SECONDS = 1.0


class StopSignal:
    """Records the first SIGINT or SIGTERM. A second one takes its usual effect.

    One that follows within a second counts as the same: schedulers signal every process of a job, and a launcher forwards it as well.
    """

    code = 0  # the exit code of the first signal, 0 without one

    @contextmanager
    def listening(self) -> Iterator[StopSignal]:
        """Handle both signals inside the context."""
        received = 0.0

        def record(number: int, frame: Any) -> None:
            nonlocal received
            if self.code:
                if time.monotonic() - received > _ECHO_SECONDS:
                    signal.signal(number, earlier[number])
                    signal.raise_signal(number)
                return
            self.code, received = INTERRUPTED if number == signal.SIGINT else TERMINATED, time.monotonic()
            if dist.is_main() and not Quiet.on:  # not `print`, which the handler may have interrupted
                os.write(2, b"stopping after this step; a second signal stops at once\n")

        earlier: dict[int, Any] = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in earlier.items():
                signal.signal(number, handler)
