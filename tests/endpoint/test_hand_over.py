"""Sockets of clients that are given to a PostgreSQL on this machine: no byte of a session passes the endpoint."""

import array
import asyncio
import contextlib
import os
import shutil
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
import pytest

from aurora_ray.endpoint.relay import ClientProtocol, Relay, Target
from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.postgres.client import CANCEL_CODE, REFUSAL
from aurora_ray.engine.postgres.credentials import ensure_passfile
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.engine.process import processes_in
from aurora_ray.engine.server import PRELOADED
from aurora_ray.interposer import native
from aurora_ray.log.record import Record
from tests.endpoint.backends import open_fds
from tests.engine.conftest import (  # noqa: F401 - fixtures
    account,
    cluster,
    engine,
    image,
    image_cache,
    install,
    make_engine,
    records,
)
from tests.engine.plain import build_tree
from tests.support.polling import poll_until
from tests.support.timing import scaled

pytestmark = [pytest.mark.postgres, pytest.mark.allowed_logs("error ignored terminating")]

CUT_WITHIN_S = 0.5
STRANGER = 65534
PROTOCOL = ClientProtocol(CANCEL_CODE, REFUSAL)
ALL_BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


@dataclass
class Server:
    """A PostgreSQL that takes sockets."""

    engine: PostgresEngine
    data: Path
    passfile: Path
    environment: dict[str, str]

    @property
    def target(self) -> Target:
        return Target("127.0.0.1", self.engine.port, str(self.engine.pid), str(self.engine.hand_over))

    def dsn(self, port: int) -> str:
        return f"postgresql://postgres@127.0.0.1:{port}/postgres?passfile={self.passfile}"

    async def ask(self, statement: str) -> object:
        """A value, asked past the endpoint."""
        async with await psycopg.AsyncConnection.connect(self.dsn(self.engine.port), autocommit=True) as session:
            row = await (await session.execute(statement)).fetchone()  # type: ignore[arg-type]
            return row[0] if row is not None else None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It hangs, all of it."""
        pids = sorted(processes_in(self.data, "postgres"))  # the postmaster first: then there are no new ones
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@pytest.fixture
async def server(engine: PostgresEngine, cluster: Path, data_dir: Path) -> Server:  # noqa: F811
    library = data_dir / "library.so"
    shutil.copyfile(native.library_path(), library)
    library.chmod(0o755)
    environment = {PRELOADED: str(library)}
    await engine.start(cluster, env=environment)
    passfile = data_dir / "pgpass"
    await engine.give_password(ensure_passfile(passfile, "postgres"))
    return Server(engine, cluster, passfile, environment)


@pytest.fixture
def relay(make_relay: Callable[..., Relay], server: Server) -> Relay:
    made = make_relay(protocol=PROTOCOL)
    made.set_targets([server.target], 1)
    return made


@asynccontextmanager
async def session(
    server: Server, relay: Relay, more: str = ""
) -> AsyncIterator["psycopg.AsyncConnection[tuple[object, ...]]"]:
    async with asyncio.timeout(scaled(20)):
        made = await psycopg.AsyncConnection.connect(server.dsn(relay.port) + more, autocommit=True)
    try:
        yield made
    finally:
        await made.close()


async def value(of: "psycopg.AsyncConnection[tuple[object, ...]]", statement: str) -> object:
    row = await (await of.execute(statement)).fetchone()  # type: ignore[arg-type]
    return row[0] if row is not None else None


async def test_no_byte_passes_and_the_server_sees_the_clients_own_address(server: Server, relay: Relay) -> None:
    async with session(server, relay) as one:
        own = one.pgconn
        with socket.socket(fileno=os.dup(own.socket)) as connection:
            address = connection.getsockname()
        assert await value(one, "SELECT host(inet_client_addr()) || ':' || inet_client_port()") == "{}:{}".format(
            *address
        )
        assert await value(one, "SELECT inet_server_port()") == relay.port
        assert await value(one, "SELECT length(repeat('x', 3000000))") == 3_000_000
        stats = relay.stats()
        assert (stats.open, stats.handed, stats.bytes_up, stats.bytes_down, stats.messages) == (1, 1, 0, 0, 0)
    await poll_until(lambda: relay.stats().open == 0, what="the endpoint learns of the end")


async def test_pg_hba_tells_clients_apart_by_their_address(server: Server, relay: Relay) -> None:
    hba = server.data / "pg_hba.conf"
    hba.write_text("host all all 127.0.0.2/32 reject\n" + hba.read_text())
    await server.ask("SELECT pg_reload_conf()")
    startup = b"\0\3\0\0user\0postgres\0\0"
    answers = []
    for source in ("127.0.0.1", "127.0.0.2"):
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, local_addr=(source, 0))
        writer.write((len(startup) + 4).to_bytes(4, "big") + startup)
        async with asyncio.timeout(scaled(10)):
            answers.append(await reader.read(1000))
        writer.close()
        await writer.wait_closed()
    assert answers[0].startswith(b"R"), "it is asked for a password"
    assert b'pg_hba.conf rejects connection for host "127.0.0.2"' in answers[1]


@pytest.mark.parametrize("hangs", [False, True])
async def test_idle_active_and_copying_sessions_are_cut_whatever_the_server_does(
    server: Server, relay: Relay, hangs: bool
) -> None:
    async with session(server, relay) as idle, session(server, relay) as active, session(server, relay) as copying:
        await idle.execute("CREATE TABLE t (s text)")
        await active.execute("SET client_connection_check_interval = '100ms'")  # else it is noticed after the statement
        working = [
            asyncio.create_task(active.execute("SELECT pg_sleep(600)")),
            asyncio.create_task(_copy(copying)),
        ]
        await poll_until(lambda: _working(server), what="one sleeps and one copies")
        with server.stopped() if hangs else contextlib.nullcontext():
            began_s = time.monotonic()
            relay.set_targets([], 2)
            for work in working:
                with pytest.raises(psycopg.OperationalError):
                    await work
            with pytest.raises(psycopg.OperationalError):
                await idle.execute("SELECT 1")
            assert time.monotonic() - began_s < scaled(CUT_WITHIN_S)
        assert (relay.stats().cut, relay.stats().open) == (3, 0)
        await poll_until(lambda: _alone(server), what="nothing is left on the server")
        assert await server.ask("SELECT count(*) FROM t") == 0


async def _copy(into: "psycopg.AsyncConnection[tuple[object, ...]]") -> None:
    async with into.cursor().copy("COPY t FROM STDIN") as copy:
        while True:
            await copy.write("x" * 8000 + "\n")


async def _working(server: Server) -> bool:
    return await server.ask(f"{ALL_BACKENDS} AND state = 'active'") == 2


async def _alone(server: Server) -> bool:
    return await server.ask(ALL_BACKENDS) == 0


@pytest.fixture
async def other(
    make_engine: Callable[..., PostgresEngine],  # noqa: F811
    records: list[Record],  # noqa: F811
    data_dir: Path,
    account: EngineAccount,  # noqa: F811
    server: Server,
) -> Server:
    """A second server with the first one's content."""
    data = data_dir / "other"
    build_tree(records, data, account)
    made = make_engine(run_dir=data_dir / "other-run")
    await made.start(data, env=server.environment)
    return Server(made, data, server.passfile, server.environment)


