"""Instances are lost in every way while clients use all endpoints: only the sessions on them break. A reader that is
stuck holds nothing for longer than its leases."""

import asyncio
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest

from aurora_ray.compute.signals import family
from aurora_ray.rpc.link import Abroad
from aurora_ray.rpc.node_client import NodeClient, close_all
from aurora_ray.rpc.secret_file import FILE_NAME, load_secret
from aurora_ray.volume.read.lease import LEASE_S
from tests.chaos.fleet_faults import CONTROL
from tests.cli.fleet import CliFleet, fleet_at, parent_of, pids_titled
from tests.support.polling import poll_until_blocking
from tests.support.timing import scaled

pytestmark = [
    pytest.mark.chaos,
    pytest.mark.ray,
    pytest.mark.postgres,
    pytest.mark.timeout(300),
    pytest.mark.allowed_leaks("process", "shm", "tmp"),
]
EVERY_S = 0.05
AGAIN_S = 60.0  # until all is as it was
HORIZON_S = 5.0 + 10.0  # control.observe.replicas.LEASE_S, and what a feed believes of a standby that is silent
WINDOW_S = 1
MB = 1 << 20


@dataclass
class Session:
    """One session at a time at an address, which asks, or writes, again and again. `broken`: instances whose sessions
    ended under it, and why."""

    dsn: str
    statement: str
    answers: int = 0
    port: str = ""
    broken: list[tuple[str, str]] = field(default_factory=list)
    on_a_writer: int = 0

    def run(self, stopping: threading.Event) -> None:
        session = None
        while not stopping.is_set():
            try:
                if session is None:
                    session = psycopg.connect(self.dsn, autocommit=True, connect_timeout=20)
                    self.port = str((session.execute("SHOW port").fetchone() or ("",))[0])
                cursor = session.execute(self.statement.encode())
                self.on_a_writer += (cursor.fetchone() or (None,))[0] is False
                self.answers += 1
            except psycopg.Error as error:
                if session is not None:
                    self.broken.append((self.port, str(error)))
                    session.close()
                session, self.port = None, ""
            stopping.wait(EVERY_S)
        if session is not None:
            session.close()


class Everyone:
    """Sessions at all endpoints of a cluster and at each of its instances."""

    READ, WRITE = "SELECT pg_is_in_recovery()", "INSERT INTO written VALUES (1) RETURNING NULL"

    def __init__(self, status: dict[str, Any]) -> None:
        ends = status["endpoints"]
        self.reading = [Session(ends["reader"]["dsn"], self.READ) for _ in range(4)]
        self.at_endpoints = [
            *self.reading,
            *(Session(each["dsn"], self.READ) for each in ends["custom"]),
            *(Session(ends["cluster"]["dsn"], statement) for statement in (self.READ, self.WRITE)),
        ]
        self.sessions = [*self.at_endpoints, *(Session(each["dsn"], self.READ) for each in status["instances"])]
        self._stopping = threading.Event()
        self._threads = [
            threading.Thread(target=each.run, args=(self._stopping,), daemon=True) for each in self.sessions
        ]

    def __enter__(self) -> "Everyone":
        for thread in self._threads:
            thread.start()
        self.answer(self.sessions)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(scaled(30))

    def answer(self, sessions: Sequence[Session]) -> None:
        """Each of them has some more answers."""
        goals = [(each, each.answers + 3) for each in sessions]
        poll_until_blocking(lambda: all(each.answers >= goal for each, goal in goals), 60, what="all are answered")


@pytest.fixture(scope="module")
def fleet(run_dir: Path) -> Iterator[CliFleet]:
    with fleet_at(run_dir / "endpoints", {"AURORA_RETENTION_S": "0"}, up=False) as cli:
        status = cli.up("--readers", "2")
        cli.execute(status["endpoints"]["cluster"]["dsn"], "CREATE TABLE written (id int)")
        cli.check("endpoint", "create", "demo", "one", "--members", "demo-2", "--kind", "any")
        cli.check("endpoint", "create", "demo", "others", "--exclude", "demo-2", "--kind", "any")
        yield cli


