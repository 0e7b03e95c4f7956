"""Rendezvous of the ranks: they find each other through a key-value store and compare their configurations.

The store is torch.distributed's own (a TCP server in rank 0, or in torchrun's agent); the process group starts from it. Ranks exchange JSON
text. A missing rank, a port used by another program and different configurations are errors within seconds; torch.distributed alone
would wait for ten minutes.
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

from tinyllm.distributed import ranks
from tinyllm.errors import RESOURCES, USAGE, UserError

_COMING = 60.0  # seconds for all ranks to join; importing torch from a slow disk takes long
_ANSWERING = 8.0  # seconds for whatever accepted the connection to answer as a store
_SHOWN = 5  # differences in a message


class PortTakenError(UserError):
    """The port is in use; the launcher tries another."""


class Rendezvous:
    """The store as seen by this rank. All ranks must make the same calls in the same order."""

    def __init__(self) -> None:
        again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's store outlives the ranks it restarts
        started = (
            ranks.launched()
        )  # the port follows from the job's number: the ranks of another job may find our store
        job = f"/{started.job}" if started and started.job else ""
        self.store: Store = PrefixStore(f"tinyllm/{again}{job}", _open())
        self.calls = 0

    def join(self) -> None:
        """Wait for the other ranks.

        Raises: UserError if two processes have the same rank or world sizes differ (USAGE), or a rank is missing (RESOURCES).
        """
        if self.store.add(f"claimed/{ranks.rank()}", 1) > 1:
            raise UserError(
                f"two processes have rank {ranks.rank()}",
                where="env RANK",
                fix="number the processes from 0 to WORLD_SIZE - 1",
            )
        self.require_equal({"WORLD_SIZE": ranks.world_size()}, limit=min(_COMING, ranks.timeout()))

    def require_equal(self, facts: Mapping[str, Any], limit: float | None = None) -> None:
        """Compare `facts` over all ranks. Raises: UserError (USAGE), on every rank, if they differ."""
        self.calls += 1
        self.store.set(f"{self.calls}/{ranks.rank()}", json.dumps(dict(_flat(facts)), default=str))
        if ranks.is_main():
            verdict = self._disagreement(limit)
            self.store.set(f"{self.calls}/verdict", json.dumps(verdict))
        else:
            verdict = json.loads(self._read("verdict", 0, None if limit is None else limit + 5))
        if verdict:
            raise UserError(**verdict)

    def _disagreement(self, limit: float | None) -> dict[str, Any]:
        """Return the arguments of the error that every rank raises; empty if all agree."""
        try:
            differences = self._differences(limit)
        except UserError as error:
            return {"what": error.what, "fix": error.fix, "code": error.code}
        if not differences:
            return {}
        shown = "; ".join(differences[:_SHOWN])
        more = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        fix = f"start every rank with the same command, files and variables{ranks.how_to_separate()}"
        return {"what": f"the ranks disagree: {shown}{more}", "fix": fix, "code": USAGE}

    def _differences(self, limit: float | None) -> list[str]:
        """Compare rank 0 with the first rank that differs, which may be why others are missing."""
        mine = json.loads(self._read("0", 0, limit))
        for number in range(1, ranks.world_size()):
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
        """Return what rank `number` stored under `name` in this call."""
        key = f"{self.calls}/{name}"

        def missing() -> UserError:
            return UserError(
                f"rank {number} of {ranks.world_size()} did not join within {limit:.0f} s",
                fix=f"start all ranks; WORLD_SIZE is their number, RANK counts from 0{ranks.how_to_separate()}",
                code=RESOURCES,
            )

        _until(lambda: self.store.check([key]), limit, missing)
        return self.store.get(key).decode()

    def barrier(self) -> None:
        """Wait, without a time limit, until all ranks have called this."""
        self.calls += 1
        key = f"{self.calls}/there"
        self.store.add(key, 1)
        _until(lambda: self.store.add(key, 0) >= ranks.world_size(), None, AssertionError)

    def leave(self, seconds: float) -> None:
        """Leave. Rank 0 holds the store and waits for the others, for at most `seconds`, since one may have died."""
        try:
            self.store.add("left", 1)
            if ranks.is_main():
                _until(lambda: self.store.add("left", 0) >= ranks.world_size(), seconds, TimeoutError)
        except (RuntimeError, TimeoutError):  # the store is gone, or the other ranks are
            return

    def is_first_to_print(self) -> bool:
        """Return True for the first rank that calls it."""
        try:
            return self.store.add("spoken", 1) == 1
        except RuntimeError:  # without the store nobody else can claim it
            return True


def _until(condition: Callable[[], bool], limit: float | None, failure: Callable[[], Exception]) -> None:
    """Poll a condition, in steps short enough to handle signals."""
    began, pause = time.monotonic(), 0.001
    while not condition():
        if limit is not None and time.monotonic() - began > limit:
            raise failure()
        time.sleep(pause)
        pause = min(0.05, pause * 1.5)


def _open() -> Store:
    """Open the store: the server in rank 0, a client in the other ranks."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    agent = os.environ.get("TORCHELASTIC_USE_AGENT_STORE", "").lower() in ("1", "true")
    if ranks.is_main() and not agent:
        try:
            return _store(address, port, server=True)
        except RuntimeError as error:
            taken = "in use" in str(error)
            why = "it is in use" if taken else str(error).partition("\n")[0]
            raise PortTakenError(
                f"rank 0 cannot listen on port {port}: {why}",
                where="env MASTER_PORT",
                fix="give all ranks another MASTER_PORT",
                code=RESOURCES,
            ) from None
    limit = min(_COMING, ranks.timeout())
    _until(lambda: _listens(address, port), limit, lambda: _unreachable("nothing listens", address, port))
    return _answered(address, port, min(_ANSWERING, ranks.timeout()))


def _store(address: str, port: int, *, server: bool) -> Store:
    limit = timedelta(seconds=ranks.timeout())
    return TCPStore(address, port, None, server, limit, wait_for_workers=False, use_libuv=False)


def _listens(address: str, port: int) -> bool:
    try:
        socket.create_connection((address, port), timeout=5).close()
    except socket.gaierror as error:
        raise UserError(
            f"{address!r} is not a valid address: {error.strerror}",
            where="env MASTER_ADDR",
            fix="set MASTER_ADDR to the host name of rank 0",
            code=RESOURCES,
        ) from None
    except OSError:
        return False
    return True


def _answered(address: str, port: int, limit: float) -> Store:
    """Connect a client, in a thread: torch waits without limit for the first answer of whatever accepted the connection."""
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(_store(address, port, server=False))
        except RuntimeError as error:
            found.append(error)

    threading.Thread(target=connect, daemon=True).start()
    _until(lambda: bool(found), limit, lambda: _unreachable("another program listens", address, port))
    if isinstance(found[0], Exception):
        raise _unreachable("no answer", address, port)
    return found[0]


def _unreachable(what: str, address: str, port: int) -> UserError:
    return UserError(
        f"rank {ranks.rank()} cannot reach rank 0: {what} at {address}:{port}",
        where="env MASTER_PORT",
        fix="start rank 0, and give all ranks its MASTER_ADDR and a free MASTER_PORT",
        code=RESOURCES,
    )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings and lists to (dotted key, value)."""
    if isinstance(value, Mapping):
        parts = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        parts = [(str(number), inner) for number, inner in enumerate(value)]
    else:
        return [(name, value)]
    return [pair for key, inner in parts for pair in _flat(inner, f"{name}.{key}" if name else key)]
