"""MariaDB as a writer on six real storage nodes: what it promised is there after every end."""

import asyncio
import contextlib
import datetime as dt
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pymysql
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from aurora_ray.compute.commands import ReplicaStatus
from aurora_ray.compute.config import EngineChoice, InstanceConfig
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.account import find_account
from aurora_ray.engine.base import ReplicaRow, StopMode
from aurora_ray.errors import AuroraError
from tests.support.leaks import remove_tree
from tests.support.stack_export import export
from tests.volume.cluster import Cluster, running

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.timeout(240),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core"),
]
WRITERS: list[Writer] = []
ENDS = pytest.mark.allowed_logs(r".* ends: ", r"epoch \d+")


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    """Images are made once for the module."""
    path = run_dir / "mariadb-writer"
    path.mkdir(mode=0o755)
    yield path
    remove_tree(path)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path, page_size=16384) as six:
        yield six
        while WRITERS:  # of a test that failed
            with contextlib.suppress(AuroraError):
                await WRITERS.pop().stop(StopMode.KILL)


@pytest.fixture
def config(cluster: Cluster, shared_dir: Path, free_port: int) -> InstanceConfig:
    return InstanceConfig(
        cluster="demo",
        instance_id=f"demo-{free_port}",
        az="a",
        volume=cluster.spec,
        nodes=tuple(cluster.addresses),
        engine=EngineChoice("mysql", "", shared_dir),
        port=free_port,
        superuser_password="correct horse",  # noqa: S106
        initialise=True,
        open_timeout_s=90,
        stop_timeout_s=60,
    )


def connect(config: InstanceConfig, **more: Any) -> "pymysql.Connection[Any]":
    return pymysql.connect(
        **more,
        host="127.0.0.1",
        port=config.port,
        user="admin",
        password=config.superuser_password,
        autocommit=True,
        connect_timeout=30,
        read_timeout=100,
    )


def run(config: InstanceConfig, *statements: str, **more: Any) -> list[tuple[Any, ...]]:
    """The rows of the last one."""
    with closing(connect(config, **more)) as session, session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


async def session_of(config: InstanceConfig, **more: Any) -> "pymysql.Connection[Any]":
    """Not in this thread: what drives the volume is in it, and the server may wait for that before it answers."""
    return await asyncio.to_thread(connect, config, **more)


async def execute(config: InstanceConfig, *statements: str, **more: Any) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(run, config, *statements, **more)


async def opened(config: InstanceConfig) -> tuple[Writer, int]:
    """A writer that serves, and its server's process."""
    writer = Writer(config)
    WRITERS.append(writer)
    return writer, (await writer.start()).pid


