"""Whatever users set, lock or remove: the server starts again, is seen to be alive, and what is left out is told."""

from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import StopMode
from aurora_ray.engine.postgres.configuration import (
    AUTO,
    GOOD_AUTO,
    HBA,
    REFUSED,
    Rung,
    conf_text,
    settings_in,
    without_settings,
)
from aurora_ray.engine.postgres.server import PostgresEngine
from aurora_ray.engine.postgres.start import first_complaint
from aurora_ray.errors import EngineError
from aurora_ray.troubles import TroubleCode

pytestmark = [pytest.mark.postgres, pytest.mark.allowed_logs("does not start with")]

SETTINGS = (
    "shared_preload_libraries = 'no_such_library'",
    "shared_preload_libraries = 'auto_explain, no_such'",
    "hba_file = '/nonexistent/pg_hba.conf'",
    "superuser_reserved_connections = 20000",
    "shared_buffers = '100TB'",
    "max_connections = 1",
    "max_pred_locks_per_transaction = 2000000000",
    "ssl = on",
    "a line that does not parse",
    "huge_pages = on",
    "recovery_target_time = '2020-01-01', recovery_target_name = 'x'",
    "archive_mode = on, wal_level = minimal",
)
HARMLESS = (
    "default_transaction_read_only = on",
    "statement_timeout = '1ms'",
    "idle_session_timeout = '1ms'",
    "session_preload_libraries = 'no_such'",
    "log_destination = 'csvlog'",
    "listen_addresses = ''",
    "port = 1",
    "unix_socket_group = 'nogroup'",
    "unix_socket_directories = ''",
    "max_worker_processes = 0",
    "log_min_messages = panic",
)
STATEMENTS = (
    "alter database postgres allow_connections false",
    "alter database postgres connection limit 0",
    "revoke connect on database postgres from public",
    "alter role postgres set statement_timeout = 1",
    "alter role postgres set session_preload_libraries = 'no_such'",
    "create function no() returns event_trigger language plpgsql as $$begin raise exception 'no'; end$$",
    "create event trigger no on login execute function no()",
    "alter role postgres nologin",
    "alter role postgres rename to admin",
)


def write(account: EngineAccount, path: Path, content: str) -> None:
    path.write_text(content)
    account.own(path, 0o600)


async def setting(engine: PostgresEngine, name: str) -> str:
    async with await session(engine) as client:
        row = await (await client.execute(f"SHOW {name}".encode())).fetchone()
        assert row is not None
        return str(row[0])


async def session(
    engine: PostgresEngine, dbname: str = "postgres", user: str = "postgres"
) -> psycopg.AsyncConnection[tuple[object, ...]]:
    return await psycopg.AsyncConnection.connect(
        host=str(engine.socket_dir), port=engine.port, user=user, dbname=dbname, autocommit=True
    )


@pytest.fixture
async def good(engine: PostgresEngine, cluster: Path, account: EngineAccount) -> Path:
    """A data directory whose last start had a setting of the user's in force."""
    write(account, cluster / AUTO, "work_mem = '7MB'\n")
    await engine.start(cluster)
    await engine.note_good_start()
    assert engine.troubles == ()
    await engine.stop(StopMode.FAST)
    assert settings_in((cluster / GOOD_AUTO).read_text()) == {"work_mem": "7MB"}
    return cluster


async def test_settings_that_no_server_starts_with(engine: PostgresEngine, good: Path, account: EngineAccount) -> None:
    for bad in SETTINGS:
        write(account, good / AUTO, "work_mem = '7MB'\n" + bad.replace(", r", "\nr").replace(", w", "\nw") + "\n")
        await engine.start(good)
        [trouble] = engine.troubles
        assert trouble.code is TroubleCode.PARAMETER_LEFT_OUT
        assert all(name in trouble.sentence for name in settings_in(bad)), trouble
        assert settings_in((good / AUTO).read_text()) == {"work_mem": "7MB"}  # the last that worked
        assert bad.partition(",")[0] in (good / REFUSED).read_text()
        await engine.stop(StopMode.KILL)
    assert engine.log_path.read_text().count("FATAL") <= len(SETTINGS)  # one failed start each
    await engine.start(good)  # the next start goes through at once, and still tells
    assert await setting(engine, "work_mem") == "7MB"
    assert [kept.code for kept in engine.troubles] == [TroubleCode.PARAMETER_LEFT_OUT]


async def test_settings_that_lock_users_out_are_no_matter(
    engine: PostgresEngine, good: Path, account: EngineAccount
) -> None:
    write(account, good / AUTO, "".join(f"{harmless}\n" for harmless in HARMLESS))
    await engine.start(good)
    await engine.check()
    assert engine.troubles == ()


async def test_a_library_that_no_session_begins_with_is_told_and_not_kept(
    engine: PostgresEngine, good: Path, account: EngineAccount
) -> None:
    write(account, good / AUTO, "session_preload_libraries = 'no_such'\n")
    await engine.start(good)
    await engine.note_good_start()
    [trouble] = engine.troubles
    assert trouble.code is TroubleCode.SESSIONS_FAIL
    assert '"no_such"' in trouble.sentence
    assert settings_in((good / GOOD_AUTO).read_text()) == {"work_mem": "7MB"}  # the last that worked


