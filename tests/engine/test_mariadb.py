"""What the project knows of MariaDB, and a real server on a plain directory."""

import os
import shlex
import socket
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from aurora_ray.config import GIB, MIB
from aurora_ray.engine.account import EngineAccount
from aurora_ray.engine.base import EngineInstall, StopMode
from aurora_ray.engine.mariadb import catalogue, credentials
from aurora_ray.engine.mariadb.adapter import ADAPTER
from aurora_ray.engine.mariadb.administration import LEFT_PAGES
from aurora_ray.engine.mariadb.catalogue import Known, check_changes, check_value, number_of
from aurora_ray.engine.mariadb.client import MariadbClient, error_packet
from aurora_ray.engine.mariadb.connection import options_of
from aurora_ray.engine.mariadb.image import FORMAT, SERIES_FILE, SERVER_ID_FILE, PreparedImage, prepare_image
from aurora_ray.engine.mariadb.install import find_install, install_at
from aurora_ray.engine.mariadb.server import MariadbEngine
from aurora_ray.engine.mariadb.sessions import count_sessions
from aurora_ray.engine.mariadb.settings import PAGE_BYTES, check_parameters, default_settings
from aurora_ray.engine.sizes import InstanceSize
from aurora_ray.errors import AuroraError, ConfigurationError, EngineError, UsageError
from aurora_ray.log.layout import RecordType
from tests.engine.plain import build_tree


def test_a_dsn_is_options_of_the_client_with_the_password_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a dir" / "demo.cnf"
    password = credentials.ensure_passfile(path, "admin")
    assert credentials.ensure_passfile(path, "admin") == password
    assert path.stat().st_mode & 0o777 == 0o600
    dsn = MariadbClient().dsn([("127.0.0.1", 3307)], path)
    assert password not in dsn
    assert shlex.split(dsn) == [f"--defaults-file={path}", "--host=127.0.0.1", "--port=3307"]
    assert options_of(dsn) == {"user": "admin", "password": password, "host": "127.0.0.1", "port": "3307"}
    credentials.write_passfile(path, "admin", "another")
    assert options_of(dsn)["password"] == "another"  # noqa: S105
    path.write_text("[client]\nuser=admin\n")
    with pytest.raises(ConfigurationError, match="has no password"):
        credentials.ensure_passfile(path, "admin")
    path.write_text("rubbish")
    with pytest.raises(ConfigurationError, match="is no option file"):
        credentials.ensure_passfile(path, "admin")


def test_the_hash_is_the_servers() -> None:
    assert credentials.native_hash("password") == "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19"


def test_what_a_server_that_is_not_there_says_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "demo.cnf"
    credentials.ensure_passfile(path, "admin")
    with pytest.raises(AuroraError, match="Connection refused") as raised:
        MariadbClient().query(MariadbClient().dsn([("127.0.0.1", 1)], path), "select 1")
    assert "\n" not in str(raised.value)


def test_what_is_said_before_a_greeting_is_what_clients_understand() -> None:
    packet = error_packet(1040, "too many")
    assert packet == b"\x0b\0\0\0\xff\x10\x04too many"
    assert len(ADAPTER.refusal) <= 128


def test_values_are_checked_as_the_server_would() -> None:
    number = Known("n", "BIGINT UNSIGNED", "10", "100000", (), read_only=False, settable=True)
    switch = Known("s", "BOOLEAN", "", "", (), read_only=False, settable=True)
    choice = Known("c", "ENUM", "", "", ("ROW", "MIXED"), read_only=False, settable=True)
    several = Known("f", "FLAGSET", "", "", ("mrr", "icp", "default"), read_only=False, settable=True)
    real = Known("d", "DOUBLE", "0", "10", (), read_only=False, settable=True)
    for known, value in ((number, "1K"), (switch, "off"), (choice, "row"), (several, "mrr=on,icp=off"), (real, "0.5")):
        check_value(known, value)
    for known, value in ((number, "9"), (number, "1X"), (switch, "maybe"), (choice, "some"), (several, "x=on")):
        with pytest.raises(UsageError):
            check_value(known, value)
    for value in ("half", "1\n2"):
        with pytest.raises(UsageError):
            check_value(real, value)
    assert [number_of(each) for each in ("2M", "-1", "1.5", "M")] == [2 * MIB, -1, None, None]


