"""Where ranks find each other: checked variables, one key-value store, and a look at whether all mean the same run.

The store is torch.distributed's own (a TCP server in rank 0, or in torchrun's agent); the process group starts from it. What ranks
tell each other here is JSON text. Nothing waits without saying for what: a rank that does not come, a port that belongs to another
program and a contradiction are errors within seconds, where torch.distributed would wait for ten minutes.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, Store, TCPStore

from tinyllm import dist
from tinyllm.errors import RESOURCES, USAGE, UserError

_COMING = 60.0  # seconds for all ranks to come; they import torch meanwhile, on a slow disk for long
_ANSWERING = 8.0  # seconds within which whoever has accepted a connection must have answered as a store would
_SHOWN = 5  # differences


class PortTakenError(UserError):
    """The launcher tries another."""


class Meeting:
    """This rank's end of the store. Every rank must make the same calls in the same order."""

    def __init__(self) -> None:
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives the ranks it restarts
        self.store: Store = PrefixStore(f"tinyllm/{again}", _open())
        self.calls = 0

    def arrive(self) -> None:
        """Wait for the others. Raises UserError where two are the same rank, sizes differ (USAGE) or one is missing (RESOURCES)."""
        if self.store.add(f"claimed/{dist.rank()}", 1) > 1:
            raise UserError(
                f"two processes say they are rank {dist.rank()}",
                where="env RANK",
                fix="number the processes from 0 to WORLD_SIZE - 1",
            )
        self.agree({"WORLD_SIZE": dist.world_size()}, limit=min(_COMING, dist.timeout()))

    def agree(self, facts: Mapping[str, Any], limit: float | None = None) -> None:
        """Compare `facts` over the ranks; rank 0 reads all and tells all. Raises UserError (USAGE) on every rank."""
        self.calls += 1
        self.store.set(f"{self.calls}/{dist.rank()}", json.dumps(dict(_flat(facts)), default=str))
        if dist.is_main():
            verdict = self._verdict(limit)
            self.store.set(f"{self.calls}/verdict", json.dumps(verdict))
        else:
            verdict = json.loads(self._read("verdict", 0, None if limit is None else limit + 5))
        if verdict:
            raise UserError(**verdict)

    def _verdict(self, limit: float | None) -> dict[str, Any]:
        """The arguments of the error that every rank is to raise; empty where all agree."""
        try:
            differences = self._differences(limit)
        except UserError as error:
            return {"what": error.what, "fix": error.fix, "code": error.code}
        if not differences:
            return {}
        shown = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        fix = "start every rank with the same command, files and variables"
        return {"what": f"the ranks disagree: {shown}{more}", "fix": fix, "code": USAGE}

    def _differences(self, limit: float | None) -> list[str]:
        """Between rank 0 and the first rank that has something else: it may be the reason why others do not come."""
        mine = json.loads(self._read("0", 0, limit))
        for number in range(1, dist.world_size()):
            theirs = json.loads(self._read(str(number), number, limit))
            found = [
                f"{key}: rank 0 has {mine.get(key, 'nothing')}, rank {number} has {theirs.get(key, 'nothing')}"
                for key in {**mine, **theirs}
                if mine.get(key) != theirs.get(key)
            ]
            if found:
                return found
        return []

    def _read(self, name: str, number: int, limit: float | None) -> str:
        """What rank `number` has set under `name` in this call."""
        key = f"{self.calls}/{name}"

        def missing() -> UserError:
            return UserError(
                f"rank {number} of {dist.world_size()} did not come within {limit:.0f} s",
                fix="start all ranks; WORLD_SIZE is their number, RANK counts from 0",
                code=RESOURCES,
            )

        _until(lambda: self.store.check([key]), limit, missing)
        return self.store.get(key).decode()

    def wait_for_all(self) -> None:
        self.calls += 1
        key = f"{self.calls}/there"
        self.store.add(key, 1)
        _until(lambda: self.store.add(key, 0) >= dist.world_size(), None, AssertionError)

    def leave(self, seconds: float) -> None:
        """Rank 0 holds the store, so it waits until the others need it no longer, but not for ever: one may have died."""
        try:
            self.store.add("left", 1)
            if dist.is_main():
                _until(lambda: self.store.add("left", 0) >= dist.world_size(), seconds, TimeoutError)
        except (RuntimeError, TimeoutError):  # it is gone, or they are
            return

    def first_to_speak(self) -> bool:
        try:
            return self.store.add("spoken", 1) == 1
        except RuntimeError:  # the store is gone, and with it whoever could have spoken
            return True


def _until(condition: Callable[[], bool], limit: float | None, failure: Callable[[], Exception]) -> None:
    """Ask again and again, in steps short enough for signals to be heard."""
    began, pause = time.monotonic(), 0.001
    while not condition():
        if limit is not None and time.monotonic() - began > limit:
            raise failure()
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def _open() -> Store:
    """The server in rank 0, a client elsewhere."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() in ("1", "true")
    if dist.is_main() and not agent:
        try:
            return _store(address, port, server=True)
        except RuntimeError as error:
            taken = "in use" in str(error)
            why = "it is taken" if taken else str(error).partition("\n")[0]
            raise PortTakenError(
                f"rank 0 cannot listen on port {port}: {why}",
                where="env MASTER_PORT",
                fix="give all ranks another MASTER_PORT",
                code=RESOURCES,
            ) from None
    limit = min(_COMING, dist.timeout())
    _until(lambda: _listens(address, port), limit, lambda: _unreachable("nothing listens", address, port))
    return _answered(address, port, min(_ANSWERING, dist.timeout()))


def _store(address: str, port: int, *, server: bool) -> Store:
    limit = timedelta(seconds=dist.timeout())
    return TCPStore(address, port, None, server, limit, wait_for_workers=False, use_libuv=False)


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except socket.gaierror as error:
        raise UserError(
            f"{address!r} is no address: {error.strerror}",
            where="env MASTER_ADDR",
            fix="give the name of rank 0's machine",
            code=RESOURCES,
        ) from None
    except OSError:
        return False
    return True


def _answered(address: str, port: int, limit: float) -> Store:
    """A client. Made in a thread, because torch waits for ever for the first answer of whoever has accepted the connection."""
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(_store(address, port, server=False))
        except RuntimeError as error:
            found.append(error)

    threading.Thread(target=connect, daemon=True).start()
    _until(lambda: bool(found), limit, lambda: _unreachable("another program listens", address, port))
    if isinstance(found[0], Exception):
        raise _unreachable("nobody answers", address, port)
    return found[0]


def _unreachable(what: str, address: str, port: int) -> UserError:
    return UserError(
        f"rank {dist.rank()} found no rank 0: {what} at {address}:{port}",
        where="env MASTER_PORT",
        fix="start rank 0, and give all ranks its MASTER_ADDR and a free MASTER_PORT",
        code=RESOURCES,
    )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Nested mappings and lists as (dotted key, value)."""
    if isinstance(value, Mapping):
        parts = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return [(name, value)]
    return [pair for key, inner in parts for pair in _flat(inner, f"{name}.{key}" if name else key)]
