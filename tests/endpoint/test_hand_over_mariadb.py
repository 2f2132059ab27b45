"""Sockets of clients that are given to a MariaDB on this machine, whose sessions are threads of one process."""

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest

from aurora_ray.endpoint.relay import ClientProtocol, Relay, Target
from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.mariadb.adapter import ADAPTER
from aurora_ray.engine.mariadb.client import ADMIN_FILE
from aurora_ray.engine.mariadb.connection import options_of
from aurora_ray.engine.mariadb.image import prepare_image
from aurora_ray.engine.mariadb.install import find_install
from aurora_ray.engine.mariadb.server import MariadbEngine
from aurora_ray.engine.mariadb.sessions import count_sessions
from aurora_ray.engine.mariadb.settings import PAGE_BYTES
from aurora_ray.engine.server import PRELOADED
from aurora_ray.interposer import native
from tests.endpoint.backends import open_fds
from tests.endpoint.test_hand_over import CUT_WITHIN_S, STRANGER, offer
from tests.engine.conftest import account, image_cache  # noqa: F401 - fixtures
from tests.engine.plain import build_tree
from tests.support.polling import poll_until
from tests.support.timing import scaled

pytestmark = [pytest.mark.mariadb, pytest.mark.allowed_logs("error")]

PROTOCOL = ClientProtocol(ADAPTER.cancel_code, ADAPTER.refusal, ADAPTER.keeps_address)
Session = Any


