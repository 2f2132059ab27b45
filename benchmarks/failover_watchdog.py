"""A simple watchdog for stock PostgreSQL: sees that the primary is lost, ends it for good, promotes the standby.

It looks as often as aurora-ray's and by the same rule (`compute.health`), through the same code: the end of the main
process is seen at once, one that is there and does nothing when several looks got no answer and nothing moved. Ending
the old primary comes first: without that, both could take writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import Final, Self

import psycopg

from aurora_ray.compute.health import HealthRules
from aurora_ray.compute.signals import family
from aurora_ray.compute.watch import Watch, Watched

PROMOTE_TIMEOUT_S: Final = 60


@dataclass(slots=True)
class Takeover:
    """What it did; Unix times in ns, 0 while it has not happened."""

    why: str = ""
    good_at_ns: int = 0
    noticed_ns: int = 0
    fenced_ns: int = 0
    promoted_ns: int = 0


class Watchdog:
    """Watches from `with` to the end of the block; acts once."""

    def __init__(self, *, primary_dsn: str, primary_pid: int, standby_dsn: str, rules: HealthRules) -> None:
        self.takeover = Takeover()
        self._primary_dsn = primary_dsn
        self._pid = primary_pid
        self._standby_dsn = standby_dsn
        self._rules = rules
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(PROMOTE_TIMEOUT_S)
        self._loop.close()

    def _run(self) -> None:
        self._loop.run_until_complete(self._watch())

    async def _watch(self) -> None:
        watch = Watch(Watched("the primary", self._ask, lambda: self._pid, self._received), self._rules)
        hung = asyncio.create_task(watch.wait_hung())
        ended = asyncio.create_task(_wait_ended(self._pid))
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({hung, ended, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not stopped.done():
                why = "it ended" if ended.done() else hung.result().why
                await self._take_over(why, time.time_ns() if ended.done() else watch.good_at_ns)
        finally:
            for task in (hung, ended, stopped):
                task.cancel()
            await asyncio.gather(hung, ended, stopped, return_exceptions=True)

    async def _take_over(self, why: str, good_at_ns: int) -> None:
        done = self.takeover
        done.why, done.good_at_ns, done.noticed_ns = why, good_at_ns, time.time_ns()
        for pid in family(self._pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await _wait_ended(self._pid)
        done.fenced_ns = time.time_ns()
        async with await psycopg.AsyncConnection.connect(self._standby_dsn, autocommit=True) as session:
            await session.execute("SELECT pg_promote(true, %s)", [PROMOTE_TIMEOUT_S])
        done.promoted_ns = time.time_ns()

    async def _ask(self, timeout_s: float) -> bool:
        """A refusal is an answer."""
        try:
            async with asyncio.timeout(timeout_s):
                session = await psycopg.AsyncConnection.connect(self._primary_dsn, autocommit=True)
                async with session:
                    await session.execute("SELECT 1")
        except TimeoutError:
            return False
        except psycopg.Error:
            return True
        return True

    async def _received(self) -> tuple[int, bool]:
        """How far the standby has the log; and there is no storage to wait for."""
        async with await psycopg.AsyncConnection.connect(self._standby_dsn, autocommit=True) as session:
            cursor = await session.execute("SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint")
            row = await cursor.fetchone()
        return (int(row[0]) if row is not None and row[0] is not None else 0), False


async def _wait_ended(pid: int) -> None:
    """Returns when the process has ended, whether it was reaped or not."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(descriptor, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
