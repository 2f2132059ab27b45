"""The fleet that serverless capacity is measured on, and sessions that work on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg

from aurora_ray.cli import options
from benchmarks.fleet import UserFleet

_PAUSED_WITHIN_S: Final = 120.0


class Subject:
    """A fleet, and what is asked of it."""

    def __init__(self, directory: Path) -> None:
        self.fleet = UserFleet(directory)
        self.dsn = self.fleet.up("--name", "web")["endpoints"]["cluster"]["dsn"]
        self._found = options.find(directory)

    def status(self, name: str = "web") -> dict[str, Any]:
        """As it is now, without starting a process for it."""
        return self._found.status(name)

    def scale(self, name: str, *words: str) -> None:
        """Other bounds."""
        self.fleet.run("scale", name, *words)

    def until_paused(self, name: str) -> None:
        """Raises RuntimeError, with what keeps it awake."""
        ends_s = time.monotonic() + _PAUSED_WITHIN_S
        while (now := self.status(name))["state"] != "paused" or any(each["pid"] for each in now["instances"]):
            if time.monotonic() > ends_s:
                raise RuntimeError(f"{name} was not paused: {now['capacity']}")
            time.sleep(0.2)


@contextmanager
def sessions(dsn: str, count: int, statement: str) -> Iterator[Callable[[], int]]:
    """So many sessions that repeat a statement; how many were answered by now."""
    stop, done = threading.Event(), [0] * count

    def work(number: int) -> None:
        with psycopg.connect(dsn, autocommit=True) as session:
            while not stop.is_set():
                session.execute(statement.encode())
                done[number] += 1

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield lambda: sum(done)
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)