@pytest.mark.parametrize("negotiates", ["prefer", "disable"])
@pytest.mark.parametrize("taken", ["handed", "relayed"])
async def test_a_cancel_request_reaches_the_sessions_server(
    server: Server, other: Server, relay: Relay, negotiates: str, taken: str
) -> None:
    """The server with the fewest sessions would get it, and it is the other one's."""
    hand_over = server.target.hand_over if taken == "handed" else ""
    targets = [server.target._replace(hand_over=hand_over), other.target._replace(hand_over=hand_over)]
    if taken == "handed":
        targets[1] = other.target
    relay.set_targets(targets[:1], 1)
    async with session(server, relay, f"&sslmode={negotiates}") as one:
        relay.set_targets(targets, 1)
        sleeping = asyncio.create_task(one.execute("SELECT pg_sleep(600)"))
        await poll_until(lambda: _sleeps(server))
        await one.cancel_safe(timeout=scaled(10))
        with pytest.raises(psycopg.errors.QueryCanceled):
            await sleeping
        assert relay.stats().cancels == 1
        assert await value(one, "SELECT 1") == 1


async def _sleeps(server: Server) -> bool:
    return await server.ask(f"{ALL_BACKENDS} AND query LIKE '%pg_sleep%' AND state = 'active'") == 1