async def test_roles_and_databases_are_no_matter(engine: PostgresEngine, cluster: Path) -> None:
    await engine.start(cluster)
    async with await session(engine) as client:
        await client.execute(b"create role boss superuser login")
    async with await session(engine, "template1", "boss") as elsewhere, await session(engine, user="boss") as client:
        for statement in STATEMENTS:
            await (elsewhere if "database" in statement else client).execute(statement.encode())
        await client.close()
        await elsewhere.execute(b"drop database postgres")
    await engine.check()
    await engine.stop(StopMode.KILL)
    await engine.start(cluster)
    await engine.check()
    assert engine.troubles == ()
    with pytest.raises(psycopg.OperationalError, match=r"not permitted to log in|does not exist"):
        await session(engine)


async def test_access_rules(engine: PostgresEngine, good: Path, account: EngineAccount) -> None:
    for rules in ("local all all reject\n", "this is no rule\n", None):
        if rules is None:
            (good / HBA).unlink()
        else:
            write(account, good / HBA, rules)
        await engine.start(good)
        if rules is not None and "reject" in rules:
            assert engine.troubles == ()
        else:
            assert "pg_hba.conf" in engine.troubles[0].sentence
            assert await setting(engine, "work_mem") == "7MB"  # the rules alone are replaced
        await engine.stop(StopMode.KILL)


async def test_a_damaged_postgresql_conf(engine: PostgresEngine, good: Path, account: EngineAccount) -> None:
    write(account, good / "postgresql.conf", "nonsense\n")
    await engine.start(good)
    assert "postgresql.conf" in engine.troubles[0].sentence


async def test_parameters_of_the_cluster(make_engine: Callable[..., PostgresEngine], cluster: Path) -> None:
    engine = make_engine(parameters={"shared_buffers": "100TB", "jit": "on"})
    await engine.start(cluster)
    assert "shared_buffers" in engine.troubles[0].sentence


async def test_what_the_user_sets_after_a_refusal_ends_the_trouble(
    engine: PostgresEngine, good: Path, account: EngineAccount
) -> None:
    write(account, good / AUTO, "shared_buffers = '100TB'\n")
    await engine.start(good)
    await engine.stop()
    write(account, good / AUTO, "work_mem = '9MB'\n")
    await engine.start(good)
    await engine.note_good_start()
    await engine.stop()
    await engine.start(good)
    assert engine.troubles == ()
    assert not (good / REFUSED).exists()


async def test_a_failure_that_is_no_setting_changes_nothing(
    engine: PostgresEngine, good: Path, account: EngineAccount
) -> None:
    write(account, good / AUTO, "work_mem = '8MB'\n")
    control = (good / "global/pg_control").read_bytes()
    write(account, good / "global/pg_control", "x" * len(control))
    with pytest.raises(Exception, match=r"control file|incompatible|checksum"):
        await engine.start(good)
    assert settings_in((good / AUTO).read_text()) == {"work_mem": "8MB"}
    assert not (good / REFUSED).exists()


async def test_a_standby_says_that_it_takes_no_writes(
    engine: PostgresEngine, good: Path, account: EngineAccount
) -> None:
    write(account, good / "standby.signal", "")
    await engine.start(good)
    await engine.check()
    [trouble] = engine.troubles
    assert trouble.code is TroubleCode.READ_ONLY
    assert "standby.signal" in trouble.sentence


def test_ranks(tmp_path: Path) -> None:
    text = conf_text(tmp_path, Rung.ALL, hba=None, defaults={"jit": "off"}, parameters={"jit": "o'n\\"})
    lines = text.splitlines()
    assert lines[1].startswith("include_if_exists")
    assert lines[2:] == ["jit = 'off'", "jit = 'o''n\\\\'"]
    assert "o''n" not in conf_text(tmp_path, Rung.OURS, hba=None, defaults={"jit": "off"}, parameters={"jit": "o'n"})


@pytest.mark.parametrize(
    ("log", "complaint"),
    [
        (
            "2026 [1] LOG:  invalid value: x\n2026 [1] FATAL:  configuration file contains errors",
            "LOG:  invalid value: x",
        ),
        (
            "2026 [1] LOG:  starting\n2026 [1] FATAL:  no such library\n2026 [1] LOG:  shut down",
            "FATAL:  no such library",
        ),
        ("postgres: one must be less than the other", "postgres: one must be less than the other"),
        ("", "PostgreSQL ended"),
    ],
)
def test_the_line_that_says_what_was_wrong(log: str, complaint: str) -> None:
    assert first_complaint(EngineError(f"PostgreSQL ended\n{log}")) == complaint


def test_single_settings_can_be_taken_out() -> None:
    text = "# Do not edit\na = '1'\nB.c = 2\nd = '3'\n"
    assert without_settings(text, {"a", "b.c"}) == "# Do not edit\nd = '3'\n"