@dataclass
class Server:
    """A MariaDB that takes sockets."""

    engine: MariadbEngine

    @property
    def target(self) -> Target:
        return Target("127.0.0.1", self.engine.port, str(self.engine.pid), str(self.engine.hand_over))

    def ask(self, statement: str) -> object:
        """A value, asked past the endpoint."""
        options = options_of(f"--defaults-file={self.engine.socket_dir / ADMIN_FILE}")
        with contextlib.closing(
            pymysql.connect(
                unix_socket=options["socket"], user=options["user"], password=options["password"], autocommit=True
            )
        ) as own:
            return value(own, statement)

    def is_alone(self) -> bool:
        """Whether it has no client of the network."""
        return count_sessions(self.engine.pid or 0) == 0

    def fds(self) -> int:
        return len(os.listdir(f"/proc/{self.engine.pid}/fd"))

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It hangs."""
        pid = self.engine.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def server(data_dir: Path, image_cache: Path, account: EngineAccount) -> AsyncIterator[Server]:  # noqa: F811
    install = find_install()
    data = data_dir / "data"
    build_tree(prepare_image(install, account, image_cache).new_cluster(), data, account, PAGE_BYTES)
    library = data_dir / "library.so"
    shutil.copyfile(native.library_path(), library)
    library.chmod(0o755)
    engine = MariadbEngine(install, account, data_dir / "run", name="one")
    try:
        await engine.start(data, env={PRELOADED: str(library)})
        made = Server(engine)
        made.ask("CREATE USER somebody@'127.%' IDENTIFIED BY 'secret'")
        made.ask("CREATE DATABASE d")
        made.ask("GRANT ALL ON d.* TO somebody@'127.%'")
        yield made
    finally:
        await engine.stop(StopMode.KILL)


@pytest.fixture
def relay(make_relay: Callable[..., Relay], server: Server) -> Relay:
    made = make_relay(protocol=PROTOCOL)
    made.set_targets([server.target], 1)
    return made


def connect(relay: Relay, host: str = "127.0.0.1") -> Session:
    return pymysql.connect(
        host=host,
        port=relay.port,
        user="somebody",
        password="secret",  # noqa: S106
        database="d",
        autocommit=True,
        connect_timeout=round(scaled(20)),
        read_timeout=scaled(20),
    )


def value(of: Session, statement: str) -> object:
    with of.cursor() as cursor:
        cursor.execute(statement)
        row = cursor.fetchone()
    return row[0] if row else None


SLEEPING = "SELECT count(*) FROM information_schema.processlist WHERE state = 'User sleep'"
OWN_HOST = "SELECT host FROM information_schema.processlist WHERE id = connection_id()"


async def test_no_byte_passes_and_the_server_sees_the_clients_own_port(server: Server, relay: Relay) -> None:
    with contextlib.closing(connect(relay)) as one:
        with socket.socket(fileno=os.dup(one._sock.fileno())) as connection:
            host, port = connection.getsockname()
        assert value(one, OWN_HOST) == f"{host}:{port}"
        assert value(one, "SELECT length(repeat('x', 3000000))") == 3_000_000
        stats = relay.stats()
        assert (stats.open, stats.handed, stats.bytes_up, stats.bytes_down, stats.messages) == (1, 1, 0, 0, 0)
        assert count_sessions(server.engine.pid or 0) == 1
    await poll_until(lambda: relay.stats().open == 0, what="the endpoint learns of the end")


@pytest.mark.parametrize("taken", ["handed", "relayed"])
async def test_by_which_address_a_client_came_is_where_it_is_connected_from(
    server: Server, relay: Relay, taken: str
) -> None:
    other = Relay(protocol=PROTOCOL)
    try:
        other.start("127.0.7.9")
        other.set_targets([server.target._replace(hand_over=server.target.hand_over if taken == "handed" else "")], 1)
        with contextlib.closing(connect(other, "127.0.7.9")) as one:
            assert str(value(one, OWN_HOST)).startswith("127.0.7.9:")
            assert value(one, "SELECT user()") == "somebody@127.0.7.9"
        assert other.stats().handed == (taken == "handed")
    finally:
        other.close()


@pytest.mark.parametrize("hangs", [False, True])
async def test_idle_and_active_sessions_are_cut_whatever_the_server_does(
    server: Server, relay: Relay, hangs: bool
) -> None:
    idle, active = connect(relay), connect(relay)
    working = asyncio.create_task(asyncio.to_thread(value, active, "SELECT sleep(600)"))
    await poll_until(lambda: server.ask(SLEEPING))
    with server.stopped() if hangs else contextlib.nullcontext():
        began_s = time.monotonic()
        relay.set_targets([], 2)
        with pytest.raises(pymysql.OperationalError):
            await working
        with pytest.raises(pymysql.OperationalError):
            value(idle, "SELECT 1")
        assert time.monotonic() - began_s < scaled(CUT_WITHIN_S)
    assert (relay.stats().cut, relay.stats().open) == (2, 0)
    await poll_until(server.is_alone, what="nothing is left on the server")


async def test_what_a_hanging_server_has_not_taken_is_held_and_goes_to_the_next(server: Server, relay: Relay) -> None:
    with server.stopped():
        coming = [asyncio.create_task(asyncio.to_thread(_greet, relay)) for _ in range(5)]
        await poll_until(lambda: relay.stats().held == 5)
        relay.set_targets([], 2)
        assert (relay.stats().held, relay.stats().cut) == (5, 0)
    await poll_until(server.is_alone, what="the server, going again, has nobody")
    relay.set_targets([server.target._replace(incarnation="next")], 3)
    assert await asyncio.gather(*coming) == ["somebody@127.0.0.1"] * 5
    await poll_until(lambda: relay.stats().open == 0)
    assert (relay.stats().cut, relay.stats().handed) == (0, 5)


def _greet(relay: Relay) -> object:
    with contextlib.closing(connect(relay)) as one:
        return value(one, "SELECT user()")


async def test_an_end_is_seen_however_it_comes(server: Server, relay: Relay) -> None:
    ended, closed, killed = (connect(relay) for _ in range(3))
    server.ask(f"KILL {ended.thread_id()}")
    await poll_until(lambda: relay.stats().open == 2)
    closed.close()
    await poll_until(lambda: relay.stats().open == 1)
    await server.engine.stop(StopMode.KILL)
    await poll_until(lambda: relay.stats().open == 0)
    with pytest.raises(pymysql.OperationalError):
        value(killed, "SELECT 1")


async def test_one_too_many_is_told_so(make_relay: Callable[..., Relay], server: Server) -> None:
    relay = make_relay(protocol=PROTOCOL, sessions_max=1)
    relay.set_targets([server.target], 1)
    first, refusal = connect(relay), "the endpoint has as many sessions as it may have"
    with contextlib.closing(first), pytest.raises(pymysql.OperationalError, match=refusal):
        connect(relay)
    await poll_until(lambda: relay.stats().open == 0)
    assert _greet(relay) == "somebody@127.0.0.1"


async def test_two_thousand_sessions_leave_no_descriptor(server: Server, relay: Relay) -> None:
    before, servers = open_fds(), server.fds()
    for _ in range(20):
        connections = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(100)]
        for connection in connections:
            connection.close()
    await poll_until(lambda: relay.stats().accepted == 2000 and relay.stats().open + relay.stats().held == 0)
    await poll_until(lambda: open_fds() <= before)
    await poll_until(server.is_alone)
    await poll_until(lambda: server.fds() <= servers)


async def test_only_sockets_of_the_network_are_taken_and_only_from_who_may(server: Server, relay: Relay) -> None:
    path = Path(server.target.hand_over)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as local, open(os.devnull) as file:  # noqa: ASYNC230
        for fds in ([], [local.fileno()], [file.fileno()]):
            assert await asyncio.to_thread(offer, str(path), fds, b"s") == b""
    if os.geteuid() == 0:
        for name in (path, path.parent):
            name.chmod(0o777)
        with socket.create_connection(("127.0.0.1", server.engine.port)) as client:
            os.seteuid(STRANGER)
            try:
                assert offer(str(path), [client.fileno()], b"s") == b""
            finally:
                os.seteuid(0)
    assert _greet(relay) == "somebody@127.0.0.1"
