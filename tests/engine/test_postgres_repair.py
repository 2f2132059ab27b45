"""What shut its owner out of a cluster is mended without a login."""

from pathlib import Path

import psycopg
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall
from aurora_ray.engine.postgres.catalogue import catalogue, check_changes
from aurora_ray.engine.postgres.configuration import AUTO, HBA, PG_HBA
from aurora_ray.engine.postgres.credentials import make_verifier, verifies
from aurora_ray.engine.postgres.repair import BEFORE, Repair
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.errors import UsageError

LOCK = (
    "create function no() returns event_trigger language plpgsql as $$begin raise exception 'no'; end$$",
    "create event trigger no on login execute function no()",
    "create role boss superuser login",
    "alter role postgres set session_preload_libraries = 'no_such'",
    "alter role postgres nologin",
)


async def session(engine: PostgresEngine, **more: str) -> psycopg.AsyncConnection[tuple[object, ...]]:
    given = {"host": str(engine.socket_dir), "user": "postgres", "dbname": "postgres", **more}
    return await psycopg.AsyncConnection.connect(port=engine.port, autocommit=True, **given)  # type: ignore[arg-type]


@pytest.mark.postgres
async def test_everything_at_once(engine: PostgresEngine, cluster: Path, account: EngineAccount) -> None:
    await engine.start(cluster)
    async with await session(engine) as client:
        for statement in LOCK:
            await client.execute(statement.encode())
    async with await session(engine, user="boss", dbname="template1") as client:
        await client.execute(b"alter role postgres rename to admin")
        await client.execute(b"drop database postgres")
    await engine.stop()
    for name, content in ((AUTO, "nonsense\n"), (HBA, "local all all reject\n"), ("standby.signal", "")):
        (cluster / name).write_text(content)
        account.own(cluster / name, 0o600)
    for _ in range(2):  # the second time there is nothing left to do
        await engine.repair(cluster, list(Repair), env={}, pass_fds=(), password="known")  # noqa: S106
    await engine.start(cluster)
    assert engine.troubles == ()
    assert (cluster / HBA).read_text() == PG_HBA
    assert (cluster / (BEFORE + AUTO)).read_text() == "nonsense\n"
    async with await session(engine, host="127.0.0.1", password="known") as client:  # noqa: S106
        await client.execute(b"create table t (i int)")


def test_a_verifier_is_one_of_its_password() -> None:
    verifier = make_verifier("correct horse")
    assert verifies("correct horse", verifier)
    assert not verifies("battery staple", verifier)
    assert verifier != make_verifier("correct horse")


def test_parameters_are_checked_against_the_engine_itself(install: EngineInstall) -> None:
    known = catalogue(install)
    assert known["max_connections"].context == "postmaster"
    changes = {"Max-Connections": "300", "jit": None, "work_mem": "64MB", "pg_stat_statements.max": "5000"}
    assert check_changes(install, changes) == {
        "max_connections": "pending-reboot",
        "jit": "dynamic",
        "work_mem": "dynamic",
        "pg_stat_statements.max": "dynamic",
    }


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("work_mem", "64zB", "invalid value for parameter"),
        ("no_such", "1", "unrecognized configuration parameter"),
        ("max_connections", "0", "outside the valid range"),
        ("block_size", "1", "cannot be changed"),
        ("fsync", "off", "fixed by the storage"),
        ("port", "1", "fixed by the fleet"),
        ("wal_level", "minimal", "replica or logical"),
        ("work_mem", "1\nfsync = off", "one line"),
    ],
)
def test_a_parameter_that_the_engine_does_not_take(
    install: EngineInstall, name: str, value: str, complaint: str
) -> None:
    with pytest.raises(UsageError, match=complaint):
        check_changes(install, {name: value})