def all_serve(fleet: CliFleet) -> dict[str, Any]:
    return fleet.until(lambda s: all(i["state"] == "available" for i in s["instances"]), "all instances serve", AGAIN_S)


def kill_engine(_: CliFleet, instance: dict[str, Any]) -> list[int]:
    os.kill(instance["pid"], signal.SIGKILL)
    return []


def kill_process(_: CliFleet, instance: dict[str, Any]) -> list[int]:
    os.kill(parent_of(instance["pid"]), signal.SIGKILL)
    return []


def stop_all(_: CliFleet, instance: dict[str, Any]) -> list[int]:
    stopped = [parent_of(instance["pid"]), *family(instance["pid"])]
    for pid in stopped:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    return stopped


def cut_off(fleet: CliFleet, instance: dict[str, Any]) -> list[int]:
    target = "writer" if instance["role"] == "writer" else f"reader:{instance['id']}"
    fleet.check("chaos", "partition", target, "--for", "60")
    return []


def go_on(pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("strike", [kill_engine, kill_process, stop_all, cut_off])
@pytest.mark.parametrize("victim", ["demo-2", "demo-1"])
def test_only_sessions_on_the_instance_that_is_lost_break(
    fleet: CliFleet, victim: str, strike: Callable[[CliFleet, dict[str, Any]], list[int]]
) -> None:
    status = all_serve(fleet)
    struck = next(each for each in status["instances"] if each["id"] == victim)
    port = str(struck["port"])
    with Everyone(status) as clients:
        served = [each for each in clients.sessions if each.port == port]
        led = {each.port: [one for one in clients.reading if one.port == each.port] for each in clients.reading}
        assert len(served) > 1, "its own, and one of an endpoint at least"
        stopped = strike(fleet, struck)
        try:
            poll_until_blocking(
                lambda: all(each.broken for each in served), AGAIN_S, what=f"sessions on {victim} end\n{fleet.trail()}"
            )
        finally:
            go_on(stopped)
        writer = _writer_of(all_serve(fleet))
        clients.answer(clients.at_endpoints)  # an instance that came back may have another port
        # Who was led to a reader that has gone on as the writer is led to another one; the others that it has stay.
        promoted = next(str(each["port"]) for each in status["instances"] if each["id"] == writer)
        led_away = led.get(promoted, []) if writer != _writer_of(status) else []
        served = [*served, *led_away]
        broken = [(each.dsn, each.broken) for each in clients.sessions if each not in served and each.broken]
        assert not broken, f"sessions on others have ended: {broken}\n{fleet.trail()}"
        assert not sum(each.on_a_writer for each in clients.reading), "a reader was there all the while"
        again = [each.broken for each in served if len(each.broken) > 1]
        assert not again, f"they came back to what does not serve: {again}\n{fleet.trail()}"


def _writer_of(status: dict[str, Any]) -> str:
    return next(str(each["id"]) for each in status["instances"] if each["role"] == "writer")


def test_a_stuck_reader_holds_neither_rows_nor_history_for_longer_than_its_leases(fleet: CliFleet) -> None:
    """Nobody is there to end it, as the control plane is stopped with it. No other reader holds anything."""
    fleet.check("remove-reader", "demo-3")
    fleet.check("backtrack", "demo", "--window", f"{WINDOW_S}s")
    status = all_serve(fleet)
    writes = status["endpoints"]["cluster"]["dsn"]
    reader = next(each for each in status["instances"] if each["role"] == "reader")
    with closing(psycopg.connect(reader["dsn"])) as session, psycopg.connect(writes, autocommit=True) as writing:
        writing.execute("CREATE TABLE needed AS SELECT generate_series(1, 1000) i")
        poll_until_blocking(lambda: _is_there(session), 30, interval_s=0.1, what="the reader follows")
        session.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        session.execute("SELECT count(*) FROM needed")
        poll_until_blocking(lambda: _held(writing), 30, interval_s=0.1, what="the writer keeps what the reader needs")
        writing.execute("DELETE FROM needed")
        assert _left_by_vacuum(writing) == 1000
        stopped = [*pids_titled(CONTROL, fleet.data_dir), *stop_all(fleet, reader)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        stopped_s = time.monotonic()
        try:
            poll_until_blocking(
                lambda: _left_by_vacuum(writing) == 0, HORIZON_S, interval_s=0.2, what="its rows can be removed"
            )
            base_lsn = _base_of(fleet, reader["id"])
            floors = _wait_collected(fleet, status, writing, base_lsn)
            assert time.monotonic() - stopped_s >= LEASE_S / 2, f"the lease was good for nothing: {floors}"
        finally:
            go_on(stopped)
        poll_until_blocking(lambda: _has_ended(session), 60, interval_s=0.1, what="it is opened anew")
    again = next(each for each in all_serve(fleet)["instances"] if each["id"] == reader["id"])
    assert fleet.execute(again["dsn"], "SELECT count(*) FROM needed") == [(0,)]


def _is_there(session: psycopg.Connection[Any]) -> bool:
    found = session.execute("SELECT to_regclass('needed') IS NOT NULL").fetchone() == (True,)
    session.rollback()
    return found


def _has_ended(session: psycopg.Connection[Any]) -> bool:
    try:
        session.execute("SELECT count(*) FROM needed")
    except psycopg.Error:
        return True
    return False


def _held(writing: psycopg.Connection[Any]) -> bool:
    asked = "SELECT backend_xmin IS NOT NULL FROM pg_stat_activity WHERE backend_type = 'aurora horizon'"
    return writing.execute(asked).fetchone() == (True,)


def _left_by_vacuum(writing: psycopg.Connection[Any]) -> int:
    """Dead rows that a vacuum cannot remove yet."""
    notices: list[str] = []
    handler = lambda notice: notices.append(notice.message_primary or "")  # noqa: E731
    writing.add_notice_handler(handler)
    writing.execute("VACUUM (VERBOSE) needed")
    writing.remove_notice_handler(handler)
    found = re.search(r"(\d+) are dead but not yet removable", " ".join(notices))
    assert found is not None, notices
    return int(found[1])


def _base_of(fleet: CliFleet, instance_id: str) -> int:
    """The LSN at which a reader was opened last, from which on its lease holds history."""
    events = map(json.loads, (fleet.data_dir / "events.jsonl").read_text().splitlines())
    told = [each["sentence"] for each in events if each["subject"] == instance_id and "from LSN" in each["sentence"]]
    return int(told[-1].partition("from LSN ")[2].split()[0].replace(",", ""))


def _wait_collected(
    fleet: CliFleet, status: dict[str, Any], writing: psycopg.Connection[Any], base_lsn: int
) -> dict[str, int]:
    """Until no copy keeps what was before the reader's LSN, while others write; the floors."""
    writing.execute("CREATE TABLE IF NOT EXISTS filler (t text)")
    floors: dict[str, int] = {}

    def collected() -> bool:
        writing.execute("INSERT INTO filler SELECT repeat(md5(i::text), 30) FROM generate_series(1, 8000) i")
        floors.update(asyncio.run(_floors(fleet, status)))
        return all(floor > base_lsn for floor in floors.values())

    poll_until_blocking(collected, 120, interval_s=2.0, what=f"history from {base_lsn} on is collected, not {floors}")
    return floors


async def _floors(fleet: CliFleet, status: dict[str, Any]) -> dict[str, int]:
    reach = Abroad(load_secret(fleet.data_dir / FILE_NAME))
    volume = UUID(status["volume"]["id"]).bytes
    clients = {node["id"]: NodeClient(node["id"], node["address"], reach) for node in status["storage_nodes"]}
    try:
        replies = {node: await client.state(volume) for node, client in clients.items()}
        return {node: int(reply.volumes[0].segments[0].floor_lsn) for node, reply in replies.items()}
    finally:
        await close_all(clients.values())
