"""MariaDB as a reader: it shows what is durable, whoever writes, and takes no writes."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pymysql
import pytest

from aurora_ray.compute.config import EngineChoice, InstanceConfig
from aurora_ray.compute.reader import Reader
from aurora_ray.compute.role import Role
from aurora_ray.compute.writer import Writer
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.mariadb.follow.replica import Replica
from tests.support.leaks import remove_tree
from tests.volume.cluster import Cluster, running

pytestmark = [
    pytest.mark.mariadb,
    pytest.mark.timeout(240),
    pytest.mark.allowed_logs(r"ExecuteBatchError raised in core", r".* ends: ", r"epoch \d+"),
]


@pytest.fixture(scope="module")
def shared_dir(run_dir: Path) -> Iterator[Path]:
    path = run_dir / "mariadb-reader"
    path.mkdir(mode=0o755)
    yield path
    remove_tree(path)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path, page_size=16384) as six:
        yield six


@pytest.fixture
def config(cluster: Cluster, shared_dir: Path, free_port: int) -> InstanceConfig:
    return InstanceConfig(
        cluster="demo",
        instance_id="demo-1",
        az="a",
        volume=cluster.spec,
        nodes=tuple(cluster.addresses),
        engine=EngineChoice("mysql", "", shared_dir),
        port=free_port,
        superuser_password="correct horse",  # noqa: S106
        parameters=(("max_allowed_packet", "64M"),),
        initialise=True,
        open_timeout_s=90,
        stop_timeout_s=60,
    )


def run(port: int, *statements: str) -> list[tuple[Any, ...]]:
    session = pymysql.connect(
        host="127.0.0.1",
        port=port,
        user="admin",
        password="correct horse",  # noqa: S106
        autocommit=True,
        read_timeout=60,
    )
    with closing(session), session.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        return list(cursor.fetchall())


async def execute(port: int, *statements: str) -> list[tuple[Any, ...]]:
    return await asyncio.to_thread(run, port, *statements)


async def write(port: int, *statements: str) -> str:
    """Writes; the place of it, for MASTER_GTID_WAIT."""
    return str((await execute(port, *statements, "select @@last_gtid"))[0][0])


async def read_after(port: int, place: str, statement: str) -> list[tuple[Any, ...]]:
    assert await execute(port, f"select master_gtid_wait('{place}', 30)") == [(0,)]
    return await execute(port, statement)


async def test_a_reader_shows_what_is_durable_whoever_writes(config: InstanceConfig, cluster: Cluster) -> None:
    writer = Writer(config)
    pid = (await writer.start()).pid
    reader = None
    try:
        await execute(config.port, "create database d", "create table d.t (i int primary key, s longtext)")
        place = await write(config.port, "insert into d.t select seq, 'before' from d.seq_1_to_1000")
        reader = Reader(replace(config, instance_id="demo-2", role=Role.READER, port=0, initialise=False))
        port = (await reader.start()).port
        assert await read_after(port, place, "select count(*) from d.t") == [(1000,)]
        assert await execute(port, "select @@read_only, @@innodb_read_only, @@aurora_server_id") == [(1, 1, "demo-2")]
        replica = Replica(reader._engine._admin)  # type: ignore[union-attr]
        await replica.wait_replayed("binlog.000001", 4)
        replica.close()
        with pytest.raises(pymysql.MySQLError) as refused:
            await execute(port, "insert into d.t values (0, '')")
        assert refused.value.args[0] == 1290
        big = "insert into d.t values (1001, repeat('big', 6 * 1024 * 1024))"  # an event in two packets
        place = await write(config.port, big, "alter table d.t add j int default 7")
        assert await read_after(port, place, "select length(s), j from d.t where i = 1001") == [(18 << 20, 7)]

        await execute(config.port, "flush binary logs")
        with closing(pymysql.connect(host="127.0.0.1", port=port, user="admin", password="correct horse")) as session:  # noqa: S106
            os.kill(pid, signal.SIGKILL)
            await writer.wait_ended()
            writer = Writer(replace(config, initialise=False))
            await writer.start()
            place = await write(config.port, "insert into d.t (i) select seq from d.seq_2001_to_3000")
            assert await read_after(port, place, "select count(*) from d.t") == [(2001,)]
            with session.cursor() as cursor:  # it has lived on
                cursor.execute("select count(*) from d.t")
                assert cursor.fetchall() == ((2001,),)
        await asyncio.sleep(0.2)  # not synchronisation: nothing moves, and so nothing is late
        status = reader.status()
        assert status.lag_ms is not None
        assert status.lag_ms < 5000
        assert status.replayed_lsn > 0
        await execute(config.port, "reset master")
        assert "begun anew" in (await reader.wait_ended()).reason
        reader = None
    finally:
        if reader is not None:
            await reader.stop(StopMode.KILL)
        await writer.stop(StopMode.KILL)