async def killed(writer: Writer, pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert "killed by signal 9" in (await writer.wait_ended()).reason


async def check_pages(config: InstanceConfig, cluster: Cluster, target: Path) -> int:
    """Has the server's own tool look at each page of all tablespaces in the volume; how many these are."""
    await export(cluster.spec, tuple(cluster.addresses), None, target, find_account("aurora-ray"))
    spaces = [*target.rglob("*.ibd"), target / "ibdata1"]  # noqa: ASYNC240 - nothing else runs meanwhile
    for space in spaces:
        done = await asyncio.to_thread(
            subprocess.run, ["innochecksum", str(space)], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, f"{space}: {done.stderr}"
    remove_tree(target)
    return len(spaces)


async def tells_drivers(writer: Writer, config: InstanceConfig) -> None:
    """What drivers for Amazon Aurora ask, in a session that came by the ordinary address and in one by another."""
    me, now_s = config.instance_id, 1_700_000_000.25
    rows = (
        ReplicaRow(f"{me}-here", "MASTER_SESSION_ID", 12.5, 0.0, now_s, "60.75", me),
        ReplicaRow("another", "something", 1.0, 20.25, now_s, "60.76"),
    )
    await writer.do(ReplicaStatus(rows, ()))
    (shown,) = await execute(config, "show variables like 'aurora_version'")
    assert shown == ("aurora_version", version("aurora-ray"))
    assert await execute(config, "select @@aurora_server_id, @@innodb_read_only") == [(f"{me}-here", 0)]
    lines = "select * from information_schema.replica_host_status order by 1 desc"
    found = await execute(config, "set time_zone = '+00:00'", lines)
    when = dt.datetime(2023, 11, 14, 22, 13, 20, 250_000)
    assert found == [(f"{me}-here", "MASTER_SESSION_ID", 12.5, 0.0, when), ("another", "something", 1.0, 20.25, when)]
    assert await execute(config, "select count(*) from information_schema.replica_host_status") == [(2,)]
    with closing(await session_of(config, bind_address="127.0.60.75")) as session, session.cursor() as cursor:
        ask = "select @@aurora_server_id, server_id from information_schema.replica_host_status"
        await asyncio.to_thread(cursor.execute, ask)
        assert cursor.fetchall() == (("60.75", "60.75"), ("60.75", "60.76"))
        with closing(await session_of(config)) as other, other.cursor() as its:  # which begins before the name changes
            await writer.do(ReplicaStatus((replace(rows[0], server_id=f"{me}-there"),), ()))
            for each, told in ((cursor, ("60.75", "60.75")), (its, (f"{me}-there",) * 2)):
                for _ in range(2):  # in a session that had begun, from when it has looked at the table
                    await asyncio.to_thread(each.execute, ask)
                assert each.fetchall() == (told,)
    assert await execute(config, "select @@aurora_server_id") == [(f"{me}-there",)]


@ENDS
async def test_what_was_committed_is_there_after_every_end(
    config: InstanceConfig, cluster: Cluster, data_dir: Path
) -> None:
    writer, _ = await opened(config)
    await execute(config, "create database d", "create table d.t (i int primary key auto_increment, s varchar(100))")
    await execute(config, "insert into d.t (s) select seq from d.seq_1_to_20000")
    assert (await writer.stop()).asked
    assert not config.dirs.mount.exists()

    again = replace(config, initialise=False)
    writer, pid = await opened(again)
    assert await execute(again, "select count(*), count(distinct i) from d.t") == [(20000, 20000)]
    await tells_drivers(writer, again)
    await execute(again, *["insert into d.t (s) values ('after')"] * 200)
    await killed(writer, pid)
    assert await check_pages(config, cluster, data_dir / "tree") > 3

    writer, pid = await opened(again)
    assert await execute(again, "select count(*), sum(s = 'after') from d.t") == [(20200, 200)]
    with closing(await session_of(again)) as session, session.cursor() as cursor:
        await asyncio.to_thread(cursor.execute, "begin")
        await asyncio.to_thread(cursor.execute, "delete from d.t")
        await killed(writer, pid)

    writer, _ = await opened(again)
    assert await execute(again, "select count(*) from d.t") == [(20200,)]
    assert await execute(again, "check table d.t extended") == [("d.t", "check", "status", "OK")]
    await writer.stop()


def certificate(directory: Path) -> tuple[tuple[str, str], ...]:
    """Parameters of a server with TLS; whoever comes without it is refused."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "aurora")])
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    own = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for suffix, content in (("crt", own), ("key", secret)):
        (directory / f"own.{suffix}").write_bytes(content)
        (directory / f"own.{suffix}").chmod(0o644)  # of a test; the engine's account reads it
    return ("ssl_cert", f"{directory}/own.crt"), ("ssl_key", f"{directory}/own.key"), ("require_secure_transport", "ON")


@pytest.mark.parametrize("tls", [False, pytest.param(True, marks=pytest.mark.chaos)])
async def test_a_commit_returns_when_it_has_its_quorum(
    config: InstanceConfig, cluster: Cluster, shared_dir: Path, *, tls: bool
) -> None:
    """With three of six copies nothing commits; when the fourth is back, what waited does, in the same session.

    Meanwhile others may have to wait even if they read: what they would be told might not be durable yet. One wait is
    enough for both logs of which a commit is made.
    """
    writer, _ = await opened(replace(config, parameters=certificate(shared_dir)) if tls else config)
    more: dict[str, Any] = {"ssl": {"ca": f"{shared_dir}/own.crt", "check_hostname": False}} if tls else {}
    await execute(
        config, "create database d", "create table d.t (i int primary key)", "insert into d.t values (1000)", **more
    )
    assert bool((await execute(config, "show status like 'ssl_version'", **more))[0][1]) == tls
    before = writer.status().stats["sync_waits"]
    await execute(config, *["insert into d.t select max(i) + 1 from d.t"] * 100, **more)
    assert 90 < writer.status().stats["sync_waits"] - before < 130
    with ExitStack() as sessions:
        both = [sessions.enter_context(closing(await session_of(config, **more))) for _ in range(2)]
        cursor, inside = (each.cursor() for each in both)
        await asyncio.to_thread(cursor.execute, "insert into d.t values (1)")
        await asyncio.to_thread(inside.execute, "begin")
        await asyncio.to_thread(inside.execute, "update d.t set i = 999 where i = 1000")
        await cluster.stop("a1", "b1", "c1")
        commit = asyncio.create_task(asyncio.to_thread(cursor.execute, "insert into d.t values (2)"))
        done, _ = await asyncio.wait([commit], timeout=2)
        assert not done
        read = asyncio.create_task(execute(config, "select i from d.t where i < 1000", **more))
        await writer._engine.check(timeout_s=10)  # type: ignore[union-attr]  # it greets
        if not tls:  # of a transaction that is open, nothing is told but that it is
            async with asyncio.timeout(10):
                await asyncio.to_thread(inside.execute, "select i from d.t where i < 0")
                await asyncio.to_thread(inside.execute, "update d.t set i = i where i = 999")
        chained = asyncio.create_task(asyncio.to_thread(inside.execute, "commit and chain"))
        done, _ = await asyncio.wait([chained], timeout=2)
        assert not done
        assert not commit.done()
        await cluster.start("a1", "b1", "c1")
        await writer.update_nodes(tuple(cluster.addresses))
        async with asyncio.timeout(60):
            assert await commit == 1
            assert (await read)[0] == (1,)
            await chained
            await asyncio.to_thread(inside.execute, "commit")
    assert await execute(config, "select i from d.t where i < 1000", **more) == [(1,), (2,), (999,)]
    await writer.stop()


@ENDS
@pytest.mark.allowed_logs(r"MariaDB does not start with")
@pytest.mark.chaos
async def test_what_users_do_keeps_nothing_down(config: InstanceConfig) -> None:
    writer, pid = await opened(config)
    await execute(config, "set password = password('lost')", "drop user 'aurora_ray'@'localhost'")
    with pytest.raises(pymysql.OperationalError, match="SUPER"):
        await execute(replace(config, superuser_password="lost"), "set global innodb_flush_log_at_trx_commit = 0")  # noqa: S106
    for _ in range(3):
        assert writer._engine is not None
        await writer._engine.check(timeout_s=10)
    await killed(writer, pid)

    changed = replace(config, initialise=False, parameters=(("innodb_log_file_size", "nonsense"),))
    writer, _ = await opened(changed)
    assert "does not start with its parameters" in " ".join(each.sentence for each in writer.status().troubles)
    with pytest.raises(pymysql.OperationalError, match="denied"):
        await execute(config, "select 1")
    assert await execute(replace(config, superuser_password="lost"), "select 1") == [(1,)]  # noqa: S106
    await writer.stop()

    writer, _ = await opened(replace(config, initialise=False, repairs=("roles:1",)))
    assert await execute(config, "select current_user()") == [("admin@%",)]
    await writer.stop()


@pytest.mark.chaos
async def test_no_table_lies_outside_of_the_volume(config: InstanceConfig, data_dir: Path) -> None:
    writer, _ = await opened(config)
    elsewhere = data_dir / "elsewhere"
    elsewhere.mkdir(mode=0o777)
    elsewhere.chmod(0o777)
    await execute(config, "create database d")
    for engine in ("InnoDB", "MyISAM", "Aria"):
        with contextlib.suppress(pymysql.MySQLError):
            await execute(config, f"create table d.{engine} (i int) engine={engine} data directory='{elsewhere}'")
    assert not [*elsewhere.iterdir()]
    await writer.stop()