def test_what_the_storage_rests_on_is_not_the_users() -> None:
    for name in (
        "innodb-doublewrite",
        "sync_binlog",
        "datadir",
        "innodb_force_recovery",
        "wsrep_on",
        "binlog_ignore_db",
        "log_bin",
        "plugin_dir",
    ):
        with pytest.raises(ConfigurationError, match=f"{name.replace('-', '_')} is fixed"):
            check_parameters({name: "1"})
    assert check_parameters({"Max-Connections": "5"}) == {"max_connections": "5"}
    sizes = [default_settings(InstanceSize(memory, 1, 2)) for memory in (128 * MIB, 16 * GIB)]
    assert [int(each["innodb_buffer_pool_size"]) for each in sizes] == [64 * MIB, 8 * GIB]
    assert [each["max_connections"] for each in sizes] == ["100", "2048"]


def test_clients_are_counted_by_their_connections() -> None:
    before = count_sessions(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        assert count_sessions(os.getpid()) == before + 1
    assert count_sessions(2**22 - 1) == 0


def test_what_is_no_mariadb_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="it has no mariadbd"):
        find_install(None, tmp_path)
    server = tmp_path / "mariadbd"
    for version, why in (
        ("10.6.1-MariaDB", "too old"),
        ("8.0.36", "names no version of MariaDB"),
        ("11.4.2-MariaDB", "has no"),
    ):
        server.write_text(f"#!/bin/sh\necho 'mariadbd  Ver {version} for Linux'\n")
        server.chmod(0o755)
        with pytest.raises(ConfigurationError, match=why):
            install_at(tmp_path)
    with pytest.raises(ConfigurationError, match="no MariaDB 9"):
        find_install("9")


@pytest.mark.mariadb
def test_parameters_are_what_the_server_itself_lists() -> None:
    install = find_install()
    assert check_changes(
        install,
        {
            "innodb_buffer_pool_size": "1G",
            "performance_schema": "ON",
            "character-set-server": "latin1",
            "sort_buffer_size": None,
        },
    ) == {
        "innodb_buffer_pool_size": "dynamic",
        "performance_schema": "pending-reboot",
        "character_set_server": "dynamic",
        "sort_buffer_size": "dynamic",
    }
    for name, value in (("hostname", "here"), ("nonsense", "1"), ("innodb_io_capacity", "1"), ("datadir", "/")):
        with pytest.raises(UsageError, match=name):
            check_changes(install, {name: value})
    assert len(catalogue.catalogue(install, "aurora-ray")) > 500


@pytest.mark.mariadb
async def test_each_cluster_has_an_identity_and_starts_after_any_end(
    data_dir: Path, image_cache: Path, account: EngineAccount
) -> None:
    install = find_install()
    image = prepare_image(install, account, image_cache)
    assert prepare_image(install, account, image_cache) == image
    assert (image_cache / f"mysql-{install.version}-{FORMAT}").is_dir()
    records = list(image.new_cluster())
    created = [record.body for record in records if record.type is RecordType.CREATE]
    assert created[-1] == SERIES_FILE
    assert not [name for name in created if b"ibtmp" in name or name.endswith(b".pid")]
    assert sum(record.encoded_bytes for record in records) < 16_000_000  # the log's zeros are not in it
    build_tree(records, data_dir / "one", account, PAGE_BYTES)
    build_tree(image.new_cluster(), data_dir / "two", account, PAGE_BYTES)
    numbers = [(data_dir / name / os.fsdecode(SERVER_ID_FILE)).read_text() for name in ("one", "two")]
    assert int(numbers[0]) != int(numbers[1])

    engine = MariadbEngine(install, account, data_dir / "run")
    await engine.start(data_dir / "one", timeout_s=60)
    assert engine.first_start
    assert await engine.stop(StopMode.FAST) is not None
    await engine.start(data_dir / "one", timeout_s=60)
    assert engine.pid is not None
    command = Path(f"/proc/{engine.pid}/cmdline").read_bytes()  # noqa: ASYNC240 - no disk
    password = options_of(f"--defaults-file={engine.socket_dir / 'admin.cnf'}")["password"]
    assert password.encode() not in command
    said = MariadbClient().query(
        f"--defaults-file={engine.socket_dir / 'admin.cnf'}", "select @@server_id, @@innodb_doublewrite"
    )
    assert said.rows == [[int(numbers[0]), 0]]
    with pytest.raises(EngineError, match="already"):
        await MariadbEngine(install, account, data_dir / "other").start(data_dir / "one")
    exit_ = await engine.stop(StopMode.KILL)
    assert exit_ is not None
    assert exit_.returncode == -9
    assert not engine.socket_dir.exists()


