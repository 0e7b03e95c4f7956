"""The slowest transfer that goes on. A server that sends a byte now and then never times out, since each byte is an answer."""

from __future__ import annotations

import os
import time

from tinyllm.errors import UserError

WINDOW = 30.0  # seconds over which the rate is measured
VARIABLE = "TINYLLM_DOWNLOAD_RATE"
_DEFAULT = 1_000


class SlowError(Exception):
    """Less than the lowest rate over `WINDOW` seconds."""

    def __init__(self, rate: int):
        super().__init__(f"it sent less than {rate:,} bytes per second for {WINDOW:.0f} seconds")


def lowest_rate() -> int:
    """Return bytes per second: TINYLLM_DOWNLOAD_RATE, 1,000 by default. Raises: UserError (USAGE) for other texts."""
    text = os.environ.get(VARIABLE) or str(_DEFAULT)
    if not (text.isascii() and text.isdecimal() and 0 < int(text) < 1e9):
        raise UserError(
            f"{text!r} is not a number of bytes per second", where=f"env {VARIABLE}", fix=f"unset {VARIABLE}"
        )
    return int(text)


class Pace:
    """The rate of one transfer.

    Args:
        rate: the lowest one, bytes per second.
    """

    def __init__(self, rate: int):
        self.rate, self.received = rate, 0
        self.started = self._began = time.monotonic()
        self._in_window = 0

    def add(self, count: int) -> None:
        """Count received bytes. Raises: SlowError at the end of a window with too few."""
        self.received += count
        self._in_window += count
        now = time.monotonic()
        if now - self._began >= WINDOW:
            if self._in_window < self.rate * (now - self._began):
                raise SlowError(self.rate)
            self._began, self._in_window = now, 0

    def is_sufficient(self) -> bool:
        """Return True if what was received until now is worth another request where the connection broke."""
        return self.received > 0 and self.received >= self.rate * (time.monotonic() - self.started)