async def test_what_a_hanging_server_has_not_taken_is_held_and_goes_to_the_next(server: Server, relay: Relay) -> None:
    with server.stopped():
        async with asyncio.timeout(scaled(20)):
            coming = [asyncio.create_task(_greet(server, relay)) for _ in range(5)]
            await poll_until(lambda: relay.stats().held == 5)
            relay.set_targets([], 2)
            assert (relay.stats().held, relay.stats().cut) == (5, 0)
    await poll_until(lambda: _alone(server), what="the server, going again, has nobody")
    relay.set_targets([server.target._replace(incarnation="next")], 3)
    assert await asyncio.gather(*coming) == [relay.port] * 5
    await poll_until(lambda: relay.stats().open == 0)
    assert (relay.stats().cut, relay.stats().handed) == (0, 5)


async def _greet(server: Server, relay: Relay) -> object:
    async with session(server, relay) as one:
        return await value(one, "SELECT inet_server_port()")


async def test_an_end_is_seen_however_it_comes(server: Server, relay: Relay) -> None:
    async with AsyncExitStack() as stack:
        ended, closed, killed = [await stack.enter_async_context(session(server, relay)) for _ in range(3)]
        await server.ask(f"SELECT pg_terminate_backend({ended.info.backend_pid})")
        await poll_until(lambda: relay.stats().open == 2)
        await closed.close()
        await poll_until(lambda: relay.stats().open == 1)
        await server.engine.stop(StopMode.KILL)
        await poll_until(lambda: relay.stats().open == 0)
        with pytest.raises(psycopg.OperationalError):
            await killed.execute("SELECT 1")


async def test_programs_that_a_session_starts_do_not_keep_it(server: Server, relay: Relay) -> None:
    async with session(server, relay) as one:
        program = f"cat >/dev/null; sleep 600 >/dev/null 2>&1 & echo $! >{server.data}/sleeps"
        await one.execute(f"COPY (SELECT 1) TO PROGRAM '{program}'")
    await poll_until(lambda: relay.stats().open == 0)
    os.kill(int((server.data / "sleeps").read_text()), signal.SIGKILL)


async def test_one_too_many_is_told_so(make_relay: Callable[..., Relay], server: Server) -> None:
    relay = make_relay(protocol=PROTOCOL, sessions_max=1)
    relay.set_targets([server.target], 1)
    async with session(server, relay):
        with pytest.raises(psycopg.OperationalError, match="the endpoint has as many sessions as it may have"):
            await psycopg.AsyncConnection.connect(server.dsn(relay.port) + "&sslmode=disable")
    await poll_until(lambda: relay.stats().open == 0)
    assert await _greet(server, relay) == relay.port


async def test_two_thousand_sessions_leave_no_descriptor(server: Server, relay: Relay) -> None:
    before, postmaster = open_fds(), _postmaster_fds(server)
    for _ in range(20):
        connections = [socket.create_connection(("127.0.0.1", relay.port)) for _ in range(100)]
        for connection in connections:
            connection.close()
    await poll_until(lambda: relay.stats().accepted == 2000 and relay.stats().open + relay.stats().held == 0)
    await poll_until(lambda: open_fds() <= before)
    await poll_until(lambda: _alone(server))
    await poll_until(lambda: _postmaster_fds(server) == postmaster)


def _postmaster_fds(server: Server) -> int:
    return len(os.listdir(f"/proc/{server.engine.pid}/fd"))


def offer(path: str, fds: list[int], data: bytes) -> bytes:
    """What the server says to whoever offers it this."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(scaled(10))
        connection.connect(path)
        try:
            connection.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
            return connection.recv(1)
        except (BrokenPipeError, ConnectionResetError):
            return b""


async def test_only_sockets_of_the_network_are_taken_and_only_from_who_may(server: Server, relay: Relay) -> None:
    path = server.target.hand_over
    assert Path(path).parent.stat().st_mode & 0o777 == 0o700
    with socket.socket(socket.AF_UNIX) as local, open(os.devnull) as file, socket.socket() as unconnected:  # noqa: ASYNC230
        for fds in ([], [local.fileno()], [file.fileno()], [unconnected.fileno()]):
            assert await asyncio.to_thread(offer, path, fds, b"s") == b""
    if os.geteuid() == 0:
        for name in (Path(path), Path(path).parent, Path(path).parent.parent):
            name.chmod(0o777)
        with socket.create_connection(("127.0.0.1", server.engine.port)) as client:
            os.seteuid(STRANGER)
            try:
                assert offer(path, [client.fileno()], b"s") == b""
            finally:
                os.seteuid(0)
    assert await _greet(server, relay) == relay.port