@pytest.mark.mariadb
async def test_two_moments_are_compared_and_pages_are_written_back(
    data_dir: Path, image_cache: Path, account: EngineAccount
) -> None:
    install = find_install()
    image = prepare_image(install, account, image_cache)
    engines: list[MariadbEngine] = []
    try:
        await _compare(install, account, image, data_dir, engines)
    finally:
        for engine in engines:
            await engine.stop(StopMode.KILL)


async def _compare(
    install: EngineInstall, account: EngineAccount, image: PreparedImage, data_dir: Path, engines: list[MariadbEngine]
) -> None:
    ways_in = []
    for name, rows in (("one", "(1, 'a'), (2, 'b'), (3, NULL)"), ("two", "(1, 'a'), (2, 'B'), (4, 'd')")):
        build_tree(image.new_cluster(), data_dir / name, account, PAGE_BYTES)
        engines.append(MariadbEngine(install, account, data_dir / f"run-{name}"))
        await engines[-1].start(data_dir / name, timeout_s=60)
        ways_in.append(f"--defaults-file={engines[-1].socket_dir / 'admin.cnf'}")
        for statement in (
            "create database d",
            "create table d.keyed (i int primary key, s text)",
            "create table d.`with a `` in it` (i int, s text, b varbinary(9), t timestamp default 0)",
            f"insert into d.keyed values {rows}",  # noqa: S608
            f"insert into d.`with a `` in it` (i, s) values {rows}, {rows}",  # noqa: S608
        ):
            MariadbClient().query(ways_in[-1], statement)

    def compared(table: str, database: str = "d") -> list[tuple[str, str | None, str | None]]:
        return sorted(tuple(each) for each in MariadbClient().differences(*ways_in, table, database))

    assert compared("keyed") == [
        ("came", None, '{"i": 4, "s": "d"}'),
        ("changed", '{"i": 2, "s": "b"}', '{"i": 2, "s": "B"}'),
        ("went", '{"i": 3, "s": null}', None),
    ]
    assert Counter(kind for kind, _, _ in compared("d.with a ` in it", "")) == {"came": 4, "went": 4}
    with pytest.raises(UsageError, match=r"there is no table d\.other"):
        compared("other")
    MariadbClient().query(ways_in[0], "insert into d.keyed select seq, repeat('x', 1000) from d.seq_10_to_9000")
    limits = "select @@innodb_max_dirty_pages_pct, @@innodb_max_dirty_pages_pct_lwm"
    before = MariadbClient().query(ways_in[0], limits)
    await engines[0].write_back(timeout_s=60)
    dirty = MariadbClient().query(ways_in[0], "show global status like 'Innodb_buffer_pool_pages_dirty'").rows
    assert int(dirty[0][1]) <= LEFT_PAGES
    assert MariadbClient().query(ways_in[0], limits).rows == before.rows


@pytest.mark.mariadb
def test_people_get_the_client_program() -> None:
    words = MariadbClient().command_line("--port=1", "10.11", None, ["select 1 -- one", "select 2;"], ["--table"])
    assert words[1:] == ["--port=1", "--execute=select 1 -- one\n;\nselect 2", "--table"]
    done = subprocess.run([words[0], "--version"], capture_output=True, text=True, check=True, timeout=30)
    assert "MariaDB" in done.stdout
