import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall, StopMode
from aurora_ray.engine.postgres.credentials import ensure_passfile
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.engine.postgres.shared_memory import _sysv_segments, posix_segments
from aurora_ray.engine.process import processes_in
from tests.engine.conftest import INSTALLS

pytestmark = pytest.mark.postgres


async def query(engine: PostgresEngine, passfile: Path, statement: str) -> list[tuple[object, ...]]:
    async with await psycopg.AsyncConnection.connect(engine.dsn(passfile), autocommit=True) as session:
        cursor = await session.execute(statement)
        return await cursor.fetchall() if cursor.description else []


@pytest.fixture
async def passfile(engine: PostgresEngine, cluster: Path, data_dir: Path) -> Path:
    """Starts the engine; where its superuser's password is."""
    path = data_dir / "pgpass"
    await engine.start(cluster)
    await engine.give_password(ensure_passfile(path, "postgres"))
    return path


@pytest.mark.parametrize("install", INSTALLS.values(), ids=lambda install: install.version)
async def test_every_version_starts_answers_stops_and_starts_again(
    install: EngineInstall, engine: PostgresEngine, passfile: Path, cluster: Path
) -> None:
    assert engine.install == install
    await engine.check()
    await query(engine, passfile, "CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
    ended = await engine.stop(StopMode.FAST)
    assert ended is not None
    assert ended.clean
    assert engine.pid is None
    assert "database system is shut down" in ended.log_tail
    await engine.start(cluster)
    assert await query(engine, passfile, "SELECT count(*) FROM t") == [(1000,)]
    assert "recovery" not in (engine.log_path.read_text())
    await engine.stop()


async def test_the_server_has_our_settings_and_the_clusters_locale(engine: PostgresEngine, passfile: Path) -> None:
    rows = await query(engine, passfile, "SELECT name, setting || ' by ' || source FROM pg_settings")
    settings: dict[object, object] = dict(rows)  # type: ignore[arg-type]
    assert settings["fsync"] == "on by command line"
    assert settings["full_page_writes"] == "off by configuration file"
    assert settings["shared_buffers"] == "4096 by configuration file"
    assert settings["checkpoint_timeout"] == "60 by configuration file"
    assert await query(engine, passfile, "SELECT error FROM pg_file_settings WHERE error IS NOT NULL") == []
    rows = await query(engine, passfile, "SELECT pg_encoding_to_char(encoding), datcollate FROM pg_database")
    assert {encoding for encoding, _ in rows} == {"UTF8"}
    assert {collation for _, collation in rows} <= {"C", "C.UTF-8"}
    assert await query(engine, passfile, "SELECT upper('é'), 'a' < 'Z', current_setting('TimeZone')") == [
        ("É", False, "UTC")
    ]


async def test_what_was_committed_survives_a_kill(engine: PostgresEngine, passfile: Path, cluster: Path) -> None:
    await query(engine, passfile, "CREATE TABLE t AS SELECT 1 AS n")
    pid = engine.pid
    assert pid is not None
    segments = posix_segments(processes_in(cluster, "postgres"))
    assert segments
    ended = await engine.stop(StopMode.KILL)
    assert ended is not None
    assert ended.returncode == -signal.SIGKILL
    assert not [segment for segment in segments if segment.exists()]
    assert _sysv_segments(pid) == []
    await engine.start(cluster)
    assert "automatic recovery in progress" in engine.log_path.read_text()
    assert await query(engine, passfile, "SELECT n FROM t") == [(1,)]
    ended = await engine.stop(StopMode.IMMEDIATE)
    assert ended is not None
    assert "immediate shutdown" in ended.log_tail


def command_line(engine: PostgresEngine) -> str:
    return Path(f"/proc/{engine.pid}/cmdline").read_text()


@pytest.mark.parametrize("victim", ["postmaster", "backend"])
async def test_a_crash_from_outside_ends_everything_and_is_seen(
    victim: str, engine: PostgresEngine, passfile: Path
) -> None:
    async with await psycopg.AsyncConnection.connect(engine.dsn(passfile)) as session:
        pid = engine.pid
        assert pid is not None
        waiting = asyncio.create_task(engine.wait_exit())
        os.kill(pid if victim == "postmaster" else session.info.backend_pid, signal.SIGKILL)
        ended = await asyncio.wait_for(waiting, 10)
    assert not ended.clean
    assert ended.pid == pid
    assert ended.returncode == (-signal.SIGKILL if victim == "postmaster" else 1)
    assert engine.pid is None
    assert await engine.stop() == ended
    assert _sysv_segments(pid) == []


async def test_the_password_is_seen_nowhere(
    make_engine: Callable[..., PostgresEngine], cluster: Path, data_dir: Path
) -> None:
    engine = make_engine(parameters={"log_statement": "all", "log_min_duration_statement": "0"})
    await engine.start(cluster)
    passfile = data_dir / "pgpass"
    password = ensure_passfile(passfile, "postgres")
    await engine.give_password(password)
    [(verifier,)] = await query(engine, passfile, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
    assert str(verifier).startswith("SCRAM-SHA-256$")
    await engine.give_password("another")  # there is one: it stays
    assert await query(engine, passfile, "SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'") == [
        (verifier,)
    ]
    log = engine.log_path.read_text()
    assert "SELECT rolpassword" in log  # statements are logged, just not this one
    assert "ALTER ROLE" not in log
    assert password not in log
    assert password not in command_line(engine)
    with pytest.raises(psycopg.OperationalError, match="password"):
        await psycopg.AsyncConnection.connect(
            host="127.0.0.1",
            port=engine.port,
            user="postgres",
            dbname="postgres",
            password="wrong",  # noqa: S106
        )


async def test_environment_and_descriptors_reach_the_backends(
    engine: PostgresEngine, cluster: Path, data_dir: Path
) -> None:
    read, write = os.pipe()
    try:
        os.write(write, b"through the pipe\n")
        await engine.start(cluster, env={"AURORA_GIVEN": "through the environment"}, pass_fds=[read])
        passfile = data_dir / "pgpass"
        await engine.give_password(ensure_passfile(passfile, "postgres"))
        async with await psycopg.AsyncConnection.connect(engine.dsn(passfile)) as session:
            await session.execute("CREATE TEMPORARY TABLE got (line text)")
            await session.execute("COPY got FROM PROGRAM 'printenv AURORA_GIVEN'")
            await session.execute(f"COPY got FROM PROGRAM 'bash -c \"head -n 1 <&{read}\"'")
            rows = await (await session.execute("SELECT line FROM got")).fetchall()
        assert rows == [("through the environment",), ("through the pipe",)]
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.allowed_logs("ignored a stop")
async def test_an_engine_that_does_not_listen_is_stopped_by_force(engine: PostgresEngine, cluster: Path) -> None:
    await engine.start(cluster)
    assert engine.pid is not None
    os.kill(engine.pid, signal.SIGSTOP)
    with pytest.raises(Exception, match="did not answer within"):
        await engine.check(timeout_s=0.2)
    begun = time.monotonic()
    ended = await engine.stop(StopMode.IMMEDIATE, timeout_s=0.2)
    assert ended is not None
    assert ended.returncode == -signal.SIGKILL
    assert time.monotonic() - begun < 5


async def test_long_paths_get_their_sockets_elsewhere(
    make_engine: Callable[..., PostgresEngine], cluster: Path, data_dir: Path, account: EngineAccount
) -> None:
    engine = make_engine(run_dir=data_dir / ("long" * 20) / ("name" * 20))
    await engine.start(cluster)
    await engine.check()
    sockets = list(data_dir.parent.glob("aurora-ray-*"))
    assert len(sockets) == 1
    assert (sockets[0].stat().st_uid, sockets[0].stat().st_mode & 0o777) == (account.uid, 0o700)
    await engine.stop()
    assert not sockets[0].exists()


async def test_a_log_that_grows_is_cut(engine: PostgresEngine, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aurora_ray.engine.server.LOG_BYTES_MAX", 10)
    await engine.start(cluster)
    await engine.check()
    ended = await engine.stop()
    assert ended is not None
    assert "shut down" in ended.log_tail
    assert engine.log_path.read_text().count("starting PostgreSQL") == 0
    assert "starting PostgreSQL" in engine.log_path.with_name("postgres.log.1").read_text()


def test_a_dsn_has_no_secret_and_quotes_its_path(make_engine: Callable[..., PostgresEngine]) -> None:
    engine = make_engine(host="0.0.0.0", port=5433)  # noqa: S104
    assert engine.dsn(Path("a dir/pgpass")) == "postgresql://postgres@127.0.0.1:5433/postgres?passfile=a%20dir/pgpass"
    assert "@[::1]:6000/" in engine.dsn(Path("p"), host="::1", port=6000)
